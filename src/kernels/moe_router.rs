//! Router logits, the chosen experts and their weights.

use super::*;

/// Operands of `moe_router`.
#[non_exhaustive]
pub struct MoeRouter<'a> {
    /// What the router sees.
    pub x: RouterInput<'a>,
    /// `[experts, cols]`.
    pub w: Slice<'a, f32>,
    /// `[tokens, experts]`.
    pub logits: SliceMut<'a, f32>,
    /// Where the choice goes; without it, for a single token, only the logits are made and [`MoeSwiglu`] chooses.
    pub choice: Option<RouterChoice<'a>>,
    /// Tokens.
    pub tokens: usize,
    /// A multiple of 256.
    pub cols: usize,
    /// At most 512.
    pub experts: usize,
    /// At most 32, at most `experts`.
    pub top_k: usize,
    /// What the weights of a choice are.
    pub weighting: Weighting,
}

impl<'a> MoeRouter<'a> {
    /// Of weights `[experts, cols]`.
    pub fn new(
        x: RouterInput<'a>,
        w: Slice<'a, f32>,
        [experts, cols]: [usize; 2],
        logits: SliceMut<'a, f32>,
        tokens: usize,
        top_k: usize,
    ) -> Self {
        Self { x, w, logits, choice: None, tokens, cols, experts, top_k, weighting: Weighting::default() }
    }

    /// What the weights of a choice are: by default [`Weighting::OfChosen`].
    #[must_use]
    pub fn weighting(mut self, weighting: Weighting) -> Self {
        self.weighting = weighting;
        self
    }

    optional_operands! {
        /// Makes the choice, too.
        choice: RouterChoice<'a>;
    }
}

/// What the router sees.
#[non_exhaustive]
pub enum RouterInput<'a> {
    /// `[tokens, cols]`.
    Rows(Slice<'a, f32>),
    /// A single token: the row is normed here, and left as fixed point `[cols / 256]` for the experts.
    Norm(FusedNorm<'a>, SliceMut<'a, FixedBlock>),
}

/// Where the router's choice goes.
#[non_exhaustive]
pub struct RouterChoice<'a> {
    /// `[tokens, top_k]`, highest probability first.
    pub indices: SliceMut<'a, u32>,
    /// `[tokens, top_k]`.
    pub weights: SliceMut<'a, f32>,
    /// `[tokens]`, zero before the first launch and after every one.
    pub done: SliceMut<'a, u32>,
}

impl<'a> RouterChoice<'a> {
    /// The memory of a choice. `done` is the kernel's own.
    pub fn new(indices: SliceMut<'a, u32>, weights: SliceMut<'a, f32>, done: SliceMut<'a, u32>) -> Self {
        Self { indices, weights, done }
    }
}

impl MoeRouter<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        const NAME: &str = "moe_router";
        let (x, norm, fixed) = match self.x {
            RouterInput::Rows(x) => {
                at_least(device, NAME, "x", x.place(), &[self.tokens, self.cols])?;
                (x.as_ptr(), None, std::ptr::null_mut())
            }
            RouterInput::Norm(norm, fixed) => {
                at_least(device, NAME, "fixed", fixed.place(), &[self.cols / BLOCK])?;
                (std::ptr::null(), Some(norm), fixed.as_ptr())
            }
        };
        at_least(device, NAME, "w", self.w.place(), &[self.experts, self.cols])?;
        at_least(device, NAME, "logits", self.logits.place(), &[self.tokens, self.experts])?;
        let (mut indices, mut weights, mut done) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        if let Some(choice) = self.choice {
            at_least(device, NAME, "indices", choice.indices.place(), &[self.tokens, self.top_k])?;
            at_least(device, NAME, "weights", choice.weights.place(), &[self.tokens, self.top_k])?;
            at_least(device, NAME, "done", choice.done.place(), &[self.tokens])?;
            (indices, weights, done) = (choice.indices.as_ptr(), choice.weights.as_ptr(), choice.done.as_ptr());
        }
        launch!(
            device,
            moe_router,
            sys::kqm_moe_router_args {
                x,
                norm: FusedNorm::args(norm, device, NAME, self.cols)?,
                fixed,
                w: self.w.as_ptr(),
                logits: self.logits.as_ptr(),
                indices,
                weights,
                done,
                tokens: count(NAME, "tokens", self.tokens)?,
                cols: count(NAME, "cols", self.cols)?,
                experts: count(NAME, "experts", self.experts)?,
                top_k: count(NAME, "top_k", self.top_k)?,
                weighting: self.weighting as u32,
            }
        )
    }
}
