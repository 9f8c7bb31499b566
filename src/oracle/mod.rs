//! The kernels in plain Rust: one file for each, with the loop that `docs/arithmetic.md` writes down and nothing else.
//! A kernel's results equal its oracle's to the bit.

pub mod argmax;
pub mod attention;
pub mod embedding;
pub mod exp;
pub mod moe_down;
pub mod moe_group;
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
pub mod tree;

pub use quantize::FixedBlock;

use crate::blocks::{BLOCK, BlockQ4K, BlockQ6K};

/// The value as a kernel stores it: a NaN is always `0x7fc00000`.
#[inline]
pub fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fc0_0000) } else { x }
}

/// The results for a number that names nothing, such as the index of an expert that does not exist.
pub fn absent(results: &mut [f32]) {
    results.fill(canonical(f32::NAN));
}

/// A quantized matrix `[rows, cols]`, row-major: `rows * cols / 256` blocks of one type.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'a> {
    /// Q4_K blocks.
    Q4K(&'a [BlockQ4K]),
    /// Q6_K blocks.
    Q6K(&'a [BlockQ6K]),
}

impl Matrix<'_> {
    /// Rows of a matrix whose rows have `cols` weights.
    pub fn rows(&self, cols: usize) -> usize {
        match self {
            Self::Q4K(blocks) => blocks.len() / (cols / BLOCK),
            Self::Q6K(blocks) => blocks.len() / (cols / BLOCK),
        }
    }

    /// Product of row `row` with the activations `x`, rounded to f32.
    pub fn dot(&self, row: usize, x: &[FixedBlock]) -> f32 {
        match self {
            Self::Q4K(blocks) => q4_k_matvec::dot(&blocks[row * x.len()..][..x.len()], x),
            Self::Q6K(blocks) => q6_k_gemv::dot(&blocks[row * x.len()..][..x.len()], x),
        }
    }
}

/// `y[t, r] = w[r] x[t]` for a matrix of either type. `x` is `[tokens, cols / 256]`, `y` is `[tokens, rows]`.
pub fn product(w: Matrix<'_>, cols: usize, x: &[FixedBlock], y: &mut [f32]) {
    let rows = w.rows(cols);
    for (x, y) in x.chunks_exact(cols / BLOCK).zip(y.chunks_exact_mut(rows.max(1))) {
        for (row, y) in y.iter_mut().enumerate() {
            *y = w.dot(row, x);
        }
    }
}
