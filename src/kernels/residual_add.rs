//! Addition of two vectors.

use super::*;

/// Operands of `residual_add`: `y = a + b`.
#[non_exhaustive]
pub struct ResidualAdd<'a> {
    /// Summand.
    pub a: Slice<'a, f32>,
    /// Summand.
    pub b: Slice<'a, f32>,
    /// Sum; as many elements as it has are added.
    pub y: SliceMut<'a, f32>,
}

impl<'a> ResidualAdd<'a> {
    /// Of two summands.
    pub fn new(a: Slice<'a, f32>, b: Slice<'a, f32>, y: SliceMut<'a, f32>) -> Self {
        Self { a, b, y }
    }
}

impl ResidualAdd<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        at_least(device, "residual_add", "a", self.a.place(), &[self.y.len()])?;
        at_least(device, "residual_add", "b", self.b.place(), &[self.y.len()])?;
        at_least(device, "residual_add", "y", self.y.place(), &[self.y.len()])?;
        launch!(
            device,
            residual_add,
            sys::kqm_residual_add_args {
                a: self.a.as_ptr(),
                b: self.b.as_ptr(),
                y: self.y.as_ptr(),
                count: self.y.len() as u64,
            }
        )
    }
}
