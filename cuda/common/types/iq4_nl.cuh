// IQ4_NL: 32 weights d * value(q); value is a table (nibbles.cuh).
#pragma once

#include "blocks_of_32.cuh"
#include "nibbles.cuh"

// As in a file.
struct KqmBlockIQ4NL {
  uint8_t d[2];    // f16
  uint8_t qs[16];  // byte k: weight k in the low, weight 16 + k in the high nibble
};
static_assert(sizeof(KqmBlockIQ4NL) == 18, "block_iq4_nl");

struct KqmTileIQ4NL : KqmNibblesOf32<KqmTileIQ4NL, KqmBlockIQ4NL, 2> {
  static const uint32_t type = KQM_TYPE_IQ4_NL;
  static const bool SIGNED = true, MINS = false;

  // Exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    return __fmul_rn(kqm_half_at(block.d), float(KqmIq4Values::at(nibble(block, k))));
  }

  __device__ __forceinline__ void fragments(int h, int i, int, uint32_t (&a)[4]) const {
    kqm_look_up_rows<KqmIq4Values>(of_rows(h, i), a);
  }
  __device__ __forceinline__ static double d(uint32_t bits) { return double(kqm_half_to_float(uint16_t(bits))); }
  __device__ __forceinline__ static double m(uint32_t) { return 0.0; }
};
