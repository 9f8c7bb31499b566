//! What the forward asks of a backend: memory, and one operation per kernel.
//!
//! Operations enqueue work; results are visible to later operations of the same backend value and, through
//! [`Backend::read`], to the host. Shapes are row-major, the last index contiguous; `tokens` is the number of rows in
//! use, buffers may be larger. Every operation's arithmetic is defined in `docs/arithmetic.md`, so all backends give
//! the same bits.
//!
//! Optional outputs expose values that a fused kernel would otherwise keep in registers. The same kernel runs
//! with and without them.

use super::weights::Tensor;
use crate::Result;
use crate::oracle::moe_router::Weighting;

/// In place of a token that was chosen from logits whose largest is not finite: it names nothing.
pub const NO_CHOICE: u32 = u32::MAX;

/// Element type of a KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheType {
    /// IEEE single precision: what the accuracy figures are for.
    #[default]
    F32,
    /// IEEE half precision: half the bytes.
    F16,
}

/// Shape of a KV cache of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheShape {
    /// Layers of the model.
    pub layers: usize,
    /// Positions that fit.
    pub capacity: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Element type.
    pub element: CacheType,
    /// Query heads: with `batch`, what the workspace of attention is for.
    pub heads: usize,
    /// Most tokens of a batch.
    pub batch: usize,
}

/// Shape of the router's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoutingShape {
    /// Most tokens in a batch.
    pub tokens: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts chosen for a token.
    pub top_k: usize,
    /// What their weights are.
    pub weighting: Weighting,
}

/// Activations of a product.
#[non_exhaustive]
pub struct Rows<'a, B: Backend> {
    /// `[tokens, cols / 256]` blocks.
    pub fixed: &'a B::Fixed,
    /// `[tokens, cols]`. They are there for a matrix that [takes floats](Backend::takes_floats).
    pub floats: Option<&'a B::Floats>,
}

impl<B: Backend> Rows<'_, B> {
    /// These operands for a backend whose memory is of the same types, such as one that B wraps.
    pub fn for_backend<C: Backend<Floats = B::Floats, Fixed = B::Fixed>>(&self) -> Rows<'_, C> {
        Rows { fixed: self.fixed, floats: self.floats }
    }
}

/// Operands of [`Backend::norm_qkv`]: RMSNorm and the three projections of attention.
#[non_exhaustive]
pub struct NormQkv<'a, B: Backend> {
    /// The residual stream, `[tokens, cols]`.
    pub hidden: &'a B::Floats,
    /// RMSNorm weight, `[cols]`.
    pub weight: &'a B::Floats,
    /// RMSNorm epsilon.
    pub eps: f32,
    /// Optional output: the normed rows, `[tokens, cols]`. It is there when one of the matrices [takes floats](Backend::takes_floats).
    pub normed: Option<&'a mut B::Floats>,
    /// Room for the normed rows as fixed point, `[tokens, cols / 256]` blocks.
    pub fixed: &'a mut B::Fixed,
    /// The matrices, `[rows i, cols]`.
    pub w: [&'a B::Matrix; 3],
    /// `[tokens, rows i]`.
    pub y: [&'a mut B::Floats; 3],
}

impl<B: Backend> NormQkv<'_, B> {
    /// These operands for a backend whose memory is of the same types, such as one that B wraps.
    pub fn for_backend<C: Backend<Matrix = B::Matrix, Floats = B::Floats, Fixed = B::Fixed>>(
        &mut self,
    ) -> NormQkv<'_, C> {
        NormQkv {
            hidden: self.hidden,
            weight: self.weight,
            eps: self.eps,
            normed: self.normed.as_deref_mut(),
            fixed: &mut *self.fixed,
            w: self.w,
            y: self.y.each_mut().map(|y| &mut **y),
        }
    }
}

