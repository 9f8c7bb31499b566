//! What the forward asks of a backend: memory, and one operation per kernel.
//!
//! Operations enqueue work; results are visible to later operations of the same backend value and, through
//! [`Backend::read`], to the host. Shapes are row-major, the last index contiguous; `tokens` is the number of rows in
//! use, buffers may be larger. Every operation's arithmetic is defined in `docs/arithmetic.md`, so all backends give
//! the same bits.
//!
//! Optional outputs expose values that a fused kernel would otherwise keep in registers. The same kernel runs
//! with and without them.

use std::ops::Range;
use std::slice::ChunksExact;

use super::weights::Tensor;
use crate::oracle::attention::Pages;
use crate::oracle::moe_router::Weighting;
use crate::oracle::sample::Sampling;
use crate::{Error, Result};

/// Positions of a page of the cache: a chunk of attention, so that no value depends on which page it is.
pub const PAGE: usize = Pages::POSITIONS;

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

/// Shape of a KV cache of one model: a pool of pages, each of [`PAGE`] positions of all layers, that the sequences share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheShape {
    /// Layers of the model.
    pub layers: usize,
    /// Pages of the pool.
    pub pages: usize,
    /// Most positions of a sequence.
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

impl CacheShape {
    /// Elements of a page's keys in one layer, and as many of its values.
    pub fn page_len(&self) -> usize {
        PAGE * self.kv_heads * self.head_dim
    }

    /// Bytes of an element.
    pub fn element_bytes(&self) -> usize {
        match self.element {
            CacheType::F32 => 4,
            CacheType::F16 => 2,
        }
    }

    /// Bytes of a page: its keys and values in all layers.
    pub fn page_bytes(&self) -> usize {
        2 * self.layers * self.page_len() * self.element_bytes()
    }

    /// The elements of a page among those of the pool, or, with a layer, among those of all layers, one behind the other.
    pub(super) fn page_at(&self, layer: usize, page: usize) -> Result<Range<usize>> {
        if page >= self.pages {
            return Err(Error::Invalid(format!("page {page} of {}", self.pages)));
        }
        let at = (layer * self.pages + page) * self.page_len();
        Ok(at..at + self.page_len())
    }

    /// The bytes of a page by layer, keys and then values.
    pub(super) fn parts_of<'a>(&self, bytes: &'a [u8]) -> Result<ChunksExact<'a, u8>> {
        if bytes.len() != self.page_bytes() {
            return Err(Error::Invalid(format!("a page of {} bytes, found {}", self.page_bytes(), bytes.len())));
        }
        Ok(bytes.chunks_exact(self.page_len() * self.element_bytes()))
    }
}

/// Shape of the input of forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InputShape {
    /// Most tokens of a batch.
    pub tokens: usize,
    /// Sequences: each has a row of pages, and as many tokens may be fed back at once.
    pub sequences: usize,
    /// Most positions of a sequence.
    pub capacity: usize,
}

impl InputShape {
    /// Pages of a sequence, at most.
    pub fn pages_of_sequence(&self) -> usize {
        self.capacity.div_ceil(PAGE)
    }

    /// Where `count` pages of a sequence from its page `first` on are in the table.
    pub(super) fn pages_at(&self, sequence: usize, first: usize, count: usize) -> Result<usize> {
        within("sequence", [sequence, self.sequences], "pages", [first, count, self.pages_of_sequence()])
    }

    /// Where `count` choices of a row from position `first` on are.
    pub(super) fn choices_at(&self, row: usize, first: usize, count: usize) -> Result<usize> {
        within("row", [row, self.sequences], "choices", [first, count, self.capacity])
    }
}

/// Where `count` columns from `first` on of a row are in a table `[rows, cols]`.
fn within(row_name: &str, [row, rows]: [usize; 2], name: &str, [first, count, cols]: [usize; 3]) -> Result<usize> {
    if row >= rows || first.checked_add(count).is_none_or(|end| end > cols) {
        return Err(Error::Invalid(format!("{row_name} {row} of {rows}: {name} {first}..{first}+{count} of {cols}")));
    }
    Ok(row * cols + first)
}

