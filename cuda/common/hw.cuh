// What the kernels need of the hardware, each thing once: shared memory, launches, and the instructions that have no C++
// name. The CPU emulation (emulation/include/emulation.h) gives the same names a plain C++ meaning, so no kernel source
// knows which of the two it is compiled for.
#pragma once

#define KQM_IMPLEMENTATION
#include "../kquant_moe.h"

// The files of the kernels define launchers between KQM_ABI_BEGIN and KQM_ABI_END. They are the library's own, in a namespace;
// table.cu exports them, between the other two, under the names that the header declares.
#undef KQM_ABI_BEGIN
#undef KQM_ABI_END
#if defined(KQM_EMULATION)
#define KQM_EXPORTS_BEGIN namespace kqm_emulated {
#define KQM_ABI_BEGIN      \
  namespace kqm_emulated { \
  namespace kqm_launchers {
#define KQM_ABI_END \
  }                 \
  }
#else
#define KQM_EXPORTS_BEGIN extern "C" {
#define KQM_ABI_BEGIN namespace kqm_launchers {
#define KQM_ABI_END }
#endif
#define KQM_EXPORTS_END }

#if defined(KQM_EMULATION)
#include "emulation.h"
using namespace kqm_emulated;
#else

#include "flags.cuh"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

// Shared memory goes through these names so that the emulation can check every access.
#define KQM_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define KQM_SHARED_ARG(type) type *
#define KQM_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(16) unsigned char kqm_dynamic_shared_[]; \
  type *name = reinterpret_cast<type *>(kqm_dynamic_shared_)
#define KQM_UNROLL _Pragma("unroll")
#define KQM_LOOP _Pragma("unroll 1")

// Elements index .. of a shared array, read or written as one vector.
template <class V, class T>
__device__ __forceinline__ V kqm_shared_load(const T *array, int index) {
  return *reinterpret_cast<const V *>(array + index);
}
template <class V, class T>
__device__ __forceinline__ void kqm_shared_store(T *array, int index, V value) {
  *reinterpret_cast<V *>(array + index) = value;
}
template <class T>
__device__ __forceinline__ T *kqm_shared_offset(T *array, int elements) {
  return array + elements;
}
template <class T>
__device__ __forceinline__ T kqm_shared_atomic_add(T *array, int index, T value) {
  return atomicAdd(array + index, value);
}

// 16 bytes from memory to elements index .. of a shared array, while the thread goes on: kqm_async_commit() makes a group of those since
// the last one, and kqm_async_wait<N>() waits for all but the N newest groups of the thread.
template <class T>
__device__ __forceinline__ void kqm_async_copy_16(T *array, int index, const void *source) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(array + index));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(source) : "memory");
}
// The same of four bytes.
template <class T>
__device__ __forceinline__ void kqm_async_copy_4(T *array, int index, const void *source) {
  const uint32_t place = uint32_t(__cvta_generic_to_shared(array + index));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(place), "l"(source) : "memory");
}
__device__ __forceinline__ void kqm_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int NEWEST>
__device__ __forceinline__ void kqm_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
}

// d += A B on 8-bit integers, A without and B with a sign, 16 x 32 by 32 x 8. Lane 4 g + c holds, of A, row g (a0, a2) and row
// g + 8 (a1, a3) at k = 4c .. 4c + 3 (a0, a1) and 16 + 4c .. (a2, a3); of B, column g at the same k (b0, b1); of D, row g
// (d[0], d[1]) and row g + 8 (d[2], d[3]) at columns 2c and 2c + 1.
__device__ __forceinline__ void kqm_mma_m16n8k32(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                 uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same with a signed A.
__device__ __forceinline__ void kqm_mma_m16n8k32_signed(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                        uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// d += A B with k = 16 and a signed A: 16 x 16 by 16 x 8. a0 has row g, a1 row g + 8, b0 column g, all at k = 4c .. 4c + 3.
__device__ __forceinline__ void kqm_mma_m16n8k16(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

// D += A B in f64, 8 x 4 by 4 x 8: lane 4 g + c holds row g of A at k = c, column g of B at k = c, row g of D at columns 2 c and 2 c + 1. The
// order of its sums is the card's own: only for numbers whose sums are exact in any.
__device__ __forceinline__ void kqm_mma_f64(double (&d)[2], double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
      : "+d"(d[0]), "+d"(d[1])
      : "d"(a), "d"(b));
}

// Barriers that warps arrive at without waiting and wait for without arriving (PTX's mbarrier): eight bytes of shared memory at elements
// index .. of an array, whose phases each complete when `warps` warps have arrived. One thread makes all that a CTA has and calls
// kqm_barriers_made(); the CTA's own barrier comes before their use.
template <class T>
__device__ __forceinline__ void kqm_barrier_make(T *array, int index, uint32_t warps) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(uint32_t(__cvta_generic_to_shared(array + index))), "r"(warps)
               : "memory");
}
__device__ __forceinline__ void kqm_barriers_made() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// A warp arrives: what its lanes did before comes before what follows a wait for the phase. All lanes call it.
template <class T>
__device__ __forceinline__ void kqm_barrier_arrive(T *array, int index) {
  __syncwarp();
  if ((threadIdx.x & 31) == 0)
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(
                     uint32_t(__cvta_generic_to_shared(array + index)))
                 : "memory");
}
// Waits until the phase of that parity is complete; phases count from 0.
template <class T>
__device__ __forceinline__ void kqm_barrier_wait(T *array, int index, uint32_t parity) {
  asm volatile(
      "{ .reg .pred done; AGAIN: mbarrier.try_wait.parity.shared.b64 done, [%0], %1; @done bra DONE; bra AGAIN; DONE: "
      "}" ::"r"(uint32_t(__cvta_generic_to_shared(array + index))),
      "r"(parity)
      : "memory");
}