/// Operands of [`Backend::attention`]: per-head RMSNorm of q and k, RoPE, the write of k and v into the cache, and causal
/// attention over it.
#[non_exhaustive]
pub struct Attention<'a, B: Backend> {
    /// `[tokens, heads, head_dim]`.
    pub q: &'a B::Floats,
    /// `[tokens, kv_heads, head_dim]`.
    pub k: &'a B::Floats,
    /// `[tokens, kv_heads, head_dim]`.
    pub v: &'a B::Floats,
    /// `[head_dim]`.
    pub q_weight: &'a B::Floats,
    /// `[head_dim]`.
    pub k_weight: &'a B::Floats,
    /// `[capacity, head_dim / 2, 2]`: cosine and sine.
    pub table: &'a B::Floats,
    /// Query heads.
    pub heads: usize,
    /// RMSNorm epsilon.
    pub eps: f32,
    /// q after RMSNorm and RoPE, `[tokens, heads, head_dim]`.
    pub rotated: &'a mut B::Floats,
    /// Optional output: q after RMSNorm.
    pub q_normed: Option<&'a mut B::Floats>,
    /// Optional output: k after RMSNorm.
    pub k_normed: Option<&'a mut B::Floats>,
    /// Optional output: k after RoPE, before it is rounded to the cache's type.
    pub k_out: Option<&'a mut B::Floats>,
    /// Output as fixed point, `[tokens, heads * head_dim / 256]` blocks.
    pub fixed: &'a mut B::Fixed,
    /// Optional output: output as f32, `[tokens, heads, head_dim]`.
    pub out: Option<&'a mut B::Floats>,
    /// Optional output: scaled scores, `[tokens, heads, capacity]`, minus infinity where masked.
    pub scores: Option<&'a mut B::Floats>,
}

impl<B: Backend> Attention<'_, B> {
    /// These operands for a backend whose memory is of the same types, such as one that B wraps.
    pub fn for_backend<C: Backend<Floats = B::Floats, Fixed = B::Fixed>>(&mut self) -> Attention<'_, C> {
        Attention {
            q: self.q,
            k: self.k,
            v: self.v,
            q_weight: self.q_weight,
            k_weight: self.k_weight,
            table: self.table,
            heads: self.heads,
            eps: self.eps,
            rotated: &mut *self.rotated,
            q_normed: self.q_normed.as_deref_mut(),
            k_normed: self.k_normed.as_deref_mut(),
            k_out: self.k_out.as_deref_mut(),
            fixed: &mut *self.fixed,
            out: self.out.as_deref_mut(),
            scores: self.scores.as_deref_mut(),
        }
    }
}

/// Operands of [`Backend::norm_router`]: RMSNorm and the router.
#[non_exhaustive]
pub struct NormRouter<'a, B: Backend> {
    /// The residual stream, `[tokens, cols]`.
    pub hidden: &'a B::Floats,
    /// RMSNorm weight, `[cols]`.
    pub weight: &'a B::Floats,
    /// RMSNorm epsilon.
    pub eps: f32,
    /// Router weights, `[experts, cols]`.
    pub router: &'a B::Floats,
    /// The normed rows, `[tokens, cols]`.
    pub normed: &'a mut B::Floats,
    /// The normed rows as fixed point, `[tokens, cols / 256]` blocks.
    pub fixed: &'a mut B::Fixed,
    /// Whether the choice of experts must not be left to [`Backend::moe_swiglu`]: one of its matrices
    /// [takes floats](Backend::takes_floats).
    pub choose: bool,
}

impl<B: Backend> NormRouter<'_, B> {
    /// These operands for a backend whose memory is of the same types, such as one that B wraps.
    pub fn for_backend<C: Backend<Floats = B::Floats, Fixed = B::Fixed>>(&mut self) -> NormRouter<'_, C> {
        NormRouter {
            hidden: self.hidden,
            weight: self.weight,
            eps: self.eps,
            router: self.router,
            normed: &mut *self.normed,
            fixed: &mut *self.fixed,
            choose: self.choose,
        }
    }
}

/// Operands of [`Backend::moe_swiglu`].
#[non_exhaustive]
pub struct Swiglu<'a, B: Backend> {
    /// `[experts][ff, cols]`.
    pub gate: &'a B::Matrix,
    /// `[experts][ff, cols]`.
    pub up: &'a B::Matrix,
    /// `[tokens, cols]`.
    pub x: Rows<'a, B>,
    /// `[pairs, ff]`, pair = token * top_k + rank.
    pub out: &'a mut B::Floats,
    /// Optional output: `[pairs, ff]`. Both are there when one of the matrices [takes floats](Backend::takes_floats).
    pub gate_out: Option<&'a mut B::Floats>,
    /// Optional output: `[pairs, ff]`.
    pub up_out: Option<&'a mut B::Floats>,
}

