// The adjoint g[t] = C[t] dy[t] + a[t+1] g[t+1] runs against the scan, chunk by chunk. The states of a chunk are
// computed again from its checkpoint. (a g) h[t-1] is formed as it stands, without cancellation.

// NB states of a chunk: keeps h[-1], h[0], ... and the decays a[0], ...
template <int NB>
static void replay(int T, const float* dt, const float* dtx, const float* A2, Rows B, const float* start, float* states, float* decays, bool first, const Ahead& next) {
  vf h[NB];
  MNO_UNROLL
  for (int n = 0; n < NB; ++n) {
    h[n] = v_load(start + n * W);
    v_store(states + n * W, h[n]);
  }
  for (int t = 0; t < T; ++t) {
    const vf d = v_load(dt + t * W), dx = v_load(dtx + t * W);
    const float* b = B.at(t);
    if (first) next.ask(t);
    MNO_UNROLL
    for (int n = 0; n < NB; ++n) {
      const vf a = v_exp2(v_mul(d, v_load(A2 + n * W)));
      h[n] = v_fma(a, h[n], v_mul(dx, v_set1(b[n])));
      v_store(decays + (t * NB + n) * W, a);
      v_store(states + ((t + 1) * NB + n) * W, h[n]);
    }
  }
}

// What a sweep adds to: [step lane] for by_input = sum_n g B and by_step = sum_n (a g) h A log2(e);
// [step state lane] for dB, dC; [state lane] for dA
struct Sums {
  float *by_input, *by_step, *dB, *dC, *dA;
  bool first_states, first_block;
};

template <int NB>
static void sweep(int T, int NP, const float* dt, const float* dtx, const float* dy, const float* A2, Rows B, Rows C,
                  const float* states, const float* decays, float* g_io, const Sums& sums) {
  vf g[NB], dA[NB];
  MNO_UNROLL
  for (int n = 0; n < NB; ++n) {
    g[n] = v_load(g_io + n * W);
    dA[n] = v_zero();
  }
  for (int t = T - 1; t >= 0; --t) {
    const vf d = v_load(dt + t * W), dx = v_load(dtx + t * W), gy = v_load(dy + t * W);
    const float *b = B.at(t), *c = C.at(t);
    vf by_input = sums.first_states ? v_zero() : v_load(sums.by_input + t * W);
    vf by_step = sums.first_states ? v_zero() : v_load(sums.by_step + t * W);
    float *dB = sums.dB + (int64_t)t * NP * W, *dC = sums.dC + (int64_t)t * NP * W;
    MNO_UNROLL
    for (int n = 0; n < NB; ++n) {
      const vf h = v_load(states + ((t + 1) * NB + n) * W);
      g[n] = v_fma(gy, v_set1(c[n]), g[n]);
      if (sums.first_block) {
        v_store(dC + n * W, v_mul(gy, h));
        v_store(dB + n * W, v_mul(g[n], dx));
      } else {
        v_store(dC + n * W, v_fma(gy, h, v_load(dC + n * W)));
        v_store(dB + n * W, v_fma(g[n], dx, v_load(dB + n * W)));
      }
      by_input = v_fma(g[n], v_set1(b[n]), by_input);
      g[n] = v_mul(g[n], v_load(decays + (t * NB + n) * W));
      const vf q = v_mul(g[n], v_load(states + (t * NB + n) * W));
      by_step = v_fma(q, v_load(A2 + n * W), by_step);
      dA[n] = v_fma(q, d, dA[n]);
    }
    v_store(sums.by_input + t * W, by_input);
    v_store(sums.by_step + t * W, by_step);
  }
  MNO_UNROLL
  for (int n = 0; n < NB; ++n) {
    v_store(g_io + n * W, g[n]);
    v_store(sums.dA + n * W, dA[n]);
  }
}

