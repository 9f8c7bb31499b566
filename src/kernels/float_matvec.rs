//! Products with weights that are floats.

use super::*;

/// A matrix of floats, or a stack of experts' matrices, on a device as it is in a file.
#[derive(Debug)]
pub struct FloatMatrix<D: Device> {
    bytes: Buffer<D, u8>,
    kind: TensorType,
    rows: usize,
    cols: usize,
    experts: usize,
}

impl<D: Device> FloatMatrix<D> {
    /// Most columns.
    pub const MAX_COLS: usize = 16384;

    /// Room for a matrix, to be filled through [`FloatMatrix::bytes_mut`]: zeros.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a type that is not one of [`TensorType::FLOATS`] and for shapes that no kernel takes.
    pub fn zeroed(device: &D, kind: TensorType, rows: usize, cols: usize, experts: usize) -> Result<Self> {
        let bytes = Self::bytes_of(kind, rows, cols, experts)?;
        Ok(Self { bytes: Buffer::zeroed(device, bytes)?, kind, rows, cols, experts })
    }

    /// A matrix in memory that somebody else manages. Nothing is allocated.
    ///
    /// # Errors
    /// Those of [`FloatMatrix::zeroed`].
    ///
    /// # Safety
    /// That of [`Buffer::from_raw`].
    pub unsafe fn from_raw(
        device: &D,
        address: u64,
        kind: TensorType,
        [experts, rows, cols]: [usize; 3],
    ) -> Result<Self> {
        let bytes = Self::bytes_of(kind, rows, cols, experts)?;
        // SAFETY: the caller's promise.
        let bytes = unsafe { Buffer::from_raw(device, address, bytes) };
        Ok(Self { bytes, kind, rows, cols, experts })
    }

    fn bytes_of(kind: TensorType, rows: usize, cols: usize, experts: usize) -> Result<usize> {
        let shape = format!("matrix {kind:?} [{experts}][{rows}, {cols}]");
        let takes_cols = cols > 0 && cols.is_multiple_of(32) && cols <= Self::MAX_COLS;
        if !TensorType::FLOATS.contains(&kind) || rows == 0 || !takes_cols || experts == 0 {
            return Err(Error::Invalid(format!("{shape}: no kernel computes with it")));
        }
        for (what, n) in [("rows", rows), ("experts", experts)] {
            count("matrix", what, n)?;
        }
        let bytes = experts.checked_mul(rows).and_then(|n| n.checked_mul(kind.bytes_of(cols)));
        bytes.ok_or_else(|| Error::Invalid(format!("{shape}: too large")))
    }

    /// Its type.
    pub fn kind(&self) -> TensorType {
        self.kind
    }

    /// Rows of one expert's matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, a multiple of 32.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Matrices in the stack.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// `[experts][rows, cols]`, row-major: what a file has.
    pub fn bytes_mut(&mut self) -> &mut Buffer<D, u8> {
        &mut self.bytes
    }
}

/// Operands of `float_matvec`. Output i has `ranks` pairs `p = i * ranks + rank`, and
/// `value[p, r] = sum_k W[expert p][r, k] x[p / share, k]`.
#[non_exhaustive]
pub struct FloatMatvec<'a, D: Device> {
    /// `[experts][rows, cols]`.
    pub w: &'a FloatMatrix<D>,
    /// `[count * ranks / share, cols]`, rounded up.
    pub x: Slice<'a, f32>,
    /// `[count, rows]`.
    pub y: SliceMut<'a, f32>,
    /// Outputs: tokens, or pairs that are not added up.
    pub count: usize,
    /// `[count, ranks]`: the pairs' experts. One that does not exist has NaN for its values. Without, there is one matrix.
    pub experts: Option<Slice<'a, u32>>,
    /// Neighbouring pairs that have a row of x in common.
    pub share: usize,
    /// Pairs of an output: 1 unless they are weighted.
    pub ranks: usize,
    /// `[count, ranks]`: an output is the weighted sum of its pairs' values.
    pub weights: Option<Slice<'a, f32>>,
    /// `[count, rows]`: `y = silu(gate) * value`.
    pub gate: Option<Slice<'a, f32>>,
    /// `[count, rows]`: `y = silu(value) * up`.
    pub up: Option<Slice<'a, f32>>,
    /// Add to what y holds instead of replacing it.
    pub accumulate: bool,
    /// `[count, ranks, rows]`: every pair's value.
    pub product: Option<SliceMut<'a, f32>>,
    /// `[count, rows]`, with weights: the sum before it is added to y.
    pub sum: Option<SliceMut<'a, f32>>,
}

