// The choice of experts from a token's router logits, by a thread block: moe_router.cu, and moe_swiglu.cu for a single token.
#pragma once

#include "exp.cuh"

// chosen[rank] = expert, for the top_k largest logits, ties to the lower index. An expert's rank is the number of experts before
// it. key has room for KQM_MAX_EXPERTS. Ends with a barrier.
__device__ __forceinline__ void kqm_rank_experts(const float *logits, uint32_t experts, uint32_t top_k,
                                                 KQM_SHARED_ARG(uint32_t) key, KQM_SHARED_ARG(uint32_t) chosen) {
  // Keys in fours; the missing ones of the last four are smaller than any number's.
  const uint32_t padded = (experts + 3) / 4 * 4;
  for (uint32_t e = threadIdx.x; e < padded; e += blockDim.x) key[e] = e < experts ? kqm_order_key(__ldcg(logits + e)) : 0u;
  __syncthreads();
  for (uint32_t e = threadIdx.x; e < experts; e += blockDim.x) {
    const uint32_t mine = key[e];
    uint32_t rank = 0;
    KQM_UNROLL_BY(8)
    for (uint32_t other = 0; other < padded; other += 4) {
      const uint4 theirs = kqm_shared_load<uint4>(key, int(other));
      rank += theirs.x > mine || (theirs.x == mine && other < e);
      rank += theirs.y > mine || (theirs.y == mine && other + 1 < e);
      rank += theirs.z > mine || (theirs.z == mine && other + 2 < e);
      rank += theirs.w > mine || (theirs.w == mine && other + 3 < e);
    }
    if (rank < top_k) chosen[rank] = e;
  }
  __syncthreads();
}

// Indices and weights of the chosen experts: their probabilities' softmax, renormalised. Called by the whole block.
__device__ __forceinline__ void kqm_weigh_experts(const float *logits, uint32_t top_k, KQM_SHARED_ARG(uint32_t) chosen,
                                                  KQM_SHARED_ARG(float) probability, uint32_t *indices, float *weights) {
  for (uint32_t i = threadIdx.x; i < top_k; i += blockDim.x) {
    const uint32_t e = chosen[i];
    probability[i] = kqm_exp(__fsub_rn(__ldcg(logits + e), __ldcg(logits + chosen[0])));
    indices[i] = e;
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < top_k; i += blockDim.x) {
    double sum = 0.0;
    for (uint32_t j = 0; j < top_k; j++) sum = sum + double(probability[j]);
    weights[i] = kqm_canonical(float(__ddiv_rn(double(probability[i]), sum)));
  }
}
