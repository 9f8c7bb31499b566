//! `moe_layer` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::{BLOCK, TensorType, TensorType::*};
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{Choose, DownInput};
use kquant_moe::kernels::{
    FixedBlock, Floats, FloatsMut, Groups, Matrix, MoeDown, MoeGroup, MoeLayer, MoeSwiglu, Repack, Weighting,
};
use kquant_moe::{oracle, sys};
use rayon::prelude::*;

on_devices!(equals_the_oracle, batch_equals_single_tokens, lives_in_memory_of_the_engine, refuses_bad_arguments);

/// A layer: its router and its matrices.
struct Layer<D: Device> {
    weights: [Weights; 3],
    router: Vec<f32>,
    matrices: [Matrix<D>; 3],
    router_on_device: Buffer<D, f32>,
    top_k: usize,
    weighting: Weighting,
}

/// hidden, ff, rows, experts, experts of a token.
type Shape = [usize; 5];

impl<D: Device> Layer<D> {
    fn random(
        device: &D,
        random: &mut Random,
        kinds: [TensorType; 3],
        [hidden, ff, rows, experts, top_k]: Shape,
        weighting: Weighting,
    ) -> Self {
        let shapes = [(ff, hidden), (ff, hidden), (rows, ff)];
        let weights = [0, 1, 2].map(|i| Weights::random(random, kinds[i], experts, shapes[i].0, shapes[i].1));
        let matrices = weights.each_ref().map(|w| w.upload(device));
        let router = random.gaussians(experts * hidden);
        let router_on_device = input(device, &router);
        Self { weights, router, matrices, router_on_device, top_k, weighting }
    }

    fn hidden(&self) -> usize {
        self.weights[0].cols
    }

    fn rows(&self) -> usize {
        self.weights[2].rows
    }

    /// What `[tokens, rows]` hold afterwards. `x` and `y` are what the floats of the type `kind` are.
    fn expected(&self, x: &[f32], y: &[f32], accumulate: bool) -> Vec<f32> {
        let mut out = y.to_vec();
        out.par_chunks_mut(self.rows()).zip(x.par_chunks(self.hidden())).for_each(|(y, x)| {
            let mut sum = vec![0.0; y.len()];
            let experts = |expert| self.weights.each_ref().map(|w| w.expert(expert));
            let ff = self.weights[0].rows;
            oracle::moe_layer::moe_layer(x, &self.router, experts, ff, self.top_k, self.weighting, &mut sum);
            if accumulate {
                oracle::residual_add::residual_add(y, &sum);
            } else {
                y.copy_from_slice(&sum);
            }
        });
        out
    }

    /// The layer of x, stored in y or added to it, both of a type, as bits of that type.
    fn run(&self, device: &D, kind: TensorType, x: &[f32], y: &[f32], accumulate: bool) -> Vec<u32> {
        let [gate, up, down] = self.matrices.each_ref();
        let shape = [x.len() / self.hidden(), self.top_k];
        let bytes = ok(MoeLayer::workspace_bytes(device, [gate, up, down], kind, shape));
        // As somebody else has left it, and with what must stay behind it.
        let mut workspace: Output<D, u8> = Output::new(device, bytes);
        let launch = |x: Floats<'_>, y: FloatsMut<'_>, workspace| {
            let router = self.router_on_device.slice();
            ok(MoeLayer::new(x, router, [gate, up, down], y, workspace, shape)
                .accumulate(accumulate)
                .weighting(self.weighting)
                .launch(device));
        };
        let out = if kind == F32 {
            let (x, mut y) = (input(device, x), Output::starting_with(device, y));
            launch(x.slice().into(), y.slice().into(), workspace.slice());
            y.read().iter().map(|y| y.to_bits()).collect()
        } else {
            let (x, mut y) = (input(device, &halves_as(kind, x)), Output::starting_with(device, &halves_as(kind, y)));
            match kind {
                F16 => launch(Floats::F16(x.slice()), FloatsMut::F16(y.slice()), workspace.slice()),
                _ => launch(Floats::BF16(x.slice()), FloatsMut::BF16(y.slice()), workspace.slice()),
            }
            y.read().into_iter().map(u32::from).collect()
        };
        workspace.read();
        out
    }

    fn check(&self, device: &D, what: &str, kind: TensorType, x: &[f32], y: &[f32], accumulate: bool) {
        let as_seen = |floats: &[f32]| -> Vec<f32> {
            match kind {
                F32 => floats.to_vec(),
                _ => halves_as(kind, floats).iter().map(|&bits| oracle::widened(kind, bits).unwrap()).collect(),
            }
        };
        let expected = self.expected(&as_seen(x), &as_seen(y), accumulate);
        let expected = expected.iter().map(|&y| oracle::narrowed(kind, y).map_or(y.to_bits(), u32::from));
        let got = self.run(device, kind, x, y, accumulate);
        assert_same(&format!("{what}, {kind}, added: {accumulate}"), &got, &expected.collect::<Vec<_>>());
    }
}

