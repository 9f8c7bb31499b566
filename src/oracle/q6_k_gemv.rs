//! Product with a Q6_K matrix.

use super::{FixedBlock, matvec};
use crate::blocks::BlockQ6K;

/// `y[t, r] = w[r] x[t]`: `w` is `[rows, cols / 256]`, `x` is `[tokens, cols / 256]`, `y` is `[tokens, rows]`.
pub fn q6_k_gemv(w: &[BlockQ6K], cols: usize, x: &[FixedBlock], y: &mut [f32]) {
    matvec::blocks(w, cols, x, y);
}
