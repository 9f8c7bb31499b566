// The frame around a tile product: which warp multiplies what, and the sum over super-blocks. q4_k_matvec, q6_k_gemv, qkv,
// moe_swiglu and moe_down share it.
//
// A warp leaves v * unit (exact: unit is a power of two) of its super-block in shared memory; after a barrier the row sums
// are made in f64 in the order of docs/arithmetic.md, whatever the split over warps.
//
// TOKENS, how many a block multiplies at a time, is 1, 2 or 8.
#pragma once

#include "check.cuh"
#include "fixed.cuh"
#include "tiles.cuh"
#include "tree.cuh"

// Most warps of a block that takes `tokens` at a time: several need more registers than sixteen warps leave.
#define KQM_MATVEC_WARPS(tokens) ((tokens) == 1 ? 16 : 8)
// Longer rows in super-blocks take one token at a time, so that shared memory suffices.
#define KQM_WIDE_BLOCKS 16

// Tokens that the kernels of plain matrices take at a time.
inline unsigned kqm_tokens_at_once(unsigned tokens, unsigned blocks) {
  return tokens == 1 || blocks > KQM_WIDE_BLOCKS ? 1 : tokens == 2 ? 2 : 8;
}

// Bytes of shared memory for the contributions of one row tile: [super-blocks][tokens][16 rows].
inline size_t kqm_part_bytes(unsigned blocks, unsigned tokens) { return size_t(blocks) * tokens * KQM_TILE_ROWS * sizeof(double); }

// Multiplies one unpacked tile and stores the contributions of its super-block. unit(token) is that of the super-block, and
// present(token) says whether there is such a token.
template <int TOKENS, class Unpacked, class Activations, class Present, class Unit>
__device__ __forceinline__ void kqm_contribute_as(const Unpacked &tile, const Activations &x, int slot, KQM_SHARED_ARG(double) part,
                                                  Present present, Unit unit) {
  typedef typename Activations::Columns Columns;
  const int lane = threadIdx.x & 31;
  double v[Columns::results];
  tile.multiply(x, lane, v);
  KQM_UNROLL
  for (int i = 0; i < Columns::results; i++) {
    const int token = Columns::token(i, lane);
    if (Columns::present(lane) && present(token))
      part[(slot * TOKENS + token) * KQM_TILE_ROWS + Columns::row(i, lane)] = v[i] * unit(token);
  }
}

// The same for a single token, wherever its activations are.
template <class Unpacked, class Activations>
__device__ __forceinline__ void kqm_contribute_unpacked(const Unpacked &tile, const Activations &x, double unit, int slot,
                                                        KQM_SHARED_ARG(double) part) {
  kqm_contribute_as<1>(tile, x, slot, part, [](int) { return true; }, [=](int) { return unit; });
}

template <class Tile, class Activations>
__device__ __forceinline__ void kqm_contribute_one(const Tile &tile, const Activations &x, double unit, int slot,
                                                   KQM_SHARED_ARG(double) part) {
  kqm_contribute_unpacked(typename Tile::Unpacked(tile, threadIdx.x & 31), x, unit, slot, part);
}

// The same for TOKENS tokens in memory. row(i) points to the first fixed-point block of token i of them, NULL for an absent one.
template <int TOKENS>
struct KqmContribute;

template <>
struct KqmContribute<1> {
  template <class Tile, class Row>
  __device__ __forceinline__ static void call(const Tile &tile, Row row, int b, int slot, KQM_SHARED_ARG(double) part) {
    const kqm_fixed_block *block = row(0) + b;
    kqm_contribute_one(tile, KqmOneToken(block, threadIdx.x & 31), block->unit, slot, part);
  }
};

template <>
struct KqmContribute<2> {
  template <class Tile, class Row>
  __device__ __forceinline__ static void call(const Tile &tile, Row row, int b, int slot, KQM_SHARED_ARG(double) part) {
    const int lane = threadIdx.x & 31;
    const KqmTwoTokens x{KqmOneToken(row(0) + b, lane), KqmOneToken(row(1) + b, lane)};
    kqm_contribute_as<2>(typename Tile::Unpacked(tile, lane), x, slot, part, [](int) { return true; }, [=](int token) { return row(token)[b].unit; });
  }
};