/// A single token whose down projections quantize for themselves and one that has too much for that, few tokens, and many pairs of each expert.
fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(70);
    let shapes = size.shapes(
        &[
            ([512, 256, 40, 6, 3], [Q4K, Q4K, Q6K]),
            ([256, 512, 17, 16, 13], [Q5K, Q8_0, Q4_0]),
            ([768, 256, 33, 3, 2], [Q6K, Q6K, Q6K]),
        ],
        &[([2048, 768, 2048, 128, 8], [Q4K, Q4K, Q6K])],
    );
    for (case, (shape, kinds)) in shapes.into_iter().enumerate() {
        for weighting in [Weighting::OfChosen, Weighting::OfAll] {
            let layer = Layer::random(device, &mut random, kinds, shape, weighting);
            for (turn, &tokens) in [1, 2, 9, 40].iter().enumerate() {
                if size == Size::Small && tokens > 9 && case == 1 {
                    continue;
                }
                let x = random.gaussians(tokens * layer.hidden());
                let mut y = random.gaussians(tokens * layer.rows());
                y[0] = f32::NAN;
                for (i, kind) in [F32, F16, BF16].into_iter().enumerate() {
                    // On the emulation one of the types in turn, but for single tokens.
                    if size == Size::Small && tokens > 1 && (case + turn + weighting as usize) % 3 != i {
                        continue;
                    }
                    let accumulate = (case + turn + i) % 2 == 0;
                    layer.check(device, &format!("{shape:?}, {tokens} tokens"), kind, &x, &y, accumulate);
                }
            }
        }
    }
    // A token that is not finite is NaN, and the others are as they are.
    let layer = Layer::random(device, &mut random, [Q4K; 3], [256, 256, 16, 4, 2], Weighting::OfChosen);
    let mut x = random.gaussians(3 * 256);
    x[256 + 7] = f32::INFINITY;
    layer.check(device, "not finite", F32, &x, &[0.0; 3 * 16], false);
    ok(device.synchronize());
}

fn batch_equals_single_tokens<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(71);
    let shapes = size.shapes(&[[256, 256, 24, 5, 2]], &[[2048, 768, 2048, 128, 8]]);
    for shape in shapes {
        let layer = Layer::random(device, &mut random, [Q4K, Q4K, Q6K], shape, Weighting::OfChosen);
        let (tokens, hidden, rows) = (12, layer.hidden(), layer.rows());
        let (x, y) = (random.gaussians(tokens * hidden), vec![0.0; tokens * rows]);
        let together = layer.run(device, F32, &x, &y, false);
        for token in 0..tokens {
            let alone = layer.run(device, F32, &x[token * hidden..][..hidden], &y[..rows], false);
            assert_same("single token", &together[token * rows..][..rows], &alone);
        }
    }
}

