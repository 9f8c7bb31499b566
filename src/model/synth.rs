//! Synthetic models: files of a real model's exact shapes and types, with random weights of a realistic spread.
//!
//! A file depends on the options only. It is generated in parallel and written as a
//! stream; memory holds a few megabytes of it.

mod mix;

use std::path::Path;
use std::str::FromStr;

use half::{bf16, f16};
use rayon::prelude::*;

use super::config::{ARCHITECTURE, Config, RopeScaling};
use crate::blocks::{BLOCK, TensorType, Weights, bytes, with_weights};
use crate::gguf::Header;
use crate::oracle::moe_router::Weighting;
use crate::{Error, Result};

pub use mix::Mix;

/// Standard deviation of the weights of matrices, but for those below.
const SPREAD: f64 = 0.02;
/// Of the embedding table, and of the output projections of attention and of the experts. Attention adds nearly the same
/// to every token of a random model: were it not small next to the embedding and to what the experts add, all tokens
/// would choose the same experts.
const EMBEDDING_SPREAD: f64 = 1.0;
const ATTN_OUTPUT_SPREAD: f64 = 0.004;
const DOWN_SPREAD: f64 = 0.04;
/// Standard deviation of the router's weights: logits of a normalised row of 2048 have one of 2.
const ROUTER_SPREAD: f64 = 0.044;
/// Standard deviation of the norms' weights around 1.
const NORM_SPREAD: f64 = 0.1;
/// Elements (blocks, or floats) that one task generates, and tasks between two writes.
const TASK: usize = 1024;
const TASKS: usize = 64;

/// A model whose shape a synthetic one can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preset {
    /// The shape of the test model: 4 layers, 16 experts, hidden width 256; 9 MB.
    Tiny,
    /// Qwen3-Coder-30B-A3B: 48 layers, 128 experts, hidden width 2048; 18.6 GB.
    Qwen3_30bA3b,
    /// Qwen3-235B-A22B: 94 layers, 128 experts, hidden width 4096; 142 GB.
    Qwen3_235bA22b,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 3] = [Self::Tiny, Self::Qwen3_30bA3b, Self::Qwen3_235bA22b];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Qwen3_30bA3b => "qwen3-30b-a3b",
            Self::Qwen3_235bA22b => "qwen3-235b-a22b",
        }
    }

    /// Its hyperparameters.
    pub fn config(self) -> Config {
        match self {
            Self::Tiny => Config {
                layers: 4,
                hidden: 256,
                heads: 4,
                kv_heads: 2,
                head_dim: 128,
                experts: 16,
                top_k: 4,
                expert_ff: 256,
                weighting: Weighting::OfChosen,
                vocab: 2048,
                context_length: 4096,
                rms_eps: 1e-6,
                rope_base: 1e6,
                rope_scaling: RopeScaling::None,
            },
            Self::Qwen3_30bA3b => Config {
                layers: 48,
                hidden: 2048,
                heads: 32,
                kv_heads: 4,
                head_dim: 128,
                experts: 128,
                top_k: 8,
                expert_ff: 768,
                weighting: Weighting::OfChosen,
                vocab: 151_936,
                context_length: 262_144,
                rms_eps: 1e-6,
                rope_base: 1e7,
                rope_scaling: RopeScaling::None,
            },
            Self::Qwen3_235bA22b => Config {
                layers: 94,
                hidden: 4096,
                heads: 64,
                kv_heads: 4,
                head_dim: 128,
                experts: 128,
                top_k: 8,
                expert_ff: 1536,
                weighting: Weighting::OfChosen,
                vocab: 151_936,
                context_length: 40_960,
                rms_eps: 1e-6,
                rope_base: 1e6,
                rope_scaling: RopeScaling::None,
            },
        }
    }
}

impl FromStr for Preset {
    type Err = Error;

    /// # Errors
    /// [`Error::Invalid`], with the list of known names, for an unknown one.
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::Invalid(format!("unknown preset {name:?} (known: {known})"))
        })
    }
}

