//! Mat-vec with Q4_K weights.

use super::*;

/// Operands of `q4_k_matvec`: `y[t, r] = sum_k W[r, k] x[t, k]`.
pub struct Q4KMatvec<'a, D: Device> {
    /// `[rows, cols]` in Q4_K.
    pub w: &'a Matrix<D>,
    /// `[tokens, cols / 256]`.
    pub x: Slice<'a, FixedBlock>,
    /// `[tokens, rows]`.
    pub y: SliceMut<'a, f32>,
    /// Add to what y holds instead of replacing it: a residual, added in f32 after the sum is rounded.
    pub add: bool,
    /// `[tokens, rows]`: the sum before it is added.
    pub product: Option<SliceMut<'a, f32>>,
    /// Tokens.
    pub tokens: usize,
}

impl<D: Device> Q4KMatvec<'_, D> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher, also for another type.
    pub fn launch(self, device: &D) -> Result<()> {
        launch!(device, q4_k_matvec, self.args(device, "q4_k_matvec")?)
    }

    /// The checked arguments: the same for every type of weights.
    pub(super) fn args(self, device: &D, kernel: &'static str) -> Result<sys::kqm_matvec_args> {
        let (rows, cols) = (self.w.rows(), self.w.cols());
        at_least(device, kernel, "x", self.x.place(), &[self.tokens, cols / BLOCK])?;
        at_least(device, kernel, "y", self.y.place(), &[self.tokens, rows])?;
        if let Some(product) = &self.product {
            at_least(device, kernel, "product", product.place(), &[self.tokens, rows])?;
        }
        Ok(sys::kqm_matvec_args {
            w: self.w.on(device, kernel, "w")?,
            x: self.x.as_ptr(),
            residual: if self.add { self.y.as_ptr() } else { std::ptr::null() },
            product: optional(self.product),
            y: self.y.as_ptr(),
            tokens: count(kernel, "tokens", self.tokens)?,
        })
    }
}
