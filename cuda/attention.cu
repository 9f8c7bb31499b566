// attention: causal grouped-query attention over the KV cache.
//
//   out[t, h] = sum_i softmax_i(scale * q[t, h] . k[i, h / group]) v[i, h / group],  i = 0 ..= position[t] of sequence[t]
//
// Shapes: q [tokens, heads, head_dim], caches [pool_pages, 64, kv_heads, head_dim] in f32 or f16, out [tokens, heads, head_dim]. Tokens
// without a place (kqm_batch) give NaN.
// Maths: positions are cut into chunks of 64 counted from 0, whatever the card or the batch. A chunk is reduced in f32, the
// chunks are joined in f64 in a fixed order (docs/arithmetic.md), so one query at a time and many give the same bits. A page of the cache
// is a chunk, so it does not matter which page it is.
// Launch: neighbouring tokens in tiles of query rows, attention_tiles and attention_join_tokens (common/query_tiles.cuh).
// Single ones by attention_chunks, one CTA of eight warps for a chunk, four or eight query heads of a KV head, and a token.
// CTAs stride over the chunks of the reach and stop at the position, which they read from memory: so a captured graph
// serves every position below it. While four heads a CTA leave no CTA a second chunk they do, for speed of one; beyond that the
// two CTAs of eight heads share the chunks instead of the heads, which halves what they read and convert. attention_join,
// one CTA for 256 outputs of a token, joins the chunks. (That the last CTA to finish joins them was slower even for few
// chunks.) For a batch of a single token the first kernel can do the work of kqm_rope as well, and read position, pages, keys and values
// while qkv, or a float_matvec in its place, before it still runs.
//
// attention_chunks, a CTA of eight warps for its chunks, one token and H heads:
//
//   norm and rotate the queries (and the newest k and v) to shared memory
//   for each chunk of the CTA:
//     score[h][i] = scale * q[h] . k[i]                  multiply_keys, add_lanes, store_scores
//     barrier
//     m[h] = max_i score[h][i]                           Softmax: a warp a head
//     p[h][i] = exp(score[h][i] - m[h]), 0 behind the position; l[h] = sum_i p[h][i] in f64
//     barrier
//     o[w][h] = sum of p[h][i] v[i] over warp w's i      weigh_values
//     barrier
//     o[h] = sum over w of o[w][h]                       add_warps
//     o, m, l of the chunk to the workspace
//
// Where the code leaves this: the first chunk's keys and values are loaded before the wait for qkv (follows_qkv), and each next one's as
// soon as the registers of this one's are free, so that memory works during the arithmetic; each chunk's page is looked up a chunk ahead;
// the newest key and value, which this launch
// makes, come from shared memory instead of the cache.
//
// Which lane holds what: warp w has positions 8 w .. 8 w + 7 of the chunk.
//
//   keys (S = head_dim / 8), lane 8 k + g                  values (V = head_dim / 32)
//     key 8 w + k        dimensions g S .. g S + S - 1       positions 8 w .. 8 w + 7, all of them
//     key 8 w + k + 4    dimensions g S .. g S + S - 1       lane l: dimensions V l .. V l + V - 1
//
//   scores after add_lanes, lane 8 k + g: of key 8 w + k + (4 if bit 0 of g), the heads that bits 1 and 2 of g choose, H / 4 of them
// Bound by: latency for short contexts, then issue slots: 2 x 64 x head_dim fma a head and chunk are half of what a warp does.
#include "common/exp.cuh"
#include "common/fixed.cuh"
#include "common/query_tiles.cuh"
#include "common/rope.cuh"

namespace {

const int chunk = KQM_ATTENTION_CHUNK, warps = 8, threads = 32 * warps, max_group = 16, quad_heads = 4;
const int positions_per_warp = chunk / warps;
// Threads of a CTA that joins 256 outputs (four each), and the chunks whose factors are joined at once.
const int chains = kqm_attention_chains, join_threads = 64 * chains, join_batch = 128;
// The least number of neighbouring tokens that are taken in tiles; CTAs of theirs for each one that runs at once; rows of a tile, at most.
const uint32_t least_tile_tokens = 4;
const int tile_rounds = 8, most_tile_rows = 64;
// CTAs of a grid in its second and third dimension.
const uint64_t max_grid = 65535;
const uint64_t target_workspace = 256ull << 20;

uint64_t chunks_of(const kqm_attention_args &a) { return kqm_chunks_of(kqm_bounded(a.batch).reach); }
uint64_t bytes_per_token(const kqm_attention_args &a) {
  const uint64_t partial = sizeof(double) + sizeof(float) * (1 + uint64_t(a.head_dim));
  return kqm_ceil_div(a.heads * chunks_of(a) * partial, uint64_t(16)) * 16;
}

// What a launch for a cache type and a head dimension looks like.
template <bool F16, int DIM>
struct Shape {
  // CTAs at once on a multiprocessor: what the registers for keys and values allow.
  static const int at_once = DIM > 128 || !F16 ? 1 : 2;
  // Query heads of a CTA, at most. Shared memory holds eight warps' partial outputs of each.
  static const int heads = DIM > 128 ? 4 : 8;
  // Lanes that norm and rotate a head.
  static const int lanes = DIM > 128 ? 32 : 16;
};

// N floats to shared memory, N even.
template <int N>
__device__ __forceinline__ void store_floats(KQM_SHARED_ARG(float) out, int at, const float (&x)[N]) {
  KQM_UNROLL
  for (int i = 0; i < N; i += N % 4 == 0 ? 4 : 2) {
    if (N % 4 == 0)
      kqm_shared_store<float4>(out, at + i, make_float4(x[i], x[i + 1], x[(i + 2) % N], x[(i + 3) % N]));
    else
      kqm_shared_store<float2>(out, at + i, make_float2(x[i], x[i + 1]));
  }
}

// The chunks that a CTA works on, and its query heads: `heads` of H, from row `row` of the partial results on.
struct Work {
  uint32_t kv_head, position, first, stride;
  int heads;
  uint32_t row;
  uint32_t pages;  // where those of the sequence begin in the table

