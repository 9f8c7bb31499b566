//! The CPU backend: the oracles, in parallel over rows, tokens and heads.
//!
//! Weights are used where they are in the file. The one thing that is written a second time, for speed, is the integer
//! sum inside a product of quantized rows (`dot.rs`), which is exact and so the same.

mod dot;
mod simd;
mod sums;

use std::convert::Infallible;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::backend::{
    Attention, Backend, Batch, CacheShape, CacheType, Down, Draw, InputShape, NO_CHOICE, NormQkv, NormRouter,
    RoutingShape, Rows, SamplerShape, Swiglu,
};
use super::host_has_room;
use super::weights::Tensor;
use crate::blocks::BLOCK;
use crate::device::{bytes_of, bytes_of_mut};
use crate::oracle::attention::{Element, Head, Pages};
use crate::oracle::embedding::Table;
use crate::oracle::float_matvec::{self, Floats};
use crate::oracle::sample::Sampling;
use crate::oracle::{self, FixedBlock, Matrix};
use crate::{Error, Result};
use dot::SplitBlock;
use simd::with_fma;

/// Rows of a matrix that one task computes.
const TASK_ROWS: usize = 64;

/// The CPU, with as many threads as rayon's global pool has.
///
/// Operations panic when a buffer is smaller than their shapes demand; a [`super::Context`] has no such buffers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

impl Cpu {
    /// The backend.
    pub fn new() -> Self {
        Self
    }
}

/// Activations as fixed point.
pub struct Fixed(Vec<SplitBlock>);

impl Fixed {
    fn quantize(&mut self, x: &[f32]) {
        let one = |(x, out): (&[f32; BLOCK], &mut SplitBlock)| {
            *out = with_fma(
                #[inline(always)]
                || SplitBlock::from(&FixedBlock::new(x)),
            );
        };
        x.as_chunks().0.par_iter().with_min_len(64).zip(&mut self.0).for_each(one);
    }

    /// Rows of so many values, the last block of each filled up with zeros.
    fn quantize_rows(&mut self, x: &[f32], width: usize) {
        if width.is_multiple_of(BLOCK) {
            return self.quantize(x);
        }
        let cols = width.next_multiple_of(BLOCK);
        let mut padded = vec![0.0; x.len() / width * cols];
        for (padded, x) in padded.chunks_exact_mut(cols).zip(x.chunks_exact(width)) {
            padded[..width].copy_from_slice(x);
        }
        self.quantize(&padded);
    }

    /// A row of the activations, of `cols` values.
    fn row(&self, row: usize, cols: usize) -> &[SplitBlock] {
        let blocks = cols / BLOCK;
        &self.0[row * blocks..][..blocks]
    }
}

/// Router results of a batch, and the pairs in the order of their experts.
pub struct Routing {
    shape: RoutingShape,
    logits: Vec<f32>,
    indices: Vec<u32>,
    weights: Vec<f32>,
    order: Vec<u32>,
}

impl Routing {
    /// For each expert in use: its number and its pairs.
    fn groups(&self) -> impl Iterator<Item = (usize, &[u32])> {
        let expert = |pair: u32| self.indices[pair as usize];
        self.order.chunk_by(move |&a, &b| expert(a) == expert(b)).map(move |pairs| (expert(pairs[0]) as usize, pairs))
    }
}

/// Keys and values, `[layers][pages, PAGE, kv_heads, head_dim]` each.
pub struct Cache {
    shape: CacheShape,
    values: CacheValues,
}

enum CacheValues {
    F32([Vec<f32>; 2]),
    F16([Vec<f16>; 2]),
}

/// Tokens and where they are.
pub struct Input {
    shape: InputShape,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<u32>,
    reach: usize,
    /// `[sequences, pages of a sequence]`.
    pages: Vec<u32>,
    /// `[sequences, capacity]`, by row and position: the token chosen from its logits.
    choices: Vec<u32>,
}

