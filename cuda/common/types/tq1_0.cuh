// TQ1_0: 256 weights d * (q - 1), q of three values.
#pragma once

#include "codebooks.cuh"

// As in a file.
struct KqmBlockTQ1_0 {
  // Five weights in a byte, as digits to the base 3: of byte k (0 .. 31), weights 32 n + k; of byte 32 + k, weights 160 + 16 n + k.
  uint8_t qs[48];
  uint8_t qh[4];  // of byte k, weights 240 + 4 n + k, n = 0 .. 3
  uint8_t d[2];   // f16
};
static_assert(sizeof(KqmBlockTQ1_0) == 54, "block_tq1_0");

struct KqmTileTQ1_0 : KqmSuperBlocks<KqmTileTQ1_0> {
  typedef KqmBlockTQ1_0 Block;
  typedef KqmTileLayout<KqmLaneField<0, 32, 8>, KqmRowField<32, 16>, KqmRowField<48, 4>, KqmRowField<52, 2>> Layout;
  typedef KqmCachedEights Cached;
  static const uint32_t type = KQM_TYPE_TQ1_0;
  static const int bytes = Layout::bytes;
  uint4 q;             // of row r and of row r + 8
  uint2 more0, more8;  // the eight of bytes 32 .. 47 that the lane needs
  uint32_t last0, last8;
  uint16_t d0, d8;

  // Exact.
  __device__ __forceinline__ static float weight(const Block &block, int k) {
    const int byte = k < 160 ? block.qs[k % 32] : k < 240 ? block.qs[32 + k % 16] : block.qh[k % 4];
    const int n = k < 160 ? k / 32 : k < 240 ? (k - 160) / 16 : (k - 240) / 4;
    return __fmul_rn(kqm_half_at(block.d), float(int(digits(uint32_t(byte), power(n)) & 3u) - 1));
  }

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    const int row = tile.lane >> 2;
    q = tile.of_lane(Layout::first<0>, 0);
    const int more = 4 * row + 2 * (tile.lane & 1);
    more0 = make_uint2(tile.word_of_rows(Layout::first<1>, more), tile.word_of_rows(Layout::first<1>, more + 1));
    more8 = make_uint2(tile.word_of_rows(Layout::first<1>, more + 32), tile.word_of_rows(Layout::first<1>, more + 33));
    last0 = tile.word_of_rows(Layout::first<2>, row);
    last8 = tile.word_of_rows(Layout::first<2>, row + 8);
    d0 = tile.half_of_row(Layout::first<3>, row);
    d8 = tile.half_of_row(Layout::first<3>, row + 8);
  }

  // 3^n, n < 5.
  __device__ __forceinline__ static uint32_t power(int n) { return n == 4 ? 81u : 0x1b090301u >> (8 * n) & 255u; }
  // Digits of four bytes. A byte is a fraction of five digits, rounded up to 256ths: what a multiplication with 3^n leaves below 1, times 3,
  // has digit n before the point.
  __device__ __forceinline__ static uint32_t digits(uint32_t bytes, uint32_t power) {
    const uint32_t even = ((bytes & 0x00ff00ffu) * power & 0x00ff00ffu) * 3,
                   odd = ((bytes >> 8 & 0x00ff00ffu) * power & 0x00ff00ffu) * 3;
    return (even >> 8 & 0x00ff00ffu) | (odd & 0xff00ff00u);
  }

  // Fragments are q - 1. Over a tile |sum| <= 256 * 128 = 2^15.
  struct HalfTile : KqmHalfTileOfProducts<true> {
    __device__ __forceinline__ HalfTile(const KqmTileTQ1_0 &tile, int h) {
      const int c = threadIdx.x & 3;
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        // Of each 32 weights, those of the lane: digit `n` of eight bytes, or of the last four bytes two digits.
        const int s = 4 * h + j;
        const uint32_t first = power(s < 5 ? s : 2 * s - 10 + (c >> 1));
        const bool from_q = s < 5, from_last = s == 7 && c >= 2;
        const uint32_t low = power(from_last ? 2 * (c - 2) : 0), high = power(from_last ? 2 * (c - 2) + 1 : 0);
        a[j][0] = fragment(from_q ? tile.q.x : from_last ? tile.last0 : tile.more0.x, from_last ? low : first);
        a[j][1] = fragment(from_q ? tile.q.z : from_last ? tile.last8 : tile.more8.x, from_last ? low : first);
        a[j][2] = fragment(from_q ? tile.q.y : from_last ? tile.last0 : tile.more0.y, from_last ? high : first);
        a[j][3] = fragment(from_q ? tile.q.w : from_last ? tile.last8 : tile.more8.y, from_last ? high : first);
      }
    }

   private:
    // 1 taken from each byte, which are digits below 3.
    __device__ __forceinline__ static uint32_t fragment(uint32_t bytes, uint32_t power) {
      return (digits(bytes, power) + 0x7f7f7f7fu) ^ 0x80808080u;
    }
  };

  struct Factors : KqmOneFactor<1> {
    __device__ __forceinline__ Factors(const KqmTileTQ1_0 &tile, int) : KqmOneFactor<1>{tile.d0, tile.d8} {}
  };
};
static_assert(KqmTileTQ1_0::Layout::block_bytes == sizeof(KqmBlockTQ1_0), "a tile has every byte");
