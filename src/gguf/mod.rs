//! GGUF files: a reader that checks before it believes, and a writer.
//!
//! [`Gguf`] reads versions 2 and 3 (little-endian) from a memory map, a file read into memory, or bytes at hand. All of
//! the format's rules are checked when it is opened, so that what comes out of it afterwards needs no more checking:
//! every name is unique, every value has its type, every tensor's data lies in the file, aligned, apart from the others
//! and as long as its type and shape demand. Opening takes time and memory in proportion to the metadata, never to what
//! a damaged file claims to hold: arrays stay in the file, and every count is held against the bytes that remain.
//!
//! Limits: 65,536 keys of at most 65,535 bytes, 65,536 tensors with names of at most 64 bytes and at most 4 dimensions,
//! strings of at most 64 MiB, arrays nested at most 4 deep, alignments (`general.alignment`) from 8 to 2^20.
//!
//! [`Header`] and [`Writer`] write version 3 as a stream.

mod error;
mod parse;
mod types;
mod value;
mod writer;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub use error::{GgufError, Place, Quoted, Rule};
pub use types::GgmlType;
pub use value::{Array, FromValue, Mismatch, ToValue, Value, ValueType};
pub use writer::{Header, Writer};

use crate::blocks::TensorType;
use crate::{Error, Result};
use parse::{Entry, Index, Info};

/// An open GGUF file.
pub struct Gguf {
    path: PathBuf,
    data: Data,
    index: Index,
}

enum Data {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
    Static(&'static [u8]),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(vec) => vec,
            Self::Static(bytes) => bytes,
        }
    }
}

impl Gguf {
    /// Opens a file by mapping it into memory. Pages are read when they are touched: opening a file of many gigabytes
    /// takes milliseconds.
    ///
    /// # Safety
    ///
    /// Until the value is dropped, nobody may change the file or make it shorter, in this process or in another one. A
    /// change would show through references to data that Rust takes for constant, which is undefined behaviour; reading
    /// past a new, earlier end raises SIGBUS. Replacing the file by renaming another one over it, or deleting it, is
    /// harmless: the map keeps the old contents. [`Self::read`] is the safe way, for the price of a copy.
    pub unsafe fn map(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let map = regular_file(path).and_then(|()| {
            let file = File::open(path)?;
            // SAFETY: the caller promises that nobody changes the file while the map lives.
            unsafe { memmap2::Mmap::map(&file) }
        });
        match map {
            Ok(map) => Self::new(path.into(), Data::Mapped(map)),
            Err(source) => Err(io_error(path, source)),
        }
    }

