//! Writing GGUF files piece by piece.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::vec;

use super::error::{GgufError, Place, Rule};
use super::parse::{
    ALIGNMENT_KEY, Cursor, DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, MAX_KEYS, MAX_TENSORS, check_alignment, check_key,
    check_name, check_rank, tensor_bytes,
};
use super::{GgmlType, ToValue, Value, ValueType};
use crate::{Error, Result};

const VERSION: u32 = 3;

/// What a file will hold: its metadata, and the name, type and shape of every tensor. [`Self::create`] and
/// [`Self::begin`] turn it into a [`Writer`] for the tensors' data.
pub struct Header {
    path: PathBuf,
    alignment: u64,
    entries: u64,
    keys: HashSet<Box<str>>,
    metadata: Vec<u8>,
    names: HashSet<Box<str>>,
    tensors: Vec<Declared>,
    /// Bytes of all tensors, each with the most padding that it can need.
    data_len: u64,
}

struct Declared {
    name: Box<str>,
    kind: GgmlType,
    dims: Vec<u64>,
    length: u64,
}

impl Header {
    /// An empty one. Errors name `path`; no file is made before [`Self::create`].
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            alignment: DEFAULT_ALIGNMENT,
            entries: 0,
            keys: HashSet::new(),
            metadata: Vec::new(),
            names: HashSet::new(),
            tensors: Vec::new(),
            data_len: 0,
        }
    }

    /// Adds a metadata entry. `general.alignment` takes effect for the whole file.
    pub fn set<T: ToValue + ?Sized>(&mut self, key: &str, value: &T) -> Result<()> {
        let mut encoded = Vec::new();
        value.encode(&mut encoded);
        self.entry(key, T::TYPE, &encoded)
    }

    /// Adds a metadata entry read from another file.
    pub fn set_value(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        let mut encoded = Vec::new();
        value.encode(&mut encoded);
        self.entry(key, value.value_type(), &encoded)
    }

    fn entry(&mut self, key: &str, kind: ValueType, encoded: &[u8]) -> Result<()> {
        self.check_entry(key, kind, encoded).map_err(|rule| unwritable(&self.path, Place::Key(key.into()), rule))?;
        self.entries += 1;
        key.encode(&mut self.metadata);
        (kind as u32).encode(&mut self.metadata);
        self.metadata.extend_from_slice(encoded);
        Ok(())
    }

    fn check_entry(&mut self, key: &str, kind: ValueType, encoded: &[u8]) -> Result<(), Rule> {
        check_key(key)?;
        check_count("metadata entries", self.entries, MAX_KEYS)?;
        // What the reader would refuse is not written: strings that are too long, arrays nested too deep.
        let value = Cursor::new(encoded).value(kind).map_err(|fault| fault.rule)?;
        let alignment = match (key, value) {
            (ALIGNMENT_KEY, Value::U32(found)) => check_alignment(found.into())?,
            (ALIGNMENT_KEY, _) => {
                return Err(Rule::ValueType { expected: ValueType::U32, found: kind });
            }
            _ => self.alignment,
        };
        if !self.keys.insert(key.into()) {
            return Err(Rule::Duplicate { what: "key" });
        }
        self.alignment = alignment;
        Ok(())
    }

    /// Adds a tensor. `dims` are in file order: the contiguous dimension comes first. Tensors are stored in the order in
    /// which they are added.
    pub fn tensor(&mut self, name: &str, kind: impl Into<GgmlType>, dims: &[u64]) -> Result<()> {
        let kind = kind.into();
        let length = self
            .check_tensor(name, kind, dims)
            .map_err(|rule| unwritable(&self.path, Place::Tensor(name.into()), rule))?;
        self.tensors.push(Declared { name: name.into(), kind, dims: dims.to_vec(), length });
        Ok(())
    }

    fn check_tensor(&mut self, name: &str, kind: GgmlType, dims: &[u64]) -> Result<u64, Rule> {
        check_name(name)?;
        check_rank(dims.len() as u64)?;
        let length = tensor_bytes(kind, dims)?;
        check_count("tensors", self.tensors.len() as u64, MAX_TENSORS)?;
        // Each term is below 2^63 and padding adds less than the alignment: the first sum that is too large shows here.
        let total = self.data_len + length.next_multiple_of(MAX_ALIGNMENT);
        if total >= 1 << 62 {
            return Err(Rule::Overflow { dims: dims.to_vec() });
        }
        if !self.names.insert(name.into()) {
            return Err(Rule::Duplicate { what: "name" });
        }
        self.data_len = total;
        Ok(length)
    }

    /// The length that the file will have.
    pub fn file_len(&self) -> u64 {
        self.tensors
            .iter()
            .fold(self.encode().len() as u64, |len, tensor| len + tensor.length.next_multiple_of(self.alignment))
    }

    /// Everything before the tensors' data, padded to where that begins.
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        VERSION.encode(&mut out);
        (self.tensors.len() as u64).encode(&mut out);
        self.entries.encode(&mut out);
        out.extend_from_slice(&self.metadata);
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            tensor.name.encode(&mut out);
            (tensor.dims.len() as u32).encode(&mut out);
            for dim in &tensor.dims {
                dim.encode(&mut out);
            }
            tensor.kind.number().encode(&mut out);
            offset.encode(&mut out);
            offset += tensor.length.next_multiple_of(self.alignment);
        }
        out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        out
    }

    /// Creates the file at the path given to [`Self::new`] and writes everything but the tensors' data.
    pub fn create(self) -> Result<Writer<BufWriter<File>>> {
        match File::create(&self.path) {
            Ok(file) => self.begin(BufWriter::with_capacity(1 << 20, file)),
            Err(source) => Err(Error::Io { path: self.path, source }),
        }
    }

    /// Writes everything but the tensors' data to `out`.
    pub fn begin<W: Write>(self, out: W) -> Result<Writer<W>> {
        let encoded = self.encode();
        let mut writer = Writer {
            path: self.path,
            out,
            alignment: self.alignment,
            current: None,
            pending: self.tensors.into_iter(),
            written: 0,
        };
        writer.current = writer.pending.next();
        writer.put(&encoded)?;
        Ok(writer)
    }
}

