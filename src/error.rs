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
    /// The handle of a sequence that is not there: it was dropped, or is another pool's.
    #[error("there is no sequence {sequence}")]
    NoSequence {
        /// The handle.
        sequence: crate::model::pages::Sequence,
    },
    /// A pool has as many sequences as it may have.
    #[error("the pool has {most} sequences and takes no more")]
    TooManySequences {
        /// Most sequences of the pool.
        most: usize,
    },
    /// A pool has not as many pages free as a batch needs.
    #[error("the pool of pages is full: {needed} more are needed, {free} are free")]
    PoolFull {
        /// Pages that the batch needs.
        needed: usize,
        /// Pages that are free.
        free: usize,
    },
    /// A forward gave values that are NaN or infinite, from which nothing follows.
    #[error(
        "the values at position {position} are not finite{}",
        .point.map_or_else(String::new, |point| format!(", first those of {point}"))
    )]
    NotFinite {
        /// The first position that has such values.
        position: usize,
        /// The first stage of its forward that has them, and the layer; known where the context can trace.
        point: Option<crate::diff::Point>,
    },
    /// The same of a sequence of a pool.
    #[error("the values of sequence {sequence} at position {position} are not finite")]
    SequenceNotFinite {
        /// The sequence.
        sequence: crate::model::pages::Sequence,
        /// The first position that has such values.
        position: usize,
    },
    /// An argument does not fit the operation.
    #[error("{0}")]
    Invalid(String),
    /// There is no CUDA to compute with: the build has no kernels, or none for the card, or the machine has no driver or no device.
    /// The text says which, and of a build why.
    #[error("no CUDA: {0}")]
    NoCuda(String),
    /// The device has not enough free memory. Said before anything is allocated.
    #[error("not enough GPU memory: {needed} bytes are needed, {free} are free")]
    OutOfMemory {
        /// Bytes that the plan needs.
        needed: u64,
        /// Bytes that the device has free.
        free: u64,
    },
    /// The CUDA driver refused a call. What is on the device is as it was before the call.
    #[error("CUDA: {0}")]
    Cuda(String),
    /// Work on the device failed in a way that leaves its CUDA context unusable: a kernel that crashed, memory that failed, a
    /// device that is gone. It shows at whatever call comes next, and every later call fails as well.
    ///
    /// Drop the models, contexts and buffers of the device: that neither panics nor waits. What was computed since the last
    /// call that gave a result is lost, and so is everything in the device's memory. The CPU backend and other devices go on
    /// in the same process. For this device CUDA promises no way back but a new process.
    #[error("CUDA device lost: {message} (error {code})")]
    DeviceLost {
        /// The driver's number of the error (`CUresult`, the same as `cudaError_t`).
        code: u32,
        /// Its text.
        message: String,
    },
    /// A launcher refused its arguments or its launch failed, and the device can be used as before.
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

impl Error {
    /// Whether an error that CUDA gives this number to is a [`Self::DeviceLost`]: one after which the context does no more
    /// work. Numbers are those of `CUresult`, which `cudaError_t` shares.
    pub(crate) fn is_device_lost(code: u32) -> bool {
        matches!(
            code,
            4 // deinitialised: the driver shuts down
            | 214 // uncorrectable error in memory
            | 220 // uncorrectable error of NVLink
            | 226 // contained error in memory
            | 700 // illegal address
            | 702 // launch timed out
            | 709 // context destroyed
            | 710 // assertion of a kernel
            | 714 // hardware stack error
            | 715 // illegal instruction
            | 716 // misaligned address
            | 717 // invalid address space
            | 718 // invalid program counter
            | 719 // launch failed
            | 721 // tensor memory not freed
            | 810 // the server that shares the device ended this client
            | 911 // failure of an external device
            | 999 // unknown: nothing says that the context survived
        )
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use cudarc::driver::sys::CUresult as Cuda;

    use super::*;

    /// The errors of which CUDA's documentation says that the context, or the process, does no more work, by the driver's
    /// own names; and `UNKNOWN`, of which it says nothing.
    const LOST: [Cuda; 18] = [
        Cuda::CUDA_ERROR_DEINITIALIZED,
        Cuda::CUDA_ERROR_ECC_UNCORRECTABLE,
        Cuda::CUDA_ERROR_NVLINK_UNCORRECTABLE,
        Cuda::CUDA_ERROR_CONTAINED,
        Cuda::CUDA_ERROR_ILLEGAL_ADDRESS,
        Cuda::CUDA_ERROR_LAUNCH_TIMEOUT,
        Cuda::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        Cuda::CUDA_ERROR_ASSERT,
        Cuda::CUDA_ERROR_HARDWARE_STACK_ERROR,
        Cuda::CUDA_ERROR_ILLEGAL_INSTRUCTION,
        Cuda::CUDA_ERROR_MISALIGNED_ADDRESS,
        Cuda::CUDA_ERROR_INVALID_ADDRESS_SPACE,
        Cuda::CUDA_ERROR_INVALID_PC,
        Cuda::CUDA_ERROR_LAUNCH_FAILED,
        Cuda::CUDA_ERROR_TENSOR_MEMORY_LEAK,
        Cuda::CUDA_ERROR_MPS_CLIENT_TERMINATED,
        Cuda::CUDA_ERROR_EXTERNAL_DEVICE,
        Cuda::CUDA_ERROR_UNKNOWN,
    ];

    #[test]
    fn the_errors_that_end_a_context_are_those_of_cuda() {
        let lost: Vec<u32> = (0..=10_000).filter(|&code| Error::is_device_lost(code)).collect();
        assert_eq!(lost, LOST.map(|error| error as u32));
    }
}
