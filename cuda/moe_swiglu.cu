// moe_swiglu: out[p] = silu(W_gate[e] x) * (W_up[e] x) for every pair p = (token, expert e), in one launch.
//
// Shapes: W_gate, W_up [experts][ff, K], each of its own type (common/types.cuh); x [tokens, K / 256] blocks; out [pairs, ff].
// Maths: the products as in q4_k_matvec and q6_k_gemv, each rounded to f32; silu and the product in f32 (common/exp.cuh).
// For a single token the kernel can choose the experts itself, from the router's logits.
// Launch: one token: a block for 16 rows of one expert; moe_swiglu_one_token, for up to eight super-blocks, is without loops. More
// tokens: a block for 32 rows of a work item, i.e. of up to eight pairs of one expert, so that its weights are read once for all of
// them (common/wide.cuh); half of its warps have gate, the others up. Gate and up of one type, as files have them, have kernels of their
// own for each type; all pairs of two types share three that choose by type inside.
// Bound by: the weights' bytes for few tokens. At full size a token reads 14 MB in 384 blocks.
#include "common/choose.cuh"
#include "common/items.cuh"

#include <algorithm>

namespace {

const int one_token_warps = 8;

// One value from its row sums: silu(gate) * up.
__device__ __forceinline__ void finish_value(const kqm_moe_swiglu_args &a, size_t at, float gate, float up) {
  if (a.gate_out) a.gate_out[at] = gate;
  if (a.up_out) a.up_out[at] = up;
  a.out[at] = kqm_canonical(__fmul_rn(kqm_silu(gate), up));
}

// The expert of a single token's block: chosen by every warp for itself, down to the rank of its block.
__device__ __forceinline__ KqmExpert expert_of_block(const kqm_moe_swiglu_args &a, KqmChoice &choice) {
  if (a.logits) choice = kqm_choose<false>(a.logits, a.gate.experts, blockIdx.y);
  return KqmExpert(a.logits ? choice.last : a.indices[blockIdx.y], a.gate.experts);
}

// The block of the last rank has chosen all experts and writes the choice down for moe_down. Its last warp does: the first one has the
// row sums to make.
__device__ __forceinline__ void write_choice(const kqm_moe_swiglu_args &a, const KqmChoice &choice) {
  if (a.logits && blockIdx.x == 0 && blockIdx.y == gridDim.y - 1 && threadIdx.x >= blockDim.x - 32)
    kqm_weigh_experts(choice, a.top_k, a.indices, a.weights);
}

const int wide_tiles =
    kqm_wide_warps / 2;  // row tiles of a block for many tokens: half of its warps have gate, the others up

// Gate and up of one type.
template <class Tile>
struct Same {
  // Blocks of moe_swiglu_one_token at once on a multiprocessor. At full size three of them take all of a token's tiles at once.
  static const int at_once = Tile::swiglu_at_once, wide_at_once = kqm_wide_at_once;
  static const bool has_groups = true;

  static int most_bytes(const kqm_moe_swiglu_args &) { return Tile::bytes; }

  // Leaves the contributions of super-block b in slots `gate_slot` and `up_slot`. Both tiles are on their way before one is multiplied.
  template <class Activations>
  __device__ __forceinline__ static void contribute(const kqm_moe_swiglu_args &a, const KqmExpert &expert, int b,
                                                    const Activations &x, double unit, int gate_slot, int up_slot,
                                                    KQM_SHARED_ARG(double) part) {
    const int lane = threadIdx.x & 31;
    Tile gate, up;
    gate.load(KqmTileInMemory(kqm_expert_tile<Tile>(a.gate, expert, blockIdx.x) + size_t(b) * Tile::bytes, lane));
    up.load(KqmTileInMemory(kqm_expert_tile<Tile>(a.up, expert, blockIdx.x) + size_t(b) * Tile::bytes, lane));
    kqm_contribute_one(gate, x, unit, gate_slot, part);
    kqm_contribute_one(up, x, unit, up_slot, part);
  }

