//! Kernels without faults give the right results, in every order of threads and blocks.

mod common;

use common::library;
use kquant_moe_emulation::{Buffer, Library, synchronize};

type Reduce = unsafe extern "C" fn(*const f32, *mut f32, u32, u32) -> i32;
type Product = unsafe extern "C" fn(*const u8, *const i8, *mut i32, u32) -> i32;
type SignedProduct = unsafe extern "C" fn(*const u32, *const u32, *mut i32) -> i32;
type Gather = unsafe extern "C" fn(*const u8, *const u32, *mut u8, u32, u32) -> i32;

/// A sequence of numbers that looks random and is the same each time.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
}

fn check(library: &Library, status: i32) {
    assert_eq!(status, 0, "{}", library.last_error());
    assert_eq!(library.last_error(), "");
}

#[test]
fn reductions_add_every_element() {
    let Some(library) = library("kernels") else { return };
    // SAFETY: the type is that of the source.
    let reduce: Reduce = unsafe { library.function("test_reduce") }.unwrap();
    for seed in 0..20 {
        library.set_schedule(seed);
        for columns in [1u32, 31, 128, 1000] {
            let rows = 5;
            let x: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let (input, output) = (Buffer::from_slice(&x), Buffer::new(rows as usize));
            // SAFETY: the buffers have the sizes that the kernel takes.
            check(library, unsafe { reduce(input.as_ptr(), output.as_ptr(), rows, columns) });
            let sums: Vec<f32> = x.chunks(columns as usize).map(|row| row.iter().sum()).collect();
            assert_eq!(output.to_vec(), sums, "{columns} columns, schedule {seed}");
        }
    }
}

#[test]
fn products_follow_the_fragment_layout() {
    let Some(library) = library("kernels") else { return };
    // SAFETY: the type is that of the source.
    let product: Product = unsafe { library.function("test_product") }.unwrap();
    let mut sequence = Sequence(1);
    for seed in 0..8 {
        library.set_schedule(seed);
        let tiles = 6;
        let weights: Vec<u8> = (0..tiles * 256).map(|_| sequence.next() as u8).collect();
        let columns: Vec<i8> = (0..256).map(|_| sequence.next() as i8).collect();
        let (w, c) = (Buffer::from_slice(&weights), Buffer::from_slice(&columns));
        let d = Buffer::<i32>::new(tiles * 128);
        // SAFETY: the buffers have the sizes that the kernel takes.
        check(library, unsafe { product(w.as_ptr(), c.as_ptr(), d.as_ptr(), tiles as u32) });
        let d = d.to_vec();
        for tile in 0..tiles {
            for row in 0..16 {
                for column in 0..8 {
                    let sum: i32 = (0..32)
                        .map(|k| {
                            let byte = weights[tile * 256 + row * 16 + k % 16];
                            let weight = if k < 16 { byte & 15 } else { byte & 0xf0 };
                            i32::from(weight) * i32::from(columns[column * 32 + k])
                        })
                        .sum();
                    assert_eq!(d[tile * 128 + row * 8 + column], sum, "tile {tile}, row {row}, column {column}");
                }
            }
        }
    }
}

/// Products of two signed operands, `k` deep: rows and columns to fragments, after the PTX manual: of each 16 elements, element k of row r
/// is byte k % 4 of the first (rows 0 to 7) or second register of lane 4 (r % 8) + k / 4.
fn signed_products_accumulate_and_wrap(name: &str, k: usize) {
    let Some(library) = library("kernels") else { return };
    library.set_schedule(3);
    // SAFETY: the type is that of the source.
    let product: SignedProduct = unsafe { library.function(name) }.unwrap();
    let mut sequence = Sequence(2);
    let a: Vec<i8> = (0..16 * k).map(|_| sequence.next() as i8).collect();
    let b: Vec<i8> = (0..8 * k).map(|_| sequence.next() as i8).collect();
    let start: Vec<i32> =
        (0..128).map(|_| if sequence.next().is_multiple_of(2) { i32::MAX } else { i32::MIN }).collect();
    let word = |bytes: &[i8]| u32::from_le_bytes([bytes[0] as u8, bytes[1] as u8, bytes[2] as u8, bytes[3] as u8]);
    let (mut fragment_a, mut fragment_b, mut fragment_d) = (vec![], vec![], vec![0; 128]);
    for lane in 0..32 {
        let (g, c) = (lane / 4, lane % 4);
        for first in (0..k).step_by(16) {
            fragment_a.push(word(&a[g * k + first + 4 * c..]));
            fragment_a.push(word(&a[(g + 8) * k + first + 4 * c..]));
            fragment_b.push(word(&b[g * k + first + 4 * c..]));
        }
        for i in 0..4 {
            fragment_d[4 * lane + i] = start[(g + 8 * (i / 2)) * 8 + 2 * c + i % 2];
        }
    }
    let (device_a, device_b) = (Buffer::from_slice(&fragment_a), Buffer::from_slice(&fragment_b));
    let device_d = Buffer::from_slice(&fragment_d);
    // SAFETY: the buffers have the sizes that the kernel takes.
    check(library, unsafe { product(device_a.as_ptr(), device_b.as_ptr(), device_d.as_ptr()) });
    let d = device_d.to_vec();
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let sum: i32 = (0..k).map(|i| i32::from(a[row * k + i]) * i32::from(b[column * k + i])).sum();
            assert_eq!(d[4 * lane + i], start[row * 8 + column].wrapping_add(sum));
        }
    }
}

