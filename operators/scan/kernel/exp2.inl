// 2^t by splitting t = n + r with |r| <= 1/2: a polynomial with p(0) = 1 exactly, because a decay near 1 is raised
// to the length of the memory. Beyond -126 the result stays at 2^-126, from 128 on it is infinite.
inline vf v_exp2(vf t) {
  const vf magic = v_set1(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  t = v_clamp(t);
  vf shifted = v_add(t, magic);
  vf r = v_sub(t, v_sub(shifted, magic));
  vf p = v_fma(v_set1(0.000154035304f), r, v_set1(0.00133335581f));
  p = v_fma(p, r, v_set1(0.00961812911f));
  p = v_fma(p, r, v_set1(0.0555036f));
  p = v_fma(p, r, v_set1(0.240226507f));
  p = v_fma(p, r, v_set1(0.693147180559945f));
  p = v_fma(p, r, v_set1(1.f));
  return v_scale(p, shifted);
}
