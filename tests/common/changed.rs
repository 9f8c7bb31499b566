//! Files that differ from a model's in something.

use std::sync::Arc;

use half::bf16;
use kquant_moe::blocks::TensorType;
use kquant_moe::gguf::{GgmlType, Gguf, Header, Value};
use kquant_moe::oracle::embedding::dequantize;

/// A tensor to be changed.
pub struct Tensor {
    pub name: String,
    pub kind: GgmlType,
    /// In file order.
    pub dims: Vec<u64>,
    pub data: Vec<u8>,
}

impl Tensor {
    /// The same values, rounded to BF16 and written as that or as F32.
    pub fn round(&mut self, written_as: TensorType) {
        let count = self.dims.iter().product::<u64>() as usize;
        let mut values = vec![0.0; count];
        dequantize(TensorType::try_from(self.kind).unwrap(), &self.data, &mut values);
        let rounded = values.into_iter().map(bf16::from_f32);
        self.data = match written_as {
            TensorType::BF16 => rounded.flat_map(bf16::to_le_bytes).collect(),
            TensorType::F32 => rounded.flat_map(|value| value.to_f32().to_le_bytes()).collect(),
            other => unreachable!("{other}"),
        };
        self.kind = written_as.into();
    }
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
