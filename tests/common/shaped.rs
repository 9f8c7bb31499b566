//! Models of any shape, with random weights.

use std::sync::Arc;

use kquant_moe::blocks::TensorType::{self, F32, Q4K, Q6K};
use kquant_moe::gguf::{Gguf, Header};
use kquant_moe::model::synth::{Preset, SynthOptions, synth_with};
use kquant_moe::model::{Config, RopeScaling};

use super::random::Random;

/// A shape with other values in some fields.
macro_rules! reshaped {
    ($shape:expr, $($field:ident: $value:expr),+ $(,)?) => {{
        let mut config: Config = $shape;
        $(config.$field = $value;)+
        config
    }};
}
pub(crate) use reshaped;

/// A shape in which no two counts or widths are the same.
pub const UNEVEN: Config =
    reshaped!(Config::new(3, 512, [12, 3, 64], [7, 3, 256], 1003, 160), rms_eps: 1e-5, rope_base: 1e4);

/// A shape that is quickly computed.
pub const SMALL: Config = reshaped!(
    Config::new(1, 256, [4, 1, 64], [3, 2, 256], 67, UNEVEN.context_length),
    rms_eps: UNEVEN.rms_eps,
    rope_base: UNEVEN.rope_base,
);

/// A model of one layer in a type of blocks of 32, none of whose widths is a multiple of 256: hidden 288, of an expert 96, of 2 query heads
/// 128.
pub fn narrow(kind: TensorType) -> Arc<Gguf> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("narrow.gguf");
    let options = SynthOptions::new(Preset::Tiny, 3).layers(1).hidden(288).expert_ff(96).heads([2, 1, 64]);
    synth_with(&path, options, &|_, _| kind, &mut |_, _| {}).unwrap();
    Arc::new(Gguf::read(&path).unwrap())
}

/// A model of that shape. Its matrices are in Q4_K and Q6_K, by turns.
pub fn model(config: &Config, seed: u64) -> Arc<Gguf> {
    let mut random = Random::new(seed);
    let mut header = Header::new("shaped");
    header.set("general.architecture", "qwen3moe").unwrap();
    for (name, value) in [
        ("block_count", config.layers),
        ("context_length", config.context_length),
        ("embedding_length", config.hidden),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("expert_count", config.experts),
        ("expert_used_count", config.top_k),
        ("expert_feed_forward_length", config.expert_ff),
    ] {
        header.set(&format!("qwen3moe.{name}"), &(value as u32)).unwrap();
    }
    header.set("qwen3moe.rope.freq_base", &config.rope_base).unwrap();
    header.set("qwen3moe.attention.layer_norm_rms_epsilon", &config.rms_eps).unwrap();

    let &Config { hidden, head_dim, experts, expert_ff, vocab, .. } = config;
    let (q, kv) = (config.q_width(), config.kv_width());
    let mut tensors: Vec<(String, TensorType, Vec<usize>)> = vec![
        ("token_embd.weight".into(), Q4K, vec![vocab, hidden]),
        ("output.weight".into(), Q6K, vec![vocab, hidden]),
        ("output_norm.weight".into(), F32, vec![hidden]),
    ];
    for layer in 0..config.layers {
        let kind = |place: usize| if (layer + place).is_multiple_of(2) { Q4K } else { Q6K };
        tensors.extend(
            [
                ("attn_norm", F32, vec![hidden]),
                ("attn_q", kind(0), vec![q, hidden]),
                ("attn_k", kind(1), vec![kv, hidden]),
                ("attn_v", kind(0), vec![kv, hidden]),
                ("attn_q_norm", F32, vec![head_dim]),
                ("attn_k_norm", F32, vec![head_dim]),
                ("attn_output", kind(1), vec![hidden, q]),
                ("ffn_norm", F32, vec![hidden]),
                ("ffn_gate_inp", F32, vec![experts, hidden]),
                ("ffn_gate_exps", kind(0), vec![experts, expert_ff, hidden]),
                ("ffn_up_exps", kind(1), vec![experts, expert_ff, hidden]),
                ("ffn_down_exps", kind(0), vec![experts, hidden, expert_ff]),
            ]
            .map(|(part, kind, shape)| (format!("blk.{layer}.{part}.weight"), kind, shape)),
        );
    }
    let dims = |shape: &[usize]| shape.iter().rev().map(|&n| n as u64).collect::<Vec<_>>();
    for (name, kind, shape) in &tensors {
        header.tensor(name, *kind, &dims(shape)).unwrap();
    }
    let mut writer = header.begin(Vec::new()).unwrap();
    for (name, kind, shape) in &tensors {
        let count: usize = shape.iter().product();
        let data = match kind {
            Q4K => random.q4_k(count / 256),
            Q6K => random.q6_k(count / 256),
            // Norms around 1, routers around 0.
            _ => {
                let (mean, spread) = if shape.len() == 1 { (1.0, 0.1) } else { (0.0, 0.05) };
                random.normals(count).iter().flat_map(|x| (mean + spread * x).to_le_bytes()).collect()
            }
        };
        writer.write(name, &data).unwrap();
    }
    Arc::new(Gguf::from_vec("shaped", writer.finish().unwrap()).unwrap())
}
