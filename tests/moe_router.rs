//! `moe_router` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::BLOCK;
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{FixedBlock, FusedNorm, MoeRouter, RouterChoice, RouterInput, Weighting};
use kquant_moe::{oracle, sys};

on_devices!(
    equals_the_oracle,
    sums_in_one_order,
    weighs_in_rank_order,
    stores_one_nan,
    breaks_ties_by_index,
    tells_neighbouring_logits_apart,
    batch_equals_single_tokens,
    takes_in_the_norm,
    norms_in_one_order,
    refuses_bad_arguments,
    refuses_bad_norms,
);

#[derive(Clone, Copy, Debug)]
struct Shape {
    tokens: usize,
    cols: usize,
    experts: usize,
    top_k: usize,
}

#[derive(Debug, PartialEq)]
struct Results {
    logits: Vec<f32>,
    indices: Vec<u32>,
    weights: Vec<f32>,
    /// The weights that are not renormalised.
    of_all: Vec<f32>,
}

impl Shape {
    /// Runs twice, so that the second run finds what the first one left, once for each kind of weights.
    fn run<D: Device>(&self, device: &D, x: &[f32], w: &[f32]) -> Results {
        let (x, w) = (input(device, x), input(device, w));
        let mut done = Output::starting_with(device, &vec![0_u32; self.tokens]);
        let [first, second] = [Weighting::OfChosen, Weighting::OfAll].map(|weighting| {
            let mut logits = Output::new(device, self.tokens * self.experts);
            let mut indices = Output::new(device, self.tokens * self.top_k);
            let mut weights = Output::new(device, self.tokens * self.top_k);
            ok(MoeRouter::new(
                RouterInput::Rows(x.slice()),
                w.slice(),
                [self.experts, self.cols],
                logits.slice(),
                self.tokens,
                self.top_k,
            )
            .choice(RouterChoice::new(indices.slice(), weights.slice(), done.slice()))
            .weighting(weighting)
            .launch(device));
            (logits.read(), indices.read(), weights.read())
        });
        assert!(done.read().iter().all(|&count| count == 0));
        assert_bits("second run, logits", &second.0, &first.0);
        assert_same("second run, indices", &second.1, &first.1);
        Results { logits: first.0, indices: first.1, weights: first.2, of_all: second.2 }
    }

    fn expected(&self, x: &[f32], w: &[f32]) -> Results {
        let mut logits = vec![0.0; self.tokens * self.experts];
        let mut indices = vec![0; self.tokens * self.top_k];
        let [mut weights, mut of_all] = [(); 2].map(|()| vec![0.0; self.tokens * self.top_k]);
        for token in 0..self.tokens {
            for (weighting, weights) in [(Weighting::OfChosen, &mut weights), (Weighting::OfAll, &mut of_all)] {
                oracle::moe_router::moe_router(
                    &x[token * self.cols..][..self.cols],
                    w,
                    weighting,
                    &mut logits[token * self.experts..][..self.experts],
                    &mut indices[token * self.top_k..][..self.top_k],
                    &mut weights[token * self.top_k..][..self.top_k],
                );
            }
        }
        Results { logits, indices, weights, of_all }
    }

