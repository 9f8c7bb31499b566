//! Reader and writer of GGUF files.
/// A broken rule of the format.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {}
