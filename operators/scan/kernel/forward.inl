// h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t],  y[t] = C[t] . h[t]

// NB states of a chunk: advances h and adds (first: writes) their part of y
template <int NB>
static void advance(int T, const float* dt, const float* dtx, const float* A2, Rows B, Rows C, float* h_io, float* y, bool first, const Ahead& next) {
  vf h[NB];
  MNO_UNROLL
  for (int n = 0; n < NB; ++n) h[n] = v_load(h_io + n * W);
  for (int t = 0; t < T; ++t) {
    const vf d = v_load(dt + t * W), dx = v_load(dtx + t * W);
    const float *b = B.at(t), *c = C.at(t);
    if (first) next.ask(t);
    vf y0 = first ? v_zero() : v_load(y + t * W), y1 = v_zero();
    MNO_UNROLL
    for (int n = 0; n < NB; ++n) {
      h[n] = v_fma(v_exp2(v_mul(d, v_load(A2 + n * W))), h[n], v_mul(dx, v_set1(b[n])));
      if (n & 1)
        y1 = v_fma(h[n], v_set1(c[n]), y1);
      else
        y0 = v_fma(h[n], v_set1(c[n]), y0);
    }
    v_store(y + t * W, v_add(y0, y1));
  }
  MNO_UNROLL
  for (int n = 0; n < NB; ++n) v_store(h_io + n * W, h[n]);
}

static void advance_all(int NP, int T, const float* dt, const float* dtx, const float* A2, Rows B, Rows C, float* h, float* y, const Ahead& next) {
  int n = 0;
  auto part = [&](auto step, int width) {
    step(T, dt, dtx, A2 + n * W, Rows{B.data + n, B.stride}, Rows{C.data + n, C.stride}, h + n * W, y, n == 0, next);
    n += width;
  };
  if (FORWARD_STATES >= 16)
    while (NP - n >= 16) part(advance<FORWARD_STATES >= 16 ? 16 : 4>, 16);
  while (NP - n >= 8) part(advance<8>, 8);
  if (NP - n >= 4) part(advance<4>, 4);
}

struct ForwardRoom {
  float *h, *A2, *B, *C, *x, *raw, *dt, *dtx, *y, *z;
  size_t size;
  ForwardRoom(const Scan& s, int64_t blocks, float* memory) {
    const size_t NP = padded_states(s.states), T = longest_chunk(s);
    Arena arena(memory);
    h = arena.take(blocks * NP * W);
    A2 = arena.take(blocks * NP * W);
    B = arena.take(T * NP);
    C = arena.take(T * NP);
    float** const tiles[] = {&x, &raw, &dt, &dtx, &y, &z};
    for (float** tile : tiles) *tile = arena.take(T * W);
    size = arena.used;
  }
};

static size_t forward_scratch(const Scan& s, int64_t blocks) { return ForwardRoom(s, blocks, nullptr).size; }

static void save_state(const Scan& s, int64_t batch, int64_t row, const Block& b, const float* h) {
  float* to = s.checkpoint + (batch * s.checkpoints + row) * s.states * s.width + b.first;
  store_tile(h, to, s.width, b.valid, (int)s.states, false);
}

static void save_last(const Forward& f, int64_t batch, int64_t row, const Block& b, const float* h) {
  const Scan& s = f.scan;
  for (int c = 0; c < b.valid; ++c)
    for (int64_t n = 0; n < s.states; ++n)
      f.last[((batch * s.lasts + row) * s.width + b.first + c) * s.states + n] = h[n * W + c];
}

// adds the skip term with the first direction and applies the gate with the last one
static void finish(const Scan& s, const Block& b, int T, bool first, bool last, const ForwardRoom& r, float* y, int64_t step) {
  if (first && s.D) {
    const vf D = skip_weights(s, b);
    for (int t = 0; t < T; ++t) v_store(r.y + t * W, v_fma(D, v_load(r.x + t * W), v_load(r.y + t * W)));
  }
  if (!last || !s.z.data) return store_tile(r.y, y, step, b.valid, T, !first);
  if (!first) {
    load_tile(y, 1, step, b.valid, T, r.raw);
    for (int t = 0; t < T; ++t) v_store(r.y + t * W, v_add(v_load(r.raw + t * W), v_load(r.y + t * W)));
  }
  for (int t = 0; t < T; ++t) {
    const vf z = v_load(r.z + t * W);
    v_store(r.y + t * W, v_mul(v_load(r.y + t * W), v_mul(z, v_sigmoid(z))));
  }
  store_tile(r.y, y, step, b.valid, T, false);
}

// x, dt and y (or what else is shaped like them) of a chunk to come
static Ahead ahead(const Scan& s, int64_t batch, int64_t k, const Block& b, const Chunk& c, const float* y, const View& other) {
  const float* to = y + (batch * s.tokens + c.token) * s.width + b.first;
  const float* more = origin(other, batch, 0, c.token, b.first);
  return {{origin(s.x, batch, 0, c.token, b.first), origin(s.dt, batch, k, c.token, b.first), to, more},
          {c.stride * s.x.token, c.stride * s.dt.token, c.stride * s.width, c.stride * other.token}};
}

static void forward_chunk(const Forward& f, int64_t batch, int64_t k, int64_t first, int64_t blocks, const Chunk& c, const Chunk& next, const ForwardRoom& r) {
  const Scan& s = f.scan;
  const int NP = padded_states(s.states);
  const Rows B = load_rows(s.B, batch, k, c, s.states, NP, r.B), C = load_rows(s.C, batch, k, c, s.states, NP, r.C);
  const bool last = k == s.directions - 1;
  for (int64_t i = 0; i < blocks; ++i) {
    const Block b = block_at(s, first + i);
    float* h = r.h + i * NP * W;
    if (c.begins)
      for (int n = 0; n < NP; ++n) v_store(h + n * W, v_zero());
    else if (s.checkpoint)
      save_state(s, batch, c.checkpoint, b, h);
    load_tile(s.x, batch, 0, c, b, r.x);
    load_tile(s.dt, batch, k, c, b, r.raw);
    if (last && s.z.data) load_tile(s.z, batch, 0, c, b, r.z);
    load_steps<false>(s, k, b, c.length, r.x, r.raw, r.dt, r.dtx);
    advance_all(NP, c.length, r.dt, r.dtx, r.A2 + i * NP * W, B, C, h, r.y, ahead(s, batch, k, b, next, f.y, s.z.data ? s.z : s.x));
    finish(s, b, c.length, k == 0, last, r, f.y + (batch * s.tokens + c.token) * s.width + b.first, c.stride * s.width);
    if (c.ends && s.paths[k].last >= 0) save_last(f, batch, s.paths[k].last, b, h);
  }
}

static void forward(const Forward& f, int64_t batch, int64_t first, int64_t blocks, float* scratch) {
  const Scan& s = f.scan;
  const ForwardRoom room(s, blocks, scratch);
  for (int64_t k = 0; k < s.directions; ++k) {
    const Path& p = s.paths[k];
    load_decays(s, k, first, blocks, padded_states(s.states), LOG2_E, room.A2);
    const int64_t chunks = p.segments * chunks_per_segment(p, s.chunk);
    Chunk c = chunk_at(p, s.chunk, 0);
    for (int64_t i = 0; i < chunks; ++i) {
      const Chunk next = i + 1 < chunks ? chunk_at(p, s.chunk, i + 1) : c;
      forward_chunk(f, batch, k, first, blocks, c, next, room);
      c = next;
    }
  }
}
