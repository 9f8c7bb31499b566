//! The one place where a backend is chosen.

use clap::ValueEnum;
use kquant_moe::device::CudaDevice;
use kquant_moe::model::{Backend, CacheType, cpu::Cpu, gpu::Gpu};
use kquant_moe::{Error, Result};

/// `--backend`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// CUDA when there is a device, else the CPU
    #[default]
    Auto,
    /// The CPU
    Cpu,
    /// A CUDA GPU
    Cuda,
}

/// `--kv`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kv {
    /// Single precision
    #[default]
    F32,
    /// Half precision: half the memory
    F16,
}

impl Kv {
    /// As the model takes it.
    pub fn cache_type(self) -> CacheType {
        match self {
            Self::F32 => CacheType::F32,
            Self::F16 => CacheType::F16,
        }
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }
}

/// Work that any backend can do.
pub trait Job {
    /// What comes of it.
    type Output;

    /// Does it. `device` is the backend's GPU, if it has one.
    fn run<B: Backend>(self, backend: B, device: Option<&CudaDevice>) -> Result<Self::Output>;
}

impl Choice {
    /// The GPU, if that is what is chosen.
    ///
    /// # Errors
    /// [`Error::NoCuda`] when CUDA is demanded and there is none; what the driver reports about a device that is there.
    pub fn device(self) -> Result<Option<CudaDevice>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda => open_device().map(Some),
            Self::Auto => match open_device() {
                Err(Error::NoCuda(_)) => Ok(None),
                result => result.map(Some),
            },
        }
    }
}

/// The first CUDA device.
pub fn open_device() -> Result<CudaDevice> {
    CudaDevice::new(0)
}

/// Runs a job on the GPU, or on the CPU when there is none.
pub fn run<J: Job>(device: Option<&CudaDevice>, job: J) -> Result<J::Output> {
    match device {
        None => job.run(Cpu::new(), None),
        Some(device) => job.run(Gpu::new(device.clone()), Some(device)),
    }
}
