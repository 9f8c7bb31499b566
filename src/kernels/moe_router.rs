//! Router logits, the chosen experts and their weights.

use super::*;

/// Operands of `moe_router`.
pub struct MoeRouter<'a> {
    /// `[tokens, cols]`.
    pub x: Slice<'a, f32>,
    /// `[experts, cols]`.
    pub w: Slice<'a, f32>,
    /// `[tokens, experts]`.
    pub logits: SliceMut<'a, f32>,
    /// `[tokens, top_k]`, highest probability first.
    pub indices: SliceMut<'a, u32>,
    /// `[tokens, top_k]`.
    pub weights: SliceMut<'a, f32>,
    /// `[tokens]`, zero before the first launch and after every one.
    pub done: SliceMut<'a, u32>,
    /// Tokens.
    pub tokens: usize,
    /// A multiple of 256.
    pub cols: usize,
    /// At most 512.
    pub experts: usize,
    /// At most 32, at most `experts`.
    pub top_k: usize,
}

impl MoeRouter<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        const NAME: &str = "moe_router";
        at_least(NAME, "x", self.x.len(), &[self.tokens, self.cols])?;
        at_least(NAME, "w", self.w.len(), &[self.experts, self.cols])?;
        at_least(NAME, "logits", self.logits.len(), &[self.tokens, self.experts])?;
        at_least(NAME, "indices", self.indices.len(), &[self.tokens, self.top_k])?;
        at_least(NAME, "weights", self.weights.len(), &[self.tokens, self.top_k])?;
        at_least(NAME, "done", self.done.len(), &[self.tokens])?;
        launch!(
            device,
            moe_router,
            sys::kqm_moe_router_args {
                x: self.x.as_ptr(),
                w: self.w.as_ptr(),
                logits: self.logits.as_ptr(),
                indices: self.indices.as_ptr(),
                weights: self.weights.as_ptr(),
                done: self.done.as_ptr(),
                tokens: count(NAME, "tokens", self.tokens)?,
                cols: count(NAME, "cols", self.cols)?,
                experts: count(NAME, "experts", self.experts)?,
                top_k: count(NAME, "top_k", self.top_k)?,
            }
        )
    }
}
