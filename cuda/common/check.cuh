// What launchers share: argument checks, of which the first failing one is returned, and launch shapes.
#pragma once

#include "hw.cuh"

#define KQM_REQUIRE(condition, status) \
  do {                                 \
    if (!(condition)) return status;   \
  } while (0)
#define KQM_TRY(expression)                  \
  do {                                       \
    const kqm_status status_ = (expression); \
    if (status_ != KQM_OK) return status_;   \
  } while (0)

inline bool kqm_aligned(const void *p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

template <class T>
inline T kqm_ceil_div(T a, T b) {
  return a / b + (a % b != 0);
}

// Warps for `units` units of work: every warp gets the same number of them where that is possible.
inline unsigned kqm_even_warps(unsigned units, unsigned most) {
  const unsigned each = kqm_ceil_div(units, most);
  return kqm_ceil_div(units, each);
}

// Largest row length: sums of integers stay inside their types for any of them, and launches stay small.
static const uint32_t kqm_max_cols = 16384;
// Most rows of a matrix: those of its tiles fit into an int.
static const uint32_t kqm_max_rows = 0x7ffffff0;
