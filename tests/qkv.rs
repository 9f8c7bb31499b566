//! `qkv` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::{BLOCK, TensorType::*};
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{Activations as Input, FixedBlock, FusedNorm, Matrix, Qkv};
use kquant_moe::{oracle, sys};

on_devices!(
    equals_the_oracle,
    takes_any_number_of_tokens,
    takes_many_tokens,
    sums_in_one_order,
    stores_one_nan,
    batch_equals_single_tokens,
    takes_in_the_norm,
    norms_in_one_order,
    leaves_out_empty_matrices,
    refuses_bad_arguments,
    refuses_bad_norms,
);

fn run<D: Device>(device: &D, w: &[Matrix<D>; 3], x: Input<'_>, tokens: usize) -> [Vec<f32>; 3] {
    let mut y = [0, 1, 2].map(|i| Output::new(device, tokens * w[i].rows()));
    ok(Qkv::new(w.each_ref(), x, y.each_mut().map(Output::slice), tokens).launch(device));
    y.map(|y| y.read())
}

/// Compares what the kernel makes of the activations with the oracle, and returns it.
fn check<D: Device>(device: &D, what: &str, w: &[Weights; 3], matrices: &[Matrix<D>; 3], x: &[f32]) -> [Vec<f32>; 3] {
    let cols = w[0].cols;
    let tokens = x.len() / cols;
    let (blocks, digits) = fixed_blocks(x);
    let digits = input(device, &digits);
    let got = run(device, matrices, Input::Fixed(digits.slice()), tokens);
    assert_products(&format!("{what}, {tokens} tokens"), w, &blocks, &got);
    got
}

/// The products of the matrices with those activations.
fn assert_products(what: &str, w: &[Weights; 3], x: &[oracle::FixedBlock], got: &[Vec<f32>; 3]) {
    let (cols, kinds, rows) = (w[0].cols, w.each_ref().map(|w| w.kind), w.each_ref().map(|w| w.rows));
    let mut expected = rows.map(|rows| vec![0.0; x.len() / (cols / BLOCK) * rows]);
    let [q, k, v] = &mut expected;
    oracle::qkv::qkv(w.each_ref().map(|w| w.expert(0)), cols, x, [q, k, v]);
    for i in 0..3 {
        assert_bits(&format!("{kinds:?} [{rows:?}, {cols}], matrix {i}, {what}"), &got[i], &expected[i]);
    }
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(8);
    let shapes = size.shapes(
        &[
            ([40, 17, 1], 256),
            ([16, 15, 33], 768),
            ([17, 16, 15], 2048),
            ([33, 1, 16], 4352),
            // More than two groups of 16 super-blocks.
            ([1, 3, 5], 8448),
        ],
        &[([4096, 512, 512], 2048)],
    );
    let tokens = size.shapes(&[1, 2, 3, 8, 9, 17], &[70]);
    for (rows, cols) in shapes {
        for (mix, kinds) in mixes().into_iter().enumerate() {
            let w = [0, 1, 2].map(|i| Weights::random(&mut random, kinds[i], 1, rows[i], cols));
            let matrices = w.each_ref().map(|w| w.upload(device));
            // On the emulation every mix has some of the numbers of tokens.
            let step = if size == Size::Small { 2 } else { 1 };
            for (case, &tokens) in tokens.iter().enumerate().skip(mix % step).step_by(step) {
                let x = Activations::rows(&mut random, case + mix, tokens, cols);
                let got = check(device, "random", &w, &matrices, &x);
                for i in 0..3 {
                    for (x, y) in x.chunks(cols).zip(got[i].chunks(rows[i])) {
                        if has_non_finite(x) {
                            assert_nan("of what is not finite", y);
                        }
                    }
                }
            }
        }
    }
}

/// Numbers of tokens that leave any number of them for the last group of eight.
fn takes_any_number_of_tokens<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(80);
    let w = [(Q4K, 65), (Q6K, 17), (Q4K, 2)].map(|(kind, rows)| Weights::random(&mut random, kind, 1, rows, 512));
    let matrices = w.each_ref().map(|w| w.upload(device));
    for tokens in (3..=17).chain([24, 25]) {
        check(device, "any number", &w, &matrices, &random.gaussians(tokens * 512));
    }
}

