//! A whole MoE layer.

use super::*;

/// Operands of `moe_layer`: `y[t] = sum_rank weights[t, rank] * down(swiglu(x[t]))`, the experts and weights being those that the router
/// chooses.
///
/// ```no_run
/// use kquant_moe::Result;
/// use kquant_moe::blocks::TensorType;
/// use kquant_moe::device::{CudaDevice, Slice, SliceMut};
/// use kquant_moe::kernels::{Floats, FloatsMut, Matrix, MoeLayer, Weighting};
/// use kquant_moe::sys::kqm_stream;
///
/// /// One layer of an engine: gate, up and down in tiles, activations and results in f16.
/// struct Layer {
///     matrices: [Matrix<CudaDevice>; 3],
///     router: u64,
/// }
///
/// impl Layer {
///     /// y = MoE(x) of `tokens` tokens, on the engine's stream; `allocate` gives memory that lasts until its work is done.
///     ///
///     /// # Safety
///     /// The addresses are of device 0, as long as the layer's shapes demand, and nothing else uses y meanwhile.
///     unsafe fn forward(
///         &self,
///         [x, y]: [u64; 2],
///         tokens: usize,
///         stream: kqm_stream,
///         allocate: impl Fn(usize) -> u64,
///     ) -> Result<()> {
///         let [gate, up, down] = self.matrices.each_ref();
///         let (hidden, shape) = (gate.cols(), [tokens, 8]);
///         // SAFETY: the caller's promises.
///         unsafe {
///             let device = CudaDevice::from_raw_stream(0, stream)?;
///             let bytes = MoeLayer::workspace_bytes(&device, [gate, up, down], TensorType::F16, shape)?;
///             MoeLayer::new(
///                 Floats::F16(Slice::from_raw(&device, x, tokens * hidden)),
///                 Slice::from_raw(&device, self.router, gate.experts() * hidden),
///                 [gate, up, down],
///                 FloatsMut::F16(SliceMut::from_raw(&device, y, tokens * down.rows())),
///                 SliceMut::from_raw(&device, allocate(bytes), bytes),
///                 shape,
///             )
///             .weighting(Weighting::OfAll)
///             .launch(&device)
///         }
///     }
/// }
/// ```
#[non_exhaustive]
pub struct MoeLayer<'a, D: Device> {
    /// `[tokens, hidden]`: normed activations.
    pub x: Floats<'a>,
    /// `[experts, hidden]`.
    pub router: Slice<'a, f32>,
    /// `[experts][ff, hidden]`.
    pub gate: &'a Matrix<D>,
    /// `[experts][ff, hidden]`.
    pub up: &'a Matrix<D>,
    /// `[experts][rows, ff]`.
    pub down: &'a Matrix<D>,
    /// `[tokens, rows]`.
    pub y: FloatsMut<'a>,
    /// Add to what y holds instead of replacing it: a residual, added in f32 after the sum is rounded.
    pub accumulate: bool,
    /// At least [`MoeLayer::workspace_bytes`] bytes, whose contents do not matter. Nobody else uses them until the layer is done.
    pub workspace: SliceMut<'a, u8>,
    /// At most 65,535, and so many that [`max_items`] gives no more than 65,535 items.
    pub tokens: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// What the weights of the chosen experts are.
    pub weighting: Weighting,
}

impl<'a, D: Device> MoeLayer<'a, D> {
    const NAME: &'static str = "moe_layer";

    /// Of the matrices gate, up and down.
    pub fn new(
        x: impl Into<Floats<'a>>,
        router: Slice<'a, f32>,
        [gate, up, down]: [&'a Matrix<D>; 3],
        y: impl Into<FloatsMut<'a>>,
        workspace: SliceMut<'a, u8>,
        [tokens, top_k]: [usize; 2],
    ) -> Self {
        let (x, y, weighting) = (x.into(), y.into(), Weighting::default());
        Self { x, router, gate, up, down, y, accumulate: false, workspace, tokens, top_k, weighting }
    }

    /// Whether to add to what y holds instead of replacing it.
    #[must_use]
    pub fn accumulate(mut self, accumulate: bool) -> Self {
        self.accumulate = accumulate;
        self
    }

    /// What the weights are: by default [`Weighting::OfChosen`].
    #[must_use]
    pub fn weighting(mut self, weighting: Weighting) -> Self {
        self.weighting = weighting;
        self
    }

    /// Bytes of workspace for `tokens` tokens whose activations are of the type `kind`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for counts that are too large, [`Error::Kernel`] where the device has no such function.
    pub fn workspace_bytes(
        device: &D,
        [gate, up, down]: [&Matrix<D>; 3],
        kind: TensorType,
        [tokens, top_k]: [usize; 2],
    ) -> Result<usize> {
        let args = sys::kqm_moe_layer_args {
            gate: gate.on(device, Self::NAME, "gate")?,
            up: up.on(device, Self::NAME, "up")?,
            down: down.on(device, Self::NAME, "down")?,
            x_type: kind as u32,
            tokens: count(Self::NAME, "tokens", tokens)?,
            top_k: count(Self::NAME, "top_k", top_k)?,
            ..Default::default()
        };
        let workspace = device.kernels().moe_layer_workspace.ok_or(Error::Kernel {
            kernel: Self::NAME,
            status: sys::KQM_NULL_POINTER,
            message: "the table has no moe_layer_workspace".into(),
        })?;
        // SAFETY: the function reads the counts of the structure.
        Ok(unsafe { workspace(&args) } as usize)
    }

    /// Enqueues the kernels of the layer.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher, which has launched nothing when it refuses its
    /// arguments.
    pub fn launch(self, device: &D) -> Result<()> {
        const NAME: &str = "moe_layer";
        let (hidden, experts) = (self.gate.cols(), self.gate.experts());
        self.gate.same_shape(NAME, "up", self.up)?;
        at_least(device, NAME, "x", self.x.place(), &[self.tokens, hidden])?;
        at_least(device, NAME, "router", self.router.place(), &[experts, hidden])?;
        at_least(device, NAME, "y", self.y.place(), &[self.tokens, self.down.rows()])?;
        // As long as it says, which the launcher compares with what it needs.
        at_least(device, NAME, "workspace", self.workspace.place(), &[0])?;
        launch!(
            device,
            moe_layer,
            sys::kqm_moe_layer_args {
                x: self.x.as_ptr(),
                router: self.router.as_ptr(),
                gate: self.gate.on(device, NAME, "gate")?,
                up: self.up.on(device, NAME, "up")?,
                down: self.down.on(device, NAME, "down")?,
                residual: if self.accumulate { self.y.as_ptr() } else { std::ptr::null() },
                y: self.y.as_ptr(),
                workspace: self.workspace.as_ptr().cast(),
                workspace_bytes: self.workspace.len() as u64,
                x_type: self.x.kind() as u32,
                y_type: self.y.kind() as u32,
                tokens: count(NAME, "tokens", self.tokens)?,
                top_k: count(NAME, "top_k", self.top_k)?,
                weighting: self.weighting as u32,
            }
        )
    }
}
