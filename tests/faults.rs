//! Faults planted in the text of the kernels: the emulation finds each, by its own rules or because the results change, so
//! that the tests that compare results with the oracles would fail.

use std::mem::zeroed;
use std::ptr::null_mut;

use kquant_moe::sys;
use kquant_moe_emulation::{self as emulation, Buffer, Failure, Library, Substitution};

/// Runs a kernel of the table on operands that are the same each time; gives the status and what it wrote.
type Run = fn(&sys::kqm_kernels) -> (i32, Vec<u8>);

/// Numbers that look random and are the same each time.
struct Sequence(u64);

impl Sequence {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    /// In -1..1.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.bits() as f32 / (1u32 << 30) as f32 - 1.0).collect()
    }
}

fn rms_norm(kernels: &sys::kqm_kernels) -> (i32, Vec<u8>) {
    let (tokens, cols) = (3, 768);
    let mut random = Sequence(1);
    let (x, weight) = (Buffer::from_slice(&random.floats(tokens * cols)), Buffer::from_slice(&random.floats(cols)));
    let out = Buffer::<f32>::new(tokens * cols);
    let args = sys::kqm_rms_norm_args {
        x: x.as_ptr(),
        weight: weight.as_ptr(),
        out: out.as_ptr(),
        fixed: null_mut(),
        tokens: tokens as u32,
        cols: cols as u32,
        eps: 1e-6,
    };
    // SAFETY: the buffers have the shapes of the arguments, and end at guard pages.
    let status = unsafe { kernels.rms_norm.unwrap()(&args, null_mut()) };
    (status, out.to_bytes())
}

fn argmax(kernels: &sys::kqm_kernels) -> (i32, Vec<u8>) {
    let (rows, cols) = (2, 5000);
    let x = Buffer::from_slice(&Sequence(2).floats(rows * cols));
    let (out, partial, done) =
        (Buffer::<u32>::new(rows), Buffer::<u64>::filled(rows, 0), Buffer::<u32>::filled(rows, 0));
    // SAFETY: all fields are numbers and pointers; the optional ones are null.
    let mut args: sys::kqm_argmax_args = unsafe { zeroed() };
    args.x = x.as_ptr();
    args.out = out.as_ptr();
    args.partial = partial.as_ptr();
    args.done = done.as_ptr();
    args.rows = rows as u32;
    args.cols = cols as u32;
    // SAFETY: as above.
    let status = unsafe { kernels.argmax.unwrap()(&args, null_mut()) };
    (status, [out.to_bytes(), done.to_bytes()].concat())
}

fn moe_group(kernels: &sys::kqm_kernels) -> (i32, Vec<u8>) {
    let (tokens, experts, top_k) = (20, 16, 4);
    let mut random = Sequence(3);
    let indices: Vec<u32> =
        (0..tokens).flat_map(|_| (0..4).map(|rank| 4 * rank + random.bits() % 3).collect::<Vec<_>>()).collect();
    let indices = Buffer::from_slice(&indices);
    // SAFETY: the launcher has no conditions.
    let max_items = unsafe { kernels.moe_max_items.unwrap()(tokens, experts, top_k) } as usize;
    let (order, items) = (Buffer::<u32>::filled(80, 0), Buffer::<u32>::filled(3 * max_items, 0));
    let count = Buffer::<u32>::filled(1, 0);
    let groups = sys::kqm_groups { order: order.as_ptr(), items: items.as_ptr(), count: count.as_ptr() };
    let args = sys::kqm_moe_group_args { indices: indices.as_ptr(), groups, tokens, experts, top_k };
    // SAFETY: as above.
    let status = unsafe { kernels.moe_group.unwrap()(&args, null_mut()) };
    (status, [order.to_bytes(), items.to_bytes(), count.to_bytes()].concat())
}

