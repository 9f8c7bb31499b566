// moe_down: y[t] = residual[t] + sum over ranks of weights[t, rank] * (W_down[e] x[pair]), pair = (t, rank), e its expert.
//
// Shapes: W_down [experts][rows, K] of a type of common/types.cuh; x [pairs, K / 256] fixed-point blocks;
// expert_out [pairs, rows]; y and residual [tokens, rows] of F32, F16 or BF16.
// Maths: the products as in q4_k_matvec and q6_k_gemv, each rounded to f32; the weighted sum in f64, a tree over ranks,
// rounded to f32; one f32 addition of the residual; rounded to the type of y.
// Launch: one token: a CTA has all experts of 16 rows, one warp for a super-block of one of them (24 warps at full size), and
// ends with the weighted sum; in moe_down_one_token_rows each warp quantizes its part of the activations itself, which saves a
// launch. More tokens: one CTA for 64 rows of a work item, so that an expert's weights are read once for up to eight of its
// pairs (common/wide.cuh); a second kernel makes the weighted sums.
// Bound by: the weights' bytes. At full size a token reads 7 to 10 MB in 128 CTAs.
#include "common/floats.cuh"
#include "common/items.cuh"
#include "common/tree.cuh"

namespace {

const unsigned one_token_warps = KQM_FUSED_UNITS, max_shared = 48 * 1024;
const int small_ranks = 8, small_super_blocks = 4;

// One value of a token, from its weighted sum and the bits of its residual.
__device__ __forceinline__ void finish(const kqm_moe_down_args &a, uint32_t t, uint32_t r, uint32_t residual,
                                       double weighted) {
  const float sum = kqm_canonical(float(weighted));
  const size_t at = size_t(t) * a.down.rows + r;
  if (a.sum) a.sum[at] = sum;
  const float with = a.residual ? kqm_canonical(__fadd_rn(kqm_float_of_bits(residual, a.type), sum)) : sum;
  kqm_store_float(a.y, a.type, at, with);
}

// A product of two f32, exact.
__device__ __forceinline__ double weigh(float weight, float value) { return double(weight) * double(value); }

// What the epilogue of a CTA for a single token needs, loaded before the tiles: what is loaded later arrives after them.
struct Epilogue {
  uint32_t row;   // of this thread
  bool finishes;  // this thread's row exists
  uint32_t residual;
  float weight;  // of the rank whose product this thread makes first

