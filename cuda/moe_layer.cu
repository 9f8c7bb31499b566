// moe_layer: a whole MoE layer of normed activations, with the kernels of the other files one after the other:
//
//   quantize     x -> fixed point, and f32 for the router where x is something else
//   moe_router   logits; of several tokens also the choice, which moe_group groups by expert
//   moe_swiglu   of the chosen experts; for a single token it makes the choice
//   quantize     unless moe_down does, which it can for a single token
//   moe_down     the weighted sum, stored or added
//
// Shapes: x [tokens, hidden], y [tokens, rows]; what is between is in the workspace, at places that follow from the counts.
// Launch: a kernel of its own is there only to set the router's counters to zero, so that nobody has to have done so.
#include "common/floats.cuh"
#include "common/types.cuh"

KQM_ABI_BEGIN
kqm_status kqm_quantize(const kqm_quantize_args *args, kqm_stream stream);
kqm_status kqm_moe_router(const kqm_moe_router_args *args, kqm_stream stream);
kqm_status kqm_moe_group(const kqm_moe_group_args *args, kqm_stream stream);
kqm_status kqm_moe_swiglu(const kqm_moe_swiglu_args *args, kqm_stream stream);
kqm_status kqm_moe_down(const kqm_moe_down_args *args, kqm_stream stream);
uint32_t kqm_moe_max_items(uint32_t tokens, uint32_t experts, uint32_t top_k);
KQM_ABI_END

namespace {

const int threads = 256;

__global__ void __launch_bounds__(threads) moe_layer_begin(uint32_t *done, uint32_t tokens) {
  const uint32_t t = blockIdx.x * threads + threadIdx.x;
  kqm_release_dependents();
  kqm_wait_for_dependencies();
  if (t < tokens) done[t] = 0;
}

// Where everything is in the workspace. Without one, its size.
struct Workspace {
  uint64_t bytes = 0;
  kqm_fixed_block *fixed, *pairs_fixed;
  float *floats, *logits, *weights, *swiglu, *expert_out;
  uint32_t *indices, *done;
  kqm_groups groups;

  explicit Workspace(const kqm_moe_layer_args &a) {
    const uint64_t tokens = a.tokens, pairs = tokens * a.top_k, hidden = a.gate.cols, ff = a.gate.rows;
    const uint64_t items = kqm_launchers::kqm_moe_max_items(a.tokens, a.gate.experts, a.top_k);
    take(a, fixed, tokens * (hidden / KQM_BLOCK));
    take(a, floats, a.x_type == KQM_TYPE_F32 ? 0 : tokens * hidden);
    take(a, logits, tokens * a.gate.experts);
    take(a, indices, pairs);
    take(a, weights, pairs);
    take(a, done, tokens);
    take(a, groups.order, pairs);
    take(a, groups.items, 3 * items);
    take(a, groups.count, 1);
    take(a, swiglu, pairs * ff);
    take(a, pairs_fixed, pairs * (ff / KQM_BLOCK));
    take(a, expert_out, pairs * a.down.rows);
  }

 private:
  template <class T>
  void take(const kqm_moe_layer_args &a, T *&at, uint64_t count) {
    at = reinterpret_cast<T *>(reinterpret_cast<uintptr_t>(a.workspace) + uintptr_t(bytes));
    bytes += (count * sizeof(T) + 255) / 256 * 256;
  }
};

}  // namespace

KQM_ABI_BEGIN
uint64_t kqm_moe_layer_workspace(const kqm_moe_layer_args *args) { return args ? Workspace(*args).bytes : 0; }

