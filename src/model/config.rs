//! Hyperparameters of a Qwen3-MoE model, from the metadata of its GGUF file.

use crate::blocks::BLOCK;
use crate::gguf::{FromValue, Gguf, Quoted};
use crate::oracle::attention;
use crate::oracle::moe_router::Weighting;
use crate::{Error, Result, sys};

/// The architecture's name in `general.architecture`, and the prefix of its keys.
pub const ARCHITECTURE: &str = "qwen3moe";

/// Largest head dimension that the attention kernels hold.
pub const MAX_HEAD_DIM: usize = 256;
/// Most query heads that share a key and value head in the attention kernels.
pub const MAX_GROUP: usize = 16;
/// Largest hidden width that the RMSNorm kernel holds.
pub const MAX_HIDDEN: usize = 16384;
/// What widths are a multiple of: rows of the smallest blocks of files.
pub const WIDTH: usize = 32;

/// Hyperparameters. Every shape of the model follows from them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Layers (`block_count`).
    pub layers: usize,
    /// Width of the residual stream (`embedding_length`), a multiple of 32.
    pub hidden: usize,
    /// Query heads (`attention.head_count`).
    pub heads: usize,
    /// Key and value heads (`attention.head_count_kv`); divides `heads`.
    pub kv_heads: usize,
    /// Dimensions of a head (`attention.key_length`): 64, 128, 192 or 256.
    pub head_dim: usize,
    /// Experts of a layer (`expert_count`).
    pub experts: usize,
    /// Experts that a token uses (`expert_used_count`).
    pub top_k: usize,
    /// Width of an expert (`expert_feed_forward_length`), a multiple of 32.
    pub expert_ff: usize,
    /// What the weights of a token's experts are (`expert_weights_norm`; renormalised when there is no such key).
    pub weighting: Weighting,
    /// Tokens of the vocabulary: rows of `token_embd.weight`.
    pub vocab: usize,
    /// Positions that the model was made for (`context_length`).
    pub context_length: usize,
    /// RMSNorm epsilon (`attention.layer_norm_rms_epsilon`).
    pub rms_eps: f32,
    /// Base of the RoPE frequencies (`rope.freq_base`; 10,000 when there is no such key).
    pub rope_base: f32,
    /// How the RoPE frequencies differ from those of the base (`rope.scaling.*`).
    pub rope_scaling: RopeScaling,
}

/// How RoPE is stretched to more positions than the model was trained with. The formulas: `docs/arithmetic.md`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All angles are divided by a factor.
    Linear {
        /// Above 0 (`rope.scaling.factor`).
        factor: f32,
    },
    /// YaRN: low frequencies are divided, high ones stay, and q and k are scaled.
    Yarn(Yarn),
}

/// Parameters of YaRN.
///
/// Source: Peng, Quesnelle, Fan, Shippole, "YaRN: Efficient Context Window Extension of Large Language Models" (2023).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// At least 1 (`rope.scaling.factor`).
    pub factor: f32,
    /// Positions that the model was trained with (`rope.scaling.original_context_length`, else `context_length`).
    pub original_context: usize,
    /// Turns over these positions from which on a frequency stays (`rope.scaling.yarn_beta_fast`, else 32).
    pub beta_fast: f32,
    /// Turns up to which a frequency is divided by the whole factor (`rope.scaling.yarn_beta_slow`, else 1).
    pub beta_slow: f32,
    /// What q and k are multiplied with, besides `1 + 0.1 ln(factor)` (`rope.scaling.attn_factor`, else 1).
    pub attn_factor: f32,
}

/// Base of the RoPE frequencies of a file that does not say it.
const ROPE_BASE: f32 = 10_000.0;

