//! Down projections of the chosen experts, and their weighted sum.

use super::canonical;
use super::tree::TreeSum;

/// The weighted sum of one value of a token: `expert_out` and `weights` are those of the chosen experts by rank.
#[inline(always)]
pub fn weighted_sum(weights: &[f32], expert_out: impl Iterator<Item = f32>) -> f32 {
    let mut sum = TreeSum::default();
    for (&weight, down) in weights.iter().zip(expert_out) {
        // The product of two f32 is exact.
        sum.add(f64::from(weight) * f64::from(down));
    }
    canonical(sum.sum() as f32)
}

/// One token: `sum = sum over ranks of weights[rank] * expert_out[rank]`. `expert_out` is `[top_k, rows]`, the products
/// of the experts' matrices; `sum` is `[rows]`.
pub fn moe_down(weights: &[f32], expert_out: &[f32], sum: &mut [f32]) {
    let rows = sum.len();
    for (row, sum) in sum.iter_mut().enumerate() {
        *sum = weighted_sum(weights, expert_out.iter().skip(row).step_by(rows).copied());
    }
}
