// rope: per-head RMSNorm of q and k, RoPE, and the write of k and v into the cache.
//
//   NeoX layout, i < head_dim / 2:  y[i] = x[i] cos - x[i + head_dim / 2] sin,  y[i + head_dim / 2] = x[i] sin + x[i + head_dim / 2] cos
//
// Shapes: q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim], caches [capacity, kv_heads, head_dim],
// table [capacity, head_dim / 2, 2]. Position of token t is start + t; tokens at positions >= capacity leave the cache alone
// and give NaN.
// Launch: one warp for a head of q, k or v of a token; lane l works on dimensions 8 l .. 8 l + 7.
// Bound by: latency; 20 KB a token at full size.
#include "common/check.cuh"
#include "common/tree.cuh"

namespace {

const int warps_per_block = 4, max_head_dim = 256;

// Stores eight neighbours of a cache row.
__device__ __forceinline__ void store_cache(void *cache, uint32_t type, size_t at, const float (&x)[8]) {
  if (type == KQM_TYPE_F32) {
    float4 *out = reinterpret_cast<float4 *>(static_cast<float *>(cache) + at);
    out[0] = make_float4(x[0], x[1], x[2], x[3]);
    out[1] = make_float4(x[4], x[5], x[6], x[7]);
  } else {
    uint32_t words[4];
    KQM_UNROLL
    for (int i = 0; i < 4; i++) words[i] = kqm_float_to_half(x[2 * i]) | uint32_t(kqm_float_to_half(x[2 * i + 1])) << 16;
    *reinterpret_cast<uint4 *>(static_cast<uint16_t *>(cache) + at) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

__device__ __forceinline__ void store_row(float *row, int lane, const float (&x)[8]) {
  float4 *out = reinterpret_cast<float4 *>(row) + 2 * lane;
  out[0] = make_float4(x[0], x[1], x[2], x[3]);
  out[1] = make_float4(x[4], x[5], x[6], x[7]);
}

__device__ __forceinline__ void load_row(const float *row, int lane, float (&x)[8]) {
  const float4 *in = reinterpret_cast<const float4 *>(row) + 2 * lane;
  const float4 x0 = in[0], x1 = in[1];
  x[0] = x0.x, x[1] = x0.y, x[2] = x0.z, x[3] = x0.w, x[4] = x1.x, x[5] = x1.y, x[6] = x1.z, x[7] = x1.w;
}

__global__ void __launch_bounds__(32 * warps_per_block) rope_kernel(kqm_rope_args a) {
  KQM_SHARED(float, exchange, warps_per_block *max_head_dim);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, dim = a.head_dim, half = dim / 2;
  const int rows = a.heads + 2 * a.kv_heads, row = blockIdx.x * warps_per_block + warp, t = blockIdx.y;
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  if (row >= rows) return;
  const bool active = 8 * lane < dim;
  const uint32_t position = *a.start + t;
  const bool fits = position < a.capacity;

  const bool is_q = row < int(a.heads), is_v = row >= int(a.heads + a.kv_heads);
  const int kv_head = row - a.heads - (is_v ? a.kv_heads : 0);
  const size_t kv_row = size_t(t) * a.kv_heads + kv_head, q_row = size_t(t) * a.heads + row;
  const size_t cache_at = (size_t(position) * a.kv_heads + kv_head) * dim + 8 * lane;
  float x[8] = {};
  if (active) load_row(is_q ? a.q + q_row * dim : (is_v ? a.v : a.k) + kv_row * dim, lane, x);
  if (is_v) {
    if (active && fits) store_cache(a.v_cache, a.cache_type, cache_at, x);
    return;
  }

  const float *weight = is_q ? a.q_weight : a.k_weight;
  if (weight) {
    const float4 x0 = make_float4(x[0], x[1], x[2], x[3]), x1 = make_float4(x[4], x[5], x[6], x[7]);
    const double sum = kqm_tree_warp(kqm_tree_leaves(x0, x1, x0, x1));
    const float r = float(__ddiv_rn(1.0, __dsqrt_rn(__ddiv_rn(sum, double(dim)) + double(a.eps))));
    float w[8] = {};
    if (active) load_row(weight, lane, w);
    KQM_UNROLL
    for (int i = 0; i < 8; i++) x[i] = kqm_canonical(__fmul_rn(__fmul_rn(x[i], r), w[i]));
  }
  float *normed = is_q ? a.q_normed : a.k_normed;
  if (normed && active) store_row(normed + (is_q ? q_row : kv_row) * dim, lane, x);

  // The other half of a pair is in another lane.
  if (active) {
    KQM_UNROLL
    for (int i = 0; i < 8; i++) exchange[warp * max_head_dim + 8 * lane + i] = x[i];
  }
  __syncwarp();
  if (!active) return;
  float y[8];
  KQM_UNROLL
  for (int i = 0; i < 8; i++) {
    const int d = 8 * lane + i, pair = d < half ? d : d - half;
    const float other = exchange[warp * max_head_dim + (d < half ? d + half : d - half)];
    const float2 angle = fits ? reinterpret_cast<const float2 *>(a.table)[size_t(position) * half + pair]
                              : make_float2(__uint_as_float(0x7fc00000u), __uint_as_float(0x7fc00000u));
    y[i] = kqm_canonical(d < half ? fmaf(x[i], angle.x, -__fmul_rn(other, angle.y))
                                  : fmaf(other, angle.y, __fmul_rn(x[i], angle.x)));
  }
  if (is_q) {
    store_row(a.q_out + q_row * dim, lane, y);
  } else {
    if (a.k_out) store_row(a.k_out + kv_row * dim, lane, y);
    if (fits) store_cache(a.k_cache, a.cache_type, cache_at, y);
  }
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_rope(const kqm_rope_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(args->q && args->k && args->v && args->table && args->start && args->q_out && args->k_cache && args->v_cache,
              KQM_NULL_POINTER);
  KQM_REQUIRE(args->cache_type == KQM_TYPE_F32 || args->cache_type == KQM_TYPE_F16, KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->tokens > 0 && args->tokens <= 65535 && args->heads > 0 && args->kv_heads > 0 && args->capacity > 0 &&
                  args->head_dim > 0 && args->head_dim % 8 == 0 && args->head_dim <= max_head_dim,
              KQM_BAD_SHAPE);
  const void *vectors[] = {args->q,       args->k,       args->v,        args->q_weight, args->k_weight, args->q_out,
                           args->q_normed, args->k_normed, args->k_out, args->k_cache,  args->v_cache};
  for (const void *p : vectors) KQM_REQUIRE(kqm_aligned(p, 16), KQM_MISALIGNED);
  KQM_REQUIRE(kqm_aligned(args->table, 8), KQM_MISALIGNED);
  const unsigned rows = args->heads + 2 * args->kv_heads;
  return KQM_LAUNCH(rope_kernel, dim3(kqm_ceil_div(rows, unsigned(warps_per_block)), args->tokens),
                    dim3(32 * warps_per_block), 0, stream, *args);
}
KQM_ABI_END
