//! Hand-written CUDA kernels for Mixture-of-Experts models in GGUF K-quants, a CPU oracle for every kernel, and the
//! Qwen3-MoE forward composed from them.
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

pub use error::{Error, Result};

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
