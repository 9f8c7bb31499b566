//! `moe_swiglu` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::{BLOCK, TensorType, TensorType::*};
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{Choose, FixedBlock, Groups, Matrix, MoeSwiglu, Weighting};
use kquant_moe::{oracle, sys};
use rayon::prelude::*;

on_devices!(
    equals_the_oracle,
    takes_many_pairs_of_an_expert,
    sums_in_one_order,
    stores_one_nan,
    batch_equals_single_tokens,
    chooses_the_experts,
    weighs_in_rank_order,
    absent_experts_give_nan,
    refuses_bad_arguments,
    refuses_bad_choices,
);

/// Types of gate and up: both of every type, and every type beside another one, as either. On a GPU also all pairs of those that a kernel
/// chooses between.
fn mixes(size: Size) -> Vec<[TensorType; 2]> {
    let kinds = TensorType::MATRICES;
    let of = |beside| (0..kinds.len()).map(move |i| [kinds[i], kinds[(i + beside) % kinds.len()]]);
    let mut mixes: Vec<_> = [0, 1].into_iter().flat_map(of).collect();
    if size == Size::Full {
        mixes.extend(CHOSEN.iter().flat_map(|&gate| CHOSEN.iter().map(move |&up| [gate, up])));
    }
    mixes
}

/// gate_out, up_out (empty unless asked for) and out.
fn run<D: Device>(
    device: &D,
    [gate, up]: [&Matrix<D>; 2],
    x: &[FixedBlock],
    indices: &[u32],
    tokens: usize,
    optional: bool,
) -> [Vec<f32>; 3] {
    let (top_k, pairs) = (indices.len() / tokens, indices.len());
    let (x, indices) = (input(device, x), input(device, indices));
    let groups = moe::group(device, &indices, tokens, gate.experts(), top_k);
    let mut outputs = [0, 1, 2].map(|_| Output::new(device, pairs * gate.rows()));
    let [gate_out, up_out, out] = &mut outputs;
    ok(MoeSwiglu::new([gate, up], x.slice(), Choose::Made(indices.slice()), &groups, [tokens, top_k], out.slice())
        .gate_out(gate_out.slice_if(optional))
        .up_out(up_out.slice_if(optional))
        .launch(device));
    let [gate_out, up_out, out] = outputs;
    if optional { [gate_out.read(), up_out.read(), out.read()] } else { [Vec::new(), Vec::new(), out.read()] }
}

fn expected([gate, up]: [&Weights; 2], x: &[oracle::FixedBlock], indices: &[u32], top_k: usize) -> [Vec<f32>; 3] {
    let (ff, blocks) = (gate.rows, gate.cols / BLOCK);
    let mut outputs = [0, 1, 2].map(|_| vec![0.0; indices.len() * ff]);
    let [gate_out, up_out, out] = &mut outputs;
    let rows = gate_out.par_chunks_mut(ff).zip(up_out.par_chunks_mut(ff)).zip(out.par_chunks_mut(ff));
    rows.enumerate().for_each(|(pair, ((gate_out, up_out), out))| {
        let (expert, x) = (indices[pair] as usize, &x[pair / top_k * blocks..][..blocks]);
        if expert >= gate.experts {
            [gate_out, up_out, out].into_iter().for_each(oracle::absent);
            return;
        }
        oracle::moe_swiglu::moe_swiglu(gate.expert(expert), up.expert(expert), x, gate_out, up_out, out);
    });
    outputs
}

