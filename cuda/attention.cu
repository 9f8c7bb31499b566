// attention: causal grouped-query attention over the KV cache.
//
//   out[t, h] = sum_i softmax_i(scale * q[t, h] . k[i, h / group]) v[i, h / group],  i = 0 ..= start + t
//
// Shapes: q [tokens, heads, head_dim], caches [capacity, kv_heads, head_dim] in f32 or f16, out [tokens, heads, head_dim].
// Maths: positions are cut into chunks of 64 counted from 0, whatever the card or the batch. A chunk is reduced in f32, the
// chunks are joined in f64 in ascending order (docs/arithmetic.md), so one query at a time and many give the same bits.
// Launch: attention_chunk, one block of eight warps for a chunk, a KV head and a token, which serves all query heads of the
// group; attention_join, one block for 256 outputs of a token. Blocks stride over the chunks of the capacity and stop at
// the position, which they read from memory: so a captured graph serves every position. For a single token the first kernel can do the work of
// kqm_rope as well.
// Scores: eight lanes share a key, each with an eighth of the dimensions, and four keys and four heads in flight; values: a
// warp has eight positions, a lane head_dim / 32 dimensions. Both read the cache once, straight into registers.
// Bound by: the cache's bytes for long contexts, latency for short ones.
#include "common/exp.cuh"
#include "common/fixed.cuh"
#include "common/rope.cuh"

namespace {

const int chunk = KQM_ATTENTION_CHUNK, warps = 8, threads = 32 * warps, max_group = 16;
const int keys_per_task = 16, positions_per_warp = chunk / warps;
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
  // A word of the cache: two halves, or one float (the second value is not used).
  __device__ __forceinline__ static uint32_t word_of(float x, float y) {
    return HALF ? kqm_float_to_half(x) | uint32_t(kqm_float_to_half(y)) << 16 : __float_as_uint(kqm_canonical(x));
  }
  __device__ __forceinline__ float get(int i) const {
    return HALF ? kqm_half_to_float(uint16_t(word[i / 2] >> (16 * (i % 2)))) : __uint_as_float(word[HALF ? i / 2 : i]);
  }
};

