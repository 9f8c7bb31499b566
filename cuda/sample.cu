// sample: draws a token of each row of logits, or takes the largest one: repetition penalty, temperature, top-k, top-p and min-p, as
// docs/arithmetic.md defines them.
//
// Shapes: x [rows, cols], sampling, position, out [rows], history [rows, history_len]. `state` is zero before the first call.
// Maths: a token's weight is an integer, so every sum is exact and has no order. What top-k and top-p keep are the first tokens by
// (logit, id) until a sum of tokens or weights reaches a limit. The last of them is found digit by digit: the order key of its logit has four of 8
// bits, and the sums of each digit's 256 values say which one it has. Of those with its logit the lowest ids are kept.
// Launch: ten grids of CTAs of 256 threads over KQM_SAMPLE_PART values each: the largest logit; four digits of top-k, and four of top-p, which
// return at once for rows that have none; the draw. In each the last CTA of a row to finish goes on with what all found.
// Bound by: latency. A row of a vocabulary of 151,936 is 0.6 MB, each time from L2. By estimate a grid takes 4 us, one that counts much 10, and
// one that returns at once 2: 25 us for a row without top-k and top-p, 100 with both, and little more for sixteen.
#include "common/check.cuh"
#include "common/exp.cuh"

namespace {

typedef unsigned long long u64;
const int threads = 256, per_thread = KQM_SAMPLE_PART / threads;
const uint32_t no_choice = 0xffffffffu;

// A part of a row, and how a token of it is drawn.
struct Part {
  const float *x;
  uint32_t begin, end;
  float largest;
  kqm_sampling sampling;
};

__device__ __forceinline__ bool makes_sense(const kqm_sampling &s, uint32_t history_len) {
  return s.temperature >= 0.0f && s.temperature - s.temperature == 0.0f && s.top_p >= 0.0f && s.top_p <= 1.0f &&
         s.min_p >= 0.0f && s.min_p <= 1.0f && s.penalty > 0.0f && s.penalty - s.penalty == 0.0f &&
         s.window <= history_len;
}

__device__ __forceinline__ uint32_t history_at(u64 position, uint32_t history_len) {
  return uint32_t(position % history_len);
}

// Counts how often each token of the part is in the window. All threads.
__device__ __forceinline__ void list_window(const kqm_sample_args &a, uint32_t row, const Part &part,
                                            KQM_SHARED_ARG(uint32_t) listed) {
  const kqm_sampling &s = part.sampling;
  if (s.penalty == 1.0f || s.window == 0) return;
  for (uint32_t i = threadIdx.x; i < KQM_SAMPLE_PART; i += threads) listed[i] = 0;
  __syncthreads();
  const u64 position = a.position[row];
  for (u64 back = threadIdx.x; back < s.window && back <= position; back += threads) {
    // The token at a position was chosen from the logits of the one before.
    const uint32_t at = history_at(position - back + a.history_len - 1, a.history_len);
    const uint32_t token = a.history[size_t(row) * a.history_len + at];
    if (token >= part.begin && token < part.end) kqm_shared_atomic_add<uint32_t>(listed, token - part.begin, 1u);
  }
  __syncthreads();
}

__device__ __forceinline__ float logit_of(const Part &part, KQM_SHARED_ARG(uint32_t) listed, uint32_t i) {
  const kqm_sampling &s = part.sampling;
  const float x = part.x[i];
  if (s.penalty == 1.0f || s.window == 0 || listed[i - part.begin] == 0) return x;
  return x > 0.0f ? __fdiv_rn(x, s.penalty) : __fmul_rn(x, s.penalty);
}

// Next to that of the largest logit.
__device__ __forceinline__ float probability(const Part &part, float logit) {
  return kqm_exp(__fdiv_rn(__fsub_rn(logit, part.largest), part.sampling.temperature));
}
__device__ __forceinline__ u64 weight_of(float probability) { return u64(__fmul_rn(probability, 4294967296.0f)); }

// The high half of a product.
__device__ __forceinline__ u64 high_product(u64 a, u64 b) {
  const u64 a_low = uint32_t(a), a_high = a >> 32, b_low = uint32_t(b), b_high = b >> 32;
  const u64 middle = a_high * b_low + (a_low * b_low >> 32), other = a_low * b_high + uint32_t(middle);
  return a_high * b_high + (middle >> 32) + (other >> 32);
}

// The first two words of Philox4x32-10.
__device__ __forceinline__ u64 random_bits(u64 seed, u64 position) {
  uint32_t c0 = uint32_t(position), c1 = uint32_t(position >> 32), c2 = 0, c3 = 0;
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  KQM_UNROLL
  for (int round = 0; round < 10; round++) {
    const u64 left = u64(0xd2511f53u) * c0, right = u64(0xcd9e8d57u) * c2;
    c0 = uint32_t(right >> 32) ^ c1 ^ key0, c1 = uint32_t(right);
    c2 = uint32_t(left >> 32) ^ c3 ^ key1, c3 = uint32_t(left);
    key0 += 0x9e3779b9u, key1 += 0xbb67ae85u;
  }
  return u64(c1) << 32 | c0;
}

// What the threads before this one have, and what all have. All threads.
struct Before {
  u64 before, all;
};
__device__ __forceinline__ Before sum_before(u64 own, KQM_SHARED_ARG(u64) of_warp) {
  u64 sum = own;
  KQM_UNROLL
  for (unsigned step = 1; step < 32; step *= 2) {
    const u64 other = __shfl_up_sync(~0u, sum, step);
    if (threadIdx.x % 32 >= step) sum += other;
  }
  if (threadIdx.x % 32 == 31) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  Before found = {sum - own, 0};
  for (unsigned warp = 0; warp < threads / 32; warp++) {
    const u64 warps = of_warp[warp];
    if (warp < threadIdx.x / 32) found.before += warps;
    found.all += warps;
  }
  __syncthreads();
  return found;
}

// Whether this CTA is the last one of its row to get here: what the others wrote is visible then. All threads.
__device__ __forceinline__ bool is_last(kqm_sample_state &state, KQM_SHARED_ARG(uint32_t) last) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last[0] = atomicAdd(&state.done, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last[0]) return false;
  __threadfence();
  if (threadIdx.x == 0) state.done = 0;
  return true;
}

