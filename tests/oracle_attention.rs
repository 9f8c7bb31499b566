//! Attention against a plain softmax in f64.

use half::f16;
use kquant_moe::oracle::attention::{Element, Head, attention};

mod common;
use common::random::Random;

fn plain(q: &[f32], k: &[f32], v: &[f32], stride: usize, seen: usize, scale: f32) -> Vec<f64> {
    let dot = |i: usize| -> f64 { q.iter().zip(&k[i * stride..]).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum() };
    let scores: Vec<f64> = (0..seen).map(|i| dot(i) * f64::from(scale)).collect();
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f64 = p.iter().sum();
    (0..q.len()).map(|d| (0..seen).map(|i| p[i] * f64::from(v[i * stride + d])).sum::<f64>() / sum).collect()
}

fn check<T: Element>(head_dim: usize, seen: usize, sharpness: f32, tolerance: f64) {
    let mut random = Random::new((head_dim * 1000 + seen) as u64);
    let stride = 2 * head_dim;
    let q: Vec<f32> = random.normals(head_dim).iter().map(|q| q * sharpness).collect();
    let round = |x: Vec<f32>| -> Vec<T> { x.into_iter().map(T::from_f32).collect() };
    let (k, v) = (round(random.normals(stride * seen)), round(random.normals(stride * seen)));
    let widen = |x: &[T]| {
        let mut values = vec![0.0; x.len()];
        T::to_f32(x, &mut values);
        values
    };
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut out = vec![0.0; head_dim];
    let mut scores = vec![0.0; seen + 3];
    // The second KV head.
    let head = Head::new(&k[head_dim..], &v[head_dim..], stride);
    attention(&q, head, seen, scale, &mut out, Some(&mut scores));
    let expected = plain(&q, &widen(&k)[head_dim..], &widen(&v)[head_dim..], stride, seen, scale);
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    let distance = out.iter().zip(&expected).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt();
    assert!(distance <= tolerance * norm, "{seen} positions: relative L2 {:e}", distance / norm);
    assert!(scores[..seen].iter().all(|s| s.is_finite()));
    assert_eq!(scores[seen..], [f32::NEG_INFINITY; 3]);
    let mut untraced = vec![0.0; head_dim];
    attention(&q, head, seen, scale, &mut untraced, None);
    assert_eq!(untraced, out);
}

#[test]
fn close_to_a_plain_softmax() {
    for seen in [1, 2, 63, 64, 65, 127, 128, 129, 500, 1000] {
        check::<f32>(128, seen, 1.0, 4e-7);
        check::<f32>(64, seen, 8.0, 3e-6);
        check::<f16>(8, seen, 1.0, 4e-7);
    }
}

#[test]
fn one_position_gives_its_value() {
    let v: Vec<f32> = Random::new(1).normals(16);
    let mut out = vec![0.0; 16];
    attention(&[0.5; 16], Head::new(&[2.0; 16], &v, 16), 1, 0.25, &mut out, None);
    assert_eq!(out, v);
}

#[test]
fn large_scores_do_not_overflow_and_nan_spreads() {
    let (seen, dim) = (130, 8);
    let mut random = Random::new(2);
    let (mut k, v) = (random.normals(seen * dim), random.normals(seen * dim));
    k.iter_mut().for_each(|k| *k *= 1e15);
    let mut out = vec![0.0; dim];
    let q = [1e15; 8];
    attention(&q, Head::new(&k, &v, dim), seen, 1.0, &mut out, None);
    assert!(out.iter().all(|x| x.is_finite()));
    // What lies behind the positions seen does not matter.
    k[70 * dim] = f32::NAN;
    attention(&q, Head::new(&k, &v, dim), 70, 1.0, &mut out, None);
    assert!(out.iter().all(|x| x.is_finite()));
    attention(&q, Head::new(&k, &v, dim), seen, 1.0, &mut out, None);
    assert_eq!(common::bits(&out), [0x7fc0_0000; 8]);
}
