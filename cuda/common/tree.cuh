// Rows in eights, a lane's share of a run of 256, and the tree_dot of docs/arithmetic.md: f64 dot products of f32 rows in an
// order that depends on the row alone.
#pragma once

#include "hw.cuh"

// Eight neighbours of a row.
__device__ __forceinline__ void kqm_load_eight(const float *row, int lane, float (&x)[8]) {
  const float4 *in = reinterpret_cast<const float4 *>(row) + 2 * lane;
  const float4 x0 = in[0], x1 = in[1];
  x[0] = x0.x, x[1] = x0.y, x[2] = x0.z, x[3] = x0.w, x[4] = x1.x, x[5] = x1.y, x[6] = x1.z, x[7] = x1.w;
}

__device__ __forceinline__ void kqm_store_eight(float *row, int lane, const float (&x)[8]) {
  float4 *out = reinterpret_cast<float4 *>(row) + 2 * lane;
  out[0] = make_float4(x[0], x[1], x[2], x[3]);
  out[1] = make_float4(x[4], x[5], x[6], x[7]);
}

// Eight neighbours: two leaves and their sum.
__device__ __forceinline__ double kqm_tree_leaves(float4 a0, float4 a1, float4 b0, float4 b1) {
  double first = double(a0.x) * double(b0.x);
  first = fma(double(a0.y), double(b0.y), first);
  first = fma(double(a0.z), double(b0.z), first);
  first = fma(double(a0.w), double(b0.w), first);
  double second = double(a1.x) * double(b1.x);
  second = fma(double(a1.y), double(b1.y), second);
  second = fma(double(a1.z), double(b1.z), second);
  second = fma(double(a1.w), double(b1.w), second);
  return first + second;
}

// The balanced tree over each LANES neighbouring lanes, neighbours first. Every lane gets the sum: both sides of each exchange
// add the same two numbers.
template <int LANES>
__device__ __forceinline__ double kqm_tree_lanes(double x) {
  KQM_UNROLL
  for (int step = 1; step < LANES; step *= 2) x = x + __shfl_xor_sync(~0u, x, step);
  return x;
}
__device__ __forceinline__ double kqm_tree_warp(double x) { return kqm_tree_lanes<32>(x); }

// The tree_sum of docs/arithmetic.md: groups of 16 numbers, the last one filled up with zeros, as balanced trees of neighbours; the
// groups ascending. Numbers come one after the other.
struct KqmTreeSum {
  double waiting[4] = {}, groups = 0.0;  // waiting: sums of 1, 2, 4 and 8 neighbours, where the bit of count is set
  unsigned count = 0;

  __device__ __forceinline__ void add(double sum) {
    bool placed = false;
    KQM_UNROLL
    for (int level = 0; level < 4; level++) {
      if (placed) continue;
      if (count >> level & 1) {
        sum = sum + waiting[level];
      } else {
        waiting[level] = sum;
        placed = true;
      }
    }
    if (!placed) groups = groups + sum;
    count = (count + 1) % 16;
  }
  __device__ __forceinline__ double sum() const {
    double rest = 0.0;
    KQM_UNROLL
    for (int level = 0; level < 4; level++) {
      if (count >> level & 1) rest = rest + waiting[level];
    }
    return groups + rest;
  }
};

// The balanced tree of N numbers at first, first + stride, ..., neighbours first.
template <int N>
__device__ __forceinline__ double kqm_tree_of(KQM_SHARED_ARG(double) numbers, int first, int stride) {
  const int half = (N + 1) / 2;  // a power of two where N is no more than one less than one
  static_assert((half & (half - 1)) == 0, "a tree over any other number has zeros to add");
  double x[2 * half];
  KQM_UNROLL
  for (int i = 0; i < N; i++) x[i] = numbers[first + i * stride];
  if (N < 2 * half) x[N] = 0.0;
  KQM_UNROLL
  for (int step = 1; step < 2 * half; step *= 2) {
    KQM_UNROLL
    for (int i = 0; i < 2 * half; i += 2 * step) x[i] = x[i] + x[i + step];
  }
  return x[0];
}

// The tree_sum of `count` numbers at first, first + stride, .... A `usual` number of them, of at most 16, gets straight code; any other
// gets little code, since what is executed once waits for its instructions to arrive.
template <int USUAL>
__device__ __forceinline__ double kqm_tree_sum(KQM_SHARED_ARG(double) numbers, int first, int stride, int count) {
  if (__builtin_expect(count == USUAL, 1)) return 0.0 + kqm_tree_of<USUAL>(numbers, first, stride);
  KqmTreeSum sum;
  KQM_LOOP
  for (int i = 0; i < count; i++) sum.add(numbers[first + i * stride]);
  return sum.sum();
}

__device__ __forceinline__ float kqm_power_of_two(int n) { return __int_as_float((n + 127) << 23); }

// x * 2^n in two factors, because 2^n itself need not be a normal number; |n| <= 252.
__device__ __forceinline__ float kqm_scale(float x, int n) {
  const int half = n >> 1;
  return __fmul_rn(__fmul_rn(x, kqm_power_of_two(half)), kqm_power_of_two(n - half));
}

// RMSNorm's factor from the sum of squares of n numbers: 1 / sqrt(sum * (1 / n) + eps) with f32's root and quotient, after the
// range has been taken out. inverse_n is 1 / n in f64: callers make it while they have nothing else to do.
__device__ __forceinline__ float kqm_inverse_root(double sum, double inverse_n, float eps) {
  const double m = sum * inverse_n + double(eps);
  const long long bits = __double_as_longlong(m);
  const int exponent = int(bits >> 52);  // negative for a negative m
  if (exponent <= 0 || exponent >= 0x7ff) return __uint_as_float(0x7fc00000u);
  const int k = (exponent - 1023) >> 1;
  const float within = float(__longlong_as_double(bits - (long long)((unsigned long long)(2 * k) << 52)));
  return kqm_scale(__fdiv_rn(1.0f, __fsqrt_rn(within)), -k);
}
