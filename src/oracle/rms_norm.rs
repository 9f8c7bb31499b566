//! RMSNorm.

use super::canonical;
use super::exp::scale;
use super::tree::tree_dot;

/// `1 / sqrt(mean(x^2) + eps)`: the mean in f64, its root and the quotient in f32 on a number between 1 and 4. NaN when
/// the mean is not a positive normal number. The mean is of `width` values, behind which a row is continued with zeros.
///
/// Source: Zhang, Sennrich, "Root Mean Square Layer Normalization" (2019).
#[inline(always)]
pub fn inverse_rms(x: &[f32], width: usize, eps: f32) -> f32 {
    let mean = tree_dot(x, x) * (1.0 / width as f64) + f64::from(eps);
    if !(mean.is_normal() && mean > 0.0) {
        return f32::NAN;
    }
    // mean = within * 4^k, 1 <= within < 4.
    let bits = mean.to_bits();
    let k = ((bits >> 52) as i32 - 1023) >> 1;
    let within = f64::from_bits(bits.wrapping_sub(((2 * i64::from(k)) << 52) as u64));
    scale(1.0 / (within as f32).sqrt(), -k)
}

/// `y = (x * inverse_rms(x)) * weight` for one row, of which the first `width` values count.
#[inline(always)]
pub fn rms_norm(x: &[f32], weight: &[f32], width: usize, eps: f32, y: &mut [f32]) {
    let r = inverse_rms(x, width, eps);
    for ((&x, &weight), y) in x.iter().zip(weight).zip(y) {
        *y = canonical((x * r) * weight);
    }
}
