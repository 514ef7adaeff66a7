// AVX2 and FMA: 8 channels at once.
#if defined(__x86_64__)
#include <immintrin.h>

#include "scan.h"

namespace mno {
namespace {
constexpr int W = 8;
constexpr int FORWARD_STATES = 8, BACKWARD_STATES = 4;  // states held in registers
using vf = __m256;

inline vf v_set1(float x) { return _mm256_set1_ps(x); }
inline vf v_load(const float* p) { return _mm256_load_ps(p); }
inline vf v_loadu(const float* p) { return _mm256_loadu_ps(p); }
inline void v_store(float* p, vf a) { _mm256_store_ps(p, a); }
inline void v_storeu(float* p, vf a) { _mm256_storeu_ps(p, a); }
inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
inline vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf v_minus_abs(vf a) { return _mm256_or_ps(a, _mm256_set1_ps(-0.f)); }
// the second operand is returned when one is NaN
inline vf v_max0(vf a) { return _mm256_max_ps(_mm256_setzero_ps(), a); }
inline vf v_clamp(vf a) {
  return _mm256_min_ps(_mm256_set1_ps(128.f), _mm256_max_ps(_mm256_set1_ps(-126.f), a));
}
inline vf v_where_negative(vf c, vf a, vf b) { return _mm256_blendv_ps(b, a, c); }
// p * 2^n, where the low bits of `shifted` hold n
inline vf v_scale(vf p, vf shifted) {
  __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
}
#include "exp2.inl"

// to[i] = the sum of the lanes of vector i, for W consecutive vectors
inline void v_row_sums(const float* from, float* to) {
  vf r[4];
  MNO_UNROLL
  for (int i = 0; i < 4; ++i) {
    vf a = v_load(from + 2 * i * W), b = v_load(from + (2 * i + 1) * W);
    r[i] = v_add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  }
  MNO_UNROLL
  for (int i = 0; i < 2; ++i) {
    __m256d a = _mm256_castps_pd(r[2 * i]), b = _mm256_castps_pd(r[2 * i + 1]);
    r[i] = v_add(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  v_store(to, v_add(_mm256_permute2f128_ps(r[0], r[1], 0x20), _mm256_permute2f128_ps(r[0], r[1], 0x31)));
}

// to[j * to_stride + i] = from[i * from_stride + j] for W x W elements
inline void v_transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  __m256 r[8], t[8];
  MNO_UNROLL
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * from_stride);
  MNO_UNROLL
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  MNO_UNROLL
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  MNO_UNROLL
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

#include "tiles.inl"
#include "forward.inl"
#include "backward.inl"
}  // namespace

const Kernel avx2_kernel = {"avx2", W, forward_scratch, backward_scratch, forward, backward};
}  // namespace mno
#endif
