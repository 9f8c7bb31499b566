//! IQ2_XXS.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, codebooks, either_sign, fill};

/// IQ2_XXS: 256 weights `d / 8 * sc[j] * q`, eight sub-blocks of 32, q from a codebook. 2.0625 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockIQ2XXS {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// Bytes `8 j ..` hold, of sub-block `j`, in four bytes the codebook's entries for 8 weights each and in four, little-endian, seven
    /// signs for each entry and, in the top four bits, half of the scale.
    pub qs: [[u8; 8]; 8],
}
const _: () = assert!(size_of::<BlockIQ2XXS>() == 66 && align_of::<BlockIQ2XXS>() == 1);

impl BlockIQ2XXS {
    /// Weights `8 g .. 8 g + 8`, but for the scale.
    #[inline]
    fn group(&self, g: usize) -> [i8; 8] {
        let [entries @ .., a, b, c, d] = &self.qs[g / 4];
        let signs = u32::from_le_bytes([*a, *b, *c, *d]) >> (7 * (g % 4));
        let entry = codebooks::IQ2_XXS[usize::from(entries[g % 4])];
        codebooks::signed(codebooks::eight(entry, &codebooks::IQ2_VALUES), codebooks::even_signs(signs))
    }
}

impl Weights for BlockIQ2XXS {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(0)];
    const TILE: &[Field] =
        &[Field::lanes(2, 32, 1).in_pieces(4, 8), Field::lanes(6, 32, 8).in_pieces(4, 8), Field::rows(0, 2)];

    /// The codebook's values have a root mean square of 23.1, scales one of 18.47; factors are of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, 8.0 * spread / (18.47 * 23.1));
        let mut block = Self { d: f16::from_f64(d).to_le_bytes(), qs: [[0; 8]; 8] };
        fill(bits, block.qs.as_flattened_mut());
        block
    }
}

impl SuperBlock for BlockIQ2XXS {
    const SUB_BLOCK: usize = 32;
    const MINS: bool = false;
    const TIMES: f32 = 0.125;

    #[inline]
    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    /// An odd number.
    #[inline]
    fn scale(&self, j: usize) -> i32 {
        i32::from(self.qs[j][7] >> 4) * 2 + 1
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
