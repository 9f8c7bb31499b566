//! Operands of kernels that take in the RMSNorm of a single token.

use kquant_moe::device::{Buffer, Device};
use kquant_moe::kernels::{FixedBlock, FusedNorm, RmsNorm};
use kquant_moe::oracle;

use super::{Activations, Output, Random, fixed_blocks, input, ok};

pub const EPS: f32 = 1e-6;

/// A row and its norm weights.
pub struct Row {
    pub x: Vec<f32>,
    pub weight: Vec<f32>,
}

/// The normed row, as floats and as fixed point.
pub struct Normed {
    pub row: Vec<f32>,
    pub blocks: Vec<oracle::FixedBlock>,
    pub digits: Vec<FixedBlock>,
}

impl Row {
    pub fn random(random: &mut Random, kind: Activations, cols: usize) -> Self {
        Self { x: kind.row(random, cols), weight: random.gaussians(cols) }
    }

    /// What the oracle makes of it.
    pub fn normed(&self) -> Normed {
        let mut row = vec![0.0; self.x.len()];
        oracle::rms_norm::rms_norm(&self.x, &self.weight, EPS, &mut row);
        let (blocks, digits) = fixed_blocks(&row);
        Normed { row, blocks, digits }
    }

    pub fn upload<D: Device>(&self, device: &D) -> UploadedRow<D> {
        UploadedRow {
            x: input(device, &self.x),
            weight: input(device, &self.weight),
            out: Output::new(device, self.x.len()),
        }
    }
}

/// A row on a device, and room for the tap.
pub struct UploadedRow<D: Device> {
    pub x: Buffer<D, f32>,
    pub weight: Buffer<D, f32>,
    pub out: Output<D, f32>,
}

impl<D: Device> UploadedRow<D> {
    /// The operand, with or without the tap.
    pub fn fused(&mut self, tap: bool) -> FusedNorm<'_> {
        FusedNorm { x: self.x.slice(), weight: self.weight.slice(), eps: EPS, out: self.out.slice_if(tap) }
    }

    /// What the kernel of its own makes of it, as floats and as fixed point.
    pub fn separate(&self, device: &D) -> (Output<D, f32>, Output<D, FixedBlock>) {
        let cols = self.x.len();
        let (mut out, mut fixed) = (Output::new(device, cols), Output::new(device, cols / 256));
        ok(RmsNorm {
            x: self.x.slice(),
            weight: self.weight.slice(),
            eps: EPS,
            tokens: 1,
            cols,
            out: Some(out.slice()),
            fixed: Some(fixed.slice()),
        }
        .launch(device));
        (out, fixed)
    }
}
