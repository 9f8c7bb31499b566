// repack: quantized rows as they stand in a GGUF file, to the tiles of common/tiles.cuh. Bytes change places, nothing else.
//
// Shapes: blocks [rows, cols / 256] of 144 (Q4_K) or 210 (Q6_K) bytes, tiles [ceil(rows / 16), cols / 256] of 2,304 or 3,360
// bytes; missing rows of the last tile become zeros.
// Launch: one thread block for a tile; threads move 2-byte units, since Q6_K blocks are aligned to no more.
// Bound by: bytes; runs once, at load time.
#include "common/check.cuh"

namespace {

const int threads = 128;

// For unit u (2 bytes) of a tile: its row in the tile and the unit's place in the row's block.
__device__ __forceinline__ void q4_k_source(int u, int &row, int &unit) {
  const int byte = 2 * u;
  if (byte < 2048) {
    const int g = byte / 512, lane = byte / 16 % 32, within = byte % 16;
    row = lane / 4 + (within < 8 ? 0 : 8);
    unit = (16 + 32 * g + 8 * (lane % 4) + within % 8) / 2;
  } else {
    row = (byte - 2048) / 16;
    unit = (byte - 2048) % 16 / 2;
  }
}

__device__ __forceinline__ void q6_k_source(int u, int &row, int &unit) {
  const int byte = 2 * u;
  if (byte < 3072) {
    const bool low = byte < 2048;
    const int part = low ? byte : byte - 2048;
    const int chunk = part / 512, lane = part / 16 % 32, within = part % 16, word = within % 8 / 4;
    row = lane / 4 + (within < 8 ? 0 : 8);
    const int n = 2 * chunk + word;
    const int start = low ? 64 * (n / 4) + 16 * (n % 4) : 128 + 32 * chunk + 16 * word;
    unit = (start + 4 * (lane % 4) + within % 4) / 2;
  } else if (byte < 3328) {
    row = (byte - 3072) / 16;
    unit = (192 + (byte - 3072) % 16) / 2;
  } else {
    row = (byte - 3328) / 2;
    unit = 208 / 2;
  }
}

__global__ void __launch_bounds__(threads) repack_kernel(kqm_repack_args a) {
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  const bool is_q4_k = a.type == KQM_TYPE_Q4_K;
  const int block_units = (is_q4_k ? 144 : 210) / 2, tile_units = KQM_TILE_ROWS * block_units;
  const uint32_t blocks = a.cols / KQM_BLOCK, b = blockIdx.x % blocks, tile = blockIdx.x / blocks;
  const uint16_t *source = static_cast<const uint16_t *>(a.blocks);
  uint16_t *out = static_cast<uint16_t *>(a.tiles) + size_t(blockIdx.x) * tile_units;
  for (int u = threadIdx.x; u < tile_units; u += threads) {
    int row, unit;
    if (is_q4_k)
      q4_k_source(u, row, unit);
    else
      q6_k_source(u, row, unit);
    const uint32_t r = tile * KQM_TILE_ROWS + row;
    out[u] = r < a.rows ? source[(size_t(r) * blocks + b) * block_units + unit] : uint16_t(0);
  }
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_repack(const kqm_repack_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->blocks && args->tiles, KQM_NULL_POINTER);
  KQM_REQUIRE(kqm_is_k_quant(args->type), KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->rows > 0 && args->cols > 0 && args->cols % KQM_BLOCK == 0 && args->cols <= kqm_max_cols, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->blocks, 2) && kqm_aligned(args->tiles, 16), KQM_MISALIGNED);
  const uint64_t tiles = uint64_t(kqm_ceil_div(args->rows, uint32_t(KQM_TILE_ROWS))) * (args->cols / KQM_BLOCK);
  KQM_REQUIRE(tiles <= 0x7fffffffu, KQM_BAD_SHAPE);
  return KQM_LAUNCH(repack_kernel, dim3(unsigned(tiles)), dim3(threads), 0, stream, *args);
}
KQM_ABI_END
