//! One operand at a time: of every wrapper each operand is shortened alone by one element, each matrix and grouping is
//! swapped for one of another shape, and each count is broken. The wrapper must refuse with the error that names the
//! kernel and the operand, and take the complete set.
//!
//! A complete set takes its operands from [`Set`], which knows the one that is to be wrong. What the sets of a wrapper
//! take is compared with the fields of its structures in `src/kernels/`, so that no operand is left out here.

#[path = "common/kernels.rs"]
mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use common::*;
use kquant_moe::blocks::TensorType::{self, *};
use kquant_moe::device::{Buffer, Plain, Slice, SliceMut};
use kquant_moe::kernels::{self, *};
use kquant_moe::{Error, Result, sys};

/// What must come of a mistake.
#[derive(Clone, Debug, PartialEq)]
enum Refusal {
    /// The wrapper refuses, in a message that begins so.
    Invalid(String),
    /// The launcher of the kernel refuses.
    Status(sys::kqm_status),
}

fn invalid(kernel: &str, operand: &str) -> Refusal {
    Refusal::Invalid(format!("{kernel}: {operand}"))
}

fn too_few(name: &str, found: usize) -> Refusal {
    Refusal::Invalid(format!("{name} has {found} elements"))
}

fn foreign(name: &str) -> Refusal {
    Refusal::Invalid(format!("{name} lies on another device"))
}

const BAD_SHAPE: Refusal = Refusal::Status(sys::KQM_BAD_SHAPE);

/// A mistake in a set: the field, and which of the field's mistakes it is.
#[derive(Clone, Debug)]
struct Mistake {
    field: &'static str,
    number: usize,
    /// Whether a count is wrong. Memory then is said to be endless, so that it is not too short for the count.
    of_count: bool,
    refusal: Refusal,
}

type Memory<T> = Buffer<EmulatedDevice, T>;

/// A source of the operands of one launch, all of them right but for one.
struct Set {
    device: EmulatedDevice,
    mistake: Option<Mistake>,
    /// All that can be made.
    mistakes: RefCell<Vec<Mistake>>,
    /// Fields asked for, also those that cannot be wrong.
    fields: RefCell<BTreeSet<&'static str>>,
}

impl Set {
    fn new(device: &EmulatedDevice, mistake: Option<Mistake>) -> Self {
        Self { device: device.clone(), mistake, mistakes: RefCell::default(), fields: RefCell::default() }
    }

    /// Which mistake is to be made in this field, if any.
    fn choose(&self, field: &'static str, of_count: bool, refusals: &[Refusal]) -> Option<usize> {
        self.fields.borrow_mut().insert(field);
        let all = refusals.iter().cloned().enumerate();
        self.mistakes.borrow_mut().extend(all.map(|(number, refusal)| Mistake { field, number, of_count, refusal }));
        self.mistake.as_ref().filter(|mistake| mistake.field == field).map(|mistake| mistake.number)
    }

    /// The device and the length that are said of an operand, which the wrapper calls `name`, as "kernel: operand".
    /// `short` is what comes of an element too few; memory of another device is no operand at all.
    fn place(&self, field: &'static str, name: &str, short: Refusal, len: usize) -> (EmulatedDevice, usize) {
        let device = self.device.clone();
        match self.choose(field, false, &[foreign(name), short]) {
            Some(0) => (device.other(), len),
            Some(_) => (device, len - 1),
            None if self.mistake.as_ref().is_some_and(|mistake| mistake.of_count) => (device, usize::MAX),
            None => (device, len),
        }
    }

    /// An operand that a kernel reads.
    fn read<'b, T: Plain>(&self, field: &'static str, name: &str, buffer: &'b Memory<T>) -> Slice<'b, T> {
        let (device, len) = self.place(field, name, too_few(name, buffer.len() - 1), buffer.len());
        // SAFETY: where it is not the buffer's memory that is said the launch is refused.
        unsafe { Slice::from_raw(&device, buffer.slice().as_ptr() as u64, len) }
    }

    /// An operand that a kernel writes.
    fn write<'b, T: Plain>(&self, field: &'static str, name: &str, buffer: &'b mut Memory<T>) -> SliceMut<'b, T> {
        self.write_as(field, name, too_few(name, buffer.len() - 1), buffer)
    }