// Products of a warpgroup (wgmma), which only code for sm_90a has: KQM_WARPGROUPS says whether this is it.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define KQM_WARPGROUPS 1
#else
#define KQM_WARPGROUPS 0
#endif
// What a kernel for warpgroups is where there are none: launchers never launch it there.
__device__ __forceinline__ void kqm_no_warpgroups() { asm volatile("trap;"); }
#if KQM_WARPGROUPS
// Asynchronous copies of the thread that it has waited for are visible to products of whoever waits for a barrier that it arrives at.
__device__ __forceinline__ void kqm_async_copies_for_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// D += A B on 8-bit integers, 64 x 32 by 32 x N, or D = A B unless it `adds`; all four warps of a group together. Warp w of them has rows
// 16 w .. 16 w + 15 of A and D: in registers, as kqm_mma_m16n8k32 has them (d[4 o + i] of columns 8 o .. 8 o + 7). A is without a sign unless
// SIGNED; B, with one, is in shared memory: [N / 8][half of k][column % 8][16 bytes], from element `index` of the array on.
// Begin, products, commit, wait: the registers of a product are free, and its D can be read, after a wait for its group.
template <int N, bool SIGNED>
struct KqmWarpgroupMma;
#define KQM_D8(d, i)                                                                                          \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), \
      "+r"(d[i + 7])
#define KQM_WARPGROUP_MMA_16(is_signed, type)                                                                    \
  template <>                                                                                                    \
  struct KqmWarpgroupMma<16, is_signed> {                                                                        \
    __device__ __forceinline__ static void call(int32_t (&d)[8], const uint32_t (&a)[4], uint64_t b, int adds) { \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %13, 0; wgmma.mma_async.sync.aligned.m64n16k32.s32." type     \
                   ".s8 "                                                                                        \
                   "{%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, p; }"                                       \
                   : KQM_D8(d, 0)                                                                                \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));                             \
    }                                                                                                            \
  };
#define KQM_WARPGROUP_MMA_32(is_signed, type)                                                                     \
  template <>                                                                                                     \
  struct KqmWarpgroupMma<32, is_signed> {                                                                         \
    __device__ __forceinline__ static void call(int32_t (&d)[16], const uint32_t (&a)[4], uint64_t b, int adds) { \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %21, 0; wgmma.mma_async.sync.aligned.m64n32k32.s32." type      \
                   ".s8 "                                                                                         \
                   "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, p; }"        \
                   : KQM_D8(d, 0), KQM_D8(d, 8)                                                                   \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));                              \
    }                                                                                                             \
  };
KQM_WARPGROUP_MMA_16(false, "u8")
KQM_WARPGROUP_MMA_16(true, "s8")
KQM_WARPGROUP_MMA_32(false, "u8")
KQM_WARPGROUP_MMA_32(true, "s8")
#undef KQM_WARPGROUP_MMA_32
#undef KQM_WARPGROUP_MMA_16
#undef KQM_D8
// Where B is: words from a place in shared memory on. It is a descriptor of a matrix without a swizzle, core matrices of eight rows x 16
// bytes, the next one in k 128 bytes on, the next one in N 256. Addresses in it count 16 bytes, so what is a multiple of that is added
// to the descriptor itself: one instruction, where making it anew takes four that depend on each other, between any two products.
struct KqmWarpgroupOperand {
  uint32_t low;

  template <class T>
  __device__ __forceinline__ KqmWarpgroupOperand(const T *array, int index)
      // The same in all lanes, which the compiler has to be shown for it to stay in one register of the warp.
      : low(__shfl_sync(~0u, uint32_t(__cvta_generic_to_shared(array + index)) >> 4 | uint32_t(128 >> 4) << 16, 0)) {}
  template <int N, bool SIGNED>
  __device__ __forceinline__ void multiply(int32_t (&d)[N / 2], const uint32_t (&a)[4], int words, bool adds) const {
    KqmWarpgroupMma<N, SIGNED>::call(d, a, uint64_t(low + uint32_t(words / 4)) | uint64_t(256 >> 4) << 32, adds);
  }
};
__device__ __forceinline__ void kqm_warpgroup_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void kqm_warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int NEWEST>
__device__ __forceinline__ void kqm_warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(NEWEST) : "memory");
}
// Results that have been waited for: the compiler reads their registers only behind this.
template <int N>
__device__ __forceinline__ void kqm_warpgroup_results(int32_t (&d)[N]) {
  KQM_UNROLL
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i])::"memory");
}
// Gives registers back, and takes them: all warps of a group together.
template <int REGISTERS>
__device__ __forceinline__ void kqm_give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void kqm_take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
#endif

