//! `attention` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use half::f16;
use kquant_moe::blocks::{BLOCK, TensorType};
use kquant_moe::device::{Buffer, Device, Slice, SliceMut, bytes_of};
use kquant_moe::kernels::{Attention, FixedBlock};
use kquant_moe::oracle::attention::{Element, Head, attention};
use kquant_moe::sys;
use rayon::prelude::*;

on_devices!(
    equals_the_oracle,
    ignores_what_is_masked,
    batch_equals_single_tokens,
    works_in_any_workspace,
    refuses_bad_arguments,
);

#[derive(Clone, Copy, Debug)]
struct Shape {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    start: usize,
    capacity: usize,
    cache: TensorType,
}

/// A cache of either type, as values and as bytes.
enum Cache {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Cache {
    fn new(kind: TensorType, values: &[f32]) -> Self {
        match kind {
            TensorType::F32 => Self::F32(values.to_vec()),
            _ => Self::F16(values.iter().map(|&x| f16::from_f32(x)).collect()),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(values) => bytes_of(values).to_vec(),
            Self::F16(values) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

struct Operands {
    q: Vec<f32>,
    k: Cache,
    v: Cache,
}

/// What the kernel gives: outputs, fixed point (of nothing when the outputs are no whole blocks) and scores.
struct Results {
    out: Vec<f32>,
    fixed: Vec<FixedBlock>,
    scores: Vec<f32>,
}

impl Shape {
    fn row(&self) -> usize {
        self.heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Gaussian keys and values, and queries of all distributions. Positions that no token sees hold NaN.
    fn operands(&self, random: &mut Random) -> Operands {
        let q = Activations::rows(random, 0, self.tokens, self.row());
        let stride = self.kv_heads * self.head_dim;
        let mut cache = || {
            let mut values = random.gaussians((self.start + self.tokens) * stride);
            values.resize(self.capacity * stride, f32::NAN);
            Cache::new(self.cache, &values)
        };
        Operands { q, k: cache(), v: cache() }
    }

    fn workspace<D: Device>(&self, device: &D) -> usize {
        ok(Attention::workspace_bytes(device, self.capacity, self.tokens, self.heads, self.head_dim))
    }

    fn run<D: Device>(&self, device: &D, operands: &Operands, workspace: usize, taps: bool) -> Results {
        let (q, start) = (input(device, &operands.q), input(device, &[self.start as u32]));
        let (k_cache, v_cache) = (input(device, &operands.k.bytes()), input(device, &operands.v.bytes()));
        let mut workspace: Output<D, u8> = Output::new(device, workspace);
        let blocks = if self.row().is_multiple_of(BLOCK) { self.tokens * self.row() / BLOCK } else { 0 };
        let mut out = Output::new(device, operands.q.len());
        let mut fixed = Output::new(device, blocks);
        let mut scores = Output::new(device, self.tokens * self.heads * self.capacity);
        // Without taps the forward needs nothing but the fixed point.
        let with_out = taps || blocks == 0;
        ok(Attention {
            q: q.slice(),
            k_cache: k_cache.slice(),
            v_cache: v_cache.slice(),
            cache_kind: self.cache,
            start: start.slice(),
            out: out.slice_if(with_out),
            fixed: fixed.slice_if(blocks > 0),
            scores: scores.slice_if(taps),
            workspace: workspace.slice(),
            capacity: self.capacity,
            tokens: self.tokens,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scale(),
        }
        .launch(device));
        workspace.read();
        Results {
            out: if with_out { out.read() } else { Vec::new() },
            fixed: fixed.read(),
            scores: if taps { scores.read() } else { Vec::new() },
        }
    }

    fn expected(&self, operands: &Operands) -> Results {
        let mut out = vec![0.0; operands.q.len()];
        let mut scores = vec![0.0; self.tokens * self.heads * self.capacity];
        match (&operands.k, &operands.v) {
            (Cache::F32(k), Cache::F32(v)) => self.oracle(&operands.q, k, v, &mut out, &mut scores),
            (Cache::F16(k), Cache::F16(v)) => self.oracle(&operands.q, k, v, &mut out, &mut scores),
            _ => unreachable!("both caches have one type"),
        }
        let fixed = if self.row().is_multiple_of(BLOCK) { fixed_blocks(&out).1 } else { Vec::new() };
        Results { out, fixed, scores }
    }

    fn oracle<T: Element>(&self, q: &[f32], k: &[T], v: &[T], out: &mut [f32], scores: &mut [f32]) {
        let (dim, group, stride) = (self.head_dim, self.heads / self.kv_heads, self.kv_heads * self.head_dim);
        let rows = q.par_chunks(dim).zip(out.par_chunks_mut(dim)).zip(scores.par_chunks_mut(self.capacity));
        rows.enumerate().for_each(|(row, ((q, out), scores))| {
            let (token, first) = (row / self.heads, row % self.heads / group * dim);
            let head = Head { k: &k[first..], v: &v[first..], stride };
            attention(q, head, self.start + token + 1, self.scale(), out, Some(scores));
        });
    }

    fn check<D: Device>(&self, device: &D, operands: &Operands) {
        let expected = self.expected(operands);
        for taps in [true, false] {
            let got = self.run(device, operands, self.workspace(device), taps);
            if taps {
                assert_bits(&format!("{self:?}, scores"), &got.scores, &expected.scores);
            }
            if !got.out.is_empty() {
                assert_bits(&format!("{self:?}"), &got.out, &expected.out);
                for (q, out) in operands.q.chunks(self.head_dim).zip(got.out.chunks(self.head_dim)) {
                    if q.iter().any(|q| q.is_nan()) {
                        assert_nan("output of a NaN query", out);
                    }
                }
            }
            assert_blocks(&format!("{self:?}"), &got.fixed, &expected.fixed);
        }
    }
}

const CACHES: [TensorType; 2] = [TensorType::F32, TensorType::F16];

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(18);
    // tokens, heads, kv_heads, head_dim, start, capacity
    let shapes = size.shapes(
        &[
            // Positions at the edges of chunks.
            (1, 1, 1, 64, 0, 1),
            (1, 2, 1, 64, 63, 64),
            (1, 4, 2, 64, 64, 65),
            (1, 2, 2, 128, 65, 130),
            (1, 4, 1, 128, 130, 200),
            (8, 4, 2, 64, 60, 68),
            (17, 2, 1, 128, 120, 137),
            // Groups of 1, 2, 4, 8, 16 and of sizes between; every head_dim.
            (3, 2, 2, 80, 62, 66),
            (2, 6, 2, 256, 63, 70),
            (2, 8, 1, 64, 64, 66),
            (3, 10, 2, 80, 3, 6),
            (2, 16, 1, 256, 64, 70),
            (2, 26, 2, 72, 1, 100),
            // Many heads in one block of the second kernel, and more chunks than a warp has lanes.
            (2, 32, 2, 8, 66, 70),
            (1, 2, 1, 64, 2100, 2200),
        ],
        &[
            (1, 32, 4, 128, 511, 1024),
            (70, 32, 4, 128, 100, 256),
            (1, 32, 4, 128, 5999, 6144),
            (8, 16, 16, 256, 300, 320),
        ],
    );
    for (tokens, heads, kv_heads, head_dim, start, capacity) in shapes {
        for cache in CACHES {
            let shape = Shape { tokens, heads, kv_heads, head_dim, start, capacity, cache };
            shape.check(device, &shape.operands(&mut random));
        }
    }
}

/// Keys and values that are extreme, infinite or NaN. Only those that a token sees have an effect.
fn ignores_what_is_masked<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(19);
    for cache in CACHES {
        for kind in Activations::ALL {
            let shape = Shape { tokens: 4, heads: 4, kv_heads: 2, head_dim: 64, start: 62, capacity: 70, cache };
            let stride = 2 * 64;
            let mut cache = || {
                let values: Vec<f32> = (0..70)
                    .flat_map(|position| match position {
                        65 => kind.row(&mut random, stride),
                        _ => random.gaussians(stride),
                    })
                    .collect();
                Cache::new(shape.cache, &values)
            };
            let (k, v) = (cache(), cache());
            let operands = Operands { q: random.gaussians(4 * shape.row()), k, v };
            shape.check(device, &operands);
            let out = shape.run(device, &operands, shape.workspace(device), true).out;
            assert!(!has_non_finite(&out[..3 * shape.row()]), "{kind:?} at position 65 changes tokens before it");
        }
    }
}

fn batch_equals_single_tokens<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(20);
    for (tokens, heads, kv_heads, head_dim, start, capacity) in
        size.shapes(&[(9, 8, 2, 64, 58, 80)], &[(64, 32, 4, 128, 480, 1024)])
    {
        for cache in CACHES {
            let shape = Shape { tokens, heads, kv_heads, head_dim, start, capacity, cache };
            let operands = shape.operands(&mut random);
            let together = shape.run(device, &operands, shape.workspace(device), true);
            for token in 0..tokens {
                let one = Shape { tokens: 1, start: start + token, ..shape };
                let part = |x: &[f32], row: usize| x[token * row..][..row].to_vec();
                let alone = Operands {
                    q: part(&operands.q, shape.row()),
                    k: Cache::new(cache, &values(&operands.k)),
                    v: Cache::new(cache, &values(&operands.v)),
                };
                let alone = one.run(device, &alone, one.workspace(device), true);
                assert_bits("out", &part(&together.out, shape.row()), &alone.out);
                assert_bits("scores", &part(&together.scores, heads * capacity), &alone.scores);
            }
        }
    }
}

fn values(cache: &Cache) -> Vec<f32> {
    match cache {
        Cache::F32(values) => values.clone(),
        Cache::F16(values) => values.iter().map(|x| x.to_f32()).collect(),
    }
}

/// A workspace for one token makes the kernel take one at a time; the results are the same.
fn works_in_any_workspace<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(21);
    let shape =
        Shape { tokens: 5, heads: 4, kv_heads: 2, head_dim: 64, start: 62, capacity: 70, cache: TensorType::F16 };
    let operands = shape.operands(&mut random);
    let expected = shape.expected(&operands);
    let one = Shape { tokens: 1, ..shape }.workspace(device);
    for workspace in [one, 2 * one, 3 * one + 16, 100 * one] {
        let got = shape.run(device, &operands, workspace, true);
        assert_bits("out", &got.out, &expected.out);
        assert_bits("scores", &got.scores, &expected.scores);
        assert_blocks("fixed", &got.fixed, &expected.fixed);
    }
    assert_eq!(shape.workspace(device), 5 * one);
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let q: Buffer<D, f32> = Buffer::zeroed(device, 8192).unwrap();
    let start: Buffer<D, u32> = Buffer::zeroed(device, 1).unwrap();
    let cache: Buffer<D, u8> = Buffer::zeroed(device, 32768).unwrap();
    let mut out: Buffer<D, f32> = Buffer::zeroed(device, 8192).unwrap();
    let mut workspace: Buffer<D, u8> = Buffer::zeroed(device, 1 << 16).unwrap();
    let (q_at, cache_at) = (q.slice().as_ptr() as u64, cache.slice().as_ptr() as u64);
    let mut run = |q: u64, cache: u64, cache_kind, (tokens, heads, kv_heads, head_dim), with_out: bool, room| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (q, k_cache) = unsafe { (Slice::from_raw(q, 8192), Slice::from_raw(cache, 32768)) };
        let workspace: SliceMut<'_, u8> = workspace.part_mut(0, room).unwrap();
        Attention {
            q,
            k_cache,
            v_cache: k_cache,
            cache_kind,
            start: start.slice(),
            out: with_out.then(|| out.slice_mut()),
            fixed: None,
            scores: None,
            workspace,
            capacity: 4,
            tokens,
            heads,
            kv_heads,
            head_dim,
            scale: 1.0,
        }
        .launch(device)
    };
    let (f32, good, room) = (TensorType::F32, (1, 4, 2, 64), 1 << 16);
    assert_status(run(0, cache_at, f32, good, true, room), sys::KQM_NULL_POINTER);
    assert_status(run(q_at, 0, f32, good, true, room), sys::KQM_NULL_POINTER);
    assert_status(run(q_at, cache_at, f32, good, false, room), sys::KQM_NULL_POINTER);
    assert_status(run(q_at, cache_at, TensorType::Q4K, (1, 1, 1, 8), true, room), sys::KQM_UNSUPPORTED_TYPE);
    for shape in [(0, 4, 2, 64), (1, 0, 2, 64), (1, 4, 0, 64), (1, 5, 2, 64), (1, 17, 1, 64), (1, 4, 2, 0)] {
        assert_status(run(q_at, cache_at, f32, shape, true, room), sys::KQM_BAD_SHAPE);
    }
    for head_dim in [4, 60, 264] {
        assert_status(run(q_at, cache_at, f32, (1, 4, 2, head_dim), true, room), sys::KQM_BAD_SHAPE);
    }
    assert_status(run(q_at + 4, cache_at, f32, good, true, room), sys::KQM_MISALIGNED);
    assert_status(run(q_at, cache_at + 8, f32, good, true, room), sys::KQM_MISALIGNED);
    assert_status(run(q_at, cache_at, f32, good, true, 16), sys::KQM_WORKSPACE);
    assert_invalid(run(q_at, cache_at, f32, (33, 4, 2, 64), true, room));
    assert_eq!(status_without_arguments!(device, attention), sys::KQM_NULL_POINTER);
    ok(run(q_at, cache_at, f32, (2, 4, 2, 64), true, room));
    ok(device.synchronize());
}