    /// The same, with something else coming of an element too few.
    fn write_as<'b, T: Plain>(
        &self,
        field: &'static str,
        name: &str,
        short: Refusal,
        buffer: &'b mut Memory<T>,
    ) -> SliceMut<'b, T> {
        let (device, len) = self.place(field, name, short, buffer.len());
        // SAFETY: where it is not the buffer's memory that is said the launch is refused.
        unsafe { SliceMut::from_raw(&device, buffer.slice_mut().as_ptr() as u64, len) }
    }

    /// An operand of any length: its length says how much is to be done. `endless` is what comes of one that is too
    /// long.
    fn any_length<'b, T: Plain>(
        &self,
        field: &'static str,
        name: &str,
        endless: Refusal,
        buffer: &'b mut Memory<T>,
    ) -> SliceMut<'b, T> {
        let device = self.device.clone();
        let (device, len) = match self.choose(field, false, &[foreign(name), endless]) {
            Some(0) => (device.other(), buffer.len()),
            Some(_) => (device, usize::MAX),
            None => (device, buffer.len()),
        };
        // SAFETY: where it is not the buffer's memory that is said the launch is refused.
        unsafe { SliceMut::from_raw(&device, buffer.slice_mut().as_ptr() as u64, len) }
    }

    /// The first one, which is right, or one of the others, which are not.
    fn one_of<T>(&self, field: &'static str, right: T, wrong: impl IntoIterator<Item = (T, Refusal)>) -> T {
        let (mut wrong, refusals): (Vec<T>, Vec<Refusal>) = wrong.into_iter().unzip();
        match self.choose(field, false, &refusals) {
            Some(number) => wrong.swap_remove(number),
            None => right,
        }
    }

    /// A count, and what comes of others.
    fn count_as(&self, field: &'static str, right: usize, wrong: &[(usize, Refusal)]) -> usize {
        let refusals: Vec<Refusal> = wrong.iter().map(|(_, refusal)| refusal.clone()).collect();
        self.choose(field, true, &refusals).map_or(right, |number| wrong[number].0)
    }

    /// A count that the wrapper calls `name`. None at all is for the launcher to refuse.
    fn count(&self, field: &'static str, name: &str, right: usize) -> usize {
        self.count_as(field, right, &[(0, BAD_SHAPE), large(name), endless(name)])
    }

    /// A count of columns, which come in super-blocks of 256.
    fn cols(&self, field: &'static str, name: &str, right: usize) -> usize {
        let (one_more, half) = ((right + 1, BAD_SHAPE), (right - 128, BAD_SHAPE));
        self.count_as(field, right, &[(0, BAD_SHAPE), one_more, half, large(name), endless(name)])
    }

    /// A count of columns that count.
    fn width(&self, field: &'static str, name: &str, cols: usize) -> usize {
        self.count_as(field, cols, &[(0, BAD_SHAPE), (cols + 1, BAD_SHAPE), large(name), endless(name)])
    }

    /// Tokens that must be those of a grouping.
    fn grouped_tokens(&self, field: &'static str, kernel: &str, right: usize) -> usize {
        let mistake = |tokens| (tokens, invalid(kernel, "groups hold "));
        self.count_as(field, right, &[mistake(0), mistake(right + 1), mistake(1 << 32), endless(kernel)])
    }

    /// Experts of a token that must be those of a grouping.
    fn grouped_top_k(&self, field: &'static str, kernel: &str) -> usize {
        let mistake = |top_k| (top_k, invalid(kernel, "groups hold "));
        self.count_as(field, TOP_K, &[mistake(0), mistake(TOP_K - 1), mistake(1 << 32), endless(kernel)])
    }

    /// Groups of a batch of two tokens, or of another one.
    fn groups_of_two(&self, field: &'static str, kernel: &str) -> Option<Groups<EmulatedDevice>> {
        let refusal = invalid(kernel, "groups hold ");
        let wrong = [
            self.groups(3, EXPERTS, TOP_K),
            self.groups(2, EXPERTS + 1, TOP_K),
            self.groups(2, EXPERTS, TOP_K + 1),
            // Room that nothing has been grouped in.
            ok(Groups::new(&self.device, 2, EXPERTS, TOP_K)),
        ];
        let elsewhere = (self.elsewhere().groups(2, EXPERTS, TOP_K), foreign(&format!("{kernel}: groups")));
        let wrong = wrong.map(|groups| (groups, refusal.clone())).into_iter().chain([elsewhere]);
        // Or none at all.
        let wrong = wrong.map(|(groups, refusal)| (Some(groups), refusal)).chain([(None, refusal.clone())]);
        self.one_of(field, Some(self.groups(2, EXPERTS, TOP_K)), wrong)
    }

    fn zeros<T: Plain>(&self, len: usize) -> Memory<T> {
        ok(Buffer::zeroed(&self.device, len))
    }

    /// A source of memory of another device.
    fn elsewhere(&self) -> Self {
        Self::new(&self.device.clone().other(), None)
    }

    fn matrix(&self, kind: TensorType, experts: usize, rows: usize, cols: usize) -> Matrix<EmulatedDevice> {
        Weights::random(&mut Random::new(1), kind, experts, rows, cols).upload(&self.device)
    }

    /// Groups of a batch in which every token has the first experts, in room for just that.
    fn groups(&self, tokens: usize, experts: usize, top_k: usize) -> Groups<EmulatedDevice> {
        let indices: Vec<u32> = (0..tokens).flat_map(|_| 0..top_k as u32).collect();
        moe::group(&self.device, &input(&self.device, &indices), tokens, experts, top_k)
    }
}

/// A count that does not fit into 32 bits.
fn large(name: &str) -> (usize, Refusal) {
    (1 << 32, Refusal::Invalid(format!("{name} = 4294967296 is too large")))
}

/// A count whose products do not fit into 64 bits: which of them is found first does not matter.
fn endless(name: &str) -> (usize, Refusal) {
    (usize::MAX, Refusal::Invalid(format!("{}: ", name.split(':').next().unwrap())))
}

/// A complete set of operands of one wrapper, launched.
type Launch = fn(&Set) -> Result<()>;

/// Of each wrapper, sets in which all of its operands occur. `kernel` is the name that errors of the launcher have.
const SETS: &[(&str, &str, &[Launch])] = &[
    ("Argmax", "argmax", &[argmax]),
    ("Attention", "attention", &[attention_rotated, attention_fused]),
    ("Embedding", "embedding", &[embedding::<0>, embedding::<1>, embedding::<12>, embedding::<14>, embedding::<30>]),
    ("FloatMatvec", "float_matvec", &[float_matvec_gate, float_matvec_up]),
    ("Matvec", "q4_k_matvec", &[matvec_of_any_type]),
    ("MoeDown", "moe_down", &[moe_down_fixed::<0>, moe_down_fixed::<1>, moe_down_fixed::<30>, moe_down_rows]),
    ("MoeGroup", "moe_group", &[moe_group]),
    ("MoeLayer", "moe_layer", &[moe_layer::<0>, moe_layer::<1>, moe_layer::<30>]),
    ("MoeRouter", "moe_router", &[moe_router_rows, moe_router_norm]),
    ("MoeSwiglu", "moe_swiglu", &[moe_swiglu_made, moe_swiglu_here]),
    ("Q4KMatvec", "q4_k_matvec", &[q4_k_matvec]),
    ("Q6KGemv", "q6_k_gemv", &[q6_k_gemv]),
    ("Qkv", "qkv", &[qkv_fixed, qkv_norm]),
    ("Quantize", "quantize", &[quantize::<0>, quantize::<1>, quantize::<30>]),
    ("Repack", "repack", &[repack]),
    ("ResidualAdd", "residual_add", &[residual_add]),
    ("RmsNorm", "rms_norm", &[rms_norm]),
    ("Rope", "rope", &[rope]),
    ("Sample", "sample", &[sample]),
];

fn argmax(set: &Set) -> Result<()> {
    let (rows, cols) = (2, 5);
    let x = set.zeros(rows * cols);
    let (mut out, mut partial, mut done) = (set.zeros(rows), set.zeros(rows), set.zeros(rows));
    let (mut position, mut history) = (set.zeros(rows), set.zeros(rows * 3));
    Argmax::new(
        set.read("Argmax.x", "argmax: x", &x),
        set.write("Argmax.out", "argmax: out", &mut out),
        set.write("Argmax.partial", "argmax: partial", &mut partial),
        set.write("Argmax.done", "argmax: done", &mut done),
        [set.count("Argmax.rows", "argmax: rows", rows), set.count("Argmax.cols", "argmax: cols", cols)],
    )
    .feed(DecodeLoop::new(
        set.write("DecodeLoop.position", "argmax: feed.position", &mut position),
        set.any_length(
            "DecodeLoop.history",
            "argmax: feed.history",
            invalid("argmax", "feed.history = 9223372036854775807 is too large"),
            &mut history,
        ),
    ))
    .launch(&set.device)
}

