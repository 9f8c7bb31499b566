// rms_norm: y = (x * r) * weight, r = 1 / sqrt(mean(x^2) + eps), as f32, as fixed point, or both.
//
// Shapes: x [tokens, cols], weight [cols]; out [tokens, cols], fixed [tokens, cols / 256] fixed-point blocks.
// Maths: the squares are summed in f64 as a tree whose shape depends on cols alone (common/tree.cuh); their mean is over the width.
// Launch: one CTA for a token, one warp for a run of 256 (eight warps at most).
// Bound by: latency; 8 KB a token at full size.
#include "common/fixed.cuh"
#include "common/norm.cuh"

namespace {

const int max_runs = kqm_max_cols / KQM_BLOCK;

__global__ void __launch_bounds__(256) rms_norm_kernel(kqm_rms_norm_args a) {
  KQM_SHARED(double, run_sum, max_runs);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, runs = a.cols / KQM_BLOCK;
  const float4 *x = reinterpret_cast<const float4 *>(a.x + size_t(blockIdx.x) * a.cols) + 2 * lane;
  const float4 *weight = reinterpret_cast<const float4 *>(a.weight) + 2 * lane;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  // The first run stays in registers: at full size every warp has just one.
  const float4 w0 = weight[64 * warp], w1 = weight[64 * warp + 1];
  const double inverse_n = __ddiv_rn(1.0, double(a.width));
  kqm_wait_for_dependencies();
  const float4 first0 = x[64 * warp], first1 = x[64 * warp + 1];
  for (int run = warp; run < runs; run += warps) {
    const float4 x0 = run == warp ? first0 : x[64 * run], x1 = run == warp ? first1 : x[64 * run + 1];
    const double sum = kqm_tree_warp(kqm_tree_leaves(x0, x1, x0, x1));
    if (lane == 0) run_sum[run] = sum;
  }
  __syncthreads();
  const float r = kqm_inverse_root(kqm_tree_sum_shared(run_sum, 0, 1, runs), inverse_n, a.eps);

  for (int run = warp; run < runs; run += warps) {
    const bool kept = run == warp;
    const float4 x0 = kept ? first0 : x[64 * run], x1 = kept ? first1 : x[64 * run + 1];
    const float4 v0 = kept ? w0 : weight[64 * run], v1 = kept ? w1 : weight[64 * run + 1];
    float y[8];
    kqm_scale_eight(x0, x1, v0, v1, r, y);
    const size_t at = size_t(blockIdx.x) * runs + run;
    if (a.out) kqm_store_eight(a.out + at * KQM_BLOCK, lane, y);
    if (a.fixed) kqm_quantize_warp(y, a.fixed + at);
  }
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_rms_norm(const kqm_rms_norm_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->x != nullptr && args->weight != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(args->out != nullptr || args->fixed != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(args->tokens > 0 && args->tokens <= 0x7fffffffu && args->cols > 0 && args->cols % KQM_BLOCK == 0 &&
                  args->cols <= kqm_max_cols && args->width > 0 && args->width <= args->cols,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->x, 16) && kqm_aligned(args->weight, 16) && kqm_aligned(args->out, 16) &&
                  kqm_aligned(args->fixed, 16),
              KQM_MISALIGNED);
  const unsigned warps = args->cols / KQM_BLOCK < 8 ? args->cols / KQM_BLOCK : 8;
  return KQM_LAUNCH(rms_norm_kernel, dim3(args->tokens), dim3(32 * warps), 0, stream, *args);
}
KQM_ABI_END
