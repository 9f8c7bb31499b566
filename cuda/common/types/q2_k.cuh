// Q2_K: 256 weights d * sc[j] * q - dmin * m[j], sixteen sub-blocks of 16.
#pragma once

#include "../tiles.cuh"

// As in a file.
struct KqmBlockQ2K {
  uint8_t scales[16];     // of sub-block j: sc in the low, m in the high nibble
  uint8_t qs[64];         // byte 32 h + k: in bits 2 i and 2 i + 1, weight 128 h + 32 i + k
  uint8_t d[2], dmin[2];  // f16
};
static_assert(sizeof(KqmBlockQ2K) == 84, "block_q2_K");

struct KqmTileQ2K : KqmSuperBlocks<KqmTileQ2K> {
  typedef KqmBlockQ2K Block;
  typedef KqmTileLayout<KqmLaneField<offsetof(Block, qs), sizeof(Block::qs), 8>,
                        KqmRowField<offsetof(Block, scales), sizeof(Block::scales)>, KqmRowField<offsetof(Block, d), 4>>
      Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_Q2_K;
  static const int bytes = Layout::bytes;
  uint4 q[2];
  // Scales and mins of the sub-blocks of 16 that the lane has eight weights of, one in each 32 weights: lanes c = 0 and 1 of the first
  // one, the others of the second one.
  uint2 scales0, scales8;
  uint32_t head0, head8;

  // d * (sc * q) - dmin * m: the products are exact, the difference rounds once.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const int scale = block.scales[k / 16], q = block.qs[32 * (k / 128) + k % 32] >> (2 * (k / 32 % 4)) & 3;
    return __fsub_rn(__fmul_rn(kqm_half_at(block.d), float((scale & 15) * q)),
                     __fmul_rn(kqm_half_at(block.dmin), float(scale >> 4)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    KQM_UNROLL
    for (int h = 0; h < 2; h++) q[h] = tile.of_lane(Layout::first<0>, h);
    const uint4 all0 = tile.of_row(Layout::first<1>, 0), all8 = tile.of_row(Layout::first<1>, 8);
    const uint32_t every_other = tile.lane & 2 ? 0x7531 : 0x6420;
    scales0 = make_uint2(__byte_perm(all0.x, all0.y, every_other), __byte_perm(all0.z, all0.w, every_other));
    scales8 = make_uint2(__byte_perm(all8.x, all8.y, every_other), __byte_perm(all8.z, all8.w, every_other));
    head0 = tile.word_of_rows(Layout::first<2>, tile.lane >> 2);
    head8 = tile.word_of_rows(Layout::first<2>, (tile.lane >> 2) + 8);
  }

  // Fragments are sc * q, at most 45. Over a tile |sum| <= 256 * 45 * 128 < 2^21.
  struct HalfTile : KqmHalfTileOfProducts<false> {
    __device__ __forceinline__ HalfTile(const KqmTileQ2K &tile, int h) {
      const uint4 qs = h ? tile.q[1] : tile.q[0];
      const uint32_t scale0 = h ? tile.scales0.y : tile.scales0.x, scale8 = h ? tile.scales8.y : tile.scales8.x;
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint32_t s0 = scale0 >> (8 * j) & 15, s8 = scale8 >> (8 * j) & 15;
        a[j][0] = (qs.x >> (2 * j) & 0x03030303u) * s0, a[j][1] = (qs.z >> (2 * j) & 0x03030303u) * s8;
        a[j][2] = (qs.y >> (2 * j) & 0x03030303u) * s0, a[j][3] = (qs.w >> (2 * j) & 0x03030303u) * s8;
      }
    }
  };

  struct Factors {
    uint2 mins0, mins8;
    uint32_t head0, head8;

    __device__ __forceinline__ Factors(const KqmTileQ2K &tile, int)
        : mins0(mins(tile.scales0)), mins8(mins(tile.scales8)), head0(tile.head0), head8(tile.head8) {}

    __device__ __forceinline__ uint32_t checksum() const {
      return mins0.x + mins0.y + mins8.x + mins8.y + head0 + head8;
    }

    template <class Activations>
    __device__ __forceinline__ void finish(const Activations &x,
                                           const int32_t (&sum)[Activations::Columns::products][4], int lane,
                                           double (&v)[Activations::Columns::results]) const {
      typedef typename Activations::Columns Columns;
      long long t[Columns::results], m[Columns::results];
      Columns::join_small(sum, lane, t);
      KQM_UNROLL
      for (int i = 0; i < Columns::results; i++)
        v[i] = double(kqm_half_to_float(uint16_t(Columns::of_row(i, head0, head8, lane)))) * double(t[i]);
      // M is the product of the digits with their sub-blocks' mins.
      int32_t min_sum[Columns::products][4] = {};
      KQM_UNROLL
      for (int j = 0; j < 8; j++) {
        if (Columns::both_rows) __syncwarp();
        const uint32_t m0 = __byte_perm(j / 4 ? mins0.y : mins0.x, 0, 0x1111 * (j % 4));
        const uint32_t m8 = __byte_perm(j / 4 ? mins8.y : mins8.x, 0, 0x1111 * (j % 4));
        const uint32_t a[4] = {m0, m8, m0, m8};
        KQM_UNROLL
        for (int p = 0; p < Columns::products; p++) kqm_mma_of_32<false>(min_sum[p], a, x.eight(p, j));
      }
      Columns::join_small(min_sum, lane, m);
      KQM_UNROLL
      for (int i = 0; i < Columns::results; i++) {
        const uint32_t head = Columns::of_row(i, head0, head8, lane);
        v[i] = fma(-double(kqm_half_to_float(uint16_t(head >> 16))), double(m[i]), v[i]);
      }
    }

   private:
    __device__ __forceinline__ static uint2 mins(const uint2 &scales) {
      return make_uint2(scales.x >> 4 & 0x0f0f0f0fu, scales.y >> 4 & 0x0f0f0f0fu);
    }
  };
};
static_assert(KqmTileQ2K::Layout::block_bytes == sizeof(KqmBlockQ2K), "a tile has every byte");