  // kqm_wide_sums of a row tile of gate or of up.
  template <class First>
  __device__ __forceinline__ static void wide_sums(const kqm_moe_swiglu_args &a, bool is_gate, const KqmExpert &expert,
                                                   int tile, int, First first, KQM_SHARED_ARG(uint32_t) shared,
                                                   float (&y)[KqmTokenColumns::results]) {
    const uint8_t *gate = kqm_expert_tile<Tile>(a.gate, expert, tile), *up = kqm_expert_tile<Tile>(a.up, expert, tile);
    kqm_wide_sums<Tile>(Tile::bytes, is_gate ? gate : up, a.gate.cols / KQM_BLOCK, a.x, first, shared, y);
  }
};

// Gate and up of any two types, one after the other: the code of a type is there once.
struct Mixed {
  // What is there for every type takes more registers than three blocks of many tokens leave on sm_120.
  static const int at_once = 2, wide_at_once = 2;
  static const bool has_groups = false;

  static int most_bytes(const kqm_moe_swiglu_args &a) {
    return std::max(KqmBlockTypes::tile_bytes(a.gate.type), KqmBlockTypes::tile_bytes(a.up.type));
  }

  template <class Activations>
  __device__ __forceinline__ static void contribute(const kqm_moe_swiglu_args &a, const KqmExpert &expert, int b,
                                                    const Activations &x, double unit, int gate_slot, int up_slot,
                                                    KQM_SHARED_ARG(double) part) {
    const int lane = threadIdx.x & 31;
    KQM_LOOP
    for (int i = 0; i < 2; i++) {
      const kqm_matrix w = of(a, i == 0);
      KqmBlockTypes::choose(w.type, [&](auto type) {
        typedef KqmTileOf<decltype(type)> Tile;
        Tile tile;
        tile.load(KqmTileInMemory(kqm_expert_tile<Tile>(w, expert, blockIdx.x) + size_t(b) * Tile::bytes, lane));
        kqm_contribute_one(tile, x, unit, i == 0 ? gate_slot : up_slot, part);
      });
    }
  }

  template <class First>
  __device__ __forceinline__ static void wide_sums(const kqm_moe_swiglu_args &a, bool is_gate, const KqmExpert &expert,
                                                   int tile, int most_bytes, First first,
                                                   KQM_SHARED_ARG(uint32_t) shared,
                                                   float (&y)[KqmTokenColumns::results]) {
    const kqm_matrix w = of(a, is_gate);
    KqmBlockTypes::choose(w.type, [&](auto type) {
      typedef KqmTileOf<decltype(type)> Tile;
      kqm_wide_sums<Tile>(most_bytes, kqm_expert_tile<Tile>(w, expert, tile), w.cols / KQM_BLOCK, a.x, first, shared,
                          y);
    });
  }

