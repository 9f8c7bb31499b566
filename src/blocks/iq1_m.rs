//! IQ1_M.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, bytes_of, codebooks, either_sign, factor, fill};

/// IQ1_M: 256 weights `d / 8 * sc[j] * q`, sixteen sub-blocks of 16, q from a codebook. 1.75 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockIQ1M {
    /// Low eight bits of the codebook's entry for each 8 weights.
    pub qs: [u8; 32],
    /// Nibble `g % 2` of byte `g / 2` holds, of entry `g`, the high three bits and whether the weights' offset is -1 or 1.
    pub qh: [u8; 16],
    /// Of each four sub-blocks, in 16 bits, little-endian: half of their scales (3 bits each) and four bits of the f16 factor.
    pub scales: [[u8; 2]; 4],
}
const _: () = assert!(size_of::<BlockIQ1M>() == 56 && align_of::<BlockIQ1M>() == 1);

impl BlockIQ1M {
    /// Weights `8 g .. 8 g + 8`, but for the scale: eight times -1, 0 or 1, and the offset.
    #[inline]
    fn group(&self, g: usize) -> [i8; 8] {
        let bits = self.qh[g / 2] >> (4 * (g % 2)) & 15;
        let entry = codebooks::IQ1[usize::from(self.qs[g]) | usize::from(bits & 7) << 8];
        codebooks::eight(entry, if bits >> 3 == 0 { &[-7, 1, 9] } else { &[-9, -1, 7] })
    }
}

impl Weights for BlockIQ1M {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Nibbles(48)];
    const TILE: &[Field] = &[Field::lanes(0, 32, 1), Field::rows(32, 16), Field::rows(48, 8)];

    /// The weights' integers have a root mean square of 6.247, scales one of 9.22; factors are of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, 8.0 * spread / (9.22 * 6.247));
        let mut block = Self { qs: [0; 32], qh: [0; 16], scales: [[0; 2]; 4] };
        fill(bits, &mut block.qs);
        fill(bits, &mut block.qh);
        fill(bits, block.scales.as_flattened_mut());
        Self::FACTORS[0].set(bytes_of(&mut block), f16::from_f64(d));
        block
    }
}

impl SuperBlock for BlockIQ1M {
    const SUB_BLOCK: usize = 16;
    const MINS: bool = false;
    const TIMES: f32 = 0.125;

    #[inline]
    fn d(&self) -> f16 {
        f16::from_bits(factor::nibbles(self.scales.as_flattened()))
    }

    /// An odd number.
    #[inline]
    fn scale(&self, j: usize) -> i32 {
        i32::from(u16::from_le_bytes(self.scales[j / 4]) >> (3 * (j % 4)) & 7) * 2 + 1
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
