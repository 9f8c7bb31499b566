//! Products with weights that are floats.

use super::canonical;
use super::embedding::dequantize;
use super::tree::tree_dot;
use crate::blocks::TensorType;

/// A matrix `[rows, cols]` of floats, as it is in a file.
#[derive(Clone, Copy, Debug)]
pub struct Floats<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// One of [`TensorType::FLOATS`].
    pub kind: TensorType,
    /// Weights in a row.
    pub cols: usize,
}

impl Floats<'_> {
    /// A row's weights, which are exact in f32.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let bytes = self.kind.bytes_of(self.cols);
        let mut weights = vec![0.0; self.cols];
        dequantize(self.kind, &self.bytes[row * bytes..][..bytes], &mut weights);
        weights
    }
}

/// One value: the product of two rows, rounded to f32.
#[inline(always)]
pub fn dot(w: &[f32], x: &[f32]) -> f32 {
    canonical(tree_dot(w, x) as f32)
}

/// `y[t, r] = w[r] x[t]`: `x` is `[tokens, cols]`, `y` is `[tokens, rows]`.
pub fn float_matvec(w: Floats<'_>, x: &[f32], y: &mut [f32]) {
    let rows = w.bytes.len() / w.kind.bytes_of(w.cols);
    for row in 0..rows {
        let weights = w.row(row);
        for (x, y) in x.chunks_exact(w.cols).zip(y.chunks_exact_mut(rows)) {
            y[row] = dot(&weights, x);
        }
    }
}
