//! The speed of the full-size shape. Needs a GPU and a model file, which `kquant-moe synth --preset qwen3-30b-a3b` writes:
//! `KQUANT_MOE_FULL_MODEL=big.gguf cargo test --release --test throughput -- --nocapture`.

#[path = "common/kernels.rs"]
mod common;

use std::env;
use std::sync::Arc;
use std::time::Instant;

use kquant_moe::device::CUDA_BUILD;
use kquant_moe::gguf::Gguf;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{ContextOptions, LoadOptions, Logits, Model};

/// What llama.cpp (ggml 0.26, flash attention, CUDA graphs) reaches on an H200 with this file: positions in use, tokens/s.
const DECODE: [(usize, f64); 3] = [(0, 292.0), (2048, 274.0), (6000, 255.0)];
/// The same, tokens of a prompt, with the better one of its micro-batches of 512 and of 2,048.
const PREFILL: [(usize, f64); 5] = [(8, 912.0), (32, 1309.0), (128, 2273.0), (512, 7341.0), (2048, 11353.0)];
const RUNS: usize = 3;
const TOKENS: usize = 128;

fn best(mut run: impl FnMut() -> f64) -> f64 {
    run();
    (0..RUNS).map(|_| run()).fold(0.0, f64::max)
}

#[test]
fn decode_and_prefill_on_a_gpu_beat_the_figures_to_beat() {
    let Some(device) = common::cuda_device() else { return };
    let Some(path) = env::var_os("KQUANT_MOE_FULL_MODEL") else {
        println!("skipped: KQUANT_MOE_FULL_MODEL names no model");
        return;
    };
    let card = device.describe().unwrap();
    println!("{card}; built with {}", CUDA_BUILD.unwrap());
    // SAFETY: the file stays as it is while the test runs.
    let gguf = Arc::new(unsafe { Gguf::map(path).unwrap() });
    let options = LoadOptions::default().check_blocks(false);
    let model = Model::load(gguf, Gpu::new(device), options, &mut |_, _| {}).unwrap();
    let vocab = model.config().vocab as u32;
    // In no order, so that all experts are used.
    let prompt: Vec<u32> = (0..6000_u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
    let mut context = model.context(ContextOptions::default().capacity(8192)).unwrap();

    let mut slow = Vec::new();
    let mut check = |what: &str, rate: f64, bar: f64| {
        println!("{what}: {rate:.1} tokens/s, to beat: {bar} on an H200");
        if rate < bar {
            slow.push(format!("{what}: {rate:.1} tokens/s"));
        }
    };
    for (tokens, bar) in PREFILL {
        let rate = best(|| {
            context.reset();
            let start = Instant::now();
            context.next_token(&model, &prompt[..tokens]).unwrap();
            tokens as f64 / start.elapsed().as_secs_f64()
        });
        check(&format!("prefill of {tokens}"), rate, bar);
    }
    for (depth, bar) in DECODE {
        context.reset();
        if depth > 0 {
            context.forward(&model, &prompt[..depth], Logits::None).unwrap();
        }
        let rate = best(|| {
            context.truncate(depth);
            let mut token = 1;
            let start = Instant::now();
            for _ in 0..TOKENS {
                token = context.next_token(&model, &[token]).unwrap();
            }
            TOKENS as f64 / start.elapsed().as_secs_f64()
        });
        check(&format!("decode at depth {depth}"), rate, bar);
    }
    // The figures are of that card: another one's are only shown.
    assert!(!card.contains("H200") || slow.is_empty(), "too slow: {}", slow.join(", "));
}
