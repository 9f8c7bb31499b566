// CUDA's arithmetic functions, with the device's results for every input that IEEE leaves to the implementation
// (signed zeros of min and max, conversions out of range). A NaN that arithmetic makes has the device's payload, which is not the one that
// kernels store: f32 operations give 0x7fffffff, and f64 operations a NaN that converts to it. What C++ has operators for keeps the
// payload of its operands.
#ifndef KQM_EMULATION_NUMBERS_H
#define KQM_EMULATION_NUMBERS_H

#include "types.h"

#include <limits.h>
#include <math.h>
#include <string.h>

namespace kqm_emulation {

template <class To, class From> static inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// A NaN as the device's f32 arithmetic makes it, and an f64 one that becomes it in a conversion.
static inline float made(float x) { return x == x ? x : bits<float>(0x7fffffffu); }
static inline double made(double x) { return x == x ? x : bits<double>(uint64_t(0x7fffffffe0000000u)); }

// The device orders -0 below +0 and prefers the number to the NaN; libm promises only the second.
template <class T> static inline T larger(T a, T b) {
  if (a != a) return made(b);
  if (b != b) return a;
  if (a == b) return signbit(a) ? b : a;
  return a > b ? a : b;
}
template <class T> static inline T smaller(T a, T b) {
  if (a != a) return made(b);
  if (b != b) return a;
  if (a == b) return signbit(a) ? a : b;
  return a < b ? a : b;
}

// Conversions to integers saturate and send NaN to zero (to the most negative number for 64 bits).
template <class F> static inline int to_int(F x) {
  if (x != x) return 0;
  if (x >= F(2147483648.0)) return INT_MAX;
  if (x < F(-2147483648.0)) return INT_MIN;
  return int(x);
}
template <class F> static inline unsigned int to_uint(F x) {
  if (!(x > F(0))) return 0;
  if (x >= F(4294967296.0)) return UINT_MAX;
  return (unsigned int)x;
}
template <class F> static inline long long to_int64(F x) {
  if (x != x) return LLONG_MIN;
  if (x >= F(9223372036854775808.0)) return LLONG_MAX;
  if (x < F(-9223372036854775808.0)) return LLONG_MIN;
  return (long long)x;
}

} // namespace kqm_emulation

// Macros, because libm already has functions of these names.
#define fmaxf(a, b) ::kqm_emulation::larger<float>(a, b)
#define fminf(a, b) ::kqm_emulation::smaller<float>(a, b)
#define fmax(a, b) ::kqm_emulation::larger<double>(a, b)
#define fmin(a, b) ::kqm_emulation::smaller<double>(a, b)
#define fmaf(a, b, c) ::kqm_emulation::made(__builtin_fmaf(a, b, c))
#define fma(a, b, c) ::kqm_emulation::made(__builtin_fma(a, b, c))

#define KQM_MIN_MAX(type)                                                                                               \
  static inline type min(type a, type b) { return b < a ? b : a; }                                                     \
  static inline type max(type a, type b) { return a < b ? b : a; }
