// The frame around a tile product: which warp multiplies what, and the sum over super-blocks. q4_k_matvec, q6_k_gemv, qkv,
// moe_swiglu and moe_down share it.
//
// A warp leaves v * unit (exact: unit is a power of two) of its super-block in shared memory; after a barrier the row sums
// are made in f64 over super-blocks in ascending order, whatever the split over warps.
#pragma once

#include "check.cuh"
#include "fixed.cuh"
#include "tiles.cuh"
#include "tree.cuh"

// Most warps of a block that takes NP pairs of tokens: eight tokens need more registers than sixteen warps leave.
#define KQM_MATVEC_WARPS(np) ((np) == 1 ? 16 : 8)
// Rows longer than this many super-blocks take two tokens at a time, so that shared memory suffices.
#define KQM_WIDE_BLOCKS 16

// Doubles of shared memory for the contributions of one row tile: [super-blocks][2 NP tokens][16 rows].
inline size_t kqm_part_bytes(unsigned blocks, unsigned np) { return size_t(blocks) * 2 * np * KQM_TILE_ROWS * sizeof(double); }

// Where a lane's results belong: row r + 8 (c % 2) of the tile, token c / 2 of each pair.
__device__ __forceinline__ int kqm_result_row() {
  const int lane = threadIdx.x & 31;
  return (lane >> 2) + 8 * (lane & 1);
}
__device__ __forceinline__ int kqm_result_token() { return (threadIdx.x >> 1) & 1; }

// Multiplies one loaded tile and stores the contributions of super-block b. row(i) points to the first fixed-point block of
// token i of the group, NULL for an absent one.
template <int NP, class Tile, class Row>
__device__ __forceinline__ void kqm_contribute(const Tile &tile, Row row, int b, int slot, KQM_SHARED_ARG(double) part) {
  const int lane = threadIdx.x & 31;
  KqmActivations x[NP];
  KQM_UNROLL
  for (int p = 0; p < NP; p++) {
    const kqm_fixed_block *of_lane = row(2 * p + (lane >> 4));
    x[p] = KqmActivations{of_lane ? of_lane + b : nullptr, lane};
  }
  double v[NP];
  tile.template multiply<NP>(x, lane, v);
  KQM_UNROLL
  for (int p = 0; p < NP; p++) {
    const int token = 2 * p + kqm_result_token();
    const kqm_fixed_block *of_result = row(token);
    if (of_result) part[(slot * 2 * NP + token) * KQM_TILE_ROWS + kqm_result_row()] = v[p] * of_result[b].unit;
  }
}

// The same for a single token whose activations are in registers or in shared memory.
template <class Tile, class Activations>
__device__ __forceinline__ void kqm_contribute_cached(const Tile &tile, const Activations &x, double unit, int slot,
                                                      KQM_SHARED_ARG(double) part) {
  double v[1];
  tile.template multiply<1>(&x, threadIdx.x & 31, v);
  if (kqm_result_token() == 0) part[slot * 2 * KQM_TILE_ROWS + kqm_result_row()] = v[0] * unit;
}

// The sum over `blocks` contributions from slot `first`, ascending.
template <int NP>
__device__ __forceinline__ float kqm_row_sum(KQM_SHARED_ARG(double) part, int first, int blocks, int token, int tile_row) {
  const int stride = 2 * NP * KQM_TILE_ROWS;
  return kqm_canonical(float(kqm_ascending_sum(part, first * stride + token * KQM_TILE_ROWS + tile_row, stride, blocks)));
}

// One matrix, many row tiles: block i takes tiles i, i + gridDim.x, ... The weights of the next product are loaded before
// this one is multiplied, those of the first one before the dependencies are waited for. store(row, token, value, fetched) gets
// every result and what fetch(row, token) read before; shared memory holds two tiles' contributions so that one barrier a tile is enough. With eight tokens a tile is
// multiplied long enough to hide less, and a second tile would not fit into the registers.
// ONE says that there is a single token and a warp for each super-block: the warp's activations then stay in registers.
template <int NP, bool ONE, class Tile, class Row, class Fetch, class Store>
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
    unit = row(0)[warp].unit;
    cached.load(KqmOneToken(row(0) + warp, lane));
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
      if (NP == 1) {
        const Tile current = next;
        if (next_tile < tiles) next.load(next_data, lane);
        if (ONE)
          kqm_contribute_cached(current, cached, unit, buffer * blocks + b, part);
        else
          kqm_contribute<NP>(current, row, b, buffer * blocks + b, part);
      } else {
        kqm_contribute<NP>(next, row, b, buffer * blocks + b, part);
        if (next_tile < tiles) next.load(next_data, lane);
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < tokens * KQM_TILE_ROWS; i += blockDim.x) {
      const int token = i / KQM_TILE_ROWS, tile_row = i % KQM_TILE_ROWS, r = tile * KQM_TILE_ROWS + tile_row;
      if (r >= int(w.rows)) continue;
      store(r, token, kqm_row_sum<NP>(part, buffer * blocks, blocks, token, tile_row),
            i == int(threadIdx.x) ? fetched : fetch(r, token));
    }
  }
}