/// So many tokens that warpgroups multiply them, where there are any: a type each, matrices of one CTA and of several, and one that is left
/// out.
fn takes_many_tokens<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(82);
    for (case, (rows, blocks)) in
        [([65, 17, 2], 2), ([200, 33, 193], 1), ([16, 100, 40], 5), ([20, 250, 1], 3)].into_iter().enumerate()
    {
        for kinds in [[Q4K, Q4K, Q6K], [Q5K, IQ4XS, Q6K], [Q6K, Q4K, Q5K]] {
            let w = [0, 1, 2].map(|i| Weights::random(&mut random, kinds[i], 1, rows[i], blocks * BLOCK));
            let matrices = w.each_ref().map(|w| w.upload(device));
            let tokens = [64, 65, 81, 96][case];
            let x = Activations::rows(&mut random, case, tokens, blocks * BLOCK);
            check(device, "many tokens", &w, &matrices, &x);
        }
    }
}

/// On each of the launcher's paths: sums over super-blocks whose order shows, and super-blocks in which all but a rounding error cancels.
fn sums_in_one_order<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(81);
    for (case, blocks) in [1, 2, 7, 8, 9, 10, 12, 15, 16, 17, 33].into_iter().enumerate() {
        let kinds = [[Q4K, Q6K, Q4K], [Q6K, Q4K, Q6K]][case % 2];
        let (rows, cols) = ([40, 17, 18], blocks * BLOCK);
        let w = [0, 1, 2].map(|i| Weights::uniform(&mut random, kinds[i], 1, rows[i], cols));
        let matrices = w.each_ref().map(|w| w.upload(device));
        let x: Vec<Vec<f32>> =
            pins::sequences(blocks).iter().map(|numbers| one_a_block(&mut random, numbers)).collect();
        for (index, x) in x.iter().enumerate() {
            check(device, &format!("sequence {index}"), &w, &matrices, x);
        }
        for pair in x.windows(2) {
            check(device, "two sequences", &w, &matrices, &pair.concat());
        }
        check(device, "all sequences", &w, &matrices, &x.concat());
        let w = rows.map(|rows| Weights::cancelling(&mut random, 1, rows, cols));
        let matrices = w.each_ref().map(|w| w.upload(device));
        for tokens in [1, 2, 3] {
            let x: Vec<f32> = (0..tokens * blocks)
                .flat_map(|_| [random.numbers(1, BLOCK / 2), random.numbers(-14, BLOCK / 2)].concat())
                .collect();
            check(device, "d T = dmin M", &w, &matrices, &x);
        }
    }
}

/// NaNs in weights, activations, the row and its norm's weights, none of them the one that is stored.
fn stores_one_nan<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(82);
    for blocks in [2, 9, 17] {
        let rows = [20, 17, 3];
        let mut w = [0, 1, 2].map(|i| Weights::random(&mut random, [Q4K, Q6K, Q4K][i], 1, rows[i], blocks * BLOCK));
        w.iter_mut().for_each(|w| assert!(w.spoil()));
        let matrices = w.each_ref().map(|w| w.upload(device));
        for tokens in [1, 2, 3] {
            let mut x = random.gaussians(tokens * blocks * BLOCK);
            let got = check(device, "NaN in weights", &w, &matrices, &x);
            for (got, rows) in got.iter().zip(rows) {
                got.chunks(rows).for_each(|got| assert_stored_nan("weights", &got[1..3]));
            }
            x[(tokens - 1) * blocks * BLOCK + 3] = NANS[tokens];
            let got = check(device, "NaN in activations", &w, &matrices, &x);
            for (got, rows) in got.iter().zip(rows) {
                assert_stored_nan("activations", &got[(tokens - 1) * rows..]);
            }
        }
    }
    let w = [0, 1, 2].map(|_| Weights::random(&mut random, Q4K, 1, 17, 512));
    for row in norm::Row::spoilt(&mut random, 512) {
        check_norm(device, "NaN in the norm", &w, &row);
    }
    for row in norm::Row::narrow(&mut random, 512) {
        check_norm(device, &format!("{} that count", row.width), &w, &row);
    }
}

/// The fused norm of a row against the oracle.
fn check_norm<D: Device>(device: &D, what: &str, w: &[Weights; 3], row: &norm::Row) {
    let matrices = w.each_ref().map(|w| w.upload(device));
    let normed = row.normed();
    let mut uploaded = row.upload(device);
    let got = run(device, &matrices, Input::Norm(uploaded.fused(true)), 1);
    assert_bits(&format!("{what}, normed"), &uploaded.out.read(), &normed.row);
    assert_products(what, w, &normed.blocks, &got);
}

