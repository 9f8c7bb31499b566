//! `qkv` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::blocks::TensorType::{Q4K, Q6K};
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{Activations, Qkv};
use kquant_moe::oracle;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(4);
    let mut group = group(criterion, "qkv");
    let device = gpu();
    let rows = if device.is_some() { [HEADS, KV_HEADS, KV_HEADS].map(|heads| heads * HEAD_DIM) } else { [32, 16, 16] };
    let kinds = [Q4K, Q4K, Q6K];
    let w = [0, 1, 2].map(|i| Weights::random(&mut random, kinds[i], 1, rows[i], HIDDEN));
    let bytes = w.iter().map(|w| w.bytes.len()).sum();
    for tokens in TOKENS {
        let (blocks, digits) = fixed_blocks(&random.gaussians(tokens * HIDDEN));
        if let Some(device) = &device {
            let x = ok(Buffer::from_slice(device, &digits));
            let make = |_| {
                let y = rows.map(|rows| ok(Buffer::zeroed(device, tokens * rows)));
                (w.each_ref().map(|w| w.upload(device)), y)
            };
            on_gpu(&mut group, device, &format!("{rows:?}x{HIDDEN}/{tokens}"), bytes, make, |(w, y)| {
                let y = y.each_mut().map(Buffer::slice_mut);
                Qkv::new(w.each_ref(), Activations::Fixed(x.slice()), y, tokens).launch(device)
            });
        } else {
            let mut y = rows.map(|rows| vec![0.0; tokens * rows]);
            on_cpu(&mut group, &format!("{rows:?}x{HIDDEN}/{tokens}"), bytes, || {
                let [q, k, v] = &mut y;
                oracle::qkv::qkv(w.each_ref().map(|w| w.expert(0)), HIDDEN, &blocks, [q, k, v]);
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
