// Included once per instruction set: elementary functions, tiles of T steps x W channels, and the walk over chunks.

inline vf v_zero() { return v_set1(0.f); }

constexpr float LOG2_E = 1.44269504088896f;

// log(1 + u) for u in [0, 1], as u + u^2 p(u): relative error 2e-7, also for the smallest u
inline vf v_log1p(vf u) {
  vf p = v_fma(v_set1(0.00536480453f), u, v_set1(-0.0300657116f));
  p = v_fma(p, u, v_set1(0.0792044029f));
  p = v_fma(p, u, v_set1(-0.137537912f));
  p = v_fma(p, u, v_set1(0.191536501f));
  p = v_fma(p, u, v_set1(-0.248571619f));
  p = v_fma(p, u, v_set1(0.33321321f));
  p = v_fma(p, u, v_set1(-0.499996483f));
  return v_fma(v_mul(u, u), p, u);
}

inline vf v_exp_minus_abs(vf v) { return v_exp2(v_mul(v_minus_abs(v), v_set1(LOG2_E))); }

// With u = exp(-|v|), softplus(v) = max(v, 0) + log(1 + u) and its slope is sigmoid(v): neither end overflows, and
// NaN passes
inline vf v_softplus(vf v, vf u) { return v_add(v_max0(v), v_log1p(u)); }

inline vf v_sigmoid(vf v, vf u) {
  const vf s = v_div(v_set1(1.f), v_add(v_set1(1.f), u));
  return v_where_negative(v, v_mul(u, s), s);
}

inline vf v_sigmoid(vf v) { return v_sigmoid(v, v_exp_minus_abs(v)); }

// Rows of N floats, one a step: B or C, in place or packed
struct Rows {
  const float* data;
  int64_t stride;
  const float* at(int64_t t) const { return data + t * stride; }
};

// The steps of one chunk: `length` tokens from `token` on, `stride` apart
struct Chunk {
  int64_t token, stride;
  int length;
  int64_t checkpoint;  // row of the state before it, -1: the state is zero
  bool begins, ends;   // begins, ends a sequence
};

inline int64_t chunks_per_segment(const Path& p, int64_t chunk) { return (p.length + chunk - 1) / chunk; }

// chunk `i` of all chunks of the path
inline Chunk chunk_at(const Path& p, int64_t chunk, int64_t i) {
  const int64_t per_segment = chunks_per_segment(p, chunk);
  const int64_t segment = i / per_segment, index = i % per_segment, step = index * chunk;
  Chunk c;
  c.token = p.start + segment * p.segment_stride + step * p.token_stride;
  c.stride = p.token_stride;
  c.length = (int)(p.length - step < chunk ? p.length - step : chunk);
  c.begins = index == 0 && (p.resets || segment == 0);
  c.ends = index == per_segment - 1 && (p.resets || segment == p.segments - 1);
  // the first state of a sequence is zero and is not stored
  c.checkpoint = c.begins ? -1 : p.checkpoint + (p.resets ? segment * (per_segment - 1) : segment * per_segment) + index - 1;
  return c;
}

// Down a column no two tokens are neighbours, so the processor does not guess what comes next: it is asked for.
// One step's part at a time, since only some ten requests can be under way.
struct Ahead {
  const float* from[4];
  int64_t step[4];
  void ask(int t) const {
    for (int i = 0; i < 4; ++i) __builtin_prefetch(from[i] + t * step[i]);
  }
};

inline int64_t longest_chunk(const Scan& s) {
  int64_t longest = 1;
  for (int64_t k = 0; k < s.directions; ++k) {
    int64_t length = s.paths[k].length < s.chunk ? s.paths[k].length : s.chunk;
    if (length > longest) longest = length;
  }
  return longest;
}

// N is padded to what the loops over 4, 8 or 16 states cover
inline int padded_states(int64_t n) { return (int)((n + 3) / 4 * 4); }

// Channels [first, first + W) of the model, of which `valid` exist
struct Block {
  int64_t first;
  int valid;
};

inline Block block_at(const Scan& s, int64_t index) {
  int64_t left = s.width - index * W;
  return {index * W, (int)(left < W ? left : W)};
}

inline const float* origin(const View& v, int64_t batch, int64_t direction, int64_t token, int64_t inner) {
  return v.data + batch * v.batch + direction * v.direction + token * v.token + inner * v.inner;
}