/// The tokens of a forward, in any order, and where each one is. A token sees the positions of its sequence up to its own, those
/// of the batch among them. One whose position is not below the reach, or whose sequence or page is not there, gives NaN and leaves
/// the cache alone.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Batch<'a> {
    /// `[tokens]`: token ids.
    pub tokens: &'a [u32],
    /// `[tokens]`: their positions.
    pub positions: &'a [u32],
    /// `[tokens]`: their sequences.
    pub sequences: &'a [u32],
    /// The first so many tokens are taken one at a time by attention, for which they may be of any sequences; the others together
    /// with their neighbours, for which neighbours had better be of one sequence and at positions that follow each other. A matter
    /// of speed, never of bits.
    pub singles: usize,
    /// No token is at this position or behind it; 0: the capacity. The less it is, the better attention shares out its work.
    pub reach: usize,
}

impl<'a> Batch<'a> {
    /// Tokens at positions of sequences, none of them a single one, of any reach.
    pub fn new(tokens: &'a [u32], positions: &'a [u32], sequences: &'a [u32]) -> Self {
        Self { tokens, positions, sequences, singles: 0, reach: 0 }
    }

    /// With so many single tokens at the beginning.
    #[must_use]
    pub fn singles(self, singles: usize) -> Self {
        Self { singles, ..self }
    }

    /// With a bound of the positions.
    #[must_use]
    pub fn reach(self, reach: usize) -> Self {
        Self { reach, ..self }
    }

    /// Fails unless it fits into an input.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(&self, shape: InputShape) -> Result<()> {
        let Self { tokens, positions, sequences, singles, reach } = *self;
        let found = tokens.len();
        let fault = if found == 0 || found > shape.tokens {
            format!("expected 1 to {} tokens, found {found}", shape.tokens)
        } else if positions.len() != found || sequences.len() != found {
            format!("{found} tokens with {} positions and {} sequences", positions.len(), sequences.len())
        } else if singles > found {
            format!("{singles} single tokens among {found}")
        } else if reach > shape.capacity {
            format!("a reach of {reach} in a capacity of {}", shape.capacity)
        } else {
            return Ok(());
        };
        Err(Error::Invalid(format!("batch: {fault}")))
    }
}

/// Shape of what draws tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SamplerShape {
    /// Most rows of logits.
    pub rows: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// Of each row's sequence the last so many tokens are known: no window is larger.
    pub history: usize,
}

impl SamplerShape {
    /// Fails unless these draws fit.
    pub(super) fn check(&self, draws: &[Draw<'_>]) -> Result<()> {
        if draws.len() > self.rows {
            return Err(Error::Invalid(format!("sampler of {} rows: {} draws", self.rows, draws.len())));
        }
        let wide = draws.iter().find(|draw| draw.sampling.penalises() && draw.sampling.window > self.history);
        wide.map_or(Ok(()), |draw| {
            let (found, most) = (draw.sampling.window, self.history);
            Err(Error::Invalid(format!("sampling: a window of {found} tokens where {most} are kept")))
        })
    }
}

/// How the token of a row of logits is drawn.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Draw<'a> {
    /// How.
    pub sampling: Sampling,
    /// The last tokens of the sequence, up to that of the logits: as many as the window, or all.
    pub before: &'a [u32],
    /// Position of the logits: that of the last token.
    pub position: usize,
}

impl<'a> Draw<'a> {
    /// A draw behind the tokens `before` it, of which the last one is at `position`.
    pub fn new(sampling: Sampling, before: &'a [u32], position: usize) -> Self {
        Self { sampling, before, position }
    }
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
    /// Values of a row that count in its mean: those behind them are zeros.
    pub width: usize,
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
            width: self.width,
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
    /// Output as fixed point, `[tokens, heads * head_dim / 256]` blocks, the last one of a token filled up with zeros.
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
    /// Values of a row that count in its mean: those behind them are zeros.
    pub width: usize,
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
            width: self.width,
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
    /// The tokens of a forward and where they are, the pages of sequences, and greedy choices.
    type Input: Send;
    /// What draws tokens.
    type Sampler: Send;
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
    /// Room for batches of that shape. No sequence has pages yet.
    fn input(&self, shape: InputShape) -> Result<Self::Input>;

