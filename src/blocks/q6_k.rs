//! Q6_K.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, around_1, fill};

/// Q6_K: 256 weights `d * scales[j] * (q - 32)`, sixteen sub-blocks of 16. 6.5625 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low four bits: byte `64 h + k` (h = 0, 1 halves of 128 weights) holds weight `128 h + k` in its low and weight
    /// `128 h + 64 + k` in its high nibble, k = 0..64.
    pub ql: [u8; 128],
    /// High two bits: byte `32 h + k` holds, in bits `2 i` and `2 i + 1`, those of weight `128 h + 32 i + k`, k = 0..32.
    pub qh: [u8; 64],
    /// Signed 8-bit scales, one for 16 weights.
    pub scales: [i8; 16],
    /// f16, little-endian.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ6K>() == 210 && align_of::<BlockQ6K>() == 1);

impl Weights for BlockQ6K {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(208)];
    const TILE: &[Field] =
        &[Field::lanes(0, 128, 4), Field::lanes(128, 64, 4), Field::rows(192, 16), Field::rows(208, 2)];

    /// Quants are uniform on -32..32 (standard deviation 18.5), scales are of either sign and of size 32..96 (root mean
    /// square 66.7), so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = spread / (66.7 * 18.5) * around_1(bits);
        let mut block = Self { ql: [0; 128], qh: [0; 64], scales: [0; 16], d: f16::from_f64(d).to_le_bytes() };
        let codes = [bits(), bits()];
        for (j, scale) in block.scales.iter_mut().enumerate() {
            let code = (codes[j / 8] >> (8 * (j % 8))) as i8;
            let size = 32 + (code & 63);
            *scale = if code < 0 { -size } else { size };
        }
        fill(bits, &mut block.ql);
        fill(bits, &mut block.qh);
        block
    }
}

impl SuperBlock for BlockQ6K {
    const SUB_BLOCK: usize = 16;
    const MINS: bool = false;

    #[inline]
    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    #[inline]
    fn scale(&self, j: usize) -> i32 {
        self.scales[j].into()
    }

    /// The stored quant minus 32.
    #[inline]
    fn quant(&self, j: usize, k: usize) -> i32 {
        let weight = 16 * j + k;
        let (half, within) = (weight / 128, weight % 128);
        let low = self.ql[64 * half + within % 64] >> (4 * (within / 64)) & 15;
        let high = self.qh[32 * half + within % 32] >> (2 * (within / 32)) & 3;
        i32::from(low | high << 4) - 32
    }

    #[inline(always)]
    fn scaled_quants(&self, out: &mut [i16; BLOCK]) {
        let halves = out.as_chunks_mut::<128>().0;
        for (h, weights) in halves.iter_mut().enumerate() {
            let (ql, qh) = (&self.ql[64 * h..][..64], &self.qh[32 * h..][..32]);
            let quarters = weights.as_chunks_mut::<32>().0;
            let scales = &self.scales[8 * h..][..8];
            // Four copies of the loop, each with constant shifts.
            quarter(&mut quarters[0], scales, |k| ql[k] & 15 | (qh[k] & 3) << 4);
            quarter(&mut quarters[1], &scales[2..], |k| ql[32 + k] & 15 | (qh[k] & 12) << 2);
            quarter(&mut quarters[2], &scales[4..], |k| ql[k] >> 4 | qh[k] & 48);
            quarter(&mut quarters[3], &scales[6..], |k| ql[32 + k] >> 4 | (qh[k] & 192) >> 2);
        }
    }
}

/// 32 weights with two scales.
#[inline(always)]
fn quarter(weights: &mut [i16; 32], scales: &[i8], quant: impl Fn(usize) -> u8) {
    let mut quants = [0; 32];
    for (k, out) in quants.iter_mut().enumerate() {
        *out = quant(k);
    }
    for (i, scale) in [i16::from(scales[0]), i16::from(scales[1])].into_iter().enumerate() {
        for k in 16 * i..16 * i + 16 {
            weights[k] = (i16::from(quants[k]) - 32) * scale;
        }
    }
}
