//! `float_matvec` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::TensorType;
use kquant_moe::device::{Buffer, Device};
use kquant_moe::kernels::{FloatMatrix, FloatMatvec};
use kquant_moe::oracle::float_matvec::{Floats, float_matvec};
use kquant_moe::oracle::{self, absent};
use kquant_moe::sys;

on_devices!(
    equals_the_oracle,
    multiplies_with_experts,
    sums_in_one_order,
    takes_every_bit_pattern,
    batch_equals_single_tokens,
    refuses_bad_arguments
);

/// Stacks of matrices `[experts][rows, cols]`.
struct Stack {
    kind: TensorType,
    experts: usize,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl Stack {
    fn new(kind: TensorType, [experts, rows, cols]: [usize; 3], weights: &[f32]) -> Self {
        assert_eq!(weights.len(), experts * rows * cols);
        Self { kind, experts, rows, cols, bytes: floats_as(kind, weights) }
    }

    /// Rows of every distribution.
    fn random(random: &mut Random, kind: TensorType, shape @ [experts, rows, cols]: [usize; 3]) -> Self {
        Self::new(kind, shape, &Activations::rows(random, 1, experts * rows, cols))
    }

    fn upload<D: Device>(&self, device: &D) -> FloatMatrix<D> {
        let mut matrix = ok(FloatMatrix::zeroed(device, self.kind, self.rows, self.cols, self.experts));
        ok(matrix.bytes_mut().write(device, 0, &self.bytes));
        matrix
    }

    fn expert(&self, expert: usize) -> Floats<'_> {
        let bytes = self.bytes.len() / self.experts;
        Floats { bytes: &self.bytes[expert * bytes..][..bytes], kind: self.kind, cols: self.cols }
    }

    /// `[pairs, rows]`, of pairs with these experts, NaN for those that do not exist.
    fn products(&self, x: &[f32], experts: &[u32], share: usize) -> Vec<f32> {
        let mut y = vec![0.0; experts.len() * self.rows];
        for (pair, (&expert, y)) in experts.iter().zip(y.chunks_exact_mut(self.rows)).enumerate() {
            if (expert as usize) < self.experts {
                float_matvec(self.expert(expert as usize), &x[pair / share * self.cols..][..self.cols], y);
            } else {
                absent(y);
            }
        }
        y
    }
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(81);
    // Rows of a part of a run, of one run, of more runs than a group of sums has, and of the most.
    let small = [(1, 32), (5, 256), (4, 288), (7, 768), (9, 2048), (3, 4352), (2, 16384)];
    for (rows, cols) in size.shapes(&small, &[(2048, 4096), (4096, 2048), (151_936, 256)]) {
        for &kind in TensorType::FLOATS {
            let w = Stack::random(&mut random, kind, [1, rows, cols]);
            let matrix = w.upload(device);
            for tokens in [1, 2, 8, 11] {
                let x = Activations::rows(&mut random, tokens, tokens, cols);
                let x_device = input(device, &x);
                let what = format!("{kind} [{rows}, {cols}], {tokens} tokens");
                let mut y = Output::new(device, tokens * rows);
                ok(FloatMatvec::new(&matrix, x_device.slice(), y.slice(), tokens).launch(device));
                let mut expected = vec![0.0; tokens * rows];
                float_matvec(w.expert(0), &x, &mut expected);
                assert_bits(&what, &y.read(), &expected);

                let before = Activations::rows(&mut random, 3, tokens, rows);
                let (mut y, mut product) = (Output::starting_with(device, &before), Output::new(device, tokens * rows));
                let launch = FloatMatvec::new(&matrix, x_device.slice(), y.slice(), tokens).accumulate(true);
                ok(launch.product(product.slice()).launch(device));
                assert_bits(&format!("{what}: product"), &product.read(), &expected);
                let mut sum = before;
                oracle::residual_add::residual_add(&mut sum, &expected);
                assert_bits(&format!("{what}: added"), &y.read(), &sum);
            }
        }
    }
}

