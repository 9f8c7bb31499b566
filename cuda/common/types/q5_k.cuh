// Q5_K: 256 weights d * sc[j] * q - dmin * m[j], eight sub-blocks of 32. Q4_K with a fifth bit.
#pragma once

#include "packed_scales.cuh"

// As in a file.
struct KqmBlockQ5K {
  uint8_t d[2], dmin[2];  // f16
  uint8_t scales[12];
  uint8_t qh[32];  // byte k: in bit j, the fifth bit of weight 32 j + k
  uint8_t qs
      [128];  // byte 32 g + k: the low four bits of weight 64 g + k in the low, of weight 64 g + 32 + k in the high nibble
};
static_assert(sizeof(KqmBlockQ5K) == 176, "block_q5_K");

struct KqmTileQ5K : KqmSuperBlocks<KqmTileQ5K> {
  typedef KqmBlockQ5K Block;
  typedef KqmTileLayout<KqmLaneField<offsetof(Block, qs), sizeof(Block::qs), 8>,
                        KqmLaneField<offsetof(Block, qh), sizeof(Block::qh), 8>, KqmRowField<0, offsetof(Block, qh)>>
      Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_Q5_K;
  static const int bytes = Layout::bytes;
  uint4 q[4], fifth, head0, head8;

  // d * (sc * q) - dmin * m: the products are exact, the difference rounds once.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const int j = k / 32, low = block.qs[32 * (j / 2) + k % 32] >> (4 * (j % 2)) & 15, high = block.qh[k % 32] >> j & 1;
    return __fsub_rn(__fmul_rn(kqm_half_at(block.d), float(kqm_packed_scale(block.scales, j) * (low | high << 4))),
                     __fmul_rn(kqm_half_at(block.dmin), float(kqm_packed_min(block.scales, j))));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    KQM_UNROLL
    for (int g = 0; g < 4; g++) q[g] = tile.of_lane(Layout::first<0>, g);
    fifth = tile.of_lane(Layout::first<1>, 0);
    head0 = tile.of_row(Layout::first<2>, 0);
    head8 = tile.of_row(Layout::first<2>, 8);
  }

  struct Scales {
    uint32_t bytes;
    __device__ __forceinline__ explicit Scales(uint32_t of_half) : bytes(of_half) {}
    __device__ __forceinline__ uint32_t checksum() const { return bytes; }
    __device__ __forceinline__ int of(int j) const { return int(__byte_perm(bytes, 0, 0x4440 + j)); }
  };

  // Over a tile |sum| <= 8 * 63 * 31 * 128 * 32 < 2^26.
  struct HalfTile : KqmHalfTileOf32<Scales> {
    __device__ __forceinline__ HalfTile(const KqmTileQ5K &tile, int h)
        : KqmHalfTileOf32<Scales>(Scales(kqm_packed_scales(tile.head0, h)), Scales(kqm_packed_scales(tile.head8, h))) {
      const uint4 qs[2] = {h ? tile.q[2] : tile.q[0], h ? tile.q[3] : tile.q[1]};
      // The fifth bits of this half's sub-blocks, in the low four bits of each byte; what is above them is not looked at.
      const int down = 4 * h;
      const uint4 high =
          make_uint4(tile.fifth.x >> down, tile.fifth.y >> down, tile.fifth.z >> down, tile.fifth.w >> down);
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint4 &w = qs[j / 2];
        a[j][0] = quants(w.x, high.x, j), a[j][1] = quants(w.z, high.z, j);
        a[j][2] = quants(w.y, high.y, j), a[j][3] = quants(w.w, high.w, j);
      }
    }

   private:
    // Four quants of sub-block j of the half, as bytes.
    __device__ __forceinline__ static uint32_t quants(uint32_t low, uint32_t high, int j) {
      return ((j % 2 ? low >> 4 : low) & 0x0f0f0f0fu) | ((high << (4 - j)) & 0x10101010u);
    }
  };

  struct Factors : KqmScalesAndMins<1> {
    __device__ __forceinline__ Factors(const KqmTileQ5K &tile, int lane)
        : KqmScalesAndMins<1>(tile.head0, tile.head8, lane) {}
  };
};
static_assert(KqmTileQ5K::Layout::block_bytes == sizeof(KqmBlockQ5K), "a tile has every byte");
