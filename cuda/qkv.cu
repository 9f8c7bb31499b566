// qkv: y[i][t, r] = sum_k W[i][r, k] x[t, k] for up to three matrices of Q4_K or Q6_K, each of its own type, in one launch.
//
// Shapes: W[i] [rows i, K], x [tokens, K / 256] blocks, y[i] [tokens, rows i].
// Maths: as q4_k_matvec and q6_k_gemv. For a single token the kernel can take in the RMSNorm before it: every block norms and
// quantizes the row for itself while its weights are on their way, which costs less than a launch and a round trip.
// Launch: one block for one or two row tiles of any matrix, one warp for a super-block (16 warps at most); 2 or 8 tokens at
// once.
// Bound by: the weights' bytes; one launch instead of three keeps more of them in flight.
#include "common/matvec.cuh"
#include "common/norm.cuh"

namespace {

// T neighbouring row tiles of one matrix, from `tile` on.
template <class Tile, int NP, int WARPS, int T, bool NORM>
__device__ __forceinline__ void project(const kqm_qkv_args &a, const kqm_matrix &w, float *y, int tile, int first, int tokens,
                                        double inverse_cols) {
  KQM_DYNAMIC_SHARED(double, part);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, blocks = w.cols / KQM_BLOCK;
  const int tiles = (w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS, present = min(T, tiles - tile);
  const size_t tile_bytes = size_t(blocks) * Tile::bytes;
  const uint8_t *data = static_cast<const uint8_t *>(w.tiles) + tile * tile_bytes;
  Tile current[T];
  KQM_UNROLL
  for (int s = 0; s < T; s++) {
    if (s < present) current[s].load(data + s * tile_bytes + size_t(warp) * Tile::bytes, lane);
  }
  kqm_touch_arguments(a);
  if (NORM) {
    // One warp for a super-block: it norms and quantizes its own part of the row.
    KQM_SHARED(double, run_sum, NORM ? WARPS : 1);
    KQM_SHARED(uint32_t, fixed, NORM ? WARPS * kqm_fixed_words : 1);
    const float4 *weight = reinterpret_cast<const float4 *>(a.norm.weight) + 64 * warp + 2 * lane;
    const float4 w0 = weight[0], w1 = weight[1];
    kqm_wait_for_dependencies();
    kqm_release_dependents();
    float x[8];
    kqm_fused_norm_eight(a.norm, w0, w1, inverse_cols, run_sum, x);
    if (blockIdx.x == 0 && a.norm.out) kqm_store_eight(a.norm.out + warp * KQM_BLOCK, lane, x);
    KQM_SHARED_ARG(uint32_t) block = kqm_shared_offset(fixed, warp * kqm_fixed_words);
    const double unit = kqm_fixed_warp(x, KqmSharedBlock{block});
    __syncwarp();
    typename Tile::Cached cached;
    cached.load(KqmSharedActivations(block, lane));
    KQM_UNROLL
    for (int s = 0; s < T; s++) {
      if (s < present) kqm_contribute_cached(current[s], cached, unit, s * blocks + warp, part);
    }
  } else {
    kqm_wait_for_dependencies();
    kqm_release_dependents();
    const auto row = [=](int i) { return i < tokens ? a.x + size_t(first + i) * blocks : nullptr; };
    KQM_UNROLL
    for (int s = 0; s < T; s++) {
      if (s >= present) break;
      for (int b = warp; b < blocks; b += warps) {
        if (b != warp) current[s].load(data + s * tile_bytes + size_t(b) * Tile::bytes, lane);
        kqm_contribute<NP>(current[s], row, b, s * blocks + b, part);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < present * tokens * KQM_TILE_ROWS; i += blockDim.x) {
    const int tile_row = i % KQM_TILE_ROWS, token = i / KQM_TILE_ROWS % tokens, s = i / KQM_TILE_ROWS / tokens;
    const int r = (tile + s) * KQM_TILE_ROWS + tile_row;
    if (r < int(w.rows)) y[size_t(first + token) * w.rows + r] = kqm_row_sum<NP>(part, s * blocks, blocks, token, tile_row);
  }
}

// Up to WARPS warps, T row tiles a block; PER_SM blocks at once on a multiprocessor, which limits the registers.
template <int NP, int WARPS, int T, int PER_SM, bool NORM>
__global__ void __launch_bounds__(32 * WARPS, PER_SM) qkv_kernel(kqm_qkv_args a, double inverse_cols) {
  const int first = blockIdx.y * 2 * NP, tokens = min(2 * NP, int(a.tokens) - first);
  const int blocks0 = int(a.w[0].rows + T * KQM_TILE_ROWS - 1) / (T * KQM_TILE_ROWS);
  const int blocks1 = int(a.w[1].rows + T * KQM_TILE_ROWS - 1) / (T * KQM_TILE_ROWS);
  // Constant indices keep the arguments in constant memory.
  int block = blockIdx.x;
  kqm_matrix w = a.w[0];
  float *y = a.y[0];
  if (block >= blocks0 + blocks1) {
    block -= blocks0 + blocks1;
    w = a.w[2];
    y = a.y[2];
  } else if (block >= blocks0) {
    block -= blocks0;
    w = a.w[1];
    y = a.y[1];
  }
  if (w.type == KQM_TYPE_Q4_K)
    project<KqmTileQ4K, NP, WARPS, T, NORM>(a, w, y, block * T, first, tokens, inverse_cols);
  else
    project<KqmTileQ6K, NP, WARPS, T, NORM>(a, w, y, block * T, first, tokens, inverse_cols);
}

// Row tiles of a block for few tokens: half the blocks of one each, and so half the norms.
const int few_tokens_tiles = 2;

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_qkv(const kqm_qkv_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && (args->x != nullptr || args->norm.x != nullptr), KQM_NULL_POINTER);
  KQM_REQUIRE(kqm_aligned(args->x, 16), KQM_MISALIGNED);
  KQM_REQUIRE(args->tokens > 0, KQM_BAD_SHAPE);
  unsigned cols = 0;
  for (int i = 0; i < 3; i++) {
    const kqm_matrix &w = args->w[i];
    if (w.rows == 0) continue;
    KQM_TRY(kqm_check_matrix(w));
    KQM_REQUIRE(w.experts == 1 && (cols == 0 || w.cols == cols), KQM_BAD_SHAPE);
    KQM_REQUIRE(args->y[i] != nullptr, KQM_NULL_POINTER);
    cols = w.cols;
  }
  KQM_REQUIRE(cols > 0, KQM_BAD_SHAPE);
  if (args->norm.x) KQM_TRY(kqm_check_fused_norm(args->norm, args->tokens, cols));
  const unsigned blocks = cols / KQM_BLOCK;
  const bool wide = args->tokens > 2 && blocks <= KQM_WIDE_BLOCKS;
  const unsigned np = wide ? 4 : 1, groups = kqm_ceil_div(args->tokens, 2 * np);
  const unsigned warps = kqm_even_warps(blocks, KQM_MATVEC_WARPS(np));
  const unsigned tiles = !wide && warps <= 8 ? few_tokens_tiles : 1;
  KQM_REQUIRE(groups <= 65535, KQM_BAD_SHAPE);
  unsigned grid_x = 0;
  for (const kqm_matrix &w : args->w) grid_x += kqm_ceil_div(w.rows, tiles * KQM_TILE_ROWS);
  const size_t shared = tiles * kqm_part_bytes(blocks, np);
  const dim3 grid(grid_x, groups), block(32 * warps);
  const double inverse_cols = 1.0 / double(cols);
  if (wide) return KQM_LAUNCH((qkv_kernel<4, 8, 1, 1, false>), grid, block, shared, stream, *args, inverse_cols);
  const int t = few_tokens_tiles;
  if (args->norm.x) {
    if (warps <= 8) return KQM_LAUNCH((qkv_kernel<1, 8, t, 2, true>), grid, block, shared, stream, *args, inverse_cols);
    return KQM_LAUNCH((qkv_kernel<1, 16, 1, 1, true>), grid, block, shared, stream, *args, inverse_cols);
  }
  if (warps <= 8) return KQM_LAUNCH((qkv_kernel<1, 8, t, 2, false>), grid, block, shared, stream, *args, inverse_cols);
  return KQM_LAUNCH((qkv_kernel<1, 16, 1, 1, false>), grid, block, shared, stream, *args, inverse_cols);
}
KQM_ABI_END
