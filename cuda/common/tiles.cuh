// Quantized weights on tensor cores: one warp multiplies a tile of 16 rows x one super-block (256 weights) by the five
// digit planes of one, two or eight tokens, exactly, and gives its lanes the f64 contributions of rows and tokens.
//
//   for each sub-block j of the super-block:
//     t[row, column] = sum_k w[row][j][k] * digit[column][j][k]          one mma of 16 rows, 8 columns, 32 or 16 k; s32
//     sum[row, column] += scale[row][j] * t[row, column]                 s32
//   T[row, token] = sum_p 256^p sum[row, column of (token, plane p)]     s64: the columns are joined
//   M[row, token] likewise, of min[row][j] and the digits' sums over j   where a type has mins
//   v[row, token] = d[row] T[row, token] - dmin[row] M[row, token]       f64, what docs/arithmetic.md calls v
//
// A type's own part is in types/: its tiles' layout, how a lane gets fragments, scales and factors from one. What tiles of all types have in
// common is here.
//
// Which lane holds what of a product (lane = 4 r + c, r = 0..7, c = 0..3), as the instruction has it:
//
//   A, weights                     B, digits                     D, sums
//     k      4c..      16 + 4c..     column  r                     column   2c       2c + 1
//   row r      a0      a2            k 4c..       b0             row r      d[0]     d[1]
//   row r + 8  a1      a3            k 16 + 4c..  b1             row r + 8  d[2]     d[3]
//
// A product does not depend on the order of its k, so that of a lane is the one that its loads give: bytes 8c..8c + 7 of a sub-block of 32
// instead of 4c.. and 16 + 4c.., for weights and digits alike.
//
// The eight columns are used in one of two ways:
//
//   one or two tokens (KqmPlaneColumns): a product each, whose columns are the token's planes, 0 to 4 and three times 4 again.
//
//     lane           4r              4r + 1          4r + 2          4r + 3
//     from D         planes 0, 1     planes 2, 3     plane 4         plane 4        of rows r and r + 8
//     after join     row r           row r + 8       -               -              all planes
//
//     Lanes 4r and 4r + 1 exchange the row that the other one keeps; 4r + 2 and 4r + 3 send plane 4 of row r and of row r + 8.
//
//   eight tokens (KqmTokenColumns): five products, one a plane, whose columns are the tokens. A lane has every plane of tokens 2c and
//   2c + 1 for both rows: nothing is left to exchange.
#pragma once

#include "fixed.cuh"
#include "hw.cuh"

#include <cstddef>
#include <type_traits>

// An f16 of a block as it stands in a file: of any alignment.
__device__ __forceinline__ float kqm_half_at(const uint8_t *p) { return kqm_half_to_float(uint16_t(p[0] | p[1] << 8)); }

