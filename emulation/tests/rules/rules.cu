// One small kernel for each rule that the emulation checks, and some that come close without breaking it. The tests
// find the line of a violation by the words after "//! " on it.
#include "emulation.h"

namespace {

__device__ __forceinline__ uint32_t lane() { return threadIdx.x % 32; }

__global__ void barrier_without_some(int *out) {
  if (threadIdx.x >= 32) return; //! exit before barrier
  __syncthreads();               //! barrier after exit
  out[threadIdx.x] = 1;
}

__global__ void barriers_at_two_places(int *out) {
  if (threadIdx.x < 32)
    __syncthreads(); //! one barrier
  else
    __syncthreads(); //! other barrier
  out[threadIdx.x] = 1;
}

__global__ void shuffle_after_exit(int *out) {
  if (lane() == 7) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1); //! shuffle after exit
}

__global__ void warp_waits_at_barrier(int *out) {
  if (threadIdx.x == 3)
    __syncthreads(); //! lane 3 in barrier
  else
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1); //! others in shuffle
}

__global__ void shuffles_at_two_places(int *out) {
  if (lane() < 16)
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1); //! one shuffle
  else
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1); //! other shuffle
}

__global__ void masks_differ(int *out) {
  const uint32_t mask = lane() == 31 ? 0xffffffffu : 0x7fffffffu << (lane() == 30);
  out[threadIdx.x] = __any_sync(mask | 1u << lane(), 1); //! masks differ
}

__global__ void mask_without_caller(int *out) {
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0); //! mask without caller
}

__global__ void mask_of_absent_lanes(int *out) {
  out[threadIdx.x] = __all_sync(0xffffffffu, 1); //! absent lanes
}

__global__ void shuffle_from_outside(int *out) {
  if (lane() < 16) out[threadIdx.x] = __shfl_down_sync(0x0000ffffu, 1, 8); //! source outside mask
}

__global__ void shuffle_of_odd_width(int *out) {
  out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0, 12); //! odd width
}

__global__ void read_of_unwritten(int *out) {
  KQM_SHARED(int, values, 64);
  if (threadIdx.x != 5) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x]; //! unwritten element
}

__global__ void read_of_last_block(int *out) {
  KQM_SHARED(int, values, 64);
  if (blockIdx.x == 0) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x]; //! written by another block
}

__global__ void read_of_unwritten_byte(int *out) {
  KQM_SHARED(uint8_t, bytes, 256);
  for (int i = 0; i < 3; i++) bytes[4 * threadIdx.x + i] = 1;
  __syncwarp();
  out[threadIdx.x] = int(kqm_shared_load<uint32_t>(bytes, 4 * threadIdx.x)); //! word with an unwritten byte
}

__global__ void index_too_large(int *out) {
  KQM_SHARED(int, values, 63);
  values[threadIdx.x] = 1; //! index too large
  out[threadIdx.x] = 1;
}

__global__ void index_negative(int *out) {
  KQM_DYNAMIC_SHARED(int, values);
  values[int(threadIdx.x) - 1] = 1; //! negative index
  out[threadIdx.x] = 1;
}

__device__ void store_through_argument(KQM_SHARED_ARG(int) part, uint32_t i) {
  part[i] = 1; //! slice too short
}
__global__ void slice_too_short(int *out) {
  KQM_DYNAMIC_SHARED(int, values);
  store_through_argument(kqm_shared_offset(values, 4), threadIdx.x);
  out[threadIdx.x] = 1;
}

__global__ void vector_misaligned(int *out) {
  KQM_SHARED(float, values, 256);
  kqm_shared_store<float4>(values, 4 * threadIdx.x + (threadIdx.x == 9), make_float4(0, 1, 2, 3)); //! misaligned vector
  out[threadIdx.x] = 1;
}

