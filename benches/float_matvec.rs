//! `float_matvec` at full size: a projection of attention, and the experts of a token.

mod common;

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use kquant_moe::blocks::TensorType;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{FloatMatrix, FloatMatvec};
use kquant_moe::oracle::float_matvec::{Floats, float_matvec};

fn bench(criterion: &mut Criterion) {
    let mut random = Random::new(81);
    let device = gpu();
    for &kind in TensorType::FLOATS {
        let mut group = group(criterion, &format!("float_matvec/{kind}"));
        for tokens in TOKENS {
            let (rows, cols) = if device.is_some() { (HEADS * HEAD_DIM, HIDDEN) } else { (256, HIDDEN) };
            let weights = floats_as(kind, &random.gaussians(rows * cols));
            let x = random.gaussians(tokens * cols);
            let id = format!("{rows}x{cols}/{tokens}");
            if let Some(device) = &device {
                let make = |_| {
                    let mut w = ok(FloatMatrix::zeroed(device, kind, rows, cols, 1));
                    ok(w.bytes_mut().write(device, 0, &weights));
                    (w, ok(Buffer::from_slice(device, &x)), ok(Buffer::zeroed(device, tokens * rows)))
                };
                on_gpu(&mut group, device, &id, weights.len(), make, |(w, x, y)| {
                    FloatMatvec::new(w, x.slice(), y.slice_mut(), tokens).launch(device)
                });
            } else {
                let mut y = vec![0.0; tokens * rows];
                let w = Floats { bytes: &weights, kind, cols };
                on_cpu(&mut group, &id, weights.len(), || float_matvec(w, &x, &mut y));
            }
        }
        if let Some(device) = &device {
            let (rows, cols) = (FF, HIDDEN);
            let weights = floats_as(kind, &random.gaussians(TOP_K * rows * cols));
            let x = random.gaussians(cols);
            let chosen: Vec<u32> = (0..TOP_K as u32).collect();
            let make = |_| {
                let mut w = ok(FloatMatrix::zeroed(device, kind, rows, cols, TOP_K));
                ok(w.bytes_mut().write(device, 0, &weights));
                let (x, chosen) = (ok(Buffer::from_slice(device, &x)), ok(Buffer::from_slice(device, &chosen)));
                (w, x, chosen, ok(Buffer::zeroed(device, TOP_K * rows)))
            };
            let id = format!("experts/{TOP_K}x{rows}x{cols}");
            on_gpu(&mut group, device, &id, weights.len(), make, |(w, x, chosen, y)| {
                FloatMatvec::new(w, x.slice(), y.slice_mut(), TOP_K).experts(chosen.slice(), TOP_K).launch(device)
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
