// qkv: y[i][t, r] = sum_k W[i][r, k] x[t, k] for up to three matrices, each of its own type (common/types.cuh), in one launch.
//
// Shapes: W[i] [rows i, K], x [tokens, K / 256] fixed-point blocks, y[i] [tokens, rows i].
// Maths: as q4_k_matvec and q6_k_gemv. For a single token the kernel can take in the RMSNorm before it: every CTA norms and
// quantizes the row for itself while its weights are on their way, which costs less than a launch and a round trip.
//
// qkv_one_token, a CTA of up to three row tiles of a matrix, with a fused norm:
//
//   warps that multiply, (tile s, super-block b)      warps that norm, super-block b
//     load and unpack the weights                       load the norm's weights
//     wait for the kernel before                        wait for the kernel before
//                                                       run_sum[b] = sum of the squares of the row's run b
//     barrier run_sums  ................................ barrier run_sums
//                                                       x = row * r * weight;  fixed[b] = fixed point of x
//     barrier fixed_row ................................ barrier fixed_row
//     contributions[s][b] = weights x fixed[b]
//   all: barrier;  y[row] = f32(tree_sum over b of contributions[s][b][row]), a thread a row
//
// The two barriers are named ones, since the two kinds of warps reach them at different points of the code. Which lane holds what of a
// product is in common/tiles.cuh and common/matvec.cuh. Without a fused norm, x comes from memory and there are no such warps.
//
// Launch: qkv_one_token takes up to three row tiles of any matrix a CTA, so that at full size all CTAs run at once: one warp for
// each super-block of a tile, and as many that norm and quantize a super-block of the row for all of them. qkv_two_tokens takes one
// row tile a CTA, one warp for a super-block (8 warps at most); qkv_many_tokens is for more tokens and longer rows (common/wide.cuh).
// Matrices of types that no table of types has together (common/types.cuh) are a launch for each type.
// Bound by: the weights' bytes; one launch instead of three keeps more of them in flight.
#include "common/matvec.cuh"
#include "common/norm.cuh"

#include <algorithm>

namespace {

// Row tiles of a CTA, and the first CTAs of the second and the third matrix.
struct Split {
  int tiles;
  unsigned first[2];
};

// What a CTA works on: `tiles` row tiles of a matrix from `tile` on.
struct Work {
  kqm_matrix w;
  float *y;
  int tile, tiles;

