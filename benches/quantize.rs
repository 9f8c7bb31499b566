//! `quantize` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::blocks::BLOCK;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::Quantize;
use kquant_moe::oracle;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(3);
    let mut group = group(criterion, "quantize");
    let device = gpu();
    for tokens in TOKENS {
        let x = random.gaussians(tokens * HIDDEN);
        let (id, bytes, blocks) = (format!("{HIDDEN}/{tokens}"), 4 * x.len(), x.len() / BLOCK);
        if let Some(device) = &device {
            let make = |_| (ok(Buffer::from_slice(device, &x)), ok(Buffer::zeroed(device, blocks)));
            on_gpu(&mut group, device, &id, bytes, make, |(x, out)| {
                Quantize::new(x.slice(), out.slice_mut(), [tokens, HIDDEN]).launch(device)
            });
        } else {
            let mut out = vec![oracle::FixedBlock { x: [0; BLOCK], unit: 0.0 }; blocks];
            on_cpu(&mut group, &id, bytes, || oracle::quantize::quantize(&x, &mut out));
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
