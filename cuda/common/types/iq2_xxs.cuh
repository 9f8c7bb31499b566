// IQ2_XXS: 256 weights d / 8 * sc[j] * q, eight sub-blocks of 32; q is from a codebook.
#pragma once

#include "codebooks.cuh"

// As in a file.
struct KqmBlockIQ2XXS {
  uint8_t d[2];  // f16
  uint8_t
      qs[8]
        [8];  // of each sub-block: four entries, and in 32 bits seven signs for each and half of the scale (four bits)
};
static_assert(sizeof(KqmBlockIQ2XXS) == 66, "block_iq2_xxs");

struct KqmTileIQ2XXS : KqmSuperBlocks<KqmTileIQ2XXS, true> {
  typedef KqmBlockIQ2XXS Block;
  typedef KqmTileLayout<KqmLaneField<2, 32, 1, 4, 8>, KqmLaneField<6, 32, 8, 4, 8>, KqmRowField<0, 2>> Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_IQ2_XXS;
  static const int bytes = Layout::bytes;
  uint4 entries;  // bytes j = 0 .. 7 of row r: of the lane's eight weights of sub-block j; and of row r + 8
  uint4 signs;    // of sub-blocks 2 c and 2 c + 1 of row r, and of row r + 8
  uint16_t d0, d8;

  // d / 8 * (sc * q), which is exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const uint8_t *qs = block.qs[k / 32];
    const uint32_t signs = kqm_word_at(qs + 4);
    const uint2 values = kqm_with_signs(kqm_iq2_book().eight(kqm_iq2_xxs_entry(qs[k % 32 / 8])),
                                        kqm_even_signs(signs >> (7 * (k % 32 / 8))));
    return __fmul_rn(__fmul_rn(kqm_half_at(block.d), 0.125f),
                     float(int(2 * (signs >> 28) + 1) * kqm_byte_of(values, k % 8)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    entries = tile.of_lane(Layout::first<0>, 0);
    signs = tile.of_lane(Layout::first<1>, 0);
    d0 = tile.half_of_row(Layout::first<2>, row);
    d8 = tile.half_of_row(Layout::first<2>, row + 8);
  }

  // Over a tile |sum| <= 8 * 31 * 43 * 128 * 32 < 2^26.
  struct HalfTile : KqmHalfTileOf32<KqmByteScales, true> {
    __device__ __forceinline__ HalfTile(const KqmTileIQ2XXS &tile, int h) {
      const int lane = threadIdx.x & 31, c = lane & 3;
      const uint32_t entries0 = h ? tile.entries.y : tile.entries.x, entries8 = h ? tile.entries.w : tile.entries.z;
      scale0.bytes = scale8.bytes = 0;
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const int from = (lane & ~3) | (2 * h + j / 2);
        const uint32_t signs0 = __shfl_sync(~0u, j % 2 ? tile.signs.y : tile.signs.x, from),
                       signs8 = __shfl_sync(~0u, j % 2 ? tile.signs.w : tile.signs.z, from);
        scale0.bytes |= (2 * (signs0 >> 28) + 1) << (8 * j), scale8.bytes |= (2 * (signs8 >> 28) + 1) << (8 * j);
        const uint2 row0 = values(entries0 >> (8 * j) & 255, signs0 >> (7 * c)),
                    row8 = values(entries8 >> (8 * j) & 255, signs8 >> (7 * c));
        a[j][0] = row0.x, a[j][1] = row8.x, a[j][2] = row0.y, a[j][3] = row8.y;
      }
    }

   private:
    __device__ __forceinline__ static uint2 values(uint32_t entry, uint32_t signs) {
      return kqm_with_signs(kqm_iq2_book().eight(kqm_iq2_xxs_entry(entry)), kqm_even_signs(signs));
    }
  };

  struct Factors : KqmOneFactor<8> {
    __device__ __forceinline__ Factors(const KqmTileIQ2XXS &tile, int) : KqmOneFactor<8>{tile.d0, tile.d8} {}
  };
};
static_assert(KqmTileIQ2XXS::Layout::block_bytes == sizeof(KqmBlockIQ2XXS), "a tile has every byte");
