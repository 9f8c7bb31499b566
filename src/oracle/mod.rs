//! The kernels in plain Rust: one file for each, with the loop that `docs/arithmetic.md` writes down and nothing else.
//! A kernel's results equal its oracle's to the bit.

pub mod argmax;
pub mod attention;
pub mod embedding;
pub mod exp;
pub mod float_matvec;
pub mod matvec;
pub mod moe_down;
pub mod moe_group;
pub mod moe_layer;
pub mod moe_router;
pub mod moe_swiglu;
pub mod q4_k_matvec;
pub mod q6_k_gemv;
pub mod qkv;
pub mod quantize;
pub mod repack;
pub mod residual_add;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod tree;

pub use quantize::FixedBlock;

use half::{bf16, f16};

use crate::blocks::{BLOCK, TensorType, with_blocks};

/// The value as a kernel stores it: a NaN is always `0x7fc00000`.
#[inline]
pub fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fc0_0000) } else { x }
}

/// What a float that is stored as F16 or BF16 is in f32, exactly. `None` for other types.
pub fn widened(kind: TensorType, bits: u16) -> Option<f32> {
    match kind {
        TensorType::F16 => Some(f16::from_bits(bits).to_f32()),
        TensorType::BF16 => Some(bf16::from_bits(bits).to_f32()),
        _ => None,
    }
}

/// A result as a kernel stores it as F16 or BF16: rounded to nearest even, a NaN always `0x7e00` or `0x7fc0`. `None` for other types.
pub fn narrowed(kind: TensorType, x: f32) -> Option<u16> {
    match kind {
        TensorType::F16 if x.is_nan() => Some(0x7e00),
        TensorType::F16 => Some(f16::from_f32(x).to_bits()),
        TensorType::BF16 => Some(bf16::from_f32(canonical(x)).to_bits()),
        _ => None,
    }
}

/// The results for a number that names nothing, such as the index of an expert that does not exist.
pub fn absent(results: &mut [f32]) {
    results.fill(canonical(f32::NAN));
}

/// A quantized matrix `[rows, cols]`, row-major: `rows * cols / 256` blocks of one type.
pub use crate::blocks::Blocks as Matrix;
/// What the kernels with several matrices have in common.
pub use matvec::matvec as product;

impl Matrix<'_> {
    /// Rows of a matrix whose rows have `cols` weights.
    pub fn rows(&self, cols: usize) -> usize {
        with_blocks!(self, blocks => blocks.len()) / (cols / BLOCK)
    }

    /// Product of row `row` with the activations `x`, rounded to f32.
    pub fn dot(&self, row: usize, x: &[FixedBlock]) -> f32 {
        with_blocks!(self, blocks => matvec::dot(&blocks[row * x.len()..][..x.len()], x))
    }
}