/// Compares what the kernel makes of the activations with the oracle, and returns it.
fn check<D: Device>(
    device: &D,
    what: &str,
    w: [&Weights; 2],
    matrices: [&Matrix<D>; 2],
    x: &[f32],
    indices: &[u32],
    optional: bool,
) -> [Vec<f32>; 3] {
    let tokens = x.len() / w[0].cols;
    let (blocks, digits) = fixed_blocks(x);
    let got = run(device, matrices, &digits, indices, tokens, optional);
    let expected = expected(w, &blocks, indices, indices.len() / tokens);
    for (i, value) in ["gate", "up", "out"].into_iter().enumerate() {
        if optional || i == 2 {
            let (kinds, ff, cols) = (w.map(|w| w.kind), w[0].rows, w[0].cols);
            assert_bits(&format!("{kinds:?} [{ff}, {cols}], {tokens} tokens, {what}, {value}"), &got[i], &expected[i]);
        }
    }
    got
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(26);
    // ff, cols, experts, top_k
    let shapes = size.shapes(
        &[
            (40, 256, 6, 3),
            (1, 768, 5, 2),
            (15, 2048, 9, 8),
            (17, 4096, 3, 1),
            (16, 4352, 3, 2),
            (7, 256, 40, 32),
            // More than two groups of 16 super-blocks.
            (5, 8448, 3, 2),
        ],
        &[(768, 2048, 128, 8), (100, 4352, 8, 2)],
    );
    let tokens = size.shapes(&[1, 2, 3, 8, 9, 17], &[70]);
    for (shape, (ff, cols, experts, top_k)) in shapes.into_iter().enumerate() {
        for (mix, kinds) in mixes(size).into_iter().enumerate() {
            let w = kinds.map(|kind| Weights::random(&mut random, kind, experts, ff, cols));
            let matrices = w.each_ref().map(|w| w.upload(device));
            // On the emulation every mix has a third of the numbers of tokens for each shape.
            let step = if size == Size::Small { 3 } else { 1 };
            for (case, &tokens) in tokens.iter().enumerate().skip((shape + mix) % step).step_by(step) {
                let what = format!("{kinds:?} [{experts}][{ff}, {cols}], {tokens} tokens of {top_k} experts");
                let x = Activations::rows(&mut random, case + mix + shape, tokens, cols);
                let indices = moe::choose(&mut random, tokens, experts, top_k);
                let optional = (case + mix) % 2 == 0;
                let got = check(device, &what, w.each_ref(), matrices.each_ref(), &x, &indices, optional);
                for (x, out) in x.chunks(cols).zip(got[2].chunks(top_k * ff)) {
                    if has_non_finite(x) {
                        assert_nan(&what, out);
                    }
                }
            }
        }
    }
}

/// So many pairs of each expert that warpgroups multiply them, where there are any: full items and remainders of both sizes, rows that fill no
/// tile, no CTA and several, trees of every height and two that are no power of two.
fn takes_many_pairs_of_an_expert<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(265);
    for (case, (ff, blocks)) in
        [(70, 1), (100, 2), (33, 3), (16, 5), (40, 8), (65, 16), (20, 17)].into_iter().enumerate()
    {
        for (beside, &kind) in [Q4K, Q5K, Q6K, IQ4XS].iter().enumerate() {
            let (experts, top_k, tokens, cols) = (3, 2, [25, 40, 72][(case + beside) % 3], blocks * BLOCK);
            let w = [(); 2].map(|()| Weights::random(&mut random, kind, experts, ff, cols));
            let matrices = w.each_ref().map(|w| w.upload(device));
            let x = Activations::rows(&mut random, case + beside, tokens, cols);
            let indices = moe::choose(&mut random, tokens, experts, top_k);
            let what = format!("{kind:?} [{experts}][{ff}, {cols}], {tokens} tokens of {top_k} experts, many pairs");
            check(device, &what, w.each_ref(), matrices.each_ref(), &x, &indices, true);
        }
    }
}

/// On each of the launcher's paths: sums over super-blocks whose order shows, and super-blocks in which all but a rounding error cancels.
fn sums_in_one_order<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(260);
    let (ff, experts, top_k) = (20, 4, 2);
    let mixes = mixes(Size::Small);
    for (case, blocks) in [1, 2, 7, 8, 9, 16, 17, 33].into_iter().enumerate() {
        let cols = blocks * BLOCK;
        let w = mixes[case % mixes.len()].map(|kind| Weights::uniform(&mut random, kind, experts, ff, cols));
        let matrices = w.each_ref().map(|w| w.upload(device));
        let x: Vec<f32> =
            pins::sequences(blocks).iter().flat_map(|numbers| one_a_block(&mut random, numbers)).collect();
        let tokens = x.len() / cols;
        let indices = moe::choose(&mut random, tokens, experts, top_k);
        check(device, "sequences", w.each_ref(), matrices.each_ref(), &x, &indices, true);
        for (x, indices) in x.chunks(cols).zip(indices.chunks(top_k)) {
            check(device, "one sequence", w.each_ref(), matrices.each_ref(), x, indices, true);
        }
        let w = [0, 1].map(|_| Weights::cancelling(&mut random, experts, ff, cols));
        let matrices = w.each_ref().map(|w| w.upload(device));
        for tokens in [1, 3] {
            let x = [random.numbers(1, tokens * cols / 2), random.numbers(-14, tokens * cols / 2)];
            let x: Vec<f32> = x[0].iter().zip(&x[1]).flat_map(|(&a, &b)| [a, b]).collect();
            let indices = moe::choose(&mut random, tokens, experts, top_k);
            check(device, "d T = dmin M", w.each_ref(), matrices.each_ref(), &x, &indices, true);
        }
    }
}

