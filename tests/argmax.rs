//! `argmax` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{Argmax, DecodeLoop};
use kquant_moe::oracle::argmax::argmax;
use kquant_moe::sys;

on_devices!(
    equals_the_oracle,
    finds_the_maximum_anywhere,
    prefers_the_first_of_equals,
    feeds_the_decode_loop,
    refuses_bad_arguments,
);

/// Runs twice, so that the second run finds what the first one left.
fn run<D: Device>(device: &D, x: &[f32], rows: usize) -> Vec<u32> {
    let cols = x.len() / rows;
    let x = input(device, x);
    let mut partial = Output::starting_with(device, &vec![0_u64; rows]);
    let mut done = Output::starting_with(device, &vec![0_u32; rows]);
    let mut results = [0, 0].map(|_| {
        let mut out = Output::new(device, rows);
        let (partial, done) = (partial.slice(), done.slice());
        ok(Argmax::new(x.slice(), out.slice(), partial, done, [rows, cols]).launch(device));
        out.read()
    });
    assert!(partial.read().iter().all(|&word| word == 0) && done.read().iter().all(|&word| word == 0));
    assert_same("second run", &results[1], &results[0]);
    std::mem::take(&mut results[0])
}

fn check<D: Device>(device: &D, what: &str, x: &[f32], rows: usize) {
    let expected: Vec<u32> = x.chunks(x.len() / rows).map(argmax).collect();
    assert_same(what, &run(device, x, rows), &expected);
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(14);
    let shapes =
        size.shapes(&[(1, 1), (2, 31), (1, 4095), (3, 4096), (1, 4097), (9, 8200)], &[(1, 151_936), (70, 151_936)]);
    for (rows, cols) in shapes {
        for kind in Activations::ALL {
            let x: Vec<f32> = (0..rows).flat_map(|_| kind.row(&mut random, cols)).collect();
            check(device, &format!("{kind:?} [{rows}, {cols}]"), &x, rows);
        }
    }
}

/// The maximum at both sides of every seam between warps, rounds and blocks; as a number and as any NaN.
fn finds_the_maximum_anywhere<D: Device>(device: &D, _: Size) {
    for cols in [4096, 8192, 8300] {
        let seams = [0_usize, 32, 256, 3840, 4096, 4352, 8192, 8288, cols];
        let places: Vec<usize> =
            seams.iter().flat_map(|&seam| [seam.wrapping_sub(1), seam]).filter(|&place| place < cols).collect();
        let values = NANS.into_iter().chain([7.5, f32::INFINITY]).cycle();
        let x: Vec<f32> = places
            .iter()
            .zip(values)
            .flat_map(|(&place, value)| (0..cols).map(move |i| if i == place { value } else { -(i as f32) }))
            .collect();
        let expected: Vec<u32> = places.iter().map(|&place| place as u32).collect();
        assert_same(&format!("maximum of {cols}"), &run(device, &x, places.len()), &expected);
        check(device, &format!("maximum of {cols}"), &x, places.len());
    }
}

fn prefers_the_first_of_equals<D: Device>(device: &D, _: Size) {
    let cols = 9000;
    let with = |background: f32, places: &[(usize, f32)]| {
        let mut x = vec![background; cols];
        for &(place, value) in places {
            x[place] = value;
        }
        x
    };
    let negative_nan = f32::from_bits(0xffc0_0001);
    let rows = [
        (with(1.0, &[]), 0),
        (with(-1.0, &[(8999, 2.0), (4096, 2.0), (4097, 2.0)]), 4096),
        // Both zeros are the same.
        (with(-0.0, &[(10, 0.0), (5000, 0.0)]), 0),
        (with(0.0, &[(10, -0.0)]), 0),
        (with(f32::NEG_INFINITY, &[]), 0),
        (with(f32::NEG_INFINITY, &[(8998, f32::MIN)]), 8998),
        // Every NaN is the same, and larger than infinity.
        (with(f32::INFINITY, &[(700, f32::NAN), (600, negative_nan)]), 600),
        (with(f32::INFINITY, &[(600, f32::NAN), (700, negative_nan)]), 600),
        (with(f32::NAN, &[(0, f32::INFINITY)]), 1),
    ];
    let x: Vec<f32> = rows.iter().flat_map(|(row, _)| row.clone()).collect();
    let expected: Vec<u32> = rows.iter().map(|&(_, index)| index).collect();
    assert_same("ties", &run(device, &x, rows.len()), &expected);
    check(device, "ties", &x, rows.len());
}

