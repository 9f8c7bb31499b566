//! What can be wrong with a GGUF file.

use std::fmt;

use super::{GgmlType, SplitFault, ValueType};

/// A broken rule of the format, or a value that is not what the caller needs.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The bytes break a rule of the format.
    #[error("{place} at byte {offset}: {rule}")]
    Malformed {
        /// What was being read.
        place: Place,
        /// Where in the file the offending bytes begin.
        offset: u64,
        /// The rule that they break.
        rule: Rule,
    },
    /// What the caller wants to write breaks a rule of the format.
    #[error("cannot write {place}: {rule}")]
    Unwritable {
        /// What was to be written.
        place: Place,
        /// The rule that it would break.
        rule: Rule,
    },
    /// A key that the caller needs is not in the file.
    #[error("metadata key {} is missing, expected {expected}", Quoted(.key))]
    MissingKey {
        /// The key.
        key: Box<str>,
        /// What the caller needs.
        expected: &'static str,
    },
    /// A metadata value has another type than the caller needs.
    #[error("metadata key {}: expected {expected}, found {found}", Quoted(.key))]
    WrongType {
        /// The key.
        key: Box<str>,
        /// What the caller needs.
        expected: &'static str,
        /// What the file holds, such as `string` or `array of u8`.
        found: String,
    },
    /// A metadata value is an integer, but too large or too small.
    #[error("metadata key {}: expected {expected}, found {found}, which does not fit", Quoted(.key))]
    OutOfRange {
        /// The key.
        key: Box<str>,
        /// What the caller needs.
        expected: &'static str,
        /// The number in the file.
        found: i128,
    },
    /// A value that is to be the same for every layer is an array of values that differ, or of none.
    #[error("metadata key {}: expected {expected} for all layers, found values that differ", Quoted(.key))]
    Varies {
        /// The key.
        key: Box<str>,
        /// What the caller needs.
        expected: &'static str,
    },
    /// A value that is to take the place of the file's is not of its type.
    #[error("metadata key {}: {} is no {expected}, as the file's value is", Quoted(.key), Quoted(.value))]
    Override {
        /// The key.
        key: Box<str>,
        /// The value.
        value: Box<str>,
        /// The type of the file's value.
        expected: ValueType,
    },
    /// A key whose value was used when the file was opened, so that it cannot be another one.
    #[error("metadata key {} says how the file is read, and cannot be overridden", Quoted(.key))]
    Fixed {
        /// The key.
        key: Box<str>,
    },
    /// A part of a split file does not belong with the others, or is missing.
    #[error("part {part} of {count} {fault}")]
    Split {
        /// Which part, from 1.
        part: u64,
        /// How many there are.
        count: u64,
        /// What is wrong with it.
        fault: SplitFault,
    },
}

/// A part of the file, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// Magic, version and counts.
    Header,
    /// The nth metadata entry (from 0), before its key is known.
    Entry(u64),
    /// The metadata entry with this key.
    Key(Box<str>),
    /// The nth tensor (from 0), before its name is known.
    TensorNumber(u64),
    /// The tensor with this name.
    Tensor(Box<str>),
    /// The tensors' data as a whole.
    Data,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Entry(n) => write!(f, "metadata entry {n}"),
            Self::Key(key) => write!(f, "metadata key {}", Quoted(key)),
            Self::TensorNumber(n) => write!(f, "tensor number {n}"),
            Self::Tensor(name) => write!(f, "tensor {}", Quoted(name)),
            Self::Data => f.write_str("tensor data"),
        }
    }
}

