// Q3_K: 256 weights d * (sc[j] - 32) * (q - 4), sixteen sub-blocks of 16.
#pragma once

#include "../tiles.cuh"

// As in a file.
struct KqmBlockQ3K {
  uint8_t hmask[32];  // byte k: in bit j, the third bit of weight 32 j + k
  uint8_t qs[64];     // low two bits: byte 32 h + k: in bits 2 i and 2 i + 1, those of weight 128 h + 32 i + k
  uint8_t scales
      [12];  // low four bits of sc[j], sc[j + 8] in the nibbles of byte j; high two of sc[j] in byte 8 + j % 4 at 2 (j / 4)
  uint8_t d[2];  // f16
};
static_assert(sizeof(KqmBlockQ3K) == 110, "block_q3_K");

struct KqmTileQ3K : KqmSuperBlocks<KqmTileQ3K> {
  typedef KqmBlockQ3K Block;
  typedef KqmTileLayout<KqmLaneField<offsetof(Block, qs), sizeof(Block::qs), 8>,
                        KqmLaneField<offsetof(Block, hmask), sizeof(Block::hmask), 8>,
                        KqmRowField<offsetof(Block, scales), sizeof(Block::scales)>,
                        KqmRowField<offsetof(Block, d), sizeof(Block::d)>>
      Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_Q3_K;
  static const int bytes = Layout::bytes;
  uint4 q[2], third;
  uint32_t scales0[3], scales8[3];
  uint16_t d0, d8;
  bool second;  // whether the lane has weights of the second sub-block of each 32 weights

  // d * ((sc - 32) * (q - 4)), which is exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const int j = k / 16, low = block.qs[32 * (k / 128) + k % 32] >> (2 * (k / 32 % 4)) & 3;
    const int high = block.hmask[k % 32] >> (k / 32) & 1;
    const int scale = (block.scales[j % 8] >> (4 * (j / 8)) & 15) | (block.scales[8 + j % 4] >> (2 * (j / 4)) & 3) << 4;
    return __fmul_rn(kqm_half_at(block.d), float((scale - 32) * ((low | high << 2) - 4)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    KQM_UNROLL
    for (int h = 0; h < 2; h++) q[h] = tile.of_lane(Layout::first<0>, h);
    third = tile.of_lane(Layout::first<1>, 0);
    KQM_UNROLL
    for (int i = 0; i < 3; i++) {
      scales0[i] = tile.word_of_rows(Layout::first<2>, 3 * row + i);
      scales8[i] = tile.word_of_rows(Layout::first<2>, 3 * (row + 8) + i);
    }
    d0 = tile.half_of_row(Layout::first<3>, row);
    d8 = tile.half_of_row(Layout::first<3>, row + 8);
    second = tile.lane & 2;
  }

  // Fragments are (sc - 32) * (4 - q), which fit into signed bytes as those with the other sign would not: -128 .. 124. Over a tile
  // |sum| <= 256 * 128 * 128 = 2^22.
  struct HalfTile : KqmHalfTileOfProducts<true> {
    __device__ __forceinline__ HalfTile(const KqmTileQ3K &tile, int h) {
      const uint4 qs = h ? tile.q[1] : tile.q[0];
      const uint2 scale0 = scales(tile.scales0, h, tile.second), scale8 = scales(tile.scales8, h, tile.second);
      // The third bits of this half's sub-blocks, in the low four bits of each byte; what is above them is not looked at.
      const int down = 4 * h;
      const uint4 high =
          make_uint4(tile.third.x >> down, tile.third.y >> down, tile.third.z >> down, tile.third.w >> down);
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint32_t s0 = scale_of(scale0, j), s8 = scale_of(scale8, j);
        a[j][0] = products(qs.x, high.x, j, s0), a[j][1] = products(qs.z, high.z, j, s8);
        a[j][2] = products(qs.y, high.y, j, s0), a[j][3] = products(qs.w, high.w, j, s8);
      }
    }

   private:
    // Eight scales of six bits as bytes, from the lane's first one on.
    __device__ __forceinline__ static uint2 scales(const uint32_t (&words)[3], int h, bool second) {
      const uint32_t high = words[2] >> (4 * h);
      const uint32_t x = (words[0] >> (4 * h) & 0x0f0f0f0fu) | (high << 4 & 0x30303030u),
                     y = (words[1] >> (4 * h) & 0x0f0f0f0fu) | (high << 2 & 0x30303030u);
      return second ? make_uint2(x >> 8, y >> 8) : make_uint2(x, y);
    }
    // The scale of the lane's weights of the half's 32 weights j, less 32.
    __device__ __forceinline__ static uint32_t scale_of(const uint2 &scales, int j) {
      return ((j / 2 ? scales.y : scales.x) >> (16 * (j % 2)) & 63u) - 32u;
    }
    // Four products as bytes. As integers to the base 256 they are (4 + 4 * 256 + ... - the quants) * scale with digits that have signs;
    // 128 added to each makes them bytes without one, and a flip of each top bit takes it away again.
    __device__ __forceinline__ static uint32_t products(uint32_t low, uint32_t high, int j, uint32_t scale) {
      const uint32_t quants = (low >> (2 * j) & 0x03030303u) | ((j < 3 ? high << (2 - j) : high >> 1) & 0x04040404u);
      return ((0x04040404u - quants) * scale + 0x80808080u) ^ 0x80808080u;
    }
  };

  struct Factors {
    uint32_t d0, d8;

    __device__ __forceinline__ Factors(const KqmTileQ3K &tile, int) : d0(tile.d0), d8(tile.d8) {}

    __device__ __forceinline__ uint32_t checksum() const { return d0 + d8; }

    template <class Activations>
    __device__ __forceinline__ void finish(const Activations &, const int32_t (&sum)[Activations::Columns::products][4],
                                           int lane, double (&v)[Activations::Columns::results]) const {
      typedef typename Activations::Columns Columns;
      long long t[Columns::results];
      Columns::join_small(sum, lane, t);
      KQM_UNROLL
      for (int i = 0; i < Columns::results; i++)
        v[i] = double(kqm_half_to_float(uint16_t(Columns::of_row(i, d0, d8, lane)))) * double(-t[i]);
    }
  };
};
static_assert(KqmTileQ3K::Layout::block_bytes == sizeof(KqmBlockQ3K), "a tile has every byte");
