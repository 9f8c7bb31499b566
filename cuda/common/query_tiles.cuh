// Attention of many queries: tiles of the rows (a token, a query head) that share a KV head. A block of four warps takes a tile and some
// of its chunks. A warp holds keys, and then values, of a chunk in registers, read and converted once for all rows of the tile, and
// goes through the rows: their queries, and then their weights, come from shared memory.
// Bound by: issue slots. A row and chunk of 64 positions x 128 dimensions are 512 fma of a warp and 140 instructions more: 56 additions of the
// trees and 26 exchanges between lanes, 20 loads from shared memory, 49 of the softmax.
#pragma once

#include "attention.cuh"
#include "check.cuh"
#include "exp.cuh"
#include "fixed.cuh"

static const int kqm_tile_warps = 4, kqm_tile_threads = 32 * kqm_tile_warps;

// How a block shares out its work for a head dimension.
template <int DIM>
struct KqmQueryTile {
  static const int chunk = KQM_ATTENTION_CHUNK;
  // Rows of a tile, which shared memory limits, and blocks at once on a multiprocessor, for which there are registers.
  static const int rows = DIM > 128 ? 32 : 64, at_once = 3;
  // Scores: eight lanes share a key, each with a chain of the dimensions, and four such groups have `lane_keys` each. Warps that do not
  // have keys of their own share out the rows.
  static const int segment = DIM / 8, lane_keys = segment > 16 ? 4 : 8;
  static const int key_blocks = chunk / (4 * lane_keys), key_parts = kqm_tile_warps / key_blocks;
  // Values: a warp has 64 dimensions, a lane 8 of them and 16 positions.
  static const int slabs = DIM / 64, value_parts = slabs > 2 ? 1 : kqm_tile_warps / slabs;
  // Shared memory, in words: queries [rows][DIM] in the order of kqm_query_place, scores [rows][chunk] in that of kqm_weight_place, and of
  // each row where it is among the partial results, and its position.
  static const int scores = rows * DIM, partial_row = scores + rows * chunk, position = partial_row + rows, bytes = 4 * (position + rows);
};

// Where a chunk's position lies among the scores of a row. Four lanes each read a quarter of them, four at a time, and what they read
// together is together.
__device__ __forceinline__ int kqm_weight_place(int position) {
  return (position % 16 / 4 * 4 + position / 16) * 4 + position % 4;
}

// A warp's keys of a chunk. Lane 4 g + k has dimensions g S .. g S + S - 1 of eight keys, or four. The sums over those dimensions are then
// exchanged until each lane has the whole sum of one key: at each step a lane keeps the first half of its sums and gives away the
// second one. So that this needs no selection, lanes hold their keys in different orders.
template <bool HALF, int DIM>
struct KqmKeys {
  typedef KqmQueryTile<DIM> Tile;
  float key[Tile::lane_keys][Tile::segment];

  // The key, of the chunk, of the lane's sum i.
  __device__ __forceinline__ static int index(int block, int i) {
    const int lane = threadIdx.x & 31, bits = Tile::lane_keys == 8 ? lane >> 2 : lane >> 2 & 3;
    const int order = Tile::lane_keys == 8 ? (bits & 1) << 2 | (bits & 2) | bits >> 2 : (bits & 1) << 1 | bits >> 1;
    return (block * 4 + (lane & 3)) * Tile::lane_keys + (i ^ order);
  }
  // Keys of the chunk that begins at element `from` of the cache; those from `present` on are zeros.
  __device__ __forceinline__ void load(const void *cache, size_t from, uint32_t stride, int block, int present) {
    kqm_keep(stride);
    const int g = (threadIdx.x & 31) >> 2;
    KqmElements<HALF, Tile::segment> stored[Tile::lane_keys];
    KQM_UNROLL
    for (int i = 0; i < Tile::lane_keys; i++) {
      const int own = index(block, i);
      if (own < present)
        stored[i].load(cache, from + own * stride + g * Tile::segment);
      else
        stored[i].clear();
    }
    KQM_UNROLL
    for (int i = 0; i < Tile::lane_keys; i++) {
      KQM_UNROLL
      for (int d = 0; d < Tile::segment; d++) {
        key[i][d] = at(stored[i], d);
        kqm_keep(key[i][d]);
      }
    }
  }
  // Its product with the query at `query`: that of key index(block, 0).
  __device__ __forceinline__ float dot(KQM_SHARED_ARG(float) queries, int query) const {
    const int g = (threadIdx.x & 31) >> 2;
    float sum[Tile::lane_keys];
    KQM_UNROLL
    for (int d = 0; d < Tile::segment; d += 4) {
      const float4 q = kqm_shared_load<float4>(queries, query + (d / 4 * 8 + g) * 4);
      KQM_UNROLL
      for (int i = 0; i < Tile::lane_keys; i++) {
        sum[i] = d == 0 ? __fmul_rn(q.x, key[i][0]) : fmaf(q.x, key[i][d], sum[i]);
        sum[i] = fmaf(q.y, key[i][d + 1], sum[i]);
        sum[i] = fmaf(q.z, key[i][d + 2], sum[i]);
        sum[i] = fmaf(q.w, key[i][d + 3], sum[i]);
      }
    }
    KQM_UNROLL
    for (int step = 1; step < 8; step *= 2) {
      const int left = Tile::lane_keys / (2 * step) > 0 ? Tile::lane_keys / (2 * step) : 1;
      const int given = Tile::lane_keys / (2 * step) > 0 ? left : 0;
      KQM_UNROLL
      for (int i = 0; i < left; i++) sum[i] = __fadd_rn(sum[i], __shfl_xor_sync(~0u, sum[given + i], 4 * step));
    }
    return sum[0];
  }

