//! `rope` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::blocks::TensorType;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{Batch, CacheMut, Rope};
use kquant_moe::oracle::rope::rope;

const CAPACITY: usize = 128;
const PAGES: usize = CAPACITY / Batch::PAGE;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(7);
    let mut group = group(criterion, "rope");
    let device = gpu();
    let weight = random.gaussians(HEAD_DIM);
    let table: Vec<f32> = (0..CAPACITY * HEAD_DIM / 2).flat_map(|i| [(i as f32).cos(), (i as f32).sin()]).collect();
    for tokens in TOKENS {
        let q = random.gaussians(tokens * HEADS * HEAD_DIM);
        let kv = random.gaussians(tokens * KV_HEADS * HEAD_DIM);
        let (id, bytes) = (format!("{HEADS}+{KV_HEADS}x{HEAD_DIM}/{tokens}"), 4 * (q.len() + 2 * kv.len()));
        if let Some(device) = &device {
            let make = |_| {
                let cache = || ok(Buffer::zeroed(device, CAPACITY * KV_HEADS * HEAD_DIM * 2));
                let floats = [&q, &kv, &weight, &table].map(|values| ok(Buffer::from_slice(device, values)));
                (
                    floats,
                    ok(Buffer::zeroed(device, q.len())),
                    [(17..).take(tokens).collect(), vec![0; tokens], (0..PAGES as u32).collect::<Vec<u32>>()]
                        .map(|numbers| ok(Buffer::from_slice(device, &numbers))),
                    cache(),
                    cache(),
                )
            };
            on_gpu(&mut group, device, &id, bytes, make, |([q, kv, weight, table], q_out, batch, k_cache, v_cache)| {
                Rope::new(
                    [q.slice(), kv.slice(), kv.slice()],
                    q_out.slice_mut(),
                    table.slice(),
                    Batch::new(batch.each_ref().map(Buffer::slice), [tokens, 1], [CAPACITY, PAGES]),
                    CacheMut::new([k_cache.slice_mut(), v_cache.slice_mut()], TensorType::F16, [KV_HEADS, HEAD_DIM]),
                    HEADS,
                    1e-6,
                )
                .q_weight(weight.slice())
                .k_weight(weight.slice())
                .launch(device)
            });
        } else {
            let mut x = q;
            on_cpu(&mut group, &id, bytes, || {
                for (token, x) in x.chunks_mut(HEADS * HEAD_DIM).enumerate() {
                    rope(x, HEAD_DIM, Some(&weight), 1e-6, &table[(17 + token) * HEAD_DIM..][..HEAD_DIM], None);
                }
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
