// The choice of experts from a token's router logits, by one warp: moe_router.cu, and moe_swiglu.cu for a single token.
#pragma once

#include "exp.cuh"

// Experts of a token in the order of their logits, largest first, ties to the lower index. Lane l holds the order keys of
// experts 4 l .. 4 l + 3, 128 + 4 l .., ..., so that a warp covers QUADS * 128 experts; a key that has been taken becomes 0,
// which is below every number's key.
template <int QUADS>
struct KqmExperts {
  uint32_t key[4 * QUADS];

  // FRESH: the logits were written by other blocks of this kernel, so they are read past L1. Else every block reads them, and
  // L1 keeps them from all asking the same slice of L2.
  template <bool FRESH>
  __device__ __forceinline__ void load(const float *logits, uint32_t experts) {
    const uint32_t lane = threadIdx.x & 31;
    KQM_UNROLL
    for (int q = 0; q < QUADS; q++) {
      const uint32_t first = index(4 * q, lane);
      float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (!FRESH && experts % 4 == 0) {
        if (first < experts) x = *reinterpret_cast<const float4 *>(logits + first);
      } else {
        if (first < experts) x.x = __ldcg(logits + first);
        if (first + 1 < experts) x.y = __ldcg(logits + first + 1);
        if (first + 2 < experts) x.z = __ldcg(logits + first + 2);
        if (first + 3 < experts) x.w = __ldcg(logits + first + 3);
      }
      key[4 * q] = first < experts ? kqm_order_key(x.x) : 0u;
      key[4 * q + 1] = first + 1 < experts ? kqm_order_key(x.y) : 0u;
      key[4 * q + 2] = first + 2 < experts ? kqm_order_key(x.z) : 0u;
      key[4 * q + 3] = first + 3 < experts ? kqm_order_key(x.w) : 0u;
    }
  }

  // Takes the next expert; every lane gets its number.
  __device__ __forceinline__ uint32_t take() {
    const uint32_t lane = threadIdx.x & 31;
    uint32_t best = key[0], mine = index(0, lane);
    KQM_UNROLL
    for (int i = 1; i < 4 * QUADS; i++) {
      if (key[i] > best) best = key[i], mine = index(i, lane);
    }
    const uint32_t largest = kqm_reduce_max(best);
    const uint32_t expert = kqm_reduce_min(best == largest ? mine : 0xffffffffu);
    KQM_UNROLL
    for (int i = 0; i < 4 * QUADS; i++) {
      if (index(i, lane) == expert) key[i] = 0;
    }
    return expert;
  }

 private:
  __device__ __forceinline__ static uint32_t index(int i, uint32_t lane) { return 128 * (i / 4) + 4 * lane + i % 4; }
};

// The expert of rank `rank`; lane i of the first lanes also gets the one of rank i <= rank in `of_lane`.
template <int QUADS, bool FRESH>
__device__ __forceinline__ uint32_t kqm_choose_some(const float *logits, uint32_t experts, uint32_t rank, uint32_t &of_lane) {
  KqmExperts<QUADS> all;
  all.template load<FRESH>(logits, experts);
  uint32_t expert = 0;
  for (uint32_t i = 0; i <= rank; i++) {
    expert = all.take();
    if ((threadIdx.x & 31) == i) of_lane = expert;
  }
  return expert;
}

template <bool FRESH>
__device__ __forceinline__ uint32_t kqm_choose(const float *logits, uint32_t experts, uint32_t rank, uint32_t &of_lane) {
  of_lane = 0;
  return experts <= 128 ? kqm_choose_some<1, FRESH>(logits, experts, rank, of_lane)
                        : kqm_choose_some<4, FRESH>(logits, experts, rank, of_lane);
}

// Indices and weights of the chosen experts, expert i in lane i: their probabilities' softmax, renormalised. By one warp.
__device__ __forceinline__ void kqm_weigh_experts(const float *logits, uint32_t top_k, uint32_t of_lane, uint32_t *indices,
                                                  float *weights) {
  const uint32_t lane = threadIdx.x & 31;
  const float logit = lane < top_k ? __ldcg(logits + of_lane) : 0.0f;
  const float first = __shfl_sync(~0u, logit, 0);
  const float probability = kqm_exp(__fsub_rn(logit, first));
  double sum = 0.0;
  for (uint32_t i = 0; i < top_k; i++) sum = sum + double(__shfl_sync(~0u, probability, int(i)));
  if (lane >= top_k) return;
  indices[lane] = of_lane;
  weights[lane] = kqm_canonical(float(__ddiv_rn(double(probability), sum)));
}
