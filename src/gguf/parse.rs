//! From bytes to a checked index of metadata and tensors.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::error::{GgufError, Place, Rule};
use super::{Array, GgmlType, Value, ValueType};

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;

/// From the format's specification: a key has at most 2^16 - 1 bytes, a tensor name at most 64.
const MAX_KEY: u64 = 65_535;
const MAX_NAME: u64 = 64;
const MAX_DIMS: usize = 4;
/// Ours. The largest files known stay below 100 keys, 10,000 tensors, 20 MB in a string (an embedded `tokenizer.json`)
/// and one level of nesting, which the format's other readers do not even allow.
pub(super) const MAX_KEYS: u64 = 65_536;
pub(super) const MAX_TENSORS: u64 = 65_536;
const MAX_STRING: u64 = 64 << 20;
const MAX_NESTING: u32 = 4;
pub(super) const MAX_ALIGNMENT: u64 = 1 << 20;

/// The fewest bytes of an entry: length and one byte of key, type, one byte of value.
const MIN_ENTRY: u64 = 8 + 1 + 4 + 1;
/// The fewest bytes of a tensor's description: length and one byte of name, rank, one dimension, type, offset.
const MIN_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A broken rule and where, before the reader says what it was reading.
pub(super) struct Fault {
    offset: usize,
    pub(super) rule: Rule,
}

impl Fault {
    fn at(self, place: Place) -> GgufError {
        malformed(place, self.offset, self.rule)
    }
}

fn malformed(place: Place, offset: usize, rule: Rule) -> GgufError {
    GgufError::Malformed { place, offset: offset as u64, rule }
}

/// Reads forward through bytes that nobody vouches for.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    fn remaining(&self) -> u64 {
        self.bytes.len().saturating_sub(self.offset) as u64
    }

    fn fault<T>(&self, rule: Rule) -> Result<T, Fault> {
        Err(Fault { offset: self.offset, rule })
    }

    fn take(&mut self, what: &'static str, count: u64) -> Result<&'a [u8], Fault> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let taken = usize::try_from(count).ok().and_then(|n| rest.get(..n));
        let Some(taken) = taken else {
            return self.fault(Rule::Truncated { what, expected: count, found: self.remaining() });
        };
        self.offset += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(what, N as u64)?);
        Ok(out)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &'static str, most: u64) -> Result<&'a str, Fault> {
        let start = self.clone();
        let length = self.u64("a length")?;
        if length > most {
            return start.fault(Rule::Length { what, most, found: length });
        }
        let start = self.clone();
        let bytes = self.take(what, length)?;
        std::str::from_utf8(bytes).or_else(|error| {
            let valid = error.valid_up_to() as u64;
            start.fault(Rule::Utf8 { what, valid })
        })
    }

    /// A key or name: a string that is not empty.
    pub(super) fn identifier(&mut self, what: &'static str, most: u64) -> Result<&'a str, Fault> {
        let start = self.clone();
        let text = self.string(what, most)?;
        if text.is_empty() {
            return start.fault(Rule::Empty { what });
        }
        Ok(text)
    }

    fn value_type(&mut self) -> Result<ValueType, Fault> {
        let start = self.clone();
        let number = self.u32("a value type")?;
        ValueType::from_number(number).map_or_else(|| start.fault(Rule::UnknownValueType { found: number }), Ok)
    }

    /// A value of this type, every byte of it checked.
    pub(super) fn value(&mut self, kind: ValueType) -> Result<Value<'a>, Fault> {
        self.nested_value(kind, 0)
    }

    fn nested_value(&mut self, kind: ValueType, depth: u32) -> Result<Value<'a>, Fault> {
        const WHAT: &str = "a value";
        Ok(match kind {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array(WHAT)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array(WHAT)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array(WHAT)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array(WHAT)?)),
            ValueType::U32 => Value::U32(self.u32(WHAT)?),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array(WHAT)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array(WHAT)?)),
            ValueType::Bool => Value::Bool(self.bool()?),
            ValueType::String => Value::String(self.string("string", MAX_STRING)?),
            ValueType::Array => Value::Array(self.nested_array(depth + 1)?),
            ValueType::U64 => Value::U64(self.u64(WHAT)?),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array(WHAT)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array(WHAT)?)),
        })
    }

    fn bool(&mut self) -> Result<bool, Fault> {
        let start = self.clone();
        match self.array("a value")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => start.fault(Rule::Bool { found }),
        }
    }

    fn nested_array(&mut self, depth: u32) -> Result<Array<'a>, Fault> {
        if depth > MAX_NESTING {
            return self.fault(Rule::Nesting { most: MAX_NESTING });
        }
        let kind = self.value_type()?;
        let start = self.clone();
        let len = self.u64("an array's length")?;
        let most = self.remaining() / kind.min_bytes();
        // Where usize is narrower than the file's count, a count that does not fit is past the end as well.
        let count = usize::try_from(len).ok().filter(|_| len <= most);
        let Some(count) = count else {
            return start.fault(Rule::Count { what: "array elements in the bytes that remain", most, found: len });
        };
        let begin = self.offset;
        match kind {
            ValueType::Bool | ValueType::String | ValueType::Array => {
                for _ in 0..count {
                    self.nested_value(kind, depth)?;
                }
            }
            // Any bytes are good numbers: no need to look. No overflow, by the check of the count.
            _ => {
                self.take("array elements", len * kind.min_bytes())?;
            }
        }
        let elements = self.bytes.get(begin..self.offset).unwrap_or_default();
        Ok(Array::new(kind, count, elements))
    }
}

