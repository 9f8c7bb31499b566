//! Mat-vec with Q6_K weights.

use super::*;

/// Operands of `q6_k_gemv`: those of [`Matvec`], with W in Q6_K.
pub struct Q6KGemv<'a, D: Device>(pub Matvec<'a, D>);

impl<D: Device> Q6KGemv<'_, D> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// As [`Matvec::launch`], also for another type.
    pub fn launch(self, device: &D) -> Result<()> {
        launch!(device, q6_k_gemv, self.0.args(device, "q6_k_gemv")?)
    }
}