__global__ void read_without_barrier(int *out) {
  KQM_SHARED(int, values, 64);
  values[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = values[63 - threadIdx.x]; //! read without barrier
}

// Everything is written once before, so that what is wrong is the order alone.
__global__ void read_across_warps(int *out) {
  KQM_SHARED(int, values, 64);
  values[threadIdx.x] = 0;
  __syncthreads();
  values[threadIdx.x] = int(threadIdx.x); //! write across warps
  __syncwarp();
  out[threadIdx.x] = values[(threadIdx.x + 32) % 64]; //! read across warps
}

__global__ void write_after_read(int *out) {
  KQM_SHARED(int, values, 64);
  values[threadIdx.x] = 0;
  __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % 64]; //! read before write
  values[threadIdx.x] = 1; //! write after read
}

__global__ void writes_of_two(int *out) {
  KQM_SHARED(int, value, 1);
  value[0] = 1; //! writes of two
  __syncthreads();
  out[threadIdx.x] = value[0];
}

__global__ void bytes_of_two(int *out) {
  KQM_SHARED(uint8_t, bytes, 64);
  bytes[threadIdx.x] = 1; //! own byte
  bytes[threadIdx.x ^ 1] = 2; //! bytes of two
  out[threadIdx.x] = 1;
}

// Lane 3 writes and lane 9 reads, or the other way round; what is between them is a warp operation that orders no memory.
template <class Between> __device__ void write_between_read(int *out, Between between) {
  KQM_SHARED(int, values, 2);
  if (lane() == 0) values[threadIdx.x / 32] = 0;
  __syncwarp();
  if (lane() == 3) values[threadIdx.x / 32] = 1; //! write before no barrier
  between();
  if (lane() == 9) out[threadIdx.x] = values[threadIdx.x / 32]; //! read after no barrier
}
__global__ void shuffle_orders_nothing(int *out) {
  write_between_read(out, [] { __shfl_xor_sync(0xffffffffu, 1, 1); });
}
__global__ void vote_orders_nothing(int *out) {
  write_between_read(out, [] { __any_sync(0xffffffffu, 1); });
}
__global__ void reduction_orders_nothing(int *out) {
  write_between_read(out, [] { kqm_reduce_max(1); });
}
__global__ void product_orders_nothing(int *out) {
  write_between_read(out, [] {
    int32_t d[4] = {};
    kqm_mma_m16n8k16(d, 1, 2, 3);
  });
}
__global__ void warp_barrier_orders(int *out) {
  write_between_read(out, [] { __syncwarp(); });
  out[threadIdx.x] = 1;
}
__global__ void shuffle_before_write(int *out) {
  KQM_SHARED(int, values, 2);
  if (lane() == 0) values[threadIdx.x / 32] = 0;
  __syncwarp();
  if (lane() == 9) out[threadIdx.x] = values[threadIdx.x / 32]; //! read before shuffle
  __shfl_xor_sync(0xffffffffu, 1, 1);
  if (lane() == 3) values[threadIdx.x / 32] = 1; //! write after shuffle
}

