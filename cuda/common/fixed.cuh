// Block fixed point (docs/arithmetic.md): one warp turns 256 activations into a kqm_fixed_block.
#pragma once

#include "hw.cuh"

static_assert(sizeof(kqm_fixed_block) == 1376, "kqm_fixed_block has padding");

// Where the parts of a fixed-point block are, in 32-bit words: digits [8][KQM_PLANES][8], sums' low digits [KQM_PLANES][2], their high
// digits [KQM_PLANES][2], the unit.
static const int kqm_fixed_sum_low = 8 * KQM_PLANES * 8, kqm_fixed_sum_high = kqm_fixed_sum_low + 2 * KQM_PLANES;
static const int kqm_fixed_unit = kqm_fixed_sum_high + 2 * KQM_PLANES, kqm_fixed_words = sizeof(kqm_fixed_block) / 4;

// Where the fixed-point block that a warp makes goes to, word by word.
struct KqmFixedInMemory {
  kqm_fixed_block *out;
  __device__ __forceinline__ void store(int word, uint32_t value) const {
    reinterpret_cast<uint32_t *>(out)[word] = value;
  }
  __device__ __forceinline__ void store(int word, uint2 value) const {
    *reinterpret_cast<uint2 *>(reinterpret_cast<uint32_t *>(out) + word) = value;
  }
};
struct KqmFixedInShared {
  KQM_SHARED_ARG(uint32_t) out;
  __device__ __forceinline__ void store(int word, uint32_t value) { out[word] = value; }
  __device__ __forceinline__ void store(int word, uint2 value) { kqm_shared_store<uint2>(out, word, value); }
};

// Stores a plane's sums over the eight sub-blocks, of which four neighbouring lanes have one: four sub-blocks' low digits make a word,
// and their high digits. The first lane of such sixteen stores, if it `stores` at all.
template <class Destination>
__device__ __forceinline__ void kqm_store_sums(int sum, int plane, bool stores, Destination out) {
  const int sub_block = (threadIdx.x & 31) / 4;
  // sum = low + 256 high with -128 <= low < 128, as two bytes.
  const uint32_t one = uint32_t(sum & 0xff) | uint32_t((sum + 128) & 0xff00);
  const uint32_t two = one | __shfl_xor_sync(~0u, one, 4) << 16, next_two = __shfl_xor_sync(~0u, two, 8);
  if (stores && sub_block % 4 == 0) {
    out.store(kqm_fixed_sum_low + plane * 2 + sub_block / 4, __byte_perm(two, next_two, 0x6420));
    out.store(kqm_fixed_sum_high + plane * 2 + sub_block / 4, __byte_perm(two, next_two, 0x7531));
  }
}

