//! Gate and up projections and SwiGLU of all (token, expert) pairs in one launch.

use super::*;

/// Operands of `moe_swiglu`: `out[p] = silu(W_gate x) * (W_up x)`.
pub struct MoeSwiglu<'a, D: Device> {
    /// `[experts][ff, cols]`.
    pub gate: &'a Matrix<D>,
    /// `[experts][ff, cols]`.
    pub up: &'a Matrix<D>,
    /// `[tokens, cols / 256]`.
    pub x: Slice<'a, FixedBlock>,
    /// Who chose the experts.
    pub choose: Choose<'a>,
    /// Results of [`MoeGroup`] for the same indices; not read for a single token.
    pub groups: &'a Groups<D>,
    /// Optional output `[pairs, ff]`.
    pub gate_out: Option<SliceMut<'a, f32>>,
    /// Optional output `[pairs, ff]`.
    pub up_out: Option<SliceMut<'a, f32>>,
    /// `[pairs, ff]`, pair = token * top_k + rank.
    pub out: SliceMut<'a, f32>,
    /// Tokens.
    pub tokens: usize,
    /// Experts of a token.
    pub top_k: usize,
}

/// Where the choice of experts comes from.
pub enum Choose<'a> {
    /// `[tokens, top_k]`: [`super::MoeRouter`] made it. An expert that does not exist gives NaN.
    Made(Slice<'a, u32>),
    /// A single token: this kernel makes it.
    Here {
        /// `[experts]`.
        logits: Slice<'a, f32>,
        /// `[top_k]`, written for [`super::MoeDown`].
        indices: SliceMut<'a, u32>,
        /// `[top_k]`, written for [`super::MoeDown`].
        weights: SliceMut<'a, f32>,
    },
}

impl<D: Device> MoeSwiglu<'_, D> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch(self, device: &D) -> Result<()> {
        const NAME: &str = "moe_swiglu";
        let shape = [self.tokens, self.top_k, self.gate.rows()];
        self.gate.same_shape(NAME, "up", self.up)?;
        at_least(device, NAME, "x", self.x.place(), &[self.tokens, self.gate.cols() / BLOCK])?;
        let (indices, logits, weights) = match self.choose {
            Choose::Made(indices) => {
                at_least(device, NAME, "indices", indices.place(), &[self.tokens, self.top_k])?;
                (indices.as_ptr().cast_mut(), std::ptr::null(), std::ptr::null_mut())
            }
            Choose::Here { logits, indices, weights } => {
                at_least(device, NAME, "logits", logits.place(), &[self.gate.experts()])?;
                at_least(device, NAME, "indices", indices.place(), &[self.top_k])?;
                at_least(device, NAME, "weights", weights.place(), &[self.top_k])?;
                (indices.as_ptr(), logits.as_ptr(), weights.as_ptr())
            }
        };
        at_least(device, NAME, "out", self.out.place(), &shape)?;
        if let Some(gate_out) = &self.gate_out {
            at_least(device, NAME, "gate_out", gate_out.place(), &shape)?;
        }
        if let Some(up_out) = &self.up_out {
            at_least(device, NAME, "up_out", up_out.place(), &shape)?;
        }
        self.groups.check(device, NAME, self.tokens, self.gate.experts(), self.top_k)?;
        launch!(
            device,
            moe_swiglu,
            sys::kqm_moe_swiglu_args {
                gate: self.gate.on(device, NAME, "gate")?,
                up: self.up.on(device, NAME, "up")?,
                x: self.x.as_ptr(),
                indices,
                logits,
                weights,
                groups: self.groups.as_sys(),
                gate_out: optional(self.gate_out),
                up_out: optional(self.up_out),
                out: self.out.as_ptr(),
                tokens: count(NAME, "tokens", self.tokens)?,
                top_k: count(NAME, "top_k", self.top_k)?,
            }
        )
    }
}