impl<B: Backend> Swiglu<'_, B> {
    /// These operands for a backend whose memory is of the same types, such as one that B wraps.
    pub fn for_backend<C: Backend<Matrix = B::Matrix, Floats = B::Floats, Fixed = B::Fixed>>(
        &mut self,
    ) -> Swiglu<'_, C> {
        Swiglu {
            gate: self.gate,
            up: self.up,
            x: self.x.for_backend(),
            out: &mut *self.out,
            gate_out: self.gate_out.as_deref_mut(),
            up_out: self.up_out.as_deref_mut(),
        }
    }
}

/// Operands of [`Backend::moe_down`].
#[non_exhaustive]
pub struct Down<'a, B: Backend> {
    /// `[experts][rows, ff]`.
    pub down: &'a B::Matrix,
    /// `[pairs, ff]`.
    pub x: &'a B::Floats,
    /// Room for x as fixed point, `[pairs, ff / 256]` blocks.
    pub fixed: &'a mut B::Fixed,
    /// `[tokens, rows]`: the residual stream, to which the weighted sum is added.
    pub hidden: &'a mut B::Floats,
    /// Every expert's product, `[pairs, rows]`.
    pub expert_out: &'a mut B::Floats,
    /// Optional output: the weighted sum before the residual, `[tokens, rows]`.
    pub sum: Option<&'a mut B::Floats>,
}

impl<B: Backend> Down<'_, B> {
    /// These operands for a backend whose memory is of the same types, such as one that B wraps.
    pub fn for_backend<C: Backend<Matrix = B::Matrix, Floats = B::Floats, Fixed = B::Fixed>>(&mut self) -> Down<'_, C> {
        Down {
            down: self.down,
            x: self.x,
            fixed: &mut *self.fixed,
            hidden: &mut *self.hidden,
            expert_out: &mut *self.expert_out,
            sum: self.sum.as_deref_mut(),
        }
    }
}

/// Where the forward runs.
pub trait Backend: Sized + Send {
    /// A matrix, or a stack of experts' matrices.
    type Matrix: Send + Sync;
    /// An embedding table.
    type Table: Send + Sync;
    /// A buffer of f32.
    type Floats: Send + Sync;
    /// A buffer of fixed-point blocks.
    type Fixed: Send;
    /// Router results of a batch and their grouping by expert.
    type Routing: Send;
    /// Keys and values of all layers.
    type Cache: Send;
    /// Tokens and their first position.
    type Input: Send;
    /// A recorded sequence of operations.
    type Graph: Send;

    /// `"cpu"` or `"cuda"`.
    fn name(&self) -> &'static str;
    /// A second queue over the same memory: one for each context, so that contexts run side by side.
    fn fork(&self) -> Result<Self>;

    /// Free bytes of the memory that weights and buffers come from; `None` when that is the host's, which is not counted.
    fn free_memory(&self) -> Result<Option<u64>>;
    /// Bytes that [`Backend::matrix`] takes for as long as it loads a tensor, on top of those that stay.
    fn staging_bytes(&self, tensor: &Tensor) -> u64;
    /// Bytes of a cache besides its keys and values: what the kernels need as workspace.
    fn workspace_bytes(&self, shape: CacheShape) -> Result<u64>;

    /// Loads a matrix `[rows, cols]`, or a stack of `experts` of them.
    fn matrix(&self, tensor: &Tensor) -> Result<Self::Matrix>;
    /// Whether products with a matrix take activations as floats: one of floats. Others take fixed point.
    fn takes_floats(&self, w: &Self::Matrix) -> bool;
    /// Loads an embedding table `[vocab, cols]` (of any type).
    fn table(&self, tensor: &Tensor) -> Result<Self::Table>;
    /// A buffer that holds `values`.
    fn floats_from(&self, values: &[f32]) -> Result<Self::Floats>;
    /// A zeroed buffer of `len` floats.
    fn floats(&self, len: usize) -> Result<Self::Floats>;
    /// A buffer of `blocks` fixed-point blocks.
    fn fixed(&self, blocks: usize) -> Result<Self::Fixed>;
    /// Room for the router's results.
    fn routing(&self, shape: RoutingShape) -> Result<Self::Routing>;
    /// A cache.
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache>;
    /// Room for `tokens` token ids, and for a greedy choice at each of `capacity` positions.
    fn input(&self, tokens: usize, capacity: usize) -> Result<Self::Input>;

