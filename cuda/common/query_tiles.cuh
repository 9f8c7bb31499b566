// Attention of many queries: tiles of the rows (a token, a query head) that share a KV head. A CTA of four warps takes a tile and some
// of its chunks. Neighbouring tokens of a tile at positions of one sequence that follow each other are a run, and the tokens of a prompt
// one run in all; a run sees the same chunks:
//
//   for each run of the tile, for each chunk:
//     keys of the chunk to registers                     KqmKeys::load; values follow to shared memory
//     for each row of the run that sees the chunk:
//       score[row][i] = scale * q[row] . k[i]            KqmKeys::multiply_rows
//     barrier
//     for each row: scores to weights p, and m and l     kqm_softmax_rows, four rows a warp at a time
//     barrier
//     values of the chunk to registers                   KqmValues::load; the next keys follow to shared memory
//     for each row: o[row] = sum_i p[row][i] v[i]        KqmValues::weigh_rows
//
// So a key or value is read and converted once for all rows of a tile, and in the loops over rows only queries and weights come from shared
// memory, 16 bytes a lane for 16 to 32 fma. Memory of the cache arrives there a phase ahead, asynchronously.
//
// Which lane holds what, for head_dim 128:
//
//   keys: lane 4 g + k, dimensions 16 g .. 16 g + 15 of eight keys      values: lane 8 p + d, positions 16 p .. 16 p + 15
//     key 4 i + k of its 32, i = 0..7 in an order of its own               dimensions 16 i + 2 d and the next, i = 0..3 likewise
//
// The orders differ from lane to lane (index, dimension), so that at each step of the exchange between lanes a lane keeps the first half of
// its sums and gives away the second one. The compiler would turn a choice between two registers into selections, one for each sum, and
// these two loops are bound by issue slots.
// Bound by: issue slots. A row and chunk of 64 positions x 128 dimensions are 512 fma of a warp and about 200 instructions more, of which
// 56 are additions of the trees, 26 exchanges between lanes, 16 loads of queries and weights, and 50 the softmax.
#pragma once

#include "attention.cuh"
#include "check.cuh"
#include "exp.cuh"
#include "fixed.cuh"

static const int kqm_tile_warps = 4, kqm_tile_threads = 32 * kqm_tile_warps;

// How a CTA shares out its work for a head dimension.
template <bool F16, int DIM>
struct KqmQueryTile {
  static const int chunk = KQM_ATTENTION_CHUNK;
  // CTAs at once on a multiprocessor, at most: there are registers for three of them with the dimensions that models have most. Where
  // shared memory does not hold three, code has the registers of two.
  static const int at_once = DIM == 128 ? 3 : 2;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
  static const int resident = 2;
#else
  static const int resident = at_once;
#endif
  // Scores: eight lanes share a key, each with a chain of the dimensions, and four such groups have `lane_keys` each. Warps that do not
  // have keys of their own share out the rows.
  static const int segment = DIM / 8, lane_keys = segment > 16 ? 4 : 8;
  static const int key_sets = chunk / (4 * lane_keys), key_parts = kqm_tile_warps / key_sets;
  // Values: a warp has 64 dimensions, a lane 8 of them and 16 positions.
  static const int slabs = DIM / 64, value_parts = slabs > 2 ? 1 : kqm_tile_warps / slabs;
  // Units of 16 bytes of a position's keys or values.
  static const int units = DIM * (F16 ? 2 : 4) / 16;
  // Shared memory, in words: a chunk's keys or values as they are in the cache, then for each row of the tile its query, in the order of
  // kqm_query_offset, its scores, in that of kqm_weight_offset, where its partial results begin, in elements of `o`, its position, and its
  // sequence.
  static const int cached = chunk * units * 4, row_words = DIM + chunk + 3;
  __host__ __device__ static constexpr int bytes(int rows) { return 4 * (cached + rows * row_words); }
};

template <int M, int N>
__device__ __forceinline__ void kqm_keep_all(float (&x)[M][N]) {
  KQM_UNROLL
  for (int i = 0; i < M; i++) {
    KQM_UNROLL
    for (int j = 0; j < N; j++) kqm_keep(x[i][j]);
  }
}

