// argmax: out[r] = index of the largest x[r, .], ties to the lower index; a NaN counts as largest. In a history of choices, a
// largest value that is not finite gives 2^32 - 1.
//
// Shapes: x [rows, cols], histories [rows, history_len]. `partial` and `done` are zero before and after.
// Maths: the value's order key in the high and the complemented index in the low half of 64 bits: the largest such number is
// the answer, and a maximum has no order.
// Launch: CTAs of 256 threads over 4,096 values each; the last CTA of a row to finish writes its result.
// Bound by: bytes; 0.6 MB for a vocabulary of 151,936.
#include "common/check.cuh"

namespace {

const int threads = 256, per_cta = 4096;

__global__ void __launch_bounds__(threads) argmax_kernel(kqm_argmax_args a) {
  KQM_SHARED(unsigned long long, warp_best, threads / 32);
  const uint32_t row = blockIdx.y, begin = blockIdx.x * per_cta;
  const float *x = a.x + size_t(row) * a.cols;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  unsigned long long best = 0;
  const uint32_t end = min(begin + uint32_t(per_cta), a.cols);
  for (uint32_t i = begin + threadIdx.x; i < end; i += threads) {
    const unsigned long long candidate = (unsigned long long)kqm_order_key(x[i]) << 32 | (0xffffffffu - i);
    best = candidate > best ? candidate : best;
  }
  KQM_UNROLL
  for (int step = 16; step; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(~0u, best, step);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) warp_best[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < threads / 32; w++) {
    const unsigned long long other = warp_best[w];
    best = other > best ? other : best;
  }
  atomicMax(reinterpret_cast<unsigned long long *>(a.partial) + row, best);
  __threadfence();
  if (atomicAdd(a.done + row, 1u) != gridDim.x - 1) return;
  __threadfence();
  best = atomicExch(reinterpret_cast<unsigned long long *>(a.partial) + row, 0ull);
  a.done[row] = 0;
  const uint32_t index = 0xffffffffu - uint32_t(best);
  a.out[row] = index;
  if (a.advance) {
    const uint32_t at = a.advance[row];
    // What was chosen among values of which the largest is not finite is told from a choice; the decode loop goes on with it.
    const float largest = kqm_ordered_by(uint32_t(best >> 32));
    if (a.history && at < a.history_len)
      a.history[size_t(row) * a.history_len + at] = largest - largest == 0.0f ? index : 0xffffffffu;
    a.advance[row] = at + 1;
  }
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_argmax(const kqm_argmax_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->x && args->out && args->partial && args->done, KQM_NULL_POINTER);
  KQM_REQUIRE(args->rows > 0 && args->rows <= 65535 && args->cols > 0 && args->cols < 0x7fffffffu, KQM_BAD_SHAPE);
  return KQM_LAUNCH(argmax_kernel, dim3(kqm_ceil_div(args->cols, uint32_t(per_cta)), args->rows), dim3(threads), 0,
                    stream, *args);
}
KQM_ABI_END
