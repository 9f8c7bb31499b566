//! Opening a file allocates in proportion to its metadata, whatever the file claims.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kquant_moe::blocks::TensorType;
use kquant_moe::gguf::{Gguf, Header};

#[path = "gguf/malformed.rs"]
mod malformed;

/// Counts what a thread has allocated, and the most that it had at once.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // Allocations while a thread ends are not of interest.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

// SAFETY: passes everything on to the system's allocator; `realloc` and `alloc_zeroed` come from the trait and use these.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were allocated at once while the file was opened, beyond the file itself.
fn peak_of_opening(bytes: Vec<u8>) -> usize {
    let before = NOW.get();
    PEAK.set(before);
    let opened = Gguf::from_vec("x", bytes);
    let peak = PEAK.get() - before;
    drop(opened);
    usize::try_from(peak).unwrap()
}

#[test]
fn broken_files_cannot_make_it_large() {
    for case in malformed::corpus() {
        let length = case.bytes.len();
        let peak = peak_of_opening(case.bytes);
        assert!(
            peak <= 8 * length + 4096,
            "{} ({}: {}): {peak} bytes for a file of {length}",
            case.name,
            case.place,
            case.rule
        );
    }
}

#[test]
fn the_smallest_entries_cost_a_small_multiple() {
    let mut header = Header::new("x");
    for n in 0..65_536_u32 {
        // Two or three characters each.
        let name = char::from_u32(0x4e00 + n % 0x5000).unwrap().to_string();
        let name = format!("{name}{}", n / 0x5000);
        header.set(&name, &1_u8).unwrap();
    }
    let bytes = header.begin(Vec::new()).unwrap().finish().unwrap();
    let length = bytes.len();
    let peak = peak_of_opening(bytes);
    assert!(peak < 16 * length, "{peak} bytes for a file of {length}");
}

#[test]
fn arrays_and_tensor_data_stay_in_the_file() {
    let mut header = Header::new("x");
    let words: Vec<String> = (0..100_000).map(|n| format!("word {n}")).collect();
    header.set("words", &words).unwrap();
    header.set("numbers", &vec![7_i32; 100_000]).unwrap();
    header.tensor("t", TensorType::F32, &[1 << 20]).unwrap();
    let mut writer = header.begin(Vec::new()).unwrap();
    writer.write("t", &vec![0; 4 << 20]).unwrap();
    let peak = peak_of_opening(writer.finish().unwrap());
    assert!(peak < 4096, "{peak} bytes");
}
