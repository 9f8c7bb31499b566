//! `moe_down` at full size.

mod common;
#[path = "common/experts.rs"]
mod experts;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use experts::{Choice, STACKS, choose, distinct};
use kquant_moe::blocks::TensorType;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{DownInput, MoeDown};
use kquant_moe::oracle;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(12);
    let mut group = group(criterion, "moe_down");
    let device = gpu();
    for &kind in TensorType::MATRICES {
        let Some(device) = &device else {
            let w = Weights::random(&mut random, kind, TOP_K, 64, FF);
            let (x, _) = fixed_blocks(&random.gaussians(FF));
            let weights = random.gaussians(TOP_K);
            let (mut expert_out, mut sum) = (vec![0.0; TOP_K * 64], [0.0; 64]);
            on_cpu(&mut group, &format!("{kind:?}/{TOP_K}x64x{FF}/1"), w.bytes.len(), || {
                for (expert, out) in expert_out.chunks_mut(64).enumerate() {
                    oracle::product(w.expert(expert), FF, &x, out);
                }
                oracle::moe_down::moe_down(&weights, &expert_out, &mut sum);
            });
            continue;
        };
        let w = Weights::random(&mut random, kind, EXPERTS, HIDDEN, FF);
        let stacks = [(); STACKS].map(|()| w.upload(device));
        for tokens in TOKENS {
            let (choices, pairs) = (choose(&mut random, tokens, 512), tokens * TOP_K);
            let x = ok(Buffer::from_slice(device, &fixed_blocks(&random.gaussians(pairs * FF)).1));
            let weights = ok(Buffer::from_slice(device, &random.gaussians(pairs)));
            let bytes = distinct(&choices[0]) * w.bytes.len() / EXPERTS;
            let make = |copy: usize| {
                let outputs = [pairs, tokens].map(|rows| ok(Buffer::zeroed(device, rows * HIDDEN)));
                (&stacks[copy % STACKS], Choice::new(device, &choices[copy]), outputs)
            };
            let id = format!("{kind:?}/{EXPERTS}x{HIDDEN}x{FF}/{tokens}");
            on_gpu(&mut group, device, &id, bytes, make, |(down, choice, [expert_out, y])| {
                MoeDown::new(
                    down,
                    DownInput::Fixed(x.slice()),
                    (choice.indices.slice(), weights.slice()),
                    &choice.groups,
                    [tokens, TOP_K],
                    expert_out.slice_mut(),
                    y.slice_mut(),
                )
                .launch(device)
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
