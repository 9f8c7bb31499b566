//! RMSNorm, RoPE, embedding, argmax and tree sums against plain f64.

use kquant_moe::blocks::{SuperBlock, TensorType};
use kquant_moe::model::RopeScaling;
use kquant_moe::model::rope_table::rope_table;
use kquant_moe::oracle::argmax::argmax;
use kquant_moe::oracle::embedding::{Table, embedding};
use kquant_moe::oracle::residual_add::residual_add;
use kquant_moe::oracle::rms_norm::rms_norm;
use kquant_moe::oracle::rope::rope;
use kquant_moe::oracle::tree::{tree_dot, tree_sum};

mod common;
use common::random::Random;

#[test]
fn tree_sums_add_neighbours_first() {
    // In this order the small values survive; in ascending order they would be lost one by one.
    let big = 2_f64.powi(53);
    assert_eq!(tree_sum([big, 0.0, 1.0, 1.0]), big + 2.0);
    assert_eq!(tree_sum([1.0, -1.0, 3.0, 4.0, 0.5, 0.25, 0.0, 1.0]), 8.75);
}

#[test]
fn tree_dots_are_close_and_pad_with_zeros() {
    let mut random = Random::new(1);
    for len in [1, 3, 4, 64, 128, 255, 256, 257, 2048] {
        let (a, b) = (random.normals(len), random.normals(len));
        let plain: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        let size: f64 = a.iter().zip(&b).map(|(&a, &b)| (f64::from(a) * f64::from(b)).abs()).sum();
        assert!((tree_dot(&a, &b) - plain).abs() <= 1e-14 * size);
        let padded = |x: &[f32]| [x, &[0.0; 256]].concat()[..len.next_multiple_of(256)].to_vec();
        assert_eq!(tree_dot(&padded(&a), &padded(&b)), tree_dot(&a, &b));
    }
}

#[test]
fn rms_norm_is_close_to_f64() {
    let mut random = Random::new(2);
    for (cols, size) in [(256, 1.0_f32), (2048, 1e-20), (2048, 1e15), (768, 1e-3)] {
        let x: Vec<f32> = random.normals(cols).iter().map(|x| x * size).collect();
        let weight = random.normals(cols);
        let mut y = vec![0.0; cols];
        rms_norm(&x, &weight, cols, 1e-6, &mut y);
        let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / cols as f64;
        let r = 1.0 / (mean + f64::from(1e-6_f32)).sqrt();
        for i in 0..cols {
            let expected = f64::from(x[i]) * r * f64::from(weight[i]);
            assert!((f64::from(y[i]) - expected).abs() <= 4e-7 * expected.abs());
        }
    }
    let mut y = [1.0; 256];
    rms_norm(&[0.0; 256], &[1.0; 256], 256, 1e-6, &mut y);
    assert_eq!(y, [0.0; 256]);
    rms_norm(&[0.0; 256], &[1.0; 256], 256, 0.0, &mut y);
    assert_eq!(common::bits(&y), [0x7fc0_0000; 256]);
    let mut x = [1.0; 256];
    x[9] = f32::NAN;
    rms_norm(&x, &[1.0; 256], 256, 1e-6, &mut y);
    assert_eq!(common::bits(&y), [0x7fc0_0000; 256]);
}

/// A row that is continued with zeros has the bits of the row alone.
#[test]
fn rms_norm_of_fewer_values_than_columns_is_that_of_the_values() {
    let mut random = Random::new(21);
    for (width, cols) in [(32, 256), (288, 512), (4128, 4352)] {
        let (mut x, mut weight) = (random.normals(width), random.normals(width));
        let (mut alone, mut padded) = (vec![0.0; width], vec![1.0; cols]);
        rms_norm(&x, &weight, width, 1e-6, &mut alone);
        x.resize(cols, 0.0);
        weight.resize(cols, 0.0);
        rms_norm(&x, &weight, width, 1e-6, &mut padded);
        assert_eq!(common::bits(&padded[..width]), common::bits(&alone));
        assert_eq!(common::bits(&padded[width..]), vec![0; cols - width]);
    }
}

