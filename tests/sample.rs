//! `sample` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{RowSampling, Sample, SamplePart, SampleState};
use kquant_moe::oracle::sample::{Sampling, sample};
use kquant_moe::sys;

on_devices!(
    equals_the_oracle,
    ties_are_kept_by_id,
    rows_have_samplings_of_their_own,
    what_gives_no_token_is_told_from_tokens,
    feeds_the_decode_loop,
    refuses_bad_arguments,
);

/// Rows in use on a device.
struct Rows<'a, D: Device> {
    device: &'a D,
    /// Kept from launch to launch, as the kernel has it.
    state: Output<D, SampleState>,
    parts: Output<D, SamplePart>,
}

impl<'a, D: Device> Rows<'a, D> {
    fn new(device: &'a D, rows: usize, cols: usize) -> Self {
        let state = Output::starting_with(device, &vec![SampleState::default(); rows]);
        Self { device, state, parts: Output::new(device, rows * Sample::parts(cols)) }
    }

    /// Draws behind the tokens `before` it of each row.
    fn draw(&mut self, x: &[f32], samplings: &[Sampling], before: &[&[u32]], history_len: usize) -> Vec<u32> {
        let rows = samplings.len();
        let cols = x.len() / rows;
        let device = self.device;
        let x = input(device, x);
        let samplings: Vec<RowSampling> = samplings.iter().map(RowSampling::from).collect();
        let samplings = input(device, &samplings);
        let at: Vec<u32> = before.iter().map(|before| (before.len() - 1) as u32).collect();
        let mut position = Output::starting_with(device, &at);
        let mut history = Output::starting_with(device, &histories(before, history_len));
        let mut out = Output::new(device, rows);
        let memory = (self.state.slice(), self.parts.slice());
        let launch = Sample::new(x.slice(), (samplings.slice(), position.slice()), out.slice(), memory, [rows, cols]);
        let launch = if history_len == 0 { launch } else { launch.history(history.slice(), history_len) };
        ok(launch.launch(device));
        assert_same("positions", &position.read(), &at);
        assert_same("history", &history.read(), &histories(before, history_len));
        out.read()
    }

    fn check(&mut self, what: &str, x: &[f32], samplings: &[Sampling], before: &[&[u32]], history_len: usize) {
        let rows = x.chunks(x.len() / samplings.len());
        let expected: Vec<u32> = rows
            .zip(samplings.iter().zip(before))
            .map(|(row, (sampling, before))| sample(row, sampling, before, before.len() as u64))
            .collect();
        assert_same(what, &self.draw(x, samplings, before, history_len), &expected);
    }
}

/// The last tokens of sequences, each under the position before its own.
fn histories(before: &[&[u32]], history_len: usize) -> Vec<u32> {
    let mut all = Vec::new();
    for before in before {
        let mut history = vec![7; history_len];
        for (position, &token) in before.iter().enumerate().take_while(|_| history_len > 0) {
            history[(position + history_len - 1) % history_len] = token;
        }
        all.extend(history);
    }
    all
}

fn filters() -> Vec<Sampling> {
    let usual = Sampling { seed: 3, ..Sampling::default() };
    vec![
        usual,
        Sampling::GREEDY,
        Sampling { temperature: 0.3, seed: u64::MAX, ..usual },
        Sampling { temperature: 1e30, ..usual },
        Sampling { temperature: 1e-40, ..usual },
        Sampling { top_k: 1, ..usual },
        Sampling { top_k: 40, temperature: 2.0, ..usual },
        Sampling { top_k: 3000, temperature: 3.0, ..usual },
        Sampling { top_k: 1 << 40, ..usual },
        Sampling { top_p: 0.0, ..usual },
        Sampling { top_p: 0.9, ..usual },
        Sampling { top_p: 0.99, temperature: 4.0, seed: 11, ..usual },
        Sampling { min_p: 0.05, temperature: 1.5, ..usual },
        Sampling { min_p: 1.0, ..usual },
        Sampling { top_k: 50, top_p: 0.8, min_p: 0.01, temperature: 2.0, ..usual },
        Sampling { top_k: 2, top_p: 0.5, ..usual },
        Sampling { penalty: 1.3, window: 6, ..usual },
        Sampling { penalty: 0.7, window: 40, top_p: 0.9, ..Sampling::default() },
        Sampling { penalty: 1.1, window: 64, ..Sampling::GREEDY },
        Sampling { penalty: 2.0, window: 0, top_k: 7, ..usual },
    ]
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(14);
    for cols in size.shapes(&[1, 31, 2047, 2048, 2049, 5000], &[32_000, 151_936]) {
        let filters = filters();
        let mut rows = Rows::new(device, filters.len(), cols);
        // From nearly even to nearly certain; and all logits the same.
        for scale in [0.02, 1.0, 6.0, 0.0] {
            let x: Vec<f32> = random.gaussians(cols * filters.len()).iter().map(|x| x * scale).collect();
            let tokens: Vec<u32> = (0..70).map(|i| (i * i % 23 * 97) % (cols as u32 + 5)).collect();
            let before: Vec<&[u32]> = (0..filters.len()).map(|row| &tokens[..1 + row * 3]).collect();
            rows.check(&format!("{cols} logits, {scale}"), &x, &filters, &before, 64);
        }
        for kind in Activations::ALL {
            let x: Vec<f32> = filters.iter().flat_map(|_| kind.row(&mut random, cols)).collect();
            let tokens: Vec<u32> = (0..9).map(|i| i * 3).collect();
            rows.check(&format!("{kind:?}, {cols} logits"), &x, &filters, &vec![&tokens[..]; filters.len()], 64);
        }
    }
}