    /// Sets the tokens of the next forward.
    fn set_batch(&self, input: &mut Self::Input, batch: &Batch<'_>) -> Result<()>;
    /// Sets the pages of a sequence from its page `first` on.
    fn set_pages(&self, input: &mut Self::Input, sequence: usize, first: usize, pages: &[u32]) -> Result<()>;
    /// Copies page `from` of all layers to page `to`, another one.
    fn copy_page(&self, cache: &mut Self::Cache, from: usize, to: usize) -> Result<()>;
    /// The keys and values of a page, after all earlier operations: [`CacheShape::page_bytes`] bytes, `[layers][keys, values][PAGE,
    /// kv_heads, head_dim]` elements, the same of every backend.
    fn read_page(&self, cache: &Self::Cache, page: usize) -> Result<Vec<u8>>;
    /// Sets the keys and values of a page to what [`Backend::read_page`] gave.
    fn write_page(&self, cache: &mut Self::Cache, page: usize, bytes: &[u8]) -> Result<()>;
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
    /// RMSNorm of rows of `weight`'s length, as f32, fixed point or both. `shape` is the rows, and the values of a row that count in its
    /// mean: those behind them are zeros.
    fn rms_norm(
        &self,
        x: &Self::Floats,
        weight: &Self::Floats,
        eps: f32,
        shape: [usize; 2],
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
    /// Copies rows of `cols` floats of `x` to the start of `out`: those whose logits are wanted. Neighbours are copied together.
    fn copy_rows(&self, x: &Self::Floats, rows: &[u32], cols: usize, out: &mut Self::Floats) -> Result<()>;
    /// Takes the largest of each row of logits, `[rows, vocab]`, as the next input: row r replaces token r of a batch of `rows`
    /// tokens, one of each sequence, at the next position. The token is kept as row r's choice at the position whose logits it
    /// comes from.
    fn feed_back(&self, logits: &Self::Floats, rows: usize, vocab: usize, input: &mut Self::Input) -> Result<()>;
    /// The tokens that [`Backend::feed_back`] chose of row `row` at `count` positions from `from` on; [`NO_CHOICE`] where the
    /// largest logit is not finite.
    fn read_choices(&self, input: &Self::Input, row: usize, from: usize, count: usize) -> Result<Vec<u32>>;
    /// What draws tokens of that many rows.
    fn sampler(&self, shape: SamplerShape) -> Result<Self::Sampler>;
    /// Sets how the tokens of the next rows of logits are drawn.
    fn set_draws(&self, sampler: &mut Self::Sampler, draws: &[Draw<'_>]) -> Result<()>;
    /// Draws a token of each of the first `rows` rows of logits: [`NO_CHOICE`] where the largest is not finite.
    fn sample(&self, logits: &Self::Floats, rows: usize, sampler: &mut Self::Sampler) -> Result<Vec<u32>>;
    /// [`Backend::feed_back`] of tokens that are drawn. They are kept, the last ones of [`SamplerShape::history`], and the next
    /// ones are drawn with them behind those before.
    fn feed_back_drawn(
        &self,
        logits: &Self::Floats,
        rows: usize,
        input: &mut Self::Input,
        sampler: &mut Self::Sampler,
    ) -> Result<()>;
    /// The tokens that [`Backend::feed_back_drawn`] drew of row `row` from the logits of `count` positions from `from` on.
    fn read_drawn(&self, sampler: &Self::Sampler, row: usize, from: usize, count: usize) -> Result<Vec<u32>>;
    /// Records the operations that `enqueue` asks for, without doing them; they must have been done once before. `None`: the
    /// backend cannot. What is recorded depends on what the host knows of a batch, which are the number of its tokens, `singles`
    /// and `reach`: it serves batches of the same ones. Tokens, positions, sequences and pages are read when it is replayed.
    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<Self::Graph>>;
    /// Does what was recorded.
    ///
    /// # Safety
    /// Everything that the recorded operations use is alive, and nothing else uses what they write.
    unsafe fn replay(&self, graph: &mut Self::Graph) -> Result<()>;
    /// Index of the largest of each row of `[rows, cols]`, as [`Backend::feed_back`] takes it.
    fn argmax(&self, x: &Self::Floats, rows: usize, cols: usize) -> Result<Vec<u32>>;
}
