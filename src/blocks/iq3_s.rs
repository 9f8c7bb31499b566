//! IQ3_S.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, codebooks, either_sign, fill};

/// IQ3_S: 256 weights `d * sc[j] * q`, eight sub-blocks of 32, q from a codebook. 3.4375 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockIQ3S {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// Low eight bits of the codebook's entry for each 4 weights.
    pub qs: [u8; 64],
    /// Byte `j` holds, in bit `i`, the ninth bit of entry `8 j + i`.
    pub qh: [u8; 8],
    /// The signs of each 8 weights.
    pub signs: [u8; 32],
    /// Byte `i` holds half of scale `2 i` in its low and of scale `2 i + 1` in its high nibble.
    pub scales: [u8; 4],
}
const _: () = assert!(size_of::<BlockIQ3S>() == 110 && align_of::<BlockIQ3S>() == 1);

impl BlockIQ3S {
    /// Weights `8 g .. 8 g + 8`, but for the scale.
    #[inline]
    fn group(&self, g: usize) -> [i8; 8] {
        let entries = [2 * g, 2 * g + 1].map(|i| {
            let ninth = usize::from(self.qh[i / 8] >> (i % 8) & 1);
            codebooks::IQ3_S[usize::from(self.qs[i]) | ninth << 8]
        });
        codebooks::signed(codebooks::two_fours(entries, &codebooks::IQ3_S_VALUES), self.signs[g])
    }
}

impl Weights for BlockIQ3S {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(0)];
    const TILE: &[Field] =
        &[Field::lanes(2, 64, 2), Field::rows(66, 8), Field::lanes(74, 32, 1), Field::rows(106, 4), Field::rows(0, 2)];

    /// The codebook's values have a root mean square of 7.594, scales one of 18.47; factors are of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, spread / (18.47 * 7.594));
        let d = f16::from_f64(d).to_le_bytes();
        let scales = (bits() as u32).to_le_bytes();
        let mut block = Self { d, qs: [0; 64], qh: [0; 8], signs: [0; 32], scales };
        for field in [&mut block.qs[..], &mut block.qh, &mut block.signs] {
            fill(bits, field);
        }
        block
    }
}

impl SuperBlock for BlockIQ3S {
    const SUB_BLOCK: usize = 32;
    const MINS: bool = false;
    const TIMES: f32 = 1.0;

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
        let at = 32 * j + k;
        self.group(at / 8)[at % 8].into()
    }

    #[inline(always)]
    fn scaled_quants(&self, out: &mut [i16; BLOCK]) {
        codebooks::scaled(self, out, |g| self.group(g));
    }
}