template <bool HALF, int DIM>
__global__ void __launch_bounds__(threads) attention_chunk(kqm_attention_args a, Workspace ws, uint32_t first_token) {
  // Heads whose values are joined at once over the warps.
  const int at_once = DIM <= 128 ? 4 : 2;
  KQM_SHARED(float, query, max_group *DIM);
  KQM_SHARED(float, score, max_group *chunk);
  KQM_SHARED(float, partial, warps *at_once *DIM);
  // The newest k and v as they go to the cache: words of the fused launch's own token.
  KQM_SHARED(uint32_t, newest, 2 * DIM);
  const uint32_t t = first_token + blockIdx.z, kv_head = blockIdx.x;
  const int group = a.heads / a.kv_heads, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, quads = (group + 3) / 4;
  const size_t chunks = (a.capacity + chunk - 1) / chunk, row_stride = size_t(a.kv_heads) * DIM;
  const size_t first_head = size_t(t) * a.heads + size_t(kv_head) * group;
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  const uint32_t position = min(*a.start + t, a.capacity - 1);

  for (uint32_t index = blockIdx.y; index < chunks; index += gridDim.y) {
    const uint32_t begin = index * chunk;
    const int visible = begin > position ? 0 : min(int(position - begin) + 1, chunk);
    if (a.scores && visible < chunk) {
      for (int i = threadIdx.x; i < group * chunk; i += threads) {
        const uint32_t at = begin + i % chunk;
        if (i % chunk >= visible && at < a.capacity) a.scores[(first_head + i / chunk) * a.capacity + at] = minus_infinity();
      }
    }
    if (visible == 0) {
      if (a.scores) continue;
      return;
    }
    const size_t cache_at = begin * row_stride + size_t(kv_head) * DIM;
    // In the fused launch the newest position is not in the cache yet.
    const bool has_newest = a.rope.q && position - begin < uint32_t(chunk);
    const int cached = visible - (has_newest ? 1 : 0);

    // Values are fetched first and used last.
    const int per_lane = DIM / 32;
    Elements<HALF, per_lane> value[positions_per_warp];
    KQM_UNROLL
    for (int i = 0; i < positions_per_warp; i++) {
      const int at = warp * positions_per_warp + i;
      if (at < cached)
        value[i].load(a.v_cache, cache_at + at * row_stride + lane * per_lane);
      else
        value[i].clear();
    }

    // Scores. A task is four heads and sixteen keys; lane 8 k + g has keys k, k + 4, k + 8, k + 12 of it and dimensions
    // g S .. g S + S - 1.
    const int segment = DIM / 8, g = lane & 7;
    const int tasks = quads * (chunk / keys_per_task);
    Elements<HALF, segment> key[4];
    const auto load_keys = [&](int task) {
      KQM_UNROLL
      for (int i = 0; i < 4; i++) {
        const int at = task % (chunk / keys_per_task) * keys_per_task + 4 * i + (lane >> 3);
        if (at < cached)
          key[i].load(a.k_cache, cache_at + at * row_stride + g * segment);
        else
          key[i].clear();
      }
    };
    if (warp < tasks) load_keys(warp);

    // Queries to shared memory, a whole number of four heads. The fused launch makes them here; the block that has the newest
    // position makes its k and v, too, and adds them to the cache.
    if (a.rope.q) {
      for (int i = warp; i < group + (has_newest ? 2 : 0); i += warps) {
        const uint32_t head = i < group ? kv_head * group + i : a.heads + (i == group ? 0 : a.kv_heads) + kv_head;
        const KqmHeadRow row(a.rope, 0, head);
        float y[8] = {};
        if (row.is_v) {
          kqm_load_head(a.rope, row, y);
        } else {
          kqm_rope_head(a.rope, row, position, index == 0 || !row.is_q, kqm_shared_offset(partial, warp * DIM), y);
        }
        if (8 * lane >= DIM) continue;
        if (row.is_q) {
          kqm_shared_store<float4>(query, i * DIM + 8 * lane, make_float4(y[0], y[1], y[2], y[3]));
          kqm_shared_store<float4>(query, i * DIM + 8 * lane + 4, make_float4(y[4], y[5], y[6], y[7]));
          if (index == 0) kqm_store_eight(a.rope.q_out + row.at, lane, y);
        } else {
          kqm_cache_head(a.rope, row, position, y);
          if (!row.is_v && a.rope.k_out) kqm_store_eight(a.rope.k_out + row.at, lane, y);
          KQM_UNROLL
          for (int d = 0; d < 8; d += HALF ? 2 : 1)
            newest[(row.is_v ? DIM : 0) + (8 * lane + d) / (HALF ? 2 : 1)] = Elements<HALF, 2>::word_of(y[d], y[d + (HALF ? 1 : 0)]);
        }
      }
      for (int i = group * DIM + threadIdx.x; i < quads * 4 * DIM; i += threads) query[i] = 0.0f;
    } else {
      for (int i = threadIdx.x; i < quads * 4 * DIM; i += threads)
        query[i] = i < group * DIM ? a.q[first_head * DIM + i] : 0.0f;
    }
    __syncthreads();
    if (has_newest && warp == cached / positions_per_warp) {
      KQM_UNROLL
      for (int i = 0; i < positions_per_warp; i++) {
        if (i == cached % positions_per_warp) value[i].load_shared(newest, DIM + lane * Elements<HALF, per_lane>::words);
      }
    }
    for (int task = warp; task < tasks; task += warps) {
      const int quad = task / (chunk / keys_per_task), first_key = task % (chunk / keys_per_task) * keys_per_task;
      if (task != warp) load_keys(task);
      if (has_newest) {
        KQM_UNROLL
        for (int i = 0; i < 4; i++) {
          if (first_key + 4 * i + (lane >> 3) == cached) key[i].load_shared(newest, g * Elements<HALF, segment>::words);
        }
      }
      float sum[4][4];
      KQM_UNROLL
      for (int d = 0; d < segment; d += 4) {
        KQM_UNROLL
        for (int h = 0; h < 4; h++) {
          const float4 q = kqm_shared_load<float4>(query, (quad * 4 + h) * DIM + g * segment + d);
          KQM_UNROLL
          for (int i = 0; i < 4; i++) {
            sum[i][h] = d == 0 ? __fmul_rn(q.x, key[i].get(d)) : fmaf(q.x, key[i].get(d), sum[i][h]);
            sum[i][h] = fmaf(q.y, key[i].get(d + 1), sum[i][h]);
            sum[i][h] = fmaf(q.z, key[i].get(d + 2), sum[i][h]);
            sum[i][h] = fmaf(q.w, key[i].get(d + 3), sum[i][h]);
          }
        }
      }
      // The tree over the eight lanes of a key. At each step a lane gives away half of its sums and keeps the other half.
      const bool bit0 = g & 1, bit1 = g & 2, bit2 = g & 4;
      float two[2][4], one[4], kept[2];
      KQM_UNROLL
      for (int h = 0; h < 4; h++) {
        KQM_UNROLL
        for (int i = 0; i < 2; i++) {
          const float received = __shfl_xor_sync(~0u, bit0 ? sum[2 * i][h] : sum[2 * i + 1][h], 1);
          two[i][h] = __fadd_rn(bit0 ? sum[2 * i + 1][h] : sum[2 * i][h], received);
        }
        const float received = __shfl_xor_sync(~0u, bit1 ? two[0][h] : two[1][h], 2);
        one[h] = __fadd_rn(bit1 ? two[1][h] : two[0][h], received);
      }
      KQM_UNROLL
      for (int h = 0; h < 2; h++) {
        const float received = __shfl_xor_sync(~0u, bit2 ? one[h] : one[2 + h], 4);
        kept[h] = __fadd_rn(bit2 ? one[2 + h] : one[h], received);
      }
      const int at = first_key + 4 * (g & 3) + (lane >> 3);
      KQM_UNROLL
      for (int h = 0; h < 2; h++) {
        const int head = quad * 4 + (bit2 ? 2 : 0) + h;
        if (head >= group) continue;
        const float s = kqm_canonical(__fmul_rn(kept[h], a.scale));
        score[head * chunk + at] = at < visible ? s : minus_infinity();
        if (a.scores && at < visible) a.scores[(first_head + head) * a.capacity + begin + at] = s;
      }
    }
    __syncthreads();

    // Softmax of the chunk: a warp takes a head, lane l keys 2 l and 2 l + 1.
    const size_t first_row = size_t(blockIdx.z) * a.heads + size_t(kv_head) * group;
    for (int h = warp; h < group; h += warps) {
      const float2 s = kqm_shared_load<float2>(score, h * chunk + 2 * lane);
      float m = max_or_nan(s.x, s.y);
      KQM_UNROLL
      for (int step = 16; step; step /= 2) m = max_or_nan(m, __shfl_xor_sync(~0u, m, step));
      const float p0 = 2 * lane < visible ? kqm_exp(__fsub_rn(s.x, m)) : 0.0f;
      const float p1 = 2 * lane + 1 < visible ? kqm_exp(__fsub_rn(s.y, m)) : 0.0f;
      double l = double(p0) + double(p1);
      KQM_UNROLL
      for (int step = 1; step < 32; step *= 2) l = l + __shfl_xor_sync(~0u, l, step);
      kqm_shared_store<float2>(score, h * chunk + 2 * lane, make_float2(p0, p1));
      if (lane == 0) {
        ws.m[(first_row + h) * chunks + index] = m;
        ws.l[(first_row + h) * chunks + index] = l;
      }
    }
    __syncthreads();

    // Values: each warp's chain over its eight positions, then the tree over the warps.
    for (int first = 0; first < group; first += at_once) {
      KQM_UNROLL
      for (int h = 0; h < at_once; h++) {
        if (first + h >= group) break;
        const int at = (first + h) * chunk + warp * positions_per_warp;
        const float4 p0 = kqm_shared_load<float4>(score, at), p1 = kqm_shared_load<float4>(score, at + 4);
        const float p[8] = {p0.x, p0.y, p0.z, p0.w, p1.x, p1.y, p1.z, p1.w};
        KQM_UNROLL
        for (int d = 0; d < per_lane; d++) {
          float o = __fmul_rn(p[0], value[0].get(d));
          KQM_UNROLL
          for (int i = 1; i < positions_per_warp; i++) o = fmaf(p[i], value[i].get(d), o);
          partial[(warp * at_once + h) * DIM + lane * per_lane + d] = o;
        }
      }
      __syncthreads();
      const int heads = min(at_once, group - first);
      for (int i = threadIdx.x; i < heads * DIM; i += threads) {
        float o[warps];
        KQM_UNROLL
        for (int w = 0; w < warps; w++) o[w] = partial[w * at_once * DIM + i];
        const float low = __fadd_rn(__fadd_rn(o[0], o[1]), __fadd_rn(o[2], o[3]));
        const float high = __fadd_rn(__fadd_rn(o[4], o[5]), __fadd_rn(o[6], o[7]));
        ws.o[((first_row + first + i / DIM) * chunks + index) * DIM + i % DIM] = __fadd_rn(low, high);
      }
      __syncthreads();
    }
  }
}

