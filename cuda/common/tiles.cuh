// Quantized weights on tensor cores: one warp multiplies a tile of 16 rows x one super-block (256 weights) by the four
// digit planes of 2 NP tokens, exactly, and gives each lane the f64 contribution of one row and token per pair.
//
// Tile layout: a permutation of the bytes of 16 rows' blocks such that every lane's fragments are whole 16-byte words and
// a warp reads 512 contiguous bytes at a time. Lane 4 r + c (r = 0..8, c = 0..4) works on rows r and r + 8.
//
//   Q4_K, 2304 bytes:   0  [4 chunks g][32 lanes][16]: 8 bytes of row r, 8 of row r + 8: qs[32 g + 8 c ..]
//                    2048  [16 rows][16]: d, dmin, scales
//   Q6_K, 3360 bytes:   0  [4 chunks i][32 lanes][16]: two words of row r, two of row r + 8. Word n = 2 i + w = 4 h + m is
//                          ql[64 h + 16 m + 4 c ..]
//                    2048  [2 chunks h][32 lanes][16]: two words of row r, two of row r + 8. Word w is
//                          qh[32 h + 16 w + 4 c ..]
//                    3072  [16 rows][16]: scales
//                    3328  [16 rows]: d
//
// A matrix is [row tiles][super-blocks] tiles; a stack of experts is [experts] of those.
//
// Columns of the product are the planes of two tokens (0..3 the first, 4..7 the second), so lane 4 r + c receives planes
// 2 (c % 2) and 2 (c % 2) + 1 of token c / 2 for both rows. After one exchange between neighbours, lane c even holds all of
// row r, lane c odd all of row r + 8.
#pragma once

#include "hw.cuh"

// The activations' fragments of one super-block, from memory. Lane 4 n + c reads column n: plane n % 4 of the lane's token. For a
// single token all lanes read the same block: columns 4..7 repeat columns 0..3, and nobody looks at them.
struct KqmOneToken {
  const kqm_fixed_block *block;
  int plane, c;

  __device__ __forceinline__ KqmOneToken(const kqm_fixed_block *of_lane, int lane) : block(of_lane), plane((lane >> 2) & 3), c(lane & 3) {}

  // Digits 8 c .. 8 c + 7 of 32-weight sub-block j: the order of k inside a sub-block is free, as long as weights and
  // activations agree.
  __device__ __forceinline__ uint2 eight(int j) const { return *reinterpret_cast<const uint2 *>(&block->digit[j][plane][8 * c]); }
  // Digits 4 c .. 4 c + 3 of 16-weight sub-block j.
  __device__ __forceinline__ uint32_t four(int j) const {
    return *reinterpret_cast<const uint32_t *>(&block->digit[j / 2][plane][16 * (j % 2) + 4 * c]);
  }
  // Sums of the plane's digits over sub-blocks 4 c .. 4 c + 3, as k = 4 c .. 4 c + 3 of a 16-deep product whose weights are zero from
  // c = 2 on: there any sums will do.
  __device__ __forceinline__ uint32_t sum_low() const { return *reinterpret_cast<const uint32_t *>(&block->sum_low[plane][4 * (c & 1)]); }
  __device__ __forceinline__ uint32_t sum_high() const { return *reinterpret_cast<const uint32_t *>(&block->sum_high[plane][4 * (c & 1)]); }
};

// The same of a pair of tokens, of which the lanes of columns 4..7 have the second one. Lanes of an absent token read nothing and
// bring zeros.
struct KqmActivations {
  const kqm_fixed_block *block;  // of the lane's token; NULL: absent
  int lane;

  __device__ __forceinline__ uint2 eight(int j) const { return block ? KqmOneToken(block, lane).eight(j) : make_uint2(0u, 0u); }
  __device__ __forceinline__ uint32_t four(int j) const { return block ? KqmOneToken(block, lane).four(j) : 0u; }
  __device__ __forceinline__ uint32_t sum_low() const { return block ? KqmOneToken(block, lane).sum_low() : 0u; }
  __device__ __forceinline__ uint32_t sum_high() const { return block ? KqmOneToken(block, lane).sum_high() : 0u; }
};

// KqmOneToken from a block in shared memory.
struct KqmSharedActivations {
  KQM_SHARED_ARG(uint32_t) words;  // kqm_fixed_words of them
  int plane, c;

  __device__ __forceinline__ KqmSharedActivations(KQM_SHARED_ARG(uint32_t) block, int lane)
      : words(block), plane((lane >> 2) & 3), c(lane & 3) {}

  __device__ __forceinline__ uint2 eight(int j) const { return kqm_shared_load<uint2>(words, (j * 4 + plane) * 8 + 2 * c); }
  __device__ __forceinline__ uint32_t four(int j) const { return words[(j / 2 * 4 + plane) * 8 + 4 * (j % 2) + c]; }
  __device__ __forceinline__ uint32_t sum_low() const { return words[256 + 2 * plane + (c & 1)]; }
  __device__ __forceinline__ uint32_t sum_high() const { return words[264 + 2 * plane + (c & 1)]; }
};