/// NaNs in weights and activations, none of them the one that is stored.
fn stores_one_nan<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(261);
    let (ff, experts, top_k) = (18, 4, 2);
    let mixes = mixes(Size::Small);
    for (case, blocks) in [2, 9, 17].into_iter().enumerate() {
        for spoilt in 0..2 {
            let mut w = mixes[case + 1].map(|kind| Weights::random(&mut random, kind, experts, ff, blocks * BLOCK));
            assert!(w[spoilt].spoil());
            let matrices = w.each_ref().map(|w| w.upload(device));
            for tokens in [1, 3] {
                let mut x = random.gaussians(tokens * blocks * BLOCK);
                let indices = moe::choose(&mut random, tokens, experts, top_k);
                let got = check(device, "NaN in weights", w.each_ref(), matrices.each_ref(), &x, &indices, true);
                for out in got[spoilt].chunks(ff).chain(got[2].chunks(ff)) {
                    assert_stored_nan("weights", &out[1..3]);
                }
                x[(tokens - 1) * blocks * BLOCK + 70] = NANS[spoilt];
                let got = check(device, "NaN in activations", w.each_ref(), matrices.each_ref(), &x, &indices, true);
                assert_stored_nan("activations", &got[2][(tokens - 1) * top_k * ff..]);
            }
        }
    }
}

