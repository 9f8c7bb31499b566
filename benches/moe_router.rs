//! `moe_router` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{MoeRouter, RouterChoice, RouterInput};
use kquant_moe::oracle::moe_router::{Weighting, moe_router};

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(9);
    let mut group = group(criterion, "moe_router");
    let device = gpu();
    let experts = if device.is_some() { EXPERTS } else { 16 };
    let w = random.gaussians(experts * HIDDEN);
    let (cols, top_k, bytes) = (HIDDEN, TOP_K, 4 * w.len());
    for tokens in TOKENS {
        let x = random.gaussians(tokens * cols);
        let id = format!("{experts}x{cols}/{tokens}");
        if let Some(device) = &device {
            let x = ok(Buffer::from_slice(device, &x));
            let make = |_| {
                let floats = [experts, top_k].map(|n| ok(Buffer::zeroed(device, tokens * n)));
                let integers = [top_k, 1].map(|n| ok(Buffer::zeroed(device, tokens * n)));
                (ok(Buffer::from_slice(device, &w)), floats, integers)
            };
            on_gpu(&mut group, device, &id, bytes, make, |(w, [logits, weights], [indices, done])| {
                MoeRouter::new(
                    RouterInput::Rows(x.slice()),
                    w.slice(),
                    [experts, cols],
                    logits.slice_mut(),
                    tokens,
                    top_k,
                )
                .choice(RouterChoice::new(indices.slice_mut(), weights.slice_mut(), done.slice_mut()))
                .launch(device)
            });
        } else {
            let (mut logits, mut indices, mut weights) = (vec![0.0; experts], [0; TOP_K], [0.0; TOP_K]);
            on_cpu(&mut group, &id, bytes, || {
                for x in x.chunks(cols) {
                    moe_router(x, &w, Weighting::default(), &mut logits, &mut indices, &mut weights);
                }
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
