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
//! A file that was split in parts is opened by the path of any of them: all parts are found, checked and read as one file.
//!
//! [`Header`] and [`Writer`] write version 3 as a stream.

mod error;
mod overrides;
mod parse;
mod split;
mod types;
mod value;
mod writer;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::{GgufError, Place, Quoted, Rule};
pub use overrides::Override;
pub use split::{SplitFault, part_paths};
pub use types::GgmlType;
pub use value::{Array, FromValue, Mismatch, ToValue, Value, ValueType};
pub use writer::{Header, Writer};

use crate::blocks::TensorType;
use crate::{Error, Result};
use overrides::Overridden;
use parse::{Entry, Index, Info};

/// An open GGUF file, of one part or of several. A clone shares the contents.
#[derive(Clone)]
pub struct Gguf {
    /// At least one. The first one has the metadata.
    parts: Arc<[Arc<Part>]>,
    /// Values that take the place of the file's, by key.
    overridden: Arc<Vec<Overridden>>,
}

/// One file.
struct Part {
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

impl Part {
    fn new(path: PathBuf, data: Data) -> Result<Self> {
        match parse::parse(data.bytes()) {
            Ok(index) => Ok(Self { path, data, index }),
            Err(source) => Err(Error::Gguf { path, source }),
        }
    }

    fn read(path: &Path) -> Result<Self> {
        match regular_file(path).and_then(|()| fs::read(path)) {
            Ok(bytes) => Self::new(path.into(), Data::Owned(bytes)),
            Err(source) => Err(io_error(path, source)),
        }
    }