  __device__ __forceinline__ explicit Epilogue(const kqm_moe_down_args &a) {
    row = blockIdx.x * KQM_TILE_ROWS + threadIdx.x;
    finishes = threadIdx.x < KQM_TILE_ROWS && row < a.down.rows;
    residual = finishes && a.residual ? kqm_load_float_bits(a.residual, a.type, row) : 0;
    const uint32_t rank = threadIdx.x / KQM_TILE_ROWS;
    weight = rank < a.top_k ? a.weights[rank] : 0.0f;
  }
};

// The row sums of all experts of a tile, and their weighted sum. SMALL: there are at most small_ranks experts and small_super_blocks
// super-blocks; each expert has small_super_blocks slots, padded with zeros.
template <bool SMALL>
__device__ __forceinline__ void finish_tile(const kqm_moe_down_args &a, const Epilogue &epilogue, int super_blocks,
                                            KQM_SHARED_ARG(double) contributions, KQM_SHARED_ARG(double) product) {
  const int ranks = SMALL ? small_ranks : int(a.top_k);
  KQM_LOOP
  for (int i = threadIdx.x; i < ranks * KQM_TILE_ROWS; i += blockDim.x) {
    const int rank = i / KQM_TILE_ROWS, tile_row = i % KQM_TILE_ROWS;
    const uint32_t r = blockIdx.x * KQM_TILE_ROWS + tile_row;
    const float value = SMALL
                            ? kqm_row_sum_padded<small_super_blocks>(contributions, rank * small_super_blocks, tile_row)
                            : kqm_row_sum<1>(contributions, rank * super_blocks, super_blocks, 0, tile_row);
    const bool present = rank < int(a.top_k);
    const float weight = i == int(threadIdx.x) ? epilogue.weight : present ? a.weights[rank] : 0.0f;
    product[i] = weigh(weight, value);
    if (present && r < a.down.rows) a.expert_out[size_t(rank) * a.down.rows + r] = value;
  }
  __syncthreads();
  if (epilogue.finishes)
    finish(a, 0, epilogue.row, epilogue.residual,
           SMALL ? kqm_tree_sum_padded<small_ranks>(product, threadIdx.x, KQM_TILE_ROWS)
                 : kqm_tree_sum_shared(product, threadIdx.x, KQM_TILE_ROWS, int(a.top_k)));
}

// A single token whose rows are still to be quantized: each warp has one unit, and quantizes its own part of the activations.
template <class Tile, bool SMALL>
__global__ void __launch_bounds__(one_token_warps * 32, 1) moe_down_one_token_rows(kqm_moe_down_args a) {
  KQM_DYNAMIC_SHARED(double, contributions);
  KQM_SHARED(double, product, KQM_MAX_TOP_K *KQM_TILE_ROWS);
  KQM_SHARED(uint32_t, fixed, one_token_warps *kqm_fixed_words);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, super_blocks = a.down.cols / KQM_BLOCK;
  const int rank = warp / super_blocks, b = warp % super_blocks, slot = SMALL ? rank * small_super_blocks + b : warp;
  KQM_SHARED_ARG(uint32_t) own = kqm_shared_offset(fixed, warp * kqm_fixed_words);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  if (SMALL) {
    kqm_zero_pad(contributions, 0, small_ranks * small_super_blocks * KQM_TILE_ROWS);
    __syncthreads();
  }
  kqm_wait_for_dependencies();
  // The index first: the tile waits for it. Activations are quantized while the tile is on its way.
  const KqmExpert expert(a.indices[rank], a.down.experts);
  float x[8];
  kqm_load_eight(a.swiglu + size_t(warp) * KQM_BLOCK, lane, x);
  const Epilogue epilogue(a);
  Tile tile;
  tile.load(KqmTileInMemory(kqm_expert_tile<Tile>(a.down, expert, blockIdx.x) + size_t(b) * Tile::bytes, lane));
  const double unit = kqm_fixed_warp(x, KqmFixedInShared{own});
  __syncwarp();
  kqm_contribute_packed(tile, KqmSharedToken(own, lane), expert.or_nan(unit), slot, contributions);
  __syncthreads();
  finish_tile<SMALL>(a, epilogue, super_blocks, contributions, product);
}

template <class Tile, bool SMALL>
__global__ void __launch_bounds__(one_token_warps * 32, 1) moe_down_one_token(kqm_moe_down_args a) {
  KQM_DYNAMIC_SHARED(double, contributions);
  KQM_SHARED(double, product, KQM_MAX_TOP_K *KQM_TILE_ROWS);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  const int super_blocks = a.down.cols / KQM_BLOCK, units = int(a.top_k) * super_blocks;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  if (SMALL) {
    kqm_zero_pad(contributions, 0, small_ranks * small_super_blocks * KQM_TILE_ROWS);
    __syncthreads();
  }
  kqm_wait_for_dependencies();
  const Epilogue epilogue(a);
  for (int u = warp; u < units; u += warps) {
    const int rank = u / super_blocks, b = u % super_blocks;
    const KqmExpert expert(a.indices[rank], a.down.experts);
    Tile tile;
    tile.load(KqmTileInMemory(kqm_expert_tile<Tile>(a.down, expert, blockIdx.x) + size_t(b) * Tile::bytes, lane));
    const kqm_fixed_block *x = a.x + u;
    kqm_contribute_packed(tile, KqmOneToken(x, lane), expert.or_nan(x->unit), SMALL ? rank * small_super_blocks + b : u,
                          contributions);
  }
  __syncthreads();
  finish_tile<SMALL>(a, epilogue, super_blocks, contributions, product);
}

// One token of so many super-blocks that they do not fit into shared memory at once: an expert and 16 rows a CTA.
template <class Tile>
__global__ void __launch_bounds__(KQM_MATVEC_WARPS(1) * 32, 1) moe_down_long_token(kqm_moe_down_args a) {
  KQM_DYNAMIC_SHARED(double, contributions);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5,
            super_blocks = a.down.cols / KQM_BLOCK;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const uint32_t rank = blockIdx.y;
  const kqm_fixed_block *x = a.x + size_t(rank) * super_blocks;
  const KqmExpert expert(a.indices[rank], a.down.experts);
  const uint8_t *data = kqm_expert_tile<Tile>(a.down, expert, blockIdx.x);
  for (int b = warp; b < super_blocks; b += warps) {
    Tile tile;
    tile.load(KqmTileInMemory(data + size_t(b) * Tile::bytes, lane));
    kqm_contribute_rows<1>(tile, [=](int) { return x; }, b, b, contributions);
  }
  __syncthreads();
  const uint32_t r = blockIdx.x * KQM_TILE_ROWS + threadIdx.x;
  if (threadIdx.x < KQM_TILE_ROWS && r < a.down.rows)
    a.expert_out[size_t(rank) * a.down.rows + r] =
        expert.or_nan(kqm_row_sum<1>(contributions, 0, super_blocks, 0, threadIdx.x));
}

#if KQM_WARPGROUPS
// Many pairs of each expert.
struct Problem : KqmItemWorks {
  const kqm_moe_down_args &a;