    /// Opens a file by reading all of it into memory.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match regular_file(path).and_then(|()| fs::read(path)) {
            Ok(bytes) => Self::from_vec(path, bytes),
            Err(source) => Err(io_error(path, source)),
        }
    }

    /// Opens a file's contents. Errors call it `name`.
    pub fn from_vec(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self> {
        Self::new(name.into(), Data::Owned(bytes))
    }

    /// Opens contents that are part of the program. Errors call them `name`.
    pub fn from_static(name: impl Into<PathBuf>, bytes: &'static [u8]) -> Result<Self> {
        Self::new(name.into(), Data::Static(bytes))
    }

    fn new(path: PathBuf, data: Data) -> Result<Self> {
        match parse::parse(data.bytes()) {
            Ok(index) => Ok(Self { path, data, index }),
            Err(source) => Err(Error::Gguf { path, source }),
        }
    }

    /// The file's path, or the name given for bytes in memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.index.version
    }

    /// Tensors' data begins at multiples of this.
    pub fn alignment(&self) -> u64 {
        self.index.alignment
    }

    /// Where in the file the tensors' data begins.
    pub fn data_offset(&self) -> u64 {
        self.index.data_offset
    }

    /// The file's length.
    pub fn file_len(&self) -> u64 {
        self.data.bytes().len() as u64
    }

    /// The value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<Value<'_>> {
        let &number = self.index.keys.get(key)?;
        self.value(self.index.entries.get(number)?)
    }

    /// All metadata in file order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.index.entries.iter().filter_map(|entry| Some((&*entry.key, self.value(entry)?)))
    }

    fn value(&self, entry: &Entry) -> Option<Value<'_>> {
        parse::checked_value(entry.kind, self.data.bytes().get(entry.value.clone())?)
    }

    /// The value of a metadata key as a Rust type, if the file has the key; a value of another type is an error.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.metadata(key) else {
            return Ok(None);
        };
        T::from_value(value).map(Some).map_err(|mismatch| {
            self.error(match mismatch {
                Mismatch::Type => {
                    GgufError::WrongType { key: key.into(), expected: T::EXPECTED, found: value.type_name() }
                }
                Mismatch::Range(found) => GgufError::OutOfRange { key: key.into(), expected: T::EXPECTED, found },
            })
        })
    }

    /// The value of a metadata key as a Rust type; a key that is not there is an error too.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| self.error(GgufError::MissingKey { key: key.into(), expected: T::EXPECTED }))
    }

    /// An integer of 32 bits that must be there.
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.require(key)
    }

    /// An integer of 64 bits that must be there.
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.require(key)
    }

    /// A number in single precision that must be there.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.require(key)
    }

    /// A truth value that must be there.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.require(key)
    }

    /// A text that must be there.
    pub fn string(&self, key: &str) -> Result<&str> {
        self.require(key)
    }

    /// An array of texts that must be there.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>> {
        self.require(key)
    }

    /// An array of integers that must be there.
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>> {
        self.require(key)
    }

    fn error(&self, source: GgufError) -> Error {
        Error::Gguf { path: self.path.clone(), source }
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.index.tensors.iter().map(|info| self.view(info))
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let &number = self.index.names.get(name)?;
        Some(self.view(self.index.tensors.get(number)?))
    }

    /// The tensor with this name, which must be there.
    pub fn require_tensor(&self, name: &str) -> Result<Tensor<'_>> {
        self.tensor(name).ok_or_else(|| Error::MissingTensor(name.into()))
    }

    fn view<'a>(&'a self, info: &'a Info) -> Tensor<'a> {
        Tensor {
            name: &info.name,
            kind: info.kind,
            dims: &info.dims[..info.rank],
            offset: info.data.start as u64,
            data: &self.data.bytes()[info.data.clone()],
        }
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path)
            .field("version", &self.version())
            .field("metadata", &self.index.entries.len())
            .field("tensors", &self.index.tensors.len())
            .finish_non_exhaustive()
    }
}

/// A tensor in an open file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    name: &'a str,
    kind: GgmlType,
    dims: &'a [u64],
    offset: u64,
    data: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Its name, unique in the file.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Its type, which may be one without kernels.
    pub fn ggml_type(&self) -> GgmlType {
        self.kind
    }

    /// Its type, if this crate has kernels for it.
    pub fn tensor_type(&self) -> Result<TensorType> {
        TensorType::try_from(self.kind).map_err(|kind| Error::UnsupportedType {
            tensor: self.name.into(),
            found: kind.name().into(),
            supported: TensorType::ALL_NAMES,
        })
    }

    /// Its dimensions in file order: the first one is contiguous. One to four, none 0.
    pub fn dims(&self) -> &'a [u64] {
        self.dims
    }

    /// Its dimensions with rows first: the last one is contiguous.
    pub fn shape(&self) -> Vec<u64> {
        self.dims.iter().rev().copied().collect()
    }

    /// Its number of weights.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Where in the file its data begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its data: whole blocks, as many as its dimensions demand. Nothing is promised about the alignment in memory.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }
}

/// Refuses what would block or never end: pipes, devices, directories.
fn regular_file(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_file() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.into(), source }
}
