//! Our reader and an independent one say the same about the same files.

use std::io::Cursor;

use gguf_rs_lib::prelude::{GGUFFileReader, MetadataValue};
use kquant_moe::gguf::{Gguf, Value};
use proptest::prelude::*;

use crate::model::model;
use crate::{TINY, malformed};

fn same(ours: Value<'_>, theirs: &MetadataValue) -> bool {
    match (ours, theirs) {
        (Value::U8(a), MetadataValue::U8(b)) => a == *b,
        (Value::I8(a), MetadataValue::I8(b)) => a == *b,
        (Value::U16(a), MetadataValue::U16(b)) => a == *b,
        (Value::I16(a), MetadataValue::I16(b)) => a == *b,
        (Value::U32(a), MetadataValue::U32(b)) => a == *b,
        (Value::I32(a), MetadataValue::I32(b)) => a == *b,
        (Value::F32(a), MetadataValue::F32(b)) => a.to_bits() == b.to_bits(),
        (Value::Bool(a), MetadataValue::Bool(b)) => a == *b,
        (Value::String(a), MetadataValue::String(b)) => a == b,
        (Value::U64(a), MetadataValue::U64(b)) => a == *b,
        (Value::I64(a), MetadataValue::I64(b)) => a == *b,
        (Value::F64(a), MetadataValue::F64(b)) => a.to_bits() == b.to_bits(),
        (Value::Array(a), MetadataValue::Array(b)) => {
            a.element_type() as u32 == b.element_type as u32
                && a.len() == b.values.len()
                && a.iter().zip(&b.values).all(|(a, b)| same(a, b))
        }
        _ => false,
    }
}

fn compare(ours: &Gguf, mut theirs: GGUFFileReader<Cursor<&[u8]>>) {
    assert_eq!(ours.version(), theirs.header().version);
    assert_eq!(ours.alignment(), theirs.tensor_alignment());
    assert_eq!(ours.data_offset(), theirs.tensor_data_offset());
    assert_eq!(ours.entries().count(), theirs.metadata().data.len());
    for (key, value) in ours.entries() {
        let other = &theirs.metadata().data[key];
        assert!(same(value, other), "{key}: {value:?}, {other:?}");
    }
    assert_eq!(ours.tensors().len(), theirs.tensor_count());
    for (number, tensor) in ours.tensors().enumerate() {
        let other = &theirs.tensor_infos()[number];
        assert_eq!(tensor.name(), other.name());
        assert_eq!(tensor.dims(), other.shape().dims());
        assert_eq!(tensor.ggml_type().number(), other.tensor_type() as u32);
        assert_eq!(tensor.offset(), ours.data_offset() + other.data_offset());
        assert_eq!(tensor.data().len() as u64, other.expected_data_size());
        let data = theirs.load_tensor_data(tensor.name()).unwrap().unwrap();
        assert!(tensor.data() == data.as_slice(), "{}", tensor.name());
    }
}

#[test]
fn on_the_model() {
    let theirs = GGUFFileReader::new(Cursor::new(TINY)).unwrap();
    compare(&Gguf::from_static("tiny", TINY).unwrap(), theirs);
}

/// But for three known differences, both readers accept the same of the damaged files, and understand them in the same way.
#[test]
fn on_changed_bytes() {
    let mut bytes = malformed::valid();
    let mut both = 0;
    let mut differ = Vec::new();
    for at in 0..bytes.len() {
        for change in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            bytes[at] ^= change;
            let ours = Gguf::from_vec("x", bytes.clone());
            let theirs = GGUFFileReader::new(Cursor::new(&*bytes));
            match (ours, theirs) {
                (Ok(ours), Ok(theirs)) => {
                    compare(&ours, theirs);
                    both += 1;
                }
                (Err(_), Err(_)) => {}
                // It insists on letters that files in use do not keep to, and does not read version 2.
                (Ok(_), Err(error))
                    if error.to_string().contains("lower_snake_case") || error.to_string().contains("version: 2") => {}
                (Ok(_), Err(error)) => differ.push(format!("{at} ^ {change}: theirs: {error}")),
                // It takes tensors without weights for valid.
                (Err(error), Ok(_)) if error.to_string().contains("dimensions of at least 1") => {}
                (Err(error), Ok(_)) => differ.push(format!("{at} ^ {change}: ours: {error}")),
            }
            bytes[at] ^= change;
        }
    }
    assert!(both > 1_000);
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

proptest! {
    #[test]
    fn on_random_files(model in model()) {
        let bytes = model.write(1 << 20);
        let theirs = GGUFFileReader::new(Cursor::new(&*bytes)).unwrap();
        compare(&Gguf::from_vec("random.gguf", bytes.clone()).unwrap(), theirs);
    }
}
