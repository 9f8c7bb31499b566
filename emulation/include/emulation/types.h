// CUDA's words and vector types for a C++ compiler.
#ifndef KQM_EMULATION_TYPES_H
#define KQM_EMULATION_TYPES_H

#include <stddef.h>
#include <stdint.h>

#define __global__
#define __host__
#define __grid_constant__
// Helpers of a header that one kernel file does not call are no reason to warn.
#define __device__ __attribute__((unused))
#define __constant__ __attribute__((unused))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#ifndef __restrict__
#define __restrict__ __restrict
#endif

// Alignments as on the device: a vector load through a misaligned pointer is an error there.
#define KQM_VECTOR2(name, type, bytes)                                                                                  \
  struct alignas(bytes) name {                                                                                         \
    type x, y;                                                                                                         \
  };                                                                                                                   \
  static inline name make_##name(type x, type y) { return name{x, y}; }
#define KQM_VECTOR3(name, type)                                                                                         \
  struct name {                                                                                                        \
    type x, y, z;                                                                                                      \
  };                                                                                                                   \
  static inline name make_##name(type x, type y, type z) { return name{x, y, z}; }
#define KQM_VECTOR4(name, type, bytes)                                                                                  \
  struct alignas(bytes) name {                                                                                         \
    type x, y, z, w;                                                                                                   \
  };                                                                                                                   \
  static inline name make_##name(type x, type y, type z, type w) { return name{x, y, z, w}; }

KQM_VECTOR2(char2, signed char, 2)
KQM_VECTOR2(uchar2, unsigned char, 2)
KQM_VECTOR2(short2, short, 4)
KQM_VECTOR2(ushort2, unsigned short, 4)
KQM_VECTOR2(int2, int, 8)
KQM_VECTOR2(uint2, unsigned int, 8)
KQM_VECTOR2(float2, float, 8)
KQM_VECTOR2(double2, double, 16)
KQM_VECTOR2(longlong2, long long, 16)
KQM_VECTOR2(ulonglong2, unsigned long long, 16)
KQM_VECTOR3(int3, int)
KQM_VECTOR3(uint3, unsigned int)
KQM_VECTOR3(float3, float)
KQM_VECTOR4(char4, signed char, 4)
KQM_VECTOR4(uchar4, unsigned char, 4)
KQM_VECTOR4(int4, int, 16)
KQM_VECTOR4(uint4, unsigned int, 16)
KQM_VECTOR4(float4, float, 16)

#undef KQM_VECTOR2
#undef KQM_VECTOR3
#undef KQM_VECTOR4

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define KQM_UNROLL
#define KQM_LOOP

#endif
