//! Random files: what they hold, how they are written, and whether what was read is the same.

use kquant_moe::gguf::{GgmlType, Gguf, Header, ToValue, Value};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

/// What a file holds.
#[derive(Clone, Debug)]
pub struct Model {
    pub alignment: Option<u32>,
    pub entries: Vec<(String, Owned)>,
    pub tensors: Vec<Weights>,
}

#[derive(Clone, Debug)]
pub struct Weights {
    pub name: String,
    pub kind: GgmlType,
    pub dims: Vec<u64>,
    pub data: Vec<u8>,
}

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Owned {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Bools(Vec<bool>),
    Integers(Vec<i32>),
    Words(Vec<u64>),
    Floats(Vec<f32>),
    Strings(Vec<String>),
    Nested(Vec<Vec<String>>),
}

impl Owned {
    fn set(&self, header: &mut Header, key: &str) -> kquant_moe::Result<()> {
        match self {
            Self::U8(v) => header.set(key, v),
            Self::I8(v) => header.set(key, v),
            Self::U16(v) => header.set(key, v),
            Self::I16(v) => header.set(key, v),
            Self::U32(v) => header.set(key, v),
            Self::I32(v) => header.set(key, v),
            Self::F32(v) => header.set(key, v),
            Self::Bool(v) => header.set(key, v),
            Self::String(v) => header.set(key, v),
            Self::U64(v) => header.set(key, v),
            Self::I64(v) => header.set(key, v),
            Self::F64(v) => header.set(key, v),
            Self::Bools(v) => header.set(key, v),
            Self::Integers(v) => header.set(key, v),
            Self::Words(v) => header.set(key, v),
            Self::Floats(v) => header.set(key, v),
            Self::Strings(v) => header.set(key, v),
            Self::Nested(v) => header.set(key, v),
        }
    }

    fn equals(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::U8(a), Value::U8(b)) => *a == b,
            (Self::I8(a), Value::I8(b)) => *a == b,
            (Self::U16(a), Value::U16(b)) => *a == b,
            (Self::I16(a), Value::I16(b)) => *a == b,
            (Self::U32(a), Value::U32(b)) => *a == b,
            (Self::I32(a), Value::I32(b)) => *a == b,
            (Self::F32(a), Value::F32(b)) => a.to_bits() == b.to_bits(),
            (Self::Bool(a), Value::Bool(b)) => *a == b,
            (Self::String(a), Value::String(b)) => a == b,
            (Self::U64(a), Value::U64(b)) => *a == b,
            (Self::I64(a), Value::I64(b)) => *a == b,
            (Self::F64(a), Value::F64(b)) => a.to_bits() == b.to_bits(),
            (Self::Bools(a), b) => all(a, b, |&v| Self::Bool(v)),
            (Self::Integers(a), b) => all(a, b, |&v| Self::I32(v)),
            (Self::Words(a), b) => all(a, b, |&v| Self::U64(v)),
            (Self::Floats(a), b) => all(a, b, |&v| Self::F32(v)),
            (Self::Strings(a), b) => all(a, b, |v| Self::String(v.clone())),
            (Self::Nested(a), b) => all(a, b, |v| Self::Strings(v.clone())),
            _ => false,
        }
    }
}

fn all<T: ToValue>(own: &[T], value: Value<'_>, wrap: impl Fn(&T) -> Owned) -> bool {
    let Value::Array(array) = value else {
        return false;
    };
    array.element_type() == T::TYPE
        && array.len() == own.len()
        && array.iter().count() == own.len()
        && own.iter().zip(array.iter()).all(|(own, value)| wrap(own).equals(value))
}

