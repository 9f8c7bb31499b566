//! The benchmarks of `matvec`, `q4_k_matvec` and `q6_k_gemv`, which differ only in the type of the weights.

use criterion::Criterion;
use kquant_moe::blocks::TensorType;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::Matvec;
use kquant_moe::oracle;

use super::common::*;

pub fn bench(criterion: &mut Criterion, kernel: &str, kind: TensorType, shapes: &[(usize, usize)]) {
    let mut random = Random::new(1);
    let mut group = group(criterion, kernel);
    let Some(device) = gpu() else {
        let (rows, cols) = (64, HIDDEN);
        let w = Weights::random(&mut random, kind, 1, rows, cols);
        let (x, _) = fixed_blocks(&random.gaussians(cols));
        let mut y = vec![0.0; rows];
        on_cpu(&mut group, &format!("{rows}x{cols}/1"), w.bytes.len(), || {
            oracle::product(w.expert(0), cols, &x, &mut y);
        });
        return;
    };
    for &(rows, cols) in shapes {
        let w = Weights::random(&mut random, kind, 1, rows, cols);
        for tokens in TOKENS {
            let x = ok(Buffer::from_slice(&device, &fixed_blocks(&random.gaussians(tokens * cols)).1));
            let make = |_| (w.upload(&device), ok(Buffer::zeroed(&device, tokens * rows)));
            on_gpu(&mut group, &device, &format!("{rows}x{cols}/{tokens}"), w.bytes.len(), make, |(w, y)| {
                Matvec::new(w, x.slice(), y.slice_mut(), tokens).launch(&device)
            });
        }
    }
}