 private:
  // Gate or up, of the same shape. Constant indices keep the arguments in constant memory.
  __device__ __forceinline__ static kqm_matrix of(const kqm_moe_swiglu_args &a, bool is_gate) {
    return kqm_matrix{is_gate ? a.gate.tiles : a.up.tiles, is_gate ? a.gate.type : a.up.type, a.gate.rows, a.gate.cols,
                      a.gate.experts};
  }
};

// A single token, a warp for each super-block.
template <class Pair>
__global__ void __launch_bounds__(32 * one_token_warps, Pair::at_once) moe_swiglu_one_token(kqm_moe_swiglu_args a) {
  KQM_DYNAMIC_SHARED(double, part);
  KQM_SHARED(uint32_t, fixed, one_token_warps *kqm_fixed_words);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, blocks = blockDim.x >> 5;
  KQM_SHARED_ARG(uint32_t) own_block = kqm_shared_offset(fixed, warp * kqm_fixed_words);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_fill_up(part, blocks * KQM_TILE_ROWS, one_token_warps * KQM_TILE_ROWS);
  kqm_fill_up(part, (one_token_warps + blocks) * KQM_TILE_ROWS, 2 * one_token_warps * KQM_TILE_ROWS);
  kqm_wait_for_dependencies();
  // The activations are on their way while the expert is chosen, and wait for the weights in shared memory.
  KqmBlockOnItsWay on_its_way;
  on_its_way.load(a.x + warp);
  KqmChoice choice{};
  const KqmExpert expert = expert_of_block(a, choice);
  on_its_way.store(own_block);
  const KqmSharedToken x(own_block, lane);
  Pair::contribute(a, expert, warp, x, expert.or_nan(x.unit()), warp, one_token_warps + warp, part);
  __syncthreads();
  if (warp == 0) {
    // Half a warp sums up gate, the other half up.
    const int tile_row = lane % KQM_TILE_ROWS, r = blockIdx.x * KQM_TILE_ROWS + tile_row;
    const float sum = kqm_row_sum_of<one_token_warps>(part, lane / KQM_TILE_ROWS * one_token_warps, tile_row);
    const float other = __shfl_xor_sync(~0u, sum, KQM_TILE_ROWS);
    if (lane < KQM_TILE_ROWS && r < int(a.gate.rows)) finish_value(a, size_t(blockIdx.y) * a.gate.rows + r, sum, other);
  }
  write_choice(a, choice);
}

// A single token of any number of super-blocks.
template <class Pair>
__global__ void __launch_bounds__(32 * KQM_MATVEC_WARPS(1), 1) moe_swiglu_long_token(kqm_moe_swiglu_args a) {
  KQM_DYNAMIC_SHARED(double, part);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, blocks = a.gate.cols / KQM_BLOCK;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  KqmChoice choice{};
  const KqmExpert expert = expert_of_block(a, choice);
  for (int b = warp; b < blocks; b += warps) {
    const KqmOneToken x(a.x + b, lane);
    Pair::contribute(a, expert, b, x, x.unit(), b, blocks + b, part);
  }
  __syncthreads();
  const int r = blockIdx.x * KQM_TILE_ROWS + threadIdx.x;
  if (threadIdx.x < KQM_TILE_ROWS && r < int(a.gate.rows))
    finish_value(a, size_t(blockIdx.y) * a.gate.rows + r,
                 expert.or_nan(kqm_row_sum<1>(part, 0, blocks, 0, threadIdx.x)),
                 expert.or_nan(kqm_row_sum<1>(part, blocks, blocks, 0, threadIdx.x)));
  write_choice(a, choice);
}

#if KQM_WARPGROUPS
// Many pairs of each expert: of a warpgroup's four warps two have row tiles of gate, and two the same of up, which they hand over.
struct Problem {
  const kqm_moe_swiglu_args &a;
  KqmWarpgroups plan;
  int tiles, row_blocks, items;

