// The launchers as the C ABI has them: one by one, where each call says with which header it was compiled, and as a table, for which
// that was said once. And the text of a status.
#include "common/check.cuh"

// What the files of the kernels define.
KQM_ABI_BEGIN
#define KQM_DECLARE(number, name) kqm_status kqm_##name(const kqm_##name##_args *args, kqm_stream stream);
KQM_EACH_LAUNCHER(KQM_DECLARE)
uint64_t kqm_attention_workspace(const kqm_attention_args *args);
uint64_t kqm_moe_layer_workspace(const kqm_moe_layer_args *args);
uint32_t kqm_moe_max_items(uint32_t tokens, uint32_t experts, uint32_t top_k);
KQM_ABI_END

#if !defined(KQM_EMULATION)
// Does not compile with flags that give other results: which they are is a constant, and the branch that it excludes goes before
// the assembler, which knows no such instruction, sees it.
extern "C" __device__ int __nvvm_reflect(const char *question);
__global__ void kqm_flags_of_this_build() {
  if (__nvvm_reflect("__CUDA_FTZ")) asm volatile("kquant_moe_must_be_compiled_with_ftz_false;");
  if (!__nvvm_reflect("__CUDA_PREC_DIV")) asm volatile("kquant_moe_must_be_compiled_with_prec_div_true;");
  if (!__nvvm_reflect("__CUDA_PREC_SQRT")) asm volatile("kquant_moe_must_be_compiled_with_prec_sqrt_true;");
}
#endif

namespace {

const char *status_text(kqm_status status) {
  switch (status) {
    case KQM_OK: return "success";
    case KQM_NULL_POINTER: return "a required pointer is null";
    case KQM_BAD_SHAPE: return "a count is zero, too large or not a multiple of what the kernel needs";
    case KQM_UNSUPPORTED_TYPE: return "the kernel does not compute with this tensor type";
    case KQM_MISALIGNED: return "a pointer is not aligned as its layout demands";
    case KQM_WORKSPACE: return "the workspace is too small";
    case KQM_OTHER_ABI: return "the caller was compiled with another version of kquant_moe.h";
  }
#if defined(KQM_EMULATION)
  return status > 0 ? "the emulation found a fault" : "unknown status";
#else
  return status > 0 ? cudaGetErrorString(static_cast<cudaError_t>(status)) : "unknown status";
#endif
}

constexpr kqm_kernels make_table() {
  kqm_kernels table{};
#define KQM_SET(number, name) table.name = kqm_launchers::kqm_##name;
  KQM_EACH_LAUNCHER(KQM_SET)
  table.attention_workspace = kqm_launchers::kqm_attention_workspace;
  table.moe_layer_workspace = kqm_launchers::kqm_moe_layer_workspace;
  table.moe_max_items = kqm_launchers::kqm_moe_max_items;
  table.status_text = status_text;
  return table;
}

// Made by the compiler, so that nothing has to run before the first call.
constexpr kqm_kernels kernel_table = make_table();

}  // namespace

KQM_EXPORTS_BEGIN
#define KQM_EXPORT(number, name)                                                                      \
  kqm_status kqm_launch_##name(kqm_caller caller, const kqm_##name##_args *args, kqm_stream stream) { \
    KQM_REQUIRE(caller == KQM_CALLER(kqm_##name##_args), KQM_OTHER_ABI);                              \
    return kqm_launchers::kqm_##name(args, stream);                                                   \
  }
KQM_EACH_LAUNCHER(KQM_EXPORT)

uint64_t kqm_launch_attention_workspace(kqm_caller caller, const kqm_attention_args *args) {
  return caller == KQM_CALLER(kqm_attention_args) ? kqm_launchers::kqm_attention_workspace(args) : 0;
}

uint64_t kqm_launch_moe_layer_workspace(kqm_caller caller, const kqm_moe_layer_args *args) {
  return caller == KQM_CALLER(kqm_moe_layer_args) ? kqm_launchers::kqm_moe_layer_workspace(args) : 0;
}

uint32_t kqm_moe_max_items(uint32_t tokens, uint32_t experts, uint32_t top_k) {
  return kqm_launchers::kqm_moe_max_items(tokens, experts, top_k);
}

const kqm_kernels *kqm_kernel_table(uint32_t abi) { return abi == uint32_t(KQM_ABI) ? &kernel_table : nullptr; }
KQM_EXPORTS_END