    /// Sets the tokens of the next forward and the position of the first one.
    fn set_input(&self, input: &mut Self::Input, tokens: &[u32], start: usize) -> Result<()>;
    /// The first `out.len()` values from index `from`, after all earlier operations.
    fn read(&self, buffer: &Self::Floats, from: usize, out: &mut [f32]) -> Result<()>;
    /// Chosen experts of the first `tokens` tokens, `[tokens, top_k]`, highest probability first.
    fn read_indices(&self, routing: &Self::Routing, tokens: usize) -> Result<Vec<u32>>;
    /// Weights of the chosen experts, `[tokens, top_k]`.
    fn read_weights(&self, routing: &Self::Routing, tokens: usize) -> Result<Vec<f32>>;
    /// Router logits, `[tokens, experts]`.
    fn read_router_logits(&self, routing: &Self::Routing, tokens: usize) -> Result<Vec<f32>>;
    /// Waits for everything enqueued and reports what failed.
    fn synchronize(&self) -> Result<()>;

    /// `out[t] = table[input[t]]`.
    fn embedding(&self, table: &Self::Table, input: &Self::Input, tokens: usize, out: &mut Self::Floats) -> Result<()>;
    /// RMSNorm of rows of `weight`'s length, as f32, fixed point or both.
    fn rms_norm(
        &self,
        x: &Self::Floats,
        weight: &Self::Floats,
        eps: f32,
        tokens: usize,
        out: Option<&mut Self::Floats>,
        fixed: Option<&mut Self::Fixed>,
    ) -> Result<()>;
    /// See [`NormQkv`].
    fn norm_qkv(&self, operands: NormQkv<'_, Self>, tokens: usize) -> Result<()>;
    /// See [`Attention`].
    fn attention(
        &self,
        operands: Attention<'_, Self>,
        input: &Self::Input,
        tokens: usize,
        cache: &mut Self::Cache,
        layer: usize,
    ) -> Result<()>;
    /// `y = w x`.
    fn matvec(&self, w: &Self::Matrix, x: Rows<'_, Self>, tokens: usize, y: &mut Self::Floats) -> Result<()>;
    /// `hidden += w x`; the optional output `product` gets `w x`.
    fn matvec_add(
        &self,
        w: &Self::Matrix,
        x: Rows<'_, Self>,
        tokens: usize,
        hidden: &mut Self::Floats,
        product: Option<&mut Self::Floats>,
    ) -> Result<()>;
    /// See [`NormRouter`]. The logits are in `routing` afterwards; the choice of experts may be left to
    /// [`Backend::moe_swiglu`].
    fn norm_router(&self, operands: NormRouter<'_, Self>, tokens: usize, routing: &mut Self::Routing) -> Result<()>;
    /// See [`Swiglu`]. The choice of experts is in `routing` afterwards.
    fn moe_swiglu(&self, operands: Swiglu<'_, Self>, routing: &mut Self::Routing, tokens: usize) -> Result<()>;
    /// See [`Down`].
    fn moe_down(&self, operands: Down<'_, Self>, routing: &Self::Routing, tokens: usize) -> Result<()>;
    /// Copies `rows` rows of `cols` floats, from row `row` of `x`, to the start of `out`: the rows whose logits are wanted.
    fn copy_rows(&self, x: &Self::Floats, row: usize, rows: usize, cols: usize, out: &mut Self::Floats) -> Result<()>;
    /// Takes the largest of `vocab` logits as the next input: one token, at the next position. The token is kept under the
    /// position whose logits it comes from.
    fn feed_back(&self, logits: &Self::Floats, vocab: usize, input: &mut Self::Input) -> Result<()>;
    /// The tokens that [`Backend::feed_back`] chose at `count` positions from `from` on; [`NO_CHOICE`] where the largest logit is
    /// not finite.
    fn read_choices(&self, input: &Self::Input, from: usize, count: usize) -> Result<Vec<u32>>;
    /// Records the operations that `enqueue` asks for, without doing them; they must have been done once before. `None`: the
    /// backend cannot.
    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<Self::Graph>>;
    /// Does what was recorded.
    ///
    /// # Safety
    /// Everything that the recorded operations use is alive, and nothing else uses what they write.
    unsafe fn replay(&self, graph: &mut Self::Graph) -> Result<()>;
    /// Index of the largest of each row of `[rows, cols]`.
    fn argmax(&self, x: &Self::Floats, rows: usize, cols: usize) -> Result<Vec<u32>>;
}
