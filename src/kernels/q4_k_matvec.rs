//! Mat-vec with Q4_K weights.

use super::*;

/// Operands of `q4_k_matvec`: those of [`Matvec`], with W in Q4_K.
pub struct Q4KMatvec<'a, D: Device>(pub Matvec<'a, D>);

impl<D: Device> Q4KMatvec<'_, D> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// As [`Matvec::launch`], also for another type.
    pub fn launch(self, device: &D) -> Result<()> {
        launch!(device, q4_k_matvec, self.0.args(device, "q4_k_matvec")?)
    }
}
