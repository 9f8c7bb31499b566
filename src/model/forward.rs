//! The forward of Qwen3-MoE, written once for every backend.
//!
//! Everything here only enqueues work, and nothing depends on the sequence's position, which lies in the backend's
//! input: a decode step can be recorded once and replayed. Only a trace reads values back in between.

use std::ops::Range;

use super::Model;
use super::backend::{Attention, Backend, Down, NormQkv, NormRouter, Rows, Swiglu};
use super::config::padded;
use super::context::State;
use crate::Result;
use crate::trace::{Data, Positions, Record, Sink, Stage};

/// Embeds the first `tokens` tokens of the input and runs all layers: leaves the residual stream in `state.hidden` and
/// the keys and values in `state.cache`.
pub(super) fn forward<B: Backend, S: Sink>(
    model: &Model<B>,
    backend: &B,
    state: &mut State<B>,
    tokens: usize,
    tracer: &mut Tracer<'_, S>,
) -> Result<()> {
    let config = model.config();
    let weights = model.weights();
    let State { input, hidden, normed, normed_fixed, q, rotated, k, v, attn, attn_fixed, .. } = state;
    let State { routing, swiglu, swiglu_fixed, expert_out, cache, rope_table, traced, .. } = state;
    let State { expert_gate, expert_up, .. } = state;
    let eps = config.rms_eps;
    let width = config.hidden;
    let token = Row::padded([config.hidden]);
    let q_heads = Row::plain([config.heads, config.head_dim]);
    let kv_heads = Row::plain([config.kv_heads, config.head_dim]);
    let expert = Row::padded([config.top_k, config.expert_ff]);
    let of_experts = Row::padded([config.top_k, config.hidden]);

    // hidden = embedding[token]
    backend.embedding(&weights.embedding, input, tokens, hidden)?;
    tracer.floats(backend, Stage::Embedding, Some(hidden), &token)?;

    for (number, layer) in weights.layers.iter().enumerate() {
        tracer.layer = Some(number);

        // q, k, v = W rms_norm(hidden)
        let w = [&layer.q, &layer.k, &layer.v];
        let operands = NormQkv {
            hidden,
            weight: &layer.attn_norm,
            eps,
            width,
            normed: (tracer.wants(Stage::AttnNorm) || w.iter().any(|w| backend.takes_floats(w)))
                .then_some(&mut *normed),
            fixed: normed_fixed,
            w,
            y: [q, k, v],
        };
        backend.norm_qkv(operands, tokens)?;
        tracer.floats(backend, Stage::AttnNorm, Some(normed), &token)?;
        tracer.floats(backend, Stage::Q, Some(q), &q_heads)?;
        tracer.floats(backend, Stage::K, Some(k), &kv_heads)?;
        tracer.floats(backend, Stage::V, Some(v), &kv_heads)?;

        // q, k = rope(rms_norm(q), rms_norm(k)); cache += k, v; hidden += W softmax(q k / sqrt(head_dim)) v
        let operands = Attention {
            q,
            k,
            v,
            q_weight: &layer.q_norm,
            k_weight: &layer.k_norm,
            table: rope_table,
            heads: config.heads,
            eps,
            rotated,
            q_normed: tracer.output(Stage::QNorm, &mut traced.q_normed),
            k_normed: tracer.output(Stage::KNorm, &mut traced.k_normed),
            k_out: tracer.output(Stage::KRope, &mut traced.k_rope),
            fixed: attn_fixed,
            out: when(tracer.wants(Stage::AttnOut) || backend.takes_floats(&layer.attn_output), attn),
            scores: tracer.output(Stage::AttnScores, &mut traced.attn_scores),
        };
        backend.attention(operands, input, tokens, cache, number)?;
        tracer.floats(backend, Stage::QNorm, traced.q_normed.as_ref(), &q_heads)?;
        tracer.floats(backend, Stage::KNorm, traced.k_normed.as_ref(), &kv_heads)?;
        tracer.floats(backend, Stage::QRope, Some(rotated), &q_heads)?;
        tracer.floats(backend, Stage::KRope, traced.k_rope.as_ref(), &kv_heads)?;
        tracer.scores(backend, traced.attn_scores.as_ref(), config.heads)?;
        tracer.floats(backend, Stage::AttnOut, attn.as_ref(), &q_heads)?;
        let product = tracer.output(Stage::AttnProj, &mut traced.attn_proj);
        backend.matvec_add(
            &layer.attn_output,
            Rows { fixed: attn_fixed, floats: attn.as_ref() },
            tokens,
            hidden,
            product,
        )?;
        tracer.floats(backend, Stage::AttnProj, traced.attn_proj.as_ref(), &token)?;
        tracer.floats(backend, Stage::AttnResidual, Some(hidden), &token)?;

        // experts, p = top_k(softmax(W rms_norm(hidden)))
        let choose = backend.takes_floats(&layer.gate) || backend.takes_floats(&layer.up);
        let operands = NormRouter {
            hidden,
            weight: &layer.ffn_norm,
            eps,
            width,
            router: &layer.router,
            normed,
            fixed: normed_fixed,
            choose,
        };
        backend.norm_router(operands, tokens, routing)?;
        tracer.floats(backend, Stage::FfnNorm, Some(normed), &token)?;
        tracer.values(Stage::MoeRouterLogits, &[config.experts], || backend.read_router_logits(routing, tokens))?;

        // hidden += sum over experts of p * W_down (silu(W_gate x) * (W_up x))
        let operands = Swiglu {
            gate: &layer.gate,
            up: &layer.up,
            x: Rows { fixed: normed_fixed, floats: Some(normed) },
            out: swiglu,
            gate_out: when(choose || tracer.wants(Stage::MoeExpertGate), expert_gate),
            up_out: when(choose || tracer.wants(Stage::MoeExpertUp), expert_up),
        };
        backend.moe_swiglu(operands, routing, tokens)?;
        // The choice may have been made there.
        tracer.values(Stage::MoeRouter, &[config.top_k], || backend.read_weights(routing, tokens))?;
        tracer.values(Stage::MoeRouterIndices, &[config.top_k], || backend.read_indices(routing, tokens))?;
        tracer.floats(backend, Stage::MoeExpertGate, expert_gate.as_ref(), &expert)?;
        tracer.floats(backend, Stage::MoeExpertUp, expert_up.as_ref(), &expert)?;
        tracer.floats(backend, Stage::MoeExpertSwiglu, Some(swiglu), &expert)?;
        let operands = Down {
            down: &layer.down,
            x: swiglu,
            fixed: swiglu_fixed,
            hidden,
            expert_out,
            sum: tracer.output(Stage::MoeFfnOut, &mut traced.ffn_out),
        };
        backend.moe_down(operands, routing, tokens)?;
        tracer.floats(backend, Stage::MoeExpertOut, Some(expert_out), &of_experts)?;
        tracer.floats(backend, Stage::MoeFfnOut, traced.ffn_out.as_ref(), &token)?;
        tracer.floats(backend, Stage::FfnResidual, Some(hidden), &token)?;
    }
    tracer.layer = None;
    Ok(())
}

