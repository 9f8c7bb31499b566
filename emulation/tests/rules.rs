//! Every rule of the programming model that the emulation checks: a kernel that breaks it fails with the right status,
//! and the report says in which kernel, thread and line; a kernel that comes close passes.

mod common;

use std::ffi::{CString, c_char};
use std::time::Duration;

use common::{library, sources};
use kquant_moe_emulation::{Buffer, Failure, FreeError, Library, POISON, available};

type Rule = unsafe extern "C" fn(*const c_char, *mut i32, *const i32, u32) -> i32;

const THREADS: u32 = 64;

/// Whether sanitizers were compiled in: what they find first, they end the program for.
const SANITIZED: bool = option_env!("KQUANT_MOE_EMULATION_SANITIZE").is_some();

/// Runs a kernel of `rules.cu`; gives its status and the first 64 elements of its output.
fn run(library: &Library, name: &str, threads: u32) -> (i32, Vec<i32>) {
    // SAFETY: the type is that of the source.
    let rule: Rule = unsafe { library.function("test_rule") }.unwrap();
    let text = CString::new(name).unwrap();
    let out = Buffer::<i32>::filled(66, 0);
    let input = Buffer::<i32>::filled(256, 0);
    // SAFETY: the buffers have the sizes that the kernels take; where kernels leave them is what the tests are about.
    let status = unsafe { rule(text.as_ptr(), out.as_ptr(), input.as_ptr(), threads) };
    (status, out.to_vec()[..64].to_vec())
}

/// The line of `rules.cu` with that mark.
fn line(mark: &str) -> usize {
    let text = std::fs::read_to_string(sources("rules").join("rules.cu")).unwrap();
    let mark = format!("//! {mark}");
    let lines: Vec<usize> = (1..).zip(text.lines()).filter(|(_, l)| l.ends_with(&mark)).map(|(n, _)| n).collect();
    assert_eq!(lines.len(), 1, "{mark}");
    lines[0]
}

/// The kernel must fail, under every schedule, with the failure, at one of the marked lines (none: no line is known),
/// and say the words.
fn breaks(name: &str, failure: Failure, marks: &[&str], words: &[&str]) {
    breaks_with(name, THREADS, failure, marks, words)
}

fn breaks_with(name: &str, threads: u32, failure: Failure, marks: &[&str], words: &[&str]) {
    let Some(library) = library("rules") else { return };
    library.set_time_limit(Duration::from_secs(5));
    for seed in 0..10 {
        library.set_schedule(seed);
        let (status, _) = run(library, name, threads);
        let report = library.last_error();
        assert_eq!(Failure::from_status(status), Some(failure), "{name}, schedule {seed}: {status}: {report}");
        assert_eq!(library.last_status(), status);
        assert!(report.starts_with(&format!("kernel {name}, ")), "{report}");
        for part in ["block (", "thread (", "warp ", "lane "] {
            assert!(report.contains(part), "{part}: {report}");
        }
        let at_marks = marks.iter().any(|mark| report.contains(&format!("rules.cu:{}", line(mark))));
        assert!(marks.is_empty() || at_marks, "{name}, schedule {seed}, {marks:?}: {report}");
        for word in words {
            assert!(report.contains(word), "{name}, schedule {seed}, {word}: {report}");
        }
        if seed == 0 {
            println!("{report}");
        }
    }
    library.set_schedule(0);
}

/// The kernel must pass under every schedule and compute `expected(thread)`.
fn passes(name: &str, expected: impl Fn(usize) -> i32) {
    let Some(library) = library("rules") else { return };
    for seed in 0..50 {
        library.set_schedule(seed);
        let (status, out) = run(library, name, THREADS);
        assert_eq!(status, 0, "{name}, schedule {seed}: {}", library.last_error());
        assert_eq!(out, (0..64).map(&expected).collect::<Vec<_>>(), "{name}, schedule {seed}");
    }
    library.set_schedule(0);
}

#[test]
fn barriers_are_for_all_threads() {
    breaks("barrier_without_some", Failure::Divergence, &["barrier after exit"], &["exit"]);
    let marks = ["one barrier", "other barrier"];
    breaks("barriers_at_two_places", Failure::Divergence, &marks, &["in another one at rules.cu"]);
}

#[test]
fn warp_operations_are_for_all_lanes_of_the_mask() {
    breaks("shuffle_after_exit", Failure::Divergence, &["shuffle after exit"], &["exit"]);
    let marks = ["lane 3 in barrier", "others in shuffle"];
    breaks_with("warp_waits_at_barrier", 32, Failure::Deadlock, &marks, &["wait in __syncthreads", "wait in shuffle"]);
    breaks(
        "shuffles_at_two_places",
        Failure::Divergence,
        &["one shuffle", "other shuffle"],
        &["of the same mask wait"],
    );
    breaks("masks_differ", Failure::Divergence, &["masks differ"], &["at the same place with mask"]);
}

