//! Whatever opens can be walked: every value and every tensor is what the file's index says, and a copy made by the
//! writer opens and holds the same.
#![no_main]

use kquant_moe::gguf::{Gguf, Header, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::from_vec("fuzz", bytes.to_vec()) else {
        return;
    };
    let mut header = Header::new("copy");
    for (key, value) in gguf.entries() {
        walk(value);
        header.set_value(key, value).unwrap();
    }
    let mut data = 0;
    for tensor in gguf.tensors() {
        let start = tensor.offset() as usize;
        assert_eq!(tensor.offset() % gguf.alignment(), 0);
        assert_eq!(tensor.data(), &bytes[start..][..tensor.data().len()]);
        assert!(gguf.tensor(tensor.name()).is_some());
        data += tensor.data().len();
        header.tensor(tensor.name(), tensor.ggml_type(), tensor.dims()).unwrap();
    }
    assert!(data <= bytes.len());

    let mut writer = header.begin(Vec::new()).unwrap();
    for tensor in gguf.tensors() {
        writer.write(tensor.name(), tensor.data()).unwrap();
    }
    let copy = Gguf::from_vec("copy", writer.finish().unwrap()).unwrap();
    assert!(gguf.entries().map(text).eq(copy.entries().map(text)));
    for (own, other) in gguf.tensors().zip(copy.tensors()) {
        assert_eq!(own.dims(), other.dims());
        assert_eq!(own.data(), other.data());
    }
});

fn walk(value: Value<'_>) {
    if let Value::Array(array) = value {
        assert_eq!(array.iter().count(), array.len());
        for element in array.iter() {
            assert_eq!(element.value_type(), array.element_type());
            walk(element);
        }
    }
}

/// As text, since a NaN does not equal itself.
fn text((key, value): (&str, Value<'_>)) -> String {
    let elements: Vec<Value<'_>> = match value {
        Value::Array(array) => array.iter().collect(),
        _ => Vec::new(),
    };
    format!("{key} {value:?} {elements:?}")
}
