// What the expert kernels share: their work items, i.e. which expert a CTA works for and on which (token, expert) pairs, and their
// launches.
#pragma once

#include "few.cuh"
#include "matvec.cuh"

// An expert as memory names it. One that does not exist gives NaN; its weights are those of the last one, so that they can be read.
struct KqmExpert {
  uint32_t index;
  bool exists;

  __device__ __forceinline__ KqmExpert(uint32_t named, uint32_t experts)
      : index(min(named, experts - 1)), exists(named < experts) {}
  // A result, and the unit of activations: all that is multiplied with them is NaN, too.
  __device__ __forceinline__ float or_nan(float result) const { return exists ? result : __uint_as_float(0x7fc00000u); }
  __device__ __forceinline__ double or_nan(double unit) const {
    return exists ? unit : double(__uint_as_float(0x7fc00000u));
  }
};

struct KqmItem {
  KqmExpert expert;
  const uint32_t *order;  // the item's pairs
  uint32_t pairs;         // of the batch
  int count;              // 0: nothing to do

  // Pair i of the item: its number, which may be of no pair of the batch and is not written then, and one that can be read.
  __device__ __forceinline__ uint32_t pair(int i) const { return order[i]; }
  __device__ __forceinline__ uint32_t readable_pair(int i) const { return min(order[i], pairs - 1); }
};

// Item `index` of the groups of a batch, which earlier kernels wrote. One whose positions are not all in the order is none.
__device__ __forceinline__ KqmItem kqm_item(const kqm_groups &groups, uint32_t index, uint32_t experts,
                                            uint32_t pairs) {
  KqmItem none{KqmExpert(0, experts), groups.order, pairs, 0};
  if (index >= *groups.count) return none;
  const uint32_t *item = groups.items + size_t(3) * index;
  const uint32_t first = item[1], count = item[2];
  if (count > KQM_ITEM_PAIRS || first > pairs || count > pairs - first) return none;
  return KqmItem{KqmExpert(item[0], experts), groups.order + first, pairs, int(count)};
}

// Part `part` of an item: `most` of its pairs at most.
__device__ __forceinline__ KqmItem kqm_item_part(const KqmItem &item, int part, int most) {
  return KqmItem{item.expert, item.order + part * most, item.pairs, max(0, min(item.count - part * most, most))};
}
static_assert(KQM_ITEM_PAIRS == kqm_group_tokens, "warpgroups multiply an item at once");

#if KQM_WARPGROUPS
// The items of a batch for the frame of warpgroups: work items are row blocks x items.
struct KqmItemWorks {
  const kqm_groups &groups;
  KqmWarpgroups plan;
  uint32_t experts, pairs;
  int tiles, row_blocks, items;

  struct Work {
    KqmItem item;
    int row_block, tokens;
  };
  // `row_tiles` a warp each, of which a matrix has `of_matrix`; at most `at_most` items, whatever memory says.
  __device__ __forceinline__ KqmItemWorks(const kqm_groups &of, const KqmWarpgroups &layout, uint32_t of_experts,
                                          uint32_t of_pairs, int of_matrix, int row_tiles, int at_most)
      : groups(of),
        plan(layout),
        experts(of_experts),
        pairs(of_pairs),
        tiles(of_matrix),
        row_blocks(kqm_group_row_blocks(layout, row_tiles)),
        items(min(int(*of.count), at_most)) {}
  __device__ __forceinline__ KqmShare share() const { return kqm_whole_share(); }
  __device__ __forceinline__ int works() const { return row_blocks * items; }
  __device__ __forceinline__ Work work(int i) const {
    const KqmItem item = kqm_item(groups, i / row_blocks, experts, pairs);
    return Work{item, i % row_blocks, item.count};
  }
};
#endif

// Whether a batch gives its experts enough pairs each that this frame is the faster one.
inline bool kqm_items_for_groups(uint32_t tokens, uint32_t experts, uint32_t top_k) {
  return uint64_t(tokens) * top_k >= uint64_t(experts) * kqm_group_least_pairs;
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
__device__ __forceinline__ const uint8_t *kqm_expert_tile(const kqm_matrix &w, const KqmExpert &expert,
                                                          uint32_t row_tile) {
  const size_t row_tiles = (w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS;
  return static_cast<const uint8_t *>(w.tiles) +
         (expert.index * row_tiles + row_tile) * (w.cols / KQM_BLOCK) * Tile::bytes;
}
