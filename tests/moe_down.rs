//! `moe_down` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::{BLOCK, TensorType::*};
use kquant_moe::device::{Buffer, Device, Slice};
use kquant_moe::kernels::{DownInput, FixedBlock, Matrix, MoeDown};
use kquant_moe::{Result, oracle, sys};
use rayon::prelude::*;

on_devices!(
    equals_the_oracle,
    batch_equals_single_tokens,
    quantizes_rows,
    absent_experts_give_nan,
    refuses_bad_arguments,
    refuses_bad_rows,
);

/// Of one batch: x, indices, weights and the residual.
struct Operands<'a> {
    x: X<'a>,
    indices: &'a [u32],
    weights: &'a [f32],
    residual: &'a [f32],
}

/// Activations as fixed point, or as the rows that the kernel quantizes itself.
#[derive(Clone, Copy)]
enum X<'a> {
    Fixed(&'a [FixedBlock]),
    Rows(&'a [f32]),
}

#[derive(Debug)]
struct Results {
    expert_out: Vec<f32>,
    /// Empty without the tap.
    sum: Vec<f32>,
    y: Vec<f32>,
}

fn run<D: Device>(device: &D, down: &Matrix<D>, operands: Operands<'_>, tokens: usize, tap: bool) -> Results {
    let (top_k, rows) = (operands.indices.len() / tokens, down.rows());
    let (digits, rows_of_x) = match operands.x {
        X::Fixed(x) => (Some(input(device, x)), None),
        X::Rows(x) => (None, Some(input(device, x))),
    };
    let x = digits.as_ref().map(|x| DownInput::Fixed(x.slice()));
    let x = x.or(rows_of_x.as_ref().map(|x| DownInput::Rows(x.slice()))).unwrap();
    let (indices, weights) = (input(device, operands.indices), input(device, operands.weights));
    let groups = moe::group(device, &indices, tokens, down.experts(), top_k);
    let mut expert_out = Output::new(device, tokens * top_k * rows);
    let mut sum = Output::new(device, tokens * rows);
    let mut y = Output::starting_with(device, operands.residual);
    ok(MoeDown {
        down,
        x,
        indices: indices.slice(),
        weights: weights.slice(),
        groups: &groups,
        expert_out: expert_out.slice(),
        sum: sum.slice_if(tap),
        y: y.slice(),
        tokens,
        top_k,
    }
    .launch(device));
    Results { expert_out: expert_out.read(), sum: if tap { sum.read() } else { Vec::new() }, y: y.read() }
}

fn expected(
    down: &Weights,
    x: &[oracle::FixedBlock],
    indices: &[u32],
    weights: &[f32],
    mut y: Vec<f32>,
    top_k: usize,
) -> Results {
    let (rows, blocks) = (down.rows, down.cols / BLOCK);
    let mut expert_out = vec![0.0; indices.len() * rows];
    expert_out.par_chunks_mut(rows).enumerate().for_each(|(pair, out)| match indices[pair] as usize {
        expert if expert < down.experts => {
            oracle::product(down.expert(expert), down.cols, &x[pair * blocks..][..blocks], out);
        }
        _ => oracle::absent(out),
    });
    let mut sum = vec![0.0; y.len()];
    let tokens = weights.chunks(top_k).zip(expert_out.chunks(top_k * rows)).zip(sum.chunks_mut(rows));
    for ((weights, expert_out), sum) in tokens {
        oracle::moe_down::moe_down(weights, expert_out, sum);
    }
    oracle::residual_add::residual_add(&mut y, &sum);
    Results { expert_out, sum, y }
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(28);
    // rows, cols, experts, top_k
    let shapes = size.shapes(
        &[
            (40, 256, 6, 3),
            (1, 768, 9, 8),
            (15, 2048, 5, 1),
            (17, 4096, 3, 2),
            (16, 4352, 3, 2),
            (300, 256, 4, 4),
            // More units than the kernel for a single token has shared memory for.
            (15, 1792, 34, 32),
            (9, 256, 40, 32),
        ],
        &[(2048, 768, 128, 8), (100, 4352, 8, 2)],
    );
    let tokens = size.shapes(&[1, 2, 3, 8, 9, 17], &[70]);
    for (shape, (rows, cols, experts, top_k)) in shapes.into_iter().enumerate() {
        for kind in [Q4K, Q6K] {
            let w = Weights::random(&mut random, kind, experts, rows, cols);
            let down = w.upload(device);
            for (case, &tokens) in tokens.iter().enumerate() {
                if size == Size::Small && top_k == 32 && tokens > 3 {
                    continue;
                }
                let what = format!("{kind:?} [{experts}][{rows}, {cols}], {tokens} tokens of {top_k} experts");
                let x = Activations::rows(&mut random, case + shape, tokens * top_k, cols);
                let (blocks, digits) = fixed_blocks(&x);
                let indices = moe::choose(&mut random, tokens, experts, top_k);
                let weights = random.gaussians(tokens * top_k);
                let residual = Activations::Mixed.row(&mut random, tokens * rows);
                let tap = case % 2 == 0;
                let operands =
                    Operands { x: X::Fixed(&digits), indices: &indices, weights: &weights, residual: &residual };
                let got = run(device, &down, operands, tokens, tap);
                let expected = expected(&w, &blocks, &indices, &weights, residual, top_k);
                assert_bits(&format!("{what}, expert_out"), &got.expert_out, &expected.expert_out);
                if tap {
                    assert_bits(&format!("{what}, sum"), &got.sum, &expected.sum);
                }
                assert_bits(&what, &got.y, &expected.y);
                for (x, y) in x.chunks(top_k * cols).zip(got.y.chunks(rows)) {
                    if has_non_finite(x) {
                        assert_nan(&what, y);
                    }
                }
            }
        }
    }
}

/// Indices of experts that do not exist give NaN, in every form of the kernel, and so does all of their token.
fn absent_experts_give_nan<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(62);
    // Few units and many, more than a block has warps, and more than fit into shared memory.
    let shapes = size.shapes(
        &[(17, 512, 5, 3), (17, 1280, 5, 3), (15, 256, 40, 9), (15, 6656, 3, 1), (15, 4352, 12, 10)],
        &[(2048, 768, 128, 8)],
    );
    for (rows, cols, experts, top_k) in shapes {
        let w = Weights::random(&mut random, Q6K, experts, rows, cols);
        let down = w.upload(device);
        for tokens in [1, 2, 9] {
            let x = random.gaussians(tokens * top_k * cols);
            let (blocks, digits) = fixed_blocks(&x);
            let (weights, residual) = (random.gaussians(tokens * top_k), random.gaussians(tokens * rows));
            for absent in moe::absent(experts) {
                let what = format!("[{experts}][{rows}, {cols}], {tokens} tokens of {top_k} experts, expert {absent}");
                let indices = moe::with_absent(&mut random, tokens, experts, top_k, absent);
                let expected = expected(&w, &blocks, &indices, &weights, residual.clone(), top_k);
                let fused = tokens == 1 && top_k * cols / BLOCK <= DownInput::MAX_BLOCKS;
                for x in [X::Fixed(&digits), X::Rows(&x)].into_iter().take(1 + usize::from(fused)) {
                    let operands = Operands { x, indices: &indices, weights: &weights, residual: &residual };
                    let got = run(device, &down, operands, tokens, true);
                    assert_bits(&format!("{what}, expert_out"), &got.expert_out, &expected.expert_out);
                    assert_bits(&format!("{what}, sum"), &got.sum, &expected.sum);
                    assert_bits(&what, &got.y, &expected.y);
                }
            }
        }
    }
}

