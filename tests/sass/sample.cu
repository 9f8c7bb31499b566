// Two super-block products a turn of the inner loop, one fp64 addition a turn of the outer one.
#include <cstdint>
__global__ void dummy(const uint4 *w, const uint2 *x, float *y, int tiles, int blocks) {
  const int lane = threadIdx.x & 31;
  double sum = 0;
  for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
    double row = 0;
#pragma unroll 1
    for (int b = 0; b < blocks; b++) {
      int d[4] = {0, 0, 0, 0};
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const uint4 a = w[((t * blocks + b) * 2 + j) * 32 + lane];
        const uint2 v = x[(b * 2 + j) * 32 + lane];
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(v.x), "r"(v.y));
      }
      if (d[3] == 7) continue;
      row = fma((double)(d[0] + d[1] + d[2] + d[3]), 0.5, row);
    }
    sum = sum + row;
  }
  y[blockIdx.x * 32 + lane] = (float)sum;
}
