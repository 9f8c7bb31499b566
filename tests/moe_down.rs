//! `moe_down` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::{BLOCK, TensorType::*};
use kquant_moe::device::{Buffer, Device, Slice};
use kquant_moe::kernels::{DownInput, FixedBlock, FloatsMut, Matrix, MoeDown};
use kquant_moe::{Result, oracle, sys};
use rayon::prelude::*;

on_devices!(
    equals_the_oracle,
    takes_many_pairs_of_an_expert,
    sums_in_one_order,
    stores_one_nan,
    batch_equals_single_tokens,
    quantizes_rows,
    absent_experts_give_nan,
    refuses_bad_arguments,
    refuses_bad_rows,
    stores_every_type_of_floats,
    rounds_ties_to_even,
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
    /// Empty unless it is asked for.
    sum: Vec<f32>,
    y: Vec<f32>,
}

fn run<D: Device>(device: &D, down: &Matrix<D>, operands: Operands<'_>, tokens: usize, optional: bool) -> Results {
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
    ok(MoeDown::new(
        down,
        x,
        (indices.slice(), weights.slice()),
        &groups,
        [tokens, top_k],
        expert_out.slice(),
        y.slice(),
    )
    .sum(sum.slice_if(optional))
    .accumulate(true)
    .launch(device));
    Results { expert_out: expert_out.read(), sum: if optional { sum.read() } else { Vec::new() }, y: y.read() }
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

/// Of a batch: rows of activations, indices, weights and the residual.
#[derive(Clone, Copy)]
struct Token<'a> {
    x: &'a [f32],
    indices: &'a [u32],
    weights: &'a [f32],
    residual: &'a [f32],
}

impl Token<'_> {
    /// Compares what the kernel makes of fixed point with the oracle, and of a single token's rows where it takes them; returns it.
    fn check<D: Device>(
        &self,
        device: &D,
        what: &str,
        w: &Weights,
        down: &Matrix<D>,
        tokens: usize,
        optional: bool,
    ) -> Results {
        let (blocks, digits) = fixed_blocks(self.x);
        let top_k = self.indices.len() / tokens;
        let expected = expected(w, &blocks, self.indices, self.weights, self.residual.to_vec(), top_k);
        let check = |what: &str, x| {
            let (indices, weights, residual) = (self.indices, self.weights, self.residual);
            let got = run(device, down, Operands { x, indices, weights, residual }, tokens, optional);
            assert_bits(&format!("{what}, expert_out"), &got.expert_out, &expected.expert_out);
            if optional {
                assert_bits(&format!("{what}, sum"), &got.sum, &expected.sum);
            }
            assert_bits(what, &got.y, &expected.y);
            got
        };
        let (rows, cols) = (w.rows, w.cols);
        let what = format!("{:?} [{rows}, {cols}], {tokens} tokens of {top_k} experts, {what}", w.kind);
        if tokens == 1 && blocks.len() <= DownInput::MAX_BLOCKS {
            check(&format!("{what}, rows"), X::Rows(self.x));
        }
        check(&what, X::Fixed(&digits))
    }
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
            // Of the fewest and the most experts and super-blocks that are still small, and one more of either.
            (17, 1024, 9, 8),
            (18, 1024, 12, 9),
            (19, 1280, 9, 8),
            // More than two groups of 16 super-blocks.
            (5, 8448, 3, 2),
            // More units than the kernel for a single token has shared memory for.
            (15, 1792, 34, 32),
            (9, 256, 40, 32),
        ],
        &[(2048, 768, 128, 8), (100, 4352, 8, 2)],
    );
    let tokens = size.shapes(&[1, 2, 3, 8, 9, 17], &[70]);
    for (shape, (rows, cols, experts, top_k)) in shapes.into_iter().enumerate() {
        for kind in size.kinds(shape, 4) {
            let w = Weights::random(&mut random, kind, experts, rows, cols);
            let down = w.upload(device);
            for (case, &tokens) in tokens.iter().enumerate() {
                if size == Size::Small && top_k >= 8 && rows > 1 && tokens > 3 {
                    continue;
                }
                let what = format!("{experts} experts");
                let x = Activations::rows(&mut random, case + shape, tokens * top_k, cols);
                let indices = moe::choose(&mut random, tokens, experts, top_k);
                let weights = random.gaussians(tokens * top_k);
                let residual = Activations::Mixed.row(&mut random, tokens * rows);
                let token = Token { x: &x, indices: &indices, weights: &weights, residual: &residual };
                let got = token.check(device, &what, &w, &down, tokens, case % 2 == 0);
                for (x, y) in x.chunks(top_k * cols).zip(got.y.chunks(rows)) {
                    if has_non_finite(x) {
                        assert_nan(&what, y);
                    }
                }
            }
        }
    }
}

