// The launchers as a table, and the text of a status.
#include "common/hw.cuh"

namespace {

const char *status_text(kqm_status status) {
  switch (status) {
    case KQM_OK: return "success";
    case KQM_NULL_POINTER: return "a required pointer is null";
    case KQM_BAD_SHAPE: return "a count is zero, too large or not a multiple of what the kernel needs";
    case KQM_UNSUPPORTED_TYPE: return "the kernel does not compute with this tensor type";
    case KQM_MISALIGNED: return "a pointer is not aligned as its layout demands";
    case KQM_WORKSPACE: return "the workspace is too small";
  }
#if defined(KQM_EMULATION)
  return status > 0 ? "the emulation found a fault" : "unknown status";
#else
  return status > 0 ? cudaGetErrorString(static_cast<cudaError_t>(status)) : "unknown status";
#endif
}

}  // namespace

KQM_ABI_BEGIN
const kqm_kernels *kqm_kernel_table(void) {
  static const kqm_kernels table = {
      kqm_repack,        kqm_quantize,   kqm_matvec,        kqm_q4_k_matvec, kqm_q6_k_gemv, kqm_qkv,      kqm_embedding,
      kqm_rms_norm,      kqm_rope,       kqm_attention_workspace, kqm_attention, kqm_moe_router, kqm_moe_max_items,
      kqm_moe_group,     kqm_moe_swiglu, kqm_moe_down,      kqm_residual_add, kqm_argmax,  status_text,
  };
  return &table;
}
KQM_ABI_END
