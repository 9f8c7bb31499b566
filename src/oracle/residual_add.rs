//! The residual stream.

use super::canonical;

/// `hidden += x`, in f32.
#[inline(always)]
pub fn residual_add(hidden: &mut [f32], x: &[f32]) {
    for (hidden, &x) in hidden.iter_mut().zip(x) {
        *hidden = canonical(*hidden + x);
    }
}