/// Both halves of a SwiGLU, and the weighted sum of down projections, with experts that do not exist among them.
fn multiplies_with_experts<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(82);
    let shapes = size.shapes(
        &[(3, 5, 64, 2, 1), (4, 6, 544, 3, 2), (33, 4, 768, 32, 3), (33, 2, 16384, 32, 1)],
        &[(16, 768, 2048, 8, 5)],
    );
    for (experts, rows, cols, top_k, tokens) in shapes {
        for &kind in TensorType::FLOATS {
            let what = format!("{kind} [{experts}][{rows}, {cols}], {tokens} tokens");
            let pairs = tokens * top_k;
            let mut chosen: Vec<u32> = (0..tokens).flat_map(|_| random.distinct(experts, top_k)).collect();
            chosen[pairs - 1] = [experts as u32, u32::MAX][tokens % 2];
            let indices = input(device, &chosen);
            let x = Activations::rows(&mut random, 0, tokens, cols);
            let x_device = input(device, &x);
            let [gate, up] = [0, 1].map(|_| Stack::random(&mut random, kind, [experts, rows, cols]));
            let [gates, ups] = [&gate, &up].map(|w| w.products(&x, &chosen, top_k));
            let mut swiglu = vec![0.0; pairs * rows];
            for ((out, &gate), &up) in swiglu.iter_mut().zip(&gates).zip(&ups) {
                *out = oracle::moe_swiglu::swiglu(gate, up);
            }
            // Whichever half comes second makes the result.
            for gate_first in [true, false] {
                let [mut first, mut second, mut out] = [(); 3].map(|()| Output::<D, f32>::new(device, pairs * rows));
                let [w, other] = if gate_first { [&gate, &up] } else { [&up, &gate] };
                let matrix = w.upload(device);
                let launch = FloatMatvec::new(&matrix, x_device.slice(), first.slice(), pairs);
                ok(launch.experts(indices.slice(), top_k).launch(device));
                let matrix = other.upload(device);
                let half = first.for_reading();
                let launch = FloatMatvec::new(&matrix, x_device.slice(), out.slice(), pairs)
                    .experts(indices.slice(), top_k)
                    .product(second.slice());
                let launch = if gate_first { launch.gate(half) } else { launch.up(half) };
                ok(launch.launch(device));
                let [expected_first, expected_second] = if gate_first { [&gates, &ups] } else { [&ups, &gates] };
                assert_bits(&format!("{what}: first half"), &first.read(), expected_first);
                assert_bits(&format!("{what}: second half"), &second.read(), expected_second);
                assert_bits(&format!("{what}: SwiGLU"), &out.read(), &swiglu);
            }

            let down = Stack::random(&mut random, kind, [experts, rows, cols]);
            let matrix = down.upload(device);
            let x = Activations::rows(&mut random, 5, pairs, cols);
            let weights: Vec<f32> = (0..pairs).map(|_| random.gaussian().abs()).collect();
            let hidden = Activations::rows(&mut random, 0, tokens, rows);
            let expert_out = down.products(&x, &chosen, 1);
            let mut expected = vec![0.0; tokens * rows];
            for (token, sum) in expected.chunks_exact_mut(rows).enumerate() {
                let of_token = &expert_out[token * top_k * rows..][..top_k * rows];
                oracle::moe_down::moe_down(&weights[token * top_k..][..top_k], of_token, sum);
            }
            let (x, weights) = (input(device, &x), input(device, &weights));
            let (mut product, mut sum) = (Output::new(device, pairs * rows), Output::new(device, tokens * rows));
            let mut y = Output::starting_with(device, &hidden);
            let launch = FloatMatvec::new(&matrix, x.slice(), y.slice(), tokens).experts(indices.slice(), 1);
            let launch = launch.weighted(weights.slice(), top_k).accumulate(true);
            ok(launch.product(product.slice()).sum(sum.slice()).launch(device));
            assert_bits(&format!("{what}: down projections"), &product.read(), &expert_out);
            assert_bits(&format!("{what}: weighted sum"), &sum.read(), &expected);
            let mut added = hidden;
            oracle::residual_add::residual_add(&mut added, &expected);
            assert_bits(&format!("{what}: added to the residual"), &y.read(), &added);
        }
    }
}

