//! Up to three mat-vecs with the same activations in one launch.

use super::*;

/// Operands of `qkv`: `y[i] = W[i] x`, each matrix of its own type.
#[non_exhaustive]
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

impl<'a, D: Device> Qkv<'a, D> {
    /// Of three matrices, and where their products go.
    pub fn new(w: [&'a Matrix<D>; 3], x: Activations<'a>, y: [SliceMut<'a, f32>; 3], tokens: usize) -> Self {
        Self { w, x, y, tokens }
    }
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
            at_least(device, "qkv", operand, y.place(), &[self.tokens, w.rows()])?;
        }
        let [w0, w1, w2] = self.w;
        let w = [w0.on(device, "qkv", "w[0]")?, w1.on(device, "qkv", "w[1]")?, w2.on(device, "qkv", "w[2]")?];
        let (x, norm) = match self.x {
            Activations::Fixed(x) => {
                at_least(device, "qkv", "x", x.place(), &[self.tokens, cols / BLOCK])?;
                (x.as_ptr(), None)
            }
            Activations::Norm(norm) => (std::ptr::null(), Some(norm)),
        };
        launch!(
            device,
            qkv,
            sys::kqm_qkv_args {
                w,
                x,
                norm: FusedNorm::args(norm, device, "qkv", cols)?,
                y: self.y.map(|y| y.as_ptr()),
                tokens: count("qkv", "tokens", self.tokens)?,
            }
        )
    }
}