struct BackwardRoom {
  float *g, *A2, *B, *C, *start, *states, *decays, *dA, *dB, *dC, *sums;
  float *x, *raw, *dt, *dtx, *dy, *z, *y, *by_input, *by_step;
  double *dA_total, *dD_total, *dbias_total;
  size_t size;
  BackwardRoom(const Scan& s, int64_t blocks, float* memory) {
    const size_t NP = padded_states(s.states), T = longest_chunk(s);
    // the gate needs y, hence all states at once; else a group of them at a time
    const size_t kept = s.z.data || NP < BACKWARD_STATES ? NP : BACKWARD_STATES;
    Arena arena(memory);
    g = arena.take(blocks * NP * W);
    A2 = arena.take(blocks * NP * W);
    B = arena.take(T * NP);
    C = arena.take(T * NP);
    start = arena.take(NP * W);
    states = arena.take((T + 1) * kept * W);
    decays = arena.take(T * kept * W);
    dA = arena.take(NP * W);
    dB = arena.take(T * NP * W + W * W);
    dC = arena.take(T * NP * W + W * W);
    sums = arena.take(T * NP + W);
    float** const tiles[] = {&x, &raw, &dt, &dtx, &dy, &z, &y, &by_input, &by_step};
    for (float** tile : tiles) *tile = arena.take(T * W);
    dA_total = reinterpret_cast<double*>(arena.take(2 * blocks * NP * W));
    dD_total = reinterpret_cast<double*>(arena.take(2 * blocks * W));
    dbias_total = reinterpret_cast<double*>(arena.take(2 * blocks * W));
    size = arena.used;
  }
};

static size_t backward_scratch(const Scan& s, int64_t blocks) { return BackwardRoom(s, blocks, nullptr).size; }

// a group of states of one chunk: where it begins and where its states and decays are kept
struct Group {
  int first, width;
  int64_t offset;
};

static Group group_at(const Scan& s, int n) {
  const int NP = padded_states(s.states), left = NP - n, width = left >= BACKWARD_STATES ? BACKWARD_STATES : 4;
  return {n, width, s.z.data ? (int64_t)n * W : 0};
}

static void replay_group(const Group& g, int T, const float* A2, Rows B, const Ahead& next, const BackwardRoom& r) {
  float *states = r.states + g.offset * (T + 1), *decays = r.decays + g.offset * T;
  const float *a = A2 + g.first * W, *start = r.start + g.first * W;
  const Rows b{B.data + g.first, B.stride};
  if (g.width == 4)
    replay<4>(T, r.dt, r.dtx, a, b, start, states, decays, g.first == 0, next);
  else
    replay<BACKWARD_STATES>(T, r.dt, r.dtx, a, b, start, states, decays, g.first == 0, next);
}

static void sweep_group(const Group& g, int NP, int T, const float* A2, Rows B, Rows C, float* adjoint, bool first_block, const BackwardRoom& r) {
  const float *states = r.states + g.offset * (T + 1), *decays = r.decays + g.offset * T, *a = A2 + g.first * W;
  const int64_t at = (int64_t)g.first * W;
  const Sums sums{r.by_input, r.by_step, r.dB + at, r.dC + at, r.dA + at, g.first == 0, first_block};
  const Rows b{B.data + g.first, B.stride}, c{C.data + g.first, C.stride};
  if (g.width == 4)
    sweep<4>(T, NP, r.dt, r.dtx, r.dy, a, b, c, states, decays, adjoint + at, sums);
  else
    sweep<BACKWARD_STATES>(T, NP, r.dt, r.dtx, r.dy, a, b, c, states, decays, adjoint + at, sums);
}

// y without the gate, from the kept states; the skip term belongs to the first direction
static void ungated(const Scan& s, int64_t k, const Block& b, int T, Rows C, const BackwardRoom& r) {
  const int NP = padded_states(s.states);
  const vf D = k == 0 ? skip_weights(s, b) : v_zero();
  for (int t = 0; t < T; ++t) v_store(r.y + t * W, k == 0 && s.D ? v_mul(D, v_load(r.x + t * W)) : v_zero());
  for (int n = 0; n < NP;) {
    const Group g = group_at(s, n);
    const float* states = r.states + g.offset * (T + 1);
    for (int t = 0; t < T; ++t) {
      vf y = v_load(r.y + t * W);
      for (int i = 0; i < g.width; ++i) y = v_fma(v_load(states + ((t + 1) * g.width + i) * W), v_set1(C.at(t)[n + i]), y);
      v_store(r.y + t * W, y);
    }
    n += g.width;
  }
}