// Makes the digits and sums of 256 activations, lane l bringing 8 l .. 8 l + 7, and returns the unit. All 32 lanes call it.
template <class Destination>
__device__ __forceinline__ double kqm_fixed_warp(const float (&x)[8], Destination out) {
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

  // 2^(e-1) <= largest < 2^e; e = 0 for zeros alone.
  int e = 0;
  if (finite && largest > 0.0f) {
    const uint32_t bits = __float_as_uint(largest);
    e = bits >> 23 ? int(bits >> 23) - 126 : -117 - __clz(int(bits));
  }
  // x * 2^(22 - e) in two exact steps, because 2^(22 - e) itself may exceed f32. A product below the normal range is far
  // below 2^-17 and rounds to 0 whatever happens to its last bits.
  const int shift = 22 - e, first = min(shift, 100);
  const float scale0 = __int_as_float((first + 127) << 23), scale1 = __int_as_float((shift - first + 127) << 23);

  // X = 2^16 h + l: h is x * 2^(22 - e) rounded to an integer, l what that leaves in units of 2^-16. Adding 3 * 2^22 rounds a number
  // of at most 2^22 to an integer (nearest even) and leaves it in the low bits of the sum; no conversion is needed.
  // X = sum d_p 256^p with -128 <= d_p < 128 says that X + 128 (1 + 256 + ... + 256^4) has the bytes d_p + 128: additions make the
  // digits, and flipping each byte's top bit takes the 128 away again.
  const float round = 12582912.0f;
  const uint32_t round_bits = 0x4b400000u;
  uint32_t low[8], high[8];  // bytes: digits 0, 1; digits 2, 3, 4; each with 128 added
  KQM_UNROLL
  for (int i = 0; i < 8; i++) {
    const float scaled = finite ? __fmul_rn(__fmul_rn(x[i], scale0), scale1) : 0.0f;
    const float h = __fadd_rn(scaled, round);
    const float rest = __fadd_rn(scaled, -__fadd_rn(h, -round));
    low[i] = __float_as_uint(__fmaf_rn(rest, 65536.0f, round + 32896.0f)) -
             round_bits;  // 0x8080 = 32,896; bit 16 is a carry
    high[i] = __float_as_uint(h) - round_bits + 0x808080u + (low[i] >> 16);
  }
  // Four activations' digits by plane: a transpose of bytes.
  uint32_t packed[KQM_PLANES][2];
  int sum[KQM_PLANES] = {};
  KQM_UNROLL
  for (int half = 0; half < 2; half++) {
    const uint32_t *l = low + 4 * half, *h = high + 4 * half;
    const uint32_t low01 = __byte_perm(l[0], l[1], 0x5140), low23 = __byte_perm(l[2], l[3], 0x5140);
    const uint32_t high01 = __byte_perm(h[0], h[1], 0x5140), high23 = __byte_perm(h[2], h[3], 0x5140);
    const uint32_t top01 = __byte_perm(h[0], h[1], 0x0062), top23 = __byte_perm(h[2], h[3], 0x0062);
    packed[0][half] = __byte_perm(low01, low23, 0x5410);
    packed[1][half] = __byte_perm(low01, low23, 0x7632);
    packed[2][half] = __byte_perm(high01, high23, 0x5410);
    packed[3][half] = __byte_perm(high01, high23, 0x7632);
    packed[4][half] = __byte_perm(top01, top23, 0x5410);
    KQM_UNROLL
    for (int p = 0; p < KQM_PLANES; p++) {
      packed[p][half] ^= 0x80808080u;
      sum[p] = __dp4a(int(packed[p][half]), 0x01010101, sum[p]);
    }
  }
  const int sub_block = lane / 4, piece = lane % 4;
  KQM_UNROLL
  for (int p = 0; p < KQM_PLANES; p++) {
    out.store((sub_block * KQM_PLANES + p) * 8 + 2 * piece, make_uint2(packed[p][0], packed[p][1]));
    sum[p] += __shfl_xor_sync(~0u, sum[p], 1);
    sum[p] += __shfl_xor_sync(~0u, sum[p], 2);
  }
  // Four lanes share a sub-block: lane `piece` stores the sum of plane `piece`, lane 0 that of plane 4, too.
  const int mine = piece == 0 ? sum[0] : piece == 1 ? sum[1] : piece == 2 ? sum[2] : sum[3];
  kqm_store_sums(mine, piece, true, out);
  kqm_store_sums(sum[4], 4, piece == 0, out);
  // The exponent field of 2^(e - 38).
  return finite ? __longlong_as_double((long long)(e - 38 + 1023) << 52) : __longlong_as_double(0x7ff8000000000000ll);
}

// Makes a whole fixed-point block in global memory; out is 16-byte aligned.
__device__ __forceinline__ void kqm_quantize_warp(const float (&x)[8], kqm_fixed_block *out) {
  const double unit = kqm_fixed_warp(x, KqmFixedInMemory{out});
  if ((threadIdx.x & 31) == 0) {
    out->unit = unit;
    out->reserved = 0.0;
  }
}

// A fixed-point block in registers, between its load from memory and its store to a warp's part of shared memory: while the load is in
// flight, the warp does something else.
struct KqmFixedRegisterStage {
  uint4 part[3];

  __device__ __forceinline__ void load(const kqm_fixed_block *fixed) {
    KQM_UNROLL
    for (int i = 0; i < 3; i++) {
      if (present(i)) part[i] = reinterpret_cast<const uint4 *>(fixed)[at(i)];
    }
  }
  // Every lane of the warp may read all of it on return; a second call with the same words would race with those reads.
  __device__ __forceinline__ void store(KQM_SHARED_ARG(uint32_t) words) const {
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