// A sum from its planes' sums: each step is one 64-bit multiply-add, the last one an addition to the upper half.
__device__ __forceinline__ long long kqm_join_planes(int p0, int p1, int p2, int p3, int p4) {
  const long long low = (long long)p1 * 256 + p0;
  const long long middle = (long long)p2 * 65536 + low;
  return ((long long)p3 * 16777216 + middle) + (long long)(uint64_t(uint32_t(p4)) << 32);
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
  // join() where a plane's sums are at most 2^22: two planes fit into 32 bits.
  __device__ __forceinline__ static void join_small(const int32_t (&d)[products][4], int lane,
                                                    long long (&sum)[results]) {
    join_pairs<int>(d, lane, sum);
  }
  // The results' sums of mins times the sums of sub-blocks: a product whose k is the sub-block, mins of rows r and r + 8 in lanes c = 0
  // and c = 1, zeros in the others. Low and high digits apart.
  __device__ __forceinline__ static int min_lane(int lane) { return lane; }
  template <class Activations>
  __device__ __forceinline__ static void min_sums(const Activations &x, uint32_t min0, uint32_t min8, int lane,
                                                  double (&m)[results]) {
    int32_t min_sum[products][4];
    KQM_UNROLL
    for (int p = 0; p < products; p++) {
      int32_t low[4] = {}, high[4] = {};
      kqm_mma_m16n8k16(low, min0, min8, x.sum_low(p));
      kqm_mma_m16n8k16(high, min0, min8, x.sum_high(p));
      // |low + 256 high| <= 8 * 63 * 4096 < 2^21: two planes fit into 32 bits.
      KQM_UNROLL
      for (int i = 0; i < 4; i++) min_sum[p][i] = low[i] + 256 * high[i];
    }
    long long sum[results];
    join_pairs<int>(min_sum, lane, sum);
    KQM_UNROLL
    for (int i = 0; i < results; i++) m[i] = double(sum[i]);
  }

 private:
  // Pair holds two planes' sums.
  template <class Pair>
  __device__ __forceinline__ static void join_pairs(const int32_t (&d)[products][4], int lane,
                                                    long long (&sum)[results]) {
    const bool odd = lane & 1;
    KQM_UNROLL
    for (int i = 0; i < TOKENS; i++) {
      const Pair row0 = d[i][0] + Pair(256) * d[i][1], row8 = d[i][2] + Pair(256) * d[i][3];
      const Pair received = __shfl_xor_sync(~0u, odd ? row0 : row8, 1), kept = odd ? row8 : row0;
      sum[i] = (odd ? 65536ll * kept + received : kept + 65536ll * received) + top(d[i], lane);
    }
  }
  // Plane 4, times 256^4, for lanes c = 0 and c = 1: lane c = 2 sends that of row r, and lane c = 3, whose columns repeat it, that of
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
  __device__ __forceinline__ static bool present(int) { return true; }

  __device__ __forceinline__ static void join(const int32_t (&d)[products][4], int, long long (&sum)[results]) {
    KQM_UNROLL
    for (int i = 0; i < results; i++) sum[i] = kqm_join_planes(d[0][i], d[1][i], d[2][i], d[3][i], d[4][i]);
  }

  __device__ __forceinline__ static void join_small(const int32_t (&d)[products][4], int lane,
                                                    long long (&sum)[results]) {
    join(d, lane, sum);
  }

  // Of the digits of the mins' sums, position s gets the low ones of plane s and the high ones of plane s - 1: both are k of one product,
  // in which lanes c = 0 and c = 1 have the mins for the low ones and c = 2 and c = 3 the same mins for the high ones.
  // So a lane has the mins that min_lane has in the columns of planes.
  __device__ __forceinline__ static int min_lane(int lane) { return lane & ~2; }
  template <class Activations>
  __device__ __forceinline__ static void min_sums(const Activations &x, uint32_t min0, uint32_t min8, int,
                                                  double (&m)[results]) {
    // |position| <= 8 * 63 * 2 * 128 < 2^17: two positions fit into 32 bits.
    int32_t position[KQM_PLANES + 1][4] = {};
    KQM_UNROLL
    for (int s = 0; s <= KQM_PLANES; s++) kqm_mma_m16n8k16(position[s], min0, min8, x.sum_digits(s));
    KQM_UNROLL
    for (int i = 0; i < results; i++)
      m[i] = double(kqm_join_planes(position[0][i] + 256 * position[1][i], 0, position[2][i] + 256 * position[3][i], 0,
                                    position[4][i] + 256 * position[5][i]));
  }
};

// The columns of products with weights of two digits (common/warpgroups.cuh): the tokens, with sums for each digit position of the result.
struct KqmPositionColumns : KqmTokenColumns {
  static const int products = KQM_PLANES + 1;

  __device__ __forceinline__ static void join(const int32_t (&d)[products][4], int, long long (&sum)[results]) {
    // The sum fits into 64 bits, so its upper half may be made modulo 2^32.
    KQM_UNROLL
    for (int i = 0; i < results; i++)
      sum[i] = kqm_join_planes(d[0][i], d[1][i], d[2][i], d[3][i], int(uint32_t(d[4][i]) + 256u * uint32_t(d[5][i])));
  }