    /// Compares the router with a fused norm with the oracle, and with the kernel that norms.
    fn check_norm<D: Device>(&self, device: &D, what: &str, row: &norm::Row, w: &[f32], optional: bool, choose: bool) {
        let Shape { cols, experts, top_k, .. } = *self;
        let (what, w_device) = (format!("{self:?}, {what}"), input(device, w));
        let normed = row.normed();
        let mut uploaded = row.upload(device);
        let mut fixed: Output<D, FixedBlock> = Output::new(device, cols / BLOCK);
        let mut logits = Output::new(device, experts);
        let (mut indices, mut weights) = (Output::new(device, top_k), Output::new(device, top_k));
        let mut done = Output::starting_with(device, &[0_u32]);
        ok(MoeRouter::new(
            RouterInput::Norm(uploaded.fused(optional), fixed.slice()),
            w_device.slice(),
            [experts, cols],
            logits.slice(),
            1,
            top_k,
        )
        .choice(choose.then(|| RouterChoice::new(indices.slice(), weights.slice(), done.slice())))
        .launch(device));
        let (separate_row, separate_fixed) = uploaded.separate(device);
        assert_bits(&format!("{what}, normed by a launch"), &separate_row.read(), &normed.row);
        assert_blocks(&format!("{what}, fixed by a launch"), &separate_fixed.read(), &normed.digits);
        assert_blocks(&format!("{what}, fixed"), &fixed.read(), &normed.digits);
        if optional {
            assert_bits(&format!("{what}, normed"), &uploaded.out.read(), &normed.row);
        } else {
            uploaded.out.assert_untouched(&what);
        }
        let expected = self.expected(&normed.row, w);
        let separate = self.run(device, &normed.row, w);
        assert_results(&format!("{what}, two launches"), &separate, &expected);
        if choose {
            assert_bits(&format!("{what}, logits"), &logits.read(), &expected.logits);
            assert_same(&format!("{what}, indices"), &indices.read(), &expected.indices);
            assert_bits(&format!("{what}, weights"), &weights.read(), &expected.weights);
        } else {
            assert_bits(&format!("{what}, logits"), &logits.read(), &expected.logits);
            indices.assert_untouched(&what);
            weights.assert_untouched(&what);
        }
        assert_same(&what, &done.read(), &[0]);
    }
}

#[track_caller]
fn assert_results(what: &str, got: &Results, expected: &Results) {
    assert_bits(&format!("{what}, logits"), &got.logits, &expected.logits);
    assert_same(&format!("{what}, indices"), &got.indices, &expected.indices);
    assert_bits(&format!("{what}, weights"), &got.weights, &expected.weights);
    assert_bits(&format!("{what}, weights of all"), &got.of_all, &expected.of_all);
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(22);
    let shapes = size.shapes(
        &[
            (1, 256, 1, 1),
            (8, 768, 7, 3),
            (9, 2048, 16, 8),
            (1, 2048, 128, 8),
            (2, 256, 512, 32),
            (17, 256, 33, 32),
            (8, 4352, 5, 5),
        ],
        &[(70, 2048, 128, 8), (3, 16384, 512, 32)],
    );
    for (tokens, cols, experts, top_k) in shapes {
        let shape = Shape { tokens, cols, experts, top_k };
        let w = random.gaussians(experts * cols);
        let x = Activations::rows(&mut random, 0, tokens, cols);
        let got = shape.run(device, &x, &w);
        assert_results(&format!("{shape:?}"), &got, &shape.expected(&x, &w));
        for (token, x) in x.chunks(cols).enumerate() {
            if x.iter().any(|x| x.is_nan()) {
                assert_nan("logits", &got.logits[token * experts..][..experts]);
                assert_nan("weights", &got.weights[token * top_k..][..top_k]);
            }
        }
    }
}

/// Rows of weights and of activations whose sum shows its order.
fn sums_in_one_order<D: Device>(device: &D, _: Size) {
    for cols in [256, 512, 768, 2048, 2304, 4096, 4352] {
        let rows = pins::dot_rows(cols);
        let count = rows.len();
        let ones: Vec<f32> = [1.0, -2.0, 0.5].into_iter().flat_map(|factor| vec![factor; cols]).collect();
        let shape = Shape { tokens: 3, cols, experts: count, top_k: count.min(2) };
        assert_results("weights", &shape.run(device, &ones, &rows.concat()), &shape.expected(&ones, &rows.concat()));
        let shape = Shape { tokens: count, cols, experts: 3, top_k: 2 };
        assert_results("rows", &shape.run(device, &rows.concat(), &ones), &shape.expected(&rows.concat(), &ones));
    }
}