/// Every other expert has the same logit, the largest of the first token.
fn moe_router(kernels: &sys::kqm_kernels) -> (i32, Vec<u8>) {
    let (tokens, cols, experts, top_k) = (3usize, 512usize, 19usize, 4usize);
    let mut random = Sequence(4);
    let x = random.floats(tokens * cols);
    let row = x[..cols].to_vec();
    let x = Buffer::from_slice(&x);
    let w: Vec<f32> = (0..experts).flat_map(|e| if e % 2 == 0 { row.clone() } else { random.floats(cols) }).collect();
    let w = Buffer::from_slice(&w);
    let (logits, weights) = (Buffer::<f32>::new(tokens * experts), Buffer::<f32>::new(tokens * top_k));
    let (indices, done) = (Buffer::<u32>::new(tokens * top_k), Buffer::<u32>::filled(tokens, 0));
    // SAFETY: all fields are numbers and pointers; the optional ones are null.
    let mut args: sys::kqm_moe_router_args = unsafe { zeroed() };
    args.x = x.as_ptr();
    args.w = w.as_ptr();
    args.logits = logits.as_ptr();
    args.indices = indices.as_ptr();
    args.weights = weights.as_ptr();
    args.done = done.as_ptr();
    (args.tokens, args.cols) = (tokens as u32, cols as u32);
    (args.experts, args.top_k) = (experts as u32, top_k as u32);
    // SAFETY: as above.
    let status = unsafe { kernels.moe_router.unwrap()(&args, null_mut()) };
    (status, [logits.to_bytes(), indices.to_bytes(), weights.to_bytes(), done.to_bytes()].concat())
}

/// Tiles of random bytes with small scales.
fn tiles(type_: u32, rows: usize, cols: usize, random: &mut Sequence) -> Buffer<u8> {
    const SMALL: [u8; 2] = [0, 0x2c]; // f16 of 1/16
    let (tile, places): (usize, Vec<usize>) = match type_ {
        sys::KQM_TYPE_Q4_K => {
            (sys::KQM_TILE_BYTES_Q4_K as usize, (0..16).flat_map(|r| [2048 + 16 * r, 2050 + 16 * r]).collect())
        }
        _ => (sys::KQM_TILE_BYTES_Q6_K as usize, (0..16).map(|r| 3328 + 2 * r).collect()),
    };
    let mut data: Vec<u8> = (0..rows.div_ceil(16) * (cols / 256) * tile).map(|_| random.bits() as u8).collect();
    for one in data.chunks_mut(tile) {
        for &place in &places {
            one[place..place + 2].copy_from_slice(&SMALL);
        }
    }
    Buffer::from_slice(&data)
}

/// Three row tiles a block, the last one not full.
fn matvec(kernels: &sys::kqm_kernels, type_: u32, tokens: usize) -> (i32, Vec<u8>) {
    let (rows, cols) = (40 * 16 - 4, 768);
    let mut random = Sequence(5);
    let w = tiles(type_, rows, cols, &mut random);
    let x = Buffer::from_slice(&random.floats(tokens * cols));
    let fixed = Buffer::<u8>::new(tokens * cols / 256 * size_of::<sys::kqm_fixed_block>());
    let quantize =
        sys::kqm_quantize_args { x: x.as_ptr(), out: fixed.as_ptr().cast(), tokens: tokens as u32, cols: cols as u32 };
    // SAFETY: as above.
    let status = unsafe { kernels.quantize.unwrap()(&quantize, null_mut()) };
    assert_eq!(status, 0);
    let y = Buffer::<f32>::new(tokens * rows);
    let args = sys::kqm_matvec_args {
        w: sys::kqm_matrix { tiles: w.as_void(), type_, rows: rows as u32, cols: cols as u32, experts: 1 },
        x: fixed.as_ptr().cast(),
        residual: null_mut(),
        product: null_mut(),
        y: y.as_ptr(),
        tokens: tokens as u32,
    };
    let launcher = if type_ == sys::KQM_TYPE_Q4_K { kernels.q4_k_matvec } else { kernels.q6_k_gemv };
    // SAFETY: as above.
    let status = unsafe { launcher.unwrap()(&args, null_mut()) };
    (status, y.to_bytes())
}

fn q4_k_of_one(kernels: &sys::kqm_kernels) -> (i32, Vec<u8>) {
    matvec(kernels, sys::KQM_TYPE_Q4_K, 1)
}

fn q4_k_of_five(kernels: &sys::kqm_kernels) -> (i32, Vec<u8>) {
    matvec(kernels, sys::KQM_TYPE_Q4_K, 5)
}