/// So many pairs of each expert that warpgroups multiply them, where there are any: full items and remainders of both sizes, rows that fill no
/// tile, no CTA and several, trees of every height and two that are no power of two.
fn takes_many_pairs_of_an_expert<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(285);
    for (case, (rows, blocks)) in
        [(70, 1), (200, 2), (33, 3), (16, 5), (40, 8), (100, 16), (20, 17)].into_iter().enumerate()
    {
        for (beside, &kind) in [Q4K, Q5K, Q6K, IQ4XS].iter().enumerate() {
            let (experts, top_k, tokens) = (3, 2, [25, 40, 72][(case + beside) % 3]);
            let w = Weights::random(&mut random, kind, experts, rows, blocks * BLOCK);
            let down = w.upload(device);
            let x = Activations::rows(&mut random, case + beside, tokens * top_k, w.cols);
            let indices = moe::choose(&mut random, tokens, experts, top_k);
            let weights = random.gaussians(tokens * top_k);
            let residual = random.gaussians(tokens * rows);
            let token = Token { x: &x, indices: &indices, weights: &weights, residual: &residual };
            token.check(device, "many pairs", &w, &down, tokens, true);
        }
    }
}

/// On each of the launcher's paths: sums over super-blocks and over experts whose order shows, and super-blocks in which all but a rounding
/// error cancels.
fn sums_in_one_order<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(280);
    let rows = 18;
    let mut check = |w: &Weights, top_k: usize, x: &[f32], weights: &[f32]| {
        let down = w.upload(device);
        let pairs = weights.len();
        let residual = vec![0.0; pairs / top_k * rows];
        // Every token and the whole batch.
        for tokens in [1, pairs / top_k] {
            for first in (0..pairs).step_by(tokens * top_k) {
                let part = first..first + tokens * top_k;
                let token = Token {
                    x: &x[part.start * w.cols..part.end * w.cols],
                    indices: &moe::choose(&mut random, tokens, w.experts, top_k),
                    weights: &weights[part],
                    residual: &residual[..tokens * rows],
                };
                token.check(device, "order", w, &down, tokens, true);
            }
        }
    };
    for (case, (blocks, top_k)) in
        [(1, 1), (2, 8), (3, 3), (4, 8), (4, 2), (5, 4), (8, 3), (16, 1), (24, 1), (17, 2), (33, 2), (64, 2)]
            .into_iter()
            .enumerate()
    {
        let mut random = Random::new(281 + case as u64);
        let (kind, experts, cols) = ([Q4K, Q6K][case % 2], top_k + 1, blocks * BLOCK);
        let w = Weights::uniform(&mut random, kind, experts, rows, cols);
        let sequences = pins::sequences(blocks);
        let pairs = sequences.len().next_multiple_of(top_k);
        let x: Vec<f32> =
            sequences.iter().cycle().take(pairs).flat_map(|numbers| one_a_block(&mut random, numbers)).collect();
        check(&w, top_k, &x, &random.gaussians(pairs));
        let w = Weights::cancelling(&mut random, experts, rows, cols);
        let x = [random.numbers(1, 2 * top_k * cols / 2), random.numbers(-14, 2 * top_k * cols / 2)];
        let x: Vec<f32> = x[0].iter().zip(&x[1]).flat_map(|(&a, &b)| [a, b]).collect();
        check(&w, top_k, &x, &random.gaussians(2 * top_k));
    }
    // Every expert gives the same, and the weights cancel.
    for (case, top_k) in [1, 2, 3, 5, 8, 9, 15, 16, 17, 24, 31, 32].into_iter().enumerate() {
        for blocks in [1, 2, 5] {
            let mut random = Random::new(300 + case as u64);
            let w = Weights::uniform(&mut random, [Q6K, Q4K][case % 2], top_k + 1, rows, blocks * BLOCK);
            let weights = pins::sequences(top_k).concat();
            let mut ones = vec![0.0; blocks];
            ones[blocks / 2] = 1.0;
            let x: Vec<f32> = weights.iter().flat_map(|_| one_a_block(&mut random, &ones)).collect();
            check(&w, top_k, &x, &weights);
        }
    }
}