/// What top-k and top-p keep of many equal logits, in several parts, are those with the lowest ids.
fn ties_are_kept_by_id<D: Device>(device: &D, _: Size) {
    let cols = 7000;
    let mut rows = Rows::new(device, 4, cols);
    let x: Vec<f32> = (0..cols).map(|i| [-0.0, 0.0, -1.0, 0.0, -3.0, -30.0][i * 7 % 6]).collect();
    let x = x.repeat(4);
    let before = [&[1_u32][..]; 4];
    for seed in 0..6 {
        for (top_k, top_p) in
            [(1, 1.0), (700, 1.0), (3500, 1.0), (3600, 0.99), (0, 0.01), (0, 0.3), (0, 0.95), (6999, 0.5)]
        {
            let filter =
                |min_p, temperature| Sampling { top_k, top_p, min_p, temperature, seed, ..Sampling::default() };
            let filters = [filter(0.0, 1.0), filter(0.5, 1.0), filter(0.0, 9.0), filter(0.01, 0.2)];
            rows.check(&format!("top-k of {top_k}, top-p of {top_p}"), &x, &filters, &before, 0);
        }
    }
}

/// One row does not depend on the others; and no launch on what the one before it left.
fn rows_have_samplings_of_their_own<D: Device>(device: &D, _: Size) {
    let cols = 2500;
    let mut random = Random::new(5);
    let filters = filters();
    let x = random.gaussians(cols * filters.len());
    let tokens: Vec<u32> = (0..50).collect();
    let before = vec![&tokens[..]; filters.len()];
    let mut all = Rows::new(device, filters.len(), cols);
    let together = all.draw(&x, &filters, &before, 64);
    assert_same("again", &all.draw(&x, &filters, &before, 64), &together);
    let mut one = Rows::new(device, 1, cols);
    for (row, x) in x.chunks(cols).enumerate() {
        assert_same("alone", &one.draw(x, &filters[row..=row], &before[..1], 64), &together[row..=row]);
    }
}

fn what_gives_no_token_is_told_from_tokens<D: Device>(device: &D, _: Size) {
    let cols = 4200;
    let usual = Sampling::default();
    let mut rows = Rows::new(device, 3, cols);
    let mut x = vec![0.0_f32; 3 * cols];
    let before = [&[3_u32, 4][..]; 3];
    let filters = [usual, Sampling { top_k: 5, top_p: 0.5, ..usual }, Sampling::GREEDY];
    for value in NANS.into_iter().chain([f32::INFINITY]) {
        for place in [0, 2048, 4199] {
            (0..3).for_each(|row| x[row * cols + place] = value);
            assert_same("not finite", &rows.draw(&x, &filters, &before, 0), &[u32::MAX; 3]);
            (0..3).for_each(|row| x[row * cols + place] = 0.0);
        }
    }
    rows.check("finite again", &x, &filters, &before, 0);
    x.fill(f32::NEG_INFINITY);
    assert_same("all minus infinity", &rows.draw(&x, &filters, &before, 0), &[u32::MAX; 3]);
    for row in 0..3 {
        x[row * cols + 4000] = f32::MIN;
    }
    assert_same("all but one", &rows.draw(&x, &filters, &before, 0), &[4000; 3]);
    // A penalty that makes a logit infinite, and one that makes the only one minus infinity.
    x.fill(0.0);
    (0..3).for_each(|row| x[row * cols + 4] = f32::MAX);
    let smaller = Sampling { penalty: 0.5, window: 1, ..usual };
    assert_same("overflow", &rows.draw(&x, &[smaller; 3], &before, 2), &[u32::MAX; 3]);
    let wrong = [
        Sampling { temperature: -0.5, ..usual },
        Sampling { temperature: f32::NAN, ..usual },
        Sampling { temperature: f32::INFINITY, ..usual },
        Sampling { top_p: 1.5, ..usual },
        Sampling { top_p: f32::NAN, ..usual },
        Sampling { top_p: -0.5, ..usual },
        Sampling { min_p: 1.5, ..usual },
        Sampling { min_p: f32::NAN, ..usual },
        Sampling { min_p: -0.5, ..usual },
        Sampling { penalty: 0.0, ..usual },
        Sampling { penalty: f32::NAN, ..usual },
        Sampling { penalty: f32::INFINITY, window: 1, ..usual },
    ];
    for wrong in wrong.chunks(3) {
        assert!(wrong.iter().all(|sampling| sampling.fault().is_some()));
        rows.check("senseless", &x, wrong, &before, 2);
    }
    // More than the history has.
    let wide = Sampling { penalty: 1.5, window: 3, ..usual };
    assert_same("window", &rows.draw(&x, &[wide; 3], &before, 2), &[u32::MAX; 3]);
    assert_same("no history", &rows.draw(&x, &[wide; 3], &before, 0), &[u32::MAX; 3]);
}

