//! The oracles against bits that a program with exact fractions made of `docs/arithmetic.md` (`tests/data/pins.py`): what oracles and
//! kernels share and could have wrong together.

#[path = "common/kernels.rs"]
mod common;

use common::pins::{self, Pin};
use common::*;
use kquant_moe::blocks::{BLOCK, TensorType};
use kquant_moe::model::rope_table::rope_table;
use kquant_moe::model::{RopeScaling, Yarn};
use kquant_moe::oracle::attention::{self, Head};
use kquant_moe::oracle::exp::{exp, silu};
use kquant_moe::oracle::moe_router::Weighting;
use kquant_moe::oracle::moe_swiglu::swiglu;
use kquant_moe::oracle::rms_norm::{inverse_rms, rms_norm};
use kquant_moe::oracle::tree::{TreeSum, tree_dot};
use kquant_moe::oracle::{self, FixedBlock};

/// Equal in bits, f64.
#[track_caller]
fn assert_wide(what: &str, got: f64, expected: f64) {
    assert_eq!(got.to_bits(), expected.to_bits(), "{what}: got {got:e}, expected {expected:e}");
}

fn tree_sum(values: &[f32]) -> f64 {
    let mut sum = TreeSum::default();
    for &value in values {
        sum.add(f64::from(value));
    }
    sum.sum()
}

#[test]
fn exponentials_have_their_bits() {
    let (e, s) = (pins::entry("exp"), pins::entry("silu"));
    let map = |pin: Pin, f: fn(f32) -> f32| pin.values("x").into_iter().map(f).collect::<Vec<_>>();
    assert_bits("exp", &map(e, exp), &e.values("y"));
    assert_bits("silu", &map(s, silu), &s.values("y"));
    assert!(e.values("x").len() > 1000 && s.values("x").len() > 500);
}

#[test]
fn swiglu_multiplies_last() {
    let pin = pins::entry("swiglu");
    let got: Vec<f32> =
        pin.values("gate").into_iter().zip(pin.values("up")).map(|(gate, up)| swiglu(gate, up)).collect();
    assert_bits("swiglu", &got, &pin.values("out"));
}

#[test]
fn sums_have_one_order() {
    for pin in pins::list("sums") {
        let values = pin.values("values");
        assert_wide(&format!("sum of {}", values.len()), tree_sum(&values), pin.wide("sum"));
    }
    // It starts from 0.
    for count in [1, 16, 17] {
        assert_wide("zeros", tree_sum(&vec![-0.0; count]), 0.0);
    }
    for pin in pins::list("dots") {
        let row = pin.row();
        let ones = vec![1.0; row.len()];
        let what = format!("dot of {}", row.len());
        assert_wide(&what, tree_dot(&row, &ones), pin.wide("dot"));
        assert_wide(&what, tree_dot(&ones, &row), pin.wide("dot"));
    }
    for pin in pins::list("dense_dots") {
        let (mut random, cols) = (Random::new(pin.seed()), pin.number("cols"));
        let (a, b) = (random.numbers(3, cols), random.numbers(-2, cols));
        assert_wide(&format!("dense dot of {cols}"), tree_dot(&a, &b), pin.wide("dot"));
    }
}

#[test]
fn norms_have_their_bits() {
    for pin in pins::list("norms") {
        let row = pin.row();
        assert_bits(
            &format!("{} columns", row.len()),
            &[inverse_rms(&row, row.len(), pin.values("eps")[0])],
            &pin.values("r"),
        );
    }
    for pin in pins::list("norm_values") {
        let (mut random, cols) = (Random::new(pin.seed()), pin.number("cols"));
        let (x, weight) = (random.numbers(pin.exponent("exponent"), cols), random.numbers(1, cols));
        let mut y = vec![0.0; cols];
        rms_norm(&x, &weight, cols, pin.values("eps")[0], &mut y);
        assert_bits(&format!("seed {}", pin.seed()), &y, &pin.values("y"));
    }
}

#[test]
fn rotations_fuse_the_first_product() {
    let pin = pins::entry("rope");
    let [x0, x1, cos, sin, y0, y1] = ["x0", "x1", "cos", "sin", "y0", "y1"].map(|field| pin.values(field));
    assert!(x0.len() > 250);
    // All pairs as one head.
    let mut x = [x0, x1].concat();
    let table: Vec<f32> = cos.into_iter().zip(sin).flat_map(|(cos, sin)| [cos, sin]).collect();
    oracle::rope::rotate(&mut x, &table);
    assert_bits("rotated", &x, &[y0, y1].concat());
}

/// With and without scaling, at several positions: what `rope.scaling.*` of a file says.
#[test]
fn tables_of_rotations_have_their_bits() {
    for pin in pins::list("rope_tables") {
        let float = |field: &str| pin.float(field) as f32;
        let scaling = match pin.text("type") {
            "none" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: float("factor") },
            "yarn" => RopeScaling::Yarn(Yarn {
                factor: float("factor"),
                original_context: pin.number("original_context"),
                beta_fast: float("beta_fast"),
                beta_slow: float("beta_slow"),
                attn_factor: float("attn_factor"),
            }),
            other => panic!("{other}"),
        };
        let (dim, positions) = (pin.number("head_dim"), pin.numbers("positions"));
        let table = rope_table(positions.iter().max().unwrap() + 1, dim, float("base"), scaling);
        let rows: Vec<f32> = positions.iter().flat_map(|&at| table[at * dim..][..dim].to_vec()).collect();
        assert_bits(&format!("{scaling:?}"), &rows, &pin.values("rows"));
    }
}

