//! `matvec` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::TensorType;
use kquant_moe::device::Device;
use kquant_moe::kernels::matvec_kernel;
use kquant_moe::{oracle, sys};

on_devices!(
    every_type_equals_the_oracle,
    takes_many_tokens,
    sums_in_one_order,
    stores_one_nan,
    batch_equals_single_tokens,
    one_launcher_takes_every_type
);

/// Types that have no kernel of another name, which would have a test of its own.
fn own_types() -> impl Iterator<Item = TensorType> {
    TensorType::MATRICES.iter().copied().filter(|&kind| matvec_kernel(kind) == "matvec")
}

fn every_type_equals_the_oracle<D: Device>(device: &D, size: Size) {
    matvec::equals_the_oracle(device, size, TensorType::Q5K);
    own_types().for_each(|kind| matvec::equals_the_oracle_in_short(device, size, kind));
}

fn takes_many_tokens<D: Device>(device: &D, size: Size) {
    [TensorType::Q5K, TensorType::IQ4XS].into_iter().for_each(|kind| matvec::takes_many_tokens(device, size, kind));
}

/// One type of each family: the sums over super-blocks know nothing of types.
fn sums_in_one_order<D: Device>(device: &D, size: Size) {
    [TensorType::Q5K, TensorType::Q8_0].into_iter().for_each(|kind| matvec::sums_in_one_order(device, size, kind));
}

fn stores_one_nan<D: Device>(device: &D, size: Size) {
    own_types().for_each(|kind| matvec::stores_one_nan(device, size, kind));
}

fn batch_equals_single_tokens<D: Device>(device: &D, size: Size) {
    own_types().for_each(|kind| matvec::batch_equals_single_tokens(device, size, kind));
}

/// The launcher itself finds the kernel of each type, also of those that the wrapper launches by another name.
fn one_launcher_takes_every_type<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(44);
    for (rows, cols) in size.shapes(&[(17, 2048), (40, 4352)], &[(2048, 4096)]) {
        for &kind in TensorType::MATRICES {
            let w = Weights::random(&mut random, kind, 1, rows, cols);
            let tiles = input(device, &oracle::repack::repack(w.expert(0), cols));
            for tokens in [1, 2, 9] {
                let (x, digits) = fixed_blocks(&Activations::rows(&mut random, 0, tokens, cols));
                let digits = input(device, &digits);
                let mut y: Output<D, f32> = Output::new(device, tokens * rows);
                let args = sys::kqm_matvec_args {
                    w: sys::kqm_matrix {
                        tiles: tiles.slice().as_ptr().cast(),
                        type_: kind as u32,
                        rows: rows as u32,
                        cols: cols as u32,
                        experts: 1,
                    },
                    x: digits.slice().as_ptr(),
                    y: y.slice().as_ptr(),
                    tokens: tokens as u32,
                    ..Default::default()
                };
                ok(device.activate());
                // SAFETY: the operands are as long as the shapes say.
                assert_eq!(unsafe { device.kernels().matvec.unwrap()(&args, device.stream()) }, sys::KQM_OK);
                let mut expected = vec![0.0; tokens * rows];
                oracle::matvec::matvec(w.expert(0), cols, &x, &mut expected);
                assert_bits(&format!("{kind} [{rows}, {cols}], {tokens} tokens"), &y.read(), &expected);
            }
        }
    }
    assert_eq!(status_without_arguments!(device, matvec), sys::KQM_NULL_POINTER);
}
