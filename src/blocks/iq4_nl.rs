//! IQ4_NL.

use half::f16;

use super::{Factor, Field, SmallBlock, either_sign, fill, nibbles};

/// IQ4_NL: 32 weights `d * value(q)`. 4.5 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockIQ4NL {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// Byte `k` holds weight `k` in its low and weight `16 + k` in its high nibble.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockIQ4NL>() == 18 && align_of::<BlockIQ4NL>() == 1);

impl SmallBlock for BlockIQ4NL {
    const MINS: bool = false;
    const FACTORS: &[Factor] = &[Factor::Half(0)];
    const TILE: &[Field] = &[Field::lanes(2, 16, 4).of_eight::<Self>(), Field::rows(0, 2).of_eight::<Self>()];

    #[inline]
    fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    /// The values that the stored quants stand for.
    #[inline(always)]
    fn quants(&self) -> [i8; 32] {
        nibbles::split(&self.qs).map(|q| nibbles::IQ4[usize::from(q)])
    }

    /// The values of uniform quants have a root mean square of 67.44; factors are of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, spread / 67.44);
        let mut block = Self { d: f16::from_f64(d).to_le_bytes(), qs: [0; 16] };
        fill(bits, &mut block.qs);
        block
    }
}
