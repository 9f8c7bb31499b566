// RMSNorm of one row with one warp for each run of 256: rms_norm.cu, and the kernels that take it in.
#pragma once

#include "check.cuh"
#include "tree.cuh"

// y = (x * r) * weight for eight neighbours.
__device__ __forceinline__ void kqm_scale_eight(float4 x0, float4 x1, float4 w0, float4 w1, float r, float (&y)[8]) {
  const float x[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
  const float w[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
  KQM_UNROLL
  for (int i = 0; i < 8; i++) y[i] = kqm_canonical(__fmul_rn(__fmul_rn(x[i], r), w[i]));
}

// The fused norm: a warp for each run of the row calls it, and makes elements 256 run + 8 lane ... of the normed row. All other
// warps of the CTA come to the barrier kqm_barrier_run_sums. run_sum has RUNS slots, which are padded with zeros behind the row's runs.
// w0 and w1 are the lane's norm weights, which the caller loaded before it waited for its dependencies, and inverse_n is 1 / width.
template <int RUNS>
__device__ __forceinline__ void kqm_fused_norm_eight(const kqm_fused_norm &norm, int run, float4 w0, float4 w1,
                                                     double inverse_n, KQM_SHARED_ARG(double) run_sum, float (&y)[8]) {
  const int lane = threadIdx.x & 31;
  const float4 *x = reinterpret_cast<const float4 *>(norm.x) + 64 * run + 2 * lane;
  const float4 x0 = x[0], x1 = x[1];
  const double sum = kqm_tree_warp(kqm_tree_leaves(x0, x1, x0, x1));
  if (lane == 0) run_sum[run] = sum;
  kqm_named_barrier(kqm_barrier_run_sums);
  kqm_scale_eight(x0, x1, w0, w1, kqm_inverse_root(kqm_tree_sum_padded<RUNS>(run_sum, 0, 1), inverse_n, norm.eps), y);
}

inline kqm_status kqm_check_fused_norm(const kqm_fused_norm &norm, uint32_t tokens, uint32_t cols) {
  KQM_REQUIRE(norm.weight != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(tokens == 1 && cols <= KQM_FUSED_COLS && norm.width > 0 && norm.width <= cols, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(norm.x, 16) && kqm_aligned(norm.weight, 16) && kqm_aligned(norm.out, 16), KQM_MISALIGNED);
  return KQM_OK;
}
