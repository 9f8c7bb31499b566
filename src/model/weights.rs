//! The tensors of a Qwen3-MoE model: handles into the file, checked against the configuration, and what a backend made
//! of them.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::backend::Backend;
use super::config::{self, Config, padded};
use crate::blocks::{Blocks, TensorType};
use crate::gguf::{Gguf, Quoted};
use crate::oracle::embedding::dequantize;
use crate::{Error, Result, sys};

/// A tensor of an open file: a handle that is cheap to clone and keeps the file open.
///
/// Widths are those of whole blocks of 256. Where the file's is none, the tensor is continued with zeros: its bytes are a copy then, which
/// is made when they are first asked for, and which clones of the tensor that are made later share.
#[derive(Clone)]
pub struct Tensor {
    gguf: Arc<Gguf>,
    name: Arc<str>,
    kind: TensorType,
    rows: usize,
    cols: usize,
    experts: usize,
    /// Rows and columns in the file.
    in_file: [usize; 2],
    padded: OnceLock<Arc<Vec<u8>>>,
}

impl Tensor {
    /// The tensor `name` of the file as `[experts][rows, cols]`, where rows of blocks are continued with zeros to a multiple of 256.
    ///
    /// `shape` is the shape that the configuration demands, rows first: `[cols]`, `[rows, cols]` or
    /// `[experts, rows, cols]`. `kinds` are the types that will do, `supported` their names.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`], [`Error::UnsupportedType`].
    pub fn find(
        gguf: &Arc<Gguf>,
        name: &str,
        shape: &[usize],
        kinds: &[TensorType],
        supported: &'static str,
    ) -> Result<Self> {
        let found = gguf.require_tensor(name)?;
        let expected: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        // Writers may drop or add dimensions of 1 at the front.
        let strip = |dims: &[u64]| dims.iter().copied().skip_while(|&n| n == 1).collect::<Vec<_>>();
        if strip(&found.shape()) != strip(&expected) {
            return Err(Error::WrongShape { tensor: name.into(), found: found.shape(), expected });
        }
        let kind = TensorType::try_from(found.ggml_type()).ok().filter(|kind| kinds.contains(kind));
        let Some(kind) = kind else {
            let found = found.ggml_type().name().into();
            return Err(Error::UnsupportedType { tensor: name.into(), found, supported });
        };
        let (experts, rows, in_row) = match *shape {
            [in_row] => (1, 1, in_row),
            [rows, in_row] => (1, rows, in_row),
            [experts, rows, in_row] => (experts, rows, in_row),
            _ => return Err(Error::Invalid(format!("tensor {name}: {} dimensions", shape.len()))),
        };
        let cols = if TensorType::FLOATS.contains(&kind) { in_row } else { padded(in_row) };
        let (gguf, name, in_file) = (gguf.clone(), name.into(), [rows, in_row]);
        Ok(Self { gguf, name, kind, rows, cols, experts, in_file, padded: OnceLock::new() })
    }

    /// The tensor continued with zeros to so many rows and columns, at least.
    fn continued(self, rows: usize, cols: usize) -> Self {
        Self { rows: self.rows.max(rows), cols: self.cols.max(cols), padded: OnceLock::new(), ..self }
    }

    /// The file's rows, of which so many columns have `elements(columns)`, continued with zeros to the columns and rows in memory.
    fn with_zeros<T: Copy + Default>(&self, data: &[T], elements: impl Fn(usize) -> usize) -> Vec<T> {
        let ([rows, in_row], row) = (self.in_file, elements(self.cols));
        let mut out = vec![T::default(); self.experts * self.rows * row];
        let (from, to) = (elements(in_row), self.rows * row);
        for (data, out) in data.chunks_exact(rows * from).zip(out.chunks_exact_mut(to)) {
            for (data, out) in data.chunks_exact(from).zip(out.chunks_exact_mut(row)) {
                out[..from].copy_from_slice(data);
            }
        }
        out
    }

