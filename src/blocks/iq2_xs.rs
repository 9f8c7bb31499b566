//! IQ2_XS.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, codebooks, either_sign, fill};

/// IQ2_XS: 256 weights `d / 8 * sc[j] * q`, sixteen sub-blocks of 16, q from a codebook. 2.3125 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockIQ2XS {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// Of each 8 weights, in 16 bits, little-endian, the codebook's entry (9 bits) and seven signs.
    pub qs: [[u8; 2]; 32],
    /// Byte `i` holds half of scale `2 i` in its low and of scale `2 i + 1` in its high nibble.
    pub scales: [u8; 8],
}
const _: () = assert!(size_of::<BlockIQ2XS>() == 74 && align_of::<BlockIQ2XS>() == 1);

impl BlockIQ2XS {
    /// Weights `8 g .. 8 g + 8`, but for the scale.
    #[inline]
    fn group(&self, g: usize) -> [i8; 8] {
        let bits = u16::from_le_bytes(self.qs[g]);
        let entry = codebooks::IQ2_XS[usize::from(bits & 511)];
        codebooks::signed(codebooks::eight(entry, &codebooks::IQ2_VALUES), codebooks::even_signs(u32::from(bits >> 9)))
    }
}

impl Weights for BlockIQ2XS {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(0)];
    const TILE: &[Field] = &[Field::lanes(2, 64, 2), Field::rows(66, 8), Field::rows(0, 2)];

    /// The codebook's values have a root mean square of 24.2, scales one of 18.47; factors are of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, 8.0 * spread / (18.47 * 24.2));
        let mut block = Self { d: f16::from_f64(d).to_le_bytes(), qs: [[0; 2]; 32], scales: [0; 8] };
        fill(bits, block.qs.as_flattened_mut());
        fill(bits, &mut block.scales);
        block
    }
}

impl SuperBlock for BlockIQ2XS {
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