fn q6_k(kernels: &sys::kqm_kernels) -> (i32, Vec<u8>) {
    matvec(kernels, sys::KQM_TYPE_Q6_K, 1)
}

fn rope(kernels: &sys::kqm_kernels) -> (i32, Vec<u8>) {
    let (tokens, heads, kv_heads, dim, capacity) = (2, 4, 2, 64, 8);
    let mut random = Sequence(6);
    let mut floats = |count| Buffer::from_slice(&random.floats(count));
    let (q, k, v) = (floats(tokens * heads * dim), floats(tokens * kv_heads * dim), floats(tokens * kv_heads * dim));
    let (q_weight, table) = (floats(dim), floats(capacity * dim));
    let start = Buffer::from_slice(&[3u32]);
    let q_out = Buffer::<f32>::new(tokens * heads * dim);
    let k_cache = Buffer::<f32>::filled(capacity * kv_heads * dim, 0);
    let v_cache = Buffer::<f32>::filled(capacity * kv_heads * dim, 0);
    // SAFETY: all fields are numbers and pointers; the optional ones are null.
    let mut args: sys::kqm_rope_args = unsafe { zeroed() };
    args.q = q.as_ptr();
    args.k = k.as_ptr();
    args.v = v.as_ptr();
    args.q_weight = q_weight.as_ptr();
    args.table = table.as_ptr();
    args.start = start.as_ptr();
    args.q_out = q_out.as_ptr();
    args.k_cache = k_cache.as_void();
    args.v_cache = v_cache.as_void();
    args.cache_type = sys::KQM_TYPE_F32;
    (args.capacity, args.tokens) = (capacity as u32, tokens as u32);
    (args.heads, args.kv_heads, args.head_dim) = (heads as u32, kv_heads as u32, dim as u32);
    args.eps = 1e-6;
    // SAFETY: as above.
    let status = unsafe { kernels.rope.unwrap()(&args, null_mut()) };
    (status, [q_out.to_bytes(), k_cache.to_bytes(), v_cache.to_bytes()].concat())
}

fn attention(kernels: &sys::kqm_kernels) -> (i32, Vec<u8>) {
    let (tokens, heads, kv_heads, dim, capacity) = (2, 4, 2, 128, 80);
    let mut random = Sequence(7);
    let mut floats = |count| Buffer::from_slice(&random.floats(count));
    let q = floats(tokens * heads * dim);
    let (k_cache, v_cache) = (floats(capacity * kv_heads * dim), floats(capacity * kv_heads * dim));
    let start = Buffer::from_slice(&[70u32]);
    let out = Buffer::<f32>::new(tokens * heads * dim);
    // SAFETY: all fields are numbers and pointers; the optional ones are null.
    let mut args: sys::kqm_attention_args = unsafe { zeroed() };
    args.q = q.as_ptr();
    args.k_cache = k_cache.as_void();
    args.v_cache = v_cache.as_void();
    args.start = start.as_ptr();
    args.out = out.as_ptr();
    args.cache_type = sys::KQM_TYPE_F32;
    (args.capacity, args.tokens) = (capacity as u32, tokens as u32);
    (args.heads, args.kv_heads, args.head_dim) = (heads as u32, kv_heads as u32, dim as u32);
    args.scale = 0.088;
    // SAFETY: pointers are ignored.
    args.workspace_bytes = unsafe { kernels.attention_workspace.unwrap()(&args) };
    let workspace = Buffer::<u8>::new(args.workspace_bytes as usize);
    args.workspace = workspace.as_void();
    // SAFETY: as above.
    let status = unsafe { kernels.attention.unwrap()(&args, null_mut()) };
    (status, out.to_bytes())
}

/// What must come of a fault.
enum Found {
    /// One of these failures, reported in that file.
    Report(&'static [Failure], &'static str),
    /// Other results.
    Results,
}
use Failure::{BadMask, BadShuffle, Deadlock, Divergence, MemoryFault, Race, Uninitialised};
use Found::{Report, Results};