// y_out = y silu(z): leaves dy * silu(z) in dy and this direction's part of dz in z
static void pass_gate(int T, const BackwardRoom& r) {
  const vf one = v_set1(1.f);
  for (int t = 0; t < T; ++t) {
    const vf z = v_load(r.z + t * W), sig = v_sigmoid(z), dy = v_load(r.dy + t * W);
    const vf slope = v_mul(sig, v_fma(z, v_sub(one, sig), one));
    v_store(r.z + t * W, v_mul(dy, v_mul(v_load(r.y + t * W), slope)));
    v_store(r.dy + t * W, v_mul(dy, v_mul(z, sig)));
  }
}

// dx into y, ddt into by_step, and the sums for D and the bias
static void pass_inputs(const Scan& s, int64_t k, const Block& b, int T, int64_t block, const BackwardRoom& r) {
  constexpr float LN_2 = 0.6931471805599453f;
  const bool skip = k == 0 && s.D;
  const vf D = skip ? skip_weights(s, b) : v_zero();
  vf dD = v_zero(), dbias = v_zero();
  for (int t = 0; t < T; ++t) {
    const vf x = v_load(r.x + t * W), dy = v_load(r.dy + t * W), u = v_load(r.by_input + t * W);
    const vf dx = v_mul(u, v_load(r.dt + t * W));
    v_store(r.y + t * W, skip ? v_fma(dy, D, dx) : dx);
    dD = v_fma(dy, x, dD);
    vf d = v_fma(u, x, v_mul(v_load(r.by_step + t * W), v_set1(LN_2)));
    if (s.softplus) d = v_mul(d, v_load(r.raw + t * W));
    dbias = v_add(dbias, d);
    v_store(r.by_step + t * W, d);
  }
  alignas(64) float sum[2][W];
  v_store(sum[0], dD);
  v_store(sum[1], dbias);
  for (int c = 0; c < W; ++c) {
    r.dD_total[block * W + c] += sum[0][c];
    r.dbias_total[block * W + c] += sum[1][c];
  }
}

// the state before a chunk
static void load_start(const Scan& s, int64_t batch, const Chunk& c, const Block& b, const BackwardRoom& r) {
  const int NP = padded_states(s.states);
  for (int n = 0; n < NP; ++n) v_store(r.start + n * W, v_zero());
  if (c.checkpoint < 0) return;
  const float* from = s.checkpoint + (batch * s.checkpoints + c.checkpoint) * s.states * s.width + b.first;
  load_tile(from, 1, s.width, b.valid, (int)s.states, r.start);
}

static void backward_block(const Backward& q, int64_t batch, int64_t k, int64_t i, const Block& b, const Chunk& c, const Ahead& next, Rows B, Rows C, const BackwardRoom& r) {
  const Scan& s = q.scan;
  const int NP = padded_states(s.states), T = c.length;
  float *A2 = r.A2 + i * NP * W, *g = r.g + i * NP * W;
  const int64_t token = (batch * s.tokens + c.token) * s.width + b.first, step = c.stride * s.width;
  if (c.ends)
    for (int n = 0; n < NP; ++n) v_store(g + n * W, v_zero());
  load_start(s, batch, c, b, r);
  load_tile(s.x, batch, 0, c, b, r.x);
  load_tile(s.dt, batch, k, c, b, r.raw);
  load_tile(q.dy, batch, 0, c, b, r.dy);
  load_steps<true>(s, k, b, T, r.x, r.raw, r.dt, r.dtx);
  if (s.z.data) {
    load_tile(s.z, batch, 0, c, b, r.z);
    for (int n = 0; n < NP; n += group_at(s, n).width) replay_group(group_at(s, n), T, A2, B, next, r);
    ungated(s, k, b, T, C, r);
    pass_gate(T, r);
    store_tile(r.z, q.dz + token, step, b.valid, T, k > 0);
  }
  for (int n = 0; n < NP; n += group_at(s, n).width) {
    const Group group = group_at(s, n);
    if (!s.z.data) replay_group(group, T, A2, B, next, r);
    sweep_group(group, NP, T, A2, B, C, g, i == 0, r);
  }
  // over a whole sequence a float would lose digits
  double* dA = r.dA_total + i * NP * W;
  for (int n = 0; n < NP * W; ++n) dA[n] += r.dA[n];
  pass_inputs(s, k, b, T, i, r);
  store_tile(r.y, q.dx + token, step, b.valid, T, k > 0);
  float* ddt = q.ddt + ((batch * s.directions + k) * s.tokens + c.token) * s.width + b.first;
  store_tile(r.by_step, ddt, step, b.valid, T, false);
}


