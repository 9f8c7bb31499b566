//! MXFP4.

use super::{Factor, Field, SmallBlock, factor, fill, nibbles};

/// MXFP4: 32 weights `2^(e - 128) * value(q)`. 4.25 bits per weight.
///
/// Values are integers: twice those of the format's numbers (e2m1), with half its factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockMXFP4 {
    /// The exponent of the factor, with 128 added.
    pub e: u8,
    /// Byte `k` holds weight `k` in its low and weight `16 + k` in its high nibble.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockMXFP4>() == 17 && align_of::<BlockMXFP4>() == 1);

impl SmallBlock for BlockMXFP4 {
    const MINS: bool = false;
    const FACTORS: &[Factor] = &[Factor::Exponent(0)];
    const TILE: &[Field] = &[Field::lanes(1, 16, 4).of_eight::<Self>(), Field::rows(0, 1).of_eight::<Self>()];

    #[inline]
    fn d(&self) -> f32 {
        factor::exponent(self.e)
    }

    /// The values that the stored quants stand for.
    #[inline(always)]
    fn quants(&self) -> [i8; 32] {
        nibbles::split(&self.qs).map(|q| nibbles::FP4[usize::from(q)])
    }

    /// The values of uniform quants have a root mean square of 5.852 and a mean of 0. Factors are the two powers of two around what
    /// gives the spread, each as often as makes the mean square right.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = spread / 5.852;
        let below = d.log2().floor();
        // d^2 = 4^below * (1 + 3 share).
        let share = ((d / below.exp2()).powi(2) - 1.0) / 3.0;
        let above = (bits() >> 32) as f64 / 2_f64.powi(32) < share;
        let mut block = Self { e: (below as i32 + 128 + i32::from(above)).clamp(0, 255) as u8, qs: [0; 16] };
        fill(bits, &mut block.qs);
        block
    }
}
