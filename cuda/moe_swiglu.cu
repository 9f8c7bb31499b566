// moe_swiglu: out[p] = silu(W_gate[e] x) * (W_up[e] x) for every pair p = (token, expert e), in one launch.
//
// Shapes: W_gate, W_up [experts][ff, K], each of its own type (common/types.cuh); x [tokens, K / 256] fixed-point blocks; out [pairs, ff].
// Maths: the products as in q4_k_matvec and q6_k_gemv, each rounded to f32; silu and the product in f32 (common/exp.cuh).
// For a single token the kernel can choose the experts itself, from the router's logits.
// Launch: one token: a CTA for 16 rows of one expert; moe_swiglu_one_token, for up to eight super-blocks, is without loops. More
// tokens: a CTA for 32 rows of a work item, i.e. of up to eight pairs of one expert, so that its weights are read once for all of
// them (common/wide.cuh); half of its warps have gate, the others up. Gate and up of one type, as files have them, are one launch; of two
// types they are a launch each, and the first one's results wait in `out` for the second one.
// Bound by: the weights' bytes for few tokens. At full size a token reads 14 MB in 384 CTAs.
#include "common/choose.cuh"
#include "common/items.cuh"

#include <algorithm>

namespace {

// Warps of a CTA for a single token, and such CTAs at once on a multiprocessor: at full size three of them take all of a token's tiles at
// once.
const int one_token_warps = 8, one_token_ctas = 3;

// One value from its row sums: silu(gate) * up.
__device__ __forceinline__ void finish_value(const kqm_moe_swiglu_args &a, size_t at, float gate, float up) {
  if (a.gate_out) a.gate_out[at] = gate;
  if (a.up_out) a.up_out[at] = up;
  a.out[at] = kqm_canonical(__fmul_rn(kqm_silu(gate), up));
}

// One of the two row sums: that of gate waits in `out`.
__device__ __forceinline__ void finish_half(const kqm_moe_swiglu_args &a, bool is_gate, size_t at, float value) {
  if (is_gate)
    a.out[at] = value;
  else
    finish_value(a, at, a.out[at], value);
}

// The expert of a single token's CTA: chosen by every warp for itself, down to the rank of its CTA.
__device__ __forceinline__ KqmExpert expert_of_cta(const kqm_moe_swiglu_args &a, KqmChoice &choice) {
  if (a.logits) choice = kqm_choose<false>(a.logits, a.gate.experts, blockIdx.y);
  return KqmExpert(a.logits ? choice.last : a.indices[blockIdx.y], a.gate.experts);
}

// The CTA of the last rank has chosen all experts and writes the choice down for moe_down. Its last warp does: the first one has the
// row sums to make.
__device__ __forceinline__ void write_choice(const kqm_moe_swiglu_args &a, const KqmChoice &choice) {
  if (a.logits && blockIdx.x == 0 && blockIdx.y == gridDim.y - 1 && threadIdx.x >= blockDim.x - 32)
    kqm_weigh_experts(choice, a.logits, a.gate.experts, a.top_k, a.weighting, a.indices, a.weights);
}

const int many_tokens_tiles =
    kqm_wide_warps / 2;  // row tiles of a CTA for many tokens: half of its warps have gate, the others up

// CTAs of many tokens at once on a multiprocessor: codebooks with scales for each 16 weights take more registers than three leave.
template <class Tile>
const int many_tokens_ctas = KqmTypeTable<KqmTileIQ1M, KqmTileIQ2S, KqmTileIQ2XS>::is_here<Tile> ? 2 : kqm_wide_at_once;

// Gate and up of one type: leaves the contributions of super-block b in slots `gate_slot` and `up_slot`. Both tiles are on their way before
// one is multiplied.
template <class Tile, class Activations>
__device__ __forceinline__ void multiply(const kqm_moe_swiglu_args &a, const KqmExpert &expert, int b,
                                         const Activations &x, double unit, int gate_slot, int up_slot,
                                         KQM_SHARED_ARG(double) contributions) {
  const int lane = threadIdx.x & 31;
  Tile gate, up;
  gate.load(KqmTileInMemory(kqm_expert_tile<Tile>(a.gate, expert, blockIdx.x) + size_t(b) * Tile::bytes, lane));
  up.load(KqmTileInMemory(kqm_expert_tile<Tile>(a.up, expert, blockIdx.x) + size_t(b) * Tile::bytes, lane));
  kqm_contribute_packed(gate, x, unit, gate_slot, contributions);
  kqm_contribute_packed(up, x, unit, up_slot, contributions);
}

// A single token, a warp for each super-block.
template <class Tile>
__global__ void __launch_bounds__(32 * one_token_warps, one_token_ctas) moe_swiglu_one_token(kqm_moe_swiglu_args a) {
  KQM_DYNAMIC_SHARED(double, contributions);
  KQM_SHARED(uint32_t, fixed, one_token_warps *kqm_fixed_words);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, super_blocks = blockDim.x >> 5;
  KQM_SHARED_ARG(uint32_t) own_fixed = kqm_shared_offset(fixed, warp * kqm_fixed_words);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_zero_pad(contributions, super_blocks * KQM_TILE_ROWS, one_token_warps * KQM_TILE_ROWS);
  kqm_zero_pad(contributions, (one_token_warps + super_blocks) * KQM_TILE_ROWS, 2 * one_token_warps * KQM_TILE_ROWS);
  kqm_wait_for_dependencies();
  // The activations are in flight while the expert is chosen, and wait for the weights in shared memory.
  KqmFixedRegisterStage stage;
  stage.load(a.x + warp);
  KqmChoice choice{};
  const KqmExpert expert = expert_of_cta(a, choice);
  stage.store(own_fixed);
  const KqmSharedToken x(own_fixed, lane);
  multiply<Tile>(a, expert, warp, x, expert.or_nan(x.unit()), warp, one_token_warps + warp, contributions);
  __syncthreads();
  if (warp == 0) {
    // Half a warp sums up gate, the other half up.
    const int tile_row = lane % KQM_TILE_ROWS, r = blockIdx.x * KQM_TILE_ROWS + tile_row;
    const float sum =
        kqm_row_sum_padded<one_token_warps>(contributions, lane / KQM_TILE_ROWS * one_token_warps, tile_row);
    const float other = __shfl_xor_sync(~0u, sum, KQM_TILE_ROWS);
    if (lane < KQM_TILE_ROWS && r < int(a.gate.rows)) finish_value(a, size_t(blockIdx.y) * a.gate.rows + r, sum, other);
  }
  write_choice(a, choice);
}

// A single token of any number of super-blocks.
template <class Tile>
__global__ void __launch_bounds__(32 * KQM_MATVEC_WARPS(1), 1) moe_swiglu_long_token(kqm_moe_swiglu_args a) {
  KQM_DYNAMIC_SHARED(double, contributions);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5,
            super_blocks = a.gate.cols / KQM_BLOCK;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  KqmChoice choice{};
  const KqmExpert expert = expert_of_cta(a, choice);
  for (int b = warp; b < super_blocks; b += warps) {
    const KqmOneToken x(a.x + b, lane);
    multiply<Tile>(a, expert, b, x, x.unit(), b, super_blocks + b, contributions);
  }
  __syncthreads();
  const int r = blockIdx.x * KQM_TILE_ROWS + threadIdx.x;
  if (threadIdx.x < KQM_TILE_ROWS && r < int(a.gate.rows))
    finish_value(a, size_t(blockIdx.y) * a.gate.rows + r,
                 expert.or_nan(kqm_row_sum<1>(contributions, 0, super_blocks, 0, threadIdx.x)),
                 expert.or_nan(kqm_row_sum<1>(contributions, super_blocks, super_blocks, 0, threadIdx.x)));
  write_choice(a, choice);
}

#if KQM_WARPGROUPS
// Many pairs of each expert: of a warpgroup's four warps two have row tiles of gate, and two the same of up, which they hand over.
struct Problem : KqmItemWorks {
  const kqm_moe_swiglu_args &a;

