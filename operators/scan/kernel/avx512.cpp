// AVX-512 (F, DQ, BW, VL): 16 channels at once.
#if defined(__x86_64__)
#include <immintrin.h>

#include "scan.h"

namespace mno {
namespace {
constexpr int W = 16;
constexpr int FORWARD_STATES = 16, BACKWARD_STATES = 8;  // states held in registers
using vf = __m512;

inline vf v_set1(float x) { return _mm512_set1_ps(x); }
inline vf v_load(const float* p) { return _mm512_load_ps(p); }
inline vf v_loadu(const float* p) { return _mm512_loadu_ps(p); }
inline void v_store(float* p, vf a) { _mm512_store_ps(p, a); }
inline void v_storeu(float* p, vf a) { _mm512_storeu_ps(p, a); }
inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf v_minus_abs(vf a) { return _mm512_or_ps(a, _mm512_set1_ps(-0.f)); }
// the second operand is returned when one is NaN
inline vf v_max0(vf a) { return _mm512_max_ps(_mm512_setzero_ps(), a); }
inline vf v_where_negative(vf c, vf a, vf b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(c, _mm512_setzero_ps(), _CMP_LT_OQ), b, a);
}

// 2^t = p(t - floor t) * 2^floor(t), with p(0) = 1 and p(1) = 2 exact
inline vf v_exp2(vf t) {
  vf r = _mm512_reduce_ps(t, 1);
  vf p = v_fma(v_set1(2.1715018e-04f), r, v_set1(1.2440879e-03f));
  p = v_fma(p, r, v_set1(9.678064e-03f));
  p = v_fma(p, r, v_set1(5.5484153e-02f));
  p = v_fma(p, r, v_set1(2.4022952e-01f));
  p = v_fma(p, r, v_set1(6.931470e-01f));
  p = v_fma(p, r, v_set1(1.f));
  return _mm512_scalef_ps(p, t);
}

// to[i] = the sum of the lanes of vector i, for W consecutive vectors
inline void v_row_sums(const float* from, float* to) {
  vf r[16];
  MNO_UNROLL
  for (int i = 0; i < 8; ++i) {
    vf a = v_load(from + 2 * i * W), b = v_load(from + (2 * i + 1) * W);
    r[i] = v_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  MNO_UNROLL
  for (int i = 0; i < 4; ++i) {
    __m512d a = _mm512_castps_pd(r[2 * i]), b = _mm512_castps_pd(r[2 * i + 1]);
    r[i] = v_add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  vf a = v_add(_mm512_shuffle_f32x4(r[0], r[1], 0x88), _mm512_shuffle_f32x4(r[0], r[1], 0xdd));
  vf b = v_add(_mm512_shuffle_f32x4(r[2], r[3], 0x88), _mm512_shuffle_f32x4(r[2], r[3], 0xdd));
  v_store(to, v_add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd)));
}

// to[j * to_stride + i] = from[i * from_stride + j] for W x W elements
inline void v_transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  __m512 r[16], t[16];
  MNO_UNROLL
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(from + i * from_stride);
  MNO_UNROLL
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  MNO_UNROLL
  for (int i = 0; i < 4; ++i) {
    __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
    __m512d c = _mm512_castps_pd(t[4 * i + 2]), e = _mm512_castps_pd(t[4 * i + 3]);
    r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, e));
    r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, e));
  }
  MNO_UNROLL
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  MNO_UNROLL
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
  MNO_UNROLL
  for (int i = 0; i < 16; ++i) _mm512_storeu_ps(to + i * to_stride, r[i]);
}

#include "tiles.inl"
#include "forward.inl"
#include "backward.inl"
}  // namespace

const Kernel avx512_kernel = {"avx512", W, forward_scratch, backward_scratch, forward, backward};
}  // namespace mno
#endif
