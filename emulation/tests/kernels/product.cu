// d[tile] = A[tile] B: 16 rows of 32 four-bit weights, packed as Q4_K packs them (low nibbles are k 0..15, high ones
// k 16..31, and those sixteen times as large), times 8 columns of 32 signed bytes, one warp a tile.
#include "emulation.h"

namespace {

__global__ void product(const uint8_t *weights, const int8_t *columns, int32_t *d, uint32_t tiles) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t tile = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (tile >= tiles) return;
  const uint32_t g = lane / 4;
  const uint32_t c = lane % 4;
  const uint32_t *packed = reinterpret_cast<const uint32_t *>(weights + size_t(tile) * 16 * 16);
  const uint32_t upper = packed[g * 4 + c];
  const uint32_t lower = packed[(g + 8) * 4 + c];
  const uint32_t *column = reinterpret_cast<const uint32_t *>(columns + g * 32);
  int32_t sums[4] = {0, 0, 0, 0};
  kqm_mma_m16n8k32(sums, upper & 0x0f0f0f0f, lower & 0x0f0f0f0f, upper & 0xf0f0f0f0, lower & 0xf0f0f0f0,
                   column[c], column[4 + c]);
  int32_t *out = d + size_t(tile) * 16 * 8;
  out[g * 8 + 2 * c] = sums[0];
  out[g * 8 + 2 * c + 1] = sums[1];
  out[(g + 8) * 8 + 2 * c] = sums[2];
  out[(g + 8) * 8 + 2 * c + 1] = sums[3];
}

__global__ void product_k16(const uint32_t *a, const uint32_t *b, int32_t *d) {
  const uint32_t lane = threadIdx.x;
  int32_t sums[4];
  for (int i = 0; i < 4; i++) sums[i] = d[4 * lane + i];
  kqm_mma_m16n8k16(sums, a[2 * lane], a[2 * lane + 1], b[lane]);
  for (int i = 0; i < 4; i++) d[4 * lane + i] = sums[i];
}

__global__ void product_signed(const uint32_t *a, const uint32_t *b, int32_t *d) {
  const uint32_t lane = threadIdx.x;
  int32_t sums[4];
  for (int i = 0; i < 4; i++) sums[i] = d[4 * lane + i];
  kqm_mma_m16n8k32_signed(sums, a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3], b[2 * lane],
                          b[2 * lane + 1]);
  for (int i = 0; i < 4; i++) d[4 * lane + i] = sums[i];
}

// The same product again and again, to measure how long one takes.
__global__ void many_products(int32_t *d, uint32_t count) {
  int32_t sums[4] = {0, 0, 0, 0};
  for (uint32_t i = 0; i < count; i++) kqm_mma_m16n8k32(sums, threadIdx.x, i, 3, 4, 5, 6);
  for (int i = 0; i < 4; i++) d[4 * threadIdx.x + i] = sums[i];
}

} // namespace

KQM_EMULATION_EXPORT int32_t test_product(const uint8_t *weights, const int8_t *columns, int32_t *d, uint32_t tiles) {
  return KQM_LAUNCH(product, (tiles + 3) / 4, 128, 0, nullptr, weights, columns, d, tiles);
}
KQM_EMULATION_EXPORT int32_t test_product_k16(const uint32_t *a, const uint32_t *b, int32_t *d) {
  return KQM_LAUNCH(product_k16, 1, 32, 0, nullptr, a, b, d);
}
KQM_EMULATION_EXPORT int32_t test_product_signed(const uint32_t *a, const uint32_t *b, int32_t *d) {
  return KQM_LAUNCH(product_signed, 1, 32, 0, nullptr, a, b, d);
}
KQM_EMULATION_EXPORT int32_t test_many_products(int32_t *d, uint32_t count) {
  return KQM_LAUNCH(many_products, 1, 32, 0, nullptr, d, count);
}