  __device__ __forceinline__ Problem(const kqm_moe_swiglu_args &of, const KqmWarpgroups &layout, int at_most)
      : Problem(of, layout, int(of.gate.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS, at_most) {}
  __device__ __forceinline__ const kqm_fixed_block *x() const { return a.x; }
  __device__ __forceinline__ uint32_t first(const Work &work, int token) const {
    return work.tokens > 0 ? work.item.readable_pair(token) / a.top_k * plan.super_blocks : 0;
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
  __device__ __forceinline__ void finish(int i, int slot, uint32_t turn, const float (&y)[TOKENS / 2],
                                         KQM_SHARED_ARG(uint32_t) shared) const {
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

 private:
  __device__ __forceinline__ Problem(const kqm_moe_swiglu_args &of, const KqmWarpgroups &layout, int row_tiles,
                                     int at_most)
      : KqmItemWorks(of.groups, layout, of.gate.experts, of.tokens * of.top_k, row_tiles, 2 * row_tiles, at_most),
        a(of) {}
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
#else
  kqm_no_warpgroups();
#endif
}

// Many tokens otherwise: the pairs of an item, eight at a time, or the only one or two of it (common/few.cuh), where there are stages for
// them; two row tiles a CTA.

// The results of an item's pairs: warps of up hand theirs over to those of gate. All warps come, and meet.
template <class Columns>
__device__ __forceinline__ void finish_pairs(const kqm_moe_swiglu_args &a, const KqmItem &item, int tile, bool is_gate,
                                             const float (&y)[Columns::results], KQM_SHARED_ARG(uint32_t) shared) {
  const int slot = (threadIdx.x >> 5) % many_tokens_tiles, lane = threadIdx.x & 31,
            offset = (slot * 32 + lane) * Columns::results;
  // The digits are done with: the sums of up take over their memory.
  __syncthreads();
  if (!is_gate) {
    KQM_UNROLL
    for (int i = 0; i < Columns::results; i += 2)
      kqm_shared_store<float2>(shared, offset + i, make_float2(y[i], y[i + 1]));
  }
  __syncthreads();
  if (!is_gate) return;
  float up[Columns::results];
  KQM_UNROLL
  for (int i = 0; i < Columns::results; i += 2) {
    const float2 two = kqm_shared_load<float2>(shared, offset + i);
    up[i] = two.x, up[i + 1] = two.y;
  }
  KQM_UNROLL
  for (int i = 0; i < Columns::results; i++) {
    const int r = tile * KQM_TILE_ROWS + Columns::row(i, lane), token = Columns::token(i, lane);
    if (!Columns::present(lane) || r >= int(a.gate.rows) || token >= item.count) continue;
    const uint32_t pair = item.pair(token);
    if (pair < item.pairs)
      finish_value(a, size_t(pair) * a.gate.rows + r, item.expert.or_nan(y[i]), item.expert.or_nan(up[i]));
  }
}

template <class Tile>
__global__ void __launch_bounds__(kqm_wide_threads, kqm_item_ctas<Tile>(many_tokens_ctas<Tile>))
    moe_swiglu_many_tokens(kqm_moe_swiglu_args a, int few_stages) {
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  const int warp = threadIdx.x >> 5, super_blocks = a.gate.cols / KQM_BLOCK;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const KqmItem item = kqm_item(a.groups, blockIdx.y, a.gate.experts, a.tokens * a.top_k);
  if (item.count == 0) return;
  const bool is_gate = warp < many_tokens_tiles;
  const int tile = blockIdx.x * many_tokens_tiles + warp % many_tokens_tiles;
  // A warp beyond the last tile works on that one, too, and stores nothing.
  const int own_tile = min(tile, int(a.gate.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS - 1);
  const uint8_t *gate = kqm_expert_tile<Tile>(a.gate, item.expert, own_tile),
                *up = kqm_expert_tile<Tile>(a.up, item.expert, own_tile), *data = is_gate ? gate : up;
  if (item.count <= kqm_few_tokens && few_stages > 0) {
    float y[kqm_few_tokens];
    kqm_few_sums<Tile>(
        few_stages, data, super_blocks, a.x, [&](int i) { return item.readable_pair(i) / a.top_k * super_blocks; },
        item.count, shared, y);
    finish_pairs<KqmTwoSharedTokens::Columns>(a, item, tile, is_gate, y, shared);
    return;
  }
  KQM_LOOP
  for (int part = 0; part * kqm_wide_tokens < item.count; part++) {
    const KqmItem some = kqm_item_part(item, part, kqm_wide_tokens);
    float y[KqmTokenColumns::results];
    kqm_wide_sums<Tile>(
        Tile::bytes, data, super_blocks, a.x,
        [&](int i) { return i < some.count ? some.readable_pair(i) / a.top_k * super_blocks : kqm_wide_absent; },
        shared, y);
    finish_pairs<KqmTokenColumns>(a, some, tile, is_gate, y, shared);
    __syncthreads();
  }
}

template <class Tile>
kqm_status launch(const kqm_moe_swiglu_args &a, kqm_stream stream) {
  const unsigned super_blocks = a.gate.cols / KQM_BLOCK, tiles = kqm_ceil_div(a.gate.rows, uint32_t(KQM_TILE_ROWS));
  const unsigned items = kqm_launch_items(a.tokens, a.gate.experts, a.top_k);
  const int few_stages = kqm_few_stages(Tile::bytes, super_blocks, many_tokens_ctas<Tile>);
  if constexpr (KqmWarpgroupTypes::is_here<Tile>) {
    if (a.tokens > 1 && kqm_items_for_groups(a.tokens, a.gate.experts, a.top_k)) {
      const KqmWarpgroups plan = kqm_plan_warpgroups(super_blocks);
      if (plan.groups > 0)
        return KQM_LAUNCH_WARPGROUPS(moe_swiglu_groups<Tile>, dim3(kqm_multiprocessors()), plan.block(), plan.bytes(),
                                     stream, a, plan, int(items));
    }
  }
  if (a.tokens > 1)
    return KQM_LAUNCH(moe_swiglu_many_tokens<Tile>, dim3(kqm_ceil_div(tiles, unsigned(many_tokens_tiles)), items),
                      dim3(kqm_wide_threads), kqm_item_bytes(Tile::bytes, super_blocks, few_stages), stream, a,
                      few_stages);
  if (super_blocks <= unsigned(one_token_warps))
    return KQM_LAUNCH(moe_swiglu_one_token<Tile>, dim3(tiles, items), dim3(32 * super_blocks),
                      2 * kqm_contribution_bytes(one_token_warps, 1), stream, a);
  const dim3 cta(32 * kqm_even_warps(super_blocks, KQM_MATVEC_WARPS(1)));
  return KQM_LAUNCH(moe_swiglu_long_token<Tile>, dim3(tiles, items), cta, 2 * kqm_contribution_bytes(super_blocks, 1),
                    stream, a);
}

// Gate or up alone, for a single token: row sums of an expert's 16 rows a block.
template <class Tile>
__global__ void __launch_bounds__(32 * KQM_MATVEC_WARPS(1), 1)
    moe_swiglu_half_of_token(kqm_moe_swiglu_args a, bool is_gate) {
  KQM_DYNAMIC_SHARED(double, contributions);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5,
            super_blocks = a.gate.cols / KQM_BLOCK;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  KqmChoice choice{};
  const KqmExpert expert = expert_of_cta(a, choice);
  const uint8_t *gate = kqm_expert_tile<Tile>(a.gate, expert, blockIdx.x),
                *up = kqm_expert_tile<Tile>(a.up, expert, blockIdx.x);
  for (int b = warp; b < super_blocks; b += warps) {
    Tile tile;
    tile.load(KqmTileInMemory((is_gate ? gate : up) + size_t(b) * Tile::bytes, lane));
    kqm_contribute_packed(tile, KqmOneToken(a.x + b, lane), a.x[b].unit, b, contributions);
  }
  __syncthreads();
  const int r = blockIdx.x * KQM_TILE_ROWS + threadIdx.x;
  if (threadIdx.x < KQM_TILE_ROWS && r < int(a.gate.rows))
    finish_half(a, is_gate, size_t(blockIdx.y) * a.gate.rows + r,
                expert.or_nan(kqm_row_sum<1>(contributions, 0, super_blocks, 0, threadIdx.x)));
  if (is_gate) write_choice(a, choice);
}

// The same for the pairs of an item, a row tile a warp.
template <class Tile>
__global__ void __launch_bounds__(kqm_wide_threads, many_tokens_ctas<Tile>)
    moe_swiglu_half_many_tokens(kqm_moe_swiglu_args a, bool is_gate) {
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  const int tile = blockIdx.x * kqm_wide_warps + (threadIdx.x >> 5), super_blocks = a.gate.cols / KQM_BLOCK;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const KqmItem item = kqm_item(a.groups, blockIdx.y, a.gate.experts, a.tokens * a.top_k);
  if (item.count == 0) return;
  // A warp beyond the last tile works on that one, too, and stores nothing.
  const int own_tile = min(tile, int(a.gate.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS - 1);
  const uint8_t *gate = kqm_expert_tile<Tile>(a.gate, item.expert, own_tile),
                *up = kqm_expert_tile<Tile>(a.up, item.expert, own_tile);
  KQM_LOOP
  for (int part = 0; part * kqm_wide_tokens < item.count; part++) {
    const KqmItem some = kqm_item_part(item, part, kqm_wide_tokens);
    if (part > 0) __syncthreads();
    float y[KqmTokenColumns::results];
    kqm_wide_sums<Tile>(
        Tile::bytes, is_gate ? gate : up, super_blocks, a.x,
        [&](int i) { return i < some.count ? some.readable_pair(i) / a.top_k * super_blocks : kqm_wide_absent; },
        shared, y);
    kqm_wide_store<KqmTokenColumns>(y, tile, a.gate.rows, some.count, [&](int r, int token, float value) {
      const uint32_t pair = some.pair(token);
      if (pair < item.pairs) finish_half(a, is_gate, size_t(pair) * a.gate.rows + r, item.expert.or_nan(value));
    });
  }
}

template <class Tile>
kqm_status launch_half(const kqm_moe_swiglu_args &a, bool is_gate, kqm_stream stream) {
  const unsigned super_blocks = a.gate.cols / KQM_BLOCK, tiles = kqm_ceil_div(a.gate.rows, uint32_t(KQM_TILE_ROWS));
  const unsigned items = kqm_launch_items(a.tokens, a.gate.experts, a.top_k);
  if (a.tokens > 1)
    return KQM_LAUNCH(moe_swiglu_half_many_tokens<Tile>, dim3(kqm_ceil_div(tiles, unsigned(kqm_wide_warps)), items),
                      dim3(kqm_wide_threads), kqm_wide_bytes(Tile::bytes, super_blocks), stream, a, is_gate);
  return KQM_LAUNCH(moe_swiglu_half_of_token<Tile>, dim3(tiles, items),
                    dim3(32 * kqm_even_warps(super_blocks, KQM_MATVEC_WARPS(1))),
                    kqm_contribution_bytes(super_blocks, 1), stream, a, is_gate);
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
  KQM_REQUIRE(args->weighting <= KQM_WEIGHTS_OF_ALL, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->logits, 16), KQM_MISALIGNED);
  if (args->gate.type != args->up.type) {
    for (const bool is_gate : {true, false}) {
      const kqm_status status = KqmBlockTypes::launch(is_gate ? args->gate.type : args->up.type, [&](auto type) {
        return launch_half<KqmTileOf<decltype(type)>>(*args, is_gate, stream);
      });
      if (status != KQM_OK) return status;
    }
    return KQM_OK;
  }
  return KqmBlockTypes::launch(args->gate.type,
                               [&](auto type) { return launch<KqmTileOf<decltype(type)>>(*args, stream); });
}
KQM_ABI_END
