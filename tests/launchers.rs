//! One condition at a time: every launcher of the C table gets arguments of which one breaks one condition alone, and
//! must return just that condition's status. Arguments at an upper bound, and each alternative of a condition that has
//! some, must be taken.
//!
//! The conditions are those of `KQM_REQUIRE` and `KQM_TRY` in `cuda/`, read from the sources: one that nothing here
//! breaks fails the test, and so does a case for one that is no longer there. The smallest shapes are the arguments
//! that all cases start from, so that lower bounds are at their limit throughout.

#[path = "common/kernels.rs"]
mod common;

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::*;
use kquant_moe::blocks::TensorType;
use kquant_moe::device::{Buffer, Device, Plain};
use kquant_moe::sys::*;
use kquant_moe_emulation::{self as emulation, Failure};

/// What a case shows of a condition: `(file, condition)`, and of one with alternatives which of them is enough.
type Shown = (&'static str, String);

/// What the cases have shown so far, and the memory that they use.
#[derive(Default)]
struct Table {
    memory: RefCell<Vec<Box<dyn Any>>>,
    refused: BTreeSet<Shown>,
    at_bound: BTreeSet<Shown>,
    alternatives: BTreeSet<(&'static str, String, String)>,
    cases: usize,
}

impl Table {
    /// Zeros that stay until the end.
    fn zeros<T: Plain>(&self, len: usize) -> *mut T {
        let device = emulated_device().unwrap();
        let mut buffer: Buffer<EmulatedDevice, T> = ok(Buffer::zeroed(&device, len));
        let address = buffer.slice_mut().as_ptr();
        self.memory.borrow_mut().push(Box::new(buffer));
        address
    }

    /// An aligned address that no kernel can touch.
    fn nowhere<T>(&self) -> *mut T {
        self.zeros::<u8>(16).wrapping_add(16).cast()
    }

    /// The tiles of `experts` matrices of one row of `cols` weights.
    fn matrix(&self, type_: u32, experts: u32, cols: u32) -> kqm_matrix {
        let kind = TensorType::MATRICES.iter().find(|&&kind| kind as u32 == type_).unwrap();
        let tiles = self.zeros::<u8>(experts as usize * 16 * kind.bytes_of(cols as usize));
        kqm_matrix { tiles: tiles.cast(), type_, rows: 1, cols, experts }
    }
}

/// A launcher with arguments that it takes.
struct Launcher<'t, A> {
    table: &'t mut Table,
    file: &'static str,
    function: unsafe extern "C" fn(*const A, kqm_stream) -> kqm_status,
    base: A,
}

impl<'t, A: Copy> Launcher<'t, A> {
    fn new(
        table: &'t mut Table,
        file: &'static str,
        function: Option<unsafe extern "C" fn(*const A, kqm_stream) -> kqm_status>,
        base: A,
    ) -> Self {
        let mut launcher = Self { table, file, function: function.unwrap(), base };
        launcher.starting_with(base);
        launcher
    }

    fn run(&mut self, args: *const A) -> kqm_status {
        self.table.cases += 1;
        // SAFETY: launchers check their arguments. What is wrong with them stops the emulated kernel at a guarded
        // address.
        unsafe { (self.function)(args, std::ptr::null_mut()) }
    }

    /// Other arguments that the launcher takes; cases from here on change these.
    fn starting_with(&mut self, base: A) {
        let status = self.run(&base);
        assert_eq!(status, KQM_OK, "{}: complete arguments: {}", self.file, emulation::last_error());
        self.base = base;
    }

    fn changed(&self, change: impl FnOnce(&mut A)) -> A {
        let mut args = self.base;
        change(&mut args);
        args
    }

    /// No arguments at all.
    fn refuses_null(&mut self) {
        self.refused(self.file, "args != nullptr", KQM_NULL_POINTER, std::ptr::null());
    }

    /// The change breaks the condition, for which the launcher has the status.
    fn refuses(&mut self, status: kqm_status, condition: &str, change: impl FnOnce(&mut A)) {
        self.refuses_in(self.file, status, condition, change);
    }

    /// The same for a condition in a header.
    fn refuses_in(&mut self, file: &'static str, status: kqm_status, condition: &str, change: impl FnOnce(&mut A)) {
        let args = self.changed(change);
        self.refused(file, condition, status, &args);
    }

    fn refused(&mut self, file: &'static str, condition: &str, status: kqm_status, args: *const A) {
        let found = self.run(args);
        assert_eq!(found, status, "{}, condition of {file}: {condition}: {}", self.file, emulation::last_error());
        self.table.refused.insert((file, condition.into()));
    }

    /// The launcher calls a function that has conditions of its own, which cases with this launcher break.
    fn calls(&mut self, call: &str) {
        self.calls_in(self.file, call);
    }

    fn calls_in(&mut self, file: &'static str, call: &str) {
        self.table.refused.insert((file, format!("KQM_TRY({call})")));
    }

    /// The change brings the condition to its upper bound, and an operand to where the kernel cannot read it: that it
    /// tries shows that it was launched.
    fn launches(&mut self, condition: &str, change: impl FnOnce(&mut A)) {
        self.launches_in(self.file, condition, change);
    }

    fn launches_in(&mut self, file: &'static str, condition: &str, change: impl FnOnce(&mut A)) {
        let args = self.changed(change);
        let found = Failure::from_status(self.run(&args));
        let what = format!("{}, at the bound of {file}: {condition}: {}", self.file, emulation::last_error());
        assert_eq!(found, Some(Failure::MemoryFault), "{what}");
        self.table.at_bound.insert((file, condition.into()));
    }

    /// Of the condition's alternatives this one alone holds after the change, which is enough.
    fn takes(&mut self, condition: &str, alternative: &str, change: impl FnOnce(&mut A)) {
        self.takes_in(self.file, condition, alternative, change);
    }

    fn takes_in(&mut self, file: &'static str, condition: &str, alternative: &str, change: impl FnOnce(&mut A)) {
        let args = self.changed(change);
        let what = format!("{}, condition of {file}: {condition}, by {alternative}", self.file);
        assert_eq!(self.run(&args), KQM_OK, "{what}: {}", emulation::last_error());
        self.table.alternatives.insert((file, condition.into(), alternative.into()));
    }
}

fn null<T>() -> *mut T {
    std::ptr::null_mut()
}

/// An address that is not a multiple of 16, nor of 2.
fn odd<T>(address: *const T) -> *mut T {
    address.cast::<u8>().wrapping_add(1).cast_mut().cast()
}

/// An address of the type's alignment, at least 4, but not of 16.
fn shifted<T>(address: *const T) -> *mut T {
    address.cast::<u8>().wrapping_add(8).cast_mut().cast()
}

/// The conditions of `kqm_check_matrix`, for a matrix operand that the launcher calls `name`.
fn matrix<A: Copy>(launcher: &mut Launcher<A>, call: &str, of: impl Fn(&mut A) -> &mut kqm_matrix) {
    const FILE: &str = "common/types.cuh";
    launcher.calls(call);
    launcher.refuses_in(FILE, KQM_NULL_POINTER, "w.tiles != nullptr", |a| of(a).tiles = null());
    for other in [KQM_TYPE_F32, KQM_TYPE_F16, 9, 15, u32::MAX] {
        launcher.refuses_in(FILE, KQM_UNSUPPORTED_TYPE, "KqmBlockTypes::has(w.type)", |a| of(a).type_ = other);
    }
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "w.cols > 0", |a| of(a).cols = 0);
    for cols in [1, 128, 255, 257, 384] {
        launcher.refuses_in(FILE, KQM_BAD_SHAPE, "w.cols % KQM_BLOCK == 0", |a| of(a).cols = cols);
    }
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "w.cols <= kqm_max_cols", |a| of(a).cols = 16384 + 256);
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "w.rows <= kqm_max_rows", |a| of(a).rows = 0x7fff_fff1);
    launcher.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(w.tiles, 16)", |a| of(a).tiles = shifted(of(a).tiles));
}

/// A condition that a type is one of floats, for the operand that the launcher calls `name`.
fn float_types<A: Copy>(launcher: &mut Launcher<A>, condition: &str, of: impl Fn(&mut A) -> &mut u32) {
    for other in [KQM_TYPE_Q4_K, KQM_TYPE_Q8_0, 28, 31, u32::MAX] {
        launcher.refuses(KQM_UNSUPPORTED_TYPE, condition, |a| *of(a) = other);
    }
    for kind in [KQM_TYPE_F32, KQM_TYPE_F16, KQM_TYPE_BF16] {
        let args = launcher.changed(|a| *of(a) = kind);
        assert_eq!(launcher.run(&args), KQM_OK, "{}: {}", launcher.file, emulation::last_error());
    }
}

/// The conditions of `kqm_check_fused_norm`.
fn fused_norm<A: Copy>(
    launcher: &mut Launcher<A>,
    call: &str,
    of: impl Fn(&mut A) -> &mut kqm_fused_norm,
    two_tokens: impl FnOnce(&mut A),
) {
    const FILE: &str = "common/norm.cuh";
    launcher.calls(call);
    launcher.refuses_in(FILE, KQM_NULL_POINTER, "norm.weight != nullptr", |a| of(a).weight = null());
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "tokens == 1", two_tokens);
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "norm.width > 0", |a| of(a).width = 0);
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "norm.width <= cols", |a| of(a).width = 257);
    let nowhere = launcher.table.nowhere();
    launcher.launches_in(FILE, "norm.width <= cols", |a| of(a).x = nowhere);
    launcher.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(norm.x, 16)", |a| of(a).x = shifted(of(a).x));
    launcher.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(norm.weight, 16)", |a| of(a).weight = shifted(of(a).weight));
    launcher.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(norm.out, 16)", |a| of(a).out = shifted(of(a).out));
}

