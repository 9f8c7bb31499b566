//! `attention` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use half::f16;
use kquant_moe::blocks::{BLOCK, TensorType};
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{Attention, Batch, Queries};
use kquant_moe::oracle::attention::{Head, attention};

const SCALE: f32 = 0.088_388_35;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(8);
    let mut group = group(criterion, "attention");
    let device = gpu();
    let stride = KV_HEADS * HEAD_DIM;
    let Some(device) = device else {
        let cache: Vec<f16> = random.gaussians(512 * stride).into_iter().map(f16::from_f32).collect();
        let (q, mut out) = (random.gaussians(HEAD_DIM), [0.0; HEAD_DIM]);
        on_cpu(&mut group, "one head at 512", 2 * 2 * 512 * HEAD_DIM, || {
            attention(&q, Head::new(&cache, &cache, stride), 512, SCALE, &mut out, None);
        });
        return;
    };
    // Decode, few tokens, and micro-batches of prompts.
    let few = [512, 6000].into_iter().flat_map(|depth| [TOKENS[0], 4, 16, TOKENS[1]].map(|tokens| (depth, tokens)));
    for (depth, tokens) in few.chain([(0, 512), (1536, 512), (7680, 512), (32_256, 512)]) {
        let capacity = (depth + tokens).next_multiple_of(64);
        let q = random.gaussians(tokens * HEADS * HEAD_DIM);
        let cache: Vec<u8> =
            random.gaussians(capacity * stride).iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let q = ok(Buffer::from_slice(&device, &q));
        let positions: Vec<u32> = (depth as u32..).take(tokens).collect();
        let pages: Vec<u32> = (0..(capacity / Batch::PAGE) as u32).collect();
        let [position, sequence, pages] =
            [positions, vec![0; tokens], pages].map(|numbers| ok(Buffer::from_slice(&device, &numbers)));
        let room = ok(Attention::workspace_bytes(&device, capacity, tokens, HEADS, HEAD_DIM));
        let workspace = ok(Buffer::<_, u8>::zeroed(&device, room));
        let make = |_| {
            let caches = [&cache, &cache].map(|values| ok(Buffer::from_slice(&device, values)));
            (caches, ok(Buffer::zeroed(&device, tokens * HEADS * HEAD_DIM / BLOCK)))
        };
        let bytes = 2 * (depth + tokens) * stride * 2;
        on_gpu(&mut group, &device, &format!("{depth}/{tokens}"), bytes, make, |([k, v], fixed)| {
            // SAFETY: launches of one queue follow each other, so they may share the workspace.
            let workspace =
                unsafe { kquant_moe::device::SliceMut::from_raw(&device, workspace.slice().as_ptr() as u64, room) };
            let operands = [position.slice(), sequence.slice(), pages.slice()];
            let batch = Batch::new(operands, [tokens, 1], [capacity, capacity / Batch::PAGE]);
            Attention::new(
                Queries::rotated(q.slice(), [k.slice(), v.slice()], batch),
                workspace,
                TensorType::F16,
                [KV_HEADS, HEAD_DIM],
                HEADS,
                SCALE,
            )
            .fixed(fixed.slice_mut())
            .launch(&device)
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
