//! `moe_group` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{Groups, MoeGroup};
use kquant_moe::oracle::moe_group::moe_group;

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(10);
    let mut group = group(criterion, "moe_group");
    let device = gpu();
    // A single token needs no groups.
    for tokens in [64, 512] {
        let indices: Vec<u32> = (0..tokens).flat_map(|_| random.distinct(EXPERTS, TOP_K)).collect();
        let (id, bytes) = (format!("{TOP_K} of {EXPERTS}/{tokens}"), 4 * indices.len());
        if let Some(device) = &device {
            let make = |_| (ok(Buffer::from_slice(device, &indices)), ok(Groups::new(device, tokens, EXPERTS, TOP_K)));
            on_gpu(&mut group, device, &id, bytes, make, |(indices, groups)| {
                let indices = indices.slice();
                MoeGroup::new(indices, groups, [tokens, TOP_K], EXPERTS).launch(device)
            });
        } else {
            on_cpu(&mut group, &id, bytes, || drop(std::hint::black_box(moe_group(&indices, EXPERTS))));
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
