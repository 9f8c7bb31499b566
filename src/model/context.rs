//! A sequence in progress: its cache, its position and the buffers of a forward, allocated once.

use std::marker::PhantomData;
use std::ops::{ControlFlow, Range};

use super::Model;
use super::backend::{Backend, Batch, CacheShape, CacheType, InputShape, NO_CHOICE, PAGE, RoutingShape};
use super::config::Config;
use super::forward::{Tracer, forward, head};
use super::rope_table::rope_table;
use super::weights::{LayerTensors, Tensor, Tensors};
use crate::blocks::BLOCK;
use crate::diff::Point;
use crate::oracle::sample::{Sampling, sample};
use crate::trace::{Data, NoTrace, Record, Sink, Stage};
use crate::{Error, Result, sys};

/// Most bytes of the buffer that holds logits of several tokens, and of the one that holds traced scores.
const LOGITS_BYTES: usize = 32 << 20;
const SCORES_BYTES: usize = 256 << 20;
/// Most tokens that kernels take at once.
pub(super) const MOST_TOKENS: usize = 65_535;

/// How a context is made: [`ContextOptions::default`], and what is to be different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContextOptions {
    /// Positions that fit, at most the model's context length.
    pub capacity: usize,
    /// Element type of the cache.
    pub cache: CacheType,
    /// Most tokens that are computed at once. Longer inputs are split; values do not depend on it.
    pub max_batch: usize,
    /// Allocate the buffers that [`Context::trace`] needs. Batches may be smaller then.
    pub trace: bool,
}

impl Default for ContextOptions {
    fn default() -> Self {
        Self { capacity: 4096, cache: CacheType::F32, max_batch: 2048, trace: false }
    }
}

impl ContextOptions {
    /// Other positions that fit.
    #[must_use]
    pub const fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// Another element type of the cache.
    #[must_use]
    pub const fn cache(mut self, cache: CacheType) -> Self {
        self.cache = cache;
        self
    }

    /// Another number of tokens that are computed at once, at most.
    #[must_use]
    pub const fn max_batch(mut self, max_batch: usize) -> Self {
        self.max_batch = max_batch;
        self
    }

    /// With or without the buffers of a trace.
    #[must_use]
    pub const fn trace(mut self, trace: bool) -> Self {
        self.trace = trace;
        self
    }
}

/// The tokens whose logits a forward returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Logits {
    /// None: the forward only extends the cache.
    None,
    /// The last token of the call: `[vocab]`.
    #[default]
    Last,
    /// Every token of the call: `[tokens, vocab]`.
    All,
}

/// What a context or a pool is to hold.
#[derive(Clone, Copy)]
pub(super) struct Room {
    /// Most positions of a sequence.
    pub(super) capacity: usize,
    pub(super) pages: usize,
    pub(super) sequences: usize,
    pub(super) cache: CacheType,
    /// Most tokens of a batch.
    pub(super) tokens: usize,
    pub(super) trace: bool,
}

/// Lengths of the buffers of a context or a pool, in floats or fixed-point blocks.
pub(super) struct Sizes {
    pub(super) tokens: usize,
    /// Rows whose logits are computed at once.
    pub(super) rows: usize,
    hidden: usize,
    hidden_blocks: usize,
    q: usize,
    kv: usize,
    attn_blocks: usize,
    swiglu: usize,
    swiglu_blocks: usize,
    expert_out: usize,
    output_rows: usize,
    output_blocks: usize,
    logits: usize,
    scores: usize,
    rope: usize,
    pub(super) cache: CacheShape,
    pub(super) input: InputShape,
    routing: RoutingShape,
    trace: bool,
    /// What is there besides the fixed point of it, as a trace and matrices of floats want it.
    floats: OfFloats,
}

/// Which matrices of a model are floats, whose activations need buffers of floats.
#[derive(Clone, Copy, Default)]
pub(super) struct OfFloats {
    /// The attention output of some layer.
    attn_output: bool,
    /// Gate or up of some layer.
    experts: bool,
    /// The output matrix.
    output: bool,
}

impl OfFloats {
    fn new<M>(layers: impl Iterator<Item = [M; 3]>, output: M, is_floats: impl Fn(M) -> bool) -> Self {
        let mut this = Self { output: is_floats(output), ..Self::default() };
        for [attn_output, gate, up] in layers {
            this.attn_output |= is_floats(attn_output);
            this.experts |= is_floats(gate) | is_floats(up);
        }
        this
    }

    pub(super) fn of_tensors(tensors: &Tensors) -> Self {
        let layers = tensors.layers.iter().map(|layer| [&layer.attn_output, &layer.gate, &layer.up]);
        Self::new(layers, &tensors.output, Tensor::is_floats)
    }

    pub(super) fn of_model<B: Backend>(model: &Model<B>) -> Self {
        let weights = model.weights();
        let layers = weights.layers.iter().map(|layer| [&layer.attn_output, &layer.gate, &layer.up]);
        Self::new(layers, &weights.output, |w| model.backend().takes_floats(w))
    }
}

/// Fails unless a sequence of that capacity, and batches of that size, make sense.
pub(super) fn check_capacity(config: &Config, what: &str, capacity: usize, max_batch: usize) -> Result<()> {
    if capacity == 0 || capacity > config.context_length {
        let most = config.context_length;
        return Err(Error::Invalid(format!("{what} capacity: expected 1 to {most} positions, found {capacity}")));
    }
    if max_batch == 0 {
        return Err(Error::Invalid("largest batch: expected at least 1 token, found 0".into()));
    }
    Ok(())
}

impl Sizes {
    fn new(config: &Config, options: &ContextOptions, floats: OfFloats) -> Result<Self> {
        let ContextOptions { capacity, cache, max_batch, trace } = *options;
        check_capacity(config, "context", capacity, max_batch)?;
        let most = if trace { (SCORES_BYTES / 4 / (config.heads * capacity)).max(1) } else { usize::MAX };
        let tokens = max_batch.min(capacity).min(MOST_TOKENS).min(most);
        let pages = capacity.div_ceil(PAGE);
        Ok(Self::of(config, Room { capacity, pages, sequences: 1, cache, tokens, trace }, floats))
    }

    pub(super) fn of(config: &Config, room: Room, floats: OfFloats) -> Self {
        let Room { capacity, pages, sequences, cache, tokens, trace } = room;
        // All sequences can take a step together.
        let rows = (LOGITS_BYTES / 4 / config.vocab).max(sequences).min(tokens);
        let scores_of_token = config.heads * capacity;
        let pairs = tokens * config.top_k;
        let (hidden, expert_ff) = (config.padded_hidden(), config.padded_expert_ff());
        Self {
            tokens,
            rows,
            hidden: tokens * hidden,
            hidden_blocks: tokens * hidden / BLOCK,
            q: tokens * config.q_width(),
            kv: tokens * config.kv_width(),
            attn_blocks: tokens * config.q_width().div_ceil(BLOCK),
            swiglu: pairs * expert_ff,
            swiglu_blocks: pairs * expert_ff / BLOCK,
            expert_out: pairs * hidden,
            output_rows: rows * hidden,
            output_blocks: rows * hidden / BLOCK,
            logits: rows * config.vocab,
            scores: tokens * scores_of_token,
            rope: capacity * config.head_dim,
            cache: CacheShape {
                layers: config.layers,
                pages,
                capacity,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                element: cache,
                heads: config.heads,
                batch: tokens,
            },
            input: InputShape { tokens, sequences, capacity },
            routing: RoutingShape { tokens, experts: config.experts, top_k: config.top_k, weighting: config.weighting },
            trace,
            floats: OfFloats {
                attn_output: floats.attn_output || trace,
                experts: floats.experts || trace,
                output: floats.output || trace,
            },
        }
    }

