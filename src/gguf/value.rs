//! Metadata values.

use std::fmt;

use super::parse::Cursor;

/// The type of a metadata value, with its number in the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ValueType {
    /// Unsigned, 8 bits.
    U8 = 0,
    /// Signed, 8 bits.
    I8 = 1,
    /// Unsigned, 16 bits.
    U16 = 2,
    /// Signed, 16 bits.
    I16 = 3,
    /// Unsigned, 32 bits.
    U32 = 4,
    /// Signed, 32 bits.
    I32 = 5,
    /// IEEE single precision.
    F32 = 6,
    /// A byte, 0 or 1.
    Bool = 7,
    /// UTF-8 with its length in front.
    String = 8,
    /// Values of one type.
    Array = 9,
    /// Unsigned, 64 bits.
    U64 = 10,
    /// Signed, 64 bits.
    I64 = 11,
    /// IEEE double precision.
    F64 = 12,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this number in the file format, if there is one.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// As messages call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// The fewest bytes that a value takes: all that it takes, but for strings and arrays.
    pub(super) const fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A metadata value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Unsigned, 8 bits.
    U8(u8),
    /// Signed, 8 bits.
    I8(i8),
    /// Unsigned, 16 bits.
    U16(u16),
    /// Signed, 16 bits.
    I16(i16),
    /// Unsigned, 32 bits.
    U32(u32),
    /// Signed, 32 bits.
    I32(i32),
    /// IEEE single precision.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// Text.
    String(&'a str),
    /// Values of one type.
    Array(Array<'a>),
    /// Unsigned, 64 bits.
    U64(u64),
    /// Signed, 64 bits.
    I64(i64),
    /// IEEE double precision.
    F64(f64),
}

impl Value<'_> {
    /// The value's type.
    pub const fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// The type as messages call it, such as `array of string`.
    pub fn type_name(&self) -> String {
        match self {
            Self::Array(array) => format!("array of {}", array.element_type()),
            other => other.value_type().name().into(),
        }
    }

    fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }
}

/// An array of metadata. Its elements stay in the file and are decoded on the way.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: ValueType,
    len: usize,
    /// The elements as the file holds them, checked when the file was opened.
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    pub(super) fn new(kind: ValueType, len: usize, bytes: &'a [u8]) -> Self {
        Self { kind, len, bytes }
    }

    /// The type of every element.
    pub fn element_type(&self) -> ValueType {
        self.kind
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let kind = self.kind;
        let mut cursor = Cursor::new(self.bytes);
        (0..self.len).map_while(move |_| cursor.value(kind).ok())
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.kind, self.len)
    }
}

/// Why a value cannot be had as the type that the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mismatch {
    /// It is of another kind.
    Type,
    /// It is this integer, which does not fit.
    Range(i128),
}

/// A Rust type that a metadata value can be had as. Integers of any width convert as long as the number fits, since
/// converters differ in the width that they write; nothing else converts.
pub trait FromValue<'a>: Sized {
    /// The wanted type as messages call it.
    const EXPECTED: &'static str;

    /// Converts.
    fn from_value(value: Value<'a>) -> Result<Self, Mismatch>;
}

macro_rules! from_value {
    ($($type:ty, $name:literal, $value:ident => $convert:expr;)*) => {$(
        impl<'a> FromValue<'a> for $type {
            const EXPECTED: &'static str = $name;

            fn from_value($value: Value<'a>) -> Result<Self, Mismatch> {
                $convert
            }
        }

        impl<'a> FromValue<'a> for Vec<$type> {
            const EXPECTED: &'static str = concat!("array of ", $name);

            fn from_value(value: Value<'a>) -> Result<Self, Mismatch> {
                match value {
                    Value::Array(array) => array.iter().map(FromValue::from_value).collect(),
                    _ => Err(Mismatch::Type),
                }
            }
        }
    )*};
}

from_value! {
    u32, "u32", value => integer(value);
    i32, "i32", value => integer(value);
    u64, "u64", value => integer(value);
    i64, "i64", value => integer(value);
    f32, "f32", value => match value {
        Value::F32(v) => Ok(v),
        _ => Err(Mismatch::Type),
    };
    bool, "bool", value => match value {
        Value::Bool(v) => Ok(v),
        _ => Err(Mismatch::Type),
    };
    &'a str, "string", value => match value {
        Value::String(v) => Ok(v),
        _ => Err(Mismatch::Type),
    };
}

fn integer<T: TryFrom<i128>>(value: Value<'_>) -> Result<T, Mismatch> {
    let number = value.integer().ok_or(Mismatch::Type)?;
    T::try_from(number).map_err(|_| Mismatch::Range(number))
}