impl Input {
    /// A token's position and its sequence's pages, of a pool of so many. One without a place is at position 0, where it sees NaN.
    fn place(&self, token: usize, pool: usize) -> (usize, Pages<'_>) {
        let (position, sequence) = (self.positions[token] as usize, self.sequences[token] as usize);
        if position >= self.reach || sequence >= self.shape.sequences {
            return (0, Pages::ABSENT);
        }
        let of_sequence = self.shape.pages_of_sequence();
        (position, Pages::new(&self.pages[sequence * of_sequence..][..of_sequence], pool))
    }
}

/// The matrix of expert `expert` of a quantized tensor: where a tensor's type decides what computes with it.
fn expert_matrix(tensor: &Tensor, expert: usize) -> Matrix<'_> {
    let blocks = tensor.rows() * (tensor.cols() / BLOCK);
    let all = tensor.blocks().expect("a tensor of floats has no blocks");
    all.part(expert * blocks..(expert + 1) * blocks)
}

/// One product: a matrix, the activations of the tokens that use it, and the rows of the output that they fill.
struct Product<'a> {
    w: Matrix<'a>,
    x: Vec<&'a [SplitBlock]>,
    y: Vec<usize>,
}

/// Computes products with matrices of `rows` rows. Row `y[i]` of `out`, `[.., rows]`, gets the product with `x[i]`.
fn products(products: &[Product<'_>], rows: usize, out: &mut [f32]) {
    // Tasks write `[row][token]`, so that each has its own part of the memory.
    let mut scratch = vec![0.0; products.iter().map(|product| product.x.len()).sum::<usize>() * rows];
    let mut tasks = Vec::new();
    let mut rest = scratch.as_mut_slice();
    for product in products {
        let (part, after) = rest.split_at_mut(product.x.len() * rows);
        rest = after;
        let parts = part.chunks_mut(TASK_ROWS * product.x.len()).enumerate();
        tasks.extend(parts.map(|(task, part)| (product, task * TASK_ROWS, part)));
    }
    tasks.into_par_iter().for_each(|(product, first, part)| dot::product(product.w, first, &product.x, part));

    let mut rest = scratch.as_slice();
    for product in products {
        let tokens = product.x.len();
        let (part, after) = rest.split_at(tokens * rows);
        rest = after;
        for (token, &y) in product.y.iter().enumerate() {
            for (out, &value) in out[y * rows..][..rows].iter_mut().zip(part[token..].iter().step_by(tokens)) {
                *out = value;
            }
        }
    }
}

/// Rows of logits, and how their tokens are drawn.
pub struct Sampler {
    shape: SamplerShape,
    rows: Vec<DrawnRow>,
}

struct DrawnRow {
    sampling: Sampling,
    /// The last tokens before the draw.
    before: Vec<u32>,
    /// Position of the logits of the first token that was drawn.
    first: usize,
    drawn: Vec<u32>,
}

impl DrawnRow {
    fn draw(&self, logits: &[f32]) -> u32 {
        let position = self.first + self.drawn.len() + 1;
        oracle::sample::sample(logits, &self.sampling, &self.before, position as u64)
    }
}

/// A matrix's expert and the outputs that are its products. Output y has row `y / share` of the activations.
type Outputs<'a> = (usize, &'a [u32]);

/// `out[y] = w[expert] x[y / share]`, `[outputs, rows]`, for the outputs of every expert.
fn multiply<'a>(
    w: &Tensor,
    outputs: impl Iterator<Item = Outputs<'a>>,
    share: usize,
    x: &Rows<'_, Cpu>,
    out: &mut [f32],
) {
    if w.is_floats() {
        let outputs: Vec<_> = outputs.collect();
        let floats = x.floats.expect("a matrix of floats has activations as floats");
        return float_products(w, &outputs, share, floats, out);
    }
    let list: Vec<_> = outputs
        .map(|(expert, outputs)| Product {
            w: expert_matrix(w, expert),
            x: outputs.iter().map(|&y| x.fixed.row(y as usize / share, w.cols())).collect(),
            y: outputs.iter().map(|&y| y as usize).collect(),
        })
        .collect();
    products(&list, w.rows(), out);
}

