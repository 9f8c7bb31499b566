// Block fixed point (docs/arithmetic.md): one warp turns 256 activations into a kqm_fixed_block.
#pragma once

#include "hw.cuh"

static_assert(sizeof(kqm_fixed_block) == 1104, "kqm_fixed_block has padding");

// A fixed-point block without its unit, as 32-bit words in shared memory: digits [8][4][8], sums' low digits [4][2] and high
// digits [4][2].
static const int kqm_fixed_words = 272;

// Where a warp's block goes, in words.
struct KqmGlobalBlock {
  kqm_fixed_block *out;
  __device__ __forceinline__ void store(int word, uint32_t value) const { reinterpret_cast<uint32_t *>(out)[word] = value; }
  __device__ __forceinline__ void store(int word, uint2 value) const {
    *reinterpret_cast<uint2 *>(reinterpret_cast<uint32_t *>(out) + word) = value;
  }
};
struct KqmSharedBlock {
  KQM_SHARED_ARG(uint32_t) out;
  __device__ __forceinline__ void store(int word, uint32_t value) { out[word] = value; }
  __device__ __forceinline__ void store(int word, uint2 value) { kqm_shared_store<uint2>(out, word, value); }
};

// Makes the digits and sums of 256 activations, lane l bringing 8 l .. 8 l + 7, and returns the unit. All 32 lanes call it.
template <class Block>
__device__ __forceinline__ double kqm_fixed_warp(const float (&x)[8], Block block) {
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

  // X = sum d_p 256^p with -128 <= d_p < 128 says that X + 128 (1 + 256 + 256^2 + 256^3) has the bytes d_p + 128: one
  // addition makes the digits, and flipping each byte's top bit takes the 128 away again.
  uint32_t digits[8];
  KQM_UNROLL
  for (int i = 0; i < 8; i++) {
    const int rounded = finite ? __float2int_rn(__fmul_rn(__fmul_rn(x[i], scale0), scale1)) : 0;
    digits[i] = (uint32_t(rounded) + 0x80808080u) ^ 0x80808080u;
  }
  // Four activations' digits by plane: a transpose of 4 x 4 bytes.
  uint32_t packed[4][2];
  int sum[4] = {};
  KQM_UNROLL
  for (int half = 0; half < 2; half++) {
    const uint32_t *d = digits + 4 * half;
    const uint32_t low01 = __byte_perm(d[0], d[1], 0x5140), low23 = __byte_perm(d[2], d[3], 0x5140);
    const uint32_t high01 = __byte_perm(d[0], d[1], 0x7362), high23 = __byte_perm(d[2], d[3], 0x7362);
    packed[0][half] = __byte_perm(low01, low23, 0x5410);
    packed[1][half] = __byte_perm(low01, low23, 0x7632);
    packed[2][half] = __byte_perm(high01, high23, 0x5410);
    packed[3][half] = __byte_perm(high01, high23, 0x7632);
    KQM_UNROLL
    for (int p = 0; p < 4; p++) sum[p] = __dp4a(int(packed[p][half]), 0x01010101, sum[p]);
  }
  const int sub_block = lane / 4, piece = lane % 4;
  KQM_UNROLL
  for (int p = 0; p < 4; p++) {
    block.store((sub_block * 4 + p) * 8 + 2 * piece, make_uint2(packed[p][0], packed[p][1]));
    sum[p] += __shfl_xor_sync(~0u, sum[p], 1);
    sum[p] += __shfl_xor_sync(~0u, sum[p], 2);
  }
  // Four lanes share a sub-block: lane `piece` has the sum of plane `piece`, and four sub-blocks make a word.
  const int mine = piece == 0 ? sum[0] : piece == 1 ? sum[1] : piece == 2 ? sum[2] : sum[3];
  const int low_digit = int(int8_t(mine & 255)), high_digit = (mine - low_digit) >> 8;
  uint32_t low = uint32_t(low_digit & 255) << (8 * (sub_block % 4)), high = uint32_t(high_digit & 255) << (8 * (sub_block % 4));
  KQM_UNROLL
  for (int step = 4; step <= 8; step *= 2) {
    low |= __shfl_xor_sync(~0u, low, step);
    high |= __shfl_xor_sync(~0u, high, step);
  }
  if (sub_block % 4 == 0) {
    block.store(256 + piece * 2 + sub_block / 4, low);
    block.store(264 + piece * 2 + sub_block / 4, high);
  }
  // The exponent field of 2^(e - 30).
  return finite ? __longlong_as_double((long long)(e - 30 + 1023) << 52) : __longlong_as_double(0x7ff8000000000000ll);
}

// The same to global memory, as a whole block; out is 16-byte aligned.
__device__ __forceinline__ void kqm_quantize_warp(const float (&x)[8], kqm_fixed_block *out) {
  const double unit = kqm_fixed_warp(x, KqmGlobalBlock{out});
  if ((threadIdx.x & 31) == 0) {
    out->unit = unit;
    out->reserved = 0.0;
  }
}

// A block on its way from memory to a warp's part of shared memory, but for its unit.
struct KqmBlockOnItsWay {
  uint4 part[3];

  __device__ __forceinline__ void load(const kqm_fixed_block *block) {
    KQM_UNROLL
    for (int i = 0; i < 3; i++) {
      if (present(i)) part[i] = reinterpret_cast<const uint4 *>(block)[at(i)];
    }
  }
  // Every lane of the warp may read the block on return.
  __device__ __forceinline__ void store(KQM_SHARED_ARG(uint32_t) words) const {
    __syncwarp();
    KQM_UNROLL
    for (int i = 0; i < 3; i++) {
      if (present(i)) kqm_shared_store<uint4>(words, 4 * at(i), part[i]);
    }
    __syncwarp();
  }

 private:
  __device__ __forceinline__ static int at(int i) { return 32 * i + (threadIdx.x & 31); }
  __device__ __forceinline__ static bool present(int i) { return 4 * at(i) < kqm_fixed_words; }
};