// sums dB or dC of a chunk over the channels and writes them to their tokens
static void store_rows(const Scan& s, const Chunk& c, const float* from, float* sums, float* to) {
  const int NP = padded_states(s.states), N = (int)s.states;
  for (int i = 0; i < c.length * NP; i += W) v_row_sums(from + (int64_t)i * W, sums + i);
  for (int t = 0; t < c.length; ++t)
    for (int n = 0; n < N; ++n) to[(c.token + t * c.stride) * N + n] = sums[t * NP + n];
}

static void backward_chunk(const Backward& q, int64_t batch, int64_t k, int64_t first, int64_t blocks, int64_t split, const Chunk& c, const Chunk& next, const BackwardRoom& r) {
  const Scan& s = q.scan;
  const int NP = padded_states(s.states);
  const Rows B = load_rows(s.B, batch, k, c, s.states, NP, r.B), C = load_rows(s.C, batch, k, c, s.states, NP, r.C);
  for (int64_t i = 0; i < blocks; ++i) {
    const Block b = block_at(s, first + i);
    backward_block(q, batch, k, i, b, c, ahead(s, batch, k, b, next, q.dx, q.dy), B, C, r);
  }
  const int64_t to = ((split * s.batch + batch) * s.directions + k) * s.tokens * s.states;
  store_rows(s, c, r.dB, r.sums, q.dB + to);
  store_rows(s, c, r.dC, r.sums, q.dC + to);
}

static void clear_totals(const Scan& s, int64_t blocks, const BackwardRoom& r) {
  const int64_t NP = padded_states(s.states);
  for (int64_t i = 0; i < blocks * NP * W; ++i) r.dA_total[i] = 0;
  for (int64_t i = 0; i < blocks * W; ++i) r.dD_total[i] = r.dbias_total[i] = 0;
}

static void store_totals(const Backward& q, int64_t batch, int64_t k, int64_t first, int64_t blocks, const BackwardRoom& r) {
  const Scan& s = q.scan;
  const int64_t NP = padded_states(s.states);
  for (int64_t i = 0; i < blocks; ++i) {
    const Block b = block_at(s, first + i);
    for (int c = 0; c < b.valid; ++c) {
      const int64_t channel = (batch * s.directions + k) * s.width + b.first + c;
      for (int64_t n = 0; n < s.states; ++n) q.dA[channel * s.states + n] = r.dA_total[(i * NP + n) * W + c];
      q.dD[channel] = r.dD_total[i * W + c];
      q.dbias[channel] = r.dbias_total[i * W + c];
    }
  }
}

static void backward(const Backward& q, int64_t batch, int64_t first, int64_t blocks, int64_t split, float* scratch) {
  const Scan& s = q.scan;
  const BackwardRoom room(s, blocks, scratch);
  for (int64_t k = 0; k < s.directions; ++k) {
    const Path& p = s.paths[k];
    load_decays(s, k, first, blocks, padded_states(s.states), LOG2_E, room.A2);
    clear_totals(s, blocks, room);
    int64_t i = p.segments * chunks_per_segment(p, s.chunk) - 1;
    for (Chunk c = chunk_at(p, s.chunk, i); i >= 0; --i) {
      const Chunk next = i > 0 ? chunk_at(p, s.chunk, i - 1) : c;
      backward_chunk(q, batch, k, first, blocks, split, c, next, room);
      c = next;
    }
    store_totals(q, batch, k, first, blocks, room);
  }
}
