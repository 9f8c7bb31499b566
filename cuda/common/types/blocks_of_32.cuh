// The family of types of 32 weights with a factor of their own (docs/arithmetic.md): a tile has eight of them for each row. Each block's
// sum is an integer, and the eight are joined in f64.
#pragma once

#include "../tiles.cuh"

// What a row's eight blocks have each, in 2 * WORDS words for all of them: lane 4 r + c has those of blocks 4 (c / 2) .. 4 (c / 2) + 3 of row
// r + 8 (c % 2). A block has a byte (WORDS = 1), two bytes (2) or four (4).
template <int WORDS>
struct KqmFactors {
  uint32_t words[WORDS];

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile, int first) {
    const int row = (tile.lane >> 2) + 8 * (tile.lane & 1), half = tile.lane >> 1 & 1;
    KQM_UNROLL
    for (int i = 0; i < WORDS; i++) words[i] = tile.word_of_rows(first, (2 * row + half) * WORDS + i);
  }
  // Of the lane's block i (0 .. 3).
  __device__ __forceinline__ uint32_t of(int i) const { return part(words[word(i)], i); }
  // Of block i of half h, of row r and of row r + 8 of the lane.
  __device__ __forceinline__ uint2 of_rows(int h, int i, int lane) const {
    const int from = (lane & ~3) | 2 * h;
    return make_uint2(part(__shfl_sync(~0u, words[word(i)], from), i),
                      part(__shfl_sync(~0u, words[word(i)], from | 1), i));
  }

 private:
  __device__ __forceinline__ static int word(int i) { return WORDS == 4 ? i : WORDS == 2 ? i / 2 : 0; }
  __device__ __forceinline__ static uint32_t part(uint32_t word, int i) {
    return WORDS == 4 ? word : WORDS == 2 ? word >> (16 * (i % 2)) & 0xffffu : word >> (8 * i) & 0xffu;
  }
};

// A token's activations in registers, in runs of four, with or without the planes' sums.
template <bool SUMS>
struct KqmCachedBlocks : KqmCachedFours {
  uint32_t low, high;
  template <class Activations>
  __device__ __forceinline__ void load(const Activations &x) {
    KqmCachedFours::load(x);
    low = SUMS ? x.sum_low(0) : 0;
    high = SUMS ? x.sum_high(0) : 0;
  }
  __device__ __forceinline__ uint32_t sum_low(int) const { return low; }
  __device__ __forceinline__ uint32_t sum_high(int) const { return high; }
};

// Digits of 32 activations.
template <class Activations>
__device__ __forceinline__ uint2 kqm_digits_of_32(const Activations &x, int p, int j) {
  return KqmInFours::digits(x, p, j);
}

// The activations' sums over the eight blocks, as a product with the unit matrix: rows j = 0 .. 7 are those of block j.
template <class Activations>
__device__ __forceinline__ void kqm_block_sums(const Activations &x, int lane,
                                               long long (&s)[Activations::Columns::results]) {
  typedef typename Activations::Columns Columns;
  const int j = lane >> 2;
  const uint32_t unit = j / 4 == (lane & 3) ? 1u << (8 * (j % 4)) : 0u;
  int32_t sum[Columns::products][4];
  KQM_UNROLL
  for (int p = 0; p < Columns::products; p++) {
    int32_t low[4] = {}, high[4] = {};
    kqm_mma_m16n8k16(low, unit, 0u, x.sum_low(p));
    kqm_mma_m16n8k16(high, unit, 0u, x.sum_high(p));
    KQM_UNROLL
    for (int i = 0; i < 4; i++) sum[p][i] = low[i] + 256 * high[i];
  }
  Columns::join_small(sum, lane, s);
}

// v of a tile's rows. Tile gives the products' operands and the factors:
//
//   SIGNED, MINS              whether operands have a sign, and whether there are offsets
//   fragments(h, i, lane, a)  of block i of half h, all of them times the same power of two
//   factors                   a KqmFactors
//   d(bits), m(bits)          a block's numbers from what `factors` has of it, d without the fragments' power of two
//
// For one or two tokens, a product each: blocks i and i + 4 at a time, so that each of four lanes ends with a sum of its own.
template <class Tile, class Columns>
struct KqmJoinBlocks;