#[test]
fn every_head_dimension_has_its_scale() {
    for pin in pins::list("scales") {
        let head_dim = pin.number("head_dim");
        assert_bits(&format!("scale of {head_dim}"), &[attention::scale(head_dim)], &pin.values("scale"));
    }
}

/// One head, its keys and values one behind the other.
fn attend(q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (dim, seen) = (q.len(), k.len() / q.len());
    let (mut out, mut scores) = (vec![0.0; dim], vec![0.0; seen]);
    attention::attention(q, Head::new(k, v, dim), seen, attention::scale(dim), &mut out, Some(&mut scores));
    (out, scores)
}

#[test]
fn attention_has_its_bits() {
    for pin in pins::list("attention") {
        let (dim, seen, exponent) = (pin.number("dim"), pin.number("seen"), pin.exponent("exponent"));
        let mut random = Random::new(pin.seed());
        let q = random.numbers(exponent, dim);
        let (k, v) = (random.numbers(exponent, seen * dim), random.numbers(2, seen * dim));
        let (out, scores) = attend(&q, &k, &v);
        let what = format!("{seen} positions of {dim}");
        assert_bits(&format!("{what}, scores"), &scores, &pin.values("scores"));
        assert_bits(&what, &out, &pin.values("y"));
    }
}

#[test]
fn attention_adds_chunks_in_one_order() {
    for pin in pins::list("denominators") {
        let case = heads::Case::denominator(&pin);
        let (out, _) = attend(&case.q, &case.k, &case.v);
        assert_bits("denominator", &out[..case.expected.len()], &case.expected);
    }
    for case in heads::Case::joins() {
        let (out, _) = attend(&case.q, &case.k, &case.v);
        assert_bits("join", &out[..case.expected.len()], &case.expected);
    }
}

#[test]
fn routers_divide_by_a_sum_in_rank_order_or_by_a_tree_of_all() {
    for pin in pins::list("router") {
        let logits = pin.values("logits");
        let experts = logits.len();
        let (mut made, mut indices, mut weights) = (vec![0.0; experts], vec![0; experts], vec![0.0; experts]);
        // A row of one column: the router's weights are its logits.
        oracle::moe_router::moe_router(&[1.0], &logits, Weighting::OfChosen, &mut made, &mut indices, &mut weights);
        assert_bits("logits", &made, &logits);
        assert_same("indices", &indices, &(0..experts as u32).collect::<Vec<_>>());
        assert_bits(&format!("weights of {logits:?}"), &weights, &pin.values("weights"));
        oracle::moe_router::moe_router(&[1.0], &logits, Weighting::OfAll, &mut made, &mut indices, &mut weights);
        assert_bits(&format!("weights of {logits:?} among all"), &weights, &pin.values("of_all"));
    }
}

#[test]
fn weighted_sums_have_their_bits() {
    for pin in pins::list("weighted_sums") {
        let (mut random, top_k) = (Random::new(pin.seed()), pin.number("top_k"));
        let (weights, values) = (random.numbers(1, top_k), random.numbers(6, top_k));
        let mut sum = [0.0];
        oracle::moe_down::moe_down(&weights, &values, &mut sum);
        assert_bits(&format!("{top_k} experts"), &sum, &pin.values("sum"));
    }
}

#[test]
fn activations_have_their_digits() {
    for pin in pins::list("quantize") {
        let x = Random::new(pin.seed()).numbers(pin.exponent("exponent"), BLOCK);
        let block = FixedBlock::new(&x.as_chunks().0[0]).digits();
        let bytes = |digits: &[i8]| digits.iter().map(|&digit| digit as u8).collect::<Vec<_>>();
        assert_wide("unit", block.unit, pin.wide("unit"));
        assert_same("digits", &bytes(block.digit.as_flattened().as_flattened()), &pin.bytes("digits"));
        let sums = [bytes(block.sum_low.as_flattened()), bytes(block.sum_high.as_flattened())].concat();
        assert_same("sums", &sums, &pin.bytes("sums"));
    }
}

#[test]
fn products_have_their_bits() {
    for pin in pins::list("products") {
        let kind = if pin.text("kind") == "Q4_K" { TensorType::Q4K } else { TensorType::Q6K };
        let (mut random, cols) = (Random::new(pin.seed()), pin.number("blocks") * BLOCK);
        let (x, _) = fixed_blocks(&random.numbers(2, cols));
        let w = Weights::pinned(&mut random, kind, 3, cols);
        let mut y = [0.0; 3];
        oracle::product(w.expert(0), cols, &x, &mut y);
        assert_bits(&format!("{kind:?}, {cols} columns"), &y, &pin.values("y"));
    }
}

/// The second product is not rounded: of d T = dmin M is left what the first one lost.
#[test]
fn the_second_product_is_fused() {
    for pin in pins::list("split_products") {
        let mut random = Random::new(pin.seed());
        let x = [random.numbers(1, 128), random.numbers(-14, 128)].concat();
        let mut w = Weights::cancelling(&mut random, 1, 1, BLOCK);
        let factor = (pin.number("d") as u16).to_le_bytes();
        w.bytes[..4].copy_from_slice(&[factor, factor].concat());
        let mut y = [0.0];
        oracle::product(w.expert(0), BLOCK, &fixed_blocks(&x).0, &mut y);
        assert!(y[0] != 0.0);
        assert_bits("d T - dmin M", &y, &pin.values("y"));
    }
}
