// Weights that are nibbles with values from a table of sixteen signed bytes, which are data of the formats.
#pragma once

#include "../tiles.cuh"

// Tables as four words, for byte permutations.
template <uint32_t WORD0, uint32_t WORD1, uint32_t WORD2, uint32_t WORD3>
struct KqmValues {
  static const uint32_t word0 = WORD0, word1 = WORD1, word2 = WORD2, word3 = WORD3;

  __device__ __forceinline__ static int at(int nibble) {
    const uint32_t word = nibble < 4 ? word0 : nibble < 8 ? word1 : nibble < 12 ? word2 : word3;
    return int(int8_t(word >> (8 * (nibble % 4))));
  }
};
// -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113.
typedef KqmValues<0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u> KqmIq4Values;
// 0, 1, 2, 3, 4, 6, 8, 12 and their negatives: twice those of e2m1.
typedef KqmValues<0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu> KqmFp4Values;

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

// The same of the words of two rows, as a product's operand: low nibbles are the first 16 weights, high ones the others.
template <class Values>
__device__ __forceinline__ void kqm_look_up_rows(const uint2 &rows, uint32_t (&a)[4]) {
  const uint2 row0 = kqm_look_up<Values>(rows.x), row8 = kqm_look_up<Values>(rows.y);
  a[0] = row0.x, a[1] = row8.x, a[2] = row0.y, a[3] = row8.y;
}