// The largest and the smallest of a number over the warp.
__device__ __forceinline__ uint32_t kqm_reduce_max(uint32_t x) { return __reduce_max_sync(~0u, x); }
__device__ __forceinline__ uint32_t kqm_reduce_min(uint32_t x) { return __reduce_min_sync(~0u, x); }

// The larger one; a NaN when either is one.
__device__ __forceinline__ float kqm_max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

// Loads of data that is read once: weights. They do not displace what L1 holds.
__device__ __forceinline__ uint4 kqm_load_streaming(const uint4 *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// A load that is issued where it is written: the compiler may sink any other down to the first use of its value, and then the warp waits
// for memory there.
__device__ __forceinline__ double kqm_load_volatile(const double *p) {
  double v;
  asm volatile("ld.volatile.global.f64 %0, [%1];" : "=d"(v) : "l"(p));
  return v;
}

// Materializes here, in registers, the values that a checksum was made of: without it the compiler sinks their computation down to their
// first use, behind the wait that it was to fill. A pause of no length depends on the checksum, which the compiler can neither leave out
// nor move.
__device__ __forceinline__ void kqm_materialize(uint32_t checksum) {
  if (checksum == 0x9e3779b9u) asm volatile("nanosleep.u32 0;");
}

// Makes a number here, once: the compiler neither makes it anew later, inside a loop, from fewer registers, nor what follows from it
// earlier, outside of one, which takes more.
__device__ __forceinline__ void kqm_keep(float &x) { asm volatile("" : "+f"(x)); }
__device__ __forceinline__ void kqm_keep(uint32_t &x) { asm volatile("" : "+r"(x)); }

// A named barrier (KqmBarrier) of all warps of the CTA, which may reach it at different points of the code.
__device__ __forceinline__ void kqm_named_barrier(int id) { asm volatile("bar.sync %0;" ::"r"(id) : "memory"); }

// Programmatic dependent launch: a kernel may start while the one before it in the stream still runs. It may read weights
// at once; everything that earlier kernels write or read waits for kqm_wait_for_dependencies(). Every kernel of the
// crate calls it, so that completion is transitive. Without the feature (before sm_90) launches are ordered anyway. Whether a kernel waits
// or releases first is its own affair, and the order the one that is faster in a decode step, but for kqm_wait_then_release().
__device__ __forceinline__ void kqm_wait_for_dependencies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void kqm_release_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float kqm_half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
// Nearest even; overflow gives infinity; a NaN is always 0x7e00.
__device__ __forceinline__ uint16_t kqm_float_to_half(float x) {
  return x != x ? uint16_t(0x7e00) : __half_as_ushort(__float2half_rn(x));
}

// Reads a kernel's arguments once, a word of each 64 bytes. Every launch has its own copy of them, which the constant cache does not
// hold yet; called before kqm_wait_for_dependencies(), the misses pass while the kernel would wait anyway.
template <class Arguments>
__device__ __forceinline__ void kqm_touch_arguments(const Arguments &arguments) {
  const uint32_t *words = reinterpret_cast<const uint32_t *>(&arguments);
  KQM_UNROLL
  for (unsigned i = 0; i < sizeof(Arguments) / 4; i += 16) asm volatile("" ::"r"(words[i]));
}

// Whether dependent launches may overlap on the current device: it can, and the code that runs there waits for its dependencies.
// PTX for an older architecture that the driver compiled for a newer card does not. Asked once for each device and thread; all
// kernels are compiled alike.
inline bool kqm_has_dependent_launch(const void *kernel) {
  static thread_local int known_device = -1;
  static thread_local bool known = false;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  if (device != known_device) {
    int major = 0;
    cudaFuncAttributes code{};
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return false;
    if (cudaFuncGetAttributes(&code, kernel) != cudaSuccess) return false;
    known_device = device;
    known = major >= 9 && code.ptxVersion >= 90;
  }
  return known;
}

// An attribute of the current device, asked for once; `otherwise` where it cannot be had.
template <cudaDeviceAttr ATTRIBUTE>
inline int kqm_device_attribute(int otherwise) {
  static thread_local int known_device = -1;
  static thread_local int value = 0;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return otherwise;
  if (device != known_device) {
    if (cudaDeviceGetAttribute(&value, ATTRIBUTE, device) != cudaSuccess) return otherwise;
    known_device = device;
  }
  return value;
}

// Multiprocessors of the current device: shapes launches, never values.
inline unsigned kqm_multiprocessors() { return unsigned(kqm_device_attribute<cudaDevAttrMultiProcessorCount>(64)); }

// Shared memory of a multiprocessor of the current device, of which each CTA takes 1 KiB for itself: shapes launches, never values.
inline unsigned kqm_shared_memory() {
  return unsigned(kqm_device_attribute<cudaDevAttrMaxSharedMemoryPerMultiprocessor>(100 << 10));
}

// Shared memory that a CTA may have on a device that multiplies by warpgroups and for which this build has the code; 0 for any other.
inline unsigned kqm_warpgroup_shared_memory() {
#if defined(KQM_HAS_SM_90A)
  const bool multiplies = kqm_device_attribute<cudaDevAttrComputeCapabilityMajor>(0) == 9 &&
                          kqm_device_attribute<cudaDevAttrComputeCapabilityMinor>(-1) == 0;
  return multiplies ? unsigned(kqm_device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>(0)) : 0;
#else
  return 0;
#endif
}

template <class... Parameters, class... Arguments>
inline kqm_status kqm_launch(void (*kernel)(Parameters...), dim3 grid, dim3 cta, size_t dynamic_shared,
                             kqm_stream stream, Arguments... arguments) {
  if (dynamic_shared > 48 * 1024) {
    // More than every card gives: to be asked for.
    const int bytes = int(dynamic_shared);
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (status != cudaSuccess) return static_cast<kqm_status>(status);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = cta;
  config.dynamicSmemBytes = dynamic_shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = kqm_has_dependent_launch(reinterpret_cast<const void *>(kernel)) ? 1 : 0;
  return static_cast<kqm_status>(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

#define KQM_LAUNCH(kernel, grid, cta, dynamic_shared, stream, ...) \
  kqm_launch(kernel, grid, cta, dynamic_shared, stream, __VA_ARGS__)
// The same of a kernel whose CTA has up to kqm_warpgroup_shared_memory().
#define KQM_LAUNCH_WARPGROUPS KQM_LAUNCH

#endif

// The named barriers of the kernels, each with a number of its own; 0 is that of __syncthreads().
enum KqmBarrier {
  kqm_barrier_run_sums = 1,    // the squares of the row's runs are summed (kqm_fused_norm_eight)
  kqm_barrier_fixed_row = 2,   // the normed row is in shared memory as fixed point (qkv)
  kqm_barrier_many_tokens = 3  // a step of the frame for many tokens
};

// The contract of qkv and float_matvec with attention_chunks, and of attention_chunks with attention_join. A kernel all of whose CTAs call this, and none
// kqm_release_dependents(), promises more than others: its successor starts when everything before the two kernels is complete and visible,
// whatever the successor itself waits for. So the successor may read, before its own wait, all that this kernel does not write.
//   attention_chunks behind qkv, or behind a float_matvec in its place (`follows_qkv`): the position and the caches, which the kernels of the token before wrote;
//   attention_join behind attention_chunks: the position.
// With the two calls in the other order both would be races that no test on one card is sure to show.
__device__ __forceinline__ void kqm_wait_then_release() {
  kqm_wait_for_dependencies();
  kqm_release_dependents();
}

// A NaN is always stored as 0x7fc00000, whatever made it.
__device__ __forceinline__ float kqm_canonical(float x) { return x != x ? __uint_as_float(0x7fc00000u) : x; }

// Order of f32 values as unsigned integers, for top-k and argmax: a NaN (made canonical) is the largest, -0 equals +0.
__device__ __forceinline__ uint32_t kqm_order_key(float x) {
  const uint32_t bits = __float_as_uint(kqm_canonical(x) + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
// The value with that key.
__device__ __forceinline__ float kqm_ordered_by(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
