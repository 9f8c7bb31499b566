//! Per-head RMSNorm, and rotary position embedding in the NeoX layout.

use super::canonical;
use super::rms_norm::rms_norm;

/// Rotates one head in place. `table` is `[head_dim / 2, 2]`: cosines and sines of the position.
#[inline(always)]
pub fn rotate(x: &mut [f32], table: &[f32]) {
    let half = x.len() / 2;
    for i in 0..half {
        let (x0, x1, cos, sin) = (x[i], x[i + half], table[2 * i], table[2 * i + 1]);
        x[i] = canonical(x0.mul_add(cos, -(x1 * sin)));
        x[i + half] = canonical(x0.mul_add(sin, x1 * cos));
    }
}

/// RMSNorm (when there is a weight) and RoPE of one token's heads, `[heads, head_dim]`, in place. `normed` gets the
/// values between the two.
#[inline(always)]
pub fn rope(
    x: &mut [f32],
    head_dim: usize,
    weight: Option<&[f32]>,
    eps: f32,
    table: &[f32],
    mut normed: Option<&mut [f32]>,
) {
    for (head, x) in x.chunks_exact_mut(head_dim).enumerate() {
        if let Some(weight) = weight {
            let before = x.to_vec();
            rms_norm(&before, weight, head_dim, eps, x);
        }
        if let Some(normed) = &mut normed {
            for (normed, &x) in normed[head * head_dim..].iter_mut().zip(&*x) {
                *normed = canonical(x);
            }
        }
        rotate(x, table);
    }
}
