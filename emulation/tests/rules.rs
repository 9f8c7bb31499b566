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

/// The kernel must fail, under every schedule, with a race of the accesses in the marked lines, and the report must name both.
fn races(name: &str, marks: [&str; 2]) {
    breaks(name, Failure::Race, &marks, &["with nothing between them"]);
    let Some(library) = library("rules") else { return };
    for seed in 0..10 {
        library.set_schedule(seed);
        run(library, name, THREADS);
        let report = library.last_error();
        for mark in marks {
            let place = format!("rules.cu:{}", line(mark));
            let named = report
                .match_indices(&place)
                .any(|(at, _)| !report[at + place.len()..].starts_with(|c: char| c.is_ascii_digit()));
            assert!(named, "{name}, schedule {seed}, {mark}: {report}");
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
    breaks("load_ends_outside", Failure::OutOfBounds, &["load ends outside"], &["values[252]", "elements 0 to 253"]);
    breaks("store_ends_outside", Failure::OutOfBounds, &["store ends outside"], &["bytes[252]", "elements 0 to 254"]);
    breaks("copy_ends_outside", Failure::OutOfBounds, &["copy ends outside"], &["values[252]", "elements 0 to 252"]);
    breaks("slice_too_short", Failure::OutOfBounds, &["slice too short"], &["values[6", "elements 4 to 63"]);
}

#[test]
fn vectors_are_aligned() {
    breaks("vector_misaligned", Failure::Misaligned, &["misaligned vector"], &["values[37]", "thread (9,0,0)"]);
    breaks("global_misaligned", Failure::Misaligned, &["misaligned global vector"], &["16 bytes"]);
}

#[test]
fn shared_accesses_are_ordered() {
    races("read_across_warps", ["read across warps", "write across warps"]);
    races("write_after_read", ["write after read", "read before write"]);
    breaks("writes_of_two", Failure::Race, &["writes of two"], &["wrote at rules.cu:"]);
    races("bytes_of_two", ["bytes of two", "own byte"]);
    races("half_warps_apart", ["half warps apart", "write of a half warp"]);
    races("atomic_and_plain", ["plain read beside atomics", "atomic beside plain reads"]);
}

/// One thread of each warp, in every order: what is judged are the two, not who came last or the lane.
#[test]
fn accesses_of_two_warps_are_ordered() {
    races("writes_of_two_warps", ["write of warp 0", "write of warp 1"]);
    races("warp_0_reads_warp_1_writes", ["read of warp 0", "write of warp 1 after it"]);
    races("warp_1_reads_warp_0_writes", ["read of warp 1", "write of warp 0 beside it"]);
    races("both_warps_read", ["other warp's read", "write after own warp's read"]);
    races("lane_reads_other_writes", ["read of lane 4", "write of lane 9"]);
    races("other_lane_writes", ["read behind the barrier", "write behind the barrier"]);
    races("atomic_hides_atomic", ["atomic of both warps", "read after one of them"]);
    races("own_atomic_hides_atomic", ["atomic of both lanes", "read after the own one"]);
}

#[test]
fn only_barriers_order_memory_within_a_warp() {
    let kernels =
        ["shuffle_orders_nothing", "vote_orders_nothing", "reduction_orders_nothing", "product_orders_nothing"];
    for kernel in kernels {
        races(kernel, ["write before no barrier", "read after no barrier"]);
    }
    races("shuffle_before_write", ["read before shuffle", "write after shuffle"]);
}

/// A read that comes before the write although nothing orders them is a race, whoever runs first; one that is ordered before every write,
/// or is of what nobody writes, is of nothing.
#[test]
fn missing_barriers_are_no_missing_writes() {
    breaks(
        "read_without_barrier",
        Failure::Race,
        &["read without barrier"],
        &["at rules.cu:", "with nothing between them"],
    );
    let words = format!("writes at rules.cu:{}", line("first write"));
    breaks("written_after_barrier", Failure::Uninitialised, &["read before any write"], &[&words, "only later"]);
    breaks("garbage_as_index", Failure::Uninitialised, &["index of garbage"], &["values["]);
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
        let found = matches!(failure, Some(Failure::Race | Failure::AsyncCopy));
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

/// Launches kernels one after the other on two buffers, with `true` after the host has waited; the last one must fail as the marked line
/// and the words say (`None`: all pass). Each kernel writes the first buffer, or, with a star, the second one from the first.
fn chain(kernels: &[&str], found: Option<(&str, &[&str])>) {
    let Some(library) = library("rules") else { return };
    // SAFETY: the type is that of the source.
    let rule: Rule = unsafe { library.function("test_rule") }.unwrap();
    for seed in 0..5 {
        library.set_schedule(seed);
        let (first, second) = (Buffer::from_slice(&[0; 256]), Buffer::from_slice(&[0; 256]));
        for (number, &text) in kernels.iter().enumerate() {
            if text == "the host waits" {
                kquant_moe_emulation::synchronize();
                continue;
            }
            let name = text.trim_end_matches('*');
            let (out, input) = if name == text { (&first, &second) } else { (&second, &first) };
            let c_name = CString::new(name).unwrap();
            // SAFETY: the buffers are larger than what the kernels take.
            let status = unsafe { rule(c_name.as_ptr(), out.as_ptr(), input.as_ptr(), THREADS) };
            let report = library.last_error();
            let Some((mark, words)) = found.filter(|_| number + 1 == kernels.len()) else {
                assert_eq!(status, 0, "{kernels:?}, schedule {seed}: {report}");
                continue;
            };
            assert_eq!(
                Failure::from_status(status),
                Some(Failure::Dependency),
                "{kernels:?}, schedule {seed}: {report}"
            );
            let place = format!("kernel {name}, ");
            assert!(report.starts_with(&place), "{report}");
            assert!(report.contains(&format!("rules.cu:{}: ", line(mark))), "{kernels:?}, {mark}: {report}");
            for word in words {
                assert!(report.contains(word), "{kernels:?}, {word}: {report}");
            }
            if seed == 0 {
                println!("{report}");
            }
        }
    }
    library.set_schedule(0);
}

#[test]
fn what_may_still_be_written_is_not_read_before_the_wait() {
    if SANITIZED {
        return; // accesses of global memory are not seen
    }
    let reads: Option<(&str, &[&str])> =
        Some(("reads early", &["before its wait", "what kernel writes wrote", "buffer of 1024 bytes"]));
    chain(&["writes", "copies*"], None);
    chain(&["writes", "reads_early*"], reads);
    chain(&["writes", "the host waits", "reads_early*"], None);
    // Other bytes of the same buffer.
    chain(&["writes", "reads_elsewhere_early*"], None);
    let copies: Option<(&str, &[&str])> = Some(("copies early", &["before its wait", "what kernel writes wrote"]));
    chain(&["writes", "copies_to_shared_early*"], copies);
    chain(&["writes", "the host waits", "copies_to_shared_early*"], None);
    // The wait of one thread is for those that meet it afterwards.
    chain(&["writes", "one_waits_for_all*"], None);
    chain(
        &["writes", "one_waits_for_itself*"],
        Some(("others have not waited", &["before its wait", "what kernel writes wrote"])),
    );
    chain(
        &["writes", "writes_early"],
        Some(("writes early", &["before its wait", "while kernel writes may still run"])),
    );
    chain(&["the host waits", "writes_early"], None);
}

/// A kernel between the two that waits before it releases, in every thread, holds the successor's launch back until the first is complete.
#[test]
fn releases_before_the_wait_let_launches_overlap_more_than_one_other() {
    if SANITIZED {
        return; // accesses of global memory are not seen
    }
    let reads: Option<(&str, &[&str])> = Some(("reads early", &["before its wait", "what kernel writes wrote"]));
    chain(&["writes", "waits_first*", "reads_early*"], None);
    chain(&["writes", "never_releases*", "reads_early*"], None);
    chain(&["writes", "copies*", "reads_early*"], reads);
    chain(&["writes", "one_releases_first*", "reads_early*"], reads);
    chain(&["writes", "copies*", "copies*", "one_releases_first*", "reads_early*"], reads);
    chain(&["writes", "waits_first*", "copies*", "copies*", "reads_early*"], None);
    chain(&["writes", "copies*", "waits_first*", "copies*", "reads_early*"], None);
    // What its direct predecessor writes, nobody may read early.
    let direct: Option<(&str, &[&str])> = Some(("reads early", &["what kernel waits_first wrote"]));
    chain(&["waits_first", "reads_early*"], direct);
    // A wait is for the predecessor alone: everything before it is complete only if that one has waited, too.
    chain(&["writes", "never_waits*", "copies*"], Some(("copies", &["did not wait", "what kernel writes wrote"])));
    chain(&["writes", "never_waits*", "the host waits", "copies*"], None);
    let writes: Option<(&str, &[&str])> = Some(("copies", &["did not wait", "while kernel waits_first may still run"]));
    chain(&["writes", "waits_first*", "never_waits*", "copies*"], writes);
}

#[test]
fn nans_of_arithmetic_are_not_those_that_kernels_store() {
    passes("nan_payloads", |_| 0);
}

/// Blocks run in another order under each schedule, so that a kernel that depends on it is noticed.
#[test]
fn schedules_shuffle_blocks() {
    let Some(library) = library("rules") else { return };
    // SAFETY: the type is that of the source.
    let launch: unsafe extern "C" fn(*mut i32, u32) -> i32 = unsafe { library.function("test_block_order") }.unwrap();
    let order = |seed| {
        library.set_schedule(seed);
        let out = Buffer::<i32>::filled(66, 0);
        // SAFETY: the buffer has the size that the kernel takes.
        assert_eq!(unsafe { launch(out.as_ptr(), 8) }, 0, "{}", library.last_error());
        out.to_vec()[..8].to_vec()
    };
    assert_eq!(order(0), (0..8).collect::<Vec<_>>());
    let orders: Vec<Vec<i32>> = (1..=64).map(order).collect();
    for order in &orders {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..8).collect::<Vec<_>>());
    }
    // Each block comes first and last under some schedule, and each of two neighbours before the other.
    for block in 0..8 {
        assert!(
            orders.iter().any(|order| order[block] == 0) && orders.iter().any(|order| order[block] == 7),
            "block {block}"
        );
    }
    for block in 1..8 {
        let ascending = orders.iter().filter(|order| order[block - 1] < order[block]).count();
        assert!((16..=48).contains(&ascending), "blocks {} and {block}: {ascending} times in order", block - 1);
    }
    library.set_schedule(0);
}

#[test]
fn kernels_that_keep_the_rules_pass() {
    passes("warp_barrier_orders", |_| 1);
    passes("reader_writes", |_| 2);
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
