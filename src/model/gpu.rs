//! The GPU backend: the forward's operations as kernel launches on a [`Device`].

use std::collections::BTreeMap;

use super::backend::{
    Attention, Backend, Batch, CacheShape, CacheType, Down, Draw, InputShape, NormQkv, NormRouter, RoutingShape, Rows,
    SamplerShape, Swiglu,
};
use super::config::Config;
use super::weights::{Tensor, Tensors};
use crate::blocks::{BLOCK, TensorType};
use crate::device::{Buffer, Device, Slice};
use crate::kernels::{
    self, Activations, CacheMut, Choose, DecodeLoop, DownInput, FixedBlock, FloatMatrix, FusedNorm, Groups, Matrix,
    Queries, Repack, RouterChoice, RouterInput, RowSampling, Sample, SamplePart, SampleState, matvec_kernel,
};
use crate::{Error, Result};

/// Bytes of a matrix that are on the device in file layout at a time while it is repacked, unless said otherwise.
const STAGE_BYTES: usize = 64 << 20;

/// Runs the forward on a device.
#[derive(Clone, Debug)]
pub struct Gpu<D: Device> {
    device: D,
    /// Bytes of a matrix in file layout on the device at a time.
    staging: usize,
}

/// A matrix, or a stack of experts' matrices, on a device.
#[derive(Debug)]
#[non_exhaustive]
pub enum Weight<D: Device> {
    /// Of quantized blocks, in tiles.
    Blocks(Matrix<D>),
    /// Of floats, as in the file.
    Floats(FloatMatrix<D>),
}

/// An embedding table on a device, in file layout.
#[derive(Debug)]
pub struct Table<D: Device> {
    bytes: Buffer<D, u8>,
    kind: TensorType,
    vocab: usize,
    cols: usize,
}

/// Router results of a batch on a device.
#[derive(Debug)]
pub struct Routing<D: Device> {
    shape: RoutingShape,
    logits: Buffer<D, f32>,
    indices: Buffer<D, u32>,
    weights: Buffer<D, f32>,
    done: Buffer<D, u32>,
    groups: Groups<D>,
}

/// Keys and values of all layers on a device, and the workspace of attention.
#[derive(Debug)]
pub struct Cache<D: Device> {
    shape: CacheShape,
    keys: Vec<Buffer<D, u8>>,
    values: Vec<Buffer<D, u8>>,
    workspace: Buffer<D, u8>,
}

impl<D: Device> Cache<D> {
    /// Where a page's keys, and its values, are in the bytes of a layer, and how many they are.
    fn page_at(&self, page: usize) -> Result<(usize, usize)> {
        let bytes = self.shape.element_bytes();
        let elements = self.shape.page_at(0, page)?;
        Ok((elements.start * bytes, elements.len() * bytes))
    }
}

/// Tokens of the next forward and where they are, on a device.
#[derive(Debug)]
pub struct Input<D: Device> {
    shape: InputShape,
    /// What the host knows of the batch, and recorded launches depend on.
    count: usize,
    singles: usize,
    reach: usize,
    /// The batch's tokens, then its positions, then its sequences.
    batch: Buffer<D, u32>,
    /// `[sequences, pages of a sequence]`.
    pages: Buffer<D, u32>,
    /// `[sequences, capacity]`, by row and position: the token chosen from its logits.
    choices: Buffer<D, u32>,
    partial: Buffer<D, u64>,
    done: Buffer<D, u32>,
}

impl<D: Device> Input<D> {
    /// The ids of the batch's first tokens.
    fn tokens(&self, tokens: usize) -> Result<Slice<'_, u32>> {
        self.batch.part(0, self.count)?.part(0, tokens)
    }

    /// The batch's first tokens as kernels take them, in a cache of so many pages.
    fn batch(&self, tokens: usize, pool_pages: usize) -> Result<kernels::Batch<'_>> {
        let Self { count, singles, reach, ref batch, ref pages, .. } = *self;
        let InputShape { sequences, capacity, .. } = self.shape;
        let operands = [batch.part(count, count)?, batch.part(2 * count, count)?, pages.slice()];
        let batch = kernels::Batch::new(operands, [tokens, sequences], [capacity, pool_pages]);
        Ok(batch.reach(reach).singles(singles.min(tokens)))
    }
}