/// [`multiply`] for a matrix of floats: each task takes a row of an expert's matrix.
fn float_products(w: &Tensor, outputs: &[Outputs<'_>], share: usize, x: &[f32], out: &mut [f32]) {
    let (rows, cols) = (w.rows(), w.cols());
    let floats = Floats { bytes: w.bytes(), kind: w.kind(), cols };
    let tasks: Vec<_> = outputs.iter().flat_map(|&(e, ys)| (0..rows).map(move |row| (e * rows + row, ys))).collect();
    let values: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|&(row, ys)| {
            with_fma(
                #[inline(always)]
                || {
                    let weights = floats.row(row);
                    let mut values = vec![0.0; ys.len()];
                    // A loop, so that the products are compiled here, with the fused multiply-add.
                    for (value, &y) in values.iter_mut().zip(ys) {
                        *value = float_matvec::dot(&weights, &x[y as usize / share * cols..][..cols]);
                    }
                    values
                },
            )
        })
        .collect();
    for ((row, ys), values) in tasks.into_iter().zip(values) {
        for (&y, value) in ys.iter().zip(values) {
            out[y as usize * rows + row % rows] = value;
        }
    }
}

/// `y = w x` for all tokens.
fn plain(w: &Tensor, x: &Rows<'_, Cpu>, tokens: usize, y: &mut [f32]) {
    let all: Vec<u32> = (0..tokens as u32).collect();
    multiply(w, [(0, all.as_slice())].into_iter(), 1, x, y);
}

