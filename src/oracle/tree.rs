//! Sums whose order depends on nothing but the row.

use std::ops::Add;

use crate::blocks::BLOCK;

/// Balanced binary tree of neighbours over a power of two of values: `(v0 + v1) + (v2 + v3)` and so on.
#[inline(always)]
pub fn tree_sum<const N: usize>(mut values: [f64; N]) -> f64 {
    let mut len = N;
    while len > 1 {
        len /= 2;
        for i in 0..len {
            values[i] = values[2 * i] + values[2 * i + 1];
        }
    }
    values[0]
}

/// The sum of the numbers added: groups of 16, the last one filled up with zeros, each as a balanced tree of neighbours; the groups in
/// ascending order from 0. A number is an f64, or a few of them that are added side by side.
#[derive(Clone, Copy, Debug, Default)]
pub struct TreeSum<T = f64> {
    /// Sums of 1, 2, 4 and 8 neighbours that wait for the next ones, where the bit of `count` is set.
    waiting: [T; 4],
    /// Numbers of the unfinished group.
    count: usize,
    groups: T,
}

impl<T: Copy + Default + Add<Output = T>> TreeSum<T> {
    /// Adds the next number.
    #[inline(always)]
    pub fn add(&mut self, mut sum: T) {
        for level in 0..4 {
            if self.count >> level & 1 == 0 {
                self.waiting[level] = sum;
                self.count += 1;
                return;
            }
            sum = sum + self.waiting[level];
        }
        self.groups = self.groups + sum;
        self.count = 0;
    }

    /// The sum. What would be added to zeros stays as it is.
    #[inline(always)]
    pub fn sum(&self) -> T {
        let mut rest = T::default();
        for level in 0..4 {
            if self.count >> level & 1 == 1 {
                rest = rest + self.waiting[level];
            }
        }
        self.groups + rest
    }
}

/// `sum a[i] * b[i]` in f64: leaves of 4 neighbours, 64 leaves a run as a balanced tree, runs as a [`TreeSum`]. The last run is filled
/// up with zeros.
#[inline(always)]
pub fn tree_dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sum = TreeSum::default();
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let mut padded = [[0.0; BLOCK]; 2];
        padded[0][..a.len()].copy_from_slice(a);
        padded[1][..b.len()].copy_from_slice(b);
        let [a, b] = padded.map(|row| row.map(f64::from));
        let leaves: [f64; BLOCK / 4] = std::array::from_fn(|leaf| {
            let (a, b) = (&a[4 * leaf..][..4], &b[4 * leaf..][..4]);
            a[3].mul_add(b[3], a[2].mul_add(b[2], a[1].mul_add(b[1], a[0] * b[0])))
        });
        sum.add(tree_sum(leaves));
    }
    sum.sum()
}
