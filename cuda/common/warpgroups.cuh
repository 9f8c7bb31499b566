// The frame for many tokens on cards that multiply by warpgroups (sm_90a): the CTA of this file is persistent, and takes one work item after
// the other, 64 rows for each of its warpgroups and up to 32 tokens. The mat-vecs, qkv, moe_swiglu and moe_down share it.
//
//   a warpgroup copies, the others multiply:
//
//   copies: for work: for super-block: for half: wait until its place in the ring is empty; digits -> shared memory; full       (1)
//   multiplies: for work: for super-block b:
//     for half: wait until it is full; for each 32 weights of a row:
//       two digits of weight * scale -> registers                                                                               (2)
//       position[s] += low digits x plane s + high digits x plane s - 1, ten products, asynchronous                              (3)
//     the next super-block's weights -> registers, under way until they are needed
//     v = the type's factors with the joined positions; tree over super-blocks in shared memory                                  (4)
//     empty
//   the last super-block's tree is the result: finish
//
// (1) A stage is half a super-block: three of them and the tree fit into shared memory.
// (2) With the scale inside the operands nothing is left to be done between products, where mma.sync needs an integer multiply-add for each
//     result, which bounds it at half of the tensor cores' rate (common/wide.cuh). Sums of a super-block stay below 2^24.
// (3) The operand in registers has M = 64 rows for each that comes from shared memory, so no warp loads an activation.
// (4) What waits for its neighbours in the tree of 16 results a thread would take up to 128 registers.
//
// What a lane has: results i of octet o are those of KqmTokenColumns: row tile of the warp, row(i), token 8 o + token(i).
#pragma once

#include "fixed.cuh"
#include "tree.cuh"
#include "types.cuh"

#include <algorithm>

static const int kqm_group_warps = 4, kqm_group_threads = 32 * kqm_group_warps;
static const int kqm_group_tokens = 32, kqm_group_stages = 3, kqm_most_groups = 3;
static const int kqm_groups_threads = (kqm_most_groups + 1) * kqm_group_threads;  // one copies
static const unsigned kqm_group_most_super_blocks = 16;
// From how many tokens of a matrix, or pairs of an expert, on this frame is the faster one.
static const unsigned kqm_group_least_tokens = 64, kqm_group_least_pairs = 12;

// How a launch is laid out. Levels: of the tree over a row's super-blocks, but for its root.
struct KqmWarpgroups {
  int super_blocks, levels, groups;

  // Words of shared memory: stages of digits and the rest of a fixed-point block of each token, the trees [warp][level][result][lane] f64,
  // barriers. There is a level even where nothing waits: results go from warp to warp in it.
  static const int half_words = 4 * KQM_PLANES * 8, rest_words = kqm_fixed_words - kqm_fixed_sum_low,
                   stage_words = kqm_group_tokens * (half_words + rest_words), results = kqm_group_tokens / 2;
  static const int tree_at = kqm_group_stages * stage_words;
  __host__ __device__ int threads() const { return groups * kqm_group_threads; }
  __host__ __device__ int barriers_at() const { return tree_at + 2 * levels * results * threads(); }
  // The place in a warp's tree of number i of a lane, of those that wait on a level.
  __device__ __forceinline__ int waiting(int warp, int lane, int level, int i) const {
    return tree_at + 2 * (((warp * levels + level) * results + i) * 32 + lane);
  }
  // Barriers, two words each.
  __host__ __device__ int full(int stage) const { return barriers_at() + 2 * stage; }
  __host__ __device__ int empty(int stage) const { return barriers_at() + 2 * (kqm_group_stages + stage); }
  __host__ __device__ int written(int group) const { return barriers_at() + 2 * (2 * kqm_group_stages + group); }
  __host__ __device__ int read(int group) const {
    return barriers_at() + 2 * (2 * kqm_group_stages + kqm_most_groups + group);
  }
  size_t bytes() const { return 4 * size_t(read(kqm_most_groups)); }
  dim3 block() const { return dim3(unsigned(threads() + kqm_group_threads)); }
};