/// How the tokens of rows of logits are drawn, on a device.
#[derive(Debug)]
pub struct Sampler<D: Device> {
    shape: SamplerShape,
    sampling: Buffer<D, RowSampling>,
    /// `[rows]`: of the logits, where no batch has them.
    position: Buffer<D, u32>,
    /// `[rows, shape.history]`.
    history: Buffer<D, u32>,
    out: Buffer<D, u32>,
    state: Buffer<D, SampleState>,
    parts: Buffer<D, SamplePart>,
}

impl<D: Device> Sampler<D> {
    /// Where the token that was chosen from the logits of a position is in a row of the history.
    fn at(&self, position: usize) -> usize {
        position % self.shape.history
    }
}

/// Places for the results of argmax.
#[derive(Debug)]
pub struct ArgmaxBuffers<D: Device> {
    out: Buffer<D, u32>,
    partial: Buffer<D, u64>,
    done: Buffer<D, u32>,
}

impl<D: Device> ArgmaxBuffers<D> {
    /// Room for `rows` rows.
    pub fn new(device: &D, rows: usize) -> Result<Self> {
        Ok(Self {
            out: Buffer::zeroed(device, rows)?,
            partial: Buffer::zeroed(device, rows)?,
            done: Buffer::zeroed(device, rows)?,
        })
    }
}

impl<D: Device> Gpu<D> {
    /// A backend over a device and its queue.
    pub fn new(device: D) -> Self {
        Self { device, staging: STAGE_BYTES }
    }

    /// The same backend, which loads matrices in parts of about so many bytes: of one expert's matrix at least.
    pub fn with_staging(self, bytes: usize) -> Self {
        Self { staging: bytes, ..self }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    fn fuses_norm(&self, tokens: usize, cols: usize) -> bool {
        tokens == 1 && fuses_norm(cols, self.device.slow_fp64())
    }

    fn product(
        &self,
        w: &Weight<D>,
        x: &Rows<'_, Self>,
        tokens: usize,
        y: &mut Buffer<D, f32>,
        add: bool,
        product: Option<&mut Buffer<D, f32>>,
    ) -> Result<()> {
        let product = product.map(Buffer::slice_mut);
        match w {
            Weight::Blocks(w) => kernels::Matvec::new(w, x.fixed.slice(), y.slice_mut(), tokens)
                .accumulate(add)
                .product(product)
                .launch(&self.device),
            Weight::Floats(w) => kernels::FloatMatvec::new(w, floats_of(x)?.slice(), y.slice_mut(), tokens)
                .accumulate(add)
                .product(product)
                .launch(&self.device),
        }
    }

    /// [`Backend::moe_swiglu`] where a matrix is of floats: each half with a kernel of its own, the second of which makes the result.
    fn float_swiglu(&self, operands: Swiglu<'_, Self>, routing: &Routing<D>, tokens: usize) -> Result<()> {
        let top_k = routing.shape.top_k;
        let pairs = tokens * top_k;
        let Swiglu { gate, up, x, out, gate_out: Some(gate_out), up_out: Some(up_out) } = operands else {
            return Err(Error::Invalid("SwiGLU of floats: the halves have no buffers".into()));
        };
        // Of a matrix of blocks there is the kernel of both halves, with the same one for both.
        let of_blocks = |w: &Matrix<D>, half: &mut Buffer<D, f32>, out: &mut Buffer<D, f32>| {
            let choose = Choose::Made(routing.indices.slice());
            kernels::MoeSwiglu::new([w, w], x.fixed.slice(), choose, &routing.groups, [tokens, top_k], out.slice_mut())
                .gate_out(half.slice_mut())
                .launch(&self.device)
        };
        let (rows, experts) = (floats_of(&x)?.slice(), routing.indices.slice());
        match (gate, up) {
            (Weight::Floats(gate), Weight::Blocks(up)) => {
                of_blocks(up, up_out, out)?;
                kernels::FloatMatvec::new(gate, rows, out.slice_mut(), pairs)
                    .experts(experts, top_k)
                    .up(up_out.slice())
                    .product(gate_out.slice_mut())
                    .launch(&self.device)
            }
            (gate, Weight::Floats(up)) => {
                match gate {
                    Weight::Blocks(gate) => of_blocks(gate, gate_out, out)?,
                    Weight::Floats(gate) => kernels::FloatMatvec::new(gate, rows, gate_out.slice_mut(), pairs)
                        .experts(experts, top_k)
                        .launch(&self.device)?,
                }
                kernels::FloatMatvec::new(up, rows, out.slice_mut(), pairs)
                    .experts(experts, top_k)
                    .gate(gate_out.slice())
                    .product(up_out.slice_mut())
                    .launch(&self.device)
            }
            (Weight::Blocks(_), Weight::Blocks(_)) => unreachable!("one of them is of floats"),
        }
    }
}

/// The activations that a matrix of floats takes.
fn floats_of<'a, D: Device>(x: &Rows<'a, Gpu<D>>) -> Result<&'a Buffer<D, f32>> {
    x.floats.ok_or_else(|| Error::Invalid("a matrix of floats: its activations are not there as floats".into()))
}

