// Operations of a warp: each waits for exactly the lanes that its mask names.
#ifndef KQM_EMULATION_WARP_H
#define KQM_EMULATION_WARP_H

#include "engine.h"
#include "shared.h"

#include <string.h>
#include <type_traits>

namespace kqm_emulation {

enum class shuffle_mode { lane, up, down, exclusive_or };
void warp_barrier(uint32_t mask, const char *file, int line);
uint32_t warp_ballot(uint32_t mask, bool predicate, const char *file, int line);
uint64_t warp_shuffle(shuffle_mode mode, uint32_t mask, uint64_t value, int argument, int width, const char *file,
                      int line);
// a has four registers and b two for k = 32; two and one for k = 16.
enum class mma { u8_k32, s8_k32, s8_k16 };
void warp_mma(int32_t (&d)[4], const uint32_t *a, const uint32_t *b, mma shape, const char *file, int line);
void warp_product(int32_t *d, const uint32_t *a, const shared_piece &array, int64_t index, int columns, bool is_signed,
                  bool adds, const char *file, int line);
void warp_mma_f64(double (&d)[2], double a, double b, const char *file, int line);

template <class T>
static inline T shuffle(shuffle_mode mode, uint32_t mask, T value, int argument, int width, const char *file, int line) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "32 or 64 bit numbers");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = warp_shuffle(mode, mask, bits, argument, width, file, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}

} // namespace kqm_emulation

static inline void __syncwarp(unsigned int mask = 0xffffffffu, KQM_EMULATION_HERE) {
  kqm_emulation::warp_barrier(mask, file, line);
}
static inline unsigned int __ballot_sync(unsigned int mask, int predicate, KQM_EMULATION_HERE) {
  return kqm_emulation::warp_ballot(mask, predicate != 0, file, line);
}
static inline int __any_sync(unsigned int mask, int predicate, KQM_EMULATION_HERE) {
  return kqm_emulation::warp_ballot(mask, predicate != 0, file, line) != 0;
}
static inline int __all_sync(unsigned int mask, int predicate, KQM_EMULATION_HERE) {
  return kqm_emulation::warp_ballot(mask, predicate != 0, file, line) == mask;
}
template <class T>
static inline T __shfl_sync(unsigned int mask, T value, int lane, int width = 32, KQM_EMULATION_HERE) {
  return kqm_emulation::shuffle(kqm_emulation::shuffle_mode::lane, mask, value, lane, width, file, line);
}
template <class T>
static inline T __shfl_xor_sync(unsigned int mask, T value, int lanes, int width = 32, KQM_EMULATION_HERE) {
  return kqm_emulation::shuffle(kqm_emulation::shuffle_mode::exclusive_or, mask, value, lanes, width, file, line);
}
template <class T>
static inline T __shfl_down_sync(unsigned int mask, T value, unsigned int lanes, int width = 32, KQM_EMULATION_HERE) {
  return kqm_emulation::shuffle(kqm_emulation::shuffle_mode::down, mask, value, int(lanes), width, file, line);
}
template <class T>
static inline T __shfl_up_sync(unsigned int mask, T value, unsigned int lanes, int width = 32, KQM_EMULATION_HERE) {
  return kqm_emulation::shuffle(kqm_emulation::shuffle_mode::up, mask, value, int(lanes), width, file, line);
}

// The largest and the smallest of a number over the warp.
static inline float kqm_max_or_nan(float a, float b) { return a != a || b != b ? __uint_as_float(0x7fffffffu) : fmaxf(a, b); }
static inline uint32_t kqm_reduce_max(uint32_t x, KQM_EMULATION_HERE) {
  for (int step = 16; step; step /= 2) {
    const uint32_t other =
        kqm_emulation::shuffle(kqm_emulation::shuffle_mode::exclusive_or, ~0u, x, step, 32, file, line);
    x = other > x ? other : x;
  }
  return x;
}
static inline uint32_t kqm_reduce_min(uint32_t x, KQM_EMULATION_HERE) { return ~kqm_reduce_max(~x, file, line); }

// D += A B, u8 x s8 (k = 32) or s8 x s8 (k = 32 and k = 16) -> s32 (wrapping), in the fragment layouts of
// mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32, m16n8k32.row.col.s32.s8.s8.s32 and m16n8k16.row.col.s32.s8.s8.s32.
static inline void kqm_mma_m16n8k32(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1, KQM_EMULATION_HERE) {
  const uint32_t a[4] = {a0, a1, a2, a3};
  const uint32_t b[2] = {b0, b1};
  kqm_emulation::warp_mma(d, a, b, kqm_emulation::mma::u8_k32, file, line);
}
static inline void kqm_mma_m16n8k32_signed(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                           uint32_t b0, uint32_t b1, KQM_EMULATION_HERE) {
  const uint32_t a[4] = {a0, a1, a2, a3};
  const uint32_t b[2] = {b0, b1};
  kqm_emulation::warp_mma(d, a, b, kqm_emulation::mma::s8_k32, file, line);
}
static inline void kqm_mma_m16n8k16(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0, KQM_EMULATION_HERE) {
  const uint32_t a[2] = {a0, a1};
  const uint32_t b[1] = {b0};
  kqm_emulation::warp_mma(d, a, b, kqm_emulation::mma::s8_k16, file, line);
}

// D += A B in f64, 8 x 4 by 4 x 8, in the fragment layout of mma.sync.aligned.m8n8k4.row.col.f64.
static inline void kqm_mma_f64(double (&d)[2], double a, double b, KQM_EMULATION_HERE) {
  kqm_emulation::warp_mma_f64(d, a, b, file, line);
}

// D (16 rows of the warp's x N) += A (u8, or s8 when SIGNED) B (s8, in shared memory, N columns of 32), as wgmma does it, of which each warp
// of a group gives its own rows. On a card it takes effect at the wait; here at once.
struct KqmWarpgroupOperand {
  kqm_emulation::shared_piece array;
  int64_t index;

  KqmWarpgroupOperand(const kqm_emulation::shared_piece &of, int64_t from) : array(of), index(from) {}
  template <int N, bool SIGNED>
  void multiply(int32_t (&d)[N / 2], const uint32_t (&a)[4], int words, bool adds, KQM_EMULATION_HERE) const {
    kqm_emulation::warp_product(d, a, array, index + words * int(4 / array.element), N, SIGNED, adds, file, line);
  }
};
static inline void kqm_warpgroup_begin() {}
static inline void kqm_warpgroup_commit() {}
template <int NEWEST> static inline void kqm_warpgroup_wait() {}
template <int N> static inline void kqm_warpgroup_results(int32_t (&)[N]) {}
template <int REGISTERS> static inline void kqm_give_registers() {}
template <int REGISTERS> static inline void kqm_take_registers() {}
#define KQM_WARPGROUPS 1

#endif
