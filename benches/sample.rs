//! `sample` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{RowSampling, Sample};
use kquant_moe::oracle::sample::{Sampling, sample};

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(14);
    let mut group = group(criterion, "sample");
    let device = gpu();
    let usual = Sampling { temperature: 0.7, seed: 5, ..Sampling::default() };
    let filters = [
        ("greedy", Sampling::GREEDY),
        ("temperature", usual),
        ("top-k", Sampling { top_k: 40, ..usual }),
        ("top-k and top-p", Sampling { top_k: 40, top_p: 0.9, min_p: 0.05, ..usual }),
    ];
    for rows in [1, 16] {
        let x: Vec<f32> = random.gaussians(rows * VOCAB).iter().map(|x| x * 3.0).collect();
        for (name, sampling) in filters {
            let (id, bytes) = (format!("{name}/{VOCAB}/{rows}"), 4 * x.len());
            if let Some(device) = &device {
                let make = |_| {
                    let samplings = vec![RowSampling::from(&sampling); rows];
                    let integers = [(); 2].map(|()| ok(Buffer::zeroed(device, rows)));
                    let parts = ok(Buffer::zeroed(device, rows * Sample::parts(VOCAB)));
                    let memory = (ok(Buffer::zeroed(device, rows)), parts);
                    (ok(Buffer::from_slice(device, &x)), ok(Buffer::from_slice(device, &samplings)), integers, memory)
                };
                on_gpu(&mut group, device, &id, bytes, make, |(x, samplings, [out, position], (state, parts))| {
                    let memory = (state.slice_mut(), parts.slice_mut());
                    let how = (samplings.slice(), position.slice_mut());
                    Sample::new(x.slice(), how, out.slice_mut(), memory, [rows, VOCAB]).launch(device)
                });
            } else if rows == 1 {
                on_cpu(&mut group, &id, bytes, || {
                    std::hint::black_box(sample(&x, &sampling, &[], 9));
                });
            }
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
