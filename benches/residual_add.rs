//! `residual_add` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::device::Buffer;
use kquant_moe::kernels::ResidualAdd;
use kquant_moe::oracle::residual_add::residual_add;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(13);
    let mut group = group(criterion, "residual_add");
    let device = gpu();
    for tokens in TOKENS {
        let mut a = random.gaussians(tokens * HIDDEN);
        let b = random.gaussians(tokens * HIDDEN);
        let (id, bytes) = (format!("{HIDDEN}/{tokens}"), 4 * 2 * a.len());
        if let Some(device) = &device {
            let make = |_| {
                let inputs = [&a, &b].map(|values| ok(Buffer::from_slice(device, values)));
                (inputs, ok(Buffer::zeroed(device, a.len())))
            };
            on_gpu(&mut group, device, &id, bytes, make, |([a, b], y)| {
                ResidualAdd::new(a.slice(), b.slice(), y.slice_mut()).launch(device)
            });
        } else {
            on_cpu(&mut group, &id, bytes, || residual_add(&mut a, &b));
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