template <class Tile, int TOKENS>
struct KqmJoinBlocks<Tile, KqmPlaneColumns<TOKENS>> {
  template <class Activations>
  __device__ __forceinline__ static void multiply(const Tile &tile, const Activations &x, int lane,
                                                  double (&v)[TOKENS]) {
    double s[TOKENS] = {}, sum[TOKENS][2];
    if (Tile::MINS) {
      long long sums[TOKENS];
      kqm_block_sums(x, lane, sums);
      KQM_UNROLL
      for (int p = 0; p < TOKENS; p++) s[p] = double(sums[p]);
    }
    KQM_UNROLL
    for (int i = 0; i < 4; i++) {
      // Keeps loads for later blocks, and their registers, behind it.
      __syncwarp();
      uint32_t first[4], second[4];
      tile.fragments(0, i, lane, first);
      tile.fragments(1, i, lane, second);
      const uint32_t bits = tile.factors.of(i);
      KQM_UNROLL
      for (int p = 0; p < TOKENS; p++) {
        int32_t t0[4] = {}, t1[4] = {};
        kqm_mma_of_32<Tile::SIGNED>(t0, first, kqm_digits_of_32(x, p, i));
        kqm_mma_of_32<Tile::SIGNED>(t1, second, kqm_digits_of_32(x, p, 4 + i));
        const double t = double(deal(t0, t1, lane));
        double product = Tile::d(bits) * t;
        // The sum over block i is in lanes 4 i, that over block i + 4 in lanes 4 (i + 4).
        if (Tile::MINS) product = fma(Tile::m(bits), __shfl_sync(~0u, s[p], 4 * i + 8 * (lane & 2)), product);
        sum[p][i / 2] = i % 2 ? sum[p][i / 2] + product : product;
      }
    }
    KQM_UNROLL
    for (int p = 0; p < TOKENS; p++) {
      const double half = sum[p][0] + sum[p][1];
      // Lanes c = 0 and c = 1 have the first half of rows r and r + 8, the others the second.
      v[p] = half + __shfl_xor_sync(~0u, half, 2);
    }
  }

 private:
  // Of two blocks' sums by column, to lanes c = 0 .. 3: row r of the first one, row r + 8 of the first one, and the same of the second one.
  __device__ __forceinline__ static long long deal(const int32_t (&t0)[4], const int32_t (&t1)[4], int lane) {
    const bool odd = lane & 1, upper = lane & 2;
    // Two planes' sums, at most 2^19 each, fit into 32 bits; lanes c = 2 and c = 3 have plane 4 alone.
    const int times = upper ? 0 : 256;
    const int row0 = t0[0] + times * t0[1], row8 = t0[2] + times * t0[3];
    const int other0 = t1[0] + times * t1[1], other8 = t1[2] + times * t1[3];
    const int kept = odd ? row8 : row0, other_kept = odd ? other8 : other0;
    const int received = __shfl_xor_sync(~0u, odd ? row0 : row8, 1),
              other_received = __shfl_xor_sync(~0u, odd ? other0 : other8, 1);
    // Planes 0 to 3, in lanes c = 0 and c = 1. Their neighbours by two have plane 4 of the same row.
    const long long four = odd ? 65536ll * kept + received : kept + 65536ll * received;
    const long long other_four = odd ? 65536ll * other_kept + other_received : other_kept + 65536ll * other_received;
    const long long sent = upper ? (long long)kept : other_four, got = __shfl_xor_sync(~0u, sent, 2);
    return upper ? got + 4294967296ll * other_kept : four + 4294967296ll * got;
  }
};

// For eight tokens, a product for each plane: one block after the other.
template <class Tile>
struct KqmJoinBlocks<Tile, KqmTokenColumns> {
  template <class Activations>
  __device__ __forceinline__ static void multiply(const Tile &tile, const Activations &x, int lane, double (&v)[4]) {
    double s[4] = {};
    if (Tile::MINS) {
      long long sums[4];
      kqm_block_sums(x, lane, sums);
      s[0] = double(sums[0]), s[1] = double(sums[1]);
    }
    KQM_LOOP
    for (int h = 0; h < 2; h++) {
      double sum[2][4];
      KQM_UNROLL
      for (int i = 0; i < 4; i++) {
        // Keeps loads for later blocks, and their registers, behind it.
        __syncwarp();
        uint32_t a[4];
        tile.fragments(h, i, lane, a);
        const uint2 bits = tile.factors.of_rows(h, i, lane);
        int32_t t[KQM_PLANES][4] = {};
        KQM_UNROLL
        for (int p = 0; p < KQM_PLANES; p++) kqm_mma_of_32<Tile::SIGNED>(t[p], a, kqm_digits_of_32(x, p, 4 * h + i));
        double of_tokens[2] = {};
        if (Tile::MINS) {
          KQM_UNROLL
          for (int n = 0; n < 2; n++) of_tokens[n] = __shfl_sync(~0u, s[n], 4 * (4 * h + i) + (lane & 3));
        }
        long long joined[4];
        KqmTokenColumns::join(t, lane, joined);
        KQM_UNROLL
        for (int k = 0; k < 4; k++) {
          const uint32_t own = k / 2 ? bits.y : bits.x;
          double product = Tile::d(own) * double(joined[k]);
          if (Tile::MINS) product = fma(Tile::m(own), of_tokens[k % 2], product);
          sum[i / 2][k] = i % 2 ? sum[i / 2][k] + product : product;
        }
      }
      KQM_UNROLL
      for (int k = 0; k < 4; k++) {
        const double half = sum[0][k] + sum[1][k];
        v[k] = h ? v[k] + half : half;
      }
    }
  }
};

// A tile as it was loaded, in the place of what others make of theirs before there are activations.
template <class Tile>
struct KqmLateTile {
  Tile tile;

  __device__ __forceinline__ KqmLateTile(const Tile &of_tile, int) : tile(of_tile) {}
  // There is nothing to be made.
  __device__ __forceinline__ uint32_t checksum() const { return 0; }

