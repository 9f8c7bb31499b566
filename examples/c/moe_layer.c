/* An MoE layer of a model file, from C: the file is read and checked, the experts' matrices become tiles, and one call computes the layer,
 * for all tokens at once and for each alone. Its results are compared, to the bit, with what `kquant-moe trace` wrote of the same layer:
 *
 *   kquant-moe trace FILE --prompt TEXT --out DIR
 *   moe_layer FILE DIR LAYER
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kquant_moe.h"
#include "kquant_moe_gguf.h"
#include "machine.h"

static const kqm_kernels *kernels;
static kqm_stream stream;

static void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static void try_machine(int status, const char *what) {
  if (status != 0) fail(what, machine_text(status));
}
static void try_kernel(kqm_status status, const char *what) {
  if (status != KQM_OK) fail(what, kernels->status_text(status));
}

static void *allocate(size_t bytes) {
  void *memory = NULL;
  try_machine(machine_allocate(&memory, bytes), "memory");
  return memory;
}

/* A copy of host memory on the machine. */
static void *upload(const void *from, size_t bytes) {
  void *memory = allocate(bytes);
  try_machine(machine_upload(memory, from, bytes, stream), "upload");
  return memory;
}

static kqm_gguf_tensor tensor_of(const kqm_gguf *file, unsigned layer, const char *what) {
  kqm_gguf_tensor tensor;
  char name[64];
  snprintf(name, sizeof name, "blk.%u.%s.weight", layer, what);
  if (!kqm_gguf_tensor_named(file, name, &tensor)) fail(name, "there is no such tensor");
  return tensor;
}

/* A stack of experts' matrices, in tiles: all of them with one launch. */
static kqm_matrix matrix_of(const kqm_gguf *file, unsigned layer, const char *what) {
  const kqm_gguf_tensor tensor = tensor_of(file, layer, what);
  const uint64_t cols = tensor.dims[0], rows = tensor.dims[1], experts = tensor.dims[2];
  const uint64_t padded = (rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS * KQM_TILE_ROWS;
  kqm_matrix matrix = {
      .type = tensor.type, .rows = (uint32_t)rows, .cols = (uint32_t)cols, .experts = (uint32_t)experts};
  kqm_repack_args repack = {.type = tensor.type, .rows = matrix.rows, .cols = matrix.cols, .experts = matrix.experts};
  void *blocks = upload(tensor.data, tensor.bytes), *tiles = allocate(tensor.bytes / rows * padded);
  repack.blocks = blocks;
  repack.tiles = tiles;
  matrix.tiles = tiles;
  try_kernel(kernels->repack(&repack, stream), what);
  return matrix;
}

/* The floats of an .npy file of [tokens, cols], of which it says how many tokens there are. */
static float *values_of(const char *dir, unsigned layer, const char *stage, uint32_t cols, uint32_t *tokens) {
  char path[1024], header[65536];
  unsigned char start[10];
  unsigned long rows = 0, row = 0;
  size_t length;
  const char *shape;
  float *values;
  FILE *file;
  snprintf(path, sizeof path, "%s/layer%02u.%s.npy", dir, layer, stage);
  file = fopen(path, "rb");
  if (file == NULL) fail(path, "cannot be opened");
  if (fread(start, 1, sizeof start, file) != sizeof start || memcmp(start, "\x93NUMPY\1", 7) != 0)
    fail(path, "is no .npy file of version 1");
  length = start[8] + 256u * start[9];
  if (fread(header, 1, length, file) != length) fail(path, "ends in its header");
  header[length] = 0;
  shape = strstr(header, "'shape': (");
  if (strstr(header, "'<f4'") == NULL || shape == NULL || sscanf(shape, "'shape': (%lu, %lu)", &rows, &row) != 2 ||
      row != cols || rows == 0 || rows > 65535)
    fail(path, "has no rows of f32 of the layer's width");
  values = malloc(sizeof(float) * rows * row);
  if (values == NULL || fread(values, sizeof(float) * row, rows, file) != rows) fail(path, "ends too early");
  fclose(file);
  *tokens = (uint32_t)rows;
  return values;
}

/* Values that differ between the layer of `tokens` tokens from the first one on and what is expected of them. */
static uint64_t compare(kqm_moe_layer_args layer, uint32_t first, uint32_t tokens, const float *x,
                        const float *expected) {
  const size_t cols = layer.gate.cols, rows = layer.down.rows;
  uint64_t differ = 0, i;
  void *room, *from, *to;
  float *y = malloc(sizeof(float) * tokens * rows);
  if (y == NULL) fail("results", "no memory");
  layer.tokens = tokens;
  layer.workspace_bytes = kernels->moe_layer_workspace(&layer);
  layer.workspace = room = allocate(layer.workspace_bytes);
  layer.x = from = upload(x + first * cols, sizeof(float) * tokens * cols);
  layer.y = to = allocate(sizeof(float) * tokens * rows);
  try_kernel(kernels->moe_layer(&layer, stream), "moe_layer");
  try_machine(machine_download(y, to, sizeof(float) * tokens * rows, stream), "download");
  for (i = 0; i < tokens * rows; i++) differ += memcmp(y + i, expected + first * rows + i, sizeof(float)) != 0;
  free(y);
  try_machine(machine_free(room), "free");
  try_machine(machine_free(from), "free");
  try_machine(machine_free(to), "free");
  return differ;
}

int main(int count, char **arguments) {
  kqm_moe_layer_args layer = {.x_type = KQM_TYPE_F32, .y_type = KQM_TYPE_F32};
  char error[512];
  uint64_t top_k = 0, differ, alone = 0;
  uint32_t tokens = 0, same = 0, t;
  float *x, *expected;
  unsigned number;
  kqm_gguf_tensor router;
  kqm_gguf *file;
  if (count != 4) fail(arguments[0], "FILE DIR LAYER");
  number = (unsigned)strtoul(arguments[3], NULL, 10);

  kernels = machine_kernels();
  if (kernels == NULL) fail("kernels", "they have another header");
  try_machine(machine_stream(&stream), "stream");
  file = kqm_gguf_open(KQM_GGUF_VERSION, arguments[1], error, sizeof error);
  if (file == NULL) fail(arguments[1], error);
  if (!kqm_gguf_integer(file, "qwen3moe.expert_used_count", &top_k)) fail(arguments[1], "is no qwen3moe");

  layer.gate = matrix_of(file, number, "ffn_gate_exps");
  layer.up = matrix_of(file, number, "ffn_up_exps");
  layer.down = matrix_of(file, number, "ffn_down_exps");
  router = tensor_of(file, number, "ffn_gate_inp");
  if (router.type != KQM_TYPE_F32) fail("router", "its weights are not F32");
  layer.router = upload(router.data, router.bytes);
  layer.top_k = (uint32_t)top_k;
  kqm_gguf_close(file);

  x = values_of(arguments[2], number, "ffn_norm", layer.gate.cols, &tokens);
  expected = values_of(arguments[2], number, "moe_ffn_out", layer.down.rows, &same);
  if (same != tokens) fail(arguments[2], "the stages have different tokens");
  differ = compare(layer, 0, tokens, x, expected);
  for (t = 0; t < tokens; t++) alone += compare(layer, t, 1, x, expected);
  printf("layer %u, %u tokens: of %llu values %llu differ together, %llu alone\n", number, (unsigned)tokens,
         (unsigned long long)tokens * layer.down.rows, (unsigned long long)differ, (unsigned long long)alone);
  return differ + alone != 0;
}