#[test]
fn rope_turns_pairs_half_a_head_apart() {
    let mut random = Random::new(3);
    let (heads, dim, base) = (3, 128, 1e6);
    let table = rope_table(300, dim, base, RopeScaling::None);
    let weight = random.normals(dim);
    for position in [0, 1, 299] {
        let x = random.normals(heads * dim);
        let (mut y, mut normed) = (x.clone(), vec![0.0; heads * dim]);
        rope(&mut y, dim, Some(&weight), 1e-6, &table[position * dim..][..dim], Some(&mut normed));
        for (head, x) in x.chunks_exact(dim).enumerate() {
            let mut expected = vec![0.0; dim];
            rms_norm(x, &weight, x.len(), 1e-6, &mut expected);
            assert_eq!(normed[head * dim..][..dim], expected);
            for i in 0..dim / 2 {
                let angle = position as f64 * f64::from(base).powf(-2.0 * i as f64 / dim as f64);
                let (a, b) = (f64::from(expected[i]), f64::from(expected[i + dim / 2]));
                let turned = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
                let found = [y[head * dim + i], y[head * dim + i + dim / 2]].map(f64::from);
                for (found, turned) in found.into_iter().zip(turned) {
                    assert!((found - turned).abs() <= 2e-7 * a.hypot(b));
                }
            }
        }
        let mut plain = x.clone();
        rope(&mut plain, dim, None, 1e-6, &table[..dim], None);
        assert_eq!(plain, x, "position 0 turns nothing");
    }
}

#[test]
fn embeddings_are_the_dequantized_rows() {
    let mut random = Random::new(4);
    let cols = 512;
    let rows = 5;
    let (q4, q6) = (random.q4_k(rows * 2), random.q6_k(rows * 2));
    let floats = random.normals(rows * cols);
    let f32s: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
    let f16s: Vec<u8> = floats.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    for (kind, bytes) in
        [(TensorType::Q4K, &q4), (TensorType::Q6K, &q6), (TensorType::F32, &f32s), (TensorType::F16, &f16s)]
    {
        let mut out = vec![0.0; 3 * cols];
        embedding(Table { bytes, kind, cols }, &[4, 5, 0], &mut out);
        assert_eq!(common::bits(&out[cols..2 * cols]), [0x7fc0_0000; 512], "{kind:?}: not in the table");
        for (row, out) in [(4, &out[..cols]), (0, &out[2 * cols..])] {
            for (col, &found) in out.iter().enumerate() {
                let block = row * 2 + col / 256;
                let (j4, j6) = (col % 256 / 32, col % 256 / 16);
                let expected = match kind {
                    TensorType::F32 => f64::from(floats[row * cols + col]),
                    TensorType::F16 => half::f16::from_f32(floats[row * cols + col]).to_f64(),
                    TensorType::Q4K => {
                        let w = kquant_moe::blocks::q4_k(&q4).unwrap()[block];
                        let scaled = f64::from(w.scale(j4)) * f64::from(w.quant(j4, col % 32));
                        w.d().to_f64() * scaled - w.dmin().to_f64() * f64::from(w.min(j4))
                    }
                    TensorType::Q6K => {
                        let w = kquant_moe::blocks::q6_k(&q6).unwrap()[block];
                        w.d().to_f64() * f64::from(w.scale(j6) * w.quant(j6, col % 16))
                    }
                    other => unreachable!("{other}"),
                };
                assert_eq!(found.to_bits(), (expected as f32).to_bits(), "{kind:?}");
            }
        }
    }
}

#[test]
fn argmax_takes_the_lowest_index_of_the_largest() {
    assert_eq!(argmax(&[1.0, 3.0, 2.0, 3.0]), 1);
    assert_eq!(argmax(&[-0.0, 0.0]), 0);
    assert_eq!(argmax(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), 0);
    assert_eq!(argmax(&[f32::INFINITY, f32::NAN, 1.0, f32::NAN]), 1);
}

#[test]
fn residuals_are_one_addition() {
    let mut hidden = [1.0, 2.0_f32.powi(24), f32::INFINITY];
    residual_add(&mut hidden, &[2.0, 1.0, f32::NEG_INFINITY]);
    assert_eq!(common::bits(&hidden), common::bits(&[3.0, 2.0_f32.powi(24), f32::from_bits(0x7fc0_0000)]));
}
