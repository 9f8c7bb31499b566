//! `rope` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use half::f16;
use kquant_moe::blocks::TensorType;
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{Batch, CacheMut, Rope};
use kquant_moe::oracle::attention::Element;
use kquant_moe::oracle::rope;
use kquant_moe::sys;

on_devices!(
    equals_the_oracle,
    norms_in_one_order,
    stores_one_nan,
    batch_equals_single_tokens,
    sequences_equal_each_alone,
    refuses_bad_arguments,
);

const EPS: f32 = 1e-6;

/// Shapes, and what is asked for.
#[derive(Clone, Copy, Debug)]
struct Case {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    start: usize,
    capacity: usize,
    norm: bool,
    optional: bool,
    /// Whether q is overwritten.
    in_place: bool,
    cache: TensorType,
    eps: f32,
}

/// Operands of a batch.
#[derive(Clone)]
struct Operands {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    q_weight: Vec<f32>,
    k_weight: Vec<f32>,
    table: Vec<f32>,
}

/// Everything that the kernel writes. Optional outputs are empty when they are not asked for.
struct Results {
    q: Vec<f32>,
    q_normed: Vec<f32>,
    k_normed: Vec<f32>,
    k_out: Vec<f32>,
    k_cache: Vec<u8>,
    v_cache: Vec<u8>,
}

impl Case {
    fn operands(&self, random: &mut Random) -> Operands {
        let angles = (0..self.capacity * self.head_dim / 2).map(|_| random.gaussian());
        let table = angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect();
        let row = self.heads * self.head_dim;
        let kv_row = self.kv_heads * self.head_dim;
        Operands {
            q: Activations::rows(random, 0, self.tokens, row),
            k: Activations::rows(random, 3, self.tokens, kv_row),
            v: Activations::rows(random, 5, self.tokens, kv_row),
            q_weight: random.gaussians(self.head_dim),
            k_weight: random.gaussians(self.head_dim),
            table,
        }
    }

    /// Bytes of a position of the cache.
    fn cache_row(&self) -> usize {
        self.kv_heads * self.head_dim * self.cache.block_bytes()
    }

    /// One sequence, whose pages are in no order; of the caches its positions, in order.
    fn run<D: Device>(&self, device: &D, operands: &Operands) -> Results {
        let paged = Paged::run(device, self.start, self.tokens, self.capacity);
        let bytes = paged.pool(&[], 1).len() * self.cache_row();
        let results = self.run_batch(device, operands, paged.batch(), bytes);
        let in_order = |pool: &[u8]| {
            let cache = paged.in_order(pool, self.cache_row(), 0, self.capacity);
            // All else is as it was.
            assert_same("pages of nobody", pool, &paged.pool_with(&cache, self.cache_row(), 0xa5));
            cache
        };
        Results { k_cache: in_order(&results.k_cache), v_cache: in_order(&results.v_cache), ..results }
    }

    fn run_batch<D: Device>(&self, device: &D, operands: &Operands, batch: Batch<'_>, cache_bytes: usize) -> Results {
        let q = input(device, &operands.q);
        let mut q_out = Output::starting_with(device, &operands.q);
        // SAFETY: in place, which the kernel allows.
        let in_place = unsafe { Slice::from_raw(device, q_out.slice().as_ptr() as u64, operands.q.len()) };
        let (k, v) = (input(device, &operands.k), input(device, &operands.v));
        let (q_weight, k_weight) = (input(device, &operands.q_weight), input(device, &operands.k_weight));
        let table = input(device, &operands.table);
        let mut q_normed = Output::new(device, operands.q.len());
        let mut k_normed = Output::new(device, operands.k.len());
        let mut k_out = Output::new(device, operands.k.len());
        let mut k_cache = Output::new(device, cache_bytes);
        let mut v_cache = Output::new(device, cache_bytes);
        ok(Rope::new(
            [if self.in_place { in_place } else { q.slice() }, k.slice(), v.slice()],
            q_out.slice(),
            table.slice(),
            batch,
            CacheMut::new([k_cache.slice(), v_cache.slice()], self.cache, [self.kv_heads, self.head_dim]),
            self.heads,
            self.eps,
        )
        .q_weight(self.norm.then(|| q_weight.slice()))
        .k_weight(self.norm.then(|| k_weight.slice()))
        .q_normed(q_normed.slice_if(self.optional))
        .k_normed(k_normed.slice_if(self.optional))
        .k_out(k_out.slice_if(self.optional))
        .launch(device));
        let read = |output: &Output<D, f32>| if self.optional { output.read() } else { Vec::new() };
        Results {
            q: q_out.read(),
            q_normed: read(&q_normed),
            k_normed: read(&k_normed),
            k_out: read(&k_out),
            k_cache: k_cache.read(),
            v_cache: v_cache.read(),
        }
    }

