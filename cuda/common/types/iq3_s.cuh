// IQ3_S: 256 weights d * sc[j] * q, eight sub-blocks of 32; q is from a codebook.
#pragma once

#include "codebooks.cuh"

// As in a file.
struct KqmBlockIQ3S {
  uint8_t d[2];       // f16
  uint8_t qs[64];     // low eight bits of the entry of each 4 weights
  uint8_t qh[8];      // in bit i of byte j: the ninth bit of entry 8 j + i
  uint8_t signs[32];  // the signs of each 8 weights
  uint8_t scales[4];  // half of sc[2 i] in the low, of sc[2 i + 1] in the high nibble of byte i
};
static_assert(sizeof(KqmBlockIQ3S) == 110, "block_iq3_s");

struct KqmTileIQ3S : KqmSuperBlocks<KqmTileIQ3S, true> {
  typedef KqmBlockIQ3S Block;
  typedef KqmTileLayout<KqmLaneField<2, 64, 2>, KqmRowField<66, 8>, KqmLaneField<74, 32, 1>, KqmRowField<106, 4>,
                        KqmRowField<0, 2>>
      Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_IQ3_S;
  static const int bytes = Layout::bytes;
  uint4 q[2];   // of half h, two bytes for the lane's eight weights of each sub-block of row r, and of row r + 8
  uint4 signs;  // bytes j = 0 .. 7 of row r: of the lane's eight weights of sub-block j; and of row r + 8
  uint2 ninth0, ninth8;
  uint32_t scales0, scales8;
  uint16_t d0, d8;

  // d * (sc * q), which is exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const int i = k / 8 * 2, ninths = block.qh[k / 32] >> (i % 8);
    const uint2 values =
        kqm_with_signs(make_uint2(kqm_iq3_s_book().four(kqm_iq3_s_entry(block.qs[i] | (ninths & 1) << 8)),
                                  kqm_iq3_s_book().four(kqm_iq3_s_entry(block.qs[i + 1] | (ninths & 2) << 7))),
                       block.signs[k / 8]);
    const int scale = 2 * (block.scales[k / 64] >> (4 * (k / 32 % 2)) & 15) + 1;
    return __fmul_rn(kqm_half_at(block.d), float(scale * kqm_byte_of(values, k % 8)));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    KQM_UNROLL
    for (int h = 0; h < 2; h++) q[h] = tile.of_lane(Layout::first<0>, h);
    ninth0 = make_uint2(tile.word_of_rows(Layout::first<1>, 2 * row), tile.word_of_rows(Layout::first<1>, 2 * row + 1));
    ninth8 = make_uint2(tile.word_of_rows(Layout::first<1>, 2 * (row + 8)),
                        tile.word_of_rows(Layout::first<1>, 2 * (row + 8) + 1));
    signs = tile.of_lane(Layout::first<2>, 0);
    scales0 = tile.word_of_rows(Layout::first<3>, row);
    scales8 = tile.word_of_rows(Layout::first<3>, row + 8);
    d0 = tile.half_of_row(Layout::first<4>, row);
    d8 = tile.half_of_row(Layout::first<4>, row + 8);
  }

  // Over a tile |sum| <= 8 * 31 * 15 * 128 * 32 < 2^24.
  struct HalfTile : KqmHalfTileOf32<KqmByteScales, true> {
    __device__ __forceinline__ HalfTile(const KqmTileIQ3S &tile, int h) {
      const int c = threadIdx.x & 3;
      const uint4 q = h ? tile.q[1] : tile.q[0];
      const uint32_t signs0 = h ? tile.signs.y : tile.signs.x, signs8 = h ? tile.signs.w : tile.signs.z;
      const uint32_t ninth0 = (h ? tile.ninth0.y : tile.ninth0.x) >> (2 * c),
                     ninth8 = (h ? tile.ninth8.y : tile.ninth8.x) >> (2 * c);
      scale0.bytes = odd(tile.scales0 >> (16 * h)), scale8.bytes = odd(tile.scales8 >> (16 * h));
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint2 row0 = values((j / 2 ? q.y : q.x) >> (16 * (j % 2)), ninth0 >> (8 * j), signs0 >> (8 * j)),
                    row8 = values((j / 2 ? q.w : q.z) >> (16 * (j % 2)), ninth8 >> (8 * j), signs8 >> (8 * j));
        a[j][0] = row0.x, a[j][1] = row8.x, a[j][2] = row0.y, a[j][3] = row8.y;
      }
    }

   private:
    // Four scales as bytes, from four nibbles.
    __device__ __forceinline__ static uint32_t odd(uint32_t nibbles) {
      const uint32_t bytes = __byte_perm(nibbles, nibbles >> 4, 0x5140) & 0x0f0f0f0fu;
      return bytes * 2 + 0x01010101u;
    }
    __device__ __forceinline__ static uint2 values(uint32_t low, uint32_t ninths, uint32_t signs) {
      return kqm_with_signs(make_uint2(kqm_iq3_s_book().four(kqm_iq3_s_entry((low & 255) | (ninths & 1) << 8)),
                                       kqm_iq3_s_book().four(kqm_iq3_s_entry((low >> 8 & 255) | (ninths & 2) << 7))),
                            signs);
    }
  };

  struct Factors : KqmOneFactor<1> {
    __device__ __forceinline__ Factors(const KqmTileIQ3S &tile, int) : KqmOneFactor<1>{tile.d0, tile.d8} {}
  };
};
static_assert(KqmTileIQ3S::Layout::block_bytes == sizeof(KqmBlockIQ3S), "a tile has every byte");
