//! Q5_0.

use half::f16;

use super::{Factor, Field, SmallBlock, either_sign, fill, nibbles};

/// Q5_0: 32 weights `d * (q - 16)`. 5.5 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// Bit `k` of these 32, little-endian, is the fifth bit of weight `k`.
    pub qh: [u8; 4],
    /// Low four bits: byte `k` holds those of weight `k` in its low and of weight `16 + k` in its high nibble.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ5_0>() == 22 && align_of::<BlockQ5_0>() == 1);

impl SmallBlock for BlockQ5_0 {
    const MINS: bool = false;
    const FACTORS: &[Factor] = &[Factor::Half(0)];
    const TILE: &[Field] = &[
        Field::lanes(6, 16, 4).of_eight::<Self>(),
        Field::lanes(2, 4, 8).of_eight::<Self>(),
        Field::rows(0, 2).of_eight::<Self>(),
    ];

    #[inline]
    fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    #[inline(always)]
    fn quants(&self) -> [i8; 32] {
        nibbles::with_fifths(&self.qs, self.qh).map(|q| q as i8 - 16)
    }

    /// Quants are uniform on -16..16 (root mean square 9.247) and factors of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, spread / 9.247);
        let mut block = Self { d: f16::from_f64(d).to_le_bytes(), qh: (bits() as u32).to_le_bytes(), qs: [0; 16] };
        fill(bits, &mut block.qs);
        block
    }
}
