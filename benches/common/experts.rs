//! Work for the expert kernels.

use std::collections::HashSet;

use kquant_moe::device::{Buffer, CudaDevice};
use kquant_moe::kernels::{Groups, MoeGroup};

use super::common::*;

/// Stacks of experts that launches take turns with.
pub const STACKS: usize = 2;

/// The experts of a batch, on the device.
pub struct Choice {
    pub indices: Buffer<CudaDevice, u32>,
    pub groups: Groups<CudaDevice>,
}

impl Choice {
    pub fn new(device: &CudaDevice, indices: &[u32]) -> Self {
        let tokens = indices.len() / TOP_K;
        let indices = ok(Buffer::from_slice(device, indices));
        let mut groups = ok(Groups::new(device, tokens, EXPERTS, TOP_K));
        ok(MoeGroup::new(indices.slice(), &mut groups, [tokens, TOP_K], EXPERTS).launch(device));
        Self { indices, groups }
    }
}

/// Experts for each of a rotation's launches. Single tokens in turn take different ones, until all have been taken.
pub fn choose(random: &mut Random, tokens: usize, launches: usize) -> Vec<Vec<u32>> {
    let mut order = Vec::new();
    (0..launches)
        .map(|launch| {
            if tokens > 1 {
                return (0..tokens).flat_map(|_| random.distinct(EXPERTS, TOP_K)).collect();
            }
            let turns = EXPERTS / TOP_K;
            if launch.is_multiple_of(turns * STACKS) {
                order = random.distinct(EXPERTS, EXPERTS);
            }
            order[launch / STACKS % turns * TOP_K..][..TOP_K].to_vec()
        })
        .collect()
}

/// Experts that a launch reads.
pub fn distinct(indices: &[u32]) -> usize {
    indices.iter().collect::<HashSet<_>>().len()
}
