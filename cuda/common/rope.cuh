// One head of q or k: RMSNorm and RoPE, by one warp. Lane l works on dimensions 8 l .. 8 l + 7; lanes past the head bring zeros.
// rope.cu runs it for a batch, attention.cu for a single token inside its own launch.
#pragma once

#include "check.cuh"
#include "tree.cuh"

static const int kqm_max_head_dim = 256;

// Eight neighbours of a cache row, whose elements are f32 or f16.
__device__ __forceinline__ void kqm_store_cache(void *cache, uint32_t type, size_t row, int lane, const float (&x)[8]) {
  if (type == KQM_TYPE_F32) {
    kqm_store_eight(static_cast<float *>(cache) + row, lane, x);
    return;
  }
  uint32_t words[4];
  KQM_UNROLL
  for (int i = 0; i < 4; i++) words[i] = kqm_float_to_half(x[2 * i]) | uint32_t(kqm_float_to_half(x[2 * i + 1])) << 16;
  reinterpret_cast<uint4 *>(static_cast<uint16_t *>(cache) + row)[lane] =
      make_uint4(words[0], words[1], words[2], words[3]);
}

// A head of a token: what to do with it. Rows 0 .. heads - 1 are q, then come k and v of each KV head.
struct KqmHeadRow {
  bool is_q, is_v;
  uint32_t kv_head;
  size_t at;  // first element in q, or in k and v

  __device__ __forceinline__ KqmHeadRow(const kqm_rope_args &a, uint32_t token, uint32_t row) {
    is_q = row < a.heads;
    is_v = row >= a.heads + a.kv_heads;
    kv_head = is_q ? 0 : row - a.heads - (is_v ? a.kv_heads : 0);
    at = (is_q ? size_t(token) * a.heads + row : size_t(token) * a.kv_heads + kv_head) * a.head_dim;
  }
};

// The lane's part of a head. Values that reach the cache or a tap unchanged are stored as they are but for NaNs.
__device__ __forceinline__ void kqm_load_head(const kqm_rope_args &a, const KqmHeadRow &row, float (&x)[8]) {
  const int lane = threadIdx.x & 31;
  if (8 * lane < int(a.head_dim)) kqm_load_eight((row.is_q ? a.q : row.is_v ? a.v : a.k) + row.at, lane, x);
  KQM_UNROLL
  for (int i = 0; i < 8; i++) x[i] = kqm_canonical(x[i]);
}

// Normalises and rotates a head of q or k; exchange holds head_dim floats of this warp, inverse_n is
// 1 / head_dim. Positions past the capacity have no
// angle and give NaN.
__device__ __forceinline__ void kqm_rope_head(const kqm_rope_args &a, const KqmHeadRow &row, uint32_t position, bool taps,
                                              double inverse_n, KQM_SHARED_ARG(float) exchange, float (&y)[8]) {
  const int lane = threadIdx.x & 31, dim = a.head_dim, half = dim / 2;
  const bool active = 8 * lane < dim, fits = position < a.capacity;
  float x[8] = {};
  kqm_load_head(a, row, x);
  const float *weight = row.is_q ? a.q_weight : a.k_weight;
  if (weight) {
    const float4 x0 = make_float4(x[0], x[1], x[2], x[3]), x1 = make_float4(x[4], x[5], x[6], x[7]);
    const double sum = kqm_tree_warp(kqm_tree_leaves(x0, x1, x0, x1));
    const float r = kqm_inverse_root(sum, inverse_n, a.eps);
    float w[8] = {};
    if (active) kqm_load_eight(weight, lane, w);
    KQM_UNROLL
    for (int i = 0; i < 8; i++) x[i] = kqm_canonical(__fmul_rn(__fmul_rn(x[i], r), w[i]));
  }
  float *normed = row.is_q ? a.q_normed : a.k_normed;
  if (taps && normed && active) kqm_store_eight(normed + row.at, lane, x);

  // The other half of a pair is in another lane. The warp may still read what it exchanged for its last head.
  __syncwarp();
  if (active) {
    KQM_UNROLL
    for (int i = 0; i < 8; i++) exchange[8 * lane + i] = x[i];
  }
  __syncwarp();
  KQM_UNROLL
  for (int i = 0; i < 8; i++) {
    const int d = 8 * lane + i;
    const bool low = d < half;
    const float other = active ? float(exchange[low ? d + half : d - half]) : 0.0f;
    const float2 angle =
        active && fits ? reinterpret_cast<const float2 *>(a.table)[size_t(position) * half + (low ? d : d - half)]
                       : make_float2(__uint_as_float(0x7fc00000u), __uint_as_float(0x7fc00000u));
    y[i] = kqm_canonical(low ? fmaf(x[i], angle.x, -__fmul_rn(other, angle.y))
                             : fmaf(other, angle.y, __fmul_rn(x[i], angle.x)));
  }
}

// Writes a rotated k, or a v, to the cache.
__device__ __forceinline__ void kqm_cache_head(const kqm_rope_args &a, const KqmHeadRow &row, uint32_t position,
                                               const float (&x)[8]) {
  const int lane = threadIdx.x & 31;
  if (8 * lane >= int(a.head_dim) || position >= a.capacity) return;
  kqm_store_cache(row.is_v ? a.v_cache : a.k_cache, a.cache_type,
                  (size_t(position) * a.kv_heads + row.kv_head) * a.head_dim, lane, x);
}

inline kqm_status kqm_check_rope(const kqm_rope_args &a) {
  KQM_REQUIRE(a.q && a.k && a.v && a.table && a.start && a.q_out && a.k_cache && a.v_cache, KQM_NULL_POINTER);
  KQM_REQUIRE(a.cache_type == KQM_TYPE_F32 || a.cache_type == KQM_TYPE_F16, KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(a.tokens > 0 && a.tokens <= 65535 && a.heads > 0 && a.kv_heads > 0 && a.capacity > 0 && a.head_dim > 0 &&
                  a.head_dim % 8 == 0 && a.head_dim <= uint32_t(kqm_max_head_dim),
              KQM_BAD_SHAPE);
  const void *vectors[] = {a.q,        a.k,        a.v,     a.q_weight, a.k_weight, a.q_out,
                           a.q_normed, a.k_normed, a.k_out, a.k_cache,  a.v_cache};
  for (const void *p : vectors) KQM_REQUIRE(kqm_aligned(p, 16), KQM_MISALIGNED);
  KQM_REQUIRE(kqm_aligned(a.table, 8), KQM_MISALIGNED);
  return KQM_OK;
}
