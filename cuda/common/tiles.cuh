// Quantized weights on tensor cores: one warp multiplies a tile of 16 rows x one super-block (256 weights) by the five
// digit planes of one, two or eight tokens, exactly, and gives its lanes the f64 contributions of rows and tokens.
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
// The eight columns of a product are used in one of two ways:
//
//   one or two tokens: a product each, whose columns are the token's planes (5 to 7 repeat 4). Lane 4 r + c receives planes 2 c and
//   2 c + 1 for both rows. Neighbours exchange halves, and lane c = 0 ends with all of row r, lane c = 1 with all of row r + 8.
//
//   eight tokens: five products, one a plane, whose columns are the tokens. Lane 4 r + c receives every plane of tokens 2 c and
//   2 c + 1 for both rows: nothing is left to exchange.
#pragma once

#include "fixed.cuh"
#include "hw.cuh"

// A sum from its planes' sums.
__device__ __forceinline__ long long kqm_join_planes(int p0, int p1, int p2, int p3, int p4) {
  return p0 + 256ll * p1 + 65536 * (p2 + 256ll * p3) + 4294967296ll * p4;
}

// What the columns of TOKENS tokens' products are: the planes of one token each.
template <int TOKENS>
struct KqmPlaneColumns {
  // Products of a tile, and results that a lane gets.
  static const int products = TOKENS, results = TOKENS;
  // Whether a lane's results are of row r and of row r + 8.
  static const bool both_rows = false;

  // Of what a lane has for rows r and r + 8, that of its results' row.
  template <class T>
  __device__ __forceinline__ static T of_row(int, T row0, T row8, int lane) {
    return lane & 1 ? row8 : row0;
  }
  // Token and row in the tile of a lane's result, and whether it is one: lanes c = 2 and c = 3 have none.
  __device__ __forceinline__ static int token(int result, int) { return result; }
  __device__ __forceinline__ static int row(int, int lane) { return (lane >> 2) + 8 * (lane & 1); }
  __device__ __forceinline__ static bool present(int lane) { return (lane & 2) == 0; }

  // The results' sums, from all lanes' sums by column: d[0] and d[1] of row r, d[2] and d[3] of row r + 8.
  __device__ __forceinline__ static void join(const int32_t (&d)[products][4], int lane, long long (&sum)[results]) {
    join_pairs<long long>(d, lane, sum);
  }
  // The same where a plane's sums are at most 2^22: two planes fit into 32 bits.
  __device__ __forceinline__ static void join_small(const int32_t (&d)[products][4], int lane, long long (&sum)[results]) {
    join_pairs<int>(d, lane, sum);
  }

 private:
  // Pair holds two planes' sums.
  template <class Pair>
  __device__ __forceinline__ static void join_pairs(const int32_t (&d)[products][4], int lane, long long (&sum)[results]) {
    const bool odd = lane & 1;
    KQM_UNROLL
    for (int i = 0; i < TOKENS; i++) {
      const Pair row0 = d[i][0] + Pair(256) * d[i][1], row8 = d[i][2] + Pair(256) * d[i][3];
      const Pair received = __shfl_xor_sync(~0u, odd ? row0 : row8, 1), kept = odd ? row8 : row0;
      sum[i] = (odd ? 65536ll * kept + received : kept + 65536ll * received) + top(d[i], lane);
    }
  }
  // Plane 4, in its place, for lanes c = 0 and c = 1: lane c = 2 sends that of row r, and lane c = 3, whose columns repeat it, that of
  // row r + 8.
  __device__ __forceinline__ static long long top(const int32_t (&d)[4], int lane) {
    return 4294967296ll * __shfl_xor_sync(~0u, lane & 1 ? d[2] : d[0], 2);
  }
};

// The columns of eight tokens' products: the tokens, with a product for each plane.
struct KqmTokenColumns {
  static const int products = KQM_PLANES, results = 4;
  static const bool both_rows = true;

