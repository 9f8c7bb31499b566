//! Random numbers, blocks and activations for tests.

use kquant_moe::blocks::TensorType;

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Uniform on 0..1.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Normal, mean 0 and variance 1.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal() as f32).collect()
    }

    /// Any bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.bits() as u8).collect()
    }

    /// A factor of a block: of the size of trained weights, and of either sign.
    fn factor(&mut self, size: f64) -> [u8; 2] {
        let sign = if self.bits() & 1 == 0 { 1.0 } else { -1.0 };
        half::f16::from_f64(sign * size * (0.5 + self.uniform())).to_le_bytes()
    }

    /// Blocks of any type for `count` times 256 weights, with any bits but for factors of a size that gives every type weights of about the same size.
    pub fn blocks(&mut self, kind: TensorType, count: usize) -> Vec<u8> {
        match kind {
            TensorType::Q4K => self.q4_k(count),
            TensorType::Q6K => self.q6_k(count),
            _ => {
                let mut bytes = self.bytes(count * kind.bytes_of(256));
                for block in bytes.chunks_exact_mut(kind.block_bytes()) {
                    for factor in kind.factors() {
                        factor.set(block, half::f16::from_le_bytes(self.factor(1e-4)));
                    }
                }
                bytes
            }
        }
    }

    /// Q4_K blocks with any scales, mins and quants.
    pub fn q4_k(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = self.bytes(144 * count);
        for block in bytes.as_chunks_mut::<144>().0 {
            block[..2].copy_from_slice(&self.factor(1e-4));
            block[2..4].copy_from_slice(&self.factor(7e-4));
        }
        bytes
    }

    /// Q6_K blocks with any scales and quants.
    pub fn q6_k(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = self.bytes(210 * count);
        for block in bytes.as_chunks_mut::<210>().0 {
            block[208..].copy_from_slice(&self.factor(2e-5));
        }
        bytes
    }
}
