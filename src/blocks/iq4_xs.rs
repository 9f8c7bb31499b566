//! IQ4_XS.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, around_1, fill, nibbles::IQ4};

/// IQ4_XS: 256 weights `d * (sc[j] - 32) * value(q)`, eight sub-blocks of 32. 4.25 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockIQ4XS {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// Bits `2 j` and `2 j + 1` are the high two bits of scale `j`.
    pub scales_h: [u8; 2],
    /// Low four bits: byte `i` holds those of scale `2 i` in its low and of scale `2 i + 1` in its high nibble.
    pub scales_l: [u8; 4],
    /// Byte `16 j + k` holds weight `32 j + k` in its low and weight `32 j + 16 + k` in its high nibble.
    pub qs: [u8; 128],
}
const _: () = assert!(size_of::<BlockIQ4XS>() == 136 && align_of::<BlockIQ4XS>() == 1);

impl Weights for BlockIQ4XS {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(0)];
    const TILE: &[Field] = &[Field::lanes(8, 128, 4), Field::rows(0, 8)];

    /// The values of uniform quants have a root mean square of 67.44; scales are of either sign and of size 8..24 (root mean square
    /// 16.17), so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = spread / (16.17 * 67.44) * around_1(bits);
        let mut block = Self { d: f16::from_f64(d).to_le_bytes(), scales_h: [0; 2], scales_l: [0; 4], qs: [0; 128] };
        let (codes, signs) = (bits(), bits());
        for j in 0..8 {
            let size = 8 + (codes >> (4 * j)) as u8 % 16;
            let scale = if signs >> j & 1 == 0 { 32 + size } else { 32 - size };
            block.scales_l[j / 2] |= (scale & 15) << (4 * (j % 2));
            block.scales_h[j / 4] |= (scale >> 4) << (2 * (j % 4));
        }
        fill(bits, &mut block.qs);
        block
    }
}

impl SuperBlock for BlockIQ4XS {
    const SUB_BLOCK: usize = 32;
    const MINS: bool = false;

    #[inline]
    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    /// The stored scale minus 32.
    #[inline]
    fn scale(&self, j: usize) -> i32 {
        let low = self.scales_l[j / 2] >> (4 * (j % 2)) & 15;
        let high = self.scales_h[j / 4] >> (2 * (j % 4)) & 3;
        i32::from(low | high << 4) - 32
    }

    /// The value that the stored quant stands for.
    #[inline]
    fn quant(&self, j: usize, k: usize) -> i32 {
        IQ4[usize::from(self.qs[16 * j + k % 16] >> (4 * (k / 16)) & 15)].into()
    }

    #[inline(always)]
    fn scaled_quants(&self, out: &mut [i16; BLOCK]) {
        for (j, weights) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let scale = self.scale(j) as i16;
            let (low, high) = weights.split_at_mut(16);
            for (k, &byte) in self.qs.as_chunks::<16>().0[j].iter().enumerate() {
                low[k] = i16::from(IQ4[usize::from(byte & 15)]) * scale;
                high[k] = i16::from(IQ4[usize::from(byte >> 4)]) * scale;
            }
        }
    }
}
