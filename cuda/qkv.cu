// qkv: y[i][t, r] = sum_k W[i][r, k] x[t, k] for up to three matrices of Q4_K or Q6_K, each of its own type, in one launch.
//
// Shapes: W[i] [rows i, K], x [tokens, K / 256] blocks, y[i] [tokens, rows i].
// Maths: as q4_k_matvec and q6_k_gemv. For a single token the kernel can take in the RMSNorm before it: every block norms and
// quantizes the row for itself while its weights are on their way, which costs less than a launch and a round trip.
// Launch: qkv_one_token takes up to three row tiles of any matrix a block, so that at full size all blocks run at once: one warp for
// each super-block of a tile, and as many that norm and quantize a super-block of the row for all of them. qkv_kernel takes one row tile
// a block, one warp for a super-block (16 warps at most), and 1, 2 or 8 tokens at once.
// Bound by: the weights' bytes; one launch instead of three keeps more of them in flight.
#include "common/matvec.cuh"
#include "common/norm.cuh"

#include <algorithm>

namespace {

// Row tiles of a block, and the first blocks of the second and the third matrix.
struct Split {
  int tiles;
  unsigned first[2];
};

// What a block works on: `tiles` row tiles of a matrix from `tile` on.
struct Work {
  kqm_matrix w;
  float *y;
  int tile, tiles;