  __device__ __forceinline__ bool has(uint32_t index) const { return index * chunk <= position; }
  // The page of a chunk; none behind the last one, for chunks that are looked up ahead.
  __device__ __forceinline__ uint32_t page(const kqm_batch &b, uint32_t index) const {
    return has(index) ? __ldcg(b.pages + pages + index) : kqm_nowhere;
  }
};

// A warp's keys and values of a chunk. Values: warp w has positions 8 w .. 8 w + 7. Keys: lane 8 k + g has keys 8 w + k and
// 8 w + k + 4, and dimensions g S .. g S + S - 1 of them.
template <bool F16, int DIM>
struct KeysAndValues {
  static const int per_lane = DIM / 32, segment = DIM / 8;
  KqmElements<F16, per_lane> value[positions_per_warp];
  KqmElements<F16, segment> key[2];

  // Positions of a chunk that are in the cache: the newest one of the fused launch is in shared memory, and a page that the pool does not
  // have has none.
  __device__ __forceinline__ static int present(const kqm_attention_args &a, const Work &work, uint32_t index,
                                                uint32_t page) {
    const int all = min(int(work.position - index * chunk) + (a.rope.q ? 0 : 1), chunk);
    return page < a.batch.pool_pages ? all : 0;
  }
  __device__ __forceinline__ void load_values(const kqm_attention_args &a, const Work &work, uint32_t index,
                                              uint32_t page) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, first = warp * positions_per_warp;
    const uint32_t stride = a.kv_heads * DIM;
    size_t from = kqm_page_at(page, stride) + (first * stride + work.kv_head * DIM + lane * per_lane);
    const int count = present(a, work, index, page) - first;
    KQM_UNROLL
    for (int i = 0; i < positions_per_warp; i++, from += stride) {
      if (i < count)
        value[i].load(a.v_cache, from);
      else
        value[i].fill(0);
    }
  }
  __device__ __forceinline__ void load_keys(const kqm_attention_args &a, const Work &work, uint32_t index,
                                            uint32_t page) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, first = warp * positions_per_warp + (lane >> 3);
    const uint32_t stride = a.kv_heads * DIM;
    const size_t from = kqm_page_at(page, stride) + size_t(first) * stride + work.kv_head * DIM + (lane & 7) * segment;
    const int count = present(a, work, index, page) - first;
    KQM_UNROLL
    for (int i = 0; i < 2; i++) {
      if (4 * i < count)
        key[i].load(a.k_cache, from + 4 * i * size_t(stride));
      else
        key[i].fill(kqm_no_keys<F16>());
    }
  }
};

// Puts the newest position's key and value, which are not in the cache yet, into the registers of the warp that has the position: its
// position `own`, which others have none of. Selected word by word: an index would put the arrays into memory.
template <bool F16, int DIM>
__device__ __forceinline__ void take_newest(KeysAndValues<F16, DIM> &cached, int own, KQM_SHARED_ARG(uint32_t) newest) {
  typedef KqmElements<F16, KeysAndValues<F16, DIM>::per_lane> Value;
  typedef KqmElements<F16, KeysAndValues<F16, DIM>::segment> Key;
  const int lane = threadIdx.x & 31;
  Value value;
  value.load_shared(newest, DIM + lane * Value::words);
  KQM_UNROLL
  for (int i = 0; i < positions_per_warp; i++) cached.value[i].select(i == own, value);
  Key key;
  key.load_shared(newest, (lane & 7) * Key::words);
  KQM_UNROLL
  for (int i = 0; i < 2; i++) cached.key[i].select(4 * i + (lane >> 3) == own, key);
}

// The lane's chains of fma, over its eighth of the dimensions, for its two keys and H heads.
template <bool F16, int DIM, int H>
__device__ __forceinline__ void multiply_keys(const KeysAndValues<F16, DIM> &cached, KQM_SHARED_ARG(float) query,
                                              float (&sum)[2][H]) {
  const int g = threadIdx.x & 7;
  KQM_UNROLL
  for (int d = 0; d < KeysAndValues<F16, DIM>::segment; d += 4) {
    float k[2][4];
    KQM_UNROLL
    for (int i = 0; i < 8; i++) k[i / 4][i % 4] = cached.key[i / 4].get(d + i % 4);
    KQM_UNROLL
    for (int h = 0; h < H; h++) {
      const float4 q = kqm_shared_load<float4>(query, h * DIM + (d / 4 * 8 + g) * 4);
      KQM_UNROLL
      for (int i = 0; i < 2; i++) {
        sum[i][h] = d == 0 ? __fmul_rn(q.x, k[i][0]) : fmaf(q.x, k[i][0], sum[i][h]);
        sum[i][h] = fmaf(q.y, k[i][1], sum[i][h]);
        sum[i][h] = fmaf(q.z, k[i][2], sum[i][h]);
        sum[i][h] = fmaf(q.w, k[i][3], sum[i][h]);
      }
    }
  }
}