 private:
  __device__ __forceinline__ static float at(const KqmElements<HALF, Tile::segment> &stored, int d) {
    return HALF ? stored.get(d) : __uint_as_float(stored.word[HALF ? 0 : d]);
  }
};

// A warp's values of a chunk, 64 dimensions of them. Lane 8 p + d has positions 16 p .. 16 p + 15, two chains, of dimensions 2 d and 2 d + 1
// of each 16; again in different orders, so that the exchange between the four lanes that share dimensions needs no selection. In the
// end a lane has the whole sums of two neighbouring dimensions.
template <bool HALF>
struct KqmValues {
  static const int positions = 16, pairs = 4;
  float value[positions][2 * pairs];

  // The first dimension, of the 64, of the lane's pair i of sums.
  __device__ __forceinline__ static int dimension(int i) {
    const int lane = threadIdx.x & 31, bits = lane >> 3, order = (bits & 1) << 1 | bits >> 1;
    return (i ^ order) * 16 + (lane & 7) * 2;
  }
  __device__ __forceinline__ static int first_position() { return (threadIdx.x & 31) / 8 * positions; }
  // Values of the chunk that begins at element `from` of the cache; those from `present` on are zeros.
  __device__ __forceinline__ void load(const void *cache, size_t from, uint32_t stride, int present) {
    kqm_keep(stride);
    KqmElements<HALF, 2> stored[positions][pairs];
    KQM_UNROLL
    for (int n = 0; n < positions; n++) {
      const int own = first_position() + n;
      KQM_UNROLL
      for (int i = 0; i < pairs; i++) {
        if (own < present)
          stored[n][i].load(cache, from + own * stride + dimension(i));
        else
          stored[n][i].clear();
      }
    }
    KQM_UNROLL
    for (int n = 0; n < positions; n++) {
      KQM_UNROLL
      for (int i = 0; i < pairs; i++) {
        value[n][2 * i] = HALF ? stored[n][i].get(0) : __uint_as_float(stored[n][i].word[0]);
        value[n][2 * i + 1] = HALF ? stored[n][i].get(1) : __uint_as_float(stored[n][i].word[HALF ? 0 : 1]);
        kqm_keep(value[n][2 * i]);
        kqm_keep(value[n][2 * i + 1]);
      }
    }
  }
  // Whether a value from position `first` on is infinite or a NaN.
  __device__ __forceinline__ bool not_finite(int first) const {
    bool found = false;
    KQM_UNROLL
    for (int n = 0; n < positions; n++) {
      KQM_UNROLL
      for (int d = 0; d < 2 * pairs; d++)
        found = found || (first_position() + n >= first && !(fabsf(value[n][d]) <= 3.402823466e38f));
    }
    return found;
  }
  // The sums, over the chunk's positions, of the weights at `weights` times the values of dimensions dimension(0) and the next one. EXACT: the
  // values from position `visible` on count as zeros. Else they are multiplied with their weights of zero, which is the same
  // for finite ones, but for the signs of zeros, and those do not outlast the join.
  template <bool EXACT>
  __device__ __forceinline__ float2 sum(KQM_SHARED_ARG(float) scores, int weights, int visible) const {
    const int quarter = (threadIdx.x & 31) >> 3, count = visible - first_position();
    float chain[2][2 * pairs];
    KQM_UNROLL
    for (int n = 0; n < positions; n += 4) {
      const float4 p = kqm_shared_load<float4>(scores, weights + (n / 4 * 4 + quarter) * 4);
      KQM_UNROLL
      for (int d = 0; d < 2 * pairs; d++) {
        float x = chain[n / 8][d];
        x = n % 8 == 0 ? __fmul_rn(p.x, of<EXACT>(n, d, count)) : fmaf(p.x, of<EXACT>(n, d, count), x);
        x = fmaf(p.y, of<EXACT>(n + 1, d, count), x);
        x = fmaf(p.z, of<EXACT>(n + 2, d, count), x);
        chain[n / 8][d] = fmaf(p.w, of<EXACT>(n + 3, d, count), x);
      }
    }
    float total[2 * pairs];
    KQM_UNROLL
    for (int d = 0; d < 2 * pairs; d++) total[d] = __fadd_rn(chain[0][d], chain[1][d]);
    KQM_UNROLL
    for (int d = 0; d < pairs; d++) total[d] = __fadd_rn(total[d], __shfl_xor_sync(~0u, total[pairs + d], 8));
    KQM_UNROLL
    for (int d = 0; d < 2; d++) total[d] = __fadd_rn(total[d], __shfl_xor_sync(~0u, total[2 + d], 16));
    return make_float2(total[0], total[1]);
  }