    /// The bytes of a value in the cache.
    fn stored(&self, x: f32) -> Vec<u8> {
        match self.cache {
            TensorType::F32 => <f32 as Element>::from_f32(x).to_le_bytes().to_vec(),
            _ => <f16 as Element>::from_f32(x).to_le_bytes().to_vec(),
        }
    }

    fn expected(&self, operands: &Operands) -> Results {
        let dim = self.head_dim;
        let (q_row, kv_row) = (self.heads * dim, self.kv_heads * dim);
        let (mut q, mut k_out) = (operands.q.clone(), operands.k.clone());
        let (mut q_normed, mut k_normed) = (vec![0.0; q.len()], vec![0.0; k_out.len()]);
        let cache_bytes = self.capacity * kv_row * self.cache.block_bytes();
        // What unwritten memory holds.
        let (mut k_cache, mut v_cache) = (vec![0xa5; cache_bytes], vec![0xa5; cache_bytes]);
        // Past the capacity there are no angles.
        let beyond = vec![f32::NAN; dim];
        for token in 0..self.tokens {
            let position = self.start + token;
            let table = if position < self.capacity { &operands.table[position * dim..][..dim] } else { &beyond };
            let weight = |weight| self.norm.then_some(weight);
            let (q, q_normed) = (&mut q[token * q_row..][..q_row], &mut q_normed[token * q_row..][..q_row]);
            rope::rope(q, dim, weight(&operands.q_weight[..]), self.eps, table, Some(q_normed));
            let (k, k_normed) = (&mut k_out[token * kv_row..][..kv_row], &mut k_normed[token * kv_row..][..kv_row]);
            rope::rope(k, dim, weight(&operands.k_weight[..]), self.eps, table, Some(k_normed));
            if position < self.capacity {
                let bytes = kv_row * self.cache.block_bytes();
                let store = |x: &[f32]| x.iter().flat_map(|&x| self.stored(x)).collect::<Vec<u8>>();
                k_cache[position * bytes..][..bytes].copy_from_slice(&store(k));
                v_cache[position * bytes..][..bytes].copy_from_slice(&store(&operands.v[token * kv_row..][..kv_row]));
            }
        }
        if !self.optional {
            (q_normed, k_normed, k_out) = (Vec::new(), Vec::new(), Vec::new());
        }
        Results { q, q_normed, k_normed, k_out, k_cache, v_cache }
    }
}