/// A rule of the format, with what was expected and what was found.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Rule {
    /// The file does not begin with the magic.
    #[error("not a GGUF file: expected the bytes \"GGUF\", found \"{}\"", .found.escape_ascii())]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The file is written in big-endian byte order.
    #[error("expected a little-endian file, found a big-endian one (version {version}, byte-swapped)")]
    BigEndian {
        /// The version, read as big-endian.
        version: u32,
    },
    /// A version of the format that is not read here.
    #[error("expected version 2 or 3 of the format, found {found}")]
    Version {
        /// The version.
        found: u32,
    },
    /// The file ends too early.
    #[error("expected {} of {what}, found the end of the file after {found}", Bytes(*.expected))]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes that it takes.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A count is larger than the bytes that remain can hold, or than this reader allows.
    #[error("expected at most {most} {what}, found a count of {found}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// The largest count that would pass.
        most: u64,
        /// The count.
        found: u64,
    },
    /// A key, name or string is too long.
    #[error("expected a {what} of at most {most} bytes, found a length of {found}")]
    Length {
        /// What is too long.
        what: &'static str,
        /// The longest that would pass.
        most: u64,
        /// Its length.
        found: u64,
    },
    /// A key or name is empty.
    #[error("expected a {what}, found an empty string")]
    Empty {
        /// What is empty.
        what: &'static str,
    },
    /// A key, name or string is not UTF-8.
    #[error("expected a {what} in UTF-8, found an invalid sequence {} into it", Bytes(*.valid))]
    Utf8 {
        /// What is not UTF-8.
        what: &'static str,
        /// Bytes that are valid before the first invalid one.
        valid: u64,
    },
    /// A value type with no meaning.
    #[error("expected a value type from 0 to 12, found {found}")]
    UnknownValueType {
        /// The number in the file.
        found: u32,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("expected a bool of 0 or 1, found {found}")]
    Bool {
        /// The byte.
        found: u8,
    },
    /// Arrays inside arrays inside arrays.
    #[error("expected arrays nested at most {most} deep, found a deeper one")]
    Nesting {
        /// The deepest nesting that would pass.
        most: u32,
    },
    /// Two entries with the same key, or two tensors with the same name.
    #[error("expected a unique {what}, found it twice")]
    Duplicate {
        /// `key` or `name`.
        what: &'static str,
    },
    /// A key that steers the reading has another type than the format says.
    #[error("expected a value of type {expected}, found {found}")]
    ValueType {
        /// The type that the format prescribes.
        expected: ValueType,
        /// The type in the file.
        found: ValueType,
    },
    /// `general.alignment` is not usable.
    #[error("expected an alignment that is a power of two from 8 to {most}, found {found}")]
    Alignment {
        /// The largest alignment that would pass.
        most: u64,
        /// The alignment.
        found: u64,
    },
    /// Too few or too many dimensions.
    #[error("expected 1 to 4 dimensions, found {found}")]
    Rank {
        /// The number of dimensions.
        found: u64,
    },
    /// A dimension of 0.
    #[error("expected dimensions of at least 1, found 0 in dimension {index}")]
    ZeroDimension {
        /// The dimension, counted from 0.
        index: usize,
    },
    /// The number of bytes does not fit in 64 bits.
    #[error("expected a size below 2^63 bytes, found dimensions {dims:?}")]
    Overflow {
        /// The dimensions in file order.
        dims: Vec<u64>,
    },
    /// A tensor type with no meaning.
    #[error("expected a known tensor type, found number {found}")]
    UnknownTensorType {
        /// The number in the file.
        found: u32,
    },
    /// Rows that are not a whole number of blocks.
    #[error("expected rows of a multiple of {} weights for type {kind}, found {found}", .kind.block_len())]
    Blocks {
        /// The tensor's type.
        kind: GgmlType,
        /// The first dimension.
        found: u64,
    },
    /// A tensor's data does not begin at a multiple of the alignment.
    #[error("expected a data offset that is a multiple of {alignment}, found {found}")]
    Misaligned {
        /// The file's alignment.
        alignment: u64,
        /// The offset, relative to the start of the tensor data.
        found: u64,
    },
    /// A tensor's data does not end inside the file.
    #[error("expected data inside the {available} bytes of tensor data, found {length} bytes from offset {start}")]
    Outside {
        /// The offset, relative to the start of the tensor data.
        start: u64,
        /// Bytes of the tensor.
        length: u64,
        /// Bytes of tensor data in the file.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error("expected data of its own, found an overlap with tensor {} that ends at offset {end}", Quoted(.other))]
    Overlap {
        /// The tensor that begins earlier.
        other: Box<str>,
        /// Where that one ends, relative to the start of the tensor data.
        end: u64,
    },
    /// The tensors together are larger than the file.
    #[error("expected {claimed} bytes for the tensors listed, found {available} up to the end of the file")]
    Total {
        /// Bytes of all tensors.
        claimed: u64,
        /// Bytes of tensor data in the file.
        available: u64,
    },
    /// A tensor is written before its turn, after it, or without having been declared.
    #[error("expected data for {}, found data for this one", .expected.as_deref().map_or("no more tensors".into(), |name| format!("tensor {}", Quoted(name))))]
    Order {
        /// The tensor whose turn it is; none when all are written.
        expected: Option<Box<str>>,
    },
    /// A tensor gets more or fewer bytes than were declared.
    #[error("expected {expected} bytes as declared, found {found}")]
    Size {
        /// Bytes that follow from type and dimensions.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
}

/// A number of bytes in words.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} byte{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// Text from a file, made fit for one line of a message: quoted, escaped and cut after 100 characters.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 100;
        match self.0.char_indices().nth(SHOWN) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}...", &self.0[..end]),
        }
    }
}
