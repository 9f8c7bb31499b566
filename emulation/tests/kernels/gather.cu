// out[i] = rows[index[i]], staged through dynamic shared memory by asynchronous copies, 16 bytes a thread.
#include "emulation.h"

namespace {

__global__ void gather(const uint8_t *rows, const uint32_t *index, uint8_t *out, uint32_t row_bytes) {
  KQM_DYNAMIC_SHARED(uint8_t, row);
  const uint8_t *source = rows + size_t(index[blockIdx.x]) * row_bytes;
  for (uint32_t i = 16 * threadIdx.x; i < row_bytes; i += 16 * blockDim.x) kqm_async_copy_16(row, i, source + i);
  kqm_async_commit();
  kqm_async_wait<0>();
  __syncthreads();
  uint8_t *target = out + size_t(blockIdx.x) * row_bytes;
  // From the other end, so that a thread reads what another one copied.
  for (uint32_t i = 16 * threadIdx.x; i < row_bytes; i += 16 * blockDim.x) {
    const uint32_t j = row_bytes - 16 - i;
    *reinterpret_cast<uint4 *>(target + j) = kqm_shared_load<uint4>(row, j);
  }
}

} // namespace

KQM_EMULATION_EXPORT int32_t test_gather(const uint8_t *rows, const uint32_t *index, uint8_t *out, uint32_t count,
                                         uint32_t row_bytes) {
  return KQM_LAUNCH(gather, count, 64, row_bytes, nullptr, rows, index, out, row_bytes);
}