#[test]
fn masks_name_the_caller_and_lanes_that_exist() {
    breaks("mask_without_caller", Failure::BadMask, &["mask without caller"], &["0000ffff", "warp 0, lane "]);
    breaks_with("mask_of_absent_lanes", 40, Failure::BadMask, &["absent lanes"], &["lanes 8-31", "block of 40"]);
}

#[test]
fn shuffles_read_lanes_of_their_mask() {
    breaks("shuffle_from_outside", Failure::BadShuffle, &["source outside mask"], &["reads lane 16", "lane 8)"]);
    breaks("shuffle_of_odd_width", Failure::BadShuffle, &["odd width"], &["width 12"]);
}

#[test]
fn shared_memory_is_written_before_it_is_read() {
    breaks("read_of_unwritten", Failure::Uninitialised, &["unwritten element"], &["thread (5,0,0)", "values[5]"]);
    breaks("read_of_last_block", Failure::Uninitialised, &["written by another block"], &["block (1,0,0)"]);
    breaks("read_of_unwritten_byte", Failure::Uninitialised, &["word with an unwritten byte"], &["bytes["]);
}

#[test]
fn shared_arrays_have_bounds() {
    breaks("index_too_large", Failure::OutOfBounds, &["index too large"], &["values[63]", "elements 0 to 62"]);
    breaks("index_negative", Failure::OutOfBounds, &["negative index"], &["values[-1]", "thread (0,0,0)"]);
    breaks("slice_too_short", Failure::OutOfBounds, &["slice too short"], &["values[6", "elements 4 to 63"]);
}

#[test]
fn vectors_are_aligned() {
    breaks("vector_misaligned", Failure::Misaligned, &["misaligned vector"], &["values[37]", "thread (9,0,0)"]);
    breaks("global_misaligned", Failure::Misaligned, &["misaligned global vector"], &["16 bytes"]);
}

#[test]
fn shared_accesses_are_ordered() {
    breaks("read_across_warps", Failure::Race, &["read across warps", "write across warps"], &["at line"]);
    breaks("write_after_read", Failure::Race, &["write after read", "read before write"], &["at line"]);
    breaks("writes_of_two", Failure::Race, &["writes of two"], &["wrote at line"]);
    breaks("bytes_of_two", Failure::Race, &["bytes of two", "own byte"], &["at line"]);
    breaks("half_warps_apart", Failure::Race, &["half warps apart", "write of a half warp"], &["at line"]);
    breaks(
        "atomic_and_plain",
        Failure::Race,
        &["plain read beside atomics", "atomic beside plain reads"],
        &["at line"],
    );
}

#[test]
fn threads_that_have_not_begun_have_written_nothing() {
    // Which of the two is found depends on who runs first: the reader, or the writer.
    let Some(library) = library("rules") else { return };
    for seed in 0..10 {
        library.set_schedule(seed);
        let (status, _) = run(library, "read_without_barrier", THREADS);
        let failure = Failure::from_status(status);
        assert!(matches!(failure, Some(Failure::Race | Failure::Uninitialised)), "{status}: {}", library.last_error());
        assert!(library.last_error().contains(&format!("rules.cu:{}", line("read without barrier"))));
    }
    library.set_schedule(0);
}

#[test]
fn asynchronous_copies_arrive_when_awaited() {
    breaks("copy_not_awaited", Failure::AsyncCopy, &["copy not awaited"], &["values["]);
    breaks("newest_copy_not_awaited", Failure::AsyncCopy, &["newest copy not awaited"], &["values["]);
}

#[test]
fn asynchronous_copies_reach_others_after_a_barrier() {
    let Some(library) = library("rules") else { return };
    for seed in 0..10 {
        library.set_schedule(seed);
        let (status, _) = run(library, "copy_without_barrier", THREADS);
        let failure = Failure::from_status(status);
        let found = matches!(failure, Some(Failure::Race | Failure::Uninitialised | Failure::AsyncCopy));
        assert!(found, "{status}: {}", library.last_error());
        assert!(library.last_error().contains(&format!("rules.cu:{}", line("copy without barrier"))));
    }
    library.set_schedule(0);
}

#[test]
fn accesses_stay_in_buffers() {
    breaks("read_past_end", Failure::MemoryFault, &[], &["bytes past the end of the buffer of 1024 bytes"]);
    breaks("read_far_past_end", Failure::MemoryFault, &[], &["past the end of the buffer of 1024 bytes"]);
    breaks("read_far_before_begin", Failure::MemoryFault, &[], &["before the buffer of 1024 bytes"]);
    breaks("read_before_begin", Failure::MemoryFault, &[], &["before the buffer of 1024 bytes"]);
    if !SANITIZED {
        breaks("read_null", Failure::MemoryFault, &[], &["null"]);
    }
}