// q4_k_matvec and q6_k_gemv, but for the tile: grid (row tiles or fewer, groups of 2 NP tokens).
template <class Tile, int NP, bool ONE>
__global__ void __launch_bounds__(KQM_MATVEC_WARPS(NP) * 32, 1) kqm_matvec_kernel(kqm_matvec_args a) {
  kqm_touch_arguments(a);
  const int blocks = a.w.cols / KQM_BLOCK, first = blockIdx.y * 2 * NP, tokens = min(2 * NP, int(a.tokens) - first);
  const kqm_fixed_block *x = a.x + size_t(first) * blocks;
  kqm_matvec_tiles<NP, ONE, Tile>(
      a.w, [=](int i) { return i < tokens ? x + size_t(i) * blocks : nullptr; }, tokens,
      [=](int r, int token) { return a.residual ? a.residual[size_t(first + token) * a.w.rows + r] : 0.0f; },
      [=](int r, int token, float value, float residual) {
        const size_t at = size_t(first + token) * a.w.rows + r;
        if (a.product) a.product[at] = value;
        a.y[at] = a.residual ? kqm_canonical(__fadd_rn(residual, value)) : value;
      });
}

// The same for a single token and one row tile a block, with a warp for each super-block. Registers for one tile only, so that two
// blocks fit on a multiprocessor and one of the next launch can fetch its weights while this one ends.
template <class Tile>
__global__ void __launch_bounds__(KQM_MATVEC_WARPS(1) * 32, Tile::matvec_blocks) kqm_matvec_tile_kernel(kqm_matvec_args a) {
  KQM_DYNAMIC_SHARED(double, part);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, blocks = a.w.cols / KQM_BLOCK;
  const uint32_t r = blockIdx.x * KQM_TILE_ROWS + threadIdx.x;
  const bool finishes = threadIdx.x < KQM_TILE_ROWS && r < a.w.rows;
  Tile tile;
  tile.load(static_cast<const uint8_t *>(a.w.tiles) + (size_t(blockIdx.x) * blocks + warp) * Tile::bytes, lane);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const kqm_fixed_block *block = a.x + warp;
  typename Tile::Cached cached;
  cached.load(KqmOneToken(block, lane));
  const double unit = block->unit;
  const float residual = finishes && a.residual ? a.residual[r] : 0.0f;
  kqm_contribute_cached(tile, cached, unit, warp, part);
  __syncthreads();
  if (!finishes) return;
  const float value = kqm_row_sum<1>(part, 0, blocks, 0, threadIdx.x);
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
  const bool wide = args->tokens > 2 && blocks <= KQM_WIDE_BLOCKS;
  const unsigned np = wide ? 4 : 1, groups = kqm_ceil_div(args->tokens, 2 * np);
  const unsigned warps = kqm_even_warps(blocks, KQM_MATVEC_WARPS(np));
  KQM_REQUIRE(groups <= 65535, KQM_BAD_SHAPE);
  // As many blocks as run at once, each with about equally many tiles.
  const unsigned at_once = kqm_multiprocessors() * (KQM_MATVEC_WARPS(np) / warps);
  const unsigned grid = kqm_ceil_div(tiles, kqm_ceil_div(tiles, at_once));
  const size_t shared = 2 * kqm_part_bytes(blocks, np);
  const dim3 blocks_of_grid(grid, groups), threads(32 * warps);
  if (wide) return KQM_LAUNCH((kqm_matvec_kernel<Tile, 4, false>), blocks_of_grid, threads, shared, stream, *args);
  if (args->tokens == 1 && warps == blocks) {
    if (tiles == grid) return KQM_LAUNCH(kqm_matvec_tile_kernel<Tile>, dim3(tiles), threads, kqm_part_bytes(blocks, 1), stream, *args);
    return KQM_LAUNCH((kqm_matvec_kernel<Tile, 1, true>), blocks_of_grid, threads, shared, stream, *args);
  }
  return KQM_LAUNCH((kqm_matvec_kernel<Tile, 1, false>), blocks_of_grid, threads, shared, stream, *args);
}