fn argmax(table: &mut Table, kernels: &kqm_kernels) {
    let (x, out, partial, done) = (table.zeros(1), table.zeros(1), table.zeros(1), table.zeros(1));
    let nowhere = table.nowhere();
    let base = kqm_argmax_args { x, out, partial, done, rows: 1, cols: 1, ..Default::default() };
    let mut l = Launcher::new(table, "argmax.cu", kernels.argmax, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->x", |a| a.x = null());
    l.refuses(KQM_NULL_POINTER, "args->out", |a| a.out = null());
    l.refuses(KQM_NULL_POINTER, "args->partial", |a| a.partial = null());
    l.refuses(KQM_NULL_POINTER, "args->done", |a| a.done = null());
    l.refuses(KQM_BAD_SHAPE, "args->rows > 0", |a| a.rows = 0);
    l.refuses(KQM_BAD_SHAPE, "args->rows <= 65535", |a| a.rows = 65536);
    l.refuses(KQM_BAD_SHAPE, "args->cols > 0", |a| a.cols = 0);
    l.refuses(KQM_BAD_SHAPE, "args->cols < 0x7fffffffu", |a| a.cols = 0x7fff_ffff);
    l.launches("args->rows <= 65535", |a| (a.rows, a.x) = (65535, nowhere));
    l.launches("args->cols < 0x7fffffffu", |a| (a.cols, a.x) = (0x7fff_fffe, nowhere));
}

fn attention(table: &mut Table, kernels: &kqm_kernels) {
    const FILE: &str = "attention.cu";
    let batch = batch_args(table);
    let shapes = kqm_attention_args { batch, heads: 4, kv_heads: 4, head_dim: 64, ..Default::default() };
    // SAFETY: the function reads the counts of the structure.
    let workspace_bytes = unsafe { kernels.attention_workspace.unwrap()(&shapes) };
    let [k_cache, v_cache] = [(); 2].map(|()| table.zeros::<f32>(64 * 256).cast());
    let nowhere = table.nowhere::<f32>();
    let base = kqm_attention_args {
        q: table.zeros(256),
        k_cache,
        v_cache,
        out: table.zeros(256),
        fixed: table.zeros(1),
        workspace: table.zeros::<u8>(workspace_bytes as usize).cast(),
        workspace_bytes,
        cache_type: KQM_TYPE_F32,
        scale: 0.125,
        ..shapes
    };
    let rope = rope_args(table, k_cache, v_cache, batch);
    // Room for more than 4 heads of 64 dimensions.
    let (many, room) = (table.zeros(16 * 256), table.zeros::<u8>(1 << 16));
    let fused = kqm_attention_args { q: null(), rope, ..base };
    let mut l = Launcher::new(table, FILE, kernels.attention, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->k_cache", |a| a.k_cache = null());
    l.refuses(KQM_NULL_POINTER, "args->v_cache", |a| a.v_cache = null());
    l.refuses(KQM_NULL_POINTER, "args->workspace", |a| a.workspace = null());
    let queries = "args->q != nullptr || args->rope.q != nullptr";
    l.refuses(KQM_NULL_POINTER, queries, |a| a.q = null());
    l.takes(queries, "args->q != nullptr", |_| {});
    let results = "args->out != nullptr || args->fixed != nullptr";
    l.refuses(KQM_NULL_POINTER, results, |a| (a.out, a.fixed) = (null(), null()));
    l.takes(results, "args->out != nullptr", |a| a.fixed = null());
    l.takes(results, "args->fixed != nullptr", |a| a.out = null());
    let types = "args->cache_type == KQM_TYPE_F32 || args->cache_type == KQM_TYPE_F16";
    for other in [2, KQM_TYPE_Q4_K, KQM_TYPE_Q6_K, u32::MAX] {
        l.refuses(KQM_UNSUPPORTED_TYPE, types, |a| a.cache_type = other);
    }
    l.takes(types, "args->cache_type == KQM_TYPE_F32", |_| {});
    l.takes(types, "args->cache_type == KQM_TYPE_F16", |a| a.cache_type = KQM_TYPE_F16);
    l.calls("kqm_check_batch(args->batch)");
    l.refuses_in("common/pages.cuh", KQM_NULL_POINTER, "b.pages", |a| a.batch.pages = null());
    l.refuses(KQM_BAD_SHAPE, "args->batch.tokens <= 0x7fffffffu", |a| a.batch.tokens = 0x8000_0000);
    l.launches("args->batch.tokens <= 0x7fffffffu", |a| (a.batch.tokens, a.q) = (0x7fff_ffff, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->kv_heads > 0", |a| a.kv_heads = 0);
    l.refuses(KQM_BAD_SHAPE, "args->heads > 0", |a| a.heads = 0);
    l.refuses(KQM_BAD_SHAPE, "args->heads <= kqm_max_heads", |a| {
        (a.heads, a.kv_heads, a.workspace_bytes) = (65536, 65536, u64::MAX);
    });
    l.launches("args->heads <= kqm_max_heads", |a| {
        (a.heads, a.kv_heads, a.workspace_bytes, a.q, a.fixed) = (65535, 65535, u64::MAX, nowhere, null());
    });
    l.refuses(KQM_BAD_SHAPE, "most > 0", |a| {
        (a.batch.tokens, a.heads, a.kv_heads, a.head_dim, a.fixed) = (4, 65535, 65535, 256, null());
        (a.batch.capacity, a.workspace_bytes) = (64 * 257, u64::MAX);
    });
    l.refuses(KQM_BAD_SHAPE, "args->heads % args->kv_heads == 0", |a| a.kv_heads = 3);
    let group = "args->heads / args->kv_heads <= uint32_t(max_group)";
    l.refuses(KQM_BAD_SHAPE, group, |a| {
        (a.heads, a.kv_heads, a.fixed, a.workspace_bytes) = (17, 1, null(), u64::MAX);
    });
    l.launches(group, |a| (a.heads, a.kv_heads, a.workspace_bytes, a.q) = (16, 1, u64::MAX, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->head_dim > 0", |a| a.head_dim = 0);
    for head_dim in [8, 32, 65, 96] {
        l.refuses(KQM_BAD_SHAPE, "args->head_dim % 64 == 0", |a| {
            (a.head_dim, a.fixed, a.workspace_bytes) = (head_dim, null(), u64::MAX);
        });
    }
    let head_dim = "args->head_dim <= uint32_t(kqm_max_head_dim)";
    l.refuses(KQM_BAD_SHAPE, head_dim, |a| (a.head_dim, a.workspace_bytes) = (320, u64::MAX));
    l.launches(head_dim, |a| (a.head_dim, a.workspace_bytes, a.q) = (256, u64::MAX, nowhere));
    let follows_qkv = "!args->follows_qkv || args->rope.q != nullptr";
    l.refuses(KQM_BAD_SHAPE, follows_qkv, |a| a.follows_qkv = 1);
    l.takes(follows_qkv, "!args->follows_qkv", |_| {});
    // A single head will do.
    l.starting_with(kqm_attention_args { heads: 1, kv_heads: 1, ..base });
    l.starting_with(base);
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->q, 16)", |a| a.q = shifted(a.q));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->k_cache, 16)", |a| a.k_cache = shifted(a.k_cache));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->v_cache, 16)", |a| a.v_cache = shifted(a.v_cache));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->workspace, 16)", |a| a.workspace = shifted(a.workspace));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->fixed, 16)", |a| a.fixed = shifted(a.fixed));
    l.refuses(KQM_WORKSPACE, "at_once > 0", |a| a.workspace_bytes -= 1);

    l.starting_with(fused);
    l.takes(queries, "args->rope.q != nullptr", |_| {});
    l.takes(follows_qkv, "args->rope.q != nullptr", |a| a.follows_qkv = 1);
    l.calls("check_fused(*args)");
    l.calls("kqm_check_rope(r)");
    l.refuses_in("common/rope.cuh", KQM_NULL_POINTER, "a.k", |a| a.rope.k = null());
    // Two tokens of both, with room for them, or of either of the two.
    l.refuses(KQM_BAD_SHAPE, "a.batch.tokens == 1", |a| {
        (a.batch.tokens, a.out, a.fixed, a.workspace, a.workspace_bytes) = (2, many, null(), room.cast(), 1 << 16);
        a.rope.batch.tokens = 2;
    });
    const SAME: &str = "same(r.batch, a.batch)";
    l.refuses(KQM_BAD_SHAPE, SAME, |a| a.rope.batch.position = a.rope.table.cast());
    l.refuses(KQM_BAD_SHAPE, SAME, |a| a.rope.batch.sequence = a.rope.table.cast());
    l.refuses(KQM_BAD_SHAPE, SAME, |a| a.rope.batch.pages = a.rope.table.cast());
    l.refuses(KQM_BAD_SHAPE, SAME, |a| a.rope.batch.tokens = 2);
    l.refuses(KQM_BAD_SHAPE, SAME, |a| a.rope.batch.sequences = 2);
    l.refuses(KQM_BAD_SHAPE, SAME, |a| a.rope.batch.capacity = 2);
    l.refuses(KQM_BAD_SHAPE, SAME, |a| a.rope.batch.pool_pages = 2);
    l.refuses(KQM_BAD_SHAPE, SAME, |a| a.rope.batch.reach = 1);
    l.refuses(KQM_BAD_SHAPE, "r.heads == a.heads", |a| a.rope.heads = 8);
    l.refuses(KQM_BAD_SHAPE, "r.kv_heads == a.kv_heads", |a| a.rope.kv_heads = 2);
    l.refuses(KQM_BAD_SHAPE, "r.head_dim == a.head_dim", |a| a.rope.head_dim = 128);
    l.refuses(KQM_BAD_SHAPE, "r.cache_type == a.cache_type", |a| a.rope.cache_type = KQM_TYPE_F16);
    l.refuses(KQM_BAD_SHAPE, "r.k_cache == a.k_cache", |a| a.rope.k_cache = many.cast());
    l.refuses(KQM_BAD_SHAPE, "r.v_cache == a.v_cache", |a| a.rope.v_cache = many.cast());
    l.refuses(KQM_BAD_SHAPE, "r.q_out != r.q", |a| a.rope.q_out = a.rope.q.cast_mut());
}

/// The smallest batch.
fn batch_args(table: &Table) -> kqm_batch {
    let [position, sequence, pages] = [(); 3].map(|()| table.zeros::<u32>(1).cast_const());
    let (tokens, sequences, capacity, pool_pages, reach, singles) = (1, 1, 1, 1, 0, 0);
    kqm_batch { position, sequence, pages, tokens, sequences, capacity, pool_pages, reach, singles }
}

/// The smallest operands of `rope` but for the head dimension and the heads, which are those of [`attention`].
fn rope_args(
    table: &Table,
    k_cache: *mut std::ffi::c_void,
    v_cache: *mut std::ffi::c_void,
    batch: kqm_batch,
) -> kqm_rope_args {
    kqm_rope_args {
        batch,
        q: table.zeros(256),
        k: table.zeros(256),
        v: table.zeros(256),
        q_weight: table.zeros(64),
        k_weight: table.zeros(64),
        table: table.zeros(64),
        q_out: table.zeros(256),
        q_normed: table.zeros(256),
        k_normed: table.zeros(256),
        k_out: table.zeros(256),
        k_cache,
        v_cache,
        cache_type: KQM_TYPE_F32,
        heads: 4,
        kv_heads: 4,
        head_dim: 64,
        eps: 1e-6,
    }
}

fn rope(table: &mut Table, kernels: &kqm_kernels) {
    const FILE: &str = "common/rope.cuh";
    let [k_cache, v_cache] = [(); 2].map(|()| table.zeros::<f32>(64 * 256).cast());
    let batch = batch_args(table);
    let (smallest, nowhere) = (rope_args(table, k_cache, v_cache, batch), table.nowhere::<f32>());
    let base = kqm_rope_args { heads: 1, kv_heads: 1, head_dim: 8, ..smallest };
    let mut l = Launcher::new(table, "rope.cu", kernels.rope, base);
    l.refuses_null();
    l.calls("kqm_check_rope(*args)");
    l.refuses_in(FILE, KQM_NULL_POINTER, "a.q", |a| a.q = null());
    l.refuses_in(FILE, KQM_NULL_POINTER, "a.k", |a| a.k = null());
    l.refuses_in(FILE, KQM_NULL_POINTER, "a.v", |a| a.v = null());
    l.refuses_in(FILE, KQM_NULL_POINTER, "a.table", |a| a.table = null());
    const BATCH: &str = "common/pages.cuh";
    l.calls_in(FILE, "kqm_check_batch(a.batch)");
    l.refuses_in(BATCH, KQM_NULL_POINTER, "b.position", |a| a.batch.position = null());
    l.refuses_in(BATCH, KQM_NULL_POINTER, "b.sequence", |a| a.batch.sequence = null());
    l.refuses_in(BATCH, KQM_NULL_POINTER, "b.pages", |a| a.batch.pages = null());
    l.refuses_in(BATCH, KQM_BAD_SHAPE, "b.tokens > 0", |a| a.batch.tokens = 0);
    l.refuses_in(BATCH, KQM_BAD_SHAPE, "b.sequences > 0", |a| a.batch.sequences = 0);
    l.refuses_in(BATCH, KQM_BAD_SHAPE, "b.capacity > 0", |a| a.batch.capacity = 0);
    l.refuses_in(BATCH, KQM_BAD_SHAPE, "b.capacity <= kqm_max_capacity", |a| a.batch.capacity = 0x8000_0000);
    l.launches_in(BATCH, "b.capacity <= kqm_max_capacity", |a| (a.batch.capacity, a.q) = (0x7fff_ffff, nowhere));
    l.refuses_in(BATCH, KQM_BAD_SHAPE, "b.pool_pages > 0", |a| a.batch.pool_pages = 0);
    l.refuses_in(BATCH, KQM_BAD_SHAPE, "b.reach <= b.capacity", |a| a.batch.reach = 2);
    l.launches_in(BATCH, "b.reach <= b.capacity", |a| (a.batch.reach, a.q) = (1, nowhere));
    l.refuses_in(BATCH, KQM_BAD_SHAPE, "b.singles <= b.tokens", |a| a.batch.singles = 2);
    l.launches_in(BATCH, "b.singles <= b.tokens", |a| (a.batch.singles, a.q) = (1, nowhere));
    let table_size = "uint64_t(b.sequences) * kqm_chunks_of(b.capacity) <= 0xffffffffu";
    l.refuses_in(BATCH, KQM_BAD_SHAPE, table_size, |a| (a.batch.sequences, a.batch.capacity) = (0x8000_0000, 128));
    l.launches_in(BATCH, table_size, |a| (a.batch.sequences, a.q) = (u32::MAX, nowhere));
    l.refuses_in(FILE, KQM_NULL_POINTER, "a.q_out", |a| a.q_out = null());
    l.refuses_in(FILE, KQM_NULL_POINTER, "a.k_cache", |a| a.k_cache = null());
    l.refuses_in(FILE, KQM_NULL_POINTER, "a.v_cache", |a| a.v_cache = null());
    let types = "a.cache_type == KQM_TYPE_F32 || a.cache_type == KQM_TYPE_F16";
    for other in [2, KQM_TYPE_Q4_K, KQM_TYPE_Q6_K, u32::MAX] {
        l.refuses_in(FILE, KQM_UNSUPPORTED_TYPE, types, |a| a.cache_type = other);
    }
    l.takes_in(FILE, types, "a.cache_type == KQM_TYPE_F32", |_| {});
    l.takes_in(FILE, types, "a.cache_type == KQM_TYPE_F16", |a| a.cache_type = KQM_TYPE_F16);
    l.refuses_in(FILE, KQM_BAD_SHAPE, "a.batch.tokens <= 65535", |a| a.batch.tokens = 65536);
    l.launches_in(FILE, "a.batch.tokens <= 65535", |a| (a.batch.tokens, a.q) = (65535, nowhere));
    l.refuses_in(FILE, KQM_BAD_SHAPE, "a.heads > 0", |a| a.heads = 0);
    l.refuses_in(FILE, KQM_BAD_SHAPE, "a.heads <= kqm_max_heads", |a| a.heads = 65536);
    l.launches_in(FILE, "a.heads <= kqm_max_heads", |a| (a.heads, a.q) = (65535, nowhere));
    l.refuses_in(FILE, KQM_BAD_SHAPE, "a.kv_heads > 0", |a| a.kv_heads = 0);
    l.refuses_in(FILE, KQM_BAD_SHAPE, "a.kv_heads <= kqm_max_heads", |a| a.kv_heads = 65536);
    l.launches_in(FILE, "a.kv_heads <= kqm_max_heads", |a| (a.kv_heads, a.q) = (65535, nowhere));
    l.refuses_in(FILE, KQM_BAD_SHAPE, "a.head_dim > 0", |a| a.head_dim = 0);
    for head_dim in [1, 2, 4, 12] {
        l.refuses_in(FILE, KQM_BAD_SHAPE, "a.head_dim % 8 == 0", |a| a.head_dim = head_dim);
    }
    let head_dim = "a.head_dim <= uint32_t(kqm_max_head_dim)";
    l.refuses_in(FILE, KQM_BAD_SHAPE, head_dim, |a| a.head_dim = 264);
    l.launches_in(FILE, head_dim, |a| (a.head_dim, a.q) = (256, nowhere));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.q, 16)", |a| a.q = shifted(a.q));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.k, 16)", |a| a.k = shifted(a.k));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.v, 16)", |a| a.v = shifted(a.v));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.q_weight, 16)", |a| a.q_weight = shifted(a.q_weight));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.k_weight, 16)", |a| a.k_weight = shifted(a.k_weight));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.table, 16)", |a| a.table = shifted(a.table));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.q_out, 16)", |a| a.q_out = shifted(a.q_out));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.q_normed, 16)", |a| a.q_normed = shifted(a.q_normed));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.k_normed, 16)", |a| a.k_normed = shifted(a.k_normed));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.k_out, 16)", |a| a.k_out = shifted(a.k_out));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.k_cache, 16)", |a| a.k_cache = shifted(a.k_cache));
    l.refuses_in(FILE, KQM_MISALIGNED, "kqm_aligned(a.v_cache, 16)", |a| a.v_cache = shifted(a.v_cache));
}

