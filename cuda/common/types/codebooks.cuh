// What the IQ types have in common: eight weights are an entry of a codebook or two of them, with signs or an offset.
#pragma once

#include "../tiles.cuh"

// The codebooks are data of the formats (tests/data/codebooks.py): of each entry the numbers of its values, four bits each. A function
// has its table, so that only who looks something up has one.
__device__ __forceinline__ uint32_t kqm_iq2_xxs_entry(uint32_t number) {
  static const uint32_t table[256] = {
#include "iq2_xxs.inc"
  };
  return table[number];
}
__device__ __forceinline__ uint32_t kqm_iq2_xs_entry(uint32_t number) {
  static const uint32_t table[512] = {
#include "iq2_xs.inc"
  };
  return table[number];
}
__device__ __forceinline__ uint32_t kqm_iq2_s_entry(uint32_t number) {
  static const uint32_t table[1024] = {
#include "iq2_s.inc"
  };
  return table[number];
}
__device__ __forceinline__ uint32_t kqm_iq3_xxs_entry(uint32_t number) {
  static const uint16_t table[256] = {
#include "iq3_xxs.inc"
  };
  return table[number];
}
__device__ __forceinline__ uint32_t kqm_iq3_s_entry(uint32_t number) {
  static const uint16_t table[512] = {
#include "iq3_s.inc"
  };
  return table[number];
}
// Of IQ1_S and IQ1_M.
__device__ __forceinline__ uint32_t kqm_iq1_entry(uint32_t number) {
  static const uint32_t table[2048] = {
#include "iq1_s.inc"
  };
  return table[number];
}

// Up to eight values as two words of bytes, those of number 0 lowest.
struct KqmBook {
  uint32_t word0, word1;

  // Eight values of an entry, and four.
  __device__ __forceinline__ uint2 eight(uint32_t entry) const {
    return make_uint2(__byte_perm(word0, word1, entry & 0xffffu), __byte_perm(word0, word1, entry >> 16));
  }
  __device__ __forceinline__ uint32_t four(uint32_t entry) const { return __byte_perm(word0, word1, entry); }
};
// 8, 25, 43.
__device__ __forceinline__ KqmBook kqm_iq2_book() { return KqmBook{0x002b1908u, 0}; }
// 4, 12, 20, 28, 36, 44, 52, 62.
__device__ __forceinline__ KqmBook kqm_iq3_xxs_book() { return KqmBook{0x1c140c04u, 0x3e342c24u}; }
// 1, 3, 5, 7, 9, 11, 13, 15.
__device__ __forceinline__ KqmBook kqm_iq3_s_book() { return KqmBook{0x07050301u, 0x0f0d0b09u}; }
// Eight times -1, 0 and 1, and an offset of 1 or of -1.
__device__ __forceinline__ KqmBook kqm_iq1_book(bool negative) {
  return KqmBook{negative ? 0x0007fff7u : 0x000901f9u, 0};
}

// Eight bits, of which an even number is set, from the low seven of these.
__device__ __forceinline__ uint32_t kqm_even_signs(uint32_t seven) {
  const uint32_t signs = seven & 127u;
  return signs | (__popc(signs) & 1) << 7;
}
// Eight positive bytes with the signs that are set in the low eight bits.
__device__ __forceinline__ uint2 kqm_with_signs(const uint2 &values, uint32_t signs) {
  const uint32_t low = kqm_spread(signs), high = kqm_spread(signs >> 4);
  return make_uint2((values.x ^ low * 0xffu) + low, (values.y ^ high * 0xffu) + high);
}

// Byte k of eight.
__device__ __forceinline__ int kqm_byte_of(const uint2 &bytes, int k) {
  return int(int8_t((k / 4 ? bytes.y : bytes.x) >> (8 * (k % 4))));
}

// A word of four bytes of a block as it stands in a file, of any alignment.
__device__ __forceinline__ uint32_t kqm_word_at(const uint8_t *p) {
  return uint32_t(p[0] | p[1] << 8 | p[2] << 16) | uint32_t(p[3]) << 24;
}