    /// Its bytes in the file.
    fn file_bytes(&self) -> &[u8] {
        self.gguf.tensor(&self.name).map_or(&[], |tensor| tensor.data())
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its type.
    pub fn kind(&self) -> TensorType {
        self.kind
    }

    /// Rows of one expert's matrix (1 for a vector), with those of zeros.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights in a row, with the zeros behind the file's.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Matrices in the stack; 1 for a plain matrix or vector.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Its bytes, those in the file where it is not continued with zeros: `experts * rows * cols` weights in whole blocks. Not aligned to
    /// anything.
    pub fn bytes(&self) -> &[u8] {
        if self.in_file == [self.rows, self.cols] {
            return self.file_bytes();
        }
        self.padded.get_or_init(|| self.with_zeros(self.file_bytes(), |cols| self.kind.bytes_of(cols)).into())
    }

    /// How many bytes it has.
    pub fn byte_len(&self) -> usize {
        self.experts * self.rows * self.kind.bytes_of(self.cols)
    }

    /// Whether it has floats instead of blocks.
    pub fn is_floats(&self) -> bool {
        TensorType::FLOATS.contains(&self.kind)
    }

    /// The blocks of a quantized tensor, `[experts][rows][cols / 256]`; `None` for another type.
    pub fn blocks(&self) -> Option<Blocks<'_>> {
        Blocks::new(self.kind, self.bytes())
    }

    /// The values of a tensor of floats, in f32, which is exact.
    ///
    /// # Errors
    /// [`Error::UnsupportedType`] for another type, [`Error::Model`] for a value that is not finite.
    pub fn f32s(&self) -> Result<Vec<f32>> {
        if !self.is_floats() {
            let found = self.kind.name().into();
            return Err(Error::UnsupportedType { tensor: self.name().into(), found, supported: VECTOR.1 });
        }
        let [rows, in_row] = self.in_file;
        let mut values = vec![0.0; self.experts * rows * in_row];
        dequantize(self.kind, self.file_bytes(), &mut values);
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(Error::Model(format!("tensor {}: value {index} is {}", self.name, values[index]))),
            None if self.in_file == [self.rows, self.cols] => Ok(values),
            None => Ok(self.with_zeros(&values, |cols| cols)),
        }
    }

    /// Checks, in parallel, that every block's factors, or every float, is finite. Reads the whole tensor in the file.
    ///
    /// # Errors
    /// [`Error::Model`] naming the tensor and the first bad block or value.
    pub fn check_finite(&self) -> Result<()> {
        let (bytes, kind) = (self.file_bytes(), self.kind);
        let (what, bad) = if self.is_floats() {
            ("value", first_float_not_finite(bytes, kind))
        } else {
            ("block", first_not_finite(bytes, kind))
        };
        match bad {
            Some(index) => Err(Error::Model(format!("tensor {}: {what} {index} is not finite", self.name))),
            None => Ok(()),
        }
    }

    /// Bytes of its values in f32, as backends keep norms and routers.
    pub fn f32_bytes(&self) -> u64 {
        4 * (self.experts * self.rows * self.cols) as u64
    }

    /// Bytes that a backend's copy takes when matrices of blocks are stored in tiles, each padded to whole tiles of rows.
    pub fn tiled_bytes(&self) -> u64 {
        if self.is_floats() {
            return self.byte_len() as u64;
        }
        let rows = self.rows.next_multiple_of(sys::KQM_TILE_ROWS as usize);
        (self.experts * rows) as u64 * self.kind.bytes_of(self.cols) as u64
    }
}

/// The first block one of whose factors is not finite.
fn first_not_finite(bytes: &[u8], kind: TensorType) -> Option<usize> {
    let factors = kind.factors();
    let bad = |block: &[u8]| factors.iter().any(|factor| !factor.get(block).is_finite());
    bytes.par_chunks_exact(kind.block_bytes()).with_min_len(4096).position_first(bad)
}

/// The first float that is not finite.
fn first_float_not_finite(bytes: &[u8], kind: TensorType) -> Option<usize> {
    const AT_ONCE: usize = 4096;
    let bad = |(part, bytes): (usize, &[u8])| {
        let mut values = [0.0; AT_ONCE];
        let values = &mut values[..bytes.len() / kind.block_bytes()];
        dequantize(kind, bytes, values);
        values.iter().position(|value| !value.is_finite()).map(|index| part * AT_ONCE + index)
    };
    bytes.par_chunks(AT_ONCE * kind.block_bytes()).enumerate().find_map_first(bad)
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} [{}][{}, {}]", self.name, self.kind, self.experts, self.rows, self.cols)
    }
}