/// What is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SynthOptions {
    /// The shape.
    pub preset: Preset,
    /// Layers, when they are to be other than the preset's.
    pub layers: Option<usize>,
    /// Width of the residual stream, when it is to be another than the preset's: a multiple of 32.
    pub hidden: Option<usize>,
    /// Width of an expert, when it is to be another than the preset's: a multiple of 32.
    pub expert_ff: Option<usize>,
    /// Query heads, key and value heads, and dimensions of a head, when they are to be other than the preset's.
    pub heads: Option<[usize; 3]>,
    /// Selects one of many models of the same shape.
    pub seed: u64,
}

impl SynthOptions {
    /// A model of the preset's shape.
    pub const fn new(preset: Preset, seed: u64) -> Self {
        Self { preset, layers: None, hidden: None, expert_ff: None, heads: None, seed }
    }

    /// Another number of layers than the preset's.
    #[must_use]
    pub fn layers(mut self, layers: impl Into<Option<usize>>) -> Self {
        self.layers = layers.into();
        self
    }

    /// Another width of the residual stream than the preset's.
    #[must_use]
    pub fn hidden(mut self, hidden: impl Into<Option<usize>>) -> Self {
        self.hidden = hidden.into();
        self
    }

    /// Another width of an expert than the preset's.
    #[must_use]
    pub fn expert_ff(mut self, expert_ff: impl Into<Option<usize>>) -> Self {
        self.expert_ff = expert_ff.into();
        self
    }

    /// Other query heads, key and value heads, and dimensions of a head than the preset's.
    #[must_use]
    pub fn heads(mut self, heads: impl Into<Option<[usize; 3]>>) -> Self {
        self.heads = heads.into();
        self
    }

    /// The hyperparameters.
    fn config(&self) -> Config {
        let preset = self.preset.config();
        let [heads, kv_heads, head_dim] = self.heads.unwrap_or([preset.heads, preset.kv_heads, preset.head_dim]);
        Config {
            layers: self.layers.unwrap_or(preset.layers),
            hidden: self.hidden.unwrap_or(preset.hidden),
            expert_ff: self.expert_ff.unwrap_or(preset.expert_ff),
            heads,
            kv_heads,
            head_dim,
            ..preset
        }
    }
}

/// How a tensor's values are drawn.
#[derive(Clone, Copy)]
enum Values {
    /// Around 1.
    Norm,
    /// Around 0.
    Router,
    /// Around 0, with a standard deviation.
    Matrix(TensorType, f64),
}

impl Values {
    fn kind(self) -> TensorType {
        match self {
            Self::Norm | Self::Router => TensorType::F32,
            Self::Matrix(kind, _) => kind,
        }
    }
}

struct Declared {
    name: String,
    /// Rows first.
    shape: Vec<usize>,
    values: Values,
}

/// Writes a synthetic model in llama.cpp's Q4_K_M mix, and returns the file's length. `progress` gets bytes done and
/// bytes in all.
///
/// # Errors
/// [`Error::Model`] for a shape that no model has, [`Error::Gguf`] for a width that is no multiple of a type's blocks, [`Error::Io`] when
/// writing fails.
pub fn synth(path: impl AsRef<Path>, options: SynthOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<u64> {
    synth_with(path, options, &|_, usual| usual, progress)
}

/// The same with matrices of other types: `kind` gets a matrix's name and its type in the Q4_K_M mix, and gives its type.
///
/// # Errors
/// Those of [`synth`].
pub fn synth_with(
    path: impl AsRef<Path>,
    options: SynthOptions,
    kind: &dyn Fn(&str, TensorType) -> TensorType,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64> {
    let config = options.config();
    config.check()?;
    let mut tensors = tensors(&config);
    let mut changed = false;
    for tensor in &mut tensors {
        if let Values::Matrix(usual, _) = &mut tensor.values {
            let chosen = kind(&tensor.name, *usual);
            changed |= chosen != *usual;
            *usual = chosen;
        }
    }
    let mut header = Header::new(path.as_ref());
    // LLAMA_FTYPE_MOSTLY_Q4_K_M
    metadata(&mut header, &config, options, (!changed).then_some(15))?;
    for tensor in &tensors {
        let dims: Vec<u64> = tensor.shape.iter().rev().map(|&n| n as u64).collect();
        header.tensor(&tensor.name, tensor.values.kind(), &dims)?;
    }
    let total = header.file_len();
    let mut writer = header.create()?;
    let mut done = 0;
    for (number, tensor) in tensors.iter().enumerate() {
        let stream = mix(options.seed ^ mix(number as u64 + 1));
        let elements: usize = tensor.shape.iter().product();
        // Blocks of 32 come in eights, of which the last one may be cut off.
        let mut left = tensor.values.kind().bytes_of(elements);
        let mut write = |bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(left)];
            left -= bytes.len();
            writer.write(&tensor.name, bytes)?;
            done += bytes.len() as u64;
            progress(done, total);
            Ok(())
        };
        match tensor.values {
            Values::Norm => floats(TensorType::F32, elements, stream, 1.0, NORM_SPREAD, &mut write),
            Values::Router => floats(TensorType::F32, elements, stream, 0.0, ROUTER_SPREAD, &mut write),
            Values::Matrix(kind, spread) if TensorType::FLOATS.contains(&kind) => {
                floats(kind, elements, stream, 0.0, spread, &mut write)
            }
            Values::Matrix(kind, spread) => with_weights!(
                kind,
                T => {
                    let block = |rng: &mut Rng| T::synthetic(&mut || rng.next(), spread);
                    stream_of(elements.div_ceil(BLOCK), stream, block, bytes, &mut write)
                },
                else unreachable!("a type has blocks or floats")
            ),
        }?;
    }
    writer.finish()?;
    progress(total, total);
    Ok(total)
}