/// Logits of the given rows of the residual stream, in that order, into the first rows of `state.logits`: `W rms_norm(hidden)`.
pub(super) fn head<B: Backend, S: Sink>(
    model: &Model<B>,
    backend: &B,
    state: &mut State<B>,
    rows: &[u32],
    tracer: &mut Tracer<'_, S>,
) -> Result<()> {
    let config = model.config();
    let weights = model.weights();
    let State { hidden, output, output_normed, output_fixed, logits, .. } = state;
    let rows_hidden = if rows.iter().copied().eq(0..rows.len() as u32) {
        hidden
    } else {
        backend.copy_rows(hidden, rows, config.padded_hidden(), output)?;
        output
    };
    let out = when(tracer.wants(Stage::OutputNorm) || backend.takes_floats(&weights.output), output_normed);
    let shape = [rows.len(), config.hidden];
    backend.rms_norm(rows_hidden, &weights.output_norm, config.rms_eps, shape, out, Some(output_fixed))?;
    tracer.floats(backend, Stage::OutputNorm, output_normed.as_ref(), &Row::padded([config.hidden]))?;
    let x = Rows { fixed: output_fixed, floats: output_normed.as_ref() };
    backend.matvec(&weights.output, x, rows.len(), logits)?;
    tracer.floats(backend, Stage::Logits, Some(logits), &Row::plain([config.vocab]))
}

/// The buffer of an optional output, if it is wanted.
fn when<T>(wanted: bool, buffer: &mut Option<T>) -> Option<&mut T> {
    if wanted { buffer.as_mut() } else { None }
}