    pub(super) fn cache_bytes(&self) -> u64 {
        (self.cache.pages * self.cache.page_bytes()) as u64
    }

    pub(super) fn activation_bytes(&self) -> u64 {
        let traced = if self.trace { self.q + 2 * self.kv + self.scores + 2 * self.hidden } else { 0 };
        let OfFloats { attn_output, experts: halves, output } = self.floats;
        let taken = [(attn_output, self.q), (halves, 2 * self.swiglu), (output, self.output_rows)];
        let taken: usize = taken.into_iter().filter(|(is_taken, _)| *is_taken).map(|(_, floats)| floats).sum();
        let RoutingShape { tokens, experts, top_k, .. } = self.routing;
        // Logits, indices, weights and counters; the pairs grouped by expert, in at most as many work items of three numbers.
        let routing = tokens * (experts + 2 * top_k + 1) + 4 * tokens * top_k + 1;
        let floats = 2 * self.hidden + 2 * self.q + 2 * self.kv + self.swiglu + self.expert_out;
        let output = self.output_rows + self.logits;
        // Token ids, positions and sequences of a batch; of a sequence its pages, a choice at each position, and argmax's best logit
        // and counter.
        let InputShape { tokens, sequences, capacity } = self.input;
        let input = 3 * tokens + sequences * (self.input.pages_of_sequence() + capacity + 3);
        let blocks = self.hidden_blocks + self.attn_blocks + self.swiglu_blocks + self.output_blocks;
        let values = floats + output + traced + taken + routing + self.rope + input;
        (4 * values + blocks * size_of::<sys::kqm_fixed_block>()) as u64
    }
}

/// Memory that a model and one context take, known before anything is allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// Bytes of the weights, with matrices in whole tiles of 16 rows. A backend that uses the file's own pages
    /// allocates none of them.
    pub weights: u64,
    /// Bytes of the keys and values.
    pub cache: u64,
    /// Bytes of the activations, the router's results, the logits and the RoPE table.
    pub activations: u64,
    /// Bytes that a backend's kernels need as workspace.
    pub workspace: u64,
}

impl MemoryPlan {
    /// The plan for a model's tensors and a context's options, without a backend's workspace.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options that [`Model::context`] would refuse.
    pub fn new(config: &Config, tensors: &Tensors, options: &ContextOptions) -> Result<Self> {
        let sizes = Sizes::new(config, options, OfFloats::of_tensors(tensors))?;
        Ok(Self {
            weights: weight_bytes(tensors),
            cache: sizes.cache_bytes(),
            activations: sizes.activation_bytes(),
            workspace: 0,
        })
    }

    /// [`Self::new`], with the backend's workspace.
    ///
    /// # Errors
    /// Those of [`Self::new`], and [`Error::Invalid`] for counts that the backend's kernels do not take.
    pub fn on<B: Backend>(backend: &B, config: &Config, tensors: &Tensors, options: &ContextOptions) -> Result<Self> {
        let workspace = backend.workspace_bytes(Sizes::new(config, options, OfFloats::default())?.cache)?;
        Ok(Self { workspace, ..Self::new(config, tensors, options)? })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.activations + self.workspace
    }

    /// Fails when the backend has not as much memory free.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn check<B: Backend>(&self, backend: &B) -> Result<()> {
        check_free(backend, self.total())
    }
}

/// Bytes of the weights in a backend's memory.
pub(super) fn weight_bytes(tensors: &Tensors) -> u64 {
    let matrices = tensors.layers.iter().flat_map(LayerTensors::matrices).chain([&tensors.output]);
    let vectors = tensors.layers.iter().flat_map(LayerTensors::vectors).chain([&tensors.output_norm]);
    // The embedding table stays in rows.
    matrices.map(Tensor::tiled_bytes).sum::<u64>()
        + vectors.map(Tensor::f32_bytes).sum::<u64>()
        + tensors.embedding.byte_len() as u64
}

/// Fails when the weights, and what it takes to load them, do not fit into the backend's free memory.
pub(super) fn check_weights<B: Backend>(backend: &B, tensors: &Tensors) -> Result<()> {
    // The embedding table is not staged, and norms are not worth mentioning.
    let matrices = tensors.layers.iter().flat_map(LayerTensors::matrices).chain([&tensors.output]);
    let staging = matrices.map(|tensor| backend.staging_bytes(tensor)).max().unwrap_or(0);
    check_free(backend, weight_bytes(tensors) + staging)
}

pub(super) fn check_free<B: Backend>(backend: &B, needed: u64) -> Result<()> {
    match backend.free_memory()? {
        Some(free) if needed > free => Err(Error::OutOfMemory { needed, free }),
        _ => Ok(()),
    }
}

/// Buffers of a forward. `tokens` is the largest batch, `pairs` is `tokens * top_k`; `hidden` and `expert_ff` are the padded widths.
pub(super) struct State<B: Backend> {
    pub(super) input: B::Input,
    /// The residual stream, `[tokens, hidden]`.
    pub(super) hidden: B::Floats,
    /// The residual stream after RMSNorm, `[tokens, hidden]`, as floats for the router and as fixed point.
    pub(super) normed: B::Floats,
    pub(super) normed_fixed: B::Fixed,
    /// `[tokens, heads, head_dim]`.
    pub(super) q: B::Floats,
    /// q after RMSNorm and RoPE.
    pub(super) rotated: B::Floats,
    /// `[tokens, kv_heads, head_dim]`.
    pub(super) k: B::Floats,
    pub(super) v: B::Floats,
    /// Output of attention, `[tokens, heads * head_dim]`, as floats where something takes them and as fixed point.
    pub(super) attn: Option<B::Floats>,
    pub(super) attn_fixed: B::Fixed,
    pub(super) routing: B::Routing,
    /// `[pairs, expert_ff]`.
    pub(super) swiglu: B::Floats,
    pub(super) swiglu_fixed: B::Fixed,
    /// The halves of the SwiGLU, where something takes them.
    pub(super) expert_gate: Option<B::Floats>,
    pub(super) expert_up: Option<B::Floats>,
    /// `[pairs, hidden]`.
    pub(super) expert_out: B::Floats,
    /// Rows whose logits are wanted, `[rows, hidden]`.
    pub(super) output: B::Floats,
    pub(super) output_normed: Option<B::Floats>,
    pub(super) output_fixed: B::Fixed,
    /// `[rows, vocab]`.
    pub(super) logits: B::Floats,
    pub(super) cache: B::Cache,
    /// `[capacity, head_dim / 2, 2]`.
    pub(super) rope_table: B::Floats,
    pub(super) traced: TraceBuffers<B>,
}

/// Buffers of the values that only a trace sees; `None` in a context that is not made for tracing.
pub(super) struct TraceBuffers<B: Backend> {
    pub(super) q_normed: Option<B::Floats>,
    pub(super) k_normed: Option<B::Floats>,
    pub(super) k_rope: Option<B::Floats>,
    pub(super) attn_scores: Option<B::Floats>,
    pub(super) attn_proj: Option<B::Floats>,
    pub(super) ffn_out: Option<B::Floats>,
}