/// Indices of experts that do not exist give NaN, in every form of the kernel, and the others what they give without
/// them.
fn absent_experts_give_nan<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(61);
    for (ff, cols, experts, top_k) in size.shapes(&[(17, 512, 5, 3), (33, 4352, 2, 2)], &[(768, 2048, 128, 8)]) {
        let w = [Q6K, Q4K].map(|kind| Weights::random(&mut random, kind, experts, ff, cols));
        let matrices = w.each_ref().map(|w| w.upload(device));
        for tokens in [1, 2, 9, 20] {
            let (blocks, digits) = fixed_blocks(&random.gaussians(tokens * cols));
            for absent in moe::absent(experts) {
                let what = format!("[{experts}][{ff}, {cols}], {tokens} tokens of {top_k} experts, expert {absent}");
                let indices = moe::with_absent(&mut random, tokens, experts, top_k, absent);
                let got = run(device, matrices.each_ref(), &digits, &indices, tokens, true);
                let expected = expected(w.each_ref(), &blocks, &indices, top_k);
                for (got, expected) in got.iter().zip(&expected) {
                    assert_bits(&what, got, expected);
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
    let matrix = |rows, cols, experts| Matrix::zeroed(device, Q4K, rows, cols, experts).unwrap();
    let good = matrix(16, 256, 4);
    let others = [matrix(17, 256, 4), matrix(16, 512, 4), matrix(16, 256, 5), matrix(16, 256, 1)];
    let x: Buffer<D, FixedBlock> = Buffer::zeroed(device, 4).unwrap();
    let indices: Buffer<D, u32> = Buffer::zeroed(device, 64).unwrap();
    let mut out: Buffer<D, f32> = Buffer::zeroed(device, 1024).unwrap();
    let groups = ok(Groups::new(device, 4, 4, 4));
    let x_at = x.slice().as_ptr() as u64;
    let mut run = |up, x: u64, tokens, top_k| {
        // SAFETY: as long as the buffer says, or refused before anything is read.
        let x = unsafe { Slice::from_raw(device, x, 4) };
        MoeSwiglu::new([&good, up], x, Choose::Made(indices.slice()), &groups, [tokens, top_k], out.slice_mut())
            .launch(device)
    };
    for up in &others {
        assert_invalid(run(up, x_at, 1, 2));
    }
    assert_status(run(&good, 0, 1, 2), sys::KQM_NULL_POINTER);
    assert_status(run(&good, x_at + 8, 1, 2), sys::KQM_MISALIGNED);
    for top_k in [0, 5] {
        assert_status(run(&good, x_at, 1, top_k), sys::KQM_BAD_SHAPE);
    }
    for tokens in [0, 5] {
        assert_invalid(run(&good, x_at, tokens, 2));
    }
    assert_eq!(status_without_arguments!(device, moe_swiglu), sys::KQM_NULL_POINTER);
}

/// Logits of that many experts: random ones, many equal ones, all equal, neighbouring numbers, NaNs and infinities.
fn logits(random: &mut Random, case: usize, experts: usize) -> Vec<f32> {
    let mut logits = random.gaussians(experts);
    match case {
        0 => {}
        1 => logits.iter_mut().for_each(|logit| *logit = logit.round()),
        2 => logits.fill(0.0),
        3 => logits.iter_mut().for_each(|logit| *logit = f32::from_bits(1.0_f32.to_bits() + (*logit > 0.0) as u32)),
        4 => logits[experts / 2] = f32::NAN,
        5 => logits.fill(f32::NAN),
        6 => {
            logits[experts - 1] = f32::INFINITY;
            logits[0] = f32::NEG_INFINITY;
        }
        _ => logits.fill(f32::NEG_INFINITY),
    }
    logits
}

/// What a single token's launch chooses and makes.
struct Chosen {
    indices: Vec<u32>,
    weights: Vec<f32>,
    out: Vec<f32>,
}

fn choose<D: Device>(
    device: &D,
    [gate, up]: [&Matrix<D>; 2],
    x: &[FixedBlock],
    logits: &[f32],
    top_k: usize,
    weighting: Weighting,
) -> Chosen {
    let (x, logits) = (input(device, x), input(device, logits));
    let (mut indices, mut weights) = (Output::new(device, top_k), Output::new(device, top_k));
    let mut out = Output::new(device, top_k * gate.rows());
    ok(MoeSwiglu::new(
        [gate, up],
        x.slice(),
        Choose::here(logits.slice(), indices.slice(), weights.slice()).weighting(weighting),
        None,
        [1, top_k],
        out.slice(),
    )
    .launch(device));
    Chosen { indices: indices.read(), weights: weights.read(), out: out.read() }
}

/// Logits whose weights show how probabilities are summed up and divided, and logits with NaNs that are not the one that is stored.
fn weighs_in_rank_order<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(262);
    let x = fixed_blocks(&random.gaussians(BLOCK)).1;
    let mut check = |what: &str, logits: &[f32], top_k| {
        let w = Weights::random(&mut random, Q4K, logits.len(), 1, BLOCK);
        let matrix = w.upload(device);
        let [of_all, got] = [Weighting::OfAll, Weighting::OfChosen].map(|weighting| {
            let got = choose(device, [&matrix, &matrix], &x, logits, top_k, weighting);
            let (mut made, mut indices, mut weights) = (vec![0.0; logits.len()], vec![0; top_k], vec![0.0; top_k]);
            oracle::moe_router::moe_router(&[1.0], logits, weighting, &mut made, &mut indices, &mut weights);
            assert_same(&format!("{what}, indices"), &got.indices, &indices);
            assert_bits(&format!("{what}, weights, {weighting:?}"), &got.weights, &weights);
            got
        });
        assert_bits("the experts' results do not depend on their weights", &of_all.out, &got.out);
        got
    };
    for (case, logits) in pins::router_logits().into_iter().enumerate() {
        check(&format!("logits {case}"), &logits, logits.len());
    }
    for (place, nan) in NANS.into_iter().enumerate() {
        let mut logits = [0.5, 0.25, -1.0, 3.0, 2.0];
        logits[place] = nan;
        let got = check("NaN", &logits, 3);
        assert_same("the NaN comes first", &got.indices[..1], &[place as u32]);
        assert_stored_nan("weights", &got.weights);
    }
}

/// From the router's logits a single token's kernel makes the router's choice, and the results that go with it.
fn chooses_the_experts<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(42);
    // ff, cols, experts, top_k
    let shapes = size.shapes(
        &[
            (17, 256, 16, 4),
            (15, 512, 128, 8),
            (1, 256, 512, 32),
            (40, 2048, 5, 5),
            (16, 4352, 1, 1),
            (16, 256, 33, 32),
        ],
        &[(768, 2048, 128, 8), (256, 2048, 512, 10)],
    );
    for (ff, cols, experts, top_k) in shapes {
        for kinds in mixes(size) {
            let w = kinds.map(|kind| Weights::random(&mut random, kind, experts, ff, cols));
            let matrices = w.each_ref().map(|w| w.upload(device));
            for case in 0..8 {
                let what = format!("{kinds:?} [{experts}][{ff}, {cols}], {top_k} experts, logits {case}");
                // A row of one column: the router's weights are its logits, but for the sign of zeros.
                let (mut made, mut indices, mut weights) = (vec![0.0; experts], vec![0; top_k], vec![0.0; top_k]);
                let logits = logits(&mut random, case, experts);
                let weighting = [Weighting::OfChosen, Weighting::OfAll][case % 2];
                oracle::moe_router::moe_router(&[1.0], &logits, weighting, &mut made, &mut indices, &mut weights);
                let (blocks, digits) = fixed_blocks(&Activations::ALL[case].row(&mut random, cols));
                let chosen = choose(device, matrices.each_ref(), &digits, &made, top_k, weighting);
                assert_same(&format!("{what}, indices"), &chosen.indices, &indices);
                assert_bits(&format!("{what}, weights"), &chosen.weights, &weights);
                let [.., expected] = expected(w.each_ref(), &blocks, &indices, top_k);
                assert_bits(&what, &chosen.out, &expected);
                let [.., given] = run(device, matrices.each_ref(), &digits, &indices, 1, false);
                assert_bits(&format!("{what}, chosen before"), &given, &expected);
            }
        }
    }
}

fn refuses_bad_choices<D: Device>(device: &D, _: Size) {
    let w = Matrix::zeroed(device, Q4K, 16, 256, 4).unwrap();
    let x: Buffer<D, FixedBlock> = Buffer::zeroed(device, 4).unwrap();
    let logits: Buffer<D, f32> = Buffer::zeroed(device, 4).unwrap();
    let mut indices: Buffer<D, u32> = Buffer::zeroed(device, 4).unwrap();
    let mut weights: Buffer<D, f32> = Buffer::zeroed(device, 4).unwrap();
    let mut out: Buffer<D, f32> = Buffer::zeroed(device, 1024).unwrap();
    let groups = moe::group(device, &indices, 2, 4, 2);
    let (indices_at, weights_at) = (indices.slice_mut().as_ptr() as u64, weights.slice_mut().as_ptr() as u64);
    let mut run = |logits, indices: (u64, usize), weights: (u64, usize), tokens| {
        // SAFETY: as long as the buffers say, or refused before anything is written.
        let (indices, weights) = unsafe {
            (SliceMut::from_raw(device, indices.0, indices.1), SliceMut::from_raw(device, weights.0, weights.1))
        };
        MoeSwiglu::new(
            [&w, &w],
            x.slice(),
            Choose::here(logits, indices, weights),
            &groups,
            [tokens, 2],
            out.slice_mut(),
        )
        .launch(device)
    };
    let (whole_indices, whole_weights) = ((indices_at, 4), (weights_at, 4));
    assert_status(run(logits.slice(), whole_indices, whole_weights, 2), sys::KQM_BAD_SHAPE);
    assert_status(run(logits.slice(), (0, 4), whole_weights, 1), sys::KQM_NULL_POINTER);
    assert_status(run(logits.slice(), whole_indices, (0, 4), 1), sys::KQM_NULL_POINTER);
    assert_invalid(run(logits.part(0, 3).unwrap(), whole_indices, whole_weights, 1));
    assert_invalid(run(logits.slice(), (indices_at, 1), whole_weights, 1));
    assert_invalid(run(logits.slice(), whole_indices, (weights_at, 1), 1));
}