// The layout for rows of `super_blocks` super-blocks; groups are 0 where this card or the rows do not go with it.
inline KqmWarpgroups kqm_plan_warpgroups(unsigned super_blocks) {
  KqmWarpgroups plan{int(super_blocks), 1, 0};
  if (super_blocks > kqm_group_most_super_blocks) return plan;
  while ((1 << plan.levels) < plan.super_blocks) plan.levels++;
  const size_t most = kqm_warpgroup_shared_memory();
  for (plan.groups = kqm_most_groups; plan.groups > 0; plan.groups--) {
    if (plan.bytes() <= most) break;
  }
  return plan;
}

#if KQM_WARPGROUPS
// Which of a problem's work items a CTA takes: first, first + step, ....
struct KqmShare {
  int first, step;
};
__device__ __forceinline__ KqmShare kqm_whole_share() { return KqmShare{int(blockIdx.x), int(gridDim.x)}; }

// Where a CTA is in its ring of stages.
struct KqmRing {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kqm_group_stages) stage = 0, phase ^= 1;
  }
};

// Copies half h of super-block b of the tokens to a stage; lane i knows where token i's first super-block is.
template <bool PAIRS, int TOKENS>
__device__ __forceinline__ void kqm_copy_half(const kqm_fixed_block *x, uint32_t first, int b, int h, int stage,
                                              KQM_SHARED_ARG(uint32_t) shared) {
  const int warp = (threadIdx.x >> 5) % kqm_group_warps, lane = threadIdx.x & 31;
  const int to = stage * KqmWarpgroups::stage_words, chunks = 4 * KQM_PLANES;
  // A lane copies a word, or half, of each 32 digits of some token.
  const int parts = PAIRS ? 8 : 2, at_once = 32 / parts, part = lane % parts;
  KQM_UNROLL
  for (int t = 0; t < TOKENS; t += kqm_group_warps * at_once) {
    const int token = t + warp * at_once + lane / parts;
    const uint32_t block = __shfl_sync(~0u, first, token) + b;
    if (token >= TOKENS) continue;
    const uint32_t *from =
        reinterpret_cast<const uint32_t *>(x + block) + h * KqmWarpgroups::half_words + part * (8 / parts);
    // Core matrices: [32 digits of a plane][tokens / 8][half][token % 8][16 bytes]. In pairs, word w of the digits is in half w % 2.
    const int place = to + token / 8 * 64 + token % 8 * 4 + (PAIRS ? part % 2 * 32 + part / 2 : part * 32);
    KQM_UNROLL
    for (int i = 0; i < chunks; i++) {
      if (PAIRS)
        kqm_async_copy_4(shared, place + i * TOKENS * 8, from + 8 * i);
      else
        kqm_async_copy_16(shared, place + i * TOKENS * 8, from + 8 * i);
    }
  }
  if (h == 0) return;
  // A warp copies the rests of the tokens that it makes the sums of.
  const int rests = KqmWarpgroups::rest_words / 4, tokens = TOKENS / kqm_group_warps;
  KQM_UNROLL
  for (int i = 0; i < tokens * rests; i += 32) {
    const int token = warp * tokens + min(i + lane, tokens * rests - 1) / rests;
    const uint32_t block = __shfl_sync(~0u, first, token) + b;
    if (i + lane < tokens * rests)
      kqm_async_copy_16(
          shared, to + TOKENS * KqmWarpgroups::half_words + warp * tokens * KqmWarpgroups::rest_words + 4 * (i + lane),
          reinterpret_cast<const uint32_t *>(x + block) + kqm_fixed_sum_low + 4 * ((i + lane) % rests));
  }
}