fn sample(set: &Set) -> Result<()> {
    let (rows, cols, history_len) = (2, 5, 3);
    let x = set.zeros(rows * cols);
    let sampling = set.zeros(rows);
    let (mut position, mut out, mut state, mut parts) =
        (set.zeros(rows), set.zeros(rows), set.zeros(rows), set.zeros(rows * Sample::parts(cols)));
    let mut history = set.zeros(rows * history_len);
    let histories = [large("sample: history_len"), endless("sample: history_len")];
    Sample::new(
        set.read("Sample.x", "sample: x", &x),
        (
            set.read("Sample.sampling", "sample: sampling", &sampling),
            set.write("Sample.position", "sample: position", &mut position),
        ),
        set.write("Sample.out", "sample: out", &mut out),
        (
            set.write("Sample.state", "sample: state", &mut state),
            set.write("Sample.parts", "sample: parts", &mut parts),
        ),
        [set.count("Sample.rows", "sample: rows", rows), set.count("Sample.cols", "sample: cols", cols)],
    )
    .history(
        set.write("Sample.history", "sample: history", &mut history),
        set.count_as("Sample.history_len", history_len, &histories),
    )
    .advance(true)
    .launch(&set.device)
}

/// Shapes of `rope` and `attention`.
const CAPACITY: usize = 70;
const SEQUENCES: usize = 2;
const POOL_PAGES: usize = 3;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;

/// The memory of a batch.
struct BatchMemory([Memory<u32>; 3]);

impl BatchMemory {
    fn new(set: &Set, tokens: usize) -> Self {
        Self([tokens, tokens, SEQUENCES * CAPACITY.div_ceil(Batch::PAGE)].map(|len| set.zeros(len)))
    }

    /// The operands, of a kernel of that name.
    fn operands(&self, set: &Set, kernel: &str, tokens: usize) -> Batch<'_> {
        let name = |operand| format!("{kernel}: batch.{operand}");
        let Self([position, sequence, pages]) = self;
        // A number that may be 0 but not larger than another.
        let at_most = |field, operand, most: usize| {
            let refusals = [(most + 1, BAD_SHAPE), large(&name(operand)), endless(&name(operand))];
            set.count_as(field, most, &refusals)
        };
        Batch::new(
            [
                set.read("Batch.position", &name("position"), position),
                set.read("Batch.sequence", &name("sequence"), sequence),
                set.read("Batch.pages", &name("pages"), pages),
            ],
            [
                set.count("Batch.tokens", &name("tokens"), tokens),
                set.count("Batch.sequences", &name("sequences"), SEQUENCES),
            ],
            [
                set.count("Batch.capacity", &name("capacity"), CAPACITY),
                set.count("Batch.pool_pages", &name("pool_pages"), POOL_PAGES),
            ],
        )
        .reach(at_most("Batch.reach", "reach", CAPACITY))
        .singles(at_most("Batch.singles", "singles", tokens))
    }
}

/// The memory of `rope`.
struct RopeMemory {
    q: Memory<f32>,
    q_out: Memory<f32>,
    k: Memory<f32>,
    v: Memory<f32>,
    q_weight: Memory<f32>,
    k_weight: Memory<f32>,
    table: Memory<f32>,
    q_normed: Memory<f32>,
    k_normed: Memory<f32>,
    k_out: Memory<f32>,
}

impl RopeMemory {
    fn new(set: &Set, tokens: usize) -> Self {
        let (q, kv) = (tokens * HEADS * HEAD_DIM, tokens * KV_HEADS * HEAD_DIM);
        Self {
            q: set.zeros(q),
            q_out: set.zeros(q),
            k: set.zeros(kv),
            v: set.zeros(kv),
            q_weight: set.zeros(HEAD_DIM),
            k_weight: set.zeros(HEAD_DIM),
            table: set.zeros(CAPACITY * HEAD_DIM),
            q_normed: set.zeros(q),
            k_normed: set.zeros(kv),
            k_out: set.zeros(kv),
        }
    }

    fn operands<'a>(
        &'a mut self,
        set: &Set,
        batch: &'a BatchMemory,
        [k_cache, v_cache]: [&'a mut Memory<u8>; 2],
        tokens: usize,
    ) -> Rope<'a> {
        Rope::new(
            [
                set.read("Rope.q", "rope: q", &self.q),
                set.read("Rope.k", "rope: k", &self.k),
                set.read("Rope.v", "rope: v", &self.v),
            ],
            set.write("Rope.q_out", "rope: q_out", &mut self.q_out),
            set.read("Rope.table", "rope: table", &self.table),
            batch.operands(set, "rope", tokens),
            CacheMut::new(
                [
                    set.write("Rope.k_cache", "rope: k_cache", k_cache),
                    set.write("Rope.v_cache", "rope: v_cache", v_cache),
                ],
                F16,
                [
                    set.count("Rope.kv_heads", "rope: kv_heads", KV_HEADS),
                    set.count("Rope.head_dim", "rope: head_dim", HEAD_DIM),
                ],
            ),
            set.count("Rope.heads", "rope: heads", HEADS),
            1e-6,
        )
        .q_weight(set.read("Rope.q_weight", "rope: q_weight", &self.q_weight))
        .k_weight(set.read("Rope.k_weight", "rope: k_weight", &self.k_weight))
        .q_normed(set.write("Rope.q_normed", "rope: q_normed", &mut self.q_normed))
        .k_normed(set.write("Rope.k_normed", "rope: k_normed", &mut self.k_normed))
        .k_out(set.write("Rope.k_out", "rope: k_out", &mut self.k_out))
    }
}

fn caches(set: &Set) -> [Memory<u8>; 2] {
    let bytes = POOL_PAGES * Batch::PAGE * KV_HEADS * HEAD_DIM * F16.block_bytes();
    [set.zeros(bytes), set.zeros(bytes)]
}

fn rope(set: &Set) -> Result<()> {
    let (mut memory, batch, mut caches) = (RopeMemory::new(set, 2), BatchMemory::new(set, 2), caches(set));
    memory.operands(set, &batch, caches.each_mut(), 2).launch(&set.device)
}

/// The operands of `attention` but for the queries.
fn attention(set: &Set, tokens: usize, q: Queries<'_>) -> Result<()> {
    let workspace = ok(Attention::workspace_bytes(&set.device, CAPACITY, 1, HEADS, HEAD_DIM));
    let mut out = set.zeros(tokens * HEADS * HEAD_DIM);
    let mut fixed = set.zeros(tokens * HEADS * HEAD_DIM / 256);
    let (mut scores, mut workspace) = (set.zeros(tokens * HEADS * CAPACITY), set.zeros(workspace));
    let too_small = Refusal::Status(sys::KQM_WORKSPACE);
    Attention::new(
        q,
        set.write_as("Attention.workspace", "attention: workspace", too_small, &mut workspace),
        F16,
        [
            set.count("Attention.kv_heads", "attention: kv_heads", KV_HEADS),
            set.count("Attention.head_dim", "attention: head_dim", HEAD_DIM),
        ],
        set.count("Attention.heads", "attention: heads", HEADS),
        0.125,
    )
    .out(set.write("Attention.out", "attention: out", &mut out))
    .fixed(set.write("Attention.fixed", "attention: fixed", &mut fixed))
    .scores(set.write("Attention.scores", "attention: scores", &mut scores))
    .launch(&set.device)
}

