// tree_dot of docs/arithmetic.md: f64 dot products of f32 rows in an order that depends on the row alone.
#pragma once

#include "hw.cuh"

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

// The balanced tree over the warp's lanes, neighbours first. Every lane gets the sum: both sides of each exchange add the
// same two numbers.
__device__ __forceinline__ double kqm_tree_warp(double x) {
  KQM_UNROLL
  for (int step = 1; step < 32; step *= 2) x = x + __shfl_xor_sync(~0u, x, step);
  return x;
}
