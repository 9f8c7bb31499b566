//! Products with K-quant matrices against exact sums of the dequantized weights and the activations.

use kquant_moe::blocks::{BLOCK, TensorType};
use kquant_moe::oracle::embedding::exact as exact_weights;
use kquant_moe::oracle::quantize::quantize;
use kquant_moe::oracle::{FixedBlock, Matrix, product};

mod common;
use common::random::Random;

/// Fractional bits of the exact sums: 27 of a factor, an f16 or an eighth of one, and 60 of an activation.
const FACTOR_BITS: i32 = 27;
const ACTIVATION_BITS: i32 = 60;

fn scaled(x: f64, bits: i32) -> i128 {
    let scaled = x * 2_f64.powi(bits);
    assert!(scaled.fract() == 0.0 && scaled.abs() < 2_f64.powi(80), "{x} is not a multiple of 2^-{bits}");
    scaled as i128
}

/// Weights as multiples of 2^-27.
fn weights(w: Matrix<'_>, count: usize) -> Vec<i128> {
    let mut weights = vec![0.0; count];
    exact_weights(w, &mut weights);
    weights.into_iter().map(|weight| scaled(weight, FACTOR_BITS)).collect()
}

/// A random matrix of every type, and its weights as multiples of 2^-27.
fn matrices(random: &mut Random, rows: usize, cols: usize) -> Vec<(TensorType, Vec<u8>, Vec<i128>)> {
    let matrix = |&kind: &TensorType| {
        let bytes = random.blocks(kind, rows * cols / BLOCK);
        let weights = weights(Matrix::new(kind, &bytes).unwrap(), rows * cols);
        (kind, bytes, weights)
    };
    TensorType::MATRICES.iter().map(matrix).collect()
}

/// The exact sums, rounded once to f64 (which is finer than what they are compared with).
fn exact(weights: &[i128], x: &[f32]) -> Vec<f64> {
    let x: Vec<i128> = x.iter().map(|&x| scaled(f64::from(x), ACTIVATION_BITS)).collect();
    let sum = |row: &[i128]| row.iter().zip(&x).map(|(w, x)| w * x).sum::<i128>();
    weights.chunks_exact(x.len()).map(|row| sum(row) as f64 * 2_f64.powi(-(FACTOR_BITS + ACTIVATION_BITS))).collect()
}

fn run(w: Matrix<'_>, rows: usize, x: &[f32]) -> Vec<f32> {
    let mut fixed = vec![FixedBlock { x: [0; BLOCK], unit: 0.0 }; x.len() / BLOCK];
    quantize(x, &mut fixed);
    let mut y = vec![0.0; rows];
    product(w, x.len(), &fixed, &mut y);
    y
}

fn ulp(x: f64) -> f64 {
    let x = (x as f32).abs().max(f32::MIN_POSITIVE);
    f64::from(x.next_up()) - f64::from(x)
}

fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt()
}

/// Every output is within one unit in the last place of f32 of the exact sum, also where the sum all but cancels.
#[test]
fn gaussian_activations_give_the_exact_sum_to_one_ulp() {
    let mut random = Random::new(1);
    let (rows, cols) = (512, 2048);
    for (kind, bytes, weights) in matrices(&mut random, rows, cols) {
        let w = Matrix::new(kind, &bytes).unwrap();
        let (mut equal, mut smallest, mut worst, mut count) = (0, f64::INFINITY, 0.0_f64, 0);
        for _ in 0..32 {
            let x = random.normals(cols);
            let expected = exact(&weights, &x);
            let typical = rms(&expected);
            for (row, (&found, &expected)) in run(w, rows, &x).iter().zip(&expected).enumerate() {
                let distance = (f64::from(found) - expected).abs() / ulp(expected);
                assert!(distance <= 1.0, "{kind}, row {row}: {found:e} is {distance:.2} ulp from {expected:e}");
                smallest = smallest.min(expected.abs() / typical);
                worst = worst.max(distance);
                equal += u32::from(found == expected as f32);
                count += 1;
            }
        }
        println!(
            "{kind}: {count} sums: {equal} equal the rounded exact one, the others are at most {worst:.4} ulp from the exact one"
        );
        println!("the smallest sum is {smallest:.1e} of the typical one");
        assert!(equal * 1_000 >= count * 999 && smallest < 1e-3);
    }
}

#[test]
fn heavy_tailed_activations_stay_within_1e_7() {
    let mut random = Random::new(2);
    for cols in [256, 768, 2048, 4096] {
        let rows = 256;
        for (kind, bytes, weights) in matrices(&mut random, rows, cols) {
            let w = Matrix::new(kind, &bytes).unwrap();
            // Student's t with 2 degrees of freedom, and a few values a thousand times as large; what is not a multiple
            // of 2^-60 is left out.
            let x: Vec<f32> = (0..cols)
                .map(|_| {
                    let tail = if random.below(500) == 0 { 1000.0 } else { 1.0 };
                    let x = (tail * random.normal() / (-random.uniform().ln()).sqrt()) as f32;
                    if x.abs() < 2_f32.powi(-36) { 0.0 } else { x }
                })
                .collect();
            let expected: Vec<f32> = exact(&weights, &x).iter().map(|&y| y as f32).collect();
            let distance = common::relative_l2(&run(w, rows, &x), &expected);
            assert!(distance <= 1e-7, "{cols} columns: relative L2 {distance:e}");
        }
    }
}

#[test]
fn an_activation_that_is_not_finite_makes_what_it_feeds_nan() {
    let mut random = Random::new(3);
    let (rows, cols) = (5, 768);
    for (kind, bytes, _) in matrices(&mut random, rows, cols) {
        let w = Matrix::new(kind, &bytes).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 300, 767] {
                // The first token is bad, the second is not.
                let mut x = random.normals(2 * cols);
                x[at] = bad;
                let mut fixed = vec![FixedBlock { x: [0; BLOCK], unit: 0.0 }; 2 * cols / BLOCK];
                quantize(&x, &mut fixed);
                let mut y = vec![0.0; 2 * rows];
                product(w, cols, &fixed, &mut y);
                assert_eq!(common::bits(&y[..rows]), [0x7fc0_0000; 5]);
                assert!(y[rows..].iter().all(|y| y.is_finite()));
            }
        }
    }
}

/// Sums of one product, zeros, and blocks of very different sizes.
#[test]
fn sparse_activations_are_exact() {
    let mut random = Random::new(4);
    let (rows, cols) = (64, 512);
    for (kind, bytes, weights) in matrices(&mut random, rows, cols) {
        let w = Matrix::new(kind, &bytes).unwrap();
        assert_eq!(common::bits(&run(w, rows, &vec![0.0; cols])), vec![0; rows]);
        for (at, value) in [(0, 1.0), (255, -3.25), (256, 2_f32.powi(-30)), (511, 1.999_999_9)] {
            let mut x = vec![0.0; cols];
            x[at] = value;
            let expected: Vec<f32> = exact(&weights, &x).iter().map(|&y| y as f32).collect();
            assert_eq!(run(w, rows, &x), expected, "one activation of {value}");
        }
        let mut x = vec![0.0; cols];
        (x[3], x[300]) = (1024.0, 2_f32.powi(-20));
        let expected: Vec<f32> = exact(&weights, &x).iter().map(|&y| y as f32).collect();
        assert_eq!(run(w, rows, &x), expected, "two blocks");
    }
}
