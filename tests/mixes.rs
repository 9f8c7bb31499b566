//! Models in the mixes of types that are published, and of every type alone: how far from the f64 forward of the dequantized weights.
//!
//! `cargo test --release --test mixes -- --nocapture` prints the tables of `docs/accuracy.md`.

mod common;
#[path = "common/f64_forward.rs"]
mod f64_forward;

use std::sync::Arc;

use common::changed::changed;
use common::launches::{self, Event, Noted};
use kquant_moe::blocks::TensorType;
use kquant_moe::gguf::Gguf;
use kquant_moe::model::backend::Backend;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::{Gpu, weight_reads};
use kquant_moe::model::synth::{Mix, Preset, SynthOptions, synth_mix};
use kquant_moe::model::{CacheType, Config, Logits, MemoryPlan, Tensors};
use kquant_moe::trace::Stage;

/// What the files of people hold, and mixes of floats.
const MIXES: [&str; 10] = [
    "ud-q4_k_xl",
    "q5_k_m",
    "q6_k_l",
    "q8_0",
    "iq4_xs",
    "q3_k_m",
    "q2_k",
    "mxfp4,attn=bf16",
    "q4_k_m,down=q5_0",
    "bf16,experts=f16,head=f32",
];

/// Largest relative L2 distance of the logits from the f64 forward.
const MOST: f64 = 4e-7;

const TOKENS: [u32; 12] = [72, 101, 108, 108, 111, 44, 32, 119, 111, 114, 108, 100];

/// Widths that are no multiple of 256, each alone and together: mix, hidden width, expert width; query heads, KV heads and their
/// dimensions.
const NARROW: [(&str, usize, usize, [usize; 3]); 8] = [
    ("q8_0", 288, 256, [4, 2, 128]),
    ("q5_0", 256, 96, [4, 2, 128]),
    ("q4_1,down=f32", 256, 256, [2, 1, 64]),
    ("q8_0", 288, 96, [6, 2, 64]),
    ("mxfp4,attn=bf16", 288, 96, [2, 1, 64]),
    ("q4_0,experts=f16", 544, 288, [3, 1, 64]),
    ("bf16,experts=q5_1,head=f32", 288, 32, [2, 2, 64]),
    // Rows of zeros of another family.
    ("iq4_nl,down=q4_k", 32, 256, [1, 1, 192]),
];

fn narrow() -> impl Iterator<Item = (String, SynthOptions)> {
    NARROW.into_iter().map(|(mix, hidden, expert_ff, heads)| {
        let options = SynthOptions::new(Preset::Tiny, 12).layers(2).hidden(hidden).expert_ff(expert_ff).heads(heads);
        (mix.into(), options)
    })
}

fn model(mix: &str) -> Arc<Gguf> {
    shaped(mix, SynthOptions::new(Preset::Tiny, 11).layers(3))
}

fn shaped(mix: &str, options: SynthOptions) -> Arc<Gguf> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mix.gguf");
    synth_mix(&path, options, &mix.parse::<Mix>().unwrap(), &mut |_, _| {}).unwrap();
    Arc::new(Gguf::read(&path).unwrap())
}

/// The distance of a model's logits, when all experts are those of the f64 forward.
fn distance(mix: &str, gguf: Arc<Gguf>) -> f64 {
    let truth = f64_forward::forward(&gguf, &TOKENS);
    let model = common::model_of(gguf, Cpu::new());
    let mut context = model.context(common::options().trace(true)).unwrap();
    let (logits, records) = common::recorded(&model, &mut context, &TOKENS);
    for record in records.iter().filter(|record| record.stage == Stage::MoeRouterIndices) {
        let layer = record.layer.unwrap();
        let expected: Vec<u32> = truth.experts[layer].iter().flatten().map(|&expert| expert as u32).collect();
        assert_eq!(record.bits, expected, "{mix}: experts of layer {layer}");
    }
    let difference: f64 = logits.iter().zip(&truth.logits).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    (difference / truth.logits.iter().map(|x| x * x).sum::<f64>()).sqrt()
}

fn all_are_close<'a>(mixes: impl Iterator<Item = &'a str>) {
    for mix in mixes {
        let distance = distance(mix, model(mix));
        println!("| {mix} | {distance:.2e} |");
        assert!(distance <= MOST, "{mix}: relative L2 {distance:e}");
    }
}

#[test]
fn mixes_are_close_to_the_f64_forward() {
    all_are_close(MIXES.into_iter());
}

#[test]
fn every_type_is_close_to_the_f64_forward() {
    all_are_close(TensorType::ALL.iter().map(|kind| kind.name()));
}

