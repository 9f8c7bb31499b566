// The frame around a tile product for one or two tokens (TOKENS): which warp multiplies what, and the sum over super-blocks. matvec,
// q4_k_matvec, q6_k_gemv, qkv, moe_swiglu and moe_down share its parts; for more tokens see wide.cuh.
//
//   for each row tile of the CTA:                                        tiles blockIdx.x, blockIdx.x + gridDim.x, ...
//     for each super-block b of the warp:                                b = warp, warp + warps, ...
//       for each token:
//         v[row] = (16 rows of weights) x (256 activations)              exact, on tensor cores (tiles.cuh)
//         contributions[b][token][row] = v[row] * unit[token][b]         exact: a unit is a power of two
//     barrier
//     for each token and row, a thread:
//       y = f32(tree_sum over b of contributions[b][token][row])         f64, in the order of docs/arithmetic.md
//       store(row, token, y)
//
// The sum reads the contributions of all warps in one order, so it does not depend on the split over warps. From this the code differs:
//
// 1. The weights of the next product are loaded before this one is multiplied, and those of the first before the wait for the
//    dependencies: nothing but the weights can be asked for earlier. The compiler would sink those loads down to their first use.
// 2. There are two buffers of contributions, so that one barrier a tile is enough: a warp that is done with tile n may write those of tile
//    n + 1 while others still sum up tile n, and none is two tiles ahead.
// 3. With a warp for each super-block, a warp multiplies the same activations again and again: they stay in registers (ONE).
// 4. With one tile a CTA as well (kqm_matvec_tile_kernel) there is no loop, and all that can be made of weights alone is made before the
//    wait. After it, each instruction is on the way from the last kernel's result to this one's.
//
// What a lane has of the contributions of a super-block and token (KqmPlaneColumns), row r = lane / 4 of the tile:
//
//   lane       4 r       4 r + 1     4 r + 2   4 r + 3
//            row r     row r + 8        -         -
#pragma once

#include "fixed.cuh"
#include "tree.cuh"
#include "types.cuh"
#include "warpgroups.cuh"
#include "wide.cuh"

// Most warps of a CTA that takes `tokens` at a time: two need more registers than sixteen warps leave.
#define KQM_MATVEC_WARPS(tokens) ((tokens) == 1 ? 16 : 8)

// Bytes of shared memory for the contributions of one row tile: [super-blocks][tokens][16 rows].
inline size_t kqm_contribution_bytes(unsigned super_blocks, unsigned tokens) {
  return size_t(super_blocks) * tokens * KQM_TILE_ROWS * sizeof(double);
}

// The contributions of a tile, v times the unit of the token's super-block, to slot `slot`. unit(token) says that unit.
template <class Unpacked, class Activations, class Unit>
__device__ __forceinline__ void kqm_contribute(const Unpacked &tile, const Activations &x, Unit unit, int slot,
                                               KQM_SHARED_ARG(double) contributions) {
  typedef typename Activations::Columns Columns;
  const int lane = threadIdx.x & 31, tokens = Columns::results;
  double v[Columns::results];
  tile.multiply(x, lane, v);
  KQM_UNROLL
  for (int i = 0; i < Columns::results; i++) {
    const int token = Columns::token(i, lane);
    if (Columns::present(lane))
      contributions[(slot * tokens + token) * KQM_TILE_ROWS + Columns::row(i, lane)] = v[i] * unit(token);
  }
}

// The unit of a single token's super-block, for kqm_contribute.
struct KqmUnit {
  double value;
  __device__ __forceinline__ double operator()(int) const { return value; }
};

// kqm_contribute for a single token and a tile as it was loaded.
template <class Tile, class Activations>
__device__ __forceinline__ void kqm_contribute_packed(const Tile &tile, const Activations &x, double unit, int slot,
                                                      KQM_SHARED_ARG(double) contributions) {
  kqm_contribute(typename Tile::Unpacked(tile, threadIdx.x & 31), x, KqmUnit{unit}, slot, contributions);
}