__device__ __forceinline__ void finish(const kqm_sample_args &a, uint32_t row, uint32_t token) {
  a.out[row] = token;
  if (!a.advance) return;
  const uint32_t position = a.position[row];
  if (a.history_len != 0) a.history[size_t(row) * a.history_len + history_at(position, a.history_len)] = token;
  a.position[row] = position + 1;
}

__device__ __forceinline__ Part part_of(const kqm_sample_args &a, uint32_t row, uint32_t number, float largest) {
  Part part;
  part.x = a.x + size_t(row) * a.cols;
  part.begin = number * KQM_SAMPLE_PART;
  part.end = min(part.begin + uint32_t(KQM_SAMPLE_PART), a.cols);
  part.largest = largest;
  part.sampling = a.sampling[row];
  if (!makes_sense(part.sampling, a.history_len)) part.sampling.window = 0;
  return part;
}

__global__ void __launch_bounds__(threads) sample_largest(kqm_sample_args a) {
  KQM_SHARED(uint32_t, listed, KQM_SAMPLE_PART);
  KQM_SHARED(u64, warp_best, threads / 32);
  KQM_SHARED(uint32_t, last, 1);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const uint32_t row = blockIdx.y;
  kqm_sample_state &state = a.state[row];
  const Part part = part_of(a, row, blockIdx.x, 0.0f);
  list_window(a, row, part, listed);
  u64 best = 0;
  for (uint32_t i = part.begin + threadIdx.x; i < part.end; i += threads) {
    const u64 candidate = u64(kqm_order_key(logit_of(part, listed, i))) << 32 | (0xffffffffu - i);
    best = candidate > best ? candidate : best;
  }
  KQM_UNROLL
  for (int step = 16; step; step /= 2) {
    const u64 other = __shfl_xor_sync(~0u, best, step);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) warp_best[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < threads / 32; w++) {
      const u64 other = warp_best[w];
      best = other > best ? other : best;
    }
    atomicMax(reinterpret_cast<u64 *>(&state.best), best);
  }
  if (!is_last(state, last) || threadIdx.x != 0) return;
  best = atomicExch(reinterpret_cast<u64 *>(&state.best), 0ull);
  const float largest = kqm_ordered_by(uint32_t(best >> 32));
  const bool chooses = makes_sense(a.sampling[row], a.history_len) && largest - largest == 0.0f;
  const bool draws = chooses && part.sampling.temperature > 0.0f;
  state.largest = largest;
  state.drawing = draws;
  state.total = 0;
  state.least = 0;
  state.ties = 0;
  if (!draws) finish(a, row, chooses ? 0xffffffffu - uint32_t(best) : no_choice);
}

