//! Activations to block fixed point.

use super::*;

/// Operands of `quantize`.
#[non_exhaustive]
pub struct Quantize<'a> {
    /// `[tokens, cols]`.
    pub x: Floats<'a>,
    /// `[tokens, cols / 256]`.
    pub out: SliceMut<'a, FixedBlock>,
    /// Optional output `[tokens, cols]`: the activations as f32, which is exact.
    pub floats: Option<SliceMut<'a, f32>>,
    /// Rows.
    pub tokens: usize,
    /// A multiple of 256.
    pub cols: usize,
}

impl<'a> Quantize<'a> {
    /// Of `[tokens, cols]`.
    pub fn new(x: impl Into<Floats<'a>>, out: SliceMut<'a, FixedBlock>, [tokens, cols]: [usize; 2]) -> Self {
        Self { x: x.into(), out, floats: None, tokens, cols }
    }

    optional_operands! {
        /// Gives the activations as f32.
        floats: SliceMut<'a, f32>;
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
        if let Some(floats) = &self.floats {
            at_least(device, "quantize", "floats", floats.place(), &[self.tokens, self.cols])?;
        }
        launch!(
            device,
            quantize,
            sys::kqm_quantize_args {
                x: self.x.as_ptr(),
                out: self.out.as_ptr(),
                floats: optional(self.floats),
                type_: self.x.kind() as u32,
                tokens: count("quantize", "tokens", self.tokens)?,
                cols: count("quantize", "cols", self.cols)?,
            }
        )
    }
}
