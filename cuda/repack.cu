// repack: quantized rows as they stand in a GGUF file, to the tiles of common/tiles.cuh. Bytes change places, nothing else.
//
// Shapes: blocks [experts][rows, cols / 256] of a type of common/types.cuh, tiles [experts][ceil(rows / 16), cols / 256] of 16 blocks'
// bytes; missing rows of an expert's last tile become zeros.
// Launch: one CTA for a tile; threads move 2-byte units, since Q6_K blocks are aligned to no more, and bytes of MXFP4's.
// Bound by: bytes; runs once, at load time.
#include "common/types.cuh"

namespace {

const int threads = 128;

__global__ void __launch_bounds__(threads) repack_kernel(kqm_repack_args a) {
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  const uint32_t blocks = a.cols / KQM_BLOCK, b = blockIdx.x % blocks,
                 tiles = (a.rows + KQM_TILE_ROWS - 1) / KQM_TILE_ROWS;
  const uint32_t tile = blockIdx.x / blocks % tiles, expert = blockIdx.x / blocks / tiles;
  KqmBlockTypes::choose(a.type, [&](auto type) {
    typedef typename KqmTileOf<decltype(type)>::Layout Layout;
    typedef typename Layout::Unit Unit;
    const int units = Layout::bytes / int(sizeof(Unit));
    const Unit *source = static_cast<const Unit *>(a.blocks);
    Unit *out = static_cast<Unit *>(a.tiles) + size_t(blockIdx.x) * units;
    for (int u = threadIdx.x; u < units; u += threads) {
      int row = 0, of_block = 0;
      Layout::source(int(sizeof(Unit)) * u, row, of_block);
      const uint32_t r = tile * KQM_TILE_ROWS + row;
      const size_t from = ((size_t(expert) * a.rows + r) * blocks + b) * Layout::block_bytes + of_block;
      out[u] = r < a.rows ? source[from / sizeof(Unit)] : Unit(0);
    }
  });
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_repack(const kqm_repack_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->blocks && args->tiles, KQM_NULL_POINTER);
  KQM_REQUIRE(KqmBlockTypes::has(args->type), KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->rows > 0 && args->experts > 0 && args->cols > 0 && args->cols % KQM_BLOCK == 0 &&
                  args->cols <= kqm_max_cols,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->blocks, 2) && kqm_aligned(args->tiles, 16), KQM_MISALIGNED);
  const uint64_t tiles = uint64_t(kqm_ceil_div(args->rows, uint32_t(KQM_TILE_ROWS))) * (args->cols / KQM_BLOCK);
  KQM_REQUIRE(tiles <= 0x7fffffffu / args->experts, KQM_BAD_SHAPE);
  return KQM_LAUNCH(repack_kernel, dim3(unsigned(tiles) * args->experts), dim3(threads), 0, stream, *args);
}
KQM_ABI_END
