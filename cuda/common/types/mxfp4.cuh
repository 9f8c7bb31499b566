// MXFP4: 32 weights 2^(e - 128) * value(q); value is a table (nibbles.cuh), of numbers twice as large as those of the format.
#pragma once

#include "blocks_of_32.cuh"
#include "nibbles.cuh"

// As in a file.
struct KqmBlockMXFP4 {
  uint8_t e;
  uint8_t qs[16];  // byte k: weight k in the low, weight 16 + k in the high nibble
};
static_assert(sizeof(KqmBlockMXFP4) == 17, "block_mxfp4");

struct KqmTileMXFP4 : KqmNibblesOf32<KqmTileMXFP4, KqmBlockMXFP4, 1> {
  static const uint32_t type = KQM_TYPE_MXFP4;
  static const bool SIGNED = true, MINS = false;

  // Exact where it is a number of f32: the factor of e = 0 and e = 1 is not a normal one.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const uint32_t factor = block.e < 2 ? 0x00200000u << block.e : uint32_t(block.e - 1) << 23;
    return __fmul_rn(__uint_as_float(factor), float(KqmFp4Values::at(nibble(block, k))));
  }

  __device__ __forceinline__ void fragments(int h, int i, int, uint32_t (&a)[4]) const {
    kqm_look_up_rows<KqmFp4Values>(of_rows(h, i), a);
  }
  // The exponent field of 2^(e - 128).
  __device__ __forceinline__ static double d(uint32_t bits) {
    return __longlong_as_double((long long)(bits + 1023u - 128u) << 52);
  }
  __device__ __forceinline__ static double m(uint32_t) { return 0.0; }
};
