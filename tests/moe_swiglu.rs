//! `moe_swiglu` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::{BLOCK, TensorType, TensorType::*};
use kquant_moe::device::{Buffer, Device, Slice};
use kquant_moe::kernels::{FixedBlock, Groups, Matrix, MoeSwiglu};
use kquant_moe::{oracle, sys};
use rayon::prelude::*;

on_devices!(equals_the_oracle, batch_equals_single_tokens, refuses_bad_arguments);

const MIXES: [[TensorType; 2]; 4] = [[Q4K, Q4K], [Q4K, Q6K], [Q6K, Q4K], [Q6K, Q6K]];

/// gate_out, up_out (empty without taps) and out.
fn run<D: Device>(
    device: &D,
    [gate, up]: [&Matrix<D>; 2],
    x: &[FixedBlock],
    indices: &[u32],
    tokens: usize,
    taps: bool,
) -> [Vec<f32>; 3] {
    let (top_k, pairs) = (indices.len() / tokens, indices.len());
    let (x, indices) = (input(device, x), input(device, indices));
    let groups = moe::group(device, &indices, tokens, gate.experts(), top_k);
    let mut outputs = [0, 1, 2].map(|_| Output::new(device, pairs * gate.rows()));
    let [gate_out, up_out, out] = &mut outputs;
    ok(MoeSwiglu {
        gate,
        up,
        x: x.slice(),
        indices: indices.slice(),
        groups: &groups,
        gate_out: gate_out.slice_if(taps),
        up_out: up_out.slice_if(taps),
        out: out.slice(),
        tokens,
        top_k,
    }
    .launch(device));
    let [gate_out, up_out, out] = outputs;
    if taps { [gate_out.read(), up_out.read(), out.read()] } else { [Vec::new(), Vec::new(), out.read()] }
}

fn expected([gate, up]: [&Weights; 2], x: &[oracle::FixedBlock], indices: &[u32], top_k: usize) -> [Vec<f32>; 3] {
    let (ff, blocks) = (gate.rows, gate.cols / BLOCK);
    let mut outputs = [0, 1, 2].map(|_| vec![0.0; indices.len() * ff]);
    let [gate_out, up_out, out] = &mut outputs;
    let rows = gate_out.par_chunks_mut(ff).zip(up_out.par_chunks_mut(ff)).zip(out.par_chunks_mut(ff));
    rows.enumerate().for_each(|(pair, ((gate_out, up_out), out))| {
        let (expert, x) = (indices[pair] as usize, &x[pair / top_k * blocks..][..blocks]);
        oracle::moe_swiglu::moe_swiglu(gate.expert(expert), up.expert(expert), x, gate_out, up_out, out);
    });
    outputs
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(26);
    // ff, cols, experts, top_k
    let shapes = size.shapes(
        &[(40, 256, 6, 3), (1, 768, 5, 2), (15, 2048, 9, 8), (17, 4096, 3, 1), (16, 4352, 3, 2), (7, 256, 40, 32)],
        &[(768, 2048, 128, 8), (100, 4352, 8, 2)],
    );
    let tokens = size.shapes(&[1, 2, 3, 8, 9, 17], &[70]);
    for (shape, (ff, cols, experts, top_k)) in shapes.into_iter().enumerate() {
        for (mix, kinds) in MIXES.into_iter().enumerate() {
            let w = kinds.map(|kind| Weights::random(&mut random, kind, experts, ff, cols));
            let matrices = w.each_ref().map(|w| w.upload(device));
            // On the emulation every mix has a third of the numbers of tokens for each shape.
            let step = if size == Size::Small { 3 } else { 1 };
            for (case, &tokens) in tokens.iter().enumerate().skip((shape + mix) % step).step_by(step) {
                let what = format!("{kinds:?} [{experts}][{ff}, {cols}], {tokens} tokens of {top_k} experts");
                let x = Activations::rows(&mut random, case + mix + shape, tokens, cols);
                let indices = moe::choose(&mut random, tokens, experts, top_k);
                let (blocks, digits) = fixed_blocks(&x);
                let taps = (case + mix) % 2 == 0;
                let got = run(device, matrices.each_ref(), &digits, &indices, tokens, taps);
                let expected = expected(w.each_ref(), &blocks, &indices, top_k);
                if taps {
                    assert_bits(&format!("{what}, gate"), &got[0], &expected[0]);
                    assert_bits(&format!("{what}, up"), &got[1], &expected[1]);
                }
                assert_bits(&what, &got[2], &expected[2]);
                for (x, out) in x.chunks(cols).zip(got[2].chunks(top_k * ff)) {
                    if has_non_finite(x) {
                        assert_nan(&what, out);
                    }
                }
            }
        }
    }
}

/// Grouped by expert, a pair gets what it gets alone.
fn batch_equals_single_tokens<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(27);
    for (ff, cols, experts, top_k, tokens) in
        size.shapes(&[(40, 768, 6, 3, 20), (17, 4352, 4, 2, 9)], &[(768, 2048, 128, 8, 64)])
    {
        let w = [Q4K, Q6K].map(|kind| Weights::random(&mut random, kind, experts, ff, cols).upload(device));
        let indices = moe::choose(&mut random, tokens, experts, top_k);
        let (_, x) = fixed_blocks(&Activations::rows(&mut random, 0, tokens, cols));
        let [.., together] = run(device, w.each_ref(), &x, &indices, tokens, false);
        for token in 0..tokens {
            let (x, indices) = (&x[token * cols / BLOCK..][..cols / BLOCK], &indices[token * top_k..][..top_k]);
            let [.., alone] = run(device, w.each_ref(), x, indices, 1, false);
            assert_bits("single token", &together[token * top_k * ff..][..top_k * ff], &alone);
        }
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let matrix = |rows, cols, experts| Matrix::uninitialised(device, Q4K, rows, cols, experts).unwrap();
    let good = matrix(16, 256, 4);
    let others = [matrix(17, 256, 4), matrix(16, 512, 4), matrix(16, 256, 5), matrix(16, 256, 1)];
    let x: Buffer<D, FixedBlock> = Buffer::zeroed(device, 4).unwrap();
    let indices: Buffer<D, u32> = Buffer::zeroed(device, 64).unwrap();
    let mut out: Buffer<D, f32> = Buffer::zeroed(device, 1024).unwrap();
    let groups = ok(Groups::new(device, 4, 4, 4));
    let x_at = x.slice().as_ptr() as u64;
    let mut run = |up, x: u64, tokens, top_k| {
        MoeSwiglu {
            gate: &good,
            up,
            // SAFETY: as long as the buffer says, or refused before anything is read.
            x: unsafe { Slice::from_raw(x, 4) },
            indices: indices.slice(),
            groups: &groups,
            gate_out: None,
            up_out: None,
            out: out.slice_mut(),
            tokens,
            top_k,
        }
        .launch(device)
    };
    for up in &others {
        assert_status(run(up, x_at, 1, 2), sys::KQM_BAD_SHAPE);
    }
    assert_status(run(&good, 0, 1, 2), sys::KQM_NULL_POINTER);
    assert_status(run(&good, x_at + 8, 1, 2), sys::KQM_MISALIGNED);
    for (tokens, top_k) in [(0, 2), (1, 0), (1, 5)] {
        assert_status(run(&good, x_at, tokens, top_k), sys::KQM_BAD_SHAPE);
    }
    assert_invalid(run(&good, x_at, 5, 2));
    assert_eq!(status_without_arguments!(device, moe_swiglu), sys::KQM_NULL_POINTER);
}