/// A dimension of a tensor, in the file and in memory.
#[derive(Clone, Copy)]
struct Dim {
    in_file: usize,
    in_memory: usize,
}

impl Dim {
    fn plain(n: usize) -> Self {
        Self { in_file: n, in_memory: n }
    }

    /// A width that is continued with zeros to whole blocks of 256.
    fn padded(n: usize) -> Self {
        Self { in_file: n, in_memory: padded(n) }
    }
}

/// Types that matrices and the embedding table may have.
const MATRIX: (&[TensorType], &str) = (TensorType::ALL, TensorType::ALL_NAMES);
/// Types that norms and routers may have.
const VECTOR: (&[TensorType], &str) = (TensorType::FLOATS, TensorType::FLOAT_NAMES);

/// Tensors of one layer, as they are in the file. A width of `hidden` or `expert_ff`, and rows of blocks, are continued with zeros to a
/// multiple of 256.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerTensors {
    /// `attn_norm`: `[hidden]`.
    pub attn_norm: Tensor,
    /// `attn_q`: `[heads * head_dim, hidden]`.
    pub q: Tensor,
    /// `attn_k`: `[kv_heads * head_dim, hidden]`.
    pub k: Tensor,
    /// `attn_v`: `[kv_heads * head_dim, hidden]`.
    pub v: Tensor,
    /// `attn_q_norm`: `[head_dim]`.
    pub q_norm: Tensor,
    /// `attn_k_norm`: `[head_dim]`.
    pub k_norm: Tensor,
    /// `attn_output`: `[hidden, heads * head_dim]`.
    pub attn_output: Tensor,
    /// `ffn_norm`: `[hidden]`.
    pub ffn_norm: Tensor,
    /// `ffn_gate_inp`: `[experts, hidden]`.
    pub router: Tensor,
    /// `ffn_gate_exps`: `[experts][expert_ff, hidden]`.
    pub gate: Tensor,
    /// `ffn_up_exps`: `[experts][expert_ff, hidden]`.
    pub up: Tensor,
    /// `ffn_down_exps`: `[experts][hidden, expert_ff]`.
    pub down: Tensor,
}

impl LayerTensors {
    /// Every tensor.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        [
            &self.attn_norm,
            &self.q,
            &self.k,
            &self.v,
            &self.q_norm,
            &self.k_norm,
            &self.attn_output,
            &self.ffn_norm,
            &self.router,
            &self.gate,
            &self.up,
            &self.down,
        ]
        .into_iter()
    }

    /// The norms, and the router, which backends keep in f32.
    pub fn vectors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.attn_norm, &self.q_norm, &self.k_norm, &self.ffn_norm, &self.router].into_iter()
    }

    /// The matrices.
    pub fn matrices(&self) -> impl Iterator<Item = &Tensor> {
        [&self.q, &self.k, &self.v, &self.attn_output, &self.gate, &self.up, &self.down].into_iter()
    }
}

/// Tensors of a model, as they are in the file but for the zeros of [`LayerTensors`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tensors {
    /// `token_embd`: `[vocab, hidden]`.
    pub embedding: Tensor,
    /// The layers.
    pub layers: Vec<LayerTensors>,
    /// `output_norm`: `[hidden]`.
    pub output_norm: Tensor,
    /// `output`, or `token_embd` when there is no such tensor: `[vocab, hidden]`.
    pub output: Tensor,
}

impl Tensors {
    /// Finds every tensor of the model and checks its shape and type. No data is read.
    ///
    /// # Errors
    /// The first of [`Self::read`].
    pub fn find(gguf: &Arc<Gguf>, config: &Config) -> Result<Self> {
        Self::read(gguf, config).map_err(config::first)
    }