/// Bytes of one expert's matrix in the file, and how many of them are staged at a time, to fill the copy engine.
fn stage(tensor: &Tensor, staging: usize) -> (usize, usize) {
    let kind = tensor.kind();
    let expert_bytes = tensor.rows() * kind.bytes_of(tensor.cols());
    (expert_bytes, (staging / expert_bytes).clamp(1, tensor.experts()))
}

/// Whether the kernels that need the norm of a single token make it themselves.
fn fuses_norm(cols: usize, slow_fp64: bool) -> bool {
    cols <= FusedNorm::MAX_COLS && !slow_fp64
}

/// Bytes of weights that one decoded token reads, by the kernel that reads them: all matrices and vectors, of the experts
/// those that the token uses, of the embedding table one row. Which kernel reads the weights of norms depends on
/// [`Device::slow_fp64`].
pub fn weight_reads(config: &Config, tensors: &Tensors, slow_fp64: bool) -> BTreeMap<&'static str, u64> {
    let mut reads = BTreeMap::new();
    let mut add = |kernel: &'static str, bytes: u64| *reads.entry(kernel).or_default() += bytes;
    let fused = fuses_norm(config.padded_hidden(), slow_fp64);
    let norm_in = |kernel| if fused { kernel } else { "rms_norm" };
    let product_in = |kernel, w: &Tensor| if w.is_floats() { matvec_kernel(w.kind()) } else { kernel };
    let bytes = |tensor: &Tensor| tensor.byte_len() as u64;
    add("embedding", bytes(&tensors.embedding) / config.vocab as u64);
    for layer in &tensors.layers {
        let qkv = [&layer.q, &layer.k, &layer.v];
        // Beside a matrix of floats each one, and the norm, has a launch of its own.
        let alone = qkv.iter().any(|w| w.is_floats());
        add(if alone { "rms_norm" } else { norm_in("qkv") }, layer.attn_norm.f32_bytes());
        for matrix in qkv {
            add(if alone { matvec_kernel(matrix.kind()) } else { "qkv" }, bytes(matrix));
        }
        add("attention", layer.q_norm.f32_bytes() + layer.k_norm.f32_bytes());
        add(matvec_kernel(layer.attn_output.kind()), bytes(&layer.attn_output));
        add(norm_in("moe_router"), layer.ffn_norm.f32_bytes());
        add("moe_router", layer.router.f32_bytes());
        for (kernel, matrices) in [("moe_swiglu", &layer.gate), ("moe_swiglu", &layer.up), ("moe_down", &layer.down)] {
            add(product_in(kernel, matrices), bytes(matrices) / config.experts as u64 * config.top_k as u64);
        }
    }
    add("rms_norm", tensors.output_norm.f32_bytes());
    add(matvec_kernel(tensors.output.kind()), bytes(&tensors.output));
    reads
}

fn element_kind(element: CacheType) -> TensorType {
    match element {
        CacheType::F32 => TensorType::F32,
        CacheType::F16 => TensorType::F16,
    }
}

impl<D: Device> Backend for Gpu<D> {
    type Matrix = Weight<D>;
    type Table = Table<D>;
    type Floats = Buffer<D, f32>;
    type Fixed = Buffer<D, FixedBlock>;
    type Routing = Routing<D>;
    type Cache = Cache<D>;
    type Input = Input<D>;
    type Sampler = Sampler<D>;
    type Graph = D::Graph;

