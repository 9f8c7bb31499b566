// Sums of rows: each thread adds up a part, each warp its threads, and the first warp the warps. The usual shape of a
// block reduction, for the faults that such kernels have.
#include "emulation.h"

namespace {

__device__ __forceinline__ float warp_sum(float value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

template <int THREADS> __global__ void __launch_bounds__(THREADS) reduce(const float *x, float *y, uint32_t columns) {
  KQM_SHARED(float, sums, THREADS / 32);
  const float *row = x + size_t(blockIdx.x) * columns;
  float sum = 0.0f;
  for (uint32_t i = threadIdx.x; i < columns; i += THREADS) sum = __fadd_rn(sum, __ldg(row + i));
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < THREADS / 32 ? sums[threadIdx.x] : 0.0f;
    sum = warp_sum(sum);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
  }
}

} // namespace

KQM_EMULATION_EXPORT int32_t test_reduce(const float *x, float *y, uint32_t rows, uint32_t columns) {
  return KQM_LAUNCH((reduce<128>), rows, 128, 0, nullptr, x, y, columns);
}
