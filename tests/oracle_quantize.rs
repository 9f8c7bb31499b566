//! Block fixed point: the edges of its definition, and its digits.

use kquant_moe::blocks::BLOCK;
use kquant_moe::oracle::FixedBlock;
use kquant_moe::sys;

mod common;
use common::random::Random;

const PLANES: usize = sys::KQM_PLANES as usize;

fn one_hot(at: usize, value: f32) -> FixedBlock {
    let mut x = [0.0; BLOCK];
    x[at] = value;
    FixedBlock::new(&x)
}

#[test]
fn zeros_have_a_unit() {
    for zero in [0.0, -0.0] {
        assert_eq!(FixedBlock::new(&[zero; BLOCK]), FixedBlock { x: [0; BLOCK], unit: 2_f64.powi(-38) });
    }
}

#[test]
fn one_activation_is_exact() {
    let smallest = f32::from_bits(1);
    for value in
        [1.0, -1.0, 3.0, 0.1, f32::MAX, f32::MIN, f32::MIN_POSITIVE, smallest, -smallest, f32::from_bits(0x7f_ffff)]
    {
        for at in [0, 31, 32, 255] {
            let block = one_hot(at, value);
            assert_eq!(block.x[at] as f64 * block.unit, f64::from(value));
            assert!((1 << 37..=1 << 38).contains(&block.x[at].abs()), "{value:e}: {}", block.x[at]);
            assert_eq!(block.x.iter().filter(|&&x| x != 0).count(), 1);
        }
    }
}

#[test]
fn the_exponent_changes_at_powers_of_two() {
    for exponent in [-149, -148, -127, -126, -125, -1, 0, 1, 30, 126, 127] {
        let power = (2_f64.powi(exponent)) as f32;
        let block = one_hot(7, power);
        // 2^(e-1) <= a < 2^e.
        assert_eq!((block.x[7], block.unit), (1 << 37, 2_f64.powi(exponent + 1 - 38)));
        if exponent > -149 {
            let below = power.next_down();
            let block = one_hot(7, below);
            assert_eq!(block.unit, 2_f64.powi(exponent - 38));
            assert_eq!(block.x[7] as f64 * block.unit, f64::from(below));
        }
    }
}

#[test]
fn small_neighbours_round_to_even() {
    let mut x = [0.0; BLOCK];
    x[0] = 1.0;
    // e = 1: the unit is 2^-37.
    for (k, (units, expected)) in
        [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (0.75, 1), (1.0, 1)].into_iter().enumerate()
    {
        x[k + 1] = (units * 2_f64.powi(-37)) as f32;
        assert_eq!(FixedBlock::new(&x).x[k + 1], expected);
    }
}

#[test]
fn a_value_that_is_not_finite_empties_the_block() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = [1.0; BLOCK];
        x[200] = bad;
        let block = FixedBlock::new(&x);
        assert!(block.unit.is_nan());
        assert_eq!(block.x, [0; BLOCK]);
    }
}

#[test]
fn digits_and_sums_stand_for_the_integers() {
    let mut random = Random::new(5);
    let mut integers: Vec<[i64; BLOCK]> =
        (0..50).map(|_| std::array::from_fn(|_| ((random.bits() as i64) >> 25) >> random.below(39))).collect();
    integers.extend([
        [1 << 38; BLOCK],
        [-(1 << 38); BLOCK],
        [127; BLOCK],
        [128; BLOCK],
        [-128; BLOCK],
        [0x7f7f_7f7f; BLOCK],
        [0x8080_8080; BLOCK],
    ]);
    for x in integers {
        let block = FixedBlock { x, unit: 0.25 }.digits();
        assert_eq!((block.unit, block.reserved), (0.25, 0.0));
        for j in 0..8 {
            for k in 0..32 {
                let value =
                    (0..PLANES).rev().fold(0_i64, |value, plane| 256 * value + i64::from(block.digit[j][plane][k]));
                assert_eq!(value, x[32 * j + k]);
                assert!((-64..=64).contains(&block.digit[j][PLANES - 1][k]));
            }
            for plane in 0..PLANES {
                let sum: i32 = block.digit[j][plane].iter().map(|&digit| i32::from(digit)).sum();
                let stored = i32::from(block.sum_low[plane][j]) + 256 * i32::from(block.sum_high[plane][j]);
                assert_eq!(stored, sum);
            }
        }
    }
}
