//! Safe means safe: no sequence of safe calls reads or writes outside a buffer. What would is refused, or gives NaN;
//! memory on the emulation ends at guarded addresses, so that a stray access fails the launch.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::{BLOCK, TensorType::*};
use kquant_moe::device::{Buffer, Device};
use kquant_moe::kernels::{
    Attention, Batch, CacheMut, Choose, FixedBlock, Groups, Matrix, Matvec, MoeGroup, MoeSwiglu, Queries, ResidualAdd,
    Rope,
};
use kquant_moe::{Error, Result, sys};
use kquant_moe_emulation as emulation;

on_devices!(
    groups_are_of_their_experts,
    groups_are_of_their_tokens,
    experts_that_do_not_exist_give_nan,
    batches_of_any_contents_touch_nothing_else,
    memory_is_not_handed_out_unwritten,
    slices_are_cut_within_their_bounds,
);

/// The operands of `moe_swiglu`, with 4 experts of 16 rows and 256 columns, of which each token has one.
struct Swiglu<D: Device> {
    w: Matrix<D>,
    x: Buffer<D, FixedBlock>,
    out: Output<D, f32>,
    tokens: usize,
}

impl<D: Device> Swiglu<D> {
    fn new(device: &D, tokens: usize) -> Self {
        let mut random = Random::new(71);
        let w = Weights::random(&mut random, Q4K, 4, 16, BLOCK).upload(device);
        let x = input(device, &fixed_blocks(&random.gaussians(tokens * BLOCK)).1);
        Self { w, x, out: Output::new(device, tokens * 16), tokens }
    }

    fn launch(&mut self, device: &D, indices: &Buffer<D, u32>, groups: &Groups<D>) -> Result<()> {
        MoeSwiglu::new(
            [&self.w, &self.w],
            self.x.slice(),
            Choose::Made(indices.slice()),
            groups,
            [self.tokens, 1],
            self.out.slice(),
        )
        .launch(device)
    }
}

/// Room for the work items of 2 experts is none for those of 128.
fn groups_are_of_their_experts<D: Device>(device: &D, _: Size) {
    let indices: Vec<u32> = (0..64).map(|token| 2 * token).collect();
    let indices = input(device, &indices);
    let mut groups = ok(Groups::new(device, 64, 2, 1));
    let launch =
        |groups: &mut Groups<D>, experts| MoeGroup::new(indices.slice(), groups, [64, 1], experts).launch(device);
    assert_invalid(launch(&mut groups, 128));
    ok(launch(&mut groups, 2));
    ok(device.synchronize());
}

/// The groups of 16 tokens are none of 2, nor are those that nothing has been put into, or whose making was refused.
fn groups_are_of_their_tokens<D: Device>(device: &D, _: Size) {
    let indices = input(device, &[0_u32; 16]);
    let mut swiglu = Swiglu::new(device, 2);
    let mut groups = ok(Groups::new(device, 16, 4, 1));
    assert_invalid(swiglu.launch(device, &indices, &groups));
    let group = |groups: &mut Groups<D>, tokens, experts| {
        MoeGroup::new(indices.slice(), groups, [tokens, 1], experts).launch(device)
    };
    ok(group(&mut groups, 16, 4));
    assert_invalid(swiglu.launch(device, &indices, &groups));
    ok(group(&mut groups, 2, 3));
    assert_invalid(swiglu.launch(device, &indices, &groups));
    ok(group(&mut groups, 2, 4));
    ok(swiglu.launch(device, &indices, &groups));
    assert_status(group(&mut groups, 2, 0), sys::KQM_BAD_SHAPE);
    assert_invalid(swiglu.launch(device, &indices, &groups));
    ok(device.synchronize());
}

