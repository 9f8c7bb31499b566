//! `residual_add` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::ResidualAdd;
use kquant_moe::{oracle, sys};

on_devices!(equals_the_oracle, refuses_bad_arguments);

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(13);
    for count in size.shapes(&[1, 255, 256, 257, 2048, 4099], &[3 << 20]) {
        for kind in Activations::ALL {
            let (mut a, b) = (kind.row(&mut random, count), Activations::Mixed.row(&mut random, count));
            let (a_device, b_device) = (input(device, &a), input(device, &b));
            let mut y = Output::new(device, count);
            ok(ResidualAdd::new(a_device.slice(), b_device.slice(), y.slice()).launch(device));
            let mut in_place = Output::starting_with(device, &a);
            let sum = in_place.slice();
            // SAFETY: the kernel allows y to be a; the buffer holds `count` elements.
            let a_again = unsafe { Slice::from_raw(device, sum.as_ptr() as u64, count) };
            ok(ResidualAdd::new(a_again, b_device.slice(), sum).launch(device));
            oracle::residual_add::residual_add(&mut a, &b);
            assert_bits(&format!("{kind:?}, {count}"), &y.read(), &a);
            assert_bits(&format!("{kind:?}, {count}, in place"), &in_place.read(), &a);
        }
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let a: Buffer<D, f32> = Buffer::zeroed(device, 4).unwrap();
    let mut y: Buffer<D, f32> = Buffer::zeroed(device, 8).unwrap();
    let (a_at, y_at) = (a.slice().as_ptr() as u64, y.slice_mut().as_ptr() as u64);
    let run = |a: u64, y: u64, count| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (a, y) = unsafe { (Slice::from_raw(device, a, 4), SliceMut::from_raw(device, y, count)) };
        ResidualAdd::new(a, a, y).launch(device)
    };
    assert_status(run(0, y_at, 4), sys::KQM_NULL_POINTER);
    assert_status(run(a_at, 0, 4), sys::KQM_NULL_POINTER);
    assert_status(run(a_at, y_at, 0), sys::KQM_BAD_SHAPE);
    assert_invalid(run(a_at, y_at, 5));
    assert_eq!(status_without_arguments!(device, residual_add), sys::KQM_NULL_POINTER);
    ok(run(a_at, y_at, 4));
    ok(device.synchronize());
}
