// IQ4_XS: 256 weights d * (sc[j] - 32) * value(q), eight sub-blocks of 32; value is a table (nibbles.cuh).
#pragma once

#include "nibbles.cuh"

// As in a file.
struct KqmBlockIQ4XS {
  uint8_t d[2];         // f16
  uint8_t scales_h[2];  // in bits 2 j and 2 j + 1, the high two bits of sc[j]
  uint8_t scales_l[4];  // low four bits: of sc[2 i] in the low, of sc[2 i + 1] in the high nibble of byte i
  uint8_t qs[128];      // byte 16 j + k: weight 32 j + k in the low, weight 32 j + 16 + k in the high nibble
};
static_assert(sizeof(KqmBlockIQ4XS) == 136, "block_iq4_xs");

struct KqmTileIQ4XS : KqmSuperBlocks<KqmTileIQ4XS> {
  typedef KqmBlockIQ4XS Block;
  typedef KqmTileLayout<KqmLaneField<offsetof(Block, qs), sizeof(Block::qs), 4>, KqmRowField<0, offsetof(Block, qs)>>
      Layout;
  typedef KqmCachedFours Cached;
  static const uint32_t type = KQM_TYPE_IQ4_XS;
  static const int bytes = Layout::bytes;
  uint4 q[4];
  // The rows' heads: d and the scales' high bits, and their low bits.
  uint2 head0, head8;

  // d * ((sc - 32) * value), which is exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const int j = k / 32, nibble = block.qs[16 * j + k % 16] >> (4 * (k / 16 % 2)) & 15;
    const int scale = (block.scales_l[j / 2] >> (4 * (j % 2)) & 15) | (block.scales_h[j / 4] >> (2 * (j % 4)) & 3) << 4;
    return __fmul_rn(kqm_half_at(block.d), float((scale - 32) * KqmIq4Values::at(nibble)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    KQM_UNROLL
    for (int i = 0; i < 4; i++) q[i] = tile.of_lane(Layout::first<0>, i);
    head0 = make_uint2(tile.word_of_rows(Layout::first<1>, 2 * row), tile.word_of_rows(Layout::first<1>, 2 * row + 1));
    head8 = make_uint2(tile.word_of_rows(Layout::first<1>, 2 * (row + 8)),
                       tile.word_of_rows(Layout::first<1>, 2 * (row + 8) + 1));
  }

  struct Scales {
    uint32_t low, high;
    __device__ __forceinline__ Scales(const uint2 &head, int h)
        : low(h ? head.y >> 16 : head.y), high(h ? head.x >> 24 : head.x >> 16) {}
    __device__ __forceinline__ uint32_t checksum() const { return low + high; }
    // Of sub-block j of the half.
    __device__ __forceinline__ int of(int j) const {
      return int((low >> (4 * j) & 15) | ((j < 2 ? high << (4 - 2 * j) : high >> (2 * j - 4)) & 0x30)) - 32;
    }
  };

  // Over a tile |sum| <= 8 * 32 * 127 * 128 * 32 < 2^27.
  struct HalfTile : KqmHalfTileOf32<Scales, true, KqmInFours> {
    __device__ __forceinline__ HalfTile(const KqmTileIQ4XS &tile, int h)
        : KqmHalfTileOf32<Scales, true, KqmInFours>(Scales(tile.head0, h), Scales(tile.head8, h)) {
      const uint4 qs[2] = {h ? tile.q[2] : tile.q[0], h ? tile.q[3] : tile.q[1]};
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint4 &w = qs[j / 2];
        kqm_look_up_rows<KqmIq4Values>(j % 2 ? make_uint2(w.y, w.w) : make_uint2(w.x, w.z), a[j]);
      }
    }
  };

  struct Factors {
    uint32_t head0, head8;

    __device__ __forceinline__ Factors(const KqmTileIQ4XS &tile, int) : head0(tile.head0.x), head8(tile.head8.x) {}

    __device__ __forceinline__ uint32_t checksum() const { return head0 + head8; }

    template <class Activations>
    __device__ __forceinline__ void finish(const Activations &, const int32_t (&sum)[Activations::Columns::products][4],
                                           int lane, double (&v)[Activations::Columns::results]) const {
      typedef typename Activations::Columns Columns;
      long long t[Columns::results];
      Columns::join(sum, lane, t);
      KQM_UNROLL
      for (int i = 0; i < Columns::results; i++)
        v[i] = double(kqm_half_to_float(uint16_t(Columns::of_row(i, head0, head8, lane)))) * double(t[i]);
    }
  };
};
static_assert(KqmTileIQ4XS::Layout::block_bytes == sizeof(KqmBlockIQ4XS), "a tile has every byte");
