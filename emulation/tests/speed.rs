//! How fast the emulation is. Prints figures, for a person to look at: `cargo test --release -p kquant-moe-emulation
//! --test speed -- --nocapture`.

mod common;

use std::time::Instant;

use common::library;
use kquant_moe_emulation::Buffer;

#[test]
fn figures() {
    let Some(library) = library("kernels") else { return };
    // SAFETY: the type is that of the source.
    let products: unsafe extern "C" fn(*mut i32, u32) -> i32 =
        unsafe { library.function("test_many_products") }.unwrap();
    let d = Buffer::<i32>::new(128);
    let count = 10_000;
    let before = library.statistics();
    let start = Instant::now();
    // SAFETY: the buffer has the size that the kernel takes.
    assert_eq!(unsafe { products(d.as_ptr(), count) }, 0, "{}", library.last_error());
    let time = start.elapsed();
    let switches = library.statistics().switches - before.switches;
    println!(
        "{count} products of a warp: {time:?}, {:.1} ns each, {:.2} ns per switch of lanes",
        time.as_nanos() as f64 / f64::from(count),
        time.as_nanos() as f64 / switches as f64
    );
}
