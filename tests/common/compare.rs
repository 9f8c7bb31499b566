//! Comparisons to the bit.

use std::fmt::Debug;

use kquant_moe::device::bytes_of;
use kquant_moe::kernels::FixedBlock;
use kquant_moe::{Error, Result, sys};
use kquant_moe_emulation as emulation;

/// The value, or a failure with what the emulation reported.
#[track_caller]
pub fn ok<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| {
        let report = if emulation::available().is_ok() { emulation::last_error() } else { String::new() };
        panic!("{error}\n{report}")
    })
}

/// Equal in bits, NaNs too.
#[track_caller]
pub fn assert_bits(what: &str, got: &[f32], expected: &[f32]) {
    if let Some(difference) = difference(got, expected) {
        panic!("{what}: {difference}");
    }
}

/// How many values differ in bits, and the first one; `None` when none does.
pub fn difference(got: &[f32], expected: &[f32]) -> Option<String> {
    assert_eq!(got.len(), expected.len(), "elements");
    let differs = |&i: &usize| got[i].to_bits() != expected[i].to_bits();
    let first = (0..got.len()).find(differs)?;
    let count = (0..got.len()).filter(differs).count();
    let (got_bits, expected_bits) = (got[first].to_bits(), expected[first].to_bits());
    Some(format!(
        "{count} of {} values differ, first [{first}]: got {:e} ({got_bits:#010x}), expected {:e} ({expected_bits:#010x})",
        got.len(),
        got[first],
        expected[first],
    ))
}

/// Equal integers.
#[track_caller]
pub fn assert_same<T: PartialEq + Debug>(what: &str, got: &[T], expected: &[T]) {
    assert_eq!(got.len(), expected.len(), "{what}: elements");
    if let Some(i) = (0..got.len()).find(|&i| got[i] != expected[i]) {
        panic!("{what}: first difference [{i}]: got {:?}, expected {:?}", got[i], expected[i]);
    }
}

/// Equal fixed-point blocks, every byte of them.
#[track_caller]
pub fn assert_blocks(what: &str, got: &[FixedBlock], expected: &[FixedBlock]) {
    assert_eq!(got.len(), expected.len(), "{what}: blocks");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let (g, e) = (bytes_of(std::slice::from_ref(got)), bytes_of(std::slice::from_ref(expected)));
        if let Some(byte) = (0..g.len()).find(|&byte| g[byte] != e[byte]) {
            panic!(
                "{what}: block {i} differs first in byte {byte}: got {:#04x}, expected {:#04x}; units {:e} and {:e}",
                g[byte], e[byte], got.unit, expected.unit
            );
        }
    }
}

/// No number among the values.
#[track_caller]
pub fn assert_nan(what: &str, values: &[f32]) {
    if let Some(i) = values.iter().position(|value| !value.is_nan()) {
        panic!("{what}: [{i}] is {:e}, expected NaN", values[i]);
    }
}

/// Nothing but the NaN that kernels store.
#[track_caller]
pub fn assert_stored_nan(what: &str, values: &[f32]) {
    assert_bits(what, values, &vec![f32::from_bits(0x7fc0_0000); values.len()]);
}

/// The launcher refused its arguments with that status.
#[track_caller]
pub fn assert_status(result: Result<()>, expected: sys::kqm_status) {
    match result {
        Err(Error::Kernel { status, .. }) => assert_eq!(status, expected),
        other => panic!("expected status {expected}, got {other:?}"),
    }
}

/// The wrapper refused its operands.
#[track_caller]
pub fn assert_invalid(result: Result<()>) {
    assert!(matches!(result, Err(Error::Invalid(_))), "expected a refusal, got {result:?}");
}