/// Logits whose weights show how probabilities are summed up and divided, and gaps at which exp becomes 0.
fn weighs_in_rank_order<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(230);
    let gaps = (0..8).map(|case| {
        let mut logits = vec![f32::from(case as u8); 24];
        logits[1..].iter_mut().for_each(|logit| *logit -= 103.0 + random.below(1 << 16) as f32 / (1 << 16) as f32);
        logits
    });
    let gaps: Vec<Vec<f32>> = gaps.collect();
    for (case, logits) in pins::router_logits().into_iter().chain(gaps).enumerate() {
        let shape = Shape { tokens: 1, cols: 256, experts: logits.len(), top_k: logits.len() };
        // In an order that is not the ranks'.
        let order = random.distinct(logits.len(), logits.len());
        let (mut x, mut w) = (vec![0.0; 256], vec![0.0; logits.len() * 256]);
        x[17] = 1.0;
        for (&expert, logit) in order.iter().zip(logits) {
            w[expert as usize * 256 + 17] = logit;
        }
        assert_results(&format!("logits {case}"), &shape.run(device, &x, &w), &shape.expected(&x, &w));
    }
}

/// NaNs in both operands, none of them the one that is stored.
fn stores_one_nan<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(231);
    let shape = Shape { tokens: 5, cols: 512, experts: 6, top_k: 3 };
    let (mut x, mut w) = (random.gaussians(5 * 512), random.gaussians(6 * 512));
    for (token, nan) in NANS.into_iter().enumerate() {
        x[token * 512 + 100] = nan;
    }
    let got = shape.run(device, &x, &w);
    assert_results("rows", &got, &shape.expected(&x, &w));
    assert_stored_nan("logits", &got.logits[..4 * 6]);
    assert_stored_nan("weights", &got.weights[..4 * 3]);
    for (expert, nan) in NANS.into_iter().enumerate() {
        w[expert * 512 + 300] = nan;
    }
    let got = shape.run(device, &x, &w);
    assert_results("experts", &got, &shape.expected(&x, &w));
    assert_stored_nan("logits", &got.logits[4 * 6..][..4]);
    assert_stored_nan("weights", &got.weights);
}

/// Equal experts, experts that are zero with either sign, and one with a NaN, which comes first.
fn breaks_ties_by_index<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(23);
    let shape = Shape { tokens: 3, cols: 256, experts: 96, top_k: 12 };
    let mut w = Vec::new();
    let patterns: Vec<Vec<f32>> = (0..4).map(|_| random.gaussians(shape.cols)).collect();
    for expert in 0..shape.experts {
        match expert % 6 {
            4 => w.extend(vec![-0.0; shape.cols]),
            5 => w.extend(vec![0.0; shape.cols]),
            pattern => w.extend(&patterns[pattern]),
        }
    }
    let mut x = random.gaussians(2 * shape.cols);
    x.extend(vec![0.0; shape.cols]);
    let got = shape.run(device, &x, &w);
    assert_results("equal experts", &got, &shape.expected(&x, &w));
    assert_same("all equal", &got.indices[2 * 12..], &(0..12).collect::<Vec<u32>>());
    assert_bits("all equal", &got.weights[2 * 12..], &[(1.0_f64 / 12.0) as f32; 12]);
    w[70 * shape.cols + 3] = f32::NAN;
    w[80 * shape.cols + 3] = f32::from_bits(0xffc0_0001);
    w[90 * shape.cols + 3] = f32::NEG_INFINITY;
    let got = shape.run(device, &x, &w);
    assert_results("NaN", &got, &shape.expected(&x, &w));
    assert_same("NaN", &got.indices[..2], &[70, 80]);
    assert_nan("NaN", &got.weights[..12]);
}

/// Logits that differ by one unit in the last place are ordered by it, whatever their indices.
fn tells_neighbouring_logits_apart<D: Device>(device: &D, _: Size) {
    let shape = Shape { tokens: 1, cols: 256, experts: 64, top_k: 5 };
    let mut x = vec![0.0; shape.cols];
    x[17] = 1.0;
    for value in [1.0_f32, -1.0, 3.7e-5, -8.25e11, f32::MIN_POSITIVE] {
        let (up, down) = (value.next_up(), value.next_down());
        let logit = |expert: usize| match expert {
            40 => up.next_up(),
            3 | 63 => up,
            5 => down,
            12 => value,
            _ => down.next_down(),
        };
        let mut w = vec![0.0; shape.experts * shape.cols];
        for expert in 0..shape.experts {
            w[expert * shape.cols + 17] = logit(expert);
        }
        let got = shape.run(device, &x, &w);
        assert_results(&format!("around {value:e}"), &got, &shape.expected(&x, &w));
        assert_same(&format!("around {value:e}"), &got.indices, &[40, 3, 63, 12, 5]);
    }
}