/// The same with the types of a mix.
///
/// # Errors
/// Those of [`synth`].
pub fn synth_mix(
    path: impl AsRef<Path>,
    options: SynthOptions,
    mix: &Mix,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64> {
    let layers = options.config().layers;
    synth_with(path, options, &|tensor, usual| mix.kind(tensor, usual, layers), progress)
}

/// Generates `count` floats of a type around a mean, and writes them in order.
fn floats(
    kind: TensorType,
    count: usize,
    stream: u64,
    mean: f64,
    spread: f64,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let number = |rng: &mut Rng| float(rng, mean, spread);
    match kind {
        TensorType::F16 => {
            let bytes = |rng: &mut Rng| f16::from_f32(number(rng)).to_le_bytes();
            stream_of(count, stream, bytes, |v| v.as_flattened(), write)
        }
        TensorType::BF16 => {
            let bytes = |rng: &mut Rng| bf16::from_f32(number(rng)).to_le_bytes();
            stream_of(count, stream, bytes, |v| v.as_flattened(), write)
        }
        _ => stream_of(count, stream, |rng| number(rng).to_le_bytes(), |v| v.as_flattened(), write),
    }
}

/// Generates `count` elements, each from its own part of the random stream, and writes them in order.
fn stream_of<T: Send + Clone>(
    count: usize,
    stream: u64,
    element: impl Fn(&mut Rng) -> T + Sync,
    as_bytes: impl Fn(&[T]) -> &[u8],
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = Vec::new();
    for first in (0..count).step_by(TASK * TASKS) {
        let end = count.min(first + TASK * TASKS);
        (first..end)
            .into_par_iter()
            .with_min_len(TASK)
            .map(|index| element(&mut Rng(stream.wrapping_add(mix(index as u64)))))
            .collect_into_vec(&mut buffer);
        write(as_bytes(&buffer))?;
    }
    Ok(())
}

/// Tensors in the order of llama.cpp's files.
fn tensors(config: &Config) -> Vec<Declared> {
    let &Config { layers, hidden, head_dim, experts, expert_ff, vocab, .. } = config;
    let (q, kv) = (config.q_width(), config.kv_width());
    let declared = |name: String, shape: &[usize], values| Declared { name, shape: shape.to_vec(), values };
    let matrix = |spread| Values::Matrix(TensorType::Q4K, spread);
    let mut all = vec![
        declared("output.weight".into(), &[vocab, hidden], Values::Matrix(TensorType::Q6K, SPREAD)),
        declared("output_norm.weight".into(), &[hidden], Values::Norm),
        declared("token_embd.weight".into(), &[vocab, hidden], matrix(EMBEDDING_SPREAD)),
    ];
    for layer in 0..layers {
        let wide = if more_bits(layer, layers) { TensorType::Q6K } else { TensorType::Q4K };
        let parts: [(&str, &[usize], Values); 12] = [
            ("attn_k", &[kv, hidden], matrix(SPREAD)),
            ("attn_k_norm", &[head_dim], Values::Norm),
            ("attn_norm", &[hidden], Values::Norm),
            ("attn_output", &[hidden, q], matrix(ATTN_OUTPUT_SPREAD)),
            ("attn_q", &[q, hidden], matrix(SPREAD)),
            ("attn_q_norm", &[head_dim], Values::Norm),
            ("attn_v", &[kv, hidden], Values::Matrix(wide, SPREAD)),
            ("ffn_down_exps", &[experts, hidden, expert_ff], Values::Matrix(wide, DOWN_SPREAD)),
            ("ffn_gate_exps", &[experts, expert_ff, hidden], matrix(SPREAD)),
            ("ffn_gate_inp", &[experts, hidden], Values::Router),
            ("ffn_norm", &[hidden], Values::Norm),
            ("ffn_up_exps", &[experts, expert_ff, hidden], matrix(SPREAD)),
        ];
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        all.extend(parts.map(|(part, shape, values)| declared(name(part), shape, values)));
    }
    all
}

/// The layers in which Q4_K_M keeps values and down projections in Q6_K: `use_more_bits` of llama.cpp.
fn more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

fn metadata(header: &mut Header, config: &Config, options: SynthOptions, file_type: Option<u32>) -> Result<()> {
    header.set("general.architecture", ARCHITECTURE)?;
    header.set("general.name", &format!("Synthetic {} (seed {})", options.preset.name(), options.seed))?;
    for (name, value) in [
        ("block_count", config.layers),
        ("context_length", config.context_length),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.expert_ff * config.top_k),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("expert_count", config.experts),
        ("expert_used_count", config.top_k),
        ("expert_feed_forward_length", config.expert_ff),
        ("vocab_size", config.vocab),
    ] {
        header.set(&format!("{ARCHITECTURE}.{name}"), &(value as u32))?;
    }
    header.set(&format!("{ARCHITECTURE}.rope.freq_base"), &config.rope_base)?;
    header.set(&format!("{ARCHITECTURE}.attention.layer_norm_rms_epsilon"), &config.rms_eps)?;
    header.set("general.quantization_version", &2_u32)?;
    if let Some(file_type) = file_type {
        header.set("general.file_type", &file_type)?;
    }

    // A byte-level vocabulary: the 256 bytes, which can spell every text, placeholders, and an end of text.
    let end = config.vocab - 1;
    let tokens: Vec<String> = (0..config.vocab)
        .map(|id| match u8::try_from(id) {
            Ok(byte) => byte_symbol(byte).to_string(),
            Err(_) if id == end => "<|endoftext|>".into(),
            Err(_) => format!("<|{id}|>"),
        })
        .collect();
    let (normal, control) = (1_i32, 3_i32);
    let types: Vec<i32> = (0..config.vocab).map(|id| if id < 256 { normal } else { control }).collect();
    header.set("tokenizer.ggml.model", "gpt2")?;
    header.set("tokenizer.ggml.pre", "qwen2")?;
    header.set("tokenizer.ggml.tokens", &tokens)?;
    header.set("tokenizer.ggml.token_type", &types)?;
    header.set("tokenizer.ggml.merges", &Vec::<String>::new())?;
    header.set("tokenizer.ggml.eos_token_id", &(end as u32))?;
    header.set("tokenizer.ggml.add_bos_token", &false)
}