fn assert_results(what: &str, got: &Results, expected: &Results) {
    assert_bits(&format!("{what}, q_normed"), &got.q_normed, &expected.q_normed);
    assert_bits(&format!("{what}, k_normed"), &got.k_normed, &expected.k_normed);
    assert_bits(&format!("{what}, q"), &got.q, &expected.q);
    assert_bits(&format!("{what}, k_out"), &got.k_out, &expected.k_out);
    assert_same(&format!("{what}, k_cache"), &got.k_cache, &expected.k_cache);
    assert_same(&format!("{what}, v_cache"), &got.v_cache, &expected.v_cache);
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(16);
    // tokens, heads, kv_heads, head_dim, start, capacity
    let shapes = size.shapes(
        &[
            (1, 4, 1, 64, 0, 1),
            (9, 4, 2, 64, 3, 12),
            (8, 3, 1, 80, 0, 8),
            (2, 8, 4, 128, 63, 66),
            (3, 1, 1, 256, 10, 70),
            (2, 5, 2, 8, 0, 2),
            // The last tokens do not fit.
            (5, 2, 1, 72, 6, 8),
            (2, 2, 1, 64, 9, 8),
            // No token does, and none has the position that is left of its own in 32 bits.
            (3, 2, 1, 64, u32::MAX as usize, 8),
        ],
        &[(70, 32, 4, 128, 500, 1024)],
    );
    for (tokens, heads, kv_heads, head_dim, start, capacity) in shapes {
        for cache in [TensorType::F32, TensorType::F16] {
            for (norm, optional) in [(true, true), (true, false), (false, true), (false, false)] {
                let case = Case {
                    tokens,
                    heads,
                    kv_heads,
                    head_dim,
                    start,
                    capacity,
                    norm,
                    optional,
                    in_place: norm,
                    cache,
                    eps: EPS,
                };
                let operands = case.operands(&mut random);
                let got = case.run(device, &operands);
                assert_results(&format!("{case:?}"), &got, &case.expected(&operands));
                let dims = heads * head_dim;
                for (token, (x, y)) in operands.q.chunks(dims).zip(got.q.chunks(dims)).enumerate() {
                    // An infinite head that is normalised becomes 0 but for the infinities.
                    let lost = |x: &[f32]| if norm { x.iter().any(|x| x.is_nan()) } else { false };
                    for (x, y) in x.chunks(head_dim).zip(y.chunks(head_dim)) {
                        if lost(x) || start + token >= capacity {
                            assert_nan("q", y);
                        }
                    }
                }
            }
        }
    }
}

/// Heads whose norm shows the order of its sum.
fn norms_in_one_order<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(170);
    for head_dim in [8, 64, 72, 80, 128, 192, 256] {
        for (index, (head, eps)) in pins::norm_rows(head_dim).into_iter().enumerate() {
            let case = Case {
                tokens: 1,
                heads: 3,
                kv_heads: 1,
                head_dim,
                start: 1,
                capacity: 3,
                norm: true,
                optional: true,
                in_place: false,
                cache: TensorType::F32,
                eps,
            };
            let operands = Operands { q: head.repeat(3), k: head, ..case.operands(&mut random) };
            let (got, expected) = (case.run(device, &operands), case.expected(&operands));
            assert_results(&format!("head {index} of {head_dim}"), &got, &expected);
        }
    }
}

/// NaNs in each operand, none of them the one that is stored.
fn stores_one_nan<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(171);
    for cache in [TensorType::F32, TensorType::F16] {
        for norm in [true, false] {
            let case = Case {
                tokens: 4,
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                start: 0,
                capacity: 4,
                norm,
                optional: true,
                in_place: false,
                cache,
                eps: EPS,
            };
            let sound = Operands {
                q: random.gaussians(4 * 256),
                k: random.gaussians(4 * 128),
                v: random.gaussians(4 * 128),
                ..case.operands(&mut random)
            };
            // Where the NaNs come to.
            type Field = fn(&mut Operands) -> &mut Vec<f32>;
            let fields: [(&str, Field); 6] = [
                ("q", |operands| &mut operands.q),
                ("k", |operands| &mut operands.k),
                ("v", |operands| &mut operands.v),
                ("the norm's weights of q", |operands| &mut operands.q_weight),
                ("the norm's weights of k", |operands| &mut operands.k_weight),
                ("the table", |operands| &mut operands.table),
            ];
            for (what, field) in fields {
                let mut operands = sound.clone();
                let values = field(&mut operands);
                let step = values.len() / NANS.len();
                for (index, nan) in NANS.into_iter().enumerate() {
                    values[step * index + 5] = nan;
                }
                let (got, expected) = (case.run(device, &operands), case.expected(&operands));
                assert_results(&format!("NaN in {what}, {case:?}"), &got, &expected);
                for values in [&got.q, &got.q_normed, &got.k_normed, &got.k_out] {
                    let lost: Vec<f32> = values.iter().copied().filter(|x| x.is_nan()).collect();
                    assert_stored_nan(what, &lost);
                }
            }
        }
    }
}

