//! A test of the tests' comparisons: each of them fails when it has to, and says what differs.
// Both sets of helpers have devices.
#![allow(clippy::duplicate_mod)]

#[path = "common/kernels.rs"]
mod kernels;
#[path = "common/mod.rs"]
mod models;

use std::panic::{AssertUnwindSafe, catch_unwind};

use kernels::*;
use kquant_moe::device::bytes_of_mut;
use kquant_moe::kernels::FixedBlock;
use kquant_moe::model::Logits;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::trace::Stage;
use kquant_moe::{Error, oracle, sys};
use models::Recorded;

/// The comparison fails, with these words in its message.
#[track_caller]
fn fails(words: &[&str], comparison: impl FnOnce()) {
    let payload = catch_unwind(AssertUnwindSafe(comparison)).expect_err("the comparison does not fail");
    let message = payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).into()))
        .expect("a message");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

/// Values of which no two have the same bits, though some are equal and some are no numbers.
fn values() -> Vec<f32> {
    let bits = [0x7fc0_0000, 0xffc0_0000, 0x7fa0_0000, 0x7fff_ffff, 0, 0x8000_0000, 1, 0x3f80_0000, 0x3f80_0001];
    bits.map(f32::from_bits).to_vec()
}

#[test]
fn bits_are_compared_with_zeros_signs_and_payloads() {
    let all = values();
    assert_eq!(difference(&all, &all), None);
    assert_bits("the same", &all, &all);
    for i in 0..all.len() {
        for j in 0..all.len() {
            let mut other = all.clone();
            other[j] = all[i];
            if i == j {
                continue;
            }
            let first = format!("1 of 9 values differ, first [{j}]: got");
            fails(&["these", &first, &format!("({:#010x})", all[i].to_bits())], || assert_bits("these", &other, &all));
            fails(&["these", &first], || assert_bits("these", &all, &other));
            assert!(difference(&all, &other).is_some());
        }
    }
    let last = [&all[..8], &[2.0]].concat();
    fails(&["1 of 9", "first [8]"], || assert_bits("the last one", &last, &all));
    fails(&["2 of 9", "first [0]"], || assert_bits("two", &[&[2.0], &all[1..8], &[2.0]].concat(), &all));
}

#[test]
fn lengths_are_compared() {
    let all = values();
    for (a, b) in [(&all[..8], &all[..]), (&all[..], &all[..8]), (&[], &all[..1]), (&all[..1], &[])] {
        fails(&["elements"], || assert_bits("lengths", a, b));
        fails(&["elements"], || drop(difference(a, b)));
        let (a, b): (Vec<u32>, Vec<u32>) = (models::bits(a), models::bits(b));
        fails(&["lengths: elements"], || assert_same("lengths", &a, &b));
        fails(&[], || _ = models::relative_l2(&vec![1.0; a.len()], &vec![1.0; b.len()]));
    }
    let blocks = vec![FixedBlock::default(); 2];
    fails(&["lengths: blocks"], || assert_blocks("lengths", &blocks, &blocks[..1]));
    fails(&["lengths: blocks"], || assert_blocks("lengths", &[], &blocks));
}

#[test]
fn integers_are_compared() {
    assert_same("same", &[1, 2, 3], &[1, 2, 3]);
    fails(&["these: first difference [2]: got 4, expected 3"], || assert_same("these", &[1, 2, 4], &[1, 2, 3]));
    fails(&["[0]"], || assert_same("these", &[0, 2, 3], &[1, 2, 3]));
    // Not even equal to itself.
    fails(&["NaN"], || assert_same("these", &[f32::NAN], &[f32::NAN]));
}

#[test]
fn every_byte_of_a_block_is_compared() {
    let block = oracle::FixedBlock::new(&std::array::from_fn(|k| k as f32)).digits();
    let blocks = [block; 3];
    assert_blocks("same", &blocks, &blocks);
    for byte in 0..size_of::<FixedBlock>() {
        let mut other = blocks;
        bytes_of_mut(&mut other[1..2])[byte] ^= 0x80;
        let words = format!("block 1 differs first in byte {byte}:");
        fails(&["these", &words], || assert_blocks("these", &other, &blocks));
    }
    // NaNs with the same bits are the same, with others they are not.
    let with = |bits| [FixedBlock { unit: f64::from_bits(bits), ..block }];
    assert_blocks("NaN", &with(0x7ff8_0000_0000_0000), &with(0x7ff8_0000_0000_0000));
    fails(&["block 0"], || assert_blocks("NaN", &with(0x7ff8_0000_0000_0001), &with(0x7ff8_0000_0000_0000)));
}

#[test]
fn numbers_are_no_nan() {
    assert_nan("all", &values()[..4]);
    assert_nan("none", &[]);
    for number in [0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY] {
        fails(&["these: [2] is"], || assert_nan("these", &[f32::NAN, f32::NAN, number]));
        fails(&["these"], || assert_stored_nan("these", &[f32::from_bits(0x7fc0_0000), number]));
    }
    assert_stored_nan("stored", &[f32::from_bits(0x7fc0_0000); 3]);
    for nan in NANS {
        assert!(nan.is_nan());
        fails(&["first [1]"], || assert_stored_nan("these", &[f32::from_bits(0x7fc0_0000), nan]));
    }
    assert!(HALF_NANS.iter().all(|nan| nan.is_nan() && nan.to_bits() != 0x7e00));
    let row = |value| [0.0, -1.0, value];
    assert!(!has_non_finite(&row(f32::MAX)) && !has_non_finite(&[]));
    for value in values()[..4].iter().copied().chain([f32::INFINITY, f32::NEG_INFINITY]) {
        assert!(has_non_finite(&row(value)));
    }
}

