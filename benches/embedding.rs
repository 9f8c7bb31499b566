//! `embedding` at full size.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::blocks::TensorType;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::Embedding;
use kquant_moe::oracle::embedding::{Table, embedding};

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(5);
    let mut group = group(criterion, "embedding");
    let device = gpu();
    let (kind, vocab) = (TensorType::Q4K, if device.is_some() { VOCAB } else { 256 });
    let table = Weights::random(&mut random, kind, 1, vocab, HIDDEN).bytes;
    let on_device = device.as_ref().map(|device| ok(Buffer::from_slice(device, &table)));
    for tokens in TOKENS {
        // Every launch takes other rows of the one table.
        let mut ids = || -> Vec<u32> { (0..tokens).map(|_| random.below(vocab) as u32).collect() };
        let (id, bytes) = (format!("{vocab}x{HIDDEN}/{tokens}"), tokens * table.len() / vocab);
        if let (Some(device), Some(table)) = (&device, &on_device) {
            let rows: Vec<_> = (0..512).map(|_| ids()).collect();
            let make = |copy: usize| {
                (ok(Buffer::from_slice(device, &rows[copy])), ok(Buffer::zeroed(device, tokens * HIDDEN)))
            };
            on_gpu(&mut group, device, &id, bytes, make, |(ids, out)| {
                let (ids, out, table) = (ids.slice(), out.slice_mut(), table.slice());
                Embedding::new(table, kind, [vocab, HIDDEN], ids, tokens, out).launch(device)
            });
        } else {
            let (ids, mut out) = (ids(), vec![0.0; tokens * HIDDEN]);
            let table = Table { bytes: &table, kind, cols: HIDDEN };
            on_cpu(&mut group, &id, bytes, || embedding(table, &ids, &mut out));
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
