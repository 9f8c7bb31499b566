// The frame for many tokens: each warp of a block multiplies a row tile of its own with the same eight tokens, over all super-blocks of
// the row. The tokens' digits, once for all warps, and each warp's weights are on their way to shared memory a super-block ahead. Nothing
// is left to add up between warps. The mat-vecs, qkv, moe_swiglu and moe_down share it.
#pragma once

#include "fixed.cuh"
#include "tree.cuh"
#include "types.cuh"

static const int kqm_wide_tokens = 8, kqm_wide_warps = 4, kqm_wide_threads = 32 * kqm_wide_warps;
// Blocks at once on a multiprocessor, which limits the registers.
static const int kqm_wide_at_once = 3;

// Shared memory of a block, in words: digits [2 super-blocks][8 tokens][block], the tokens' first blocks [8], weights
// [warps][2 super-blocks][tile of `tile_bytes`] and, for rows of more than 16 super-blocks, the sums over groups of those, f64
// [results][threads].
static const int kqm_wide_table = 2 * kqm_wide_tokens * kqm_fixed_words,
                 kqm_wide_weights = kqm_wide_table + kqm_wide_tokens;
inline size_t kqm_wide_bytes(int tile_bytes, unsigned blocks) {
  const size_t groups =
      blocks > unsigned(kqm_tree_group) ? KqmTokenColumns::results * kqm_wide_threads * sizeof(double) : 0;
  return 4 * kqm_wide_weights + size_t(2) * kqm_wide_warps * tile_bytes + groups;
}
static const uint32_t kqm_wide_absent = ~0u;

// Copies the tile of super-block b of a row tile that begins at `data` to word `to` of shared memory, asynchronously. By a warp.
template <class Tile>
__device__ __forceinline__ void kqm_wide_fetch_tile(const uint8_t *data, int b, int to,
                                                    KQM_SHARED_ARG(uint32_t) shared) {
  const int lane = threadIdx.x & 31, parts = Tile::bytes / 16;
  const uint8_t *from = data + size_t(b) * Tile::bytes + 16 * lane;
  KQM_UNROLL
  for (int i = 0; i < parts; i += 32) {
    if (i + lane < parts) kqm_async_copy_16(shared, to + 4 * (i + lane), from + 16 * i);
  }
}

// Row sums of a warp's row tile, of which `data` is the first super-block, rounded to f32: y[i] is that of row Columns::row(i, lane) and
// token Columns::token(i, lane), whatever that is worth for absent tokens. first(i) says which block of x is the first one of token i of
// eight, or that it is absent; token 0 is present. All warps of the block come, and meet as often. `most_bytes`: of the largest tile that a
// warp of the block has.
template <class Tile, class First>
__device__ __forceinline__ void kqm_wide_sums(int most_bytes, const uint8_t *data, int blocks, const kqm_fixed_block *x,
                                              First first, KQM_SHARED_ARG(uint32_t) shared,
                                              float (&y)[KqmTokenColumns::results]) {
  typedef KqmTokenColumns Columns;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int block_parts = kqm_fixed_words / 4, weights = kqm_wide_weights + 2 * warp * (most_bytes / 4);
  if (threadIdx.x < kqm_wide_tokens) shared[kqm_wide_table + threadIdx.x] = first(int(threadIdx.x));
  kqm_named_barrier(kqm_barrier_many_tokens);
  // Sixteen threads copy a token's block, a warp its tile, 16 bytes at a time.
  const int copiers = kqm_wide_threads / kqm_wide_tokens, own_token = threadIdx.x / copiers,
            own_part = threadIdx.x % copiers;
  const uint32_t own_first = shared[kqm_wide_table + own_token];
  const uint32_t *own_digits =
      reinterpret_cast<const uint32_t *>(x + (own_first == kqm_wide_absent ? 0 : own_first)) + 4 * own_part;
  const auto fetch = [&](int b) {
    if (own_first != kqm_wide_absent) {
      const int to = ((b & 1) * kqm_wide_tokens + own_token) * kqm_fixed_words + 4 * own_part;
      KQM_UNROLL
      for (int i = 0; i < block_parts; i += copiers) {
        if (i + own_part < block_parts) kqm_async_copy_16(shared, to + 4 * i, own_digits + b * kqm_fixed_words + 4 * i);
      }
    }
    kqm_wide_fetch_tile<Tile>(data, b, weights + (b & 1) * (Tile::bytes / 4), shared);
    kqm_async_commit();
  };
  // Absent tokens read the first one's digits, and nobody looks at what becomes of them.
  const auto present = [&](int token) { return shared[kqm_wide_table + token] == kqm_wide_absent ? 0 : token; };
  const int of_lane = present(lane >> 2);

  const auto sum_at = [&](int i) {
    return kqm_wide_weights + 2 * kqm_wide_warps * (most_bytes / 4) + 2 * (kqm_wide_threads * i + int(threadIdx.x));
  };
  if (blocks > kqm_tree_group) {
    KQM_UNROLL
    for (int i = 0; i < Columns::results; i++) kqm_shared_store<double>(shared, sum_at(i), 0.0);
  }
  KqmTreeGroups<Columns::results> groups;
  fetch(0);
  KQM_LOOP
  for (int b = 0; b < blocks; b++) {
    kqm_async_wait<0>();
    // Everybody's part of this super-block is there, and everybody is done with the one before, whose place the next one takes.
    kqm_named_barrier(kqm_barrier_many_tokens);
    if (b + 1 < blocks) fetch(b + 1);
    Tile tile;
    tile.load(KqmTileInShared(kqm_shared_offset(shared, weights + (b & 1) * (Tile::bytes / 4)), lane));
    const int digits = (b & 1) * kqm_wide_tokens * kqm_fixed_words;
    KQM_SHARED_ARG(uint32_t) own = kqm_shared_offset(shared, digits + of_lane * kqm_fixed_words);
    double v[Columns::results];
    tile.multiply(KqmEightTokens(own, lane), lane, v);
    KQM_UNROLL
    for (int i = 0; i < Columns::results; i++)
      v[i] = v[i] * kqm_shared_load<double>(
                        shared, digits + present(Columns::token(i, lane)) * kqm_fixed_words + kqm_fixed_unit);
    if (groups.add(v, b) && blocks > kqm_tree_group) {
      KQM_UNROLL
      for (int i = 0; i < Columns::results; i++)
        kqm_shared_store<double>(shared, sum_at(i), kqm_shared_load<double>(shared, sum_at(i)) + groups.group(i));
    }
  }
  KQM_UNROLL
  for (int i = 0; i < Columns::results; i++) {
    const double sum = blocks > kqm_tree_group ? kqm_shared_load<double>(shared, sum_at(i)) + groups.tail(i, blocks)
                                               : groups.sum(i, blocks);
    y[i] = kqm_canonical(float(sum));
  }
}

// Calls store(row of the matrix, token, sum) for a lane's results of a row tile that are of one of the `rows` rows and `tokens` tokens.
template <class Columns, class Store>
__device__ __forceinline__ void kqm_wide_store(const float (&y)[Columns::results], int tile, int rows, int tokens,
                                               Store store) {
  const int lane = threadIdx.x & 31;
  KQM_UNROLL
  for (int i = 0; i < Columns::results; i++) {
    const int r = tile * KQM_TILE_ROWS + Columns::row(i, lane), token = Columns::token(i, lane);
    if (Columns::present(lane) && r < rows && token < tokens) store(r, token, y[i]);
  }
}