  template <class T>
  __device__ __forceinline__ static T of_row(int result, T row0, T row8, int) {
    return result / 2 ? row8 : row0;
  }
  __device__ __forceinline__ static int token(int result, int lane) { return 2 * (lane & 3) + result % 2; }
  __device__ __forceinline__ static int row(int result, int lane) { return (lane >> 2) + 8 * (result / 2); }

  __device__ __forceinline__ static void join(const int32_t (&d)[products][4], int, long long (&sum)[results]) {
    KQM_UNROLL
    for (int i = 0; i < results; i++) sum[i] = kqm_join_planes(d[0][i], d[1][i], d[2][i], d[3][i], d[4][i]);
  }
  __device__ __forceinline__ static void join_small(const int32_t (&d)[products][4], int lane, long long (&sum)[results]) {
    join(d, lane, sum);
  }
};

// The activations of a super-block, as the products want them: of product p, the lane's digits and sums.

// One token from memory. Columns 5 to 7 repeat plane 4.
struct KqmOneToken {
  typedef KqmPlaneColumns<1> Columns;
  const kqm_fixed_block *block;
  int plane, c;

  __device__ __forceinline__ KqmOneToken(const kqm_fixed_block *of_token, int lane)
      : block(of_token), plane(min(lane >> 2, KQM_PLANES - 1)), c(lane & 3) {}

  // Digits 8 c .. 8 c + 7 of 32-weight sub-block j: the order of k inside a sub-block is free, as long as weights and
  // activations agree.
  __device__ __forceinline__ uint2 eight(int, int j) const {
    return *reinterpret_cast<const uint2 *>(&block->digit[j][plane][8 * c]);
  }
  // Digits 4 c .. 4 c + 3 of 16-weight sub-block j.
  __device__ __forceinline__ uint32_t four(int, int j) const {
    return *reinterpret_cast<const uint32_t *>(&block->digit[j / 2][plane][16 * (j % 2) + 4 * c]);
  }
  // Sums of the plane's digits over sub-blocks 4 c .. 4 c + 3, as k = 4 c .. 4 c + 3 of a 16-deep product whose weights are zero from
  // c = 2 on: there any sums will do.
  __device__ __forceinline__ uint32_t sum_low(int) const {
    return *reinterpret_cast<const uint32_t *>(&block->sum_low[plane][4 * (c & 1)]);
  }
  __device__ __forceinline__ uint32_t sum_high(int) const {
    return *reinterpret_cast<const uint32_t *>(&block->sum_high[plane][4 * (c & 1)]);
  }
};

// A block in shared memory: plane p of the digits and sums, for lanes c of each four.
struct KqmSharedPlanes {
  KQM_SHARED_ARG(uint32_t) words;  // kqm_fixed_words of them
  int c;

  __device__ __forceinline__ KqmSharedPlanes(KQM_SHARED_ARG(uint32_t) block, int lane) : words(block), c(lane & 3) {}

  __device__ __forceinline__ uint2 eight(int p, int j) const {
    return kqm_shared_load<uint2>(words, (j * KQM_PLANES + p) * 8 + 2 * c);
  }
  __device__ __forceinline__ uint32_t four(int p, int j) const {
    return words[(j / 2 * KQM_PLANES + p) * 8 + 4 * (j % 2) + c];
  }
  __device__ __forceinline__ uint32_t sum_low(int p) const { return words[kqm_fixed_sum_low + 2 * p + (c & 1)]; }
  __device__ __forceinline__ uint32_t sum_high(int p) const { return words[kqm_fixed_sum_high + 2 * p + (c & 1)]; }
  __device__ __forceinline__ double unit() const { return kqm_shared_load<double>(words, kqm_fixed_unit); }
};

// One token from shared memory. Columns 5 to 7 repeat plane 4.
struct KqmSharedToken {
  typedef KqmPlaneColumns<1> Columns;
  KqmSharedPlanes planes;
  int plane;

  __device__ __forceinline__ KqmSharedToken(KQM_SHARED_ARG(uint32_t) block, int lane)
      : planes(block, lane), plane(min(lane >> 2, KQM_PLANES - 1)) {}