  __device__ __forceinline__ Work(const kqm_qkv_args &a, const Split &split) {
    // Constant indices keep the arguments in constant memory.
    int cta = blockIdx.x;
    w = a.w[0];
    y = a.y[0];
    if (blockIdx.x >= split.first[1]) {
      cta -= split.first[1];
      w = a.w[2];
      y = a.y[2];
    } else if (blockIdx.x >= split.first[0]) {
      cta -= split.first[0];
      w = a.w[1];
      y = a.y[1];
    }
    tile = cta * split.tiles;
    tiles = min(split.tiles, int(w.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS - tile);
  }
  __device__ __forceinline__ int super_blocks() const { return w.cols / KQM_BLOCK; }

  template <class Tile>
  __device__ __forceinline__ const uint8_t *data(int s, int b) const {
    return static_cast<const uint8_t *>(w.tiles) + (size_t(tile + s) * super_blocks() + b) * Tile::bytes;
  }

  __device__ __forceinline__ void store(int row, int token, float value) const {
    if (row < int(w.rows)) y[size_t(token) * w.rows + row] = value;
  }
};

const int most_super_blocks = KQM_FUSED_COLS / KQM_BLOCK;  // of a row that qkv_one_token takes

// A warp that norms and quantizes super-block b of the row.
template <int SUPER_BLOCKS>
__device__ __forceinline__ void norm(const kqm_qkv_args &a, int b, double inverse_width, KQM_SHARED_ARG(double) run_sum,
                                     KQM_SHARED_ARG(uint32_t) fixed) {
  const int lane = threadIdx.x & 31;
  const float4 *weight = reinterpret_cast<const float4 *>(a.norm.weight) + 64 * b + 2 * lane;
  const float4 w0 = weight[0], w1 = weight[1];
  kqm_touch_arguments(a);
  kqm_wait_then_release();
  float x[8];
  kqm_fused_norm_eight<SUPER_BLOCKS>(a.norm, b, w0, w1, inverse_width, run_sum, x);
  if (blockIdx.x == 0 && a.norm.out) kqm_store_eight(a.norm.out + b * KQM_BLOCK, lane, x);
  KQM_SHARED_ARG(uint32_t) own = kqm_shared_offset(fixed, b * kqm_fixed_words);
  const double unit = kqm_fixed_warp(x, KqmFixedInShared{own});
  if (lane == 0) kqm_shared_store<double>(own, kqm_fixed_unit, unit);
  kqm_named_barrier(kqm_barrier_fixed_row);
}

// A warp that multiplies super-block b of row tile s.
template <class Tile, bool NORM, int SUPER_BLOCKS>
__device__ __forceinline__ void multiply(const kqm_qkv_args &a, const Work &work, int s, int b,
                                         KQM_SHARED_ARG(uint32_t) fixed, KQM_SHARED_ARG(double) contributions) {
  const int lane = threadIdx.x & 31, slot = s * SUPER_BLOCKS + b;
  const bool present = s < work.tiles;
  Tile tile;
  tile.load(KqmTileInMemory(work.template data<Tile>(present ? s : 0, b), lane));
  kqm_touch_arguments(a);
  const typename Tile::Unpacked unpacked(tile, lane);
  kqm_materialize(unpacked.checksum());
  kqm_wait_then_release();
  if (NORM) {
    kqm_named_barrier(kqm_barrier_run_sums);
    kqm_named_barrier(kqm_barrier_fixed_row);
    KQM_SHARED_ARG(uint32_t) own = kqm_shared_offset(fixed, b * kqm_fixed_words);
    const KqmSharedToken x(own, lane);
    if (present) kqm_contribute(unpacked, x, KqmUnit{x.unit()}, slot, contributions);
  } else {
    typename Tile::Cached cached;
    cached.load(KqmOneToken(a.x + b, lane));
    const double unit = kqm_load_volatile(&a.x[b].unit);
    if (present) kqm_contribute(unpacked, cached, KqmUnit{unit}, slot, contributions);
  }
}

// Warps of qkv_one_token: with a fused norm, some of them norm.
template <bool NORM>
struct Warps {
  static const int most = NORM ? 32 : 24;
};

// SUPER_BLOCKS: slots for a row's super-blocks; a row that has fewer pads them with zeros.
template <class Types, bool NORM, int SUPER_BLOCKS>
__global__ void __launch_bounds__(32 * Warps<NORM>::most, 1)
    qkv_one_token(kqm_qkv_args a, Split split, double inverse_width) {
  KQM_DYNAMIC_SHARED(double, contributions);
  KQM_SHARED(double, run_sum, NORM ? SUPER_BLOCKS : 1);
  KQM_SHARED(uint32_t, fixed, NORM ? SUPER_BLOCKS *kqm_fixed_words : 1);
  const Work work(a, split);
  const int warp = threadIdx.x >> 5, super_blocks = work.super_blocks();
  if (super_blocks < SUPER_BLOCKS) {
    kqm_zero_pad(contributions, 0, split.tiles * SUPER_BLOCKS * KQM_TILE_ROWS);
    if (NORM) kqm_zero_pad(run_sum, super_blocks, SUPER_BLOCKS);
    __syncthreads();
  }
  if (NORM && warp >= split.tiles * super_blocks) {
    norm<SUPER_BLOCKS>(a, warp - split.tiles * super_blocks, inverse_width, run_sum, fixed);
  } else {
    const int s = (warp >= super_blocks) + (warp >= 2 * super_blocks), b = warp - s * super_blocks;
    Types::choose(work.w.type, [&](auto type) {
      multiply<KqmTileOf<decltype(type)>, NORM, SUPER_BLOCKS>(a, work, s, b, fixed, contributions);
    });
  }
  __syncthreads();
  // A warp has two row tiles at most, and there are at least as many threads as rows.
  const int s = threadIdx.x / KQM_TILE_ROWS, tile_row = threadIdx.x % KQM_TILE_ROWS;
  if (s < work.tiles)
    work.store((work.tile + s) * KQM_TILE_ROWS + tile_row, 0,
               kqm_row_sum_padded<SUPER_BLOCKS>(contributions, s * SUPER_BLOCKS, tile_row));
}

template <class Tile>
__device__ __forceinline__ void multiply_two(const kqm_qkv_args &a, const Work &work,
                                             KQM_SHARED_ARG(double) contributions) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5,
            super_blocks = work.super_blocks();
  Tile tile;
  tile.load(KqmTileInMemory(work.template data<Tile>(0, warp), lane));
  kqm_touch_arguments(a);
  kqm_wait_then_release();
  const auto row = [&](int i) { return a.x + size_t(i) * super_blocks; };
  for (int b = warp; b < super_blocks; b += warps) {
    if (b != warp) tile.load(KqmTileInMemory(work.template data<Tile>(0, b), lane));
    kqm_contribute_rows<2>(tile, row, b, b, contributions);
  }
}

template <class Types>
__global__ void __launch_bounds__(32 * KQM_MATVEC_WARPS(2), 1) qkv_two_tokens(kqm_qkv_args a, Split split) {
  KQM_DYNAMIC_SHARED(double, contributions);
  const Work work(a, split);
  Types::choose(work.w.type, [&](auto type) { multiply_two<KqmTileOf<decltype(type)>>(a, work, contributions); });
  __syncthreads();
  const int token = threadIdx.x / KQM_TILE_ROWS, tile_row = threadIdx.x % KQM_TILE_ROWS;
  if (token < 2)
    work.store(work.tile * KQM_TILE_ROWS + tile_row, token,
               kqm_row_sum<2>(contributions, 0, work.super_blocks(), token, tile_row));
}

template <class Tile>
__device__ __forceinline__ void multiply_many_tokens(const kqm_qkv_args &a, const Work &work,
                                                     KQM_SHARED_ARG(uint32_t) shared) {
  const int first = blockIdx.y * kqm_wide_tokens, tokens = min(kqm_wide_tokens, int(a.tokens) - first);
  const int s = threadIdx.x >> 5, super_blocks = work.super_blocks();
  float y[KqmTokenColumns::results];
  // A warp beyond the last tile works on that one, too, and stores nothing.
  kqm_wide_sums<Tile>(
      Tile::bytes, work.template data<Tile>(min(s, work.tiles - 1), 0), super_blocks, a.x,
      [=](int i) { return i < tokens ? uint32_t((first + i) * super_blocks) : kqm_wide_absent; }, shared, y);
  kqm_wide_store<KqmTokenColumns>(y, work.tile + s, work.w.rows, tokens,
                                  [&](int r, int token, float value) { work.store(r, first + token, value); });
}

template <class Types>
__global__ void __launch_bounds__(kqm_wide_threads, kqm_wide_at_once) qkv_many_tokens(kqm_qkv_args a, Split split) {
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  const Work work(a, split);
  kqm_touch_arguments(a);
  kqm_wait_then_release();
  Types::choose(work.w.type, [&](auto type) { multiply_many_tokens<KqmTileOf<decltype(type)>>(a, work, shared); });
}

// The CTAs of each matrix: those of the multiprocessors in proportion to its work items, and at least one.
struct Shares {
  int first[3], count[3];
};
unsigned count_works(const kqm_qkv_args &a, const KqmWarpgroups &plan, unsigned (&works)[3]) {
  unsigned all = 0;
  for (int i = 0; i < 3; i++) all += works[i] = a.w[i].rows ? kqm_group_works(plan, a.w[i].rows, a.tokens) : 0;
  return all;
}
Shares share_out(const unsigned (&works)[3], unsigned all) {
  Shares shares{};
  for (int i = 0, first = 0; i < 3; first += shares.count[i++]) {
    const unsigned count = unsigned(uint64_t(kqm_multiprocessors()) * works[i] / all);
    shares.first[i] = first;
    shares.count[i] = int(std::min(works[i], std::max(count, 1u)));
  }
  return shares;
}

__global__ void __launch_bounds__(kqm_groups_threads, 1) qkv_groups(kqm_qkv_args a, KqmWarpgroups plan, Shares shares) {
#if KQM_WARPGROUPS
  KQM_DYNAMIC_SHARED(uint32_t, shared);
  kqm_touch_arguments(a);
  kqm_wait_then_release();
  const int block = int(blockIdx.x);
  // Constant indices keep the arguments in constant memory.
  const int i = block >= shares.first[2] ? 2 : block >= shares.first[1] ? 1 : 0;
  kqm_matvec_args one{};
  one.w = i == 2 ? a.w[2] : i == 1 ? a.w[1] : a.w[0];
  one.y = i == 2 ? a.y[2] : i == 1 ? a.y[1] : a.y[0];
  one.x = a.x;
  one.tokens = a.tokens;
  const int first = i == 2   ? shares.first[2]
                    : i == 1 ? shares.first[1]
                             : 0,
            count = i == 2   ? shares.count[2]
                    : i == 1 ? shares.count[1]
                             : shares.count[0];
  KqmWarpgroupTypes::choose(one.w.type, [&](auto type) {
    kqm_warpgroup_cta<KqmTileOf<decltype(type)>>(plan, KqmMatvecProblem(one, plan, KqmShare{block - first, count}),
                                                 shared);
  });
#else
  kqm_no_warpgroups();
#endif
}

// Matrices of types of one table. One of a single type, which few files have here, has fewer kernels.
template <class Types>
kqm_status launch(const kqm_qkv_args &a, unsigned cols, unsigned groups, kqm_stream stream) {
  const unsigned super_blocks = cols / KQM_BLOCK;
  const bool norm = a.norm.x != nullptr, one_token = a.tokens == 1 && super_blocks <= unsigned(most_super_blocks);
  const bool many_tokens = !one_token && (a.tokens != 2 || Types::count == 1);
  const unsigned norm_warps = norm ? super_blocks : 0, most = norm ? Warps<true>::most : Warps<false>::most;
  const unsigned tiles = many_tokens ? unsigned(kqm_wide_warps)
                         : one_token ? std::min(3u, (most - norm_warps) / super_blocks)
                                     : 1;
  unsigned grid[3];
  int most_bytes = 0;
  for (int i = 0; i < 3; i++) {
    grid[i] = kqm_ceil_div(a.w[i].rows, tiles * KQM_TILE_ROWS);
    if (a.w[i].rows) most_bytes = std::max(most_bytes, Types::tile_bytes(a.w[i].type));
  }
  const Split split{int(tiles), {grid[0], grid[0] + grid[1]}};
  const dim3 all(grid[0] + grid[1] + grid[2], groups);
  if (many_tokens) {
    const size_t shared = kqm_wide_bytes(most_bytes, super_blocks);
    return KQM_LAUNCH(qkv_many_tokens<Types>, all, dim3(kqm_wide_threads), shared, stream, a, split);
  }
  if (one_token) {
    const dim3 cta(32 * (tiles * super_blocks + norm_warps));
    const double inverse_width = norm ? 1.0 / double(a.norm.width) : 0.0;
    const bool few = super_blocks <= 8 && Types::count > 1;
    const size_t shared = kqm_contribution_bytes(tiles * (few ? 8 : most_super_blocks), 1);
    if constexpr (Types::count > 1) {
      if (norm && few)
        return KQM_LAUNCH((qkv_one_token<Types, true, 8>), all, cta, shared, stream, a, split, inverse_width);
      if (few) return KQM_LAUNCH((qkv_one_token<Types, false, 8>), all, cta, shared, stream, a, split, inverse_width);
    }
    if (norm)
      return KQM_LAUNCH((qkv_one_token<Types, true, most_super_blocks>), all, cta, shared, stream, a, split,
                        inverse_width);
    return KQM_LAUNCH((qkv_one_token<Types, false, most_super_blocks>), all, cta, shared, stream, a, split,
                      inverse_width);
  }
  if constexpr (Types::count > 1)
    return KQM_LAUNCH(qkv_two_tokens<Types>, all, dim3(32 * kqm_even_warps(super_blocks, KQM_MATVEC_WARPS(2))),
                      kqm_contribution_bytes(super_blocks, 2), stream, a, split);
  return KQM_UNSUPPORTED_TYPE;
}

// Whether a table has the types of all matrices.
template <class Types>
bool has_all(const kqm_qkv_args &a) {
  for (const kqm_matrix &w : a.w) {
    if (w.rows && !Types::has(w.type)) return false;
  }
  return true;
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
  // Of qkv_many_tokens; the other kernels take their tokens at once.
  const unsigned groups = args->tokens == 2 ? 1 : kqm_ceil_div(args->tokens, unsigned(kqm_wide_tokens));
  KQM_REQUIRE(groups <= 65535, KQM_BAD_SHAPE);
  if (kqm_tokens_for_groups(args->tokens) && has_all<KqmWarpgroupTypes>(*args)) {
    const KqmWarpgroups plan = kqm_plan_warpgroups(cols / KQM_BLOCK);
    unsigned works[3];
    const unsigned all = plan.groups > 0 ? count_works(*args, plan, works) : 0;
    if (kqm_works_for_groups(all)) {
      const Shares shares = share_out(works, all);
      return KQM_LAUNCH_WARPGROUPS(qkv_groups, dim3(shares.first[2] + shares.count[2]), plan.block(), plan.bytes(),
                                   stream, *args, plan, shares);
    }
  }
  if (has_all<KqmUsualTypes>(*args)) return launch<KqmUsualTypes>(*args, cols, groups, stream);
  if (has_all<KqmMixedTypes>(*args)) return launch<KqmMixedTypes>(*args, cols, groups, stream);
  // A launch for all matrices of a type.
  kqm_qkv_args rest = *args;
  for (const kqm_matrix &first : args->w) {
    kqm_qkv_args of_type = rest;
    bool any = false;
    for (int i = 0; i < 3; i++) {
      const bool same = rest.w[i].rows && first.rows && rest.w[i].type == first.type;
      (same ? rest : of_type).w[i].rows = 0;
      any = any || same;
    }
    if (!any) continue;
    const kqm_status status = KqmBlockTypes::launch(first.type, [&](auto type) {
      return launch<KqmTableWith<KqmTileOf<decltype(type)>>>(of_type, cols, groups, stream);
    });
    if (status != KQM_OK) return status;
  }
  return KQM_OK;
}
KQM_ABI_END
