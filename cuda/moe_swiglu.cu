// moe_swiglu: out[p] = silu(W_gate[e] x) * (W_up[e] x) for every pair p = (token, expert e), in one launch.
//
// Shapes: W_gate, W_up [experts][ff, K], each Q4_K or Q6_K; x [tokens, K / 256] blocks; out [pairs, ff].
// Maths: the products as in q4_k_matvec and q6_k_gemv, each rounded to f32; silu and the product in f32 (common/exp.cuh).
// For a single token the kernel can choose the experts itself, from the router's logits.
// Launch: one block for 16 rows of one work item, i.e. of up to eight pairs of one expert, so that its weights are read once
// for all of them; one warp for a super-block of gate and of up. moe_swiglu_one_token is that for a single token of up to eight
// super-blocks, without loops.
// Bound by: the weights' bytes for few tokens. At full size a token reads 14 MB in 384 blocks.
#include "common/choose.cuh"
#include "common/items.cuh"

namespace {

const int one_token_warps = 8;

// The row sums of a tile, one thread for a row and token of the item's `count` from `first` on: silu(gate) * up.
template <int TOKENS>
__device__ __forceinline__ void finish(const kqm_moe_swiglu_args &a, const KqmItem &item, int first, int count, int blocks,
                                       KQM_SHARED_ARG(double) part) {
  for (int i = threadIdx.x; i < count * KQM_TILE_ROWS; i += blockDim.x) {
    const int token = i / KQM_TILE_ROWS, tile_row = i % KQM_TILE_ROWS, r = blockIdx.x * KQM_TILE_ROWS + tile_row;
    if (r >= int(a.gate.rows)) continue;
    const float gate = kqm_row_sum<TOKENS, 8>(part, 0, blocks, token, tile_row);
    const float up = kqm_row_sum<TOKENS, 8>(part, blocks, blocks, token, tile_row);
    const size_t at = size_t(item.pair(first + token)) * a.gate.rows + r;
    if (a.gate_out) a.gate_out[at] = gate;
    if (a.up_out) a.up_out[at] = up;
    a.out[at] = kqm_canonical(__fmul_rn(kqm_silu(gate), up));
  }
}

// The item of a block. A single token's is chosen by every warp for itself, down to the rank of its block: its index.
template <bool CHOOSE>
__device__ __forceinline__ KqmItem item_of_block(const kqm_moe_swiglu_args &a, KqmChoice &choice) {
  if (CHOOSE && a.logits) {
    choice = kqm_choose<false>(a.logits, a.gate.experts, blockIdx.y);
    return KqmItem{choice.last, nullptr, blockIdx.y, 1};
  }
  return kqm_item(a.groups, a.indices, a.tokens, blockIdx.y);
}

// The block of the last rank has chosen all experts and writes the choice down for moe_down. Its last warp does: the first one has the
// row sums to make.
__device__ __forceinline__ void write_choice(const kqm_moe_swiglu_args &a, const KqmChoice &choice) {
  if (a.logits && blockIdx.x == 0 && blockIdx.y == gridDim.y - 1 && threadIdx.x >= blockDim.x - 32)
    kqm_weigh_experts(choice, a.top_k, a.indices, a.weights);
}

// Blocks of moe_swiglu_one_token at once on a multiprocessor, which limits the registers. At full size three of them take all of a
// token's tiles at once; Q6_K tiles need more registers.
template <class Gate, class Up>
struct AtOnce {
  static const int blocks = Gate::bytes == KQM_TILE_BYTES_Q4_K && Up::bytes == KQM_TILE_BYTES_Q4_K ? 3 : 2;
};

// A single token, a warp for each super-block.
template <class Gate, class Up>
__global__ void __launch_bounds__(32 * one_token_warps, (AtOnce<Gate, Up>::blocks)) moe_swiglu_one_token(kqm_moe_swiglu_args a) {
  KQM_DYNAMIC_SHARED(double, part);
  KQM_SHARED(uint32_t, fixed, one_token_warps *kqm_fixed_words);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, blocks = blockDim.x >> 5;
  KQM_SHARED_ARG(uint32_t) own_block = kqm_shared_offset(fixed, warp * kqm_fixed_words);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  // The activations are on their way while the expert is chosen, and wait for the weights in shared memory.
  KqmBlockOnItsWay on_its_way;
  on_its_way.load(a.x + warp);
  KqmChoice choice{};
  const KqmItem item = item_of_block<true>(a, choice);
  on_its_way.store(own_block);
  Gate gate;
  Up up;
  gate.load(kqm_expert_tile<Gate>(a.gate, item.expert, blockIdx.x) + size_t(warp) * Gate::bytes, lane);
  up.load(kqm_expert_tile<Up>(a.up, item.expert, blockIdx.x) + size_t(warp) * Up::bytes, lane);
  const KqmSharedToken x(own_block, lane);
  kqm_contribute_one(gate, x, x.unit(), warp, part);
  kqm_contribute_one(up, x, x.unit(), blocks + warp, part);
  __syncthreads();
  finish<1>(a, item, 0, 1, blocks, part);
  write_choice(a, choice);
}

// Everything else: the pairs of an item, TOKENS at a time.
template <class Gate, class Up, int TOKENS, int WARPS>
__global__ void __launch_bounds__(32 * WARPS, 1) moe_swiglu_kernel(kqm_moe_swiglu_args a) {
  KQM_DYNAMIC_SHARED(double, part);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, blocks = a.gate.cols / KQM_BLOCK;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  KqmChoice choice{};
  const KqmItem item = item_of_block<TOKENS == 1>(a, choice);
  if (item.count == 0) return;
  const uint8_t *gate_data = kqm_expert_tile<Gate>(a.gate, item.expert, blockIdx.x);
  const uint8_t *up_data = kqm_expert_tile<Up>(a.up, item.expert, blockIdx.x);

  for (int first = 0; first < item.count; first += TOKENS) {
    const int count = min(TOKENS, item.count - first);
    const auto row = [=](int i) {
      return i < count ? a.x + size_t(item.pair(first + i) / a.top_k) * blocks : nullptr;
    };
    for (int b = warp; b < blocks; b += warps) {
      Gate gate;
      Up up;
      gate.load(gate_data + size_t(b) * Gate::bytes, lane);
      up.load(up_data + size_t(b) * Up::bytes, lane);
      KqmContribute<TOKENS>::call(gate, row, b, b, part);
      KqmContribute<TOKENS>::call(up, row, b, blocks + b, part);
    }
    __syncthreads();
    finish<TOKENS>(a, item, first, count, blocks, part);
    __syncthreads();
  }
  if (TOKENS == 1) write_choice(a, choice);
}

template <class Gate, class Up>
kqm_status launch(const kqm_moe_swiglu_args &a, kqm_stream stream) {
  const unsigned blocks = a.gate.cols / KQM_BLOCK, tiles = kqm_ceil_div(a.gate.rows, uint32_t(KQM_TILE_ROWS));
  const bool wide = a.tokens > 1 && blocks <= KQM_WIDE_BLOCKS;
  const unsigned at_a_time = wide ? 8 : 1, warps = kqm_even_warps(blocks, KQM_MATVEC_WARPS(at_a_time));
  const dim3 grid(tiles, kqm_launch_items(a.tokens, a.gate.experts, a.top_k));
  const size_t shared = 2 * kqm_part_bytes(blocks, at_a_time);
  if (wide) return KQM_LAUNCH((moe_swiglu_kernel<Gate, Up, 8, 8>), grid, dim3(32 * warps), shared, stream, a);
  if (a.tokens == 1 && blocks <= unsigned(one_token_warps))
    return KQM_LAUNCH((moe_swiglu_one_token<Gate, Up>), grid, dim3(32 * blocks), shared, stream, a);
  return KQM_LAUNCH((moe_swiglu_kernel<Gate, Up, 1, 16>), grid, dim3(32 * warps), shared, stream, a);
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_moe_swiglu(const kqm_moe_swiglu_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->x && args->out, KQM_NULL_POINTER);
  KQM_TRY(kqm_check_matrix(args->gate));
  KQM_TRY(kqm_check_matrix(args->up));
  KQM_REQUIRE(args->gate.rows == args->up.rows && args->gate.cols == args->up.cols &&
                  args->gate.experts == args->up.experts,
              KQM_BAD_SHAPE);
  KQM_TRY(kqm_check_pairs(args->groups, args->indices, args->tokens, args->gate.experts, args->top_k));
  KQM_REQUIRE(kqm_aligned(args->x, 16), KQM_MISALIGNED);
  KQM_REQUIRE(!args->logits || args->weights, KQM_NULL_POINTER);
  KQM_REQUIRE(!args->logits || args->tokens == 1, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->logits, 16), KQM_MISALIGNED);
  const bool gate_q4 = args->gate.type == KQM_TYPE_Q4_K, up_q4 = args->up.type == KQM_TYPE_Q4_K;
  if (gate_q4 && up_q4) return launch<KqmTileQ4K, KqmTileQ4K>(*args, stream);
  if (gate_q4) return launch<KqmTileQ4K, KqmTileQ6K>(*args, stream);
  if (up_q4) return launch<KqmTileQ6K, KqmTileQ4K>(*args, stream);
  return launch<KqmTileQ6K, KqmTileQ6K>(*args, stream);
}
KQM_ABI_END