// Whatever a kernel would refuse is refused here, before the first one is launched.
kqm_status kqm_moe_layer(const kqm_moe_layer_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->x && args->router && args->y && args->workspace, KQM_NULL_POINTER);
  const kqm_moe_layer_args &a = *args;
  KQM_REQUIRE(kqm_is_float(a.x_type) && kqm_is_float(a.y_type), KQM_UNSUPPORTED_TYPE);
  KQM_TRY(kqm_check_matrix(a.gate));
  KQM_TRY(kqm_check_matrix(a.up));
  KQM_TRY(kqm_check_matrix(a.down));
  KQM_REQUIRE(a.gate.rows == a.up.rows && a.gate.cols == a.up.cols && a.gate.experts == a.up.experts &&
                  a.down.cols == a.gate.rows && a.down.experts == a.gate.experts,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(a.tokens > 0 && a.tokens <= 65535 && a.gate.experts <= KQM_MAX_EXPERTS && a.top_k > 0 &&
                  a.top_k <= KQM_MAX_TOP_K && a.top_k <= a.gate.experts && a.weighting <= KQM_WEIGHTS_OF_ALL,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_moe_max_items(a.tokens, a.gate.experts, a.top_k) <= 65535, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(a.x, 16) && kqm_aligned(a.router, 16) && kqm_aligned(a.workspace, 16), KQM_MISALIGNED);
  const Workspace w(a);
  KQM_REQUIRE(a.workspace_bytes >= w.bytes, KQM_WORKSPACE);
  const bool one = a.tokens == 1;

  kqm_quantize_args quantize{};
  quantize.x = a.x, quantize.out = w.fixed, quantize.type = a.x_type;
  quantize.floats = a.x_type == KQM_TYPE_F32 ? nullptr : w.floats;
  quantize.tokens = a.tokens, quantize.cols = a.gate.cols;
  kqm_moe_router_args router{};
  router.x = a.x_type == KQM_TYPE_F32 ? static_cast<const float *>(a.x) : w.floats;
  router.w = a.router, router.logits = w.logits;
  router.indices = one ? nullptr : w.indices, router.weights = w.weights, router.done = w.done;
  router.tokens = a.tokens, router.cols = a.gate.cols, router.experts = a.gate.experts;
  router.top_k = a.top_k, router.weighting = a.weighting;
  kqm_moe_group_args group{};
  group.indices = w.indices, group.groups = w.groups;
  group.tokens = a.tokens, group.experts = a.gate.experts, group.top_k = a.top_k;
  kqm_moe_swiglu_args swiglu{};
  swiglu.gate = a.gate, swiglu.up = a.up, swiglu.x = w.fixed, swiglu.out = w.swiglu;
  swiglu.indices = w.indices, swiglu.weights = w.weights, swiglu.logits = one ? w.logits : nullptr;
  swiglu.groups = w.groups, swiglu.tokens = a.tokens, swiglu.top_k = a.top_k, swiglu.weighting = a.weighting;
  // One token's experts, if they are few enough: moe_down quantizes what it multiplies.
  const bool fused = one && a.top_k * (a.down.cols / KQM_BLOCK) <= KQM_FUSED_UNITS;
  kqm_quantize_args between{};
  between.x = w.swiglu, between.out = w.pairs_fixed, between.type = KQM_TYPE_F32;
  between.tokens = a.tokens * a.top_k, between.cols = a.down.cols;
  kqm_moe_down_args down{};
  down.down = a.down, down.x = w.pairs_fixed, down.swiglu = fused ? w.swiglu : nullptr;
  down.indices = w.indices, down.weights = w.weights, down.groups = w.groups, down.expert_out = w.expert_out;
  down.residual = a.residual, down.y = a.y, down.type = a.y_type, down.tokens = a.tokens, down.top_k = a.top_k;

  if (!one)
    KQM_TRY(KQM_LAUNCH(moe_layer_begin, dim3(kqm_ceil_div(a.tokens, uint32_t(threads))), dim3(threads), 0, stream,
                       w.done, a.tokens));
  kqm_status status = kqm_quantize(&quantize, stream);
  if (status == KQM_OK) status = kqm_moe_router(&router, stream);
  if (status == KQM_OK && !one) status = kqm_moe_group(&group, stream);
  if (status == KQM_OK) status = kqm_moe_swiglu(&swiglu, stream);
  if (status == KQM_OK && !fused) status = kqm_quantize(&between, stream);
  return status == KQM_OK ? kqm_moe_down(&down, stream) : status;
}
KQM_ABI_END