// The sums of sub-blocks as f64, in the place of their digits: the products with mins take them so.
template <int TOKENS>
__device__ __forceinline__ void kqm_make_sums(int stage, KQM_SHARED_ARG(uint32_t) shared) {
  const int warp = (threadIdx.x >> 5) % kqm_group_warps, lane = threadIdx.x & 31, tokens = TOKENS / kqm_group_warps;
  const int rests = stage * KqmWarpgroups::stage_words + TOKENS * KqmWarpgroups::half_words;
  __syncwarp();
  double sum[TOKENS / 16];
  const auto rest = [&](int i) { return rests + (warp * tokens + (32 * i + lane) / 8) * KqmWarpgroups::rest_words; };
  const int j = lane % 8;
  KQM_UNROLL
  for (int i = 0; i < TOKENS / 16; i++) {
    // Of digit position s, the low digit of plane s and the high one of plane s - 1.
    int half[2] = {};
    KQM_UNROLL
    for (int s = KQM_PLANES; s >= 0; s--) {
      const auto digit = [&](int first, int plane) {
        const uint32_t four = shared[rest(i) + first - kqm_fixed_sum_low + 2 * plane + j / 4];
        return int(int8_t(four >> (8 * (j % 4))));
      };
      const int low = s < KQM_PLANES ? digit(kqm_fixed_sum_low, s) : 0,
                high = s > 0 ? digit(kqm_fixed_sum_high, s - 1) : 0;
      half[s / 3] = half[s / 3] * 256 + low + high;
    }
    sum[i] = fma(double(half[1]), 16777216.0, double(half[0]));
  }
  __syncwarp();
  KQM_UNROLL
  for (int i = 0; i < TOKENS / 16; i++) kqm_shared_store<double>(shared, rest(i) + 2 * j, sum[i]);
}

// The copying warpgroup. A half is full when the copies of the next one are under way.
template <bool PAIRS, class Problem>
__device__ __forceinline__ void kqm_copy_works(const KqmWarpgroups &plan, const Problem &problem,
                                               KQM_SHARED_ARG(uint32_t) shared) {
  const int lane = threadIdx.x & 31;
  KqmRing ring;
  int copied = 0, before = 0, tokens_before = 0;
  const auto full = [&] {
    if (copied % 2 == 0) {
      if (tokens_before > 16)
        kqm_make_sums<32>(before, shared);
      else
        kqm_make_sums<16>(before, shared);
    }
    kqm_async_copies_for_products();
    kqm_barrier_arrive(shared, plan.full(before));
  };
  KQM_LOOP
  for (int i = problem.share().first; i < problem.works(); i += problem.share().step) {
    const typename Problem::Work work = problem.work(i);
    const uint32_t first = problem.first(work, lane < work.tokens ? lane : 0);
    KQM_LOOP
    for (int half = 0; half < 2 * plan.super_blocks; half++) {
      if (copied >= kqm_group_stages) kqm_barrier_wait(shared, plan.empty(ring.stage), ring.phase ^ 1);
      if (work.tokens > 16)
        kqm_copy_half<PAIRS, 32>(problem.x(), first, half / 2, half % 2, ring.stage, shared);
      else
        kqm_copy_half<PAIRS, 16>(problem.x(), first, half / 2, half % 2, ring.stage, shared);
      kqm_async_commit();
      if (copied > 0) {
        kqm_async_wait<1>();
        full();
      }
      copied++;
      before = ring.stage;
      tokens_before = work.tokens;
      ring.next();
    }
  }
  kqm_async_wait<0>();
  if (copied > 0) full();
}

// A super-block's sums and units in a stage: what the factors of a type need of eight tokens.
struct KqmStagedOctet {
  typedef KqmPositionColumns Columns;
  KQM_SHARED_ARG(uint32_t) rests;  // of the octet
  int lane;

  __device__ __forceinline__ void two_sums(double (&sums)[2]) const {
    const double2 two =
        kqm_shared_load<double2>(rests, (lane >> 2) * KqmWarpgroups::rest_words + 2 * Columns::min_sub_block(lane));
    sums[0] = two.x, sums[1] = two.y;
  }
  __device__ __forceinline__ double unit(int token) const {
    return kqm_shared_load<double>(rests, token * KqmWarpgroups::rest_words + kqm_fixed_unit - kqm_fixed_sum_low);
  }
};

