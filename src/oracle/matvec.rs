//! Product with a matrix of any type.

use super::tree::TreeSum;
use super::{FixedBlock, Matrix, canonical};
use crate::blocks::{BLOCK, Eight, SmallBlock, SuperBlock, Weights, with_blocks};

/// What a type's 256 weights make of as many activations.
pub trait Product: Weights {
    /// v of `docs/arithmetic.md`: the product with the activations, but for the unit of those.
    fn v(&self, x: &FixedBlock) -> f64;
}

impl<T: SuperBlock> Product for T {
    fn v(&self, x: &FixedBlock) -> f64 {
        let (mut t, mut m) = (0, 0);
        for (j, x) in x.x.chunks_exact(T::SUB_BLOCK).enumerate() {
            let (mut product, mut sum) = (0, 0);
            for (k, &x) in x.iter().enumerate() {
                product += i64::from(self.quant(j, k)) * x;
                sum += x;
            }
            t += i64::from(self.scale(j)) * product;
            m += i64::from(self.min(j)) * sum;
        }
        let v = f64::from(self.factor()) * t as f64;
        if T::MINS { (-self.dmin().to_f64()).mul_add(m as f64, v) } else { v }
    }
}

impl<B: SmallBlock> Product for Eight<B> {
    fn v(&self, x: &FixedBlock) -> f64 {
        let x = x.x.as_chunks::<32>().0;
        let v: [f64; 8] = std::array::from_fn(|j| {
            let (block, quants) = (&self.0[j], self.0[j].quants());
            let t: i64 = quants.iter().zip(&x[j]).map(|(&q, &x)| i64::from(q) * x).sum();
            let v = f64::from(block.d()) * t as f64;
            if B::MINS { block.m().to_f64().mul_add(x[j].iter().sum::<i64>() as f64, v) } else { v }
        });
        join(v)
    }
}

/// The balanced tree of neighbours over eight blocks.
pub(crate) fn join(v: [f64; 8]) -> f64 {
    ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]))
}

/// One row's product, rounded to f32. `w` and `x` are `[cols / 256]`.
pub fn dot<T: Product>(w: &[T], x: &[FixedBlock]) -> f32 {
    let mut y = TreeSum::default();
    for (w, x) in w.iter().zip(x) {
        y.add(x.unit * w.v(x));
    }
    canonical(y.sum() as f32)
}

/// `y[t, r] = w[r] x[t]` for a matrix of any type. `x` is `[tokens, cols / 256]`, `y` is `[tokens, rows]`.
pub fn matvec(w: Matrix<'_>, cols: usize, x: &[FixedBlock], y: &mut [f32]) {
    with_blocks!(w, w => blocks(w, cols, x, y));
}

/// The same for blocks `[rows, cols / 256]` of a type.
pub(super) fn blocks<T: Product>(w: &[T], cols: usize, x: &[FixedBlock], y: &mut [f32]) {
    let blocks = cols / BLOCK;
    for (x, y) in x.chunks_exact(blocks).zip(y.chunks_exact_mut((w.len() / blocks).max(1))) {
        for (w, y) in w.chunks_exact(blocks).zip(y) {
            *y = dot(w, x);
        }
    }
}