#[test]
fn short_products_accumulate_and_wrap() {
    signed_products_accumulate_and_wrap("test_product_k16", 16);
}

#[test]
fn signed_products_of_32_accumulate_and_wrap() {
    signed_products_accumulate_and_wrap("test_product_signed", 32);
}

#[test]
fn gathers_copy_rows() {
    let Some(library) = library("kernels") else { return };
    // SAFETY: the type is that of the source.
    let gather: Gather = unsafe { library.function("test_gather") }.unwrap();
    for seed in 0..8 {
        library.set_schedule(seed);
        let (rows, row_bytes) = (7usize, 2064usize);
        let table: Vec<u8> = (0..rows * row_bytes).map(|i| (i * 31 / 7) as u8).collect();
        let index = [6u32, 0, 3, 6];
        let (device_table, device_index) = (Buffer::from_slice(&table), Buffer::from_slice(&index));
        let out = Buffer::<u8>::new(index.len() * row_bytes);
        // SAFETY: the buffers have the sizes that the kernel takes.
        let status = unsafe {
            gather(device_table.as_ptr(), device_index.as_ptr(), out.as_ptr(), index.len() as u32, row_bytes as u32)
        };
        check(library, status);
        let expected: Vec<u8> =
            index.iter().flat_map(|&i| &table[i as usize * row_bytes..][..row_bytes]).copied().collect();
        assert_eq!(out.to_vec(), expected);
    }
}

/// Launches that are recorded do nothing until they are replayed, as often as one likes, with the arguments of their call.
#[test]
fn recorded_launches_are_made_when_they_are_replayed() {
    let Some(library) = library("kernels") else { return };
    // SAFETY: the type is that of the source.
    let reduce: Reduce = unsafe { library.function("test_reduce") }.unwrap();
    let (rows, columns) = (3_u32, 100_u32);
    let x: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
    let sums: Vec<f32> = x.chunks(columns as usize).map(|row| row.iter().sum()).collect();
    let input = Buffer::from_slice(&x);
    let outputs = [Buffer::<f32>::filled(rows as usize, 0), Buffer::filled(rows as usize, 0)];
    let launches = library.statistics().launches;
    let (statuses, recording) = library.record(|| {
        // SAFETY: the buffers have the sizes that the kernel takes.
        outputs.each_ref().map(|output| unsafe { reduce(input.as_ptr(), output.as_ptr(), rows, columns) })
    });
    assert_eq!((statuses, recording.launches()), ([0, 0], 2));
    assert_eq!(library.statistics().launches, launches);
    for output in &outputs {
        assert_eq!(output.to_vec(), [0.0; 3]);
    }
    for replay in 1..4 {
        let mut before = 0;
        // SAFETY: the buffers are still there.
        let replayed = unsafe {
            recording.replay(|| {
                before += 1;
                // The kernel does not wait for the launch before it.
                synchronize();
            })
        };
        assert_eq!((replayed, before), (Ok(()), 2), "{}", library.last_error());
        assert_eq!(library.statistics().launches, launches + 2 * replay);
        for output in &outputs {
            assert_eq!(output.to_vec(), sums);
        }
    }
    // Nothing is recorded any more, and what cannot be launched cannot be recorded.
    // SAFETY: nothing is launched.
    let (status, refused) = library.record(|| unsafe { reduce(input.as_ptr(), outputs[0].as_ptr(), 0, columns) });
    assert_eq!((status, refused.launches()), (9, 0));
}
