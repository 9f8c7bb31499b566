//! Gate and up projections of the chosen experts, and SwiGLU.

use super::exp::silu;
use super::{FixedBlock, Matrix, canonical};

/// `silu(gate) * up`.
///
/// Source: Shazeer, "GLU Variants Improve Transformer" (2020).
#[inline(always)]
pub fn swiglu(gate: f32, up: f32) -> f32 {
    canonical(silu(gate) * up)
}

/// One pair: `out[r] = silu(gate[r] x) * (up[r] x)`. `gate` and `up` are one expert's matrices `[ff, cols]`, `x` is
/// `[cols / 256]`, the outputs are `[ff]`.
pub fn moe_swiglu(
    gate: Matrix<'_>,
    up: Matrix<'_>,
    x: &[FixedBlock],
    gate_out: &mut [f32],
    up_out: &mut [f32],
    out: &mut [f32],
) {
    for (row, out) in out.iter_mut().enumerate() {
        gate_out[row] = gate.dot(row, x);
        up_out[row] = up.dot(row, x);
        *out = swiglu(gate_out[row], up_out[row]);
    }
}
