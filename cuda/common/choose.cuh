// The choice of experts from a token's router logits, by one warp: moe_router.cu, and moe_swiglu.cu for a single token.
#pragma once

#include "exp.cuh"
#include "tree.cuh"

// Experts of a token in the order of their logits, largest first, ties to the lower index. Lane l holds the order keys of
// experts 4 l .. 4 l + 3, 128 + 4 l .., ..., so that a warp covers QUADS * 128 experts. Four neighbours are sorted once, so that only the
// first of them is ever looked at; behind the last one come keys of 0, which are below every number's key.
template <int QUADS>
struct KqmExperts {
  uint32_t key[QUADS][4], expert[QUADS][4];

  // FRESH: the logits were written by other CTAs of this kernel, so they are read past L1. Else every CTA reads them, and
  // L1 keeps them from all asking the same slice of L2.
  template <bool FRESH>
  __device__ __forceinline__ void load(const float *logits, uint32_t experts) {
    const uint32_t lane = threadIdx.x & 31;
    KQM_UNROLL
    for (int q = 0; q < QUADS; q++) {
      const uint32_t first = 128 * q + 4 * lane;
      float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (!FRESH && __builtin_expect(experts % 4 == 0, 1)) {
        if (first < experts) x = *reinterpret_cast<const float4 *>(logits + first);
      } else {
        if (first < experts) x.x = __ldcg(logits + first);
        if (first + 1 < experts) x.y = __ldcg(logits + first + 1);
        if (first + 2 < experts) x.z = __ldcg(logits + first + 2);
        if (first + 3 < experts) x.w = __ldcg(logits + first + 3);
      }
      const float values[4] = {x.x, x.y, x.z, x.w};
      KQM_UNROLL
      for (int i = 0; i < 4; i++) {
        key[q][i] = first + i < experts ? kqm_order_key(values[i]) : 0u;
        expert[q][i] = first + i;
      }
      // Exchanges of neighbours only, so that equal keys keep their order.
      KQM_UNROLL
      for (int last = 3; last > 0; last--) {
        KQM_UNROLL
        for (int i = 0; i < last; i++) {
          const bool swap = key[q][i + 1] > key[q][i];
          const uint32_t k = key[q][i], e = expert[q][i];
          key[q][i] = swap ? key[q][i + 1] : k, expert[q][i] = swap ? expert[q][i + 1] : e;
          key[q][i + 1] = swap ? k : key[q][i + 1], expert[q][i + 1] = swap ? e : expert[q][i + 1];
        }
      }
    }
  }

  // Takes the next expert; every lane gets its number, and its key in `largest`.
  __device__ __forceinline__ uint32_t take(uint32_t &largest) {
    uint32_t best = key[0][0], mine = expert[0][0];
    KQM_UNROLL
    for (int q = 1; q < QUADS; q++) {
      if (key[q][0] > best) best = key[q][0], mine = expert[q][0];
    }
    largest = kqm_reduce_max(best);
    const uint32_t taken = kqm_reduce_min(best == largest ? mine : 0xffffffffu);
    KQM_UNROLL
    for (int q = 0; q < QUADS; q++) {
      if (expert[q][0] != taken) continue;
      KQM_UNROLL
      for (int i = 0; i < 3; i++) key[q][i] = key[q][i + 1], expert[q][i] = expert[q][i + 1];
      key[q][3] = 0;
    }
    return taken;
  }
};

// The experts of ranks 0 .. rank: the last one, and in lane i the one of rank i and its logit.
struct KqmChoice {
  uint32_t last, of_lane;
  float logit;
};

template <int QUADS, bool FRESH>
__device__ __forceinline__ KqmChoice kqm_choose_some(const float *logits, uint32_t experts, uint32_t rank) {
  KqmExperts<QUADS> all;
  all.template load<FRESH>(logits, experts);
  KqmChoice choice{0, 0, 0.0f};
  uint32_t key_of_lane = 0;
  KQM_LOOP
  for (uint32_t i = 0; i <= rank; i++) {
    uint32_t key;
    choice.last = all.take(key);
    if ((threadIdx.x & 31) == i) choice.of_lane = choice.last, key_of_lane = key;
  }
  choice.logit = kqm_ordered_by(key_of_lane);
  return choice;
}

template <bool FRESH>
__device__ __forceinline__ KqmChoice kqm_choose(const float *logits, uint32_t experts, uint32_t rank) {
  if (__builtin_expect(experts <= 128, 1)) return kqm_choose_some<1, FRESH>(logits, experts, rank);
  return kqm_choose_some<4, FRESH>(logits, experts, rank);
}

// The tree_sum of the exponentials of all logits, by one warp: a lane has four neighbours, and four lanes a group.
__device__ __forceinline__ double kqm_sum_of_all(const float *logits, uint32_t experts, float first) {
  const uint32_t lane = threadIdx.x & 31;
  double sum = 0.0;
  KQM_LOOP
  for (uint32_t from = 0; from < experts; from += 128) {
    double p[4];
    KQM_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
      const uint32_t expert = from + 4 * lane + i;
      p[i] = expert < experts ? double(kqm_exp(__fsub_rn(__ldcg(logits + expert), first))) : 0.0;
    }
    const double group = kqm_tree_lanes<4>((p[0] + p[1]) + (p[2] + p[3]));
    KQM_LOOP
    for (int i = 0; i < 32; i += 4) sum = sum + __shfl_sync(~0u, group, i);
  }
  return sum;
}

// Indices and weights of the top_k chosen experts, expert i in lane i: their softmax probabilities, renormalised or not. By one warp.
__device__ __forceinline__ void kqm_weigh_experts(const KqmChoice &choice, const float *logits, uint32_t experts,
                                                  uint32_t top_k, uint32_t weighting, uint32_t *indices,
                                                  float *weights) {
  const uint32_t lane = threadIdx.x & 31;
  const float first = __shfl_sync(~0u, choice.logit, 0);
  const float probability = kqm_exp(__fsub_rn(choice.logit, first));
  double sum = 0.0;
  if (weighting == KQM_WEIGHTS_OF_ALL) {
    sum = kqm_sum_of_all(logits, experts, first);
  } else {
    KQM_LOOP
    for (uint32_t i = 0; i < top_k; i++) sum = sum + double(__shfl_sync(~0u, probability, int(i)));
  }
  if (lane >= top_k) return;
  indices[lane] = choice.of_lane;
  weights[lane] = kqm_canonical(float(__ddiv_rn(double(probability), sum)));
}
