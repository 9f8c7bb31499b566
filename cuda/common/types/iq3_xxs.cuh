// IQ3_XXS: 256 weights d / 4 * sc[j] * q, eight sub-blocks of 32; q is from a codebook.
#pragma once

#include "codebooks.cuh"

// As in a file.
struct KqmBlockIQ3XXS {
  uint8_t d[2];    // f16
  uint8_t qs[64];  // the entry of each 4 weights
  uint8_t signs[8]
               [4];  // of each sub-block, in 32 bits, seven signs for each 8 weights and half of the scale (four bits)
};
static_assert(sizeof(KqmBlockIQ3XXS) == 98, "block_iq3_xxs");

struct KqmTileIQ3XXS : KqmSuperBlocks<KqmTileIQ3XXS, true> {
  typedef KqmBlockIQ3XXS Block;
  typedef KqmTileLayout<KqmLaneField<2, 64, 2>, KqmLaneField<66, 32, 8>, KqmRowField<0, 2>> Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_IQ3_XXS;
  static const int bytes = Layout::bytes;
  uint4 q[2];   // of half h, two bytes for the lane's eight weights of each sub-block of row r, and of row r + 8
  uint4 signs;  // of sub-blocks 2 c and 2 c + 1 of row r, and of row r + 8
  uint16_t d0, d8;

  // d / 4 * (sc * q), which is exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const uint32_t signs = kqm_word_at(block.signs[k / 32]);
    const uint2 values = kqm_with_signs(make_uint2(kqm_iq3_xxs_book().four(kqm_iq3_xxs_entry(block.qs[k / 8 * 2])),
                                                   kqm_iq3_xxs_book().four(kqm_iq3_xxs_entry(block.qs[k / 8 * 2 + 1]))),
                                        kqm_even_signs(signs >> (7 * (k / 8 % 4))));
    return __fmul_rn(__fmul_rn(kqm_half_at(block.d), 0.25f),
                     float(int(2 * (signs >> 28) + 1) * kqm_byte_of(values, k % 8)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    KQM_UNROLL
    for (int h = 0; h < 2; h++) q[h] = tile.of_lane(Layout::first<0>, h);
    signs = tile.of_lane(Layout::first<1>, 0);
    d0 = tile.half_of_row(Layout::first<2>, row);
    d8 = tile.half_of_row(Layout::first<2>, row + 8);
  }

  // Over a tile |sum| <= 8 * 31 * 62 * 128 * 32 < 2^26.
  struct HalfTile : KqmHalfTileOf32<KqmByteScales, true> {
    __device__ __forceinline__ HalfTile(const KqmTileIQ3XXS &tile, int h) {
      const int lane = threadIdx.x & 31, c = lane & 3;
      const uint4 q = h ? tile.q[1] : tile.q[0];
      scale0.bytes = scale8.bytes = 0;
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const int from = (lane & ~3) | (2 * h + j / 2);
        const uint32_t signs0 = __shfl_sync(~0u, j % 2 ? tile.signs.y : tile.signs.x, from),
                       signs8 = __shfl_sync(~0u, j % 2 ? tile.signs.w : tile.signs.z, from);
        scale0.bytes |= (2 * (signs0 >> 28) + 1) << (8 * j), scale8.bytes |= (2 * (signs8 >> 28) + 1) << (8 * j);
        const uint2 row0 = values((j / 2 ? q.y : q.x) >> (16 * (j % 2)), signs0 >> (7 * c)),
                    row8 = values((j / 2 ? q.w : q.z) >> (16 * (j % 2)), signs8 >> (7 * c));
        a[j][0] = row0.x, a[j][1] = row8.x, a[j][2] = row0.y, a[j][3] = row8.y;
      }
    }

   private:
    __device__ __forceinline__ static uint2 values(uint32_t entries, uint32_t signs) {
      return kqm_with_signs(make_uint2(kqm_iq3_xxs_book().four(kqm_iq3_xxs_entry(entries & 255)),
                                       kqm_iq3_xxs_book().four(kqm_iq3_xxs_entry(entries >> 8 & 255))),
                            kqm_even_signs(signs));
    }
  };

  struct Factors : KqmOneFactor<4> {
    __device__ __forceinline__ Factors(const KqmTileIQ3XXS &tile, int) : KqmOneFactor<4>{tile.d0, tile.d8} {}
  };
};
static_assert(KqmTileIQ3XXS::Layout::block_bytes == sizeof(KqmBlockIQ3XXS), "a tile has every byte");
