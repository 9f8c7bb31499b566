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

// kqm_tree_warp of four rows' numbers: lane l < 4 gets the sum of row kqm_tree_row_of(l), as every lane l % 4 does. Each step adds the same
// neighbours as kqm_tree_warp; the first two also halve what is left to add, so that four trees take six exchanges.
static const int kqm_tree_rows = 4;
__device__ __forceinline__ int kqm_tree_row_of(int lane) { return 2 * (lane & 1) + (lane >> 1 & 1); }
__device__ __forceinline__ double kqm_tree_warp_of_rows(const double (&v)[kqm_tree_rows], int lane) {
  const bool odd = lane & 1, high = lane & 2;
  const double kept0 = odd ? v[2] : v[0], kept1 = odd ? v[3] : v[1], sent0 = odd ? v[0] : v[2],
               sent1 = odd ? v[1] : v[3];
  const double pair0 = kept0 + __shfl_xor_sync(~0u, sent0, 1), pair1 = kept1 + __shfl_xor_sync(~0u, sent1, 1);
  double sum = (high ? pair1 : pair0) + __shfl_xor_sync(~0u, high ? pair0 : pair1, 2);
  KQM_UNROLL
  for (int step = 4; step < 32; step *= 2) sum = sum + __shfl_xor_sync(~0u, sum, step);
  return sum;
}

// Numbers of a group of tree_sum (docs/arithmetic.md): a balanced tree of neighbours. Groups are added up one after the other.
static const int kqm_tree_group = 16, kqm_tree_levels = 4;
static_assert(1 << kqm_tree_levels == kqm_tree_group, "a level for each power of two");

// The groups of N sums side by side, whose numbers come one after the other. It counts like a binary counter: a number is added to the
// pending sum of as many numbers as it stands for, and the carry goes on to the next level.
template <int N>
struct KqmTreeGroups {
  // Sums of 1, 2, 4 and 8 neighbours, where the bit of how many numbers there were is set.
  double pending[kqm_tree_levels][N] = {};

  // `count` numbers were before these. Whether they complete a group.
  __device__ __forceinline__ bool add(double (&x)[N], int count) {
    carry<0>(x, count);
    return count % kqm_tree_group == kqm_tree_group - 1;
  }
  // The group that has just been completed.
  __device__ __forceinline__ double group(int i) const { return pending[0][i]; }
  // The `count` % 16 numbers behind the last group, padded with zeros: those are only added to something.
  __device__ __forceinline__ double tail(int i, int count) const {
    double sum = 0.0;
    KQM_UNROLL
    for (int level = 0; level < kqm_tree_levels; level++) {
      if (count >> level & 1) sum = sum + pending[level][i];
    }
    return sum;
  }
  // The tree_sum of all of `count` numbers, which are at most one group.
  __device__ __forceinline__ double sum(int i, int count) const {
    return (count == kqm_tree_group ? 0.0 + group(i) : 0.0) + tail(i, count);
  }

 private:
  template <int LEVEL>
  __device__ __forceinline__ void carry(double (&x)[N], int count) {
    const int level = LEVEL < kqm_tree_levels ? LEVEL : 0;
    if (LEVEL < kqm_tree_levels && (count >> LEVEL & 1)) {
      KQM_UNROLL
      for (int i = 0; i < N; i++) x[i] = x[i] + pending[level][i];
      carry < LEVEL<kqm_tree_levels ? LEVEL + 1 : kqm_tree_levels>(x, count);
    } else {
      KQM_UNROLL
      for (int i = 0; i < N; i++) pending[level][i] = x[i];
    }
  }
};

// The tree_sum of number(0) .. number(count - 1).
template <class Number>
__device__ __forceinline__ double kqm_tree_sum(Number number, int count) {
  KqmTreeGroups<1> groups;
  double sum = 0.0;
  KQM_LOOP
  for (int i = 0; i < count; i++) {
    double x[1] = {number(i)};
    if (groups.add(x, i)) sum = sum + groups.group(0);
  }
  return sum + groups.tail(0, count);
}

// The tree_sum of `count` numbers in shared memory, at first, first + stride, ....
__device__ __forceinline__ double kqm_tree_sum_shared(KQM_SHARED_ARG(double) numbers, int first, int stride,
                                                      int count) {
  return kqm_tree_sum([&](int i) { return double(numbers[first + i * stride]); }, count);
}

// The tree_sum of at most N numbers in shared memory, padded with zeros (kqm_zero_pad): N, a power of two, is known to the compiler, so
// that code which runs once is short and without branches.
template <int N>
__device__ __forceinline__ double kqm_tree_sum_padded(KQM_SHARED_ARG(double) numbers, int first, int stride) {
  static_assert(N <= kqm_tree_group && (N & (N - 1)) == 0, "one group");
  double x[N];
  KQM_UNROLL
  for (int i = 0; i < N; i++) x[i] = numbers[first + i * stride];
  KQM_UNROLL
  for (int step = 1; step < N; step *= 2) {
    KQM_UNROLL
    for (int i = 0; i < N; i += 2 * step) x[i] = x[i] + x[i + step];
  }
  return 0.0 + x[0];
}

// Zeros from `used` to `size`; all threads of the CTA call it, and a barrier comes before the zeros are read.
__device__ __forceinline__ void kqm_zero_pad(KQM_SHARED_ARG(double) numbers, int used, int size) {
  KQM_LOOP
  for (int i = used + int(threadIdx.x); i < size; i += int(blockDim.x)) numbers[i] = 0.0;
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
