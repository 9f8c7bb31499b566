//! Mat-vec with weights of any type.

use super::*;

/// Operands of `matvec`: `y[t, r] = sum_k W[r, k] x[t, k]`.
#[non_exhaustive]
pub struct Matvec<'a, D: Device> {
    /// `[rows, cols]` in any type that matrices have.
    pub w: &'a Matrix<D>,
    /// `[tokens, cols / 256]`.
    pub x: Slice<'a, FixedBlock>,
    /// `[tokens, rows]`.
    pub y: SliceMut<'a, f32>,
    /// Add to what y holds instead of replacing it: a residual, added in f32 after the sum is rounded.
    pub accumulate: bool,
    /// `[tokens, rows]`: the sum before it is added.
    pub product: Option<SliceMut<'a, f32>>,
    /// Tokens.
    pub tokens: usize,
}

impl<'a, D: Device> Matvec<'a, D> {
    /// Of one matrix.
    pub fn new(w: &'a Matrix<D>, x: Slice<'a, FixedBlock>, y: SliceMut<'a, f32>, tokens: usize) -> Self {
        Self { w, x, y, accumulate: false, product: None, tokens }
    }

    /// Whether to add to what y holds instead of replacing it.
    #[must_use]
    pub fn accumulate(mut self, accumulate: bool) -> Self {
        self.accumulate = accumulate;
        self
    }

    optional_operands! {
        /// Gives the sum before it is added.
        product: SliceMut<'a, f32>;
    }

    /// Enqueues the kernel that [`matvec_kernel`] names for W's type.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch(self, device: &D) -> Result<()> {
        match self.w.kind() {
            TensorType::Q4K => Q4KMatvec(self).launch(device),
            TensorType::Q6K => Q6KGemv(self).launch(device),
            kind => launch!(device, matvec, self.args(device, matvec_kernel(kind))?),
        }
    }

    /// The checked arguments, of which the entries of single types have the same.
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
            residual: if self.accumulate { self.y.as_ptr() } else { std::ptr::null() },
            product: optional(self.product),
            y: self.y.as_ptr(),
            tokens: count(kernel, "tokens", self.tokens)?,
        })
    }
}

/// The kernel that multiplies with a type: `float_matvec` with floats ([`FloatMatvec`]), with others `matvec`, or its entry for one type,
/// for those that have one.
pub const fn matvec_kernel(kind: TensorType) -> &'static str {
    match kind {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => "float_matvec",
        TensorType::Q4K => "q4_k_matvec",
        TensorType::Q6K => "q6_k_gemv",
        _ => "matvec",
    }
}
