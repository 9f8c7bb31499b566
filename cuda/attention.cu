// attention: causal grouped-query attention over the KV cache.
//
//   out[t, h] = sum_i softmax_i(scale * q[t, h] . k[i, h / group]) v[i, h / group],  i = 0 ..= start + t
//
// Shapes: q [tokens, heads, head_dim], caches [capacity, kv_heads, head_dim] in f32 or f16, out [tokens, heads, head_dim].
// Maths: positions are cut into chunks of 64 counted from 0, whatever the card or the batch. A chunk is reduced in f32, the
// chunks are joined in f64 in ascending order (docs/arithmetic.md), so one query at a time and many give the same bits.
// Launch: attention_chunks, one block of eight warps for a chunk, up to four query heads of a KV head, and a token. Blocks stride
// over the chunks of the capacity and stop at the position, which they read from memory: so a captured graph serves every
// position. attention_join, one block for 256 outputs of a token, joins the chunks. (That the last block to finish joins them
// was slower even for few chunks.) For a single token the first kernel can do the work of kqm_rope as well.
// Scores: eight lanes share a key, each with an eighth of the dimensions; values: a warp has eight positions, a lane
// head_dim / 32 dimensions. Both read the cache once, straight into registers.
// Bound by: the cache's bytes for long contexts, latency for short ones.
#include "common/exp.cuh"
#include "common/fixed.cuh"
#include "common/rope.cuh"

namespace {

const int chunk = KQM_ATTENTION_CHUNK, warps = 8, threads = 32 * warps, max_group = 16, block_heads = 4;
const int positions_per_warp = chunk / warps;
// Chunks whose factors are made at once when they are joined, and those whose values a thread fetches at once.
const int join_batch = 128, join_step = 32;
const uint64_t target_workspace = 64ull << 20;

// Partial results, for `tokens` tokens at a time.
struct Workspace {
  double *l;  // [tokens, heads, chunks]
  float *m;   // [tokens, heads, chunks]
  float *o;   // [tokens, heads, chunks, head_dim]
};

uint64_t chunks_of(const kqm_attention_args &a) { return kqm_ceil_div(a.capacity, uint32_t(chunk)); }
uint64_t bytes_per_token(const kqm_attention_args &a) {
  const uint64_t partial = sizeof(double) + sizeof(float) * (1 + uint64_t(a.head_dim));
  return kqm_ceil_div(a.heads * chunks_of(a) * partial, uint64_t(16)) * 16;
}

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }
__device__ __forceinline__ float max_or_nan(float a, float b) {
  return a != a || b != b ? __uint_as_float(0x7fc00000u) : fmaxf(a, b);
}

// N neighbouring elements of a cache row as they are stored, and element i of them as f32.
template <bool HALF, int N>
struct Elements {
  static const int words = N * (HALF ? 2 : 4) / 4;
  uint32_t word[words];

  __device__ __forceinline__ void load(const void *cache, size_t at) {
    const uint32_t *p = reinterpret_cast<const uint32_t *>(static_cast<const uint8_t *>(cache) + at * (HALF ? 2 : 4));
    if (words % 4 == 0) {
      KQM_UNROLL
      for (int i = 0; i < words / 4; i++) {
        const uint4 v = reinterpret_cast<const uint4 *>(p)[i];
        word[4 * i] = v.x, word[4 * i + 1] = v.y, word[4 * i + 2] = v.z, word[4 * i + 3] = v.w;
      }
    } else {
      KQM_UNROLL
      for (int i = 0; i < words; i++) word[i] = p[i];
    }
  }
  __device__ __forceinline__ void clear() {
    KQM_UNROLL
    for (int i = 0; i < words; i++) word[i] = 0;
  }
  // From words of shared memory that word_of made.
  __device__ __forceinline__ void load_shared(KQM_SHARED_ARG(uint32_t) from, int first) {
    KQM_UNROLL
    for (int i = 0; i < words; i++) word[i] = from[first + i];
  }
  __device__ __forceinline__ void select(bool other, const Elements &from) {
    KQM_UNROLL
    for (int i = 0; i < words; i++) word[i] = other ? from.word[i] : word[i];
  }
  // A word of the cache: two halves, or one float (the second value is not used).
  __device__ __forceinline__ static uint32_t word_of(float x, float y) {
    return HALF ? kqm_float_to_half(x) | uint32_t(kqm_float_to_half(y)) << 16 : __float_as_uint(kqm_canonical(x));
  }
  __device__ __forceinline__ float get(int i) const {
    return HALF ? kqm_half_to_float(uint16_t(word[i / 2] >> (16 * (i % 2)))) : __uint_as_float(word[HALF ? 0 : i]);
  }
};