// One thread of each warp, and not the same lane.
__global__ void writes_of_two_warps(int *out) {
  KQM_SHARED(int, value, 1);
  if (threadIdx.x == 5) value[0] = 1;  //! write of warp 0
  if (threadIdx.x == 40) value[0] = 2; //! write of warp 1
  __syncthreads();
  out[threadIdx.x] = value[0];
}
__global__ void warp_0_reads_warp_1_writes(int *out) {
  KQM_SHARED(int, value, 1);
  if (threadIdx.x == 63) value[0] = 1;
  __syncthreads();
  if (threadIdx.x == 5) out[0] = value[0]; //! read of warp 0
  if (threadIdx.x == 40) value[0] = 2;     //! write of warp 1 after it
}
__global__ void warp_1_reads_warp_0_writes(int *out) {
  KQM_SHARED(int, value, 1);
  if (threadIdx.x == 63) value[0] = 1;
  __syncthreads();
  if (threadIdx.x == 40) out[0] = value[0]; //! read of warp 1
  if (threadIdx.x == 5) value[0] = 2;       //! write of warp 0 beside it
}
// The writer's warp has read last, and in order.
__global__ void both_warps_read(int *out) {
  KQM_SHARED(int, value, 1);
  if (threadIdx.x == 63) value[0] = 1;
  __syncthreads();
  if (threadIdx.x == 5) out[0] = value[0];  //! other warp's read
  if (threadIdx.x == 40) out[1] = value[0];
  if (threadIdx.x >= 32) __syncwarp();
  if (threadIdx.x == 50) value[0] = 2; //! write after own warp's read
}
__global__ void lane_reads_other_writes(int *out) {
  KQM_SHARED(int, value, 1);
  if (threadIdx.x == 63) value[0] = 1;
  __syncthreads();
  if (threadIdx.x == 4) out[0] = value[0]; //! read of lane 4
  if (threadIdx.x == 9) value[0] = 2;      //! write of lane 9
}
// Both read, one of them once more behind the barrier: the other one may write, the one may not.
template <int WRITER> __device__ void writes_after_reads(int *out) {
  KQM_SHARED(int, value, 1);
  if (threadIdx.x == 63) value[0] = 1;
  __syncthreads();
  if (threadIdx.x < 32) {
    out[0] = value[0];
    __syncwarp();
    if (lane() == 4) out[1] = value[0];    //! read behind the barrier
    if (lane() == WRITER) value[0] = 2;    //! write behind the barrier
  }
  __syncthreads();
  out[threadIdx.x] = value[0];
}
__global__ void reader_writes(int *out) { writes_after_reads<4>(out); }
__global__ void other_lane_writes(int *out) { writes_after_reads<9>(out); }
// The last atomic operation is ordered with the read, the one of warp 0 is not.
__global__ void atomic_hides_atomic(int *out) {
  KQM_SHARED(int, sum, 1);
  if (threadIdx.x == 63) sum[0] = 0;
  __syncthreads();
  if (threadIdx.x == 5 || threadIdx.x == 40) kqm_shared_atomic_add(sum, 0, 1); //! atomic of both warps
  if (threadIdx.x >= 32) __syncwarp();
  if (threadIdx.x == 41) out[0] = sum[0]; //! read after one of them
}
__global__ void own_atomic_hides_atomic(int *out) {
  KQM_SHARED(int, sum, 1);
  if (threadIdx.x == 63) sum[0] = 0;
  __syncthreads();
  if (threadIdx.x == 5 || threadIdx.x == 7) kqm_shared_atomic_add(sum, 0, 1); //! atomic of both lanes
  if (threadIdx.x == 7) out[0] = sum[0];                                       //! read after the own one
}

__global__ void written_after_barrier(int *out) {
  KQM_SHARED(int, values, 64);
  out[threadIdx.x] = values[63 - threadIdx.x]; //! read before any write
  __syncthreads();
  values[threadIdx.x] = 1; //! first write
}
__global__ void garbage_as_index(int *out) {
  KQM_SHARED(int, values, 64);
  *reinterpret_cast<int *>(uintptr_t(out) + (uint64_t(int64_t(values[threadIdx.x])) << 22)) = 1; //! index of garbage
}

__global__ void load_ends_outside(int *out) {
  KQM_SHARED(float, values, 254);
  for (int i = threadIdx.x; i < 254; i += 64) values[i] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = int(kqm_shared_load<float4>(values, 4 * threadIdx.x).x); //! load ends outside
}
__global__ void store_ends_outside(int *out) {
  KQM_SHARED(uint8_t, bytes, 255);
  kqm_shared_store<uint32_t>(bytes, 4 * threadIdx.x, 1u); //! store ends outside
  out[threadIdx.x] = 1;
}
__global__ void copy_ends_outside(int *out, const int *in) {
  KQM_SHARED(int, values, 253);
  kqm_async_copy_16(values, 4 * threadIdx.x, in + 4 * threadIdx.x); //! copy ends outside
  kqm_async_commit();
  kqm_async_wait<0>();
  out[threadIdx.x] = 1;
}