/// The character that stands for a byte in a byte-level vocabulary (`bytes_to_unicode` of GPT-2): printable ones stand
/// for themselves, the n-th other one is U+0100 + n.
fn byte_symbol(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    if printable(byte) {
        return byte.into();
    }
    let others_before = (0..byte).filter(|&before| !printable(before)).count();
    char::from_u32(0x100 + others_before as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The finalizer of SplitMix64.
///
/// Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// A float with roughly a normal distribution: the sum of four uniform ones.
fn float(rng: &mut Rng, mean: f64, spread: f64) -> f32 {
    let bits = rng.next();
    let sum: f64 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as f64 / 65536.0).sum();
    (mean + (sum - 2.0) * 3_f64.sqrt() * spread) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::embedding::dequantize;

    #[test]
    fn weights_have_the_spread_and_no_offset() {
        for &kind in TensorType::MATRICES {
            let mut values = Vec::new();
            for index in 0..2000 {
                let mut rng = Rng(mix(index));
                let mut out = [0.0; 256];
                let bits = &mut || rng.next();
                with_weights!(
                    kind,
                    T => dequantize(kind, bytes(&[T::synthetic(bits, SPREAD)]), &mut out),
                    else unreachable!()
                );
                values.extend(out.map(f64::from));
            }
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / values.len() as f64;
            assert!(mean.abs() < SPREAD / 100.0, "{kind:?}: mean {mean}");
            assert!((0.95..1.1).contains(&(variance.sqrt() / SPREAD)), "{kind:?}: spread {}", variance.sqrt());
        }
    }

    #[test]
    fn the_mix_is_that_of_llama_cpp() {
        let chosen = |layers| (0..layers).filter(|&layer| more_bits(layer, layers)).collect::<Vec<_>>();
        assert_eq!(chosen(4), [2, 3]);
        assert_eq!(chosen(48).len(), 24);
        assert_eq!(chosen(48)[..8], [0, 1, 2, 3, 4, 5, 8, 11]);
    }

    #[test]
    fn bytes_have_the_symbols_of_gpt2() {
        assert_eq!((byte_symbol(b'a'), byte_symbol(b' '), byte_symbol(b'\n')), ('a', 'Ġ', 'Ċ'));
        let all: std::collections::HashSet<char> = (0..=255).map(byte_symbol).collect();
        assert_eq!(all.len(), 256);
        assert_eq!((byte_symbol(0xad), byte_symbol(0xa0)), ('\u{143}', '\u{142}'));
    }

    /// Every byte of a file follows from preset, layers and seed, and stays what it is: measurements name a seed. The hash is
    /// FNV-1a.
    #[test]
    fn a_seed_gives_the_same_file_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let hash = |layers, seed| {
            synth(&path, SynthOptions::new(Preset::Tiny, seed).layers(layers), &mut |_, _| {}).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
        };
        let expected = [0x71d73c824bedd918, 0x0e104887010faf71, 0x105b115262def864];
        assert_eq!([hash(1, 0), hash(1, 7), hash(3, 7)], expected);
    }

    #[test]
    fn presets_have_their_names_and_shapes() {
        for preset in Preset::ALL {
            assert_eq!(preset.name().parse::<Preset>().unwrap(), preset);
            preset.config().check().unwrap();
        }
        assert!("huge".parse::<Preset>().is_err());
        // `config.json` of Qwen3-Coder-30B-A3B-Instruct.
        let expected = Config {
            layers: 48,
            hidden: 2048,
            heads: 32,
            kv_heads: 4,
            head_dim: 128,
            experts: 128,
            top_k: 8,
            expert_ff: 768,
            weighting: Weighting::OfChosen,
            vocab: 151_936,
            context_length: 262_144,
            rms_eps: 1e-6,
            rope_base: 1e7,
            rope_scaling: RopeScaling::None,
        };
        assert_eq!("qwen3-30b-a3b".parse::<Preset>().unwrap().config(), expected);
        // And of Qwen3-235B-A22B.
        let expected = Config {
            layers: 94,
            hidden: 4096,
            heads: 64,
            expert_ff: 1536,
            weighting: Weighting::OfChosen,
            context_length: 40_960,
            rope_base: 1e6,
            ..expected
        };
        assert_eq!("qwen3-235b-a22b".parse::<Preset>().unwrap().config(), expected);
    }

    #[test]
    fn types_are_those_of_the_mix() {
        let declared = tensors(&Preset::Qwen3_30bA3b.config());
        assert_eq!(declared.len(), 3 + 48 * 12);
        let q6_k = declared.iter().filter(|tensor| matches!(tensor.values, Values::Matrix(TensorType::Q6K, _)));
        let q6_k: Vec<&str> = q6_k.map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(q6_k.len(), 1 + 2 * 24);
        assert!(q6_k.contains(&"output.weight") && q6_k.contains(&"blk.47.attn_v.weight"));
        assert!(q6_k.contains(&"blk.8.ffn_down_exps.weight") && !q6_k.contains(&"blk.7.ffn_down_exps.weight"));
        let plain = declared.iter().filter(|tensor| matches!(tensor.values, Values::Norm | Values::Router)).count();
        assert_eq!(plain, 1 + 48 * 5);
    }
}