// Element i of 16 bytes of the cache.
template <bool F16>
__device__ __forceinline__ float kqm_cached(const uint4 &stored, int i) {
  const uint32_t words[4] = {stored.x, stored.y, stored.z, stored.w};
  return F16 ? kqm_half_to_float(uint16_t(words[i / 2 % 4] >> (16 * (i % 2)))) : __uint_as_float(words[i % 4]);
}

// The offset of a chunk's position among the scores of a row. Four lanes each read a quarter of them, four at a time, and what they read
// together is together.
__device__ __forceinline__ int kqm_weight_offset(int position) {
  return (position % 16 / 4 * 4 + position / 16) * 4 + position % 4;
}

// Brings the keys or values of a chunk, which begins at element `from` of the cache, to shared memory. Positions from `present` on have values
// of zero, and keys that nobody sees (kqm_no_keys).
// KEYS: units are exchanged so that lanes that read together, two segments of four neighbouring keys, find no bank conflicts.
template <bool F16, int DIM, bool KEYS>
struct KqmCachedChunk {
  typedef KqmQueryTile<F16, DIM> Tile;

  // The offset, in words, of a unit.
  __device__ __forceinline__ static int offset(int position, int unit) {
    const int lane_units = Tile::units / 8;
    const int exchange =
        KEYS ? (position & 3) << 1 ^ (lane_units % 2 == 0 ? unit / (lane_units > 0 ? lane_units : 1) & 1 : 0) : 0;
    return (position * Tile::units + (unit ^ exchange)) * 4;
  }
  __device__ __forceinline__ static void fetch(KQM_SHARED_ARG(float) shared, const void *cache, size_t from,
                                               uint32_t stride, int present) {
    const uint8_t *source = static_cast<const uint8_t *>(cache) + from * (F16 ? 2 : 4);
    const int row = int(stride) * (F16 ? 2 : 4), step = kqm_tile_threads / Tile::units;
    if (step % 4 == 0 && kqm_tile_threads % Tile::units == 0) {
      // A thread has the same unit of every step-th position.
      int position = int(threadIdx.x) / Tile::units, to = offset(position, int(threadIdx.x) % Tile::units);
      source += position * row + int(threadIdx.x) % Tile::units * 16;
      KQM_LOOP
      for (; position < Tile::chunk; position += step, to += step * Tile::units * 4, source += step * row)
        fetch_unit(shared, to, source, position < present);
    } else {
      KQM_LOOP
      for (int i = threadIdx.x; i < Tile::chunk * Tile::units; i += kqm_tile_threads) {
        const int position = i / Tile::units, unit = i % Tile::units;
        fetch_unit(shared, offset(position, unit), source + position * row + 16 * unit, position < present);
      }
    }
    kqm_async_commit();
  }

 private:
  __device__ __forceinline__ static void fetch_unit(KQM_SHARED_ARG(float) shared, int to, const uint8_t *source,
                                                    bool present) {
    const uint32_t absent = KEYS ? kqm_no_keys<F16>() : 0;
    if (present)
      kqm_async_copy_16(shared, to, source);
    else
      kqm_shared_store<uint4>(shared, to, make_uint4(absent, absent, absent, absent));
  }
};

// The rows of a CTA's tile: row r is token r / group of the tile, and query head r % group of the KV head. What a row has in shared memory
// (KqmQueryTile) begins at these words. The run that the CTA is at has rows first .. end - 1.
template <bool F16, int DIM>
struct KqmTileRows {
  typedef KqmQueryTile<F16, DIM> Tile;
  KQM_SHARED_ARG(float) shared;
  int queries, scores, partial_offsets, positions, sequences;
  int count, first, end;
  uint32_t group, kv_head, first_token;

  // `tokens` tokens from `of_call` on, of which the first one is token `of_launch` of the launch; shared memory holds `most` rows.
  __device__ __forceinline__ KqmTileRows(const kqm_attention_args &a, KQM_SHARED_ARG(float) memory, int most,
                                         uint32_t heads, uint32_t of_call, uint32_t tokens)
      : shared(memory),
        queries(Tile::cached),
        scores(queries + most * DIM),
        partial_offsets(scores + most * Tile::chunk),
        positions(partial_offsets + most),
        sequences(positions + most),
        count(int(tokens * heads)),
        first(0),
        end(0),
        group(heads),
        kv_head(blockIdx.x),
        first_token(of_call) {
    for (int row = threadIdx.x; row < count; row += kqm_tile_threads) {
      const KqmToken token(a.batch, first_token + row / group);
      kqm_shared_store<uint32_t>(shared, positions + row, token.position);
      kqm_shared_store<uint32_t>(shared, sequences + row, token.sequence);
    }
    __syncthreads();
  }

