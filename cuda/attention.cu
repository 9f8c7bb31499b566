// attention: causal grouped-query attention over the KV cache.
//
//   out[t, h] = sum_i softmax_i(scale * q[t, h] . k[i, h / group]) v[i, h / group],  i = 0 ..= start + t
//
// Shapes: q [tokens, heads, head_dim], caches [capacity, kv_heads, head_dim] in f32 or f16, out [tokens, heads, head_dim].
// Maths: positions are cut into chunks of 64 counted from 0, whatever the card or the batch. A chunk is reduced in f32, the
// chunks are joined in f64 in ascending order (docs/arithmetic.md), so one query at a time and many give the same bits.
// Launch: attention_chunk, one block of 256 threads for a chunk, a KV head and a token, which serves all query heads of the
// group; attention_join, one block for 256 outputs of a token. The grid covers the capacity, blocks past the position
// leave at once: so a captured graph serves every position.
// Bound by: the cache's bytes for long contexts, latency for short ones.
#include "common/check.cuh"
#include "common/exp.cuh"
#include "common/fixed.cuh"

namespace {

const int chunk = KQM_ATTENTION_CHUNK, threads = 256, max_head_dim = 256, max_group = 16;
// Dimensions that are staged in shared memory at once, and the row's length there: 16 bytes more than the data, so that
// neighbouring rows start in other banks.
const int piece = 64, piece_row = piece + 4;
const int slots = threads / chunk;
const uint64_t target_workspace = 64ull << 20;

// Partial results, for `tokens` tokens at a time.
struct Workspace {
  double *l;  // [tokens, heads, chunks]
  float *m;   // [tokens, heads, chunks]
  float *o;   // [tokens, heads, chunks, head_dim]
};

uint64_t chunks_of(const kqm_attention_args &a) { return kqm_ceil_div(a.capacity, uint32_t(chunk)); }
uint64_t bytes_per_token(const kqm_attention_args &a) {
  return kqm_ceil_div(uint64_t(a.heads) * chunks_of(a) * (sizeof(double) + sizeof(float) * (1 + uint64_t(a.head_dim))),
                      uint64_t(16)) * 16;
}

__device__ __forceinline__ float max_or_nan(float a, float b) {
  return a != a || b != b ? __uint_as_float(0x7fc00000u) : fmaxf(a, b);
}

// Four neighbouring elements of a cache row as f32.
__device__ __forceinline__ float4 load_cache(const void *cache, uint32_t type, size_t at) {
  if (type == KQM_TYPE_F32) return *reinterpret_cast<const float4 *>(static_cast<const float *>(cache) + at);
  const uint2 words = *reinterpret_cast<const uint2 *>(static_cast<const uint16_t *>(cache) + at);
  return make_float4(kqm_half_to_float(uint16_t(words.x)), kqm_half_to_float(uint16_t(words.x >> 16)),
                     kqm_half_to_float(uint16_t(words.y)), kqm_half_to_float(uint16_t(words.y >> 16)));
}

// H query heads of the group for each thread: slot, slot + 4, ...
template <int H>
__global__ void __launch_bounds__(threads) attention_chunk(kqm_attention_args a, Workspace ws, uint32_t first_token) {
  KQM_SHARED(float, stage, chunk *piece_row);
  KQM_SHARED(float, query, slots *H *max_head_dim);
  KQM_SHARED(float, score, slots *H *chunk);
  const uint32_t t = first_token + blockIdx.z, kv_head = blockIdx.y, begin = blockIdx.x * chunk;
  const int group = a.heads / a.kv_heads, dim = a.head_dim, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  const uint32_t position = min(*a.start + t, a.capacity - 1);
  const size_t first_head = size_t(t) * a.heads + size_t(kv_head) * group;
  const int visible = begin > position ? 0 : min(int(position - begin) + 1, chunk);
  if (a.scores && visible < chunk) {
    for (int i = threadIdx.x; i < group * chunk; i += threads) {
      const uint32_t at = begin + i % chunk;
      if (i % chunk >= visible && at < a.capacity)
        a.scores[(first_head + i / chunk) * a.capacity + at] = __uint_as_float(0xff800000u);
    }
  }
  if (visible == 0) return;

  const size_t row_stride = size_t(a.kv_heads) * dim, cache_at = begin * row_stride + size_t(kv_head) * dim;
  const int pieces = (dim + piece - 1) / piece;
  // Thread's share of a piece: 64 rows of 16 quads, four to a thread.
  float4 share[4];
  const auto load_piece = [&](int n) {
    const void *cache = n < pieces ? a.k_cache : a.v_cache;
    const int from = (n < pieces ? n : n - pieces) * piece;
    KQM_UNROLL
    for (int i = 0; i < 4; i++) {
      const int row = (threadIdx.x + i * threads) / 16, d = from + 4 * (threadIdx.x % 16);
      share[i] = row < visible && d < dim ? load_cache(cache, a.cache_type, cache_at + row * row_stride + d)
                                          : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
  };
  const auto store_piece = [&]() {
    KQM_UNROLL
    for (int i = 0; i < 4; i++)
      kqm_shared_store<float4>(stage, (threadIdx.x + i * threads) / 16 * piece_row + 4 * (threadIdx.x % 16), share[i]);
  };

  load_piece(0);
  for (int i = threadIdx.x; i < group * dim; i += threads) query[i] = a.q[first_head * dim + i];

  // Scores: thread (slot, key) makes the dot products of its key with H queries, in four interleaved fma chains each.
  const int key = threadIdx.x % chunk, slot = threadIdx.x / chunk;
  float sum[H][4] = {};
  for (int n = 0; n < pieces; n++) {
    store_piece();
    __syncthreads();
    load_piece(n + 1);
    const int width = min(piece, dim - n * piece);
    for (int d = 0; d < width; d += 4) {
      const float4 k = kqm_shared_load<float4>(stage, key * piece_row + d);
      KQM_UNROLL
      for (int i = 0; i < H; i++) {
        if (slot + slots * i >= group) break;
        const float4 q = kqm_shared_load<float4>(query, (slot + slots * i) * dim + n * piece + d);
        if (n == 0 && d == 0) {
          sum[i][0] = __fmul_rn(q.x, k.x);
          sum[i][1] = __fmul_rn(q.y, k.y);
          sum[i][2] = __fmul_rn(q.z, k.z);
          sum[i][3] = __fmul_rn(q.w, k.w);
        } else {
          sum[i][0] = fmaf(q.x, k.x, sum[i][0]);
          sum[i][1] = fmaf(q.y, k.y, sum[i][1]);
          sum[i][2] = fmaf(q.z, k.z, sum[i][2]);
          sum[i][3] = fmaf(q.w, k.w, sum[i][3]);
        }
      }
    }
    __syncthreads();
  }
  KQM_UNROLL
  for (int i = 0; i < H; i++) {
    const int h = slot + slots * i;
    if (h >= group) break;
    const float dot = __fadd_rn(__fadd_rn(sum[i][0], sum[i][1]), __fadd_rn(sum[i][2], sum[i][3]));
    const float s = kqm_canonical(__fmul_rn(dot, a.scale));
    score[h * chunk + key] = key < visible ? s : __uint_as_float(0xff800000u);
    if (a.scores && key < visible) a.scores[(first_head + h) * a.capacity + begin + key] = s;
  }
  __syncthreads();

  // Softmax of the chunk: a warp takes a head, lane l keys 2 l and 2 l + 1.
  const size_t chunks = (a.capacity + chunk - 1) / chunk;
  for (int h = warp; h < group; h += threads / 32) {
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
      const size_t at = (size_t(blockIdx.z) * a.heads + size_t(kv_head) * group + h) * chunks + blockIdx.x;
      ws.m[at] = m;
      ws.l[at] = l;
    }
  }

  // Values: thread (slot, dimension of the piece) sums over keys for H heads.
  const int within = threadIdx.x % piece;
  for (int n = 0; n < pieces; n++) {
    store_piece();
    __syncthreads();
    if (n + 1 < pieces) load_piece(pieces + n + 1);
    float o[H];
    for (int i = 0; i < visible; i++) {
      const float v = stage[i * piece_row + within];
      KQM_UNROLL
      for (int j = 0; j < H; j++) {
        if (slot + slots * j >= group) break;
        const float p = score[(slot + slots * j) * chunk + i];
        o[j] = i == 0 ? __fmul_rn(p, v) : fmaf(p, v, o[j]);
      }
    }
    KQM_UNROLL
    for (int j = 0; j < H; j++) {
      const int h = slot + slots * j;
      if (h >= group || n * piece + within >= dim) break;
      const size_t head = size_t(blockIdx.z) * a.heads + size_t(kv_head) * group + h;
      ws.o[(head * chunks + blockIdx.x) * dim + n * piece + within] = o[j];
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(threads) attention_join(kqm_attention_args a, Workspace ws, uint32_t first_token) {
  // Of each head of the block (at most threads / 8): its chunks' factors, 32 chunks at a time.
  KQM_SHARED(float, old_factor, threads / 8 * 32);
  KQM_SHARED(float, new_factor, threads / 8 * 32);
  KQM_SHARED(float, largest, threads / 8);
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
  const size_t row = size_t(blockIdx.y) * a.heads + head;
  const float *o = ws.o + row * chunks * dim + output % dim;
  const double *l = ws.l + row * chunks;

  if (threadIdx.x < threads / 8) largest[threadIdx.x] = __uint_as_float(0xff800000u);
  __syncthreads();
  double total = 0.0, sum = 0.0;
  for (int from = 0; from < used; from += 32) {
    for (int h = first_head + warp; h <= last_head; h += threads / 32) {
      // Running maximum over the chunks so far, including this lane's.
      const float before = largest[h - first_head];
      const float mine = from + lane < used ? ws.m[(size_t(blockIdx.y) * a.heads + h) * chunks + from + lane]
                                            : __uint_as_float(0xff800000u);
      float m = max_or_nan(before, mine);
      KQM_UNROLL
      for (int step = 1; step < 32; step *= 2) {
        const float lower = __shfl_up_sync(~0u, m, step);
        if (lane >= step) m = max_or_nan(m, lower);
      }
      const float up = __shfl_up_sync(~0u, m, 1), last = lane == 0 ? before : up;
      old_factor[(h - first_head) * 32 + lane] = kqm_exp(__fsub_rn(last, m));
      new_factor[(h - first_head) * 32 + lane] = kqm_exp(__fsub_rn(mine, m));
      __syncwarp();
      if (lane == 31) largest[h - first_head] = m;
    }
    __syncthreads();
    const int count = min(32, used - from);
    for (int i = 0; i < count && active; i++) {
      const double old_weight = double(float(old_factor[(head - first_head) * 32 + i]));
      const double new_weight = double(float(new_factor[(head - first_head) * 32 + i]));
      total = fma(total, old_weight, l[from + i] * new_weight);
      sum = fma(sum, old_weight, double(o[size_t(from + i) * dim]) * new_weight);
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

template <int H>
kqm_status launch(const kqm_attention_args &a, uint64_t at_once, kqm_stream stream) {
  const uint64_t chunks = chunks_of(a);
  Workspace ws;
  ws.l = static_cast<double *>(a.workspace);
  ws.m = reinterpret_cast<float *>(ws.l + at_once * a.heads * chunks);
  ws.o = ws.m + at_once * a.heads * chunks;
  for (uint64_t t = 0; t < a.tokens; t += at_once) {
    const uint32_t count = uint32_t(a.tokens - t < at_once ? a.tokens - t : at_once);
    KQM_TRY(KQM_LAUNCH(attention_chunk<H>, dim3(uint32_t(chunks), a.kv_heads, count), dim3(threads), 0, stream, a, ws,
                       uint32_t(t)));
    KQM_TRY(KQM_LAUNCH(attention_join, dim3(kqm_ceil_div(a.heads * a.head_dim, uint32_t(threads)), count), dim3(threads), 0,
                       stream, a, ws, uint32_t(t)));
  }
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
  KQM_REQUIRE(args != nullptr && args->q && args->k_cache && args->v_cache && args->start && args->workspace,
              KQM_NULL_POINTER);
  KQM_REQUIRE(args->out != nullptr || args->fixed != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(args->cache_type == KQM_TYPE_F32 || args->cache_type == KQM_TYPE_F16, KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->tokens > 0 && args->capacity > 0 && args->kv_heads > 0 && args->kv_heads <= 65535 &&
                  args->heads % args->kv_heads == 0 && args->heads / args->kv_heads >= 1 &&
                  args->heads / args->kv_heads <= max_group && args->head_dim > 0 && args->head_dim % 8 == 0 &&
                  args->head_dim <= max_head_dim,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(args->fixed == nullptr || args->heads * args->head_dim % KQM_BLOCK == 0, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->q, 16) && kqm_aligned(args->k_cache, 16) && kqm_aligned(args->v_cache, 16) &&
                  kqm_aligned(args->workspace, 16) && kqm_aligned(args->fixed, 16),
              KQM_MISALIGNED);
  uint64_t at_once = args->workspace_bytes / bytes_per_token(*args);
  KQM_REQUIRE(at_once > 0, KQM_WORKSPACE);
  if (at_once > 65535) at_once = 65535;
  const uint32_t group = args->heads / args->kv_heads;
  if (group <= 4) return launch<1>(*args, at_once, stream);
  if (group <= 8) return launch<2>(*args, at_once, stream);
  return launch<4>(*args, at_once, stream);
}
KQM_ABI_END
