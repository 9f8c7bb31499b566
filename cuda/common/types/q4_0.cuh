// Q4_0: 32 weights d * (q - 8).
#pragma once

#include "blocks_of_32.cuh"

// As in a file.
struct KqmBlockQ4_0 {
  uint8_t d[2];    // f16
  uint8_t qs[16];  // byte k: weight k in the low, weight 16 + k in the high nibble
};
static_assert(sizeof(KqmBlockQ4_0) == 18, "block_q4_0");

struct KqmTileQ4_0 : KqmNibblesOf32<KqmTileQ4_0, KqmBlockQ4_0, 2> {
  static const uint32_t type = KQM_TYPE_Q4_0;
  static const bool SIGNED = true, MINS = false;

  // Exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    return __fmul_rn(kqm_half_at(block.d), float(nibble(block, k) - 8));
  }

  // 16 (q - 8): nibbles at the top of signed bytes, with their top bit flipped.
  __device__ __forceinline__ void fragments(int h, int i, int, uint32_t (&a)[4]) const {
    const uint2 w = of_rows(h, i);
    a[0] = (w.x << 4 & 0xf0f0f0f0u) ^ 0x80808080u, a[1] = (w.y << 4 & 0xf0f0f0f0u) ^ 0x80808080u;
    a[2] = (w.x & 0xf0f0f0f0u) ^ 0x80808080u, a[3] = (w.y & 0xf0f0f0f0u) ^ 0x80808080u;
  }
  __device__ __forceinline__ static double d(uint32_t bits) {
    return double(__fmul_rn(kqm_half_to_float(uint16_t(bits)), 0.0625f));
  }
  __device__ __forceinline__ static double m(uint32_t) { return 0.0; }
};