// Row sums of the warp's row tile with up to TOKENS tokens. `tile` is its first super-block, and the one at `next` on return.
template <int TOKENS, class Tile>
__device__ __forceinline__ void kqm_group_sums(const KqmWarpgroups &plan, const uint8_t *data, const uint8_t *next,
                                               Tile &tile, KqmRing &ring, KQM_SHARED_ARG(uint32_t) shared,
                                               float (&y)[TOKENS / 2]) {
  typedef KqmPositionColumns Columns;
  typedef typename Tile::HalfTile HalfTile;
  const int lane = threadIdx.x & 31, super_blocks = plan.super_blocks;
  const int own_tree = plan.waiting(int(threadIdx.x) >> 5, lane, 0, 0);
  const auto waiting = [&](int level, int i) {
    return own_tree + plan.waiting(0, 0, level, i) - KqmWarpgroups::tree_at;
  };
  // Of the last super-block they are what is left of the row: alive behind the loop, but not from one turn to the next.
  double v[TOKENS / 2];
  int level = 0;
  KQM_LOOP
  for (int b = 0;; b++) {
    int32_t position[Columns::products][TOKENS / 2];
    uint32_t low[2][4], high[2][4];
    int stage = 0;
    KQM_UNROLL
    for (int h = 0; h < 2; h++) {
      const HalfTile half(tile, h);
      const int before = stage;
      stage = ring.stage;
      const KqmWarpgroupOperand digits(shared, stage * KqmWarpgroups::stage_words);
      kqm_barrier_wait(shared, plan.full(stage), ring.phase);
      KQM_UNROLL
      for (int j = 0; j < 4; j++) {
        // The products of the step before may go on; those before them have read their registers.
        if (h > 0 || j > 1) kqm_warpgroup_wait<1>();
        half.digits(j, low[j % 2], high[j % 2]);
        if (h == 1 && j == 1) kqm_barrier_arrive(shared, plan.empty(before));
        kqm_warpgroup_begin();
        KQM_UNROLL
        for (int p = 0; p < KQM_PLANES; p++) {
          const int words = (j * KQM_PLANES + p) * TOKENS * 8;
          digits.multiply<TOKENS, false>(position[p], low[j % 2], words, h > 0 || j > 0 || p > 0);
          digits.multiply<TOKENS, true>(position[p + 1], high[j % 2], words, h > 0 || j > 0);
        }
        kqm_warpgroup_commit();
      }
      ring.next();
    }
    const typename Tile::Factors factors(tile, Columns::min_lane(lane));
    kqm_warpgroup_wait<0>();
    KQM_UNROLL
    for (int p = 0; p < Columns::products; p++) kqm_warpgroup_results(position[p]);
    const int rest = stage * KqmWarpgroups::stage_words + TOKENS * KqmWarpgroups::half_words;
    KQM_UNROLL
    for (int o = 0; o < TOKENS / 8; o++) {
      const KqmStagedOctet x{kqm_shared_offset(shared, rest + 8 * o * KqmWarpgroups::rest_words), lane};
      int32_t sum[Columns::products][4];
      KQM_UNROLL
      for (int p = 0; p < Columns::products; p++) {
        KQM_UNROLL
        for (int i = 0; i < 4; i++) sum[p][i] = position[p][4 * o + i];
      }
      double of_octet[4];
      factors.finish(x, sum, lane, of_octet);
      KQM_UNROLL
      for (int i = 0; i < 4; i++) v[4 * o + i] = of_octet[i] * x.unit(Columns::token(i, lane));
      // The registers of an octet's sums have room for weights.
      if (o == 0) tile.load(KqmTileInMemory(b + 1 < super_blocks ? data + size_t(b + 1) * Tile::bytes : next, lane));
    }
    kqm_barrier_arrive(shared, plan.empty(stage));
    KQM_LOOP
    for (level = 0; b >> level & 1; level++) {
      KQM_UNROLL
      for (int i = 0; i < TOKENS / 2; i++) v[i] = v[i] + kqm_shared_load<double>(shared, waiting(level, i));
    }
    if (b + 1 == super_blocks) break;
    KQM_UNROLL
    for (int i = 0; i < TOKENS / 2; i++) kqm_shared_store<double>(shared, waiting(level, i), v[i]);
  }
  // What still waits of the levels above.
  KQM_UNROLL
  for (int i = 0; i < TOKENS / 2; i++) v[i] = 0.0 + v[i];
  KQM_LOOP
  for (level++; super_blocks >> level; level++) {
    if (super_blocks >> level & 1) {
      KQM_UNROLL
      for (int i = 0; i < TOKENS / 2; i++) v[i] = v[i] + kqm_shared_load<double>(shared, waiting(level, i));
    }
  }
  KQM_UNROLL
  for (int i = 0; i < TOKENS / 2; i++) y[i] = kqm_canonical(float(v[i]));
}