/// Rows whose norm shows the order of its sum, for every number of runs that the fused norm has room for.
fn norms_in_one_order<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(83);
    for cols in [256, 512, 768, 1024, 2048, 2304, 4096] {
        let w = [0, 1, 2].map(|_| Weights::random(&mut random, Q6K, 1, 3, cols));
        for (index, row) in norm::Row::telling(&mut random, cols).iter().enumerate() {
            check_norm(device, &format!("row {index}"), &w, row);
        }
    }
}

fn batch_equals_single_tokens<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(9);
    for (rows, cols, tokens) in size.shapes(&[([33, 17, 2], 768, 11)], &[([4096, 512, 512], 2048, 64)]) {
        let kinds = [Q4K, Q6K, Q4K];
        let w = [0, 1, 2].map(|i| Weights::random(&mut random, kinds[i], 1, rows[i], cols).upload(device));
        let x = input(device, &fixed_blocks(&Activations::rows(&mut random, 0, tokens, cols)).1);
        let batch = run(device, &w, Input::Fixed(x.slice()), tokens);
        for token in 0..tokens {
            let blocks = cols / BLOCK;
            let single = run(device, &w, Input::Fixed(x.part(token * blocks, blocks).unwrap()), 1);
            for i in 0..3 {
                assert_bits("single token", &batch[i][token * rows[i]..][..rows[i]], &single[i]);
            }
        }
    }
}

/// The fused norm gives what `rms_norm` and `qkv` give, for every mix of types and distribution of the row.
fn takes_in_the_norm<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(40);
    let shapes = size.shapes(
        &[([40, 17, 1], 256), ([16, 15, 33], 768), ([17, 16, 15], 2048), ([1, 1, 16], 2304), ([33, 1, 16], 4096)],
        &[([4096, 512, 512], 2048)],
    );
    for (rows, cols) in shapes {
        for (mix, kinds) in mixes().into_iter().enumerate() {
            let w = [0, 1, 2].map(|i| Weights::random(&mut random, kinds[i], 1, rows[i], cols));
            let matrices = w.each_ref().map(|w| w.upload(device));
            for (case, kind) in Activations::ALL.into_iter().enumerate() {
                // Of two neighbouring mixes one has the distribution on the emulation.
                if size == Size::Small && (case + mix) % 2 == 1 {
                    continue;
                }
                let what = format!("{kinds:?} [{rows:?}, {cols}], {kind:?}");
                let row = norm::Row::random(&mut random, kind, cols);
                let normed = row.normed();
                let mut uploaded = row.upload(device);
                let optional = case % 4 < 2;
                let got = run(device, &matrices, Input::Norm(uploaded.fused(optional)), 1);
                if optional {
                    assert_bits(&format!("{what}, normed"), &uploaded.out.read(), &normed.row);
                } else {
                    uploaded.out.assert_untouched(&what);
                }
                let (_, fixed) = uploaded.separate(device);
                let separate = run(device, &matrices, Input::Fixed(fixed.for_reading()), 1);
                let mut expected = rows.map(|rows| vec![0.0; rows]);
                let [q, k, v] = &mut expected;
                oracle::qkv::qkv(w.each_ref().map(|w| w.expert(0)), cols, &normed.blocks, [q, k, v]);
                for i in 0..3 {
                    assert_bits(&format!("{what}, matrix {i}"), &got[i], &expected[i]);
                    assert_bits(&format!("{what}, matrix {i}, two launches"), &separate[i], &expected[i]);
                }
            }
        }
    }
}

