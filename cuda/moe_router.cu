// moe_router: logits = W x with F32 weights, the top_k largest, and their softmax renormalised to sum 1.
//
// Shapes: W [experts, cols], x [tokens, cols]; logits [tokens, experts], indices and weights [tokens, top_k].
// Maths: each logit is a tree_dot in f64 (common/tree.cuh), rounded to f32. An expert's rank is the number of experts with a
// larger order key, or an equal one and a lower index: no sorting, no order to depend on.
// Launch: one warp for an expert of a token, four to a block; the last block of a token to finish ranks its experts.
// Bound by: the F32 weights' bytes (1 MB at full size) and the latency of the ranking.
#include "common/check.cuh"
#include "common/exp.cuh"
#include "common/tree.cuh"

namespace {

const int warps = 4, threads = 32 * warps;

__global__ void __launch_bounds__(threads) moe_router_kernel(kqm_moe_router_args a) {
  KQM_SHARED(uint32_t, key, KQM_MAX_EXPERTS);
  KQM_SHARED(uint32_t, chosen, KQM_MAX_TOP_K);
  KQM_SHARED(float, probability, KQM_MAX_TOP_K);
  KQM_SHARED(uint32_t, is_last, 1);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, runs = a.cols / KQM_BLOCK;
  const uint32_t t = blockIdx.y, expert = blockIdx.x * warps + warp;
  const float4 *w = reinterpret_cast<const float4 *>(a.w + size_t(expert) * a.cols) + 2 * lane;
  const float4 *x = reinterpret_cast<const float4 *>(a.x + size_t(t) * a.cols) + 2 * lane;
  float *logits = a.logits + size_t(t) * a.experts;

  // Weights depend on nothing: fetch them while the kernel before this one still runs.
  if (expert < a.experts) {
    for (uint32_t at = 32 * lane; at < a.cols; at += 32 * 32) kqm_prefetch_l2(a.w + size_t(expert) * a.cols + at);
  }
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  if (expert < a.experts) {
    double sum = 0.0;
    // Eight runs at a time, so that their loads overlap; their sums are added in ascending order.
    for (int first = 0; first < runs; first += 8) {
      double run_sum[8];
      KQM_UNROLL
      for (int i = 0; i < 8; i++) {
        const int at = 64 * (first + i);
        run_sum[i] = first + i < runs ? kqm_tree_leaves(w[at], w[at + 1], x[at], x[at + 1]) : 0.0;
      }
      KQM_UNROLL
      for (int i = 0; i < 8; i++) {
        const double run = kqm_tree_warp(run_sum[i]);
        if (first + i < runs) sum = first + i == 0 ? run : sum + run;
      }
    }
    if (lane == 0) {
      logits[expert] = kqm_canonical(__fadd_rn(float(sum), 0.0f));
      __threadfence();
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) is_last[0] = atomicAdd(a.done + t, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last[0]) return;
  __threadfence();

  for (uint32_t e = threadIdx.x; e < a.experts; e += threads) key[e] = kqm_order_key(__ldcg(logits + e));
  __syncthreads();
  for (uint32_t e = threadIdx.x; e < a.experts; e += threads) {
    const uint32_t mine = key[e];
    uint32_t rank = 0;
    for (uint32_t other = 0; other < a.experts; other++) {
      const uint32_t theirs = key[other];
      rank += theirs > mine || (theirs == mine && other < e);
    }
    if (rank < a.top_k) chosen[rank] = e;
  }
  __syncthreads();
  if (threadIdx.x < a.top_k) {
    const uint32_t e = chosen[threadIdx.x];
    probability[threadIdx.x] = kqm_exp(__fsub_rn(__ldcg(logits + e), __ldcg(logits + chosen[0])));
    a.indices[size_t(t) * a.top_k + threadIdx.x] = e;
  }
  __syncthreads();
  if (threadIdx.x < a.top_k) {
    double sum = 0.0;
    for (uint32_t i = 0; i < a.top_k; i++) sum = sum + double(probability[i]);
    const double p = double(probability[threadIdx.x]);
    a.weights[size_t(t) * a.top_k + threadIdx.x] = kqm_canonical(float(__ddiv_rn(p, sum)));
  }
  if (threadIdx.x == 0) a.done[t] = 0;
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_moe_router(const kqm_moe_router_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->x && args->w && args->logits && args->indices && args->weights && args->done,
              KQM_NULL_POINTER);
  KQM_REQUIRE(args->tokens > 0 && args->tokens <= 65535 && args->cols > 0 && args->cols % KQM_BLOCK == 0 &&
                  args->cols <= kqm_max_cols && args->experts > 0 && args->experts <= KQM_MAX_EXPERTS &&
                  args->top_k > 0 && args->top_k <= KQM_MAX_TOP_K && args->top_k <= args->experts,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->x, 16) && kqm_aligned(args->w, 16), KQM_MISALIGNED);
  return KQM_LAUNCH(moe_router_kernel, dim3(kqm_ceil_div(args->experts, uint32_t(warps)), args->tokens), dim3(threads), 0,
                    stream, *args);
}
KQM_ABI_END
