//! `quantize` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::{BLOCK, TensorType};
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{FixedBlock, Floats, Quantize};
use kquant_moe::{oracle, sys};

on_devices!(
    equals_the_oracle,
    rounds_at_the_edges,
    takes_any_nan,
    takes_every_float_of_two_bytes,
    refuses_bad_arguments
);

fn run<D: Device>(device: &D, x: &[f32], tokens: usize) -> Vec<FixedBlock> {
    let cols = x.len() / tokens;
    let x = input(device, x);
    let mut out = Output::new(device, tokens * cols / BLOCK);
    ok(Quantize::new(x.slice(), out.slice(), [tokens, cols]).launch(device));
    out.read()
}

fn expected(x: &[f32]) -> Vec<FixedBlock> {
    let mut blocks = vec![oracle::FixedBlock { x: [0; BLOCK], unit: 0.0 }; x.len() / BLOCK];
    oracle::quantize::quantize(x, &mut blocks);
    blocks.iter().map(oracle::FixedBlock::digits).collect()
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(3);
    let shapes =
        size.shapes(&[(1, 256), (1, 2304), (3, 768), (9, 2048), (17, 256)], &[(1, 2048), (70, 4096), (513, 768)]);
    for (tokens, cols) in shapes {
        for kind in Activations::ALL {
            let x: Vec<f32> = (0..tokens).flat_map(|_| kind.row(&mut random, cols)).collect();
            let got = run(device, &x, tokens);
            assert_blocks(&format!("{kind:?} [{tokens}, {cols}]"), &got, &expected(&x));
            for (x, block) in x.chunks(BLOCK).zip(&got) {
                assert_eq!(has_non_finite(x), block.unit.is_nan(), "{kind:?}");
            }
        }
    }
}

/// Powers of two and their neighbours of every size, beside values that fall on ties.
fn rounds_at_the_edges<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(4);
    let mut x = Vec::new();
    for exponent in (0_u32..255).step_by(5).chain([1, 254]) {
        for largest in [exponent << 23, (exponent << 23) + 1, ((exponent + 1) << 23) - 1] {
            let largest = f32::from_bits(largest);
            x.extend((0..BLOCK).map(|k| match k {
                0 => largest,
                1 => -largest,
                // Half units and their odd multiples.
                _ => largest * ((2 * random.below(1 << 20) + 1) as f32) * f32::powi(2.0, -(31 + k as i32 % 8)),
            }));
        }
    }
    assert_blocks("edges", &run(device, &x, 1), &expected(&x));
}

/// A NaN of any payload, or an infinity, at any lane and place of it.
fn takes_any_nan<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(45);
    let mut x = random.gaussians(256 * BLOCK);
    for (place, block) in x.chunks_mut(BLOCK).enumerate() {
        let values = NANS.into_iter().chain([f32::INFINITY, f32::NEG_INFINITY]).collect::<Vec<_>>();
        block[place] = values[place % values.len()];
    }
    let got = run(device, &x, 16);
    assert_blocks("not finite", &got, &expected(&x));
    assert!(got.iter().all(|block| block.unit.to_bits() == f64::NAN.to_bits() && block.digit == [[[0; 32]; 5]; 8]));
}

/// All 65,536 numbers of f16 and of bf16, those of like size together and with the rest of all; also as f32.
fn takes_every_float_of_two_bytes<D: Device>(device: &D, _: Size) {
    let in_order: Vec<u16> = (0..=u16::MAX).collect();
    let mixed: Vec<u16> = in_order.iter().map(|&bits| bits.wrapping_mul(40503)).collect();
    for kind in [TensorType::F16, TensorType::BF16] {
        for bits in [&in_order, &mixed] {
            let x: Vec<f32> = bits.iter().map(|&bits| oracle::widened(kind, bits).unwrap()).collect();
            let (tokens, cols) = (32, 2048);
            let rows = input(device, bits);
            let rows = if kind == TensorType::F16 { Floats::F16(rows.slice()) } else { Floats::BF16(rows.slice()) };
            let mut out = Output::new(device, tokens * cols / BLOCK);
            let mut floats = Output::new(device, tokens * cols);
            ok(Quantize::new(rows, out.slice(), [tokens, cols]).floats(floats.slice()).launch(device));
            assert_blocks(&format!("{kind}"), &out.read(), &expected(&x));
            let canonical: Vec<f32> = x.iter().map(|&x| oracle::canonical(x)).collect();
            assert_bits(&format!("{kind} as f32"), &floats.read(), &canonical);
        }
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let x: Buffer<D, f32> = Buffer::zeroed(device, 512).unwrap();
    let mut out: Buffer<D, FixedBlock> = Buffer::zeroed(device, 2).unwrap();
    let (x_at, out_at) = (x.slice().as_ptr() as u64, out.slice_mut().as_ptr() as u64);
    let run = |x: u64, out: u64, tokens, cols| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (x, out) = unsafe { (Slice::from_raw(device, x, 512), SliceMut::from_raw(device, out, 2)) };
        Quantize::new(x, out, [tokens, cols]).launch(device)
    };
    assert_status(run(0, out_at, 1, 256), sys::KQM_NULL_POINTER);
    assert_status(run(x_at, 0, 1, 256), sys::KQM_NULL_POINTER);
    assert_status(run(x_at, out_at, 0, 256), sys::KQM_BAD_SHAPE);
    assert_status(run(x_at, out_at, 1, 0), sys::KQM_BAD_SHAPE);
    assert_status(run(x_at, out_at, 1, 300), sys::KQM_BAD_SHAPE);
    assert_status(run(x_at + 4, out_at, 1, 256), sys::KQM_MISALIGNED);
    assert_status(run(x_at, out_at + 8, 1, 256), sys::KQM_MISALIGNED);
    assert_invalid(run(x_at, out_at, 3, 256));
    assert_eq!(status_without_arguments!(device, quantize), sys::KQM_NULL_POINTER);
    ok(run(x_at, out_at, 2, 256));
    ok(device.synchronize());
}
