// exp and silu from IEEE operations alone, in the order of docs/arithmetic.md: no MUFU, so CPU and GPU agree in bits.
#pragma once

#include "tree.cuh"

__device__ __forceinline__ float kqm_exp(float x) {
  if (x != x) return kqm_canonical(x);
  if (x > 88.72283f) return __uint_as_float(0x7f800000u);
  if (x < -104.0f) return 0.0f;
  const float n = rintf(__fmul_rn(x, float(KQM_EXP_LOG2E)));
  const float t = fmaf(n, -float(KQM_EXP_LN2_LOW), fmaf(n, -float(KQM_EXP_LN2_HIGH), x));
  float p = float(KQM_EXP_C7);
  p = fmaf(p, t, float(KQM_EXP_C6));
  p = fmaf(p, t, float(KQM_EXP_C5));
  p = fmaf(p, t, float(KQM_EXP_C4));
  p = fmaf(p, t, float(KQM_EXP_C3));
  p = fmaf(p, t, float(KQM_EXP_C2));
  p = fmaf(p, t, 1.0f);
  p = fmaf(p, t, 1.0f);
  return kqm_scale(p, int(n));
}

__device__ __forceinline__ float kqm_silu(float x) { return __fdiv_rn(x, __fadd_rn(1.0f, kqm_exp(-x))); }