/// Plants the fault in `file`, below `cuda/`, compiles the kernel `name` and runs it.
#[track_caller]
fn finds(run: Run, name: &str, file: &str, find: &str, replace: &str, found: Found) {
    if let Err(reason) = emulation::available() {
        eprintln!("skipped: {reason}");
        return;
    }
    // SAFETY: the table is of the header that the bindings were made of.
    let kernels = unsafe { &*emulation::table().cast::<sys::kqm_kernels>() };
    let (status, expected) = run(kernels);
    assert_eq!(status, 0, "{}", emulation::last_error());
    let library = Library::faulty_kernel(name, &[Substitution { file, find, replace }]).unwrap();
    // SAFETY: as above.
    let faulty = unsafe { &*library.table().unwrap().cast::<sys::kqm_kernels>() };
    for seed in 0..4 {
        library.set_schedule(seed);
        let (status, results) = run(faulty);
        let report = library.last_error();
        match &found {
            Report(failures, place) => {
                let failure = Failure::from_status(status);
                assert!(failure.is_some_and(|f| failures.contains(&f)), "schedule {seed}, status {status}: {report}");
                assert!(report.contains(place), "schedule {seed}: {report}");
                if seed == 0 {
                    println!("{report}");
                }
            }
            Results => {
                assert_eq!(status, 0, "schedule {seed}: {report}");
                assert!(results != expected, "schedule {seed}: nothing changed");
            }
        }
    }
}

/// The control: without a fault nothing is reported and nothing changes, in whatever order threads and blocks run.
#[test]
fn no_fault() {
    if let Err(reason) = emulation::available() {
        eprintln!("skipped: {reason}");
        return;
    }
    // SAFETY: the table is of the header that the bindings were made of.
    let kernels = unsafe { &*emulation::table().cast::<sys::kqm_kernels>() };
    let runs: [Run; 9] = [rms_norm, argmax, moe_group, moe_router, q4_k_of_one, q4_k_of_five, q6_k, rope, attention];
    for (i, run) in runs.into_iter().enumerate() {
        emulation::set_schedule(0);
        let expected = run(kernels);
        for seed in 0..25 {
            emulation::set_schedule(seed);
            let (status, results) = run(kernels);
            assert_eq!(status, 0, "kernel {i}, schedule {seed}: {}", emulation::last_error());
            assert!(results == expected.1, "kernel {i}, schedule {seed}: other results");
        }
    }
}

const UNORDERED: &[Failure] = &[Race, Uninitialised];

#[test]
fn dropped_barriers() {
    finds(rms_norm, "rms_norm", "rms_norm.cu", "  __syncthreads();\n", "", Report(UNORDERED, "tree.cuh:"));
    finds(argmax, "argmax", "argmax.cu", "  __syncthreads();\n", "", Report(UNORDERED, "argmax.cu:"));
    let find = "item;\n  }\n  __syncthreads();\n";
    finds(moe_group, "moe_group", "moe_group.cu", find, "item;\n  }\n", Report(UNORDERED, "moe_group.cu:"));
    let find = "    __syncthreads();\n    for (int i = threadIdx.x; i < tokens * KQM_TILE_ROWS";
    let replace = "    for (int i = threadIdx.x; i < tokens * KQM_TILE_ROWS";
    finds(q4_k_of_one, "q4_k_matvec", "common/matvec.cuh", find, replace, Report(UNORDERED, "tree.cuh:"));
    let (find, replace) = ("= x[i];\n  }\n  __syncwarp();\n", "= x[i];\n  }\n");
    finds(rope, "rope", "common/rope.cuh", find, replace, Report(UNORDERED, "rope.cuh:"));
    let (find, replace) = ("    __syncthreads();\n\n    // Softmax of the chunk", "    // Softmax of the chunk");
    finds(attention, "attention", "attention.cu", find, replace, Report(UNORDERED, "attention.cu:"));
    let (find, replace) = ("    __syncthreads();\n\n    // Values", "    // Values");
    finds(attention, "attention", "attention.cu", find, replace, Report(UNORDERED, "attention.cu:"));
}

#[test]
fn shared_memory_used_again_too_early() {
    let file = "common/matvec.cuh";
    finds(q4_k_of_one, "q4_k_matvec", file, ", buffer ^= 1)", ")", Report(UNORDERED, "kqm_matvec_kernel<Tile, 1>"));
}

