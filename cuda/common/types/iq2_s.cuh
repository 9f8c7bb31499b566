// IQ2_S: 256 weights d / 8 * sc[j] * q, sixteen sub-blocks of 16; q is from a codebook.
#pragma once

#include "codebooks.cuh"

// As in a file.
struct KqmBlockIQ2S {
  uint8_t d[2];       // f16
  uint8_t qs[32];     // low eight bits of the entry of each 8 weights
  uint8_t signs[32];  // the signs of each 8 weights
  uint8_t qh[8];      // in bits 2 l and 2 l + 1 of byte i: the high two bits of entry 4 i + l
  uint8_t scales[8];  // half of sc[2 i] in the low, of sc[2 i + 1] in the high nibble of byte i
};
static_assert(sizeof(KqmBlockIQ2S) == 82, "block_iq2_s");

struct KqmTileIQ2S : KqmSuperBlocks<KqmTileIQ2S, true> {
  typedef KqmBlockIQ2S Block;
  typedef KqmTileLayout<KqmLaneField<2, 32, 1>, KqmLaneField<34, 32, 1>, KqmRowField<66, 8>, KqmRowField<74, 8>,
                        KqmRowField<0, 2>>
      Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_IQ2_S;
  static const int bytes = Layout::bytes;
  uint4 entries, signs;  // bytes j = 0 .. 7 of row r: of the lane's eight weights of sub-block j; and of row r + 8
  uint2 high0, high8, scales0, scales8;
  uint16_t d0, d8;

  // d / 8 * (sc * q), which is exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const uint32_t entry = block.qs[k / 8] | (block.qh[k / 32] >> (2 * (k / 8 % 4)) & 3) << 8;
    const uint2 values = kqm_with_signs(kqm_iq2_book().eight(kqm_iq2_s_entry(entry)), block.signs[k / 8]);
    const int scale = 2 * (block.scales[k / 32] >> (4 * (k / 16 % 2)) & 15) + 1;
    return __fmul_rn(__fmul_rn(kqm_half_at(block.d), 0.125f), float(scale * kqm_byte_of(values, k % 8)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    entries = tile.of_lane(Layout::first<0>, 0);
    signs = tile.of_lane(Layout::first<1>, 0);
    high0 = make_uint2(tile.word_of_rows(Layout::first<2>, 2 * row), tile.word_of_rows(Layout::first<2>, 2 * row + 1));
    high8 = make_uint2(tile.word_of_rows(Layout::first<2>, 2 * (row + 8)),
                       tile.word_of_rows(Layout::first<2>, 2 * (row + 8) + 1));
    scales0 =
        make_uint2(tile.word_of_rows(Layout::first<3>, 2 * row), tile.word_of_rows(Layout::first<3>, 2 * row + 1));
    scales8 = make_uint2(tile.word_of_rows(Layout::first<3>, 2 * (row + 8)),
                         tile.word_of_rows(Layout::first<3>, 2 * (row + 8) + 1));
    d0 = tile.half_of_row(Layout::first<4>, row);
    d8 = tile.half_of_row(Layout::first<4>, row + 8);
  }

  // Over a tile |sum| <= 256 * 31 * 43 * 128 < 2^26.
  struct HalfTile : KqmHalfTileOfPairs {
    __device__ __forceinline__ HalfTile(const KqmTileIQ2S &tile, int h) {
      const int c = threadIdx.x & 3;
      const uint32_t entries0 = h ? tile.entries.y : tile.entries.x, entries8 = h ? tile.entries.w : tile.entries.z;
      const uint32_t signs0 = h ? tile.signs.y : tile.signs.x, signs8 = h ? tile.signs.w : tile.signs.z;
      const uint32_t high0 = (h ? tile.high0.y : tile.high0.x) >> (2 * c),
                     high8 = (h ? tile.high8.y : tile.high8.x) >> (2 * c);
      scales0 = kqm_pairs(h ? tile.scales0.y : tile.scales0.x),
      scales8 = kqm_pairs(h ? tile.scales8.y : tile.scales8.x);
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint2 row0 = values(entries0 >> (8 * j) & 255, high0 >> (8 * j) & 3, signs0 >> (8 * j)),
                    row8 = values(entries8 >> (8 * j) & 255, high8 >> (8 * j) & 3, signs8 >> (8 * j));
        a[j][0] = row0.x, a[j][1] = row8.x, a[j][2] = row0.y, a[j][3] = row8.y;
      }
    }

   private:
    __device__ __forceinline__ static uint2 values(uint32_t low, uint32_t high, uint32_t signs) {
      return kqm_with_signs(kqm_iq2_book().eight(kqm_iq2_s_entry(low | high << 8)), signs);
    }
  };

  struct Factors : KqmOneFactor<8> {
    __device__ __forceinline__ Factors(const KqmTileIQ2S &tile, int) : KqmOneFactor<8>{tile.d0, tile.d8} {}
  };
};
static_assert(KqmTileIQ2S::Layout::block_bytes == sizeof(KqmBlockIQ2S), "a tile has every byte");