// Which of the products are a lane's after add_lanes: one key of the chunk, and H / 4 heads from `head` on.
template <int H>
struct Product {
  int key, head;

  __device__ __forceinline__ Product() {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    key = warp * positions_per_warp + (lane & 1 ? 4 : 0) + (lane >> 3);
    head = (lane & 2 ? H / 2 : 0) + (lane & 4 ? H / 4 : 0);
  }
};

// The tree over the eight lanes of a key. At each step a lane gives away half of its sums and keeps the other half: first a key, then
// half of the heads, then half of those.
template <int H>
__device__ __forceinline__ void add_lanes(const float (&sum)[2][H], float (&dot)[H / 4]) {
  const int g = threadIdx.x & 7;
  const bool bit0 = g & 1, bit1 = g & 2, bit2 = g & 4;
  float one_key[H], half_heads[H / 2];
  KQM_UNROLL
  for (int h = 0; h < H; h++) {
    const float received = __shfl_xor_sync(~0u, bit0 ? sum[0][h] : sum[1][h], 1);
    one_key[h] = __fadd_rn(bit0 ? sum[1][h] : sum[0][h], received);
  }
  KQM_UNROLL
  for (int h = 0; h < H / 2; h++) {
    const float received = __shfl_xor_sync(~0u, bit1 ? one_key[h] : one_key[H / 2 + h], 2);
    half_heads[h] = __fadd_rn(bit1 ? one_key[H / 2 + h] : one_key[h], received);
  }
  KQM_UNROLL
  for (int h = 0; h < H / 4; h++) {
    const float received = __shfl_xor_sync(~0u, bit2 ? half_heads[h] : half_heads[H / 4 + h], 4);
    dot[h] = __fadd_rn(bit2 ? half_heads[H / 4 + h] : half_heads[h], received);
  }
}

// Scales the lane's products and stores them: to shared memory, minus infinity where the position is not visible, and to the optional
// output.
template <int H>
__device__ __forceinline__ void store_scores(const kqm_attention_args &a, const Work &work, uint32_t first_token,
                                             uint32_t begin, int visible, const float (&dot)[H / 4],
                                             KQM_SHARED_ARG(float) score) {
  const Product<H> own;
  KQM_UNROLL
  for (int h = 0; h < H / 4; h++) {
    const int head = own.head + h;
    if (head >= work.heads) continue;
    const float s = kqm_canonical(__fmul_rn(dot[h], a.scale));
    score[head * chunk + own.key] = own.key < visible ? s : kqm_minus_infinity();
    if (a.scores && own.key < visible) {
      // Worked out anew, so that no register holds it for a trace that is rarely wanted.
      uint32_t row = first_token * a.heads + work.row + head;
      kqm_keep(row);
      a.scores[size_t(row) * a.batch.capacity + begin + own.key] = s;
    }
  }
}

// The softmax of a chunk: a warp takes a head, lane l keys 2 l and 2 l + 1, whose scores become weights.
struct Softmax {
  float m, p0, p1;

  __device__ __forceinline__ Softmax(const Work &work, int visible, KQM_SHARED_ARG(float) score)
      : m(0.0f), p0(0.0f), p1(0.0f) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    if (warp >= work.heads) return;
    const float2 s = kqm_shared_load<float2>(score, warp * chunk + 2 * lane);
    m = kqm_max_or_nan(s.x, s.y);
    KQM_UNROLL
    for (int step = 16; step; step /= 2) m = kqm_max_or_nan(m, __shfl_xor_sync(~0u, m, step));
    p0 = 2 * lane < visible ? kqm_exp(__fsub_rn(s.x, m)) : 0.0f;
    p1 = 2 * lane + 1 < visible ? kqm_exp(__fsub_rn(s.y, m)) : 0.0f;
    kqm_shared_store<float2>(score, warp * chunk + 2 * lane, make_float2(p0, p1));
  }
  // Stores the maximum and the sum of the weights of the warp's head and chunk.
  __device__ __forceinline__ void store(const KqmPartials &ws, const Work &work, size_t chunks, uint32_t index) const {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    if (warp >= work.heads) return;
    const double l = kqm_tree_warp(double(p0) + double(p1));
    if (lane == 0) {
      ws.m[size_t(work.row + warp) * chunks + index] = m;
      ws.l[size_t(work.row + warp) * chunks + index] = l;
    }
  }
};

// The lane's chains of fma, over its warp's eight positions, for its dimensions and H heads.
template <bool F16, int DIM, int H>
__device__ __forceinline__ void weigh_values(const KeysAndValues<F16, DIM> &cached, KQM_SHARED_ARG(float) score,
                                             float (&o)[H][KeysAndValues<F16, DIM>::per_lane]) {
  const int warp = threadIdx.x >> 5, per_lane = KeysAndValues<F16, DIM>::per_lane;
  KQM_UNROLL
  for (int i = 0; i < positions_per_warp; i += 4) {
    float v[4][per_lane];
    KQM_UNROLL
    for (int n = 0; n < 4; n++) {
      KQM_UNROLL
      for (int d = 0; d < per_lane; d++) v[n][d] = cached.value[i + n].get(d);
    }
    KQM_UNROLL
    for (int h = 0; h < H; h++) {
      const float4 p = kqm_shared_load<float4>(score, h * chunk + warp * positions_per_warp + i);
      KQM_UNROLL
      for (int d = 0; d < per_lane; d++) {
        o[h][d] = i == 0 ? __fmul_rn(p.x, v[0][d]) : fmaf(p.x, v[0][d], o[h][d]);
        o[h][d] = fmaf(p.y, v[1][d], o[h][d]);
        o[h][d] = fmaf(p.z, v[2][d], o[h][d]);
        o[h][d] = fmaf(p.w, v[3][d], o[h][d]);
      }
    }
  }
}