// A multiplying warpgroup.
template <class Tile, class Problem>
__device__ __forceinline__ void kqm_multiply_works(const KqmWarpgroups &plan, const Problem &problem,
                                                   KQM_SHARED_ARG(uint32_t) shared) {
  const int lane = threadIdx.x & 31, slot = threadIdx.x >> 5;
  const int works = problem.works(), first = problem.share().first;
  if (first >= works) return;
  const auto data_of = [&](int i) { return problem.template tile<Tile>(problem.work(i), slot); };
  const uint8_t *data = data_of(first);
  int tokens = problem.work(first).tokens;
  Tile tile;
  tile.load(KqmTileInMemory(data, lane));
  KqmRing ring;
  uint32_t turn = 0;
  KQM_LOOP
  for (int i = first; i < works; i += problem.share().step, turn ^= 1) {
    // The next one is known before it begins.
    const int next = min(i + problem.share().step, works - 1), next_tokens = problem.work(next).tokens;
    const uint8_t *next_data = data_of(next);
    if (tokens > 16) {
      float y[16];
      kqm_group_sums<32>(plan, data, next_data, tile, ring, shared, y);
      problem.template finish<32>(i, slot, turn, y, shared);
    } else {
      float y[8];
      kqm_group_sums<16>(plan, data, next_data, tile, ring, shared, y);
      problem.template finish<16>(i, slot, turn, y, shared);
    }
    data = next_data;
    tokens = next_tokens;
  }
}

// All of a CTA, behind its wait for dependencies.
template <class Tile, class Problem>
__device__ __forceinline__ void kqm_warpgroup_cta(const KqmWarpgroups &plan, const Problem &problem,
                                                  KQM_SHARED_ARG(uint32_t) shared) {
  if (threadIdx.x == 0) {
    for (int s = 0; s < kqm_group_stages; s++) {
      kqm_barrier_make(shared, plan.full(s), kqm_group_warps);
      kqm_barrier_make(shared, plan.empty(s), plan.groups * kqm_group_warps);
    }
    for (int g = 0; g < plan.groups; g++) {
      kqm_barrier_make(shared, plan.written(g), kqm_group_warps);
      kqm_barrier_make(shared, plan.read(g), kqm_group_warps);
    }
    kqm_barriers_made();
  }
  __syncthreads();
  if (int(threadIdx.x) >= plan.threads()) {
    kqm_give_registers<32>();
    kqm_copy_works<Tile::HalfTile::words_in_pairs>(plan, problem, shared);
  } else {
    kqm_take_registers<160>();
    kqm_multiply_works<Tile>(plan, problem, shared);
  }
}

// Calls store(row of the matrix, token, value) for the results of row tile `tile` that there are.
template <int TOKENS, class Store>
__device__ __forceinline__ void kqm_group_store(const float (&y)[TOKENS / 2], int tile, int rows, int tokens,
                                                Store store) {
  const int lane = threadIdx.x & 31;
  KQM_UNROLL
  for (int i = 0; i < TOKENS / 2; i++) {
    const int r = tile * KQM_TILE_ROWS + KqmTokenColumns::row(i % 4, lane),
              token = i / 4 * 8 + KqmTokenColumns::token(i % 4, lane);
    if (r < rows && token < tokens) store(r, token, y[i]);
  }
}
#endif

// Row tiles of a work item: one a warp.
__host__ __device__ inline int kqm_group_row_blocks(const KqmWarpgroups &plan, int tiles) {
  const int at_once = plan.groups * kqm_group_warps;
  return (tiles + at_once - 1) / at_once;
}
inline unsigned kqm_group_works(const KqmWarpgroups &plan, uint32_t rows, uint32_t tokens) {
  return unsigned(kqm_group_row_blocks(plan, int(kqm_ceil_div(rows, uint32_t(KQM_TILE_ROWS))))) *
         kqm_ceil_div(tokens, unsigned(kqm_group_tokens));
}
// Whether a matrix has the tokens that a plan is worth making for.
inline bool kqm_tokens_for_groups(uint32_t tokens) { return tokens >= kqm_group_least_tokens; }
// Whether a matrix's work items are enough: fewer leave multiprocessors without one.
inline bool kqm_works_for_groups(unsigned works) { return 8 * works >= 5 * kqm_multiprocessors(); }