KQM_MIN_MAX(int)
KQM_MIN_MAX(unsigned int)
KQM_MIN_MAX(long)
KQM_MIN_MAX(unsigned long)
KQM_MIN_MAX(long long)
KQM_MIN_MAX(unsigned long long)
#undef KQM_MIN_MAX
static inline unsigned int min(int a, unsigned int b) { return min((unsigned int)a, b); }
static inline unsigned int min(unsigned int a, int b) { return min(a, (unsigned int)b); }
static inline unsigned int max(int a, unsigned int b) { return max((unsigned int)a, b); }
static inline unsigned int max(unsigned int a, int b) { return max(a, (unsigned int)b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

// The build switches contraction off, so that a product and a sum stay two roundings.
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fmul_rn(float a, float b) { return kqm_emulation::made(a * b); }
static inline float __fadd_rn(float a, float b) { return kqm_emulation::made(a + b); }
static inline float __fsub_rn(float a, float b) { return kqm_emulation::made(a - b); }
static inline float __fdiv_rn(float a, float b) { return kqm_emulation::made(a / b); }
static inline float __fsqrt_rn(float a) { return kqm_emulation::made(sqrtf(a)); }
static inline float __frcp_rn(float a) { return kqm_emulation::made(1.0f / a); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline double __dmul_rn(double a, double b) { return kqm_emulation::made(a * b); }
static inline double __dadd_rn(double a, double b) { return kqm_emulation::made(a + b); }
static inline double __dsub_rn(double a, double b) { return kqm_emulation::made(a - b); }
static inline double __ddiv_rn(double a, double b) { return kqm_emulation::made(a / b); }
static inline double __dsqrt_rn(double a) { return kqm_emulation::made(sqrt(a)); }
static inline double __drcp_rn(double a) { return kqm_emulation::made(1.0 / a); }

static inline int __float2int_rn(float x) { return kqm_emulation::to_int(rintf(x)); }
static inline int __float2int_rz(float x) { return kqm_emulation::to_int(truncf(x)); }
static inline int __float2int_rd(float x) { return kqm_emulation::to_int(floorf(x)); }
static inline int __float2int_ru(float x) { return kqm_emulation::to_int(ceilf(x)); }
static inline unsigned int __float2uint_rn(float x) { return kqm_emulation::to_uint(rintf(x)); }
static inline unsigned int __float2uint_rz(float x) { return kqm_emulation::to_uint(truncf(x)); }
static inline long long __float2ll_rn(float x) { return kqm_emulation::to_int64(rintf(x)); }
static inline int __double2int_rn(double x) { return kqm_emulation::to_int(rint(x)); }
static inline long long __double2ll_rn(double x) { return kqm_emulation::to_int64(rint(x)); }
static inline float __double2float_rn(double x) { return kqm_emulation::made(float(x)); }
static inline float __int2float_rn(int x) { return float(x); }
static inline float __uint2float_rn(unsigned int x) { return float(x); }
static inline float __ll2float_rn(long long x) { return float(x); }
static inline double __int2double_rn(int x) { return double(x); }
static inline double __uint2double_rn(unsigned int x) { return double(x); }
static inline double __ll2double_rn(long long x) { return double(x); }
static inline double __ull2double_rn(unsigned long long x) { return double(x); }

static inline unsigned int __float_as_uint(float x) { return kqm_emulation::bits<unsigned int>(x); }
static inline int __float_as_int(float x) { return kqm_emulation::bits<int>(x); }
static inline float __uint_as_float(unsigned int x) { return kqm_emulation::bits<float>(x); }
static inline float __int_as_float(int x) { return kqm_emulation::bits<float>(x); }
static inline long long __double_as_longlong(double x) { return kqm_emulation::bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return kqm_emulation::bits<double>(x); }
static inline int __double2hiint(double x) { return int(kqm_emulation::bits<uint64_t>(x) >> 32); }
static inline int __double2loint(double x) { return int(kqm_emulation::bits<uint64_t>(x)); }
static inline double __hiloint2double(int high, int low) {
  return kqm_emulation::bits<double>(uint64_t(uint32_t(high)) << 32 | uint32_t(low));
}

static inline int __popc(unsigned int x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned int)x); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
static inline unsigned int __brev(unsigned int x) {
  unsigned int reversed = 0;
  for (int i = 0; i < 32; i++) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
static inline unsigned int __byte_perm(unsigned int x, unsigned int y, unsigned int selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned int result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned int choice = selector >> (4 * i) & 0xf;
    unsigned int byte = (unsigned int)(bytes >> (8 * (choice & 7))) & 0xff;
    if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
static inline unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int shift) {
  return (unsigned int)((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
  return (unsigned int)((uint64_t(high) << 32 | low) >> (shift & 31));
}
static inline unsigned int __umulhi(unsigned int a, unsigned int b) { return (unsigned int)(uint64_t(a) * b >> 32); }
static inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
static inline int __dp4a(int a, int b, int c) {
  unsigned int sum = (unsigned int)c;
  for (int i = 0; i < 4; i++) sum += (unsigned int)(int(int8_t(a >> (8 * i))) * int(int8_t(b >> (8 * i))));
  return int(sum);
}
static inline unsigned int __dp4a(unsigned int a, unsigned int b, unsigned int c) {
  for (int i = 0; i < 4; i++) c += (a >> (8 * i) & 0xff) * (b >> (8 * i) & 0xff);
  return c;
}

// f16 -> f32. Exact; every NaN becomes 0x7fffffff.
static inline float kqm_half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 0x1f;
  const uint32_t fraction = half & 0x3ff;
  if (exponent == 31) return __uint_as_float(fraction ? 0x7fffffffu : sign | 0x7f800000u);
  if (exponent == 0) {
    const float magnitude = float(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

// f32 -> f16, nearest even. Overflow gives infinity; every NaN becomes 0x7e00.
static inline uint16_t kqm_float_to_half(float value) {
  const uint32_t word = __float_as_uint(value);
  const uint16_t sign = uint16_t(word >> 16 & 0x8000);
  const uint32_t magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7e00;
  if (magnitude >= 0x47800000) return sign | 0x7c00; // 65536 and above; 65520 to 65536 round up below
  if (magnitude < 0x38800000) {
    // Below the smallest normal number a unit is 2^-24: adding 0.5 (whose unit it is, in f32) rounds to it.
    const uint32_t rounded = __float_as_uint(__uint_as_float(magnitude) + 0.5f);
    return uint16_t(sign | (rounded - 0x3f000000));
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

#endif
