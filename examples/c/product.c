/* y = W x on the GPU, from C: a Q4_K matrix in GGUF's layout becomes tiles, the activations become fixed point, and one kernel
 * multiplies them. Every block of W stands for 256 ones, so each y is the sum of x. */
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "kquant_moe.h"

enum { ROWS = 16, COLS = 512, BLOCKS = COLS / KQM_BLOCK, BLOCK_BYTES = 144 };

/* A Q4_K block: two f16 factors, six-bit scales and minima of eight sub-blocks, and 256 four-bit weights. */
static void ones(uint8_t *block) {
  memset(block, 0, BLOCK_BYTES);
  block[1] = 0x3c;          /* d = 1.0 in f16; the factor of the minima stays 0 */
  memset(block + 4, 1, 4);  /* scales 0 to 3 are 1 */
  memset(block + 12, 1, 4); /* and so are scales 4 to 7, whose low bits are here */
  memset(block + 16, 0x11, 128);
}

/* Prints what failed and gives up. */
static int failed(const char *what, int status) {
  const kqm_kernels *table = kqm_kernel_table(KQM_ABI);
  fprintf(stderr, "%s: %s\n", what, table != NULL ? table->status_text(status) : "the kernels have another header");
  return 1;
}

#define TRY(call)                                    \
  do {                                               \
    const int status_ = (int)(call);                 \
    if (status_ != 0) return failed(#call, status_); \
  } while (0)

int main(void) {
  static uint8_t blocks[ROWS * BLOCKS * BLOCK_BYTES];
  float x[COLS], y[ROWS], sum = 0.0f;
  void *d_blocks, *d_tiles, *d_x, *d_fixed, *d_y;
  cudaStream_t stream;
  int i;

  for (i = 0; i < ROWS * BLOCKS; i++) ones(blocks + i * BLOCK_BYTES);
  for (i = 0; i < COLS; i++) {
    x[i] = (float)(i % 7);
    sum += x[i];
  }

  /* The primary context of device 0 is current from here on. */
  TRY(cudaSetDevice(0));
  TRY(cudaStreamCreate(&stream));
  TRY(cudaMalloc(&d_blocks, sizeof blocks));
  TRY(cudaMalloc(&d_tiles, sizeof blocks)); /* ROWS are whole tiles */
  TRY(cudaMalloc(&d_x, sizeof x));
  TRY(cudaMalloc(&d_fixed, BLOCKS * sizeof(kqm_fixed_block)));
  TRY(cudaMalloc(&d_y, sizeof y));
  TRY(cudaMemcpyAsync(d_blocks, blocks, sizeof blocks, cudaMemcpyHostToDevice, stream));
  TRY(cudaMemcpyAsync(d_x, x, sizeof x, cudaMemcpyHostToDevice, stream));

  {
    const kqm_repack_args repack = {
        .blocks = d_blocks, .tiles = d_tiles, .type = KQM_TYPE_Q4_K, .rows = ROWS, .cols = COLS};
    const kqm_quantize_args quantize = {.x = d_x, .out = d_fixed, .tokens = 1, .cols = COLS};
    const kqm_matrix w = {.tiles = d_tiles, .type = KQM_TYPE_Q4_K, .rows = ROWS, .cols = COLS, .experts = 1};
    const kqm_matvec_args matvec = {.w = w, .x = d_fixed, .y = d_y, .tokens = 1};
    TRY(kqm_repack(&repack, stream));
    TRY(kqm_quantize(&quantize, stream));
    TRY(kqm_q4_k_matvec(&matvec, stream));
  }
  TRY(cudaMemcpyAsync(y, d_y, sizeof y, cudaMemcpyDeviceToHost, stream));
  TRY(cudaStreamSynchronize(stream));

  for (i = 0; i < ROWS; i++) {
    if (y[i] != sum) {
      fprintf(stderr, "y[%d] is %g, expected %g\n", i, (double)y[i], (double)sum);
      return 1;
    }
  }
  printf("y = %g in all %d rows\n", (double)sum, ROWS);
  return 0;
}
