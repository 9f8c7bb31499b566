//! `matvec` at full size, with the types that have no kernel of another name.

#[path = "common/matvec.rs"]
mod matvec;

mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::blocks::TensorType;
use kquant_moe::kernels::matvec_kernel;

use common::{HEAD_DIM, HEADS, HIDDEN};

fn bench(criterion: &mut Criterion) {
    for &kind in TensorType::MATRICES.iter().filter(|&&kind| matvec_kernel(kind) == "matvec") {
        matvec::bench(
            criterion,
            &format!("matvec/{kind}"),
            kind,
            &[(HEADS * HEAD_DIM, HIDDEN), (HIDDEN, HEADS * HEAD_DIM)],
        );
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