impl Backend for Cpu {
    type Matrix = Tensor;
    type Table = Tensor;
    type Floats = Vec<f32>;
    type Fixed = Fixed;
    type Routing = Routing;
    type Cache = Cache;
    type Input = Input;
    type Sampler = Sampler;
    type Graph = Infallible;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn fork(&self) -> Result<Self> {
        Ok(*self)
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn staging_bytes(&self, _: &Tensor) -> u64 {
        0
    }

    fn workspace_bytes(&self, _: CacheShape) -> Result<u64> {
        Ok(0)
    }

    fn matrix(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn takes_floats(&self, w: &Tensor) -> bool {
        w.is_floats()
    }

    fn table(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn floats_from(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn floats(&self, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn fixed(&self, blocks: usize) -> Result<Fixed> {
        Ok(Fixed(vec![SplitBlock::ZERO; blocks]))
    }

    fn routing(&self, shape: RoutingShape) -> Result<Routing> {
        let pairs = shape.tokens * shape.top_k;
        Ok(Routing {
            shape,
            logits: vec![0.0; shape.tokens * shape.experts],
            indices: vec![0; pairs],
            weights: vec![0.0; pairs],
            order: Vec::with_capacity(pairs),
        })
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache> {
        let len = shape.layers.saturating_mul(shape.pages).saturating_mul(shape.page_len());
        host_has_room::<f32>(len)?;
        let values = match shape.element {
            CacheType::F32 => CacheValues::F32([vec![0.0; len], vec![0.0; len]]),
            CacheType::F16 => CacheValues::F16([vec![f16::ZERO; len], vec![f16::ZERO; len]]),
        };
        Ok(Cache { shape, values })
    }

    fn input(&self, shape: InputShape) -> Result<Input> {
        host_has_room::<u32>(shape.sequences.saturating_mul(shape.capacity))?;
        let [tokens, positions, sequences] = [(); 3].map(|()| Vec::with_capacity(shape.tokens));
        let pages = vec![u32::MAX; shape.sequences * shape.pages_of_sequence()];
        let choices = vec![0; shape.sequences * shape.capacity];
        Ok(Input { shape, tokens, positions, sequences, reach: shape.capacity, pages, choices })
    }

    fn set_batch(&self, input: &mut Input, batch: &Batch<'_>) -> Result<()> {
        batch.check(input.shape)?;
        let set = |to: &mut Vec<u32>, from: &[u32]| {
            to.clear();
            to.extend_from_slice(from);
        };
        set(&mut input.tokens, batch.tokens);
        set(&mut input.positions, batch.positions);
        set(&mut input.sequences, batch.sequences);
        input.reach = if batch.reach == 0 { input.shape.capacity } else { batch.reach };
        Ok(())
    }

    fn set_pages(&self, input: &mut Input, sequence: usize, first: usize, pages: &[u32]) -> Result<()> {
        let at = input.shape.pages_at(sequence, first, pages.len())?;
        input.pages[at..at + pages.len()].copy_from_slice(pages);
        Ok(())
    }

    fn copy_page(&self, cache: &mut Cache, from: usize, to: usize) -> Result<()> {
        if from == to {
            return Err(Error::Invalid(format!("page {from} to itself")));
        }
        let bytes = self.read_page(cache, from)?;
        self.write_page(cache, to, &bytes)
    }

    fn read_page(&self, cache: &Cache, page: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(cache.shape.page_bytes());
        for part in 0..2 * cache.shape.layers {
            let at = cache.shape.page_at(part / 2, page)?;
            match &cache.values {
                CacheValues::F32(values) => bytes.extend_from_slice(bytes_of(&values[part % 2][at])),
                CacheValues::F16(values) => bytes.extend_from_slice(bytes_of(values[part % 2][at].reinterpret_cast())),
            }
        }
        Ok(bytes)
    }

    fn write_page(&self, cache: &mut Cache, page: usize, bytes: &[u8]) -> Result<()> {
        let parts = cache.shape.parts_of(bytes)?;
        for (part, bytes) in parts.enumerate() {
            let at = cache.shape.page_at(part / 2, page)?;
            match &mut cache.values {
                CacheValues::F32(values) => bytes_of_mut(&mut values[part % 2][at]).copy_from_slice(bytes),
                CacheValues::F16(values) => {
                    bytes_of_mut(values[part % 2][at].reinterpret_cast_mut()).copy_from_slice(bytes);
                }
            }
        }
        Ok(())
    }

    fn read(&self, buffer: &Vec<f32>, from: usize, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&buffer[from..][..out.len()]);
        Ok(())
    }

    fn read_indices(&self, routing: &Routing, tokens: usize) -> Result<Vec<u32>> {
        Ok(routing.indices[..tokens * routing.shape.top_k].to_vec())
    }

    fn read_weights(&self, routing: &Routing, tokens: usize) -> Result<Vec<f32>> {
        Ok(routing.weights[..tokens * routing.shape.top_k].to_vec())
    }

    fn read_router_logits(&self, routing: &Routing, tokens: usize) -> Result<Vec<f32>> {
        Ok(routing.logits[..tokens * routing.shape.experts].to_vec())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn embedding(&self, table: &Tensor, input: &Input, tokens: usize, out: &mut Vec<f32>) -> Result<()> {
        let cols = table.cols();
        let table = Table { bytes: table.bytes(), kind: table.kind(), cols };
        oracle::embedding::embedding(table, &input.tokens[..tokens], &mut out[..tokens * cols]);
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        eps: f32,
        [tokens, width]: [usize; 2],
        out: Option<&mut Vec<f32>>,
        fixed: Option<&mut Fixed>,
    ) -> Result<()> {
        let cols = weight.len();
        let mut scratch = Vec::new();
        let out = match out {
            Some(out) => out,
            None => {
                scratch.resize(tokens * cols, 0.0);
                &mut scratch
            }
        };
        let out = &mut out[..tokens * cols];
        out.par_chunks_exact_mut(cols).zip(x.par_chunks_exact(cols)).for_each(|(out, x)| {
            with_fma(
                #[inline(always)]
                || oracle::rms_norm::rms_norm(x, weight, width, eps, out),
            );
        });
        if let Some(fixed) = fixed {
            fixed.quantize(out);
        }
        Ok(())
    }

    fn norm_qkv(&self, operands: NormQkv<'_, Self>, tokens: usize) -> Result<()> {
        let NormQkv { hidden, weight, eps, width, mut normed, fixed, w, y } = operands;
        self.rms_norm(hidden, weight, eps, [tokens, width], normed.as_deref_mut(), Some(&mut *fixed))?;
        let x = Rows { fixed, floats: normed.as_deref() };
        for (w, y) in w.into_iter().zip(y) {
            plain(w, &x, tokens, y);
        }
        Ok(())
    }

    fn attention(
        &self,
        operands: Attention<'_, Self>,
        input: &Input,
        tokens: usize,
        cache: &mut Cache,
        layer: usize,
    ) -> Result<()> {
        let Attention { q, k, v, q_weight, k_weight, table, heads, eps, rotated: q_rotated, .. } = operands;
        let Attention { mut q_normed, mut k_normed, mut k_out, fixed, out, scores, .. } = operands;
        let CacheShape { pages, capacity, kv_heads, head_dim, .. } = cache.shape;
        let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let layer_at = layer * pages * cache.shape.page_len();
        // Without a place in the cache there are no angles.
        let none = vec![f32::NAN; head_dim];
        for token in 0..tokens {
            let (position, of_sequence) = input.place(token, pages);
            let row = of_sequence.row(position);
            let angles = row.map_or(&none[..], |_| &table[position * head_dim..][..head_dim]);
            let (q_range, kv_range) =
                (token * q_width..(token + 1) * q_width, token * kv_width..(token + 1) * kv_width);
            let mut rotated = k[kv_range.clone()].to_vec();
            with_fma(
                #[inline(always)]
                || {
                    let normed = q_normed.as_mut().map(|normed| &mut normed[q_range.clone()]);
                    q_rotated[q_range.clone()].copy_from_slice(&q[q_range.clone()]);
                    oracle::rope::rope(&mut q_rotated[q_range], head_dim, Some(q_weight), eps, angles, normed);
                    let normed = k_normed.as_mut().map(|normed| &mut normed[kv_range.clone()]);
                    oracle::rope::rope(&mut rotated, head_dim, Some(k_weight), eps, angles, normed);
                },
            );
            let v = &v[kv_range.clone()];
            if let Some(row) = row {
                let at = layer_at + row * kv_width;
                match &mut cache.values {
                    CacheValues::F32([keys, values]) => {
                        store(&mut keys[at..], &rotated);
                        store(&mut values[at..], v);
                    }
                    CacheValues::F16([keys, values]) => {
                        store(&mut keys[at..], &rotated);
                        store(&mut values[at..], v);
                    }
                }
            }
            if let Some(k_out) = &mut k_out {
                k_out[kv_range].copy_from_slice(&rotated);
            }
        }

        let layer = layer_at..layer_at + pages * cache.shape.page_len();
        let mut scratch = Vec::new();
        let out = match out {
            Some(out) => out,
            None => {
                scratch.resize(tokens * heads * head_dim, 0.0);
                &mut scratch
            }
        };
        let out = &mut out[..tokens * heads * head_dim];
        let places: Vec<_> = (0..tokens).map(|token| input.place(token, pages)).collect();
        let shape = Heads { heads, kv_heads, head_dim, capacity, places: &places };
        let scores = scores.map(|scores| &mut scores[..tokens * heads * capacity]);
        match &cache.values {
            CacheValues::F32([k, v]) => shape.attend(q_rotated, &k[layer.clone()], &v[layer], out, scores),
            CacheValues::F16([k, v]) => shape.attend(q_rotated, &k[layer.clone()], &v[layer], out, scores),
        }
        fixed.quantize_rows(out, heads * head_dim);
        Ok(())
    }

    fn matvec(&self, w: &Tensor, x: Rows<'_, Self>, tokens: usize, y: &mut Vec<f32>) -> Result<()> {
        plain(w, &x, tokens, y);
        Ok(())
    }

    fn matvec_add(
        &self,
        w: &Tensor,
        x: Rows<'_, Self>,
        tokens: usize,
        hidden: &mut Vec<f32>,
        product: Option<&mut Vec<f32>>,
    ) -> Result<()> {
        let mut scratch = Vec::new();
        let product = match product {
            Some(product) => product,
            None => {
                scratch.resize(tokens * w.rows(), 0.0);
                &mut scratch
            }
        };
        plain(w, &x, tokens, product);
        let len = tokens * w.rows();
        oracle::residual_add::residual_add(&mut hidden[..len], &product[..len]);
        Ok(())
    }

    fn norm_router(&self, operands: NormRouter<'_, Self>, tokens: usize, routing: &mut Routing) -> Result<()> {
        let NormRouter { hidden, weight, eps, width, router: w, normed: x, fixed, .. } = operands;
        self.rms_norm(hidden, weight, eps, [tokens, width], Some(&mut *x), Some(fixed))?;
        let RoutingShape { experts, top_k, weighting, .. } = routing.shape;
        let cols = w.len() / experts;
        let logits = routing.logits.par_chunks_exact_mut(experts);
        let chosen = routing.indices.par_chunks_exact_mut(top_k).zip(routing.weights.par_chunks_exact_mut(top_k));
        let rows = x.par_chunks_exact(cols).take(tokens);
        rows.zip(logits).zip(chosen).for_each(|((x, logits), (indices, weights))| {
            with_fma(
                #[inline(always)]
                || oracle::moe_router::moe_router(x, w, weighting, logits, indices, weights),
            );
        });
        routing.order = oracle::moe_group::moe_group(&routing.indices[..tokens * top_k], experts).order;
        Ok(())
    }

    fn moe_swiglu(&self, operands: Swiglu<'_, Self>, routing: &mut Routing, tokens: usize) -> Result<()> {
        let Swiglu { gate, up, x, out, gate_out, up_out } = operands;
        let top_k = routing.shape.top_k;
        let len = tokens * top_k * gate.rows();
        let mut scratch = [Vec::new(), Vec::new()];
        let [gate_scratch, up_scratch] = &mut scratch;
        let gate_out = gate_out.unwrap_or(gate_scratch);
        let up_out = up_out.unwrap_or(up_scratch);
        gate_out.resize(gate_out.len().max(len), 0.0);
        up_out.resize(up_out.len().max(len), 0.0);
        multiply(gate, routing.groups(), top_k, &x, gate_out);
        multiply(up, routing.groups(), top_k, &x, up_out);
        let out = &mut out[..len];
        out.par_iter_mut().with_min_len(1024).zip(&gate_out[..len]).zip(&up_out[..len]).for_each(
            |((out, &gate), &up)| {
                *out = with_fma(
                    #[inline(always)]
                    || oracle::moe_swiglu::swiglu(gate, up),
                );
            },
        );
        Ok(())
    }

    fn moe_down(&self, operands: Down<'_, Self>, routing: &Routing, tokens: usize) -> Result<()> {
        let Down { down, x, fixed, hidden, expert_out, sum } = operands;
        let top_k = routing.shape.top_k;
        let cols = down.rows();
        if !down.is_floats() {
            fixed.quantize(&x[..tokens * top_k * down.cols()]);
        }
        multiply(down, routing.groups(), 1, &Rows { fixed, floats: Some(x) }, expert_out);
        let mut scratch = Vec::new();
        let sum = sum.unwrap_or(&mut scratch);
        sum.resize(sum.len().max(tokens * cols), 0.0);
        let sum = &mut sum[..tokens * cols];
        sum.par_chunks_exact_mut(cols)
            .zip(routing.weights.par_chunks_exact(top_k))
            .zip(expert_out.par_chunks_exact(top_k * cols))
            .for_each(|((sum, weights), expert_out)| {
                with_fma(
                    #[inline(always)]
                    || oracle::moe_down::moe_down(weights, expert_out, sum),
                );
            });
        oracle::residual_add::residual_add(&mut hidden[..tokens * cols], sum);
        Ok(())
    }

    fn copy_rows(&self, x: &Vec<f32>, rows: &[u32], cols: usize, out: &mut Vec<f32>) -> Result<()> {
        for (out, &row) in out.chunks_exact_mut(cols).zip(rows) {
            out.copy_from_slice(&x[row as usize * cols..][..cols]);
        }
        Ok(())
    }

    fn feed_back(&self, logits: &Vec<f32>, rows: usize, vocab: usize, input: &mut Input) -> Result<()> {
        let capacity = input.shape.capacity;
        for (row, logits) in logits.chunks_exact(vocab).take(rows).enumerate() {
            let token = oracle::argmax::argmax(logits);
            let position = &mut input.positions[row];
            // What does not fit is not kept.
            if let Some(choice) = input.choices[row * capacity..][..capacity].get_mut(*position as usize) {
                *choice = if logits[token as usize].is_finite() { token } else { NO_CHOICE };
            }
            input.tokens[row] = token;
            *position = position.wrapping_add(1);
        }
        Ok(())
    }

    fn read_choices(&self, input: &Input, row: usize, from: usize, count: usize) -> Result<Vec<u32>> {
        let at = input.shape.choices_at(row, from, count)?;
        Ok(input.choices[at..at + count].to_vec())
    }

    fn sampler(&self, shape: SamplerShape) -> Result<Sampler> {
        Ok(Sampler { shape, rows: Vec::with_capacity(shape.rows) })
    }

    fn set_draws(&self, sampler: &mut Sampler, draws: &[Draw<'_>]) -> Result<()> {
        sampler.shape.check(draws)?;
        sampler.rows.clear();
        sampler.rows.extend(draws.iter().map(|draw| DrawnRow {
            sampling: draw.sampling,
            before: draw.before.to_vec(),
            first: draw.position,
            drawn: Vec::new(),
        }));
        Ok(())
    }

    fn sample(&self, logits: &Vec<f32>, rows: usize, sampler: &mut Sampler) -> Result<Vec<u32>> {
        let rows = &sampler.rows[..rows];
        Ok(rows.iter().zip(logits.chunks_exact(sampler.shape.vocab)).map(|(row, logits)| row.draw(logits)).collect())
    }

    fn feed_back_drawn(&self, logits: &Vec<f32>, rows: usize, input: &mut Input, sampler: &mut Sampler) -> Result<()> {
        let tokens = self.sample(logits, rows, sampler)?;
        for (index, (row, token)) in sampler.rows.iter_mut().zip(tokens).enumerate() {
            row.before.push(token);
            row.drawn.push(token);
            input.tokens[index] = token;
            input.positions[index] = input.positions[index].wrapping_add(1);
        }
        Ok(())
    }

    fn read_drawn(&self, sampler: &Sampler, row: usize, from: usize, count: usize) -> Result<Vec<u32>> {
        let row = &sampler.rows[row];
        Ok(row.drawn[from - row.first..][..count].to_vec())
    }

    fn record(&self, _enqueue: impl FnOnce() -> Result<()>) -> Result<Option<Infallible>> {
        Ok(None)
    }

    unsafe fn replay(&self, graph: &mut Infallible) -> Result<()> {
        match *graph {}
    }

    fn argmax(&self, x: &Vec<f32>, rows: usize, cols: usize) -> Result<Vec<u32>> {
        Ok(x.chunks_exact(cols).take(rows).map(oracle::argmax::argmax).collect())
    }
}

/// Stores a token's keys or values in the cache.
fn store<T: Element>(cache: &mut [T], values: &[f32]) {
    for (out, &value) in cache.iter_mut().zip(values) {
        *out = T::from_f32(value);
    }
}

/// Shape of one layer's attention.
struct Heads<'a> {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    /// By token: its position, and the pages of its sequence.
    places: &'a [(usize, Pages<'a>)],
}

impl Heads<'_> {
    /// Attention of all tokens and heads in `out`, `[tokens, heads, head_dim]`.
    fn attend<T: Element>(&self, q: &[f32], k: &[T], v: &[T], out: &mut [f32], scores: Option<&mut [f32]>) {
        let &Self { heads, kv_heads, head_dim, capacity, places } = self;
        let scale = oracle::attention::scale(head_dim);
        let task = |index: usize, out: &mut [f32], scores: Option<&mut [f32]>| {
            let (token, head) = (index / heads, index % heads);
            let from = head / (heads / kv_heads) * head_dim;
            let (position, pages) = places[token];
            let head = Head::new(&k[from..], &v[from..], kv_heads * head_dim).paged(pages);
            let q = &q[index * head_dim..][..head_dim];
            with_fma(
                #[inline(always)]
                || oracle::attention::attention(q, head, position + 1, scale, out, scores),
            );
        };
        let tasks = out.par_chunks_exact_mut(head_dim).enumerate();
        match scores {
            Some(scores) => tasks
                .zip(scores.par_chunks_exact_mut(capacity))
                .for_each(|((index, out), scores)| task(index, out, Some(scores))),
            None => tasks.for_each(|(index, out)| task(index, out, None)),
        }
    }
}