// kqm_contribute for super-block `b` of TOKENS tokens in memory, of which token i begins at row(i).
template <int TOKENS, class Tile, class Row>
__device__ __forceinline__ void kqm_contribute_rows(const Tile &tile, Row row, int b, int slot,
                                                    KQM_SHARED_ARG(double) contributions) {
  static_assert(TOKENS == 1 || TOKENS == 2, "more tokens have a frame of their own");
  const int lane = threadIdx.x & 31;
  if constexpr (TOKENS == 1) {
    const kqm_fixed_block *fixed = row(0) + b;
    kqm_contribute_packed(tile, KqmOneToken(fixed, lane), fixed->unit, slot, contributions);
  } else {
    const KqmTwoTokens x{KqmOneToken(row(0) + b, lane), KqmOneToken(row(1) + b, lane)};
    kqm_contribute(
        typename Tile::Unpacked(tile, lane), x, [=](int token) { return row(token)[b].unit; }, slot, contributions);
  }
}

// The sum of a row, over the contributions of `super_blocks` slots from `first` on.
template <int TOKENS>
__device__ __forceinline__ float kqm_row_sum(KQM_SHARED_ARG(double) contributions, int first, int super_blocks,
                                             int token, int tile_row) {
  const int stride = TOKENS * KQM_TILE_ROWS;
  return kqm_canonical(float(
      kqm_tree_sum_shared(contributions, first * stride + token * KQM_TILE_ROWS + tile_row, stride, super_blocks)));
}

// The sum of a row of a single token, over SUPER_BLOCKS slots: behind those of its super-blocks they are padded with zeros.
template <int SUPER_BLOCKS>
__device__ __forceinline__ float kqm_row_sum_padded(KQM_SHARED_ARG(double) contributions, int first, int tile_row) {
  return kqm_canonical(
      float(kqm_tree_sum_padded<SUPER_BLOCKS>(contributions, first * KQM_TILE_ROWS + tile_row, KQM_TILE_ROWS)));
}

