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

/// Indices of no expert: the first one, one that is far away, and the largest number.
pub fn absent(experts: usize) -> [u32; 3] {
    [experts as u32, 1_000_000, u32::MAX]
}

/// Experts for every token, of which the first one, the last one and about every third one between are that number.
pub fn with_absent(random: &mut Random, tokens: usize, experts: usize, top_k: usize, absent: u32) -> Vec<u32> {
    let mut indices = choose(random, tokens, experts, top_k);
    let last = indices.len() - 1;
    for (pair, index) in indices.iter_mut().enumerate() {
        if pair == 0 || pair == last || random.below(3) == 0 {
            *index = absent;
        }
    }
    indices
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
        ok(MoeGroup::new(indices.slice(), &mut groups, [tokens, top_k], experts).launch(device));
    }
    groups
}
