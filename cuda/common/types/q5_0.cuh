// Q5_0: 32 weights d * (q - 16).
#pragma once

#include "blocks_of_32.cuh"

// As in a file.
struct KqmBlockQ5_0 {
  uint8_t d[2];    // f16
  uint8_t qh[4];   // bit k: the fifth bit of weight k
  uint8_t qs[16];  // low four bits: byte k: of weight k in the low, of weight 16 + k in the high nibble
};
static_assert(sizeof(KqmBlockQ5_0) == 22, "block_q5_0");

struct KqmTileQ5_0 : KqmFiveBitsOf32<KqmTileQ5_0, KqmBlockQ5_0, 2> {
  static const uint32_t type = KQM_TYPE_Q5_0;
  static const bool SIGNED = true, MINS = false;

  // Exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    return __fmul_rn(kqm_half_at(block.d), float(quant(block, k) - 16));
  }

  // q - 16 as a signed byte: where the fifth bit is not set, all bits above the fourth are.
  __device__ __forceinline__ void fragments(int h, int i, int lane, uint32_t (&a)[4]) const {
    operands(h, i, lane, a, [](uint32_t fifths) { return (fifths ^ 0x01010101u) * 0xf0u; });
  }
  __device__ __forceinline__ static double d(uint32_t bits) { return double(kqm_half_to_float(uint16_t(bits))); }
  __device__ __forceinline__ static double m(uint32_t) { return 0.0; }
};
