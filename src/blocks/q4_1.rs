//! Q4_1.

use half::f16;

use super::{Factor, Field, SmallBlock, around_1, fill, nibbles};

/// Q4_1: 32 weights `d * q + m`. 5 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// f16, little-endian.
    pub m: [u8; 2],
    /// Byte `k` holds weight `k` in its low and weight `16 + k` in its high nibble.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ4_1>() == 20 && align_of::<BlockQ4_1>() == 1);

impl SmallBlock for BlockQ4_1 {
    const MINS: bool = true;
    const FACTORS: &[Factor] = &[Factor::Half(0), Factor::Half(2)];
    const TILE: &[Field] = &[Field::lanes(4, 16, 4).of_eight::<Self>(), Field::rows(0, 4).of_eight::<Self>()];

    #[inline]
    fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    #[inline]
    fn m(&self) -> f16 {
        f16::from_le_bytes(self.m)
    }

    #[inline(always)]
    fn quants(&self) -> [i8; 32] {
        nibbles::split(&self.qs).map(|q| q as i8)
    }

    /// Quants are uniform on 0..16 (mean 7.5, standard deviation 4.61); the offset takes the mean away.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = f16::from_f64(spread / 4.61 * around_1(bits));
        let m = f16::from_f64(-7.5 * d.to_f64());
        let mut block = Self { d: d.to_le_bytes(), m: m.to_le_bytes(), qs: [0; 16] };
        fill(bits, &mut block.qs);
        block
    }
}
