//! A whole MoE layer of one token: the other oracles one after the other.

use super::moe_router::{Weighting, moe_router};
use super::{FixedBlock, Matrix, moe_down, moe_swiglu, product, quantize};
use crate::blocks::BLOCK;

/// `sum = sum over the chosen experts of weight * down(swiglu(x))`. `x` is the normed row `[hidden]`, `router` is `[experts, hidden]`;
/// `experts` gives the matrices gate `[ff, hidden]`, up `[ff, hidden]` and down `[rows, ff]` of an expert. `sum` is `[rows]`.
pub fn moe_layer<'a>(
    x: &[f32],
    router: &[f32],
    experts: impl Fn(usize) -> [Matrix<'a>; 3],
    ff: usize,
    top_k: usize,
    weighting: Weighting,
    sum: &mut [f32],
) {
    let mut logits = vec![0.0; router.len() / x.len()];
    let (mut indices, mut weights) = (vec![0; top_k], vec![0.0; top_k]);
    moe_router(x, router, weighting, &mut logits, &mut indices, &mut weights);
    let zero = FixedBlock { x: [0; BLOCK], unit: 0.0 };
    let (mut fixed, mut between) = (vec![zero; x.len() / BLOCK], vec![zero; ff / BLOCK]);
    quantize::quantize(x, &mut fixed);
    let mut expert_out = vec![0.0; top_k * sum.len()];
    let [mut gate_out, mut up_out, mut swiglu] = [(); 3].map(|()| vec![0.0; ff]);
    for (&expert, out) in indices.iter().zip(expert_out.chunks_exact_mut(sum.len())) {
        let [gate, up, down] = experts(expert as usize);
        moe_swiglu::moe_swiglu(gate, up, &fixed, &mut gate_out, &mut up_out, &mut swiglu);
        quantize::quantize(&swiglu, &mut between);
        product(down, ff, &between, out);
    }
    moe_down::moe_down(&weights, &expert_out, sum);
}