// Blocks at once on a multiprocessor: what the registers for keys and values allow.
template <bool HALF, int DIM>
struct Occupancy {
  static const int blocks = DIM > 128 || !HALF ? 1 : 2;
};

template <bool HALF, int DIM>
__global__ void __launch_bounds__(threads, (Occupancy<HALF, DIM>::blocks)) attention_chunks(kqm_attention_args a, Workspace ws, uint32_t first_token) {
  KQM_SHARED(float, query, block_heads *DIM);
  KQM_SHARED(float, score, block_heads *chunk);
  KQM_SHARED(float, partial, warps *block_heads *DIM);
  // The newest k and v as they go to the cache: words of the fused launch's own token.
  KQM_SHARED(uint32_t, newest, 2 * DIM);
  const int group = a.heads / a.kv_heads, quads = (group + block_heads - 1) / block_heads;
  const uint32_t t = first_token + blockIdx.z, kv_head = blockIdx.x / quads, quad = blockIdx.x % quads;
  const int heads = min(block_heads, group - int(quad) * block_heads), warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const size_t chunks = (a.capacity + chunk - 1) / chunk, row_stride = size_t(a.kv_heads) * DIM;
  const size_t first_of_token = size_t(kv_head) * group + quad * block_heads;
  const size_t first_head = size_t(t) * a.heads + first_of_token, first_row = size_t(blockIdx.z) * a.heads + first_of_token;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  // A token past the capacity gives NaN and leaves the cache alone.
  const uint32_t own_position = *a.start + t, position = min(own_position, a.capacity - 1), used = position / chunk + 1;

  if (a.scores) {
    for (uint32_t at = (blockIdx.y * threads + threadIdx.x) + position + 1; at < a.capacity; at += gridDim.y * threads) {
      for (int h = 0; h < heads; h++) a.scores[(first_head + h) * a.capacity + at] = minus_infinity();
    }
  }
  if (blockIdx.y >= used) return;
  // In the fused launch the newest position is not in the cache yet; the block of its chunk has it.
  const bool makes_newest = a.rope.q && (used - 1) % gridDim.y == blockIdx.y;
  const auto cached_of = [&](uint32_t index) {
    return index + 1 < used ? chunk : int(position - index * chunk) + (a.rope.q ? 0 : 1);
  };

  // Values: warp w has positions 8 w .. 8 w + 7 of the chunk. Keys: lane 8 k + g has keys 8 w + k and 8 w + k + 4, and dimensions
  // g S .. g S + S - 1 of them.
  const int per_lane = DIM / 32, segment = DIM / 8, g = lane & 7;
  Elements<HALF, per_lane> value[positions_per_warp];
  Elements<HALF, segment> key[2];
  const auto load_values = [&](uint32_t index) {
    const size_t from = index * chunk * row_stride + size_t(kv_head) * DIM + lane * per_lane;
    const int cached = cached_of(index);
    KQM_UNROLL
    for (int i = 0; i < positions_per_warp; i++) {
      const int at = warp * positions_per_warp + i;
      if (at < cached)
        value[i].load(a.v_cache, from + at * row_stride);
      else
        value[i].clear();
    }
  };
  const auto load_keys = [&](uint32_t index) {
    const size_t from = index * chunk * row_stride + size_t(kv_head) * DIM + g * segment;
    const int cached = cached_of(index);
    KQM_UNROLL
    for (int i = 0; i < 2; i++) {
      const int at = warp * positions_per_warp + 4 * i + (lane >> 3);
      if (at < cached)
        key[i].load(a.k_cache, from + at * row_stride);
      else
        key[i].clear();
    }
  };
  load_keys(blockIdx.y);
  load_values(blockIdx.y);

  // Queries to shared memory. The fused launch makes them here; the blocks that have the newest position make its k and v, too,
  // and one of them adds them to the cache.
  if (a.rope.q) {
    for (int i = warp; i < heads + (makes_newest ? 2 : 0); i += warps) {
      const uint32_t head = i < heads ? first_of_token + i : a.heads + (i == heads ? 0 : a.kv_heads) + kv_head;
      const KqmHeadRow row(a.rope, 0, head);
      const bool writes = row.is_q ? blockIdx.y == 0 : quad == 0;
      float y[8] = {};
      if (row.is_v)
        kqm_load_head(a.rope, row, y);
      else
        kqm_rope_head(a.rope, row, own_position, writes, 1.0 / DIM, kqm_shared_offset(partial, warp * DIM), y);
      if (8 * lane >= DIM) continue;
      if (row.is_q) {
        kqm_shared_store<float4>(query, i * DIM + 8 * lane, make_float4(y[0], y[1], y[2], y[3]));
        kqm_shared_store<float4>(query, i * DIM + 8 * lane + 4, make_float4(y[4], y[5], y[6], y[7]));
        if (writes) kqm_store_eight(a.rope.q_out + row.at, lane, y);
        continue;
      }
      if (writes) kqm_cache_head(a.rope, row, own_position, y);
      if (writes && !row.is_v && a.rope.k_out) kqm_store_eight(a.rope.k_out + row.at, lane, y);
      const int first = row.is_v ? DIM : 0;
      KQM_UNROLL
      for (int d = 0; d < 8; d += HALF ? 2 : 1)
        newest[first + (8 * lane + d) / (HALF ? 2 : 1)] = Elements<HALF, 2>::word_of(y[d], y[d + (HALF ? 1 : 0)]);
    }
    for (int i = heads * DIM + threadIdx.x; i < block_heads * DIM; i += threads) query[i] = 0.0f;
  } else {
    for (int i = threadIdx.x; i < block_heads * DIM; i += threads) query[i] = i < heads * DIM ? a.q[first_head * DIM + i] : 0.0f;
  }
  __syncthreads();

  for (uint32_t index = blockIdx.y; index < used; index += gridDim.y) {
    const uint32_t begin = index * chunk, next = index + gridDim.y;
    const int visible = min(int(position - begin) + 1, chunk), own = visible - 1 - warp * positions_per_warp;
    if (a.rope.q && index == used - 1 && own >= 0 && own < positions_per_warp) {
      // Selected word by word: an index would put the arrays into memory.
      Elements<HALF, per_lane> newest_value;
      newest_value.load_shared(newest, DIM + lane * Elements<HALF, per_lane>::words);
      KQM_UNROLL
      for (int i = 0; i < positions_per_warp; i++) value[i].select(i == own, newest_value);
      Elements<HALF, segment> newest_key;
      newest_key.load_shared(newest, g * Elements<HALF, segment>::words);
      KQM_UNROLL
      for (int i = 0; i < 2; i++) key[i].select(4 * i + (lane >> 3) == own, newest_key);
    }

    // Scores of two keys and four heads.
    float sum[2][block_heads];
    KQM_UNROLL
    for (int d = 0; d < segment; d += 4) {
      KQM_UNROLL
      for (int h = 0; h < block_heads; h++) {
        const float4 q = kqm_shared_load<float4>(query, h * DIM + g * segment + d);
        KQM_UNROLL
        for (int i = 0; i < 2; i++) {
          sum[i][h] = d == 0 ? __fmul_rn(q.x, key[i].get(d)) : fmaf(q.x, key[i].get(d), sum[i][h]);
          sum[i][h] = fmaf(q.y, key[i].get(d + 1), sum[i][h]);
          sum[i][h] = fmaf(q.z, key[i].get(d + 2), sum[i][h]);
          sum[i][h] = fmaf(q.w, key[i].get(d + 3), sum[i][h]);
        }
      }
    }
    // The next chunk's keys arrive during the rest of this one, its values from the end of this one on.
    if (next < used) load_keys(next);
    // The tree over the eight lanes of a key. At each step a lane gives away half of its sums and keeps the other half.
    const bool bit0 = g & 1, bit1 = g & 2, bit2 = g & 4;
    float four[4], two[2];
    KQM_UNROLL
    for (int h = 0; h < 4; h++) {
      const float received = __shfl_xor_sync(~0u, bit0 ? sum[0][h] : sum[1][h], 1);
      four[h] = __fadd_rn(bit0 ? sum[1][h] : sum[0][h], received);
    }
    KQM_UNROLL
    for (int h = 0; h < 2; h++) {
      const float received = __shfl_xor_sync(~0u, bit1 ? four[h] : four[2 + h], 2);
      two[h] = __fadd_rn(bit1 ? four[2 + h] : four[h], received);
    }
    const float received = __shfl_xor_sync(~0u, bit2 ? two[0] : two[1], 4);
    const float dot = __fadd_rn(bit2 ? two[1] : two[0], received);
    const int own_key = warp * positions_per_warp + (bit0 ? 4 : 0) + (lane >> 3), own_head = (bit1 ? 2 : 0) + (bit2 ? 1 : 0);
    if (own_head < heads) {
      const float s = kqm_canonical(__fmul_rn(dot, a.scale));
      score[own_head * chunk + own_key] = own_key < visible ? s : minus_infinity();
      if (a.scores && own_key < visible) a.scores[(first_head + own_head) * a.capacity + begin + own_key] = s;
    }
    __syncthreads();

    // Softmax of the chunk: a warp takes a head, lane l keys 2 l and 2 l + 1.
    if (warp < heads) {
      const float2 s = kqm_shared_load<float2>(score, warp * chunk + 2 * lane);
      float m = max_or_nan(s.x, s.y);
      KQM_UNROLL
      for (int step = 16; step; step /= 2) m = max_or_nan(m, __shfl_xor_sync(~0u, m, step));
      const float p0 = 2 * lane < visible ? kqm_exp(__fsub_rn(s.x, m)) : 0.0f;
      const float p1 = 2 * lane + 1 < visible ? kqm_exp(__fsub_rn(s.y, m)) : 0.0f;
      kqm_shared_store<float2>(score, warp * chunk + 2 * lane, make_float2(p0, p1));
      const double l = kqm_tree_warp(double(p0) + double(p1));
      if (lane == 0) {
        ws.m[(first_row + warp) * chunks + index] = m;
        ws.l[(first_row + warp) * chunks + index] = l;
      }
    }
    __syncthreads();

    // Values: each warp's chain over its eight positions, then the tree over the warps.
    KQM_UNROLL
    for (int h = 0; h < block_heads; h++) {
      if (h >= heads) continue;
      const int at = h * chunk + warp * positions_per_warp;
      const float4 p0 = kqm_shared_load<float4>(score, at), p1 = kqm_shared_load<float4>(score, at + 4);
      const float p[8] = {p0.x, p0.y, p0.z, p0.w, p1.x, p1.y, p1.z, p1.w};
      KQM_UNROLL
      for (int d = 0; d < per_lane; d++) {
        float o = __fmul_rn(p[0], value[0].get(d));
        KQM_UNROLL
        for (int i = 1; i < positions_per_warp; i++) o = fmaf(p[i], value[i].get(d), o);
        partial[(warp * block_heads + h) * DIM + lane * per_lane + d] = o;
      }
    }
    if (next < used) load_values(next);
    __syncthreads();
    for (int i = threadIdx.x; i < heads * DIM; i += threads) {
      float o[warps];
      KQM_UNROLL
      for (int w = 0; w < warps; w++) o[w] = partial[w * block_heads * DIM + i];
      const float low = __fadd_rn(__fadd_rn(o[0], o[1]), __fadd_rn(o[2], o[3]));
      const float high = __fadd_rn(__fadd_rn(o[4], o[5]), __fadd_rn(o[6], o[7]));
      ws.o[((first_row + i / DIM) * chunks + index) * DIM + i % DIM] = __fadd_rn(low, high);
    }
  }
}

