//! IQ3_XXS.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, codebooks, either_sign, fill};

/// IQ3_XXS: 256 weights `d / 4 * sc[j] * q`, eight sub-blocks of 32, q from a codebook. 3.0625 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockIQ3XXS {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// The codebook's entry for each 4 weights.
    pub qs: [u8; 64],
    /// Of each sub-block, in four bytes, little-endian, seven signs for each 8 weights and, in the top four bits, half of the scale.
    pub signs: [[u8; 4]; 8],
}
const _: () = assert!(size_of::<BlockIQ3XXS>() == 98 && align_of::<BlockIQ3XXS>() == 1);

impl BlockIQ3XXS {
    /// Weights `8 g .. 8 g + 8`, but for the scale.
    #[inline]
    fn group(&self, g: usize) -> [i8; 8] {
        let entries = [0, 1].map(|i| codebooks::IQ3_XXS[usize::from(self.qs[2 * g + i])]);
        let signs = u32::from_le_bytes(self.signs[g / 4]) >> (7 * (g % 4));
        codebooks::signed(codebooks::two_fours(entries, &codebooks::IQ3_XXS_VALUES), codebooks::even_signs(signs))
    }
}

impl Weights for BlockIQ3XXS {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(0)];
    const TILE: &[Field] = &[Field::lanes(2, 64, 2), Field::lanes(66, 32, 8), Field::rows(0, 2)];

    /// The codebook's values have a root mean square of 30.8, scales one of 18.47; factors are of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, 4.0 * spread / (18.47 * 30.8));
        let mut block = Self { d: f16::from_f64(d).to_le_bytes(), qs: [0; 64], signs: [[0; 4]; 8] };
        fill(bits, &mut block.qs);
        fill(bits, block.signs.as_flattened_mut());
        block
    }
}

impl SuperBlock for BlockIQ3XXS {
    const SUB_BLOCK: usize = 32;
    const MINS: bool = false;
    const TIMES: f32 = 0.25;

    #[inline]
    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    /// An odd number.
    #[inline]
    fn scale(&self, j: usize) -> i32 {
        i32::from(self.signs[j][3] >> 4) * 2 + 1
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
