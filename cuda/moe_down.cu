// moe_down: y[t] = residual[t] + sum over ranks of weights[t, rank] * (W_down[e] x[pair]), pair = (t, rank), e its expert.
//
// Shapes: W_down [experts][rows, K], Q4_K or Q6_K; x [pairs, K / 256] blocks; expert_out [pairs, rows]; y [tokens, rows].
// Maths: the products as in q4_k_matvec and q6_k_gemv, each rounded to f32; the weighted sum in f64 over ranks ascending,
// rounded to f32; one f32 addition of the residual.
// Launch: one token: a block has all experts of 16 rows, one warp for a super-block of one of them (24 warps at full size), and
// ends with the weighted sum; in moe_down_one_token_rows each warp quantizes its part of the activations itself, which saves a
// launch. More tokens: one block for 16 rows of a work item, so that an expert's weights are read once for up to eight of its
// pairs; a second kernel makes the weighted sums.
// Bound by: the weights' bytes. At full size a token reads 7 to 10 MB in 128 blocks.
#include "common/items.cuh"
#include "common/tree.cuh"

namespace {

const unsigned one_token_warps = KQM_FUSED_UNITS, max_shared = 48 * 1024;

// The weighted sum of one value, from the experts' weights and products in rank order, and its residual.
template <class Weight, class Product>
__device__ __forceinline__ void finish(const kqm_moe_down_args &a, uint32_t t, uint32_t r, float residual, Weight weight,
                                       Product product) {
  double s = 0.0;
  for (uint32_t i = 0; i < a.top_k; i++) s = fma(double(weight(i)), double(product(i)), s);
  const float sum = kqm_canonical(float(s));
  const size_t at = size_t(t) * a.down.rows + r;
  if (a.sum) a.sum[at] = sum;
  a.y[at] = a.residual ? kqm_canonical(__fadd_rn(residual, sum)) : sum;
}

// What the end of a block for a single token needs, on its way while the tiles are multiplied.
struct End {
  uint32_t row;   // of this thread
  bool finishes;  // this thread's row exists
  float residual;