impl<B: Backend> State<B> {
    pub(super) fn new(backend: &B, config: &Config, sizes: &Sizes) -> Result<Self> {
        let floats_if = |wanted: bool, len: usize| wanted.then(|| backend.floats(len)).transpose();
        let traced_floats = |len: usize| floats_if(sizes.trace, len);
        Ok(Self {
            input: backend.input(sizes.input)?,
            hidden: backend.floats(sizes.hidden)?,
            normed: backend.floats(sizes.hidden)?,
            normed_fixed: backend.fixed(sizes.hidden_blocks)?,
            q: backend.floats(sizes.q)?,
            rotated: backend.floats(sizes.q)?,
            k: backend.floats(sizes.kv)?,
            v: backend.floats(sizes.kv)?,
            attn: floats_if(sizes.floats.attn_output, sizes.q)?,
            attn_fixed: backend.fixed(sizes.attn_blocks)?,
            routing: backend.routing(sizes.routing)?,
            swiglu: backend.floats(sizes.swiglu)?,
            swiglu_fixed: backend.fixed(sizes.swiglu_blocks)?,
            expert_gate: floats_if(sizes.floats.experts, sizes.swiglu)?,
            expert_up: floats_if(sizes.floats.experts, sizes.swiglu)?,
            expert_out: backend.floats(sizes.expert_out)?,
            output: backend.floats(sizes.output_rows)?,
            output_normed: floats_if(sizes.floats.output, sizes.output_rows)?,
            output_fixed: backend.fixed(sizes.output_blocks)?,
            logits: backend.floats(sizes.logits)?,
            cache: backend.cache(sizes.cache)?,
            rope_table: backend.floats_from(&rope_table(
                sizes.cache.capacity,
                config.head_dim,
                config.rope_base,
                config.rope_scaling,
            ))?,
            traced: TraceBuffers {
                q_normed: traced_floats(sizes.q)?,
                k_normed: traced_floats(sizes.kv)?,
                k_rope: traced_floats(sizes.kv)?,
                attn_scores: traced_floats(sizes.scores)?,
                attn_proj: traced_floats(sizes.hidden)?,
                ffn_out: traced_floats(sizes.hidden)?,
            },
        })
    }
}

/// Gets a buffer of logits and the number of its rows in use.
type Take<'a, B> = dyn FnMut(&B, &<B as Backend>::Floats, usize) -> Result<()> + 'a;

/// A sequence in progress. Any number of contexts can share a [`Model`].
pub struct Context<B: Backend> {
    backend: B,
    config: Config,
    sizes: Sizes,
    state: State<B>,
    position: usize,
    step: Step<B::Graph>,
}

/// The recorded decode step.
enum Step<G> {
    /// Not tried yet.
    Unknown,
    /// The backend cannot record.
    Unrecorded,
    /// Recorded for the model of this id.
    Recorded(u64, G),
}

/// Tokens that [`Context::generate`] decodes at a time where steps are recorded: reading each one back at once would cost
/// more than to compute a few that a caller does not want.
const DECODE_AT_ONCE: usize = 8;

impl<B: Backend> Context<B> {
    pub(super) fn new(model: &Model<B>, options: ContextOptions) -> Result<Self> {
        let config = model.config().clone();
        let sizes = Sizes::new(&config, &options, OfFloats::of_model(model))?;
        let workspace = model.backend().workspace_bytes(sizes.cache)?;
        check_free(model.backend(), sizes.cache_bytes() + sizes.activation_bytes() + workspace)?;
        let backend = model.backend().fork()?;
        let mut state = State::new(&backend, &config, &sizes)?;
        // The pages of the only sequence, in order.
        let pages: Vec<u32> = (0..sizes.cache.pages as u32).collect();
        backend.set_pages(&mut state.input, 0, 0, &pages)?;
        Ok(Self { backend, config, sizes, state, position: 0, step: Step::Unknown })
    }

