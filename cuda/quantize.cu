// quantize: activations to block fixed point (common/fixed.cuh), and to f32.
//
// Shapes: x [tokens, cols] of F32, F16 or BF16, out [tokens, cols / 256] fixed-point blocks of 1,376 bytes: five planes of 256 digits, their sums, the unit.
// Launch: one warp for 256 activations, eight warps a CTA.
// Bound by: bytes, 4 in and 5.4 out for an activation; by latency for a single token.
#include "common/fixed.cuh"
#include "common/floats.cuh"
#include "common/tree.cuh"

namespace {

template <class Float>
__global__ void __launch_bounds__(256) quantize_kernel(kqm_quantize_args a) {
  const size_t index = size_t(blockIdx.x) * 8 + (threadIdx.x >> 5), count = size_t(a.tokens) * (a.cols / KQM_BLOCK);
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  if (index >= count) return;
  const int lane = threadIdx.x & 31;
  const auto [x0, x1] = Float::load(static_cast<const typename Float::Stored *>(a.x) + index * KQM_BLOCK + 8 * lane);
  const float values[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
  if (a.floats) {
    float floats[8];
    KQM_UNROLL
    for (int i = 0; i < 8; i++) floats[i] = kqm_canonical(values[i]);
    kqm_store_eight(a.floats + index * KQM_BLOCK, lane, floats);
  }
  kqm_quantize_warp(values, a.out + index);
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_quantize(const kqm_quantize_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->x != nullptr && args->out != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(kqm_is_float(args->type), KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->tokens > 0 && args->cols > 0 && args->cols % KQM_BLOCK == 0, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->x, 16) && kqm_aligned(args->out, 16) && kqm_aligned(args->floats, 16), KQM_MISALIGNED);
  const size_t count = size_t(args->tokens) * (args->cols / KQM_BLOCK);
  KQM_REQUIRE(count <= 0x7fffffffu, KQM_BAD_SHAPE);
  return kqm_launch_floats(args->type, [&](auto type) {
    return KQM_LAUNCH(quantize_kernel<decltype(type)>, dim3(unsigned(kqm_ceil_div(count, size_t(8)))), dim3(256), 0,
                      stream, *args);
  });
}
KQM_ABI_END