  // Goes on to the next run that has a chunk `part`. False: there is none.
  __device__ __forceinline__ bool next_run(uint32_t part) {
    while (end < count) {
      first = end;
      // A lane looks at one of the tokens that follow the run's first one, and the first that does not go on with it begins the next one.
      const uint32_t position = position_at(first), sequence = sequence_at(first);
      uint32_t breaks = 0;
      for (uint32_t ahead = 1; breaks == 0; ahead += 32) {
        const uint32_t behind = ahead + (threadIdx.x & 31);
        const int row = first + int(behind * group), last = min(row, count - 1);
        breaks =
            __ballot_sync(~0u, row >= count || position_at(last) != position + behind || sequence_at(last) != sequence);
        end = min(first + int((ahead + __ffs(int(breaks)) - 1) * group), count);
      }
      if (part * Tile::chunk <= position_at(end - 1)) return true;
    }
    return false;
  }
  // Where the pages of the run's sequence begin in the table, and the page of one of its chunks. The sequence kqm_nowhere has none.
  __device__ __forceinline__ uint32_t pages(const kqm_attention_args &a) const {
    return sequence_at(first) * kqm_chunks_of(a.batch.capacity);
  }
  __device__ __forceinline__ uint32_t page(const kqm_attention_args &a, uint32_t index) const {
    return sequence_at(first) == kqm_nowhere ? kqm_nowhere : __ldcg(a.batch.pages + pages(a) + index);
  }
  // The row among those of q.
  __device__ __forceinline__ size_t in_q(const kqm_attention_args &a, int row) const {
    return size_t(first_token + row / group) * a.heads + kv_head * group + row % group;
  }
  // In the loop over chunks positions come from shared memory, to leave registers alone.
  __device__ __forceinline__ uint32_t position_at(int row) const {
    return kqm_shared_load<uint32_t>(shared, positions + row);
  }
  __device__ __forceinline__ uint32_t sequence_at(int row) const {
    return kqm_shared_load<uint32_t>(shared, sequences + row);
  }
  __device__ __forceinline__ uint32_t partial_at(int row) const {
    return kqm_shared_load<uint32_t>(shared, partial_offsets + row);
  }
  // Positions of the chunk that begins at `begin` which a row sees.
  __device__ __forceinline__ int visible(int row, uint32_t begin) const {
    return min(int(position_at(row) - begin) + 1, Tile::chunk);
  }

  // The optional scores of positions that a row does not see: the CTAs of the tile share them.
  __device__ __forceinline__ void mask_scores(const kqm_attention_args &a) const {
    for (int row = 0; row < count; row++) {
      float *trace = a.scores + in_q(a, row) * a.batch.capacity;
      for (uint32_t at = position_at(row) + 1 + blockIdx.y * kqm_tile_threads + threadIdx.x; at < a.batch.capacity;
           at += gridDim.y * kqm_tile_threads)
        trace[at] = kqm_minus_infinity();
    }
  }
  // Offsets among the partial results of a launch that begins at token `launch_token`, and queries to shared memory.
  __device__ __forceinline__ void fetch(const kqm_attention_args &a, uint32_t launch_token, uint32_t chunks) {
    for (int row = threadIdx.x; row < count; row += kqm_tile_threads) {
      kqm_shared_store<uint32_t>(shared, partial_offsets + row,
                                 (uint32_t(in_q(a, row)) - launch_token * a.heads) * chunks * DIM);
    }
    for (int i = threadIdx.x; i < count * (DIM / 4); i += kqm_tile_threads) {
      const int row = i / (DIM / 4), d = i % (DIM / 4) * 4;
      kqm_async_copy_16(shared, queries + row * DIM + kqm_query_offset<DIM>(d), a.q + in_q(a, row) * DIM + d);
    }
    kqm_async_commit();
  }
};