    fn name(&self) -> &'static str {
        self.device.name()
    }

    fn fork(&self) -> Result<Self> {
        // What the other queue still writes, such as weights, must be there before this one reads it.
        self.device.synchronize()?;
        Ok(Self { device: self.device.fork()?, ..*self })
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(Some(self.device.memory()?.0))
    }

    fn staging_bytes(&self, tensor: &Tensor) -> u64 {
        if tensor.is_floats() {
            return 0;
        }
        let (expert_bytes, group) = stage(tensor, self.staging);
        (expert_bytes * group) as u64
    }

    fn workspace_bytes(&self, shape: CacheShape) -> Result<u64> {
        let CacheShape { capacity, batch, heads, head_dim, .. } = shape;
        let bytes = kernels::Attention::workspace_bytes(&self.device, capacity, batch, heads, head_dim)?;
        Ok(bytes as u64)
    }

    fn takes_floats(&self, w: &Weight<D>) -> bool {
        matches!(w, Weight::Floats(_))
    }

    fn matrix(&self, tensor: &Tensor) -> Result<Weight<D>> {
        let (rows, cols, kind) = (tensor.rows(), tensor.cols(), tensor.kind());
        if tensor.is_floats() {
            let mut matrix = FloatMatrix::zeroed(&self.device, kind, rows, cols, tensor.experts())?;
            matrix.bytes_mut().write(&self.device, 0, tensor.bytes())?;
            return Ok(Weight::Floats(matrix));
        }
        let mut matrix = Matrix::zeroed(&self.device, kind, rows, cols, tensor.experts())?;
        let bytes = tensor.bytes();
        let (expert_bytes, group) = stage(tensor, self.staging);
        let mut stage = Buffer::<D, u8>::zeroed(&self.device, group * expert_bytes)?;
        for first in (0..tensor.experts()).step_by(group) {
            let experts = group.min(tensor.experts() - first);
            let Some(part) = bytes.get(first * expert_bytes..(first + experts) * expert_bytes) else {
                return Err(Error::Invalid(format!("tensor {}: too few bytes", tensor.name())));
            };
            stage.write(&self.device, 0, part)?;
            Repack::new(stage.slice(), matrix.tiles_of(first..first + experts)?, kind, [rows, cols])
                .experts(experts)
                .launch(&self.device)?;
        }
        // The stage is freed on return.
        self.device.synchronize()?;
        Ok(Weight::Blocks(matrix))
    }

    fn table(&self, tensor: &Tensor) -> Result<Table<D>> {
        Ok(Table {
            bytes: Buffer::from_slice(&self.device, tensor.bytes())?,
            kind: tensor.kind(),
            vocab: tensor.rows(),
            cols: tensor.cols(),
        })
    }

    fn floats_from(&self, values: &[f32]) -> Result<Buffer<D, f32>> {
        Buffer::from_slice(&self.device, values)
    }

    fn floats(&self, len: usize) -> Result<Buffer<D, f32>> {
        Buffer::zeroed(&self.device, len)
    }

    fn fixed(&self, blocks: usize) -> Result<Buffer<D, FixedBlock>> {
        Buffer::zeroed(&self.device, blocks)
    }

    fn routing(&self, shape: RoutingShape) -> Result<Routing<D>> {
        let RoutingShape { tokens, experts, top_k, .. } = shape;
        Ok(Routing {
            shape,
            logits: Buffer::zeroed(&self.device, tokens * experts)?,
            indices: Buffer::zeroed(&self.device, tokens * top_k)?,
            weights: Buffer::zeroed(&self.device, tokens * top_k)?,
            done: Buffer::zeroed(&self.device, tokens)?,
            groups: Groups::new(&self.device, tokens, experts, top_k)?,
        })
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache<D>> {
        let bytes = shape.pages * shape.page_len() * shape.element_bytes();
        let layers = || (0..shape.layers).map(|_| Buffer::zeroed(&self.device, bytes)).collect::<Result<Vec<_>>>();
        let workspace = Buffer::zeroed(&self.device, self.workspace_bytes(shape)? as usize)?;
        Ok(Cache { shape, keys: layers()?, values: layers()?, workspace })
    }

    fn input(&self, shape: InputShape) -> Result<Input<D>> {
        let InputShape { tokens, sequences, capacity } = shape;
        Ok(Input {
            shape,
            count: 0,
            singles: 0,
            reach: 0,
            batch: Buffer::zeroed(&self.device, 3 * tokens)?,
            pages: Buffer::from_slice(&self.device, &vec![u32::MAX; sequences * shape.pages_of_sequence()])?,
            choices: Buffer::zeroed(&self.device, sequences * capacity)?,
            partial: Buffer::zeroed(&self.device, sequences)?,
            done: Buffer::zeroed(&self.device, sequences)?,
        })
    }

    fn set_batch(&self, input: &mut Input<D>, batch: &Batch<'_>) -> Result<()> {
        batch.check(input.shape)?;
        (input.count, input.singles, input.reach) = (batch.tokens.len(), batch.singles, batch.reach);
        input.batch.write(&self.device, 0, &[batch.tokens, batch.positions, batch.sequences].concat())
    }

    fn set_pages(&self, input: &mut Input<D>, sequence: usize, first: usize, pages: &[u32]) -> Result<()> {
        let at = input.shape.pages_at(sequence, first, pages.len())?;
        input.pages.write(&self.device, at, pages)
    }

    fn copy_page(&self, cache: &mut Cache<D>, from: usize, to: usize) -> Result<()> {
        let ((from, len), (to, _)) = (cache.page_at(from)?, cache.page_at(to)?);
        let mut parts = cache.keys.iter_mut().chain(&mut cache.values);
        parts.try_for_each(|buffer| buffer.copy_within(&self.device, to, from, len))
    }

    fn read_page(&self, cache: &Cache<D>, page: usize) -> Result<Vec<u8>> {
        let (at, len) = cache.page_at(page)?;
        let mut bytes = vec![0; cache.shape.page_bytes()];
        let parts = cache.keys.iter().zip(&cache.values).flat_map(|(keys, values)| [keys, values]);
        for (buffer, part) in parts.zip(bytes.chunks_exact_mut(len)) {
            buffer.read(&self.device, at, part)?;
        }
        Ok(bytes)
    }

    fn write_page(&self, cache: &mut Cache<D>, page: usize, bytes: &[u8]) -> Result<()> {
        let (at, _) = cache.page_at(page)?;
        let from = cache.shape.parts_of(bytes)?;
        let parts = cache.keys.iter_mut().zip(&mut cache.values).flat_map(|(keys, values)| [keys, values]);
        for (buffer, part) in parts.zip(from) {
            buffer.write(&self.device, at, part)?;
        }
        Ok(())
    }

    fn read(&self, buffer: &Buffer<D, f32>, from: usize, out: &mut [f32]) -> Result<()> {
        buffer.read(&self.device, from, out)
    }

    fn read_indices(&self, routing: &Routing<D>, tokens: usize) -> Result<Vec<u32>> {
        let mut indices = vec![0; tokens * routing.shape.top_k];
        routing.indices.read(&self.device, 0, &mut indices)?;
        Ok(indices)
    }

    fn read_weights(&self, routing: &Routing<D>, tokens: usize) -> Result<Vec<f32>> {
        let mut weights = vec![0.0; tokens * routing.shape.top_k];
        routing.weights.read(&self.device, 0, &mut weights)?;
        Ok(weights)
    }

    fn read_router_logits(&self, routing: &Routing<D>, tokens: usize) -> Result<Vec<f32>> {
        let mut logits = vec![0.0; tokens * routing.shape.experts];
        routing.logits.read(&self.device, 0, &mut logits)?;
        Ok(logits)
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn embedding(&self, table: &Table<D>, input: &Input<D>, tokens: usize, out: &mut Buffer<D, f32>) -> Result<()> {
        kernels::Embedding::new(
            table.bytes.slice(),
            table.kind,
            [table.vocab, table.cols],
            input.tokens(tokens)?,
            tokens,
            out.slice_mut(),
        )
        .launch(&self.device)
    }

    fn rms_norm(
        &self,
        x: &Buffer<D, f32>,
        weight: &Buffer<D, f32>,
        eps: f32,
        [tokens, width]: [usize; 2],
        out: Option<&mut Buffer<D, f32>>,
        fixed: Option<&mut Buffer<D, FixedBlock>>,
    ) -> Result<()> {
        kernels::RmsNorm::new(x.slice(), weight.slice(), eps, [tokens, weight.len()])
            .width(width)
            .out(out.map(Buffer::slice_mut))
            .fixed(fixed.map(Buffer::slice_mut))
            .launch(&self.device)
    }

    fn norm_qkv(&self, operands: NormQkv<'_, Self>, tokens: usize) -> Result<()> {
        let NormQkv { hidden, weight, eps, width, mut normed, fixed, w, y } = operands;
        let [Weight::Blocks(q), Weight::Blocks(k), Weight::Blocks(v)] = w else {
            self.rms_norm(hidden, weight, eps, [tokens, width], normed.as_deref_mut(), Some(&mut *fixed))?;
            let x = Rows { fixed, floats: normed.as_deref() };
            let mut products: Vec<_> = w.into_iter().zip(y).collect();
            // Attention relies on the kernel of floats right before it (`Queries::Fused`).
            products.sort_by_key(|(w, _)| self.takes_floats(w));
            return products.into_iter().try_for_each(|(w, y)| self.product(w, &x, tokens, y, false, None));
        };
        let fused = self.fuses_norm(tokens, weight.len());
        if !fused {
            self.rms_norm(hidden, weight, eps, [tokens, width], normed.as_deref_mut(), Some(&mut *fixed))?;
        }
        let x = if fused {
            let out = normed.map(Buffer::slice_mut);
            Activations::Norm(FusedNorm::new(hidden.slice(), weight.slice(), eps, width).out(out))
        } else {
            Activations::Fixed(fixed.slice())
        };
        kernels::Qkv::new([q, k, v], x, y.map(Buffer::slice_mut), tokens).launch(&self.device)
    }

    fn attention(
        &self,
        operands: Attention<'_, Self>,
        input: &Input<D>,
        tokens: usize,
        cache: &mut Cache<D>,
        layer: usize,
    ) -> Result<()> {
        let CacheShape { pages, kv_heads, head_dim, element, .. } = cache.shape;
        let Attention { q, k, v, q_weight, k_weight, table, heads, eps, rotated, .. } = operands;
        let Attention { q_normed, k_normed, k_out, fixed, out, scores, .. } = operands;
        let (k_cache, v_cache) = (&mut cache.keys[layer], &mut cache.values[layer]);
        let batch = input.batch(tokens, pages)?;
        let rope = kernels::Rope::new(
            [q.slice(), k.slice(), v.slice()],
            rotated.slice_mut(),
            table.slice(),
            batch,
            CacheMut::new([k_cache.slice_mut(), v_cache.slice_mut()], element_kind(element), [kv_heads, head_dim]),
            heads,
            eps,
        )
        .q_weight(q_weight.slice())
        .k_weight(k_weight.slice())
        .q_normed(q_normed.map(Buffer::slice_mut))
        .k_normed(k_normed.map(Buffer::slice_mut))
        .k_out(k_out.map(Buffer::slice_mut));
        let queries = if tokens == 1 {
            // The launch before is the last one of `norm_qkv`.
            Queries::fused(rope, true)
        } else {
            rope.launch(&self.device)?;
            Queries::rotated(rotated.slice(), [k_cache.slice(), v_cache.slice()], batch)
        };
        kernels::Attention::new(
            queries,
            cache.workspace.slice_mut(),
            element_kind(element),
            [kv_heads, head_dim],
            heads,
            crate::oracle::attention::scale(head_dim),
        )
        .out(out.map(Buffer::slice_mut))
        .fixed(fixed.slice_mut())
        .scores(scores.map(Buffer::slice_mut))
        .launch(&self.device)
    }

    fn matvec(&self, w: &Weight<D>, x: Rows<'_, Self>, tokens: usize, y: &mut Buffer<D, f32>) -> Result<()> {
        self.product(w, &x, tokens, y, false, None)
    }

    fn matvec_add(
        &self,
        w: &Weight<D>,
        x: Rows<'_, Self>,
        tokens: usize,
        hidden: &mut Buffer<D, f32>,
        product: Option<&mut Buffer<D, f32>>,
    ) -> Result<()> {
        self.product(w, &x, tokens, hidden, true, product)
    }

    fn norm_router(&self, operands: NormRouter<'_, Self>, tokens: usize, routing: &mut Routing<D>) -> Result<()> {
        let RoutingShape { experts, top_k, weighting, .. } = routing.shape;
        let NormRouter { hidden, weight, eps, width, router, normed, fixed, choose } = operands;
        let cols = weight.len();
        // The pairs of a single token are its experts: nothing has to be grouped, and the choice can wait for moe_swiglu.
        let fused = self.fuses_norm(tokens, cols);
        if !fused {
            self.rms_norm(hidden, weight, eps, [tokens, width], Some(&mut *normed), Some(&mut *fixed))?;
        }
        let x = if fused {
            let norm = FusedNorm::new(hidden.slice(), weight.slice(), eps, width).out(normed.slice_mut());
            RouterInput::Norm(norm, fixed.slice_mut())
        } else {
            RouterInput::Rows(normed.slice())
        };
        let choice =
            RouterChoice::new(routing.indices.slice_mut(), routing.weights.slice_mut(), routing.done.slice_mut());
        kernels::MoeRouter::new(x, router.slice(), [experts, cols], routing.logits.slice_mut(), tokens, top_k)
            .choice((choose || tokens > 1).then_some(choice))
            .weighting(weighting)
            .launch(&self.device)?;
        if tokens == 1 {
            return Ok(());
        }
        kernels::MoeGroup::new(routing.indices.slice(), &mut routing.groups, [tokens, top_k], experts)
            .launch(&self.device)
    }

    fn moe_swiglu(&self, operands: Swiglu<'_, Self>, routing: &mut Routing<D>, tokens: usize) -> Result<()> {
        let (Weight::Blocks(gate), Weight::Blocks(up)) = (operands.gate, operands.up) else {
            return self.float_swiglu(operands, routing, tokens);
        };
        let choose = if tokens == 1 {
            Choose::here(routing.logits.slice(), routing.indices.slice_mut(), routing.weights.slice_mut())
                .weighting(routing.shape.weighting)
        } else {
            Choose::Made(routing.indices.slice())
        };
        kernels::MoeSwiglu::new(
            [gate, up],
            operands.x.fixed.slice(),
            choose,
            &routing.groups,
            [tokens, routing.shape.top_k],
            operands.out.slice_mut(),
        )
        .gate_out(operands.gate_out.map(Buffer::slice_mut))
        .up_out(operands.up_out.map(Buffer::slice_mut))
        .launch(&self.device)
    }

    fn moe_down(&self, operands: Down<'_, Self>, routing: &Routing<D>, tokens: usize) -> Result<()> {
        let Down { down, x, fixed, hidden, expert_out, sum } = operands;
        let top_k = routing.shape.top_k;
        let down = match down {
            Weight::Blocks(down) => down,
            Weight::Floats(down) => {
                return kernels::FloatMatvec::new(down, x.slice(), hidden.slice_mut(), tokens)
                    .experts(routing.indices.slice(), 1)
                    .weighted(routing.weights.slice(), top_k)
                    .accumulate(true)
                    .product(expert_out.slice_mut())
                    .sum(sum.map(Buffer::slice_mut))
                    .launch(&self.device);
            }
        };
        let fused = tokens == 1 && top_k * (down.cols() / BLOCK) <= DownInput::MAX_BLOCKS;
        if !fused {
            kernels::Quantize::new(x.slice(), fixed.slice_mut(), [tokens * top_k, down.cols()]).launch(&self.device)?;
        }
        kernels::MoeDown::new(
            down,
            if fused { DownInput::Rows(x.slice()) } else { DownInput::Fixed(fixed.slice()) },
            (routing.indices.slice(), routing.weights.slice()),
            &routing.groups,
            [tokens, top_k],
            expert_out.slice_mut(),
            hidden.slice_mut(),
        )
        .accumulate(true)
        .sum(sum.map(Buffer::slice_mut))
        .launch(&self.device)
    }

    fn copy_rows(&self, x: &Buffer<D, f32>, rows: &[u32], cols: usize, out: &mut Buffer<D, f32>) -> Result<()> {
        let mut to = 0;
        for run in rows.chunk_by(|&a, &b| a.checked_add(1) == Some(b)) {
            out.copy_from(&self.device, to * cols, x, run[0] as usize * cols, run.len() * cols)?;
            to += run.len();
        }
        Ok(())
    }

    fn feed_back(&self, logits: &Buffer<D, f32>, rows: usize, vocab: usize, input: &mut Input<D>) -> Result<()> {
        let Input { count, batch, choices, .. } = input;
        if rows > *count {
            return Err(Error::Invalid(format!("{rows} rows fed back to a batch of {count} tokens")));
        }
        let (tokens, behind) = batch.slice_mut().split_at(*count)?;
        // History of `rows` rows: those of the others are behind it.
        let choices = choices.part_mut(0, rows * input.shape.capacity)?;
        let feed = DecodeLoop::new(behind, choices);
        kernels::Argmax::new(logits.slice(), tokens, input.partial.slice_mut(), input.done.slice_mut(), [rows, vocab])
            .feed(feed)
            .launch(&self.device)
    }

    fn read_choices(&self, input: &Input<D>, row: usize, from: usize, count: usize) -> Result<Vec<u32>> {
        let mut choices = vec![0; count];
        input.choices.read(&self.device, input.shape.choices_at(row, from, count)?, &mut choices)?;
        Ok(choices)
    }

    fn sampler(&self, shape: SamplerShape) -> Result<Sampler<D>> {
        let SamplerShape { rows, vocab, history } = shape;
        if history == 0 {
            return Err(Error::Invalid("sampler: a history of no tokens".into()));
        }
        Ok(Sampler {
            shape,
            sampling: Buffer::zeroed(&self.device, rows)?,
            position: Buffer::zeroed(&self.device, rows)?,
            history: Buffer::zeroed(&self.device, rows * history)?,
            out: Buffer::zeroed(&self.device, rows)?,
            state: Buffer::zeroed(&self.device, rows)?,
            parts: Buffer::zeroed(&self.device, rows * Sample::parts(vocab))?,
        })
    }

    fn set_draws(&self, sampler: &mut Sampler<D>, draws: &[Draw<'_>]) -> Result<()> {
        sampler.shape.check(draws)?;
        let samplings: Vec<RowSampling> = draws.iter().map(|draw| RowSampling::from(&draw.sampling)).collect();
        let positions: Vec<u32> = draws.iter().map(|draw| draw.position as u32).collect();
        sampler.sampling.write(&self.device, 0, &samplings)?;
        sampler.position.write(&self.device, 0, &positions)?;
        if !draws.iter().any(|draw| draw.sampling.penalises()) {
            return Ok(());
        }
        let history = sampler.shape.history;
        let mut tokens = vec![0; draws.len() * history];
        for (row, draw) in tokens.chunks_exact_mut(history).zip(draws) {
            for (back, &token) in draw.before.iter().rev().take(history).enumerate() {
                // The token at a position was chosen from the logits of the one before.
                row[sampler.at(draw.position + history - 1 - back)] = token;
            }
        }
        sampler.history.write(&self.device, 0, &tokens)
    }

    fn sample(&self, logits: &Buffer<D, f32>, rows: usize, sampler: &mut Sampler<D>) -> Result<Vec<u32>> {
        let SamplerShape { vocab, history, .. } = sampler.shape;
        let Sampler { sampling, position, history: tokens, out, state, parts, .. } = sampler;
        let memory = (state.slice_mut(), parts.slice_mut());
        Sample::new(logits.slice(), (sampling.slice(), position.slice_mut()), out.slice_mut(), memory, [rows, vocab])
            .history(tokens.slice_mut(), history)
            .launch(&self.device)?;
        let mut drawn = vec![0; rows];
        out.read(&self.device, 0, &mut drawn)?;
        Ok(drawn)
    }

    fn feed_back_drawn(
        &self,
        logits: &Buffer<D, f32>,
        rows: usize,
        input: &mut Input<D>,
        sampler: &mut Sampler<D>,
    ) -> Result<()> {
        let SamplerShape { vocab, history, .. } = sampler.shape;
        let Sampler { sampling, history: drawn, state, parts, .. } = sampler;
        let Input { count, batch, .. } = input;
        if rows > *count {
            return Err(Error::Invalid(format!("{rows} rows fed back to a batch of {count} tokens")));
        }
        let (tokens, positions) = batch.slice_mut().split_at(*count)?;
        let memory = (state.slice_mut(), parts.slice_mut());
        Sample::new(logits.slice(), (sampling.slice(), positions), tokens, memory, [rows, vocab])
            .history(drawn.slice_mut(), history)
            .advance(true)
            .launch(&self.device)
    }

    fn read_drawn(&self, sampler: &Sampler<D>, row: usize, from: usize, count: usize) -> Result<Vec<u32>> {
        let SamplerShape { rows, history, .. } = sampler.shape;
        if row >= rows || count > history {
            return Err(Error::Invalid(format!(
                "sampler of {rows} rows: {count} tokens of row {row}, {history} are kept"
            )));
        }
        let mut all = vec![0; history];
        sampler.history.read(&self.device, row * history, &mut all)?;
        Ok((from..from + count).map(|position| all[sampler.at(position)]).collect())
    }

    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<D::Graph>> {
        self.device.record(enqueue)
    }

    unsafe fn replay(&self, graph: &mut D::Graph) -> Result<()> {
        // SAFETY: the caller's promise is the device's.
        unsafe { self.device.replay(graph) }
    }

    fn argmax(&self, x: &Buffer<D, f32>, rows: usize, cols: usize) -> Result<Vec<u32>> {
        let mut buffers = ArgmaxBuffers::new(&self.device, rows)?;
        kernels::Argmax::new(
            x.slice(),
            buffers.out.slice_mut(),
            buffers.partial.slice_mut(),
            buffers.done.slice_mut(),
            [rows, cols],
        )
        .launch(&self.device)?;
        let mut out = vec![0; rows];
        buffers.out.read(&self.device, 0, &mut out)?;
        Ok(out)
    }
}