 private:
  template <bool EXACT>
  __device__ __forceinline__ float of(int n, int d, int count) const {
    return EXACT && n >= count ? 0.0f : value[n][d];
  }
};

// The softmax of four rows' chunk by a warp: a row to eight lanes, of which each has eight neighbouring positions. Scores become weights.
template <bool MASKED>
struct KqmChunkSoftmax {
  float m;
  double l;

  // `scores`: where the row's scores are. Of a row that is not `own` nothing is kept.
  __device__ __forceinline__ KqmChunkSoftmax(KQM_SHARED_ARG(float) shared, int scores, int visible, bool own, float *trace) {
    const int first = (threadIdx.x & 7) * 8, place = scores + kqm_weight_place(first);
    const float4 low = kqm_shared_load<float4>(shared, place), high = kqm_shared_load<float4>(shared, place + 16);
    float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    if (trace && own) {
      KQM_UNROLL
      for (int i = 0; i < 8; i++) {
        if (first + i < visible) trace[first + i] = kqm_canonical(x[i]);
      }
    }
    KQM_UNROLL
    for (int i = 0; i < 8; i++) x[i] = !MASKED || first + i < visible ? x[i] : kqm_minus_infinity();
    m = kqm_max_or_nan(kqm_max_or_nan(kqm_max_or_nan(x[0], x[1]), kqm_max_or_nan(x[2], x[3])),
                       kqm_max_or_nan(kqm_max_or_nan(x[4], x[5]), kqm_max_or_nan(x[6], x[7])));
    KQM_UNROLL
    for (int step = 1; step < 8; step *= 2) m = kqm_max_or_nan(m, __shfl_xor_sync(~0u, m, step));
    bool near = true;
    KQM_UNROLL
    for (int i = 0; i < 8; i++) {
      x[i] = !MASKED || first + i < visible ? __fsub_rn(x[i], m) : 0.0f;
      near = near && x[i] >= kqm_exp_near;
    }
    if (__builtin_expect(near, 1)) {
      KQM_UNROLL
      for (int i = 0; i < 8; i++) x[i] = kqm_exp_of_near(x[i]);
    } else {
      KQM_UNROLL
      for (int i = 0; i < 8; i++) x[i] = kqm_exp(x[i]);
    }
    KQM_UNROLL
    for (int i = 0; MASKED && i < 8; i++) x[i] = first + i < visible ? x[i] : 0.0f;
    l = kqm_tree_lanes<8>(((double(x[0]) + double(x[1])) + (double(x[2]) + double(x[3]))) +
                          ((double(x[4]) + double(x[5])) + (double(x[6]) + double(x[7]))));
    if (own) {
      kqm_shared_store<float4>(shared, place, make_float4(x[0], x[1], x[2], x[3]));
      kqm_shared_store<float4>(shared, place + 16, make_float4(x[4], x[5], x[6], x[7]));
    }
  }
};

