//! The crate's one error type. Every variant names the thing that is wrong.

use std::path::PathBuf;

/// What can go wrong in this crate. Messages fit on one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A GGUF file breaks a rule of its format.
    #[error("{path}: {source}", path = path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The rule and where it is broken.
        source: crate::gguf::GgufError,
    },
    /// The file is a valid GGUF file but not a model that this crate runs.
    #[error("model: {0}")]
    Model(String),
    /// A tensor has a type that no kernel computes with.
    #[error("tensor {tensor}: type {found} is not supported here (supported: {supported})")]
    UnsupportedType {
        /// The tensor's name.
        tensor: String,
        /// The type it has.
        found: String,
        /// The types that would do.
        supported: &'static str,
    },
    /// A tensor's shape does not follow from the model's configuration.
    #[error("tensor {tensor}: shape {found:?}, expected {expected:?} (rows first)")]
    WrongShape {
        /// The tensor's name.
        tensor: String,
        /// The shape in the file.
        found: Vec<u64>,
        /// The shape that the configuration demands.
        expected: Vec<u64>,
    },
    /// A tensor that the model needs is not in the file.
    #[error("tensor {0} is missing")]
    MissingTensor(String),
    /// A token id is not in the vocabulary.
    #[error("token {token} at position {position} is not in the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Its place in the input.
        position: usize,
        /// Ids are below this.
        vocab: usize,
    },
    /// More tokens than the cache has room for.
    #[error("context overflow: {used} positions are used and {wanted} more do not fit into {capacity}")]
    ContextOverflow {
        /// Positions in use.
        used: usize,
        /// Positions asked for.
        wanted: usize,
        /// Positions that the cache has.
        capacity: usize,
    },
    /// An argument does not fit the operation.
    #[error("{0}")]
    Invalid(String),
    /// There is no CUDA device, driver or build.
    #[error("no CUDA device: {0}")]
    NoCuda(String),
    /// The device has not enough free memory. Said before anything is allocated.
    #[error("not enough GPU memory: {needed} bytes are needed, {free} are free")]
    OutOfMemory {
        /// Bytes that the plan needs.
        needed: u64,
        /// Bytes that the device has free.
        free: u64,
    },
    /// The CUDA driver reported an error.
    #[error("CUDA: {0}")]
    Cuda(String),
    /// A launcher refused its arguments or its launch failed.
    #[error("kernel {kernel}: {message} (status {status})")]
    Kernel {
        /// The kernel's name.
        kernel: &'static str,
        /// The `kqm_status`.
        status: i32,
        /// Its text.
        message: String,
    },
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
