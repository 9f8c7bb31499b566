// Floats of F32, F16 and BF16, which f32 holds exactly.
#pragma once

#include "check.cuh"

inline bool kqm_is_float(uint32_t type) {
  return type == KQM_TYPE_F32 || type == KQM_TYPE_F16 || type == KQM_TYPE_BF16;
}

__device__ __forceinline__ float kqm_bfloat_to_float(uint32_t bits) { return __uint_as_float(bits << 16); }
// Nearest even; overflow gives infinity. A NaN is to be 0x7fc00000 before, and is 0x7fc0.
__device__ __forceinline__ uint16_t kqm_float_to_bfloat(float canonical) {
  const uint32_t bits = __float_as_uint(canonical);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// Element `at` of a row of floats of a type: its bits, and what they are. Who loads early converts late, since a conversion waits for them.
__device__ __forceinline__ uint32_t kqm_load_float_bits(const void *row, uint32_t type, size_t at) {
  return type == KQM_TYPE_F32 ? static_cast<const uint32_t *>(row)[at] : static_cast<const uint16_t *>(row)[at];
}
__device__ __forceinline__ float kqm_float_of_bits(uint32_t bits, uint32_t type) {
  if (type == KQM_TYPE_F32) return __uint_as_float(bits);
  return type == KQM_TYPE_F16 ? kqm_half_to_float(uint16_t(bits)) : kqm_bfloat_to_float(bits);
}
__device__ __forceinline__ void kqm_store_float(void *row, uint32_t type, size_t at, float canonical) {
  if (type == KQM_TYPE_F32)
    static_cast<float *>(row)[at] = canonical;
  else
    static_cast<uint16_t *>(row)[at] =
        type == KQM_TYPE_F16 ? kqm_float_to_half(canonical) : kqm_float_to_bfloat(canonical);
}

// Eight neighbours as f32, by the type that they are stored in.
struct KqmEight {
  float4 first, second;
};
struct KqmF32 {
  typedef float Stored;
  __device__ __forceinline__ static KqmEight load(const float *at) {
    const float4 *in = reinterpret_cast<const float4 *>(at);
    return KqmEight{in[0], in[1]};
  }
};
// Two bytes each: eight are one load.
template <class Of>
struct KqmHalves {
  typedef uint16_t Stored;
  __device__ __forceinline__ static KqmEight load(const uint16_t *at) {
    const uint4 in = *reinterpret_cast<const uint4 *>(at);
    return KqmEight{four(in.x, in.y), four(in.z, in.w)};
  }

 private:
  __device__ __forceinline__ static float4 four(uint32_t a, uint32_t b) {
    return make_float4(Of::number(a & 0xffffu), Of::number(a >> 16), Of::number(b & 0xffffu), Of::number(b >> 16));
  }
};
struct KqmF16 : KqmHalves<KqmF16> {
  __device__ __forceinline__ static float number(uint32_t bits) { return kqm_half_to_float(uint16_t(bits)); }
};
struct KqmBF16 : KqmHalves<KqmBF16> {
  __device__ __forceinline__ static float number(uint32_t bits) { return kqm_bfloat_to_float(bits); }
};

// Calls launch(KqmF32{}), launch(KqmF16{}) or launch(KqmBF16{}).
template <class Launch>
inline kqm_status kqm_launch_floats(uint32_t type, Launch launch) {
  if (type == KQM_TYPE_F32) return launch(KqmF32{});
  if (type == KQM_TYPE_F16) return launch(KqmF16{});
  return launch(KqmBF16{});
}