// The tree over the warps' sums, a thread four dimensions of a head, and its result to the partial results.
template <int DIM, int H>
__device__ __forceinline__ void add_warps(const KqmPartials &ws, const Work &work, size_t chunks, uint32_t index,
                                          KQM_SHARED_ARG(float) partial) {
  for (int i = 4 * threadIdx.x; i < work.heads * DIM; i += 4 * threads) {
    float4 part[warps];
    KQM_UNROLL
    for (int w = 0; w < warps; w++) part[w] = kqm_shared_load<float4>(partial, w * H * DIM + i);
    KQM_UNROLL
    for (int step = 1; step < warps; step *= 2) {
      KQM_UNROLL
      for (int w = 0; w < warps; w += 2 * step) {
        part[w].x = __fadd_rn(part[w].x, part[w + step].x);
        part[w].y = __fadd_rn(part[w].y, part[w + step].y);
        part[w].z = __fadd_rn(part[w].z, part[w + step].z);
        part[w].w = __fadd_rn(part[w].w, part[w + step].w);
      }
    }
    *reinterpret_cast<float4 *>(ws.o + (size_t(work.row + i / DIM) * chunks + index) * DIM + i % DIM) = part[0];
  }
}

// The chunks of one CTA. Its first keys and values are loaded; queries, the newest k and v and the scores' zeros of absent heads
// are on their way to shared memory. The next chunk's keys are loaded as soon as this one's are used, and so are its values; `page` is the
// next chunk's.
template <bool F16, int DIM, int H>
__device__ __forceinline__ void attend(const kqm_attention_args &a, const KqmPartials &ws, const Work &work,
                                       uint32_t first_token, KeysAndValues<F16, DIM> &cached,
                                       KQM_SHARED_ARG(float) query, KQM_SHARED_ARG(float) score,
                                       KQM_SHARED_ARG(float) partial, KQM_SHARED_ARG(uint32_t) newest) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, per_lane = KeysAndValues<F16, DIM>::per_lane;
  const size_t chunks = kqm_chunks_of(a.batch.reach);
  __syncthreads();

  for (uint32_t index = work.first; work.has(index); index += work.stride) {
    const uint32_t begin = index * chunk, next = index + work.stride;
    // The token's own position, which only the last chunk has, among those of the warp.
    const int own = int(work.position - begin) - warp * positions_per_warp,
              visible = min(int(work.position - begin) + 1, chunk);
    if (a.rope.q && own >= 0 && own < positions_per_warp) take_newest(cached, own, newest);

    const uint32_t page = work.page(a.batch, next);
    float sum[2][H], dot[H / 4];
    multiply_keys<F16, DIM, H>(cached, query, sum);
    if (work.has(next)) cached.load_keys(a, work, next, page);
    add_lanes<H>(sum, dot);
    store_scores<H>(a, work, first_token, begin, visible, dot, score);
    __syncthreads();

    const Softmax softmax(work, visible, score);
    __syncthreads();

    float o[H][per_lane];
    weigh_values<F16, DIM, H>(cached, score, o);
    if (work.has(next)) cached.load_values(a, work, next, page);
    KQM_UNROLL
    for (int h = 0; h < H; h++) store_floats(partial, (warp * H + h) * DIM + lane * per_lane, o[h]);
    softmax.store(ws, work, chunks, index);
    __syncthreads();
    add_warps<DIM, H>(ws, work, chunks, index, partial);
  }
}

// The optional scores of positions that a token does not see, of `heads` heads from row `row` on: the CTAs of the token share them.
__device__ __forceinline__ void mask_scores(const kqm_attention_args &a, uint32_t position, uint32_t row, int heads) {
  const uint32_t capacity = a.batch.capacity;
  for (uint32_t at = (blockIdx.y * threads + threadIdx.x) + position + 1; at < capacity; at += gridDim.y * threads) {
    for (int h = 0; h < heads; h++) a.scores[size_t(row + h) * capacity + at] = kqm_minus_infinity();
  }
}

// What the fused launch makes of a head, the lane's eight dimensions: a query goes to shared memory, as query `index` of the CTA, in the
// order in which attend reads it.
template <int DIM>
__device__ __forceinline__ void store_query(const kqm_attention_args &a, const KqmHeadRow &row, int lane, int index,
                                            bool writes, const float (&x)[8], KQM_SHARED_ARG(float) query) {
  KQM_UNROLL
  for (int i = 0; i < 8; i += 4)
    kqm_shared_store<float4>(query, index * DIM + kqm_query_offset<DIM>(8 * lane + i),
                             make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]));
  if (writes) kqm_store_eight(a.rope.q_out + row.at, lane, x);
}

// The newest k or v goes to shared memory as the cache stores it and, from the one CTA that writes it, to the cache.
template <bool F16, int DIM>
__device__ __forceinline__ void store_newest(const kqm_attention_args &a, const KqmHeadRow &row, int lane,
                                             uint32_t page, uint32_t position, bool writes, const float (&x)[8],
                                             KQM_SHARED_ARG(uint32_t) newest) {
  if (writes) kqm_cache_head(a.rope, row, lane, page, position, x);
  if (writes && !row.is_v && a.rope.k_out) kqm_store_eight(a.rope.k_out + row.at, lane, x);
  const int from = row.is_v ? DIM : 0;
  KQM_UNROLL
  for (int d = 0; d < 8; d += F16 ? 2 : 1)
    newest[from + (8 * lane + d) / (F16 ? 2 : 1)] = KqmElements<F16, 2>::word_of(x[d], x[d + (F16 ? 1 : 0)]);
}