fn embedding(table: &mut Table, kernels: &kqm_kernels) {
    let (ids, out, nowhere) = (table.zeros(1), table.zeros(256), table.nowhere::<u32>());
    // A row of the widest type.
    let rows = table.zeros::<f32>(256).cast();
    let base = kqm_embedding_args { table: rows, tokens: ids, out, type_: KQM_TYPE_F32, vocab: 1, cols: 256, count: 1 };
    let mut l = Launcher::new(table, "embedding.cu", kernels.embedding, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->table", |a| a.table = null());
    l.refuses(KQM_NULL_POINTER, "args->tokens", |a| a.tokens = null());
    l.refuses(KQM_NULL_POINTER, "args->out", |a| a.out = null());
    let types = "args->type == KQM_TYPE_F32 || args->type == KQM_TYPE_F16 || args->type == KQM_TYPE_BF16 || \
                 KqmBlockTypes::has(args->type)";
    for other in [9, 15, 24, u32::MAX] {
        l.refuses(KQM_UNSUPPORTED_TYPE, types, |a| a.type_ = other);
    }
    l.takes(types, "args->type == KQM_TYPE_F32", |_| {});
    l.takes(types, "args->type == KQM_TYPE_F16", |a| a.type_ = KQM_TYPE_F16);
    l.takes(types, "args->type == KQM_TYPE_BF16", |a| a.type_ = KQM_TYPE_BF16);
    l.takes(types, "KqmBlockTypes::has(args->type)", |a| a.type_ = KQM_TYPE_Q4_K);
    l.takes(types, "KqmBlockTypes::has(args->type)", |a| a.type_ = KQM_TYPE_Q6_K);
    l.refuses(KQM_BAD_SHAPE, "args->count > 0", |a| a.count = 0);
    l.refuses(KQM_BAD_SHAPE, "args->count <= 65535", |a| a.count = 65536);
    l.launches("args->count <= 65535", |a| (a.count, a.tokens) = (65535, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->vocab > 0", |a| a.vocab = 0);
    l.refuses(KQM_BAD_SHAPE, "args->cols > 0", |a| a.cols = 0);
    for cols in [1, 128, 257] {
        l.refuses(KQM_BAD_SHAPE, "args->cols % KQM_BLOCK == 0", |a| a.cols = cols);
    }
    let aligned = "kqm_aligned(args->table, unit)";
    l.refuses(KQM_MISALIGNED, aligned, |a| a.table = odd(a.table.cast::<u8>().wrapping_add(1).cast()));
    for halves in [KQM_TYPE_F16, KQM_TYPE_BF16] {
        l.refuses(KQM_MISALIGNED, aligned, |a| (a.type_, a.table) = (halves, odd(a.table)));
    }
    // Elements of other types are read byte by byte, and halves need no more than an even address.
    let bytes = |a: &mut kqm_embedding_args, offset| a.table = a.table.cast::<u8>().wrapping_add(offset).cast();
    l.takes(types, "args->type == KQM_TYPE_F16", |a| {
        a.type_ = KQM_TYPE_F16;
        bytes(a, 2);
    });
    l.takes(types, "KqmBlockTypes::has(args->type)", |a| {
        a.type_ = KQM_TYPE_Q6_K;
        bytes(a, 1);
    });
}

/// The conditions of `kqm_check_pairs`. `parts` gives the groups, the indices, the tokens and the experts of a token,
/// `experts` sets how many experts the matrices have, and `many` are groups for two tokens.
fn pairs<A: Copy>(
    launcher: &mut Launcher<A>,
    call: &str,
    parts: impl Fn(&mut A) -> (&mut kqm_groups, &mut *mut u32, &mut u32, &mut u32),
    experts: impl Fn(&mut A, u32),
    nowhere: *mut u32,
    many: kqm_groups,
) {
    const FILE: &str = "common/items.cuh";
    launcher.calls(call);
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "tokens > 0", |a| *parts(a).2 = 0);
    let tokens = |a: &mut A, tokens| {
        *parts(a).0 = many;
        *parts(a).2 = tokens;
    };
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "tokens <= 65535", |a| tokens(a, 65536));
    let unreadable = |a: &mut A| parts(a).0.count = nowhere;
    launcher.launches_in(FILE, "tokens <= 65535", |a| {
        tokens(a, 65535);
        unreadable(a);
    });
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "experts <= KQM_MAX_EXPERTS", |a| experts(a, 513));
    launcher.launches_in(FILE, "experts <= KQM_MAX_EXPERTS", |a| {
        experts(a, 512);
        tokens(a, 2);
        unreadable(a);
    });
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "top_k > 0", |a| *parts(a).3 = 0);
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "top_k <= KQM_MAX_TOP_K", |a| {
        experts(a, 33);
        *parts(a).3 = 33;
    });
    launcher.launches_in(FILE, "top_k <= KQM_MAX_TOP_K", |a| {
        experts(a, 32);
        *parts(a).3 = 32;
        tokens(a, 2);
        unreadable(a);
    });
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, "top_k <= experts", |a| *parts(a).3 = 2);
    launcher.launches_in(FILE, "top_k <= experts", |a| {
        tokens(a, 2);
        unreadable(a);
    });
    launcher.refuses_in(FILE, KQM_NULL_POINTER, "indices != nullptr", |a| *parts(a).1 = null());
    for (part, set) in [
        ("groups.order", (|groups| groups.order = null()) as fn(&mut kqm_groups)),
        ("groups.items", |groups| groups.items = null()),
        ("groups.count", |groups| groups.count = null()),
    ] {
        let condition = format!("tokens == 1 || {part}");
        launcher.refuses_in(FILE, KQM_NULL_POINTER, &condition, |a| {
            tokens(a, 2);
            set(parts(a).0);
        });
        launcher.takes_in(FILE, &condition, "tokens == 1", |a| *parts(a).0 = kqm_groups::default());
    }
    let items = "kqm_launch_items(tokens, experts, top_k) <= 65535";
    launcher.refuses_in(FILE, KQM_BAD_SHAPE, items, |a| {
        experts(a, 32);
        *parts(a).3 = 32;
        // 65,503 full items, and 33 that are not full.
        tokens(a, 65503);
    });
    launcher.launches_in(FILE, items, |a| {
        experts(a, 32);
        *parts(a).3 = 32;
        tokens(a, 65502);
        unreadable(a);
    });
}

