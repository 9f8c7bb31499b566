//! f32 activations to block fixed point.

use super::*;

/// Operands of `quantize`.
#[non_exhaustive]
pub struct Quantize<'a> {
    /// `[tokens, cols]`.
    pub x: Slice<'a, f32>,
    /// `[tokens, cols / 256]`.
    pub out: SliceMut<'a, FixedBlock>,
    /// Rows.
    pub tokens: usize,
    /// A multiple of 256.
    pub cols: usize,
}

impl<'a> Quantize<'a> {
    /// Of `[tokens, cols]`.
    pub fn new(x: Slice<'a, f32>, out: SliceMut<'a, FixedBlock>, [tokens, cols]: [usize; 2]) -> Self {
        Self { x, out, tokens, cols }
    }
}

impl Quantize<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        at_least(device, "quantize", "x", self.x.place(), &[self.tokens, self.cols])?;
        at_least(device, "quantize", "out", self.out.place(), &[self.tokens, self.cols / BLOCK])?;
        launch!(
            device,
            quantize,
            sys::kqm_quantize_args {
                x: self.x.as_ptr(),
                out: self.out.as_ptr(),
                tokens: count("quantize", "tokens", self.tokens)?,
                cols: count("quantize", "cols", self.cols)?,
            }
        )
    }
}
