// What the expert kernels share: their work items, i.e. which expert a thread block works for and on which (token, expert) pairs, and their
// launches.
#pragma once

#include "matvec.cuh"

struct KqmItem {
  uint32_t expert;
  const uint32_t *order;  // the item's pairs
  int count;              // 0: nothing to do

  __device__ __forceinline__ uint32_t pair(int i) const { return order[i]; }
};

// Item `index` of the groups, which earlier kernels wrote.
__device__ __forceinline__ KqmItem kqm_item(const kqm_groups &groups, uint32_t index) {
  if (index >= *groups.count) return KqmItem{0, nullptr, 0};
  const uint32_t *item = groups.items + size_t(3) * index;
  return KqmItem{item[0], groups.order + item[1], int(item[2])};
}

// Items that a launch has to cover: of a single token, its experts.
inline uint32_t kqm_launch_items(uint32_t tokens, uint32_t experts, uint32_t top_k) {
  return tokens == 1 ? top_k : kqm_moe_max_items(tokens, experts, top_k);
}

inline kqm_status kqm_check_pairs(const kqm_groups &groups, const uint32_t *indices, uint32_t tokens, uint32_t experts,
                                  uint32_t top_k) {
  KQM_REQUIRE(tokens > 0 && tokens <= 65535 && experts <= KQM_MAX_EXPERTS && top_k > 0 && top_k <= KQM_MAX_TOP_K &&
                  top_k <= experts,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(indices != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(tokens == 1 || (groups.order && groups.items && groups.count), KQM_NULL_POINTER);
  KQM_REQUIRE(kqm_launch_items(tokens, experts, top_k) <= 65535, KQM_BAD_SHAPE);
  return KQM_OK;
}

// First byte of an expert's row tile.
template <class Tile>
__device__ __forceinline__ const uint8_t *kqm_expert_tile(const kqm_matrix &w, uint32_t expert, uint32_t row_tile) {
  const size_t row_tiles = (w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS;
  return static_cast<const uint8_t *>(w.tiles) + (expert * row_tiles + row_tile) * (w.cols / KQM_BLOCK) * Tile::bytes;
}
