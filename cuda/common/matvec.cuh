// The frame around a tile product: which warp multiplies what, and the sum over super-blocks. matvec, q4_k_matvec, q6_k_gemv, qkv,
// moe_swiglu and moe_down share it.
//
// A warp leaves v * unit (exact: unit is a power of two) of its super-block in shared memory; after a barrier the row sums
// are made in f64 in the order of docs/arithmetic.md, whatever the split over warps.
//
// TOKENS, how many a block multiplies at a time, is 1 or 2; for more see wide.cuh.
#pragma once

#include "fixed.cuh"
#include "tree.cuh"
#include "types.cuh"
#include "warpgroups.cuh"
#include "wide.cuh"

// Most warps of a block that takes `tokens` at a time: two need more registers than sixteen warps leave.
#define KQM_MATVEC_WARPS(tokens) ((tokens) == 1 ? 16 : 8)

// Bytes of shared memory for the contributions of one row tile: [super-blocks][tokens][16 rows].
inline size_t kqm_part_bytes(unsigned blocks, unsigned tokens) {
  return size_t(blocks) * tokens * KQM_TILE_ROWS * sizeof(double);
}

// Multiplies one unpacked tile and stores the contributions of its super-block, whose unit(token) is given.
template <int TOKENS, class Unpacked, class Activations, class Unit>
__device__ __forceinline__ void kqm_contribute_as(const Unpacked &tile, const Activations &x, int slot,
                                                  KQM_SHARED_ARG(double) part, Unit unit) {
  typedef typename Activations::Columns Columns;
  const int lane = threadIdx.x & 31;
  double v[Columns::results];
  tile.multiply(x, lane, v);
  KQM_UNROLL
  for (int i = 0; i < Columns::results; i++) {
    const int token = Columns::token(i, lane);
    if (Columns::present(lane))
      part[(slot * TOKENS + token) * KQM_TILE_ROWS + Columns::row(i, lane)] = v[i] * unit(token);
  }
}

// The same for a single token, wherever its activations are.
template <class Unpacked, class Activations>
__device__ __forceinline__ void kqm_contribute_unpacked(const Unpacked &tile, const Activations &x, double unit,
                                                        int slot, KQM_SHARED_ARG(double) part) {
  kqm_contribute_as<1>(tile, x, slot, part, [=](int) { return unit; });
}

template <class Tile, class Activations>
__device__ __forceinline__ void kqm_contribute_one(const Tile &tile, const Activations &x, double unit, int slot,
                                                   KQM_SHARED_ARG(double) part) {
  kqm_contribute_unpacked(typename Tile::Unpacked(tile, threadIdx.x & 31), x, unit, slot, part);
}

// The same for a token in memory, of which `block` is the super-block.
template <class Tile>
__device__ __forceinline__ void kqm_contribute_block(const Tile &tile, const kqm_fixed_block *block, int slot,
                                                     KQM_SHARED_ARG(double) part) {
  kqm_contribute_one(tile, KqmOneToken(block, threadIdx.x & 31), block->unit, slot, part);
}

// The same for TOKENS tokens in memory. row(i) points to the first fixed-point block of token i of them.
template <int TOKENS>
struct KqmContribute;

template <>
struct KqmContribute<1> {
  template <class Tile, class Row>
  __device__ __forceinline__ static void call(const Tile &tile, Row row, int b, int slot, KQM_SHARED_ARG(double) part) {
    kqm_contribute_block(tile, row(0) + b, slot, part);
  }
};

template <>
struct KqmContribute<2> {
  template <class Tile, class Row>
  __device__ __forceinline__ static void call(const Tile &tile, Row row, int b, int slot, KQM_SHARED_ARG(double) part) {
    const int lane = threadIdx.x & 31;
    const KqmTwoTokens x{KqmOneToken(row(0) + b, lane), KqmOneToken(row(1) + b, lane)};
    kqm_contribute_as<2>(typename Tile::Unpacked(tile, lane), x, slot, part,
                         [=](int token) { return row(token)[b].unit; });
  }
};