fn attention_rotated(set: &Set) -> Result<()> {
    let (q, batch, [k_cache, v_cache]) = (set.zeros(2 * HEADS * HEAD_DIM), BatchMemory::new(set, 2), caches(set));
    let queries = Queries::rotated(
        set.read("Queries::Rotated.q", "attention: q", &q),
        [
            set.read("Queries::Rotated.k_cache", "attention: k_cache", &k_cache),
            set.read("Queries::Rotated.v_cache", "attention: v_cache", &v_cache),
        ],
        batch.operands(set, "attention", 2),
    );
    attention(set, 2, queries)
}

fn attention_fused(set: &Set) -> Result<()> {
    let (mut memory, batch, mut caches) = (RopeMemory::new(set, 1), BatchMemory::new(set, 1), caches(set));
    let rope = memory.operands(set, &batch, caches.each_mut(), 1);
    attention(set, 1, Queries::fused(rope, false))
}

fn embedding<const KIND: u32>(set: &Set) -> Result<()> {
    let kind = [F32, F16, BF16, Q4K, Q6K].into_iter().find(|&kind| kind as u32 == KIND).unwrap();
    let (vocab, cols, tokens) = (3, 512, 2);
    let table = set.zeros(vocab * cols / kind.block_len() * kind.block_bytes());
    let (ids, mut out) = (set.zeros(tokens), set.zeros(tokens * cols));
    Embedding::new(
        set.read("Embedding.table", "embedding: table", &table),
        kind,
        [set.count("Embedding.vocab", "embedding: vocab", vocab), set.cols("Embedding.cols", "embedding: cols", cols)],
        set.read("Embedding.ids", "embedding: ids", &ids),
        set.count("Embedding.tokens", "embedding: tokens", tokens),
        set.write("Embedding.out", "embedding: out", &mut out),
    )
    .launch(&set.device)
}

/// Weighted sums of two pairs, of which two have a row of x in common, behind a gate or in front of an up.
fn float_matvec(set: &Set, is_gate: bool) -> Result<()> {
    const NAME: &str = "float_matvec";
    let (count, ranks, rows, cols) = (4, 2, 5, 64);
    let pairs = count * ranks;
    let (x, experts, weights, half) =
        (set.zeros(pairs / 2 * cols), set.zeros(pairs), set.zeros(pairs), set.zeros(count * rows));
    let (mut y, mut product, mut sum) = (set.zeros(count * rows), set.zeros(pairs * rows), set.zeros(count * rows));
    let matrix = |set: &Set, rows, cols| ok(FloatMatrix::zeroed(&set.device, BF16, rows, cols, EXPERTS));
    let wrong = [
        (matrix(&set.elsewhere(), rows, cols), foreign("float_matvec: w")),
        (matrix(set, rows + 1, cols), invalid(NAME, "y has ")),
        (matrix(set, rows, cols + 32), invalid(NAME, "x has ")),
    ];
    let w = set.one_of("FloatMatvec.w", matrix(set, rows, cols), wrong);
    let launch = FloatMatvec::new(
        &w,
        set.read("FloatMatvec.x", "float_matvec: x", &x),
        set.write("FloatMatvec.y", "float_matvec: y", &mut y),
        set.count("FloatMatvec.count", "float_matvec: count", count),
    )
    .experts(
        set.read("FloatMatvec.experts", "float_matvec: experts", &experts),
        set.count_as(
            "FloatMatvec.share",
            2,
            &[(0, BAD_SHAPE), large("float_matvec: share"), endless("float_matvec: share")],
        ),
    )
    .weighted(
        set.read("FloatMatvec.weights", "float_matvec: weights", &weights),
        set.count("FloatMatvec.ranks", "float_matvec: ranks", ranks),
    )
    .accumulate(true)
    .product(set.write("FloatMatvec.product", "float_matvec: product", &mut product))
    .sum(set.write("FloatMatvec.sum", "float_matvec: sum", &mut sum));
    let launch = if is_gate {
        launch.gate(set.read("FloatMatvec.gate", "float_matvec: gate", &half))
    } else {
        launch.up(set.read("FloatMatvec.up", "float_matvec: up", &half))
    };
    launch.launch(&set.device)
}

fn float_matvec_gate(set: &Set) -> Result<()> {
    float_matvec(set, true)
}

fn float_matvec_up(set: &Set) -> Result<()> {
    float_matvec(set, false)
}

/// Shapes of the expert kernels.
const EXPERTS: usize = 4;
const TOP_K: usize = 2;

/// The operands of `moe_down` but for the activations.
fn moe_down(
    set: &Set,
    kind: u32,
    tokens: usize,
    x: DownInput<'_>,
    groups: Option<&Groups<EmulatedDevice>>,
) -> Result<()> {
    let (rows, cols) = (17, 512);
    let pairs = tokens * TOP_K;
    let (indices, weights) = (set.zeros(pairs), set.zeros(pairs));
    let (mut expert_out, mut sum) = (set.zeros(pairs * rows), set.zeros(tokens * rows));
    let mut y = FloatMemory::new(set, tokens * rows);
    let right = set.matrix(Q4K, EXPERTS, rows, cols);
    let experts = match tokens {
        1 => (set.matrix(Q4K, TOP_K - 1, rows, cols), BAD_SHAPE),
        _ => (set.matrix(Q4K, EXPERTS - 1, rows, cols), invalid("moe_down", "groups hold ")),
    };
    let wrong = [
        (set.elsewhere().matrix(Q4K, EXPERTS, rows, cols), foreign("moe_down: down")),
        (set.matrix(Q4K, EXPERTS, rows + 1, cols), invalid("moe_down", "expert_out has ")),
        (set.matrix(Q4K, EXPERTS, rows, cols + 256), invalid("moe_down", "x has ")),
        experts,
    ];
    let wrong = wrong.each_ref().map(|(matrix, refusal)| (matrix, refusal.clone()));
    MoeDown::new(
        set.one_of("MoeDown.down", &right, wrong),
        x,
        (
            set.read("MoeDown.indices", "moe_down: indices", &indices),
            set.read("MoeDown.weights", "moe_down: weights", &weights),
        ),
        groups,
        [
            set.grouped_tokens("MoeDown.tokens", "moe_down", tokens),
            match tokens {
                1 => set.count("MoeDown.top_k", "moe_down: top_k", TOP_K),
                _ => set.grouped_top_k("MoeDown.top_k", "moe_down"),
            },
        ],
        set.write("MoeDown.expert_out", "moe_down: expert_out", &mut expert_out),
        y.write(set, kind, "moe_down: y"),
    )
    .accumulate(true)
    .sum(set.write("MoeDown.sum", "moe_down: sum", &mut sum))
    .launch(&set.device)
}

fn moe_down_fixed<const KIND: u32>(set: &Set) -> Result<()> {
    let x = set.zeros(2 * TOP_K * 2);
    let x = DownInput::Fixed(set.read("DownInput::Fixed.0", "moe_down: x", &x));
    moe_down(set, KIND, 2, x, set.groups_of_two("MoeDown.groups", "moe_down").as_ref())
}

