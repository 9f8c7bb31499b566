//! `repack` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::TensorType;
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{Repack, tile_bytes};
use kquant_moe::{oracle, sys};

on_devices!(equals_the_oracle, refuses_bad_arguments);

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(7);
    let shapes = size.shapes(&[(1, 256), (15, 768), (16, 512), (17, 4352), (40, 256)], &[(2048, 2048), (1001, 768)]);
    for (rows, cols) in shapes {
        for &kind in TensorType::MATRICES {
            let w = Weights::random(&mut random, kind, 1, rows, cols);
            let blocks = input(device, &w.bytes);
            let mut tiles = Output::new(device, tile_bytes(kind, rows, cols));
            ok(Repack::new(blocks.slice(), tiles.slice(), kind, [rows, cols]).launch(device));
            let expected = oracle::repack::repack(w.expert(0), cols);
            assert_same(&format!("{kind:?} [{rows}, {cols}]"), &tiles.read(), &expected);

            let w = Weights::random(&mut random, kind, 3, rows, cols);
            let blocks = input(device, &w.bytes);
            let mut tiles = Output::new(device, 3 * tile_bytes(kind, rows, cols));
            ok(Repack::new(blocks.slice(), tiles.slice(), kind, [rows, cols]).experts(3).launch(device));
            let expected: Vec<u8> = (0..3).flat_map(|expert| oracle::repack::repack(w.expert(expert), cols)).collect();
            assert_same(&format!("{kind:?} [3][{rows}, {cols}]"), &tiles.read(), &expected);
        }
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let blocks: Buffer<D, u8> = Buffer::zeroed(device, 4096).unwrap();
    let mut tiles: Buffer<D, u8> = Buffer::zeroed(device, 4096).unwrap();
    let (from, to) = (blocks.slice().as_ptr() as u64, tiles.slice_mut().as_ptr() as u64);
    let run = |from: u64, to: u64, kind, rows, cols| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (blocks, tiles) = unsafe { (Slice::from_raw(device, from, 4096), SliceMut::from_raw(device, to, 4096)) };
        Repack::new(blocks, tiles, kind, [rows, cols]).launch(device)
    };
    assert_status(run(0, to, TensorType::Q4K, 1, 256), sys::KQM_NULL_POINTER);
    assert_status(run(from, 0, TensorType::Q4K, 1, 256), sys::KQM_NULL_POINTER);
    assert_status(run(from, to, TensorType::Q4K, 0, 256), sys::KQM_BAD_SHAPE);
    assert_status(run(from, to, TensorType::Q4K, 1, 0), sys::KQM_BAD_SHAPE);
    assert_status(run(from, to, TensorType::Q4K, 1, 257), sys::KQM_BAD_SHAPE);
    assert_status(run(from + 1, to, TensorType::Q6K, 1, 256), sys::KQM_MISALIGNED);
    assert_status(run(from, to + 8, TensorType::Q6K, 1, 256), sys::KQM_MISALIGNED);
    assert_invalid(run(from, to, TensorType::Q4K, 17, 256));
    // Rows of floats would be larger.
    let mut tiles: Buffer<D, u8> = Buffer::zeroed(device, 4 * 16 * 256).unwrap();
    for kind in [TensorType::F16, TensorType::F32] {
        let floats = Repack::new(blocks.slice(), tiles.slice_mut(), kind, [1, 256]);
        assert_status(floats.launch(device), sys::KQM_UNSUPPORTED_TYPE);
    }
    assert_eq!(status_without_arguments!(device, repack), sys::KQM_NULL_POINTER);
    ok(run(from, to, TensorType::Q6K, 16, 256));
    ok(device.synchronize());
}