/// Each row's tokens go to its history at its position, until it is full; the position always advances. A token whose value is not
/// finite has a number in the history that names nothing.
fn feeds_the_decode_loop<D: Device>(device: &D, _: Size) {
    let (rows, cols) = (2, 5000);
    let mut random = Random::new(15);
    // The second row is ahead by three.
    let mut position = Output::starting_with(device, &[2_u32, 5]);
    let mut history = Output::starting_with(device, &[7_u32; 24]);
    let mut expected = vec![7_u32; 24];
    let mut partial = Output::starting_with(device, &[0_u64; 2]);
    let mut done = Output::starting_with(device, &[0_u32; 2]);
    for step in 2..14 {
        let mut x = random.gaussians(rows * cols);
        match step {
            3 => x[cols + 17] = f32::INFINITY,
            4 => x[4321] = f32::NAN,
            5 => x[4321] = f32::from_bits(0xffc0_0001),
            6 => x[17] = f32::INFINITY,
            7 => x[..cols].fill(f32::NEG_INFINITY),
            // Finite ones, and what is not finite besides the largest or in another row.
            8 => x[17] = f32::MAX,
            9 => x[..cols].fill(-f32::MAX),
            10 => x[17] = f32::NEG_INFINITY,
            11 => x[cols] = f32::NAN,
            _ => {}
        }
        let x_device = input(device, &x);
        let mut out = Output::new(device, rows);
        let feed = Some(DecodeLoop::new(position.slice(), history.slice()));
        let (partial, done) = (partial.slice(), done.slice());
        ok(Argmax::new(x_device.slice(), out.slice(), partial, done, [rows, cols]).feed(feed).launch(device));
        let tokens: Vec<u32> = x.chunks(cols).map(argmax).collect();
        if step < 12 {
            expected[step] = if (4..8).contains(&step) { u32::MAX } else { tokens[0] };
        }
        if step + 3 < 12 {
            expected[12 + step + 3] = if step == 3 { u32::MAX } else { tokens[1] };
        }
        assert_same("tokens", &out.read(), &tokens);
        assert_same("position", &position.read(), &[step as u32 + 1, step as u32 + 4]);
        assert_same("history", &history.read(), &expected);
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let x: Buffer<D, f32> = Buffer::zeroed(device, 8).unwrap();
    let mut out: Buffer<D, u32> = Buffer::zeroed(device, 2).unwrap();
    let mut partial: Buffer<D, u64> = Buffer::zeroed(device, 2).unwrap();
    let mut done: Buffer<D, u32> = Buffer::zeroed(device, 2).unwrap();
    let (x_at, out_at) = (x.slice().as_ptr() as u64, out.slice_mut().as_ptr() as u64);
    let mut run = |x: u64, out: u64, rows, cols| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (x, out) = unsafe { (Slice::from_raw(device, x, 8), SliceMut::from_raw(device, out, 2)) };
        let (partial, done) = (partial.slice_mut(), done.slice_mut());
        Argmax::new(x, out, partial, done, [rows, cols]).launch(device)
    };
    assert_status(run(0, out_at, 1, 8), sys::KQM_NULL_POINTER);
    assert_status(run(x_at, 0, 1, 8), sys::KQM_NULL_POINTER);
    assert_status(run(x_at, out_at, 0, 8), sys::KQM_BAD_SHAPE);
    assert_status(run(x_at, out_at, 1, 0), sys::KQM_BAD_SHAPE);
    assert_invalid(run(x_at, out_at, 1, 9));
    assert_invalid(run(x_at, out_at, 3, 1));
    assert_eq!(status_without_arguments!(device, argmax), sys::KQM_NULL_POINTER);
    ok(run(x_at, out_at, 2, 4));
    ok(device.synchronize());
}