  __device__ __forceinline__ uint2 eight(int, int j) const { return planes.eight(plane, j); }
  __device__ __forceinline__ uint32_t four(int, int j) const { return planes.four(plane, j); }
  __device__ __forceinline__ uint32_t sum_low(int) const { return planes.sum_low(plane); }
  __device__ __forceinline__ uint32_t sum_high(int) const { return planes.sum_high(plane); }
  __device__ __forceinline__ double unit() const { return planes.unit(); }
};

// Two tokens from memory, a product each.
struct KqmTwoTokens {
  typedef KqmPlaneColumns<2> Columns;
  KqmOneToken first, second;

  __device__ __forceinline__ uint2 eight(int p, int j) const { return of(p).eight(0, j); }
  __device__ __forceinline__ uint32_t four(int p, int j) const { return of(p).four(0, j); }
  __device__ __forceinline__ uint32_t sum_low(int p) const { return of(p).sum_low(0); }
  __device__ __forceinline__ uint32_t sum_high(int p) const { return of(p).sum_high(0); }

 private:
  __device__ __forceinline__ const KqmOneToken &of(int p) const { return p == 0 ? first : second; }
};

// Eight tokens from shared memory, of which lane 4 n + c reads token n; product p is of plane p.
struct KqmEightTokens : KqmSharedPlanes {
  typedef KqmTokenColumns Columns;
  using KqmSharedPlanes::KqmSharedPlanes;
};

struct KqmTileQ4K {
  static const int bytes = KQM_TILE_BYTES_Q4_K;
  uint4 q[4], head0, head8;

  // One token's activations in registers: loaded while the weights are still on their way.
  struct Cached {
    typedef KqmPlaneColumns<1> Columns;
    uint2 digits[8];
    uint32_t low, high;
    template <class Activations>
    __device__ __forceinline__ void load(const Activations &x) {
      KQM_UNROLL
      for (int j = 0; j < 8; j++) digits[j] = x.eight(0, j);
      low = x.sum_low(0);
      high = x.sum_high(0);
    }
    __device__ __forceinline__ uint2 eight(int, int j) const { return digits[j]; }
    __device__ __forceinline__ uint32_t sum_low(int) const { return low; }
    __device__ __forceinline__ uint32_t sum_high(int) const { return high; }
  };

  __device__ __forceinline__ void load(const uint8_t *tile, int lane) {
    const uint4 *p = reinterpret_cast<const uint4 *>(tile);
    KQM_UNROLL
    for (int g = 0; g < 4; g++) q[g] = kqm_load_streaming(p + 32 * g + lane);
    head0 = kqm_load_streaming(p + 128 + (lane >> 2));
    head8 = kqm_load_streaming(p + 136 + (lane >> 2));
  }
  // The same of a tile in shared memory.
  __device__ __forceinline__ void load(KQM_SHARED_ARG(uint32_t) tile, int lane) {
    KQM_UNROLL
    for (int g = 0; g < 4; g++) q[g] = kqm_shared_load<uint4>(tile, 4 * (32 * g + lane));
    head0 = kqm_shared_load<uint4>(tile, 4 * (128 + (lane >> 2)));
    head8 = kqm_shared_load<uint4>(tile, 4 * (136 + (lane >> 2)));
  }

  // The scales of four sub-blocks, given as bytes.
  struct Scales {
    uint32_t even, odd;
    __device__ __forceinline__ explicit Scales(uint32_t bytes) : even((bytes & 0x003f003fu) << 4), odd(bytes) {}
    // Of sub-block j % 4: its scale, times 16 where j is even.
    __device__ __forceinline__ int of(int j) const {
      return j % 2 ? int(__byte_perm(odd, 0, 0x4440 + j % 4)) : int(__byte_perm(even, 0, j % 4 ? 0x4432 : 0x4410));
    }
  };

  // Half of a tile's sub-blocks.
  struct Half {
    // Fragments by sub-block: low nibbles q, high nibbles where they are, as 16 q.
    uint32_t a[4][4];
    Scales scale0, scale8;

