//! `moe_layer` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::blocks::TensorType::*;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{MoeLayer, Weighting};
use kquant_moe::oracle;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(19);
    let mut group = group(criterion, "moe_layer");
    let device = gpu();
    let Some(device) = &device else {
        let [gate, up, down] = [(256, 256), (256, 256), (64, 256)]
            .map(|(rows, cols)| Weights::random(&mut random, Q4K, TOP_K, rows, cols));
        let (x, router) = (random.gaussians(256), random.gaussians(TOP_K * 256));
        let mut sum = [0.0; 64];
        let bytes = [&gate, &up, &down].map(|w| w.bytes.len()).iter().sum();
        on_cpu(&mut group, &format!("Q4_K/{TOP_K}x256x256/1"), bytes, || {
            let experts = |expert| [&gate, &up, &down].map(|w| w.expert(expert));
            oracle::moe_layer::moe_layer(&x, &router, experts, 256, TOP_K, Weighting::OfChosen, &mut sum);
        });
        return;
    };
    let shapes = [(Q4K, FF, HIDDEN), (Q4K, FF, HIDDEN), (Q6K, HIDDEN, FF)];
    let weights = shapes.map(|(kind, rows, cols)| Weights::random(&mut random, kind, EXPERTS, rows, cols));
    let router = ok(Buffer::from_slice(device, &random.gaussians(EXPERTS * HIDDEN)));
    for tokens in TOKENS {
        let x = ok(Buffer::from_slice(device, &random.gaussians(tokens * HIDDEN)));
        let bytes: usize = weights.iter().map(|w| w.bytes.len() / EXPERTS * (tokens * TOP_K).min(EXPERTS)).sum();
        let make = |_| {
            let matrices = weights.each_ref().map(|w| w.upload(device));
            let room = ok(MoeLayer::workspace_bytes(device, matrices.each_ref(), F32, [tokens, TOP_K]));
            (matrices, ok(Buffer::zeroed(device, room)), ok(Buffer::zeroed(device, tokens * HIDDEN)))
        };
        let id = format!("Q4_K Q6_K/{EXPERTS}x{FF}x{HIDDEN}/{tokens}");
        on_gpu(&mut group, device, &id, bytes, make, |(matrices, workspace, y)| {
            let y: &mut Buffer<_, f32> = y;
            let shape = [tokens, TOP_K];
            MoeLayer::new(x.slice(), router.slice(), matrices.each_ref(), y.slice_mut(), workspace.slice_mut(), shape)
                .launch(device)
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