#[test]
fn bytes_after_a_buffer_are_watched() {
    let Some(library) = library("rules") else { return };
    if SANITIZED {
        return; // the sanitizer knows these bytes, and ends the program
    }
    // SAFETY: the type is that of the source.
    let rule: Rule = unsafe { library.function("test_rule") }.unwrap();
    // 66 elements are 8 bytes short of a multiple of 16; elements 66 and 67 lie there, before the guard page.
    let out = kquant_moe_emulation::alloc(66 * 4, POISON);
    // SAFETY: the kernel writes where it should not, but where nothing else lies.
    let (status, freed) = unsafe {
        let status = rule(c"write_past_end".as_ptr(), out.cast(), out.cast(), THREADS);
        (status, kquant_moe_emulation::free(out))
    };
    let report = library.last_error();
    assert_eq!(Failure::from_status(status), Some(Failure::BufferOverrun), "{report}");
    assert!(report.contains("kernel write_past_end") && report.contains("buffer of 264 bytes"), "{report}");
    assert_eq!(freed, Err(FreeError::After));
}

#[test]
fn buffers_are_watched_on_both_sides() {
    if available().is_err() || SANITIZED {
        return;
    }
    // SAFETY: the bytes next to the buffer are canaries.
    unsafe {
        let memory = kquant_moe_emulation::alloc(100, 0);
        assert_eq!(memory as usize % 16, 0);
        memory.add(100).write(1);
        assert_eq!(kquant_moe_emulation::free(memory), Err(FreeError::After));
        let memory = kquant_moe_emulation::alloc(100, 0);
        memory.sub(1).write(1);
        assert_eq!(kquant_moe_emulation::free(memory), Err(FreeError::Before));
        let memory = kquant_moe_emulation::alloc(0, 0);
        assert_eq!(kquant_moe_emulation::free(memory), Ok(()));
        assert_eq!(kquant_moe_emulation::free(memory), Err(FreeError::Unknown));
    }
}

#[test]
fn faults_of_the_processor_are_reported() {
    breaks("endless_recursion", Failure::StackOverflow, &[], &["KiB of stack"]);
    if !SANITIZED {
        breaks("division_by_zero", Failure::ArithmeticTrap, &[], &["division by zero"]);
    }
}

#[test]
fn launches_end() {
    let Some(library) = library("rules") else { return };
    library.set_time_limit(Duration::from_millis(50));
    let (status, _) = run(library, "endless_loop", THREADS);
    assert_eq!(Failure::from_status(status), Some(Failure::TimeLimit), "{}", library.last_error());
    let (status, _) = run(library, "endless_polling", THREADS);
    assert_eq!(Failure::from_status(status), Some(Failure::TimeLimit), "{}", library.last_error());
    let place = format!("rules.cu:{}", line("endless polling"));
    assert!(library.last_error().contains(&place), "{}", library.last_error());
}

#[test]
fn launches_have_limits() {
    breaks("too_much_shared", Failure::BadLaunch, &[], &["80000 bytes of static"]);
    let Some(library) = library("rules") else { return };
    // SAFETY: the type is that of the source.
    let launch: unsafe extern "C" fn(*mut i32, u32, u32, usize) -> i32 =
        unsafe { library.function("test_launch") }.unwrap();
    let out = Buffer::<i32>::new(1);
    const INVALID_CONFIGURATION: i32 = 9;
    for (grid, threads) in [(0, 32), (1, 0), (1, 1025)] {
        // SAFETY: the launch is refused.
        assert_eq!(unsafe { launch(out.as_ptr(), grid, threads, 0) }, INVALID_CONFIGURATION);
        assert!(library.last_error().contains("cannot be launched"));
    }
    // SAFETY: the launch is refused.
    let status = unsafe { launch(out.as_ptr(), 1, 32, 101377) };
    assert_eq!(Failure::from_status(status), Some(Failure::BadLaunch));
}

#[test]
fn kernels_that_keep_the_rules_pass() {
    passes("lanes_meet_in_parts", |thread| {
        let lane = (thread % 32) as i32;
        let halves = |lane: i32| if lane < 16 { (lane & !3) * 4 + 6 } else { lane };
        let all = |lane: i32| halves(lane) + halves(lane ^ 16);
        if lane % 2 == 1 { all(lane) + all(lane ^ 2) } else { all(lane) }
    });
    passes("ordered_in_parts", |thread| {
        let seen = (thread ^ 8) as i32;
        let last = if thread % 32 >= 8 && thread % 32 < 16 { -1 } else { thread as i32 };
        seen + 1000 * last
    });
    passes("polling_within_block", |_| 1);
    passes("atomics_on_shared", |_| 63 * 64 / 2 * 100 + 63);
    passes("votes", |_| 16 + 100 * 32 + 10000 + 100_000);
    passes("shuffles", |thread| {
        let lane = (thread % 32) as i64;
        let up = if lane < 3 { lane } else { lane - 3 };
        let down = if lane % 8 + 3 >= 8 { lane } else { lane + 3 };
        let sum = 5 + 100 * up + 10_000 * down + 1_000_000 * (lane ^ 31) + 100_000_000 * (lane / 8 * 8 + 1);
        (sum % 1_000_000_007) as i32
    });
    passes("shared_elements", |thread| (thread as i32 | 128) + 1 + 15 + 30);
}