// Programmatic dependent launch. The tests launch chains of these.
__global__ void writes(int *out) {
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  out[threadIdx.x] = 1;
}
__global__ void copies(int *out, const int *in) {
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  out[threadIdx.x] = in[threadIdx.x]; //! copies
}
__global__ void waits_first(int *out) {
  kqm_wait_for_dependencies();
  kqm_release_dependents();
  out[threadIdx.x] = 1;
}
// One warp of one block releases too early.
__global__ void one_releases_first(int *out) {
  if (blockIdx.x == 1 && threadIdx.x >= 32) kqm_release_dependents();
  kqm_wait_for_dependencies();
  kqm_release_dependents();
  out[threadIdx.x] = 1;
}
__global__ void never_releases(int *out) {
  kqm_wait_for_dependencies();
  out[threadIdx.x] = 1;
}
__global__ void never_waits(int *out) {
  kqm_release_dependents();
  if (threadIdx.x == 1000) out[0] = 1;
}
__global__ void reads_early(int *out, const int *in) {
  const int value = in[threadIdx.x]; //! reads early
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  out[threadIdx.x] = value;
}
__global__ void reads_elsewhere_early(int *out, const int *in) {
  const int value = in[64 + threadIdx.x % 2];
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  out[threadIdx.x] = value;
}
__global__ void copies_to_shared_early(int *out, const int *in) {
  KQM_SHARED(int, values, 256);
  if (threadIdx.x < 16) kqm_async_copy_16(values, 4 * threadIdx.x, in + 4 * threadIdx.x); //! copies early
  kqm_async_commit();
  kqm_wait_for_dependencies();
  kqm_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}
__global__ void writes_early(int *out) {
  out[threadIdx.x] = 1; //! writes early
  kqm_release_dependents();
  kqm_wait_for_dependencies();
}
__global__ void one_waits_for_all(int *out, const int *in) {
  if (threadIdx.x == 40) kqm_wait_for_dependencies();
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}
__global__ void one_waits_for_itself(int *out, const int *in) {
  if (threadIdx.x == 40) kqm_wait_for_dependencies();
  const int value = in[threadIdx.x]; //! others have not waited
  __syncthreads();
  out[threadIdx.x] = value;
}

// What becomes of a NaN, in bits that no kernel stores.
__global__ void nan_payloads(int *out) {
  KQM_SHARED(double, wide, 64);
  const float nan = __uint_as_float(0x7fc00000u), infinity = __uint_as_float(0x7f800000u);
  wide[threadIdx.x] = double(nan);
  const float results[] = {
      __fadd_rn(nan, 1.0f), __fmul_rn(2.0f, nan), __fmaf_rn(1.0f, 2.0f, nan), fmaf(infinity, 0.0f, 1.0f),
      __fsub_rn(infinity, infinity), __fdiv_rn(0.0f, 0.0f), __fsqrt_rn(-1.0f), kqm_max_or_nan(nan, 1.0f), fmaxf(nan, nan),
      kqm_half_to_float(0x7e00), float(__ddiv_rn(double(nan), 1.0)), float(fma(1.0, 1.0, double(nan))), float(wide[threadIdx.x]),
      float(kqm_shared_load<double>(wide, threadIdx.x)), __double2float_rn(double(nan)),
  };
  int wrong = 0;
  for (const float result : results) wrong += __float_as_uint(result) != 0x7fffffffu;
  out[threadIdx.x] = wrong;
}

__global__ void block_order(int *out) {
  if (threadIdx.x == 0) out[blockIdx.x] = int(atomicAdd(reinterpret_cast<unsigned int *>(out + 65), 1u));
}

__global__ void half_warps_apart(int *out) {
  KQM_SHARED(int, values, 64);
  values[threadIdx.x] = 0;
  __syncwarp();
  values[threadIdx.x] = 1; //! write of a half warp
  if (lane() < 16)
    __syncwarp(0x0000ffffu);
  else
    __syncwarp(0xffff0000u);
  out[threadIdx.x] = values[threadIdx.x ^ 16]; //! half warps apart
}

__global__ void atomic_and_plain(int *out) {
  KQM_SHARED(int, sum, 1);
  if (threadIdx.x == 0) sum[0] = 0;
  __syncthreads();
  kqm_shared_atomic_add(sum, 0, 1); //! atomic beside plain reads
  out[threadIdx.x] = sum[0]; //! plain read beside atomics
}

__global__ void copy_not_awaited(int *out, const int *in) {
  KQM_SHARED(int, values, 256);
  kqm_async_copy_16(values, 4 * threadIdx.x, in + 4 * threadIdx.x);
  kqm_async_commit();
  out[threadIdx.x] = values[4 * threadIdx.x]; //! copy not awaited
}

