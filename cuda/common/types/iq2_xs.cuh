// IQ2_XS: 256 weights d / 8 * sc[j] * q, sixteen sub-blocks of 16; q is from a codebook.
#pragma once

#include "codebooks.cuh"

// As in a file.
struct KqmBlockIQ2XS {
  uint8_t d[2];       // f16
  uint8_t qs[32][2];  // of each 8 weights, in 16 bits, the entry (nine bits) and seven signs
  uint8_t scales[8];  // half of sc[2 i] in the low, of sc[2 i + 1] in the high nibble of byte i
};
static_assert(sizeof(KqmBlockIQ2XS) == 74, "block_iq2_xs");

struct KqmTileIQ2XS : KqmSuperBlocks<KqmTileIQ2XS, true> {
  typedef KqmBlockIQ2XS Block;
  typedef KqmTileLayout<KqmLaneField<2, 64, 2>, KqmRowField<66, 8>, KqmRowField<0, 2>> Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_IQ2_XS;
  static const int bytes = Layout::bytes;
  uint4 q[2];  // of half h, 16 bits for the lane's eight weights of each sub-block of row r, and of row r + 8
  uint2 scales0, scales8;
  uint16_t d0, d8;

  // d / 8 * (sc * q), which is exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const uint32_t bits = block.qs[k / 8][0] | block.qs[k / 8][1] << 8;
    const uint2 values = kqm_with_signs(kqm_iq2_book().eight(kqm_iq2_xs_entry(bits & 511)), kqm_even_signs(bits >> 9));
    const int scale = 2 * (block.scales[k / 32] >> (4 * (k / 16 % 2)) & 15) + 1;
    return __fmul_rn(__fmul_rn(kqm_half_at(block.d), 0.125f), float(scale * kqm_byte_of(values, k % 8)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    KQM_UNROLL
    for (int h = 0; h < 2; h++) q[h] = tile.of_lane(Layout::first<0>, h);
    scales0 =
        make_uint2(tile.word_of_rows(Layout::first<1>, 2 * row), tile.word_of_rows(Layout::first<1>, 2 * row + 1));
    scales8 = make_uint2(tile.word_of_rows(Layout::first<1>, 2 * (row + 8)),
                         tile.word_of_rows(Layout::first<1>, 2 * (row + 8) + 1));
    d0 = tile.half_of_row(Layout::first<2>, row);
    d8 = tile.half_of_row(Layout::first<2>, row + 8);
  }

  // Over a tile |sum| <= 256 * 31 * 43 * 128 < 2^26.
  struct HalfTile : KqmHalfTileOfPairs {
    __device__ __forceinline__ HalfTile(const KqmTileIQ2XS &tile, int h) {
      const uint4 q = h ? tile.q[1] : tile.q[0];
      scales0 = kqm_pairs(h ? tile.scales0.y : tile.scales0.x),
      scales8 = kqm_pairs(h ? tile.scales8.y : tile.scales8.x);
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint2 row0 = values((j / 2 ? q.y : q.x) >> (16 * (j % 2)) & 0xffffu),
                    row8 = values((j / 2 ? q.w : q.z) >> (16 * (j % 2)) & 0xffffu);
        a[j][0] = row0.x, a[j][1] = row8.x, a[j][2] = row0.y, a[j][3] = row8.y;
      }
    }

   private:
    __device__ __forceinline__ static uint2 values(uint32_t bits) {
      return kqm_with_signs(kqm_iq2_book().eight(kqm_iq2_xs_entry(bits & 511)), kqm_even_signs(bits >> 9));
    }
  };

  struct Factors : KqmOneFactor<8> {
    __device__ __forceinline__ Factors(const KqmTileIQ2XS &tile, int) : KqmOneFactor<8>{tile.d0, tile.d8} {}
  };
};
static_assert(KqmTileIQ2XS::Layout::block_bytes == sizeof(KqmBlockIQ2XS), "a tile has every byte");