/// That groups which are there are enough for several tokens: the launcher takes two.
fn grouped<A: Copy>(launcher: &mut Launcher<A>, change: impl Fn(&mut A)) {
    for part in ["groups.order", "groups.items", "groups.count"] {
        launcher.takes_in("common/items.cuh", &format!("tokens == 1 || {part}"), part, &change);
    }
}

/// Groups of up to two pairs, both of expert 0.
fn groups(table: &Table) -> kqm_groups {
    let (order, items, count): (*mut u32, *mut u32, *mut u32) = (table.zeros(2), table.zeros(3), table.zeros(1));
    // SAFETY: memory of this process, of 2, 3 and 1 words.
    unsafe {
        order.add(1).write(1);
        items.add(2).write(2);
        count.write(1);
    }
    kqm_groups { order, items, count }
}

fn moe_down(table: &mut Table, kernels: &kqm_kernels) {
    let down = table.matrix(KQM_TYPE_Q4_K, 1, 256);
    let other = table.matrix(KQM_TYPE_Q6_K, 1, 256);
    let (many, nowhere) = (groups(table), table.nowhere());
    let base = kqm_moe_down_args {
        down,
        x: table.zeros(2),
        indices: table.zeros(2),
        weights: table.zeros(2),
        expert_out: table.zeros(2),
        sum: table.zeros(2),
        y: table.zeros::<f32>(2).cast(),
        tokens: 1,
        top_k: 1,
        ..Default::default()
    };
    // Of 25 blocks of 256, one more than are quantized at once.
    let rows = table.zeros::<f32>(25 * 256);
    let (long, largest) = (table.matrix(KQM_TYPE_Q4_K, 1, 25 * 256), table.matrix(KQM_TYPE_Q4_K, 1, 24 * 256));
    let mut l = Launcher::new(table, "moe_down.cu", kernels.moe_down, base);
    l.refuses_null();
    let x = "args->x || args->swiglu";
    l.refuses(KQM_NULL_POINTER, x, |a| a.x = null());
    l.takes(x, "args->x", |_| {});
    l.takes(x, "args->swiglu", |a| (a.x, a.swiglu) = (null(), rows));
    l.refuses(KQM_NULL_POINTER, "args->weights", |a| a.weights = null());
    l.refuses(KQM_NULL_POINTER, "args->expert_out", |a| a.expert_out = null());
    l.refuses(KQM_NULL_POINTER, "args->y", |a| a.y = null());
    float_types(&mut l, "kqm_is_float(args->type)", |a| &mut a.type_);
    matrix(&mut l, "kqm_check_matrix(args->down)", |a| &mut a.down);
    l.refuses_in("common/types.cuh", KQM_BAD_SHAPE, "w.rows > 0", |a| a.down.rows = 0);
    pairs(
        &mut l,
        "kqm_check_pairs(args->groups, args->indices, args->tokens, args->down.experts, args->top_k)",
        // SAFETY: indices are a pointer to what is not changed here.
        |a| (&mut a.groups, unsafe { &mut *(&raw mut a.indices).cast() }, &mut a.tokens, &mut a.top_k),
        |a, experts| a.down.experts = experts,
        nowhere,
        many,
    );
    grouped(&mut l, |a| (a.tokens, a.groups) = (2, many));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->x, 16)", |a| a.x = shifted(a.x));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->swiglu, 16)", |a| a.swiglu = shifted(rows));
    let one_token = "!args->swiglu || args->tokens == 1";
    l.refuses(KQM_BAD_SHAPE, one_token, |a| (a.swiglu, a.tokens, a.groups) = (rows, 2, many));
    l.takes(one_token, "!args->swiglu", |a| (a.tokens, a.groups) = (2, many));
    l.takes(one_token, "args->tokens == 1", |a| a.swiglu = rows);
    let few = "!args->swiglu || args->top_k * (args->down.cols / KQM_BLOCK) <= KQM_FUSED_UNITS";
    l.refuses(KQM_BAD_SHAPE, few, |a| (a.swiglu, a.down) = (rows, long));
    l.takes(few, "args->top_k * (args->down.cols / KQM_BLOCK) <= KQM_FUSED_UNITS", |a| {
        (a.swiglu, a.down) = (rows, largest);
    });
    l.launches(few, |a| (a.swiglu, a.down) = (nowhere.cast(), largest));
    let blocks = l.table.zeros(25);
    l.takes(few, "!args->swiglu", |a| (a.x, a.down) = (blocks, long));
    // Either type of weights.
    l.starting_with(kqm_moe_down_args { down: other, ..base });
}

