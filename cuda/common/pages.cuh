// Where the tokens of a batch are in a cache of pages (kqm_batch): page p of the pool holds the positions of one chunk of attention of
// all sequences whose table names it.
#pragma once

#include "check.cuh"

// Most positions of a sequence: sums of counts stay inside their types.
static const uint32_t kqm_max_capacity = 0x7fffffff;
// No position, no sequence and no page.
static const uint32_t kqm_nowhere = 0xffffffff;

// Chunks of so many positions: pages of a sequence, or partial results of a row.
__host__ __device__ __forceinline__ uint32_t kqm_chunks_of(uint32_t positions) {
  return (positions + KQM_ATTENTION_CHUNK - 1) / KQM_ATTENTION_CHUNK;
}

// A token's position and sequence. A token without a place is at position 0 of the sequence kqm_nowhere, which has no pages: it sees that
// position, which holds NaNs.
struct KqmToken {
  uint32_t position, sequence;

  __device__ __forceinline__ KqmToken(const kqm_batch &b, uint32_t token)
      : position(__ldcg(b.position + token)), sequence(__ldcg(b.sequence + token)) {
    if (position >= b.reach || sequence >= b.sequences) position = 0, sequence = kqm_nowhere;
  }
  __device__ __forceinline__ bool has_place() const { return sequence != kqm_nowhere; }
  // Where the pages of the sequence begin in the table.
  __device__ __forceinline__ uint32_t pages(const kqm_batch &b) const { return sequence * kqm_chunks_of(b.capacity); }
  // The page of the token's own position.
  __device__ __forceinline__ uint32_t own_page(const kqm_batch &b) const {
    return has_place() ? __ldcg(b.pages + pages(b) + position / KQM_ATTENTION_CHUNK) : kqm_nowhere;
  }
};

// Where the keys or values of a page begin in a cache of so many elements a position.
__device__ __forceinline__ size_t kqm_page_at(uint32_t page, uint32_t stride) {
  return size_t(page) * KQM_ATTENTION_CHUNK * stride;
}

inline kqm_status kqm_check_batch(const kqm_batch &b) {
  KQM_REQUIRE(b.position && b.sequence && b.pages, KQM_NULL_POINTER);
  KQM_REQUIRE(b.tokens > 0 && b.sequences > 0 && b.capacity > 0 && b.capacity <= kqm_max_capacity && b.pool_pages > 0 &&
                  b.reach <= b.capacity && b.singles <= b.tokens &&
                  uint64_t(b.sequences) * kqm_chunks_of(b.capacity) <= 0xffffffffu,
              KQM_BAD_SHAPE);
  return KQM_OK;
}

// The batch as kernels take it: with a reach.
inline kqm_batch kqm_bounded(kqm_batch b) {
  if (b.reach == 0) b.reach = b.capacity;
  return b;
}