// The sum over `blocks` contributions from slot `first`.
template <int TOKENS>
__device__ __forceinline__ float kqm_row_sum(KQM_SHARED_ARG(double) part, int first, int blocks, int token,
                                             int tile_row) {
  const int stride = TOKENS * KQM_TILE_ROWS;
  return kqm_canonical(float(kqm_tree_sum(part, first * stride + token * KQM_TILE_ROWS + tile_row, stride, blocks)));
}

// The same for a single token, over BLOCKS slots of which those behind the row's super-blocks are zeros.
template <int BLOCKS>
__device__ __forceinline__ float kqm_row_sum_of(KQM_SHARED_ARG(double) part, int first, int tile_row) {
  return kqm_canonical(float(kqm_tree_sum<BLOCKS>(part, first * KQM_TILE_ROWS + tile_row, KQM_TILE_ROWS)));
}

// One matrix, many row tiles: block i takes tiles i, i + gridDim.x, ... The weights of the next product are loaded before
// this one is multiplied, those of the first one before the dependencies are waited for. store(row, token, value, fetched) gets
// every result and what fetch(row, token) read before; shared memory holds two tiles' contributions so that one barrier a tile is
// enough.
// ONE says that there is a single token and a warp for each super-block: the warp's activations then stay in registers.
template <int TOKENS, bool ONE, class Tile, class Row, class Fetch, class Store>
__device__ __forceinline__ void kqm_matvec_tiles(const kqm_matrix &w, Row row, Fetch fetch, Store store) {
  KQM_DYNAMIC_SHARED(double, part);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  const int blocks = w.cols / KQM_BLOCK, tiles = (w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS;
  const uint8_t *data = static_cast<const uint8_t *>(w.tiles);

  Tile next;
  next.load(KqmTileInMemory(data + (size_t(blockIdx.x) * blocks + warp) * Tile::bytes, lane));
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
    const float fetched = own_token < TOKENS && own < int(w.rows) ? fetch(own, own_token) : 0.0f;
    for (int b = warp; b < blocks; b += warps) {
      const bool same_row = b + warps < blocks;
      const int next_tile = same_row ? tile : tile + int(gridDim.x), next_block = same_row ? b + warps : warp;
      const uint8_t *next_data = data + (size_t(next_tile) * blocks + next_block) * Tile::bytes;
      const Tile current = next;
      if (next_tile < tiles) next.load(KqmTileInMemory(next_data, lane));
      if (ONE)
        kqm_contribute_one(current, cached, unit, buffer * blocks + b, part);
      else
        KqmContribute<TOKENS>::call(current, row, b, buffer * blocks + b, part);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TOKENS * KQM_TILE_ROWS; i += blockDim.x) {
      const int token = i / KQM_TILE_ROWS, tile_row = i % KQM_TILE_ROWS, r = tile * KQM_TILE_ROWS + tile_row;
      if (r >= int(w.rows)) continue;
      const float value = ONE && blocks == 8 ? kqm_row_sum_of<8>(part, buffer * blocks, tile_row)
                                             : kqm_row_sum<TOKENS>(part, buffer * blocks, blocks, token, tile_row);
      store(r, token, value, i == int(threadIdx.x) ? fetched : fetch(r, token));
    }
  }
}

// A result of a mat-vec and its residual to where they belong.
__device__ __forceinline__ void kqm_matvec_store(const kqm_matvec_args &a, size_t at, float value, float residual) {
  if (a.product) a.product[at] = value;
  a.y[at] = a.residual ? kqm_canonical(__fadd_rn(residual, value)) : value;
}

// The mat-vecs, but for the tile: for as many tokens as TOKENS says, grid (row tiles or fewer).
template <class Tile, int TOKENS, bool ONE>
__global__ void __launch_bounds__(KQM_MATVEC_WARPS(TOKENS) * 32, 1) kqm_matvec_kernel(kqm_matvec_args a) {
  kqm_touch_arguments(a);
  const int blocks = a.w.cols / KQM_BLOCK;
  kqm_matvec_tiles<TOKENS, ONE, Tile>(
      a.w, [=](int i) { return a.x + size_t(i) * blocks; },
      [=](int r, int token) { return a.residual ? a.residual[size_t(token) * a.w.rows + r] : 0.0f; },
      [=](int r, int token, float value, float residual) {
        kqm_matvec_store(a, size_t(token) * a.w.rows + r, value, residual);
      });
}