    /// # Safety
    /// What [`Gguf::map`] says.
    unsafe fn map(path: &Path) -> Result<Self> {
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

    fn value(&self, entry: &Entry) -> Option<Value<'_>> {
        parse::checked_value(entry.kind, self.data.bytes().get(entry.value.clone())?)
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

impl Gguf {
    /// Opens a file, and if it is a part of a split file all other parts, by mapping it into memory. Pages are read when they
    /// are touched: opening a file of many gigabytes takes milliseconds.
    ///
    /// # Safety
    ///
    /// Until the value is dropped, nobody may change the files or make them shorter, in this process or in another one. A
    /// change would show through references to data that Rust takes for constant, which is undefined behaviour; reading
    /// past a new, earlier end raises SIGBUS. Replacing a file by renaming another one over it, or deleting it, is
    /// harmless: the map keeps the old contents. [`Self::read`] is the safe way, for the price of a copy.
    pub unsafe fn map(path: impl AsRef<Path>) -> Result<Self> {
        // SAFETY: the caller promises that nobody changes the files while the maps live.
        split::open(path.as_ref(), &|path| unsafe { Part::map(path) })
    }

    /// Opens a file, and if it is a part of a split file all other parts, by reading all of it into memory.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Gguf`] for a file that breaks a rule of the format, and for a part that is missing or does not
    /// belong to the others.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        split::open(path.as_ref(), &Part::read)
    }

    /// Opens a file's contents. Errors call it `name`.
    pub fn from_vec(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self> {
        Self::from_parts([(name, bytes)])
    }

    /// Opens the contents of all parts of a split file, in order, or of one whole file. Errors call them by the names.
    ///
    /// # Errors
    /// [`Error::Gguf`] as of [`Self::read`]; [`Error::Invalid`] for no parts.
    pub fn from_parts<N: Into<PathBuf>>(parts: impl IntoIterator<Item = (N, Vec<u8>)>) -> Result<Self> {
        let parts = parts.into_iter().map(|(name, bytes)| Part::new(name.into(), Data::Owned(bytes)));
        split::join(parts.collect::<Result<_>>()?)
    }

    /// Opens contents that are part of the program. Errors call them `name`.
    pub fn from_static(name: impl Into<PathBuf>, bytes: &'static [u8]) -> Result<Self> {
        split::join(vec![Part::new(name.into(), Data::Static(bytes))?])
    }

    fn of(parts: Vec<Part>) -> Self {
        Self::of_shared(parts.into_iter().map(Arc::new).collect())
    }

    fn of_shared(parts: Vec<Arc<Part>>) -> Self {
        Self { parts: parts.into(), overridden: Arc::default() }
    }

    /// The same file with other values of some metadata keys.
    ///
    /// # Errors
    /// [`Error::Gguf`] for a value that is not of the type that the file's has, and for a key that steers the reading.
    pub fn with(&self, overrides: &[Override]) -> Result<Self> {
        let mut overridden = self.overridden.to_vec();
        for change in overrides {
            let new = change.apply(self).map_err(|source| self.error(source))?;
            overridden.retain(|old| old.key != new.key);
            overridden.push(new);
        }
        Ok(Self { parts: self.parts.clone(), overridden: Arc::new(overridden) })
    }

    /// The part with the metadata.
    fn first(&self) -> &Part {
        &self.parts[0]
    }

    /// The file's path, or the name given for bytes in memory; of a split file that of the first part.
    pub fn path(&self) -> &Path {
        &self.first().path
    }

    /// The paths of all parts, in order.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }

    /// The version of the format, 2 or 3; of a split file that of the first part, as of the other facts about one file.
    pub fn version(&self) -> u32 {
        self.first().index.version
    }

    /// Tensors' data begins at multiples of this.
    pub fn alignment(&self) -> u64 {
        self.first().index.alignment
    }

    /// Where in the file the tensors' data begins.
    pub fn data_offset(&self) -> u64 {
        self.first().index.data_offset
    }

    /// The file's length; of a split file that of all parts.
    pub fn file_len(&self) -> u64 {
        self.parts.iter().map(|part| part.data.bytes().len() as u64).sum()
    }

    /// The value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<Value<'_>> {
        if let Some(overridden) = self.overridden.iter().find(|overridden| &*overridden.key == key) {
            return overridden.value();
        }
        let part = self.first();
        let &number = part.index.keys.get(key)?;
        part.value(part.index.entries.get(number)?)
    }

    /// All metadata in file order, and then those that only an override has.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        let part = self.first();
        let of_file = part.index.entries.iter().map(|entry| &*entry.key);
        let more = self.overridden.iter().map(|overridden| &*overridden.key);
        let more = more.filter(|&key| !part.index.keys.contains_key(key));
        of_file.chain(more).filter_map(|key| Some((key, self.metadata(key)?)))
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

    /// [`Self::get`] for a value that some converters write once for each layer: an array whose elements are all equal is that
    /// element.
    ///
    /// # Errors
    /// Those of [`Self::get`]; [`GgufError::Varies`] for an array of values that differ, and for an empty one.
    pub fn get_one<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(Value::Array(array)) = self.metadata(key) else { return self.get(key) };
        let mut values = array.iter();
        match values.next() {
            Some(first) if values.all(|value| value == first) => T::from_value(first).map(Some).map_err(|_| {
                let found = Value::Array(array).type_name();
                self.error(GgufError::WrongType { key: key.into(), expected: T::EXPECTED, found })
            }),
            _ => Err(self.error(GgufError::Varies { key: key.into(), expected: T::EXPECTED })),
        }
    }

    /// An error about a key that is not there.
    pub(crate) fn missing_key<'a, T: FromValue<'a>>(&self, key: &str) -> Error {
        self.error(GgufError::MissingKey { key: key.into(), expected: T::EXPECTED })
    }

    /// The value of a metadata key as a Rust type; a key that is not there is an error too.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| self.missing_key::<T>(key))
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
        Error::Gguf { path: self.path().into(), source }
    }

    /// All tensors in file order, part by part.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        let views = self.parts.iter().flat_map(|part| part.index.tensors.iter().map(|info| part.view(info)));
        views.collect::<Vec<_>>().into_iter()
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.parts.iter().find_map(|part| {
            let &number = part.index.names.get(name)?;
            Some(part.view(part.index.tensors.get(number)?))
        })
    }

    /// The tensor with this name, which must be there.
    pub fn require_tensor(&self, name: &str) -> Result<Tensor<'_>> {
        self.tensor(name).ok_or_else(|| Error::MissingTensor(name.into()))
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path())
            .field("version", &self.version())
            .field("metadata", &self.entries().count())
            .field("tensors", &self.tensors().len())
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

    /// Where in the file, or in its part of a split file, its data begins.
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
