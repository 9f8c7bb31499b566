// Q5_1: 32 weights d * q + m.
#pragma once

#include "blocks_of_32.cuh"

// As in a file.
struct KqmBlockQ5_1 {
  uint8_t d[2], m[2];  // f16
  uint8_t qh[4];       // bit k: the fifth bit of weight k
  uint8_t qs[16];      // low four bits: byte k: of weight k in the low, of weight 16 + k in the high nibble
};
static_assert(sizeof(KqmBlockQ5_1) == 24, "block_q5_1");

struct KqmTileQ5_1 : KqmFiveBitsOf32<KqmTileQ5_1, KqmBlockQ5_1, 4> {
  static const uint32_t type = KQM_TYPE_Q5_1;
  static const bool SIGNED = false, MINS = true;

  // The product is exact, the sum rounds once.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    return __fadd_rn(__fmul_rn(kqm_half_at(block.d), float(quant(block, k))), kqm_half_at(block.m));
  }

  __device__ __forceinline__ void fragments(int h, int i, int lane, uint32_t (&a)[4]) const {
    operands(h, i, lane, a, [](uint32_t fifths) { return fifths << 4; });
  }
  __device__ __forceinline__ static double d(uint32_t bits) { return double(kqm_half_to_float(uint16_t(bits))); }
  __device__ __forceinline__ static double m(uint32_t bits) { return double(kqm_half_to_float(uint16_t(bits >> 16))); }
};
