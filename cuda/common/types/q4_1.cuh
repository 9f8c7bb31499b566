// Q4_1: 32 weights d * q + m.
#pragma once

#include "blocks_of_32.cuh"

// As in a file.
struct KqmBlockQ4_1 {
  uint8_t d[2], m[2];  // f16
  uint8_t qs[16];      // byte k: weight k in the low, weight 16 + k in the high nibble
};
static_assert(sizeof(KqmBlockQ4_1) == 20, "block_q4_1");

struct KqmTileQ4_1 : KqmNibblesOf32<KqmTileQ4_1, KqmBlockQ4_1, 4> {
  static const uint32_t type = KQM_TYPE_Q4_1;
  static const bool SIGNED = false, MINS = true;

  // The product is exact, the sum rounds once.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    return __fadd_rn(__fmul_rn(kqm_half_at(block.d), float(nibble(block, k))), kqm_half_at(block.m));
  }

  __device__ __forceinline__ void fragments(int h, int i, int, uint32_t (&a)[4]) const {
    const uint2 w = of_rows(h, i);
    a[0] = w.x & 0x0f0f0f0fu, a[1] = w.y & 0x0f0f0f0fu, a[2] = w.x >> 4 & 0x0f0f0f0fu, a[3] = w.y >> 4 & 0x0f0f0f0fu;
  }
  __device__ __forceinline__ static double d(uint32_t bits) { return double(kqm_half_to_float(uint16_t(bits))); }
  __device__ __forceinline__ static double m(uint32_t bits) { return double(kqm_half_to_float(uint16_t(bits >> 16))); }
};