  __device__ __forceinline__ End(const kqm_moe_down_args &a, KQM_SHARED_ARG(float) weight) {
    row = blockIdx.x * KQM_TILE_ROWS + threadIdx.x;
    finishes = threadIdx.x < KQM_TILE_ROWS && row < a.down.rows;
    residual = finishes && a.residual ? a.residual[row] : 0.0f;
    for (uint32_t i = threadIdx.x; i < a.top_k; i += blockDim.x) weight[i] = a.weights[i];
  }
};

// The row sums of all experts of a tile, and their weighted sum.
__device__ __forceinline__ void finish_tile(const kqm_moe_down_args &a, const End &end, int blocks, KQM_SHARED_ARG(double) part,
                                            KQM_SHARED_ARG(float) product, KQM_SHARED_ARG(float) weight) {
  for (int i = threadIdx.x; i < int(a.top_k) * KQM_TILE_ROWS; i += blockDim.x) {
    const int rank = i / KQM_TILE_ROWS, tile_row = i % KQM_TILE_ROWS;
    const uint32_t r = blockIdx.x * KQM_TILE_ROWS + tile_row;
    const float value = kqm_row_sum<1>(part, rank * blocks, blocks, 0, tile_row);
    product[i] = value;
    if (r < a.down.rows) a.expert_out[size_t(rank) * a.down.rows + r] = value;
  }
  __syncthreads();
  if (end.finishes)
    finish(
        a, 0, end.row, end.residual, [&](uint32_t i) { return float(weight[i]); },
        [&](uint32_t i) { return float(product[i * KQM_TILE_ROWS + threadIdx.x]); });
}

// A single token whose rows are still to be quantized: each warp has one unit, and quantizes its own part of the activations.
template <class Tile>
__global__ void __launch_bounds__(one_token_warps * 32, 1) moe_down_one_token_rows(kqm_moe_down_args a) {
  KQM_DYNAMIC_SHARED(double, part);
  KQM_SHARED(float, product, KQM_MAX_TOP_K *KQM_TILE_ROWS);
  KQM_SHARED(float, weight, KQM_MAX_TOP_K);
  KQM_SHARED(uint32_t, fixed, one_token_warps *kqm_fixed_words);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, blocks = a.down.cols / KQM_BLOCK;
  const int rank = warp / blocks, b = warp % blocks;
  KQM_SHARED_ARG(uint32_t) block = kqm_shared_offset(fixed, warp * kqm_fixed_words);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  // Activations need no index, and are quantized while the tile is on its way.
  float x[8];
  kqm_load_eight(a.swiglu + size_t(warp) * KQM_BLOCK, lane, x);
  Tile tile;
  tile.load(kqm_expert_tile<Tile>(a.down, a.indices[rank], blockIdx.x) + size_t(b) * Tile::bytes, lane);
  const End end(a, weight);
  const double unit = kqm_fixed_warp(x, KqmSharedBlock{block});
  __syncwarp();
  kqm_contribute_cached(tile, KqmSharedActivations(block, lane), unit, warp, part);
  __syncthreads();
  finish_tile(a, end, blocks, part, product, weight);
}

template <class Tile>
__global__ void __launch_bounds__(one_token_warps * 32, 1) moe_down_one_token(kqm_moe_down_args a) {
  KQM_DYNAMIC_SHARED(double, part);
  KQM_SHARED(float, product, KQM_MAX_TOP_K *KQM_TILE_ROWS);
  KQM_SHARED(float, weight, KQM_MAX_TOP_K);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  const int blocks = a.down.cols / KQM_BLOCK, units = int(a.top_k) * blocks;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const End end(a, weight);
  for (int u = warp; u < units; u += warps) {
    const int rank = u / blocks, b = u % blocks;
    Tile tile;
    tile.load(kqm_expert_tile<Tile>(a.down, a.indices[rank], blockIdx.x) + size_t(b) * Tile::bytes, lane);
    kqm_contribute_cached(tile, KqmOneToken(a.x + u, lane), a.x[u].unit, u, part);
  }
  __syncthreads();
  finish_tile(a, end, blocks, part, product, weight);
}

template <class Tile, int NP>
__global__ void __launch_bounds__(KQM_MATVEC_WARPS(NP) * 32, 1) moe_down_items(kqm_moe_down_args a) {
  KQM_DYNAMIC_SHARED(double, part);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, blocks = a.down.cols / KQM_BLOCK;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const KqmItem item = kqm_item(a.groups, a.indices, a.tokens, blockIdx.y);
  if (item.count == 0) return;
  const uint8_t *data = kqm_expert_tile<Tile>(a.down, item.expert, blockIdx.x);
  for (int first = 0; first < item.count; first += 2 * NP) {
    const int count = min(2 * NP, item.count - first);
    const auto row = [=](int i) { return i < count ? a.x + size_t(item.pair(first + i)) * blocks : nullptr; };
    for (int b = warp; b < blocks; b += warps) {
      Tile tile;
      tile.load(data + size_t(b) * Tile::bytes, lane);
      kqm_contribute<NP>(tile, row, b, b, part);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * KQM_TILE_ROWS; i += blockDim.x) {
      const int token = i / KQM_TILE_ROWS, tile_row = i % KQM_TILE_ROWS;
      const uint32_t r = blockIdx.x * KQM_TILE_ROWS + tile_row;
      if (r < a.down.rows)
        a.expert_out[size_t(item.pair(first + token)) * a.down.rows + r] =
            kqm_row_sum<NP>(part, 0, blocks, token, tile_row);
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(256) moe_down_sum(kqm_moe_down_args a) {
  const uint32_t r = blockIdx.x * 256 + threadIdx.x, t = blockIdx.y;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  if (r >= a.down.rows) return;
  const float *products = a.expert_out + size_t(t) * a.top_k * a.down.rows + r;
  const float residual = a.residual ? a.residual[size_t(t) * a.down.rows + r] : 0.0f;
  finish(
      a, t, r, residual, [=](uint32_t i) { return a.weights[size_t(t) * a.top_k + i]; },
      [=](uint32_t i) { return products[size_t(i) * a.down.rows]; });
}

template <class Tile>
kqm_status launch(const kqm_moe_down_args &a, kqm_stream stream) {
  const unsigned blocks = a.down.cols / KQM_BLOCK, tiles = kqm_ceil_div(a.down.rows, uint32_t(KQM_TILE_ROWS));
  const unsigned units = a.top_k * blocks;
  // The static array of products needs room, too.
  const size_t one_token_shared = kqm_part_bytes(units, 1);
  const dim3 one_token_block(32 * kqm_even_warps(units, one_token_warps));
  if (a.swiglu)
    return KQM_LAUNCH(moe_down_one_token_rows<Tile>, dim3(tiles), one_token_block, one_token_shared, stream, a);
  if (a.tokens == 1 && one_token_shared + KQM_MAX_TOP_K * KQM_TILE_ROWS * sizeof(float) <= max_shared)
    return KQM_LAUNCH(moe_down_one_token<Tile>, dim3(tiles), one_token_block, one_token_shared, stream, a);
  const bool wide = a.tokens > 1 && blocks <= KQM_WIDE_BLOCKS;
  const unsigned np = wide ? 4 : 1, warps = kqm_even_warps(blocks, KQM_MATVEC_WARPS(np));
  const dim3 grid(tiles, kqm_launch_items(a.tokens, a.down.experts, a.top_k));
  const size_t shared = kqm_part_bytes(blocks, np);
  if (wide)
    KQM_TRY(KQM_LAUNCH((moe_down_items<Tile, 4>), grid, dim3(32 * warps), shared, stream, a));
  else
    KQM_TRY(KQM_LAUNCH((moe_down_items<Tile, 1>), grid, dim3(32 * warps), shared, stream, a));
  return KQM_LAUNCH(moe_down_sum, dim3(kqm_ceil_div(a.down.rows, 256u), a.tokens), dim3(256), 0, stream, a);
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_moe_down(const kqm_moe_down_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && (args->x || args->swiglu) && args->weights && args->expert_out && args->y,
              KQM_NULL_POINTER);
  KQM_TRY(kqm_check_matrix(args->down));
  KQM_TRY(kqm_check_pairs(args->groups, args->indices, args->tokens, args->down.experts, args->top_k));
  KQM_REQUIRE(kqm_aligned(args->x, 16) && kqm_aligned(args->swiglu, 16), KQM_MISALIGNED);
  KQM_REQUIRE(!args->swiglu || (args->tokens == 1 && args->top_k * (args->down.cols / KQM_BLOCK) <= KQM_FUSED_UNITS),
              KQM_BAD_SHAPE);
  if (args->down.type == KQM_TYPE_Q4_K) return launch<KqmTileQ4K>(*args, stream);
  return launch<KqmTileQ6K>(*args, stream);
}
KQM_ABI_END