/// Tokens go to the history, which is a ring, and count in the next step's window; positions advance.
fn feeds_the_decode_loop<D: Device>(device: &D, _: Size) {
    let (rows, cols, history_len) = (3, 2100, 5);
    let mut random = Random::new(15);
    let filters = [
        Sampling { penalty: 3.0, window: 5, ..Sampling::GREEDY },
        Sampling { penalty: 1.5, window: 3, top_k: 20, seed: 4, ..Sampling::default() },
        Sampling { top_p: 0.7, ..Sampling::default() },
    ];
    let mut all: Vec<Vec<u32>> = vec![vec![5], vec![6, 7, 8], (0..9).collect()];
    let before: Vec<&[u32]> = all.iter().map(Vec::as_slice).collect();
    let at: Vec<u32> = all.iter().map(|tokens| tokens.len() as u32 - 1).collect();
    let mut position = Output::starting_with(device, &at);
    let mut history = Output::starting_with(device, &histories(&before, history_len));
    let mut state = Output::starting_with(device, &vec![SampleState::default(); rows]);
    let mut parts = Output::new(device, rows * Sample::parts(cols));
    let samplings: Vec<RowSampling> = filters.iter().map(RowSampling::from).collect();
    let samplings = input(device, &samplings);
    // The same few tokens are the largest in every step.
    let x: Vec<f32> = random.gaussians(rows * cols).iter().map(|x| x * 3.0).collect();
    let x_device = input(device, &x);
    for step in 0..12 {
        let mut out = Output::new(device, rows);
        let memory = (state.slice(), parts.slice());
        let launch =
            Sample::new(x_device.slice(), (samplings.slice(), position.slice()), out.slice(), memory, [rows, cols]);
        ok(launch.history(history.slice(), history_len).advance(true).launch(device));
        let tokens = out.read();
        for (row, x) in x.chunks(cols).enumerate() {
            let expected = sample(x, &filters[row], &all[row], all[row].len() as u64);
            assert_eq!(tokens[row], expected, "row {row}, step {step}");
            all[row].push(expected);
        }
        let before: Vec<&[u32]> = all.iter().map(Vec::as_slice).collect();
        let at: Vec<u32> = all.iter().map(|tokens| tokens.len() as u32 - 1).collect();
        assert_same("positions", &position.read(), &at);
        let found = history.read();
        for (row, expected) in histories(&before, history_len).chunks(history_len).enumerate() {
            // What the sequence is too short for stays.
            let known = all[row].len().min(history_len);
            let matching = found[row * history_len..].iter().zip(expected).filter(|(a, b)| a == b).count();
            assert!(matching >= known, "history of row {row}, step {step}");
        }
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let x: Buffer<D, f32> = Buffer::zeroed(device, 8).unwrap();
    let samplings = input(device, &[RowSampling::from(&Sampling::default()); 2]);
    let mut out: Buffer<D, u32> = Buffer::zeroed(device, 2).unwrap();
    let mut position: Buffer<D, u32> = Buffer::zeroed(device, 2).unwrap();
    let mut state: Buffer<D, SampleState> = Buffer::zeroed(device, 2).unwrap();
    let mut parts: Buffer<D, SamplePart> = Buffer::zeroed(device, 2).unwrap();
    let (x_at, out_at) = (x.slice().as_ptr() as u64, out.slice_mut().as_ptr() as u64);
    let mut run = |x: u64, out: u64, rows, cols| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (x, out) = unsafe { (Slice::from_raw(device, x, 8), SliceMut::from_raw(device, out, 2)) };
        let memory = (state.slice_mut(), parts.slice_mut());
        Sample::new(x, (samplings.slice(), position.slice_mut()), out, memory, [rows, cols]).launch(device)
    };
    assert_status(run(0, out_at, 1, 8), sys::KQM_NULL_POINTER);
    assert_status(run(x_at, 0, 1, 8), sys::KQM_NULL_POINTER);
    assert_status(run(x_at, out_at, 0, 8), sys::KQM_BAD_SHAPE);
    assert_status(run(x_at, out_at, 1, 0), sys::KQM_BAD_SHAPE);
    assert_invalid(run(x_at, out_at, 1, 9));
    assert_invalid(run(x_at, out_at, 3, 1));
    assert_eq!(status_without_arguments!(device, sample), sys::KQM_NULL_POINTER);
    ok(run(x_at, out_at, 2, 4));
    ok(device.synchronize());
}

/// A window is for a penalty: without one the kernel needs no history.
#[test]
fn without_a_penalty_no_window_is_asked_for() {
    let sampling = Sampling { window: 1024, ..Sampling::default() };
    assert_eq!(RowSampling::from(&sampling).window, 0);
    assert_eq!(RowSampling::from(&Sampling { penalty: 1.1, ..sampling }).window, 1024);
}
