//! Operands of kernels that take in the RMSNorm of a single token.

use kquant_moe::device::{Buffer, Device};
use kquant_moe::kernels::{FixedBlock, FusedNorm, RmsNorm};
use kquant_moe::oracle;

use super::{Activations, NANS, Output, Random, fixed_blocks, input, ok, pins};

pub const EPS: f32 = 1e-6;

/// A row and its norm weights.
pub struct Row {
    pub x: Vec<f32>,
    pub weight: Vec<f32>,
    pub eps: f32,
    /// Values that count.
    pub width: usize,
}

/// The normed row, as floats and as fixed point.
pub struct Normed {
    pub row: Vec<f32>,
    pub blocks: Vec<oracle::FixedBlock>,
    pub digits: Vec<FixedBlock>,
}

impl Row {
    pub fn random(random: &mut Random, kind: Activations, cols: usize) -> Self {
        Self { x: kind.row(random, cols), weight: random.gaussians(cols), eps: EPS, width: cols }
    }

    /// Rows of fewer values than columns, also with something behind them, where zeros should be.
    pub fn narrow(random: &mut Random, cols: usize) -> Vec<Self> {
        let mut rows = Vec::new();
        for width in [1, cols - 224, cols - 32, cols - 1] {
            let mut zeros = Self { width, ..Self::random(random, Activations::Gaussian, cols) };
            zeros.x[width..].fill(0.0);
            zeros.weight[width..].fill(0.0);
            let filled = Self { width, ..Self::random(random, Activations::Gaussian, cols) };
            rows.extend([zeros, filled]);
        }
        rows
    }

    /// Rows whose norm shows the order of its sum.
    pub fn telling(random: &mut Random, cols: usize) -> Vec<Self> {
        let row = |(x, eps)| Self { x, weight: random.gaussians(cols), eps, width: cols };
        pins::norm_rows(cols).into_iter().map(row).collect()
    }

    /// Rows with NaNs that are not the one that kernels store: in x, and in a few weights.
    pub fn spoilt(random: &mut Random, cols: usize) -> Vec<Self> {
        let mut rows = Vec::new();
        for nan in NANS {
            let [mut of_x, mut of_weight] = [0, 1].map(|_| Self::random(random, Activations::Gaussian, cols));
            of_x.x[random.below(cols)] = nan;
            for _ in 0..3 {
                of_weight.weight[random.below(cols)] = nan;
            }
            rows.extend([of_x, of_weight]);
        }
        rows
    }

    /// What the oracle makes of it.
    pub fn normed(&self) -> Normed {
        let mut row = vec![0.0; self.x.len()];
        oracle::rms_norm::rms_norm(&self.x, &self.weight, self.width, self.eps, &mut row);
        let (blocks, digits) = fixed_blocks(&row);
        Normed { row, blocks, digits }
    }

    pub fn upload<D: Device>(&self, device: &D) -> UploadedRow<D> {
        UploadedRow {
            x: input(device, &self.x),
            weight: input(device, &self.weight),
            out: Output::new(device, self.x.len()),
            eps: self.eps,
            width: self.width,
        }
    }
}

/// A row on a device, and a buffer for the normed one.
pub struct UploadedRow<D: Device> {
    pub x: Buffer<D, f32>,
    pub weight: Buffer<D, f32>,
    pub out: Output<D, f32>,
    pub eps: f32,
    pub width: usize,
}

impl<D: Device> UploadedRow<D> {
    /// The operand, with or without its optional output.
    pub fn fused(&mut self, optional: bool) -> FusedNorm<'_> {
        FusedNorm::new(self.x.slice(), self.weight.slice(), self.eps, self.width).out(self.out.slice_if(optional))
    }

    /// What the kernel of its own makes of it, as floats and as fixed point.
    pub fn separate(&self, device: &D) -> (Output<D, f32>, Output<D, FixedBlock>) {
        let cols = self.x.len();
        let (mut out, mut fixed) = (Output::new(device, cols), Output::new(device, cols / 256));
        ok(RmsNorm::new(self.x.slice(), self.weight.slice(), self.eps, [1, cols])
            .width(self.width)
            .out(out.slice())
            .fixed(fixed.slice())
            .launch(device));
        (out, fixed)
    }
}