/// Takes the tensors' data in the order in which they were declared, and keeps none of it.
///
/// One that is dropped before all data came leaves an incomplete file, which the reader refuses.
pub struct Writer<W: Write> {
    path: PathBuf,
    out: W,
    alignment: u64,
    /// The tensor whose turn it is, and those after it.
    current: Option<Declared>,
    pending: vec::IntoIter<Declared>,
    /// Bytes of the current tensor that are written.
    written: u64,
}

impl<W: Write> Writer<W> {
    /// The tensor whose data comes next, and the bytes of it that are still to come.
    pub fn expects(&self) -> Option<(&str, u64)> {
        let current = self.current.as_ref()?;
        Some((&current.name, current.length - self.written))
    }

    /// Writes the next bytes of the named tensor: all of them, or any part. Data for another tensor than the one whose
    /// turn it is, or more than it holds, is refused before anything is written.
    pub fn write(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let length = match &self.current {
            Some(current) if &*current.name == name => current.length,
            other => {
                let expected = other.as_ref().map(|tensor| tensor.name.clone());
                return Err(self.refuse(name, Rule::Order { expected }));
            }
        };
        let written = self.written.saturating_add(data.len() as u64);
        if written > length {
            let rule = Rule::Size { expected: length, found: written };
            return Err(self.refuse(name, rule));
        }
        self.put(data)?;
        self.written = written;
        if written == length {
            let padding = length.next_multiple_of(self.alignment) - length;
            self.put(&vec![0; padding as usize])?;
            self.current = self.pending.next();
            self.written = 0;
        }
        Ok(())
    }

    /// Ends the file. Fails when a tensor is incomplete.
    pub fn finish(mut self) -> Result<W> {
        if let Some(current) = &self.current {
            let rule = Rule::Size { expected: current.length, found: self.written };
            return Err(self.refuse(&current.name, rule));
        }
        self.out.flush().map_err(|source| Error::Io { path: self.path.clone(), source })?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|source| Error::Io { path: self.path.clone(), source })
    }

    fn refuse(&self, name: &str, rule: Rule) -> Error {
        unwritable(&self.path, Place::Tensor(name.into()), rule)
    }
}

/// Whether one more fits.
fn check_count(what: &'static str, have: u64, most: u64) -> Result<(), Rule> {
    if have < most {
        return Ok(());
    }
    Err(Rule::Count { what, most, found: have + 1 })
}

fn unwritable(path: &Path, place: Place, rule: Rule) -> Error {
    Error::Gguf { path: path.into(), source: GgufError::Unwritable { place, rule } }
}
