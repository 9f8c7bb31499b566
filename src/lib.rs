//! Hand-written CUDA kernels for Mixture-of-Experts models in GGUF's quantized types, a CPU oracle for every kernel, and the
//! Qwen3-MoE forward composed from them. The GPU result equals the CPU oracle bit for bit, at every layer, for every batch
//! size.
//!
//! # A whole model
//!
//! A [`gguf::Gguf`] is an open file whose metadata are known to be sound. A [`model::Model`] has its weights on a backend, the
//! CPU ([`model::cpu::Cpu`]) or a GPU ([`model::gpu::Gpu`]); a [`model::Context`] is a sequence with its cache. Contexts share the
//! model, and may be used on threads of their own.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use kquant_moe::gguf::Gguf;
//! use kquant_moe::model::{ContextOptions, LoadOptions, Logits, Model, cpu::Cpu};
//!
//! # fn main() -> kquant_moe::Result<()> {
//! let gguf = Arc::new(Gguf::read("model.gguf")?);
//! let model = Model::load(gguf, Cpu::new(), LoadOptions::default(), &mut |_done, _total| {})?;
//! let mut context = model.context(ContextOptions::default())?;
//! let logits = context.forward(&model, &[1, 2, 3], Logits::Last)?;
//! assert_eq!(logits.len(), model.config().vocab);
//! # Ok(())
//! # }
//! ```
//!
//! # One kernel
//!
//! Each kernel of [`kernels`] is a structure of its operands, which a launch checks against the shapes and enqueues on the
//! stream of a [`device::Device`]. The [`oracle`] of the same name computes the same bits in plain Rust:
//!
//! ```no_run
//! use kquant_moe::device::{Buffer, CudaDevice};
//! use kquant_moe::kernels::ResidualAdd;
//!
//! # fn main() -> kquant_moe::Result<()> {
//! let device = CudaDevice::new(0)?;
//! let (a, b) = (Buffer::from_slice(&device, &[1.0; 256])?, Buffer::from_slice(&device, &[2.0; 256])?);
//! let mut y = Buffer::zeroed(&device, 256)?;
//! ResidualAdd::new(a.slice(), b.slice(), y.slice_mut()).launch(&device)?;
//! let mut sum = [0.0_f32; 256];
//! y.read(&device, 0, &mut sum)?;
//! assert_eq!(sum, [3.0; 256]);
//! # Ok(())
//! # }
//! ```
//!
//! # Memory and a stream of your own
//!
//! An engine keeps what it has: [`device::CudaDevice::from_raw_stream`] takes its stream, [`device::Slice::from_raw`] and
//! [`device::SliceMut::from_raw`] its memory; one with an allocator of its own implements [`device::Device`]. Who wants none of
//! these types calls the launchers of [`device::kernels`], which are those of the C ABI ([`sys`]).
//!
//! ```no_run
//! use kquant_moe::device::{CudaDevice, Slice, SliceMut};
//! use kquant_moe::kernels::ResidualAdd;
//! use kquant_moe::sys::kqm_stream;
//!
//! /// Adds `b` to `a`, both of `len` floats, in order with the other work on the engine's stream.
//! ///
//! /// # Safety
//! /// The stream is one of device 0; both addresses are good for `len` floats there, which nothing else uses meanwhile.
//! unsafe fn add(stream: kqm_stream, a: u64, b: u64, len: usize) -> kquant_moe::Result<()> {
//!     // SAFETY: the caller's promise.
//!     let device = unsafe { CudaDevice::from_raw_stream(0, stream)? };
//!     // SAFETY: the caller's promise; the kernel reads an element before it writes it.
//!     let (a, b, y) = unsafe {
//!         (Slice::from_raw(&device, a, len), Slice::from_raw(&device, b, len), SliceMut::from_raw(&device, a, len))
//!     };
//!     ResidualAdd::new(a, b, y).launch(&device)
//! }
//! ```
//!
//! # Errors
//!
//! There is one type, [`Error`], and each of its variants names what is wrong in one line. Two are worth telling apart from the
//! others: without a GPU, a driver or kernels in the build there is the CPU, and after a lost device the process goes on without
//! it.
//!
//! ```no_run
//! use kquant_moe::{Error, device::CudaDevice};
//!
//! /// The first GPU, or nothing where there is none.
//! fn gpu() -> kquant_moe::Result<Option<CudaDevice>> {
//!     match CudaDevice::new(0) {
//!         Ok(device) => Ok(Some(device)),
//!         Err(Error::NoCuda(reason)) => {
//!             // Which may be that the build has no kernels, and why.
//!             println!("on the CPU: {reason}");
//!             Ok(None)
//!         }
//!         Err(error) => Err(error),
//!     }
//! }
//! ```
//!
//! What was built, [`device::CUDA_BUILD`] says. The definition of every value is in [`arithmetic`].
#![warn(missing_docs)]

pub mod blocks;
pub mod device;
pub mod diff;
pub mod error;
pub mod gguf;
pub mod kernels;
pub mod model;
pub mod oracle;
pub mod sys;
pub mod trace;

// What stands in brackets there is an index, and no link.
#[allow(rustdoc::broken_intra_doc_links)]
#[doc = include_str!("../docs/arithmetic.md")]
pub mod arithmetic {}

pub use error::{Error, Result};

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