#[test]
fn threads_that_leave_before_a_barrier() {
    let (find, replace) =
        ("  pairs_of[expert] = count;\n", "  if (expert >= a.experts) return;\n  pairs_of[expert] = count;\n");
    finds(moe_group, "moe_group", "moe_group.cu", find, replace, Report(&[Divergence], "moe_group.cu:"));
    let found = Report(&[Divergence, Deadlock], "argmax.cu:");
    finds(
        argmax,
        "argmax",
        "argmax.cu",
        "  unsigned long long best = 0;\n",
        "  if (threadIdx.x == 77) return;\n  unsigned long long best = 0;\n",
        found,
    );
}

#[test]
fn wrong_masks() {
    let found = Report(&[BadMask, BadShuffle], "argmax.cu:");
    finds(argmax, "argmax", "argmax.cu", "__shfl_xor_sync(~0u, best", "__shfl_xor_sync(0xffffu, best", found);
    let found = Report(&[BadMask], "tiles.cuh:");
    let (find, replace) = ("(~0u, odd ? row0 : row8", "(0x55555555u, odd ? row0 : row8");
    finds(q6_k, "q6_k_gemv", "common/tiles.cuh", find, replace, found);
}

#[test]
fn rows_off_by_one() {
    let (find, replace) = ("size_t(blockIdx.x) * a.cols)", "size_t(blockIdx.x + 1) * a.cols)");
    finds(rms_norm, "rms_norm", "rms_norm.cu", find, replace, Report(&[MemoryFault], "rms_norm"));
    let file = "common/tiles.cuh";
    finds(q4_k_of_one, "q4_k_matvec", file, "p + 136 + (lane >> 2)", "p + 135 + (lane >> 2)", Results);
    let (find, replace) = ("return (lane >> 2) + 8 * (lane & 1);", "return (lane >> 2) + 7 * (lane & 1);");
    finds(q4_k_of_five, "q4_k_matvec", "common/matvec.cuh", find, replace, Report(UNORDERED, "matvec.cuh:"));
}

#[test]
fn bounds_dropped() {
    let (find, replace) = ("      if (r >= int(w.rows)) continue;\n", "");
    let found = Report(&[MemoryFault], "kqm_matvec_kernel<Tile, 1>");
    finds(q4_k_of_one, "q4_k_matvec", "common/matvec.cuh", find, replace, found);
    let (find, replace) =
        ("if (next_tile < tiles) next.load(next_data, lane);\n        kqm", "next.load(next_data, lane);\n        kqm");
    let found = Report(&[MemoryFault], "past the end of the buffer");
    finds(q6_k, "q6_k_gemv", "common/matvec.cuh", find, replace, found);
}

#[test]
fn swapped_nibbles() {
    let file = "common/tiles.cuh";
    finds(q4_k_of_one, "q4_k_matvec", file, "nibble = 4 * (j % 2)", "nibble = 4 - 4 * (j % 2)", Results);
    finds(q6_k, "q6_k_gemv", file, "(2 * nibble + m / 2)", "(2 * nibble + m % 2)", Results);
}

#[test]
fn changed_bits() {
    let (find, replace) = ("__fmul_rn(__fmul_rn(x[i], r), w[i])", "__fmul_rn(x[i], __fmul_rn(r, w[i]))");
    finds(rms_norm, "rms_norm", "common/norm.cuh", find, replace, Results);
    let (find, replace) =
        ("v[p] = fma(-dmin, double(m), d * double(t));", "v[p] = float(d * double(t)) - dmin * double(m);");
    finds(q4_k_of_five, "q4_k_matvec", "common/tiles.cuh", find, replace, Results);
    finds(argmax, "argmax", "argmax.cu", "  a.done[row] = 0;\n", "", Results);
}

#[test]
fn wrong_attention_mask() {
    let (find, replace) = ("int(position - begin) + 1", "int(position - begin)");
    finds(attention, "attention", "attention.cu", find, replace, Results);
}

#[test]
fn ties_not_broken() {
    let (find, replace) = (" || (theirs.x == mine && other < e)", "");
    finds(moe_router, "moe_router", "common/choose.cuh", find, replace, Report(UNORDERED, "choose.cuh:"));
}
