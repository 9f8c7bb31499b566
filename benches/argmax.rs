//! `argmax` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::device::Buffer;
use kquant_moe::kernels::Argmax;
use kquant_moe::oracle;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(14);
    let mut group = group(criterion, "argmax");
    let device = gpu();
    let x = random.gaussians(VOCAB);
    let (id, bytes) = (format!("{VOCAB}/1"), 4 * x.len());
    if let Some(device) = &device {
        let make = |_| {
            let integers = [(); 2].map(|()| ok(Buffer::zeroed(device, 1)));
            (ok(Buffer::from_slice(device, &x)), integers, ok(Buffer::zeroed(device, 1)))
        };
        on_gpu(&mut group, device, &id, bytes, make, |(x, [out, done], partial)| {
            let (out, partial, done) = (out.slice_mut(), partial.slice_mut(), done.slice_mut());
            Argmax::new(x.slice(), out, partial, done, [1, VOCAB]).launch(device)
        });
    } else {
        on_cpu(&mut group, &id, bytes, || {
            std::hint::black_box(oracle::argmax::argmax(&x));
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
