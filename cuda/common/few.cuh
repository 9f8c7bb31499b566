// The frame for a work item of one or two tokens: each warp of a CTA multiplies a row tile of its own with them, over all super-blocks of the
// row. Beside the frame for many tokens (wide.cuh), whose CTAs are the same, a tile takes two products for each 32 weights instead of one
// for each of five planes, and no warp waits for another:
//
//   the digits of the tokens, of all super-blocks -> shared memory; barrier
//   for super-block b:
//     the tile of super-block b + stages - 1 -> shared memory, asynchronously
//     tile -> registers; v = its products with both tokens; tree over super-blocks in registers
//
// So weights are always on their way, which is what bounds an expert of few tokens.
#pragma once

#include "wide.cuh"

#include <algorithm>

static const int kqm_few_tokens = 2;
// Rows of so many super-blocks at most: one group of the tree, and digits that fit into shared memory.
static const unsigned kqm_few_super_blocks = kqm_tree_group;

// Shared memory of a CTA, in words: digits [tokens][super-blocks][block], weights [warps][stages][tile].
inline size_t kqm_few_bytes(int tile_bytes, unsigned super_blocks, int stages) {
  return size_t(4) * kqm_few_tokens * super_blocks * kqm_fixed_words + size_t(kqm_wide_warps) * stages * tile_bytes;
}
// Stages of a CTA of which `ctas` run at once on a multiprocessor; 0 where the frame for many tokens does better: where digits take the
// shared memory of more CTAs than that frame does.
inline int kqm_few_stages(int tile_bytes, unsigned super_blocks, int ctas) {
  if (super_blocks > kqm_few_super_blocks) return 0;
  for (int stages = 3; stages >= 2; stages--) {
    if (ctas * (kqm_few_bytes(tile_bytes, super_blocks, stages) + 1024) <= kqm_shared_memory()) return stages;
  }
  return kqm_few_bytes(tile_bytes, super_blocks, 2) <= kqm_wide_bytes(tile_bytes, super_blocks) ? 2 : 0;
}

// Shared memory of a CTA that takes items of few tokens in `stages`, and others, or all where there are no stages, in the frame for many.
inline size_t kqm_item_bytes(int tile_bytes, unsigned super_blocks, int stages) {
  const size_t wide = kqm_wide_bytes(tile_bytes, super_blocks);
  return stages > 0 ? std::max(wide, kqm_few_bytes(tile_bytes, super_blocks, stages)) : wide;
}

// CTAs of a type's items at once on a multiprocessor, which limits the registers: those that there are otherwise, but for Q5_K two, whose two
// frames want more, where shared memory holds two anyway.
template <class Tile>
__host__ __device__ constexpr int kqm_item_ctas(int otherwise) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
  return std::is_same<Tile, KqmTileQ5K>::value ? 2 : otherwise;
#else
  return otherwise;
#endif
}

// Two tokens from shared memory, a product each.
struct KqmTwoSharedTokens {
  typedef KqmPlaneColumns<kqm_few_tokens> Columns;
  KqmSharedToken first, second;

  __device__ __forceinline__ uint2 eight(int p, int j) const { return of(p).eight(0, j); }
  __device__ __forceinline__ uint32_t four(int p, int j) const { return of(p).four(0, j); }
  __device__ __forceinline__ uint32_t sum_low(int p) const { return of(p).sum_low(0); }
  __device__ __forceinline__ uint32_t sum_high(int p) const { return of(p).sum_high(0); }
  __device__ __forceinline__ double unit(int p) const { return of(p).unit(); }

 private:
  __device__ __forceinline__ const KqmSharedToken &of(int p) const { return p == 0 ? first : second; }
};

// Row sums of a warp's row tile, of which `data` is the first super-block, rounded to f32: y[i] is that of row Columns::row(i, lane) and
// token i of `tokens`, which are one or two; a second one that is absent gives what the first one gives. first(i) is the first block of x of
// token i. All warps of the CTA come, and meet once.
template <class Tile, class First>
__device__ __forceinline__ void kqm_few_sums(int stages, const uint8_t *data, int super_blocks,
                                             const kqm_fixed_block *x, First first, int tokens,
                                             KQM_SHARED_ARG(uint32_t) shared, float (&y)[kqm_few_tokens]) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int of_token = super_blocks * kqm_fixed_words,
            weights = kqm_few_tokens * of_token + warp * stages * (Tile::bytes / 4);
  // Where there is no super-block b nothing is copied, and the groups of copies are counted all the same.
  const auto fetch = [&](int b, int stage) {
    if (b < super_blocks) kqm_wide_fetch_tile<Tile>(data, b, weights + stage * (Tile::bytes / 4), shared);
    kqm_async_commit();
  };
  // Weights first: they come from farther away, and where digits are has to be read before.
  KQM_LOOP
  for (int s = 0; s + 1 < stages; s++) fetch(s, s);
  KQM_LOOP
  for (int t = 0; t < tokens; t++) {
    const uint32_t *from = reinterpret_cast<const uint32_t *>(x + first(t));
    KQM_LOOP
    for (int i = 4 * threadIdx.x; i < of_token; i += 4 * kqm_wide_threads)
      kqm_async_copy_16(shared, t * of_token + i, from + i);
  }
  kqm_async_commit();
  kqm_async_wait<0>();
  // Everybody's part of the digits is there.
  kqm_named_barrier(kqm_barrier_many_tokens);
  KqmTreeGroups<kqm_few_tokens> groups;
  int stage = 0;
  KQM_LOOP
  for (int b = 0; b < super_blocks; b++) {
    if (stages == 3)
      kqm_async_wait<1>();
    else
      kqm_async_wait<0>();
    // The other lanes' parts of the tile are there, and they are done with the one before, whose stage comes next.
    __syncwarp();
    fetch(b + stages - 1, stage == 0 ? stages - 1 : stage - 1);
    Tile tile;
    tile.load(KqmTileInShared(kqm_shared_offset(shared, weights + stage * (Tile::bytes / 4)), lane));
    KQM_SHARED_ARG(uint32_t) digits = kqm_shared_offset(shared, b * kqm_fixed_words);
    KQM_SHARED_ARG(uint32_t) second = kqm_shared_offset(digits, tokens > 1 ? of_token : 0);
    const KqmTwoSharedTokens both{KqmSharedToken(digits, lane), KqmSharedToken(second, lane)};
    double v[kqm_few_tokens];
    tile.multiply(both, lane, v);
    KQM_UNROLL
    for (int i = 0; i < kqm_few_tokens; i++) v[i] = v[i] * both.unit(i);
    groups.add(v, b);
    if (++stage == stages) stage = 0;
  }
  KQM_UNROLL
  for (int i = 0; i < kqm_few_tokens; i++) y[i] = kqm_canonical(float(groups.sum(i, super_blocks)));
}
