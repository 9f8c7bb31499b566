// IQ1_M: 256 weights d / 8 * sc[j] * q, sixteen sub-blocks of 16; q is from a codebook.
#pragma once

#include "codebooks.cuh"

// As in a file.
struct KqmBlockIQ1M {
  uint8_t qs[32];  // low eight bits of the entry of each 8 weights
  uint8_t qh[16];  // nibble g % 2 of byte g / 2: the high three bits of entry g, and the offset's sign
  uint8_t scales
      [4][2];  // of each four sub-blocks, in 16 bits: half of their scales (three bits each), and four bits of d (f16)
};
static_assert(sizeof(KqmBlockIQ1M) == 56, "block_iq1_m");

struct KqmTileIQ1M : KqmSuperBlocks<KqmTileIQ1M, true> {
  typedef KqmBlockIQ1M Block;
  typedef KqmTileLayout<KqmLaneField<0, 32, 1>, KqmRowField<32, 16>, KqmRowField<48, 8>> Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_IQ1_M;
  static const int bytes = Layout::bytes;
  uint4 entries;  // bytes j = 0 .. 7 of row r: of the lane's eight weights of sub-block j; and of row r + 8
  // Nibble c of the 16 bits for each sub-block: of sub-blocks 0, 2, 4 and 6 in the low half, of the others in the high half.
  uint32_t high0, high8;
  uint2 scales0, scales8;

  // d / 8 * (sc * q), which is exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const uint32_t bits = block.qh[k / 16] >> (4 * (k / 8 % 2));
    const uint2 values = kqm_iq1_book(bits & 8).eight(kqm_iq1_entry(block.qs[k / 8] | (bits & 7) << 8));
    const uint8_t *scales = block.scales[0];
    const int scale = 2 * ((scales[k / 64 * 2] | scales[k / 64 * 2 + 1] << 8) >> (3 * (k / 16 % 4)) & 7) + 1;
    const float d = kqm_half_to_float(factor(make_uint2(kqm_word_at(scales), kqm_word_at(scales + 4))));
    return __fmul_rn(__fmul_rn(d, 0.125f), float(scale * kqm_byte_of(values, k % 8)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    entries = tile.of_lane(Layout::first<0>, 0);
    high0 = nibbles(tile.of_row(Layout::first<1>, 0), tile.lane & 3);
    high8 = nibbles(tile.of_row(Layout::first<1>, 8), tile.lane & 3);
    scales0 =
        make_uint2(tile.word_of_rows(Layout::first<2>, 2 * row), tile.word_of_rows(Layout::first<2>, 2 * row + 1));
    scales8 = make_uint2(tile.word_of_rows(Layout::first<2>, 2 * (row + 8)),
                         tile.word_of_rows(Layout::first<2>, 2 * (row + 8) + 1));
  }

  __device__ __forceinline__ static uint32_t nibbles(const uint4 &words, int c) {
    const uint32_t one = 0x000f000fu;
    return (words.x >> (4 * c) & one) | (words.y >> (4 * c) & one) << 4 | (words.z >> (4 * c) & one) << 8 |
           (words.w >> (4 * c) & one) << 12;
  }
  // The factor's bits: the top four of each 16.
  __device__ __forceinline__ static uint16_t factor(const uint2 &scales) {
    return uint16_t((scales.x >> 12 & 15u) | (scales.x >> 24 & 0xf0u) | (scales.y >> 4 & 0xf00u) |
                    (scales.y >> 16 & 0xf000u));
  }

  // Over a tile |sum| <= 256 * 15 * 9 * 128 < 2^23.
  struct HalfTile : KqmHalfTileOfPairs {
    __device__ __forceinline__ HalfTile(const KqmTileIQ1M &tile, int h) {
      const uint32_t entries0 = h ? tile.entries.y : tile.entries.x, entries8 = h ? tile.entries.w : tile.entries.z;
      scales0 = pairs(h ? tile.scales0.y : tile.scales0.x), scales8 = pairs(h ? tile.scales8.y : tile.scales8.x);
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const int s = 4 * h + j, down = 4 * (s / 2) + 16 * (s % 2);
        const uint2 row0 = values(entries0 >> (8 * j) & 255, tile.high0 >> down),
                    row8 = values(entries8 >> (8 * j) & 255, tile.high8 >> down);
        a[j][0] = row0.x, a[j][1] = row8.x, a[j][2] = row0.y, a[j][3] = row8.y;
      }
    }

   private:
    // Scales of eight sub-blocks, as bytes: of the first and of the second 16 of each 32.
    __device__ __forceinline__ static uint2 pairs(uint32_t bits) {
      uint2 bytes = make_uint2(0x01010101u, 0x01010101u);
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint32_t two = bits >> (16 * (j / 2) + 6 * (j % 2));
        bytes.x += (two & 7u) << (8 * j + 1), bytes.y += (two >> 3 & 7u) << (8 * j + 1);
      }
      return bytes;
    }
    __device__ __forceinline__ static uint2 values(uint32_t low, uint32_t high) {
      return kqm_iq1_book(high & 8).eight(kqm_iq1_entry(low | (high & 7) << 8));
    }
  };

  struct Factors : KqmOneFactor<8> {
    __device__ __forceinline__ Factors(const KqmTileIQ1M &tile, int)
        : KqmOneFactor<8>{factor(tile.scales0), factor(tile.scales8)} {}
  };
};
static_assert(KqmTileIQ1M::Layout::block_bytes == sizeof(KqmBlockIQ1M), "a tile has every byte");