template <bool F16, int DIM>
__global__ void __launch_bounds__(threads, (Shape<F16, DIM>::at_once))
    attention_chunks(kqm_attention_args a, KqmPartials ws, uint32_t first_token) {
  const int most_heads = Shape<F16, DIM>::heads, lanes = Shape<F16, DIM>::lanes;
  KQM_SHARED(float, query, most_heads *DIM);
  KQM_SHARED(float, score, most_heads *chunk);
  KQM_SHARED(float, partial, warps *most_heads *DIM);
  // The newest k and v as they go to the cache: words of the fused launch's own token.
  KQM_SHARED(uint32_t, newest, 2 * DIM);
  const int group = a.heads / a.kv_heads, quads = (group + quad_heads - 1) / quad_heads;
  const int quad = int(blockIdx.x) % quads, lane = threadIdx.x & 31;
  // Queries are prepared for as many heads as a CTA may work on.
  const int first_prepared = quad * quad_heads / most_heads * most_heads,
            prepared = min(most_heads, group - first_prepared);
  const int offset = quad * quad_heads - first_prepared, quad_heads_present = min(quad_heads, prepared - offset);
  const uint32_t t = first_token + blockIdx.z, kv_head = blockIdx.x / quads;
  const uint32_t first_head = kv_head * group + first_prepared, token_head = t * a.heads + first_head;

  // The fused launch: a head of q, k or v for each `lanes` lanes, one row or two a warp.
  const int row_lane = lane % lanes, row_index = int(threadIdx.x) / lanes;
  const bool is_query = row_index < prepared, is_row = row_index < prepared + 2;
  const uint32_t head =
      is_query ? first_head + row_index : a.heads + (row_index == prepared ? 0 : a.kv_heads) + kv_head;
  const KqmHeadRow row(a.rope, 0, head);
  float x[8] = {}, weight[8] = {};
  if (a.rope.q) kqm_load_head_weight(a.rope, row, row_lane, weight);
  kqm_touch_arguments(a);
  // Behind qkv and float_matvec the batch and the caches are what they will be: they are read at once (kqm_wait_then_release).
  if (!a.follows_qkv) kqm_wait_for_dependencies();
  // The first chunk's page is looked up together with the position that decides which chunk it is. A single sequence is the first one, so
  // that this need not wait for its number.
  const uint32_t of_sequence = kqm_chunks_of(a.batch.capacity), first_of_four = blockIdx.y,
                 first_of_eight = 2 * blockIdx.y + (offset != 0);
  uint32_t pages = 0;
  if (a.batch.sequences > 1) pages = min(__ldcg(a.batch.sequence + t), a.batch.sequences - 1) * of_sequence;
  const uint32_t page_of_four = __ldcg(a.batch.pages + pages + min(first_of_four, of_sequence - 1)),
                 page_of_eight = __ldcg(a.batch.pages + pages + min(first_of_eight, of_sequence - 1));
  const KqmToken token(a.batch, t);
  const uint32_t position = token.position, used = position / chunk + 1;
  // One CTA for four heads, or, where that would be a second round, two CTAs for eight.
  const bool eight_heads = most_heads > quad_heads && prepared > quad_heads && used > gridDim.y;
  const uint32_t first = eight_heads ? first_of_eight : first_of_four, stride = eight_heads ? 2 * gridDim.y : gridDim.y;
  const int from = eight_heads ? 0 : offset, heads = eight_heads ? prepared : quad_heads_present;
  const uint32_t work_row = blockIdx.z * a.heads + first_head + from;
  const Work work{kv_head, position, first, stride, heads, work_row, pages};
  KeysAndValues<F16, DIM> cached;
  const uint32_t first_page = !token.has_place() ? kqm_nowhere : eight_heads ? page_of_eight : page_of_four;
  if (first < used) {
    cached.load_keys(a, work, first, first_page);
    cached.load_values(a, work, first, first_page);
  }
  // The fused launch: a token whose own page is not there has no place. It gives NaN and leaves the cache alone.
  const uint32_t own_page = a.rope.q ? token.own_page(a.batch) : 0,
                 own_position = own_page < a.batch.pool_pages ? position : kqm_nowhere;
  kqm_wait_then_release();
  if (a.rope.q) kqm_load_head(a.rope, row, row_lane, x);

  if (a.scores) mask_scores(a, position, token_head + offset, quad_heads_present);
  if (first >= used) return;
  const bool makes_newest = a.rope.q && (used - 1 - first) % stride == 0;

  // Queries to shared memory. The fused launch makes them here; the CTAs that have the newest position make its k and v, too,
  // and one of them adds them to the cache.
  if (a.rope.q) {
    const bool own_head = eight_heads || (row_index >= offset && row_index < offset + quad_heads_present);
    const bool writes = is_query ? first == 0 && own_head
                                 : is_row && makes_newest && first_prepared == 0 && (eight_heads || offset == 0);
    kqm_rope_head<lanes>(a.rope, DIM, row, row_lane, own_position, writes, 1.0 / DIM, weight,
                         kqm_shared_offset(partial, row_index * DIM), x);
    if (is_row && 8 * row_lane < DIM) {
      if (is_query)
        store_query<DIM>(a, row, row_lane, row_index, writes, x, query);
      else
        store_newest<F16, DIM>(a, row, row_lane, own_page, own_position, writes, x, newest);
    }
  } else {
    for (int i = threadIdx.x; i < prepared * DIM; i += threads)
      query[i / DIM * DIM + kqm_query_offset<DIM>(i % DIM)] = a.q[size_t(token_head) * DIM + i];
  }
  for (int i = prepared * DIM + threadIdx.x; i < most_heads * DIM; i += threads) query[i] = 0.0f;

  for (int i = heads * chunk + threadIdx.x; i < most_heads * chunk; i += threads) score[i] = 0.0f;
  if (eight_heads)
    attend<F16, DIM, most_heads>(a, ws, work, first_token, cached, query, score, partial, newest);
  else
    attend<F16, DIM, quad_heads>(a, ws, work, first_token, cached, kqm_shared_offset(query, from * DIM), score, partial,
                                 newest);
}