    /// Positions in use: that of the next token.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.sizes.cache.capacity
    }

    /// Most tokens that are computed at once.
    pub fn max_batch(&self) -> usize {
        self.sizes.tokens
    }

    /// Forgets all positions from `position` on. A position that is not reached yet changes nothing.
    pub fn truncate(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    /// Forgets all positions.
    pub fn reset(&mut self) {
        self.position = 0;
    }

    /// Appends `tokens` to the sequence and returns the logits asked for, `[rows, vocab]`. The values do not depend on
    /// how a sequence is split into calls.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`], [`Error::ContextOverflow`], [`Error::Invalid`] for no tokens or a model of another
    /// configuration, [`Error::NotFinite`] for logits that are not finite, and what the backend reports. The position stays as
    /// it was then.
    pub fn forward(&mut self, model: &Model<B>, tokens: &[u32], logits: Logits) -> Result<Vec<f32>> {
        let start = self.position;
        let found = self.forward_into(model, tokens, logits, &mut NoTrace)?;
        if found.iter().all(|logit| logit.is_finite()) {
            return Ok(found);
        }
        self.position = start;
        Err(self.not_finite(model, tokens))
    }

    /// Where the values of `tokens`, which follow what is there, begin not to be finite: computes them again, with a trace where
    /// the context can. The position stays as it is.
    fn not_finite(&mut self, model: &Model<B>, tokens: &[u32]) -> Error {
        let (start, vocab) = (self.position, self.config.vocab);
        let found = if self.sizes.trace {
            let mut sink = FirstNotFinite::default();
            let result = self.run(model, tokens, Logits::All, &mut sink, &mut |_, _, _| Ok(()));
            result.map(|()| sink.found.map(|(position, point)| (position, Some(point))))
        } else {
            let (mut first, mut row, mut values) = (None, start, Vec::new());
            let result = self.run(model, tokens, Logits::All, &mut NoTrace, &mut |backend, logits, rows| {
                values.resize(rows * vocab, 0.0);
                backend.read(logits, 0, &mut values)?;
                let bad = values.iter().position(|logit: &f32| !logit.is_finite());
                first = first.or(bad.map(|index| row + index / vocab));
                row += rows;
                Ok(())
            });
            result.map(|()| first.map(|position| (position, None)))
        };
        self.position = start;
        match found {
            Ok(Some((position, point))) => Error::NotFinite { position, point },
            // What computes something else the second time is no less broken.
            Ok(None) => Error::NotFinite { position: start, point: None },
            Err(error) => error,
        }
    }

    /// [`Self::forward`] with a sink that gets the intermediate values it wants. The logits are the same to the bit; values that
    /// are not finite are no error here, since it is what a trace is to show.
    ///
    /// # Errors
    /// Those of [`Self::forward`] but for [`Error::NotFinite`], those of the sink, and [`Error::Invalid`] when the context was made without
    /// [`ContextOptions::trace`].
    pub fn trace<S: Sink>(
        &mut self,
        model: &Model<B>,
        tokens: &[u32],
        logits: Logits,
        sink: &mut S,
    ) -> Result<Vec<f32>> {
        if S::ENABLED && !self.sizes.trace {
            return Err(Error::Invalid("the context was made without the option to trace".into()));
        }
        self.forward_into(model, tokens, logits, sink)
    }

    fn forward_into<S: Sink>(
        &mut self,
        model: &Model<B>,
        tokens: &[u32],
        logits: Logits,
        sink: &mut S,
    ) -> Result<Vec<f32>> {
        let vocab = self.config.vocab;
        let mut out = Vec::new();
        self.run(model, tokens, logits, sink, &mut |backend, logits, rows| {
            let from = out.len();
            out.resize(from + rows * vocab, 0.0);
            backend.read(logits, 0, &mut out[from..])
        })?;
        Ok(out)
    }

    /// Appends `tokens` and returns the most probable next token: the largest logit, ties to the lower id. The logits
    /// stay where the backend computes.
    ///
    /// # Errors
    /// Those of [`Self::forward`].
    pub fn next_token(&mut self, model: &Model<B>, tokens: &[u32]) -> Result<u32> {
        let vocab = self.config.vocab;
        let start = self.position;
        let mut next = None;
        let mut largest = [0.0];
        self.run(model, tokens, Logits::Last, &mut NoTrace, &mut |backend, logits, rows| {
            next = backend.argmax(logits, rows, vocab)?.first().copied();
            next.map_or(Ok(()), |token| backend.read(logits, token as usize, &mut largest))
        })?;
        match next {
            Some(token) if largest[0].is_finite() => Ok(token),
            Some(_) => {
                self.position = start;
                Err(self.not_finite(model, tokens))
            }
            None => Err(Error::Invalid("the backend's argmax gave no token".into())),
        }
    }

    /// Appends `prompt` and generates up to `count` tokens greedily. `each` gets every token as it comes and may end
    /// the loop. Returns the tokens; the last one is not appended to the sequence.
    ///
    /// # Errors
    /// Those of [`Self::forward`].
    pub fn generate(
        &mut self,
        model: &Model<B>,
        prompt: &[u32],
        count: usize,
        mut each: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        let mut generated = Vec::new();
        if count == 0 {
            self.forward(model, prompt, Logits::None)?;
            return Ok(generated);
        }
        let mut next = self.next_token(model, prompt)?;
        let mut ready = Vec::new().into_iter();
        loop {
            generated.push(next);
            if each(next).is_break() || generated.len() == count {
                // Tokens that nobody has seen were never appended.
                self.truncate(self.position - ready.len());
                return Ok(generated);
            }
            next = match ready.next() {
                Some(token) => token,
                None => {
                    let at_once = if matches!(self.step, Step::Recorded(..)) { DECODE_AT_ONCE } else { 1 };
                    let room = self.capacity().saturating_sub(self.position).max(1);
                    ready = self.decode(model, next, at_once.min(count - generated.len()).min(room))?.into_iter();
                    let Some(token) = ready.next() else { return Ok(generated) };
                    token
                }
            };
        }
    }

    /// Appends `tokens` and draws the next token from their last logits. What is drawn depends on the logits, the sampling and the
    /// position alone.
    ///
    /// # Errors
    /// Those of [`Self::forward`], and [`Error::Invalid`] for a sampling that makes no sense.
    pub fn sample_token(&mut self, model: &Model<B>, tokens: &[u32], sampling: &Sampling) -> Result<u32> {
        if let Some(fault) = sampling.fault() {
            return Err(Error::Invalid(fault));
        }
        if sampling.penalises() {
            return Err(Error::Invalid("penalty: a context does not keep the tokens that it would be for".into()));
        }
        let logits = self.forward(model, tokens, Logits::Last)?;
        Ok(sample(&logits, sampling, &[], self.position as u64))
    }

    /// [`Self::generate`] with tokens that are drawn, each one as by [`Self::sample_token`].
    ///
    /// # Errors
    /// Those of [`Self::sample_token`].
    pub fn generate_sampled(
        &mut self,
        model: &Model<B>,
        prompt: &[u32],
        count: usize,
        sampling: &Sampling,
        mut each: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        let mut generated = Vec::new();
        if count == 0 {
            self.forward(model, prompt, Logits::None)?;
            return Ok(generated);
        }
        let mut next = self.sample_token(model, prompt, sampling)?;
        loop {
            generated.push(next);
            if each(next).is_break() || generated.len() == count {
                return Ok(generated);
            }
            next = self.sample_token(model, &[next], sampling)?;
        }
    }

    /// Appends `token` and, one after the other, the `count - 1` most probable tokens behind it. Returns the `count` tokens
    /// chosen; the last one is not appended. Every step feeds the next one where the backend computes, and where the backend
    /// can record a step (CUDA: as a graph), it is recorded once and replayed. The values are those of
    /// [`Self::next_token`], to the bit.
    ///
    /// # Errors
    /// Those of [`Self::forward`]. The position stays as it was then.
    pub fn decode(&mut self, model: &Model<B>, token: u32, count: usize) -> Result<Vec<u32>> {
        self.decode_marked(model, token, count, |_| Ok(()))
    }

    /// [`Self::decode`], for measurements: `mark` gets the backend directly before the first step is enqueued and directly
    /// after the last one.
    ///
    /// # Errors
    /// Those of [`Self::decode`], and those of `mark`.
    pub fn decode_marked(
        &mut self,
        model: &Model<B>,
        token: u32,
        count: usize,
        mut mark: impl FnMut(&B) -> Result<()>,
    ) -> Result<Vec<u32>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        self.check(model, &[token])?;
        self.check_room(count)?;
        let used = self.position;
        let Self { backend, state, step, .. } = self;
        set_tokens(backend, &mut state.input, &[token], used, 0)?;
        mark(backend)?;
        for _ in 0..count {
            if let Step::Recorded(id, graph) = step
                && *id == model.id
            {
                // SAFETY: the graph was recorded on this context's state, which is borrowed mutably, and on the weights of
                // the model with this id, which is borrowed, too.
                unsafe { backend.replay(graph)? };
                continue;
            }
            decode_step(model, backend, state)?;
            if !matches!(step, Step::Unrecorded) {
                let graph = backend.record(|| decode_step(model, backend, state))?;
                *step = graph.map_or(Step::Unrecorded, |graph| Step::Recorded(model.id, graph));
            }
        }
        mark(backend)?;
        let tokens = backend.read_choices(&state.input, 0, used, count)?;
        let Some(bad) = tokens.iter().position(|&token| token == NO_CHOICE) else {
            self.position = used + count;
            return Ok(tokens);
        };
        let token = if bad == 0 { token } else { tokens[bad - 1] };
        self.position = used + bad;
        let error = self.not_finite(model, &[token]);
        self.position = used;
        Err(error)
    }

    /// Records the decode step anew, `steps` times in a row, to be measured: without the launches that the backend leaves out
    /// at the time, see [`Probe`](crate::device::Probe). `None` unless [`Self::decode`] has recorded a step of this model.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no steps, [`Error::ContextOverflow`] for more than there are positions left, and what the
    /// backend reports.
    pub fn record_steps<'a>(&'a mut self, model: &'a Model<B>, steps: usize) -> Result<Option<RecordedSteps<'a, B>>> {
        if !matches!(self.step, Step::Recorded(id, _) if id == model.id) {
            return Ok(None);
        }
        if steps == 0 {
            return Err(Error::Invalid("a recording needs at least one step".into()));
        }
        self.check_room(steps)?;
        let Self { backend, state, position, sizes, .. } = self;
        set_tokens(backend, &mut state.input, &[0], *position, 0)?;
        let graph = backend.record(|| (0..steps).try_for_each(|_| decode_step(model, backend, state)))?;
        let (position, room) = (*position, sizes.cache.capacity - *position);
        Ok(graph.map(|graph| RecordedSteps { backend, state, graph, steps, position, room, model: PhantomData }))
    }

    /// Everything that a forward does: checks, micro-batches, and the logits in groups of rows. `take` gets the buffer
    /// of logits and the number of its rows in use, once per group.
    fn run<S: Sink>(
        &mut self,
        model: &Model<B>,
        tokens: &[u32],
        logits: Logits,
        sink: &mut S,
        take: &mut Take<'_, B>,
    ) -> Result<()> {
        self.check(model, tokens)?;
        let Self { backend, sizes, state, .. } = self;
        let mut start = self.position;
        let end = start + tokens.len();
        for batch in tokens.chunks(sizes.tokens) {
            let count = batch.len();
            let last = start + count == end;
            let mut tracer = Tracer { sink, layer: None, start, rows: count, capacity: sizes.cache.capacity, last };
            set_tokens(backend, &mut state.input, batch, start, start + count)?;
            forward(model, backend, state, count, &mut tracer)?;
            for rows in logit_rows(logits, count, last, sizes.rows) {
                tracer.start = start + rows.start;
                tracer.rows = rows.len();
                tracer.last = last && rows.end == count;
                let rows: Vec<u32> = rows.map(|row| row as u32).collect();
                head(model, backend, state, &rows, &mut tracer)?;
                take(backend, &state.logits, rows.len())?;
            }
            start += count;
        }
        backend.synchronize()?;
        self.position = end;
        Ok(())
    }

    fn check(&self, model: &Model<B>, tokens: &[u32]) -> Result<()> {
        if self.config != *model.config() {
            return Err(Error::Invalid("the context was made for a model of another configuration".into()));
        }
        if tokens.is_empty() {
            return Err(Error::Invalid("a forward needs at least one token".into()));
        }
        let vocab = self.config.vocab;
        if let Some(position) = tokens.iter().position(|&token| token as usize >= vocab) {
            return Err(Error::TokenOutOfRange { token: tokens[position], position, vocab });
        }
        self.check_room(tokens.len())
    }

    /// Fails unless that many positions are left.
    fn check_room(&self, wanted: usize) -> Result<()> {
        let (used, capacity) = (self.position, self.capacity());
        if wanted > capacity - used {
            return Err(Error::ContextOverflow { used, wanted, capacity });
        }
        Ok(())
    }
}