/// An engine's arena: matrices, groups and fixed point are parts of it, and what is borrowed is not freed.
fn lives_in_memory_of_the_engine<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(72);
    let (tokens, shape) = (3, [256, 256, 16, 4, 2]);
    let [hidden, ff, rows, experts, top_k] = shape;
    let layer = Layer::random(device, &mut random, [Q4K, Q5K, Q6K], shape, Weighting::OfChosen);
    let mut arena: Output<D, u8> = Output::new(device, 1 << 20);
    let (base, mut used) = (arena.slice().as_ptr() as u64, 0);
    let mut take = |bytes: usize| {
        let at = base + used as u64;
        used += bytes.next_multiple_of(256);
        assert!(used <= 1 << 20);
        at
    };
    let mut matrices = layer.weights.each_ref().map(|w| {
        let bytes = ok(Matrix::<D>::bytes_of(w.kind, w.rows, w.cols, w.experts));
        // SAFETY: a part of the arena of its own.
        ok(unsafe { Matrix::from_raw(device, take(bytes), w.kind, [w.experts, w.rows, w.cols]) })
    });
    for (w, matrix) in layer.weights.iter().zip(&mut matrices) {
        let blocks = input(device, &w.bytes);
        let tiles = ok(matrix.tiles_of(0..experts));
        ok(Repack::new(blocks.slice(), tiles, w.kind, [w.rows, w.cols]).experts(experts).launch(device));
    }
    let [gate, up, down] = matrices;
    let (x, fixed) = {
        let x = random.gaussians(tokens * hidden);
        let (_, digits) = fixed_blocks(&x);
        let at = take(size_of_val(&digits[..]));
        // SAFETY: as above.
        let mut place = unsafe { Buffer::<D, FixedBlock>::from_raw(device, at, digits.len()) };
        ok(place.write(device, 0, &digits));
        (x, place)
    };
    let words = ok(Groups::elements(device, tokens, experts, top_k));
    // SAFETY: as above.
    let mut groups = ok(unsafe { Groups::from_raw(device, take(4 * words), tokens, experts, top_k) });
    let indices: Vec<u32> = moe::choose(&mut random, tokens, experts, top_k);
    let weights = random.gaussians(tokens * top_k);
    let (chosen, factors) = (input(device, &indices), input(device, &weights));
    ok(MoeGroup::new(chosen.slice(), &mut groups, [tokens, top_k], experts).launch(device));
    let pairs = tokens * top_k;
    let mut swiglu = Output::new(device, pairs * ff);
    let choose = Choose::Made(chosen.slice());
    ok(MoeSwiglu::new([&gate, &up], fixed.slice(), choose, &groups, [tokens, top_k], swiglu.slice()).launch(device));
    let (blocks, digits) = fixed_blocks(&swiglu.read());
    let (between, mut expert_out) = (input(device, &digits), Output::new(device, pairs * rows));
    let mut y = Output::new(device, tokens * rows);
    let operands = (chosen.slice(), factors.slice());
    let input_of_down = DownInput::Fixed(between.slice());
    ok(MoeDown::new(&down, input_of_down, operands, &groups, [tokens, top_k], expert_out.slice(), y.slice())
        .launch(device));

    let (of_x, _) = fixed_blocks(&x);
    let mut expected = vec![0.0; tokens * rows];
    for (token, out) in expected.chunks_mut(rows).enumerate() {
        let mut products = vec![0.0; top_k * rows];
        for (rank, out) in products.chunks_mut(rows).enumerate() {
            let (pair, expert) = (token * top_k + rank, indices[token * top_k + rank] as usize);
            let [mut g, mut u, mut s] = [(); 3].map(|()| vec![0.0; ff]);
            let [gate, up, down] = layer.weights.each_ref().map(|w| w.expert(expert));
            let x = &of_x[token * hidden / BLOCK..][..hidden / BLOCK];
            oracle::moe_swiglu::moe_swiglu(gate, up, x, &mut g, &mut u, &mut s);
            assert_bits("swiglu", &swiglu.read()[pair * ff..][..ff], &s);
            oracle::product(down, ff, &blocks[pair * ff / BLOCK..][..ff / BLOCK], out);
        }
        oracle::moe_down::moe_down(&weights[token * top_k..][..top_k], &products, out);
    }
    assert_bits("y", &y.read(), &expected);
    // Nothing of the arena goes with them, and nothing behind it was written.
    drop((gate, up, down, groups, fixed));
    arena.read();
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let matrix = |rows, cols| ok(Matrix::zeroed(device, Q4K, rows, cols, 4));
    let (gate, up, down) = (matrix(256, 512), matrix(256, 512), matrix(16, 256));
    let floats: Buffer<D, f32> = Buffer::zeroed(device, 4 * 512).unwrap();
    let mut y: Buffer<D, f32> = Buffer::zeroed(device, 2 * 16).unwrap();
    let bytes = ok(MoeLayer::workspace_bytes(device, [&gate, &up, &down], F32, [2, 2]));
    let mut workspace: Buffer<D, u8> = Buffer::zeroed(device, bytes).unwrap();
    let at = floats.slice().as_ptr() as u64;
    let mut run = |x: u64, down: &Matrix<D>, [tokens, top_k]: [usize; 2], room: usize| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let x = unsafe { Slice::<f32>::from_raw(device, x, 2 * 512) };
        let room: SliceMut<'_, u8> = workspace.part_mut(0, room).unwrap();
        MoeLayer::new(x, floats.slice(), [&gate, &up, down], y.slice_mut(), room, [tokens, top_k]).launch(device)
    };
    assert_status(run(0, &down, [2, 2], bytes), sys::KQM_NULL_POINTER);
    assert_status(run(at + 4, &down, [2, 2], bytes), sys::KQM_MISALIGNED);
    for top_k in [0, 5] {
        assert_status(run(at, &down, [2, top_k], bytes), sys::KQM_BAD_SHAPE);
    }
    assert_status(run(at, &matrix(16, 512), [2, 2], bytes), sys::KQM_BAD_SHAPE);
    assert_status(run(at, &down, [2, 2], bytes - 1), sys::KQM_WORKSPACE);
    assert_invalid(run(at, &down, [3, 2], bytes));
    assert_invalid(run(at, &matrix(17, 256), [2, 2], bytes));
    assert_eq!(status_without_arguments!(device, moe_layer), sys::KQM_NULL_POINTER);
    ok(run(at, &down, [2, 2], bytes));
    ok(device.synchronize());
}
