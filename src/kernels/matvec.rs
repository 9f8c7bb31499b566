//! Mat-vec with weights of any type.

use super::*;

/// Operands of `matvec`: those of [`Q4KMatvec`], with W in any type that matrices have.
pub struct Matvec<'a, D: Device>(pub Q4KMatvec<'a, D>);

impl<D: Device> Matvec<'_, D> {
    /// Enqueues the kernel that [`matvec_kernel`] names for W's type.
    ///
    /// # Errors
    /// As [`Q4KMatvec::launch`].
    pub fn launch(self, device: &D) -> Result<()> {
        match self.0.w.kind() {
            TensorType::Q4K => self.0.launch(device),
            TensorType::Q6K => Q6KGemv(self.0).launch(device),
            kind => launch!(device, matvec, self.0.args(device, matvec_kernel(kind))?),
        }
    }
}

/// The kernel that multiplies with a type: `matvec`, or its entry for one type, for those that have one.
pub const fn matvec_kernel(kind: TensorType) -> &'static str {
    match kind {
        TensorType::Q4K => "q4_k_matvec",
        TensorType::Q6K => "q6_k_gemv",
        _ => "matvec",
    }
}
