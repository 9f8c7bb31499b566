//! Q8_0.

use half::f16;

use super::{Factor, Field, SmallBlock, either_sign, fill};

/// Q8_0: 32 weights `d * q`. 8.5 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// f16, little-endian.
    pub d: [u8; 2],
    /// The weights.
    pub qs: [i8; 32],
}
const _: () = assert!(size_of::<BlockQ8_0>() == 34 && align_of::<BlockQ8_0>() == 1);

impl SmallBlock for BlockQ8_0 {
    const MINS: bool = false;
    const FACTORS: &[Factor] = &[Factor::Half(0)];
    const TILE: &[Field] = &[Field::lanes(2, 32, 4).of_eight::<Self>(), Field::rows(0, 2).of_eight::<Self>()];

    #[inline]
    fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    #[inline(always)]
    fn quants(&self) -> [i8; 32] {
        self.qs
    }

    /// Quants are uniform on -128..128 (root mean square 73.9) and factors of either sign, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = either_sign(bits, spread / 73.9);
        let mut qs = [0; 32];
        fill(bits, &mut qs);
        Self { d: f16::from_f64(d).to_le_bytes(), qs: qs.map(|byte| byte as i8) }
    }
}