/// The wrapper has no empty matrices; other callers of the launcher may.
fn leaves_out_empty_matrices<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(10);
    let w = Weights::random(&mut random, Q6K, 1, 20, 512);
    let tiles = input(device, &oracle::repack::repack(w.expert(0), 512));
    let (x, digits) = fixed_blocks(&random.gaussians(512));
    let digits = input(device, &digits);
    let mut expected = vec![0.0; 20];
    oracle::product(w.expert(0), 512, &x, &mut expected);
    for place in 0..3 {
        let mut out: Output<D, f32> = Output::new(device, 20);
        let mut args = sys::kqm_qkv_args { x: digits.slice().as_ptr(), tokens: 1, ..Default::default() };
        args.w[place] = sys::kqm_matrix {
            tiles: tiles.slice().as_ptr().cast(),
            type_: sys::KQM_TYPE_Q6_K,
            rows: 20,
            cols: 512,
            experts: 1,
        };
        args.y[place] = out.slice().as_ptr();
        ok(device.activate());
        // SAFETY: the operands are as long as the shapes say.
        let status = unsafe { device.kernels().qkv.unwrap()(&args, device.stream()) };
        assert_eq!(status, sys::KQM_OK);
        assert_bits("one matrix", &out.read(), &expected);
    }
    let args = sys::kqm_qkv_args { x: digits.slice().as_ptr(), tokens: 1, ..Default::default() };
    // SAFETY: the launcher refuses.
    let status = unsafe { device.kernels().qkv.unwrap()(&args, device.stream()) };
    assert_eq!(status, sys::KQM_BAD_SHAPE);
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let matrix = |cols, experts| Matrix::zeroed(device, Q4K, 16, cols, experts).unwrap();
    let (good, wide, stack) = (matrix(256, 1), matrix(512, 1), matrix(256, 2));
    let x: Buffer<D, FixedBlock> = Buffer::zeroed(device, 4).unwrap();
    let y: Buffer<D, f32> = Buffer::zeroed(device, 64).unwrap();
    let (x_at, y_at) = (x.slice().as_ptr() as u64, y.slice().as_ptr() as u64);
    let run = |third, x_at: u64, y_at: u64, tokens| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (x, y) =
            unsafe { (Slice::from_raw(device, x_at, 4), [0, 0, 0].map(|_| SliceMut::from_raw(device, y_at, 64))) };
        Qkv::new([&good, &good, third], Input::Fixed(x), y, tokens).launch(device)
    };
    assert_invalid(run(&wide, x_at, y_at, 1));
    assert_status(run(&stack, x_at, y_at, 1), sys::KQM_BAD_SHAPE);
    assert_status(run(&good, x_at, y_at, 0), sys::KQM_BAD_SHAPE);
    assert_status(run(&good, 0, y_at, 1), sys::KQM_NULL_POINTER);
    assert_status(run(&good, x_at, 0, 1), sys::KQM_NULL_POINTER);
    assert_status(run(&good, x_at + 4, y_at, 1), sys::KQM_MISALIGNED);
    assert_invalid(run(&good, x_at, y_at, 5));
    assert_eq!(status_without_arguments!(device, qkv), sys::KQM_NULL_POINTER);
}

fn refuses_bad_norms<D: Device>(device: &D, _: Size) {
    let good = Matrix::zeroed(device, Q4K, 16, 256, 1).unwrap();
    let long = Matrix::zeroed(device, Q4K, 16, FusedNorm::MAX_COLS + BLOCK, 1).unwrap();
    let floats: Buffer<D, f32> = Buffer::zeroed(device, 8192).unwrap();
    let mut y: Buffer<D, f32> = Buffer::zeroed(device, 64).unwrap();
    let y_at = y.slice_mut().as_ptr() as u64;
    let at = floats.slice().as_ptr() as u64;
    let run = |w: &Matrix<D>, [x, weight, out]: [(u64, usize); 3], tokens| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        unsafe {
            let y = [0, 0, 0].map(|_| SliceMut::from_raw(device, y_at, 64));
            let (x, weight) = (Slice::from_raw(device, x.0, x.1), Slice::from_raw(device, weight.0, weight.1));
            let norm = FusedNorm::new(x, weight, norm::EPS, 256).out(SliceMut::from_raw(device, out.0, out.1));
            Qkv::new([w, w, w], Input::Norm(norm), y, tokens).launch(device)
        }
    };
    let whole = (at, 8192);
    assert_status(run(&good, [whole, whole, whole], 2), sys::KQM_BAD_SHAPE);
    assert_status(run(&long, [whole, whole, whole], 1), sys::KQM_BAD_SHAPE);
    assert_status(run(&good, [(0, 256), whole, whole], 1), sys::KQM_NULL_POINTER);
    assert_status(run(&good, [whole, (0, 256), whole], 1), sys::KQM_NULL_POINTER);
    for operand in 0..3 {
        let mut operands = [whole; 3];
        operands[operand] = (at + 4, 256);
        assert_status(run(&good, operands, 1), sys::KQM_MISALIGNED);
        operands[operand] = (at, 255);
        assert_invalid(run(&good, operands, 1));
    }
}