/// A value that was checked, found again without looking at an array's elements.
pub(super) fn checked_value(kind: ValueType, bytes: &[u8]) -> Option<Value<'_>> {
    let mut cursor = Cursor::new(bytes);
    if kind != ValueType::Array {
        return cursor.value(kind).ok();
    }
    let kind = cursor.value_type().ok()?;
    let len = usize::try_from(cursor.u64("").ok()?).ok()?;
    Some(Value::Array(Array::new(kind, len, bytes.get(cursor.offset..)?)))
}

/// Where a metadata value lies.
pub(super) struct Entry {
    pub(super) key: Arc<str>,
    pub(super) kind: ValueType,
    pub(super) value: Range<usize>,
}

/// What the file says about a tensor, and where its data lies in the file.
pub(super) struct Info {
    pub(super) name: Arc<str>,
    pub(super) kind: GgmlType,
    pub(super) dims: [u64; MAX_DIMS],
    pub(super) rank: usize,
    pub(super) data: Range<usize>,
}

/// Everything before the tensors' data.
pub(super) struct Index {
    pub(super) version: u32,
    pub(super) alignment: u64,
    pub(super) data_offset: u64,
    pub(super) entries: Vec<Entry>,
    pub(super) keys: HashMap<Arc<str>, usize>,
    pub(super) tensors: Vec<Info>,
    pub(super) names: HashMap<Arc<str>, usize>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Index, GgufError> {
    let mut cursor = Cursor::new(bytes);
    let (version, tensor_count, entry_count) = header(&mut cursor).map_err(|fault| fault.at(Place::Header))?;

    let mut entries = Vec::new();
    let mut keys = HashMap::new();
    let mut alignment = DEFAULT_ALIGNMENT;
    for number in 0..entry_count {
        let start = cursor.offset;
        let key = cursor.identifier("key", MAX_KEY).map_err(|fault| fault.at(Place::Entry(number)))?;
        let place = || Place::Key(key.into());
        let entry = entry(&mut cursor, key, &mut alignment).map_err(|fault| fault.at(place()))?;
        if keys.insert(entry.key.clone(), entries.len()).is_some() {
            return Err(malformed(place(), start, Rule::Duplicate { what: "key" }));
        }
        entries.push(entry);
    }

    let mut unplaced = Vec::new();
    let mut names = HashMap::new();
    for number in 0..tensor_count {
        let start = cursor.offset;
        let name = cursor.identifier("name", MAX_NAME).map_err(|fault| fault.at(Place::TensorNumber(number)))?;
        let place = || Place::Tensor(name.into());
        let tensor = tensor(&mut cursor, name, alignment).map_err(|fault| fault.at(place()))?;
        if names.insert(tensor.name.clone(), unplaced.len()).is_some() {
            return Err(malformed(place(), start, Rule::Duplicate { what: "name" }));
        }
        unplaced.push(tensor);
    }

    // No overflow: a slice is shorter than 2^63.
    let data_offset = (cursor.offset as u64).next_multiple_of(alignment);
    Ok(Index {
        version,
        alignment,
        data_offset,
        entries,
        keys,
        tensors: place_all(unplaced, bytes.len() as u64, data_offset)?,
        names,
    })
}

/// Version, number of tensors, number of metadata entries.
fn header(cursor: &mut Cursor<'_>) -> Result<(u32, u64, u64), Fault> {
    let start = cursor.clone();
    let found = cursor.array("the magic")?;
    if found != MAGIC {
        return start.fault(Rule::Magic { found });
    }
    let start = cursor.clone();
    let version = cursor.u32("the version")?;
    let swapped = version.swap_bytes();
    if (1..=3).contains(&swapped) {
        return start.fault(Rule::BigEndian { version: swapped });
    }
    if !(2..=3).contains(&version) {
        return start.fault(Rule::Version { found: version });
    }
    let tensors_at = cursor.clone();
    let tensors = cursor.u64("the tensor count")?;
    let entries_at = cursor.clone();
    let entries = cursor.u64("the metadata count")?;
    let remaining = cursor.remaining();
    let check = |at: Cursor<'_>, what, found, most| {
        if found > most {
            return at.fault(Rule::Count { what, most, found });
        }
        Ok(())
    };
    check(tensors_at, "tensors in a file of this size", tensors, MAX_TENSORS.min(remaining / MIN_TENSOR))?;
    check(
        entries_at,
        "metadata entries in a file of this size",
        entries,
        MAX_KEYS.min((remaining - tensors * MIN_TENSOR) / MIN_ENTRY),
    )?;
    Ok((version, tensors, entries))
}

