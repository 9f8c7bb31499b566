//! Router, grouping, SwiGLU and the weighted sum against plain f64.

use kquant_moe::blocks::{self, BLOCK};
use kquant_moe::oracle::moe_group::moe_group;
use kquant_moe::oracle::moe_router::{Weighting, moe_router};
use kquant_moe::oracle::quantize::quantize;
use kquant_moe::oracle::{FixedBlock, Matrix, moe_down, moe_swiglu};
use kquant_moe::sys;

mod common;
use common::random::Random;

#[test]
fn the_router_is_the_softmax_over_all_experts_renormalised_or_not() {
    let mut random = Random::new(1);
    for (cols, experts, top_k) in [(256, 16, 4), (2048, 128, 8), (512, 512, 32), (256, 3, 3), (256, 1, 1)] {
        // Logits of standard deviation 2.
        let x: Vec<f32> = random.normals(cols).iter().map(|x| x * 2.0 / (cols as f32).sqrt()).collect();
        let w = random.normals(experts * cols);
        let (mut logits, mut indices, mut weights) = (vec![0.0; experts], vec![0; top_k], vec![0.0; top_k]);
        moe_router(&x, &w, Weighting::OfChosen, &mut logits, &mut indices, &mut weights);
        let mut of_all = vec![0.0; top_k];
        moe_router(&x, &w, Weighting::OfAll, &mut logits, &mut indices, &mut of_all);
        let expected: Vec<f64> =
            w.chunks_exact(cols).map(|w| w.iter().zip(&x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()).collect();
        for (logit, expected) in logits.iter().zip(&expected) {
            assert!((f64::from(*logit) - expected).abs() <= expected.abs() * 6.0e-8 + 1e-12);
        }
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        assert_eq!(indices, order[..top_k].iter().map(|&e| e as u32).collect::<Vec<_>>());
        let all: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let p: Vec<f64> = order[..top_k].iter().map(|&e| f64::from(logits[e]).exp() / all).collect();
        let sum: f64 = p.iter().sum();
        for (weight, p) in weights.iter().zip(&p) {
            assert!((f64::from(*weight) / (p / sum) - 1.0).abs() < 3e-7, "{weight} {}", p / sum);
        }
        for (weight, p) in of_all.iter().zip(&p) {
            assert!((f64::from(*weight) / p - 1.0).abs() < 3e-7, "{weight} {p}");
        }
    }
}

#[test]
fn ties_go_to_the_lower_expert_and_nan_comes_first() {
    let mut x = vec![0.0; 256];
    x[0] = 1.0;
    let route = |values: [f32; 6]| {
        let mut w = vec![0.0; 6 * 256];
        for (expert, value) in values.into_iter().enumerate() {
            w[expert * 256] = value;
        }
        let (mut logits, mut indices, mut weights) = ([1.0; 6], [0; 4], [0.0; 4]);
        moe_router(&x, &w, Weighting::OfChosen, &mut logits, &mut indices, &mut weights);
        (logits, indices, weights)
    };
    let (logits, indices, weights) = route([1.0, 2.0, 2.0, -0.0, 0.0, 1.0]);
    assert_eq!((indices, logits[3].to_bits()), ([1, 2, 0, 5], 0));
    assert_eq!((weights[0], weights[2]), (weights[1], weights[3]));
    assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    assert_eq!(route([-0.0, 0.0, -1.0, -0.0, -1.0, 0.0]).1, [0, 1, 3, 5]);
    let (_, indices, weights) = route([1.0, 2.0, f32::NAN, 0.0, f32::NAN, f32::INFINITY]);
    assert_eq!(indices, [2, 4, 5, 1]);
    assert_eq!(common::bits(&weights), [0x7fc0_0000; 4]);
}

#[test]
fn groups_hold_every_pair_once_in_order() {
    let mut random = Random::new(3);
    for (tokens, experts, top_k) in [(1, 128, 8), (40, 4, 2), (33, 1, 1), (100, 128, 8), (400, 16, 3)] {
        let indices: Vec<u32> = (0..tokens)
            .flat_map(|_| {
                let first = random.below(experts);
                (0..top_k).map(move |rank| ((first + rank) % experts) as u32)
            })
            .collect();
        let groups = moe_group(&indices, experts);
        let keys: Vec<(u32, u32)> = groups.order.iter().map(|&pair| (indices[pair as usize], pair)).collect();
        assert!(keys.is_sorted_by(|a, b| a < b));
        assert_eq!(keys.len(), tokens * top_k);
        // The large ones come first, each part by expert.
        let most = sys::KQM_ITEM_PAIRS;
        assert!(groups.items.is_sorted_by_key(|&[expert, first, pairs]| (pairs <= most / 2, expert, first)));
        let mut items = groups.items;
        items.sort_unstable_by_key(|item| item[1]);
        let mut next = 0;
        for [expert, first, pairs] in items {
            assert_eq!(first, next);
            assert!((1..=most).contains(&pairs));
            next += pairs;
            assert!(keys[first as usize..next as usize].iter().all(|key| key.0 == expert));
            // Only the last item of an expert is short.
            assert!(pairs == most || keys.get(next as usize).is_none_or(|key| key.0 != expert));
        }
        assert_eq!(next as usize, tokens * top_k);
    }
}

#[test]
fn swiglu_and_the_weighted_sum_are_close_to_f64() {
    let mut random = Random::new(4);
    let (ff, cols) = (64, 512);
    let (gate, up) = (random.q4_k(ff * cols / BLOCK), random.q6_k(ff * cols / BLOCK));
    let (gate, up) = (Matrix::Q4K(blocks::q4_k(&gate).unwrap()), Matrix::Q6K(blocks::q6_k(&up).unwrap()));
    let mut x = vec![FixedBlock { x: [0; BLOCK], unit: 0.0 }; cols / BLOCK];
    quantize(&random.normals(cols), &mut x);
    let [mut g, mut u, mut out] = [(); 3].map(|()| vec![0.0; ff]);
    moe_swiglu::moe_swiglu(gate, up, &x, &mut g, &mut u, &mut out);
    for row in 0..ff {
        let gate = f64::from(g[row]);
        let expected = gate / (1.0 + (-gate).exp()) * f64::from(u[row]);
        assert!((f64::from(out[row]) - expected).abs() <= expected.abs() * 4e-7, "{} {expected}", out[row]);
    }

    let (rows, top_k) = (100, 8);
    let (weights, products) = (random.normals(top_k), random.normals(rows * top_k));
    let mut sum = vec![0.0; rows];
    moe_down::moe_down(&weights, &products, &mut sum);
    for row in 0..rows {
        let expected: f64 =
            (0..top_k).map(|rank| f64::from(weights[rank]) * f64::from(products[rank * rows + row])).sum();
        assert!((f64::from(sum[row]) - expected).abs() <= expected.abs() * 6e-8);
    }
}
