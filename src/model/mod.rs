//! The Qwen3-MoE model: configuration, weights, and the one forward over a [`Backend`].
//!
//! ```no_run
//! # use std::sync::Arc;
//! use kquant_moe::gguf::Gguf;
//! use kquant_moe::model::{ContextOptions, LoadOptions, Logits, Model, cpu::Cpu};
//!
//! # fn main() -> kquant_moe::Result<()> {
//! let gguf = Arc::new(Gguf::read("model.gguf")?);
//! let model = Model::load(gguf, Cpu::new(), LoadOptions::default(), &mut |_, _| {})?;
//! let mut context = model.context(ContextOptions::default())?;
//! let logits = context.forward(&model, &[1, 2, 3], Logits::Last)?;
//! assert_eq!(logits.len(), model.config().vocab);
//! # Ok(())
//! # }
//! ```

pub mod backend;
pub mod config;
pub mod context;
pub mod cpu;
pub mod draft;
mod end_tokens;
mod forward;
pub mod gpu;
pub mod pages;
pub mod pool;
pub mod rope_table;
pub mod synth;
pub mod weights;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use backend::{Backend, CacheType};
pub use config::{Config, RopeScaling, Yarn};
pub use context::{Context, ContextOptions, Logits, MemoryPlan, RecordedSteps};
pub use draft::Drafts;
pub use end_tokens::end_tokens;
pub use pages::{Pages, Sequence};
pub use pool::{Entry, Generation, Next, Pool, PoolOptions};
pub use weights::{Tensor, Tensors, Weights};

use crate::gguf::{Gguf, Override};
use crate::{Error, Result};

/// How a model is loaded: [`LoadOptions::default`], and what is to be different.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Check that all matrices are finite, the factors of blocks and floats, which reads the whole file. Norms and routers are
    /// always checked.
    pub check_blocks: bool,
    /// Metadata that take the place of the file's, such as `qwen3moe.expert_used_count` or `qwen3moe.context_length`. They are
    /// checked like the file's own.
    pub overrides: Vec<Override>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { check_blocks: true, overrides: Vec::new() }
    }
}

impl LoadOptions {
    /// With or without the check of all blocks.
    #[must_use]
    pub fn check_blocks(mut self, check_blocks: bool) -> Self {
        self.check_blocks = check_blocks;
        self
    }

    /// With these metadata in place of the file's.
    #[must_use]
    pub fn overrides(mut self, overrides: Vec<Override>) -> Self {
        self.overrides = overrides;
        self
    }
}

/// A model that is ready to run: shared by any number of [`Context`]s.
pub struct Model<B: Backend> {
    config: Config,
    weights: Weights<B>,
    backend: B,
    /// No two models of a process have the same: what a context recorded is for one model's memory.
    id: u64,
}

/// The next model's id.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl<B: Backend> Model<B> {
    /// Checks the file's configuration and tensors and hands the weights to the backend. `progress` gets bytes done and
    /// bytes in all.
    ///
    /// # Errors
    /// Errors of [`Gguf::with`], [`Config::from_gguf`], [`Tensors::find`] and [`Weights::load`]: everything that is wrong with the file
    /// is said before the first weight is loaded, except for values that are not finite. [`crate::Error::OutOfMemory`],
    /// before anything is allocated, when the backend has too little memory for the weights.
    pub fn load(gguf: Arc<Gguf>, backend: B, options: LoadOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let gguf = if options.overrides.is_empty() { gguf } else { Arc::new(gguf.with(&options.overrides)?) };
        let config = Config::from_gguf(&gguf)?;
        let tensors = Tensors::find(&gguf, &config)?;
        context::check_weights(&backend, &tensors)?;
        let weights = Weights::load(&tensors, &backend, options.check_blocks, progress)?;
        Ok(Self { config, weights, backend, id: NEXT_ID.fetch_add(1, Ordering::Relaxed) })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &Weights<B> {
        &self.weights
    }

    /// The backend that holds the weights.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// A new context, with its own cache, buffers and queue of the backend.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for options that make no sense; [`crate::Error::OutOfMemory`], before anything is
    /// allocated, when the backend has too little memory; and what the backend reports.
    pub fn context(&self, options: ContextOptions) -> Result<Context<B>> {
        Context::new(self, options)
    }

    /// A new pool of sequences, with its own cache, buffers and queue of the backend.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for options that make no sense; [`crate::Error::OutOfMemory`], before anything is
    /// allocated, when the backend has too little memory; and what the backend reports.
    pub fn pool(&self, options: PoolOptions) -> Result<Pool<B>> {
        Pool::new(self, options)
    }
}

/// Fails where the host's memory cannot have so many elements, of which an allocation would end the process.
fn host_has_room<T>(len: usize) -> Result<()> {
    let bytes = len.saturating_mul(size_of::<T>());
    let refused = |_| Error::Invalid(format!("no room for {bytes} bytes in the host's memory"));
    Vec::<T>::new().try_reserve_exact(len).map_err(refused)
}
