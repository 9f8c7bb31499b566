// IQ1_S: 256 weights d / 8 * sc[j] * q, eight sub-blocks of 32; q is from a codebook.
#pragma once

#include "codebooks.cuh"

// As in a file.
struct KqmBlockIQ1S {
  uint8_t d[2];    // f16
  uint8_t qs[32];  // low eight bits of the entry of each 8 weights
  uint8_t qh
      [8]
      [2];  // of each sub-block, in 16 bits: the high three bits of four entries, half of the scale (three bits), the offset's sign
};
static_assert(sizeof(KqmBlockIQ1S) == 50, "block_iq1_s");

struct KqmTileIQ1S : KqmSuperBlocks<KqmTileIQ1S, true> {
  typedef KqmBlockIQ1S Block;
  typedef KqmTileLayout<KqmLaneField<2, 32, 1>, KqmRowField<34, 16>, KqmRowField<0, 2>> Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_IQ1_S;
  static const int bytes = Layout::bytes;
  uint4 entries;  // bytes j = 0 .. 7 of row r: of the lane's eight weights of sub-block j; and of row r + 8
  uint4 high0, high8;
  uint16_t d0, d8;

  // d / 8 * (sc * q), which is exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const uint32_t bits = block.qh[k / 32][0] | block.qh[k / 32][1] << 8;
    const uint32_t entry = block.qs[k / 8] | (bits >> (3 * (k / 8 % 4)) & 7) << 8;
    const uint2 values = kqm_iq1_book(bits >> 15).eight(kqm_iq1_entry(entry));
    return __fmul_rn(__fmul_rn(kqm_half_at(block.d), 0.125f),
                     float(int(2 * (bits >> 12 & 7) + 1) * kqm_byte_of(values, k % 8)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    entries = tile.of_lane(Layout::first<0>, 0);
    high0 = tile.of_row(Layout::first<1>, 0);
    high8 = tile.of_row(Layout::first<1>, 8);
    d0 = tile.half_of_row(Layout::first<2>, row);
    d8 = tile.half_of_row(Layout::first<2>, row + 8);
  }

  // Over a tile |sum| <= 8 * 15 * 9 * 128 * 32 < 2^23.
  struct HalfTile : KqmHalfTileOf32<KqmByteScales, true> {
    __device__ __forceinline__ HalfTile(const KqmTileIQ1S &tile, int h) {
      const int c = threadIdx.x & 3;
      const uint32_t entries0 = h ? tile.entries.y : tile.entries.x, entries8 = h ? tile.entries.w : tile.entries.z;
      const uint2 high0 = h ? make_uint2(tile.high0.z, tile.high0.w) : make_uint2(tile.high0.x, tile.high0.y),
                  high8 = h ? make_uint2(tile.high8.z, tile.high8.w) : make_uint2(tile.high8.x, tile.high8.y);
      scale0.bytes = scale8.bytes = 0;
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint32_t bits0 = (j / 2 ? high0.y : high0.x) >> (16 * (j % 2)) & 0xffffu,
                       bits8 = (j / 2 ? high8.y : high8.x) >> (16 * (j % 2)) & 0xffffu;
        scale0.bytes |= (2 * (bits0 >> 12 & 7) + 1) << (8 * j), scale8.bytes |= (2 * (bits8 >> 12 & 7) + 1) << (8 * j);
        const uint2 row0 = values(entries0 >> (8 * j) & 255, bits0 >> (3 * c) & 7, bits0 >> 15),
                    row8 = values(entries8 >> (8 * j) & 255, bits8 >> (3 * c) & 7, bits8 >> 15);
        a[j][0] = row0.x, a[j][1] = row8.x, a[j][2] = row0.y, a[j][3] = row8.y;
      }
    }

   private:
    __device__ __forceinline__ static uint2 values(uint32_t low, uint32_t high, bool negative) {
      return kqm_iq1_book(negative).eight(kqm_iq1_entry(low | high << 8));
    }
  };

  struct Factors : KqmOneFactor<8> {
    __device__ __forceinline__ Factors(const KqmTileIQ1S &tile, int) : KqmOneFactor<8>{tile.d0, tile.d8} {}
  };
};
static_assert(KqmTileIQ1S::Layout::block_bytes == sizeof(KqmBlockIQ1S), "a tile has every byte");