// Exchanges halves with the neighbouring lane: of (row r, row r + 8), each lane holding two of four planes, an even lane
// keeps row r and an odd one row r + 8, and both add up all four planes.
__device__ __forceinline__ long long kqm_join_planes(long long row0, long long row8, bool odd) {
  const long long received = __shfl_xor_sync(~0u, odd ? row0 : row8, 1);
  const long long kept = odd ? row8 : row0;
  return odd ? kept * 65536 + received : kept + received * 65536;
}

struct KqmTileQ4K {
  // matvec_blocks: blocks of 16 warps at once on a multiprocessor, of a matrix with one row tile a block.
  static const int bytes = KQM_TILE_BYTES_Q4_K, matvec_blocks = 2;
  uint4 q[4], head0, head8;

  // The lane's activations in registers: loaded while the weights are still on their way.
  struct Cached {
    uint2 digits[8];
    uint32_t low, high;
    template <class Activations>
    __device__ __forceinline__ void load(const Activations &x) {
      KQM_UNROLL
      for (int j = 0; j < 8; j++) digits[j] = x.eight(j);
      low = x.sum_low();
      high = x.sum_high();
    }
    __device__ __forceinline__ uint2 eight(int j) const { return digits[j]; }
    __device__ __forceinline__ uint32_t sum_low() const { return low; }
    __device__ __forceinline__ uint32_t sum_high() const { return high; }
  };

  __device__ __forceinline__ void load(const uint8_t *tile, int lane) {
    const uint4 *p = reinterpret_cast<const uint4 *>(tile);
    KQM_UNROLL
    for (int g = 0; g < 4; g++) q[g] = kqm_load_streaming(p + 32 * g + lane);
    head0 = kqm_load_streaming(p + 128 + (lane >> 2));
    head8 = kqm_load_streaming(p + 136 + (lane >> 2));
  }

  // v of docs/arithmetic.md for this lane's row and, per pair, its token. Activations: one of the three kinds above.
  template <int NP, class Activations>
  __device__ __forceinline__ void multiply(const Activations *x, int lane, double (&v)[NP]) const {
    const int c = lane & 3;
    const bool odd = c & 1;
    // Scales and mins of sub-blocks 0..3 and 4..7 as bytes of two words: six bits each, spread over three words.
    const uint32_t scale0[2] = {head0.y & 0x3f3f3f3fu, (head0.w & 0x0f0f0f0fu) | ((head0.y >> 2) & 0x30303030u)};
    const uint32_t scale8[2] = {head8.y & 0x3f3f3f3fu, (head8.w & 0x0f0f0f0fu) | ((head8.y >> 2) & 0x30303030u)};

    int32_t sum[NP][4] = {};
    KQM_UNROLL
    for (int j = 0; j < 8; j++) {
      const int g = j / 2, nibble = 4 * (j % 2);
      const uint32_t a0 = (q[g].x >> nibble) & 0x0f0f0f0fu, a2 = (q[g].y >> nibble) & 0x0f0f0f0fu;
      const uint32_t a1 = (q[g].z >> nibble) & 0x0f0f0f0fu, a3 = (q[g].w >> nibble) & 0x0f0f0f0fu;
      const int s0 = int(__byte_perm(scale0[j / 4], 0, 0x4440 + j % 4)), s8 = int(__byte_perm(scale8[j / 4], 0, 0x4440 + j % 4));
      KQM_UNROLL
      for (int p = 0; p < NP; p++) {
        const uint2 b = x[p].eight(j);
        int32_t t[4] = {};
        kqm_mma_m16n8k32(t, a0, a1, a2, a3, b.x, b.y);
        sum[p][0] += s0 * t[0];
        sum[p][1] += s0 * t[1];
        sum[p][2] += s8 * t[2];
        sum[p][3] += s8 * t[3];
      }
    }

    // M is a product, too: mins (k = sub-block) times the planes' sums, low and high digits apart.
    const uint32_t min_low0 = head0.z & 0x3f3f3f3fu, min_low8 = head8.z & 0x3f3f3f3fu;
    const uint32_t min_high0 = ((head0.w >> 4) & 0x0f0f0f0fu) | ((head0.z >> 2) & 0x30303030u);
    const uint32_t min_high8 = ((head8.w >> 4) & 0x0f0f0f0fu) | ((head8.z >> 2) & 0x30303030u);
    const uint32_t m0 = c == 0 ? min_low0 : c == 1 ? min_high0 : 0u, m8 = c == 0 ? min_low8 : c == 1 ? min_high8 : 0u;
    const uint32_t head = odd ? head8.x : head0.x;
    const double d = double(kqm_half_to_float(uint16_t(head))), dmin = double(kqm_half_to_float(uint16_t(head >> 16)));
    KQM_UNROLL
    for (int p = 0; p < NP; p++) {
      int32_t low[4] = {}, high[4] = {};
      kqm_mma_m16n8k16(low, m0, m8, x[p].sum_low());
      kqm_mma_m16n8k16(high, m0, m8, x[p].sum_high());
      // |low + 256 high| <= 8 * 63 * 4096, times 257 for two planes: below 2^31.
      const int min0 = low[0] + 256 * high[0] + 256 * (low[1] + 256 * high[1]);
      const int min8 = low[2] + 256 * high[2] + 256 * (low[3] + 256 * high[3]);
      const int received = __shfl_xor_sync(~0u, odd ? min0 : min8, 1), kept = odd ? min8 : min0;
      const long long m = odd ? (long long)kept * 65536 + received : kept + (long long)received * 65536;
      const long long t = kqm_join_planes(sum[p][0] + 256ll * sum[p][1], sum[p][2] + 256ll * sum[p][3], odd);
      v[p] = fma(-dmin, double(m), d * double(t));
    }
  }
};

