// embedding: out[t] = table[tokens[t]], dequantized. Every weight is one correctly rounded f32: the products are exact.
//
// Shapes: table [vocab, cols] in GGUF's row layout (F32, F16, BF16 or a type of common/types.cuh), out [tokens, cols].
// Launch: one CTA for 256 values of a token. Bound by: latency.
#include "common/types.cuh"

namespace {

__global__ void __launch_bounds__(KQM_BLOCK) embedding_kernel(kqm_embedding_args a) {
  const int k = threadIdx.x;
  const uint32_t block = blockIdx.x, t = blockIdx.y;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const uint32_t token = a.tokens[t];
  float value = __uint_as_float(0x7fc00000u);
  if (token < a.vocab) {
    const size_t blocks = a.cols / KQM_BLOCK, at = size_t(token) * blocks + block;
    if (a.type == KQM_TYPE_F32) {
      value = static_cast<const float *>(a.table)[at * KQM_BLOCK + k];
    } else if (a.type == KQM_TYPE_F16) {
      value = kqm_half_to_float(static_cast<const uint16_t *>(a.table)[at * KQM_BLOCK + k]);
    } else if (a.type == KQM_TYPE_BF16) {
      value = __uint_as_float(uint32_t(static_cast<const uint16_t *>(a.table)[at * KQM_BLOCK + k]) << 16);
    } else {
      KqmBlockTypes::choose(a.type, [&](auto type) {
        typedef KqmTileOf<decltype(type)> Tile;
        // Blocks of a type have 256 weights or, eight of them in the place of one, 32.
        const int in_tile = Tile::Layout::block_bytes / int(sizeof(typename Tile::Block)),
                  of_block = KQM_BLOCK / in_tile;
        value =
            Tile::weight(static_cast<const typename Tile::Block *>(a.table)[at * in_tile + k / of_block], k % of_block);
      });
    }
  }
  a.out[size_t(t) * a.cols + block * KQM_BLOCK + k] = kqm_canonical(value);
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_embedding(const kqm_embedding_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->table && args->tokens && args->out, KQM_NULL_POINTER);
  KQM_REQUIRE(args->type == KQM_TYPE_F32 || args->type == KQM_TYPE_F16 || args->type == KQM_TYPE_BF16 ||
                  KqmBlockTypes::has(args->type),
              KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(
      args->count > 0 && args->count <= 65535 && args->vocab > 0 && args->cols > 0 && args->cols % KQM_BLOCK == 0,
      KQM_BAD_SHAPE);
  const uintptr_t unit = args->type == KQM_TYPE_F32                                  ? 4
                         : args->type == KQM_TYPE_F16 || args->type == KQM_TYPE_BF16 ? 2
                                                                                     : 1;
  KQM_REQUIRE(kqm_aligned(args->table, unit), KQM_MISALIGNED);
  return KQM_LAUNCH(embedding_kernel, dim3(args->cols / KQM_BLOCK, args->count), dim3(KQM_BLOCK), 0, stream, *args);
}
KQM_ABI_END
