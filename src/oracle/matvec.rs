//! Product with a matrix of any type.

use super::tree::TreeSum;
use super::{FixedBlock, Matrix, canonical};
use crate::blocks::{BLOCK, SuperBlock, with_blocks};

/// v of `docs/arithmetic.md`: a super-block times its activations, but for the unit of those.
fn super_block<T: SuperBlock>(w: &T, x: &FixedBlock) -> f64 {
    let (mut t, mut m) = (0, 0);
    for (j, x) in x.x.chunks_exact(T::SUB_BLOCK).enumerate() {
        let (mut product, mut sum) = (0, 0);
        for (k, &x) in x.iter().enumerate() {
            product += i64::from(w.quant(j, k)) * x;
            sum += x;
        }
        t += i64::from(w.scale(j)) * product;
        m += i64::from(w.min(j)) * sum;
    }
    let v = w.d().to_f64() * t as f64;
    if T::MINS { (-w.dmin().to_f64()).mul_add(m as f64, v) } else { v }
}

/// One row's product, rounded to f32. `w` and `x` are `[cols / 256]`.
pub fn dot<T: SuperBlock>(w: &[T], x: &[FixedBlock]) -> f32 {
    let mut y = TreeSum::default();
    for (w, x) in w.iter().zip(x) {
        y.add(x.unit * super_block(w, x));
    }
    canonical(y.sum() as f32)
}

/// `y[t, r] = w[r] x[t]` for a matrix of any type. `x` is `[tokens, cols / 256]`, `y` is `[tokens, rows]`.
pub fn matvec(w: Matrix<'_>, cols: usize, x: &[FixedBlock], y: &mut [f32]) {
    with_blocks!(w, w => blocks(w, cols, x, y));
}

/// The same for blocks `[rows, cols / 256]` of a type.
pub(super) fn blocks<T: SuperBlock>(w: &[T], cols: usize, x: &[FixedBlock], y: &mut [f32]) {
    let blocks = cols / BLOCK;
    for (x, y) in x.chunks_exact(blocks).zip(y.chunks_exact_mut((w.len() / blocks).max(1))) {
        for (w, y) in w.chunks_exact(blocks).zip(y) {
            *y = dot(w, x);
        }
    }
}