/// Grouped by expert, a token gets what it gets alone.
fn batch_equals_single_tokens<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(29);
    for (rows, cols, experts, top_k, tokens) in
        size.shapes(&[(40, 768, 6, 3, 20), (17, 4352, 4, 2, 9)], &[(2048, 768, 128, 8, 64)])
    {
        for kind in [Q4K, Q6K] {
            let down = Weights::random(&mut random, kind, experts, rows, cols).upload(device);
            let indices = moe::choose(&mut random, tokens, experts, top_k);
            let (_, x) = fixed_blocks(&Activations::rows(&mut random, 0, tokens * top_k, cols));
            let (weights, residual) = (random.gaussians(tokens * top_k), random.gaussians(tokens * rows));
            let part = |first: usize, tokens: usize| {
                let (pairs, blocks) = (first * top_k..(first + tokens) * top_k, cols / BLOCK);
                let operands = Operands {
                    x: X::Fixed(&x[pairs.start * blocks..pairs.end * blocks]),
                    indices: &indices[pairs.clone()],
                    weights: &weights[pairs],
                    residual: &residual[first * rows..(first + tokens) * rows],
                };
                run(device, &down, operands, tokens, true)
            };
            let together = part(0, tokens);
            for token in 0..tokens {
                let alone = part(token, 1);
                assert_bits("y", &together.y[token * rows..][..rows], &alone.y);
                assert_bits("sum", &together.sum[token * rows..][..rows], &alone.sum);
                let pairs = top_k * rows;
                assert_bits("expert_out", &together.expert_out[token * pairs..][..pairs], &alone.expert_out);
            }
        }
    }
}