// Partial results of `tokens` tokens from `first_token` on, in tiles of `tile_tokens`. Blocks: parts of the chunks times KV heads, tiles.
template <bool HALF, int DIM>
__global__ void __launch_bounds__(kqm_tile_threads, (KqmQueryTile<DIM>::at_once))
    attention_tiles(kqm_attention_args a, KqmPartials ws, uint32_t first_token, uint32_t tokens, uint32_t tile_tokens) {
  typedef KqmQueryTile<DIM> Tile;
  const int chunk = Tile::chunk, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  KQM_DYNAMIC_SHARED(float, shared);
  const uint32_t group = a.heads / a.kv_heads, kv_head = blockIdx.x % a.kv_heads, part = blockIdx.x / a.kv_heads;
  const uint32_t parts = gridDim.x / a.kv_heads;
  // The last tiles have the most chunks and come first.
  const uint32_t tile_first = (gridDim.y - 1 - blockIdx.y) * tile_tokens, tile_count = min(tile_tokens, tokens - tile_first);
  const int rows = int(tile_count * group);
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  kqm_release_dependents();
  // A token past the capacity is at its last position.
  const uint32_t start = __ldcg(a.start) + first_token + tile_first;
  const auto position_of = [&](uint32_t token) { return min(start + token, a.capacity - 1); };
  const uint32_t last_position = position_of(tile_count - 1), used = last_position / chunk + 1;
  const auto partial_row = [&](int row) { return kqm_shared_load<uint32_t>(shared, Tile::partial_row + row); };
  const auto visible_to = [&](int row, uint32_t begin) {
    return min(int(kqm_shared_load<uint32_t>(shared, Tile::position + row) - begin) + 1, chunk);
  };
  const auto token_row = [&](int row) { return size_t(first_token + tile_first + row / group) * a.heads + kv_head * group + row % group; };
  if (a.scores) {
    for (int row = 0; row < rows; row++) {
      float *trace = a.scores + token_row(row) * a.capacity;
      for (uint32_t at = position_of(row / group) + 1 + part * kqm_tile_threads + threadIdx.x; at < a.capacity;
           at += parts * kqm_tile_threads)
        trace[at] = kqm_minus_infinity();
    }
  }
  if (part >= used) return;

  for (int row = threadIdx.x; row < rows; row += kqm_tile_threads) {
    kqm_shared_store<uint32_t>(shared, Tile::partial_row + row, uint32_t(token_row(row)) - first_token * a.heads);
    kqm_shared_store<uint32_t>(shared, Tile::position + row, position_of(row / group));
  }
  for (int i = threadIdx.x; i < rows * (DIM / 4); i += kqm_tile_threads) {
    const int row = i / (DIM / 4), d = i % (DIM / 4) * 4;
    kqm_async_copy_16(shared, row * DIM + kqm_query_place<DIM>(d), a.q + token_row(row) * DIM + d);
  }
  kqm_async_commit();
  kqm_async_wait<0>();

  const size_t chunks = (a.capacity + chunk - 1) / chunk;
  const uint32_t stride = a.kv_heads * DIM;
  KQM_LOOP
  for (uint32_t index = part; index < used; index += parts) {
    const uint32_t begin = index * chunk;
    const size_t from = size_t(begin) * stride + kv_head * DIM;
    // Rows before the first one do not see the chunk. Where not all see all of it, some are masked.
    const int first_row = begin > start ? int((begin - start) * group) : 0, present = min(int(last_position - begin) + 1, chunk);
    const uint32_t least_position = position_of(first_row / group);
    const int least_visible = min(int(least_position - begin) + 1, chunk);
    {
      KqmKeys<HALF, DIM> keys;
      const int block = warp % Tile::key_blocks, own_key = kqm_weight_place(keys.index(block, 0));
      const bool keeps = Tile::lane_keys == 8 || lane < 16;
      keys.load(a.k_cache, from, stride, block, present);
      // The queries are there, and the weights of the chunk before are done with.
      __syncthreads();
      KQM_LOOP
      for (int row = first_row + warp / Tile::key_blocks; row < rows; row += Tile::key_parts) {
        const float s = __fmul_rn(keys.dot(shared, row * DIM), a.scale);
        if (keeps) shared[Tile::scores + row * chunk + own_key] = s;
      }
    }
    __syncthreads();

    KQM_LOOP
    for (int first = first_row + 4 * warp; first < rows; first += 4 * kqm_tile_warps) {
      const int row = first + (lane >> 3), at = row < rows ? row : first;
      const bool own = row < rows;
      const int visible = visible_to(at, begin);
      const uint32_t place = partial_row(at);
      float *const trace = a.scores ? a.scores + (size_t(first_token) * a.heads + place) * a.capacity + begin : nullptr;
      float m;
      double l;
      if (least_visible == chunk) {
        const KqmChunkSoftmax<false> softmax(shared, Tile::scores + at * chunk, visible, own, trace);
        m = softmax.m, l = softmax.l;
      } else {
        const KqmChunkSoftmax<true> softmax(shared, Tile::scores + at * chunk, visible, own, trace);
        m = softmax.m, l = softmax.l;
      }
      if (own && (lane & 7) == 0) ws.m[place * chunks + index] = m, ws.l[place * chunks + index] = l;
    }
    // Of three slabs a warp has none: it loads one, so that registers never hold nothing, and leaves it at that.
    const int slab = warp % Tile::slabs, value_part = warp / Tile::slabs;
    const int value_rows = value_part < Tile::value_parts ? rows : 0;
    KqmValues<HALF> values;
    values.load(a.v_cache, from + slab * 64, stride, present);
    __syncthreads();
    float *const o = ws.o + index * DIM + slab * 64 + values.dimension(0);
    if (__builtin_expect(__any_sync(~0u, least_visible < chunk && values.not_finite(least_visible)), 0)) {
      KQM_LOOP
      for (int row = first_row + value_part; row < value_rows; row += Tile::value_parts) {
        *reinterpret_cast<float2 *>(o + partial_row(row) * (chunks * DIM)) =
            values.template sum<true>(shared, Tile::scores + row * chunk, visible_to(row, begin));
      }
    } else {
      KQM_LOOP
      for (int row = first_row + value_part; row < value_rows; row += Tile::value_parts)
        *reinterpret_cast<float2 *>(o + partial_row(row) * (chunks * DIM)) =
            values.template sum<false>(shared, Tile::scores + row * chunk, chunk);
    }
  }
}