  template <class Activations>
  __device__ __forceinline__ void multiply(const Activations &x, int lane,
                                           double (&v)[Activations::Columns::results]) const {
    tile.multiply(x, lane, v);
  }
};

// What the frames of products ask of a tile. It stays as it was loaded until it is multiplied.
template <class Tile>
struct KqmBlocksOf32 {
  typedef KqmLateTile<Tile> Unpacked;

  template <class Activations>
  __device__ __forceinline__ void multiply(const Activations &x, int lane,
                                           double (&v)[Activations::Columns::results]) const {
    KqmJoinBlocks<Tile, typename Activations::Columns>::multiply(static_cast<const Tile &>(*this), x, lane, v);
  }
};

// Types whose quants are nibbles, byte k of a block with weight k in the low and weight 16 + k in the high one, behind BYTES bytes of factors.
template <class Tile, class OfBlock, int BYTES>
struct KqmNibblesOf32 : KqmBlocksOf32<Tile> {
  typedef OfBlock Block;
  typedef KqmTileLayout<KqmLaneField<offsetof(Block, qs), 8 * sizeof(Block::qs), 4, sizeof(Block::qs), sizeof(Block)>,
                        KqmRowField<0, 8 * BYTES, BYTES, sizeof(Block)>>
      Layout;
  typedef KqmCachedBlocks<BYTES == 4> Cached;
  static const int bytes = Layout::bytes;
  uint4 q[4];
  KqmFactors<BYTES> factors;

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    KQM_UNROLL
    for (int i = 0; i < 4; i++) q[i] = tile.of_lane(Layout::template first<0>, i);
    factors.load(tile, Layout::template first<1>);
  }

  // The nibble of weight k.
  __device__ __forceinline__ static int nibble(const Block &block, int k) {
    return block.qs[k % 16] >> (4 * (k / 16)) & 15;
  }

 protected:
  // Four bytes of block i of half h, of row r and of row r + 8: weights 4 c .. 4 c + 3 and 16 + 4 c .. 16 + 4 c + 3 of both.
  __device__ __forceinline__ uint2 of_rows(int h, int i) const {
    const uint4 first = q[i / 2], second = q[2 + i / 2], w = h ? second : first;
    return i % 2 ? make_uint2(w.y, w.w) : make_uint2(w.x, w.z);
  }
};

// The same with a fifth bit: bit k of four bytes is that of weight k.
template <class Tile, class OfBlock, int BYTES>
struct KqmFiveBitsOf32 : KqmBlocksOf32<Tile> {
  typedef OfBlock Block;
  typedef KqmTileLayout<KqmLaneField<offsetof(Block, qs), 8 * sizeof(Block::qs), 4, sizeof(Block::qs), sizeof(Block)>,
                        KqmLaneField<offsetof(Block, qh), 8 * sizeof(Block::qh), 8, sizeof(Block::qh), sizeof(Block)>,
                        KqmRowField<0, 8 * BYTES, BYTES, sizeof(Block)>>
      Layout;
  typedef KqmCachedBlocks<BYTES == 4> Cached;
  static const int bytes = Layout::bytes;
  uint4 q[4];
  uint4 fifth;  // of blocks 2 c and 2 c + 1 of row r, and of row r + 8
  KqmFactors<BYTES> factors;

  template <class Source>
  __device__ __forceinline__ void load(const Source &tile) {
    KQM_UNROLL
    for (int i = 0; i < 4; i++) q[i] = tile.of_lane(Layout::template first<0>, i);
    fifth = tile.of_lane(Layout::template first<1>, 0);
    factors.load(tile, Layout::template first<2>);
  }

  // The five bits of weight k.
  __device__ __forceinline__ static int quant(const Block &block, int k) {
    return (block.qs[k % 16] >> (4 * (k / 16)) & 15) | (block.qh[k / 8] >> (k % 8) & 1) << 4;
  }

 protected:
  // Operands of block i of half h: the low four bits of each byte with what `high` makes of the fifth ones, which it gets in each byte's
  // lowest bit.
  template <class High>
  __device__ __forceinline__ void operands(int h, int i, int lane, uint32_t (&a)[4], High high) const {
    const uint4 first = q[i / 2], second = q[2 + i / 2], w = h ? second : first;
    const uint32_t row0 = i % 2 ? w.y : w.x, row8 = i % 2 ? w.w : w.z;
    const int from = (lane & ~3) | (2 * h + i / 2), down = 4 * (lane & 3);
    const uint32_t bits0 = __shfl_sync(~0u, i % 2 ? fifth.y : fifth.x, from) >> down;
    const uint32_t bits8 = __shfl_sync(~0u, i % 2 ? fifth.w : fifth.z, from) >> down;
    a[0] = (row0 & 0x0f0f0f0fu) | high(kqm_spread(bits0)), a[1] = (row8 & 0x0f0f0f0fu) | high(kqm_spread(bits8));
    a[2] = (row0 >> 4 & 0x0f0f0f0fu) | high(kqm_spread(bits0 >> 16)),
    a[3] = (row8 >> 4 & 0x0f0f0f0fu) | high(kqm_spread(bits8 >> 16));
  }
};