fn batch_equals_single_tokens<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(17);
    let batch = Case {
        tokens: 9,
        heads: 8,
        kv_heads: 2,
        head_dim: 128,
        start: 60,
        capacity: 69,
        norm: true,
        optional: true,
        in_place: false,
        cache: TensorType::F16,
        eps: EPS,
    };
    let operands = batch.operands(&mut random);
    let together = batch.run(device, &operands);
    let (q_row, kv_row) = (8 * 128, 2 * 128);
    for token in 0..batch.tokens {
        let case = Case { tokens: 1, start: batch.start + token, ..batch };
        let part = |x: &[f32], row: usize| x[token * row..][..row].to_vec();
        let one = Operands {
            q: part(&operands.q, q_row),
            k: part(&operands.k, kv_row),
            v: part(&operands.v, kv_row),
            q_weight: operands.q_weight.clone(),
            k_weight: operands.k_weight.clone(),
            table: operands.table.clone(),
        };
        let alone = case.run(device, &one);
        assert_bits("q", &part(&together.q, q_row), &alone.q);
        assert_bits("k", &part(&together.k_out, kv_row), &alone.k_out);
        let place = case.start * kv_row * 2..(case.start + 1) * kv_row * 2;
        assert_same("k_cache", &together.k_cache[place.clone()], &alone.k_cache[place.clone()]);
        assert_same("v_cache", &together.v_cache[place.clone()], &alone.v_cache[place]);
    }
}