#[test]
fn refusals_are_told_apart() {
    let refused = |status| Err(Error::Kernel { kernel: "argmax", status, message: "refused".into() });
    let invalid = || Err(Error::Invalid("an operand".into()));
    assert_status(refused(sys::KQM_BAD_SHAPE), sys::KQM_BAD_SHAPE);
    assert_invalid(invalid());
    fails(&[], || assert_status(refused(sys::KQM_BAD_SHAPE), sys::KQM_MISALIGNED));
    fails(&["expected status"], || assert_status(Ok(()), sys::KQM_BAD_SHAPE));
    fails(&["expected status"], || assert_status(invalid(), sys::KQM_BAD_SHAPE));
    fails(&["expected a refusal"], || assert_invalid(Ok(())));
    fails(&["expected a refusal"], || assert_invalid(refused(sys::KQM_BAD_SHAPE)));
    fails(&["an operand"], || ok(invalid()));
    assert_eq!(ok(Ok(7)), 7);
}

#[test]
fn outputs_notice_what_is_written() {
    let Some(device) = emulated_device() else { return };
    let mut output: Output<_, f32> = Output::new(&device, 5);
    output.assert_untouched("new");
    let at = output.slice().as_ptr();
    // SAFETY: emulated memory is memory; there are sentinels behind the output.
    unsafe { at.add(4).write(1.0) };
    assert_eq!(output.read()[4], 1.0);
    fails(&["this: first byte"], || output.assert_untouched("this"));
    for behind in [5, 36] {
        let mut output: Output<_, f32> = Output::new(&device, 5);
        let at = output.slice().as_ptr();
        // SAFETY: as above.
        unsafe { at.add(behind).write(1.0) };
        fails(&["behind an output of 5 elements"], || drop(output.read()));
        fails(&["behind an output of 5 elements"], || output.assert_untouched("this"));
    }
}

#[test]
fn distances_are_relative_and_nan_is_no_distance() {
    use models::relative_l2;
    assert_eq!(relative_l2(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
    assert_eq!(relative_l2(&[3.0, 8.0], &[3.0, 4.0]), 0.8);
    assert_eq!(relative_l2(&[-3.0, -4.0], &[3.0, 4.0]), 2.0);
    // Compared with a bar, none of these is below it.
    for (found, expected) in [
        ([f32::NAN, 1.0], [1.0, 1.0]),
        ([1.0, 1.0], [f32::NAN, 1.0]),
        ([f32::NAN, 1.0], [f32::NAN, 1.0]),
        ([f32::INFINITY, 1.0], [1.0, 1.0]),
        ([f32::INFINITY, 1.0], [f32::INFINITY, 1.0]),
        ([1.0, 0.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0]),
    ] {
        let distance = relative_l2(&found, &expected);
        assert!(distance.is_nan() || distance.is_infinite(), "{found:?}, {expected:?}: {distance}");
        assert!(!matches!(distance.partial_cmp(&1.0), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)));
    }
}

fn record(stage: Stage, layer: Option<usize>, position: usize, shape: &[usize], bits: &[u32]) -> Recorded {
    Recorded { stage, layer, position, shape: shape.to_vec(), bits: bits.to_vec() }
}

#[test]
fn records_are_compared_to_the_bit() {
    let norm = || record(Stage::AttnNorm, Some(1), 4, &[2, 2], &[1, 2, 3, 0x7fc0_0000]);
    let logits = || record(Stage::Logits, None, 4, &[1, 2], &[5, 6]);
    let all = || [norm(), logits()];
    models::assert_same_records("same", &all(), &all());
    let other = |change: fn(&mut Recorded)| {
        let mut records = all();
        change(&mut records[0]);
        records
    };
    let changes: [fn(&mut Recorded); 7] = [
        |record| record.stage = Stage::FfnNorm,
        |record| record.layer = Some(2),
        |record| record.layer = None,
        |record| record.position = 5,
        |record| record.shape = vec![4],
        // The last value; a NaN of another payload.
        |record| record.bits[3] = 0x7fc0_0001,
        |record| record.bits[0] = 0,
    ];
    for change in changes {
        fails(&["these"], || models::assert_same_records("these", &other(change), &all()));
        fails(&["these"], || models::assert_same_records("these", &all(), &other(change)));
    }
    fails(&["[3] is 0x7fc00001, expected 0x7fc00000"], || {
        models::assert_same_records("these", &other(|record| record.bits[3] = 0x7fc0_0001), &all());
    });
    // Fewer values or fewer records than there should be, or more.
    let short = || other(|record| record.bits.truncate(3));
    fails(&["these"], || models::assert_same_records("these", &short(), &all()));
    fails(&["these"], || models::assert_same_records("these", &all(), &short()));
    fails(&["these: records"], || models::assert_same_records("these", &all()[..1], &all()));
    fails(&["these: records"], || models::assert_same_records("these", &all(), &all()[..1]));
    fails(&["these: records"], || models::assert_same_records("these", &[], &all()));
}

#[test]
fn pieces_are_all_of_a_sequence() {
    let model = models::model(Cpu::new());
    let mut context = model.context(models::options()).unwrap();
    let tokens = &models::prompts()[0].tokens[..5];
    let whole = models::in_pieces(&model, &mut context, tokens, &[5]);
    assert_eq!(whole.len(), 5 * model.config().vocab);
    assert_eq!(models::in_pieces(&model, &mut context, tokens, &[2, 1]), whole);
    context.reset();
    assert_eq!(models::bits(&context.forward(&model, tokens, Logits::All).unwrap()), whole);
    let mut others = tokens.to_vec();
    others[4] ^= 1;
    assert_ne!(models::in_pieces(&model, &mut context, &others, &[5]), whole);
}
