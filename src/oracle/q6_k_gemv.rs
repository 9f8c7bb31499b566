//! Product with a Q6_K matrix.

use super::tree::TreeSum;
use super::{FixedBlock, canonical};
use crate::blocks::{BLOCK, BlockQ6K};

/// One row's product, rounded to f32. `w` and `x` are `[cols / 256]`.
pub fn dot(w: &[BlockQ6K], x: &[FixedBlock]) -> f32 {
    let mut y = TreeSum::default();
    for (w, x) in w.iter().zip(x) {
        let mut t = 0;
        for (j, x) in x.x.as_chunks::<16>().0.iter().enumerate() {
            let mut product = 0;
            for (k, &x) in x.iter().enumerate() {
                product += i64::from(w.quant(j, k)) * x;
            }
            t += i64::from(w.scale(j)) * product;
        }
        let v = w.d().to_f64() * t as f64;
        y.add(x.unit * v);
    }
    canonical(y.sum() as f32)
}

/// `y[t, r] = w[r] x[t]`: `w` is `[rows, cols / 256]`, `x` is `[tokens, cols / 256]`, `y` is `[tokens, rows]`.
pub fn q6_k_gemv(w: &[BlockQ6K], cols: usize, x: &[FixedBlock], y: &mut [f32]) {
    let blocks = cols / BLOCK;
    for (x, y) in x.chunks_exact(blocks).zip(y.chunks_exact_mut(w.len() / blocks)) {
        for (w, y) in w.chunks_exact(blocks).zip(y) {
            *y = dot(w, x);
        }
    }
}