fn moe_down_rows(set: &Set) -> Result<()> {
    let x = set.zeros(TOP_K * 512);
    let x = DownInput::Rows(set.read("DownInput::Rows.0", "moe_down: x", &x));
    moe_down(set, 0, 1, x, None)
}

/// Memory of floats of any type.
struct FloatMemory {
    floats: Memory<f32>,
    halves: Memory<u16>,
}

impl FloatMemory {
    fn new(set: &Set, len: usize) -> Self {
        Self { floats: set.zeros(len), halves: set.zeros(len) }
    }

    fn read(&self, set: &Set, kind: u32, name: &str) -> Floats<'_> {
        match kind {
            sys::KQM_TYPE_F32 => set.read("Floats::F32.0", name, &self.floats).into(),
            sys::KQM_TYPE_F16 => Floats::F16(set.read("Floats::F16.0", name, &self.halves)),
            _ => Floats::BF16(set.read("Floats::BF16.0", name, &self.halves)),
        }
    }

    fn write(&mut self, set: &Set, kind: u32, name: &str) -> FloatsMut<'_> {
        match kind {
            sys::KQM_TYPE_F32 => set.write("FloatsMut::F32.0", name, &mut self.floats).into(),
            sys::KQM_TYPE_F16 => FloatsMut::F16(set.write("FloatsMut::F16.0", name, &mut self.halves)),
            _ => FloatsMut::BF16(set.write("FloatsMut::BF16.0", name, &mut self.halves)),
        }
    }
}

fn moe_layer<const KIND: u32>(set: &Set) -> Result<()> {
    const NAME: &str = "moe_layer";
    let (tokens, hidden, ff, rows) = (2, 512, 256, 17);
    let (x, router) = (FloatMemory::new(set, tokens * hidden), set.zeros(EXPERTS * hidden));
    let mut y = FloatMemory::new(set, tokens * rows);
    let matrix = |experts, rows, cols| set.matrix(Q4K, experts, rows, cols);
    let [gate, up, down] = [matrix(EXPERTS, ff, hidden), matrix(EXPERTS, ff, hidden), matrix(EXPERTS, rows, ff)];
    let kind = [F32, F16, BF16].into_iter().find(|&kind| kind as u32 == KIND).unwrap();
    let bytes = ok(MoeLayer::workspace_bytes(&set.device, [&gate, &up, &down], kind, [tokens, TOP_K]));
    let mut workspace = set.zeros(bytes);
    let others = [matrix(EXPERTS - 1, ff, hidden), matrix(EXPERTS, 2 * ff, hidden), matrix(EXPERTS, ff, hidden + 256)];
    let elsewhere = set.elsewhere().matrix(Q4K, EXPERTS, ff, hidden);
    let wrong = |operand: &str| {
        let others = others.iter().map(|other| (other, invalid(NAME, "up has shape ")));
        others.chain([(&elsewhere, foreign(&format!("{NAME}: {operand}")))]).collect::<Vec<_>>()
    };
    let wrong_down = [
        (set.elsewhere().matrix(Q4K, EXPERTS, rows, ff), foreign("moe_layer: down")),
        (matrix(EXPERTS, rows + 1, ff), invalid(NAME, "y has ")),
        (matrix(EXPERTS, rows, 2 * ff), BAD_SHAPE),
        (matrix(EXPERTS - 1, rows, ff), BAD_SHAPE),
    ];
    MoeLayer::new(
        x.read(set, KIND, "moe_layer: x"),
        set.read("MoeLayer.router", "moe_layer: router", &router),
        [
            set.one_of("MoeLayer.gate", &gate, wrong("gate")),
            set.one_of("MoeLayer.up", &up, wrong("up")),
            set.one_of(
                "MoeLayer.down",
                &down,
                wrong_down.each_ref().map(|(matrix, refusal)| (matrix, refusal.clone())),
            ),
        ],
        y.write(set, KIND, "moe_layer: y"),
        set.write_as("MoeLayer.workspace", "moe_layer: workspace", Refusal::Status(sys::KQM_WORKSPACE), &mut workspace),
        [
            set.count("MoeLayer.tokens", "moe_layer: tokens", tokens),
            set.count("MoeLayer.top_k", "moe_layer: top_k", TOP_K),
        ],
    )
    .accumulate(true)
    .launch(&set.device)
}

fn moe_group(set: &Set) -> Result<()> {
    // So many tokens that an expert more or less makes a difference to the work items.
    let (tokens, device) = (3, &set.device);
    let room = |tokens, experts, top_k| ok(Groups::new(device, tokens, experts, top_k));
    let indices = set.zeros(tokens * TOP_K);
    let mut groups = set.one_of(
        "MoeGroup.groups",
        room(tokens, EXPERTS, TOP_K),
        [
            (ok(Groups::new(&device.clone().other(), tokens, EXPERTS, TOP_K)), foreign("moe_group: groups.order")),
            (room(tokens - 1, EXPERTS, TOP_K), invalid("moe_group", "groups.order has ")),
            (room(tokens, EXPERTS - 1, TOP_K), invalid("moe_group", "groups.items has ")),
            (room(tokens, EXPERTS, TOP_K - 1), invalid("moe_group", "groups.order has ")),
        ],
    );
    let indices = set.read("MoeGroup.indices", "moe_group: indices", &indices);
    let one_more = |name| (1 << 31, invalid("moe_group", name));
    MoeGroup::new(
        indices,
        &mut groups,
        [
            set.count_as(
                "MoeGroup.tokens",
                tokens,
                &[(0, BAD_SHAPE), one_more("groups.order has "), large("moe_group: tokens"), endless("moe_group")],
            ),
            set.count_as(
                "MoeGroup.top_k",
                TOP_K,
                &[(0, BAD_SHAPE), one_more("groups.order has "), large("moe_group: top_k"), endless("moe_group")],
            ),
        ],
        set.count_as(
            "MoeGroup.experts",
            EXPERTS,
            &[(0, BAD_SHAPE), one_more("groups.items has "), large("moe_group: experts"), endless("moe_group")],
        ),
    )
    .launch(device)
}

/// The operands of `moe_router` but for the activations.
fn moe_router(set: &Set, x: RouterInput<'_>, tokens: usize, cols: usize) -> Result<()> {
    let (w, mut logits) = (set.zeros(EXPERTS * cols), set.zeros(tokens * EXPERTS));
    let (mut indices, mut weights) = (set.zeros(tokens * TOP_K), set.zeros(tokens * TOP_K));
    let mut done = set.zeros(tokens);
    MoeRouter::new(
        x,
        set.read("MoeRouter.w", "moe_router: w", &w),
        [
            set.count("MoeRouter.experts", "moe_router: experts", EXPERTS),
            set.cols("MoeRouter.cols", "moe_router: cols", cols),
        ],
        set.write("MoeRouter.logits", "moe_router: logits", &mut logits),
        set.count("MoeRouter.tokens", "moe_router: tokens", tokens),
        set.count("MoeRouter.top_k", "moe_router: top_k", TOP_K),
    )
    .choice(RouterChoice::new(
        set.write("RouterChoice.indices", "moe_router: indices", &mut indices),
        set.write("RouterChoice.weights", "moe_router: weights", &mut weights),
        set.write("RouterChoice.done", "moe_router: done", &mut done),
    ))
    .launch(&set.device)
}