/// The indices 1,000,000 and 4,000 of 4 experts: in groups, and of a single token.
fn experts_that_do_not_exist_give_nan<D: Device>(device: &D, _: Size) {
    for (tokens, absent) in [(1, 4_000), (2, 1_000_000), (9, u32::MAX)] {
        let mut indices = vec![1; tokens];
        indices[0] = absent;
        let indices = input(device, &indices);
        let mut swiglu = Swiglu::new(device, tokens);
        let groups = moe::group(device, &indices, tokens, 4, 1);
        ok(swiglu.launch(device, &indices, &groups));
        ok(device.synchronize());
        let out = swiglu.out.read();
        assert_bits("of no expert", &out[..16], &[f32::from_bits(0x7fc0_0000); 16]);
        assert!(out[16..].iter().all(|value| value.is_finite()), "of an expert");
    }
}

/// Positions, sequences and pages are numbers in memory, which safe code may set to anything: `rope` and `attention`, in two launches
/// and in one, give NaN for what is not there, write pages of the pool alone, and touch nothing else.
fn batches_of_any_contents_touch_nothing_else<D: Device>(device: &D, _: Size) {
    let (heads, kv_heads, head_dim, capacity, sequences, pool) = (4, 2, 64, 130, 2, 3);
    let mut random = Random::new(74);
    let table: Vec<f32> = random.gaussians(capacity * head_dim);
    let table = input(device, &table);
    let cache_bytes = pool * Batch::PAGE * kv_heads * head_dim * F16.block_bytes();
    for case in 0..120 {
        let tokens = [1, 3, 9][case % 3];
        let mut number = |good: usize| -> u32 {
            let bad =
                [good as u32, good as u32 + 1, 64 * good as u32, 0x7fff_ffff, 0x8000_0000, u32::MAX - 63, u32::MAX];
            if random.below(5) == 0 { bad[random.below(bad.len())] } else { random.below(good) as u32 }
        };
        let position: Vec<u32> = (0..tokens).map(|_| number(capacity)).collect();
        let sequence: Vec<u32> = (0..tokens).map(|_| number(sequences)).collect();
        let pages: Vec<u32> = (0..sequences * capacity.div_ceil(Batch::PAGE)).map(|_| number(pool)).collect();
        // What is written through one of two equal pages is seen through the other one, or not yet.
        let distinct =
            pages.chunks(pages.len() / sequences).all(|own| (1..own.len()).all(|i| !own[..i].contains(&own[i])));
        let numbers = [position, sequence, pages].map(|numbers| input(device, &numbers));
        let batch = Batch::new(numbers.each_ref().map(Buffer::slice), [tokens, sequences], [capacity, pool])
            .reach([0, 100][case % 2])
            .singles([0, tokens][case / 2 % 2]);
        let q = input(device, &random.gaussians(tokens * heads * head_dim));
        let kv = input(device, &random.gaussians(tokens * kv_heads * head_dim));
        let room = ok(Attention::workspace_bytes(device, capacity, tokens, heads, head_dim));
        let mut results = Vec::new();
        for fused in [false, true] {
            if fused && tokens > 1 {
                continue;
            }
            let mut q_out = Output::new(device, tokens * heads * head_dim);
            let [mut k_cache, mut v_cache] = [(); 2].map(|()| Output::starting_with(device, &vec![0_u8; cache_bytes]));
            let mut out = Output::new(device, tokens * heads * head_dim);
            let mut scores = Output::new(device, tokens * heads * capacity);
            let mut workspace: Output<D, u8> = Output::new(device, room);
            let cache = CacheMut::new([k_cache.slice(), v_cache.slice()], F16, [kv_heads, head_dim]);
            let operands = [q.slice(), kv.slice(), kv.slice()];
            let rope = Rope::new(operands, q_out.slice(), table.slice(), batch, cache, heads, 1e-6);
            let queries = if fused {
                Queries::fused(rope, true)
            } else {
                ok(rope.launch(device));
                Queries::rotated(q_out.for_reading(), [k_cache.for_reading(), v_cache.for_reading()], batch)
            };
            ok(Attention::new(queries, workspace.slice(), F16, [kv_heads, head_dim], heads, 0.125)
                .out(out.slice())
                .scores(scores.slice())
                .launch(device));
            ok(device.synchronize());
            workspace.read();
            let written = out.read();
            // Every output is written, with a number or with the NaN that there is.
            assert!(written.iter().all(|x| x.is_finite() || x.to_bits() == 0x7fc0_0000), "case {case}");
            results.push((
                k_cache.read(),
                v_cache.read(),
                bytes(&q_out.read()),
                bytes(&written),
                bytes(&scores.read()),
            ));
        }
        assert!(!distinct || results.iter().all(|result| *result == results[0]), "case {case}: one launch and two");
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    kquant_moe::device::bytes_of(values).to_vec()
}

/// A matrix that nothing has been put into multiplies as zeros.
fn memory_is_not_handed_out_unwritten<D: Device>(device: &D, _: Size) {
    let w = ok(Matrix::zeroed(device, Q4K, 17, BLOCK, 1));
    let x = input(device, &fixed_blocks(&Random::new(72).gaussians(BLOCK)).1);
    let mut y = Output::new(device, 17);
    ok(Matvec::new(&w, x.slice(), y.slice(), 1).launch(device));
    assert!(y.read().iter().all(|&y| y == 0.0));
}

/// Parts are where they should be, and beyond the whole there are none.
fn slices_are_cut_within_their_bounds<D: Device>(device: &D, _: Size) {
    let numbers: Vec<f32> = (0..10_u8).map(f32::from).collect();
    let x = input(device, &numbers);
    let mut y = Output::new(device, 10);
    let whole = x.slice();
    for (from, len) in [(0, 11), (10, 1), (11, 0), (usize::MAX, 2), (2, usize::MAX)] {
        assert!(matches!(whole.part(from, len), Err(Error::Invalid(_))), "{from}, {len}");
        assert!(matches!(y.slice().part(from, len), Err(Error::Invalid(_))), "{from}, {len}");
        assert!(matches!(x.part(from, len), Err(Error::Invalid(_))), "{from}, {len}");
    }
    assert!(y.slice().split_at(11).is_err());
    assert!(ok(whole.part(10, 0)).is_empty());
    // Two launches into one buffer: x backwards by halves.
    let (mut low, mut high) = ok(y.slice().split_at(4));
    assert_eq!((low.len(), high.len()), (4, 6));
    let (a, b) = (ok(whole.part(6, 4)), ok(ok(whole.part(0, 9)).part(2, 4)));
    ok(ResidualAdd::new(a, b, ok(low.part(0, 4))).launch(device));
    ok(ResidualAdd::new(b, b, ok(high.part(2, 4))).launch(device));
    let (mut expected, poison) = (vec![8.0, 10.0, 12.0, 14.0], f32::from_bits(0xa5a5_a5a5));
    expected.extend([poison, poison, 4.0, 6.0, 8.0, 10.0]);
    assert_bits("sums", &y.read(), &expected);
}

/// Memory of one device is none of another: in kernels (`tests/operands.rs`), and in copies.
#[test]
fn devices_do_not_mix() {
    let Some(device) = emulated_device() else { return };
    let other = device.clone().other();
    let (mut a, mut b) = (input(&device, &[1.0_f32; 4]), input(&other, &[2.0_f32; 4]));
    let mut values = [0.0; 4];
    assert_invalid(a.write(&other, 0, &[3.0]));
    assert_invalid(a.read(&other, 0, &mut values));
    assert_invalid(a.copy_from(&device, 0, &b, 0, 4));
    assert_invalid(b.copy_from(&device, 0, &a, 0, 4));
    let c = input(&device, &[4.0_f32; 4]);
    assert_invalid(a.copy_from(&other, 0, &c, 0, 4));
    // A clone and a fork are the same device.
    ok(a.copy_from(&ok(device.fork()), 0, &c, 0, 4));
    ok(a.read(&device.clone(), 0, &mut values));
    assert_eq!(values, [4.0; 4]);
}

/// Work items of any contents, which safe code cannot make: the kernels leave out what names nothing, and touch nothing
/// else.
#[test]
fn work_items_of_any_contents_touch_nothing_else() {
    let Some(device) = emulated_device() else { return };
    let (experts, ff, cols, tokens, top_k) = (3, 17, 512, 3, 2);
    let pairs = tokens * top_k;
    let mut random = Random::new(73);
    let most = ok(kquant_moe::kernels::max_items(&device, tokens, experts, top_k));
    let tiles = |rows: usize, cols: usize| experts * rows.next_multiple_of(16) * (cols / BLOCK) * Q6K.block_bytes();
    let matrix = |memory: &Buffer<EmulatedDevice, u8>, rows: usize, cols: usize| sys::kqm_matrix {
        tiles: memory.slice().as_ptr().cast(),
        type_: sys::KQM_TYPE_Q6_K,
        rows: rows as u32,
        cols: cols as u32,
        experts: experts as u32,
    };
    let gate: Buffer<_, u8> = ok(Buffer::zeroed(&device, tiles(ff, cols)));
    let down: Buffer<_, u8> = ok(Buffer::zeroed(&device, tiles(ff, cols)));
    let x: Buffer<_, FixedBlock> = ok(Buffer::zeroed(&device, pairs * cols / BLOCK));
    let x_of_tokens: Buffer<_, FixedBlock> = ok(Buffer::zeroed(&device, tokens * cols / BLOCK));
    let (indices, weights) = (input(&device, &vec![0_u32; pairs]), input(&device, &vec![1.0_f32; pairs]));
    let kernels = device.kernels();
    for case in 0..400 {
        let mut number = |good: usize| -> u32 {
            let bad = [pairs as u32, pairs as u32 + 1, 9, 1_000, 0x7fff_ffff, 0x8000_0000, u32::MAX - 7, u32::MAX];
            if random.below(4) == 0 { bad[random.below(bad.len())] } else { random.below(good) as u32 }
        };
        let order: Vec<u32> = (0..pairs).map(|_| number(pairs)).collect();
        let items: Vec<u32> = (0..most).flat_map(|_| [number(experts), number(pairs), number(9)]).collect();
        let count = number(most + 1);
        let (order, items, count) = (input(&device, &order), input(&device, &items), input(&device, &[count]));
        let groups = sys::kqm_groups {
            order: order.slice().as_ptr().cast_mut(),
            items: items.slice().as_ptr().cast_mut(),
            count: count.slice().as_ptr().cast_mut(),
        };
        let mut out: Output<_, f32> = Output::new(&device, pairs * ff);
        let mut expert_out: Output<_, f32> = Output::new(&device, pairs * ff);
        let mut y: Output<_, f32> = Output::new(&device, tokens * ff);
        let swiglu = sys::kqm_moe_swiglu_args {
            gate: matrix(&gate, ff, cols),
            up: matrix(&gate, ff, cols),
            x: x_of_tokens.slice().as_ptr(),
            indices: indices.slice().as_ptr().cast_mut(),
            groups,
            out: out.slice().as_ptr(),
            tokens: tokens as u32,
            top_k: top_k as u32,
            ..Default::default()
        };
        let down = sys::kqm_moe_down_args {
            down: matrix(&down, ff, cols),
            x: x.slice().as_ptr(),
            indices: indices.slice().as_ptr(),
            weights: weights.slice().as_ptr(),
            groups,
            expert_out: expert_out.slice().as_ptr(),
            y: y.slice().as_ptr().cast(),
            tokens: tokens as u32,
            top_k: top_k as u32,
            ..Default::default()
        };
        // SAFETY: the memory is as long as the shapes demand.
        let statuses = unsafe {
            let stream = device.stream();
            [kernels.moe_swiglu.unwrap()(&swiglu, stream), kernels.moe_down.unwrap()(&down, stream)]
        };
        assert_eq!(statuses, [sys::KQM_OK; 2], "case {case}: {}", emulation::last_error());
        // Nothing but zeros, NaNs of experts that do not exist, and what no item names.
        let allowed = |value: &f32| *value == 0.0 || [0x7fc0_0000, 0xa5a5_a5a5].contains(&value.to_bits());
        assert!(out.read().iter().all(allowed) && expert_out.read().iter().all(allowed), "case {case}");
        y.read();
    }
}