// Chunks whose partial results a thread of attention_join fetches at once.
const int join_step = 32;

__global__ void __launch_bounds__(threads) attention_join(kqm_attention_args a, Workspace ws, uint32_t first_token) {
  // Of each head of the block (256 outputs are of four heads at most): its chunks' factors.
  const int max_heads = threads / 64;
  KQM_SHARED(float, old_factor, max_heads *join_step);
  KQM_SHARED(float, new_factor, max_heads *join_step);
  KQM_SHARED(double, weight, max_heads *join_step);
  KQM_SHARED(float, largest, max_heads);
  KQM_SHARED(float, result, threads);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, dim = a.head_dim;
  const uint32_t t = first_token + blockIdx.y, begin = blockIdx.x * threads, outputs = a.heads * dim;
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  const uint32_t position = min(*a.start + t, a.capacity - 1);
  const int used = int(position / chunk) + 1;
  const size_t chunks = (a.capacity + chunk - 1) / chunk;

  const uint32_t output = begin + threadIdx.x;
  const bool active = output < outputs;
  const int first_head = int(begin / dim), last_head = int(min(begin + threads, outputs) - 1) / dim;
  const int head = active ? int(output / dim) : first_head;
  const float *o = ws.o + (size_t(blockIdx.y) * a.heads + head) * chunks * dim + output % dim;
  const int factors = (head - first_head) * join_step;

  if (threadIdx.x < max_heads) largest[threadIdx.x] = minus_infinity();
  __syncthreads();
  double total = 0.0, sum = 0.0;
  for (int from = 0; from < used; from += join_step) {
    const int count = min(join_step, used - from);
    float partial[join_step];
    KQM_UNROLL
    for (int i = 0; i < join_step; i++) partial[i] = i < count && active ? o[size_t(from + i) * dim] : 0.0f;
    for (int h = first_head + warp; h <= last_head; h += warps) {
      // Running maximum over the chunks so far, including this lane's.
      const size_t at = (size_t(blockIdx.y) * a.heads + h) * chunks + from + lane;
      const int slot = (h - first_head) * join_step + lane;
      const float before = largest[h - first_head], mine = lane < count ? ws.m[at] : minus_infinity();
      float m = max_or_nan(before, mine);
      KQM_UNROLL
      for (int step = 1; step < 32; step *= 2) {
        const float lower = __shfl_up_sync(~0u, m, step);
        if (lane >= step) m = max_or_nan(m, lower);
      }
      const float up = __shfl_up_sync(~0u, m, 1), last = lane == 0 ? before : up;
      old_factor[slot] = kqm_exp(__fsub_rn(last, m));
      new_factor[slot] = kqm_exp(__fsub_rn(mine, m));
      weight[slot] = lane < count ? ws.l[at] : 0.0;
      __syncwarp();
      if (lane == 31) largest[h - first_head] = m;
    }
    __syncthreads();
    KQM_UNROLL
    for (int i = 0; i < join_step; i++) {
      if (i >= count) break;
      const double old_weight = double(float(old_factor[factors + i]));
      const double new_weight = double(float(new_factor[factors + i]));
      total = fma(total, old_weight, double(weight[factors + i]) * new_weight);
      sum = fma(sum, old_weight, double(partial[i]) * new_weight);
    }
    __syncthreads();
  }
  const float value = kqm_canonical(float(sum * __ddiv_rn(1.0, total)));
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
  // About two blocks for each multiprocessor; blocks stride over the chunks, low ones first.
  const uint64_t strides = kqm_ceil_div(2 * uint64_t(kqm_multiprocessors()), uint64_t(a.kv_heads) * a.tokens);
  const uint32_t grid_chunks = uint32_t(chunks < strides ? chunks : strides);
  Workspace ws;
  ws.l = static_cast<double *>(a.workspace);
  ws.m = reinterpret_cast<float *>(ws.l + at_once * a.heads * chunks);
  ws.o = ws.m + at_once * a.heads * chunks;
  for (uint64_t t = 0; t < a.tokens; t += at_once) {
    const uint32_t count = uint32_t(a.tokens - t < at_once ? a.tokens - t : at_once);
    KQM_TRY(KQM_LAUNCH((attention_chunk<HALF, DIM>), dim3(a.kv_heads, grid_chunks, count), dim3(threads), 0, stream, a,
                       ws, uint32_t(t)));
    KQM_TRY(KQM_LAUNCH(attention_join, dim3(kqm_ceil_div(a.heads * a.head_dim, uint32_t(threads)), count), dim3(threads), 0,
                       stream, a, ws, uint32_t(t)));
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