__global__ void newest_copy_not_awaited(int *out, const int *in) {
  KQM_SHARED(int, values, 512);
  for (int i = 0; i < 2; i++) {
    kqm_async_copy_16(values, 256 * i + 4 * threadIdx.x, in + 4 * threadIdx.x);
    kqm_async_commit();
  }
  kqm_async_wait<1>();
  out[threadIdx.x] = values[4 * threadIdx.x];
  out[threadIdx.x] = values[256 + 4 * threadIdx.x]; //! newest copy not awaited
}

__global__ void copy_without_barrier(int *out, const int *in) {
  KQM_SHARED(int, values, 256);
  kqm_async_copy_16(values, 4 * threadIdx.x, in + 4 * threadIdx.x);
  kqm_async_commit();
  kqm_async_wait<0>();
  out[threadIdx.x] = values[4 * threadIdx.x ^ 4]; //! copy without barrier
}

__global__ void read_past_end(int *out, const int *in) { out[threadIdx.x] = in[256 + 4 * threadIdx.x]; }
// Farther than a page: another row, tile or expert.
__global__ void read_far_past_end(int *out, const int *in) { out[threadIdx.x] = in[200000 + threadIdx.x]; }
__global__ void read_far_before_begin(int *out, const int *in) { out[threadIdx.x] = in[-200000 - int(threadIdx.x)]; }
__global__ void read_before_begin(int *out, const int *in) { out[threadIdx.x] = __ldg(in - 1000 - threadIdx.x); }
__global__ void read_null(int *out, const int *) { out[threadIdx.x] = *reinterpret_cast<const volatile int *>(blockDim.y - 1); }
__global__ void write_past_end(int *out) { out[65 + threadIdx.x % 3] = 1; }
__global__ void global_misaligned(int *out, const int *in) {
  out[threadIdx.x] = int(kqm_load_streaming(reinterpret_cast<const uint4 *>(in + 1)).x); //! misaligned global vector
}

__attribute__((noinline)) unsigned int dig(volatile unsigned int *above, unsigned int depth) {
  volatile unsigned int here[64];
  here[0] = depth + above[0];
  return depth == 0 ? here[0] : dig(here, depth - 1) + here[0];
}
__global__ void endless_recursion(int *out) {
  volatile unsigned int start = 1;
  out[threadIdx.x] = int(dig(&start, 1u << 30));
}

__global__ void division_by_zero(int *out, const int *in) { out[threadIdx.x] = 7 / in[0]; }

__global__ void endless_loop(int *out) {
  volatile int turn = 1;
  while (turn) turn = turn | 2;
  out[threadIdx.x] = turn;
}

__global__ void endless_polling(int *out) {
  while (atomicAdd(reinterpret_cast<unsigned int *>(out), 0u) != 77) { //! endless polling
  }
}

__global__ void too_much_shared(int *out) {
  KQM_SHARED(int, values, 10000);
  KQM_SHARED(int, more, 10000);
  values[threadIdx.x] = 1;
  more[threadIdx.x] = 1; //! too much shared
  out[threadIdx.x] = 1;
}

// Kernels that break no rule.

__global__ void lanes_meet_in_parts(int *out) {
  // Halves meet among themselves, then all of them: the second half already waits for the first one's lanes.
  int value = int(lane());
  if (lane() < 16) {
    value += __shfl_xor_sync(0x0000ffffu, value, 1);
    value += __shfl_xor_sync(0x0000ffffu, value, 2);
  }
  value += __shfl_xor_sync(0xffffffffu, value, 16);
  if (lane() % 2) value += __shfl_xor_sync(0xaaaaaaaau, value, 2);
  out[threadIdx.x] = value;
}

__global__ void ordered_in_parts(int *out) {
  KQM_SHARED(int, values, 64);
  values[threadIdx.x] = int(threadIdx.x);
  if (lane() < 16)
    __syncwarp(0x0000ffffu);
  else
    __syncwarp(0xffff0000u);
  int value = values[threadIdx.x ^ 8];
  // 0-7 know of 8-15 by the first meeting, 16-23 of 0-7 by this one: 16-23 may overwrite what 8-15 wrote.
  if (lane() < 8 || (lane() >= 16 && lane() < 24)) __syncwarp(0x00ff00ffu);
  if (lane() >= 16 && lane() < 24) values[threadIdx.x - 8] = -1;
  __syncthreads();
  value += 1000 * values[threadIdx.x];
  out[threadIdx.x] = value;
}