    __device__ __forceinline__ Half(const KqmTileQ4K &tile, int h) : scale0(scales(tile.head0, h)), scale8(scales(tile.head8, h)) {
      const uint4 qs[2] = {h ? tile.q[2] : tile.q[0], h ? tile.q[3] : tile.q[1]};
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint4 &w = qs[j / 2];
        const uint32_t nibble = j % 2 ? 0xf0f0f0f0u : 0x0f0f0f0fu;
        a[j][0] = w.x & nibble, a[j][1] = w.z & nibble, a[j][2] = w.y & nibble, a[j][3] = w.w & nibble;
      }
    }

    __device__ __forceinline__ uint32_t checksum() const {
      uint32_t sum = scale0.even + scale0.odd + scale8.even + scale8.odd;
      KQM_UNROLL
      for (int i = 0; i < 16; i++) sum += a[i / 4][i % 4];
      return sum;
    }

    // Adds 16 times the products with sub-blocks first .. first + 3 of x, by columns: low nibbles are multiplied by 16 times their scale.
    // Over a tile |sum| <= 8 * 16 * 63 * 15 * 128 * 32 < 2^29.
    template <class Activations>
    __device__ __forceinline__ void multiply(const Activations &x, int first, int32_t (&sum)[Activations::Columns::products][4]) const {
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        // Keeps loads for later sub-blocks, and their registers, behind it.
        if (Activations::Columns::both_rows) __syncwarp();
        const int s0 = scale0.of(j), s8 = scale8.of(j);
        KQM_UNROLL
        for (int p = 0; p < Activations::Columns::products; p++) {
          const uint2 b = x.eight(p, first + j);
          int32_t t[4] = {};
          kqm_mma_m16n8k32(t, a[j][0], a[j][1], a[j][2], a[j][3], b.x, b.y);
          sum[p][0] += s0 * t[0];
          sum[p][1] += s0 * t[1];
          sum[p][2] += s8 * t[2];
          sum[p][3] += s8 * t[3];
        }
      }
    }

   private:
    // Scales are six bits each, the last four's spread over two words.
    __device__ __forceinline__ static Scales scales(const uint4 &head, int h) {
      return Scales(h ? (head.w & 0x0f0f0f0fu) | ((head.y >> 2) & 0x30303030u) : head.y & 0x3f3f3f3fu);
    }
  };

  // What is not by halves: mins and factors of rows r and r + 8.
  struct Rest {
    uint32_t min0, min8, head0, head8;

    __device__ __forceinline__ Rest(const KqmTileQ4K &tile, int lane) : head0(tile.head0.x), head8(tile.head8.x) {
      // Mins as a product's operand whose k is the sub-block.
      const int c = lane & 3;
      const uint32_t low0 = tile.head0.z & 0x3f3f3f3fu, low8 = tile.head8.z & 0x3f3f3f3fu;
      const uint32_t high0 = ((tile.head0.w >> 4) & 0x0f0f0f0fu) | ((tile.head0.z >> 2) & 0x30303030u);
      const uint32_t high8 = ((tile.head8.w >> 4) & 0x0f0f0f0fu) | ((tile.head8.z >> 2) & 0x30303030u);
      min0 = c == 0 ? low0 : c == 1 ? high0 : 0u;
      min8 = c == 0 ? low8 : c == 1 ? high8 : 0u;
    }

    // v of docs/arithmetic.md for the lane's results, from the halves' sums.
    template <class Activations>
    __device__ __forceinline__ void finish(const Activations &x, const int32_t (&sum)[Activations::Columns::products][4], int lane,
                                           double (&v)[Activations::Columns::results]) const {
      typedef typename Activations::Columns Columns;
      long long t[Columns::results], m[Columns::results];
      Columns::join(sum, lane, t);
      KQM_UNROLL
      for (int i = 0; i < Columns::results; i++) {
        const uint32_t head = Columns::of_row(i, head0, head8, lane);
        v[i] = double(__fmul_rn(kqm_half_to_float(uint16_t(head)), 0.0625f)) * double(t[i]);
      }
      // M is a product, too: mins times the planes' sums, low and high digits apart.
      int32_t min_sum[Columns::products][4];
      KQM_UNROLL
      for (int p = 0; p < Columns::products; p++) {
        int32_t low[4] = {}, high[4] = {};
        kqm_mma_m16n8k16(low, min0, min8, x.sum_low(p));
        kqm_mma_m16n8k16(high, min0, min8, x.sum_high(p));
        // |low + 256 high| <= 8 * 63 * 4096 < 2^21.
        KQM_UNROLL
        for (int i = 0; i < 4; i++) min_sum[p][i] = low[i] + 256 * high[i];
      }
      Columns::join_small(min_sum, lane, m);
      KQM_UNROLL
      for (int i = 0; i < Columns::results; i++) {
        const uint32_t head = Columns::of_row(i, head0, head8, lane);
        v[i] = fma(-double(kqm_half_to_float(uint16_t(head >> 16))), double(m[i]), v[i]);
      }
    }
  };

  // All that can be made of a tile before there are activations.
  struct Unpacked {
    Half half[2];
    Rest rest;

    __device__ __forceinline__ Unpacked(const KqmTileQ4K &tile, int lane) : half{Half(tile, 0), Half(tile, 1)}, rest(tile, lane) {}

    // Depends on every member (kqm_make_now).
    __device__ __forceinline__ uint32_t checksum() const {
      return half[0].checksum() + half[1].checksum() + rest.min0 + rest.min8 + rest.head0 + rest.head8;
    }

    template <class Activations>
    __device__ __forceinline__ void multiply(const Activations &x, int lane,
                                             double (&v)[Activations::Columns::results]) const {
      int32_t sum[Activations::Columns::products][4] = {};
      half[0].multiply(x, 0, sum);
      half[1].multiply(x, 4, sum);
      rest.finish(x, sum, lane, v);
    }
  };

  // The product without keeping what is unpacked, one half after the other: the products of both at once want more registers than there
  // are.
  template <class Activations>
  __device__ __forceinline__ void multiply(const Activations &x, int lane, double (&v)[Activations::Columns::results]) const {
    int32_t sum[Activations::Columns::products][4] = {};
    KQM_LOOP
    for (int h = 0; h < 2; h++) Half(*this, h).multiply(x, 4 * h, sum);
    Rest(*this, lane).finish(x, sum, lane, v);
  }
};