__global__ void __launch_bounds__(threads) attention_join(kqm_attention_args a, Workspace ws, uint32_t first_token) {
  // Of each of the block's heads (256 outputs are of four at most) and chunk: the factor of what was joined before, that of the
  // chunk's own values, and its weight.
  const int most_heads = threads / 64;
  KQM_SHARED(double, old_factor, most_heads *join_batch);
  KQM_SHARED(double, new_factor, most_heads *join_batch);
  KQM_SHARED(double, weight, most_heads *join_batch);
  KQM_SHARED(float, result, threads);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, dim = a.head_dim, outputs = int(a.heads) * dim;
  const int output = int(blockIdx.x) * threads + int(threadIdx.x), last_output = min(int(blockIdx.x + 1) * threads, outputs) - 1;
  const bool active = output < outputs;
  const int first_head = int(blockIdx.x) * threads / dim, heads = last_output / dim - first_head + 1;
  const size_t chunks = (a.capacity + chunk - 1) / chunk, first_row = size_t(blockIdx.y) * a.heads;
  const float *o = ws.o + (first_row + (active ? output : 0) / dim) * chunks * dim + output % dim;
  const uint32_t t = first_token + blockIdx.y;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const int used = int(min(*a.start + t, a.capacity - 1) / chunk) + 1;

  double total = 0.0, sum = 0.0;
  float largest = minus_infinity();  // of warp h's head so far
  for (int begin = 0; begin < used; begin += join_batch) {
    const int count = min(join_batch, used - begin);
    float value[join_step];
    const auto fetch = [&](int from) {
      KQM_UNROLL
      for (int i = 0; i < join_step; i++) value[i] = from + i < count && active ? o[size_t(begin + from + i) * dim] : 0.0f;
    };
    fetch(0);
    if (warp < heads) {
      for (int from = 0; from < count; from += 32) {
        // Running maximum over the chunks so far, including this lane's.
        const size_t at = (first_row + first_head + warp) * chunks + begin + from + lane;
        const bool present = from + lane < count;
        const float mine = present ? ws.m[at] : minus_infinity();
        const double own_weight = present ? ws.l[at] : 0.0;
        float m = max_or_nan(largest, mine);
        KQM_UNROLL
        for (int step = 1; step < 32; step *= 2) {
          const float lower = __shfl_up_sync(~0u, m, step);
          if (lane >= step) m = max_or_nan(m, lower);
        }
        const float up = __shfl_up_sync(~0u, m, 1), last = lane == 0 ? largest : up;
        const int slot = warp * join_batch + from + lane;
        const double own_factor = double(kqm_exp(__fsub_rn(mine, m)));
        old_factor[slot] = double(kqm_exp(__fsub_rn(last, m)));
        new_factor[slot] = own_factor;
        weight[slot] = own_weight * own_factor;
        largest = __shfl_sync(~0u, m, 31);
      }
    }
    __syncthreads();
    const int first_slot = ((active ? output : 0) / dim - (active ? first_head : 0)) * join_batch;
    for (int from = 0; from < count; from += join_step) {
      if (from) fetch(from);
      KQM_UNROLL
      for (int i = 0; i < join_step; i++) {
        if (from + i >= count || !active) continue;
        const double old = old_factor[first_slot + from + i];
        total = fma(total, old, double(weight[first_slot + from + i]));
        sum = fma(sum, old, double(value[i]) * double(new_factor[first_slot + from + i]));
      }
    }
    __syncthreads();
  }
  const float value = active ? kqm_canonical(float(sum * __ddiv_rn(1.0, total))) : 0.0f;
  if (active && a.out) a.out[size_t(t) * outputs + output] = value;
  if (!a.fixed) return;
  result[threadIdx.x] = value;
  __syncthreads();
  if (warp != 0) return;
  const float4 x0 = kqm_shared_load<float4>(result, 8 * lane), x1 = kqm_shared_load<float4>(result, 8 * lane + 4);
  const float x[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
  kqm_quantize_warp(x, a.fixed + size_t(t) * (outputs / KQM_BLOCK) + blockIdx.x);
}

template <bool HALF, int DIM>
kqm_status launch(const kqm_attention_args &a, uint64_t at_once, kqm_stream stream) {
  const uint64_t chunks = chunks_of(a);
  const uint32_t group = a.heads / a.kv_heads, row = a.heads * a.head_dim;
  const uint32_t blocks = a.kv_heads * kqm_ceil_div(group, uint32_t(block_heads));
  // As many blocks as run at once; they stride over the chunks, low ones first.
  const uint64_t strides =
      kqm_ceil_div(Occupancy<HALF, DIM>::blocks * uint64_t(kqm_multiprocessors()), uint64_t(blocks) * a.tokens);
  const uint32_t grid_chunks = uint32_t(chunks < strides ? chunks : strides);
  Workspace ws;
  ws.l = static_cast<double *>(a.workspace);
  ws.m = reinterpret_cast<float *>(ws.l + at_once * a.heads * chunks);
  ws.o = ws.m + at_once * a.heads * chunks;
  for (uint64_t t = 0; t < a.tokens; t += at_once) {
    const uint32_t count = uint32_t(a.tokens - t < at_once ? a.tokens - t : at_once);
    const dim3 grid(blocks, grid_chunks, count);
    KQM_TRY(KQM_LAUNCH((attention_chunks<HALF, DIM>), grid, dim3(threads), 0, stream, a, ws, uint32_t(t)));
    KQM_TRY(KQM_LAUNCH(attention_join, dim3(kqm_ceil_div(row, uint32_t(threads)), count), dim3(threads), 0, stream, a, ws,
                       uint32_t(t)));
  }
  return KQM_OK;
}

template <bool HALF>
kqm_status launch_dim(const kqm_attention_args &a, uint64_t at_once, kqm_stream stream) {
  if (a.head_dim == 64) return launch<HALF, 64>(a, at_once, stream);
  if (a.head_dim == 128) return launch<HALF, 128>(a, at_once, stream);
  if (a.head_dim == 192) return launch<HALF, 192>(a, at_once, stream);
  return launch<HALF, 256>(a, at_once, stream);
}

// The fused rope works on the same token, cache and shapes.
kqm_status check_fused(const kqm_attention_args &a) {
  const kqm_rope_args &r = a.rope;
  KQM_TRY(kqm_check_rope(r));
  KQM_REQUIRE(a.tokens == 1 && r.tokens == 1 && r.heads == a.heads && r.kv_heads == a.kv_heads &&
                  r.head_dim == a.head_dim && r.capacity == a.capacity && r.cache_type == a.cache_type &&
                  r.start == a.start && r.k_cache == a.k_cache && r.v_cache == a.v_cache && r.q_out != r.q,
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
  return per_token * (at_once < 1 ? 1 : at_once < args->tokens ? at_once : args->tokens);
}

kqm_status kqm_attention(const kqm_attention_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->k_cache && args->v_cache && args->start && args->workspace, KQM_NULL_POINTER);
  KQM_REQUIRE(args->q != nullptr || args->rope.q != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(args->out != nullptr || args->fixed != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(args->cache_type == KQM_TYPE_F32 || args->cache_type == KQM_TYPE_F16, KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->tokens > 0 && args->capacity > 0 && args->kv_heads > 0 && args->kv_heads <= 65535 &&
                  args->heads % args->kv_heads == 0 && args->heads / args->kv_heads >= 1 &&
                  args->heads / args->kv_heads <= uint32_t(max_group) && args->head_dim > 0 && args->head_dim % 64 == 0 &&
                  args->head_dim <= uint32_t(kqm_max_head_dim),
              KQM_BAD_SHAPE);
  KQM_REQUIRE(args->fixed == nullptr || args->heads * args->head_dim % KQM_BLOCK == 0, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->q, 16) && kqm_aligned(args->k_cache, 16) && kqm_aligned(args->v_cache, 16) &&
                  kqm_aligned(args->workspace, 16) && kqm_aligned(args->fixed, 16),
              KQM_MISALIGNED);
  if (args->rope.q) KQM_TRY(check_fused(*args));
  uint64_t at_once = args->workspace_bytes / bytes_per_token(*args);
  KQM_REQUIRE(at_once > 0, KQM_WORKSPACE);
  if (at_once > 65535) at_once = 65535;
  if (args->cache_type == KQM_TYPE_F16) return launch_dim<true>(*args, at_once, stream);
  return launch_dim<false>(*args, at_once, stream);
}
KQM_ABI_END
