//! `attention` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use half::f16;
use kquant_moe::blocks::{BLOCK, TensorType};
use kquant_moe::device::{Buffer, Device, Slice, SliceMut, bytes_of};
use kquant_moe::kernels::{Attention, Batch, CacheMut, FixedBlock, Queries, Rope};
use kquant_moe::oracle::attention::{self, Element, Head, Pages};
use kquant_moe::{oracle, sys};
use rayon::prelude::*;

on_devices!(
    equals_the_oracle,
    sums_in_one_order,
    fuses_the_weight_of_a_chunk,
    stores_one_nan,
    batches_equal_the_oracle,
    ignores_what_is_masked,
    batch_equals_single_tokens,
    works_in_any_workspace,
    sequences_equal_each_alone,
    tokens_without_a_place_give_nan,
    takes_in_the_rotation,
    norms_in_one_order,
    leaves_the_cache_alone_when_it_is_full,
    refuses_bad_arguments,
    refuses_bad_rotations,
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

    fn from_bytes(kind: TensorType, bytes: &[u8]) -> Self {
        match kind {
            TensorType::F32 => Self::F32(bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect()),
            _ => Self::F16(bytes.as_chunks().0.iter().map(|&x| f16::from_le_bytes(x)).collect()),
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

/// What the kernel gives: outputs, fixed point and scores.
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
        attention::scale(self.head_dim)
    }

    /// Gaussian keys and values, and queries of all distributions. Positions that no token sees hold NaN.
    fn operands(&self, random: &mut Random) -> Operands {
        let q = Activations::rows(random, 0, self.tokens, self.row());
        let stride = self.kv_heads * self.head_dim;
        let mut cache = || {
            let mut values = random.gaussians((self.start.min(self.capacity) + self.tokens) * stride);
            values.resize(self.capacity * stride, f32::NAN);
            Cache::new(self.cache, &values)
        };
        Operands { q, k: cache(), v: cache() }
    }

    fn workspace<D: Device>(&self, device: &D) -> usize {
        ok(Attention::workspace_bytes(device, self.capacity, self.tokens, self.heads, self.head_dim))
    }

    /// Bytes of a position of the cache.
    fn cache_row(&self) -> usize {
        self.kv_heads * self.head_dim * self.cache.block_bytes()
    }

    /// One sequence, whose pages are in no order.
    fn paged<D: Device>(&self, device: &D) -> Paged<D> {
        Paged::run(device, self.start, self.tokens, self.capacity)
    }

    /// Without optional outputs, also with what else is a matter of speed.
    fn run<D: Device>(&self, device: &D, operands: &Operands, workspace: usize, optional: bool) -> Results {
        let paged = self.paged(device);
        let caches = [&operands.k, &operands.v].map(|cache| paged.pool(&cache.bytes(), self.cache_row()));
        let reach = (self.start + self.tokens).min(self.capacity);
        let batch = paged.batch();
        let batch = if optional { batch } else { batch.reach(reach).singles(self.tokens / 2) };
        self.run_batch(device, &operands.q, caches, batch, workspace, optional)
    }

    fn run_batch<D: Device>(
        &self,
        device: &D,
        q_values: &[f32],
        caches: [Vec<u8>; 2],
        batch: Batch<'_>,
        workspace: usize,
        optional: bool,
    ) -> Results {
        let q = input(device, q_values);
        let [k_cache, v_cache] = caches.map(|cache| input(device, &cache));
        let mut workspace: Output<D, u8> = Output::new(device, workspace);
        let mut out = Output::new(device, q_values.len());
        let mut fixed = Output::new(device, self.tokens * self.row().div_ceil(BLOCK));
        let mut scores = Output::new(device, self.tokens * self.heads * self.capacity);
        // Without optional outputs the forward needs nothing but the fixed point.
        ok(Attention::new(
            Queries::rotated(q.slice(), [k_cache.slice(), v_cache.slice()], batch),
            workspace.slice(),
            self.cache,
            [self.kv_heads, self.head_dim],
            self.heads,
            self.scale(),
        )
        .out(out.slice_if(optional))
        .fixed(fixed.slice())
        .scores(scores.slice_if(optional))
        .launch(device));
        workspace.read();
        Results {
            out: if optional { out.read() } else { Vec::new() },
            fixed: fixed.read(),
            scores: if optional { scores.read() } else { Vec::new() },
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
        // The last block of a token is filled up with zeros.
        let rows = out.chunks(self.row()).map(|row| [row, &[0.0; BLOCK]].concat());
        let cols = self.row().next_multiple_of(BLOCK);
        let fixed = rows.flat_map(|row| fixed_blocks(&row[..cols]).1).collect();
        Results { out, fixed, scores }
    }

    fn oracle<T: Element>(&self, q: &[f32], k: &[T], v: &[T], out: &mut [f32], scores: &mut [f32]) {
        let (dim, group, stride) = (self.head_dim, self.heads / self.kv_heads, self.kv_heads * self.head_dim);
        let rows = q.par_chunks(dim).zip(out.par_chunks_mut(dim)).zip(scores.par_chunks_mut(self.capacity));
        rows.enumerate().for_each(|(row, ((q, out), scores))| {
            let (token, first) = (row / self.heads, row % self.heads / group * dim);
            let head = Head::new(&k[first..], &v[first..], stride);
            let position = self.start + token;
            if position < self.capacity {
                attention::attention(q, head, position + 1, self.scale(), out, Some(scores));
            } else {
                attention::attention(q, head.paged(Pages::ABSENT), 1, self.scale(), out, Some(scores));
                assert_nan("oracle of a token without a place", out);
            }
        });
    }

    fn check<D: Device>(&self, device: &D, operands: &Operands) {
        let expected = self.expected(operands);
        for optional in [true, false] {
            let got = self.run(device, operands, self.workspace(device), optional);
            if optional {
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
            (3, 2, 2, 192, 62, 66),
            (2, 6, 2, 256, 63, 70),
            (2, 8, 1, 64, 64, 66),
            (3, 10, 2, 192, 3, 6),
            (2, 16, 1, 256, 64, 70),
            (2, 26, 2, 64, 1, 100),
            // More chunks than a warp has lanes, and than are joined at once.
            (2, 32, 2, 128, 66, 70),
            (1, 2, 1, 64, 2100, 2200),
            (1, 1, 1, 64, 8300, 8310),
            // Positions that the cache does not have, up to the largest number.
            (3, 4, 2, 64, 63, 64),
            (5, 2, 1, 128, 64, 66),
            (1, 4, 2, 64, 130, 130),
            (2, 2, 1, 256, 1_000_000, 70),
            (3, 4, 1, 64, u32::MAX as usize, 65),
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

/// Heads whose output shows the order in which probabilities and chunks are added: with few heads, and with as many as share a block.
fn sums_in_one_order<D: Device>(device: &D, _: Size) {
    let mut cases = [heads::Case::denominators(), heads::Case::joins()].concat();
    cases.sort_by_key(heads::Case::seen);
    for cases in cases.chunk_by(|a, b| a.seen() == b.seen()) {
        let seen = cases[0].seen();
        for group in [1, 8] {
            if seen > 2000 && group > 1 {
                continue;
            }
            let shape = Shape {
                tokens: 1,
                heads: group * cases.len(),
                kv_heads: cases.len(),
                head_dim: heads::HEAD_DIM,
                start: seen - 1,
                capacity: seen + 2,
                cache: TensorType::F32,
            };
            let rows = |values: fn(&heads::Case) -> &[f32]| {
                let of_position = |position: usize| {
                    cases.iter().flat_map(move |case| &values(case)[position * heads::HEAD_DIM..][..heads::HEAD_DIM])
                };
                let mut rows: Vec<f32> = (0..seen).flat_map(of_position).copied().collect();
                rows.resize(shape.capacity * cases.len() * heads::HEAD_DIM, f32::NAN);
                Cache::F32(rows)
            };
            let operands = Operands {
                q: cases.iter().flat_map(|case| case.q.repeat(group)).collect(),
                k: rows(|case| &case.k),
                v: rows(|case| &case.v),
            };
            shape.check(device, &operands);
            let got = shape.run(device, &operands, shape.workspace(device), true);
            for (row, out) in got.out.chunks(heads::HEAD_DIM).enumerate() {
                let expected = &cases[row / group].expected;
                assert_bits(&format!("{shape:?}, head {row}"), &out[..expected.len()], expected);
            }
        }
    }
}

/// Two chunks of one chain whose weights make another sum when the product of the second one's weight and factor is rounded before it is
/// added. Their difference of one unit of f64 shows in an output for which it decides to which f32 it is rounded.
struct FusedWeight {
    /// Scores of the second chunk's two positions that count; those of the first one are `FIRST`.
    second: [f32; 2],
    /// The value, of the only position that has one, and what becomes of it with the fused product and with the rounded one.
    value: f32,
    fused: f32,
    rounded: f32,
}

impl FusedWeight {
    /// Scores of the first chunk's two positions that count: so that its weight has as many bits as f64.
    const FIRST: [f32; 2] = [0.0, -17.25];
    /// A score that counts for nothing beside the others.
    const NOTHING: f32 = -200.0;

    /// The first one there is, of second chunks that follow each other.
    fn find() -> Self {
        let weight = |[first, other]: [f32; 2]| 1.0 + f64::from(oracle::exp::exp(other - first));
        (0..)
            .find_map(|i| {
                let first = -0.25 - i as f32 / 1024.0;
                let second = [first, first - 16.5];
                let factor = f64::from(oracle::exp::exp(first));
                let (total, added) = (weight(Self::FIRST), weight(second));
                let inverses = [added.mul_add(factor, total), added * factor + total].map(|l| 1.0 / l);
                if inverses[0] == inverses[1] {
                    return None;
                }
                let outputs = |value: u32| inverses.map(|inverse| (f64::from(value) * inverse) as f32);
                let value = (1 << 23..1 << 24).find(|&value| outputs(value)[0] != outputs(value)[1])?;
                let [fused, rounded] = outputs(value);
                Some(Self { second, value: value as f32, fused, rounded })
            })
            .unwrap()
    }
}

/// The join of chunks fuses the product of a chunk's weight and factor with its addition, for few tokens and for tiles of them.
fn fuses_the_weight_of_a_chunk<D: Device>(device: &D, _: Size) {
    let FusedWeight { second, value, fused, rounded } = FusedWeight::find();
    assert_ne!(fused.to_bits(), rounded.to_bits());
    // Chunks 0 and 8 are of one chain.
    let (chunk, head_dim) = (sys::KQM_ATTENTION_CHUNK as usize, 64);
    let seen = 8 * chunk + 2;
    for tokens in [1, 4] {
        let shape = Shape {
            tokens,
            heads: 1,
            kv_heads: 1,
            head_dim,
            start: seen - 1,
            capacity: seen + tokens,
            cache: TensorType::F32,
        };
        let mut scores = vec![FusedWeight::NOTHING; shape.capacity];
        scores[..2].copy_from_slice(&FusedWeight::FIRST);
        scores[8 * chunk..seen].copy_from_slice(&second);
        // The scale is a power of two.
        let in_first = |x: f32| (0..head_dim).map(move |d| if d == 0 { x } else { 0.0 });
        let k: Vec<f32> = scores.iter().flat_map(|score| in_first(score / shape.scale())).collect();
        let mut v = vec![0.0; shape.capacity * head_dim];
        v[..head_dim].fill(value);
        let operands =
            Operands { q: in_first(1.0).collect::<Vec<_>>().repeat(tokens), k: Cache::F32(k), v: Cache::F32(v) };
        shape.check(device, &operands);
        let got = shape.run(device, &operands, shape.workspace(device), true);
        assert_bits(&format!("{tokens} tokens"), &got.out, &vec![fused; tokens * head_dim]);
    }
}

/// NaNs in queries, keys and values, none of them the one that is stored.
fn stores_one_nan<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(180);
    for cache in CACHES {
        for head_dim in [64, 256] {
            let shape = Shape { tokens: 2, heads: 4, kv_heads: 4, head_dim, start: 64, capacity: 70, cache };
            let len = shape.capacity * shape.row();
            let sound = [2 * shape.row(), len, len].map(|len| random.gaussians(len));
            for (operand, what) in ["queries", "keys", "values"].into_iter().enumerate() {
                let mut values = sound.clone();
                for (head, nan) in NANS.into_iter().enumerate() {
                    // A query's first token, or position 3 of the cache.
                    let row = if operand == 0 { 0 } else { 3 };
                    values[operand][(row * 4 + head) * head_dim + 9] = nan;
                }
                let [q, k, v] = values;
                let operands = Operands { q, k: Cache::new(cache, &k), v: Cache::new(cache, &v) };
                shape.check(device, &operands);
                let got = shape.run(device, &operands, shape.workspace(device), true);
                let lost = |values: &[f32]| values.iter().copied().filter(|x| x.is_nan()).collect::<Vec<_>>();
                let (out, scores) = (lost(&got.out), lost(&got.scores));
                assert_eq!(out.len(), [shape.row(), 2 * shape.row(), 8][operand], "{what}");
                assert_eq!(scores.len(), [4 * 65, 8, 0][operand], "{what}");
                assert_stored_nan(what, &[out, scores].concat());
            }
        }
    }
}

/// Every number of tokens up to one more than a chunk, and around two: with all head dimensions and caches, groups of all kinds, and
/// starts at and off the edges of chunks.
fn batches_equal_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(22);
    let starts = [0, 1, 37, 62, 63, 64, 65, 130];
    // heads, kv_heads
    let groups = [(1, 1), (4, 2), (8, 1), (3, 1), (16, 1), (10, 2), (2, 2), (7, 1), (26, 2)];
    let batches = (2..=65).chain(127..=129).chain(size.shapes(&[], &[511, 512, 513]));
    for (case, tokens) in batches.enumerate() {
        // Numbers of cases without a common divisor: every dimension and cache meets every start and group.
        let (heads, kv_heads) = groups[case % groups.len()];
        let start = starts[case / 3 % starts.len()];
        let capacity = start + tokens + [0, 1, 70][case % 3];
        let (head_dim, cache) = ([64, 128, 192, 256][case % 4], CACHES[case / 4 % 2]);
        let shape = Shape { tokens, heads, kv_heads, head_dim, start, capacity, cache };
        shape.check(device, &shape.operands(&mut random));
    }
    // The shape of Qwen3-30B-A3B, with more chunks than blocks take parts.
    for (tokens, start) in size.shapes(&[(2, 700), (9, 2300)], &[(8, 8192), (65, 6000), (512, 512), (2048, 0)]) {
        for cache in CACHES {
            let (heads, kv_heads) = size.shapes(&[(8, 1)], &[(32, 4)]).pop().unwrap();
            let shape = Shape { tokens, heads, kv_heads, head_dim: 128, start, capacity: start + tokens, cache };
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
        size.shapes(&[(9, 8, 2, 64, 58, 80), (34, 3, 1, 128, 50, 84)], &[(64, 32, 4, 128, 480, 1024)])
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
    const CACHE: usize = 1 << 18;
    let q: Buffer<D, f32> = Buffer::zeroed(device, 8192).unwrap();
    let numbers: Buffer<D, u32> = Buffer::zeroed(device, 33).unwrap();
    let cache: Buffer<D, u8> = Buffer::zeroed(device, CACHE).unwrap();
    let mut out: Buffer<D, f32> = Buffer::zeroed(device, 8192).unwrap();
    let mut workspace: Buffer<D, u8> = Buffer::zeroed(device, 1 << 16).unwrap();
    let (q_at, cache_at) = (q.slice().as_ptr() as u64, cache.slice().as_ptr() as u64);
    let mut run = |q: u64, cache: u64, cache_kind, (tokens, heads, kv_heads, head_dim), with_out: bool, room| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (q, k_cache) = unsafe { (Slice::from_raw(device, q, 8192), Slice::from_raw(device, cache, CACHE)) };
        let workspace: SliceMut<'_, u8> = workspace.part_mut(0, room).unwrap();
        let batch = Batch::new([numbers.slice(), numbers.slice(), numbers.slice()], [tokens, 1], [4, 1]);
        Attention::new(
            Queries::rotated(q, [k_cache, k_cache], batch),
            workspace,
            cache_kind,
            [kv_heads, head_dim],
            heads,
            1.0,
        )
        .out(with_out.then(|| out.slice_mut()))
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
    for head_dim in [8, 32, 96, 320] {
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

/// A single token before the rotation, and the cache that it comes to. Positions from its own on hold NaN.
struct Token {
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Of q and of k; without them nothing is normalised.
    weights: Option<[Vec<f32>; 2]>,
    eps: f32,
    table: Vec<f32>,
    k_cache: Vec<u8>,
    v_cache: Vec<u8>,
}

/// All that the rotation and attention of a token leave.
struct Rotated {
    q_out: Vec<f32>,
    /// q_normed, k_normed and k_out; empty without optional outputs.
    optional: [Vec<f32>; 3],
    k_cache: Vec<u8>,
    v_cache: Vec<u8>,
    results: Results,
}

impl Token {
    fn random(random: &mut Random, shape: Shape, norm: bool, kind: Activations) -> Self {
        assert_eq!(shape.tokens, 1);
        let kv_row = shape.kv_heads * shape.head_dim;
        let mut cache = || {
            let mut values = random.gaussians(shape.start * kv_row);
            values.resize(shape.capacity * kv_row, f32::NAN);
            Cache::new(shape.cache, &values).bytes()
        };
        let (k_cache, v_cache) = (cache(), cache());
        let angles = (0..shape.capacity * shape.head_dim / 2).map(|_| random.gaussian());
        let table = angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect();
        Self {
            shape,
            q: kind.row(random, shape.row()),
            k: kind.row(random, kv_row),
            v: kind.row(random, kv_row),
            weights: norm.then(|| [0, 1].map(|_| random.gaussians(shape.head_dim))),
            eps: norm::EPS,
            table,
            k_cache,
            v_cache,
        }
    }

    /// In one launch or in two.
    fn run<D: Device>(&self, device: &D, fused: bool, with_optional: bool) -> Rotated {
        let shape = &self.shape;
        let (q, k, v) = (input(device, &self.q), input(device, &self.k), input(device, &self.v));
        let weights = self.weights.as_ref().map(|weights| weights.each_ref().map(|weight| input(device, weight)));
        let (table, paged) = (input(device, &self.table), shape.paged(device));
        let mut q_out = Output::new(device, self.q.len());
        let mut optional = [self.q.len(), self.k.len(), self.k.len()].map(|len| Output::new(device, len));
        let [mut k_cache, mut v_cache] = [&self.k_cache, &self.v_cache]
            .map(|cache| Output::starting_with(device, &paged.pool(cache, shape.cache_row())));
        let mut workspace: Output<D, u8> = Output::new(device, shape.workspace(device));
        let (mut out, mut fixed) = (Output::new(device, shape.row()), Output::new(device, shape.row().div_ceil(BLOCK)));
        let mut scores = Output::new(device, shape.heads * shape.capacity);
        let [q_normed, k_normed, k_out] = optional.each_mut().map(|output| output.slice_if(with_optional));
        let rope = Rope::new(
            [q.slice(), k.slice(), v.slice()],
            q_out.slice(),
            table.slice(),
            paged.batch(),
            CacheMut::new([k_cache.slice(), v_cache.slice()], shape.cache, [shape.kv_heads, shape.head_dim]),
            shape.heads,
            self.eps,
        )
        .q_weight(weights.as_ref().map(|weights| weights[0].slice()))
        .k_weight(weights.as_ref().map(|weights| weights[1].slice()))
        .q_normed(q_normed)
        .k_normed(k_normed)
        .k_out(k_out);
        let queries = if fused {
            // Nothing is under way before it: behind qkv or not is the same.
            Queries::fused(rope, with_optional)
        } else {
            ok(rope.launch(device));
            Queries::rotated(q_out.for_reading(), [k_cache.for_reading(), v_cache.for_reading()], paged.batch())
        };
        ok(Attention::new(
            queries,
            workspace.slice(),
            shape.cache,
            [shape.kv_heads, shape.head_dim],
            shape.heads,
            shape.scale(),
        )
        .out(out.slice_if(with_optional))
        .fixed(fixed.slice())
        .scores(scores.slice_if(with_optional))
        .launch(device));
        workspace.read();
        Rotated {
            q_out: q_out.read(),
            optional: if with_optional { optional.map(|output| output.read()) } else { Default::default() },
            k_cache: self.in_order(&paged, &k_cache.read()),
            v_cache: self.in_order(&paged, &v_cache.read()),
            results: Results {
                out: if with_optional { out.read() } else { Vec::new() },
                fixed: fixed.read(),
                scores: if with_optional { scores.read() } else { Vec::new() },
            },
        }
    }

    /// A pool's positions in order; all else is untouched.
    fn in_order<D: Device>(&self, paged: &Paged<D>, pool: &[u8]) -> Vec<u8> {
        let row = self.shape.cache_row();
        let cache = paged.in_order(pool, row, 0, self.shape.capacity);
        assert_same("pages of nobody", pool, &paged.pool(&cache, row));
        cache
    }

    fn expected(&self) -> Rotated {
        let Shape { head_dim, start, .. } = self.shape;
        let angles = &self.table[start * head_dim..][..head_dim];
        let rotate = |x: &[f32], weight: usize| {
            let (mut y, mut normed) = (x.to_vec(), vec![0.0; x.len()]);
            let weight = self.weights.as_ref().map(|weights| &weights[weight][..]);
            oracle::rope::rope(&mut y, head_dim, weight, self.eps, angles, Some(&mut normed));
            (y, normed)
        };
        let ((q_out, q_normed), (k_out, k_normed)) = (rotate(&self.q, 0), rotate(&self.k, 1));
        let (mut k_cache, mut v_cache) = (self.k_cache.clone(), self.v_cache.clone());
        for (cache, row) in [(&mut k_cache, &k_out), (&mut v_cache, &self.v)] {
            let bytes: Vec<u8> = match self.shape.cache {
                TensorType::F32 => row.iter().flat_map(|&x| <f32 as Element>::from_f32(x).to_le_bytes()).collect(),
                _ => row.iter().flat_map(|&x| <f16 as Element>::from_f32(x).to_le_bytes()).collect(),
            };
            cache[start * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
        }
        let [k, v] = [&k_cache, &v_cache].map(|bytes| Cache::from_bytes(self.shape.cache, bytes));
        let results = self.shape.expected(&Operands { q: q_out.clone(), k, v });
        Rotated { q_out, optional: [q_normed, k_normed, k_out], k_cache, v_cache, results }
    }

    fn check<D: Device>(&self, device: &D, what: &str, with_optional: bool) {
        let expected = self.expected();
        for fused in [true, false] {
            let what = format!("{what}, {:?}, {}", self.shape, if fused { "one launch" } else { "two launches" });
            let got = self.run(device, fused, with_optional);
            assert_bits(&format!("{what}, q_out"), &got.q_out, &expected.q_out);
            assert_same(&format!("{what}, k_cache"), &got.k_cache, &expected.k_cache);
            assert_same(&format!("{what}, v_cache"), &got.v_cache, &expected.v_cache);
            if with_optional {
                for (name, (got, expected)) in
                    ["q_normed", "k_normed", "k_out"].into_iter().zip(got.optional.iter().zip(&expected.optional))
                {
                    assert_bits(&format!("{what}, {name}"), got, expected);
                }
                assert_bits(&format!("{what}, scores"), &got.results.scores, &expected.results.scores);
            }
            if !got.results.out.is_empty() {
                assert_bits(&what, &got.results.out, &expected.results.out);
            }
            assert_blocks(&what, &got.results.fixed, &expected.results.fixed);
        }
    }
}

/// The fused form gives what `rope` and attention give: at the edges of chunks, for every head_dim, with and without
/// norms and optional outputs, and leaves the same cache.
fn takes_in_the_rotation<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(44);
    // heads, kv_heads, head_dim
    let heads = size.shapes(
        &[(2, 1, 64), (4, 2, 128), (3, 1, 192), (2, 2, 256), (16, 1, 64), (18, 2, 64), (8, 4, 64)],
        &[(32, 4, 128), (32, 2, 256)],
    );
    for (case, (heads, kv_heads, head_dim)) in heads.into_iter().enumerate() {
        // At full size more chunks than blocks at once, too.
        for start in size.shapes(&[0, 1, 63, 64, 65, 130], &[1000, 2100, 6000]) {
            for (kind, cache) in CACHES.into_iter().enumerate() {
                // Up to the last position of the capacity.
                let capacity = start + 1 + [0, 3, 64][(case + start + kind) % 3];
                let shape = Shape { tokens: 1, heads, kv_heads, head_dim, start, capacity, cache };
                for (norm, optional) in [(true, true), (true, false), (false, true)] {
                    let kind = if norm && optional { Activations::Gaussian } else { Activations::HeavyTailed };
                    Token::random(&mut random, shape, norm, kind).check(device, "gaussian", optional);
                }
            }
        }
    }
    for kind in Activations::ALL {
        for cache in CACHES {
            let shape = Shape { tokens: 1, heads: 4, kv_heads: 2, head_dim: 64, start: 65, capacity: 67, cache };
            for norm in [true, false] {
                Token::random(&mut random, shape, norm, kind).check(device, &format!("{kind:?}"), true);
            }
        }
    }
}

/// Heads whose norm shows the order of its sum; and NaNs in norms' weights and angles, none of them the one that is stored.
fn norms_in_one_order<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(46);
    for head_dim in [64, 128, 192, 256] {
        for (index, (head, eps)) in pins::norm_rows(head_dim).into_iter().enumerate() {
            let cache = CACHES[index % 2];
            let shape = Shape { tokens: 1, heads: 3, kv_heads: 1, head_dim, start: 5, capacity: 6, cache };
            let token = Token::random(&mut random, shape, true, Activations::Gaussian);
            Token { q: head.repeat(3), k: head, eps, ..token }.check(device, &format!("head {index}"), true);
        }
    }
    for cache in CACHES {
        let shape = Shape { tokens: 1, heads: 4, kv_heads: 2, head_dim: 128, start: 65, capacity: 66, cache };
        for (place, nan) in NANS.into_iter().enumerate() {
            let mut token = Token::random(&mut random, shape, true, Activations::Gaussian);
            match &mut token.weights {
                Some(weights) if place % 2 == 0 => weights[place / 2][70] = nan,
                _ => token.table[65 * 128 + 5] = nan,
            }
            token.check(device, "NaN", true);
        }
    }
}

/// A token at a position that the cache does not have gives NaN and is not written, in one launch as in two.
fn leaves_the_cache_alone_when_it_is_full<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(45);
    for cache in CACHES {
        let full = Shape { tokens: 1, heads: 4, kv_heads: 2, head_dim: 64, start: 65, capacity: 65, cache };
        let token = Token::random(&mut random, full, true, Activations::Gaussian);
        for fused in [true, false] {
            let got = token.run(device, fused, true);
            assert_same("k_cache", &got.k_cache, &token.k_cache);
            assert_same("v_cache", &got.v_cache, &token.v_cache);
            assert_nan("q_out", &got.q_out);
            assert_nan("out", &got.results.out);
        }
    }
}

/// Sequences of a pool, and tokens of theirs.
struct Ragged {
    shape: Shape,
    /// Pages of each sequence.
    tables: Vec<Vec<u32>>,
    pool: usize,
    /// (sequence, position).
    tokens: Vec<(u32, u32)>,
    singles: usize,
}

impl Ragged {
    /// Sequences of so many pages each, in an order without rule. The second one shares the first page of the first one, and the third
    /// one that and the next.
    fn new(random: &mut Random, pages: &[usize], heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let pool = pages.iter().sum::<usize>() + 2;
        let mut free: Vec<u32> = (0..pool as u32).collect();
        let mut tables: Vec<Vec<u32>> = Vec::new();
        for (sequence, &count) in pages.iter().enumerate() {
            let shared = if sequence < 3 { sequence } else { 0 };
            let mut table: Vec<u32> = if shared > 0 { tables[0][..shared.min(count)].to_vec() } else { Vec::new() };
            while table.len() < count {
                table.push(free.swap_remove(random.below(free.len())));
            }
            tables.push(table);
        }
        let capacity = pages.iter().max().unwrap() * Batch::PAGE - 3;
        let cache = CACHES[random.below(2)];
        let shape = Shape { tokens: 0, heads, kv_heads, head_dim, start: 0, capacity, cache };
        Self { shape, tables, pool, tokens: Vec::new(), singles: 0 }
    }

    fn tokens(mut self, singles: &[(u32, u32)], runs: &[(u32, std::ops::Range<u32>)]) -> Self {
        self.singles = singles.len();
        self.tokens = singles.to_vec();
        self.tokens.extend(runs.iter().flat_map(|(sequence, positions)| positions.clone().map(|p| (*sequence, p))));
        self.shape.tokens = self.tokens.len();
        self
    }

    /// The pages of a token, none of one without a place.
    fn table(&self, (sequence, position): (u32, u32), reach: usize) -> Option<&[u32]> {
        self.tables.get(sequence as usize).filter(|_| (position as usize) < reach).map(|table| &table[..])
    }

    /// What every token gives by itself, from keys and values in the order of its positions.
    fn expected(&self, q: &[f32], pools: &[Cache; 2], reach: usize) -> Results {
        let Shape { heads, kv_heads, head_dim, capacity, .. } = self.shape;
        let row = kv_heads * head_dim;
        let mut all = Results { out: Vec::new(), fixed: Vec::new(), scores: Vec::new() };
        for (&token, q) in self.tokens.iter().zip(q.chunks_exact(heads * head_dim)) {
            let table = self.table(token, reach);
            let position = if table.is_some() { token.1 as usize } else { 0 };
            let one = Shape { tokens: 1, start: position, ..self.shape };
            let cache = |pool: &Cache| {
                let pool = values(pool);
                let of = |chunk: usize| {
                    let page = table.and_then(|table| table.get(chunk)).copied().unwrap_or(u32::MAX) as usize;
                    pool.get(page * Batch::PAGE * row..).filter(|_| page < self.pool)
                };
                let at = |p: usize| match of(p / Batch::PAGE) {
                    Some(page) => page[p % Batch::PAGE * row..][..row].to_vec(),
                    None => vec![f32::NAN; row],
                };
                Cache::new(self.shape.cache, &(0..=position).flat_map(at).collect::<Vec<_>>())
            };
            let [k, v] = pools.each_ref().map(cache);
            let one = one.expected(&Operands { q: q.to_vec(), k, v });
            assert_eq!(one.scores.len(), heads * capacity);
            all.out.extend(one.out);
            all.fixed.extend(one.fixed);
            all.scores.extend(one.scores);
        }
        all
    }

    fn check<D: Device>(&self, device: &D, random: &mut Random, reach: usize) -> Results {
        let Shape { kv_heads, head_dim, capacity, cache, .. } = self.shape;
        let q = random.gaussians(self.tokens.len() * self.shape.row());
        let len = self.pool * Batch::PAGE * kv_heads * head_dim;
        let pools = [0, 1].map(|_| Cache::new(cache, &random.gaussians(len)));
        let paged = Paged::new(device, &self.tokens, &self.tables, capacity, self.pool);
        let expected = self.expected(&q, &pools, if reach == 0 { capacity } else { reach });
        let one = Shape { tokens: 1, ..self.shape }.workspace(device);
        let all = self.tokens.len();
        for (singles, room, optional) in
            [(self.singles, all, true), (0, all, false), (all, 3, false), (self.singles, 2, true)]
        {
            let batch = paged.batch().singles(singles).reach(reach);
            let caches = pools.each_ref().map(Cache::bytes);
            let got = self.shape.run_batch(device, &q, caches, batch, room * one, optional);
            let what = format!("{:?}, {singles} of {:?}", self.shape, self.tokens);
            if !got.out.is_empty() {
                assert_bits(&what, &got.out, &expected.out);
            }
            if optional {
                assert_bits(&format!("{what}, scores"), &got.scores, &expected.scores);
            }
            assert_blocks(&what, &got.fixed, &expected.fixed);
        }
        expected
    }
}

/// Sequences of all lengths, in pages of any order of which some are shared: single tokens, runs that begin and end inside tiles, and
/// neighbours that are none. Each token is what it is alone.
fn sequences_equal_each_alone<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(23);
    // heads, kv_heads, head_dim: tiles of 64 tokens, and of 4.
    let shapes = size.shapes(&[(1, 1, 64), (8, 2, 128), (16, 1, 64), (6, 2, 192), (2, 1, 256)], &[(32, 4, 128)]);
    for (heads, kv_heads, head_dim) in shapes {
        let ragged = || Ragged::new(&mut Random::new(heads as u64), &[3, 2, 4, 1, 2], heads, kv_heads, head_dim);
        // One token of each sequence, at both sides of the edges of pages.
        for positions in [[0, 63, 200, 5, 64], [127, 64, 63, 62, 65]] {
            let singles: Vec<_> = (0..5).zip(positions).collect();
            ragged().tokens(&singles, &[]).check(device, &mut random, 0);
            // Beside a prompt.
            ragged().tokens(&singles[..3], &[(4, 1..70)]).check(device, &mut random, 0);
        }
        // Prompts of 1, 63, 64 and 65 tokens, one behind the other.
        let runs = [(0, 100..101), (1, 0..63), (2, 64..128), (0, 62..127), (3, 0..1), (4, 3..9)];
        ragged().tokens(&[(3, 60), (2, 252)], &runs).check(device, &mut random, 253);
        // Positions that follow each other in other sequences, the same one twice, and backwards.
        let runs =
            [(0, 60..63), (1, 63..66), (1, 65..67), (1, 66..67), (1, 65..66), (2, 66..70), (2, 71..72), (2, 0..2)];
        ragged().tokens(&[], &runs).check(device, &mut random, 80);
    }
}

/// Positions at the reach and behind it, sequences that do not exist, and pages that the pool does not have: only the tokens that see
/// them give NaN.
fn tokens_without_a_place_give_nan<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(24);
    for (heads, kv_heads, head_dim) in [(4, 1, 64), (2, 2, 128)] {
        for reach in [0, 130] {
            let mut ragged = Ragged::new(&mut random, &[3, 1, 2], heads, kv_heads, head_dim);
            ragged.tables[1].extend([ragged.pool as u32, 0]);
            ragged.tables[2][0] = u32::MAX;
            let largest = if reach == 0 { ragged.shape.capacity as u32 } else { 130 };
            let singles =
                [(0, largest), (0, largest - 1), (3, 0), (u32::MAX, 5), (1, 63), (1, 64), (2, 65), (0, u32::MAX)];
            let runs = [
                (0, largest - 2..largest + 2),
                (0, 3..4),
                (5, 0..3),
                (1, 60..67),
                (2, 62..66),
                (0, 0..9),
                (1, 129..130),
            ];
            let ragged = ragged.tokens(&singles, &runs);
            let expected = ragged.check(device, &mut random, reach);
            let whole = |&(sequence, position): &(u32, u32)| {
                position < largest && (sequence == 0 || sequence == 1 && position < 64)
            };
            for (token, out) in ragged.tokens.iter().zip(expected.out.chunks_exact(ragged.shape.row())) {
                if whole(token) {
                    assert!(out.iter().all(|out| out.is_finite()), "{token:?}");
                } else {
                    assert_nan(&format!("{token:?}"), out);
                }
            }
        }
    }
}

fn refuses_bad_rotations<D: Device>(device: &D, _: Size) {
    let floats: Buffer<D, f32> = Buffer::zeroed(device, 8192).unwrap();
    let numbers: Buffer<D, u32> = Buffer::zeroed(device, 2).unwrap();
    let mut writes: Buffer<D, f32> = Buffer::zeroed(device, 8192).unwrap();
    let mut out: Buffer<D, f32> = Buffer::zeroed(device, 8192).unwrap();
    let [mut k_cache, mut v_cache] = [0, 1].map(|_| Buffer::<D, u8>::zeroed(device, 32768).unwrap());
    let mut workspace: Buffer<D, u8> = Buffer::zeroed(device, 1 << 16).unwrap();
    let q_out_at = writes.slice_mut().as_ptr() as u64;
    let (k_at, v_at) = (k_cache.slice_mut().as_ptr() as u64, v_cache.slice_mut().as_ptr() as u64);
    // The rotation of one token on the caches of attention, with a change.
    let mut run = |tokens, change: &dyn Fn(&mut Rope<'_>)| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (q_out, k_cache, v_cache) = unsafe {
            (
                SliceMut::from_raw(device, q_out_at, 8192),
                SliceMut::from_raw(device, k_at, 32768),
                SliceMut::from_raw(device, v_at, 32768),
            )
        };
        let mut rope = Rope::new(
            [floats.slice(), floats.slice(), floats.slice()],
            q_out,
            floats.slice(),
            Batch::new([numbers.slice(), numbers.slice(), numbers.slice()], [tokens, 1], [4, 1]),
            CacheMut::new([k_cache, v_cache], TensorType::F32, [2, 64]),
            4,
            norm::EPS,
        );
        change(&mut rope);
        Attention::new(Queries::fused(rope, true), workspace.slice_mut(), TensorType::F32, [2, 64], 4, 1.0)
            .out(out.slice_mut())
            .launch(device)
    };
    assert_status(run(2, &|_| {}), sys::KQM_BAD_SHAPE);
    // SAFETY: refused before anything is read or written.
    let raw = |at, len| unsafe { (Slice::<f32>::from_raw(device, at, len), SliceMut::<u8>::from_raw(device, at, len)) };
    let different: [&dyn Fn(&mut Rope<'_>); 6] = [
        &|rope| rope.batch.tokens = 2,
        &|rope| rope.heads = 2,
        &|rope| rope.kv_heads = 1,
        &|rope| rope.head_dim = 32,
        &|rope| rope.cache_kind = TensorType::F16,
        // Other blocks still read q when one writes q_out.
        &|rope| rope.q = raw(q_out_at, 8192).0,
    ];
    for (case, change) in different.into_iter().enumerate() {
        println!("difference {case}");
        assert_status(run(1, change), sys::KQM_BAD_SHAPE);
    }
    assert_status(run(1, &|rope| rope.q = raw(0, 8192).0), sys::KQM_NULL_POINTER);
    assert_status(run(1, &|rope| rope.k = raw(0, 8192).0), sys::KQM_NULL_POINTER);
    assert_status(run(1, &|rope| rope.v = raw(q_out_at + 4, 8191).0), sys::KQM_MISALIGNED);
    assert_invalid(run(1, &|rope| rope.k = raw(q_out_at, 127).0));
    assert_invalid(run(1, &|rope| rope.q_weight = Some(raw(q_out_at, 63).0)));
    assert_invalid(run(1, &|rope| rope.k_cache = raw(k_at, 64 * 2 * 64 * 4 - 1).1));
    ok(run(1, &|_| {}));
    ok(device.synchronize());
}
