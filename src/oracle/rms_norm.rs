//! RMSNorm.

use super::canonical;
use super::tree::tree_dot;

/// `1 / sqrt(mean(x^2) + eps)`, rounded to f32.
///
/// Source: Zhang, Sennrich, "Root Mean Square Layer Normalization" (2019).
#[inline(always)]
pub fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    (1.0 / (tree_dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt()) as f32
}

/// `y = (x * inverse_rms(x)) * weight` for one row.
#[inline(always)]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let r = inverse_rms(x, eps);
    for ((&x, &weight), y) in x.iter().zip(weight).zip(y) {
        *y = canonical((x * r) * weight);
    }
}