impl Model {
    /// The file. Tensors' data is written in pieces of `piece` bytes.
    pub fn write(&self, piece: usize) -> Vec<u8> {
        let mut header = Header::new("random.gguf");
        if let Some(alignment) = self.alignment {
            header.set("general.alignment", &alignment).unwrap();
        }
        for (key, value) in &self.entries {
            value.set(&mut header, key).unwrap();
        }
        for tensor in &self.tensors {
            header.tensor(&tensor.name, tensor.kind, &tensor.dims).unwrap();
        }
        let length = header.file_len();
        let mut writer = header.begin(Vec::new()).unwrap();
        for tensor in &self.tensors {
            for piece in tensor.data.chunks(piece) {
                writer.write(&tensor.name, piece).unwrap();
            }
        }
        assert_eq!(writer.expects(), None);
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() as u64, length);
        bytes
    }

    /// Whether a file holds exactly this.
    pub fn check(&self, gguf: &Gguf) {
        let alignment = self.alignment.map(Owned::U32);
        let own: Vec<(&str, &Owned)> = alignment
            .iter()
            .map(|value| ("general.alignment", value))
            .chain(self.entries.iter().map(|(key, value)| (&**key, value)))
            .collect();
        assert_eq!(gguf.version(), 3);
        assert_eq!(gguf.alignment(), self.alignment.unwrap_or(32).into());
        assert_eq!(gguf.entries().count(), own.len());
        for ((key, value), (own_key, own)) in gguf.entries().zip(own) {
            assert_eq!(key, own_key);
            assert!(own.equals(value), "{key}: wrote {own:?}, read {value:?}");
            assert!(own.equals(gguf.metadata(key).unwrap()));
        }
        assert_eq!(gguf.tensors().len(), self.tensors.len());
        for (tensor, own) in gguf.tensors().zip(&self.tensors) {
            assert_eq!(tensor.name(), own.name);
            assert_eq!(tensor.ggml_type(), own.kind);
            assert_eq!(tensor.dims(), own.dims);
            assert_eq!(tensor.elements(), own.dims.iter().product());
            assert_eq!(tensor.data(), own.data);
            assert_eq!(tensor.offset() % gguf.alignment(), 0);
            assert_eq!(gguf.tensor(&own.name).unwrap().data(), own.data);
        }
    }
}

/// Any value, NaNs with payloads among the floats.
fn value() -> impl Strategy<Value = Owned> {
    // Any bits, NaNs with payloads among them.
    let f32s = any::<u32>().prop_map(f32::from_bits);
    prop_oneof![
        any::<u8>().prop_map(Owned::U8),
        any::<i8>().prop_map(Owned::I8),
        any::<u16>().prop_map(Owned::U16),
        any::<i16>().prop_map(Owned::I16),
        any::<u32>().prop_map(Owned::U32),
        any::<i32>().prop_map(Owned::I32),
        f32s.clone().prop_map(Owned::F32),
        any::<bool>().prop_map(Owned::Bool),
        text().prop_map(Owned::String),
        any::<u64>().prop_map(Owned::U64),
        any::<i64>().prop_map(Owned::I64),
        any::<u64>().prop_map(|bits| Owned::F64(f64::from_bits(bits))),
        vec(any::<bool>(), 0..9).prop_map(Owned::Bools),
        vec(any::<i32>(), 0..9).prop_map(Owned::Integers),
        vec(any::<u64>(), 0..9).prop_map(Owned::Words),
        vec(f32s, 0..9).prop_map(Owned::Floats),
        vec(text(), 0..9).prop_map(Owned::Strings),
        vec(vec(text(), 0..4), 0..4).prop_map(Owned::Nested),
    ]
}

/// Any text, whatever its characters.
fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..12).prop_map(String::from_iter)
}

fn tensor() -> impl Strategy<Value = (GgmlType, Vec<u64>)> {
    let kinds: Vec<GgmlType> = GgmlType::all().collect();
    (proptest::sample::select(kinds), vec(1_u64..4, 1..=4)).prop_map(|(kind, mut dims)| {
        dims[0] *= kind.block_len();
        (kind, dims)
    })
}

/// A random file of a few kilobytes.
pub fn model() -> impl Strategy<Value = Model> {
    // The specification's lower_snake_case, which we do not insist on but the reader that we compare with does.
    let key = "[a-z]{1,8}(\\.[a-z0-9]{1,4}_[a-z]{1,8}){0,2}";
    let alignment = proptest::option::of((3_u32..9).prop_map(|power| 1 << power));
    (alignment, btree_map(key, value(), 0..8), btree_map("[a-z0-9_.]{1,64}", tensor(), 0..6), any::<u8>()).prop_map(
        |(alignment, entries, tensors, seed)| Model {
            alignment,
            entries: entries.into_iter().collect(),
            tensors: tensors
                .into_iter()
                .map(|(name, (kind, dims))| {
                    let blocks = dims.iter().product::<u64>() / kind.block_len();
                    let data = (0..blocks * kind.block_bytes())
                        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
                        .collect();
                    Weights { name, kind, dims, data }
                })
                .collect(),
        },
    )
}
