// moe_group: the (token, expert) pairs of a batch in ascending (expert, pair) order, cut into work items of at most
// KQM_ITEM_PAIRS pairs of one expert.
//
// Shapes: indices [tokens, top_k]; order [pairs], items [max_items][3], count [1].
// Launch: one block of 512 threads. A stable counting sort: one thread an expert counts, prefix sums give the places, and the
// same thread then lists its pairs in ascending order.
// Bound by: latency; every thread reads all pairs (L2).
#include "common/check.cuh"

namespace {

__global__ void __launch_bounds__(KQM_MAX_EXPERTS) moe_group_kernel(kqm_moe_group_args a) {
  KQM_SHARED(uint32_t, pairs_of, KQM_MAX_EXPERTS);
  KQM_SHARED(uint32_t, first_pair, KQM_MAX_EXPERTS);
  KQM_SHARED(uint32_t, first_item, KQM_MAX_EXPERTS);
  const uint32_t expert = threadIdx.x, pairs = a.tokens * a.top_k;
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  uint32_t count = 0;
  for (uint32_t p = 0; p < pairs; p++) count += a.indices[p] == expert;
  pairs_of[expert] = count;
  __syncthreads();
  if (expert == 0) {
    uint32_t pair = 0, item = 0;
    for (uint32_t e = 0; e < a.experts; e++) {
      first_pair[e] = pair;
      first_item[e] = item;
      const uint32_t n = pairs_of[e];
      pair += n;
      item += (n + KQM_ITEM_PAIRS - 1) / KQM_ITEM_PAIRS;
    }
    *a.groups.count = item;
  }
  __syncthreads();
  if (expert >= a.experts || count == 0) return;
  uint32_t at = first_pair[expert];
  const uint32_t end = at + count;
  uint32_t *item = a.groups.items + size_t(3) * first_item[expert];
  for (uint32_t begin = at; begin < end; begin += KQM_ITEM_PAIRS, item += 3) {
    item[0] = expert;
    item[1] = begin;
    item[2] = min(end - begin, uint32_t(KQM_ITEM_PAIRS));
  }
  for (uint32_t p = 0; p < pairs; p++) {
    if (a.indices[p] == expert) a.groups.order[at++] = p;
  }
}

}  // namespace

KQM_ABI_BEGIN
// Every expert with pairs has at most one item that is not full.
uint32_t kqm_moe_max_items(uint32_t tokens, uint32_t experts, uint32_t top_k) {
  const uint64_t pairs = uint64_t(tokens) * top_k;
  const uint64_t most = pairs / KQM_ITEM_PAIRS + (pairs < experts ? pairs : experts);
  return uint32_t(most < pairs ? most : pairs);
}

kqm_status kqm_moe_group(const kqm_moe_group_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->indices && args->groups.order && args->groups.items && args->groups.count,
              KQM_NULL_POINTER);
  KQM_REQUIRE(args->tokens > 0 && args->tokens <= 65535 && args->experts > 0 && args->experts <= KQM_MAX_EXPERTS &&
                  args->top_k > 0 && args->top_k <= KQM_MAX_TOP_K && args->top_k <= args->experts,
              KQM_BAD_SHAPE);
  return KQM_LAUNCH(moe_group_kernel, dim3(1), dim3(KQM_MAX_EXPERTS), 0, stream, *args);
}
KQM_ABI_END
