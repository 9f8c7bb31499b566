// q4_k_matvec: y[t, r] = sum_k W[r, k] x[t, k] (+ residual[t, r]), W in Q4_K tiles, x in block fixed point.
//
// Shapes: W [rows, K], x [tokens, K / 256] fixed-point blocks, y [tokens, rows]; K a multiple of 256, any number of tokens and rows.
// Maths: exact integers in a super-block on int8 tensor cores (common/tiles.cuh), fp64 between super-blocks in a fixed
// order (common/matvec.cuh), warp shuffles to bring the digit planes of a row together, one rounding to f32.
// Launch: one or two tokens: one warp for a super-block of the row (16 or 8 warps at most), CTAs stride over the row tiles; more
// tokens: eight at once (common/wide.cuh).
// Bound by: the weights' bytes (0.5625 a weight) for few tokens, the tensor cores' setup for many.
#include "common/matvec.cuh"

KQM_ABI_BEGIN
kqm_status kqm_q4_k_matvec(const kqm_q4_k_matvec_args *args, kqm_stream stream) {
  return kqm_matvec_of_type<KqmTileQ4K>(args, stream);
}
KQM_ABI_END
