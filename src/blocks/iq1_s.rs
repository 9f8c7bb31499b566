//! IQ1_S.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, codebooks, either_sign, fill};

/// IQ1_S: 256 weights `d / 8 * sc[j] * q`, eight sub-blocks of 32, q from a codebook. 1.5625 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockIQ1S {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// Low eight bits of the codebook's entry for each 8 weights.
    pub qs: [u8; 32],
    /// Of each sub-block, in 16 bits, little-endian: the high three bits of its four entries, half of the scale (3 bits), and whether the
    /// weights' offset is -1 or 1.
    pub qh: [[u8; 2]; 8],
}
const _: () = assert!(size_of::<BlockIQ1S>() == 50 && align_of::<BlockIQ1S>() == 1);

impl BlockIQ1S {
    /// Weights `8 g .. 8 g + 8`, but for the scale: eight times -1, 0 or 1, and the offset.
    #[inline]
    fn group(&self, g: usize) -> [i8; 8] {
        let bits = u16::from_le_bytes(self.qh[g / 4]);
        let entry = codebooks::IQ1[usize::from(self.qs[g]) | usize::from(bits >> (3 * (g % 4)) & 7) << 8];
        codebooks::eight(entry, if bits >> 15 == 0 { &[-7, 1, 9] } else { &[-9, -1, 7] })
    }
}

impl Weights for BlockIQ1S {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(0)];
    const TILE: &[Field] = &[Field::lanes(2, 32, 1), Field::rows(34, 16), Field::rows(0, 2)];

    /// The weights' integers have a root mean square of 6.247, scales one of 9.22; factors are of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, 8.0 * spread / (9.22 * 6.247));
        let mut block = Self { d: f16::from_f64(d).to_le_bytes(), qs: [0; 32], qh: [[0; 2]; 8] };
        fill(bits, &mut block.qs);
        fill(bits, block.qh.as_flattened_mut());
        block
    }
}

impl SuperBlock for BlockIQ1S {
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
        i32::from(self.qh[j][1] >> 4 & 7) * 2 + 1
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