/// NaNs in all operands, none of them the one that is stored.
fn stores_one_nan<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(282);
    for (case, (blocks, top_k)) in [(2, 3), (5, 9), (17, 2), (33, 2)].into_iter().enumerate() {
        for kind in size.kinds(case, 4) {
            let (rows, cols, experts) = (20, blocks * BLOCK, top_k + 1);
            let sound = Weights::random(&mut random, kind, experts, rows, cols);
            let mut spoilt = sound.clone();
            let has_nan = spoilt.spoil();
            let (down, spoilt_down) = (sound.upload(device), spoilt.upload(device));
            for (case, tokens) in [1, 3].into_iter().enumerate() {
                let pairs = tokens * top_k;
                let (x, indices) = (random.gaussians(pairs * cols), moe::choose(&mut random, tokens, experts, top_k));
                let (weights, residual) = (random.gaussians(pairs), random.gaussians(tokens * rows));
                let whole = Token { x: &x, indices: &indices, weights: &weights, residual: &residual };
                let last = rows * (tokens - 1)..;

                let got = whole.check(device, "NaN in the matrix", &spoilt, &spoilt_down, tokens, true);
                if has_nan {
                    got.y.chunks(rows).for_each(|y| assert_stored_nan("matrix", &y[1..3]));
                }

                let mut with_nan = weights.clone();
                with_nan[pairs - 1] = NANS[case];
                let token = Token { weights: &with_nan, ..whole };
                let got = token.check(device, "NaN in weights", &sound, &down, tokens, true);
                assert_stored_nan("weights", &got.y[last.clone()]);
                assert_stored_nan("weights", &got.sum[last.clone()]);

                let mut with_nan = x.clone();
                with_nan[pairs * cols - 1] = NANS[case + 1];
                let token = Token { x: &with_nan, ..whole };
                let got = token.check(device, "NaN in activations", &sound, &down, tokens, true);
                assert_stored_nan("activations", &got.y[last]);

                let mut with_nan = residual.clone();
                NANS.into_iter().enumerate().for_each(|(i, nan)| with_nan[rows * tokens - 1 - 3 * i] = nan);
                let token = Token { residual: &with_nan, ..whole };
                let got = token.check(device, "NaN in the residual", &sound, &down, tokens, false);
                (0..4).for_each(|i| assert_stored_nan("residual", &[got.y[rows * tokens - 1 - 3 * i]]));
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
    let shapes = size.shapes(&[(40, 768, 6, 3, 20), (17, 4352, 4, 2, 9)], &[(2048, 768, 128, 8, 64)]);
    for (shape, (rows, cols, experts, top_k, tokens)) in shapes.into_iter().enumerate() {
        for kind in size.kinds(shape, 2) {
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
    MoeDown::new(
        down,
        x,
        (indices.slice(), weights),
        &moe::group(device, &indices, tokens, down.experts(), top_k),
        [tokens, top_k],
        expert_out.slice_mut(),
        y.slice_mut(),
    )
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
        &[
            (40, 256, 6, 3),
            (1, 768, 9, 8),
            (15, 256, 30, 24),
            (17, 2048, 4, 3),
            (16, 6144, 2, 1),
            (33, 512, 5, 1),
            (17, 1024, 7, 6),
            (18, 512, 12, 9),
            (19, 1280, 5, 4),
        ],
        &[(2048, 768, 128, 8)],
    );
    for (shape, (rows, cols, experts, top_k)) in shapes.into_iter().enumerate() {
        for kind in size.kinds(shape, 4) {
            let w = Weights::random(&mut random, kind, experts, rows, cols);
            let down = w.upload(device);
            for case in 0..Activations::ALL.len() {
                let x = Activations::rows(&mut random, case, top_k, cols);
                let indices = random.distinct(experts, top_k);
                let (weights, residual) = (random.gaussians(top_k), random.gaussians(rows));
                let token = Token { x: &x, indices: &indices, weights: &weights, residual: &residual };
                token.check(device, &format!("rows {case}"), &w, &down, 1, case % 2 == 0);
            }
        }
    }
}

/// On each of the launcher's paths: stored or added, as f32, f16 or bf16, with sums on ties, beyond the range of f16, and NaN. A single token has
/// no groups.
fn stores_every_type_of_floats<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(430);
    // Few units, many, and more than fit into shared memory.
    for (rows, cols, top_k) in [(40, 256, 3), (17, 1280, 9), (15, 6656, 2)] {
        let w = Weights::random(&mut random, Q5K, top_k + 1, rows, cols);
        let down = w.upload(device);
        for tokens in [1, 3] {
            let pairs = tokens * top_k;
            let x: Vec<f32> = random
                .gaussians(pairs * cols)
                .iter()
                .enumerate()
                .map(|(k, x)| x * [1.0, 1e3, 1e-6][k / cols % 3])
                .collect();
            let (blocks, digits) = fixed_blocks(&x);
            let indices = moe::choose(&mut random, tokens, w.experts, top_k);
            let mut weights = random.gaussians(pairs);
            weights[pairs - 1] = if tokens == 3 { f32::NAN } else { 1e4 };
            let mut residual = random.gaussians(tokens * rows);
            (residual[0], residual[1], residual[2]) = (NANS[0], f32::INFINITY, -0.0);
            for (kind, accumulate) in [F32, F16, BF16].into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
                let what = format!("[{rows}, {cols}], {tokens} tokens of {top_k} experts, {kind}, added: {accumulate}");
                // What stands in y, as the oracle sees it.
                let bits = halves_as(kind, &residual);
                let before: Vec<f32> = match kind {
                    F32 => residual.clone(),
                    _ => bits.iter().map(|&bits| oracle::widened(kind, bits).unwrap()).collect(),
                };
                let expected = expected(&w, &blocks, &indices, &weights, before, top_k);
                let expected = if accumulate { expected.y } else { expected.sum };
                let fused = tokens == 1 && top_k * cols / BLOCK <= DownInput::MAX_BLOCKS;
                let (digits, rows_of_x) = (input(device, &digits), input(device, &x));
                let (chosen, factors) = (input(device, &indices), input(device, &weights));
                let groups = (tokens > 1).then(|| moe::group(device, &chosen, tokens, w.experts, top_k));
                let launch = |x, y: FloatsMut<'_>| {
                    let mut expert_out = Output::new(device, pairs * rows);
                    let (operands, shape) = ((chosen.slice(), factors.slice()), [tokens, top_k]);
                    ok(MoeDown::new(&down, x, operands, groups.as_ref(), shape, expert_out.slice(), y)
                        .accumulate(accumulate)
                        .launch(device));
                };
                let inputs = [DownInput::Fixed(digits.slice()), DownInput::Rows(rows_of_x.slice())];
                for x in inputs.into_iter().take(1 + usize::from(fused)) {
                    if kind == F32 {
                        let mut y = Output::starting_with(device, &residual);
                        launch(x, y.slice().into());
                        assert_bits(&what, &y.read(), &expected);
                        continue;
                    }
                    let mut y = Output::starting_with(device, &bits);
                    let slice = y.slice();
                    launch(x, if kind == F16 { FloatsMut::F16(slice) } else { FloatsMut::BF16(slice) });
                    let expected: Vec<u16> = expected.iter().map(|&x| oracle::narrowed(kind, x).unwrap()).collect();
                    assert_same(&what, &y.read(), &expected);
                }
            }
        }
    }
}