/// Keys of the architecture that change what is computed, unless they have one of these values (`true` is 1): what the forward does
/// not know.
const ONLY: [(&str, &[f64]); 24] = [
    ("attention.causal", &[1.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("decoder_sparse_step", &[1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("expert_chunk_feed_forward_length", &[0.0]),
    // 0 stands for the architecture's own way, 1 for softmax, which it is.
    ("expert_gating_func", &[0.0, 1.0]),
    ("expert_group_count", &[0.0, 1.0]),
    ("expert_group_used_count", &[0.0, 1.0]),
    ("expert_shared_count", &[0.0]),
    ("expert_shared_feed_forward_length", &[0.0]),
    // 0 stands for no factor.
    ("expert_weights_scale", &[0.0, 1.0]),
    ("final_logit_softcapping", &[0.0]),
    ("interleave_moe_layer_step", &[0.0, 1.0]),
    ("leading_dense_block_count", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("moe_every_n_layers", &[0.0, 1.0]),
    ("nextn_predict_layers", &[0.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.scaling.yarn_attn_factor", &[1.0]),
    ("rope.scaling.yarn_log_multiplier", &[0.0]),
    ("router_logit_softcapping", &[0.0]),
    ("use_parallel_residual", &[0.0]),
];

/// Keys of the architecture that change nothing that is computed: facts about layers that it does not have, about the training,
/// and of windows, which hide nothing in what is accepted.
const IDLE: [&str; 4] =
    ["attention.sliding_window_pattern", "feed_forward_length", "rope.scaling.finetuned", "vocab_size"];

/// Reads keys of the architecture, and notes which ones, and what is wrong with them.
struct Keys<'a> {
    gguf: &'a Gguf,
    known: Vec<&'static str>,
    errors: Vec<Error>,
}

impl<'a> Keys<'a> {
    fn key(name: &str) -> String {
        format!("{ARCHITECTURE}.{name}")
    }

    fn refuse(&mut self, name: &str, reason: &str) {
        self.errors.push(Error::Model(format!("{}: {reason}", Self::key(name))));
    }

    /// The value, if it is there and of the type.
    fn optional<T: FromValue<'a>>(&mut self, name: &'static str) -> Option<T> {
        self.known.push(name);
        self.gguf.get_one(&Self::key(name)).unwrap_or_else(|error| {
            self.errors.push(error);
            None
        })
    }

    /// The value, which must be there.
    fn required<T: FromValue<'a>>(&mut self, name: &'static str) -> Option<T> {
        let (key, before) = (Self::key(name), self.errors.len());
        let value = self.optional(name);
        if value.is_none() && self.errors.len() == before {
            self.errors.push(self.gguf.missing_key::<T>(&key));
        }
        value
    }

    fn count(&mut self, name: &'static str) -> Option<usize> {
        self.required::<u32>(name).map(|value| value as usize)
    }

    /// A number of any type, `true` as 1.
    fn number(&mut self, name: &'static str) -> Option<f64> {
        self.known.push(name);
        let key = Self::key(name);
        self.gguf.metadata(&key)?;
        // Integers, of which those that are wanted here are small, then floats, then truth values.
        let integer = self.gguf.get_one::<i64>(&key).ok().flatten().map(|value| value as f64);
        let float = || self.gguf.get_one::<f32>(&key).ok().flatten().map(f64::from);
        let truth = || self.gguf.get_one::<bool>(&key).ok().flatten().map(|value| f64::from(u8::from(value)));
        let value = integer.or_else(float).or_else(truth);
        if value.is_none() {
            self.refuse(name, "expected a number");
        }
        value
    }

    /// `expert_weights_norm`.
    fn weighting(&mut self) -> Weighting {
        match self.number("expert_weights_norm") {
            None | Some(1.0) => Weighting::OfChosen,
            Some(0.0) => Weighting::OfAll,
            Some(other) => {
                self.refuse("expert_weights_norm", &format!("{other} is not supported (supported: 0, 1)"));
                Weighting::OfChosen
            }
        }
    }

    /// What only says that nothing is done which is not known.
    fn only(&mut self) {
        for (name, accepted) in ONLY {
            if let Some(value) = self.number(name)
                && !accepted.contains(&value)
            {
                let accepted: Vec<String> = accepted.iter().map(f64::to_string).collect();
                self.refuse(name, &format!("{value} is not supported (supported: {})", accepted.join(", ")));
            }
        }
        self.known.extend(IDLE);
    }

    /// A window of attention that hides none of the positions, and a scale that is the usual one.
    fn attention(&mut self, head_dim: usize, context_length: usize) {
        if let Some(window) = self.optional::<u64>("attention.sliding_window")
            && window > 0
            && window < context_length as u64
        {
            self.refuse("attention.sliding_window", &format!("a window of {window} positions is not supported"));
        }
        if let Some(scale) = self.optional::<f32>("attention.scale")
            && scale != 0.0
            && scale != attention::scale(head_dim)
        {
            let usual = attention::scale(head_dim);
            self.refuse("attention.scale", &format!("{scale} is not supported (supported: {usual})"));
        }
        if let Some(turned) = self.optional::<u64>("rope.dimension_count")
            && turned != head_dim as u64
        {
            let reason = format!("{turned} of {head_dim} dimensions are not supported (supported: all)");
            self.refuse("rope.dimension_count", &reason);
        }
    }

    /// `rope.scaling.*`. A factor without a type is that of linear scaling; 0 stands for none.
    fn rope_scaling(&mut self, context_length: usize) -> RopeScaling {
        let kind = self.optional::<&str>("rope.scaling.type");
        let factor = self.optional::<f32>("rope.scaling.factor");
        // The older name.
        let factor = factor.or(self.optional::<f32>("rope.scale_linear")).filter(|&factor| factor != 0.0);
        let original_context = self.optional::<u32>("rope.scaling.original_context_length");
        let beta_fast = self.optional::<f32>("rope.scaling.yarn_beta_fast").unwrap_or(32.0);
        let beta_slow = self.optional::<f32>("rope.scaling.yarn_beta_slow").unwrap_or(1.0);
        let attn_factor = self.optional::<f32>("rope.scaling.attn_factor").unwrap_or(1.0);
        if attn_factor != 1.0 && kind != Some("yarn") {
            self.refuse("rope.scaling.attn_factor", &format!("{attn_factor} is not supported without YaRN"));
        }
        // -1 stands for what the type says.
        let ext_factor = self.optional::<f32>("rope.scaling.yarn_ext_factor").unwrap_or(-1.0);
        if ext_factor != -1.0 && (ext_factor, kind) != (1.0, Some("yarn")) {
            self.refuse("rope.scaling.yarn_ext_factor", &format!("{ext_factor} is not supported"));
        }
        match (kind, factor) {
            (Some("none"), _) | (None | Some("linear"), None | Some(1.0)) => RopeScaling::None,
            (None | Some("linear"), Some(factor)) => RopeScaling::Linear { factor },
            (Some("yarn"), Some(factor)) => RopeScaling::Yarn(Yarn {
                factor,
                original_context: original_context.map_or(context_length, |context| context as usize),
                beta_fast,
                beta_slow,
                attn_factor,
            }),
            (Some("yarn"), None) => {
                self.refuse("rope.scaling.factor", "YaRN needs a factor");
                RopeScaling::None
            }
            (Some(other), _) => {
                let reason = format!("{} is not supported (supported: none, linear, yarn)", Quoted(other));
                self.refuse("rope.scaling.type", &reason);
                RopeScaling::None
            }
        }
    }

    /// Keys of the architecture that nothing is known about, any of which may change what is computed.
    fn unknown(&mut self) {
        let prefix = Self::key("");
        for (key, _) in self.gguf.entries() {
            if let Some(name) = key.strip_prefix(&prefix)
                && !self.known.contains(&name)
            {
                let reason = "the key is not known, and could change what is computed";
                self.errors.push(Error::Model(format!("metadata key {}: {reason}", Quoted(key))));
            }
        }
    }
}

impl Config {
    /// A model of this shape, with the epsilon and the base of RoPE that published models have most, which is not scaled.
    pub const fn new(
        layers: usize,
        hidden: usize,
        [heads, kv_heads, head_dim]: [usize; 3],
        [experts, top_k, expert_ff]: [usize; 3],
        vocab: usize,
        context_length: usize,
    ) -> Self {
        Self {
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            experts,
            top_k,
            expert_ff,
            weighting: Weighting::OfChosen,
            vocab,
            context_length,
            rms_eps: 1e-6,
            rope_base: 1e6,
            rope_scaling: RopeScaling::None,
        }
    }

    /// Reads and checks the hyperparameters.
    ///
    /// # Errors
    /// The first of [`Self::read`].
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::read(gguf).map_err(first)
    }

    /// Reads and checks the hyperparameters. Whatever the file says that changes what is computed is obeyed or refused.
    ///
    /// # Errors
    /// Everything that is wrong, at least one: [`Error::Gguf`] for keys that are missing or of another type, [`Error::Model`] for
    /// values that no kernel or no model can have and for keys that are not known, [`Error::MissingTensor`] when there is no
    /// embedding table.
    pub fn read(gguf: &Gguf) -> Result<Self, Vec<Error>> {
        let architecture = gguf.string("general.architecture").map_err(|error| vec![error])?;
        if architecture != ARCHITECTURE {
            return Err(vec![Error::Model(format!(
                "architecture {} is not supported (supported: {ARCHITECTURE:?})",
                Quoted(architecture)
            ))]);
        }
        let mut keys = Keys { gguf, known: Vec::new(), errors: Vec::new() };
        for (key, accepted) in [("general.type", "model"), ("general.quantization_version", "2")] {
            let found = match (gguf.get::<&str>(key), gguf.get::<u32>(key)) {
                (Ok(Some(text)), _) => text.to_owned(),
                (_, Ok(Some(number))) => number.to_string(),
                (Ok(None), _) => continue,
                (Err(error), _) => {
                    keys.errors.push(error);
                    continue;
                }
            };
            if found != accepted {
                let found = Quoted(&found);
                keys.errors.push(Error::Model(format!("{key}: {found} is not supported (supported: {accepted})")));
            }
        }
        let hidden = keys.count("embedding_length");
        let heads = keys.count("attention.head_count");
        let head_dim = match keys.optional::<u32>("attention.key_length") {
            Some(dim) => Some(dim as usize),
            None => hidden.zip(heads).map(|(hidden, heads)| hidden.checked_div(heads).unwrap_or(0)),
        };
        let value_length = keys.optional::<u32>("attention.value_length");
        if let (Some(value_length), Some(head_dim)) = (value_length, head_dim)
            && value_length as usize != head_dim
        {
            let reason = format!("{value_length} differs from the key length {head_dim}");
            keys.refuse("attention.value_length", &reason);
        }
        let layers = keys.count("block_count");
        let kv_heads = keys.count("attention.head_count_kv");
        let experts = keys.count("expert_count");
        let top_k = keys.count("expert_used_count");
        let expert_ff = keys.count("expert_feed_forward_length");
        let weighting = keys.weighting();
        let vocab = match gguf.require_tensor("token_embd.weight") {
            Ok(table) => Some(table.shape()[0] as usize),
            Err(error) => {
                keys.errors.push(error);
                None
            }
        };
        let context_length = keys.count("context_length");
        let rms_eps = keys.required("attention.layer_norm_rms_epsilon");
        let rope_base = keys.optional("rope.freq_base").unwrap_or(ROPE_BASE);
        let rope_scaling = keys.rope_scaling(context_length.unwrap_or(0));
        if let (Some(head_dim), Some(context_length)) = (head_dim, context_length) {
            keys.attention(head_dim, context_length);
        }
        keys.only();
        keys.unknown();
        let mut errors = keys.errors;
        let config = (|| {
            Some(Self {
                layers: layers?,
                hidden: hidden?,
                heads: heads?,
                kv_heads: kv_heads?,
                head_dim: head_dim?,
                experts: experts?,
                top_k: top_k?,
                expert_ff: expert_ff?,
                weighting,
                vocab: vocab?,
                context_length: context_length?,
                rms_eps: rms_eps?,
                rope_base,
                rope_scaling,
            })
        })();
        if let Some(config) = &config {
            errors.extend(config.faults().into_iter().map(Error::Model));
        }
        match config {
            Some(config) if errors.is_empty() => Ok(config),
            _ => Err(errors),
        }
    }

    /// Checks what the kernels and the model's equations demand of the values.
    ///
    /// # Errors
    /// [`Error::Model`] with the first value and the rule.
    pub fn check(&self) -> Result<()> {
        self.faults().into_iter().next().map_or(Ok(()), |fault| Err(Error::Model(fault)))
    }

    /// The values that break a rule, each with the rule.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut rule = |holds: bool, text: &dyn Fn() -> String| {
            if !holds {
                faults.push(text());
            }
            holds
        };
        let mut counts = true;
        for (name, value) in [
            ("layers", self.layers),
            ("hidden width", self.hidden),
            ("query heads", self.heads),
            ("key and value heads", self.kv_heads),
            ("head dimension", self.head_dim),
            ("experts", self.experts),
            ("experts used", self.top_k),
            ("expert width", self.expert_ff),
            ("vocabulary", self.vocab),
            ("context length", self.context_length),
        ] {
            // The kernels count in 32 bits.
            counts &=
                rule((1..=1 << 24).contains(&value), &|| format!("{name}: expected 1 to {}, found {value}", 1 << 24));
        }
        if !counts {
            return faults;
        }
        for (name, value) in [("hidden width", self.hidden), ("expert width", self.expert_ff)] {
            rule(value.is_multiple_of(WIDTH), &|| format!("{name}: expected a multiple of {WIDTH}, found {value}"));
        }
        for (name, value, most) in [
            ("hidden width", self.hidden, MAX_HIDDEN),
            ("head dimension", self.head_dim, MAX_HEAD_DIM),
            ("experts", self.experts, sys::KQM_MAX_EXPERTS as usize),
            ("experts used", self.top_k, self.experts.min(sys::KQM_MAX_TOP_K as usize)),
        ] {
            rule(value <= most, &|| format!("{name}: expected at most {most}, found {value}"));
        }
        rule(self.heads.is_multiple_of(self.kv_heads), &|| {
            format!("{} query heads cannot share {} key and value heads evenly", self.heads, self.kv_heads)
        });
        let group = self.heads / self.kv_heads;
        rule(group <= MAX_GROUP, &|| {
            format!("query heads that share a key and value head: expected at most {MAX_GROUP}, found {group}")
        });
        rule(self.head_dim.is_multiple_of(64), &|| {
            format!("head dimension: expected a multiple of 64, found {}", self.head_dim)
        });
        rule(self.rms_eps.is_finite() && self.rms_eps >= 0.0, &|| {
            format!("RMSNorm epsilon: expected a finite number of at least 0, found {}", self.rms_eps)
        });
        rule(self.rope_base.is_finite() && self.rope_base > 0.0, &|| {
            format!("RoPE base: expected a finite number above 0, found {}", self.rope_base)
        });
        match self.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => {
                rule(factor.is_finite() && factor > 0.0, &|| {
                    format!("RoPE scaling factor: expected a finite number above 0, found {factor}")
                });
            }
            RopeScaling::Yarn(Yarn { factor, original_context, beta_fast, beta_slow, attn_factor }) => {
                rule(factor.is_finite() && factor >= 1.0, &|| {
                    format!("YaRN factor: expected a finite number of at least 1, found {factor}")
                });
                rule((1..=1 << 24).contains(&original_context), &|| {
                    format!("YaRN original context length: expected 1 to {}, found {original_context}", 1 << 24)
                });
                for (name, value) in
                    [("beta fast", beta_fast), ("beta slow", beta_slow), ("attention factor", attn_factor)]
                {
                    rule(value.is_finite() && value > 0.0, &|| {
                        format!("YaRN {name}: expected a finite number above 0, found {value}")
                    });
                }
                rule(self.rope_base > 1.0, &|| format!("YaRN: expected a RoPE base above 1, found {}", self.rope_base));
            }
        }
        faults
    }

    /// Values of a row of the residual stream in memory: its width, continued with zeros to a multiple of 256.
    pub fn padded_hidden(&self) -> usize {
        padded(self.hidden)
    }

    /// Values of an expert's row in memory: its width, continued with zeros to a multiple of 256.
    pub fn padded_expert_ff(&self) -> usize {
        padded(self.expert_ff)
    }

    /// Values of all query heads: `heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of all key (or value) heads: `kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// A width in memory: that of whole blocks of 256, the last one of which is filled up with zeros (`docs/arithmetic.md`).
pub(super) const fn padded(width: usize) -> usize {
    width.next_multiple_of(BLOCK)
}

/// The first of at least one error.
pub(super) fn first(errors: Vec<Error>) -> Error {
    errors.into_iter().next().unwrap_or_else(|| Error::Invalid("an error of which nothing is known".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synth::Preset;

    /// A change of one value.
    type Change = fn(&mut Config, usize);

    /// The least and the most of each count, and what lies next to them.
    #[test]
    fn counts_have_a_least_and_a_most() {
        const LARGEST: usize = 1 << 24;
        let rows: [(&str, Change, &[usize], &[usize]); 12] = [
            ("layers", |c, n| c.layers = n, &[1, LARGEST], &[0, LARGEST + 1]),
            ("hidden width", |c, n| c.hidden = n, &[32, 256, 288, 16_384], &[0, 1, 31, 48, 255, 257, 16_416, LARGEST]),
            ("query heads", |c, n| c.heads = n, &[2, 4, 32], &[0, 1, 3, 5, 34]),
            ("KV heads", |c, n| c.kv_heads = n, &[1, 2, 4], &[0, 3, 8]),
            ("head dimension", |c, n| c.head_dim = n, &[64, 128, 192, 256], &[0, 1, 32, 65, 96, 160, 255, 257, 320]),
            ("experts", |c, n| c.experts = n, &[4, 512], &[0, 3, 513]),
            ("experts used", |c, n| c.top_k = n, &[1, 16], &[0, 17]),
            ("experts used of many", |c, n| (c.experts, c.top_k) = (512, n), &[1, 32], &[0, 33]),
            (
                "expert width",
                |c, n| c.expert_ff = n,
                &[32, 96, 256, 768, LARGEST],
                &[0, 1, 31, 48, 255, 257, LARGEST + 32],
            ),
            ("vocabulary", |c, n| c.vocab = n, &[1, 7, LARGEST], &[0, LARGEST + 1]),
            ("positions", |c, n| c.context_length = n, &[1, 7, LARGEST], &[0, LARGEST + 1]),
            // 16 query heads to a KV head, and 17.
            ("heads of a group", |c, n| (c.heads, c.kv_heads) = (n * 2, 2), &[1, 16], &[17, 18]),
        ];
        for (name, set, good, bad) in rows {
            for &value in good {
                let mut config = Preset::Tiny.config();
                set(&mut config, value);
                assert!(config.check().is_ok(), "{name} of {value}: {:?}", config.check());
            }
            for &value in bad {
                let mut config = Preset::Tiny.config();
                set(&mut config, value);
                assert!(matches!(config.check(), Err(Error::Model(_))), "{name} of {value}");
            }
        }
        // Dimensions that are no multiple of 64, although those of all query heads are one of 256.
        for head_dim in [32, 96, 160, 224, 320] {
            let config = Config { heads: 8, head_dim, ..Preset::Tiny.config() };
            assert!(matches!(config.check(), Err(Error::Model(_))), "{head_dim}");
        }
        // Query heads whose width is no multiple of 256.
        for heads in [1, 2, 3, 4] {
            assert!(Config { heads, kv_heads: heads, head_dim: 64, ..Preset::Tiny.config() }.check().is_ok());
        }
    }

    #[test]
    fn numbers_have_a_least_and_are_finite() {
        let check = |rms_eps, rope_base| Config { rms_eps, rope_base, ..Preset::Tiny.config() }.check().is_ok();
        for eps in [0.0, -0.0, 1e-6, f32::MAX] {
            assert!(check(eps, 1e6), "{eps}");
        }
        for eps in [-f32::MIN_POSITIVE, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            assert!(!check(eps, 1e6), "{eps}");
        }
        for base in [f32::from_bits(1), 1.0, f32::MAX] {
            assert!(check(1e-6, base), "{base}");
        }
        for base in [0.0, -0.0, -1.0, f32::INFINITY, f32::NAN] {
            assert!(!check(1e-6, base), "{base}");
        }
    }

    #[test]
    fn widths_are_those_of_all_heads() {
        let config = Preset::Qwen3_30bA3b.config();
        assert_eq!((config.q_width(), config.kv_width()), (4096, 512));
        let config = Preset::Tiny.config();
        assert_eq!((config.q_width(), config.kv_width()), (512, 256));
        assert_eq!((config.padded_hidden(), config.padded_expert_ff()), (256, 256));
        let narrow = Config { hidden: 288, expert_ff: 32, ..config };
        assert_eq!((narrow.padded_hidden(), narrow.padded_expert_ff()), (512, 256));
    }
}