// One digit, from bit `shift` on, of the last token that top-k (of which the limit is a number of tokens) or top-p (of weights) keeps.
template <bool TOP_P>
__global__ void __launch_bounds__(threads) sample_digit(kqm_sample_args a, uint32_t shift) {
  KQM_SHARED(uint32_t, listed, KQM_SAMPLE_PART);
  // By digit: the number of tokens, and the low and the high 16 bits of their weights, whose sums fit.
  KQM_SHARED(uint32_t, found, 3 * 256);
  KQM_SHARED(u64, of_warp, threads / 32);
  KQM_SHARED(uint32_t, last, 1);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const uint32_t row = blockIdx.y;
  kqm_sample_state &state = a.state[row];
  if (!state.drawing) return;
  const Part part = part_of(a, row, blockIdx.x, state.largest);
  const kqm_sampling &s = part.sampling;
  const bool has_top_k = s.top_k != 0 && s.top_k < a.cols;
  if (TOP_P ? s.top_p == 1.0f : !has_top_k) return;
  const bool is_first = shift == 24;
  const uint32_t prefix = is_first ? 0 : state.prefix;
  for (uint32_t i = threadIdx.x; i < 3 * 256; i += threads) found[i] = 0;
  list_window(a, row, part, listed);
  __syncthreads();
  for (uint32_t i = part.begin + threadIdx.x; i < part.end; i += threads) {
    const float logit = logit_of(part, listed, i);
    const uint32_t key = kqm_order_key(logit), digit = key >> shift & 255u;
    if (!is_first && (key ^ prefix) >> (shift + 8) != 0) continue;
    const u64 weight = weight_of(probability(part, logit));
    if (!TOP_P) kqm_shared_atomic_add<uint32_t>(found, digit, 1u);
    if (weight == 0) continue;
    kqm_shared_atomic_add<uint32_t>(found, 256 + digit, uint32_t(weight) & 0xffffu);
    kqm_shared_atomic_add<uint32_t>(found, 512 + digit, uint32_t(weight >> 16));
  }
  __syncthreads();
  // The thread's own digit: the largest ones come first.
  const uint32_t digit = 255u - threadIdx.x;
  const u64 weight = u64(found[256 + digit]) + (u64(found[512 + digit]) << 16);
  if (weight != 0) atomicAdd(reinterpret_cast<u64 *>(state.sum) + digit, weight);
  if (!TOP_P && found[digit] != 0) atomicAdd(state.count + digit, found[digit]);
  const u64 above = is_first ? 0 : state.above, above_weight = is_first ? 0 : state.above_weight;
  u64 limit = TOP_P ? state.limit : u64(s.top_k);
  const u64 top_k_left = state.total;
  if (!is_last(state, last)) return;
  const u64 sum = atomicExch(reinterpret_cast<u64 *>(state.sum) + digit, 0ull);
  const u64 count = TOP_P ? sum : u64(atomicExch(state.count + digit, 0u));
  const Before weights = sum_before(sum, of_warp), counts = TOP_P ? weights : sum_before(count, of_warp);
  if (TOP_P && is_first) {
    const u64 total = has_top_k ? top_k_left : weights.all;
    const double share = __dmul_rn(double(s.top_p), __ull2double_rn(total));
    limit = u64(share);
    limit += __ull2double_rn(limit) < share;
    limit = max(min(limit, total), u64(1));
    if (threadIdx.x == 0) state.limit = limit;
  }
  const u64 before = above + counts.before;
  if (before >= limit || before + count < limit) return;
  const uint32_t key = prefix | digit << shift;
  const u64 weight_before = above_weight + weights.before;
  state.prefix = key;
  state.above = before;
  state.above_weight = weight_before;
  if (shift != 0) return;
  const u64 each = weight_of(probability(part, kqm_ordered_by(key)));
  const u64 ties = TOP_P ? (limit - before + each - 1) / each : limit - before;
  state.least = key;
  state.ties = uint32_t(ties);
  if (!TOP_P) state.total = weight_before + ties * each;
}