  // The sums of sub-blocks are there as f64, and what they make with the mins is exact: sums of integers below 2^53. A lane has the mins of
  // four sub-blocks (min_lane), of which it brings two: those of sub-blocks 4 (c % 2) + c / 2 * 2 and the one behind it.
  __device__ __forceinline__ static int min_sub_block(int lane) { return 4 * (lane & 1) + (lane & 2); }
  template <class Activations>
  __device__ __forceinline__ static void min_sums(const Activations &x, uint32_t min0, uint32_t min8, int lane,
                                                  double (&m)[results]) {
    double sums[2], of_row0[2] = {}, of_row8[2] = {};
    x.two_sums(sums);
    KQM_UNROLL
    for (int i = 0; i < 2; i++) {
      const int byte = (lane & 2) + i;
      kqm_mma_f64(of_row0, double(min0 >> (8 * byte) & 255), sums[i]);
      kqm_mma_f64(of_row8, double(min8 >> (8 * byte) & 255), sums[i]);
    }
    m[0] = of_row0[0], m[1] = of_row0[1], m[2] = of_row8[0], m[3] = of_row8[1];
  }
};

// The activations of a super-block, as the products want them: of product p, the lane's digits and sums.

// One token from memory. Columns 5 to 7 repeat plane 4.
struct KqmOneToken {
  typedef KqmPlaneColumns<1> Columns;
  const kqm_fixed_block *fixed;
  int plane, c;

  __device__ __forceinline__ KqmOneToken(const kqm_fixed_block *of_token, int lane)
      : fixed(of_token), plane(min(lane >> 2, KQM_PLANES - 1)), c(lane & 3) {}

  // Digits 8 c .. 8 c + 7 of 32-weight sub-block j: the order of k inside a sub-block is free, as long as weights and
  // activations agree.
  __device__ __forceinline__ uint2 eight(int, int j) const {
    return *reinterpret_cast<const uint2 *>(&fixed->digit[j][plane][8 * c]);
  }
  // Digits 4 c .. 4 c + 3 of 16-weight sub-block j.
  __device__ __forceinline__ uint32_t four(int, int j) const {
    return *reinterpret_cast<const uint32_t *>(&fixed->digit[j / 2][plane][16 * (j % 2) + 4 * c]);
  }
  // Sums of the plane's digits over sub-blocks 4 c .. 4 c + 3, as k = 4 c .. 4 c + 3 of a 16-deep product whose weights are zero from
  // c = 2 on: there any sums will do.
  __device__ __forceinline__ uint32_t sum_low(int) const {
    return *reinterpret_cast<const uint32_t *>(&fixed->sum_low[plane][4 * (c & 1)]);
  }
  __device__ __forceinline__ uint32_t sum_high(int) const {
    return *reinterpret_cast<const uint32_t *>(&fixed->sum_high[plane][4 * (c & 1)]);
  }
  __device__ __forceinline__ double unit() const { return fixed->unit; }
};

// A fixed-point block in shared memory: plane p of the digits and sums, for lanes c of each four.
struct KqmSharedPlanes {
  KQM_SHARED_ARG(uint32_t) words;  // kqm_fixed_words of them
  int c;

  __device__ __forceinline__ KqmSharedPlanes(KQM_SHARED_ARG(uint32_t) fixed, int lane) : words(fixed), c(lane & 3) {}

