//! Up to three mat-vecs with the same activations in one launch.

use super::*;

/// Operands of `qkv`: `y[i] = W[i] x`, each matrix of its own type.
pub struct Qkv<'a, D: Device> {
    /// `[rows i, cols]`, all with the same columns.
    pub w: [&'a Matrix<D>; 3],
    /// What the matrices are multiplied with.
    pub x: Activations<'a>,
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
        let cols = self.w[0].cols();
        for (operand, w) in ["w[1]", "w[2]"].into_iter().zip(&self.w[1..]) {
            if w.cols() != cols {
                return Err(Error::Invalid(format!("qkv: {operand} has {} columns, expected {cols}", w.cols())));
            }
        }
        for ((operand, w), y) in ["y[0]", "y[1]", "y[2]"].into_iter().zip(self.w).zip(&self.y) {
            at_least("qkv", operand, y.len(), &[self.tokens, w.rows()])?;
        }
        let (x, norm) = match self.x {
            Activations::Fixed(x) => {
                at_least("qkv", "x", x.len(), &[self.tokens, cols / BLOCK])?;
                (x.as_ptr(), None)
            }
            Activations::Norm(norm) => (std::ptr::null(), Some(norm)),
        };
        launch!(
            device,
            qkv,
            sys::kqm_qkv_args {
                w: self.w.map(Matrix::as_sys),
                x,
                norm: FusedNorm::args(norm, "qkv", cols)?,
                y: self.y.map(|y| y.as_ptr()),
                tokens: count("qkv", "tokens", self.tokens)?,
            }
        )
    }
}
