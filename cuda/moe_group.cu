// moe_group: the (token, expert) pairs of a batch in ascending (expert, pair) order, cut into work items of at most
// KQM_ITEM_PAIRS pairs of one expert: first the large ones, of more than half as many, then the small ones, each by expert. Whoever hands
// them out in turn ends with the short ones. Indices of experts that do not exist all count as the one behind the last, for which the
// kernels that take the items write NaN.
//
// Shapes: indices [tokens, top_k]; order [pairs], items [max_items][3], count [1].
// Launch: one CTA an expert, and one for all that do not exist. Each counts the pairs of all experts, for where its own begin, and then
// lists its pairs: thread i of 256 those of the i-th part of the pairs, behind what the threads before it have.
// Bound by: latency; every CTA reads all pairs (L2).
#include "common/check.cuh"

namespace {

const int threads = 256;

// Items of an expert with so many pairs.
__device__ __forceinline__ uint32_t large_items(uint32_t pairs) {
  return pairs / KQM_ITEM_PAIRS + (pairs % KQM_ITEM_PAIRS > KQM_ITEM_PAIRS / 2);
}
__device__ __forceinline__ uint32_t small_items(uint32_t pairs) {
  return (pairs + KQM_ITEM_PAIRS - 1) / KQM_ITEM_PAIRS - large_items(pairs);
}

__global__ void __launch_bounds__(threads) moe_group_kernel(kqm_moe_group_args a) {
  KQM_SHARED(uint32_t, pairs_of, KQM_MAX_EXPERTS + 1);
  // Pairs, large and small items of the experts before this one; large and small items of all.
  KQM_SHARED(uint32_t, before, 5);
  KQM_SHARED(uint32_t, found, threads);
  const uint32_t expert = blockIdx.x, pairs = a.tokens * a.top_k;
  const auto expert_of = [&](uint32_t p) { return min(a.indices[p], a.experts); };
  for (uint32_t e = threadIdx.x; e <= a.experts; e += threads) pairs_of[e] = 0;
  if (threadIdx.x < 5) before[threadIdx.x] = 0;
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  __syncthreads();
  for (uint32_t p = threadIdx.x; p < pairs; p += threads) kqm_shared_atomic_add<uint32_t>(pairs_of, expert_of(p), 1u);
  const uint32_t part = (pairs + threads - 1) / threads, begin = min(threadIdx.x * part, pairs),
                 end = min(begin + part, pairs);
  uint32_t own = 0;
  for (uint32_t p = begin; p < end; p++) own += expert_of(p) == expert;
  found[threadIdx.x] = own;
  __syncthreads();
  for (uint32_t e = threadIdx.x; e <= a.experts; e += threads) {
    const uint32_t n = pairs_of[e], large = large_items(n), small = small_items(n);
    if (e < expert) {
      kqm_shared_atomic_add<uint32_t>(before, 0, n);
      kqm_shared_atomic_add<uint32_t>(before, 1, large);
      kqm_shared_atomic_add<uint32_t>(before, 2, small);
    }
    kqm_shared_atomic_add<uint32_t>(before, 3, large);
    kqm_shared_atomic_add<uint32_t>(before, 4, small);
  }
  __syncthreads();
  if (expert == 0 && threadIdx.x == 0) *a.groups.count = before[3] + before[4];
  const uint32_t first = before[0], count = pairs_of[expert], large = large_items(count);
  for (uint32_t i = threadIdx.x; i * KQM_ITEM_PAIRS < count; i += threads) {
    // An expert has one small item at most, its last one.
    uint32_t *item = a.groups.items + size_t(3) * (i < large ? before[1] + i : before[3] + before[2]);
    item[0] = expert;
    item[1] = first + i * KQM_ITEM_PAIRS;
    item[2] = min(count - i * KQM_ITEM_PAIRS, uint32_t(KQM_ITEM_PAIRS));
  }
  if (own == 0) return;
  uint32_t at = first;
  for (uint32_t i = 0; i < threadIdx.x; i++) at += found[i];
  for (uint32_t p = begin; p < end; p++) {
    // As many as were counted, unless somebody changes the indices meanwhile.
    if (expert_of(p) == expert && at < pairs) a.groups.order[at++] = p;
  }
}

}  // namespace

KQM_ABI_BEGIN
// Every expert with pairs has at most one item that is not full, and so have those that do not exist together.
uint32_t kqm_moe_max_items(uint32_t tokens, uint32_t experts, uint32_t top_k) {
  const uint64_t pairs = uint64_t(tokens) * top_k, groups = uint64_t(experts) + 1;
  const uint64_t most = pairs / KQM_ITEM_PAIRS + (pairs < groups ? pairs : groups);
  return uint32_t(most < pairs ? most : pairs);
}

kqm_status kqm_moe_group(const kqm_moe_group_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->indices && args->groups.order && args->groups.items && args->groups.count,
              KQM_NULL_POINTER);
  KQM_REQUIRE(args->tokens > 0 && args->tokens <= 65535 && args->experts <= KQM_MAX_EXPERTS && args->top_k > 0 &&
                  args->top_k <= KQM_MAX_TOP_K && args->top_k <= args->experts,
              KQM_BAD_SHAPE);
  return KQM_LAUNCH(moe_group_kernel, dim3(args->experts + 1), dim3(threads), 0, stream, *args);
}
KQM_ABI_END
