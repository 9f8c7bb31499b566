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
    batch_equals_single_tokens,
    takes_in_the_norm,
    leaves_out_empty_matrices,
    refuses_bad_arguments,
    refuses_bad_norms,
);

fn run<D: Device>(device: &D, w: &[Matrix<D>; 3], x: Input<'_>, tokens: usize) -> [Vec<f32>; 3] {
    let mut y = [0, 1, 2].map(|i| Output::new(device, tokens * w[i].rows()));
    ok(Qkv { w: w.each_ref(), x, y: y.each_mut().map(Output::slice), tokens }.launch(device));
    y.map(|y| y.read())
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(8);
    let shapes = size.shapes(
        &[([40, 17, 1], 256), ([16, 15, 33], 768), ([17, 16, 15], 2048), ([33, 1, 16], 4352)],
        &[([4096, 512, 512], 2048)],
    );
    let tokens = size.shapes(&[1, 2, 3, 8, 9, 17], &[70]);
    for (rows, cols) in shapes {
        for mix in 0..8 {
            let kinds = [0, 1, 2].map(|i| if mix >> i & 1 == 0 { Q4K } else { Q6K });
            let w = [0, 1, 2].map(|i| Weights::random(&mut random, kinds[i], 1, rows[i], cols));
            let matrices = w.each_ref().map(|w| w.upload(device));
            // On the emulation every mix has some of the numbers of tokens.
            let step = if size == Size::Small { 2 } else { 1 };
            for (case, &tokens) in tokens.iter().enumerate().skip(mix % step).step_by(step) {
                let x = Activations::rows(&mut random, case + mix, tokens, cols);
                let (blocks, digits) = fixed_blocks(&x);
                let digits = input(device, &digits);
                let got = run(device, &matrices, Input::Fixed(digits.slice()), tokens);
                let mut expected = rows.map(|rows| vec![0.0; tokens * rows]);
                let [q, k, v] = &mut expected;
                oracle::qkv::qkv(w.each_ref().map(|w| w.expert(0)), cols, &blocks, [q, k, v]);
                for i in 0..3 {
                    let what = format!("{kinds:?} [{rows:?}, {cols}], {tokens} tokens, matrix {i}");
                    assert_bits(&what, &got[i], &expected[i]);
                    for (x, y) in x.chunks(cols).zip(got[i].chunks(rows[i])) {
                        if has_non_finite(x) {
                            assert_nan(&what, y);
                        }
                    }
                }
            }
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
        for mix in 0..8 {
            let kinds = [0, 1, 2].map(|i| if mix >> i & 1 == 0 { Q4K } else { Q6K });
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
                let tap = case % 4 < 2;
                let got = run(device, &matrices, Input::Norm(uploaded.fused(tap)), 1);
                if tap {
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
    let oracle::Matrix::Q6K(blocks) = w.expert(0) else { unreachable!() };
    let tiles = input(device, &oracle::repack::q6_k(blocks, 512));
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
        Qkv { w: [&good, &good, third], x: Input::Fixed(x), y, tokens }.launch(device)
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
            let norm = FusedNorm { x, weight, eps: norm::EPS, out: Some(SliceMut::from_raw(device, out.0, out.1)) };
            Qkv { w: [w, w, w], x: Input::Norm(norm), y, tokens }.launch(device)
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