/// Widths that are no multiple of 256 give what the file's weights alone give, and records of the file's widths.
#[test]
fn narrow_models_are_close_to_the_f64_forward() {
    for (mix, options) in narrow() {
        let gguf = shaped(&mix, options);
        let distance = distance(&mix, gguf.clone());
        println!("| {mix}, {:?}, {:?}, {:?} | {distance:.2e} |", options.hidden, options.expert_ff, options.heads);
        assert!(distance <= MOST, "{mix}, {options:?}: relative L2 {distance:e}");

        let model = common::model_of(gguf, Cpu::new());
        let &Config { hidden, heads, kv_heads, head_dim, top_k, expert_ff, .. } = model.config();
        assert_eq!((Some(hidden), Some(expert_ff)), (options.hidden, options.expert_ff));
        let mut context = model.context(common::options().trace(true)).unwrap();
        let (_, records) = common::recorded(&model, &mut context, &TOKENS[..3]);
        for record in records {
            let expected = match record.stage {
                Stage::Embedding | Stage::AttnNorm | Stage::AttnProj | Stage::AttnResidual | Stage::FfnNorm => {
                    vec![hidden]
                }
                Stage::MoeFfnOut | Stage::FfnResidual | Stage::OutputNorm => vec![hidden],
                Stage::Q | Stage::QNorm | Stage::QRope | Stage::AttnOut => vec![heads, head_dim],
                Stage::K | Stage::V | Stage::KNorm | Stage::KRope => vec![kv_heads, head_dim],
                Stage::MoeExpertGate | Stage::MoeExpertUp | Stage::MoeExpertSwiglu => vec![top_k, expert_ff],
                Stage::MoeExpertOut => vec![top_k, hidden],
                _ => continue,
            };
            assert_eq!(record.shape[1..], expected, "{mix}: {}", record.stage);
            assert_eq!(record.bits.len(), 3 * expected.iter().product::<usize>(), "{mix}: {}", record.stage);
            // No zeros are recorded in place of values.
            let zeros = record.bits.iter().filter(|&&bits| bits << 1 == 0).count();
            assert!(
                zeros * 8 < record.bits.len(),
                "{mix}: {} of layer {:?}: {zeros} zeros",
                record.stage,
                record.layer
            );
        }
    }
}

/// Of the distances something is left to see: other weights are far off.
#[test]
fn another_model_is_far_from_the_f64_forward() {
    let truth = f64_forward::forward(&model("q8_0"), &TOKENS).logits;
    let other = f64_forward::forward(&model("q5_0"), &TOKENS).logits;
    let difference: f64 = truth.iter().zip(&other).map(|(a, b)| (a - b).powi(2)).sum();
    assert!(difference > 0.1 * truth.iter().map(|x| x * x).sum::<f64>(), "{difference}");
}

/// Norms and routers are kept in f32, however they are written.
#[test]
fn norms_and_routers_may_be_of_two_bytes() {
    let of = |kind: TensorType| {
        changed(&common::gguf(), &[], |tensors| {
            let vectors = ["_norm.weight", "ffn_gate_inp.weight"];
            let of_floats = tensors.iter_mut().filter(|tensor| vectors.iter().any(|part| tensor.name.contains(part)));
            of_floats.for_each(|tensor| tensor.round(kind));
        })
    };
    let [as_bf16, as_f32] = [TensorType::BF16, TensorType::F32].map(|kind| {
        let gguf = of(kind);
        let config = Config::from_gguf(&gguf).unwrap();
        let tensors = Tensors::find(&gguf, &config).unwrap();
        assert!(tensors.layers.iter().all(|layer| [layer.router.kind(), layer.q_norm.kind()] == [kind; 2]));
        let plan = MemoryPlan::new(&config, &tensors, &common::options()).unwrap();
        let reads = [false, true].map(|slow_fp64| weight_reads(&config, &tensors, slow_fp64));
        let model = common::model_of(gguf, Cpu::new());
        let logits = model.context(common::options()).unwrap().forward(&model, &TOKENS, Logits::All).unwrap();
        (plan, reads, common::bits(&logits))
    });
    assert!(as_bf16 == as_f32);
    if let Some(device) = common::emulated_device() {
        common::equals_the_cpu(&of(TensorType::BF16), Gpu::new(device), CacheType::F32, &TOKENS[..3], 1);
    }
}

/// Attention of a single token reads the position before it waits, which only some kernels right before it allow (`Queries::Fused`).
#[test]
fn attention_of_a_single_token_follows_what_it_relies_on() {
    let Some(device) = common::emulated_device() else { return };
    for mix in ["q4_k_m", "q=bf16", "k=bf16", "v=bf16", "attn=bf16"] {
        let model = common::model_of(model(mix), Gpu::new(Noted(device.clone())));
        let mut context = model.context(common::options()).unwrap();
        launches::take();
        context.forward(&model, &TOKENS[..1], Logits::None).unwrap();
        let events = launches::take();
        let launched = |event: &Event| if let Event::Launch(launch) = event { Some(launch.kernel) } else { None };
        let kernels: Vec<_> = events.iter().filter_map(launched).collect();
        let before: Vec<_> = kernels.windows(2).filter(|pair| pair[1] == "attention").map(|pair| pair[0]).collect();
        assert_eq!(before, [if mix == "q4_k_m" { "qkv" } else { "float_matvec" }; 3], "{mix}: {kernels:?}");
    }
}

fn mixes_equal_the_cpu<B: Backend>(backend: impl Fn() -> B) {
    for mix in MIXES {
        common::equals_the_cpu(&model(mix), backend(), CacheType::F32, &TOKENS[..3], 1);
    }
    for (mix, options) in narrow() {
        common::equals_the_cpu(&shaped(&mix, options), backend(), CacheType::F16, &TOKENS[..5], 1);
    }
}

#[test]
fn mixes_equal_the_cpu_emulated() {
    if let Some(device) = common::emulated_device() {
        mixes_equal_the_cpu(|| Gpu::new(device.clone()));
    }
}

#[test]
fn mixes_equal_the_cpu_on_a_gpu() {
    if let Some(device) = common::cuda_device() {
        mixes_equal_the_cpu(|| Gpu::new(device.clone()));
    }
}
