//! Product with a Q4_K matrix.

use super::tree::TreeSum;
use super::{FixedBlock, canonical};
use crate::blocks::{BLOCK, BlockQ4K};

/// One row's product, rounded to f32. `w` and `x` are `[cols / 256]`.
pub fn dot(w: &[BlockQ4K], x: &[FixedBlock]) -> f32 {
    let mut y = TreeSum::default();
    for (w, x) in w.iter().zip(x) {
        let (mut t, mut m) = (0, 0);
        for (j, x) in x.x.as_chunks::<32>().0.iter().enumerate() {
            let (mut product, mut sum) = (0, 0);
            for (k, &x) in x.iter().enumerate() {
                product += i64::from(w.quant(j, k)) * x;
                sum += x;
            }
            t += i64::from(w.scale(j)) * product;
            m += i64::from(w.min(j)) * sum;
        }
        let v = (-w.dmin().to_f64()).mul_add(m as f64, w.d().to_f64() * t as f64);
        y.add(x.unit * v);
    }
    canonical(y.sum() as f32)
}

/// `y[t, r] = w[r] x[t]`: `w` is `[rows, cols / 256]`, `x` is `[tokens, cols / 256]`, `y` is `[tokens, rows]`.
pub fn q4_k_matvec(w: &[BlockQ4K], cols: usize, x: &[FixedBlock], y: &mut [f32]) {
    let blocks = cols / BLOCK;
    for (x, y) in x.chunks_exact(blocks).zip(y.chunks_exact_mut(w.len() / blocks)) {
        for (w, y) in w.chunks_exact(blocks).zip(y) {
            *y = dot(w, x);
        }
    }
}