/// Shape of a row of a buffer that is recorded: what of it counts, and how many values the last dimension has in the buffer.
struct Row<const N: usize> {
    shape: [usize; N],
    stored: usize,
}

impl<const N: usize> Row<N> {
    /// All of it counts.
    fn plain(shape: [usize; N]) -> Self {
        Self { shape, stored: shape[N - 1] }
    }

    /// The last dimension is continued with zeros to whole blocks.
    fn padded(shape: [usize; N]) -> Self {
        Self { shape, stored: padded(shape[N - 1]) }
    }
}

/// Feeds a sink. With a sink that is not enabled every method is empty.
pub(super) struct Tracer<'a, S> {
    pub(super) sink: &'a mut S,
    /// The layer in progress.
    pub(super) layer: Option<usize>,
    /// Position of the first row.
    pub(super) start: usize,
    /// Rows of the values to come.
    pub(super) rows: usize,
    /// Positions of the cache.
    pub(super) capacity: usize,
    /// Whether the last row is the last token of the call.
    pub(super) last: bool,
}

impl<S: Sink> Tracer<'_, S> {
    fn wants(&self, stage: Stage) -> bool {
        S::ENABLED && (self.last || self.sink.positions() == Positions::All) && self.sink.wants(stage, self.layer)
    }

    /// The buffer of an optional output, if its stage is wanted.
    fn output<'b, T>(&self, stage: Stage, buffer: &'b mut Option<T>) -> Option<&'b mut T> {
        when(self.wants(stage), buffer)
    }

    /// The rows that are recorded.
    fn selected(&self) -> Range<usize> {
        match self.sink.positions() {
            Positions::All => 0..self.rows,
            Positions::Last => self.rows - 1..self.rows,
        }
    }

    fn record(&mut self, stage: Stage, rows: &Range<usize>, row: &[usize], data: Data<'_>) -> Result<()> {
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(row.iter().copied()).collect();
        let position = self.start + rows.start;
        self.sink.record(Record { stage, layer: self.layer, position, shape: &shape, data })
    }

    /// Reads and records rows of shape `row` of a buffer.
    fn floats<B: Backend, const N: usize>(
        &mut self,
        backend: &B,
        stage: Stage,
        buffer: Option<&B::Floats>,
        row: &Row<N>,
    ) -> Result<()> {
        let Some(buffer) = buffer.filter(|_| self.wants(stage)) else { return Ok(()) };
        let rows = self.selected();
        let (width, stored) = (row.shape[N - 1], row.stored);
        let len = row.shape[..N - 1].iter().product::<usize>() * stored;
        let mut values = vec![0.0; rows.len() * len];
        backend.read(buffer, rows.start * len, &mut values)?;
        if width < stored {
            values = values.chunks_exact(stored).flat_map(|values| &values[..width]).copied().collect();
        }
        self.record(stage, &rows, &row.shape, Data::F32(&values))
    }

    /// Records rows of shape `row` of values that are read as a whole.
    fn values<T: Traced>(&mut self, stage: Stage, row: &[usize], read: impl FnOnce() -> Result<Vec<T>>) -> Result<()> {
        if !self.wants(stage) {
            return Ok(());
        }
        let rows = self.selected();
        let len: usize = row.iter().product();
        let values = read()?;
        self.record(stage, &rows, row, T::data(&values[rows.start * len..rows.end * len]))
    }

    /// Records scores, `[rows, heads, capacity]`, without the positions that no row sees.
    fn scores<B: Backend>(&mut self, backend: &B, buffer: Option<&B::Floats>, heads: usize) -> Result<()> {
        let Some(buffer) = buffer.filter(|_| self.wants(Stage::AttnScores)) else { return Ok(()) };
        let rows = self.selected();
        let seen = self.start + self.rows;
        let mut values = vec![0.0; rows.len() * heads * seen];
        for (index, row) in values.chunks_exact_mut(seen).enumerate() {
            backend.read(buffer, (rows.start * heads + index) * self.capacity, row)?;
        }
        self.record(Stage::AttnScores, &rows, &[heads, seen], Data::F32(&values))
    }
}

/// Element types of records.
trait Traced: Sized {
    fn data(values: &[Self]) -> Data<'_>;
}

impl Traced for f32 {
    fn data(values: &[Self]) -> Data<'_> {
        Data::F32(values)
    }
}

impl Traced for u32 {
    fn data(values: &[Self]) -> Data<'_> {
        Data::U32(values)
    }
}