/// Sets the tokens of the next forward: the only sequence's from position `start` on, of which none is at `reach` or behind it (0: the
/// capacity, for steps that are recorded once for every position).
fn set_tokens<B: Backend>(backend: &B, input: &mut B::Input, tokens: &[u32], start: usize, reach: usize) -> Result<()> {
    let positions: Vec<u32> = (start as u32..).take(tokens.len()).collect();
    let sequences = vec![0; tokens.len()];
    backend.set_batch(input, &Batch::new(tokens, &positions, &sequences).reach(reach))
}

/// Enqueues a decode step: the forward of the input's one token, and its most probable token as the next input.
fn decode_step<B: Backend>(model: &Model<B>, backend: &B, state: &mut State<B>) -> Result<()> {
    // Nothing is traced, so that the position, which only the input has, does not matter.
    let mut tracer = Tracer { sink: &mut NoTrace, layer: None, start: 0, rows: 1, capacity: 0, last: true };
    forward(model, backend, state, 1, &mut tracer)?;
    head(model, backend, state, &[0], &mut tracer)?;
    backend.feed_back(&state.logits, 1, model.config().vocab, &mut state.input)
}

/// Decode steps that were recorded in a row, see [`Context::record_steps`].
pub struct RecordedSteps<'a, B: Backend> {
    backend: &'a B,
    state: &'a mut State<B>,
    graph: B::Graph,
    steps: usize,
    position: usize,
    /// Positions from there on.
    room: usize,
    /// The graph uses the weights.
    model: PhantomData<&'a Model<B>>,
}

impl<B: Backend> RecordedSteps<'_, B> {
    /// What the backend recorded.
    pub fn graph(&self) -> &B::Graph {
        &self.graph
    }

    /// Does the recorded steps `times` times in a row, from the context's position and the same token on every call, and waits.
    /// `mark` gets the backend directly before and directly after they are enqueued. The context stays at its position:
    /// what is computed here lies behind it.
    ///
    /// # Errors
    /// [`Error::ContextOverflow`] for more steps than there are positions left, those of `mark`, and what the backend
    /// reports.
    pub fn replay(&mut self, times: usize, mut mark: impl FnMut(&B) -> Result<()>) -> Result<()> {
        let wanted = self.steps.saturating_mul(times);
        if wanted > self.room {
            let (used, capacity) = (self.position, self.position + self.room);
            return Err(Error::ContextOverflow { used, wanted, capacity });
        }
        set_tokens(self.backend, &mut self.state.input, &[0], self.position, 0)?;
        mark(self.backend)?;
        for _ in 0..times {
            // SAFETY: the graph was recorded on the state that is borrowed mutably and on the weights of the model that is
            // borrowed, and every step starts at a position that fits.
            unsafe { self.backend.replay(&mut self.graph)? };
        }
        mark(self.backend)?;
        self.backend.synchronize()
    }
}

/// Finds the first position whose values are not finite, and the first of its values in the order of the forward. A position
/// depends on those before it alone.
#[derive(Default)]
struct FirstNotFinite {
    found: Option<(usize, Point)>,
}

impl Sink for FirstNotFinite {
    const ENABLED: bool = true;

    fn wants(&self, _: Stage, _: Option<usize>) -> bool {
        true
    }

    fn record(&mut self, record: Record<'_>) -> Result<()> {
        let Data::F32(values) = record.data else { return Ok(()) };
        let row: usize = record.shape[1..].iter().product();
        let bad = |(index, value): (usize, &f32)| {
            // Scores of later positions than the token's own are minus infinity.
            let masked = record.stage == Stage::AttnScores
                && index % record.shape[2] > record.position + index / row
                && *value == f32::NEG_INFINITY;
            !value.is_finite() && !masked
        };
        if let Some(index) = values.iter().enumerate().position(bad) {
            let position = record.position + index / row;
            if self.found.is_none_or(|(first, _)| position < first) {
                self.found = Some((position, Point { layer: record.layer, stage: record.stage }));
            }
        }
        Ok(())
    }
}

