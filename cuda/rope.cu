// rope: per-head RMSNorm of q and k, RoPE, and the write of k and v into the cache.
//
//   NeoX layout, i < head_dim / 2:  y[i] = x[i] cos - x[i + head_dim / 2] sin,  y[i + head_dim / 2] = x[i] sin + x[i + head_dim / 2] cos
//
// Shapes: q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim], caches [pool_pages, 64, kv_heads, head_dim],
// table [capacity, head_dim / 2, 2]. Tokens without a place (kqm_batch) leave the cache alone and give NaN.
// Launch: one warp for a head of q, k or v of a token; lane l works on dimensions 8 l .. 8 l + 7.
// Bound by: latency; 20 KB a token at full size.
#include "common/rope.cuh"

namespace {

const int warps_per_block = 4;

__global__ void __launch_bounds__(32 * warps_per_block) rope_kernel(kqm_rope_args a) {
  KQM_SHARED(float, exchange, warps_per_block *kqm_max_head_dim);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const uint32_t index = blockIdx.x * warps_per_block + warp;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  if (index >= a.heads + 2 * a.kv_heads) return;
  const KqmToken token(a.batch, blockIdx.y);
  const uint32_t page = token.own_page(a.batch), position = page < a.batch.pool_pages ? token.position : kqm_nowhere;
  const KqmHeadRow row(a, blockIdx.y, index);
  float x[8] = {}, weight[8] = {};
  kqm_load_head(a, row, lane, x);
  kqm_load_head_weight(a, row, lane, weight);
  kqm_rope_head<32>(a, int(a.head_dim), row, lane, position, true, __ddiv_rn(1.0, double(a.head_dim)), weight,
                    kqm_shared_offset(exchange, warp * kqm_max_head_dim), x);
  float *out = row.is_q ? a.q_out : row.is_v ? nullptr : a.k_out;
  if (out && 8 * lane < int(a.head_dim)) kqm_store_eight(out + row.at, lane, x);
  if (!row.is_q) kqm_cache_head(a, row, lane, page, position, x);
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_rope(const kqm_rope_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr, KQM_NULL_POINTER);
  KQM_TRY(kqm_check_rope(*args));
  kqm_rope_args a = *args;
  a.batch = kqm_bounded(a.batch);
  const unsigned rows = a.heads + 2 * a.kv_heads;
  return KQM_LAUNCH(rope_kernel, dim3(kqm_ceil_div(rows, unsigned(warps_per_block)), a.batch.tokens),
                    dim3(32 * warps_per_block), 0, stream, a);
}
KQM_ABI_END