/// Sums that lie in the middle of two f16 or bf16, and right beside it; at the ends of their ranges, and beyond.
fn rounds_ties_to_even<D: Device>(device: &D, _: Size) {
    // A matrix of ones: what comes out is what went in.
    let ones: Vec<u8> = [0x00, 0x3c].into_iter().chain([1; 32]).collect();
    let w = Weights { kind: Q8_0, experts: 1, rows: 1, cols: BLOCK, bytes: ones.repeat(8) };
    let down = w.upload(device);
    // Significands of 11 bits and a half, and of 8, by the smallest and the largest exponents and some between.
    let mut values = vec![65504.0, 65519.996, 65520.0, 65536.0, f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), 0.0];
    for (bits, exponents) in [(11, [-14, -24, 0, 15]), (8, [-126, -3, 0, 127])] {
        for exponent in exponents {
            for significand in [(1 << bits) + 1, (1 << bits) + 3, (2 << bits) - 1, 1, 3] {
                let tie = (f64::from(significand) * f64::powi(2.0, exponent - bits)) as f32;
                values.extend([tie, tie.next_up(), tie.next_down()]);
            }
        }
    }
    let values: Vec<f32> = values.iter().flat_map(|&value| [value, -value]).collect();
    let x: Vec<f32> =
        values.iter().flat_map(|&value| (0..BLOCK).map(move |k| if k == 77 { value } else { 0.0 })).collect();
    let (_, digits) = fixed_blocks(&x);
    let tokens = values.len();
    let (x, chosen) = (input(device, &digits), input(device, &vec![0; tokens]));
    let weights = input(device, &vec![1.0; tokens]);
    for kind in [F16, BF16] {
        let expected: Vec<u16> = values.iter().map(|&value| oracle::narrowed(kind, value + 0.0).unwrap()).collect();
        for together in [tokens, 1] {
            for first in (0..tokens).step_by(together) {
                let groups = moe::group(device, &chosen, together, 1, 1);
                let (mut expert_out, mut y) = (Output::new(device, together), Output::new(device, together));
                let y_of_kind = if kind == F16 { FloatsMut::F16(y.slice()) } else { FloatsMut::BF16(y.slice()) };
                let x = DownInput::Fixed(x.part(first, together).unwrap());
                let operands = (chosen.part(0, together).unwrap(), weights.part(0, together).unwrap());
                ok(MoeDown::new(&down, x, operands, &groups, [together, 1], expert_out.slice(), y_of_kind)
                    .launch(device));
                let what = format!("{kind} of {:e}", values[first]);
                assert_same(&what, &y.read(), &expected[first..first + together]);
            }
        }
    }
    // The oracle's rounding itself, where it is known.
    for (kind, value, bits) in [
        (F16, 1.0 + 1.0 / 2048.0, 0x3c00),
        (F16, 1.0 + 3.0 / 2048.0, 0x3c02),
        (F16, 65520.0, 0x7c00),
        (F16, -65519.996, 0xfbff),
        (BF16, 1.0 + 1.0 / 256.0, 0x3f80),
        (BF16, 1.0 + 3.0 / 256.0, 0x3f82),
        (BF16, f32::MAX, 0x7f80),
        (BF16, NANS[1], 0x7fc0),
        (F16, NANS[1], 0x7e00),
    ] {
        assert_eq!(oracle::narrowed(kind, value), Some(bits), "{kind} of {value:e}");
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
