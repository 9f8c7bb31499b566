//! (token, expert) pairs grouped by expert.

use super::*;

/// Most work items that a batch of `tokens` tokens can give.
///
/// # Errors
/// [`Error::Invalid`] for counts that are too large.
pub fn max_items<D: Device>(device: &D, tokens: usize, experts: usize, top_k: usize) -> Result<usize> {
    const NAME: &str = "moe_group";
    let tokens = count(NAME, "tokens", tokens)?;
    let (experts, top_k) = (count(NAME, "experts", experts)?, count(NAME, "top_k", top_k)?);
    // SAFETY: a function of three numbers.
    Ok(device.kernels().moe_max_items.map_or(0, |most| unsafe { most(tokens, experts, top_k) }) as usize)
}

/// Operands of `moe_group`.
pub struct MoeGroup<'a, D: Device> {
    /// `[tokens, top_k]`, each below `experts`.
    pub indices: Slice<'a, u32>,
    /// Where the groups go.
    pub groups: &'a mut Groups<D>,
    /// Tokens.
    pub tokens: usize,
    /// At most 512.
    pub experts: usize,
    /// At most 32.
    pub top_k: usize,
}

impl<D: Device> MoeGroup<'_, D> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch(self, device: &D) -> Result<()> {
        const NAME: &str = "moe_group";
        at_least(NAME, "indices", self.indices.len(), &[self.tokens, self.top_k])?;
        self.groups.check(NAME, self.tokens, self.top_k)?;
        launch!(
            device,
            moe_group,
            sys::kqm_moe_group_args {
                indices: self.indices.as_ptr(),
                groups: self.groups.as_sys(),
                tokens: count(NAME, "tokens", self.tokens)?,
                experts: count(NAME, "experts", self.experts)?,
                top_k: count(NAME, "top_k", self.top_k)?,
            }
        )
    }
}