fn batch_equals_single_tokens<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(24);
    for (tokens, cols, experts, top_k) in size.shapes(&[(9, 512, 30, 4)], &[(64, 2048, 128, 8)]) {
        let shape = Shape { tokens, cols, experts, top_k };
        let w = random.gaussians(experts * cols);
        let x = Activations::rows(&mut random, 0, tokens, cols);
        let together = shape.run(device, &x, &w);
        for token in 0..tokens {
            let alone = Shape { tokens: 1, ..shape }.run(device, &x[token * cols..][..cols], &w);
            let part = Results {
                logits: together.logits[token * experts..][..experts].to_vec(),
                indices: together.indices[token * top_k..][..top_k].to_vec(),
                weights: together.weights[token * top_k..][..top_k].to_vec(),
                of_all: together.of_all[token * top_k..][..top_k].to_vec(),
            };
            assert_results("single token", &part, &alone);
        }
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let x: Buffer<D, f32> = Buffer::zeroed(device, 513 * 256).unwrap();
    let w: Buffer<D, f32> = Buffer::zeroed(device, 513 * 256).unwrap();
    let (mut logits, mut weights) = (Buffer::zeroed(device, 1024).unwrap(), Buffer::zeroed(device, 1024).unwrap());
    let (mut indices, mut done) = (Buffer::zeroed(device, 1024).unwrap(), Buffer::zeroed(device, 2).unwrap());
    let x_at = x.slice().as_ptr() as u64;
    let mut run = |x: u64, tokens, cols, experts, top_k| {
        // SAFETY: as long as the buffer says, or refused before anything is read.
        let x = unsafe { Slice::from_raw(device, x, 513 * 256) };
        MoeRouter::new(RouterInput::Rows(x), w.slice(), [experts, cols], logits.slice_mut(), tokens, top_k)
            .choice(RouterChoice::new(indices.slice_mut(), weights.slice_mut(), done.slice_mut()))
            .launch(device)
    };
    assert_status(run(0, 1, 256, 8, 2), sys::KQM_NULL_POINTER);
    assert_status(run(x_at + 4, 1, 256, 8, 2), sys::KQM_MISALIGNED);
    let bad = [
        (0, 256, 8, 2),
        (1, 0, 8, 2),
        (1, 100, 8, 2),
        (1, 256, 0, 1),
        (1, 256, 513, 2),
        (1, 256, 8, 0),
        (1, 256, 8, 9),
    ];
    for (tokens, cols, experts, top_k) in bad.into_iter().chain([(1, 256, 64, 33), (1, 16640, 1, 1)]) {
        assert_status(run(x_at, tokens, cols, experts, top_k), sys::KQM_BAD_SHAPE);
    }
    assert_invalid(run(x_at, 3, 256, 8, 2));
    assert_eq!(status_without_arguments!(device, moe_router), sys::KQM_NULL_POINTER);
    ok(run(x_at, 2, 256, 512, 32));
    ok(device.synchronize());
}

/// The fused norm gives what `rms_norm` and the router give, and leaves the normed row as floats and as fixed point;
/// with or without the choice of experts.
fn takes_in_the_norm<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(41);
    // Fewer experts than runs of 256 columns, as many, and more.
    let shapes = size.shapes(
        &[(256, 1, 1), (4096, 1, 1), (4096, 5, 2), (768, 3, 3), (2048, 16, 4), (2304, 7, 3), (512, 512, 32)],
        &[(2048, 128, 8), (4096, 512, 32)],
    );
    for (cols, experts, top_k) in shapes {
        let shape = Shape { tokens: 1, cols, experts, top_k };
        let w = random.gaussians(experts * cols);
        for (case, kind) in Activations::ALL.into_iter().enumerate() {
            let row = norm::Row::random(&mut random, kind, cols);
            shape.check_norm(device, &format!("{kind:?}"), &row, &w, case % 2 == 0, case % 4 < 2);
        }
    }
}

