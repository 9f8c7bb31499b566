//! `moe_swiglu` at full size.

mod common;
#[path = "common/experts.rs"]
mod experts;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use experts::{Choice, STACKS, choose, distinct};
use kquant_moe::blocks::TensorType::Q4K;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{Choose, MoeSwiglu};
use kquant_moe::oracle;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(11);
    let mut group = group(criterion, "moe_swiglu");
    let Some(device) = gpu() else {
        let w = Weights::random(&mut random, Q4K, 1, 64, HIDDEN);
        let (x, _) = fixed_blocks(&random.gaussians(HIDDEN));
        let [mut gate, mut up, mut out] = [[0.0; 64]; 3];
        on_cpu(&mut group, &format!("64x{HIDDEN}/1"), 2 * w.bytes.len(), || {
            oracle::moe_swiglu::moe_swiglu(w.expert(0), w.expert(0), &x, &mut gate, &mut up, &mut out);
        });
        return;
    };
    let w = Weights::random(&mut random, Q4K, EXPERTS, FF, HIDDEN);
    let stacks = [(); STACKS].map(|()| [(); 2].map(|()| w.upload(&device)));
    for tokens in TOKENS {
        let choices = choose(&mut random, tokens, 512);
        let x = ok(Buffer::from_slice(&device, &fixed_blocks(&random.gaussians(tokens * HIDDEN)).1));
        let bytes = 2 * distinct(&choices[0]) * w.bytes.len() / EXPERTS;
        let make = |copy: usize| {
            let out = ok(Buffer::zeroed(&device, tokens * TOP_K * FF));
            (&stacks[copy % STACKS], Choice::new(&device, &choices[copy]), out)
        };
        on_gpu(&mut group, &device, &format!("{EXPERTS}x{FF}x{HIDDEN}/{tokens}"), bytes, make, |(w, choice, out)| {
            MoeSwiglu::new(
                [&w[0], &w[1]],
                x.slice(),
                Choose::Made(choice.indices.slice()),
                &choice.groups,
                [tokens, TOP_K],
                out.slice_mut(),
            )
            .launch(&device)
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
