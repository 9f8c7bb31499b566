//! Operands of the expert kernels.

use kquant_moe::device::{Buffer, Device};
use kquant_moe::kernels::{Groups, MoeGroup};

use super::{Random, ok};

/// Different experts for every token. Every second token takes the first ones, so that some experts have many pairs.
pub fn choose(random: &mut Random, tokens: usize, experts: usize, top_k: usize) -> Vec<u32> {
    (0..tokens)
        .flat_map(|token| match token % 2 {
            0 => random.distinct(experts, top_k),
            _ => (0..top_k as u32).rev().collect(),
        })
        .collect()
}

/// The pairs of a batch, grouped on the device. A single token has no use for groups: then they stay as they are made.
pub fn group<D: Device>(
    device: &D,
    indices: &Buffer<D, u32>,
    tokens: usize,
    experts: usize,
    top_k: usize,
) -> Groups<D> {
    let mut groups = ok(Groups::new(device, tokens, experts, top_k));
    if tokens > 1 {
        ok(MoeGroup { indices: indices.slice(), groups: &mut groups, tokens, experts, top_k }.launch(device));
    }
    groups
}
