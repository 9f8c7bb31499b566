//! Cosines and sines of RoPE: one table, made on the host, for every backend.

/// `[capacity, head_dim / 2, 2]`: cosine and sine of `position * base^(-2 i / head_dim)`, computed in f64, rounded to f32.
///
/// Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), section 3.4.2.
pub fn rope_table(capacity: usize, head_dim: usize, base: f32) -> Vec<f32> {
    let frequencies: Vec<f64> =
        (0..head_dim / 2).map(|i| f64::from(base).powf(-((2 * i) as f64) / head_dim as f64)).collect();
    (0..capacity)
        .flat_map(|position| {
            frequencies.iter().flat_map(move |frequency| {
                let angle = position as f64 * frequency;
                [angle.cos() as f32, angle.sin() as f32]
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_pair_turns_by_one_radian_and_every_pair_is_on_the_circle() {
        let table = rope_table(5, 8, 1e6);
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
