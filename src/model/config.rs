//! Hyperparameters of a Qwen3-MoE model, from the metadata of its GGUF file.

use crate::blocks::BLOCK;
use crate::gguf::{Gguf, Quoted};
use crate::{Error, Result, sys};

/// The architecture's name in `general.architecture`, and the prefix of its keys.
pub const ARCHITECTURE: &str = "qwen3moe";

/// Largest head dimension that the attention kernels hold.
pub const MAX_HEAD_DIM: usize = 256;
/// Most query heads that share a key and value head in the attention kernels.
pub const MAX_GROUP: usize = 16;
/// Largest hidden width that the RMSNorm kernel holds.
pub const MAX_HIDDEN: usize = 16384;

/// Hyperparameters. Every shape of the model follows from them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Layers (`block_count`).
    pub layers: usize,
    /// Width of the residual stream (`embedding_length`), a multiple of 256.
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
    /// Width of an expert (`expert_feed_forward_length`), a multiple of 256.
    pub expert_ff: usize,
    /// Tokens of the vocabulary: rows of `token_embd.weight`.
    pub vocab: usize,
    /// Positions that the model was made for (`context_length`).
    pub context_length: usize,
    /// RMSNorm epsilon (`attention.layer_norm_rms_epsilon`).
    pub rms_eps: f32,
    /// Base of the RoPE frequencies (`rope.freq_base`).
    pub rope_base: f32,
}

impl Config {
    /// A model of this shape, with the epsilon and the base of RoPE that published models have most.
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
            vocab,
            context_length,
            rms_eps: 1e-6,
            rope_base: 1e6,
        }
    }

    /// Reads and checks the hyperparameters.
    ///
    /// # Errors
    /// [`Error::Gguf`] for keys that are missing or of another type, [`Error::Model`] for values that no kernel or no
    /// model can have, [`Error::MissingTensor`] when there is no embedding table.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let architecture = gguf.string("general.architecture")?;
        if architecture != ARCHITECTURE {
            return Err(Error::Model(format!(
                "architecture {} is not supported (supported: {ARCHITECTURE:?})",
                Quoted(architecture)
            )));
        }
        let key = |name: &str| format!("{ARCHITECTURE}.{name}");
        let count = |name: &str| gguf.u32(&key(name)).map(|value| value as usize);
        let scaling = gguf.get::<&str>(&key("rope.scaling.type"))?;
        if let Some(scaling) = scaling.filter(|&scaling| scaling != "none") {
            let scaling = Quoted(scaling);
            return Err(Error::Model(format!("{}: {scaling} is not supported", key("rope.scaling.type"))));
        }
        let hidden = count("embedding_length")?;
        let heads = count("attention.head_count")?;
        let head_dim = match gguf.get::<u32>(&key("attention.key_length"))? {
            Some(dim) => dim as usize,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        let value_length = gguf.get::<u32>(&key("attention.value_length"))?;
        if let Some(value_length) = value_length.filter(|&length| length as usize != head_dim) {
            return Err(Error::Model(format!(
                "{}: {value_length} differs from the key length {head_dim}",
                key("attention.value_length")
            )));
        }
        let config = Self {
            layers: count("block_count")?,
            hidden,
            heads,
            kv_heads: count("attention.head_count_kv")?,
            head_dim,
            experts: count("expert_count")?,
            top_k: count("expert_used_count")?,
            expert_ff: count("expert_feed_forward_length")?,
            vocab: gguf.require_tensor("token_embd.weight")?.shape()[0] as usize,
            context_length: count("context_length")?,
            rms_eps: gguf.f32(&key("attention.layer_norm_rms_epsilon"))?,
            rope_base: gguf.f32(&key("rope.freq_base"))?,
        };
        config.check()?;
        Ok(config)
    }

    /// Checks what the kernels and the model's equations demand of the values.
    ///
    /// # Errors
    /// [`Error::Model`] with the value and the rule.
    pub fn check(&self) -> Result<()> {
        let rule = |holds: bool, text: &dyn Fn() -> String| if holds { Ok(()) } else { Err(Error::Model(text())) };
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
            rule((1..=1 << 24).contains(&value), &|| format!("{name}: expected 1 to {}, found {value}", 1 << 24))?;
        }
        for (name, value) in [
            ("hidden width", self.hidden),
            ("query heads * head dimension", self.heads * self.head_dim),
            ("expert width", self.expert_ff),
        ] {
            rule(value.is_multiple_of(BLOCK), &|| format!("{name}: expected a multiple of {BLOCK}, found {value}"))?;
        }
        for (name, value, most) in [
            ("hidden width", self.hidden, MAX_HIDDEN),
            ("head dimension", self.head_dim, MAX_HEAD_DIM),
            ("experts", self.experts, sys::KQM_MAX_EXPERTS as usize),
            ("experts used", self.top_k, self.experts.min(sys::KQM_MAX_TOP_K as usize)),
        ] {
            rule(value <= most, &|| format!("{name}: expected at most {most}, found {value}"))?;
        }
        rule(self.heads.is_multiple_of(self.kv_heads), &|| {
            format!("{} query heads cannot share {} key and value heads evenly", self.heads, self.kv_heads)
        })?;
        let group = self.heads / self.kv_heads;
        rule(group <= MAX_GROUP, &|| {
            format!("query heads that share a key and value head: expected at most {MAX_GROUP}, found {group}")
        })?;
        rule(self.head_dim.is_multiple_of(64), &|| {
            format!("head dimension: expected a multiple of 64, found {}", self.head_dim)
        })?;
        rule(self.rms_eps.is_finite() && self.rms_eps >= 0.0, &|| {
            format!("RMSNorm epsilon: expected a finite number of at least 0, found {}", self.rms_eps)
        })?;
        rule(self.rope_base.is_finite() && self.rope_base > 0.0, &|| {
            format!("RoPE base: expected a finite number above 0, found {}", self.rope_base)
        })
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
            ("hidden width", |c, n| c.hidden = n, &[256, 16_384], &[0, 1, 255, 257, 16_640, LARGEST]),
            ("query heads", |c, n| c.heads = n, &[2, 4, 32], &[0, 1, 3, 5, 34]),
            ("KV heads", |c, n| c.kv_heads = n, &[1, 2, 4], &[0, 3, 8]),
            // Of 4 query heads 256 values are at least one of 64.
            ("head dimension", |c, n| c.head_dim = n, &[64, 128, 192, 256], &[0, 1, 32, 65, 96, 160, 255, 257, 320]),
            ("experts", |c, n| c.experts = n, &[4, 512], &[0, 3, 513]),
            ("experts used", |c, n| c.top_k = n, &[1, 16], &[0, 17]),
            ("experts used of many", |c, n| (c.experts, c.top_k) = (512, n), &[1, 32], &[0, 33]),
            ("expert width", |c, n| c.expert_ff = n, &[256, 768, LARGEST], &[0, 1, 255, 257, LARGEST + 256]),
            ("vocabulary", |c, n| c.vocab = n, &[1, 7, LARGEST], &[0, LARGEST + 1]),
            ("positions", |c, n| c.context_length = n, &[1, 7, LARGEST], &[0, LARGEST + 1]),
            // 16 query heads to a KV head, and 17 of a width that is a multiple of 256.
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
        // Query heads whose width is no multiple of 256, although that of the dimension is one of 64.
        let config = Config { heads: 3, kv_heads: 3, head_dim: 64, ..Preset::Tiny.config() };
        assert!(matches!(config.check(), Err(Error::Model(_))));
        assert!(Config { heads: 4, kv_heads: 4, ..config }.check().is_ok());
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
    }
}