struct KqmTileQ6K {
  static const int bytes = KQM_TILE_BYTES_Q6_K;
  uint4 ql[4], qh[2], scale0, scale8;
  uint16_t d_bits;  // of row r in lanes with an even c, of row r + 8 in the others

  struct Cached {
    typedef KqmPlaneColumns<1> Columns;
    uint32_t digits[16];
    template <class Activations>
    __device__ __forceinline__ void load(const Activations &x) {
      KQM_UNROLL
      for (int j = 0; j < 16; j++) digits[j] = x.four(0, j);
    }
    __device__ __forceinline__ uint32_t four(int, int j) const { return digits[j]; }
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
  __device__ __forceinline__ void load(KQM_SHARED_ARG(uint32_t) tile, int lane) {
    KQM_UNROLL
    for (int i = 0; i < 4; i++) ql[i] = kqm_shared_load<uint4>(tile, 4 * (32 * i + lane));
    KQM_UNROLL
    for (int h = 0; h < 2; h++) qh[h] = kqm_shared_load<uint4>(tile, 4 * (128 + 32 * h + lane));
    scale0 = kqm_shared_load<uint4>(tile, 4 * (192 + (lane >> 2)));
    scale8 = kqm_shared_load<uint4>(tile, 4 * (200 + (lane >> 2)));
    const uint32_t pair = tile[3328 / 4 + (lane >> 3) + 4 * (lane & 1)];  // of rows 2 n and 2 n + 1
    d_bits = uint16_t(lane & 4 ? pair >> 16 : pair);
  }

  // Half of a tile's sub-blocks.
  struct Half {
    // Fragments by sub-block: 4 (q - 32). The factor 4 saves a subtraction a byte and is taken from d.
    uint32_t a[8][2];
    uint2 scale0, scale8;