  __device__ __forceinline__ uint2 eight(int p, int j) const {
    return kqm_shared_load<uint2>(words, (j * KQM_PLANES + p) * 8 + 2 * c);
  }
  __device__ __forceinline__ uint32_t four(int p, int j) const {
    return words[(j / 2 * KQM_PLANES + p) * 8 + 4 * (j % 2) + c];
  }
  __device__ __forceinline__ uint32_t sum_low(int p) const { return words[kqm_fixed_sum_low + 2 * p + (c & 1)]; }
  __device__ __forceinline__ uint32_t sum_high(int p) const { return words[kqm_fixed_sum_high + 2 * p + (c & 1)]; }
  // Low digits of plane s for lanes c = 0 and c = 1, high digits of plane s - 1 for the others; zero where there is no such plane.
  __device__ __forceinline__ uint32_t sum_digits(int s) const {
    static_assert(kqm_fixed_sum_high == kqm_fixed_sum_low + 2 * KQM_PLANES, "high digits lie behind the low ones");
    const bool is_high = c >= 2;
    const uint32_t word = words[kqm_fixed_sum_low + (is_high ? 2 * KQM_PLANES - 4 : 0) + c + 2 * s];
    return is_high ? (s == 0 ? 0u : word) : (s == KQM_PLANES ? 0u : word);
  }
  __device__ __forceinline__ double unit() const { return kqm_shared_load<double>(words, kqm_fixed_unit); }
};

// One token from shared memory. Columns 5 to 7 repeat plane 4.
struct KqmSharedToken {
  typedef KqmPlaneColumns<1> Columns;
  KqmSharedPlanes planes;
  int plane;

  __device__ __forceinline__ KqmSharedToken(KQM_SHARED_ARG(uint32_t) fixed, int lane)
      : planes(fixed, lane), plane(min(lane >> 2, KQM_PLANES - 1)) {}

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

// One token's activations in registers, loaded while the weights are still on their way: for sub-blocks of 32, with the planes' sums that
// mins are multiplied with, or for sub-blocks of 16.
struct KqmCachedEights {
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
struct KqmCachedFours {
  typedef KqmPlaneColumns<1> Columns;
  uint32_t digits[16];
  template <class Activations>
  __device__ __forceinline__ void load(const Activations &x) {
    KQM_UNROLL
    for (int j = 0; j < 16; j++) digits[j] = x.four(0, j);
  }
  __device__ __forceinline__ uint32_t four(int, int j) const { return digits[j]; }
};

// Tile layout: a permutation of the bytes of 16 rows' blocks (here "block" is one of a GGUF file) such that every lane's
// fragments are whole 16-byte words and a warp reads 512 contiguous bytes at a time. Lane 4 r + c (r = 0..8, c = 0..4) works on rows r and r + 8. A tile has the fields of its blocks one after
// the other, each of all 16 rows; a matrix is [row tiles][super-blocks] tiles; a stack of experts is [experts] of those.
//
// A field of BYTES bytes at byte AT of a block, of which every lane has a part: [BYTES / 32 chunks][32 lanes][rows r and r + 8][8]. A
// chunk is 32 bytes of the block, in runs of RUN bytes for lanes c = 0..4 in turn: lane c has bytes 8 c .. 8 c + 7 of it (RUN = 8), or
// 4 c .. 4 c + 3 and 16 + 4 c .. 16 + 4 c + 3 (RUN = 4), and so on for 2 and 1.
//
// A field may be in pieces of PIECE bytes, which start every STRIDE bytes: where eight blocks of a file are one of a tile, one of each.
template <int AT, int BYTES, int RUN, int PIECE = BYTES, int STRIDE = 0>
struct KqmLaneField {
  static const int bytes = BYTES, unit = (AT | PIECE | STRIDE | RUN) % 2 ? 1 : 2;
  static_assert(BYTES % 32 == 0 && (RUN == 1 || RUN == 2 || RUN == 4 || RUN == 8), "a lane has 8 bytes of each 32");