    /// Finds every tensor of the model and checks its shape and type. No data is read.
    ///
    /// # Errors
    /// Everything that is wrong, at least one and of very many those of the first layers: [`Error::MissingTensor`],
    /// [`Error::WrongShape`], [`Error::UnsupportedType`]; [`Error::Model`] for a tensor that has no place in the model: leaving
    /// it out would compute something else.
    pub fn read(gguf: &Arc<Gguf>, config: &Config) -> Result<Self, Vec<Error>> {
        let mut search = Search { gguf, known: HashSet::new(), errors: Vec::new() };
        let [hidden, expert_ff] = [config.hidden, config.expert_ff].map(Dim::padded);
        let [head_dim, experts, vocab] = [config.head_dim, config.experts, config.vocab].map(Dim::plain);
        let [q_width, kv_width] = [config.q_width(), config.kv_width()].map(Dim::plain);
        let embedding = search.find("token_embd.weight", &[vocab, hidden], MATRIX);
        let mut layers = Vec::new();
        for number in 0..config.layers {
            let mut find =
                |part: &str, shape: &[Dim], kinds| search.find(&format!("blk.{number}.{part}.weight"), shape, kinds);
            let attn_norm = find("attn_norm", &[hidden], VECTOR);
            let q = find("attn_q", &[q_width, hidden], MATRIX);
            let k = find("attn_k", &[kv_width, hidden], MATRIX);
            let v = find("attn_v", &[kv_width, hidden], MATRIX);
            let q_norm = find("attn_q_norm", &[head_dim], VECTOR);
            let k_norm = find("attn_k_norm", &[head_dim], VECTOR);
            let attn_output = find("attn_output", &[hidden, q_width], MATRIX);
            let ffn_norm = find("ffn_norm", &[hidden], VECTOR);
            let router = find("ffn_gate_inp", &[experts, hidden], VECTOR);
            let gate = find("ffn_gate_exps", &[experts, expert_ff, hidden], MATRIX);
            let up = find("ffn_up_exps", &[experts, expert_ff, hidden], MATRIX);
            let down = find("ffn_down_exps", &[experts, hidden, expert_ff], MATRIX);
            layers.extend((|| {
                Some(LayerTensors {
                    attn_norm: attn_norm?,
                    q: q?,
                    k: k?,
                    v: v?,
                    q_norm: q_norm?,
                    k_norm: k_norm?,
                    attn_output: attn_output?,
                    ffn_norm: ffn_norm?,
                    router: router?,
                    gate: gate?,
                    up: up?,
                    down: down?,
                })
            })());
            if search.errors.len() >= MOST_ERRORS {
                return Err(search.errors);
            }
        }
        let output = if gguf.tensor("output.weight").is_some() { "output.weight" } else { "token_embd.weight" };
        let output_norm = search.find("output_norm.weight", &[hidden], VECTOR);
        let output = search.find(output, &[vocab, hidden], MATRIX);
        search.unknown();
        match (embedding, output_norm, output) {
            (Some(embedding), Some(output_norm), Some(output)) if search.errors.is_empty() => {
                Ok(Self { embedding, layers, output_norm, output })
            }
            _ => Err(search.errors),
        }
    }

    /// Every tensor. When the output is tied to the embedding, that tensor comes twice.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        [&self.embedding, &self.output_norm, &self.output]
            .into_iter()
            .chain(self.layers.iter().flat_map(LayerTensors::iter))
    }
}

/// Files say how many layers they have, and may say millions: no more is said of what they all lack.
const MOST_ERRORS: usize = 1200;

/// Finds tensors, and notes which ones, and what is wrong with them.
struct Search<'a> {
    gguf: &'a Arc<Gguf>,
    known: HashSet<String>,
    errors: Vec<Error>,
}

impl Search<'_> {
    fn find(&mut self, name: &str, shape: &[Dim], (kinds, supported): (&[TensorType], &'static str)) -> Option<Tensor> {
        self.known.insert(name.into());
        let in_file: Vec<usize> = shape.iter().map(|dim| dim.in_file).collect();
        let found = Tensor::find(self.gguf, name, &in_file, kinds, supported);
        let tensor = found.map_err(|error| self.errors.push(error)).ok()?;
        let in_memory = |from_last: usize| shape.iter().rev().nth(from_last).map_or(1, |dim| dim.in_memory);
        Some(tensor.continued(in_memory(1), in_memory(0)))
    }

    fn unknown(&mut self) {
        let unknown = self.gguf.tensors().filter(|tensor| !self.known.contains(tensor.name()));
        let errors =
            unknown.map(|tensor| Error::Model(format!("tensor {} has no place in the model", Quoted(tensor.name()))));
        self.errors.extend(errors.take(MOST_ERRORS));
    }
}