/// Tokens of several sequences, in pages of any order: each is what it is alone, and lies where its sequence's page is. One whose
/// position, sequence or page is not there is written nowhere.
fn sequences_equal_each_alone<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(18);
    let (capacity, pool) = (200, 9);
    let tables = [vec![7, 2, 5], vec![1, 8], vec![4, 0, 3, 6], vec![9, u32::MAX]];
    let places = [(0, 64), (2, 199), (1, 63), (0, 63), (0, 65), (2, 0), (1, 127), (0, 130), (1, 0)];
    let absent = [(0, 200), (4, 0), (u32::MAX, 3), (3, 5), (3, 64), (1, 128), (2, u32::MAX)];
    for cache in [TensorType::F32, TensorType::F16] {
        // With the whole capacity, and with a reach that ends before one of the tokens.
        for reach in [0, 199] {
            // Each one that has no place behind one that has.
            let tokens: Vec<(u32, u32)> = places
                .iter()
                .enumerate()
                .flat_map(|(i, &place)| [Some(place), absent.get(i).copied()])
                .flatten()
                .collect();
            let batch = Case {
                tokens: tokens.len(),
                heads: 3,
                kv_heads: 2,
                head_dim: 64,
                start: 0,
                capacity,
                norm: true,
                optional: true,
                in_place: false,
                cache,
                eps: EPS,
            };
            let operands = batch.operands(&mut random);
            let paged = Paged::new(device, &tokens, &tables, capacity, pool);
            let row = batch.cache_row();
            let got = batch.run_batch(device, &operands, paged.batch().reach(reach), pool * Batch::PAGE * row);
            let (mut k_cache, mut v_cache) =
                (vec![0xa5; pool * Batch::PAGE * row], vec![0xa5; pool * Batch::PAGE * row]);
            for (token, &(sequence, position)) in tokens.iter().enumerate() {
                let part = |x: &[f32]| x[x.len() / tokens.len() * token..][..x.len() / tokens.len()].to_vec();
                let own = places.contains(&(sequence, position)) && (reach == 0 || position < 199);
                let position = if own { position as usize } else { capacity };
                let one = Case { tokens: 1, start: position, ..batch };
                let alone =
                    Operands { q: part(&operands.q), k: part(&operands.k), v: part(&operands.v), ..operands.clone() };
                let expected = one.expected(&alone);
                let what = format!("token {token}");
                assert_bits(&what, &part(&got.q), &expected.q);
                assert_bits(&what, &part(&got.q_normed), &expected.q_normed);
                assert_bits(&what, &part(&got.k_normed), &expected.k_normed);
                assert_bits(&what, &part(&got.k_out), &expected.k_out);
                if own {
                    let page = tables[sequence as usize][position / Batch::PAGE] as usize;
                    let at = (page * Batch::PAGE + position % Batch::PAGE) * row;
                    k_cache[at..][..row].copy_from_slice(&expected.k_cache[position * row..][..row]);
                    v_cache[at..][..row].copy_from_slice(&expected.v_cache[position * row..][..row]);
                } else {
                    assert_nan(&what, &part(&got.q));
                }
            }
            assert_same("k_cache", &got.k_cache, &k_cache);
            assert_same("v_cache", &got.v_cache, &v_cache);
        }
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let values: Buffer<D, f32> = Buffer::zeroed(device, 4096).unwrap();
    let numbers: Buffer<D, u32> = Buffer::zeroed(device, 65).unwrap();
    let mut q: Buffer<D, f32> = Buffer::zeroed(device, 4096).unwrap();
    let [mut k_cache, mut v_cache] = [(); 2].map(|()| Buffer::zeroed(device, 1 << 17).unwrap());
    let q_at = q.slice_mut().as_ptr() as u64;
    let k_at = values.slice().as_ptr() as u64;
    let mut run = |q: u64, q_out: u64, k: u64, cache_kind, tokens, heads, head_dim| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (q, k, q_out) = unsafe {
            (
                Slice::from_raw(device, q, 4096),
                Slice::from_raw(device, k, 4096),
                SliceMut::from_raw(device, q_out, 4096),
            )
        };
        Rope::new(
            [q, k, values.slice()],
            q_out,
            values.slice(),
            Batch::new([numbers.slice(), numbers.slice(), numbers.slice()], [tokens, 1], [2, 1]),
            CacheMut::new([k_cache.slice_mut(), v_cache.slice_mut()], cache_kind, [1, head_dim]),
            heads,
            EPS,
        )
        .launch(device)
    };
    let f32 = TensorType::F32;
    assert_status(run(0, q_at, k_at, f32, 1, 1, 64), sys::KQM_NULL_POINTER);
    assert_status(run(q_at, 0, k_at, f32, 1, 1, 64), sys::KQM_NULL_POINTER);
    assert_status(run(q_at, q_at, 0, f32, 1, 1, 64), sys::KQM_NULL_POINTER);
    assert_status(run(q_at, q_at, k_at, f32, 0, 1, 64), sys::KQM_BAD_SHAPE);
    assert_status(run(q_at, q_at, k_at, f32, 1, 0, 64), sys::KQM_BAD_SHAPE);
    assert_status(run(q_at, q_at, k_at, f32, 1, 1, 0), sys::KQM_BAD_SHAPE);
    assert_status(run(q_at, q_at, k_at, f32, 1, 1, 60), sys::KQM_BAD_SHAPE);
    assert_status(run(q_at, q_at, k_at, f32, 1, 1, 264), sys::KQM_BAD_SHAPE);
    assert_status(run(q_at, q_at, k_at, TensorType::Q6K, 1, 1, 8), sys::KQM_UNSUPPORTED_TYPE);
    assert_status(run(q_at + 4, q_at, k_at, f32, 1, 1, 64), sys::KQM_MISALIGNED);
    assert_status(run(q_at, q_at + 4, k_at, f32, 1, 1, 64), sys::KQM_MISALIGNED);
    assert_status(run(q_at, q_at, k_at + 8, f32, 1, 1, 64), sys::KQM_MISALIGNED);
    assert_invalid(run(q_at, q_at, k_at, f32, 65, 1, 64));
    assert_eq!(status_without_arguments!(device, rope), sys::KQM_NULL_POINTER);
    ok(run(q_at, q_at, k_at, f32, 2, 4, 64));
    ok(device.synchronize());
}