/// Rows whose norm shows the order of its sum, for every number of runs that the fused norm has room for; and rows with NaNs.
fn norms_in_one_order<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(410);
    let [spoilt, narrow] = [norm::Row::spoilt, norm::Row::narrow].map(|rows| rows(&mut random, 512));
    let mut check = |rows: &[norm::Row]| {
        let shape = Shape { tokens: 1, cols: rows[0].x.len(), experts: 3, top_k: 2 };
        let w = random.gaussians(shape.experts * shape.cols);
        for (index, row) in rows.iter().enumerate() {
            shape.check_norm(device, &format!("row {index}"), row, &w, true, true);
        }
    };
    check(&spoilt);
    check(&narrow);
    for cols in [256, 512, 768, 1024, 2048, 2304, 4096] {
        check(&norm::Row::telling(&mut Random::new(411), cols));
    }
    // The logits' sum, too: the norm of a row of ones is the row, of weights of 1 and with eps = 0.
    for cols in [256, 512, 768, 2048, 2304, 4096] {
        let rows = pins::dot_rows(cols);
        let shape = Shape { tokens: 1, cols, experts: rows.len(), top_k: 1 };
        let row = norm::Row { x: vec![1.0; cols], weight: vec![1.0; cols], eps: 0.0, width: cols };
        shape.check_norm(device, "logits", &row, &rows.concat(), true, true);
    }
}

fn refuses_bad_norms<D: Device>(device: &D, _: Size) {
    let floats: Buffer<D, f32> = Buffer::zeroed(device, 8192).unwrap();
    let mut logits: Buffer<D, f32> = Buffer::zeroed(device, 64).unwrap();
    let mut fixed: Buffer<D, FixedBlock> = Buffer::zeroed(device, 32).unwrap();
    let (at, fixed_at) = (floats.slice().as_ptr() as u64, fixed.slice_mut().as_ptr() as u64);
    let mut run = |norm: Option<[(u64, usize); 3]>, fixed: (u64, usize), tokens, cols| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let x = unsafe {
            match norm {
                None => RouterInput::Rows(floats.slice()),
                Some([x, weight, out]) => RouterInput::Norm(
                    FusedNorm::new(
                        Slice::from_raw(device, x.0, x.1),
                        Slice::from_raw(device, weight.0, weight.1),
                        norm::EPS,
                        cols,
                    )
                    .out(SliceMut::from_raw(device, out.0, out.1)),
                    SliceMut::from_raw(device, fixed.0, fixed.1),
                ),
            }
        };
        let logits = logits.slice_mut();
        MoeRouter::new(x, floats.slice(), [1, cols], logits, tokens, 1).launch(device)
    };
    let (whole, blocks) = ((at, 8192), (fixed_at, 32));
    // Without a choice a batch has nobody to choose for it.
    assert_status(run(None, blocks, 2, 256), sys::KQM_BAD_SHAPE);
    assert_status(run(Some([whole; 3]), blocks, 2, 256), sys::KQM_BAD_SHAPE);
    assert_status(run(Some([whole; 3]), blocks, 1, FusedNorm::MAX_COLS + BLOCK), sys::KQM_BAD_SHAPE);
    assert_status(run(Some([(0, 256), whole, whole]), blocks, 1, 256), sys::KQM_NULL_POINTER);
    assert_status(run(Some([whole, (0, 256), whole]), blocks, 1, 256), sys::KQM_NULL_POINTER);
    assert_status(run(Some([whole; 3]), (fixed_at + 8, 1), 1, 256), sys::KQM_MISALIGNED);
    assert_invalid(run(Some([whole; 3]), (fixed_at, 1), 1, 512));
    for operand in 0..3 {
        let mut operands = [whole; 3];
        operands[operand] = (at + 4, 256);
        assert_status(run(Some(operands), blocks, 1, 256), sys::KQM_MISALIGNED);
        operands[operand] = (at, 255);
        assert_invalid(run(Some(operands), blocks, 1, 256));
    }
}
