//! Up to three products with the same activations.

use super::{FixedBlock, Matrix, product};

/// `y[i] = w[i] x`: matrix `i` is `[rows_i, cols]` of either type, `x` is `[tokens, cols / 256]`, `y[i]` is
/// `[tokens, rows_i]`.
pub fn qkv(w: [Matrix<'_>; 3], cols: usize, x: &[FixedBlock], y: [&mut [f32]; 3]) {
    for (w, y) in w.into_iter().zip(y) {
        product(w, cols, x, y);
    }
}
