//! `rms_norm` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::blocks::BLOCK;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::RmsNorm;
use kquant_moe::oracle::rms_norm::rms_norm;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(6);
    let mut group = group(criterion, "rms_norm");
    let device = gpu();
    let weight = random.gaussians(HIDDEN);
    for tokens in TOKENS {
        let x = random.gaussians(tokens * HIDDEN);
        let (id, bytes) = (format!("{HIDDEN}/{tokens}"), 4 * (x.len() + HIDDEN));
        if let Some(device) = &device {
            let make = |_| {
                let [x, weight] = [&x, &weight].map(|values| ok(Buffer::from_slice(device, values)));
                (x, weight, ok(Buffer::zeroed(device, tokens * HIDDEN / BLOCK)))
            };
            on_gpu(&mut group, device, &id, bytes, make, |(x, weight, fixed)| {
                let (x, weight, fixed) = (x.slice(), weight.slice(), Some(fixed.slice_mut()));
                RmsNorm::new(x, weight, 1e-6, [tokens, HIDDEN]).fixed(fixed).launch(device)
            });
        } else {
            let mut y = vec![0.0; x.len()];
            on_cpu(&mut group, &id, bytes, || {
                for (x, y) in x.chunks(HIDDEN).zip(y.chunks_mut(HIDDEN)) {
                    rms_norm(x, &weight, x.len(), 1e-6, y);
                }
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