    __device__ __forceinline__ Half(const KqmTileQ6K &tile, int h)
        : scale0(h ? make_uint2(tile.scale0.z, tile.scale0.w) : make_uint2(tile.scale0.x, tile.scale0.y)),
          scale8(h ? make_uint2(tile.scale8.z, tile.scale8.w) : make_uint2(tile.scale8.x, tile.scale8.y)) {
      const uint4 lows[2] = {h ? tile.ql[2] : tile.ql[0], h ? tile.ql[3] : tile.ql[1]}, high = h ? tile.qh[1] : tile.qh[0];
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

    __device__ __forceinline__ uint32_t checksum() const {
      uint32_t sum = scale0.x + scale0.y + scale8.x + scale8.y;
      KQM_UNROLL
      for (int i = 0; i < 16; i++) sum += a[i / 2][i % 2];
      return sum;
    }

    // Adds the products with sub-blocks first .. first + 7 of x.
    template <class Activations>
    __device__ __forceinline__ void multiply(const Activations &x, int first, int32_t (&sum)[Activations::Columns::products][4]) const {
      KQM_UNROLL
      for (int j = 0; j < 8; j++) {
        if (Activations::Columns::both_rows && j % 2 == 0) __syncwarp();
        const int s0 = scale(scale0, j), s8 = scale(scale8, j);
        KQM_UNROLL
        for (int p = 0; p < Activations::Columns::products; p++) {
          int32_t t[4] = {};
          kqm_mma_m16n8k16(t, a[j][0], a[j][1], x.four(p, first + j));
          // |sum| <= 16 * 128 * 16 * 128 * 128 = 2^29.
          sum[p][0] += s0 * t[0];
          sum[p][1] += s0 * t[1];
          sum[p][2] += s8 * t[2];
          sum[p][3] += s8 * t[3];
        }
      }
    }

   private:
    // Signed byte `i` of 8.
    __device__ __forceinline__ static int scale(const uint2 &words, int i) {
      return int(int8_t((i / 4 ? words.y : words.x) >> (8 * (i % 4))));
    }
  };

  struct Unpacked {
    Half half[2];
    uint16_t d_bits;

    __device__ __forceinline__ Unpacked(const KqmTileQ6K &tile, int)
        : half{Half(tile, 0), Half(tile, 1)}, d_bits(tile.d_bits) {}

    __device__ __forceinline__ uint32_t checksum() const { return half[0].checksum() + half[1].checksum() + uint32_t(d_bits); }

    template <class Activations>
    __device__ __forceinline__ void multiply(const Activations &x, int lane,
                                             double (&v)[Activations::Columns::results]) const {
      int32_t sum[Activations::Columns::products][4] = {};
      half[0].multiply(x, 0, sum);
      half[1].multiply(x, 8, sum);
      KqmTileQ6K::finish<Activations>(sum, d_bits, lane, v);
    }
  };

  template <class Activations>
  __device__ __forceinline__ void multiply(const Activations &x, int lane, double (&v)[Activations::Columns::results]) const {
    int32_t sum[Activations::Columns::products][4] = {};
    KQM_LOOP
    for (int h = 0; h < 2; h++) Half(*this, h).multiply(x, 8 * h, sum);
    finish<Activations>(sum, d_bits, lane, v);
  }

 private:
  template <class Activations>
  __device__ __forceinline__ static void finish(const int32_t (&sum)[Activations::Columns::products][4], uint16_t own_bits, int lane,
                                                double (&v)[Activations::Columns::results]) {
    typedef typename Activations::Columns Columns;
    long long t[Columns::results];
    Columns::join(sum, lane, t);
    const uint32_t other_bits = Columns::both_rows ? __shfl_xor_sync(~0u, uint32_t(own_bits), 1) : uint32_t(own_bits);
    const uint32_t bits0 = lane & 1 ? other_bits : own_bits, bits8 = lane & 1 ? own_bits : other_bits;
    KQM_UNROLL
    for (int i = 0; i < Columns::results; i++) {
      const uint16_t bits = uint16_t(Columns::of_row(i, bits0, bits8, lane));
      v[i] = double(__fmul_rn(kqm_half_to_float(bits), 0.25f)) * double(t[i]);
    }
  }
};