fn moe_router_rows(set: &Set) -> Result<()> {
    let (tokens, cols) = (2, 512);
    let x = set.zeros(tokens * cols);
    let x = RouterInput::Rows(set.read("RouterInput::Rows.0", "moe_router: x", &x));
    moe_router(set, x, tokens, cols)
}

/// The memory of a fused norm.
struct NormMemory {
    x: Memory<f32>,
    weight: Memory<f32>,
    out: Memory<f32>,
}

impl NormMemory {
    fn new(set: &Set, cols: usize) -> Self {
        Self { x: set.zeros(cols), weight: set.zeros(cols), out: set.zeros(cols) }
    }

    fn operands(&mut self, set: &Set, kernel: &str) -> FusedNorm<'_> {
        let name = |operand| format!("{kernel}: norm.{operand}");
        FusedNorm::new(
            set.read("FusedNorm.x", &name("x"), &self.x),
            set.read("FusedNorm.weight", &name("weight"), &self.weight),
            norm::EPS,
            set.width("FusedNorm.width", &name("width"), self.x.len()),
        )
        .out(set.write("FusedNorm.out", &name("out"), &mut self.out))
    }
}

fn moe_router_norm(set: &Set) -> Result<()> {
    let cols = 512;
    let (mut norm, mut fixed) = (NormMemory::new(set, cols), set.zeros(cols / 256));
    let norm = norm.operands(set, "moe_router");
    let x = RouterInput::Norm(norm, set.write("RouterInput::Norm.1", "moe_router: fixed", &mut fixed));
    moe_router(set, x, 1, cols)
}

/// The operands of `moe_swiglu` but for the choice.
fn moe_swiglu(set: &Set, tokens: usize, choose: Choose<'_>, groups: Option<&Groups<EmulatedDevice>>) -> Result<()> {
    let (ff, cols) = (17, 512);
    let shape = tokens * TOP_K * ff;
    let (mut gate_out, mut up_out, mut out) = (set.zeros(shape), set.zeros(shape), set.zeros(shape));
    let x = set.zeros(tokens * cols / 256);
    let matrix = |experts, rows, cols| set.matrix(Q4K, experts, rows, cols);
    let (gate, up) = (matrix(EXPERTS, ff, cols), set.matrix(Q6K, EXPERTS, ff, cols));
    let others = [matrix(EXPERTS - 1, ff, cols), matrix(EXPERTS, ff - 1, cols), matrix(EXPERTS, ff, cols + 256)];
    let elsewhere = set.elsewhere().matrix(Q4K, EXPERTS, ff, cols);
    // The shape is the gate's.
    let wrong = |name| {
        let others = others.iter().map(|other| (other, invalid("moe_swiglu", "up has shape ")));
        others.chain([(&elsewhere, foreign(name))])
    };
    MoeSwiglu::new(
        [
            set.one_of("MoeSwiglu.gate", &gate, wrong("moe_swiglu: gate")),
            set.one_of("MoeSwiglu.up", &up, wrong("moe_swiglu: up")),
        ],
        set.read("MoeSwiglu.x", "moe_swiglu: x", &x),
        choose,
        groups,
        [
            set.grouped_tokens("MoeSwiglu.tokens", "moe_swiglu", tokens),
            match tokens {
                1 => set.count("MoeSwiglu.top_k", "moe_swiglu: top_k", TOP_K),
                _ => set.grouped_top_k("MoeSwiglu.top_k", "moe_swiglu"),
            },
        ],
        set.write("MoeSwiglu.out", "moe_swiglu: out", &mut out),
    )
    .gate_out(set.write("MoeSwiglu.gate_out", "moe_swiglu: gate_out", &mut gate_out))
    .up_out(set.write("MoeSwiglu.up_out", "moe_swiglu: up_out", &mut up_out))
    .launch(&set.device)
}

fn moe_swiglu_made(set: &Set) -> Result<()> {
    let indices = set.zeros(2 * TOP_K);
    let choose = Choose::Made(set.read("Choose::Made.0", "moe_swiglu: indices", &indices));
    moe_swiglu(set, 2, choose, set.groups_of_two("MoeSwiglu.groups", "moe_swiglu").as_ref())
}

fn moe_swiglu_here(set: &Set) -> Result<()> {
    let (logits, mut indices, mut weights) = (set.zeros(EXPERTS), set.zeros(TOP_K), set.zeros(TOP_K));
    let choose = Choose::here(
        set.read("Choose::Here.logits", "moe_swiglu: logits", &logits),
        set.write("Choose::Here.indices", "moe_swiglu: indices", &mut indices),
        set.write("Choose::Here.weights", "moe_swiglu: weights", &mut weights),
    );
    moe_swiglu(set, 1, choose, None)
}

/// The operands of a product with a matrix of the type `kind`; with another type `other`, by the wrapper that takes `kind` alone.
fn matvec(set: &Set, kernel: &str, kind: TensorType, other: Option<TensorType>) -> Result<()> {
    let (tokens, rows, cols) = (2, 17, 512);
    let name = |operand| format!("{kernel}: {operand}");
    let (x, mut y, mut product) = (set.zeros(tokens * cols / 256), set.zeros(tokens * rows), set.zeros(tokens * rows));
    let right = set.matrix(kind, 1, rows, cols);
    let wrong = [
        (set.elsewhere().matrix(kind, 1, rows, cols), foreign(&name("w"))),
        match other {
            Some(other) => (set.matrix(other, 1, rows, cols), Refusal::Status(sys::KQM_UNSUPPORTED_TYPE)),
            None => (set.matrix(kind, 3, rows, cols), BAD_SHAPE),
        },
        (set.matrix(kind, 2, rows, cols), BAD_SHAPE),
        (set.matrix(kind, 1, rows + 1, cols), invalid(kernel, "y has ")),
        (set.matrix(kind, 1, rows, cols + 256), invalid(kernel, "x has ")),
    ];
    let operands = Matvec::new(
        set.one_of("Matvec.w", &right, wrong.each_ref().map(|(matrix, refusal)| (matrix, refusal.clone()))),
        set.read("Matvec.x", &name("x"), &x),
        set.write("Matvec.y", &name("y"), &mut y),
        set.count("Matvec.tokens", &name("tokens"), tokens),
    )
    .accumulate(true)
    .product(set.write("Matvec.product", &name("product"), &mut product));
    match (kind, other) {
        (_, None) => operands.launch(&set.device),
        (Q4K, _) => Q4KMatvec(operands).launch(&set.device),
        _ => Q6KGemv(operands).launch(&set.device),
    }
}