__global__ void polling_within_block(int *out) {
  unsigned int *const flag = reinterpret_cast<unsigned int *>(out + 64);
  if (threadIdx.x == 63)
    atomicExch(flag, 1u);
  else
    while (atomicCAS(flag, 1u, 1u) != 1u) {
    }
  out[threadIdx.x] = 1;
}

__global__ void atomics_on_shared(int *out) {
  KQM_SHARED(int, sum, 2);
  if (threadIdx.x < 2) sum[threadIdx.x] = 0;
  __syncthreads();
  kqm_shared_atomic_add(sum, 0, int(threadIdx.x));
  kqm_shared_atomic_max(sum, 1, int(threadIdx.x));
  __syncthreads();
  out[threadIdx.x] = sum[0] * 100 + sum[1];
}

__global__ void votes(int *out) {
  const int odd = threadIdx.x & 1;
  int value = int(__popc(__ballot_sync(0xffffffffu, odd)));
  value += 100 * __syncthreads_count(odd);
  value += 10000 * __syncthreads_or(threadIdx.x == 40);
  value += 20000 * __syncthreads_and(threadIdx.x == 40);
  value += 100000 * (__any_sync(0xffffffffu, lane() == 3) + __all_sync(0xffffffffu, lane() == 3));
  out[threadIdx.x] = value;
}

__global__ void shuffles(int *out) {
  const uint32_t i = lane();
  long long sum = __shfl_sync(0xffffffffu, (long long)i << 33, 5) >> 33;
  sum += (long long)__shfl_up_sync(0xffffffffu, double(i), 3) * 100;
  sum += (long long)__shfl_down_sync(0xffffffffu, float(i), 3, 8) * 10000;
  sum += (long long)__shfl_xor_sync(0xffffffffu, (unsigned long long)i, 31) * 1000000;
  sum += __shfl_sync(0xffffffffu, int(i), 9, 8) * 100000000ll;
  out[threadIdx.x] = int(sum % 1000000007);
}

// Two arrays of the same name, a slice, every operator, elements of one byte and of eight.
__global__ void shared_elements(int *out) {
  KQM_SHARED(double, wide, 64);
  int value = 0;
  {
    KQM_SHARED(uint8_t, bytes, 64);
    bytes[threadIdx.x] = uint8_t(threadIdx.x);
    bytes[threadIdx.x] |= 128;
    bytes[threadIdx.x] += 1;
    value += bytes[threadIdx.x];
  }
  {
    KQM_SHARED(int, bytes, 64);
    bytes[threadIdx.x] = 5;
    bytes[threadIdx.x] *= 3;
    wide[threadIdx.x] = bytes[threadIdx.x];
    const auto part = kqm_shared_offset(bytes, threadIdx.x & ~3u);
    __syncthreads();
    value += kqm_shared_load<int4>(part, 0).y;
  }
  out[threadIdx.x] = value + int(wide[threadIdx.x] * 2.0);
}