  __device__ __forceinline__ Work(const kqm_qkv_args &a, const Split &split) {
    // Constant indices keep the arguments in constant memory.
    int block = blockIdx.x;
    w = a.w[0];
    y = a.y[0];
    if (blockIdx.x >= split.first[1]) {
      block -= split.first[1];
      w = a.w[2];
      y = a.y[2];
    } else if (blockIdx.x >= split.first[0]) {
      block -= split.first[0];
      w = a.w[1];
      y = a.y[1];
    }
    tile = block * split.tiles;
    tiles = min(split.tiles, int(w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS - tile);
  }
  __device__ __forceinline__ int blocks() const { return w.cols / KQM_BLOCK; }

  template <class Tile>
  __device__ __forceinline__ const uint8_t *data(int s, int b) const {
    return static_cast<const uint8_t *>(w.tiles) + (size_t(tile + s) * blocks() + b) * Tile::bytes;
  }

  // The row sums of `tokens` tokens from `first` on.
  template <int TOKENS>
  __device__ __forceinline__ void finish(int first, int tokens, KQM_SHARED_ARG(double) part) const {
    for (int i = threadIdx.x; i < tiles * tokens * KQM_TILE_ROWS; i += blockDim.x) {
      const int tile_row = i % KQM_TILE_ROWS, s = TOKENS == 1 ? i / KQM_TILE_ROWS : 0;
      const int token = TOKENS == 1 ? 0 : i / KQM_TILE_ROWS, r = (tile + s) * KQM_TILE_ROWS + tile_row;
      if (r < int(w.rows))
        y[size_t(first + token) * w.rows + r] = kqm_row_sum<TOKENS, 8>(part, s * blocks(), blocks(), token, tile_row);
    }
  }
};

const int most_blocks = KQM_FUSED_COLS / KQM_BLOCK;  // of a row that qkv_one_token takes

// A warp that norms and quantizes super-block b of the row.
__device__ __forceinline__ void norm(const kqm_qkv_args &a, int b, int blocks, double inverse_cols,
                                     KQM_SHARED_ARG(double) run_sum, KQM_SHARED_ARG(uint32_t) fixed) {
  const int lane = threadIdx.x & 31;
  const float4 *weight = reinterpret_cast<const float4 *>(a.norm.weight) + 64 * b + 2 * lane;
  const float4 w0 = weight[0], w1 = weight[1];
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  kqm_release_dependents();
  float x[8];
  kqm_fused_norm_eight(a.norm, b, blocks, w0, w1, inverse_cols, run_sum, x);
  if (blockIdx.x == 0 && a.norm.out) kqm_store_eight(a.norm.out + b * KQM_BLOCK, lane, x);
  KQM_SHARED_ARG(uint32_t) block = kqm_shared_offset(fixed, b * kqm_fixed_words);
  const double unit = kqm_fixed_warp(x, KqmSharedBlock{block});
  if (lane == 0) kqm_shared_store<double>(block, kqm_fixed_unit, unit);
  kqm_meet(2);
}

// A warp that multiplies super-block b of row tile s.
template <class Tile, bool NORM>
__device__ __forceinline__ void multiply(const kqm_qkv_args &a, const Work &work, int s, int b, KQM_SHARED_ARG(uint32_t) fixed,
                                         KQM_SHARED_ARG(double) part) {
  const int lane = threadIdx.x & 31, slot = s * work.blocks() + b;
  const bool present = s < work.tiles;
  Tile tile;
  tile.load(work.template data<Tile>(present ? s : 0, b), lane);
  kqm_touch_arguments(a);
  const typename Tile::Unpacked unpacked(tile, lane);
  kqm_make_now(unpacked.checksum());
  kqm_wait_for_dependencies();
  kqm_release_dependents();
  if (NORM) {
    kqm_meet(1);
    kqm_meet(2);
    KQM_SHARED_ARG(uint32_t) block = kqm_shared_offset(fixed, b * kqm_fixed_words);
    const KqmSharedToken x(block, lane);
    if (present) kqm_contribute_unpacked(unpacked, x, x.unit(), slot, part);
  } else {
    typename Tile::Cached cached;
    cached.load(KqmOneToken(a.x + b, lane));
    const double unit = kqm_load_now(&a.x[b].unit);
    if (present) kqm_contribute_unpacked(unpacked, cached, unit, slot, part);
  }
}

// Warps of qkv_one_token: with a fused norm, some of them norm.
template <bool NORM>
struct Warps {
  static const int most = NORM ? 32 : 24;
};

template <bool NORM>
__global__ void __launch_bounds__(32 * Warps<NORM>::most, 1) qkv_one_token(kqm_qkv_args a, Split split, double inverse_cols) {
  KQM_DYNAMIC_SHARED(double, part);
  KQM_SHARED(double, run_sum, NORM ? most_blocks : 1);
  KQM_SHARED(uint32_t, fixed, NORM ? most_blocks *kqm_fixed_words : 1);
  const Work work(a, split);
  const int warp = threadIdx.x >> 5, blocks = work.blocks();
  if (NORM && warp >= split.tiles * blocks) {
    norm(a, warp - split.tiles * blocks, blocks, inverse_cols, run_sum, fixed);
  } else {
    const int s = (warp >= blocks) + (warp >= 2 * blocks), b = warp - s * blocks;
    if (work.w.type == KQM_TYPE_Q4_K)
      multiply<KqmTileQ4K, NORM>(a, work, s, b, fixed, part);
    else
      multiply<KqmTileQ6K, NORM>(a, work, s, b, fixed, part);
  }
  __syncthreads();
  work.template finish<1>(0, 1, part);
}

template <class Tile, int TOKENS>
__device__ __forceinline__ void multiply_group(const kqm_qkv_args &a, const Work &work, int first, int tokens,
                                               KQM_SHARED_ARG(double) part) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5, blocks = work.blocks();
  Tile tile;
  tile.load(work.template data<Tile>(0, warp), lane);
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  kqm_release_dependents();
  const auto row = [&](int i) { return i < tokens ? a.x + size_t(first + i) * blocks : nullptr; };
  for (int b = warp; b < blocks; b += warps) {
    if (b != warp) tile.load(work.template data<Tile>(0, b), lane);
    KqmContribute<TOKENS>::call(tile, row, b, b, part);
  }
}

template <int TOKENS>
__global__ void __launch_bounds__(32 * KQM_MATVEC_WARPS(TOKENS), 1) qkv_kernel(kqm_qkv_args a, Split split) {
  KQM_DYNAMIC_SHARED(double, part);
  const int first = blockIdx.y * TOKENS, tokens = min(TOKENS, int(a.tokens) - first);
  const Work work(a, split);
  if (work.w.type == KQM_TYPE_Q4_K)
    multiply_group<KqmTileQ4K, TOKENS>(a, work, first, tokens, part);
  else
    multiply_group<KqmTileQ6K, TOKENS>(a, work, first, tokens, part);
  __syncthreads();
  work.template finish<TOKENS>(first, tokens, part);
}

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
  const unsigned blocks = cols / KQM_BLOCK, at_a_time = kqm_tokens_at_once(args->tokens, blocks);
  const unsigned groups = kqm_ceil_div(args->tokens, at_a_time);
  KQM_REQUIRE(groups <= 65535, KQM_BAD_SHAPE);
  const bool norm = args->norm.x != nullptr, one_token = args->tokens == 1 && blocks <= unsigned(most_blocks);
  const unsigned norm_warps = norm ? blocks : 0, most = norm ? Warps<true>::most : Warps<false>::most;
  const unsigned tiles = one_token ? std::min(3u, (most - norm_warps) / blocks) : 1;
  unsigned grid[3];
  for (int i = 0; i < 3; i++) grid[i] = kqm_ceil_div(args->w[i].rows, tiles * KQM_TILE_ROWS);
  const Split split{int(tiles), {grid[0], grid[0] + grid[1]}};
  const dim3 all(grid[0] + grid[1] + grid[2], groups);
  if (one_token) {
    const dim3 block(32 * (tiles * blocks + norm_warps));
    const size_t shared = kqm_part_bytes(tiles * blocks, 1);
    const double inverse_cols = 1.0 / double(cols);
    if (norm) return KQM_LAUNCH(qkv_one_token<true>, all, block, shared, stream, *args, split, inverse_cols);
    return KQM_LAUNCH(qkv_one_token<false>, all, block, shared, stream, *args, split, inverse_cols);
  }
  const dim3 block(32 * kqm_even_warps(blocks, KQM_MATVEC_WARPS(at_a_time)));
  const size_t shared = kqm_part_bytes(blocks, at_a_time);
  if (at_a_time == 8) return KQM_LAUNCH(qkv_kernel<8>, all, block, shared, stream, *args, split);
  if (at_a_time == 2) return KQM_LAUNCH(qkv_kernel<2>, all, block, shared, stream, *args, split);
  return KQM_LAUNCH(qkv_kernel<1>, all, block, shared, stream, *args, split);
}
KQM_ABI_END