// The trees over the chains: y of the thread's output, l of the weights of its head.
__device__ __forceinline__ void add_chains(KQM_SHARED_ARG(double) totals, KQM_SHARED_ARG(double) sums, int quad,
                                           double &l, double &y) {
  double l_chain[chains], y_chain[chains];
  KQM_UNROLL
  for (int g = 0; g < chains; g++) l_chain[g] = totals[64 * g + quad], y_chain[g] = sums[KQM_BLOCK * g + threadIdx.x];
  KQM_UNROLL
  for (int step = 1; step < chains; step *= 2) {
    KQM_UNROLL
    for (int g = 0; g < chains; g += 2 * step)
      l_chain[g] = l_chain[g] + l_chain[g + step], y_chain[g] = y_chain[g] + y_chain[g + step];
  }
  l = l_chain[0], y = y_chain[0];
}

// A CTA for 256 outputs of a token: thread (chain, i) has chunks chain, chain + 8, ... of outputs 4 i .. 4 i + 3.
__global__ void __launch_bounds__(join_threads, 1)
    attention_join(kqm_attention_args a, KqmPartials ws, uint32_t first_token) {
  // Of the CTA's heads (256 outputs are of four at most): the largest score of each warp's chunks, and by chunk of a batch the
  // factor exp(m_c - M) and l_c.
  const int most_heads = 4, warps_per_head = join_batch / 32;
  KQM_SHARED(float, largest, most_heads *warps_per_head);
  KQM_SHARED(double, factor, most_heads *join_batch);
  KQM_SHARED(double, weight, most_heads *join_batch);
  KQM_SHARED(double, totals, join_threads);
  KQM_SHARED(double, sums, 4 * join_threads);
  KQM_SHARED(float, result, KQM_BLOCK);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int chain = threadIdx.x / 64, quad = threadIdx.x % 64;
  const KqmJoinedOutputs outputs(a, 4 * quad);
  const size_t chunks = kqm_chunks_of(a.batch.reach), first_row = size_t(blockIdx.y) * a.heads + outputs.first_head;
  const float *o = ws.o + (first_row + outputs.own_head) * chunks * outputs.dim + outputs.own % outputs.dim;
  const uint32_t t = first_token + blockIdx.y;
  // A thread makes the factor of one chunk of a batch and one head.
  static_assert(most_heads * join_batch == join_threads, "a thread has one factor of a batch");
  const int factor_head = int(threadIdx.x) / join_batch, factor_chunk = int(threadIdx.x) % join_batch;
  const size_t factor_row = (first_row + factor_head) * chunks + factor_chunk;
  kqm_touch_arguments(a);
  // The launch before is attention_chunks, which leaves the batch alone (kqm_wait_then_release).
  const int used = int(KqmToken(a.batch, t).position / chunk) + 1;
  kqm_wait_for_dependencies();
  kqm_release_dependents();

  // Phase 1: the first batch on its way, and the largest score of each head. What is needed of a batch is asked for at once: the chain's
  // values, and the factor's operands.
  float4 value[join_batch / chains];
  float own_m = kqm_minus_infinity();
  double own_l = 0.0;
  const auto fetch = [&](int begin) {
    if (factor_head < outputs.heads && begin + factor_chunk < used)
      own_m = ws.m[factor_row + begin], own_l = ws.l[factor_row + begin];
    const float *from = o + size_t(begin + chain) * outputs.dim;
    const int count = used - begin - chain;
    KQM_UNROLL
    for (int i = 0; i < join_batch / chains; i++, from += chains * outputs.dim) {
      if (chains * i < count) value[i] = *reinterpret_cast<const float4 *>(from);
    }
  };
  fetch(0);
  if (factor_head < outputs.heads) {
    float m = own_m;
    for (int c = factor_chunk + join_batch; c < used; c += join_batch)
      m = kqm_max_or_nan(m, ws.m[factor_row - factor_chunk + c]);
    KQM_UNROLL
    for (int step = 16; step; step /= 2) m = kqm_max_or_nan(m, __shfl_xor_sync(~0u, m, step));
    if (lane == 0) largest[warp] = m;
  }
  __syncthreads();

  // Phase 2: the chains, a batch of chunks at a time.
  double total = 0.0, sum[4] = {};
  for (int begin = 0; begin < used; begin += join_batch) {
    if (begin) fetch(begin);
    if (factor_head < outputs.heads) {
      float m = kqm_minus_infinity();
      KQM_UNROLL
      for (int w = 0; w < warps_per_head; w++) m = kqm_max_or_nan(m, largest[factor_head * warps_per_head + w]);
      factor[threadIdx.x] = double(kqm_exp(__fsub_rn(own_m, m)));
      weight[threadIdx.x] = own_l;
    }
    __syncthreads();
    KQM_UNROLL
    for (int i = 0; i < join_batch / chains; i++) {
      const int c = chain + chains * i, slot = outputs.own_head * join_batch + c;
      if (begin + c >= used) break;
      const double f = factor[slot];
      total = fma(double(weight[slot]), f, total);
      sum[0] = fma(double(value[i].x), f, sum[0]);
      sum[1] = fma(double(value[i].y), f, sum[1]);
      sum[2] = fma(double(value[i].z), f, sum[2]);
      sum[3] = fma(double(value[i].w), f, sum[3]);
    }
    __syncthreads();
  }
  totals[threadIdx.x] = total;
  KQM_UNROLL
  for (int i = 0; i < 4; i++) sums[chain * KQM_BLOCK + 64 * i + quad] = sum[i];
  __syncthreads();

  // Phase 3: the trees over the chains. Thread 64 i + q has output 4 q + i.
  if (threadIdx.x < KQM_BLOCK) {
    double l, weighted;
    add_chains(totals, sums, quad, l, weighted);
    const int within = 4 * quad + chain, own = outputs.first + within;
    const float y = own < outputs.all ? kqm_canonical(float(weighted * __ddiv_rn(1.0, l))) : 0.0f;
    if (own < outputs.all && a.out) a.out[size_t(t) * outputs.all + own] = y;
    result[within] = y;
  }
  if (!a.fixed) return;
  __syncthreads();
  if (warp != 0) return;
  kqm_quantize_joined(result, 0, a.fixed + size_t(t) * gridDim.x + blockIdx.x);
}