  typedef KqmItemWork Work;
  __device__ __forceinline__ Problem(const kqm_moe_swiglu_args &of, const KqmWarpgroups &layout, int at_most)
      : a(of),
        plan(layout),
        tiles(int(of.gate.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS),
        row_blocks(kqm_group_row_blocks(layout, 2 * tiles)),
        items(min(int(*of.groups.count), at_most)) {}
  __device__ __forceinline__ KqmShare share() const { return kqm_whole_share(); }
  __device__ __forceinline__ int works() const { return row_blocks * items; }
  __device__ __forceinline__ Work work(int i) const {
    const KqmItem item = kqm_item(a.groups, i / row_blocks, a.gate.experts, a.tokens * a.top_k);
    return Work{item, i % row_blocks, item.count};
  }
  __device__ __forceinline__ const kqm_fixed_block *x() const { return a.x; }
  __device__ __forceinline__ uint32_t first(const Work &work, int token) const {
    return work.tokens > 0 ? work.item.readable_pair(token) / a.top_k * plan.blocks : 0;
  }
  __device__ __forceinline__ static bool is_gate(int slot) { return slot % 4 < 2; }
  __device__ __forceinline__ int row_tile(const Work &work, int slot) const {
    return (work.row_block * plan.groups + slot / 4) * 2 + slot % 2;
  }
  // A warp beyond the last tile works on that one, too, and stores nothing.
  template <class Tile>
  __device__ __forceinline__ const uint8_t *tile(const Work &work, int slot) const {
    const int own = min(row_tile(work, slot), tiles - 1);
    const uint8_t *gate = kqm_expert_tile<Tile>(a.gate, work.item.expert, own),
                  *up = kqm_expert_tile<Tile>(a.up, work.item.expert, own);
    return is_gate(slot) ? gate : up;
  }
  // Two warps have the gates and the ups of the same rows and tokens. Each hands half of its own over and finishes the other half.
  template <int TOKENS>
  __device__ __forceinline__ void finish(const KqmWarpgroups &, int i, int slot, uint32_t turn,
                                         const float (&y)[TOKENS / 2], KQM_SHARED_ARG(uint32_t) shared) const {
    const int group = slot / 4, lane = threadIdx.x & 31, half = TOKENS / 4;
    const bool gate_is_own = is_gate(slot);
    KQM_UNROLL
    for (int k = 0; k < half; k++)
      kqm_shared_store<float>(shared, plan.waiting(slot, lane, 0, k), gate_is_own ? y[half + k] : y[k]);
    kqm_barrier_arrive(shared, plan.written(group));
    const Work work = this->work(i);
    kqm_barrier_wait(shared, plan.written(group), turn);
    KQM_UNROLL
    for (int k = 0; k < half; k++) {
      const float own = gate_is_own ? y[k] : y[half + k],
                  other = kqm_shared_load<float>(shared, plan.waiting(slot ^ 2, lane, 0, k));
      const int octet = k / 4 + (gate_is_own ? 0 : half / 4);
      const int r = row_tile(work, slot) * KQM_TILE_ROWS + KqmTokenColumns::row(k % 4, lane),
                token = 8 * octet + KqmTokenColumns::token(k % 4, lane);
      if (r >= int(a.gate.rows) || token >= work.tokens) continue;
      const uint32_t pair = work.item.pair(token);
      if (pair < work.item.pairs)
        finish_value(a, size_t(pair) * a.gate.rows + r, work.item.expert.or_nan(gate_is_own ? own : other),
                     work.item.expert.or_nan(gate_is_own ? other : own));
    }
    // What was handed over has been read before the next work's tree begins.
    kqm_barrier_arrive(shared, plan.read(group));
    kqm_barrier_wait(shared, plan.read(group), turn);
  }
};
#endif

template <class Tile>
__global__ void __launch_bounds__(kqm_groups_threads, 1)
    moe_swiglu_groups(kqm_moe_swiglu_args a, KqmWarpgroups plan, int most_items) {
#if KQM_WARPGROUPS
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  kqm_warpgroup_cta<Tile>(plan, Problem(a, plan, most_items), shared);
#endif
}

// Many tokens otherwise: the pairs of an item, eight at a time, two row tiles a block.

template <class Pair>
__global__ void __launch_bounds__(kqm_wide_threads, Pair::wide_at_once)
    moe_swiglu_wide(kqm_moe_swiglu_args a, int most_bytes) {
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, blocks = a.gate.cols / KQM_BLOCK;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const KqmItem item = kqm_item(a.groups, blockIdx.y, a.gate.experts, a.tokens * a.top_k);
  if (item.count == 0) return;
  const bool is_gate = warp < wide_tiles;
  const int s = is_gate ? warp : warp - wide_tiles, tile = blockIdx.x * wide_tiles + s,
            place = (s * 32 + lane) * KqmTokenColumns::results;
  // A warp beyond the last tile works on that one, too, and stores nothing.
  const int own_tile = min(tile, int(a.gate.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS - 1);
  KQM_LOOP
  for (int part = 0; part * kqm_wide_tokens < item.count; part++) {
    const KqmItem some = kqm_item_part(item, part, kqm_wide_tokens);
    const auto first = [&](int i) {
      return i < some.count ? some.readable_pair(i) / a.top_k * blocks : kqm_wide_absent;
    };
    float y[KqmTokenColumns::results];
    Pair::wide_sums(a, is_gate, item.expert, own_tile, most_bytes, first, shared, y);
    // The digits are done with: ups take their place.
    __syncthreads();
    if (!is_gate) kqm_shared_store<float4>(shared, place, make_float4(y[0], y[1], y[2], y[3]));
    __syncthreads();
    if (is_gate) {
      const float4 up4 = kqm_shared_load<float4>(shared, place);
      const float up[KqmTokenColumns::results] = {up4.x, up4.y, up4.z, up4.w};
      KQM_UNROLL
      for (int i = 0; i < KqmTokenColumns::results; i++) {
        const int r = tile * KQM_TILE_ROWS + KqmTokenColumns::row(i, lane), token = KqmTokenColumns::token(i, lane);
        if (r >= int(a.gate.rows) || token >= some.count) continue;
        const uint32_t pair = some.pair(token);
        if (pair < item.pairs)
          finish_value(a, size_t(pair) * a.gate.rows + r, item.expert.or_nan(y[i]), item.expert.or_nan(up[i]));
      }
    }
    __syncthreads();
  }
}

// Gate and up of one type have kernels for warpgroups.
template <class Tile>
kqm_status launch_groups(Same<Tile>, const kqm_moe_swiglu_args &a, const KqmWarpgroups &plan, unsigned items,
                         kqm_stream stream) {
  return KQM_LAUNCH_WARPGROUPS(moe_swiglu_groups<Tile>, dim3(kqm_multiprocessors()), plan.block(), plan.bytes(), stream,
                               a, plan, int(items));
}

template <class Pair>
kqm_status launch(const kqm_moe_swiglu_args &a, kqm_stream stream) {
  const unsigned blocks = a.gate.cols / KQM_BLOCK, tiles = kqm_ceil_div(a.gate.rows, uint32_t(KQM_TILE_ROWS));
  const unsigned items = kqm_launch_items(a.tokens, a.gate.experts, a.top_k);
  if constexpr (Pair::has_groups) {
    const KqmWarpgroups plan = kqm_plan_warpgroups(blocks);
    if (a.tokens > 1 && plan.groups > 0 && kqm_items_for_groups(a.tokens, a.gate.experts, a.top_k))
      return launch_groups(Pair(), a, plan, items, stream);
  }
  if (a.tokens > 1)
    return KQM_LAUNCH(moe_swiglu_wide<Pair>, dim3(kqm_ceil_div(tiles, unsigned(wide_tiles)), items),
                      dim3(kqm_wide_threads), kqm_wide_bytes(Pair::most_bytes(a), blocks), stream, a,
                      Pair::most_bytes(a));
  if (blocks <= unsigned(one_token_warps))
    return KQM_LAUNCH(moe_swiglu_one_token<Pair>, dim3(tiles, items), dim3(32 * blocks),
                      2 * kqm_part_bytes(one_token_warps, 1), stream, a);
  const dim3 block(32 * kqm_even_warps(blocks, KQM_MATVEC_WARPS(1)));
  return KQM_LAUNCH(moe_swiglu_long_token<Pair>, dim3(tiles, items), block, 2 * kqm_part_bytes(blocks, 1), stream, a);
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_moe_swiglu(const kqm_moe_swiglu_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->x && args->out, KQM_NULL_POINTER);
  KQM_TRY(kqm_check_matrix(args->gate));
  KQM_TRY(kqm_check_matrix(args->up));
  KQM_REQUIRE(
      args->gate.rows == args->up.rows && args->gate.cols == args->up.cols && args->gate.experts == args->up.experts,
      KQM_BAD_SHAPE);
  KQM_TRY(kqm_check_pairs(args->groups, args->indices, args->tokens, args->gate.experts, args->top_k));
  KQM_REQUIRE(kqm_aligned(args->x, 16), KQM_MISALIGNED);
  KQM_REQUIRE(!args->logits || args->weights, KQM_NULL_POINTER);
  KQM_REQUIRE(!args->logits || args->tokens == 1, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->logits, 16), KQM_MISALIGNED);
  if (args->gate.type != args->up.type) return launch<Mixed>(*args, stream);
  return KqmBlockTypes::launch(args->gate.type,
                               [&](auto type) { return launch<Same<KqmTileOf<decltype(type)>>>(*args, stream); });
}
KQM_ABI_END
