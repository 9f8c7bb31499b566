//! `rms_norm` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::BLOCK;
use kquant_moe::device::{Buffer, Device, Slice};
use kquant_moe::kernels::RmsNorm;
use kquant_moe::{oracle, sys};

on_devices!(
    equals_the_oracle,
    norms_in_one_order,
    norms_what_counts,
    stores_one_nan,
    batch_equals_single_tokens,
    refuses_bad_arguments,
);

/// Compares what the kernel makes of a row, as floats and as fixed point, with the oracle; returns the floats.
fn check<D: Device>(device: &D, what: &str, row: &norm::Row) -> Vec<f32> {
    let normed = row.normed();
    let (out, fixed) = row.upload(device).separate(device);
    let (what, out) = (format!("{} columns, {what}", row.x.len()), out.read());
    assert_bits(&what, &out, &normed.row);
    assert_blocks(&what, &fixed.read(), &normed.digits);
    out
}

/// Rows whose norm shows the order of its sum.
fn norms_in_one_order<D: Device>(device: &D, _: Size) {
    for cols in [256, 512, 768, 1024, 2048, 2304, 4096, 4352] {
        for (index, row) in norm::Row::telling(&mut Random::new(51), cols).iter().enumerate() {
            check(device, &format!("row {index}"), row);
        }
    }
}

/// Rows of fewer values than columns: the mean is of those that count.
fn norms_what_counts<D: Device>(device: &D, _: Size) {
    for cols in [256, 512, 2304] {
        for row in norm::Row::narrow(&mut Random::new(53), cols) {
            check(device, &format!("{} that count", row.width), &row);
        }
    }
}

/// NaNs in the row and in the weights, none of them the one that is stored.
fn stores_one_nan<D: Device>(device: &D, _: Size) {
    for cols in [256, 4352] {
        for row in norm::Row::spoilt(&mut Random::new(52), cols) {
            let out = check(device, "NaN", &row);
            let lost = out.iter().copied().filter(|y| y.is_nan()).collect::<Vec<_>>();
            assert!(!lost.is_empty());
            assert_stored_nan("NaN", &lost);
        }
    }
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(5);
    let shapes = size.shapes(
        &[(1, 256), (8, 768), (2, 2048), (3, 4096), (2, 4352), (1, 16384)],
        &[(1, 2048), (70, 2048), (64, 4096)],
    );
    for (tokens, cols) in shapes {
        let weight = random.gaussians(cols);
        for (case, kind) in Activations::ALL.into_iter().enumerate() {
            let x: Vec<f32> = (0..tokens).flat_map(|_| kind.row(&mut random, cols)).collect();
            for eps in [1e-6, 0.0] {
                let mut expected = vec![0.0; tokens * cols];
                for (x, y) in x.chunks(cols).zip(expected.chunks_mut(cols)) {
                    oracle::rms_norm::rms_norm(x, &weight, cols, eps, y);
                }
                let (with_out, with_fixed) = [(true, true), (true, false), (false, true)][case % 3];
                let (x_device, weight_device) = (input(device, &x), input(device, &weight));
                let (mut out, mut fixed) =
                    (Output::new(device, tokens * cols), Output::new(device, tokens * cols / BLOCK));
                ok(RmsNorm::new(x_device.slice(), weight_device.slice(), eps, [tokens, cols])
                    .out(out.slice_if(with_out))
                    .fixed(fixed.slice_if(with_fixed))
                    .launch(device));
                let what = format!("{kind:?} [{tokens}, {cols}], eps {eps:e}");
                if with_out {
                    let out = out.read();
                    assert_bits(&what, &out, &expected);
                    // An infinite row has an inverse of 0; what it does not touch becomes 0.
                    for (x, y) in x.chunks(cols).zip(out.chunks(cols)) {
                        if x.iter().any(|x| x.is_nan()) {
                            assert_nan(&what, y);
                        } else if has_non_finite(x) {
                            assert!(y.iter().any(|y| y.is_nan()), "{what}");
                        }
                    }
                }
                if with_fixed {
                    assert_blocks(&what, &fixed.read(), &fixed_blocks(&expected).1);
                }
            }
        }
    }
}

fn batch_equals_single_tokens<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(6);
    for (tokens, cols) in size.shapes(&[(9, 768)], &[(70, 2048)]) {
        let x = input(device, &Activations::rows(&mut random, 0, tokens, cols));
        let weight = input(device, &random.gaussians(cols));
        let run = |first: usize, tokens: usize| {
            let mut out = Output::new(device, tokens * cols);
            let x = x.part(first * cols, tokens * cols).unwrap();
            let (weight, out_slice) = (weight.slice(), Some(out.slice()));
            ok(RmsNorm::new(x, weight, 1e-6, [tokens, cols]).out(out_slice).launch(device));
            out.read()
        };
        let single: Vec<f32> = (0..tokens).flat_map(|token| run(token, 1)).collect();
        assert_bits("batch", &run(0, tokens), &single);
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let x: Buffer<D, f32> = Buffer::zeroed(device, 2 * 16640).unwrap();
    let mut out: Buffer<D, f32> = Buffer::zeroed(device, 2 * 16640).unwrap();
    let at = x.slice().as_ptr() as u64;
    let mut run_of = |x_at: u64, with_out: bool, tokens, cols, width| {
        // SAFETY: as long as the buffer says, or refused before anything is read.
        let x = unsafe { Slice::from_raw(device, x_at, 16640) };
        let out = with_out.then(|| out.slice_mut());
        RmsNorm::new(x, x, 0.0, [tokens, cols]).width(width).out(out).launch(device)
    };
    for width in [0, 257, 512] {
        assert_status(run_of(at, true, 1, 256, width), sys::KQM_BAD_SHAPE);
    }
    ok(run_of(at, true, 1, 256, 1));
    let mut run = |x_at, with_out, tokens, cols| run_of(x_at, with_out, tokens, cols, cols);
    assert_status(run(0, true, 1, 256), sys::KQM_NULL_POINTER);
    assert_status(run(at, false, 1, 256), sys::KQM_NULL_POINTER);
    assert_status(run(at, true, 0, 256), sys::KQM_BAD_SHAPE);
    assert_status(run(at, true, 1, 0), sys::KQM_BAD_SHAPE);
    assert_status(run(at, true, 1, 255), sys::KQM_BAD_SHAPE);
    assert_status(run(at, true, 1, 16640), sys::KQM_BAD_SHAPE);
    assert_status(run(at + 4, true, 1, 256), sys::KQM_MISALIGNED);
    assert_invalid(run(at, true, 66, 256));
    assert_eq!(status_without_arguments!(device, rms_norm), sys::KQM_NULL_POINTER);
    ok(run(at, true, 2, 256));
    ok(device.synchronize());
}