KqmPartials partials(const kqm_attention_args &a, uint64_t tokens) {
  const uint64_t rows = tokens * a.heads * chunks_of(a);
  KqmPartials ws;
  // Widest vectors first.
  ws.o = static_cast<float *>(a.workspace);
  ws.l = reinterpret_cast<double *>(ws.o + rows * a.head_dim);
  ws.m = reinterpret_cast<float *>(ws.l + rows);
  return ws;
}

// Rows of a tile, at most: so many that three CTAs, else two, else one, fit on a multiprocessor.
template <class Tile>
int tile_rows() {
  for (int ctas = Tile::at_once; ctas > 0; ctas--) {
    for (int rows = most_tile_rows; rows > max_group; rows -= max_group) {
      if (ctas * (Tile::bytes(rows) + 1024) <= int(kqm_shared_memory())) return rows;
    }
  }
  return max_group;
}

// The tokens from `first` on in tiles, `at_once` at a time.
template <bool F16, int DIM>
kqm_status launch_tiles(const kqm_attention_args &a, uint64_t first, uint64_t at_once, kqm_stream stream) {
  typedef KqmQueryTile<F16, DIM> Tile;
  const uint32_t row = a.heads * a.head_dim, group = a.heads / a.kv_heads,
                 together = Tile::at_once * kqm_multiprocessors();
  const uint64_t tokens = a.batch.tokens - first;
  uint32_t tile_tokens = tile_rows<Tile>() / group;
  if (at_once > tokens) at_once = tokens;
  // Offsets among the partial results fit into 32 bits.
  const uint64_t most = 0xffffffffu / (uint64_t(row) * chunks_of(a));
  KQM_REQUIRE(most > 0, KQM_BAD_SHAPE);
  if (at_once > most) at_once = most;
  // Smaller tiles where there would be too few of them.
  while (tile_tokens > 1 && kqm_ceil_div(uint32_t(at_once), tile_tokens) * a.kv_heads * chunks_of(a) < together)
    tile_tokens /= 2;
  // Whole tiles.
  if (at_once > tile_tokens && at_once < tokens) at_once -= at_once % tile_tokens;
  const KqmPartials ws = partials(a, at_once);
  for (uint64_t t = first; t < a.batch.tokens; t += at_once) {
    const uint32_t count = uint32_t(a.batch.tokens - t < at_once ? a.batch.tokens - t : at_once),
                   tiles = kqm_ceil_div(count, tile_tokens);
    // Several times as many CTAs as run at once, so that they end together.
    const uint64_t wanted = kqm_ceil_div(uint64_t(tile_rounds) * together, uint64_t(tiles) * a.kv_heads);
    const uint64_t most_parts = chunks_of(a) < max_grid ? chunks_of(a) : max_grid;
    const uint32_t parts = uint32_t(wanted < most_parts ? wanted : most_parts);
    KQM_TRY(KQM_LAUNCH((attention_tiles<F16, DIM>), dim3(a.kv_heads, parts, tiles), dim3(kqm_tile_threads),
                       size_t(Tile::bytes(int(tile_tokens * group))), stream, a, ws, uint32_t(t), count, tile_tokens,
                       group));
    const dim3 grid(kqm_ceil_div(row, uint32_t(KQM_BLOCK)), kqm_ceil_div(count, uint32_t(kqm_join_tokens)));
    KQM_TRY(KQM_LAUNCH(attention_join_tokens, grid, dim3(kqm_join_threads), 0, stream, a, ws, uint32_t(t), count));
  }
  return KQM_OK;
}

