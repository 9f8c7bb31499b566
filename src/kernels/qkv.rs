//! Up to three mat-vecs with the same activations in one launch.

use super::*;

/// Operands of `qkv`: `y[i] = W[i] x`, each matrix of its own type.
pub struct Qkv<'a, D: Device> {
    /// `[rows i, cols]`, all with the same columns.
    pub w: [&'a Matrix<D>; 3],
    /// `[tokens, cols / 256]`.
    pub x: Slice<'a, FixedBlock>,
    /// `[tokens, rows i]`.
    pub y: [SliceMut<'a, f32>; 3],
    /// Tokens.
    pub tokens: usize,
}

impl<D: Device> Qkv<'_, D> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch(self, device: &D) -> Result<()> {
        for (w, y) in self.w.iter().zip(&self.y) {
            at_least("qkv", "x", self.x.len(), &[self.tokens, w.cols() / BLOCK])?;
            at_least("qkv", "y", y.len(), &[self.tokens, w.rows()])?;
        }
        launch!(
            device,
            qkv,
            sys::kqm_qkv_args {
                w: self.w.map(Matrix::as_sys),
                x: self.x.as_ptr(),
                y: self.y.map(|y| y.as_ptr()),
                tokens: count("qkv", "tokens", self.tokens)?,
            }
        )
    }
}