/// A Rust value that can be written as metadata.
pub trait ToValue {
    /// The type that it is written as.
    const TYPE: ValueType;

    /// Appends its bytes, without the type.
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! to_value {
    ($($type:ty => $kind:ident,)*) => {$(
        impl ToValue for $type {
            const TYPE: ValueType = ValueType::$kind;

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

to_value! {
    u8 => U8,
    i8 => I8,
    u16 => U16,
    i16 => I16,
    u32 => U32,
    i32 => I32,
    f32 => F32,
    u64 => U64,
    i64 => I64,
    f64 => F64,
}

impl ToValue for bool {
    const TYPE: ValueType = ValueType::Bool;

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl ToValue for str {
    const TYPE: ValueType = ValueType::String;

    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        out.extend_from_slice(self.as_bytes());
    }
}

impl ToValue for String {
    const TYPE: ValueType = ValueType::String;

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_str().encode(out);
    }
}

impl<T: ToValue> ToValue for [T] {
    const TYPE: ValueType = ValueType::Array;

    fn encode(&self, out: &mut Vec<u8>) {
        (T::TYPE as u32).encode(out);
        (self.len() as u64).encode(out);
        for element in self {
            element.encode(out);
        }
    }
}

impl<T: ToValue, const N: usize> ToValue for [T; N] {
    const TYPE: ValueType = ValueType::Array;

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_slice().encode(out);
    }
}

impl<T: ToValue> ToValue for Vec<T> {
    const TYPE: ValueType = ValueType::Array;

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_slice().encode(out);
    }
}

impl<T: ToValue + ?Sized> ToValue for &T {
    const TYPE: ValueType = T::TYPE;

    fn encode(&self, out: &mut Vec<u8>) {
        T::encode(self, out);
    }
}

impl Value<'_> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(v) => v.encode(out),
            Self::I8(v) => v.encode(out),
            Self::U16(v) => v.encode(out),
            Self::I16(v) => v.encode(out),
            Self::U32(v) => v.encode(out),
            Self::I32(v) => v.encode(out),
            Self::F32(v) => v.encode(out),
            Self::Bool(v) => v.encode(out),
            Self::String(v) => v.encode(out),
            Self::Array(v) => {
                (v.kind as u32).encode(out);
                (v.len as u64).encode(out);
                out.extend_from_slice(v.bytes());
            }
            Self::U64(v) => v.encode(out),
            Self::I64(v) => v.encode(out),
            Self::F64(v) => v.encode(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_format() {
        for (number, kind) in (0..).zip(ValueType::ALL) {
            assert_eq!(kind as u32, number);
            assert_eq!(ValueType::from_number(number), Some(kind));
        }
        assert_eq!(ValueType::from_number(13), None);
        assert_eq!(ValueType::from_number(u32::MAX), None);
    }

    #[test]
    fn integers_convert_when_they_fit() {
        assert_eq!(u32::from_value(Value::U64(7)), Ok(7));
        assert_eq!(u32::from_value(Value::I8(7)), Ok(7));
        assert_eq!(u32::from_value(Value::I8(-7)), Err(Mismatch::Range(-7)));
        assert_eq!(u32::from_value(Value::U64(u64::MAX)), Err(Mismatch::Range(u64::MAX.into())));
        assert_eq!(u32::from_value(Value::F32(1.0)), Err(Mismatch::Type));
        assert_eq!(u32::from_value(Value::Bool(true)), Err(Mismatch::Type));
        assert_eq!(u64::from_value(Value::U64(u64::MAX)), Ok(u64::MAX));
        assert_eq!(i64::from_value(Value::I64(i64::MIN)), Ok(i64::MIN));
        assert_eq!(f32::from_value(Value::F64(1.0)), Err(Mismatch::Type));
        assert_eq!(bool::from_value(Value::U8(1)), Err(Mismatch::Type));
    }

    #[test]
    fn arrays_convert_by_element() {
        let bytes = [1, 0, 255, 255];
        let array = Value::Array(Array::new(ValueType::I16, 2, &bytes));
        assert_eq!(array.type_name(), "array of i16");
        assert_eq!(Vec::<i32>::from_value(array), Ok(vec![1, -1]));
        assert_eq!(Vec::<u32>::from_value(array), Err(Mismatch::Range(-1)));
        assert_eq!(Vec::<&str>::from_value(array), Err(Mismatch::Type));
        assert_eq!(i32::from_value(array), Err(Mismatch::Type));
        assert_eq!(Vec::<i32>::from_value(Value::I32(1)), Err(Mismatch::Type));
    }
}