// Scales of four sub-blocks of 32, as bytes.
struct KqmByteScales {
  uint32_t bytes;
  __device__ __forceinline__ uint32_t checksum() const { return bytes; }
  __device__ __forceinline__ int of(int j) const { return int(__byte_perm(bytes, 0, 0x4440 + j)); }
};

// Of nibbles that are half of the scales of 16 weights each, the scales of the first 16 and of the second 16 of each 32, as bytes.
__device__ __forceinline__ uint2 kqm_pairs(uint32_t nibbles) {
  return make_uint2((nibbles & 0x0f0f0f0fu) * 2 + 0x01010101u, (nibbles >> 4 & 0x0f0f0f0fu) * 2 + 0x01010101u);
}

// Half of a tile's sub-blocks of 16, in eights: four times 32 weights with a sign, of which lanes c = 0 and c = 1 have the first 16 and the
// others the second 16. A product for each 16 has zeros in the place of the others.
struct KqmHalfTileOfPairs {
  static const int sub_blocks = 4;
  uint32_t a[4][4];
  // Scales of the first and of the second 16, as bytes, of row r and of row r + 8.
  uint2 scales0, scales8;

  __device__ __forceinline__ uint32_t checksum() const {
    uint32_t sum = scales0.x + scales0.y + scales8.x + scales8.y;
    KQM_UNROLL
    for (int i = 0; i < 16; i++) sum += a[i / 4][i % 4];
    return sum;
  }

  template <class Activations>
  __device__ __forceinline__ void multiply(const Activations &x, int first,
                                           int32_t (&sum)[Activations::Columns::products][4]) const {
    const uint32_t of_second = threadIdx.x & 2 ? ~0u : 0u;
    KQM_UNROLL
    for (int j = 0; j < 4; j++) {
      if (Activations::Columns::both_rows) __syncwarp();
      uint32_t first_a[4], second_a[4];
      KQM_UNROLL
      for (int i = 0; i < 4; i++) first_a[i] = a[j][i] & ~of_second, second_a[i] = a[j][i] & of_second;
      const int first0 = int(__byte_perm(scales0.x, 0, 0x4440 + j)),
                second0 = int(__byte_perm(scales0.y, 0, 0x4440 + j));
      const int first8 = int(__byte_perm(scales8.x, 0, 0x4440 + j)),
                second8 = int(__byte_perm(scales8.y, 0, 0x4440 + j));
      KQM_UNROLL
      for (int p = 0; p < Activations::Columns::products; p++) {
        const uint2 b = x.eight(p, first + j);
        int32_t t[4] = {}, u[4] = {};
        kqm_mma_of_32<true>(t, first_a, b);
        kqm_mma_of_32<true>(u, second_a, b);
        sum[p][0] += first0 * t[0] + second0 * u[0];
        sum[p][1] += first0 * t[1] + second0 * u[1];
        sum[p][2] += first8 * t[2] + second8 * u[2];
        sum[p][3] += first8 * t[3] + second8 * u[3];
      }
    }
  }
};

// The factors of rows r and r + 8: v = d / OVER * T.
template <int OVER>
struct KqmOneFactor {
  uint32_t d0, d8;

  __device__ __forceinline__ uint32_t checksum() const { return d0 + d8; }

  template <class Activations>
  __device__ __forceinline__ void finish(const Activations &, const int32_t (&sum)[Activations::Columns::products][4],
                                         int lane, double (&v)[Activations::Columns::results]) const {
    typedef typename Activations::Columns Columns;
    long long t[Columns::results];
    Columns::join(sum, lane, t);
    KQM_UNROLL
    for (int i = 0; i < Columns::results; i++) {
      const float d = kqm_half_to_float(uint16_t(Columns::of_row(i, d0, d8, lane)));
      v[i] = double(OVER == 1 ? d : __fmul_rn(d, 1.0f / OVER)) * double(t[i]);
    }
  }
};
