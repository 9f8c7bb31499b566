//! `repack` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::blocks::TensorType;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{Repack, tile_bytes};
use kquant_moe::oracle;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(2);
    let mut group = group(criterion, "repack");
    let device = gpu();
    for &kind in TensorType::MATRICES {
        let (rows, cols) = if device.is_some() { (HIDDEN, HEADS * HEAD_DIM) } else { (64, HIDDEN) };
        let w = Weights::random(&mut random, kind, 1, rows, cols);
        let (id, bytes) = (format!("{kind:?}/{rows}x{cols}"), w.bytes.len());
        if let Some(device) = &device {
            let make = |_| {
                let tiles = Buffer::<_, u8>::zeroed(device, tile_bytes(kind, rows, cols));
                (ok(Buffer::from_slice(device, &w.bytes)), ok(tiles))
            };
            on_gpu(&mut group, device, &id, bytes, make, |(blocks, tiles)| {
                Repack::new(blocks.slice(), tiles.slice_mut(), kind, [rows, cols]).launch(device)
            });
        } else {
            on_cpu(&mut group, &id, bytes, || {
                std::hint::black_box(oracle::repack::repack(w.expert(0), cols));
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
