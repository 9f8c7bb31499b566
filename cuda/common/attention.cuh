// What the two forms of attention share, one query at a time and tiles of queries: the cache's elements, where a query lies in shared
// memory, and the partial results of chunks that the joins read.
#pragma once

#include "fixed.cuh"
#include "pages.cuh"

// Chains of fma over the chunks of a row when they are joined.
static const int kqm_attention_chains = 8;

// Partial results, for `tokens` tokens at a time.
struct KqmPartials {
  float *o;   // [tokens, heads, chunks of the reach, head_dim]
  double *l;  // [tokens, heads, chunks of the reach]
  float *m;   // [tokens, heads, chunks of the reach]
};

__device__ __forceinline__ float kqm_minus_infinity() { return __uint_as_float(0xff800000u); }

// A word of keys where there are none: NaNs. So a page that the pool does not have gives NaN, and what a token does not see it does not see.
template <bool F16>
__device__ __forceinline__ uint32_t kqm_no_keys() {
  return F16 ? 0x7e007e00u : 0x7fc00000u;
}

// N neighbouring elements of a cache row as they are stored, and element i of them as f32.
template <bool F16, int N>
struct KqmElements {
  static const int words = N * (F16 ? 2 : 4) / 4;
  uint32_t word[words];

  __device__ __forceinline__ void load(const void *cache, size_t at) {
    const uint32_t *p = reinterpret_cast<const uint32_t *>(static_cast<const uint8_t *>(cache) + at * (F16 ? 2 : 4));
    if (words % 4 == 0) {
      KQM_UNROLL
      for (int i = 0; i < words / 4; i++) {
        const uint4 v = reinterpret_cast<const uint4 *>(p)[i];
        word[4 * i] = v.x, word[4 * i + 1] = v.y, word[4 * i + 2] = v.z, word[4 * i + 3] = v.w;
      }
    } else {
      KQM_UNROLL
      for (int i = 0; i < words; i++) word[i] = p[i];
    }
  }
  __device__ __forceinline__ void fill(uint32_t all) {
    KQM_UNROLL
    for (int i = 0; i < words; i++) word[i] = all;
  }
  // From words of shared memory that word_of made.
  __device__ __forceinline__ void load_shared(KQM_SHARED_ARG(uint32_t) from, int first) {
    KQM_UNROLL
    for (int i = 0; i < words; i++) word[i] = from[first + i];
  }
  __device__ __forceinline__ void select(bool other, const KqmElements &from) {
    KQM_UNROLL
    for (int i = 0; i < words; i++) word[i] = other ? from.word[i] : word[i];
  }
  // A word of the cache: two halves, or one float (the second value is not used).
  __device__ __forceinline__ static uint32_t word_of(float x, float y) {
    return F16 ? kqm_float_to_half(x) | uint32_t(kqm_float_to_half(y)) << 16 : __float_as_uint(kqm_canonical(x));
  }
  __device__ __forceinline__ float get(int i) const {
    return F16 ? kqm_half_to_float(uint16_t(word[i / 2] >> (16 * (i % 2)))) : __uint_as_float(word[F16 ? 0 : i]);
  }
};

// Where a query's dimension d lies in shared memory. Lane g of the eight that share a key needs dimensions g S .. g S + S - 1;
// the eight read four each at a time, and what they read together is together.
template <int DIM>
__device__ __forceinline__ int kqm_query_offset(int d) {
  const int segment = DIM / 8;
  return (d % segment / 4 * 8 + d / segment) * 4 + d % 4;
}

// 256 joined outputs in shared memory, from element `first` on, to a fixed-point block. By one warp.
__device__ __forceinline__ void kqm_quantize_joined(KQM_SHARED_ARG(float) result, int first, kqm_fixed_block *fixed) {
  const int own = first + 8 * (threadIdx.x & 31);
  const float4 x0 = kqm_shared_load<float4>(result, own), x1 = kqm_shared_load<float4>(result, own + 4);
  const float x[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
  kqm_quantize_warp(x, fixed);
}

// The 256 outputs of a token that a CTA joins: of which heads they are, at most four, and the thread's own ones, which begin at the
// `within`-th of them. A thread behind the last output repeats the first one and stores nothing.
struct KqmJoinedOutputs {
  int dim, all, first, own, first_head, heads, own_head;
  bool active;

  __device__ __forceinline__ KqmJoinedOutputs(const kqm_attention_args &a, int within) {
    dim = a.head_dim, all = int(a.heads) * dim, first = int(blockIdx.x) * KQM_BLOCK;
    active = first + within < all;
    own = active ? first + within : first;
    first_head = first / dim, heads = (min(first + KQM_BLOCK, all) - 1) / dim - first_head + 1;
    own_head = own / dim - first_head;
  }
};