// One matrix, many row tiles: CTA i takes tiles i, i + gridDim.x, ... The weights of the next product are loaded before
// this one is multiplied, those of the first one before the dependencies are waited for. store(row, token, value, fetched) gets
// every result and what fetch(row, token) read before; shared memory holds two tiles' contributions so that one barrier a tile is
// enough.
// ONE says that there is a single token and a warp for each super-block: the warp's activations then stay in registers.
template <int TOKENS, bool ONE, class Tile, class Row, class Fetch, class Store>
__device__ __forceinline__ void kqm_matvec_tiles(const kqm_matrix &w, Row row, Fetch fetch, Store store) {
  KQM_DYNAMIC_SHARED(double, contributions);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  const int super_blocks = w.cols / KQM_BLOCK, tiles = (w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS;
  const uint8_t *data = static_cast<const uint8_t *>(w.tiles);

  Tile next;
  next.load(KqmTileInMemory(data + (size_t(blockIdx.x) * super_blocks + warp) * Tile::bytes, lane));
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
    for (int b = warp; b < super_blocks; b += warps) {
      const bool same_row = b + warps < super_blocks;
      const int next_tile = same_row ? tile : tile + int(gridDim.x), next_super_block = same_row ? b + warps : warp;
      const uint8_t *next_data = data + (size_t(next_tile) * super_blocks + next_super_block) * Tile::bytes;
      const Tile current = next;
      if (next_tile < tiles) next.load(KqmTileInMemory(next_data, lane));
      if (ONE)
        kqm_contribute_packed(current, cached, unit, buffer * super_blocks + b, contributions);
      else
        kqm_contribute_rows<TOKENS>(current, row, b, buffer * super_blocks + b, contributions);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TOKENS * KQM_TILE_ROWS; i += blockDim.x) {
      const int token = i / KQM_TILE_ROWS, tile_row = i % KQM_TILE_ROWS, r = tile * KQM_TILE_ROWS + tile_row;
      if (r >= int(w.rows)) continue;
      const float value =
          ONE && super_blocks == 8
              ? kqm_row_sum_padded<8>(contributions, buffer * super_blocks, tile_row)
              : kqm_row_sum<TOKENS>(contributions, buffer * super_blocks, super_blocks, token, tile_row);
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
  const int super_blocks = a.w.cols / KQM_BLOCK;
  kqm_matvec_tiles<TOKENS, ONE, Tile>(
      a.w, [=](int i) { return a.x + size_t(i) * super_blocks; },
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
    return uint32_t((work.first_token + token) * plan.super_blocks);
  }
  __device__ __forceinline__ int row_tile(const Work &work, int slot) const {
    return work.row_block * plan.groups * kqm_group_warps + slot;
  }
  // A warp beyond the last tile works on that one, too, and stores nothing.
  template <class Tile>
  __device__ __forceinline__ const uint8_t *tile(const Work &work, int slot) const {
    return static_cast<const uint8_t *>(a.w.tiles) +
           size_t(min(row_tile(work, slot), tiles - 1)) * plan.super_blocks * Tile::bytes;
  }
  template <int TOKENS>
  __device__ __forceinline__ void finish(int i, int slot, uint32_t, const float (&y)[TOKENS / 2],
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
#else
  kqm_no_warpgroups();
#endif
}

// For any number of tokens: grid (row tiles / kqm_wide_warps, groups of eight tokens).
template <class Tile>
__global__ void __launch_bounds__(kqm_wide_threads, kqm_wide_at_once) kqm_matvec_many_tokens_kernel(kqm_matvec_args a) {
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  const int super_blocks = a.w.cols / KQM_BLOCK, tiles = (a.w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS;
  const int tile = blockIdx.x * kqm_wide_warps + (threadIdx.x >> 5);
  const int first = blockIdx.y * kqm_wide_tokens, tokens = min(kqm_wide_tokens, int(a.tokens) - first);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  float y[KqmTokenColumns::results];
  // A warp beyond the last tile works on that one, too, and stores nothing.
  kqm_wide_sums<Tile>(
      Tile::bytes, static_cast<const uint8_t *>(a.w.tiles) + size_t(min(tile, tiles - 1)) * super_blocks * Tile::bytes,
      super_blocks, a.x, [=](int i) { return i < tokens ? uint32_t((first + i) * super_blocks) : kqm_wide_absent; },
      shared, y);
  kqm_wide_store<KqmTokenColumns>(y, tile, a.w.rows, tokens, [=](int r, int token, float value) {
    const size_t at = size_t(first + token) * a.w.rows + r;
    kqm_matvec_store(a, at, value, a.residual ? a.residual[at] : 0.0f);
  });
}

// For a single token and one row tile a CTA, with a warp for each super-block. What can be done before the activations
// are there is done before: after that, every instruction counts.
template <class Tile>
__global__ void __launch_bounds__(KQM_MATVEC_WARPS(1) * 32, 1) kqm_matvec_tile_kernel(kqm_matvec_args a) {
  KQM_DYNAMIC_SHARED(double, contributions);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, super_blocks = a.w.cols / KQM_BLOCK;
  const uint32_t r = blockIdx.x * KQM_TILE_ROWS + threadIdx.x;
  const bool finishes = threadIdx.x < KQM_TILE_ROWS && r < a.w.rows;
  Tile tile;
  tile.load(KqmTileInMemory(
      static_cast<const uint8_t *>(a.w.tiles) + (size_t(blockIdx.x) * super_blocks + warp) * Tile::bytes, lane));
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_zero_pad(contributions, super_blocks * KQM_TILE_ROWS, KQM_MATVEC_WARPS(1) * KQM_TILE_ROWS);
  const typename Tile::Unpacked unpacked(tile, lane);
  kqm_materialize(unpacked.checksum());
  kqm_wait_for_dependencies();
  const kqm_fixed_block *fixed = a.x + warp;
  typename Tile::Cached cached;
  cached.load(KqmOneToken(fixed, lane));
  const double unit = kqm_load_volatile(&fixed->unit);
  const float residual = finishes && a.residual ? a.residual[r] : 0.0f;
  kqm_contribute(unpacked, cached, KqmUnit{unit}, warp, contributions);
  __syncthreads();
  if (!finishes) return;
  kqm_matvec_store(a, r, kqm_row_sum_padded<KQM_MATVEC_WARPS(1)>(contributions, 0, threadIdx.x), residual);
}

template <class Tile>
inline kqm_status kqm_matvec_of_type(const kqm_matvec_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr, KQM_NULL_POINTER);
  KQM_TRY(kqm_check_matrix(args->w));
  KQM_REQUIRE(args->w.type == Tile::type, KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->w.experts == 1 && args->tokens > 0, KQM_BAD_SHAPE);
  KQM_REQUIRE(args->x != nullptr && args->y != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(kqm_aligned(args->x, 16), KQM_MISALIGNED);
  const unsigned super_blocks = args->w.cols / KQM_BLOCK, tiles = kqm_ceil_div(args->w.rows, uint32_t(KQM_TILE_ROWS));
  const unsigned groups = kqm_ceil_div(args->tokens, unsigned(kqm_wide_tokens));
  KQM_REQUIRE(groups <= 65535, KQM_BAD_SHAPE);
  if constexpr (KqmWarpgroupTypes::is_here<Tile>) {
    if (kqm_tokens_for_groups(args->tokens)) {
      const KqmWarpgroups plan = kqm_plan_warpgroups(super_blocks);
      const unsigned works = plan.groups > 0 ? kqm_group_works(plan, args->w.rows, args->tokens) : 0;
      if (kqm_works_for_groups(works))
        return KQM_LAUNCH_WARPGROUPS(kqm_matvec_groups_kernel<Tile>, dim3(std::min(works, kqm_multiprocessors())),
                                     plan.block(), plan.bytes(), stream, *args, plan);
    }
  }
  if (args->tokens > 2) {
    return KQM_LAUNCH(kqm_matvec_many_tokens_kernel<Tile>, dim3(kqm_ceil_div(tiles, unsigned(kqm_wide_warps)), groups),
                      dim3(kqm_wide_threads), kqm_wide_bytes(Tile::bytes, super_blocks), stream, *args);
  }
  const unsigned most_warps = args->tokens == 1 ? KQM_MATVEC_WARPS(1) : KQM_MATVEC_WARPS(2),
                 warps = kqm_even_warps(super_blocks, most_warps);
  // As many CTAs as run at once, each with about equally many tiles.
  const unsigned at_once = kqm_multiprocessors() * (most_warps / warps);
  const dim3 grid(kqm_ceil_div(tiles, kqm_ceil_div(tiles, at_once))), threads(32 * warps);
  const size_t shared = 2 * kqm_contribution_bytes(super_blocks, args->tokens);
  if (args->tokens == 2) return KQM_LAUNCH((kqm_matvec_kernel<Tile, 2, false>), grid, threads, shared, stream, *args);
  if (warps != super_blocks)
    return KQM_LAUNCH((kqm_matvec_kernel<Tile, 1, false>), grid, threads, shared, stream, *args);
  if (tiles == grid.x)
    return KQM_LAUNCH(kqm_matvec_tile_kernel<Tile>, grid, threads, kqm_contribution_bytes(KQM_MATVEC_WARPS(1), 1),
                      stream, *args);
  return KQM_LAUNCH((kqm_matvec_kernel<Tile, 1, true>), grid, threads, shared, stream, *args);
}
