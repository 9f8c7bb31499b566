// What Q4_K and Q5_K have in common: 16 bytes of d, dmin and, packed into 12 bytes, eight scales and eight mins of six bits each.
#pragma once

#include "../tiles.cuh"

// The first four scales and mins lie in the low six bits of bytes 0..3 and 4..7. The last four have their low four bits in the nibbles of
// bytes 8..11, and their high two in the high two bits of bytes 0..3 and 4..7.
__device__ __forceinline__ int kqm_packed_scale(const uint8_t *s, int j) {
  return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
}
__device__ __forceinline__ int kqm_packed_min(const uint8_t *s, int j) {
  return j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
}

// The scales of half a tile's sub-blocks as bytes, from d, dmin and the packed bytes.
__device__ __forceinline__ uint32_t kqm_packed_scales(const uint4 &head, int h) {
  return h ? (head.w & 0x0f0f0f0fu) | ((head.y >> 2) & 0x30303030u) : head.y & 0x3f3f3f3fu;
}

// The factors of rows r and r + 8: v = d T - dmin M. T is TIMES times too large: what a type multiplies its fragments or scales with, a
// power of two, is taken from d.
template <int TIMES>
struct KqmScalesAndMins {
  uint32_t min0, min8, head0, head8;

  __device__ __forceinline__ KqmScalesAndMins(const uint4 &row0, const uint4 &row8, int lane)
      : head0(row0.x), head8(row8.x) {
    // Mins as a product's operand whose k is the sub-block.
    const int c = lane & 3;
    const uint32_t low0 = row0.z & 0x3f3f3f3fu, low8 = row8.z & 0x3f3f3f3fu;
    const uint32_t high0 = ((row0.w >> 4) & 0x0f0f0f0fu) | ((row0.z >> 2) & 0x30303030u);
    const uint32_t high8 = ((row8.w >> 4) & 0x0f0f0f0fu) | ((row8.z >> 2) & 0x30303030u);
    min0 = c == 0 ? low0 : c == 1 ? high0 : 0u;
    min8 = c == 0 ? low8 : c == 1 ? high8 : 0u;
  }

  __device__ __forceinline__ uint32_t checksum() const { return min0 + min8 + head0 + head8; }

  // v of docs/arithmetic.md for the lane's results, from the halves' sums.
  template <class Activations>
  __device__ __forceinline__ void finish(const Activations &x, const int32_t (&sum)[Activations::Columns::products][4],
                                         int lane, double (&v)[Activations::Columns::results]) const {
    typedef typename Activations::Columns Columns;
    long long t[Columns::results];
    double m[Columns::results];
    Columns::join(sum, lane, t);
    KQM_UNROLL
    for (int i = 0; i < Columns::results; i++) {
      const float d = kqm_half_to_float(uint16_t(Columns::of_row(i, head0, head8, lane)));
      v[i] = double(TIMES == 1 ? d : __fmul_rn(d, 1.0f / TIMES)) * double(t[i]);
    }
    Columns::min_sums(x, min0, min8, lane, m);
    KQM_UNROLL
    for (int i = 0; i < Columns::results; i++) {
      const uint32_t head = Columns::of_row(i, head0, head8, lane);
      v[i] = fma(-double(kqm_half_to_float(uint16_t(head >> 16))), m[i], v[i]);
    }
  }
};
