//! `q6_k_gemv` at full size.

mod common;
#[path = "common/matvec.rs"]
mod matvec;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::blocks::TensorType;

fn bench(criterion: &mut Criterion) {
    matvec::bench(criterion, "q6_k_gemv", TensorType::Q6K, &[(VOCAB, HIDDEN), (HIDDEN, HEADS * HEAD_DIM)]);
}

criterion_group!(benches, bench);
criterion_main!(benches);
