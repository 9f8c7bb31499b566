//! Q3_K.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, around_1, fill};

/// Q3_K: 256 weights `d * (sc[j] - 32) * (q - 4)`, sixteen sub-blocks of 16. 3.4375 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockQ3K {
    /// Byte `k` holds, in bit `j`, the third bit of weight `32 j + k`.
    pub hmask: [u8; 32],
    /// Low two bits: byte `32 h + k` holds, in bits `2 i` and `2 i + 1`, those of weight `128 h + 32 i + k`, k = 0..32.
    pub qs: [u8; 64],
    /// Sixteen 6-bit scales: byte `j` (0..8) holds the low four bits of scale `j` in its low and of scale `j + 8` in its high
    /// nibble, byte `8 + j % 4` the high two of scale `j` from bit `2 (j / 4)` on.
    pub scales: [u8; 12],
    /// f16, little-endian.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ3K>() == 110 && align_of::<BlockQ3K>() == 1);

impl Weights for BlockQ3K {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(108)];
    const TILE: &[Field] = &[Field::lanes(32, 64, 8), Field::lanes(0, 32, 8), Field::rows(96, 12), Field::rows(108, 2)];

    /// Quants are uniform on -4..4 (root mean square 2.345), scales are of either sign and of size 8..24 (root mean square 16.17), so
    /// that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = spread / (16.17 * 2.345) * around_1(bits);
        let mut block = Self { hmask: [0; 32], qs: [0; 64], scales: [0; 12], d: f16::from_f64(d).to_le_bytes() };
        let (codes, signs) = (bits(), bits());
        for j in 0..16 {
            let size = 8 + (codes >> (4 * j)) as u8 % 16;
            let scale = if signs >> j & 1 == 0 { 32 + size } else { 32 - size };
            block.scales[j % 8] |= (scale & 15) << (4 * (j / 8));
            block.scales[8 + j % 4] |= (scale >> 4) << (2 * (j / 4));
        }
        fill(bits, &mut block.hmask);
        fill(bits, &mut block.qs);
        block
    }
}

impl SuperBlock for BlockQ3K {
    const SUB_BLOCK: usize = 16;
    const MINS: bool = false;

    #[inline]
    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    /// The stored scale minus 32.
    #[inline]
    fn scale(&self, j: usize) -> i32 {
        let low = self.scales[j % 8] >> (4 * (j / 8)) & 15;
        let high = self.scales[8 + j % 4] >> (2 * (j / 4)) & 3;
        i32::from(low | high << 4) - 32
    }

    /// The stored quant minus 4.
    #[inline]
    fn quant(&self, j: usize, k: usize) -> i32 {
        let at = 16 * (j % 2) + k;
        let low = self.qs[32 * (j / 8) + at] >> (2 * (j % 8 / 2)) & 3;
        i32::from(low | (self.hmask[at] >> (j / 2) & 1) << 2) - 4
    }

    #[inline(always)]
    fn scaled_quants(&self, out: &mut [i16; BLOCK]) {
        for (i, weights) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let qs = &self.qs.as_chunks::<32>().0[i / 4];
            let (first, second) = (self.scale(2 * i) as i16, self.scale(2 * i + 1) as i16);
            for (k, weight) in weights.iter_mut().enumerate() {
                let quant = qs[k] >> (2 * (i % 4)) & 3 | (self.hmask[k] >> i & 1) << 2;
                *weight = (i16::from(quant) - 4) * if k < 16 { first } else { second };
            }
        }
    }
}