/// A launch whose operands, but for `x` and the weights, are good for some tokens.
fn launch<D: Device>(
    device: &D,
    down: &Matrix<D>,
    x: DownInput<'_>,
    weights: Slice<'_, f32>,
    tokens: usize,
    top_k: usize,
) -> Result<()> {
    let indices: Buffer<D, u32> = Buffer::zeroed(device, 64).unwrap();
    let mut expert_out: Buffer<D, f32> = Buffer::zeroed(device, 1024).unwrap();
    let mut y: Buffer<D, f32> = Buffer::zeroed(device, 1024).unwrap();
    MoeDown {
        down,
        x,
        indices: indices.slice(),
        weights,
        groups: &moe::group(device, &indices, tokens, down.experts(), top_k),
        expert_out: expert_out.slice_mut(),
        sum: None,
        y: y.slice_mut(),
        tokens,
        top_k,
    }
    .launch(device)
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let down = Matrix::zeroed(device, Q6K, 16, 256, 4).unwrap();
    let x: Buffer<D, FixedBlock> = Buffer::zeroed(device, 32).unwrap();
    let weights: Buffer<D, f32> = Buffer::zeroed(device, 64).unwrap();
    let (x_at, weights_at) = (x.slice().as_ptr() as u64, weights.slice().as_ptr() as u64);
    let run = |x: u64, weights: u64, tokens, top_k| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (x, weights) = unsafe { (Slice::from_raw(device, x, 32), Slice::from_raw(device, weights, 64)) };
        launch(device, &down, DownInput::Fixed(x), weights, tokens, top_k)
    };
    assert_status(run(0, weights_at, 1, 2), sys::KQM_NULL_POINTER);
    assert_status(run(x_at, 0, 1, 2), sys::KQM_NULL_POINTER);
    assert_status(run(x_at + 8, weights_at, 1, 2), sys::KQM_MISALIGNED);
    for top_k in [0, 5] {
        assert_status(run(x_at, weights_at, 1, top_k), sys::KQM_BAD_SHAPE);
    }
    assert_invalid(run(x_at, weights_at, 0, 2));
    assert_invalid(run(x_at, weights_at, 33, 1));
    assert_eq!(status_without_arguments!(device, moe_down), sys::KQM_NULL_POINTER);
}

/// A single token's rows, quantized by the kernel, give what they give as fixed point: up to the most blocks that it takes.
fn quantizes_rows<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(43);
    // rows, cols, experts, top_k
    let shapes = size.shapes(
        &[(40, 256, 6, 3), (1, 768, 9, 8), (15, 256, 30, 24), (17, 2048, 4, 3), (16, 6144, 2, 1), (33, 512, 5, 1)],
        &[(2048, 768, 128, 8)],
    );
    for (rows, cols, experts, top_k) in shapes {
        for kind in [Q4K, Q6K] {
            let w = Weights::random(&mut random, kind, experts, rows, cols);
            let down = w.upload(device);
            for case in 0..Activations::ALL.len() {
                let what = format!("{kind:?} [{experts}][{rows}, {cols}], {top_k} experts, rows {case}");
                let x = Activations::rows(&mut random, case, top_k, cols);
                let (blocks, digits) = fixed_blocks(&x);
                let indices = random.distinct(experts, top_k);
                let (weights, residual) = (random.gaussians(top_k), random.gaussians(rows));
                let run = |x, tap| {
                    let operands = Operands { x, indices: &indices, weights: &weights, residual: &residual };
                    run(device, &down, operands, 1, tap)
                };
                let (got, fixed) = (run(X::Rows(&x), case % 2 == 0), run(X::Fixed(&digits), true));
                let expected = expected(&w, &blocks, &indices, &weights, residual.clone(), top_k);
                assert_bits(&format!("{what}, expert_out"), &got.expert_out, &expected.expert_out);
                assert_bits(&what, &got.y, &expected.y);
                if case % 2 == 0 {
                    assert_bits(&format!("{what}, sum"), &got.sum, &expected.sum);
                }
                assert_bits(&format!("{what}, fixed"), &fixed.expert_out, &expected.expert_out);
                assert_bits(&format!("{what}, fixed"), &fixed.y, &expected.y);
            }
        }
    }
}

fn refuses_bad_rows<D: Device>(device: &D, _: Size) {
    let cols = BLOCK * (DownInput::MAX_BLOCKS / 4);
    let matrix = |cols| Matrix::zeroed(device, Q6K, 16, cols, 8).unwrap();
    let (good, long) = (matrix(cols), matrix(cols + BLOCK));
    let x: Buffer<D, f32> = Buffer::zeroed(device, 8 * cols).unwrap();
    let weights: Buffer<D, f32> = Buffer::zeroed(device, 64).unwrap();
    let x_at = x.slice().as_ptr() as u64;
    let run = |down, (at, len): (u64, usize), tokens, top_k| {
        // SAFETY: as long as the buffer says, or refused before anything is read.
        let x = DownInput::Rows(unsafe { Slice::from_raw(device, at, len) });
        launch(device, down, x, weights.slice(), tokens, top_k)
    };
    let whole = (x_at, 8 * cols);
    assert_status(run(&long, whole, 1, 4), sys::KQM_BAD_SHAPE);
    assert_status(run(&good, whole, 1, 5), sys::KQM_BAD_SHAPE);
    assert_status(run(&good, whole, 2, 2), sys::KQM_BAD_SHAPE);
    assert_status(run(&good, (0, 4 * cols), 1, 4), sys::KQM_NULL_POINTER);
    assert_status(run(&good, (x_at + 4, 4 * cols), 1, 4), sys::KQM_MISALIGNED);
    assert_invalid(run(&good, (x_at, 4 * cols - 1), 1, 4));
}
