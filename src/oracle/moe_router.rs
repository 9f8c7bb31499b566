//! The router: logits of all experts, the largest ones, and their probabilities.

use std::cmp::Ordering;

use super::canonical;
use super::exp::exp;
use super::tree::{TreeSum, tree_dot};
use crate::sys;

/// What the weights of a token's chosen experts are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Weighting {
    /// Their softmax probabilities, renormalised to sum 1.
    #[default]
    OfChosen = sys::KQM_WEIGHTS_OF_CHOSEN,
    /// Their softmax probabilities among all experts.
    OfAll = sys::KQM_WEIGHTS_OF_ALL,
}

/// Order of logits: a NaN is larger than any number.
#[inline(always)]
pub fn compare(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Routes one token. `x` is `[cols]`, `w` is `[experts, cols]`, `logits` is `[experts]`; `indices` and `weights` are
/// `[top_k]`, highest probability first, ties to the lower expert.
#[inline(always)]
pub fn moe_router(
    x: &[f32],
    w: &[f32],
    weighting: Weighting,
    logits: &mut [f32],
    indices: &mut [u32],
    weights: &mut [f32],
) {
    for (w, logit) in w.chunks_exact(x.len()).zip(&mut *logits) {
        // Adding 0 turns -0 into 0.
        *logit = canonical(tree_dot(w, x) as f32 + 0.0);
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| compare(logits[b], logits[a]).then(a.cmp(&b)));
    let first = logits[order[0]];
    let mut p = Vec::new();
    let mut sum = 0.0;
    for (&expert, index) in order.iter().zip(&mut *indices) {
        *index = expert as u32;
        let probability = f64::from(exp(logits[expert] - first));
        p.push(probability);
        sum += probability;
    }
    if weighting == Weighting::OfAll {
        let mut all = TreeSum::default();
        logits.iter().for_each(|&logit| all.add(f64::from(exp(logit - first))));
        sum = all.sum();
    }
    for (p, weight) in p.iter().zip(weights) {
        *weight = canonical((p / sum) as f32);
    }
}