  __device__ __forceinline__ Problem(const kqm_moe_down_args &of, const KqmWarpgroups &layout, int at_most)
      : Problem(of, layout, int(of.down.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS, at_most) {}
  __device__ __forceinline__ const kqm_fixed_block *x() const { return a.x; }
  __device__ __forceinline__ uint32_t first(const Work &work, int token) const {
    return work.tokens > 0 ? work.item.readable_pair(token) * plan.super_blocks : 0;
  }
  __device__ __forceinline__ int row_tile(const Work &work, int slot) const {
    return work.row_block * plan.groups * kqm_group_warps + slot;
  }
  template <class Tile>
  __device__ __forceinline__ const uint8_t *tile(const Work &work, int slot) const {
    return kqm_expert_tile<Tile>(a.down, work.item.expert, min(row_tile(work, slot), tiles - 1));
  }
  template <int TOKENS>
  __device__ __forceinline__ void finish(int i, int slot, uint32_t, const float (&y)[TOKENS / 2],
                                         KQM_SHARED_ARG(uint32_t)) const {
    const Work work = this->work(i);
    kqm_group_store<TOKENS>(y, row_tile(work, slot), a.down.rows, work.tokens, [&](int r, int token, float value) {
      const uint32_t pair = work.item.pair(token);
      if (pair < work.item.pairs) a.expert_out[size_t(pair) * a.down.rows + r] = work.item.expert.or_nan(value);
    });
  }

 private:
  __device__ __forceinline__ Problem(const kqm_moe_down_args &of, const KqmWarpgroups &layout, int row_tiles,
                                     int at_most)
      : KqmItemWorks(of.groups, layout, of.down.experts, of.tokens * of.top_k, row_tiles, row_tiles, at_most), a(of) {}
};
#endif

template <class Tile>
__global__ void __launch_bounds__(kqm_groups_threads, 1)
    moe_down_groups(kqm_moe_down_args a, KqmWarpgroups plan, int most_items) {
#if KQM_WARPGROUPS
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  kqm_warpgroup_cta<Tile>(plan, Problem(a, plan, most_items), shared);
#else
  kqm_no_warpgroups();
#endif
}

// The products of a warp's row tile with the pairs of an item.
template <class Columns>
__device__ __forceinline__ void store_products(const kqm_moe_down_args &a, const KqmItem &item, int tile,
                                               const float (&y)[Columns::results]) {
  kqm_wide_store<Columns>(y, tile, a.down.rows, item.count, [&](int r, int token, float value) {
    const uint32_t pair = item.pair(token);
    if (pair < item.pairs) a.expert_out[size_t(pair) * a.down.rows + r] = item.expert.or_nan(value);
  });
}

// Many tokens otherwise: the pairs of an item, eight at a time, or the only one or two of it (common/few.cuh), where there are stages for
// them.
template <class Tile>
__global__ void __launch_bounds__(kqm_wide_threads, kqm_item_ctas<Tile>(kqm_wide_at_once))
    moe_down_many_tokens(kqm_moe_down_args a, int few_stages) {
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  const int tile = blockIdx.x * kqm_wide_warps + (threadIdx.x >> 5), super_blocks = a.down.cols / KQM_BLOCK;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const KqmItem item = kqm_item(a.groups, blockIdx.y, a.down.experts, a.tokens * a.top_k);
  if (item.count == 0) return;
  // A warp beyond the last tile works on that one, too, and stores nothing.
  const uint8_t *data =
      kqm_expert_tile<Tile>(a.down, item.expert, min(tile, int(a.down.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS - 1));
  if (item.count <= kqm_few_tokens && few_stages > 0) {
    float y[kqm_few_tokens];
    kqm_few_sums<Tile>(
        few_stages, data, super_blocks, a.x, [&](int i) { return item.readable_pair(i) * super_blocks; }, item.count,
        shared, y);
    store_products<KqmTwoSharedTokens::Columns>(a, item, tile, y);
    return;
  }
  KQM_LOOP
  for (int part = 0; part * kqm_wide_tokens < item.count; part++) {
    const KqmItem some = kqm_item_part(item, part, kqm_wide_tokens);
    if (part > 0) __syncthreads();
    float y[KqmTokenColumns::results];
    kqm_wide_sums<Tile>(
        Tile::bytes, data, super_blocks, a.x,
        [&](int i) { return i < some.count ? some.readable_pair(i) * super_blocks : kqm_wide_absent; }, shared, y);
    store_products<KqmTokenColumns>(a, some, tile, y);
  }
}

__global__ void __launch_bounds__(256) moe_down_sum(kqm_moe_down_args a) {
  const uint32_t r = blockIdx.x * 256 + threadIdx.x, t = blockIdx.y;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  if (r >= a.down.rows) return;
  const float *products = a.expert_out + size_t(t) * a.top_k * a.down.rows + r;
  const uint32_t residual = a.residual ? kqm_load_float_bits(a.residual, a.type, size_t(t) * a.down.rows + r) : 0;
  const auto product = [&](int i) {
    return weigh(a.weights[size_t(t) * a.top_k + i], products[size_t(i) * a.down.rows]);
  };
  finish(a, t, r, residual, kqm_tree_sum(product, int(a.top_k)));
}

template <class Tile>
kqm_status launch(const kqm_moe_down_args &a, kqm_stream stream) {
  const unsigned super_blocks = a.down.cols / KQM_BLOCK, tiles = kqm_ceil_div(a.down.rows, uint32_t(KQM_TILE_ROWS));
  const unsigned units = a.top_k * super_blocks;
  const size_t one_token_shared = kqm_contribution_bytes(units, 1);
  const dim3 one_token_cta(32 * kqm_even_warps(units, one_token_warps));
  const bool small = a.top_k <= unsigned(small_ranks) && super_blocks <= unsigned(small_super_blocks);
  const size_t shared = small ? kqm_contribution_bytes(small_ranks * small_super_blocks, 1) : one_token_shared;
  if (a.swiglu && small)
    return KQM_LAUNCH((moe_down_one_token_rows<Tile, true>), dim3(tiles), one_token_cta, shared, stream, a);
  if (a.swiglu)
    return KQM_LAUNCH((moe_down_one_token_rows<Tile, false>), dim3(tiles), one_token_cta, shared, stream, a);
  if (a.tokens == 1 && small)
    return KQM_LAUNCH((moe_down_one_token<Tile, true>), dim3(tiles), one_token_cta, shared, stream, a);
  // Beside them the static array of products has to fit.
  if (a.tokens == 1 && one_token_shared + KQM_MAX_TOP_K * KQM_TILE_ROWS * sizeof(double) <= max_shared)
    return KQM_LAUNCH((moe_down_one_token<Tile, false>), dim3(tiles), one_token_cta, shared, stream, a);
  const unsigned items = kqm_launch_items(a.tokens, a.down.experts, a.top_k);
  bool multiplied = false;
  if constexpr (KqmWarpgroupTypes::is_here<Tile>) {
    if (a.tokens > 1 && kqm_items_for_groups(a.tokens, a.down.experts, a.top_k)) {
      const KqmWarpgroups plan = kqm_plan_warpgroups(super_blocks);
      multiplied = plan.groups > 0;
      if (multiplied)
        KQM_TRY(KQM_LAUNCH_WARPGROUPS(moe_down_groups<Tile>, dim3(kqm_multiprocessors()), plan.block(), plan.bytes(),
                                      stream, a, plan, int(items)));
    }
  }
  const int few_stages = kqm_few_stages(Tile::bytes, super_blocks, kqm_wide_at_once);
  if (!multiplied && a.tokens > 1)
    KQM_TRY(KQM_LAUNCH(moe_down_many_tokens<Tile>, dim3(kqm_ceil_div(tiles, unsigned(kqm_wide_warps)), items),
                       dim3(kqm_wide_threads), kqm_item_bytes(Tile::bytes, super_blocks, few_stages), stream, a,
                       few_stages));
  else if (!multiplied)
    KQM_TRY(KQM_LAUNCH(moe_down_long_token<Tile>, dim3(tiles, items),
                       dim3(32 * kqm_even_warps(super_blocks, KQM_MATVEC_WARPS(1))),
                       kqm_contribution_bytes(super_blocks, 1), stream, a));
  return KQM_LAUNCH(moe_down_sum, dim3(kqm_ceil_div(a.down.rows, 256u), a.tokens), dim3(256), 0, stream, a);
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_moe_down(const kqm_moe_down_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && (args->x || args->swiglu) && args->weights && args->expert_out && args->y,
              KQM_NULL_POINTER);
  KQM_REQUIRE(kqm_is_float(args->type), KQM_UNSUPPORTED_TYPE);
  KQM_TRY(kqm_check_matrix(args->down));
  KQM_TRY(kqm_check_pairs(args->groups, args->indices, args->tokens, args->down.experts, args->top_k));
  KQM_REQUIRE(kqm_aligned(args->x, 16) && kqm_aligned(args->swiglu, 16), KQM_MISALIGNED);
  KQM_REQUIRE(!args->swiglu || (args->tokens == 1 && args->top_k * (args->down.cols / KQM_BLOCK) <= KQM_FUSED_UNITS),
              KQM_BAD_SHAPE);
  return KqmBlockTypes::launch(args->down.type,
                               [&](auto type) { return launch<KqmTileOf<decltype(type)>>(*args, stream); });
}
KQM_ABI_END
