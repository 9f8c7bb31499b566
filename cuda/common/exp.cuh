// exp and silu from IEEE operations alone, in the order of docs/arithmetic.md: no MUFU, so CPU and GPU agree in bits.
#pragma once

#include "tree.cuh"

// exp of the reduced argument: exp(x) / 2^n, for n the integer nearest to x / ln 2.
__device__ __forceinline__ float kqm_exp_reduced(float x, float n) {
  const float t = fmaf(n, -float(KQM_EXP_LN2_LOW), fmaf(n, -float(KQM_EXP_LN2_HIGH), x));
  float p = float(KQM_EXP_C7);
  p = fmaf(p, t, float(KQM_EXP_C6));
  p = fmaf(p, t, float(KQM_EXP_C5));
  p = fmaf(p, t, float(KQM_EXP_C4));
  p = fmaf(p, t, float(KQM_EXP_C3));
  p = fmaf(p, t, float(KQM_EXP_C2));
  p = fmaf(p, t, 1.0f);
  return fmaf(p, t, 1.0f);
}

__device__ __forceinline__ float kqm_exp(float x) {
  if (x != x) return kqm_canonical(x);
  if (x > 88.72283f) return __uint_as_float(0x7f800000u);
  if (x < -104.0f) return 0.0f;
  const float n = rintf(__fmul_rn(x, float(KQM_EXP_LOG2E)));
  return kqm_scale(kqm_exp_reduced(x, n), int(n));
}

// kqm_exp in fewer instructions where the result is a normal number, kqm_exp_normal_least <= x <= 0, as for most differences of a softmax:
// 2^n is added to its exponent; and adding 3 * 2^22 rounds x / ln 2 to n and leaves n in the low bits of the sum.
static const float kqm_exp_normal_least = -86.0f;
__device__ __forceinline__ float kqm_exp_normal(float x) {
  const float round = 12582912.0f, sum = __fadd_rn(__fmul_rn(x, float(KQM_EXP_LOG2E)), round);
  const float n = __fadd_rn(sum, -round);
  return __uint_as_float(__float_as_uint(kqm_exp_reduced(x, n)) + (__float_as_uint(sum) << 23));
}

__device__ __forceinline__ float kqm_silu(float x) { return __fdiv_rn(x, __fadd_rn(1.0f, kqm_exp(-x))); }
