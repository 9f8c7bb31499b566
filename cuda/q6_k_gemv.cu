// q6_k_gemv: y[t, r] = sum_k W[r, k] x[t, k] (+ residual[t, r]), W in Q6_K tiles, x in block fixed point.
//
// Shapes: W [rows, K], x [tokens, K / 256] fixed-point blocks, y [tokens, rows]; K a multiple of 256, any number of tokens and rows.
// Maths: dequantization is fused and exact: 8-bit scale times 6-bit weight times 39-bit activation are integers on int8
// tensor cores (common/tiles.cuh); fp64 accumulates the super-blocks in a fixed order (common/matvec.cuh), and the
// result is rounded once to f32.
// Launch: one or two tokens: one warp for a super-block of the row (16 or 8 warps at most), CTAs stride over the row tiles; more
// tokens: eight at once (common/wide.cuh).
// Bound by: the weights' bytes (0.8203 a weight) for few tokens, the unpacking of six-bit weights for many.
#include "common/matvec.cuh"

KQM_ABI_BEGIN
kqm_status kqm_q6_k_gemv(const kqm_q6_k_gemv_args *args, kqm_stream stream) {
  return kqm_matvec_of_type<KqmTileQ6K>(args, stream);
}
KQM_ABI_END
