//! Files that differ from a model's in something.

use std::sync::Arc;

use kquant_moe::gguf::{GgmlType, Gguf, Header, Value};

/// A tensor to be changed.
pub struct Tensor {
    pub name: String,
    pub kind: GgmlType,
    /// In file order.
    pub dims: Vec<u64>,
    pub data: Vec<u8>,
}

/// The file with some metadata replaced (or left out) and its tensors changed.
pub fn changed(
    original: &Gguf,
    metadata: &[(&str, Option<Value<'_>>)],
    change: impl FnOnce(&mut Vec<Tensor>),
) -> Arc<Gguf> {
    let mut header = Header::new("changed");
    for (key, value) in original.entries() {
        match metadata.iter().find(|replaced| replaced.0 == key) {
            Some((_, Some(value))) => header.set_value(key, *value).unwrap(),
            Some((_, None)) => {}
            None => header.set_value(key, value).unwrap(),
        }
    }
    for (key, value) in metadata {
        if let (None, Some(value)) = (original.metadata(key), value) {
            header.set_value(key, *value).unwrap();
        }
    }
    let mut tensors: Vec<Tensor> = original
        .tensors()
        .map(|tensor| Tensor {
            name: tensor.name().into(),
            kind: tensor.ggml_type(),
            dims: tensor.dims().to_vec(),
            data: tensor.data().to_vec(),
        })
        .collect();
    change(&mut tensors);
    for tensor in &tensors {
        header.tensor(&tensor.name, tensor.kind, &tensor.dims).unwrap();
    }
    let mut writer = header.begin(Vec::new()).unwrap();
    for tensor in &tensors {
        writer.write(&tensor.name, &tensor.data).unwrap();
    }
    Arc::new(Gguf::from_vec("changed", writer.finish().unwrap()).unwrap())
}

/// The tensor of that name.
pub fn tensor<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
}
