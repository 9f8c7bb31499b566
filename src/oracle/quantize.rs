//! Activations as block fixed point.

use crate::blocks::BLOCK;
use crate::sys;

/// 256 activations as integers of a common unit: activation k is `x[k] * unit`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedBlock {
    /// `|x[k]| <= 2^38`.
    pub x: [i64; BLOCK],
    /// `2^(e - 38)`; NaN when an activation is not finite (all `x` are 0 then).
    pub unit: f64,
}

impl FixedBlock {
    /// The fixed point of 256 activations.
    #[inline(always)]
    pub fn new(activations: &[f32; BLOCK]) -> Self {
        if activations.iter().any(|x| !x.is_finite()) {
            return Self { x: [0; BLOCK], unit: f64::NAN };
        }
        let largest = activations.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let e = if largest == 0.0 { 0 } else { exponent(largest) };
        // The powers of two and the product are exact in f64: e lies in -148..=128.
        let scale = power_of_two(38 - e);
        Self { x: activations.map(|x| (f64::from(x) * scale).round_ties_even() as i64), unit: power_of_two(e - 38) }
    }

    /// The block as the kernels store it: five balanced base-256 digits of each integer, and their sums.
    pub fn digits(&self) -> sys::kqm_fixed_block {
        let mut block = sys::kqm_fixed_block { unit: self.unit, ..Default::default() };
        for (j, sub_block) in self.x.chunks_exact(32).enumerate() {
            let mut sums = [0_i64; sys::KQM_PLANES as usize];
            for (k, &x) in sub_block.iter().enumerate() {
                let mut rest = x;
                for (plane, sum) in sums.iter_mut().enumerate() {
                    let digit = rest as i8;
                    block.digit[j][plane][k] = digit;
                    *sum += i64::from(digit);
                    rest = (rest - i64::from(digit)) / 256;
                }
            }
            for (plane, sum) in sums.into_iter().enumerate() {
                let low = sum as i8;
                block.sum_low[plane][j] = low;
                block.sum_high[plane][j] = ((sum - i64::from(low)) / 256) as i8;
            }
        }
        block
    }
}

/// The integer e with `2^(e-1) <= a < 2^e`, for finite `a > 0`.
#[inline(always)]
fn exponent(a: f32) -> i32 {
    // Every f32 is a normal f64.
    ((f64::from(a).to_bits() >> 52) & 0x7ff) as i32 - 1022
}

/// `2^n` for `n` in -1022..=1023.
#[inline(always)]
fn power_of_two(n: i32) -> f64 {
    f64::from_bits(((n + 1023) as u64) << 52)
}

/// Rows of activations, a multiple of 256 in all, as fixed point: `out` is `[x.len() / 256]`.
pub fn quantize(x: &[f32], out: &mut [FixedBlock]) {
    for (x, out) in x.as_chunks().0.iter().zip(out) {
        *out = FixedBlock::new(x);
    }
}