fn entry(cursor: &mut Cursor<'_>, key: &str, alignment: &mut u64) -> Result<Entry, Fault> {
    let type_at = cursor.clone();
    let kind = cursor.value_type()?;
    let start = cursor.clone();
    let value = cursor.value(kind)?;
    if key == ALIGNMENT_KEY {
        match value {
            Value::U32(found) => {
                *alignment = check_alignment(found.into()).or_else(|rule| start.fault(rule))?;
            }
            _ => {
                return type_at.fault(Rule::ValueType { expected: ValueType::U32, found: kind });
            }
        }
    }
    Ok(Entry { key: key.into(), kind, value: start.offset..cursor.offset })
}

/// A tensor's description, its place still relative to the start of the tensor data.
struct Unplaced {
    name: Arc<str>,
    kind: GgmlType,
    dims: [u64; MAX_DIMS],
    rank: usize,
    /// Where the file states `start`, for messages.
    stated_at: usize,
    start: u64,
    length: u64,
}

fn tensor(cursor: &mut Cursor<'_>, name: &str, alignment: u64) -> Result<Unplaced, Fault> {
    let rank_at = cursor.clone();
    let rank = cursor.u32("the number of dimensions")?;
    let rank = check_rank(rank.into()).or_else(|rule| rank_at.fault(rule))?;
    let dims_at = cursor.clone();
    let mut dims = [0; MAX_DIMS];
    for dim in &mut dims[..rank] {
        *dim = cursor.u64("a dimension")?;
    }
    let type_at = cursor.clone();
    let number = cursor.u32("the tensor type")?;
    let Some(kind) = GgmlType::from_number(number) else {
        return type_at.fault(Rule::UnknownTensorType { found: number });
    };
    let length = tensor_bytes(kind, &dims[..rank]).or_else(|rule| dims_at.fault(rule))?;
    let stated_at = cursor.clone();
    let start = cursor.u64("the data offset")?;
    if start % alignment != 0 {
        return stated_at.fault(Rule::Misaligned { alignment, found: start });
    }
    Ok(Unplaced { name: name.into(), kind, dims, rank, stated_at: stated_at.offset, start, length })
}