template <>
struct KqmContribute<8> {
  template <class Tile, class Row>
  __device__ __forceinline__ static void call(const Tile &tile, Row row, int b, int slot, KQM_SHARED_ARG(double) part) {
    const int lane = threadIdx.x & 31;
    const kqm_fixed_block *of_lane = row(lane >> 2);
    const KqmEightTokens x{(of_lane ? of_lane : row(0)) + b, lane & 3};
    kqm_contribute_as<8>(
        typename Tile::Unpacked(tile, lane), x, slot, part, [=](int token) { return row(token) != nullptr; }, [=](int token) { return row(token)[b].unit; });
  }
};

// The sum over `blocks` contributions from slot `first`; there are USUAL at full size.
template <int TOKENS, int USUAL>
__device__ __forceinline__ float kqm_row_sum(KQM_SHARED_ARG(double) part, int first, int blocks, int token, int tile_row) {
  const int stride = TOKENS * KQM_TILE_ROWS;
  return kqm_canonical(float(kqm_tree_sum<USUAL>(part, first * stride + token * KQM_TILE_ROWS + tile_row, stride, blocks)));
}

// One matrix, many row tiles: block i takes tiles i, i + gridDim.x, ... The weights of the next product are loaded before
// this one is multiplied, those of the first one before the dependencies are waited for. store(row, token, value, fetched) gets
// every result and what fetch(row, token) read before; shared memory holds two tiles' contributions so that one barrier a tile is
// enough. With eight tokens a tile is multiplied long enough to hide less, and a second tile would not fit into the registers.
// ONE says that there is a single token and a warp for each super-block: the warp's activations then stay in registers.
template <int TOKENS, bool ONE, class Tile, class Row, class Fetch, class Store>
__device__ __forceinline__ void kqm_matvec_tiles(const kqm_matrix &w, Row row, int tokens, Fetch fetch, Store store) {
  KQM_DYNAMIC_SHARED(double, part);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  const int blocks = w.cols / KQM_BLOCK, tiles = (w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS;
  const uint8_t *data = static_cast<const uint8_t *>(w.tiles);

  Tile next;
  next.load(data + (size_t(blockIdx.x) * blocks + warp) * Tile::bytes, lane);
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  typename Tile::Cached cached;
  double unit = 0.0;
  if (ONE) {
    cached.load(KqmOneToken(row(0) + warp, lane));
    unit = row(0)[warp].unit;
  }
  int buffer = 0;
  const int own_token = threadIdx.x / KQM_TILE_ROWS, own_row = threadIdx.x % KQM_TILE_ROWS;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, buffer ^= 1) {
    // What the first result of this thread is added to arrives while the tile is multiplied.
    const int own = tile * KQM_TILE_ROWS + own_row;
    const float fetched = own_token < tokens && own < int(w.rows) ? fetch(own, own_token) : 0.0f;
    for (int b = warp; b < blocks; b += warps) {
      const bool same_row = b + warps < blocks;
      const int next_tile = same_row ? tile : tile + int(gridDim.x), next_block = same_row ? b + warps : warp;
      const uint8_t *next_data = data + (size_t(next_tile) * blocks + next_block) * Tile::bytes;
      if (TOKENS < 8) {
        const Tile current = next;
        if (next_tile < tiles) next.load(next_data, lane);
        if (ONE)
          kqm_contribute_one(current, cached, unit, buffer * blocks + b, part);
        else
          KqmContribute<TOKENS>::call(current, row, b, buffer * blocks + b, part);
      } else {
        KqmContribute<TOKENS>::call(next, row, b, buffer * blocks + b, part);
        if (next_tile < tiles) next.load(next_data, lane);
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < tokens * KQM_TILE_ROWS; i += blockDim.x) {
      const int token = i / KQM_TILE_ROWS, tile_row = i % KQM_TILE_ROWS, r = tile * KQM_TILE_ROWS + tile_row;
      if (r >= int(w.rows)) continue;
      store(r, token, kqm_row_sum<TOKENS, 8>(part, buffer * blocks, blocks, token, tile_row),
            i == int(threadIdx.x) ? fetched : fetch(r, token));
    }
  }
}

// q4_k_matvec and q6_k_gemv, but for the tile: grid (row tiles or fewer, groups of TOKENS tokens).
template <class Tile, int TOKENS, bool ONE>
__global__ void __launch_bounds__(KQM_MATVEC_WARPS(TOKENS) * 32, 1) kqm_matvec_kernel(kqm_matvec_args a) {
  kqm_touch_arguments(a);
  const int blocks = a.w.cols / KQM_BLOCK, first = blockIdx.y * TOKENS, tokens = min(TOKENS, int(a.tokens) - first);
  const kqm_fixed_block *x = a.x + size_t(first) * blocks;
  kqm_matvec_tiles<TOKENS, ONE, Tile>(
      a.w, [=](int i) { return i < tokens ? x + size_t(i) * blocks : nullptr; }, tokens,
      [=](int r, int token) { return a.residual ? a.residual[size_t(first + token) * a.w.rows + r] : 0.0f; },
      [=](int r, int token, float value, float residual) {
        const size_t at = size_t(first + token) * a.w.rows + r;
        if (a.product) a.product[at] = value;
        a.y[at] = a.residual ? kqm_canonical(__fadd_rn(residual, value)) : value;
      });
}

// The same for a single token and one row tile a block, with a warp for each super-block. What can be done before the activations
// are there is done before: after that, every instruction counts.
template <class Tile>
__global__ void __launch_bounds__(KQM_MATVEC_WARPS(1) * 32, 1) kqm_matvec_tile_kernel(kqm_matvec_args a) {
  KQM_DYNAMIC_SHARED(double, part);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, blocks = a.w.cols / KQM_BLOCK;
  const uint32_t r = blockIdx.x * KQM_TILE_ROWS + threadIdx.x;
  const bool finishes = threadIdx.x < KQM_TILE_ROWS && r < a.w.rows;
  Tile tile;
  tile.load(static_cast<const uint8_t *>(a.w.tiles) + (size_t(blockIdx.x) * blocks + warp) * Tile::bytes, lane);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  const typename Tile::Unpacked unpacked(tile, lane);
  kqm_make_now(unpacked.checksum());
  kqm_wait_for_dependencies();
  const kqm_fixed_block *block = a.x + warp;
  typename Tile::Cached cached;
  cached.load(KqmOneToken(block, lane));
  const double unit = kqm_load_now(&block->unit);
  const float residual = finishes && a.residual ? a.residual[r] : 0.0f;
  kqm_contribute_unpacked(unpacked, cached, unit, warp, part);
  __syncthreads();
  if (!finishes) return;
  const float value = kqm_row_sum<1, 16>(part, 0, blocks, 0, threadIdx.x);
  if (a.product) a.product[r] = value;
  a.y[r] = a.residual ? kqm_canonical(__fadd_rn(residual, value)) : value;
}

template <class Tile>
inline kqm_status kqm_launch_matvec(const kqm_matvec_args *args, uint32_t type, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr, KQM_NULL_POINTER);
  KQM_TRY(kqm_check_matrix(args->w));
  KQM_REQUIRE(args->w.type == type, KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->w.experts == 1 && args->tokens > 0, KQM_BAD_SHAPE);
  KQM_REQUIRE(args->x != nullptr && args->y != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(kqm_aligned(args->x, 16), KQM_MISALIGNED);
  const unsigned blocks = args->w.cols / KQM_BLOCK, tiles = kqm_ceil_div(args->w.rows, uint32_t(KQM_TILE_ROWS));
  const unsigned at_a_time = kqm_tokens_at_once(args->tokens, blocks), groups = kqm_ceil_div(args->tokens, at_a_time);
  const unsigned warps = kqm_even_warps(blocks, KQM_MATVEC_WARPS(at_a_time));
  KQM_REQUIRE(groups <= 65535, KQM_BAD_SHAPE);
  // As many blocks as run at once, each with about equally many tiles.
  const unsigned at_once = kqm_multiprocessors() * (KQM_MATVEC_WARPS(at_a_time) / warps);
  const unsigned grid = kqm_ceil_div(tiles, kqm_ceil_div(tiles, at_once));
  const size_t shared = 2 * kqm_part_bytes(blocks, at_a_time);
  const dim3 blocks_of_grid(grid, groups), threads(32 * warps);
  if (at_a_time == 8) return KQM_LAUNCH((kqm_matvec_kernel<Tile, 8, false>), blocks_of_grid, threads, shared, stream, *args);
  if (at_a_time == 2) return KQM_LAUNCH((kqm_matvec_kernel<Tile, 2, false>), blocks_of_grid, threads, shared, stream, *args);
  if (args->tokens == 1 && warps == blocks) {
    if (tiles == grid) return KQM_LAUNCH(kqm_matvec_tile_kernel<Tile>, dim3(tiles), threads, kqm_part_bytes(blocks, 1), stream, *args);
    return KQM_LAUNCH((kqm_matvec_kernel<Tile, 1, true>), blocks_of_grid, threads, shared, stream, *args);
  }
  return KQM_LAUNCH((kqm_matvec_kernel<Tile, 1, false>), blocks_of_grid, threads, shared, stream, *args);
}