#if KQM_WARPGROUPS
// A matrix and many tokens for the frame of warpgroups: work items are row blocks x groups of 32 tokens.
struct KqmMatvecProblem {
  const kqm_matvec_args &a;
  int tiles, row_blocks;
  KqmWarpgroups plan;
  KqmShare own_share;

  struct Work {
    int row_block, first_token, tokens;
  };
  __device__ __forceinline__ KqmMatvecProblem(const kqm_matvec_args &of, const KqmWarpgroups &layout, KqmShare share)
      : a(of),
        tiles(int(of.w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS),
        row_blocks(kqm_group_row_blocks(layout, tiles)),
        plan(layout),
        own_share(share) {}
  __device__ __forceinline__ KqmShare share() const { return own_share; }
  __device__ __forceinline__ int works() const {
    return row_blocks * int((a.tokens + kqm_group_tokens - 1) / kqm_group_tokens);
  }
  __device__ __forceinline__ Work work(int i) const {
    const int first = i / row_blocks * kqm_group_tokens;
    return Work{i % row_blocks, first, min(kqm_group_tokens, int(a.tokens) - first)};
  }
  __device__ __forceinline__ const kqm_fixed_block *x() const { return a.x; }
  __device__ __forceinline__ uint32_t first(const Work &work, int token) const {
    return uint32_t((work.first_token + token) * plan.blocks);
  }
  __device__ __forceinline__ int row_tile(const Work &work, int slot) const {
    return work.row_block * plan.groups * kqm_group_warps + slot;
  }
  // A warp beyond the last tile works on that one, too, and stores nothing.
  template <class Tile>
  __device__ __forceinline__ const uint8_t *tile(const Work &work, int slot) const {
    return static_cast<const uint8_t *>(a.w.tiles) +
           size_t(min(row_tile(work, slot), tiles - 1)) * plan.blocks * Tile::bytes;
  }
  template <int TOKENS>
  __device__ __forceinline__ void finish(const KqmWarpgroups &, int i, int slot, uint32_t, const float (&y)[TOKENS / 2],
                                         KQM_SHARED_ARG(uint32_t)) const {
    const Work work = this->work(i);
    kqm_group_store<TOKENS>(y, row_tile(work, slot), a.w.rows, work.tokens, [&](int r, int token, float value) {
      const size_t at = size_t(work.first_token + token) * a.w.rows + r;
      kqm_matvec_store(a, at, value, a.residual ? a.residual[at] : 0.0f);
    });
  }
};
#endif

template <class Tile>
__global__ void __launch_bounds__(kqm_groups_threads, 1)
    kqm_matvec_groups_kernel(kqm_matvec_args a, KqmWarpgroups plan) {
#if KQM_WARPGROUPS
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  kqm_warpgroup_cta<Tile>(plan, KqmMatvecProblem(a, plan, kqm_whole_share()), shared);
#endif
}

// For any number of tokens: grid (row tiles / kqm_wide_warps, groups of eight tokens).
template <class Tile>
__global__ void __launch_bounds__(kqm_wide_threads, kqm_wide_at_once) kqm_matvec_wide_kernel(kqm_matvec_args a) {
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  const int blocks = a.w.cols / KQM_BLOCK, tiles = (a.w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS;
  const int tile = blockIdx.x * kqm_wide_warps + (threadIdx.x >> 5);
  const int first = blockIdx.y * kqm_wide_tokens, tokens = min(kqm_wide_tokens, int(a.tokens) - first);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  float y[KqmTokenColumns::results];
  // A warp beyond the last tile works on that one, too, and stores nothing.
  kqm_wide_sums<Tile>(
      Tile::bytes, static_cast<const uint8_t *>(a.w.tiles) + size_t(min(tile, tiles - 1)) * blocks * Tile::bytes,
      blocks, a.x, [=](int i) { return i < tokens ? uint32_t((first + i) * blocks) : kqm_wide_absent; }, shared, y);
  kqm_wide_store(y, tile, a.w.rows, tokens, [=](int r, int token, float value) {
    const size_t at = size_t(first + token) * a.w.rows + r;
    kqm_matvec_store(a, at, value, a.residual ? a.residual[at] : 0.0f);
  });
}

// For a single token and one row tile a block, with a warp for each super-block. What can be done before the activations
// are there is done before: after that, every instruction counts.
template <class Tile>
__global__ void __launch_bounds__(KQM_MATVEC_WARPS(1) * 32, 1) kqm_matvec_tile_kernel(kqm_matvec_args a) {
  KQM_DYNAMIC_SHARED(double, part);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, blocks = a.w.cols / KQM_BLOCK;
  const uint32_t r = blockIdx.x * KQM_TILE_ROWS + threadIdx.x;
  const bool finishes = threadIdx.x < KQM_TILE_ROWS && r < a.w.rows;
  Tile tile;
  tile.load(KqmTileInMemory(
      static_cast<const uint8_t *>(a.w.tiles) + (size_t(blockIdx.x) * blocks + warp) * Tile::bytes, lane));
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_fill_up(part, blocks * KQM_TILE_ROWS, KQM_MATVEC_WARPS(1) * KQM_TILE_ROWS);
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
  kqm_matvec_store(a, r, kqm_row_sum_of<KQM_MATVEC_WARPS(1)>(part, 0, threadIdx.x), residual);
}

template <class Tile>
inline kqm_status kqm_matvec_of_type(const kqm_matvec_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr, KQM_NULL_POINTER);
  KQM_TRY(kqm_check_matrix(args->w));
  KQM_REQUIRE(args->w.type == Tile::type, KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->w.experts == 1 && args->tokens > 0, KQM_BAD_SHAPE);
  KQM_REQUIRE(args->x != nullptr && args->y != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(kqm_aligned(args->x, 16), KQM_MISALIGNED);
  const unsigned blocks = args->w.cols / KQM_BLOCK, tiles = kqm_ceil_div(args->w.rows, uint32_t(KQM_TILE_ROWS));
  const KqmWarpgroups plan = kqm_plan_warpgroups(blocks);
  if (args->tokens >= kqm_group_least_tokens && plan.groups > 0) {
    const unsigned works = kqm_group_works(plan, args->w.rows, args->tokens);
    return KQM_LAUNCH_WARPGROUPS(kqm_matvec_groups_kernel<Tile>, dim3(std::min(works, kqm_multiprocessors())),
                                 plan.block(), plan.bytes(), stream, *args, plan);
  }
  if (args->tokens > 2) {
    const unsigned groups = kqm_ceil_div(args->tokens, unsigned(kqm_wide_tokens));
    KQM_REQUIRE(groups <= 65535, KQM_BAD_SHAPE);
    return KQM_LAUNCH(kqm_matvec_wide_kernel<Tile>, dim3(kqm_ceil_div(tiles, unsigned(kqm_wide_warps)), groups),
                      dim3(kqm_wide_threads), kqm_wide_bytes(Tile::bytes, blocks), stream, *args);
  }
  const unsigned most_warps = args->tokens == 1 ? KQM_MATVEC_WARPS(1) : KQM_MATVEC_WARPS(2),
                 warps = kqm_even_warps(blocks, most_warps);
  // As many blocks as run at once, each with about equally many tiles.
  const unsigned at_once = kqm_multiprocessors() * (most_warps / warps);
  const dim3 grid(kqm_ceil_div(tiles, kqm_ceil_div(tiles, at_once))), threads(32 * warps);
  const size_t shared = 2 * kqm_part_bytes(blocks, args->tokens);
  if (args->tokens == 2) return KQM_LAUNCH((kqm_matvec_kernel<Tile, 2, false>), grid, threads, shared, stream, *args);
  if (warps != blocks) return KQM_LAUNCH((kqm_matvec_kernel<Tile, 1, false>), grid, threads, shared, stream, *args);
  if (tiles == grid.x)
    return KQM_LAUNCH(kqm_matvec_tile_kernel<Tile>, grid, threads, kqm_part_bytes(KQM_MATVEC_WARPS(1), 1), stream,
                      *args);
  return KQM_LAUNCH((kqm_matvec_kernel<Tile, 1, true>), grid, threads, shared, stream, *args);
}
