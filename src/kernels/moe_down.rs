//! Down projections of all pairs, their weighted sum over a token's experts, and the residual.

use super::*;

/// Operands of `moe_down`: `y[t] = sum_rank weights[t, rank] * (W_down x[pair])`.
#[non_exhaustive]
pub struct MoeDown<'a, D: Device> {
    /// `[experts][rows, ff]`.
    pub down: &'a Matrix<D>,
    /// What the matrices are multiplied with.
    pub x: DownInput<'a>,
    /// `[tokens, top_k]`. An expert that does not exist gives NaN.
    pub indices: Slice<'a, u32>,
    /// `[tokens, top_k]`.
    pub weights: Slice<'a, f32>,
    /// Results of `MoeGroup` for the same indices; a single token needs none.
    pub groups: Option<&'a Groups<D>>,
    /// `[pairs, rows]`: every expert's product.
    pub expert_out: SliceMut<'a, f32>,
    /// Optional output `[tokens, rows]`: the weighted sum before it is added or rounded.
    pub sum: Option<SliceMut<'a, f32>>,
    /// `[tokens, rows]`.
    pub y: FloatsMut<'a>,
    /// Add to what y holds instead of replacing it: a residual, added in f32 after the sum is rounded.
    pub accumulate: bool,
    /// Tokens.
    pub tokens: usize,
    /// Experts of a token.
    pub top_k: usize,
}

impl<'a, D: Device> MoeDown<'a, D> {
    /// Of the experts that were chosen: their indices and weights.
    pub fn new(
        down: &'a Matrix<D>,
        x: DownInput<'a>,
        (indices, weights): (Slice<'a, u32>, Slice<'a, f32>),
        groups: impl Into<Option<&'a Groups<D>>>,
        [tokens, top_k]: [usize; 2],
        expert_out: SliceMut<'a, f32>,
        y: impl Into<FloatsMut<'a>>,
    ) -> Self {
        let (groups, y) = (groups.into(), y.into());
        Self { down, x, indices, weights, groups, expert_out, sum: None, y, accumulate: false, tokens, top_k }
    }

    /// Whether to add to what y holds instead of replacing it.
    #[must_use]
    pub fn accumulate(mut self, accumulate: bool) -> Self {
        self.accumulate = accumulate;
        self
    }

    optional_operands! {
        /// Gives the weighted sum before it is added or rounded.
        sum: SliceMut<'a, f32>;
    }
}

/// Activations of the down projections.
#[non_exhaustive]
pub enum DownInput<'a> {
    /// `[pairs, ff / 256]`.
    Fixed(Slice<'a, FixedBlock>),
    /// `[pairs, ff]` of a single token, with at most [`DownInput::MAX_BLOCKS`] blocks of 256: quantized by this kernel.
    Rows(Slice<'a, f32>),
}

impl DownInput<'_> {
    /// Most blocks of 256 of a token's experts together that this kernel quantizes itself.
    pub const MAX_BLOCKS: usize = sys::KQM_FUSED_UNITS as usize;
}

impl<D: Device> MoeDown<'_, D> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch(self, device: &D) -> Result<()> {
        const NAME: &str = "moe_down";
        let rows = self.down.rows();
        let (x, swiglu) = match self.x {
            DownInput::Fixed(x) => {
                at_least(device, NAME, "x", x.place(), &[self.tokens, self.top_k, self.down.cols() / BLOCK])?;
                (x.as_ptr(), std::ptr::null())
            }
            DownInput::Rows(x) => {
                at_least(device, NAME, "x", x.place(), &[self.tokens, self.top_k, self.down.cols()])?;
                (std::ptr::null(), x.as_ptr())
            }
        };
        at_least(device, NAME, "indices", self.indices.place(), &[self.tokens, self.top_k])?;
        at_least(device, NAME, "weights", self.weights.place(), &[self.tokens, self.top_k])?;
        at_least(device, NAME, "expert_out", self.expert_out.place(), &[self.tokens, self.top_k, rows])?;
        at_least(device, NAME, "y", self.y.place(), &[self.tokens, rows])?;
        if let Some(sum) = &self.sum {
            at_least(device, NAME, "sum", sum.place(), &[self.tokens, rows])?;
        }
        let groups = Groups::args(self.groups, device, NAME, [self.tokens, self.down.experts(), self.top_k])?;
        launch!(
            device,
            moe_down,
            sys::kqm_moe_down_args {
                down: self.down.on(device, NAME, "down")?,
                x,
                swiglu,
                indices: self.indices.as_ptr(),
                weights: self.weights.as_ptr(),
                groups,
                expert_out: self.expert_out.as_ptr(),
                sum: optional(self.sum),
                residual: if self.accumulate { self.y.as_ptr() } else { std::ptr::null() },
                y: self.y.as_ptr(),
                type_: self.y.kind() as u32,
                tokens: count(NAME, "tokens", self.tokens)?,
                top_k: count(NAME, "top_k", self.top_k)?,
            }
        )
    }
}