// The first `tokens` tokens one at a time, `at_once` in a launch.
template <bool F16, int DIM>
kqm_status launch_singles(const kqm_attention_args &a, uint64_t tokens, uint64_t at_once, kqm_stream stream) {
  const uint64_t chunks = chunks_of(a);
  const uint32_t group = a.heads / a.kv_heads, row = a.heads * a.head_dim;
  const uint32_t ctas = a.kv_heads * kqm_ceil_div(group, uint32_t(quad_heads));
  // As many CTAs as run at once; they stride over the chunks, low ones first.
  const uint64_t strides =
      kqm_ceil_div(Shape<F16, DIM>::at_once * uint64_t(kqm_multiprocessors()), uint64_t(ctas) * tokens);
  const uint32_t grid_chunks = uint32_t(chunks < strides ? chunks : strides);
  const KqmPartials ws = partials(a, at_once);
  for (uint64_t t = 0; t < tokens; t += at_once) {
    const uint32_t count = uint32_t(tokens - t < at_once ? tokens - t : at_once);
    const dim3 grid(ctas, grid_chunks, count);
    KQM_TRY(KQM_LAUNCH((attention_chunks<F16, DIM>), grid, dim3(threads), 0, stream, a, ws, uint32_t(t)));
    KQM_TRY(KQM_LAUNCH(attention_join, dim3(kqm_ceil_div(row, uint32_t(KQM_BLOCK)), count), dim3(join_threads), 0,
                       stream, a, ws, uint32_t(t)));
  }
  return KQM_OK;
}

template <bool F16, int DIM>
kqm_status launch(const kqm_attention_args &a, uint64_t at_once, kqm_stream stream) {
  const uint32_t tokens = a.batch.tokens,
                 singles = tokens - a.batch.singles < least_tile_tokens ? tokens : a.batch.singles;
  const kqm_status status = singles > 0 ? launch_singles<F16, DIM>(a, singles, at_once, stream) : KQM_OK;
  return status == KQM_OK && singles < tokens ? launch_tiles<F16, DIM>(a, singles, at_once, stream) : status;
}

template <bool F16>
kqm_status launch_dim(const kqm_attention_args &a, uint64_t at_once, kqm_stream stream) {
  if (a.head_dim == 64) return launch<F16, 64>(a, at_once, stream);
  if (a.head_dim == 128) return launch<F16, 128>(a, at_once, stream);
  if (a.head_dim == 192) return launch<F16, 192>(a, at_once, stream);
  return launch<F16, 256>(a, at_once, stream);
}

bool same(const kqm_batch &a, const kqm_batch &b) {
  return a.position == b.position && a.sequence == b.sequence && a.pages == b.pages && a.tokens == b.tokens &&
         a.sequences == b.sequences && a.capacity == b.capacity && a.pool_pages == b.pool_pages && a.reach == b.reach;
}

// The fused rope works on the same token, cache and shapes.
kqm_status check_fused(const kqm_attention_args &a) {
  const kqm_rope_args &r = a.rope;
  KQM_TRY(kqm_check_rope(r));
  KQM_REQUIRE(a.batch.tokens == 1 && same(r.batch, a.batch) && r.heads == a.heads && r.kv_heads == a.kv_heads &&
                  r.head_dim == a.head_dim && r.cache_type == a.cache_type && r.k_cache == a.k_cache &&
                  r.v_cache == a.v_cache && r.q_out != r.q,
              KQM_BAD_SHAPE);
  return KQM_OK;
}

}  // namespace

KQM_ABI_BEGIN
uint64_t kqm_attention_workspace(const kqm_attention_args *args) {
  if (args == nullptr) return 0;
  const uint64_t per_token = bytes_per_token(*args);
  if (per_token == 0) return 0;
  const uint64_t at_once = target_workspace / per_token;
  return per_token * (at_once < 1 ? 1 : at_once < args->batch.tokens ? at_once : args->batch.tokens);
}

kqm_status kqm_attention(const kqm_attention_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->k_cache && args->v_cache && args->workspace, KQM_NULL_POINTER);
  KQM_TRY(kqm_check_batch(args->batch));
  KQM_REQUIRE(args->q != nullptr || args->rope.q != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(args->out != nullptr || args->fixed != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(args->cache_type == KQM_TYPE_F32 || args->cache_type == KQM_TYPE_F16, KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->batch.tokens <= 0x7fffffffu && args->kv_heads > 0 && args->heads > 0 &&
                  args->heads <= kqm_max_heads && args->heads % args->kv_heads == 0 &&
                  args->heads / args->kv_heads <= uint32_t(max_group) && args->head_dim > 0 &&
                  args->head_dim % 64 == 0 && args->head_dim <= uint32_t(kqm_max_head_dim),
              KQM_BAD_SHAPE);
  KQM_REQUIRE(!args->follows_qkv || args->rope.q != nullptr, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->q, 16) && kqm_aligned(args->k_cache, 16) && kqm_aligned(args->v_cache, 16) &&
                  kqm_aligned(args->workspace, 16) && kqm_aligned(args->fixed, 16),
              KQM_MISALIGNED);
  if (args->rope.q) KQM_TRY(check_fused(*args));
  uint64_t at_once = args->workspace_bytes / bytes_per_token(*args);
  KQM_REQUIRE(at_once > 0, KQM_WORKSPACE);
  if (at_once > max_grid) at_once = max_grid;
  kqm_attention_args a = *args;
  a.batch = kqm_bounded(a.batch), a.rope.batch = kqm_bounded(a.rope.batch);
  if (a.cache_type == KQM_TYPE_F16) return launch_dim<true>(a, at_once, stream);
  return launch_dim<false>(a, at_once, stream);
}
KQM_ABI_END
