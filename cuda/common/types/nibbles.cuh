// Weights that are nibbles with values from a table of sixteen signed bytes, which are data of the formats.
#pragma once

#include "../tiles.cuh"

// A table as four words, for byte permutations.
struct KqmIq4Values {
  static const uint32_t word0 = 0xbfad9881u, word1 = 0xf6eaddcfu, word2 = 0x26190d01u, word3 = 0x71594535u;

  __device__ __forceinline__ static int at(int nibble) {
    const uint32_t word = nibble < 4 ? word0 : nibble < 8 ? word1 : nibble < 12 ? word2 : word3;
    return int(int8_t(word >> (8 * (nibble % 4))));
  }
};

// The values of the low nibbles of four bytes, and of the high ones.
template <class Values>
__device__ __forceinline__ uint2 kqm_look_up(uint32_t nibbles) {
  // Each nibble's low three bits choose among the first eight values and among the last eight, its top bit between the two.
  const uint32_t within = nibbles & 0x77777777u, which = (nibbles >> 1 & 0x44444444u) | 0x32103210u;
  uint32_t pairs[2];
  KQM_UNROLL
  for (int i = 0; i < 2; i++) {
    const uint32_t low = __byte_perm(Values::word0, Values::word1, within >> (16 * i) & 0xffffu);
    const uint32_t high = __byte_perm(Values::word2, Values::word3, within >> (16 * i) & 0xffffu);
    pairs[i] = __byte_perm(low, high, which >> (16 * i) & 0xffffu);
  }
  return make_uint2(__byte_perm(pairs[0], pairs[1], 0x6420), __byte_perm(pairs[0], pairs[1], 0x7531));
}