struct KqmTileQ6K {
  static const int bytes = KQM_TILE_BYTES_Q6_K, matvec_blocks = 1;
  uint4 ql[4], qh[2], scale0, scale8;
  uint16_t d_bits;

  struct Cached {
    uint32_t digits[16];
    template <class Activations>
    __device__ __forceinline__ void load(const Activations &x) {
      KQM_UNROLL
      for (int j = 0; j < 16; j++) digits[j] = x.four(j);
    }
    __device__ __forceinline__ uint32_t four(int j) const { return digits[j]; }
  };

  __device__ __forceinline__ void load(const uint8_t *tile, int lane) {
    const uint4 *p = reinterpret_cast<const uint4 *>(tile);
    KQM_UNROLL
    for (int i = 0; i < 4; i++) ql[i] = kqm_load_streaming(p + 32 * i + lane);
    KQM_UNROLL
    for (int h = 0; h < 2; h++) qh[h] = kqm_load_streaming(p + 128 + 32 * h + lane);
    scale0 = kqm_load_streaming(p + 192 + (lane >> 2));
    scale8 = kqm_load_streaming(p + 200 + (lane >> 2));
    d_bits = reinterpret_cast<const uint16_t *>(tile + 3328)[(lane >> 2) + 8 * (lane & 1)];
  }

  // Signed byte `i` of 16.
  __device__ __forceinline__ static int scale(const uint4 &words, int i) {
    const uint32_t word = i / 4 == 0 ? words.x : i / 4 == 1 ? words.y : i / 4 == 2 ? words.z : words.w;
    return int(int8_t(word >> (8 * (i % 4))));
  }

  template <int NP, class Activations>
  __device__ __forceinline__ void multiply(const Activations *x, int lane, double (&v)[NP]) const {
    const bool odd = lane & 1;
    int32_t sum[NP][4] = {};
    KQM_UNROLL
    for (int n = 0; n < 8; n++) {
      const int h = n / 4, m = n % 4;
      const uint32_t low0 = n % 2 ? ql[n / 2].y : ql[n / 2].x, low8 = n % 2 ? ql[n / 2].w : ql[n / 2].z;
      const uint32_t high0 = m % 2 ? qh[h].y : qh[h].x, high8 = m % 2 ? qh[h].w : qh[h].z;
      KQM_UNROLL
      for (int nibble = 0; nibble < 2; nibble++) {
        // 4 (q - 32) as a signed byte: the four low bits of q at bits 2..5, the two high ones at 6..7 with the top one
        // flipped. The factor 4 saves a subtraction a byte and is shifted out of the sum, exactly.
        const int j = 8 * h + 4 * nibble + m, up = 6 - 2 * (2 * nibble + m / 2);
        const uint32_t a0 = (((nibble ? low0 >> 2 : low0 << 2) & 0x3c3c3c3cu) | ((high0 << up) & 0xc0c0c0c0u)) ^ 0x80808080u;
        const uint32_t a1 = (((nibble ? low8 >> 2 : low8 << 2) & 0x3c3c3c3cu) | ((high8 << up) & 0xc0c0c0c0u)) ^ 0x80808080u;
        const int s0 = scale(scale0, j), s8 = scale(scale8, j);
        KQM_UNROLL
        for (int p = 0; p < NP; p++) {
          int32_t t[4] = {};
          kqm_mma_m16n8k16(t, a0, a1, x[p].four(j));
          // |sum| <= 16 * 128 * 16 * 128 * 128 = 2^29.
          sum[p][0] += s0 * t[0];
          sum[p][1] += s0 * t[1];
          sum[p][2] += s8 * t[2];
          sum[p][3] += s8 * t[3];
        }
      }
    }
    const double d = double(kqm_half_to_float(d_bits));
    KQM_UNROLL
    for (int p = 0; p < NP; p++) {
      const long long t = kqm_join_planes(sum[p][0] + 256ll * sum[p][1], sum[p][2] + 256ll * sum[p][3], odd);
      v[p] = d * double(t >> 2);
    }
  }
};