/// Numbers whose sum depends on the order: within a leaf, among leaves, among runs and among groups of runs.
fn sums_in_one_order<D: Device>(device: &D, _: Size) {
    let (rows, cols) = (8, 35 * 256);
    let mut random = Random::new(83);
    let sizes = [2_f32.powi(60), -2_f32.powi(60), 1.0, 2_f32.powi(30), -2_f32.powi(30), 2_f32.powi(-20), 3.0, -1.0];
    for spacing in [1, 4, 8, 128, 256, 4096] {
        let weights: Vec<f32> =
            (0..rows * cols).map(|i| if i % spacing == 0 { sizes[random.below(sizes.len())] } else { 0.0 }).collect();
        let w = Stack::new(TensorType::F32, [1, rows, cols], &weights);
        let x = vec![1.0; 2 * cols];
        let mut expected = vec![0.0; 2 * rows];
        float_matvec(w.expert(0), &x, &mut expected);
        let mut y = Output::new(device, 2 * rows);
        let (matrix, x) = (w.upload(device), input(device, &x));
        ok(FloatMatvec::new(&matrix, x.slice(), y.slice(), 2).launch(device));
        assert_bits(&format!("a number every {spacing}"), &y.read(), &expected);
    }
}

/// Every weight of two bytes, one a row: signed zeros, denormals, infinities and NaNs among them.
fn takes_every_bit_pattern<D: Device>(device: &D, _: Size) {
    let (rows, cols) = (1 << 16, 32);
    for kind in [TensorType::F16, TensorType::BF16] {
        let mut bytes = vec![0; rows * cols * 2];
        for (row, weights) in bytes.chunks_exact_mut(cols * 2).enumerate() {
            weights[2 * (row % cols)..][..2].copy_from_slice(&(row as u16).to_le_bytes());
        }
        let w = Stack { kind, experts: 1, rows, cols, bytes };
        let x = [1.5; 32];
        let mut expected = vec![0.0; rows];
        float_matvec(w.expert(0), &x, &mut expected);
        assert!(expected.iter().any(|y| y.is_nan()) && expected.iter().any(|y| y.is_infinite()));
        let mut y = Output::new(device, rows);
        let (matrix, x) = (w.upload(device), input(device, &x));
        ok(FloatMatvec::new(&matrix, x.slice(), y.slice(), 1).launch(device));
        assert_bits(&format!("every {kind}"), &y.read(), &expected);
    }
}

fn batch_equals_single_tokens<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(84);
    for (rows, cols, most) in size.shapes(&[(6, 800, 20)], &[(2048, 2048, 130)]) {
        let w = Stack::random(&mut random, TensorType::BF16, [1, rows, cols]).upload(device);
        let x = input(device, &random.gaussians(most * cols));
        let run = |first: usize, tokens: usize| {
            let mut y = Output::new(device, tokens * rows);
            let x = x.part(first * cols, tokens * cols).unwrap();
            ok(FloatMatvec::new(&w, x, y.slice(), tokens).launch(device));
            y.read()
        };
        let single: Vec<f32> = (0..most).flat_map(|token| run(token, 1)).collect();
        for tokens in [2, 7, 8, 9, most] {
            assert_bits(&format!("{tokens} tokens"), &run(0, tokens), &single[..tokens * rows]);
        }
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    for (kind, rows, cols, experts) in [
        (TensorType::Q8_0, 1, 32, 1),
        (TensorType::F16, 0, 32, 1),
        (TensorType::F16, 1, 0, 1),
        (TensorType::F16, 1, 48, 1),
        (TensorType::F16, 1, 16384 + 32, 1),
        (TensorType::F16, 1, 32, 0),
        (TensorType::F16, 1 << 32, 32, 1),
        (TensorType::F32, (1 << 32) - 1, 16384, (1 << 32) - 1),
    ] {
        assert_invalid(FloatMatrix::zeroed(device, kind, rows, cols, experts).map(drop));
    }
    let w = ok(FloatMatrix::zeroed(device, TensorType::F16, 3, 64, 2));
    let (x, indices) = (ok(Buffer::<D, f32>::zeroed(device, 64)), ok(Buffer::<D, u32>::zeroed(device, 1)));
    let mut y: Buffer<D, f32> = ok(Buffer::zeroed(device, 3));
    // Of a stack it must be said which.
    assert_status(FloatMatvec::new(&w, x.slice(), y.slice_mut(), 1).launch(device), sys::KQM_BAD_SHAPE);
    assert_invalid(FloatMatvec::new(&w, x.slice(), y.slice_mut(), 2).experts(indices.slice(), 2).launch(device));
    assert_eq!(status_without_arguments!(device, float_matvec), sys::KQM_NULL_POINTER);
    ok(FloatMatvec::new(&w, x.slice(), y.slice_mut(), 1).experts(indices.slice(), 1).launch(device));
    ok(device.synchronize());
}