// to[t * W + c] = from[t * step + c * inner], zero beyond the valid channels
inline void load_tile(const float* from, int64_t inner, int64_t step, int valid, int T, float* to) {
  if (inner == 1 && valid == W) {
    for (int t = 0; t < T; ++t) v_store(to + t * W, v_loadu(from + t * step));
    return;
  }
  int t = 0;
  if (step == 1 && valid == W)
    for (; t + W <= T; t += W) v_transpose(from + t, inner, to + t * W, W);
  for (; t < T; ++t)
    for (int c = 0; c < W; ++c) to[t * W + c] = c < valid ? from[t * step + c * inner] : 0.f;
}

inline void load_tile(const View& v, int64_t batch, int64_t direction, const Chunk& c, const Block& b, float* to) {
  load_tile(origin(v, batch, direction, c.token, b.first), v.inner, c.stride * v.token, b.valid, c.length, to);
}

// to[t * step + c] (+)= from[t * W + c]
inline void store_tile(const float* from, float* to, int64_t step, int valid, int T, bool add) {
  if (valid == W) {
    for (int t = 0; t < T; ++t) {
      vf v = v_load(from + t * W);
      v_storeu(to + t * step, add ? v_add(v_loadu(to + t * step), v) : v);
    }
    return;
  }
  for (int t = 0; t < T; ++t)
    for (int c = 0; c < valid; ++c) to[t * step + c] = from[t * W + c] + (add ? to[t * step + c] : 0.f);
}

inline vf load_channels(const float* from, int valid) {
  alignas(64) float v[W];
  for (int c = 0; c < W; ++c) v[c] = from && c < valid ? from[c] : 0.f;
  return v_load(v);
}

// the rows of a chunk of B or C: in place if they need no padding, else packed into `room`
inline Rows load_rows(const View& v, int64_t batch, int64_t direction, const Chunk& c, int64_t N, int NP, float* room) {
  const float* from = origin(v, batch, direction, c.token, 0);
  const int64_t step = c.stride * v.token;
  if (v.inner == 1 && N == NP) return {from, step};
  for (int t = 0; t < c.length; ++t)
    for (int n = 0; n < NP; ++n) room[t * NP + n] = n < N ? from[t * step + n * v.inner] : 0.f;
  return {room, NP};
}

// A of a direction as [block state lane], times `scale`
inline void load_decays(const Scan& s, int64_t direction, int64_t first, int64_t blocks, int NP, float scale, float* to) {
  for (int64_t k = 0; k < blocks; ++k) {
    const Block b = block_at(s, first + k);
    const float* A = s.A + (direction * s.width + b.first) * s.states;
    for (int n = 0; n < NP; ++n)
      for (int c = 0; c < W; ++c)
        to[(k * NP + n) * W + c] = n < s.states && c < b.valid ? A[c * s.states + n] * scale : 0.f;
  }
}

// dt and dt * x of a chunk; SLOPE leaves the slope of softplus in `raw`
template <bool SLOPE>
static void load_steps(const Scan& s, int64_t direction, const Block& b, int T, const float* x, float* raw, float* dt, float* dtx) {
  const vf bias = load_channels(s.bias ? s.bias + direction * s.width + b.first : nullptr, b.valid);
  for (int t = 0; t < T; ++t) {
    vf d = v_add(v_load(raw + t * W), bias);
    if (s.softplus) {
      const vf u = v_exp_minus_abs(d);
      if (SLOPE) v_store(raw + t * W, v_sigmoid(d, u));
      d = v_softplus(d, u);
    }
    v_store(dt + t * W, d);
    v_store(dtx + t * W, v_mul(d, v_load(x + t * W)));
  }
}

// all directions add D x, so it is added once, with the sum
inline vf skip_weights(const Scan& s, const Block& b) {
  vf sum = v_zero();
  if (s.D)
    for (int64_t k = 0; k < s.directions; ++k) sum = v_add(sum, load_channels(s.D + k * s.width + b.first, b.valid));
  return sum;
}

// hands out parts of the scratch memory, each aligned to a cache line; with no memory it only counts
struct Arena {
  float* base;
  size_t used = 0;
  explicit Arena(float* memory) : base(memory) {}
  float* take(size_t floats) {
    float* part = base ? base + used : nullptr;
    used += (floats + 15) / 16 * 16;
    return part;
  }
};
