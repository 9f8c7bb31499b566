// residual_add: y = a + b, in f32.
//
// Shapes: a, b, y [count]; y may be a or b.
// Launch: 256 threads a CTA, one element a thread. Bound by: bytes, 12 an element.
// The forward adds residuals in the kernels that make the products; this is the unfused form.
#include "common/check.cuh"

namespace {

__global__ void __launch_bounds__(256) residual_add_kernel(kqm_residual_add_args a) {
  const uint64_t i = uint64_t(blockIdx.x) * 256 + threadIdx.x;
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  if (i < a.count) a.y[i] = kqm_canonical(__fadd_rn(a.a[i], a.b[i]));
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_residual_add(const kqm_residual_add_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->a && args->b && args->y, KQM_NULL_POINTER);
  KQM_REQUIRE(args->count > 0 && args->count <= uint64_t(0x7fffffff) * 256, KQM_BAD_SHAPE);
  return KQM_LAUNCH(residual_add_kernel, dim3(unsigned(kqm_ceil_div(args->count, uint64_t(256)))), dim3(256), 0, stream,
                    *args);
}
KQM_ABI_END