// A warp's keys of a chunk. Lane 4 g + k has dimensions g S .. g S + S - 1 of eight keys, or four. The sums over those dimensions are then
// exchanged until each lane has the whole sum of one key: at each step a lane keeps the first half of its sums and gives away the
// second one. So that this needs no selection, lanes hold their keys in different orders.
template <bool F16, int DIM>
struct KqmKeys {
  typedef KqmQueryTile<F16, DIM> Tile;
  float key[Tile::lane_keys][Tile::segment];

  // The key, of the chunk, of the lane's sum i.
  __device__ __forceinline__ static int index(int set, int i) {
    const int lane = threadIdx.x & 31, bits = Tile::lane_keys == 8 ? lane >> 2 : lane >> 2 & 3;
    const int order = Tile::lane_keys == 8 ? (bits & 1) << 2 | (bits & 2) | bits >> 2 : (bits & 1) << 1 | bits >> 1;
    return (set * Tile::lane_keys + (i ^ order)) * 4 + (lane & 3);
  }
  __device__ __forceinline__ void load(KQM_SHARED_ARG(float) shared, int set) {
    const int g = (threadIdx.x & 31) >> 2, lane_units = Tile::units / 8, of_unit = F16 ? 8 : 4;
    KQM_UNROLL
    for (int i = 0; i < Tile::lane_keys; i++) {
      KQM_UNROLL
      for (int u = 0; u < lane_units; u++) {
        const int offset = KqmCachedChunk<F16, DIM, true>::offset(index(set, i), g * lane_units + u);
        const uint4 stored = kqm_shared_load<uint4>(shared, offset);
        KQM_UNROLL
        for (int d = 0; d < of_unit; d++) key[i][u * of_unit + d] = kqm_cached<F16>(stored, d);
      }
    }
    kqm_keep_all(key);
  }
  // Where a lane reads a query, from the query's own offset on.
  __device__ __forceinline__ static int query_part() { return (threadIdx.x & 31) / 4 * 4; }
  // The product of key index(set, 0) and the query of which the lane's part begins at `query`.
  __device__ __forceinline__ float dot(KQM_SHARED_ARG(float) shared, uint32_t query) const {
    float sum[Tile::lane_keys];
    KQM_UNROLL
    for (int d = 0; d < Tile::segment; d += 4) {
      const float4 q = kqm_shared_load<float4>(shared, query + d / 4 * 32);
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
  // The scaled scores of the warp's share of the rows from `first_row` on, to shared memory.
  __device__ __forceinline__ void multiply_rows(const KqmTileRows<F16, DIM> &rows, int set, int first_row,
                                                float scale) const {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, first = first_row + warp / Tile::key_sets;
    const bool keeps = Tile::lane_keys == 8 || lane < 16;
    uint32_t query = rows.queries + first * DIM + query_part(),
             score = rows.scores + first * Tile::chunk + kqm_weight_offset(index(set, 0));
    KQM_LOOP
    for (int row = first; row < rows.end; row += Tile::key_parts) {
      // Whole addresses, to which loads add constants.
      kqm_keep(query), kqm_keep(score);
      const float s = __fmul_rn(dot(rows.shared, query), scale);
      if (keeps) rows.shared[score] = s;
      query += Tile::key_parts * DIM, score += Tile::key_parts * Tile::chunk;
    }
  }
};

// A warp's values of a chunk, 64 dimensions of them. Lane 8 p + d has positions 16 p .. 16 p + 15, two chains, of dimensions 2 d and 2 d + 1
// of each 16; again in different orders, so that the exchange between the four lanes that share dimensions needs no selection. In the
// end a lane has the whole sums of two neighbouring dimensions.
template <bool F16, int DIM>
struct KqmValues {
  static const int positions = 16, pairs = 4;
  float value[positions][2 * pairs];

  // The first dimension, of the 64, of the lane's pair i of sums.
  __device__ __forceinline__ static int dimension(int i) {
    const int lane = threadIdx.x & 31, bits = lane >> 3, order = (bits & 1) << 1 | bits >> 1;
    return (i ^ order) * 16 + (lane & 7) * 2;
  }
  __device__ __forceinline__ static int first_position() { return (threadIdx.x & 31) / 8 * positions; }
  __device__ __forceinline__ void load(KQM_SHARED_ARG(float) shared, int slab) {
    typedef KqmCachedChunk<F16, DIM, false> Chunk;
    KQM_UNROLL
    for (int i = 0; i < pairs; i++) {
      const int first = slab * 64 + dimension(i);
      KQM_UNROLL
      for (int n = 0; n < positions; n++) {
        const int offset = Chunk::offset(first_position() + n, 0) + (F16 ? first / 2 : first);
        if (F16) {
          const uint32_t stored = kqm_shared_load<uint32_t>(shared, offset);
          value[n][2 * i] = kqm_half_to_float(uint16_t(stored)),
                       value[n][2 * i + 1] = kqm_half_to_float(uint16_t(stored >> 16));
        } else {
          const float2 stored = kqm_shared_load<float2>(shared, offset);
          value[n][2 * i] = stored.x, value[n][2 * i + 1] = stored.y;
        }
      }
    }
    kqm_keep_all(value);
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
  // Where a lane reads a row's weights, from the row's own offset on.
  __device__ __forceinline__ static int weight_part() { return (threadIdx.x & 31) / 8 * 4; }
  // The sums, over the chunk's positions, of the weights, of which the lane's part begins at `weights`, times the values of dimensions
  // dimension(0) and the next one. EXACT: the values from position `visible` on count as zeros. Else they are multiplied with their
  // weights of zero, which is the same for finite ones, but for the signs of zeros, and those do not outlast the join.
  template <bool EXACT>
  __device__ __forceinline__ float2 sum(KQM_SHARED_ARG(float) shared, uint32_t weights, int visible) const {
    const int count = visible - first_position();
    float chain[2][2 * pairs];
    KQM_UNROLL
    for (int n = 0; n < positions; n += 4) {
      const float4 p = kqm_shared_load<float4>(shared, weights + n / 4 * 16);
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

  // The weighted sums of the rows first, first + Tile::value_parts, ... below `count`, to the partial results; `o` is where the lane's
  // dimensions of the chunk are in those of offset 0.
  template <bool EXACT>
  __device__ __forceinline__ void weigh_rows(const KqmTileRows<F16, DIM> &rows, int first, int count, uint32_t begin,
                                             float *o) const {
    typedef KqmQueryTile<F16, DIM> Tile;
    uint32_t weights = rows.scores + first * Tile::chunk + weight_part();
    KQM_LOOP
    for (int row = first; row < count; row += Tile::value_parts) {
      kqm_keep(weights);
      *reinterpret_cast<float2 *>(o + rows.partial_at(row)) =
          sum<EXACT>(rows.shared, weights, EXACT ? rows.visible(row, begin) : Tile::chunk);
      weights += Tile::value_parts * Tile::chunk;
    }
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
  __device__ __forceinline__ KqmChunkSoftmax(KQM_SHARED_ARG(float) shared, int scores, int visible, bool own,
                                             float *trace) {
    const int first = (threadIdx.x & 7) * 8, offset = scores + kqm_weight_offset(first);
    const float4 low = kqm_shared_load<float4>(shared, offset), high = kqm_shared_load<float4>(shared, offset + 16);
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
    bool normal = true;
    KQM_UNROLL
    for (int i = 0; i < 8; i++) {
      x[i] = !MASKED || first + i < visible ? __fsub_rn(x[i], m) : 0.0f;
      normal = normal && x[i] >= kqm_exp_normal_least;
    }
    if (__builtin_expect(normal, 1)) {
      KQM_UNROLL
      for (int i = 0; i < 8; i++) x[i] = kqm_exp_normal(x[i]);
    } else {
      KQM_UNROLL
      for (int i = 0; i < 8; i++) x[i] = kqm_exp(x[i]);
    }
    KQM_UNROLL
    for (int i = 0; MASKED && i < 8; i++) x[i] = first + i < visible ? x[i] : 0.0f;
    l = kqm_tree_lanes<8>(((double(x[0]) + double(x[1])) + (double(x[2]) + double(x[3]))) +
                          ((double(x[4]) + double(x[5])) + (double(x[6]) + double(x[7]))));
    // Lanes whose row is another's have read its scores before they become weights: shuffles order no memory.
    __syncwarp();
    if (own) {
      kqm_shared_store<float4>(shared, offset, make_float4(x[0], x[1], x[2], x[3]));
      kqm_shared_store<float4>(shared, offset + 16, make_float4(x[4], x[5], x[6], x[7]));
    }
  }
};

// The softmax of the rows from `first_row` on: four rows a warp at a time. Their maxima and sums go to the partial results of chunk `index`.
template <bool F16, int DIM>
__device__ __forceinline__ void kqm_softmax_rows(const kqm_attention_args &a, const KqmPartials &ws,
                                                 const KqmTileRows<F16, DIM> &rows, int first_row, bool masked,
                                                 uint32_t index) {
  const int chunk = KQM_ATTENTION_CHUNK, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const uint32_t begin = index * chunk;
  KQM_LOOP
  for (int first = first_row + 4 * warp; first < rows.end; first += 4 * kqm_tile_warps) {
    const int row = first + (lane >> 3), at = row < rows.end ? row : first;
    const bool own = row < rows.end;
    const int visible = rows.visible(at, begin);
    float *const trace = a.scores ? a.scores + rows.in_q(a, at) * a.batch.capacity + begin : nullptr;
    float m;
    double l;
    if (!masked) {
      const KqmChunkSoftmax<false> softmax(rows.shared, rows.scores + at * chunk, visible, own, trace);
      m = softmax.m, l = softmax.l;
    } else {
      const KqmChunkSoftmax<true> softmax(rows.shared, rows.scores + at * chunk, visible, own, trace);
      m = softmax.m, l = softmax.l;
    }
    const uint32_t at_row = rows.partial_at(at) / DIM + index;
    if (own && (lane & 7) == 0) ws.m[at_row] = m, ws.l[at_row] = l;
  }
}

// Partial results of `tokens` tokens from `first_token` on, in tiles of `tile_tokens`; `group` query heads share a KV head. CTAs: KV heads,
// parts of the chunks, tiles.
template <bool F16, int DIM>
__global__ void __launch_bounds__(kqm_tile_threads, (KqmQueryTile<F16, DIM>::resident))
    attention_tiles(kqm_attention_args a, KqmPartials ws, uint32_t first_token, uint32_t tokens, uint32_t tile_tokens,
                    uint32_t group) {
  typedef KqmQueryTile<F16, DIM> Tile;
  typedef KqmCachedChunk<F16, DIM, true> KeyChunk;
  typedef KqmCachedChunk<F16, DIM, false> ValueChunk;
  const int chunk = Tile::chunk, warp = threadIdx.x >> 5;
  const uint32_t part = blockIdx.y, parts = gridDim.y;
  KQM_DYNAMIC_SHARED(float, shared);
  // The last tiles have the most chunks and come first.
  const uint32_t tile_first = (gridDim.z - 1 - blockIdx.z) * tile_tokens,
                 tile_count = min(tile_tokens, tokens - tile_first);
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  kqm_release_dependents();
  KqmTileRows<F16, DIM> rows(a, shared, int(tile_tokens * group), group, first_token + tile_first, tile_count);
  if (a.scores) rows.mask_scores(a);
  bool more = rows.next_run(part);
  if (!more) return;

  const uint32_t stride = a.kv_heads * DIM;
  const auto first_element = [&](uint32_t page) { return kqm_page_at(page, stride) + rows.kv_head * DIM; };
  // Positions of a chunk that the run's last row sees, and that are there.
  const auto present = [&](uint32_t index, uint32_t page) {
    return page < a.batch.pool_pages ? rows.visible(rows.end - 1, index * chunk) : 0;
  };
  uint32_t index = part, page = rows.page(a, index);
  rows.fetch(a, first_token, kqm_chunks_of(a.batch.reach));
  KeyChunk::fetch(shared, a.k_cache, first_element(page), stride, present(index, page));

  KQM_LOOP
  while (more) {
    const uint32_t begin = index * chunk;
    kqm_async_wait<0>();
    // Keys and queries are there, and the weights of the chunk before are done with.
    __syncthreads();
    // Rows before the first one do not see the chunk. Where not all see all of it, some are masked.
    const uint32_t first_position = rows.position_at(rows.first);
    const int first_row = rows.first + (begin > first_position ? int((begin - first_position) * group) : 0);
    const int least_visible = rows.visible(first_row, begin);
    {
      KqmKeys<F16, DIM> keys;
      const int set = warp % Tile::key_sets;
      keys.load(shared, set);
      __syncthreads();
      ValueChunk::fetch(shared, a.v_cache, first_element(page), stride, present(index, page));
      // The next chunk's page arrives by the time its keys are fetched.
      index += parts;
      more = index * chunk <= rows.position_at(rows.end - 1);
      if (more) page = rows.page(a, index);
      keys.multiply_rows(rows, set, first_row, a.scale);
    }
    __syncthreads();

    kqm_softmax_rows(a, ws, rows, first_row, least_visible < chunk, begin / chunk);
    kqm_async_wait<0>();
    __syncthreads();

    // Of three slabs a warp has none: it loads one, so that registers never hold nothing, and leaves it at that.
    const int slab = warp % Tile::slabs, value_part = warp / Tile::slabs;
    const int value_rows = value_part < Tile::value_parts ? rows.end : 0;
    KqmValues<F16, DIM> values;
    values.load(shared, slab);
    __syncthreads();
    if (more) KeyChunk::fetch(shared, a.k_cache, first_element(page), stride, present(index, page));
    float *const o = ws.o + begin / chunk * DIM + slab * 64 + values.dimension(0);
    if (__builtin_expect(__any_sync(~0u, least_visible < chunk && values.not_finite(least_visible)), 0))
      values.template weigh_rows<true>(rows, first_row + value_part, value_rows, begin, o);
    else
      values.template weigh_rows<false>(rows, first_row + value_part, value_rows, begin, o);
    // The next run begins like the first one.
    if (!more && rows.next_run(part)) {
      more = true, index = part, page = rows.page(a, index);
      KeyChunk::fetch(shared, a.k_cache, first_element(page), stride, present(index, page));
    }
  }
}

// The largest of `count` numbers, by a warp; a NaN when there is one.
__device__ __forceinline__ float kqm_largest_of(const float *m, int count) {
  float most = kqm_minus_infinity();
  for (int c = threadIdx.x & 31; c < count; c += 32) most = kqm_max_or_nan(most, m[c]);
  KQM_UNROLL
  for (int step = 16; step; step /= 2) most = kqm_max_or_nan(most, __shfl_xor_sync(~0u, most, step));
  return most;
}

// The trees over the chains of the weights of a head, and of two outputs, into the first ones.
__device__ __forceinline__ void kqm_add_chains(double (&l)[kqm_attention_chains],
                                               double (&y)[kqm_attention_chains][2]) {
  KQM_UNROLL
  for (int step = 1; step < kqm_attention_chains; step *= 2) {
    KQM_UNROLL
    for (int g = 0; g < kqm_attention_chains; g += 2 * step) {
      l[g] = l[g] + l[g + step];
      KQM_UNROLL
      for (int i = 0; i < 2; i++) y[g][i] = y[g][i] + y[g + step][i];
    }
  }
}

// Joins the chunks of `tokens` tokens from `first_token` on. 128 threads have 256 outputs of a token, two neighbours each and all eight
// chains of those; a CTA has two tokens.
static const int kqm_join_tokens = 2, kqm_token_threads = 128, kqm_join_threads = kqm_token_threads * kqm_join_tokens;
__global__ void __launch_bounds__(kqm_join_threads, 2)
    attention_join_tokens(kqm_attention_args a, KqmPartials ws, uint32_t first_token, uint32_t tokens) {
  const int chunk = KQM_ATTENTION_CHUNK, chains = kqm_attention_chains;
  // Of a token's heads (256 outputs are of four at most, of which each warp has one): by chunk of a batch the factor exp(m_c - M) and l_c.
  const int most_heads = kqm_token_threads / 32, batch = 64, ahead = 2 * chains;
  KQM_SHARED(double, factor, kqm_join_tokens *most_heads *batch);
  KQM_SHARED(double, weight, kqm_join_tokens *most_heads *batch);
  KQM_SHARED(double, totals, kqm_join_tokens *most_heads *chains);
  KQM_SHARED(float, result, kqm_join_tokens *KQM_BLOCK);
  const int token = threadIdx.x / kqm_token_threads, thread = threadIdx.x % kqm_token_threads, warp = thread >> 5,
            lane = threadIdx.x & 31;
  const KqmJoinedOutputs outputs(a, 2 * thread);
  // A token too many repeats the last one, and nothing of it is stored.
  const uint32_t own_token = blockIdx.y * kqm_join_tokens + token,
                 last_token = min((blockIdx.y + 1) * kqm_join_tokens, tokens) - 1;
  const uint32_t within = min(own_token, last_token), t = first_token + within;
  const bool stored = own_token == within;
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  kqm_release_dependents();
  const auto used_by = [&](uint32_t token) { return int(KqmToken(a.batch, first_token + token).position / chunk) + 1; };
  static_assert(kqm_join_tokens == 2, "the most chunks of a CTA's tokens are those of its first or its last one");
  const int used = used_by(within), most_used = max(used_by(blockIdx.y * kqm_join_tokens), used_by(last_token));
  const size_t chunks = kqm_chunks_of(a.batch.reach), first_row = size_t(within) * a.heads + outputs.first_head;
  const float *const o = ws.o + (first_row + outputs.own_head) * chunks * outputs.dim + outputs.own % outputs.dim;
  float2 value[ahead];
  const auto fetch = [&](int begin) {
    const float *from = o + begin * outputs.dim;
    const int count = used - begin;
    KQM_UNROLL
    for (int i = 0; i < ahead; i++, from += outputs.dim) {
      if (i < count) value[i] = *reinterpret_cast<const float2 *>(from);
    }
  };
  fetch(0);

  // Phase 1: the largest score of each head. A warp makes the factors of its head, a thread the sum of the weights in one chain of a head.
  const float *const m = ws.m + (first_row + warp) * chunks;
  const double *const l = ws.l + (first_row + warp) * chunks;
  const int own_factors = (token * most_heads + warp) * batch,
            head_factors = (token * most_heads + outputs.own_head) * batch;
  const float most = warp < outputs.heads ? kqm_largest_of(m, used) : kqm_minus_infinity();
  // Phase 2: the chains, a batch of chunks at a time.
  double sum[chains][2] = {}, total = 0.0;
  for (int begin = 0; begin < most_used; begin += batch) {
    __syncthreads();
    if (warp < outputs.heads) {
      for (int c = lane; c < batch && begin + c < used; c += 32) {
        factor[own_factors + c] = double(kqm_exp(__fsub_rn(m[begin + c], most)));
        weight[own_factors + c] = l[begin + c];
      }
    }
    __syncthreads();
    const int count = min(used - begin, batch);
    if (thread < outputs.heads * chains) {
      const int first = (token * most_heads + thread / chains) * batch;
      for (int c = thread % chains; c < count; c += chains)
        total = fma(double(weight[first + c]), double(factor[first + c]), total);
    }
    KQM_LOOP
    for (int first = 0; first < count; first += ahead) {
      KQM_UNROLL
      for (int i = 0; i < ahead; i++) {
        if (first + i >= count) break;
        const double f = factor[head_factors + first + i];
        sum[i % chains][0] = fma(double(value[i].x), f, sum[i % chains][0]);
        sum[i % chains][1] = fma(double(value[i].y), f, sum[i % chains][1]);
      }
      fetch(begin + first + ahead);
    }
  }
  if (thread < outputs.heads * chains) totals[token * most_heads * chains + thread] = total;
  __syncthreads();
  // Phase 3: the trees over the chains.
  double l_sum[chains];
  KQM_UNROLL
  for (int g = 0; g < chains; g++) l_sum[g] = totals[(token * most_heads + outputs.own_head) * chains + g];
  kqm_add_chains(l_sum, sum);
  const double inverse = __ddiv_rn(1.0, l_sum[0]);
  KQM_UNROLL
  for (int i = 0; i < 2; i++) {
    const float y = outputs.active ? kqm_canonical(float(sum[0][i] * inverse)) : 0.0f;
    if (a.out && outputs.active && stored) a.out[size_t(t) * outputs.all + outputs.own + i] = y;
    result[token * KQM_BLOCK + 2 * thread + i] = y;
  }
  if (!a.fixed) return;
  __syncthreads();
  if (warp != 0 || !stored) return;
  kqm_quantize_joined(result, token * KQM_BLOCK, a.fixed + size_t(t) * gridDim.x + blockIdx.x);
}
