//! exp and SiLU from IEEE operations only.

use crate::sys;

const LOG2E: f32 = sys::KQM_EXP_LOG2E as f32;
const LN2_HIGH: f32 = sys::KQM_EXP_LN2_HIGH as f32;
const LN2_LOW: f32 = sys::KQM_EXP_LN2_LOW as f32;
/// Coefficients of the polynomial, highest degree first, after the leading one.
const C: [f32; 7] = [
    sys::KQM_EXP_C6 as f32,
    sys::KQM_EXP_C5 as f32,
    sys::KQM_EXP_C4 as f32,
    sys::KQM_EXP_C3 as f32,
    sys::KQM_EXP_C2 as f32,
    1.0,
    1.0,
];

/// e^x in f32.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return f32::NAN;
    }
    if x > 88.722_83 {
        return f32::INFINITY;
    }
    if x < -104.0 {
        return 0.0;
    }
    let n = (x * LOG2E).round_ties_even();
    let t = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = sys::KQM_EXP_C7 as f32;
    for c in C {
        p = p.mul_add(t, c);
    }
    scale(p, n as i32)
}

/// `x * 2^n` for `n` in -252..=254, in two factors, because `2^n` itself need not be a normal number.
#[inline(always)]
pub fn scale(x: f32, n: i32) -> f32 {
    (x * power_of_two(n >> 1)) * power_of_two(n - (n >> 1))
}

/// `2^n` for `n` in -126..=127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// `x / (1 + exp(-x))`.
///
/// Source: Elfwing, Uchibe, Doya, "Sigmoid-Weighted Linear Units" (2018).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_two_ulp_of_the_f64_exponential() {
        let mut worst = 0.0_f64;
        for step in -870_000..=887_000 {
            let x = step as f32 * 1e-4;
            let expected = f64::from(x).exp();
            let ulp = f64::from((expected as f32).next_up()) - f64::from(expected as f32);
            worst = worst.max((f64::from(exp(x)) - expected).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} ulp");
    }

    #[test]
    fn limits() {
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.722_84), f32::INFINITY);
        assert!(exp(88.722_83).is_finite());
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-104.1), 0.0);
        assert!(exp(-103.0) > 0.0);
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert_eq!(silu(-200.0), 0.0);
        assert_eq!(silu(200.0), 200.0);
        assert!(silu(f32::NEG_INFINITY).is_nan());
    }
}
