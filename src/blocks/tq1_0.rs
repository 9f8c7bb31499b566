//! TQ1_0.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, codebooks, either_sign, fill};

/// TQ1_0: 256 weights `d * (q - 1)`. 1.6875 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockTQ1_0 {
    /// Five weights in a byte, as digits to the base 3: byte `k` (0..32) has weights `32 n + k`, n = 0..5; byte `32 + k`
    /// (k = 0..16) weights `160 + 16 n + k`.
    pub qs: [u8; 48],
    /// Byte `k` has weights `240 + 4 n + k`, n = 0..4.
    pub qh: [u8; 4],
    /// f16, little-endian.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockTQ1_0>() == 54 && align_of::<BlockTQ1_0>() == 1);

impl BlockTQ1_0 {
    /// Weights `8 g .. 8 g + 8`.
    #[inline]
    fn group(&self, g: usize) -> [i8; 8] {
        std::array::from_fn(|i| match 8 * g + i {
            at @ ..160 => digit(self.qs[at % 32], at / 32),
            at @ 160..240 => digit(self.qs[32 + at % 16], (at - 160) / 16),
            at => digit(self.qh[at % 4], (at - 240) / 4),
        })
    }
}

impl Weights for BlockTQ1_0 {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(52)];
    const TILE: &[Field] = &[Field::lanes(0, 32, 8), Field::rows(32, 16), Field::rows(48, 4), Field::rows(52, 2)];

    /// The weights of random bytes are -1, 0 and 1 equally often; factors are of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, spread / 0.8165);
        let qh = (bits() as u32).to_le_bytes();
        let mut block = Self { qs: [0; 48], qh, d: f16::from_f64(d).to_le_bytes() };
        fill(bits, &mut block.qs);
        block
    }
}

impl SuperBlock for BlockTQ1_0 {
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

/// Digit `n` of a byte, less 1. A byte is a fraction of five digits to the base 3, rounded up to 256ths: what a multiplication with 3^n
/// leaves below 1, times 3, has the digit before the point.
#[inline]
fn digit(byte: u8, n: usize) -> i8 {
    let rest = byte.wrapping_mul([1, 3, 9, 27, 81][n]);
    ((u16::from(rest) * 3) >> 8) as i8 - 1
}
