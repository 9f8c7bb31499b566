//! Product with a Q4_K matrix.

use super::{FixedBlock, matvec};
use crate::blocks::BlockQ4K;

/// `y[t, r] = w[r] x[t]`: `w` is `[rows, cols / 256]`, `x` is `[tokens, cols / 256]`, `y` is `[tokens, rows]`.
pub fn q4_k_matvec(w: &[BlockQ4K], cols: usize, x: &[FixedBlock], y: &mut [f32]) {
    matvec::blocks(w, cols, x, y);
}
