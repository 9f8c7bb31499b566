//! Gate and up projections and SwiGLU of all (token, expert) pairs in one launch.

use super::*;

/// Operands of `moe_swiglu`: `out[p] = silu(W_gate x) * (W_up x)`.
#[non_exhaustive]
pub struct MoeSwiglu<'a, D: Device> {
    /// `[experts][ff, cols]`.
    pub gate: &'a Matrix<D>,
    /// `[experts][ff, cols]`.
    pub up: &'a Matrix<D>,
    /// `[tokens, cols / 256]`.
    pub x: Slice<'a, FixedBlock>,
    /// Who chose the experts.
    pub choose: Choose<'a>,
    /// Results of [`MoeGroup`] for the same indices; a single token needs none.
    pub groups: Option<&'a Groups<D>>,
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

impl<'a, D: Device> MoeSwiglu<'a, D> {
    /// Of gate and up.
    pub fn new(
        [gate, up]: [&'a Matrix<D>; 2],
        x: Slice<'a, FixedBlock>,
        choose: Choose<'a>,
        groups: impl Into<Option<&'a Groups<D>>>,
        [tokens, top_k]: [usize; 2],
        out: SliceMut<'a, f32>,
    ) -> Self {
        Self { gate, up, x, choose, groups: groups.into(), gate_out: None, up_out: None, out, tokens, top_k }
    }

    optional_operands! {
        /// Gives the products of gate.
        gate_out: SliceMut<'a, f32>;
        /// Gives the products of up.
        up_out: SliceMut<'a, f32>;
    }
}

/// Where the choice of experts comes from.
#[non_exhaustive]
pub enum Choose<'a> {
    /// `[tokens, top_k]`: [`super::MoeRouter`] made it. An expert that does not exist gives NaN.
    Made(Slice<'a, u32>),
    /// A single token: this kernel makes it.
    #[non_exhaustive]
    Here {
        /// `[experts]`.
        logits: Slice<'a, f32>,
        /// `[top_k]`, written for [`super::MoeDown`].
        indices: SliceMut<'a, u32>,
        /// `[top_k]`, written for [`super::MoeDown`].
        weights: SliceMut<'a, f32>,
        /// What the weights are.
        weighting: Weighting,
    },
}

impl<'a> Choose<'a> {
    /// [`Self::Here`], the weights being those that [`Weighting::OfChosen`] stands for.
    pub fn here(logits: Slice<'a, f32>, indices: SliceMut<'a, u32>, weights: SliceMut<'a, f32>) -> Self {
        Self::Here { logits, indices, weights, weighting: Weighting::OfChosen }
    }

    /// What the weights are, where this kernel makes the choice.
    #[must_use]
    pub fn weighting(mut self, chosen: Weighting) -> Self {
        if let Self::Here { weighting, .. } = &mut self {
            *weighting = chosen;
        }
        self
    }
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
        let (indices, logits, weights, weighting) = match self.choose {
            Choose::Made(indices) => {
                at_least(device, NAME, "indices", indices.place(), &[self.tokens, self.top_k])?;
                (indices.as_ptr().cast_mut(), std::ptr::null(), std::ptr::null_mut(), Weighting::OfChosen)
            }
            Choose::Here { logits, indices, weights, weighting } => {
                at_least(device, NAME, "logits", logits.place(), &[self.gate.experts()])?;
                at_least(device, NAME, "indices", indices.place(), &[self.top_k])?;
                at_least(device, NAME, "weights", weights.place(), &[self.top_k])?;
                (indices.as_ptr(), logits.as_ptr(), weights.as_ptr(), weighting)
            }
        };
        at_least(device, NAME, "out", self.out.place(), &shape)?;
        if let Some(gate_out) = &self.gate_out {
            at_least(device, NAME, "gate_out", gate_out.place(), &shape)?;
        }
        if let Some(up_out) = &self.up_out {
            at_least(device, NAME, "up_out", up_out.place(), &shape)?;
        }
        let groups = Groups::args(self.groups, device, NAME, [self.tokens, self.gate.experts(), self.top_k])?;
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
                groups,
                gate_out: optional(self.gate_out),
                up_out: optional(self.up_out),
                out: self.out.as_ptr(),
                tokens: count(NAME, "tokens", self.tokens)?,
                top_k: count(NAME, "top_k", self.top_k)?,
                weighting: weighting as u32,
            }
        )
    }
}