fn q4_k_matvec(set: &Set) -> Result<()> {
    matvec(set, "q4_k_matvec", Q4K, Some(Q6K))
}

fn matvec_of_any_type(set: &Set) -> Result<()> {
    matvec(set, "q4_k_matvec", Q4K, None)
}

fn q6_k_gemv(set: &Set) -> Result<()> {
    matvec(set, "q6_k_gemv", Q6K, Some(Q4K))
}

/// The operands of `qkv` but for the activations.
fn qkv(set: &Set, x: kernels::Activations<'_>, tokens: usize) -> Result<()> {
    const W: [&str; 3] = ["Qkv.w[0]", "Qkv.w[1]", "Qkv.w[2]"];
    const Y: [&str; 3] = ["Qkv.y[0]", "Qkv.y[1]", "Qkv.y[2]"];
    let (rows, cols) = ([33, 17, 15], 512);
    let matrices = [0, 1, 2].map(|i| {
        let kind = [Q4K, Q6K, Q4K][i];
        // Matrices with longer rows than the first one are named themselves; of a first one with longer rows the
        // second.
        let cols_of = ["w[1] has ", "w[1] has ", "w[2] has "][i];
        let wrong = [
            (set.elsewhere().matrix(kind, 1, rows[i], cols), foreign(&format!("qkv: w[{i}]"))),
            (set.matrix(kind, 1, rows[i], cols + 256), invalid("qkv", cols_of)),
            (set.matrix(kind, 1, rows[i] + 1, cols), invalid("qkv", &format!("y[{i}] has "))),
            (set.matrix(kind, 2, rows[i], cols), BAD_SHAPE),
        ];
        set.one_of(W[i], set.matrix(kind, 1, rows[i], cols), wrong)
    });
    let mut y = rows.map(|rows| set.zeros(tokens * rows));
    let mut number = 0;
    let y = y.each_mut().map(|y| {
        number += 1;
        set.write(Y[number - 1], &format!("qkv: y[{}]", number - 1), y)
    });
    Qkv::new(matrices.each_ref(), x, y, set.count("Qkv.tokens", "qkv: tokens", tokens)).launch(&set.device)
}

fn qkv_fixed(set: &Set) -> Result<()> {
    let x = set.zeros(2 * 2);
    qkv(set, kernels::Activations::Fixed(set.read("Activations::Fixed.0", "qkv: x", &x)), 2)
}

fn qkv_norm(set: &Set) -> Result<()> {
    let mut norm = NormMemory::new(set, 512);
    let norm = norm.operands(set, "qkv");
    qkv(set, kernels::Activations::Norm(norm), 1)
}

fn quantize<const KIND: u32>(set: &Set) -> Result<()> {
    let (tokens, cols) = (2, 512);
    let x = FloatMemory::new(set, tokens * cols);
    let (mut out, mut floats) = (set.zeros(tokens * cols / 256), set.zeros(tokens * cols));
    Quantize::new(
        x.read(set, KIND, "quantize: x"),
        set.write("Quantize.out", "quantize: out", &mut out),
        [set.count("Quantize.tokens", "quantize: tokens", tokens), set.cols("Quantize.cols", "quantize: cols", cols)],
    )
    .floats(set.write("Quantize.floats", "quantize: floats", &mut floats))
    .launch(&set.device)
}

fn repack(set: &Set) -> Result<()> {
    let (experts, rows, cols) = (3, 17, 512);
    let (blocks, mut tiles) =
        (set.zeros(experts * rows * cols / 256 * 210), set.zeros(experts * 32 * cols / 256 * 210));
    Repack::new(
        set.read("Repack.blocks", "repack: blocks", &blocks),
        set.write("Repack.tiles", "repack: tiles", &mut tiles),
        Q6K,
        [set.count("Repack.rows", "repack: rows", rows), set.cols("Repack.cols", "repack: cols", cols)],
    )
    .experts(set.count("Repack.experts", "repack: experts", experts))
    .launch(&set.device)
}

fn residual_add(set: &Set) -> Result<()> {
    let (a, b, mut y) = (set.zeros(5), set.zeros(5), set.zeros(5));
    ResidualAdd::new(
        set.read("ResidualAdd.a", "residual_add: a", &a),
        set.read("ResidualAdd.b", "residual_add: b", &b),
        set.any_length("ResidualAdd.y", "residual_add: y", invalid("residual_add", "a has "), &mut y),
    )
    .launch(&set.device)
}

fn rms_norm(set: &Set) -> Result<()> {
    let (tokens, cols) = (2, 512);
    let (x, weight) = (set.zeros(tokens * cols), set.zeros(cols));
    let (mut out, mut fixed) = (set.zeros(tokens * cols), set.zeros(tokens * cols / 256));
    RmsNorm::new(
        set.read("RmsNorm.x", "rms_norm: x", &x),
        set.read("RmsNorm.weight", "rms_norm: weight", &weight),
        norm::EPS,
        [set.count("RmsNorm.tokens", "rms_norm: tokens", tokens), set.cols("RmsNorm.cols", "rms_norm: cols", cols)],
    )
    .width(set.width("RmsNorm.width", "rms_norm: width", cols))
    .out(set.write("RmsNorm.out", "rms_norm: out", &mut out))
    .fixed(set.write("RmsNorm.fixed", "rms_norm: fixed", &mut fixed))
    .launch(&set.device)
}

/// Fails unless the result is the refusal.
fn assert_refused(what: &str, kernel: &str, result: Result<()>, refusal: &Refusal) {
    match (&result, refusal) {
        (Err(Error::Invalid(message)), Refusal::Invalid(beginning)) if message.starts_with(beginning.as_str()) => {}
        (Err(Error::Kernel { kernel: named, status, .. }), Refusal::Status(expected))
            if *named == kernel && status == expected => {}
        _ => panic!("{what}: expected {refusal:?}, got {result:?}"),
    }
}

#[test]
fn every_operand_is_checked() {
    let Some(device) = emulated_device() else { return };
    let mut mistakes = 0;
    for (wrapper, kernel, launches) in SETS {
        for (number, launch) in launches.iter().enumerate() {
            let complete = Set::new(&device, None);
            ok(launch(&complete));
            for mistake in complete.mistakes.into_inner() {
                let what = format!("{wrapper}, set {number}: mistake {} in {}", mistake.number, mistake.field);
                let refusal = mistake.refusal.clone();
                assert_refused(&what, kernel, launch(&Set::new(&device, Some(mistake))), &refusal);
                mistakes += 1;
            }
        }
    }
    println!("{mistakes} mistakes refused");
    assert!(mistakes > 300, "{mistakes} mistakes");
}