impl<'a, D: Device> FloatMatvec<'a, D> {
    /// Of one matrix: `y[t] = W x[t]` for `count` rows.
    pub fn new(w: &'a FloatMatrix<D>, x: Slice<'a, f32>, y: SliceMut<'a, f32>, count: usize) -> Self {
        let (share, ranks) = (1, 1);
        Self {
            w,
            x,
            y,
            count,
            experts: None,
            share,
            ranks,
            weights: None,
            gate: None,
            up: None,
            accumulate: false,
            product: None,
            sum: None,
        }
    }

    /// With the matrices of experts, of which `share` neighbours have a row of x in common.
    #[must_use]
    pub fn experts(mut self, experts: Slice<'a, u32>, share: usize) -> Self {
        (self.experts, self.share) = (Some(experts), share);
        self
    }

    /// As sums of `ranks` pairs' values with these weights.
    #[must_use]
    pub fn weighted(mut self, weights: Slice<'a, f32>, ranks: usize) -> Self {
        (self.weights, self.ranks) = (Some(weights), ranks);
        self
    }

    /// Whether to add to what y holds instead of replacing it.
    #[must_use]
    pub fn accumulate(mut self, accumulate: bool) -> Self {
        self.accumulate = accumulate;
        self
    }

    optional_operands! {
        /// As the second half of a SwiGLU.
        gate: Slice<'a, f32>;
        /// As the first half of a SwiGLU.
        up: Slice<'a, f32>;
        /// Gives every pair's value.
        product: SliceMut<'a, f32>;
        /// Gives the weighted sum.
        sum: SliceMut<'a, f32>;
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch(self, device: &D) -> Result<()> {
        const NAME: &str = "float_matvec";
        let (rows, cols) = (self.w.rows, self.w.cols);
        let outputs = &[self.count, rows];
        at_least(device, NAME, "w", self.w.bytes.place(), &[0])?;
        let Some(pairs) = self.count.checked_mul(self.ranks) else {
            return Err(Error::Invalid(format!("{NAME}: {} outputs of {} pairs are too many", self.count, self.ranks)));
        };
        // None at all is for the launcher to refuse.
        at_least(device, NAME, "x", self.x.place(), &[pairs.div_ceil(self.share.max(1)), cols])?;
        at_least(device, NAME, "y", self.y.place(), outputs)?;
        if let Some(experts) = &self.experts {
            at_least(device, NAME, "experts", experts.place(), &[pairs])?;
        }
        if let Some(weights) = &self.weights {
            at_least(device, NAME, "weights", weights.place(), &[pairs])?;
        }
        for (name, other) in [("gate", &self.gate), ("up", &self.up)] {
            if let Some(other) = other {
                at_least(device, NAME, name, other.place(), outputs)?;
            }
        }
        if let Some(product) = &self.product {
            at_least(device, NAME, "product", product.place(), &[pairs, rows])?;
        }
        if let Some(sum) = &self.sum {
            at_least(device, NAME, "sum", sum.place(), outputs)?;
        }
        fn read<T>(slice: Option<Slice<'_, T>>) -> *const T {
            slice.map_or(std::ptr::null(), |slice| slice.as_ptr())
        }
        launch!(
            device,
            float_matvec,
            sys::kqm_float_matvec_args {
                w: self.w.bytes.slice().as_ptr().cast(),
                x: self.x.as_ptr(),
                indices: read(self.experts),
                weights: read(self.weights),
                gate: read(self.gate),
                up: read(self.up),
                residual: if self.accumulate { self.y.as_ptr() } else { std::ptr::null() },
                product: optional(self.product),
                sum: optional(self.sum),
                y: self.y.as_ptr(),
                type_: self.w.kind as u32,
                rows: rows as u32,
                cols: cols as u32,
                experts: self.w.experts as u32,
                count: count(NAME, "count", self.count)?,
                ranks: count(NAME, "ranks", self.ranks)?,
                share: count(NAME, "share", self.share)?,
            }
        )
    }
}