// Joins the chunks of `tokens` tokens from `first_token` on. 64 threads have 256 outputs of a token, four neighbours each and all eight
// chains of those; a block has four tokens.
static const int kqm_join_tokens = 4, kqm_join_threads = 64 * kqm_join_tokens;
__global__ void __launch_bounds__(kqm_join_threads, 2)
    attention_join_tokens(kqm_attention_args a, KqmPartials ws, uint32_t first_token, uint32_t tokens) {
  const int chunk = KQM_ATTENTION_CHUNK, chains = kqm_attention_chains;
  // Of a token's heads (256 outputs are of four at most): the largest score, and by chunk of a batch the factor exp(m_c - M) and l_c.
  const int most_heads = 4, batch = 64;
  KQM_SHARED(float, largest, kqm_join_tokens *most_heads);
  KQM_SHARED(double, factor, kqm_join_tokens *most_heads *batch);
  KQM_SHARED(double, weight, kqm_join_tokens *most_heads *batch);
  KQM_SHARED(double, totals, kqm_join_tokens *most_heads *chains);
  KQM_SHARED(float, result, kqm_join_tokens *KQM_BLOCK);
  const int token = threadIdx.x / 64, thread = threadIdx.x % 64, warp = thread >> 5, lane = threadIdx.x & 31;
  const int dim = a.head_dim, outputs = int(a.heads) * dim, first_output = int(blockIdx.x) * KQM_BLOCK;
  const bool active = first_output + 4 * thread < outputs;
  const int output = active ? first_output + 4 * thread : first_output;
  const int first_head = first_output / dim, heads = (min(first_output + KQM_BLOCK, outputs) - 1) / dim - first_head + 1;
  const int own_head = output / dim - first_head;
  // A token too many repeats the last one, and nothing of it is stored.
  const uint32_t own_token = blockIdx.y * kqm_join_tokens + token, last_token = min((blockIdx.y + 1) * kqm_join_tokens, tokens) - 1;
  const uint32_t within = min(own_token, last_token), t = first_token + within;
  const bool stored = own_token == within;
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  kqm_release_dependents();
  const uint32_t start = __ldcg(a.start);
  const auto used_by = [&](uint32_t token) { return int(min(start + first_token + token, a.capacity - 1) / chunk) + 1; };
  const int used = used_by(within), most_used = used_by(last_token);
  const size_t chunks = (a.capacity + chunk - 1) / chunk, first_row = size_t(within) * a.heads + first_head;
  const float *o = ws.o + (first_row + own_head) * chunks * dim + output % dim;

  for (int h = warp; h < heads; h += 2) {
    const float *m = ws.m + (first_row + h) * chunks;
    float most = kqm_minus_infinity();
    for (int c = lane; c < used; c += 32) most = kqm_max_or_nan(most, m[c]);
    KQM_UNROLL
    for (int step = 16; step; step /= 2) most = kqm_max_or_nan(most, __shfl_xor_sync(~0u, most, step));
    if (lane == 0) largest[token * most_heads + h] = most;
  }
  double sum[chains][4] = {}, total = 0.0;
  const bool sums_weights = thread < heads * chains;
  for (int begin = 0; begin < most_used; begin += batch) {
    __syncthreads();
    for (int h = warp; h < heads; h += 2) {
      const float most = largest[token * most_heads + h];
      const size_t row = (first_row + h) * chunks + begin;
      for (int c = lane; c < batch && begin + c < used; c += 32) {
        factor[(token * most_heads + h) * batch + c] = double(kqm_exp(__fsub_rn(ws.m[row + c], most)));
        weight[(token * most_heads + h) * batch + c] = ws.l[row + c];
      }
    }
    __syncthreads();
    const int count = min(used - begin, batch);
    if (sums_weights) {
      const int head = thread / chains, chain = thread % chains, first = (token * most_heads + head) * batch;
      for (int c = chain; c < count; c += chains) total = fma(double(weight[first + c]), double(factor[first + c]), total);
    }
    for (int first = 0; first < count; first += chains) {
      float4 value[chains];
      KQM_UNROLL
      for (int g = 0; g < chains; g++) {
        if (first + g < count) value[g] = *reinterpret_cast<const float4 *>(o + size_t(begin + first + g) * dim);
      }
      KQM_UNROLL
      for (int g = 0; g < chains; g++) {
        if (first + g >= count) break;
        const double f = factor[(token * most_heads + own_head) * batch + first + g];
        sum[g][0] = fma(double(value[g].x), f, sum[g][0]);
        sum[g][1] = fma(double(value[g].y), f, sum[g][1]);
        sum[g][2] = fma(double(value[g].z), f, sum[g][2]);
        sum[g][3] = fma(double(value[g].w), f, sum[g][3]);
      }
    }
  }
  if (sums_weights) totals[token * most_heads * chains + thread] = total;
  __syncthreads();
  double l[chains];
  KQM_UNROLL
  for (int g = 0; g < chains; g++) l[g] = totals[(token * most_heads + own_head) * chains + g];
  KQM_UNROLL
  for (int step = 1; step < chains; step *= 2) {
    KQM_UNROLL
    for (int g = 0; g < chains; g += 2 * step) {
      l[g] = l[g] + l[g + step];
      KQM_UNROLL
      for (int i = 0; i < 4; i++) sum[g][i] = sum[g][i] + sum[g + step][i];
    }
  }
  const double inverse = __ddiv_rn(1.0, l[0]);
  float y[4];
  KQM_UNROLL
  for (int i = 0; i < 4; i++) y[i] = active ? kqm_canonical(float(sum[0][i] * inverse)) : 0.0f;
  if (a.out && active && stored) {
    KQM_UNROLL
    for (int i = 0; i < 4; i++) a.out[size_t(t) * outputs + output + i] = y[i];
  }
  if (!a.fixed) return;
  kqm_shared_store<float4>(result, token * KQM_BLOCK + 4 * thread, make_float4(y[0], y[1], y[2], y[3]));
  __syncthreads();
  if (warp != 0 || !stored) return;
  const int first = token * KQM_BLOCK + 8 * lane;
  const float4 x0 = kqm_shared_load<float4>(result, first), x1 = kqm_shared_load<float4>(result, first + 4);
  const float x[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
  kqm_quantize_warp(x, a.fixed + size_t(t) * (outputs / KQM_BLOCK) + blockIdx.x);
}