struct rule {
  const char *name;
  int32_t (*launch)(int *, const int *, uint32_t);
};
#define KQM_RULE(name)                                                                                                  \
  {#name, [](int *out, const int *, uint32_t threads) { return KQM_LAUNCH(name, 2, threads, 256, nullptr, out); }}
#define KQM_RULE_WITH_INPUT(name)                                                                                       \
  {#name, [](int *out, const int *in, uint32_t threads) { return KQM_LAUNCH(name, 2, threads, 256, nullptr, out, in); }}
const rule RULES[] = {
    KQM_RULE(barrier_without_some), KQM_RULE(barriers_at_two_places), KQM_RULE(shuffle_after_exit),
    KQM_RULE(warp_waits_at_barrier), KQM_RULE(shuffles_at_two_places), KQM_RULE(masks_differ),
    KQM_RULE(mask_without_caller), KQM_RULE(mask_of_absent_lanes), KQM_RULE(shuffle_from_outside),
    KQM_RULE(shuffle_of_odd_width), KQM_RULE(read_of_unwritten), KQM_RULE(read_of_last_block),
    KQM_RULE(read_of_unwritten_byte), KQM_RULE(index_too_large), KQM_RULE(index_negative), KQM_RULE(slice_too_short),
    KQM_RULE(vector_misaligned), KQM_RULE(read_without_barrier), KQM_RULE(read_across_warps),
    KQM_RULE(write_after_read), KQM_RULE(writes_of_two), KQM_RULE(bytes_of_two), KQM_RULE(half_warps_apart),
    KQM_RULE(atomic_and_plain), KQM_RULE(write_past_end), KQM_RULE(endless_recursion), KQM_RULE(endless_loop),
    KQM_RULE(endless_polling), KQM_RULE(too_much_shared), KQM_RULE(lanes_meet_in_parts), KQM_RULE(ordered_in_parts),
    KQM_RULE(polling_within_block), KQM_RULE(atomics_on_shared), KQM_RULE(votes), KQM_RULE(shuffles),
    KQM_RULE(shared_elements), KQM_RULE_WITH_INPUT(copy_not_awaited), KQM_RULE_WITH_INPUT(newest_copy_not_awaited),
    KQM_RULE_WITH_INPUT(copy_without_barrier), KQM_RULE_WITH_INPUT(read_past_end),
    KQM_RULE_WITH_INPUT(read_before_begin), KQM_RULE_WITH_INPUT(read_far_past_end),
    KQM_RULE_WITH_INPUT(read_far_before_begin), KQM_RULE_WITH_INPUT(read_null), KQM_RULE_WITH_INPUT(global_misaligned),
    KQM_RULE_WITH_INPUT(division_by_zero), KQM_RULE(shuffle_orders_nothing), KQM_RULE(vote_orders_nothing),
    KQM_RULE(reduction_orders_nothing), KQM_RULE(product_orders_nothing), KQM_RULE(warp_barrier_orders),
    KQM_RULE(shuffle_before_write), KQM_RULE(writes_of_two_warps), KQM_RULE(warp_0_reads_warp_1_writes),
    KQM_RULE(warp_1_reads_warp_0_writes), KQM_RULE(both_warps_read), KQM_RULE(lane_reads_other_writes),
    KQM_RULE(reader_writes), KQM_RULE(other_lane_writes), KQM_RULE(atomic_hides_atomic), KQM_RULE(own_atomic_hides_atomic),
    KQM_RULE(written_after_barrier), KQM_RULE(garbage_as_index), KQM_RULE(load_ends_outside), KQM_RULE(store_ends_outside),
    KQM_RULE_WITH_INPUT(copy_ends_outside), KQM_RULE(writes), KQM_RULE_WITH_INPUT(copies), KQM_RULE(waits_first),
    KQM_RULE(one_releases_first), KQM_RULE(never_releases), KQM_RULE(never_waits), KQM_RULE_WITH_INPUT(reads_early),
    KQM_RULE_WITH_INPUT(reads_elsewhere_early), KQM_RULE_WITH_INPUT(copies_to_shared_early), KQM_RULE(writes_early),
    KQM_RULE_WITH_INPUT(one_waits_for_all), KQM_RULE_WITH_INPUT(one_waits_for_itself), KQM_RULE(nan_payloads),
};

} // namespace

// Runs a kernel by its name on two blocks. `out` has 66 elements, `in` 256.
KQM_EMULATION_EXPORT int32_t test_rule(const char *name, int *out, const int *in, uint32_t threads) {
  for (const rule &rule : RULES)
    if (strcmp(rule.name, name) == 0) return rule.launch(out, in, threads);
  return -1;
}

KQM_EMULATION_EXPORT int32_t test_block_order(int *out, uint32_t blocks) {
  return KQM_LAUNCH(block_order, blocks, 32, 0, nullptr, out);
}

KQM_EMULATION_EXPORT int32_t test_launch(int *out, uint32_t grid, uint32_t threads, size_t dynamic_shared_bytes) {
  return KQM_LAUNCH(endless_loop, grid, threads, dynamic_shared_bytes, nullptr, out);
}
