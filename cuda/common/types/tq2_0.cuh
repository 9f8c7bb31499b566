// TQ2_0: 256 weights d * (q - 1).
#pragma once

#include "codebooks.cuh"

// As in a file.
struct KqmBlockTQ2_0 {
  uint8_t qs[64];  // byte 32 h + k: in bits 2 i and 2 i + 1, weight 128 h + 32 i + k
  uint8_t d[2];    // f16
};
static_assert(sizeof(KqmBlockTQ2_0) == 66, "block_tq2_0");

struct KqmTileTQ2_0 : KqmSuperBlocks<KqmTileTQ2_0> {
  typedef KqmBlockTQ2_0 Block;
  typedef KqmTileLayout<KqmLaneField<0, 64, 8>, KqmRowField<64, 2>> Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_TQ2_0;
  static const int bytes = Layout::bytes;
  uint4 q[2];
  uint16_t d0, d8;

  // Exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    return __fmul_rn(kqm_half_at(block.d), float((block.qs[32 * (k / 128) + k % 32] >> (2 * (k / 32 % 4)) & 3) - 1));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    KQM_UNROLL
    for (int h = 0; h < 2; h++) q[h] = tile.of_lane(Layout::first<0>, h);
    d0 = tile.half_of_row(Layout::first<1>, row);
    d8 = tile.half_of_row(Layout::first<1>, row + 8);
  }

  // Fragments are q - 1. Over a tile |sum| <= 256 * 2 * 128 = 2^16.
  struct HalfTile : KqmHalfTileOfProducts<true> {
    __device__ __forceinline__ HalfTile(const KqmTileTQ2_0 &tile, int h) {
      const uint4 q = h ? tile.q[1] : tile.q[0];
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        a[j][0] = fragment(q.x >> (2 * j)), a[j][1] = fragment(q.z >> (2 * j));
        a[j][2] = fragment(q.y >> (2 * j)), a[j][3] = fragment(q.w >> (2 * j));
      }
    }

   private:
    // 1 taken from the low two bits of each byte.
    __device__ __forceinline__ static uint32_t fragment(uint32_t bytes) {
      return ((bytes & 0x03030303u) + 0x7f7f7f7fu) ^ 0x80808080u;
    }
  };

  struct Factors : KqmOneFactor<1> {
    __device__ __forceinline__ Factors(const KqmTileTQ2_0 &tile, int) : KqmOneFactor<1>{tile.d0, tile.d8} {}
  };
};
static_assert(KqmTileTQ2_0::Layout::block_bytes == sizeof(KqmBlockTQ2_0), "a tile has every byte");