  __device__ __forceinline__ static void source(int byte, int &row, int &of_block) {
    const int chunk = byte / 512, lane = byte / 16 % 32, within = byte % 8;
    row = lane / 4 + byte / 8 % 2 * 8;
    const int of_field = 32 * chunk + within / RUN * 4 * RUN + RUN * (lane % 4) + within % RUN;
    of_block = AT + of_field / PIECE * STRIDE + of_field % PIECE;
  }
};
// A field that is wanted as a whole: [16 rows][BYTES].
template <int AT, int BYTES, int PIECE = BYTES, int STRIDE = 0>
struct KqmRowField {
  static const int bytes = BYTES, unit = (AT | BYTES | PIECE | STRIDE) % 2 ? 1 : 2;

  __device__ __forceinline__ static void source(int byte, int &row, int &of_block) {
    const int of_field = byte % BYTES;
    row = byte / BYTES;
    of_block = AT + of_field / PIECE * STRIDE + of_field % PIECE;
  }
};

// The tile of a block type, from its fields in their order.
template <class... Fields>
struct KqmTileLayout {
 private:
  static constexpr int before(int field) {
    int number = 0, sum = 0;
    ((sum += number++ < field ? KQM_TILE_ROWS * Fields::bytes : 0), ...);
    return sum;
  }

 public:
  static const int block_bytes = (Fields::bytes + ...), bytes = KQM_TILE_ROWS * block_bytes;

  // What repack moves at a time: two bytes where all fields and pieces of them start at even ones.
  typedef std::conditional_t<((Fields::unit == 2) && ...), uint16_t, uint8_t> Unit;

  // First byte of field number FIELD.
  template <int FIELD>
  static constexpr int first = before(FIELD);

  // Where byte `byte` of a tile comes from: a row of the tile, and a byte of that row's block.
  __device__ __forceinline__ static void source(int byte, int &row, int &of_block) {
    (void)((byte < KQM_TILE_ROWS * Fields::bytes ? (Fields::source(byte, row, of_block), true)
                                                 : (byte -= KQM_TILE_ROWS * Fields::bytes, false)) ||
           ...);
  }
};

// A tile in memory, whose bytes are read once. `first` is the first byte of a field.
struct KqmTileInMemory {
  const uint8_t *tile;
  int lane;

  __device__ __forceinline__ KqmTileInMemory(const uint8_t *data, int of_lane) : tile(data), lane(of_lane) {}

  // The lane's 16 bytes of a chunk.
  __device__ __forceinline__ uint4 of_lane(int first, int chunk) const {
    return word(tile + first + 512 * chunk, lane);
  }
  // 16 bytes of row r + `more`, which is 0 or 8.
  __device__ __forceinline__ uint4 of_row(int first, int more) const {
    return word(tile + first + 16 * more, lane >> 2);
  }
  // Two bytes of a row.
  __device__ __forceinline__ uint16_t half_of_row(int first, int row) const {
    return reinterpret_cast<const uint16_t *>(tile + first)[row];
  }
  // Four bytes of a field that starts at a multiple of four, number `index` of all its rows' together.
  __device__ __forceinline__ uint32_t word_of_rows(int first, int index) const {
    return reinterpret_cast<const uint32_t *>(tile + first)[index];
  }

 private:
  __device__ __forceinline__ static uint4 word(const uint8_t *from, int i) {
    return kqm_load_streaming(reinterpret_cast<const uint4 *>(from) + i);
  }
};
// A tile in shared memory.
struct KqmTileInShared {
  KQM_SHARED_ARG(uint32_t) tile;
  int lane;

  __device__ __forceinline__ KqmTileInShared(KQM_SHARED_ARG(uint32_t) data, int of_lane) : tile(data), lane(of_lane) {}

  __device__ __forceinline__ uint4 of_lane(int first, int chunk) const { return word(first / 16 + 32 * chunk + lane); }
  __device__ __forceinline__ uint4 of_row(int first, int more) const { return word(first / 16 + more + (lane >> 2)); }
  __device__ __forceinline__ uint16_t half_of_row(int first, int row) const {
    const uint32_t pair = tile[first / 4 + row / 2];
    return uint16_t(row & 1 ? pair >> 16 : pair);
  }
  __device__ __forceinline__ uint32_t word_of_rows(int first, int index) const { return tile[first / 4 + index]; }

