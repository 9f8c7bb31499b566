//! The GPU backend: the forward's operations as kernel launches on a [`Device`].

use std::collections::BTreeMap;

use super::backend::{
    Attention, Backend, CacheShape, CacheType, Down, NormQkv, NormRouter, RoutingShape, Rows, Swiglu,
};
use super::config::Config;
use super::weights::{Tensor, Tensors};
use crate::blocks::{BLOCK, TensorType};
use crate::device::{Buffer, Device};
use crate::kernels::{
    self, Activations, CacheMut, Choose, DecodeLoop, DownInput, FixedBlock, FloatMatrix, FusedNorm, Groups, Matrix,
    Queries, Repack, RouterChoice, RouterInput, matvec_kernel,
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

/// Tokens of the next forward and their first position, on a device.
#[derive(Debug)]
pub struct Input<D: Device> {
    tokens: Buffer<D, u32>,
    start: Buffer<D, u32>,
    /// By position: the token chosen from its logits.
    choices: Buffer<D, u32>,
    partial: Buffer<D, u64>,
    done: Buffer<D, u32>,
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
    let expert_bytes = tensor.rows() * (tensor.cols() / kind.block_len()) * kind.block_bytes();
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
    let fused = fuses_norm(config.hidden, slow_fp64);
    let norm_in = |kernel| if fused { kernel } else { "rms_norm" };
    let product_in = |kernel, w: &Tensor| if w.is_floats() { matvec_kernel(w.kind()) } else { kernel };
    let bytes = |tensor: &Tensor| tensor.bytes().len() as u64;
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
        let bytes = shape.capacity * shape.kv_heads * shape.head_dim * element_kind(shape.element).block_bytes();
        let layers = || (0..shape.layers).map(|_| Buffer::zeroed(&self.device, bytes)).collect::<Result<Vec<_>>>();
        let workspace = Buffer::zeroed(&self.device, self.workspace_bytes(shape)? as usize)?;
        Ok(Cache { shape, keys: layers()?, values: layers()?, workspace })
    }

    fn input(&self, tokens: usize, capacity: usize) -> Result<Input<D>> {
        Ok(Input {
            tokens: Buffer::zeroed(&self.device, tokens)?,
            start: Buffer::zeroed(&self.device, 1)?,
            choices: Buffer::zeroed(&self.device, capacity)?,
            partial: Buffer::zeroed(&self.device, 1)?,
            done: Buffer::zeroed(&self.device, 1)?,
        })
    }

    fn set_input(&self, input: &mut Input<D>, tokens: &[u32], start: usize) -> Result<()> {
        input.tokens.write(&self.device, 0, tokens)?;
        input.start.write(&self.device, 0, &[start as u32])
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
            input.tokens.slice(),
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
        tokens: usize,
        out: Option<&mut Buffer<D, f32>>,
        fixed: Option<&mut Buffer<D, FixedBlock>>,
    ) -> Result<()> {
        kernels::RmsNorm::new(x.slice(), weight.slice(), eps, [tokens, weight.len()])
            .out(out.map(Buffer::slice_mut))
            .fixed(fixed.map(Buffer::slice_mut))
            .launch(&self.device)
    }

    fn norm_qkv(&self, operands: NormQkv<'_, Self>, tokens: usize) -> Result<()> {
        let NormQkv { hidden, weight, eps, mut normed, fixed, w, y } = operands;
        let [Weight::Blocks(q), Weight::Blocks(k), Weight::Blocks(v)] = w else {
            self.rms_norm(hidden, weight, eps, tokens, normed.as_deref_mut(), Some(&mut *fixed))?;
            let x = Rows { fixed, floats: normed.as_deref() };
            let mut products: Vec<_> = w.into_iter().zip(y).collect();
            // Attention relies on the kernel of floats right before it (`Queries::Fused`).
            products.sort_by_key(|(w, _)| self.takes_floats(w));
            return products.into_iter().try_for_each(|(w, y)| self.product(w, &x, tokens, y, false, None));
        };
        let fused = self.fuses_norm(tokens, weight.len());
        if !fused {
            self.rms_norm(hidden, weight, eps, tokens, normed.as_deref_mut(), Some(&mut *fixed))?;
        }
        let x = if fused {
            let out = normed.map(Buffer::slice_mut);
            Activations::Norm(FusedNorm::new(hidden.slice(), weight.slice(), eps).out(out))
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
        let CacheShape { capacity, kv_heads, head_dim, element, .. } = cache.shape;
        let Attention { q, k, v, q_weight, k_weight, table, heads, eps, rotated, .. } = operands;
        let Attention { q_normed, k_normed, k_out, fixed, out, scores, .. } = operands;
        let (k_cache, v_cache) = (&mut cache.keys[layer], &mut cache.values[layer]);
        let rope = kernels::Rope::new(
            [q.slice(), k.slice(), v.slice()],
            rotated.slice_mut(),
            table.slice(),
            input.start.slice(),
            CacheMut::new(
                [k_cache.slice_mut(), v_cache.slice_mut()],
                element_kind(element),
                [capacity, kv_heads, head_dim],
            ),
            [tokens, heads],
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
            Queries::rotated(rotated.slice(), [k_cache.slice(), v_cache.slice()], input.start.slice())
        };
        kernels::Attention::new(
            queries,
            cache.workspace.slice_mut(),
            element_kind(element),
            [capacity, kv_heads, head_dim],
            [tokens, heads],
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
        let NormRouter { hidden, weight, eps, router, normed, fixed, choose } = operands;
        let cols = weight.len();
        // The pairs of a single token are its experts: nothing has to be grouped, and the choice can wait for moe_swiglu.
        let fused = self.fuses_norm(tokens, cols);
        if !fused {
            self.rms_norm(hidden, weight, eps, tokens, Some(&mut *normed), Some(&mut *fixed))?;
        }
        let x = if fused {
            let norm = FusedNorm::new(hidden.slice(), weight.slice(), eps).out(normed.slice_mut());
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

    fn copy_rows(
        &self,
        x: &Buffer<D, f32>,
        row: usize,
        rows: usize,
        cols: usize,
        out: &mut Buffer<D, f32>,
    ) -> Result<()> {
        out.copy_from(&self.device, 0, x, row * cols, rows * cols)
    }

    fn feed_back(&self, logits: &Buffer<D, f32>, vocab: usize, input: &mut Input<D>) -> Result<()> {
        let feed = DecodeLoop::new(input.start.slice_mut(), input.choices.slice_mut());
        kernels::Argmax::new(
            logits.slice(),
            input.tokens.part_mut(0, 1)?,
            input.partial.slice_mut(),
            input.done.slice_mut(),
            [1, vocab],
        )
        .feed(feed)
        .launch(&self.device)
    }

    fn read_choices(&self, input: &Input<D>, from: usize, count: usize) -> Result<Vec<u32>> {
        let mut choices = vec![0; count];
        input.choices.read(&self.device, from, &mut choices)?;
        Ok(choices)
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
