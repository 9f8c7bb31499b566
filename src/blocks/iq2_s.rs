//! IQ2_S.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, codebooks, either_sign, fill};

/// IQ2_S: 256 weights `d / 8 * sc[j] * q`, sixteen sub-blocks of 16, q from a codebook. 2.5625 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockIQ2S {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// Low eight bits of the codebook's entry for each 8 weights.
    pub qs: [u8; 32],
    /// The signs of each 8 weights.
    pub signs: [u8; 32],
    /// Byte `i` holds, in bits `2 l` and `2 l + 1`, the high two bits of entry `4 i + l`.
    pub qh: [u8; 8],
    /// Byte `i` holds half of scale `2 i` in its low and of scale `2 i + 1` in its high nibble.
    pub scales: [u8; 8],
}
const _: () = assert!(size_of::<BlockIQ2S>() == 82 && align_of::<BlockIQ2S>() == 1);

impl BlockIQ2S {
    /// Weights `8 g .. 8 g + 8`, but for the scale.
    #[inline]
    fn group(&self, g: usize) -> [i8; 8] {
        let high = self.qh[g / 4] >> (2 * (g % 4)) & 3;
        let entry = codebooks::IQ2_S[usize::from(self.qs[g]) | usize::from(high) << 8];
        codebooks::signed(codebooks::eight(entry, &codebooks::IQ2_VALUES), self.signs[g])
    }
}

impl Weights for BlockIQ2S {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(0)];
    const TILE: &[Field] =
        &[Field::lanes(2, 32, 1), Field::lanes(34, 32, 1), Field::rows(66, 8), Field::rows(74, 8), Field::rows(0, 2)];

    /// The codebook's values have a root mean square of 24.4, scales one of 18.47; factors are of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, 8.0 * spread / (18.47 * 24.4));
        let d = f16::from_f64(d).to_le_bytes();
        let mut block = Self { d, qs: [0; 32], signs: [0; 32], qh: [0; 8], scales: [0; 8] };
        for field in [&mut block.qs[..], &mut block.signs, &mut block.qh, &mut block.scales] {
            fill(bits, field);
        }
        block
    }
}

impl SuperBlock for BlockIQ2S {
    const SUB_BLOCK: usize = 16;
    const MINS: bool = false;
    const TIMES: f32 = 0.125;

    #[inline]
    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    /// An odd number.
    #[inline]
    fn scale(&self, j: usize) -> i32 {
        i32::from(self.scales[j / 2] >> (4 * (j % 2)) & 15) * 2 + 1
    }

    #[inline]
    fn quant(&self, j: usize, k: usize) -> i32 {
        let at = 16 * j + k;
        self.group(at / 8)[at % 8].into()
    }

    #[inline(always)]
    fn scaled_quants(&self, out: &mut [i16; BLOCK]) {
        codebooks::scaled(self, out, |g| self.group(g));
    }
}
