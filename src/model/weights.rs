//! The tensors of a Qwen3-MoE model: handles into the file, checked against the configuration, and what a backend made
//! of them.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;

use super::backend::Backend;
use super::config::{self, Config};
use crate::blocks::{Blocks, TensorType};
use crate::gguf::{Gguf, Quoted};
use crate::oracle::embedding::dequantize;
use crate::{Error, Result, sys};

/// A tensor of an open file: a handle that is cheap to clone and keeps the file open.
#[derive(Clone)]
pub struct Tensor {
    gguf: Arc<Gguf>,
    name: Arc<str>,
    kind: TensorType,
    rows: usize,
    cols: usize,
    experts: usize,
}

impl Tensor {
    /// The tensor `name` of the file as `[experts][rows, cols]`.
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
        let (experts, rows, cols) = match *shape {
            [cols] => (1, 1, cols),
            [rows, cols] => (1, rows, cols),
            [experts, rows, cols] => (experts, rows, cols),
            _ => return Err(Error::Invalid(format!("tensor {name}: {} dimensions", shape.len()))),
        };
        Ok(Self { gguf: gguf.clone(), name: name.into(), kind, rows, cols, experts })
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its type.
    pub fn kind(&self) -> TensorType {
        self.kind
    }

    /// Rows of one expert's matrix (1 for a vector).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Matrices in the stack; 1 for a plain matrix or vector.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Its bytes in the file: `experts * rows * cols` weights in whole blocks. Not aligned to anything.
    pub fn bytes(&self) -> &[u8] {
        self.gguf.tensor(&self.name).map_or(&[], |tensor| tensor.data())
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
        let mut values = vec![0.0; self.experts * self.rows * self.cols];
        dequantize(self.kind, self.bytes(), &mut values);
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(Error::Model(format!("tensor {}: value {index} is {}", self.name, values[index]))),
            None => Ok(values),
        }
    }

    /// Checks, in parallel, that every block's factors, or every float, is finite. Reads the whole tensor.
    ///
    /// # Errors
    /// [`Error::Model`] naming the tensor and the first bad block or value.
    pub fn check_finite(&self) -> Result<()> {
        let (bytes, kind) = (self.bytes(), self.kind);
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
            return self.bytes().len() as u64;
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

/// Types that matrices and the embedding table may have.
const MATRIX: (&[TensorType], &str) = (TensorType::ALL, TensorType::ALL_NAMES);
/// Types that norms and routers may have.
const VECTOR: (&[TensorType], &str) = (TensorType::FLOATS, TensorType::FLOAT_NAMES);

/// Tensors of one layer, as they are in the file.
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

/// Tensors of a model, as they are in the file.
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
        let Config { hidden, head_dim, experts, expert_ff, vocab, .. } = *config;
        let (q_width, kv_width) = (config.q_width(), config.kv_width());
        let embedding = search.find("token_embd.weight", &[vocab, hidden], MATRIX);
        let mut layers = Vec::new();
        for number in 0..config.layers {
            let mut find =
                |part: &str, shape: &[usize], kinds| search.find(&format!("blk.{number}.{part}.weight"), shape, kinds);
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
    fn find(
        &mut self,
        name: &str,
        shape: &[usize],
        (kinds, supported): (&[TensorType], &'static str),
    ) -> Option<Tensor> {
        self.known.insert(name.into());
        Tensor::find(self.gguf, name, shape, kinds, supported).map_err(|error| self.errors.push(error)).ok()
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
        let total = tensors.iter().map(|tensor| tensor.bytes().len() as u64).sum();
        let mut done = 0;
        progress(done, total);
        let mut step = |tensor: &Tensor| {
            done += tensor.bytes().len() as u64;
            progress(done, total);
        };
        let mut matrix = |tensor: &Tensor| {
            if check {
                tensor.check_finite()?;
            }
            let matrix = backend.matrix(tensor)?;
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
        let embedding = backend.table(&tensors.embedding)?;
        progress(total, total);
        Ok(Self { embedding, layers, output_norm, output })
    }
}
