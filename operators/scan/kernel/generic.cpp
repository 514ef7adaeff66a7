// Any processor: 4 channels at once in the compiler's portable vectors (SSE2 on x86-64, NEON on aarch64).
#include <cstring>

#include "scan.h"

namespace mno {
namespace {
constexpr int W = 4;
constexpr int FORWARD_STATES = 8, BACKWARD_STATES = 4;  // states held in registers
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

inline vf v_set1(float x) { return vf{x, x, x, x}; }
inline vf v_loadu(const float* p) {
  vf a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
inline vf v_load(const float* p) { return v_loadu(p); }
inline void v_storeu(float* p, vf a) { std::memcpy(p, &a, sizeof a); }
inline void v_store(float* p, vf a) { v_storeu(p, a); }
inline vf v_add(vf a, vf b) { return a + b; }
inline vf v_sub(vf a, vf b) { return a - b; }
inline vf v_mul(vf a, vf b) { return a * b; }
inline vf v_div(vf a, vf b) { return a / b; }
inline vf v_fma(vf a, vf b, vf c) { return a * b + c; }
inline vf v_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
inline vf v_minus_abs(vf a) { return (vf)((vi)a | (vi)v_set1(-0.f)); }
// comparisons with NaN are false, so NaN passes
inline vf v_max0(vf a) { return v_select(a < v_set1(0.f), v_set1(0.f), a); }
inline vf v_clamp(vf a) {
  a = v_select(a < v_set1(-126.f), v_set1(-126.f), a);
  return v_select(a > v_set1(128.f), v_set1(128.f), a);
}
inline vf v_where_negative(vf c, vf a, vf b) { return v_select(c < v_set1(0.f), a, b); }
// p * 2^n, where the low bits of `shifted` hold n
inline vf v_scale(vf p, vf shifted) { return (vf)((vi)p + ((vi)shifted << 23)); }
#include "exp2.inl"

// to[i] = the sum of the lanes of vector i, for W consecutive vectors
inline void v_row_sums(const float* from, float* to) {
  for (int i = 0; i < W; ++i) to[i] = (from[i * W] + from[i * W + 2]) + (from[i * W + 1] + from[i * W + 3]);
}

// to[j * to_stride + i] = from[i * from_stride + j] for W x W elements
inline void v_transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  for (int i = 0; i < W; ++i)
    for (int j = 0; j < W; ++j) to[j * to_stride + i] = from[i * from_stride + j];
}

#include "tiles.inl"
#include "forward.inl"
#include "backward.inl"
}  // namespace

const Kernel generic_kernel = {"generic", W, forward_scratch, backward_scratch, forward, backward};
}  // namespace mno