__global__ void __launch_bounds__(threads, 4) sample_draw(kqm_sample_args a) {
  KQM_SHARED(uint32_t, listed, KQM_SAMPLE_PART);
  KQM_SHARED(u64, of_warp, threads / 32);
  KQM_SHARED(uint32_t, last, 1);
  // The part in which the token is, what is drawn there, and the ties before it.
  KQM_SHARED(u64, drawn, 3);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const uint32_t row = blockIdx.y, number = gridDim.x;
  kqm_sample_state &state = a.state[row];
  if (!state.drawing) return;
  const float largest = state.largest;
  const uint32_t least = state.least;
  const u64 ties = state.ties;
  const float min_p = a.sampling[row].min_p;
  kqm_sample_part *parts = a.parts + size_t(row) * number;
  {
    const Part part = part_of(a, row, blockIdx.x, largest);
    list_window(a, row, part, listed);
    u64 weight = 0, equal = 0;
    for (uint32_t i = part.begin + threadIdx.x; i < part.end; i += threads) {
      const float logit = logit_of(part, listed, i);
      const uint32_t key = kqm_order_key(logit);
      const float p = probability(part, logit);
      if (key > least && p >= min_p) weight += weight_of(p);
      equal += key == least;
    }
    const Before weights = sum_before(weight, of_warp), equals = sum_before(equal, of_warp);
    if (threadIdx.x == 0) parts[blockIdx.x].weight = weights.all, parts[blockIdx.x].ties = equals.all;
  }
  if (!is_last(state, last)) return;
  Part part = part_of(a, row, 0, largest);
  // No logit has the order 0, which stands for all that are kept.
  const float least_p = least == 0 ? 0.0f : probability(part, kqm_ordered_by(least));
  const u64 tie_weight = least_p >= min_p ? weight_of(least_p) : 0;
  const auto kept_ties = [&](u64 before, u64 own) { return before >= ties ? u64(0) : min(own, ties - before); };
  u64 sum = 0, target = 0;
  // Once for the sum, and once for where a share of it lies.
  KQM_LOOP
  for (int pass = 0; pass < 2; pass++) {
    u64 ties_before = 0, before = 0;
    for (uint32_t first = 0; first < number; first += threads) {
      const uint32_t at = first + threadIdx.x;
      const u64 own_ties = at < number ? parts[at].ties : 0;
      const Before of_ties = sum_before(own_ties, of_warp);
      const u64 kept = kept_ties(ties_before + of_ties.before, own_ties);
      const u64 own = (at < number ? parts[at].weight : 0) + kept * tie_weight;
      const Before of_weight = sum_before(own, of_warp);
      const u64 begin = before + of_weight.before;
      if (pass == 1 && target >= begin && target < begin + own) {
        drawn[0] = at, drawn[1] = target - begin, drawn[2] = ties_before + of_ties.before;
      }
      ties_before += of_ties.all;
      before += of_weight.all;
    }
    sum = before;
    if (pass == 0) target = high_product(random_bits(part.sampling.seed, u64(a.position[row]) + 1), sum);
  }
  __syncthreads();
  part = part_of(a, row, uint32_t(drawn[0]), largest);
  target = drawn[1];
  const u64 ties_before = drawn[2];
  list_window(a, row, part, listed);
  const uint32_t begin = part.begin + threadIdx.x * per_thread, end = min(begin + uint32_t(per_thread), part.end);
  u64 own_ties = 0;
  for (uint32_t i = begin; i < end; i++) own_ties += kqm_order_key(logit_of(part, listed, i)) == least;
  const u64 my_ties = ties_before + sum_before(own_ties, of_warp).before;
  const auto weight_at = [&](uint32_t i, u64 &seen) {
    const float logit = logit_of(part, listed, i);
    const uint32_t key = kqm_order_key(logit);
    if (key == least) return seen++ < ties ? tie_weight : u64(0);
    const float p = probability(part, logit);
    return key > least && p >= min_p ? weight_of(p) : u64(0);
  };
  u64 own = 0, seen = my_ties;
  for (uint32_t i = begin; i < end; i++) own += weight_at(i, seen);
  u64 before = sum_before(own, of_warp).before;
  if (target < before || target >= before + own) return;
  seen = my_ties;
  for (uint32_t i = begin; i < end; i++) {
    before += weight_at(i, seen);
    if (target < before) {
      finish(a, row, i);
      return;
    }
  }
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_sample(const kqm_sample_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->x && args->sampling && args->position && args->out && args->state && args->parts,
              KQM_NULL_POINTER);
  KQM_REQUIRE(args->history != nullptr || args->history_len == 0, KQM_NULL_POINTER);
  KQM_REQUIRE(args->rows > 0 && args->rows <= 65535 && args->cols > 0 && args->cols <= 1u << 24, KQM_BAD_SHAPE);
  KQM_REQUIRE(args->advance <= 1, KQM_BAD_SHAPE);
  const dim3 grid(kqm_ceil_div(args->cols, uint32_t(KQM_SAMPLE_PART)), args->rows), cta(threads);
  KQM_TRY(KQM_LAUNCH(sample_largest, grid, cta, 0, stream, *args));
  for (uint32_t shift = 32; shift > 0; shift -= 8) {
    KQM_TRY(KQM_LAUNCH(sample_digit<false>, grid, cta, 0, stream, *args, shift - 8));
  }
  for (uint32_t shift = 32; shift > 0; shift -= 8) {
    KQM_TRY(KQM_LAUNCH(sample_digit<true>, grid, cta, 0, stream, *args, shift - 8));
  }
  return KQM_LAUNCH(sample_draw, grid, cta, 0, stream, *args);
}
KQM_ABI_END