/// Counts outside of launches: what room there must be, and what a matrix may be.
#[test]
fn counts_of_more_than_32_bits_are_refused() {
    let Some(device) = emulated_device() else { return };
    let refused = |what: &str, result: Result<()>| {
        let Err(Error::Invalid(message)) = result else { panic!("{what}: {result:?}") };
        assert!(message.contains(&format!("{what} = 4294967296 is too large")), "{what}: {message}");
    };
    for (i, what) in ["capacity", "tokens", "heads", "head_dim"].into_iter().enumerate() {
        let mut counts = [1, 1, 1, 64];
        counts[i] = 1 << 32;
        let [capacity, tokens, heads, head_dim] = counts;
        refused(what, Attention::workspace_bytes(&device, capacity, tokens, heads, head_dim).map(drop));
    }
    for (i, what) in ["tokens", "experts", "top_k"].into_iter().enumerate() {
        let mut counts = [1, 1, 1];
        counts[i] = 1 << 32;
        let [tokens, experts, top_k] = counts;
        refused(what, max_items(&device, tokens, experts, top_k).map(drop));
        refused(what, Groups::new(&device, tokens, experts, top_k).map(drop));
    }
    for (i, what) in ["experts", "rows", "cols"].into_iter().enumerate() {
        let mut counts = [1, 1, 256];
        counts[i] = 1 << 32;
        let [experts, rows, cols] = counts;
        refused(what, Matrix::zeroed(&device, Q4K, rows, cols, experts).map(drop));
    }
    for (what, rows, experts) in [("rows", 1 << 32, 1), ("experts", 1, 1 << 32)] {
        refused(what, FloatMatrix::zeroed(&device, F16, rows, 256, experts).map(drop));
    }
    // Each count fits, and the product does not.
    for result in [
        Groups::new(&device, 1 << 31, 32, 32).map(drop),
        Matrix::zeroed(&device, Q4K, (1 << 32) - 16, 1 << 31, 1 << 31).map(drop),
    ] {
        assert_invalid(result);
    }
}

/// Operands in structures and enums of `src/kernels/`: by type, the fields with their types.
fn fields_by_type() -> BTreeMap<String, Vec<(String, String)>> {
    let mut types = BTreeMap::new();
    for source in sources() {
        let source: String = source.lines().map(|line| line.split("//").next().unwrap()).collect();
        for (keyword, is_enum) in [("pub struct ", false), ("pub enum ", true)] {
            for item in source.split(keyword).skip(1) {
                let name: String = item.chars().take_while(char::is_ascii_alphanumeric).collect();
                let open = item.find(['{', '(', ';']).unwrap();
                let mut fields = Vec::new();
                if is_enum {
                    for variant in parts(inner(&item[open..])) {
                        if let Some(open) = variant.find(['{', '(']) {
                            let of_variant = fields_of(&variant[open..]).into_iter();
                            // Behind its attributes.
                            let variant = variant[..open].rsplit(']').next().unwrap().trim();
                            fields.extend(of_variant.map(|(field, of)| (format!("{name}::{variant}.{field}"), of)));
                        }
                    }
                } else if !item[open..].starts_with(';') {
                    let of_struct = fields_of(&item[open..]).into_iter();
                    fields.extend(of_struct.map(|(field, of)| (format!("{name}.{field}"), of)));
                }
                assert!(types.insert(name.clone(), fields).is_none(), "two types are called {name}");
            }
        }
    }
    types
}

fn sources() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
    fs::read_dir(directory).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

/// What stands in the brackets that the text begins with.
fn inner(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        depth += i32::from("{([".contains(c)) - i32::from("})]".contains(c));
        if depth == 0 {
            return &text[1..at];
        }
    }
    panic!("no end of {text}")
}

/// The text at its commas, but for those in brackets.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        depth += i32::from("{([<".contains(c)) - i32::from("})]>".contains(c));
        if c == ',' && depth == 0 {
            parts.push(text[begin..at].trim());
            begin = at + 1;
        }
    }
    parts.push(text[begin..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// Names, or numbers, and types of the fields in the brackets that the text begins with. An array is a field for each
/// element.
fn fields_of(text: &str) -> Vec<(String, String)> {
    let named = text.starts_with('{');
    let mut fields = Vec::new();
    for (number, part) in parts(inner(text)).into_iter().enumerate() {
        let part = part.trim_start_matches("pub ");
        let (name, of) = match part.split_once(':').filter(|_| named) {
            Some((name, of)) => (name.trim().to_owned(), of.trim().to_owned()),
            None => (number.to_string(), part.to_owned()),
        };
        match of.strip_prefix('[').and_then(|of| of.strip_suffix(']')).and_then(|of| of.split_once(';')) {
            Some((element, len)) => {
                let len: usize = len.trim().parse().unwrap();
                fields.extend((0..len).map(|i| (format!("{name}[{i}]"), element.to_owned())));
            }
            None => fields.push((name, of)),
        }
    }
    fields
}

/// Whether a type is of operands that a launch can have too few of, or of counts.
fn is_operand(of: &str) -> bool {
    of == "usize" || ["Slice<", "SliceMut<", "Matrix<", "Groups<"].iter().any(|memory| of.contains(memory))
}

/// The operands of a wrapper, through all structures and enums that it has.
fn operands(types: &BTreeMap<String, Vec<(String, String)>>, name: &str, all: &mut BTreeSet<String>) {
    for (field, of) in &types[name] {
        if is_operand(of) {
            all.insert(field.clone());
        }
        let words = of.split(|c: char| !c.is_ascii_alphanumeric());
        for inner in
            words.filter(|&word| types.contains_key(word) && !["Matrix", "FloatMatrix", "Groups"].contains(&word))
        {
            operands(types, inner, all);
        }
    }
}

#[test]
fn no_operand_is_left_out() {
    let types = fields_by_type();
    // The wrappers are what can be launched.
    let mut wrappers = BTreeSet::new();
    for source in sources() {
        for (before, _) in source.match_indices("pub fn launch").map(|(at, _)| source.split_at(at)) {
            let header = before.rsplit("\nimpl").next().unwrap();
            let name =
                header.split_whitespace().find(|word| types.keys().any(|name| word.split('<').next() == Some(name)));
            wrappers.insert(name.unwrap_or_else(|| panic!("{header}")).split('<').next().unwrap().to_owned());
        }
    }
    assert!(wrappers.iter().map(String::as_str).eq(SETS.iter().map(|&(wrapper, ..)| wrapper)), "{wrappers:?}");

    let Some(device) = emulated_device() else { return };
    for (wrapper, _, launches) in SETS {
        let mut expected = BTreeSet::new();
        operands(&types, wrapper, &mut expected);
        let mut found = BTreeSet::new();
        for launch in *launches {
            let set = Set::new(&device, None);
            ok(launch(&set));
            found.extend(set.fields.into_inner().into_iter().map(str::to_owned));
        }
        assert_eq!(found, expected, "{wrapper}");
    }
}
