//! Faults planted in the text of kernels that work: each must be found, and the report must say where.

mod common;

use common::{library, sources};
use kquant_moe_emulation::{Buffer, Failure, Library, Substitution, available};

type Reduce = unsafe extern "C" fn(*const f32, *mut f32, u32, u32) -> i32;
type Product = unsafe extern "C" fn(*const u8, *const i8, *mut i32, u32) -> i32;
type Gather = unsafe extern "C" fn(*const u8, *const u32, *mut u8, u32, u32) -> i32;

/// The status of `reduce` and its sums.
fn reduce(library: &Library) -> (i32, Vec<u32>) {
    // SAFETY: the type is that of the source.
    let reduce: Reduce = unsafe { library.function("test_reduce") }.unwrap();
    let x: Vec<f32> = (0..3 * 500).map(|i| i as f32).collect();
    let (input, output) = (Buffer::from_slice(&x), Buffer::<f32>::new(3));
    // SAFETY: the buffers have the sizes that the kernel takes; faults are what the guard pages are for.
    let status = unsafe { reduce(input.as_ptr(), output.as_ptr(), 3, 500) };
    (status, output.to_vec().into_iter().map(f32::to_bits).collect())
}

fn product(library: &Library) -> (i32, Vec<u32>) {
    // SAFETY: the type is that of the source.
    let product: Product = unsafe { library.function("test_product") }.unwrap();
    let weights: Vec<u8> = (0..2 * 256).map(|i| (i * 37) as u8).collect();
    let columns: Vec<i8> = (0..256).map(|i| (i * 91) as i8).collect();
    let (w, c) = (Buffer::from_slice(&weights), Buffer::from_slice(&columns));
    let d = Buffer::<u32>::new(2 * 128);
    // SAFETY: as above.
    let status = unsafe { product(w.as_ptr(), c.as_ptr(), d.as_ptr().cast(), 2) };
    (status, d.to_vec())
}

fn gather(library: &Library) -> (i32, Vec<u32>) {
    // SAFETY: the type is that of the source.
    let gather: Gather = unsafe { library.function("test_gather") }.unwrap();
    let table: Vec<u8> = (0..4 * 2048).map(|i| (i / 5) as u8).collect();
    let (rows, index) = (Buffer::from_slice(&table), Buffer::from_slice(&[1u32, 3]));
    let out = Buffer::<u32>::new(2 * 512);
    // SAFETY: as above.
    let status = unsafe { gather(rows.as_ptr(), index.as_ptr(), out.as_ptr().cast(), 2, 2048) };
    (status, out.to_vec())
}

/// What must come of a fault.
enum Found {
    /// One of these failures, with these words in the report.
    Report(&'static [Failure], &'static [&'static str]),
    /// Other numbers than the kernel gives without the fault.
    OtherNumbers,
}

fn check(run: fn(&Library) -> (i32, Vec<u32>), file: &str, find: &str, replace: &str, found: Found) {
    let Some(library) = library("kernels") else { return };
    let (status, expected) = run(library);
    assert_eq!(status, 0, "{}", library.last_error());
    let faulty = Library::compile(&sources("kernels"), &[Substitution { file, find, replace }]).unwrap();
    for seed in 0..10 {
        faulty.set_schedule(seed);
        let (status, numbers) = run(&faulty);
        let report = faulty.last_error();
        match &found {
            Found::Report(failures, words) => {
                let failure = Failure::from_status(status);
                assert!(failure.is_some_and(|f| failures.contains(&f)), "schedule {seed}, {status}: {report}");
                for word in *words {
                    assert!(report.contains(word), "schedule {seed}, {word}: {report}");
                }
                if seed == 0 {
                    println!("{report}");
                }
            }
            Found::OtherNumbers => {
                assert_eq!(status, 0, "schedule {seed}: {report}");
                assert_ne!(numbers, expected, "schedule {seed}");
            }
        }
    }
}

#[test]
fn dropped_barrier() {
    let found = Found::Report(&[Failure::Race], &["kernel reduce<128>", "reduce.cu:18", "reduce.cu:20", "sums["]);
    check(reduce, "reduce.cu", "  __syncthreads();\n", "", found);
}

#[test]
fn barrier_in_a_branch() {
    let found = Found::Report(&[Failure::Divergence], &["kernel reduce<128>", "reduce.cu:19"]);
    check(reduce, "reduce.cu", "  __syncthreads();\n", "  if (threadIdx.x < 96) __syncthreads();\n", found);
}

#[test]
fn shuffle_with_a_wrong_mask() {
    let found =
        Found::Report(&[Failure::BadMask, Failure::BadShuffle], &["kernel reduce<128>", "reduce.cu:8", "warp "]);
    check(reduce, "reduce.cu", "0xffffffffu", "0x0000ffffu", found);
}

#[test]
fn shuffle_in_a_branch() {
    let found = Found::Report(&[Failure::Divergence, Failure::Deadlock], &["kernel reduce<128>", "reduce.cu"]);
    check(reduce, "reduce.cu", "  if (threadIdx.x < 32) {", "  if (threadIdx.x < 4) {", found);
}

#[test]
fn reduction_of_half_the_lanes() {
    check(reduce, "reduce.cu", "lanes = 16", "lanes = 8", Found::OtherNumbers);
}

#[test]
fn shared_array_too_short() {
    let found = Found::Report(&[Failure::OutOfBounds], &["kernel reduce<128>", "reduce.cu:18", "sums[3]"]);
    check(reduce, "reduce.cu", "sums, THREADS / 32)", "sums, THREADS / 32 - 1)", found);
}

#[test]
fn row_off_by_one() {
    check(product, "product.cu", "packed[(g + 8) * 4 + c]", "packed[(g + 7) * 4 + c]", Found::OtherNumbers);
    let found = Found::Report(&[Failure::MemoryFault], &["kernel gather", "past the end of the buffer of 8192 bytes"]);
    check(gather, "gather.cu", "index[blockIdx.x])", "index[blockIdx.x] + 1)", found);
}

#[test]
fn swapped_nibble() {
    check(product, "product.cu", "upper & 0x0f0f0f0f", "upper >> 4 & 0x0f0f0f0f", Found::OtherNumbers);
}

#[test]
fn bounds_of_tiles_dropped() {
    let found = Found::Report(&[Failure::MemoryFault], &["kernel product", "past the end of the buffer"]);
    check(product, "product.cu", "  if (tile >= tiles) return;\n", "", found);
}

#[test]
fn copy_not_awaited() {
    let failures = &[Failure::AsyncCopy];
    let found = Found::Report(failures, &["kernel gather", "gather.cu:", "row["]);
    check(gather, "gather.cu", "kqm_async_wait<0>", "kqm_async_wait<1>", found);
}

#[test]
fn barrier_after_copy_dropped() {
    let failures = &[Failure::AsyncCopy, Failure::Race];
    let found = Found::Report(failures, &["kernel gather", "gather.cu:", "row["]);
    check(gather, "gather.cu", "  __syncthreads();\n", "", found);
}

#[test]
fn substitutions_match_once() {
    if available().is_err() {
        return;
    }
    for (find, times) in [("no such text", "0 times"), ("threadIdx", "times")] {
        let substitution = Substitution { file: "reduce.cu", find, replace: "" };
        let error = Library::compile(&sources("kernels"), &[substitution]).err().unwrap();
        assert!(error.contains("reduce.cu") && error.contains(times), "{error}");
    }
}
