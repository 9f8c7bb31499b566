// moe_router: logits = W x with F32 weights, the top_k largest, and their softmax probabilities, renormalised to sum 1 or not.
//
// Shapes: W [experts, cols], x [tokens, cols]; logits [tokens, experts], indices and weights [tokens, top_k].
// Maths: each logit is a tree_dot in f64 (common/tree.cuh), rounded to f32. A warp takes the largest order key top_k times
// (common/choose.cuh). For a single token the kernel can
// take in the RMSNorm before it; some of its CTAs then also leave the normed row for the kernels behind it. And it can
// leave the choice to moe_swiglu, which is faster than to wait for its own last CTA.
// Launch: one CTA for an expert and a token, or for four experts and up to eight tokens, one warp for a run of 256 columns (16 warps at
// most); the last CTA of a token group to finish ranks its tokens' experts.
// Bound by: latency; the weights are 1 MB at full size.
#include "common/choose.cuh"
#include "common/fixed.cuh"
#include "common/norm.cuh"

namespace {

// Tokens and experts of a CTA for several tokens.
const int max_warps = 16, group_tokens = 8, group_experts = kqm_tree_rows;

__device__ __forceinline__ void store_logit(const kqm_moe_router_args &a, uint32_t token, uint32_t expert, double sum) {
  a.logits[size_t(token) * a.experts + expert] = kqm_canonical(__fadd_rn(float(sum), 0.0f));
  if (a.indices) __threadfence();
}

// The last CTA of a group of tokens to come ranks the experts of each of them.
__device__ __forceinline__ void rank_experts(const kqm_moe_router_args &a, uint32_t first, int tokens,
                                             KQM_SHARED_ARG(uint32_t) is_last) {
  const int warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  __syncthreads();
  if (threadIdx.x == 0) is_last[0] = atomicAdd(a.done + first, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last[0]) return;
  __threadfence();
  for (int t = warp; t < tokens; t += warps) {
    const size_t token = first + t;
    const float *logits = a.logits + token * a.experts;
    kqm_weigh_experts(kqm_choose<true>(logits, a.experts, a.top_k - 1), logits, a.experts, a.top_k, a.weighting,
                      a.indices + token * a.top_k, a.weights + token * a.top_k);
  }
  if (threadIdx.x == 0) a.done[first] = 0;
}

// A single token. FUSED_RUNS: with a fused norm, slots for the row's runs, padded with zeros; 0 without one.
template <int FUSED_RUNS>
__global__ void __launch_bounds__(32 * max_warps) moe_router_kernel(kqm_moe_router_args a, double inverse_width) {
  KQM_SHARED(double, run_sum, kqm_max_cols / KQM_BLOCK);
  KQM_SHARED(uint32_t, is_last, 1);
  const int fused_runs = FUSED_RUNS ? FUSED_RUNS : 1;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, runs = a.cols / KQM_BLOCK;
  const uint32_t expert = blockIdx.x;
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
    kqm_fused_norm_eight<fused_runs>(a.norm, warp, n0, n1, inverse_width, run_sum, x);
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
      const float4 *x = reinterpret_cast<const float4 *>(a.x) + 64 * run + 2 * lane;
      const double sum = kqm_tree_warp(kqm_tree_leaves(w0, w1, x[0], x[1]));
      if (lane == 0) run_sum[run] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    const double sum =
        FUSED_RUNS ? kqm_tree_sum_padded<fused_runs>(run_sum, 0, 1) : kqm_tree_sum_shared(run_sum, 0, 1, runs);
    store_logit(a, 0, expert, sum);
  }
  if (a.indices) rank_experts(a, 0, 1, is_last);
}

// Several tokens: their numbers become f64, which takes longer than to multiply them, once for four experts.
__global__ void __launch_bounds__(32 * max_warps) moe_router_many_tokens(kqm_moe_router_args a) {
  KQM_SHARED(double, run_sum, group_tokens *group_experts *kqm_max_cols / KQM_BLOCK);
  KQM_SHARED(uint32_t, is_last, 1);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, runs = a.cols / KQM_BLOCK;
  const uint32_t first_expert = blockIdx.x * group_experts, first = blockIdx.y * group_tokens;
  const int tokens = min(group_tokens, int(a.tokens - first));
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  kqm_release_dependents();
  KQM_LOOP
  for (int run = warp; run < runs; run += warps) {
    float4 w[group_experts][2];
    KQM_UNROLL
    for (int e = 0; e < group_experts; e++) {
      // Behind the last expert it is the last one again, of which nothing is stored.
      const float4 *row = reinterpret_cast<const float4 *>(a.w + size_t(min(first_expert + e, a.experts - 1)) * a.cols);
      w[e][0] = row[64 * run + 2 * lane], w[e][1] = row[64 * run + 2 * lane + 1];
    }
    KQM_LOOP
    for (int t = 0; t < tokens; t++) {
      const float4 *x = reinterpret_cast<const float4 *>(a.x + size_t(first + t) * a.cols) + 64 * run + 2 * lane;
      const float4 x0 = x[0], x1 = x[1];
      double v[group_experts];
      KQM_UNROLL
      for (int e = 0; e < group_experts; e++) v[e] = kqm_tree_leaves(w[e][0], w[e][1], x0, x1);
      const double sum = kqm_tree_warp_of_rows(v, lane);
      if (lane < group_experts) run_sum[(t * group_experts + kqm_tree_row_of(lane)) * runs + run] = sum;
    }
  }
  __syncthreads();
  const int t = threadIdx.x / group_experts, e = threadIdx.x % group_experts;
  if (t < tokens && first_expert + e < a.experts)
    store_logit(a, first + t, first_expert + e, kqm_tree_sum_shared(run_sum, int(threadIdx.x) * runs, 1, runs));
  rank_experts(a, first, tokens, is_last);
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
                  args->top_k <= KQM_MAX_TOP_K && args->top_k <= args->experts && args->weighting <= KQM_WEIGHTS_OF_ALL,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->x, 16) && kqm_aligned(args->w, 16) && kqm_aligned(args->fixed, 16), KQM_MISALIGNED);
  if (args->norm.x) KQM_TRY(kqm_check_fused_norm(args->norm, args->tokens, args->cols));
  const unsigned runs = args->cols / KQM_BLOCK, warps = kqm_even_warps(runs, max_warps);
  const dim3 grid(args->experts), cta(32 * warps);
  const double inverse_width = args->norm.x ? 1.0 / double(args->norm.width) : 0.0;
  if (args->tokens > 1) {
    const dim3 groups(kqm_ceil_div(args->experts, uint32_t(group_experts)),
                      kqm_ceil_div(args->tokens, uint32_t(group_tokens)));
    return KQM_LAUNCH(moe_router_many_tokens, groups, cta, 0, stream, *args);
  }
  if (!args->norm.x) return KQM_LAUNCH(moe_router_kernel<0>, grid, cta, 0, stream, *args, inverse_width);
  if (runs <= 8) return KQM_LAUNCH(moe_router_kernel<8>, grid, cta, 0, stream, *args, inverse_width);
  return KQM_LAUNCH(moe_router_kernel<max_warps>, grid, cta, 0, stream, *args, inverse_width);
}
KQM_ABI_END
