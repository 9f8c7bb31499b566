//! TQ2_0.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, codebooks, either_sign, fill};

/// TQ2_0: 256 weights `d * (q - 1)`. 2.0625 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockTQ2_0 {
    /// Byte `32 h + k` holds, in bits `2 i` and `2 i + 1`, weight `128 h + 32 i + k`, k = 0..32.
    pub qs: [u8; 64],
    /// f16, little-endian.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockTQ2_0>() == 66 && align_of::<BlockTQ2_0>() == 1);

impl BlockTQ2_0 {
    /// Weights `8 g .. 8 g + 8`.
    #[inline]
    fn group(&self, g: usize) -> [i8; 8] {
        let at = 32 * (g / 16) + 8 * (g % 4);
        std::array::from_fn(|i| (self.qs[at + i] >> (2 * (g / 4 % 4)) & 3) as i8 - 1)
    }
}

impl Weights for BlockTQ2_0 {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(64)];
    const TILE: &[Field] = &[Field::lanes(0, 64, 8), Field::rows(64, 2)];

    /// A half of the weights is 0, a quarter each is -1 and 1 (root mean square the root of a half).
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, spread / std::f64::consts::FRAC_1_SQRT_2);
        let mut block = Self { qs: [0; 64], d: f16::from_f64(d).to_le_bytes() };
        fill(bits, &mut block.qs);
        // 2 is no weight of a model: a pair of set bits loses the upper one.
        for byte in &mut block.qs {
            *byte &= !(*byte << 1 & 0xaa);
        }
        block
    }
}

impl SuperBlock for BlockTQ2_0 {
    const SUB_BLOCK: usize = 32;
    const MINS: bool = false;
    const TIMES: f32 = 1.0;

    #[inline]
    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    /// 1: there are no scales.
    #[inline]
    fn scale(&self, _j: usize) -> i32 {
        1
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
