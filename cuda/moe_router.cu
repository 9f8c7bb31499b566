// moe_router: logits = W x with F32 weights, the top_k largest, and their softmax renormalised to sum 1.
//
// Shapes: W [experts, cols], x [tokens, cols]; logits [tokens, experts], indices and weights [tokens, top_k].
// Maths: each logit is a tree_dot in f64 (common/tree.cuh), rounded to f32. A warp takes the largest order key top_k times
// (common/choose.cuh). For a single token the kernel can
// take in the RMSNorm before it; some of its CTAs then also leave the normed row for the kernels behind it. And it can
// leave the choice to moe_swiglu, which is faster than to wait for its own last CTA.
// Launch: one CTA for an expert and up to eight tokens, one warp for a run of 256 columns (16 warps at most); the last CTA
// of a token group to finish ranks its tokens' experts.
// Bound by: latency; the weights are 1 MB at full size.
#include "common/choose.cuh"
#include "common/fixed.cuh"
#include "common/norm.cuh"

namespace {

const int max_warps = 16, group_tokens = 8;

// FUSED_RUNS: with a fused norm, slots for the row's runs, padded with zeros; 0 without one.
template <int FUSED_RUNS>
__global__ void __launch_bounds__(32 * max_warps) moe_router_kernel(kqm_moe_router_args a, double inverse_cols) {
  KQM_SHARED(double, run_sum, group_tokens *kqm_max_cols / KQM_BLOCK);
  KQM_SHARED(uint32_t, is_last, 1);
  const int fused_runs = FUSED_RUNS ? FUSED_RUNS : 1;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, runs = a.cols / KQM_BLOCK;
  const uint32_t expert = blockIdx.x, first = blockIdx.y * group_tokens;
  const int tokens = min(group_tokens, int(a.tokens - first));
  const float4 *w = reinterpret_cast<const float4 *>(a.w + size_t(expert) * a.cols) + 2 * lane;

  // Weights depend on nothing.
  float4 w0 = w[64 * warp], w1 = w[64 * warp + 1];
  kqm_touch_arguments(a);
  if (FUSED_RUNS) {
    const float4 *weight = reinterpret_cast<const float4 *>(a.norm.weight) + 64 * warp + 2 * lane;
    const float4 n0 = weight[0], n1 = weight[1];
    kqm_zero_pad(run_sum, runs, FUSED_RUNS);
    kqm_wait_for_dependencies();
    kqm_release_dependents();
    float x[8];
    kqm_fused_norm_eight<fused_runs>(a.norm, warp, n0, n1, inverse_cols, run_sum, x);
    // The run of this warp is written by one CTA.
    if (warp % gridDim.x == blockIdx.x) {
      if (a.norm.out) kqm_store_eight(a.norm.out + warp * KQM_BLOCK, lane, x);
      if (a.fixed) kqm_quantize_warp(x, a.fixed + warp);
    }
    const float4 x0 = make_float4(x[0], x[1], x[2], x[3]), x1 = make_float4(x[4], x[5], x[6], x[7]);
    const double sum = kqm_tree_warp(kqm_tree_leaves(w0, w1, x0, x1));
    __syncthreads();
    if (lane == 0) run_sum[warp] = sum;
  } else {
    kqm_wait_for_dependencies();
    kqm_release_dependents();
    for (int run = warp; run < runs; run += warps) {
      if (run != warp) w0 = w[64 * run], w1 = w[64 * run + 1];
      for (int t = 0; t < tokens; t++) {
        const float4 *x = reinterpret_cast<const float4 *>(a.x + size_t(first + t) * a.cols) + 64 * run + 2 * lane;
        const double sum = kqm_tree_warp(kqm_tree_leaves(w0, w1, x[0], x[1]));
        if (lane == 0) run_sum[t * runs + run] = sum;
      }
    }
  }
  __syncthreads();
  if (int(threadIdx.x) < tokens) {
    const int t = threadIdx.x;
    const double sum =
        FUSED_RUNS ? kqm_tree_sum_padded<fused_runs>(run_sum, 0, 1) : kqm_tree_sum_shared(run_sum, t * runs, 1, runs);
    a.logits[size_t(first + t) * a.experts + expert] = kqm_canonical(__fadd_rn(float(sum), 0.0f));
    if (a.indices) __threadfence();
  }
  if (!a.indices) return;
  __syncthreads();
  if (threadIdx.x == 0) is_last[0] = atomicAdd(a.done + first, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last[0]) return;
  __threadfence();
  for (int t = warp; t < tokens; t += warps) {
    const size_t token = first + t;
    const float *logits = a.logits + token * a.experts;
    kqm_weigh_experts(kqm_choose<true>(logits, a.experts, a.top_k - 1), a.top_k, a.indices + token * a.top_k,
                      a.weights + token * a.top_k);
  }
  if (threadIdx.x == 0) a.done[first] = 0;
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_moe_router(const kqm_moe_router_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->w && args->logits, KQM_NULL_POINTER);
  KQM_REQUIRE(args->indices == nullptr || (args->weights && args->done), KQM_NULL_POINTER);
  KQM_REQUIRE(args->indices != nullptr || args->tokens == 1, KQM_BAD_SHAPE);
  KQM_REQUIRE(args->x != nullptr || args->norm.x != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(args->tokens > 0 && args->tokens <= 65535 && args->cols > 0 && args->cols % KQM_BLOCK == 0 &&
                  args->cols <= kqm_max_cols && args->experts <= KQM_MAX_EXPERTS && args->top_k > 0 &&
                  args->top_k <= KQM_MAX_TOP_K && args->top_k <= args->experts,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->x, 16) && kqm_aligned(args->w, 16) && kqm_aligned(args->fixed, 16), KQM_MISALIGNED);
  if (args->norm.x) KQM_TRY(kqm_check_fused_norm(args->norm, args->tokens, args->cols));
  const unsigned runs = args->cols / KQM_BLOCK, warps = kqm_even_warps(runs, max_warps);
  const dim3 grid(args->experts, kqm_ceil_div(args->tokens, uint32_t(group_tokens))), cta(32 * warps);
  const double inverse_cols = 1.0 / double(args->cols);
  if (!args->norm.x) return KQM_LAUNCH(moe_router_kernel<0>, grid, cta, 0, stream, *args, inverse_cols);
  if (runs <= 8) return KQM_LAUNCH(moe_router_kernel<8>, grid, cta, 0, stream, *args, inverse_cols);
  return KQM_LAUNCH(moe_router_kernel<max_warps>, grid, cta, 0, stream, *args, inverse_cols);
}
KQM_ABI_END