fn moe_group(table: &mut Table, kernels: &kqm_kernels) {
    let (indices, groups, nowhere) = (table.zeros(1), groups(table), table.nowhere::<u32>());
    let base = kqm_moe_group_args { indices, groups, tokens: 1, experts: 1, top_k: 1 };
    let mut l = Launcher::new(table, "moe_group.cu", kernels.moe_group, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->indices", |a| a.indices = null());
    l.refuses(KQM_NULL_POINTER, "args->groups.order", |a| a.groups.order = null());
    l.refuses(KQM_NULL_POINTER, "args->groups.items", |a| a.groups.items = null());
    l.refuses(KQM_NULL_POINTER, "args->groups.count", |a| a.groups.count = null());
    l.refuses(KQM_BAD_SHAPE, "args->tokens > 0", |a| a.tokens = 0);
    l.refuses(KQM_BAD_SHAPE, "args->tokens <= 65535", |a| a.tokens = 65536);
    l.launches("args->tokens <= 65535", |a| (a.tokens, a.indices) = (65535, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->experts <= KQM_MAX_EXPERTS", |a| a.experts = 513);
    l.launches("args->experts <= KQM_MAX_EXPERTS", |a| (a.experts, a.indices) = (512, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->top_k > 0", |a| a.top_k = 0);
    l.refuses(KQM_BAD_SHAPE, "args->top_k <= KQM_MAX_TOP_K", |a| (a.experts, a.top_k) = (33, 33));
    l.launches("args->top_k <= KQM_MAX_TOP_K", |a| (a.experts, a.top_k, a.indices) = (32, 32, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->top_k <= args->experts", |a| a.top_k = 2);
    l.launches("args->top_k <= args->experts", |a| (a.experts, a.top_k, a.indices) = (2, 2, nowhere));
}

fn moe_layer(table: &mut Table, kernels: &kqm_kernels) {
    let [gate, up, down] = [(KQM_TYPE_Q4_K, 256), (KQM_TYPE_Q6_K, 256), (KQM_TYPE_Q5_0, 1)].map(|(type_, rows)| {
        let kind = TensorType::MATRICES.iter().find(|&&kind| kind as u32 == type_).unwrap();
        let tiles = table.zeros::<u8>(2 * 256 * kind.bytes_of(256));
        kqm_matrix { tiles: tiles.cast(), type_, rows, cols: 256, experts: 1 }
    });
    let nowhere = table.nowhere::<f32>();
    let bytes = 1 << 20;
    let base = kqm_moe_layer_args {
        x: table.zeros::<f32>(256).cast(),
        router: table.zeros(2 * 256),
        gate,
        up,
        down,
        y: table.zeros::<f32>(1).cast(),
        workspace: table.zeros::<u8>(bytes).cast(),
        workspace_bytes: bytes as u64,
        tokens: 1,
        top_k: 1,
        ..Default::default()
    };
    let workspace = kernels.moe_layer_workspace.unwrap();
    let mut l = Launcher::new(table, "moe_layer.cu", kernels.moe_layer, base);
    // SAFETY: no arguments are none, and the others' counts alone are read.
    let needed = unsafe {
        assert_eq!(workspace(std::ptr::null()), 0);
        workspace(&base)
    };
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->x", |a| a.x = null());
    l.refuses(KQM_NULL_POINTER, "args->router", |a| a.router = null());
    l.refuses(KQM_NULL_POINTER, "args->y", |a| a.y = null());
    l.refuses(KQM_NULL_POINTER, "args->workspace", |a| a.workspace = null());
    float_types(&mut l, "kqm_is_float(a.x_type)", |a| &mut a.x_type);
    float_types(&mut l, "kqm_is_float(a.y_type)", |a| &mut a.y_type);
    matrix(&mut l, "kqm_check_matrix(a.gate)", |a| &mut a.gate);
    matrix(&mut l, "kqm_check_matrix(a.up)", |a| &mut a.up);
    matrix(&mut l, "kqm_check_matrix(a.down)", |a| &mut a.down);
    l.refuses(KQM_BAD_SHAPE, "a.gate.rows == a.up.rows", |a| a.up.rows = 512);
    l.refuses(KQM_BAD_SHAPE, "a.gate.cols == a.up.cols", |a| a.up.cols = 512);
    l.refuses(KQM_BAD_SHAPE, "a.gate.experts == a.up.experts", |a| a.up.experts = 2);
    l.refuses(KQM_BAD_SHAPE, "a.down.cols == a.gate.rows", |a| a.down.cols = 512);
    l.refuses(KQM_BAD_SHAPE, "a.down.experts == a.gate.experts", |a| a.down.experts = 2);
    let experts = |a: &mut kqm_moe_layer_args, experts| {
        (a.gate.experts, a.up.experts, a.down.experts) = (experts, experts, experts);
    };
    let endless = |a: &mut kqm_moe_layer_args| (a.workspace_bytes, a.x) = (u64::MAX, nowhere.cast());
    l.refuses(KQM_BAD_SHAPE, "a.tokens > 0", |a| a.tokens = 0);
    l.refuses(KQM_BAD_SHAPE, "a.tokens <= 65535", |a| (a.tokens, a.workspace_bytes) = (65536, u64::MAX));
    l.launches("a.tokens <= 65535", |a| {
        a.tokens = 65535;
        (a.workspace, a.workspace_bytes) = (nowhere.cast(), u64::MAX);
    });
    l.refuses(KQM_BAD_SHAPE, "a.gate.experts <= KQM_MAX_EXPERTS", |a| experts(a, 513));
    l.launches("a.gate.experts <= KQM_MAX_EXPERTS", |a| {
        experts(a, 512);
        endless(a);
    });
    l.refuses(KQM_BAD_SHAPE, "a.top_k > 0", |a| a.top_k = 0);
    l.refuses(KQM_BAD_SHAPE, "a.top_k <= KQM_MAX_TOP_K", |a| {
        experts(a, 33);
        a.top_k = 33;
    });
    l.launches("a.top_k <= KQM_MAX_TOP_K", |a| {
        experts(a, 32);
        a.top_k = 32;
        endless(a);
    });
    l.refuses(KQM_BAD_SHAPE, "a.top_k <= a.gate.experts", |a| a.top_k = 2);
    l.launches("a.top_k <= a.gate.experts", |a| {
        experts(a, 2);
        a.top_k = 2;
        endless(a);
    });
    l.refuses(KQM_BAD_SHAPE, "a.weighting <= KQM_WEIGHTS_OF_ALL", |a| a.weighting = 2);
    l.launches("a.weighting <= KQM_WEIGHTS_OF_ALL", |a| {
        a.weighting = KQM_WEIGHTS_OF_ALL;
        endless(a);
    });
    let items = "kqm_moe_max_items(a.tokens, a.gate.experts, a.top_k) <= 65535";
    l.refuses(KQM_BAD_SHAPE, items, |a| {
        experts(a, 32);
        // 65,503 full items, and 33 that are not full.
        (a.top_k, a.tokens, a.workspace_bytes) = (32, 65503, u64::MAX);
    });
    l.launches(items, |a| {
        experts(a, 32);
        (a.top_k, a.tokens, a.workspace, a.workspace_bytes) = (32, 65502, nowhere.cast(), u64::MAX);
    });
    l.refuses(KQM_MISALIGNED, "kqm_aligned(a.x, 16)", |a| a.x = shifted(a.x));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(a.router, 16)", |a| a.router = shifted(a.router));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(a.workspace, 16)", |a| a.workspace = shifted(a.workspace));
    l.refuses(KQM_WORKSPACE, "a.workspace_bytes >= w.bytes", |a| a.workspace_bytes = needed - 1);
    l.starting_with(kqm_moe_layer_args { workspace_bytes: needed, ..base });
}

fn moe_router(table: &mut Table, kernels: &kqm_kernels) {
    let nowhere = table.nowhere::<f32>();
    let base = kqm_moe_router_args {
        x: table.zeros(256),
        w: table.zeros(256),
        logits: table.zeros(1),
        indices: table.zeros(1),
        weights: table.zeros(1),
        done: table.zeros(1),
        fixed: table.zeros(1),
        tokens: 1,
        cols: 256,
        experts: 1,
        top_k: 1,
        ..Default::default()
    };
    let norm =
        kqm_fused_norm { x: table.zeros(256), weight: table.zeros(256), out: table.zeros(256), eps: 1e-6, width: 256 };
    let mut l = Launcher::new(table, "moe_router.cu", kernels.moe_router, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->w", |a| a.w = null());
    l.refuses(KQM_NULL_POINTER, "args->logits", |a| a.logits = null());
    for (part, set) in [
        ("args->weights", (|a| a.weights = null()) as fn(&mut kqm_moe_router_args)),
        ("args->done", |a| a.done = null()),
    ] {
        let condition = format!("args->indices == nullptr || {part}");
        l.refuses(KQM_NULL_POINTER, &condition, set);
        l.takes(&condition, part, |_| {});
        l.takes(&condition, "args->indices == nullptr", |a| {
            a.indices = null();
            set(a);
        });
    }
    let leaves = "args->indices != nullptr || args->tokens == 1";
    l.refuses(KQM_BAD_SHAPE, leaves, |a| (a.indices, a.tokens) = (null(), 2));
    l.takes(leaves, "args->tokens == 1", |a| a.indices = null());
    let x = "args->x != nullptr || args->norm.x != nullptr";
    l.refuses(KQM_NULL_POINTER, x, |a| a.x = null());
    l.takes(x, "args->x != nullptr", |_| {});
    l.refuses(KQM_BAD_SHAPE, "args->tokens > 0", |a| a.tokens = 0);
    l.refuses(KQM_BAD_SHAPE, "args->tokens <= 65535", |a| a.tokens = 65536);
    l.launches("args->tokens <= 65535", |a| (a.tokens, a.x) = (65535, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->cols > 0", |a| a.cols = 0);
    for cols in [1, 128, 257] {
        l.refuses(KQM_BAD_SHAPE, "args->cols % KQM_BLOCK == 0", |a| a.cols = cols);
    }
    l.refuses(KQM_BAD_SHAPE, "args->cols <= kqm_max_cols", |a| a.cols = 16384 + 256);
    l.launches("args->cols <= kqm_max_cols", |a| (a.cols, a.w) = (16384, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->experts <= KQM_MAX_EXPERTS", |a| a.experts = 513);
    l.launches("args->experts <= KQM_MAX_EXPERTS", |a| (a.experts, a.w) = (512, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->top_k > 0", |a| a.top_k = 0);
    l.refuses(KQM_BAD_SHAPE, "args->top_k <= KQM_MAX_TOP_K", |a| (a.experts, a.top_k) = (33, 33));
    l.launches("args->top_k <= KQM_MAX_TOP_K", |a| (a.experts, a.top_k, a.w) = (32, 32, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->top_k <= args->experts", |a| a.top_k = 2);
    l.launches("args->top_k <= args->experts", |a| (a.experts, a.top_k, a.w) = (2, 2, nowhere));
    let weighting = "args->weighting <= KQM_WEIGHTS_OF_ALL";
    l.refuses(KQM_BAD_SHAPE, weighting, |a| a.weighting = 2);
    l.launches(weighting, |a| (a.weighting, a.w) = (KQM_WEIGHTS_OF_ALL, nowhere));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->x, 16)", |a| a.x = shifted(a.x));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->w, 16)", |a| a.w = shifted(a.w));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->fixed, 16)", |a| a.fixed = shifted(a.fixed));
    let two_tokens = l.table.zeros(256 * 2);
    let two = kqm_moe_router_args {
        x: two_tokens,
        logits: l.table.zeros(2),
        indices: l.table.zeros(2),
        weights: l.table.zeros(2),
        done: l.table.zeros(2),
        tokens: 2,
        ..base
    };
    l.starting_with(two);
    l.takes(leaves, "args->indices != nullptr", |_| {});
    l.starting_with(kqm_moe_router_args { norm, x: null(), ..base });
    l.takes(x, "args->norm.x != nullptr", |_| {});
    let call = "kqm_check_fused_norm(args->norm, args->tokens, args->cols)";
    fused_norm(&mut l, call, |a| &mut a.norm, |a| a.tokens = 2);
    let cols = "cols <= KQM_FUSED_COLS";
    l.refuses_in("common/norm.cuh", KQM_BAD_SHAPE, cols, |a| a.cols = 4096 + 256);
    l.launches_in("common/norm.cuh", cols, |a| (a.cols, a.w) = (4096, nowhere));
}

fn moe_swiglu(table: &mut Table, kernels: &kqm_kernels) {
    let (gate, up) = (table.matrix(KQM_TYPE_Q4_K, 1, 256), table.matrix(KQM_TYPE_Q6_K, 1, 256));
    let (many, nowhere, logits) = (groups(table), table.nowhere(), table.zeros::<f32>(1));
    let base = kqm_moe_swiglu_args {
        gate,
        up,
        x: table.zeros(2),
        indices: table.zeros(2),
        weights: table.zeros(1),
        gate_out: table.zeros(2),
        up_out: table.zeros(2),
        out: table.zeros(2),
        tokens: 1,
        top_k: 1,
        ..Default::default()
    };
    let mut l = Launcher::new(table, "moe_swiglu.cu", kernels.moe_swiglu, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->x", |a| a.x = null());
    l.refuses(KQM_NULL_POINTER, "args->out", |a| a.out = null());
    matrix(&mut l, "kqm_check_matrix(args->gate)", |a| &mut a.gate);
    matrix(&mut l, "kqm_check_matrix(args->up)", |a| &mut a.up);
    l.refuses_in("common/types.cuh", KQM_BAD_SHAPE, "w.rows > 0", |a| (a.gate.rows, a.up.rows) = (0, 0));
    l.refuses(KQM_BAD_SHAPE, "args->gate.rows == args->up.rows", |a| a.up.rows = 2);
    l.refuses(KQM_BAD_SHAPE, "args->gate.cols == args->up.cols", |a| a.up.cols = 512);
    l.refuses(KQM_BAD_SHAPE, "args->gate.experts == args->up.experts", |a| a.up.experts = 2);
    pairs(
        &mut l,
        "kqm_check_pairs(args->groups, args->indices, args->tokens, args->gate.experts, args->top_k)",
        |a| (&mut a.groups, &mut a.indices, &mut a.tokens, &mut a.top_k),
        |a, experts| (a.gate.experts, a.up.experts) = (experts, experts),
        nowhere,
        many,
    );
    grouped(&mut l, |a| (a.tokens, a.groups) = (2, many));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->x, 16)", |a| a.x = shifted(a.x));
    let weights = "!args->logits || args->weights";
    l.refuses(KQM_NULL_POINTER, weights, |a| (a.logits, a.weights) = (logits, null()));
    l.takes(weights, "!args->logits", |a| a.weights = null());
    l.takes(weights, "args->weights", |a| a.logits = logits);
    let one_token = "!args->logits || args->tokens == 1";
    l.refuses(KQM_BAD_SHAPE, one_token, |a| (a.logits, a.tokens, a.groups) = (logits, 2, many));
    l.takes(one_token, "!args->logits", |a| (a.tokens, a.groups) = (2, many));
    l.takes(one_token, "args->tokens == 1", |a| a.logits = logits);
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->logits, 16)", |a| a.logits = shifted(logits));
    let weighting = "args->weighting <= KQM_WEIGHTS_OF_ALL";
    l.refuses(KQM_BAD_SHAPE, weighting, |a| a.weighting = 2);
    l.launches(weighting, |a| (a.weighting, a.x) = (KQM_WEIGHTS_OF_ALL, nowhere.cast()));
    // Every pair of types.
    for (a, b) in [(gate, gate), (up, gate), (up, up)] {
        l.starting_with(kqm_moe_swiglu_args { gate: a, up: b, ..base });
    }
}

/// `q4_k_matvec` and `q6_k_gemv`.
fn matvec_entry(
    table: &mut Table,
    function: Option<unsafe extern "C" fn(*const kqm_matvec_args, kqm_stream) -> kqm_status>,
    [own, other]: [u32; 2],
) {
    let (w, foreign) = (table.matrix(own, 1, 256), table.matrix(other, 1, 256));
    let nowhere = table.nowhere();
    let base = kqm_matvec_args {
        w,
        x: table.zeros(1),
        product: table.zeros(1),
        y: table.zeros(1),
        tokens: 1,
        residual: null(),
    };
    let mut l = Launcher::new(table, "common/matvec.cuh", function, base);
    l.refuses_null();
    matrix(&mut l, "kqm_check_matrix(args->w)", |a| &mut a.w);
    l.refuses_in("common/types.cuh", KQM_BAD_SHAPE, "w.rows > 0", |a| a.w.rows = 0);
    l.launches_in("common/types.cuh", "w.rows <= kqm_max_rows", |a| (a.w.rows, a.x) = (0x7fff_fff0, nowhere));
    l.launches_in("common/types.cuh", "w.cols <= kqm_max_cols", |a| (a.w.cols, a.w.tiles) = (16384, nowhere.cast()));
    l.refuses(KQM_UNSUPPORTED_TYPE, "args->w.type == Tile::type", |a| a.w = foreign);
    l.refuses(KQM_BAD_SHAPE, "args->w.experts == 1", |a| a.w.experts = 0);
    l.refuses(KQM_BAD_SHAPE, "args->w.experts == 1", |a| a.w.experts = 2);
    l.refuses(KQM_BAD_SHAPE, "args->tokens > 0", |a| a.tokens = 0);
    l.refuses(KQM_NULL_POINTER, "args->x != nullptr", |a| a.x = null());
    l.refuses(KQM_NULL_POINTER, "args->y != nullptr", |a| a.y = null());
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->x, 16)", |a| a.x = shifted(a.x));
    l.refuses(KQM_BAD_SHAPE, "groups <= 65535", |a| a.tokens = 8 * 65535 + 1);
    l.launches("groups <= 65535", |a| (a.tokens, a.x) = (8 * 65535, nowhere));
}

/// What `matvec` demands itself, before its entry for a type demands the rest.
fn matvec(table: &mut Table, kernels: &kqm_kernels) {
    let (w, x, y) = (table.matrix(KQM_TYPE_Q4_K, 1, 256), table.zeros(1), table.zeros(1));
    let base = kqm_matvec_args { w, x, y, tokens: 1, product: null(), residual: null() };
    let mut l = Launcher::new(table, "matvec.cu", kernels.matvec, base);
    l.refuses_null();
}

fn q4_k_matvec(table: &mut Table, kernels: &kqm_kernels) {
    matvec_entry(table, kernels.q4_k_matvec, [KQM_TYPE_Q4_K, KQM_TYPE_Q6_K]);
}

fn q6_k_gemv(table: &mut Table, kernels: &kqm_kernels) {
    matvec_entry(table, kernels.q6_k_gemv, [KQM_TYPE_Q6_K, KQM_TYPE_Q4_K]);
}

fn qkv(table: &mut Table, kernels: &kqm_kernels) {
    let all = [KQM_TYPE_Q4_K, KQM_TYPE_Q6_K, KQM_TYPE_Q4_K].map(|type_| table.matrix(type_, 1, 256));
    let longer = table.matrix(KQM_TYPE_Q4_K, 1, 512);
    let nowhere = table.nowhere();
    let y = [(); 3].map(|()| table.zeros(1));
    let base = kqm_qkv_args { w: all, x: table.zeros(2), y, tokens: 1, ..Default::default() };
    let norm =
        kqm_fused_norm { x: table.zeros(256), weight: table.zeros(256), out: table.zeros(256), eps: 1e-6, width: 256 };
    let mut l = Launcher::new(table, "qkv.cu", kernels.qkv, base);
    l.refuses_null();
    let x = "args->x != nullptr || args->norm.x != nullptr";
    l.refuses(KQM_NULL_POINTER, x, |a| a.x = null());
    l.takes(x, "args->x != nullptr", |_| {});
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->x, 16)", |a| a.x = shifted(a.x));
    l.refuses(KQM_BAD_SHAPE, "args->tokens > 0", |a| a.tokens = 0);
    let same = "cols == 0 || w.cols == cols";
    for i in 0..3 {
        matrix(&mut l, "kqm_check_matrix(w)", |a| &mut a.w[i]);
        l.refuses(KQM_BAD_SHAPE, "w.experts == 1", |a| a.w[i].experts = 0);
        l.refuses(KQM_BAD_SHAPE, "w.experts == 1", |a| a.w[i].experts = 2);
        l.refuses(KQM_BAD_SHAPE, same, |a| a.w[i] = longer);
        l.refuses(KQM_NULL_POINTER, "args->y[i] != nullptr", |a| a.y[i] = null());
        // A matrix that is left out needs nothing.
        l.takes(same, "w.cols == cols", |a| (a.w[i], a.y[i]) = (kqm_matrix::default(), null()));
        // One alone is the first.
        l.takes(same, "cols == 0", |a| {
            a.w = Default::default();
            a.y = [null(); 3];
            (a.w[i], a.y[i]) = (all[i], y[i]);
        });
    }
    l.refuses(KQM_BAD_SHAPE, "cols > 0", |a| a.w = Default::default());
    l.refuses(KQM_BAD_SHAPE, "groups <= 65535", |a| a.tokens = 8 * 65535 + 1);
    l.launches("groups <= 65535", |a| (a.tokens, a.x) = (8 * 65535, nowhere));
    l.starting_with(kqm_qkv_args { norm, x: null(), ..base });
    l.takes(x, "args->norm.x != nullptr", |_| {});
    fused_norm(&mut l, "kqm_check_fused_norm(args->norm, args->tokens, cols)", |a| &mut a.norm, |a| a.tokens = 2);
    let cols = |a: &mut kqm_qkv_args, cols| a.w.iter_mut().for_each(|w| w.cols = cols);
    l.refuses_in("common/norm.cuh", KQM_BAD_SHAPE, "cols <= KQM_FUSED_COLS", |a| cols(a, 4096 + 256));
    l.launches_in("common/norm.cuh", "cols <= KQM_FUSED_COLS", |a| {
        cols(a, 4096);
        a.norm.x = nowhere.cast();
    });
}

fn quantize(table: &mut Table, kernels: &kqm_kernels) {
    let (x, out, nowhere) = (table.zeros::<f32>(256), table.zeros(1), table.nowhere());
    let base =
        kqm_quantize_args { x: x.cast(), out, floats: table.zeros(256), type_: KQM_TYPE_F32, tokens: 1, cols: 256 };
    let mut l = Launcher::new(table, "quantize.cu", kernels.quantize, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->x != nullptr", |a| a.x = null());
    l.refuses(KQM_NULL_POINTER, "args->out != nullptr", |a| a.out = null());
    float_types(&mut l, "kqm_is_float(args->type)", |a| &mut a.type_);
    l.refuses(KQM_BAD_SHAPE, "args->tokens > 0", |a| a.tokens = 0);
    l.refuses(KQM_BAD_SHAPE, "args->cols > 0", |a| a.cols = 0);
    for cols in [1, 128, 257] {
        l.refuses(KQM_BAD_SHAPE, "args->cols % KQM_BLOCK == 0", |a| a.cols = cols);
    }
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->x, 16)", |a| a.x = shifted(a.x));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->out, 16)", |a| a.out = shifted(a.out));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->floats, 16)", |a| a.floats = shifted(a.floats));
    l.refuses(KQM_BAD_SHAPE, "count <= 0x7fffffffu", |a| a.tokens = 0x8000_0000);
    l.launches("count <= 0x7fffffffu", |a| (a.tokens, a.x) = (0x7fff_ffff, nowhere));
}

fn repack(table: &mut Table, kernels: &kqm_kernels) {
    let (blocks, tiles) = (table.zeros::<u8>(210).cast(), table.zeros::<u8>(16 * 210).cast());
    let nowhere = table.nowhere();
    let base = kqm_repack_args { blocks, tiles, type_: KQM_TYPE_Q6_K, rows: 1, cols: 256, experts: 1 };
    let mut l = Launcher::new(table, "repack.cu", kernels.repack, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->blocks", |a| a.blocks = null());
    l.refuses(KQM_NULL_POINTER, "args->tiles", |a| a.tiles = null());
    for other in [KQM_TYPE_F32, KQM_TYPE_F16, 9, 15, u32::MAX] {
        l.refuses(KQM_UNSUPPORTED_TYPE, "KqmBlockTypes::has(args->type)", |a| a.type_ = other);
    }
    l.refuses(KQM_BAD_SHAPE, "args->rows > 0", |a| a.rows = 0);
    l.refuses(KQM_BAD_SHAPE, "args->cols > 0", |a| a.cols = 0);
    for cols in [1, 128, 257] {
        l.refuses(KQM_BAD_SHAPE, "args->cols % KQM_BLOCK == 0", |a| a.cols = cols);
    }
    l.refuses(KQM_BAD_SHAPE, "args->cols <= kqm_max_cols", |a| a.cols = 16384 + 256);
    l.launches("args->cols <= kqm_max_cols", |a| (a.cols, a.blocks) = (16384, nowhere));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->blocks, 2)", |a| a.blocks = odd(a.blocks));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->tiles, 16)", |a| a.tiles = shifted(a.tiles));
    l.refuses(KQM_BAD_SHAPE, "args->experts > 0", |a| a.experts = 0);
    let tiles = "tiles <= 0x7fffffffu / args->experts";
    l.refuses(KQM_BAD_SHAPE, tiles, |a| (a.rows, a.cols) = (0x2000_0000, 16384));
    // Of rows whose tiles do not fit into 32 bits when they are rounded up with a sum.
    l.refuses(KQM_BAD_SHAPE, tiles, |a| (a.rows, a.cols) = (u32::MAX, 16384));
    l.launches(tiles, |a| (a.rows, a.cols, a.blocks) = (0x1fff_fff0, 16384, nowhere));
    l.refuses(KQM_BAD_SHAPE, tiles, |a| (a.rows, a.experts) = (17, 0x4000_0000));
    l.launches(tiles, |a| (a.rows, a.experts, a.blocks) = (17, 0x3fff_ffff, nowhere));
    l.starting_with(kqm_repack_args { type_: KQM_TYPE_Q4_K, ..base });
}

fn float_matvec(table: &mut Table, kernels: &kqm_kernels) {
    let nowhere = table.nowhere::<f32>();
    let base = kqm_float_matvec_args {
        w: table.zeros::<f32>(32).cast(),
        x: table.zeros(32),
        y: table.zeros(1),
        type_: KQM_TYPE_F32,
        rows: 1,
        cols: 32,
        experts: 1,
        count: 1,
        ranks: 1,
        share: 1,
        ..Default::default()
    };
    let (indices, weights, other) = (table.zeros(32), table.zeros(32), table.zeros(1));
    let mut l = Launcher::new(table, "float_matvec.cu", kernels.float_matvec, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->w", |a| a.w = null());
    l.refuses(KQM_NULL_POINTER, "args->x", |a| a.x = null());
    l.refuses(KQM_NULL_POINTER, "args->y", |a| a.y = null());
    let types = "args->type == KQM_TYPE_F32 || args->type == KQM_TYPE_F16 || args->type == KQM_TYPE_BF16";
    for other in [2, 8, 12, 28, 31, u32::MAX] {
        l.refuses(KQM_UNSUPPORTED_TYPE, types, |a| a.type_ = other);
    }
    l.takes(types, "args->type == KQM_TYPE_F32", |_| {});
    l.takes(types, "args->type == KQM_TYPE_F16", |a| a.type_ = KQM_TYPE_F16);
    l.takes(types, "args->type == KQM_TYPE_BF16", |a| a.type_ = KQM_TYPE_BF16);
    l.refuses(KQM_BAD_SHAPE, "args->rows > 0", |a| a.rows = 0);
    l.refuses(KQM_BAD_SHAPE, "args->rows <= kqm_max_rows", |a| a.rows = 0x7fff_fff1);
    l.launches("args->rows <= kqm_max_rows", |a| (a.rows, a.x) = (0x7fff_fff0, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->cols > 0", |a| a.cols = 0);
    for cols in [1, 16, 33] {
        l.refuses(KQM_BAD_SHAPE, "args->cols % 32 == 0", |a| a.cols = cols);
    }
    l.refuses(KQM_BAD_SHAPE, "args->cols <= kqm_max_cols", |a| a.cols = 16384 + 32);
    l.launches("args->cols <= kqm_max_cols", |a| (a.cols, a.w) = (16384, nowhere.cast()));
    l.refuses(KQM_BAD_SHAPE, "args->count > 0", |a| a.count = 0);
    l.refuses(KQM_BAD_SHAPE, "args->count <= 0x7fffffffu", |a| a.count = 0x8000_0000);
    l.launches("args->count <= 0x7fffffffu", |a| (a.count, a.x) = (0x7fff_ffff, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->ranks > 0", |a| a.ranks = 0);
    l.refuses(KQM_BAD_SHAPE, "args->ranks <= KQM_MAX_TOP_K", |a| (a.ranks, a.weights) = (33, weights));
    l.launches("args->ranks <= KQM_MAX_TOP_K", |a| (a.ranks, a.weights, a.x) = (32, weights, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->share > 0", |a| a.share = 0);
    l.refuses(KQM_BAD_SHAPE, "args->experts > 0", |a| (a.experts, a.indices) = (0, indices));
    let which = "args->indices != nullptr || args->experts == 1";
    l.refuses(KQM_BAD_SHAPE, which, |a| a.experts = 2);
    l.takes(which, "args->experts == 1", |_| {});
    l.takes(which, "args->indices != nullptr", |a| (a.experts, a.indices) = (2, indices));
    let ranks = "args->weights != nullptr || args->ranks == 1";
    l.refuses(KQM_NULL_POINTER, ranks, |a| a.ranks = 2);
    l.takes(ranks, "args->ranks == 1", |_| {});
    l.takes(ranks, "args->weights != nullptr", |a| (a.ranks, a.share, a.weights) = (2, 2, weights));
    let sum = "args->weights != nullptr || args->sum == nullptr";
    l.refuses(KQM_NULL_POINTER, sum, |a| a.sum = other);
    l.takes(sum, "args->sum == nullptr", |_| {});
    l.takes(sum, "args->weights != nullptr", |a| (a.sum, a.weights) = (other, weights));
    let halves = "args->gate == nullptr || args->up == nullptr";
    l.refuses(KQM_BAD_SHAPE, halves, |a| (a.gate, a.up) = (other, other));
    l.takes(halves, "args->gate == nullptr", |a| a.up = other);
    l.takes(halves, "args->up == nullptr", |a| a.gate = other);
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->w, 16)", |a| a.w = shifted(a.w));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->x, 16)", |a| a.x = shifted(a.x));
}

fn residual_add(table: &mut Table, kernels: &kqm_kernels) {
    let (a, b, y, nowhere) = (table.zeros(1), table.zeros(1), table.zeros(1), table.nowhere::<f32>());
    let base = kqm_residual_add_args { a, b, y, count: 1 };
    let mut l = Launcher::new(table, "residual_add.cu", kernels.residual_add, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->a", |a| a.a = null());
    l.refuses(KQM_NULL_POINTER, "args->b", |a| a.b = null());
    l.refuses(KQM_NULL_POINTER, "args->y", |a| a.y = null());
    l.refuses(KQM_BAD_SHAPE, "args->count > 0", |a| a.count = 0);
    let most = 0x7fff_ffff * 256;
    l.refuses(KQM_BAD_SHAPE, "args->count <= uint64_t(0x7fffffff) * 256", |a| a.count = most + 1);
    l.launches("args->count <= uint64_t(0x7fffffff) * 256", |a| (a.count, a.a) = (most, nowhere));
}

fn rms_norm(table: &mut Table, kernels: &kqm_kernels) {
    let nowhere = table.nowhere::<f32>();
    let base = kqm_rms_norm_args {
        x: table.zeros(256),
        weight: table.zeros(256),
        out: table.zeros(256),
        fixed: table.zeros(1),
        tokens: 1,
        cols: 256,
        eps: 1e-6,
        width: 256,
    };
    let mut l = Launcher::new(table, "rms_norm.cu", kernels.rms_norm, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->x != nullptr", |a| a.x = null());
    l.refuses(KQM_NULL_POINTER, "args->weight != nullptr", |a| a.weight = null());
    let results = "args->out != nullptr || args->fixed != nullptr";
    l.refuses(KQM_NULL_POINTER, results, |a| (a.out, a.fixed) = (null(), null()));
    l.takes(results, "args->out != nullptr", |a| a.fixed = null());
    l.takes(results, "args->fixed != nullptr", |a| a.out = null());
    l.refuses(KQM_BAD_SHAPE, "args->tokens > 0", |a| a.tokens = 0);
    l.refuses(KQM_BAD_SHAPE, "args->tokens <= 0x7fffffffu", |a| a.tokens = 0x8000_0000);
    l.launches("args->tokens <= 0x7fffffffu", |a| (a.tokens, a.x) = (0x7fff_ffff, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->cols > 0", |a| a.cols = 0);
    for cols in [1, 128, 257] {
        l.refuses(KQM_BAD_SHAPE, "args->cols % KQM_BLOCK == 0", |a| a.cols = cols);
    }
    l.refuses(KQM_BAD_SHAPE, "args->cols <= kqm_max_cols", |a| a.cols = 16384 + 256);
    l.launches("args->cols <= kqm_max_cols", |a| (a.cols, a.weight) = (16384, nowhere));
    l.refuses(KQM_BAD_SHAPE, "args->width > 0", |a| a.width = 0);
    l.refuses(KQM_BAD_SHAPE, "args->width <= args->cols", |a| a.width = 257);
    l.launches("args->width <= args->cols", |a| a.weight = nowhere);
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->x, 16)", |a| a.x = shifted(a.x));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->weight, 16)", |a| a.weight = shifted(a.weight));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->out, 16)", |a| a.out = shifted(a.out));
    l.refuses(KQM_MISALIGNED, "kqm_aligned(args->fixed, 16)", |a| a.fixed = shifted(a.fixed));
}

/// What the launchers demand: the parts of every condition that must all hold, by file.
fn conditions() -> BTreeSet<(String, String)> {
    let cuda = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let mut all = BTreeSet::new();
    for directory in ["", "common/"] {
        for file in fs::read_dir(cuda.join(directory)).unwrap() {
            let path = file.unwrap().path();
            let Some("cu" | "cuh") = path.extension().map(|extension| extension.to_str().unwrap()) else { continue };
            let name = format!("{directory}{}", path.file_name().unwrap().to_str().unwrap());
            let source = fs::read_to_string(&path).unwrap();
            // What a macro makes for all launchers is not for each of them to demand.
            let mut in_macro = false;
            let code = source.lines().filter(|line| {
                let skipped = in_macro || line.starts_with("#define");
                in_macro = skipped && line.ends_with('\\');
                !skipped
            });
            let code: Vec<&str> = code.map(|line| line.split("//").next().unwrap()).collect();
            let code = code.join(" ");
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            for rest in code.split("KQM_REQUIRE(").skip(1) {
                let arguments = inside(rest);
                let (condition, _status) = arguments.rsplit_once(',').unwrap();
                for part in conjuncts(&words(condition)) {
                    assert!(all.insert((name.clone(), part.clone())), "{name}: {part} is demanded twice");
                }
            }
            for rest in code.split("KQM_TRY(").skip(1) {
                let call = words(inside(rest));
                // What a kernel's launch comes to is no condition on arguments.
                if !call.starts_with("KQM_LAUNCH") {
                    all.insert((name.clone(), format!("KQM_TRY({call})")));
                }
            }
        }
    }
    all
}

/// The text up to the bracket that closes one opened before it.
fn inside(text: &str) -> &str {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            return &text[..at];
        }
    }
    panic!("no end of {text}")
}

/// The text at an operator, where that is not in brackets.
fn split<'a>(text: &'a str, operator: &str) -> Vec<&'a str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 && text[at..].starts_with(operator) {
            parts.push(text[begin..at].trim());
            begin = at + operator.len();
        }
    }
    parts.push(text[begin..].trim());
    parts
}

fn sample(table: &mut Table, kernels: &kqm_kernels) {
    let nowhere = table.nowhere::<f32>();
    let base = kqm_sample_args {
        x: table.zeros(1),
        sampling: table.zeros(1),
        position: table.zeros(1),
        history: table.zeros(1),
        out: table.zeros(1),
        state: table.zeros(1),
        parts: table.zeros(1),
        history_len: 1,
        advance: 0,
        rows: 1,
        cols: 1,
    };
    let mut l = Launcher::new(table, "sample.cu", kernels.sample, base);
    l.refuses_null();
    l.refuses(KQM_NULL_POINTER, "args->x", |a| a.x = null());
    l.refuses(KQM_NULL_POINTER, "args->sampling", |a| a.sampling = null());
    l.refuses(KQM_NULL_POINTER, "args->position", |a| a.position = null());
    l.refuses(KQM_NULL_POINTER, "args->out", |a| a.out = null());
    l.refuses(KQM_NULL_POINTER, "args->state", |a| a.state = null());
    l.refuses(KQM_NULL_POINTER, "args->parts", |a| a.parts = null());
    let history = "args->history != nullptr || args->history_len == 0";
    l.refuses(KQM_NULL_POINTER, history, |a| a.history = null());
    l.takes(history, "args->history != nullptr", |_| {});
    l.takes(history, "args->history_len == 0", |a| (a.history, a.history_len) = (null(), 0));
    l.refuses(KQM_BAD_SHAPE, "args->rows > 0", |a| a.rows = 0);
    l.refuses(KQM_BAD_SHAPE, "args->rows <= 65535", |a| a.rows = 65536);
    l.refuses(KQM_BAD_SHAPE, "args->cols > 0", |a| a.cols = 0);
    l.refuses(KQM_BAD_SHAPE, "args->cols <= 1u << 24", |a| a.cols = (1 << 24) + 1);
    l.refuses(KQM_BAD_SHAPE, "args->advance <= 1", |a| a.advance = 2);
    l.launches("args->rows <= 65535", |a| (a.rows, a.x) = (65535, nowhere));
    l.launches("args->cols <= 1u << 24", |a| (a.cols, a.x) = (1 << 24, nowhere));
    l.launches("args->advance <= 1", |a| (a.advance, a.x) = (1, nowhere));
}

/// The parts of a condition that must all hold: an alternative to several of them is one to each.
fn conjuncts(condition: &str) -> Vec<String> {
    let condition = match condition.strip_prefix('(') {
        Some(rest) if inside(rest).len() + 1 == rest.len() => inside(rest),
        _ => condition,
    };
    let all = split(condition, "&&");
    if all.len() > 1 {
        return all.into_iter().flat_map(conjuncts).collect();
    }
    let alternatives = split(condition, "||");
    if alternatives.len() == 1 {
        return vec![condition.to_owned()];
    }
    alternatives.into_iter().map(conjuncts).fold(vec![String::new()], |before, parts| {
        let join = |before: &String| {
            let with = |part: &String| if before.is_empty() { part.clone() } else { format!("{before} || {part}") };
            parts.iter().map(with).collect::<Vec<_>>()
        };
        before.iter().flat_map(join).collect()
    })
}

#[test]
fn every_condition_is_demanded() {
    let Some(device) = emulated_device() else { return };
    emulation::set_schedule(0);
    let (mut table, kernels) = (Table::default(), device.kernels());
    let launchers = [
        argmax,
        attention,
        embedding,
        float_matvec,
        matvec,
        moe_down,
        moe_group,
        moe_layer,
        moe_router,
        moe_swiglu,
        q4_k_matvec,
        q6_k_gemv,
        qkv,
        quantize,
        repack,
        residual_add,
        rms_norm,
        rope,
        sample,
    ];
    // All of the table but the three functions that only count, and the texts.
    assert_eq!(launchers.len() + 4, size_of::<kqm_kernels>() / size_of::<usize>());
    for launcher in launchers {
        launcher(&mut table, kernels);
    }

    let expected = conditions();
    let owned = |shown: &BTreeSet<Shown>| -> BTreeSet<(String, String)> {
        shown.iter().map(|(file, condition)| (file.to_string(), condition.clone())).collect()
    };
    assert_covers("conditions that are broken", &owned(&table.refused), &expected);
    let bounded = |(_, condition): &&(String, String)| condition.contains(" < ") || condition.contains(" <= ");
    let bounds = expected.iter().filter(bounded).cloned().collect();
    assert_covers("upper bounds that are reached", &owned(&table.at_bound), &bounds);
    let alternatives =
        expected.iter().filter(|(_, condition)| !condition.starts_with("KQM_TRY")).flat_map(|(file, condition)| {
            let alternatives = split(condition, "||");
            let several = alternatives.len() > 1;
            let each = move |alternative: &str| (file.clone(), format!("{condition}, by {alternative}"));
            alternatives.into_iter().filter(move |_| several).map(each).collect::<Vec<_>>()
        });
    let taken = table.alternatives.iter();
    let taken = taken.map(|(file, condition, by)| (file.to_string(), format!("{condition}, by {by}"))).collect();
    assert_covers("alternatives that are taken", &taken, &alternatives.collect());
    println!("{} conditions, {} cases", expected.len(), table.cases);
}

fn assert_covers(what: &str, found: &BTreeSet<(String, String)>, expected: &BTreeSet<(String, String)>) {
    let missing: Vec<_> = expected.difference(found).collect();
    let stale: Vec<_> = found.difference(expected).collect();
    assert!(missing.is_empty() && stale.is_empty(), "{what}: missing {missing:#?}, no longer there {stale:#?}");
}

#[test]
fn conditions_are_cut_into_parts() {
    for (condition, expected) in [
        ("a", vec!["a"]),
        ("a && b->c(d && e) && (f)", vec!["a", "b->c(d && e)", "f"]),
        ("a && (b || c)", vec!["a", "b || c"]),
        ("!a || (b == 1 && c * (d / 2) <= 3)", vec!["!a || b == 1", "!a || c * (d / 2) <= 3"]),
    ] {
        assert_eq!(conjuncts(condition), expected);
    }
}
