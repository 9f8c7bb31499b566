// One head of q, k or v: RMSNorm and RoPE. Lane l of those that share a head works on dimensions 8 l .. 8 l + 7; lanes past the
// head bring zeros. rope.cu runs it for a batch, attention.cu for a single token inside its own launch.
#pragma once

#include "pages.cuh"
#include "tree.cuh"

static const int kqm_max_head_dim = 256;
// Most heads: sums of counts stay inside their types.
static const uint32_t kqm_max_heads = 65535;

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

// The lane's part of a head. Values that reach the cache or an optional output unchanged are stored as they are but for NaNs.
__device__ __forceinline__ void kqm_load_head(const kqm_rope_args &a, const KqmHeadRow &row, int lane, float (&x)[8]) {
  if (8 * lane < int(a.head_dim)) kqm_load_eight((row.is_q ? a.q : row.is_v ? a.v : a.k) + row.at, lane, x);
}

// The lane's norm weights, where there is a norm.
__device__ __forceinline__ void kqm_load_head_weight(const kqm_rope_args &a, const KqmHeadRow &row, int lane,
                                                     float (&w)[8]) {
  const float *weight = row.is_q ? a.q_weight : a.k_weight;
  if (weight && 8 * lane < int(a.head_dim)) kqm_load_eight(weight, lane, w);
}

// Normalises and rotates a head of q or k, in place; a head of v passes unchanged but for its NaNs. LANES lanes (16 for up to 128
// dimensions, or 32) have a head of their own; all lanes of the warp call it. dim is a.head_dim, which callers may know when they
// are compiled, exchange holds as many floats for these lanes, and inverse_n is 1 / dim. The position kqm_nowhere has no angle and gives
// NaN.
template <int LANES>
__device__ __forceinline__ void kqm_rope_head(const kqm_rope_args &a, int dim, const KqmHeadRow &row, int lane,
                                              uint32_t position, bool optional_outputs, double inverse_n,
                                              const float (&weight)[8], KQM_SHARED_ARG(float) exchange, float (&x)[8]) {
  const int half = dim / 2;
  const bool active = 8 * lane < dim, fits = position != kqm_nowhere;
  const float nan = __uint_as_float(0x7fc00000u);
  // Half a head is a multiple of four dimensions: four neighbours are in the same half, and so are their partners.
  float cosine[8], sine[8];
  KQM_UNROLL
  for (int i = 0; i < 8; i += 4) {
    const int d = 8 * lane + i;
    float4 two[2] = {make_float4(nan, nan, nan, nan), make_float4(nan, nan, nan, nan)};
    if (active && fits) {
      const float *angles = a.table + 2 * (size_t(position) * half + (d < half ? d : d - half));
      two[0] = reinterpret_cast<const float4 *>(angles)[0], two[1] = reinterpret_cast<const float4 *>(angles)[1];
    }
    KQM_UNROLL
    for (int n = 0; n < 2; n++) {
      cosine[i + 2 * n] = two[n].x, sine[i + 2 * n] = two[n].y;
      cosine[i + 2 * n + 1] = two[n].z, sine[i + 2 * n + 1] = two[n].w;
    }
  }
  float y[8];
  KQM_UNROLL
  for (int i = 0; i < 8; i++) y[i] = x[i] = kqm_canonical(x[i]);
  if (row.is_q ? a.q_weight != nullptr : a.k_weight != nullptr) {
    const float4 x0 = make_float4(x[0], x[1], x[2], x[3]), x1 = make_float4(x[4], x[5], x[6], x[7]);
    const float r = kqm_inverse_root(kqm_tree_lanes<LANES>(kqm_tree_leaves(x0, x1, x0, x1)), inverse_n, a.eps);
    KQM_UNROLL
    for (int i = 0; i < 8; i++) y[i] = kqm_canonical(__fmul_rn(__fmul_rn(x[i], r), weight[i]));
  }
  float *normed = row.is_q ? a.q_normed : a.k_normed;
  if (optional_outputs && normed && active && !row.is_v) kqm_store_eight(normed + row.at, lane, y);

  // The other half of a pair is in another lane.
  if (active) {
    KQM_UNROLL
    for (int i = 0; i < 8; i += 4)
      kqm_shared_store<float4>(exchange, 8 * lane + i, make_float4(y[i], y[i + 1], y[i + 2], y[i + 3]));
  }
  __syncwarp();
  if (row.is_v) return;
  KQM_UNROLL
  for (int i = 0; i < 8; i += 4) {
    const int d = 8 * lane + i;
    const bool low = d < half;
    const float4 partner =
        active ? kqm_shared_load<float4>(exchange, low ? d + half : d - half) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const float other[4] = {partner.x, partner.y, partner.z, partner.w};
    KQM_UNROLL
    for (int n = 0; n < 4; n++) {
      // y cos - other sin, or other sin + y cos: the first product is fused, the second one rounded.
      const float c = cosine[i + n], s = sine[i + n];
      const float rounded = low ? -__fmul_rn(other[n], s) : __fmul_rn(y[i + n], c);
      x[i + n] = kqm_canonical(fmaf(low ? y[i + n] : other[n], low ? c : s, rounded));
    }
  }
}

// Writes a rotated k, or a v, to its page, unless its position is kqm_nowhere.
__device__ __forceinline__ void kqm_cache_head(const kqm_rope_args &a, const KqmHeadRow &row, int lane, uint32_t page,
                                               uint32_t position, const float (&x)[8]) {
  if (8 * lane >= int(a.head_dim) || position == kqm_nowhere) return;
  const uint32_t of_page = position % KQM_ATTENTION_CHUNK * a.kv_heads + row.kv_head;
  kqm_store_cache(row.is_v ? a.v_cache : a.k_cache, a.cache_type,
                  kqm_page_at(page, a.kv_heads * a.head_dim) + size_t(of_page) * a.head_dim, lane, x);
}

inline kqm_status kqm_check_rope(const kqm_rope_args &a) {
  KQM_TRY(kqm_check_batch(a.batch));
  KQM_REQUIRE(a.q && a.k && a.v && a.table && a.q_out && a.k_cache && a.v_cache, KQM_NULL_POINTER);
  KQM_REQUIRE(a.cache_type == KQM_TYPE_F32 || a.cache_type == KQM_TYPE_F16, KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(a.batch.tokens <= 65535 && a.heads > 0 && a.heads <= kqm_max_heads && a.kv_heads > 0 &&
                  a.kv_heads <= kqm_max_heads && a.head_dim > 0 && a.head_dim % 8 == 0 &&
                  a.head_dim <= uint32_t(kqm_max_head_dim),
              KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(a.q, 16) && kqm_aligned(a.k, 16) && kqm_aligned(a.v, 16) && kqm_aligned(a.q_weight, 16) &&
                  kqm_aligned(a.k_weight, 16) && kqm_aligned(a.table, 16) && kqm_aligned(a.q_out, 16) &&
                  kqm_aligned(a.q_normed, 16) && kqm_aligned(a.k_normed, 16) && kqm_aligned(a.k_out, 16) &&
                  kqm_aligned(a.k_cache, 16) && kqm_aligned(a.v_cache, 16),
              KQM_MISALIGNED);
  return KQM_OK;
}
