//! Cosines and sines of RoPE: one table, made on the host, for every backend.

use std::f64::consts::TAU;

use super::config::{RopeScaling, Yarn};

/// `[capacity, head_dim / 2, 2]`: cosine and sine of `position * frequency_i`, times the magnitude, computed in f64 and rounded to
/// f32. Without scaling `frequency_i = base^(-2 i / head_dim)` and the magnitude is 1.
///
/// Sources: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), section 3.4.2; Chen et al.,
/// "Extending Context Window of Large Language Models via Positional Interpolation" (2023); and of [`Yarn`].
pub fn rope_table(capacity: usize, head_dim: usize, base: f32, scaling: RopeScaling) -> Vec<f32> {
    let (frequencies, magnitude) = frequencies(head_dim, base, scaling);
    (0..capacity)
        .flat_map(|position| {
            frequencies.iter().flat_map(move |frequency| {
                let angle = position as f64 * frequency;
                [(magnitude * angle.cos()) as f32, (magnitude * angle.sin()) as f32]
            })
        })
        .collect()
}

/// Radians that each pair turns from a position to the next, and the length to which a pair is stretched.
fn frequencies(head_dim: usize, base: f32, scaling: RopeScaling) -> (Vec<f64>, f64) {
    let plain = (0..head_dim / 2).map(|i| f64::from(base).powf(-((2 * i) as f64) / head_dim as f64));
    match scaling {
        RopeScaling::None => (plain.collect(), 1.0),
        RopeScaling::Linear { factor } => (plain.map(|frequency| frequency / f64::from(factor)).collect(), 1.0),
        RopeScaling::Yarn(yarn) => {
            let factor = f64::from(yarn.factor);
            let ramp = ramp(head_dim, base, &yarn);
            let scaled = plain.enumerate().map(|(i, frequency)| {
                let share = ramp(i);
                frequency / factor * share + frequency * (1.0 - share)
            });
            (scaled.collect(), f64::from(yarn.attn_factor) * (1.0 + 0.1 * factor.ln()))
        }
    }
}

/// The share of each pair's frequency that is divided by the factor: 0 for pairs that turn often over the original context, 1
/// for those that turn rarely.
fn ramp(head_dim: usize, base: f32, yarn: &Yarn) -> impl Fn(usize) -> f64 {
    let dim = head_dim as f64;
    // The pair, as a fraction, that turns so many times.
    let pair = |turns: f32| {
        dim * (yarn.original_context as f64 / (f64::from(turns) * TAU)).ln() / (2.0 * f64::from(base).ln())
    };
    let low = pair(yarn.beta_fast).floor().max(0.0);
    let high = pair(yarn.beta_slow).ceil().min(dim - 1.0);
    move |i| ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_pair_turns_by_one_radian_and_every_pair_is_on_the_circle() {
        let table = rope_table(5, 8, 1e6, RopeScaling::None);
        assert_eq!(table.len(), 5 * 8);
        for position in 0..5 {
            let row = &table[position * 8..][..8];
            assert_eq!(row[0], (position as f64).cos() as f32);
            assert_eq!(row[1], (position as f64).sin() as f32);
            for pair in row.as_chunks::<2>().0 {
                assert!((pair[0].hypot(pair[1]) - 1.0).abs() < 1e-6);
            }
        }
        // base^(-2 * 2 / 8) = 1e-3.
        assert_eq!(table[8 + 4], 1e-3_f64.cos() as f32);
        assert_eq!(table[8 + 5], 1e-3_f64.sin() as f32);
    }
}