/// The rows of a batch whose logits are wanted, in groups of at most `group`.
fn logit_rows(logits: Logits, tokens: usize, last: bool, group: usize) -> impl Iterator<Item = Range<usize>> {
    let first = match logits {
        Logits::None => tokens,
        Logits::Last => tokens - usize::from(last),
        Logits::All => 0,
    };
    (first..tokens).step_by(group).map(move |row| row..tokens.min(row + group))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gguf::Gguf;
    use crate::model::LoadOptions;
    use crate::model::cpu::Cpu;
    use crate::model::synth::{Preset, SynthOptions, synth};
    use crate::trace::{Positions, Select, Selection};

    #[test]
    #[allow(clippy::single_range_in_vec_init)] // One group of rows is meant, not its rows.
    fn the_rows_whose_logits_are_wanted() {
        let rows = |logits, tokens, last, group| logit_rows(logits, tokens, last, group).collect::<Vec<_>>();
        for last in [false, true] {
            assert!(rows(Logits::None, 7, last, 3).is_empty());
            assert_eq!(rows(Logits::All, 7, last, 3), [0..3, 3..6, 6..7]);
            assert_eq!(rows(Logits::All, 6, last, 3), [0..3, 3..6]);
            assert_eq!(rows(Logits::All, 2, last, 3), [0..2]);
        }
        assert!(rows(Logits::Last, 7, false, 3).is_empty());
        assert_eq!(rows(Logits::Last, 7, true, 3), [6..7]);
        assert_eq!(rows(Logits::Last, 1, true, 1), [0..1]);
    }

    #[test]
    fn batches_and_groups_of_logits_are_as_large_as_their_buffers_allow() {
        let large = Preset::Qwen3_30bA3b.config();
        let sizes = |config: &Config, capacity, max_batch, trace| {
            let options = ContextOptions { capacity, max_batch, trace, ..ContextOptions::default() };
            Sizes::new(config, &options, OfFloats::default()).map(|sizes| (sizes.tokens, sizes.rows))
        };
        // 32 MiB hold 55 rows of 151,936 logits.
        assert_eq!(sizes(&large, 4096, 512, false).unwrap(), (512, 55));
        assert_eq!(sizes(&large, 4096, 54, false).unwrap(), (54, 54));
        assert_eq!(sizes(&large, 33, 512, false).unwrap(), (33, 33));
        let vocab = |vocab| sizes(&Config { vocab, ..large.clone() }, 4096, 512, false).unwrap().1;
        assert_eq!([1 << 14, 1 << 22, 1 << 23, (1 << 23) + 1, 1 << 24].map(vocab), [512, 2, 1, 1, 1]);
        // 256 MiB hold the scores of 32 heads and 262,144 positions of 8 tokens.
        assert_eq!(sizes(&large, 262_144, 512, true).unwrap().0, 8);
        assert_eq!(sizes(&large, 262_144, 512, false).unwrap().0, 512);
        assert_eq!(sizes(&large, 4096, 512, true).unwrap().0, 512);
        let endless = Config { context_length: 1 << 24, ..large.clone() };
        assert_eq!(sizes(&endless, 1 << 24, 512, true).unwrap().0, 1);
        for (capacity, max_batch, fits) in
            [(262_144, 1, true), (262_145, 1, false), (1, 1, true), (0, 1, false), (1, 0, false)]
        {
            let sizes = sizes(&large, capacity, max_batch, false);
            assert_eq!(sizes.is_ok(), fits, "{capacity}, {max_batch}");
            assert!(matches!(sizes, Ok(_) | Err(Error::Invalid(_))));
        }
    }

    fn tiny() -> Model<Cpu> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tiny.gguf");
        synth(&path, SynthOptions::new(Preset::Tiny, 5).layers(2), &mut |_, _| {}).unwrap();
        let gguf = Arc::new(Gguf::read(&path).unwrap());
        Model::load(gguf, Cpu::new(), LoadOptions { check_blocks: false, ..LoadOptions::default() }, &mut |_, _| {})
            .unwrap()
    }

    /// A context whose logits come in groups of so many rows, as they do with a vocabulary that is large enough.
    fn context(model: &Model<Cpu>, max_batch: usize, rows: usize) -> Context<Cpu> {
        let options = ContextOptions { capacity: 32, max_batch, trace: true, ..ContextOptions::default() };
        let mut context = model.context(options).unwrap();
        assert!(rows <= context.sizes.rows);
        context.sizes.rows = rows;
        context
    }

    /// Position and bits of every recorded row of the stages outside of the layers, one entry for a row.
    type Rows = Vec<(Stage, usize, Vec<u32>)>;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    fn traced(
        context: &mut Context<Cpu>,
        model: &Model<Cpu>,
        logits: Logits,
        positions: Positions,
    ) -> (Vec<u32>, Rows) {
        let mut rows = Rows::new();
        let stages = Some(vec![Stage::Embedding, Stage::OutputNorm, Stage::Logits]);
        let record = |record: Record<'_>| {
            let Data::F32(values) = record.data else { panic!("{:?}", record.stage) };
            for (row, values) in values.chunks_exact(record.shape[1]).enumerate() {
                rows.push((record.stage, record.position + row, bits(values)));
            }
            Ok(())
        };
        let mut sink = Select { selection: Selection { stages, layers: None, positions }, record };
        context.reset();
        let found = context.trace(model, &TOKENS, logits, &mut sink).unwrap();
        // In the order of stages and positions, whatever the batches.
        rows.sort();
        (bits(&found), rows)
    }

    const TOKENS: [u32; 17] = [766, 306, 598, 284, 280, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233];

    #[test]
    fn the_first_position_that_is_not_finite_counts_and_then_the_first_stage() {
        const NO: f32 = f32::NEG_INFINITY;
        type Records<'a> = &'a [(Stage, usize, &'a [usize], &'a [f32])];
        let found = |records: Records<'_>| {
            let mut sink = FirstNotFinite::default();
            for &(stage, position, shape, values) in records {
                assert!(sink.wants(stage, Some(2)));
                sink.record(Record { stage, layer: Some(2), position, shape, data: Data::F32(values) }).unwrap();
            }
            let indices = Record {
                stage: Stage::MoeRouterIndices,
                layer: Some(2),
                position: 0,
                shape: &[1, 1],
                data: Data::U32(&[u32::MAX]),
            };
            sink.record(indices).unwrap();
            sink.found.map(|(position, point)| (position, point.to_string()))
        };
        let at = |position, name: &str| Some((position, name.to_owned()));
        assert_eq!(found(&[(Stage::Q, 5, &[2, 2], &[1.0; 4])]), None);
        for (index, value, position) in [(0, f32::NAN, 5), (1, f32::INFINITY, 5), (2, NO, 6), (3, f32::NAN, 6)] {
            let mut values = [1.0; 4];
            values[index] = value;
            assert_eq!(found(&[(Stage::Q, 5, &[2, 2], &values)]), at(position, "layer02.q"));
        }
        // An earlier position in a later stage, and the same position.
        let (first, second) = ([f32::NAN, 1.0], [1.0, f32::NAN]);
        let (k, v) = (Stage::K, Stage::V);
        assert_eq!(found(&[(k, 5, &[2, 1], &second), (v, 5, &[2, 1], &first)]), at(5, "layer02.v"));
        assert_eq!(found(&[(k, 5, &[2, 1], &second), (v, 5, &[2, 1], &second)]), at(6, "layer02.k"));
        // Scores, `[rows, heads, seen]`, of two tokens at positions 1 and 2: what is masked is minus infinity and right.
        let sound = [1.0, 2.0, NO, 3.0, 4.0, NO, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        let scores = |values: &[f32]| found(&[(Stage::AttnScores, 1, &[2, 2, 3], values)]);
        assert_eq!(scores(&sound), None);
        for index in 0..12 {
            let mut values = sound;
            values[index] = if values[index] == NO { f32::NAN } else { NO };
            assert_eq!(scores(&values), at(1 + index / 6, "layer02.attn_scores"), "{index}");
        }
        // Another stage has nothing masked.
        assert_eq!(found(&[(Stage::MoeExpertUp, 1, &[2, 2, 3], &sound)]), at(1, "layer02.moe_expert_up"));
    }

    /// However the rows come in groups, also those of the calls before.
    #[test]
    fn positions_that_are_not_finite_are_found_in_every_group() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tiny.gguf");
        synth(&path, SynthOptions::new(Preset::Tiny, 5).layers(1), &mut |_, _| {}).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let table = Gguf::read(&path).unwrap().require_tensor("token_embd.weight").unwrap().offset() as usize;
        let wrong = TOKENS[5] as usize;
        bytes[table + 144 * wrong..][..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
        let gguf = Arc::new(Gguf::from_vec("tiny", bytes).unwrap());
        let options = LoadOptions { check_blocks: false, ..LoadOptions::default() };
        let model = Model::load(gguf, Cpu::new(), options, &mut |_, _| {}).unwrap();
        for (trace, max_batch, rows, before) in
            [(false, 9, 2, 0), (false, 9, 1, 3), (false, 4, 3, 0), (true, 9, 2, 0), (true, 4, 4, 3), (false, 9, 9, 5)]
        {
            let options = ContextOptions { capacity: 32, max_batch, trace, ..ContextOptions::default() };
            let mut context = model.context(options).unwrap();
            context.sizes.rows = rows;
            if before > 0 {
                context.forward(&model, &TOKENS[..before], Logits::None).unwrap();
            }
            for logits in [Logits::Last, Logits::All] {
                match context.forward(&model, &TOKENS[before..9], logits) {
                    Err(Error::NotFinite { position: 5, point }) => {
                        assert_eq!(point.map(|point| point.stage), trace.then_some(Stage::Embedding));
                    }
                    other => panic!("{before}, {rows}: {other:?}"),
                }
                assert_eq!(context.position(), before);
            }
        }
    }

    /// However a call is cut into batches, and its logits into groups: the same rows, at their positions.
    #[test]
    fn logits_come_in_groups_in_every_batch() {
        let model = tiny();
        let mut whole = context(&model, 17, 17);
        let (logits, rows) = traced(&mut whole, &model, Logits::All, Positions::All);
        let vocab = model.config().vocab;
        let stages = [Stage::Embedding, Stage::OutputNorm, Stage::Logits];
        let expected = stages.iter().flat_map(|&stage| (0..17).map(move |position| (stage, position)));
        assert!(rows.iter().map(|&(stage, position, _)| (stage, position)).eq(expected));
        assert_eq!(rows[2 * 17..].iter().flat_map(|row| row.2.clone()).collect::<Vec<_>>(), logits);
        let last: Rows = rows.iter().filter(|row| row.1 == 16).cloned().collect();
        for (max_batch, group) in [(17, 16), (17, 5), (17, 1), (7, 7), (7, 3), (7, 2), (5, 4), (16, 16), (1, 1)] {
            let what = format!("batches of {max_batch}, groups of {group}");
            let mut context = context(&model, max_batch, group);
            let (found, found_rows) = traced(&mut context, &model, Logits::All, Positions::All);
            assert!(found == logits && found_rows == rows, "{what}");
            // The last token of the call alone, and what a trace of it has.
            let (found, found_rows) = traced(&mut context, &model, Logits::Last, Positions::Last);
            assert!(found == logits[16 * vocab..] && found_rows == last, "{what}: the last");
            let (found, found_rows) = traced(&mut context, &model, Logits::All, Positions::Last);
            assert!(found == logits && found_rows == last, "{what}: all logits, the last row recorded");
            let (found, found_rows) = traced(&mut context, &model, Logits::None, Positions::All);
            assert!(found.is_empty() && found_rows == rows[..17], "{what}: none");
            // Without a trace, and without reading them.
            context.reset();
            let found = context.forward(&model, &TOKENS, Logits::All).unwrap();
            assert!(bits(&found) == logits, "{what}: not traced");
            context.reset();
            let next = context.next_token(&model, &TOKENS).unwrap();
            assert_eq!(next, crate::oracle::argmax::argmax(&found[16 * vocab..]), "{what}");
        }
    }

    /// A batch of tokens of several sequences, whose logits are wanted of some rows.
    struct Ragged {
        model: Model<Cpu>,
        state: State<Cpu>,
    }

    impl Ragged {
        const CAPACITY: usize = 2 * PAGE + 30;
        const PAGES: usize = 9;

        fn new(sequences: usize) -> Self {
            let model = tiny();
            let options = ContextOptions { capacity: Self::CAPACITY, ..ContextOptions::default() };
            let mut sizes = Sizes::new(model.config(), &options, OfFloats::default()).unwrap();
            sizes.input.sequences = sequences;
            sizes.cache.pages = 3;
            let mut state = State::new(&Cpu, model.config(), &sizes).unwrap();
            // A pool that is larger than the table of the only sequence of a context.
            state.cache = Cpu.cache(CacheShape { pages: Self::PAGES, ..sizes.cache }).unwrap();
            Cpu.set_pages(&mut state.input, 0, 0, &[0, 1, 2]).unwrap();
            Self { model, state }
        }

        /// Logits of `rows` of a batch of (sequence, position, token), as bits.
        fn run(&mut self, batch: &[(u32, usize, u32)], singles: usize, rows: &[u32]) -> Vec<Vec<u32>> {
            let tokens: Vec<u32> = batch.iter().map(|&(.., token)| token).collect();
            let positions: Vec<u32> = batch.iter().map(|&(_, position, _)| position as u32).collect();
            let sequences: Vec<u32> = batch.iter().map(|&(sequence, ..)| sequence).collect();
            let batch = Batch::new(&tokens, &positions, &sequences).singles(singles);
            let Self { model, state } = self;
            Cpu.set_batch(&mut state.input, &batch).unwrap();
            let mut tracer =
                Tracer { sink: &mut NoTrace, layer: None, start: 0, rows: tokens.len(), capacity: 0, last: true };
            forward(model, &Cpu, state, tokens.len(), &mut tracer).unwrap();
            head(model, &Cpu, state, rows, &mut tracer).unwrap();
            let logits = &state.logits[..rows.len() * model.config().vocab];
            logits.chunks_exact(model.config().vocab).map(bits).collect()
        }
    }

    /// What a sequence of tokens gives by itself, by position.
    fn alone(model: &Model<Cpu>, tokens: &[u32]) -> Vec<Vec<u32>> {
        let options = ContextOptions { capacity: Ragged::CAPACITY, ..ContextOptions::default() };
        let logits = model.context(options).unwrap().forward(model, tokens, Logits::All).unwrap();
        logits.chunks_exact(model.config().vocab).map(bits).collect()
    }

    /// Sequences whose pages lie anywhere, prompts beside single tokens and forks: each has the bits that it has alone.
    #[test]
    fn sequences_in_one_batch_are_as_each_alone() {
        let mut ragged = Ragged::new(3);
        let token = |sequence: u32, position: usize| (position as u32 * 37 + sequence * 11) % 700;
        let lengths = [PAGE + 3, 7, 2 * PAGE + 20];
        let all: Vec<Vec<u32>> = (0..3).map(|s| (0..lengths[s as usize]).map(|p| token(s, p)).collect()).collect();
        let expected: Vec<_> = all.iter().map(|tokens| alone(&ragged.model, tokens)).collect();
        for (sequence, pages) in [[7, 2, 5], [1, 8, 6], [4, 0, 3]].iter().enumerate() {
            // In two parts.
            Cpu.set_pages(&mut ragged.state.input, sequence, 1, &pages[1..]).unwrap();
            Cpu.set_pages(&mut ragged.state.input, sequence, 0, &pages[..1]).unwrap();
        }
        let part = |s: u32, positions: Range<usize>| positions.map(move |p| (s, p, token(s, p)));
        // Prompts, then a single token of one beside prompts of the others, then single ones, backwards.
        let batches: [Vec<_>; 3] = [
            part(2, 0..PAGE + 1).chain(part(0, 0..PAGE - 1)).collect(),
            part(0, PAGE - 1..PAGE).chain(part(1, 0..6)).chain(part(2, PAGE + 1..2 * PAGE + 19)).collect(),
            part(2, 2 * PAGE + 19..2 * PAGE + 20).chain(part(1, 6..7)).chain(part(0, PAGE..PAGE + 1)).collect(),
        ];
        for (batch, singles) in batches.iter().zip([0, 1, 3]) {
            let rows: Vec<u32> = (0..batch.len() as u32).rev().step_by(5).collect();
            let got = ragged.run(batch, singles, &rows);
            for (row, got) in rows.iter().zip(got) {
                let (sequence, position, _) = batch[*row as usize];
                assert!(got == expected[sequence as usize][position], "{sequence}, {position}");
            }
        }

        // Sequence 1 becomes a fork of sequence 2: it shares the first page, and has a copy of the second one, which comes back from
        // where it was saved.
        let Ragged { state, .. } = &mut ragged;
        let saved = Cpu.read_page(&state.cache, 0).unwrap();
        Cpu.copy_page(&mut state.cache, 0, 8).unwrap();
        assert_eq!(Cpu.read_page(&state.cache, 8).unwrap(), saved);
        Cpu.write_page(&mut state.cache, 8, &vec![0; saved.len()]).unwrap();
        assert_ne!(Cpu.read_page(&state.cache, 8).unwrap(), saved);
        Cpu.write_page(&mut state.cache, 8, &saved).unwrap();
        Cpu.set_pages(&mut state.input, 1, 0, &[4, 8]).unwrap();
        let fork = [&all[2][..2 * PAGE - 1], &[99, 98]].concat();
        let expected = alone(&ragged.model, &fork);
        let tail: Vec<_> = (2 * PAGE - 1..fork.len()).map(|p| (1, p, fork[p])).collect();
        assert!(ragged.run(&tail, 0, &[0, 1])[..] == expected[2 * PAGE - 1..]);
        // A decode step of two rows on the device's own choice.
        let Ragged { state, model } = &mut ragged;
        let vocab = model.config().vocab;
        Cpu.feed_back(&state.logits, 2, vocab, &mut state.input).unwrap();
        for row in 0..2 {
            let choice = Cpu.read_choices(&state.input, row, 2 * PAGE - 1 + row, 1).unwrap()[0] as usize;
            let largest = f32::from_bits(expected[2 * PAGE - 1 + row][choice]);
            assert!(expected[2 * PAGE - 1 + row].iter().all(|&logit| f32::from_bits(logit) <= largest));
        }
    }

    /// Positions, sequences and pages that are not there give NaN and leave the cache and the other tokens alone.
    #[test]
    fn tokens_without_a_place_give_nan() {
        let mut ragged = Ragged::new(2);
        Cpu.set_pages(&mut ragged.state.input, 1, 0, &[3, Ragged::PAGES as u32]).unwrap();
        let expected = alone(&ragged.model, &[5, 6, 7])[2].clone();
        let before: Vec<_> = (0..Ragged::PAGES).map(|page| Cpu.read_page(&ragged.state.cache, page).unwrap()).collect();
        let absent = [(1, Ragged::CAPACITY, 1), (2, 0, 1), (u32::MAX, 0, 1), (1, u32::MAX as usize, 1), (1, PAGE, 1)];
        let batch = [&absent[..], &[(0, 0, 5), (0, 1, 6), (0, 2, 7), (1, 0, 9)]].concat();
        let rows: Vec<u32> = (0..batch.len() as u32).collect();
        let got = ragged.run(&batch, 0, &rows);
        for row in &got[..absent.len()] {
            assert!(row.iter().all(|&logit| f32::from_bits(logit).is_nan()));
        }
        assert!(got[7] == expected && got[8].iter().all(|&logit| f32::from_bits(logit).is_finite()));
        let changed = |page: &usize| Cpu.read_page(&ragged.state.cache, *page).unwrap() != before[*page];
        assert_eq!((0..Ragged::PAGES).filter(changed).collect::<Vec<_>>(), [0, 3]);
        let Ragged { state, .. } = &mut ragged;
        let batch = |tokens, positions, sequences| Batch::new(tokens, positions, sequences);
        for bad in [
            batch(&[], &[], &[]),
            batch(&[0; Ragged::CAPACITY + 1], &[0; Ragged::CAPACITY + 1], &[0; Ragged::CAPACITY + 1]),
            batch(&[1], &[], &[0]),
            batch(&[1], &[1], &[0, 0]),
            batch(&[1], &[1], &[0]).singles(2),
            batch(&[1], &[1], &[0]).reach(Ragged::CAPACITY + 1),
        ] {
            assert!(matches!(Cpu.set_batch(&mut state.input, &bad), Err(Error::Invalid(_))), "{bad:?}");
        }
        for (sequence, first, count) in [(2, 0, 1), (0, 3, 1), (0, usize::MAX, 1), (1, 1, 3)] {
            let set = Cpu.set_pages(&mut state.input, sequence, first, &vec![0; count]);
            assert!(matches!(set, Err(Error::Invalid(_))), "{sequence}, {first}, {count}");
        }
        let bytes = Cpu.read_page(&state.cache, 0).unwrap();
        let faults = [
            Cpu.copy_page(&mut state.cache, Ragged::PAGES, 0),
            Cpu.copy_page(&mut state.cache, 0, Ragged::PAGES),
            Cpu.copy_page(&mut state.cache, 1, 1),
            Cpu.write_page(&mut state.cache, Ragged::PAGES, &bytes),
            Cpu.write_page(&mut state.cache, 0, &bytes[1..]),
            Cpu.read_page(&state.cache, Ragged::PAGES).map(|_| ()),
            Cpu.read_choices(&state.input, 2, 0, 1).map(|_| ()),
            Cpu.read_choices(&state.input, 0, Ragged::CAPACITY, 1).map(|_| ()),
        ];
        assert!(faults.iter().all(|fault| matches!(fault, Err(Error::Invalid(_)))), "{faults:?}");
        // A reach below a token's position.
        let found = |ragged: &mut Ragged, reach| {
            let Ragged { model, state } = ragged;
            Cpu.set_batch(&mut state.input, &batch(&[5], &[4], &[0]).reach(reach)).unwrap();
            let mut tracer = Tracer { sink: &mut NoTrace, layer: None, start: 0, rows: 1, capacity: 0, last: true };
            forward(model, &Cpu, state, 1, &mut tracer).unwrap();
            state.hidden[0].is_nan()
        };
        assert_eq!([4, 5, 0].map(|reach| found(&mut ragged, reach)), [true, false, false]);
    }
}
