//! RMSNorm, as f32, as fixed point, or both.

use super::*;

/// Operands of `rms_norm`.
#[non_exhaustive]
pub struct RmsNorm<'a> {
    /// `[tokens, cols]`.
    pub x: Slice<'a, f32>,
    /// `[cols]`.
    pub weight: Slice<'a, f32>,
    /// Added to the mean square.
    pub eps: f32,
    /// Rows.
    pub tokens: usize,
    /// A multiple of 256.
    pub cols: usize,
    /// Values of a row that the mean is of; those behind them are zeros.
    pub width: usize,
    /// `[tokens, cols]`.
    pub out: Option<SliceMut<'a, f32>>,
    /// `[tokens, cols / 256]`.
    pub fixed: Option<SliceMut<'a, FixedBlock>>,
}

impl<'a> RmsNorm<'a> {
    /// Of `[tokens, cols]`, all of which count. It gives what is asked for with [`Self::out`] and [`Self::fixed`], one of which must be.
    pub fn new(x: Slice<'a, f32>, weight: Slice<'a, f32>, eps: f32, [tokens, cols]: [usize; 2]) -> Self {
        Self { x, weight, eps, tokens, cols, width: cols, out: None, fixed: None }
    }

    /// Takes the mean of the first `width` values of a row: those behind them are zeros.
    #[must_use]
    pub fn width(self, width: usize) -> Self {
        Self { width, ..self }
    }

    optional_operands! {
        /// Gives the rows as f32.
        out: SliceMut<'a, f32>;
        /// Gives the rows as fixed point.
        fixed: SliceMut<'a, FixedBlock>;
    }
}

impl RmsNorm<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher, also without any output.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        at_least(device, "rms_norm", "x", self.x.place(), &[self.tokens, self.cols])?;
        at_least(device, "rms_norm", "weight", self.weight.place(), &[self.cols])?;
        if let Some(out) = &self.out {
            at_least(device, "rms_norm", "out", out.place(), &[self.tokens, self.cols])?;
        }
        if let Some(fixed) = &self.fixed {
            at_least(device, "rms_norm", "fixed", fixed.place(), &[self.tokens, self.cols / BLOCK])?;
        }
        launch!(
            device,
            rms_norm,
            sys::kqm_rms_norm_args {
                x: self.x.as_ptr(),
                weight: self.weight.as_ptr(),
                out: optional(self.out),
                fixed: optional(self.fixed),
                tokens: count("rms_norm", "tokens", self.tokens)?,
                cols: count("rms_norm", "cols", self.cols)?,
                eps: self.eps,
                width: count("rms_norm", "width", self.width)?,
            }
        )
    }
}