/// Weights of one layer. Shapes are those of [`LayerTensors`].
#[non_exhaustive]
pub struct LayerWeights<B: Backend> {
    /// `[hidden]`.
    pub attn_norm: B::Floats,
    /// `[heads * head_dim, hidden]`.
    pub q: B::Matrix,
    /// `[kv_heads * head_dim, hidden]`.
    pub k: B::Matrix,
    /// `[kv_heads * head_dim, hidden]`.
    pub v: B::Matrix,
    /// `[head_dim]`.
    pub q_norm: B::Floats,
    /// `[head_dim]`.
    pub k_norm: B::Floats,
    /// `[hidden, heads * head_dim]`.
    pub attn_output: B::Matrix,
    /// `[hidden]`.
    pub ffn_norm: B::Floats,
    /// `[experts, hidden]`.
    pub router: B::Floats,
    /// `[experts][expert_ff, hidden]`.
    pub gate: B::Matrix,
    /// `[experts][expert_ff, hidden]`.
    pub up: B::Matrix,
    /// `[experts][hidden, expert_ff]`.
    pub down: B::Matrix,
}

/// Weights of a model in a backend's memory.
#[non_exhaustive]
pub struct Weights<B: Backend> {
    /// `[vocab, hidden]`.
    pub embedding: B::Table,
    /// The layers.
    pub layers: Vec<LayerWeights<B>>,
    /// `[hidden]`.
    pub output_norm: B::Floats,
    /// `[vocab, hidden]`.
    pub output: B::Matrix,
}

impl<B: Backend> Weights<B> {
    /// Hands every tensor to the backend. With `check`, all matrices and the table are checked to be finite first; norms and routers always are.
    /// `progress` gets bytes done and bytes in all, after each tensor.
    ///
    /// # Errors
    /// What [`Tensor::check_finite`], [`Tensor::f32s`] and the backend report.
    pub fn load(tensors: &Tensors, backend: &B, check: bool, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let total = tensors.iter().map(|tensor| tensor.byte_len() as u64).sum();
        let mut done = 0;
        progress(done, total);
        let mut step = |tensor: &Tensor| {
            done += tensor.byte_len() as u64;
            progress(done, total);
        };
        let mut matrix = |tensor: &Tensor| {
            if check {
                tensor.check_finite()?;
            }
            // A copy with zeros is only kept by a backend that keeps the tensor.
            let matrix = backend.matrix(&tensor.clone())?;
            step(tensor);
            Ok::<_, Error>(matrix)
        };
        let floats = |tensor: &Tensor| backend.floats_from(&tensor.f32s()?);
        let layers = tensors
            .layers
            .iter()
            .map(|layer| {
                Ok(LayerWeights {
                    attn_norm: floats(&layer.attn_norm)?,
                    q: matrix(&layer.q)?,
                    k: matrix(&layer.k)?,
                    v: matrix(&layer.v)?,
                    q_norm: floats(&layer.q_norm)?,
                    k_norm: floats(&layer.k_norm)?,
                    attn_output: matrix(&layer.attn_output)?,
                    ffn_norm: floats(&layer.ffn_norm)?,
                    router: floats(&layer.router)?,
                    gate: matrix(&layer.gate)?,
                    up: matrix(&layer.up)?,
                    down: matrix(&layer.down)?,
                })
            })
            .collect::<Result<_>>()?;
        let output = matrix(&tensors.output)?;
        let output_norm = floats(&tensors.output_norm)?;
        if check {
            tensors.embedding.check_finite()?;
        }
        let embedding = backend.table(&tensors.embedding.clone())?;
        progress(total, total);
        Ok(Self { embedding, layers, output_norm, output })
    }
}
