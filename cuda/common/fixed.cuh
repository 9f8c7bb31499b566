// Block fixed point (docs/arithmetic.md): one warp turns 256 activations into a kqm_fixed_block.
#pragma once

#include "hw.cuh"

static_assert(sizeof(kqm_fixed_block) == 1104, "kqm_fixed_block has padding");

// Lane l brings activations 8 l .. 8 l + 7. All 32 lanes call it; out is 16-byte aligned.
__device__ __forceinline__ void kqm_quantize_warp(const float (&x)[8], kqm_fixed_block *out) {
  const int lane = threadIdx.x & 31;
  float largest = 0.0f;
  bool finite = true;
  KQM_UNROLL
  for (int i = 0; i < 8; i++) {
    const float magnitude = fabsf(x[i]);
    finite = finite && magnitude <= 3.402823466e38f;  // false for a NaN
    largest = fmaxf(largest, magnitude);
  }
  KQM_UNROLL
  for (int step = 16; step; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  finite = __all_sync(~0u, finite);

  // 2^(e-1) <= largest < 2^e; e = 0 for a block of zeros.
  int e = 0;
  if (finite && largest > 0.0f) {
    const uint32_t bits = __float_as_uint(largest);
    e = bits >> 23 ? int(bits >> 23) - 126 : -117 - __clz(int(bits));
  }
  // x * 2^(30 - e) in two exact steps, because 2^(30 - e) itself may exceed f32. A product below the normal range is far
  // below 1/2 and rounds to 0 whatever happens to its last bits.
  const int shift = 30 - e, first = min(shift, 100);
  const float scale0 = __int_as_float((first + 127) << 23), scale1 = __int_as_float((shift - first + 127) << 23);

  uint32_t packed[4][2] = {};
  int sum[4] = {};
  KQM_UNROLL
  for (int i = 0; i < 8; i++) {
    int rest = finite ? __float2int_rn(__fmul_rn(__fmul_rn(x[i], scale0), scale1)) : 0;
    KQM_UNROLL
    for (int p = 0; p < 4; p++) {
      const int digit = int(int8_t(rest & 255));
      rest = (rest - digit) >> 8;
      packed[p][i / 4] |= uint32_t(digit & 255) << (8 * (i % 4));
      sum[p] += digit;
    }
  }
  const int sub_block = lane / 4, piece = lane % 4;
  KQM_UNROLL
  for (int p = 0; p < 4; p++) {
    *reinterpret_cast<uint2 *>(&out->digit[sub_block][p][8 * piece]) = make_uint2(packed[p][0], packed[p][1]);
    sum[p] += __shfl_xor_sync(~0u, sum[p], 1);
    sum[p] += __shfl_xor_sync(~0u, sum[p], 2);
  }
  // Four lanes share a sub-block: lane `piece` stores the sum of plane `piece`.
  const int mine = piece == 0 ? sum[0] : piece == 1 ? sum[1] : piece == 2 ? sum[2] : sum[3];
  const int low = int(int8_t(mine & 255));
  out->sum_low[piece][sub_block] = int8_t(low);
  out->sum_high[piece][sub_block] = int8_t((mine - low) >> 8);
  if (lane == 0) {
    // The exponent field of 2^(e - 30).
    out->unit = finite ? __longlong_as_double((long long)(e - 30 + 1023) << 52) : __longlong_as_double(0x7ff8000000000000ll);
    out->reserved = 0.0;
  }
}