 private:
  __device__ __forceinline__ uint4 word(int i) const { return kqm_shared_load<uint4>(tile, 4 * i); }
};

// The order of a sub-block's 32 weights in products: which of them lane c has, in a lane field's runs of 8 (of them all) or of 4 (of each
// half of them).
struct KqmInEights {
  typedef KqmCachedEights Cached;
  template <class Activations>
  __device__ __forceinline__ static uint2 digits(const Activations &x, int p, int j) {
    return x.eight(p, j);
  }
};
struct KqmInFours {
  typedef KqmCachedFours Cached;
  template <class Activations>
  __device__ __forceinline__ static uint2 digits(const Activations &x, int p, int j) {
    return make_uint2(x.four(p, 2 * j), x.four(p, 2 * j + 1));
  }
};

// The low four bits, one in the lowest bit of each byte.
__device__ __forceinline__ uint32_t kqm_spread(uint32_t bits) { return (bits & 15u) * 0x00204081u & 0x01010101u; }

// Products with 32 weights with or without a sign.
template <bool SIGNED>
__device__ __forceinline__ void kqm_mma_of_32(int32_t (&d)[4], const uint32_t (&a)[4], const uint2 &b) {
  if (SIGNED)
    kqm_mma_m16n8k32_signed(d, a[0], a[1], a[2], a[3], b.x, b.y);
  else
    kqm_mma_m16n8k32(d, a[0], a[1], a[2], a[3], b.x, b.y);
}

// Four weights times their scale as bytes of two digits, weight * scale = low + 256 high: low without a sign, high with one. `quants` are
// bytes without a sign, or with one when SIGNED; |weight * scale| < 2^15. Two neighbours of a word are multiplied at once: quants with a sign
// as 128 more than they are, and 2^15 is added so that no borrow goes from one to the other.
template <bool SIGNED>
__device__ __forceinline__ void kqm_two_digits(uint32_t quants, int scale, uint32_t &low, uint32_t &high) {
  const uint32_t bytes = SIGNED ? quants ^ 0x80808080u : quants;
  const uint32_t offset = SIGNED ? 0x80008000u - 0x00800080u * uint32_t(scale) : 0u;
  const uint32_t even = (bytes & 0x00ff00ffu) * uint32_t(scale) + offset,
                 odd = ((bytes >> 8) & 0x00ff00ffu) * uint32_t(scale) + offset;
  low = __byte_perm(even, odd, 0x6240);
  high = __byte_perm(even, odd, 0x7351) ^ (SIGNED ? 0x80808080u : 0u);
}

// Half of a tile's sub-blocks, ready for products: four of 32 weights. Scales gives the integer scale of sub-block j, which takes in
// whatever factor the fragments have.
template <class Scales, bool SIGNED = false, class Order = KqmInEights>
struct KqmHalfTileOf32 {
  static const int sub_blocks = 4;
  uint32_t a[4][4];  // fragments by sub-block
  Scales scale0, scale8;

  __device__ __forceinline__ KqmHalfTileOf32() {}
  __device__ __forceinline__ KqmHalfTileOf32(const Scales &of_row0, const Scales &of_row8)
      : scale0(of_row0), scale8(of_row8) {}

  // Depends on every member (kqm_materialize).
  __device__ __forceinline__ uint32_t checksum() const {
    uint32_t sum = scale0.checksum() + scale8.checksum();
    KQM_UNROLL
    for (int i = 0; i < 16; i++) sum += a[i / 4][i % 4];
    return sum;
  }

