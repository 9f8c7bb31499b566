//! What holds for every file, broken or not.

use std::time::{Duration, Instant};

use kquant_moe::Error;
use kquant_moe::gguf::{Gguf, GgufError, Value};
use proptest::prelude::*;

use crate::model::model;
use crate::{TINY, malformed};

/// Opens bytes and, when they are accepted, touches everything in them. True when they were accepted.
fn accepts(bytes: &[u8]) -> bool {
    let start = Instant::now();
    let accepted = match Gguf::from_vec("x", bytes.to_vec()) {
        Ok(gguf) => {
            for (key, value) in gguf.entries() {
                assert_eq!(gguf.metadata(key).unwrap().value_type(), value.value_type());
                walk(value);
            }
            let claimed: usize = gguf.tensors().map(|tensor| tensor.data().len()).sum();
            assert!(claimed <= bytes.len());
            true
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains(char::is_control), "{message}");
            assert!(matches!(error, Error::Gguf { source: GgufError::Malformed { .. }, .. }));
            false
        }
    };
    // Generous, for a busy machine and a build without optimization.
    assert!(start.elapsed() < Duration::from_secs(5));
    accepted
}

fn walk(value: Value<'_>) {
    if let Value::Array(array) = value {
        let mut seen = 0;
        for element in array.iter() {
            assert_eq!(element.value_type(), array.element_type());
            walk(element);
            seen += 1;
        }
        assert_eq!(seen, array.len());
    }
}

/// All 255 other values of every byte of a small file.
#[test]
fn every_changed_byte_is_survived() {
    let mut bytes = malformed::valid();
    let mut accepted = 0;
    for at in 0..bytes.len() {
        for change in 1..=255 {
            bytes[at] ^= change;
            accepted += u32::from(accepts(&bytes));
            bytes[at] ^= change;
        }
    }
    // Data, padding, letters of names and keys: most changes are harmless, but those of lengths and types are not.
    let changes = bytes.len() as u32 * 255;
    assert!(accepted > changes / 2 && accepted < changes * 95 / 100);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = malformed::valid();
    // The padding after the last tensor may be absent: it holds nothing.
    let needed = bytes.len() - 16;
    for length in 0..bytes.len() {
        assert_eq!(accepts(&bytes[..length]), length >= needed, "{length}");
    }
}

#[test]
fn more_bytes_at_the_end_are_harmless() {
    let mut bytes = malformed::valid();
    bytes.extend([0xaa; 100]);
    assert!(accepts(&bytes));
}

proptest! {
    #[test]
    fn what_was_written_reads_back(model in model(), piece in 1_usize..5_000) {
        let gguf = Gguf::from_vec("random.gguf", model.write(piece)).unwrap();
        model.check(&gguf);
    }

    #[test]
    fn random_files_survive_damage(
        model in model(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = model.write(1 << 20);
        // Half of it in the first hundred bytes, where the counts are.
        for (i, (at, value)) in damage.iter().enumerate() {
            let span = if i % 2 == 0 { bytes.len() } else { bytes.len().min(100) };
            let at = at.index(span);
            bytes[at] = *value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        accepts(&bytes);
    }

    #[test]
    fn random_bytes_are_survived(tail in proptest::collection::vec(any::<u8>(), 0..400), counts in any::<[u8; 2]>()) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        for count in counts {
            bytes.extend(u64::from(count % 8).to_le_bytes());
        }
        bytes.extend(tail);
        accepts(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_model_survives_damage_to_its_metadata(at in 0_usize..200_000, value in any::<u8>()) {
        let mut bytes = TINY.to_vec();
        let head = Gguf::from_static("tiny", TINY).unwrap().data_offset() as usize;
        bytes[at % head] = value;
        accepts(&bytes);
    }

    #[test]
    fn the_model_cut_short_is_refused(length in any::<prop::sample::Index>(), in_head: bool) {
        let head = Gguf::from_static("tiny", TINY).unwrap().data_offset() as usize;
        let length = length.index(if in_head { head } else { TINY.len() });
        prop_assert!(!accepts(&TINY[..length]));
    }
}
