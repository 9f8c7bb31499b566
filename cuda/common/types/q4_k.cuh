// Q4_K: 256 weights d * sc[j] * q - dmin * m[j], eight sub-blocks of 32.
#pragma once

#include "packed_scales.cuh"

// As in a file.
struct KqmBlockQ4K {
  uint8_t d[2], dmin[2];  // f16
  uint8_t scales[12];
  uint8_t qs[128];  // byte 32 g + k: weight 64 g + k in the low, weight 64 g + 32 + k in the high nibble
};
static_assert(sizeof(KqmBlockQ4K) == 144, "block_q4_K");

struct KqmTileQ4K : KqmSuperBlocks<KqmTileQ4K> {
  typedef KqmBlockQ4K Block;
  typedef KqmTileLayout<KqmLaneField<offsetof(Block, qs), sizeof(Block::qs), 8>, KqmRowField<0, offsetof(Block, qs)>>
      Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_Q4_K;
  static const int bytes = Layout::bytes;
  uint4 q[4], head0, head8;

  // d * (sc * q) - dmin * m: the products are exact, the difference rounds once.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const int j = k / 32, q = block.qs[32 * (j / 2) + k % 32] >> (4 * (j % 2)) & 15;
    return __fsub_rn(__fmul_rn(kqm_half_at(block.d), float(kqm_packed_scale(block.scales, j) * q)),
                     __fmul_rn(kqm_half_at(block.dmin), float(kqm_packed_min(block.scales, j))));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    KQM_UNROLL
    for (int g = 0; g < 4; g++) q[g] = tile.of_lane(Layout::first<0>, g);
    head0 = tile.of_row(Layout::first<1>, 0);
    head8 = tile.of_row(Layout::first<1>, 8);
  }

  struct Scales {
    uint32_t even, odd;
    __device__ __forceinline__ explicit Scales(uint32_t bytes) : even((bytes & 0x003f003fu) << 4), odd(bytes) {}
    __device__ __forceinline__ uint32_t checksum() const { return even + odd; }
    // Of sub-block j: its scale, times 16 where j is even.
    __device__ __forceinline__ int of(int j) const {
      return j % 2 ? int(__byte_perm(odd, 0, 0x4440 + j)) : int(__byte_perm(even, 0, j ? 0x4432 : 0x4410));
    }
  };

  // Low nibbles are q, high nibbles stay where they are, as 16 q; low ones are multiplied by 16 times their scale. So the sums are 16 times
  // too large: over a tile |sum| <= 8 * 16 * 63 * 15 * 128 * 32 < 2^29.
  struct HalfTile : KqmHalfTileOf32<Scales> {
    __device__ __forceinline__ HalfTile(const KqmTileQ4K &tile, int h)
        : KqmHalfTileOf32<Scales>(Scales(kqm_packed_scales(tile.head0, h)), Scales(kqm_packed_scales(tile.head8, h))) {
      const uint4 qs[2] = {h ? tile.q[2] : tile.q[0], h ? tile.q[3] : tile.q[1]};
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint4 &w = qs[j / 2];
        const uint32_t nibble = j % 2 ? 0xf0f0f0f0u : 0x0f0f0f0fu;
        a[j][0] = w.x & nibble, a[j][1] = w.z & nibble, a[j][2] = w.y & nibble, a[j][3] = w.w & nibble;
      }
    }
  };

  struct Factors : KqmScalesAndMins<16> {
    __device__ __forceinline__ Factors(const KqmTileQ4K &tile, int lane)
        : KqmScalesAndMins<16>(tile.head0, tile.head8, lane) {}
  };
};
static_assert(KqmTileQ4K::Layout::block_bytes == sizeof(KqmBlockQ4K), "a tile has every byte");
