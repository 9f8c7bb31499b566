// Q8_0: 32 weights d * q.
#pragma once

#include "blocks_of_32.cuh"

// As in a file.
struct KqmBlockQ8_0 {
  uint8_t d[2];  // f16
  int8_t qs[32];
};
static_assert(sizeof(KqmBlockQ8_0) == 34, "block_q8_0");

struct KqmTileQ8_0 : KqmBlocksOf32<KqmTileQ8_0> {
  typedef KqmBlockQ8_0 Block;
  typedef KqmTileLayout<KqmLaneField<offsetof(Block, qs), 8 * sizeof(Block::qs), 4, sizeof(Block::qs), sizeof(Block)>,
                        KqmRowField<0, 16, 2, sizeof(Block)>>
      Layout;
  typedef KqmCachedBlocks<false> Cached;
  static const uint32_t type = KQM_TYPE_Q8_0;
  static const int bytes = Layout::bytes;
  static const bool SIGNED = true, MINS = false;
  uint4 q[2][4];
  KqmFactors<2> factors;

  // Exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    return __fmul_rn(kqm_half_at(block.d), float(block.qs[k]));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    KQM_UNROLL
    for (int j = 0; j < 8; j++) q[j / 4][j % 4] = tile.of_lane(Layout::first<0>, j);
    factors.load(tile, Layout::first<1>);
  }

  __device__ __forceinline__ void fragments(int h, int i, int, uint32_t (&a)[4]) const {
    const uint4 first = q[0][i], second = q[1][i], w = h ? second : first;
    a[0] = w.x, a[1] = w.z, a[2] = w.y, a[3] = w.w;
  }
  __device__ __forceinline__ static double d(uint32_t bits) { return double(kqm_half_to_float(uint16_t(bits))); }
  __device__ __forceinline__ static double m(uint32_t) { return 0.0; }
};
