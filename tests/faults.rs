//! Faults planted in the text of the kernels: a test of the tests. Each must be found when the emulated kernel is compared
//! with its oracle, as a report that says where, or as the first value that differs. A substitution must match exactly
//! once, so that a kernel that has changed fails here until its fault is planted anew.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::TensorType::{self, *};
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{DownInput, FixedBlock, Matvec, MoeDown, MoeRouter, Q4KMatvec, Q6KGemv, Quantize, RmsNorm};
use kquant_moe::kernels::{RouterChoice, RouterInput, Weighting};
use kquant_moe::{Result, oracle};
use kquant_moe_emulation::{Failure, Library, Substitution};

/// What must come of a fault.
enum Found {
    /// One of these failures, with these words in the report.
    Report(&'static [Failure], &'static [&'static str]),
    /// Values that differ, with these words in the message.
    Values(&'static [&'static str]),
}

/// What a run of a kernel comes to: the difference from the oracle's values, if any, or the launch's error.
type Run = fn(&EmulatedDevice) -> Result<Option<String>>;

/// Runs the kernel as it is, then with the fault in `file`, with which `kernel` is compiled anew; both on several schedules.
fn check(run: Run, kernel: &str, file: &str, find: &str, replace: &str, found: Found) {
    let Some(device) = emulated_device() else { return };
    assert_eq!(run(&device).unwrap(), None, "without the fault");
    let library = Library::faulty_kernels(&[kernel], &[Substitution { file, find, replace }]).unwrap();
    let device = EmulatedDevice::faulty(library);
    for _ in 0..8 {
        let result = run(&device);
        let report = device.report();
        match (&found, result) {
            (Found::Report(failures, words), Err(kquant_moe::Error::Kernel { status, .. })) => {
                let failure = Failure::from_status(status);
                assert!(failure.is_some_and(|failure| failures.contains(&failure)), "{status}: {report}");
                for word in *words {
                    assert!(report.contains(word), "{word}: {report}");
                }
                println!("{report}");
            }
            (Found::Values(words), Ok(Some(message))) => {
                assert_eq!(report, "");
                for word in *words {
                    assert!(message.contains(word), "{word}: {message}");
                }
                println!("{message}");
            }
            (_, result) => panic!("the fault was found otherwise, or not at all: {result:?}; {report}"),
        }
    }
}

/// Rows that do not fill their last tile, and no room for more of them.
fn matvec(device: &EmulatedDevice, kind: TensorType) -> Result<Option<String>> {
    let mut random = Random::new(50);
    let (rows, cols) = (28, 768);
    let w = Weights::random(&mut random, kind, 1, rows, cols);
    let (blocks, digits) = fixed_blocks(&random.gaussians(cols));
    let (matrix, x) = (w.upload(device), input(device, &digits));
    let mut y = Buffer::zeroed(device, rows)?;
    let operands = Matvec::new(&matrix, x.slice(), y.slice_mut(), 1);
    if kind == Q4K {
        Q4KMatvec(operands).launch(device)?
    } else {
        Q6KGemv(operands).launch(device)?
    }
    let (mut got, mut expected) = (vec![0.0; rows], vec![0.0; rows]);
    y.read(device, 0, &mut got)?;
    oracle::product(w.expert(0), cols, &blocks, &mut expected);
    Ok(difference(&got, &expected))
}

fn q4_k_matvec(device: &EmulatedDevice) -> Result<Option<String>> {
    matvec(device, Q4K)
}

fn q6_k_gemv(device: &EmulatedDevice) -> Result<Option<String>> {
    matvec(device, Q6K)
}

fn moe_down(device: &EmulatedDevice) -> Result<Option<String>> {
    let mut random = Random::new(51);
    let (rows, cols, experts, top_k) = (29, 512, 6, 3);
    let w = Weights::random(&mut random, Q6K, experts, rows, cols);
    let x = random.gaussians(top_k * cols);
    let (indices, weights) = (random.distinct(experts, top_k), random.gaussians(top_k));
    let groups = moe::group(device, &input(device, &indices), 1, experts, top_k);
    let (down, rows_of_x) = (w.upload(device), input(device, &x));
    let (chosen, factors) = (input(device, &indices), input(device, &weights));
    let mut expert_out = Output::new(device, top_k * rows);
    let mut y = Output::starting_with(device, &vec![0.0; rows]);
    MoeDown::new(
        &down,
        DownInput::Rows(rows_of_x.slice()),
        (chosen.slice(), factors.slice()),
        &groups,
        [1, top_k],
        expert_out.slice(),
        y.slice(),
    )
    .launch(device)?;
    let mut expected = vec![0.0; top_k * rows];
    for (rank, out) in expected.chunks_mut(rows).enumerate() {
        let (blocks, _) = fixed_blocks(&x[rank * cols..][..cols]);
        oracle::product(w.expert(indices[rank] as usize), cols, &blocks, out);
    }
    Ok(difference(&expert_out.read(), &expected))
}

fn moe_router(device: &EmulatedDevice) -> Result<Option<String>> {
    let mut random = Random::new(52);
    let x = random.gaussians(1024);
    moe_router_of(device, random, &x)
}

/// A row with a NaN gives nothing but NaNs.
fn moe_router_of_nan(device: &EmulatedDevice) -> Result<Option<String>> {
    let mut random = Random::new(55);
    let mut x = random.gaussians(1024);
    x[700] = f32::from_bits(0xffc0_0001);
    moe_router_of(device, random, &x)
}

fn moe_router_of(device: &EmulatedDevice, mut random: Random, x: &[f32]) -> Result<Option<String>> {
    let (cols, experts, top_k) = (x.len(), 16, 4);
    let w = random.gaussians(experts * cols);
    let (row, matrix) = (input(device, x), input(device, &w));
    let (mut logits, mut weights) = (Output::new(device, experts), Output::new(device, top_k));
    let mut indices: Output<_, u32> = Output::new(device, top_k);
    let mut done = Output::starting_with(device, &[0_u32]);
    let choice = RouterChoice::new(indices.slice(), weights.slice(), done.slice());
    MoeRouter::new(RouterInput::Rows(row.slice()), matrix.slice(), [experts, cols], logits.slice(), 1, top_k)
        .choice(choice)
        .launch(device)?;
    let (mut expected, mut chosen, mut factors) = (vec![0.0; experts], vec![0; top_k], vec![0.0; top_k]);
    oracle::moe_router::moe_router(x, &w, Weighting::OfChosen, &mut expected, &mut chosen, &mut factors);
    Ok(difference(&logits.read(), &expected).or(difference(&weights.read(), &factors)))
}

fn rms_norm(device: &EmulatedDevice) -> Result<Option<String>> {
    let row = norm::Row::random(&mut Random::new(53), Activations::Gaussian, 1024);
    let mut uploaded = row.upload(device);
    let out = Some(uploaded.out.slice());
    let (x, weight) = (uploaded.x.slice(), uploaded.weight.slice());
    RmsNorm::new(x, weight, norm::EPS, [1, 1024]).out(out).launch(device)?;
    Ok(difference(&uploaded.out.read(), &row.normed().row))
}

/// The sums of digits and the units, as numbers.
fn quantize(device: &EmulatedDevice) -> Result<Option<String>> {
    let x = Random::new(54).gaussians(512);
    let rows = input(device, &x);
    let mut out: Output<_, FixedBlock> = Output::new(device, 2);
    Quantize::new(rows.slice(), out.slice(), [1, 512]).launch(device)?;
    let numbers = |blocks: &[FixedBlock]| -> Vec<f32> {
        blocks.iter().flat_map(|b| b.sum_low.into_iter().chain(b.sum_high).flatten()).map(f32::from).collect()
    };
    Ok(difference(&numbers(&out.read()), &numbers(&fixed_blocks(&x).1)))
}

#[test]
fn a_row_off_by_one_in_moe_down() {
    let find = "a.expert_out[size_t(rank) * a.down.rows + r] = value";
    let replace = "a.expert_out[size_t(rank) * a.down.rows + (r + 1) % a.down.rows] = value";
    check(moe_down, "moe_down.cu", "moe_down.cu", find, replace, Found::Values(&["first [0]"]));
}

#[test]
fn a_row_too_many_in_q4_k_matvec() {
    let (find, replace) = ("KQM_TILE_ROWS && r < a.w.rows;", "KQM_TILE_ROWS && r <= a.w.rows;");
    let found = Found::Report(
        &[Failure::MemoryFault],
        &["kernel kqm_matvec_tile_kernel", "thread (", "past the end of the buffer"],
    );
    check(q4_k_matvec, "q4_k_matvec.cu", "common/matvec.cuh", find, replace, found);
}

#[test]
fn a_row_too_few_in_q6_k_gemv() {
    let (find, replace) = ("KQM_TILE_ROWS && r < a.w.rows;", "KQM_TILE_ROWS && r + 1 < a.w.rows;");
    check(q6_k_gemv, "q6_k_gemv.cu", "common/matvec.cuh", find, replace, Found::Values(&["1 of 28", "first [27]"]));
}

#[test]
fn a_dropped_barrier_in_moe_router() {
    let (find, replace) = (
        "  __syncthreads();\n  if (threadIdx.x == 0) {\n    const double sum",
        "  if (threadIdx.x == 0) {\n    const double sum",
    );
    let found = Found::Report(&[Failure::Race], &["kernel moe_router_kernel", "block (", "thread (", "run_sum["]);
    check(moe_router, "moe_router.cu", "moe_router.cu", find, replace, found);
}

#[test]
fn a_dropped_barrier_in_the_matvec() {
    let (find, replace) = ("  __syncthreads();\n  if (!finishes) return;", "  if (!finishes) return;");
    let found =
        Found::Report(&[Failure::Race], &["kernel kqm_matvec_tile_kernel", "block (", "thread (", "contributions["]);
    check(q4_k_matvec, "q4_k_matvec.cu", "common/matvec.cuh", find, replace, found);
}

/// The shuffles between the stores and the loads order nothing.
#[test]
fn a_dropped_warp_barrier_in_moe_down() {
    let (find, replace) = ("  __syncwarp();\n  kqm_contribute_packed(tile", "  kqm_contribute_packed(tile");
    let words = &["kernel moe_down_one_token_rows", "block (", "thread (", "fixed[", "fixed.cuh:", "tiles.cuh:"];
    check(moe_down, "moe_down.cu", "moe_down.cu", find, replace, Found::Report(&[Failure::Race], words));
}

/// A NaN as the card makes it, not as kernels store it.
#[test]
fn a_nan_that_is_not_made_canonical_in_the_router() {
    let (find, replace) =
        ("kqm_canonical(float(__ddiv_rn(double(probability), sum)))", "float(__ddiv_rn(double(probability), sum))");
    let found = Found::Values(&["4 of 4", "got NaN (0x7fffffff), expected NaN (0x7fc00000)"]);
    check(moe_router_of_nan, "moe_router.cu", "common/choose.cuh", find, replace, found);
}

#[test]
fn a_shuffle_with_a_wrong_mask_in_the_tree() {
    let (find, replace) = ("x = x + __shfl_xor_sync(~0u, x, step)", "x = x + __shfl_xor_sync(0x0000ffffu, x, step)");
    let failures = &[Failure::BadMask, Failure::BadShuffle];
    let found = Found::Report(failures, &["kernel rms_norm_kernel", "block (", "thread (", "tree.cuh:"]);
    check(rms_norm, "rms_norm.cu", "common/tree.cuh", find, replace, found);
}

#[test]
fn a_step_of_a_reduction_left_out() {
    let (find, replace) = ("sum[p] += __shfl_xor_sync(~0u, sum[p], 2);", "");
    check(quantize, "quantize.cu", "common/fixed.cuh", find, replace, Found::Values(&["first ["]));
}

#[test]
fn a_swapped_nibble_in_the_q4_k_tile() {
    let (find, replace) = ("j % 2 ? 0xf0f0f0f0u : 0x0f0f0f0fu", "j % 2 ? 0x0f0f0f0fu : 0xf0f0f0f0u");
    check(
        q4_k_matvec,
        "q4_k_matvec.cu",
        "common/types/q4_k.cuh",
        find,
        replace,
        Found::Values(&["of 28 values differ", "first [0]"]),
    );
}

#[test]
fn a_row_pair_swapped_in_the_q6_k_tile() {
    let (find, replace) = ("m % 2 ? low.y : low.x", "m % 2 ? low.w : low.x");
    check(q6_k_gemv, "q6_k_gemv.cu", "common/types/q6_k.cuh", find, replace, Found::Values(&["first [0]"]));
}