  // 32 weights of a row, j of four, in digits. In eights a lane has bytes 8 c .. 8 c + 7 of them where a product has k = 4 c .. and
  // 16 + 4 c ..: the activations' words are to be put in that order.
  static const bool words_in_pairs = std::is_same<Order, KqmInEights>::value;
  __device__ __forceinline__ void digits(int j, uint32_t (&low)[4], uint32_t (&high)[4]) const {
    KQM_UNROLL
    for (int i = 0; i < 4; i++) kqm_two_digits<SIGNED>(a[j][i], i % 2 ? scale8.of(j) : scale0.of(j), low[i], high[i]);
  }

  // Adds the products with sub-blocks first .. first + 3 of x, by columns.
  template <class Activations>
  __device__ __forceinline__ void multiply(const Activations &x, int first,
                                           int32_t (&sum)[Activations::Columns::products][4]) const {
    KQM_UNROLL
    for (int j = 0; j < 4; j++) {
      // Keeps loads for later sub-blocks, and their registers, behind it.
      if (Activations::Columns::both_rows) __syncwarp();
      const int s0 = scale0.of(j), s8 = scale8.of(j);
      KQM_UNROLL
      for (int p = 0; p < Activations::Columns::products; p++) {
        const uint2 b = Order::digits(x, p, first + j);
        int32_t t[4] = {};
        kqm_mma_of_32<SIGNED>(t, a[j], b);
        sum[p][0] += s0 * t[0];
        sum[p][1] += s0 * t[1];
        sum[p][2] += s8 * t[2];
        sum[p][3] += s8 * t[3];
      }
    }
  }
};

// The same of a type whose scales times quants fit into bytes: fragments are those products, and nothing is left to multiply behind
// the tensor cores.
template <bool SIGNED>
struct KqmHalfTileOfProducts {
  static const int sub_blocks = 4;
  uint32_t a[4][4];

  __device__ __forceinline__ uint32_t checksum() const {
    uint32_t sum = 0;
    KQM_UNROLL
    for (int i = 0; i < 16; i++) sum += a[i / 4][i % 4];
    return sum;
  }

  template <class Activations>
  __device__ __forceinline__ void multiply(const Activations &x, int first,
                                           int32_t (&sum)[Activations::Columns::products][4]) const {
    KQM_UNROLL
    for (int j = 0; j < 4; j++) {
      if (Activations::Columns::both_rows) __syncwarp();
      KQM_UNROLL
      for (int p = 0; p < Activations::Columns::products; p++)
        kqm_mma_of_32<SIGNED>(sum[p], a[j], x.eight(p, first + j));
    }
  }
};

// As KqmHalfTileOf32, of eight sub-blocks of 16 weights with a sign.
template <class Scales>
struct KqmHalfTileOf16 {
  static const int sub_blocks = 8;
  uint32_t a[8][2];
  Scales scale0, scale8;

  __device__ __forceinline__ KqmHalfTileOf16(const Scales &of_row0, const Scales &of_row8)
      : scale0(of_row0), scale8(of_row8) {}

  __device__ __forceinline__ uint32_t checksum() const {
    uint32_t sum = scale0.checksum() + scale8.checksum();
    KQM_UNROLL
    for (int i = 0; i < 16; i++) sum += a[i / 2][i % 2];
    return sum;
  }

  // Two sub-blocks of a row, j of four such pairs, in digits.
  static const bool words_in_pairs = false;
  __device__ __forceinline__ void digits(int j, uint32_t (&low)[4], uint32_t (&high)[4]) const {
    KQM_UNROLL
    for (int i = 0; i < 4; i++) {
      const int sub_block = 2 * j + i / 2;
      kqm_two_digits<true>(a[sub_block][i % 2], i % 2 ? scale8.of(sub_block) : scale0.of(sub_block), low[i], high[i]);
    }
  }

