// Q6_K: 256 weights d * sc[j] * (q - 32), sixteen sub-blocks of 16.
#pragma once

#include "../tiles.cuh"

// As in a file.
struct KqmBlockQ6K {
  uint8_t
      ql[128];  // low four bits: byte 64 h + k: weight 128 h + k in the low, weight 128 h + 64 + k in the high nibble
  uint8_t qh[64];  // high two bits: byte 32 h + k: in bits 2 i and 2 i + 1, those of weight 128 h + 32 i + k
  int8_t scales[16];
  uint8_t d[2];  // f16
};
static_assert(sizeof(KqmBlockQ6K) == 210, "block_q6_K");

struct KqmTileQ6K : KqmSuperBlocks<KqmTileQ6K> {
  typedef KqmBlockQ6K Block;
  typedef KqmTileLayout<
      KqmLaneField<offsetof(Block, ql), sizeof(Block::ql), 4>, KqmLaneField<offsetof(Block, qh), sizeof(Block::qh), 4>,
      KqmRowField<offsetof(Block, scales), sizeof(Block::scales)>, KqmRowField<offsetof(Block, d), sizeof(Block::d)>>
      Layout;
  typedef KqmCachedFours Cached;
  static const uint32_t type = KQM_TYPE_Q6_K;
  static const int bytes = Layout::bytes;
  uint4 ql[4], qh[2], scale0, scale8;
  uint16_t d_bits;  // of row r in lanes with an even c, of row r + 8 in the others

  // d * (sc * (q - 32)), which is exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const int h = k / 128, within = k % 128;
    const int low = block.ql[64 * h + within % 64] >> (4 * (within / 64)) & 15;
    const int high = block.qh[32 * h + within % 32] >> (2 * (within / 32)) & 3;
    return __fmul_rn(kqm_half_at(block.d), float(int(block.scales[k / 16]) * ((low | high << 4) - 32)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    KQM_UNROLL
    for (int i = 0; i < 4; i++) ql[i] = tile.of_lane(Layout::first<0>, i);
    KQM_UNROLL
    for (int h = 0; h < 2; h++) qh[h] = tile.of_lane(Layout::first<1>, h);
    scale0 = tile.of_row(Layout::first<2>, 0);
    scale8 = tile.of_row(Layout::first<2>, 8);
    d_bits = tile.half_of_row(Layout::first<3>, (tile.lane >> 2) + 8 * (tile.lane & 1));
  }

  struct Scales {
    uint2 words;
    __device__ __forceinline__ Scales(const uint4 &all, int h)
        : words(h ? make_uint2(all.z, all.w) : make_uint2(all.x, all.y)) {}
    __device__ __forceinline__ uint32_t checksum() const { return words.x + words.y; }
    // Signed byte j.
    __device__ __forceinline__ int of(int j) const { return int(int8_t((j / 4 ? words.y : words.x) >> (8 * (j % 4)))); }
  };

  // Fragments are 4 (q - 32): the factor 4 saves a subtraction a byte and is taken from d. Over a tile
  // |sum| <= 16 * 128 * 16 * 128 * 128 = 2^29.
  struct HalfTile : KqmHalfTileOf16<Scales> {
    __device__ __forceinline__ HalfTile(const KqmTileQ6K &tile, int h)
        : KqmHalfTileOf16<Scales>(Scales(tile.scale0, h), Scales(tile.scale8, h)) {
      const uint4 lows[2] = {h ? tile.ql[2] : tile.ql[0], h ? tile.ql[3] : tile.ql[1]},
                  high = h ? tile.qh[1] : tile.qh[0];
      KQM_UNROLL
      for (int m = 0; m < 4; m++) {
        const uint4 &low = lows[m / 2];
        const uint32_t low0 = m % 2 ? low.y : low.x, low8 = m % 2 ? low.w : low.z;
        const uint32_t high0 = m % 2 ? high.y : high.x, high8 = m % 2 ? high.w : high.z;
        KQM_UNROLL
        for (int nibble = 0; nibble < 2; nibble++) {
          // As signed bytes: the four low bits of q at bits 2..5, the two high ones at 6..7 with the top one flipped.
          const int j = 4 * nibble + m, up = 6 - 2 * (2 * nibble + m / 2);
          a[j][0] = (((nibble ? low0 >> 2 : low0 << 2) & 0x3c3c3c3cu) | ((high0 << up) & 0xc0c0c0c0u)) ^ 0x80808080u;
          a[j][1] = (((nibble ? low8 >> 2 : low8 << 2) & 0x3c3c3c3cu) | ((high8 << up) & 0xc0c0c0c0u)) ^ 0x80808080u;
        }
      }
    }
  };

  struct Factors {
    uint16_t d_bits;

    __device__ __forceinline__ Factors(const KqmTileQ6K &tile, int) : d_bits(tile.d_bits) {}

    __device__ __forceinline__ uint32_t checksum() const { return d_bits; }

    template <class Activations>
    __device__ __forceinline__ void finish(const Activations &, const int32_t (&sum)[Activations::Columns::products][4],
                                           int lane, double (&v)[Activations::Columns::results]) const {
      typedef typename Activations::Columns Columns;
      long long t[Columns::results];
      Columns::join(sum, lane, t);
      const uint32_t other_bits = Columns::both_rows ? __shfl_xor_sync(~0u, uint32_t(d_bits), 1) : uint32_t(d_bits);
      const uint32_t bits0 = lane & 1 ? other_bits : d_bits, bits8 = lane & 1 ? d_bits : other_bits;
      KQM_UNROLL
      for (int i = 0; i < Columns::results; i++) {
        const uint16_t bits = uint16_t(Columns::of_row(i, bits0, bits8, lane));
        v[i] = double(__fmul_rn(kqm_half_to_float(bits), 0.25f)) * double(t[i]);
      }
    }
  };
};
static_assert(KqmTileQ6K::Layout::block_bytes == sizeof(KqmBlockQ6K), "a tile has every byte");
