//! Metadata values that take the place of a file's own.

use std::str::FromStr;

use super::parse::{self, ALIGNMENT_KEY};
use super::split;
use super::{Gguf, GgufError, ToValue, Value, ValueType};
use crate::Error;

/// A value that takes the place of a file's, as on a command line: `KEY=VALUE`.
///
/// It is read as the type that the file's value has. Where the file has none, or an array, `true` and `false` are truth values,
/// whole numbers i64, other numbers f32, and everything else is text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The metadata key.
    pub key: String,
    /// The value as text.
    pub value: String,
}

impl FromStr for Override {
    type Err = Error;

    /// # Errors
    /// [`Error::Invalid`] for a text without a key or without `=`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.into(), value: value.into() }),
            _ => Err(Error::Invalid(format!("{text:?} is not KEY=VALUE"))),
        }
    }
}

/// A value as a file would hold it.
#[derive(Clone)]
pub(super) struct Overridden {
    pub(super) key: Box<str>,
    kind: ValueType,
    bytes: Vec<u8>,
}

impl Overridden {
    pub(super) fn value(&self) -> Option<Value<'_>> {
        parse::checked_value(self.kind, &self.bytes)
    }
}

impl Override {
    /// The value in the type that it has in this file.
    pub(super) fn apply(&self, gguf: &Gguf) -> Result<Overridden, GgufError> {
        let key: Box<str> = self.key.as_str().into();
        if *key == *ALIGNMENT_KEY || key.starts_with(split::PREFIX) {
            return Err(GgufError::Fixed { key });
        }
        let text = self.value.as_str();
        let kind = match gguf.metadata(&key).map(|value| value.value_type()) {
            Some(kind) if kind != ValueType::Array => kind,
            _ => kind_of(text),
        };
        match encode(kind, text) {
            Some(bytes) => Ok(Overridden { key, kind, bytes }),
            None => Err(GgufError::Override { key, value: text.into(), expected: kind }),
        }
    }
}

/// The type of a text where nothing else says it.
fn kind_of(text: &str) -> ValueType {
    if text.parse::<bool>().is_ok() {
        ValueType::Bool
    } else if text.parse::<i64>().is_ok() {
        ValueType::I64
    } else if text.parse::<f32>().is_ok() {
        ValueType::F32
    } else {
        ValueType::String
    }
}

/// A text as a value of this type.
fn encode(kind: ValueType, text: &str) -> Option<Vec<u8>> {
    fn number<T: FromStr + ToValue>(text: &str, out: &mut Vec<u8>) -> Option<()> {
        text.parse::<T>().ok()?.encode(out);
        Some(())
    }
    let mut out = Vec::new();
    match kind {
        ValueType::U8 => number::<u8>(text, &mut out)?,
        ValueType::I8 => number::<i8>(text, &mut out)?,
        ValueType::U16 => number::<u16>(text, &mut out)?,
        ValueType::I16 => number::<i16>(text, &mut out)?,
        ValueType::U32 => number::<u32>(text, &mut out)?,
        ValueType::I32 => number::<i32>(text, &mut out)?,
        ValueType::F32 => number::<f32>(text, &mut out)?,
        ValueType::Bool => number::<bool>(text, &mut out)?,
        ValueType::String => text.encode(&mut out),
        ValueType::Array => return None,
        ValueType::U64 => number::<u64>(text, &mut out)?,
        ValueType::I64 => number::<i64>(text, &mut out)?,
        ValueType::F64 => number::<f64>(text, &mut out)?,
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Header;

    fn file() -> Gguf {
        let mut header = Header::new("file");
        header.set("u8", &7_u8).unwrap();
        header.set("i8", &7_i8).unwrap();
        header.set("u16", &7_u16).unwrap();
        header.set("i16", &7_i16).unwrap();
        header.set("u32", &7_u32).unwrap();
        header.set("i32", &7_i32).unwrap();
        header.set("u64", &7_u64).unwrap();
        header.set("i64", &7_i64).unwrap();
        header.set("f32", &7_f32).unwrap();
        header.set("f64", &7_f64).unwrap();
        header.set("bool", &false).unwrap();
        header.set("string", "seven").unwrap();
        header.set("array", &[7_u32, 7]).unwrap();
        Gguf::from_vec("file", header.begin(Vec::new()).unwrap().finish().unwrap()).unwrap()
    }

    fn changed(text: &str) -> Result<Gguf, Error> {
        file().with(&[text.parse()?])
    }

    #[test]
    fn values_have_the_type_that_the_file_gives_them() {
        for (text, value) in [
            ("u8=255", Value::U8(255)),
            ("i8=-128", Value::I8(-128)),
            ("u16=65535", Value::U16(65_535)),
            ("i16=-32768", Value::I16(-32_768)),
            ("u32=8", Value::U32(8)),
            ("i32=-8", Value::I32(-8)),
            ("u64=18446744073709551615", Value::U64(u64::MAX)),
            ("i64=-9", Value::I64(-9)),
            ("f32=8", Value::F32(8.0)),
            ("f64=1e300", Value::F64(1e300)),
            ("bool=true", Value::Bool(true)),
            ("string=8", Value::String("8")),
            ("string=", Value::String("")),
            ("string=a=b", Value::String("a=b")),
            // Where the file has none, or many, the text says it.
            ("array=8", Value::I64(8)),
            ("new=true", Value::Bool(true)),
            ("new=-8", Value::I64(-8)),
            ("new=8.0", Value::F32(8.0)),
            ("new=8 or so", Value::String("8 or so")),
        ] {
            let (key, _) = text.split_once('=').unwrap();
            let file = changed(text).unwrap();
            assert_eq!(file.metadata(key), Some(value), "{text}");
            let of_all: Vec<_> = file.entries().filter(|(found, _)| *found == key).collect();
            assert_eq!(of_all, [(key, value)], "{text}");
            assert_eq!(file.entries().count(), 13 + usize::from(key == "new"), "{text}");
        }
    }

    #[test]
    fn values_of_another_type_and_fixed_keys_are_refused() {
        for text in ["u8=256", "u8=-1", "u32=1.0", "f32=x", "bool=1", "i64=9223372036854775808", "u16=", "i8=128"] {
            let (key, value) = text.split_once('=').unwrap();
            let error = changed(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{key:?}: {value:?} is no {key}")), "{error}");
        }
        for key in ["general.alignment", "split.count", "split.no"] {
            let error = changed(&format!("{key}=1")).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("cannot be overridden"), "{error}");
        }
        for text in ["", "key", "=value"] {
            assert!(matches!(text.parse::<Override>(), Err(Error::Invalid(_))), "{text}");
        }
    }

    #[test]
    fn the_last_override_of_a_key_counts_and_the_file_stays() {
        let file = file();
        let change = |text: &str| text.parse::<Override>().unwrap();
        let twice = file.with(&[change("u8=1"), change("u8=2"), change("string=x")]).unwrap();
        assert_eq!((twice.get::<u32>("u8").unwrap(), twice.string("string").unwrap()), (Some(2), "x"));
        let again = twice.with(&[change("u8=3")]).unwrap();
        assert_eq!((again.get::<u32>("u8").unwrap(), again.string("string").unwrap()), (Some(3), "x"));
        assert_eq!(file.get::<u32>("u8").unwrap(), Some(7));
        // A new key's type is that of its first value.
        assert!(file.with(&[change("new=1")]).unwrap().with(&[change("new=x")]).is_err());
    }
}