  template <class Activations>
  __device__ __forceinline__ void multiply(const Activations &x, int first,
                                           int32_t (&sum)[Activations::Columns::products][4]) const {
    KQM_UNROLL
    for (int j = 0; j < 8; j++) {
      if (Activations::Columns::both_rows && j % 2 == 0) __syncwarp();
      const int s0 = scale0.of(j), s8 = scale8.of(j);
      KQM_UNROLL
      for (int p = 0; p < Activations::Columns::products; p++) {
        int32_t t[4] = {};
        kqm_mma_m16n8k16(t, a[j][0], a[j][1], x.four(p, first + j));
        sum[p][0] += s0 * t[0];
        sum[p][1] += s0 * t[1];
        sum[p][2] += s8 * t[2];
        sum[p][3] += s8 * t[3];
      }
    }
  }
};

// The family of super-blocks of 256 weights with integer scales: the products of all sub-blocks add up to one integer for each plane, which
// a type's Factors turn into v of docs/arithmetic.md. Tile is the type's own structure, derived from this one:
//
//   uint32_t type            its number
//   Layout                   a KqmTileLayout of its blocks, for repack
//   weight(block, k)         weight k of a block as it stands in a file, for embedding
//   load(source)             from a KqmTileInMemory or KqmTileInShared to registers
//   HalfTile(tile, h)        a KqmHalfTileOf32, KqmHalfTileOfProducts or KqmHalfTileOf16 of half h of the registers
//   Factors(tile, lane)      what is not by halves, of a lane that has its columns' mins (min_lane); finish(x, sum, lane, v) makes v of the
//                            halves' sums
//   Cached                   a token's activations in registers
//
// LATE: a tile stays as it was loaded until it is multiplied, where all that can be made of it would take more registers than there are.
template <class Tile, bool LATE = false>
struct KqmSuperBlocks {
  // All that can be made of a tile before there are activations.
  struct Early {
    typename Tile::HalfTile half[2];
    typename Tile::Factors factors;

    __device__ __forceinline__ Early(const Tile &tile, int lane)
        : half{typename Tile::HalfTile(tile, 0), typename Tile::HalfTile(tile, 1)}, factors(tile, lane) {}

    __device__ __forceinline__ uint32_t checksum() const {
      return half[0].checksum() + half[1].checksum() + factors.checksum();
    }

    template <class Activations>
    __device__ __forceinline__ void multiply(const Activations &x, int lane,
                                             double (&v)[Activations::Columns::results]) const {
      int32_t sum[Activations::Columns::products][4] = {};
      half[0].multiply(x, 0, sum);
      half[1].multiply(x, Tile::HalfTile::sub_blocks, sum);
      factors.finish(x, sum, lane, v);
    }
  };
  // The tile as it was loaded. Activations may be in registers: all indices are constants.
  struct Late {
    Tile tile;

    __device__ __forceinline__ Late(const Tile &of_tile, int) : tile(of_tile) {}
    __device__ __forceinline__ uint32_t checksum() const { return 0; }

    template <class Activations>
    __device__ __forceinline__ void multiply(const Activations &x, int lane,
                                             double (&v)[Activations::Columns::results]) const {
      int32_t sum[Activations::Columns::products][4] = {};
      KQM_UNROLL
      for (int h = 0; h < 2; h++) typename Tile::HalfTile(tile, h).multiply(x, Tile::HalfTile::sub_blocks * h, sum);
      typename Tile::Factors(tile, lane).finish(x, sum, lane, v);
    }
  };
  typedef std::conditional_t<LATE, Late, Early> Unpacked;

  // The product without keeping what is unpacked, one half after the other: the products of both at once want more registers than there
  // are.
  template <class Activations>
  __device__ __forceinline__ void multiply(const Activations &x, int lane,
                                           double (&v)[Activations::Columns::results]) const {
    const Tile &tile = static_cast<const Tile &>(*this);
    int32_t sum[Activations::Columns::products][4] = {};
    KQM_LOOP
    for (int h = 0; h < 2; h++) typename Tile::HalfTile(tile, h).multiply(x, Tile::HalfTile::sub_blocks * h, sum);
    typename Tile::Factors(tile, Activations::Columns::min_lane(lane)).finish(x, sum, lane, v);
  }
};