/// Checks that the tensors lie inside the file and apart from each other.
fn place_all(unplaced: Vec<Unplaced>, file_len: u64, data_offset: u64) -> Result<Vec<Info>, GgufError> {
    let available = file_len.saturating_sub(data_offset);
    // First, since it is how a download that stopped early shows.
    let claimed = unplaced.iter().fold(0, |sum: u64, tensor| sum.saturating_add(tensor.length));
    if claimed > available {
        let offset = data_offset as usize;
        return Err(malformed(Place::Data, offset, Rule::Total { claimed, available }));
    }
    let fault = |tensor: &Unplaced, rule| Err(malformed(Place::Tensor((&*tensor.name).into()), tensor.stated_at, rule));
    for tensor in &unplaced {
        let end = tensor.start.checked_add(tensor.length);
        if end.is_none_or(|end| end > available) {
            return fault(tensor, Rule::Outside { start: tensor.start, length: tensor.length, available });
        }
    }
    let mut order: Vec<&Unplaced> = unplaced.iter().collect();
    order.sort_by_key(|tensor| tensor.start);
    for pair in order.windows(2) {
        let end = pair[0].start + pair[0].length;
        if pair[1].start < end {
            let other = (&*pair[0].name).into();
            return fault(pair[1], Rule::Overlap { other, end });
        }
    }
    // All of these ends are at most the length of a slice, so they fit.
    Ok(unplaced
        .into_iter()
        .map(|tensor| {
            let start = (data_offset + tensor.start) as usize;
            Info {
                name: tensor.name,
                kind: tensor.kind,
                dims: tensor.dims,
                rank: tensor.rank,
                data: start..start + tensor.length as usize,
            }
        })
        .collect())
}

// The rules that the writer shares.

pub(super) fn check_alignment(found: u64) -> Result<u64, Rule> {
    let most = MAX_ALIGNMENT;
    if found.is_power_of_two() && (8..=most).contains(&found) {
        Ok(found)
    } else {
        Err(Rule::Alignment { most, found })
    }
}

pub(super) fn check_rank(found: u64) -> Result<usize, Rule> {
    match usize::try_from(found) {
        Ok(rank @ 1..=MAX_DIMS) => Ok(rank),
        _ => Err(Rule::Rank { found }),
    }
}

pub(super) fn check_key(key: &str) -> Result<(), Rule> {
    check_identifier("key", key, MAX_KEY)
}

pub(super) fn check_name(name: &str) -> Result<(), Rule> {
    check_identifier("name", name, MAX_NAME)
}

fn check_identifier(what: &'static str, text: &str, most: u64) -> Result<(), Rule> {
    match text.len() as u64 {
        0 => Err(Rule::Empty { what }),
        found if found > most => Err(Rule::Length { what, most, found }),
        _ => Ok(()),
    }
}

/// Bytes of a tensor's data.
pub(super) fn tensor_bytes(kind: GgmlType, dims: &[u64]) -> Result<u64, Rule> {
    if let Some(index) = dims.iter().position(|&dim| dim == 0) {
        return Err(Rule::ZeroDimension { index });
    }
    let row = dims.first().copied().unwrap_or_default();
    if row % kind.block_len() != 0 {
        return Err(Rule::Blocks { kind, found: row });
    }
    dims.iter()
        .try_fold(1_u64, |product, &dim| product.checked_mul(dim))
        .map(|weights| weights / kind.block_len())
        .and_then(|blocks| blocks.checked_mul(kind.block_bytes()))
        .filter(|&bytes| bytes < 1 << 63)
        .ok_or_else(|| Rule::Overflow { dims: dims.to_vec() })
}
