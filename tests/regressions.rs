//! What went wrong in other programs, or here, and must not again.

mod common;

use common::changed::{changed, tensor};
use common::random::Random;
use common::{cuda_device, emulated_device};
use kquant_moe::blocks::TensorType::{self, Q4K, Q6K};
use kquant_moe::diff::Verdict;
use kquant_moe::gguf::Gguf;
use kquant_moe::model::backend::Backend;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::synth::{Preset, SynthOptions, synth};
use kquant_moe::model::{CacheType, ContextOptions, LoadOptions, Logits, Model};
use kquant_moe::trace::Stage;
use std::sync::Arc;

/// A model of eight layers with all mixes of Q4_K and Q6_K among the experts' matrices, and among q, k, v and the output
/// of attention.
fn mixed_model() -> Arc<Gguf> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mixed.gguf");
    synth(&path, SynthOptions { preset: Preset::Tiny, layers: Some(8), seed: 1 }, &mut |_, _| {}).unwrap();
    let mut random = Random::new(60);
    changed(&Gguf::read(&path).unwrap(), &[], |tensors| {
        for layer in 0..8 {
            let parts = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "attn_q", "attn_k", "attn_v", "attn_output"];
            for (bit, part) in parts.into_iter().enumerate() {
                // The last four are of the mix of another layer.
                let mix = if bit < 3 { layer } else { 11 * layer + 5 };
                let kind = if mix >> (bit % 4) & 1 == 0 { Q4K } else { Q6K };
                let tensor = tensor(tensors, &format!("blk.{layer}.{part}.weight"));
                let blocks = tensor.dims.iter().product::<u64>() as usize / 256;
                tensor.kind = kind.into();
                tensor.data = if kind == Q4K { random.q4_k(blocks) } else { random.q6_k(blocks) };
            }
        }
    })
}

/// Bytes of one type must not come to the kernel of another, whichever operand of whichever layer has them.
fn dispatches_by_type<B: Backend>(backend: B) {
    let gguf = mixed_model();
    let kinds: Vec<[TensorType; 3]> = (0..8)
        .map(|layer| {
            ["gate", "up", "down"].map(|part| {
                let name = format!("blk.{layer}.ffn_{part}_exps.weight");
                gguf.require_tensor(&name).unwrap().tensor_type().unwrap()
            })
        })
        .collect();
    assert!((0..8).all(|i| (0..i).all(|j| kinds[i] != kinds[j])), "{kinds:?}");
    common::equals_the_cpu(&gguf, backend, CacheType::F16, &[3, 1, 4, 1, 5], 2);
}

#[test]
fn every_mix_of_types_emulated() {
    if let Some(device) = emulated_device() {
        dispatches_by_type(Gpu::new(device));
    }
}

#[test]
fn every_mix_of_types_cuda() {
    if let Some(device) = cuda_device() {
        dispatches_by_type(Gpu::new(device));
    }
}

#[test]
fn a_file_without_dense_ffn_tensors_loads() {
    let gguf = changed(&common::gguf(), &[("qwen3moe.feed_forward_length", None)], |tensors| {
        tensors.retain(|tensor| {
            let dense = ["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"];
            !dense.iter().any(|name| tensor.name.ends_with(name))
        });
    });
    let model = common::model_of(gguf, Cpu::new());
    let mut context = model.context(common::options()).unwrap();
    let logits = context.forward(&model, &[1, 2, 3], Logits::Last).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
}

/// Logits that are all NaN say nothing; the report names the stage, the layer and the value where it began.
#[test]
fn nan_logits_are_reported_with_the_first_bad_stage() {
    let spoiled = changed(&common::gguf(), &[], |tensors| {
        // The factor of row 5.
        let at = 5 * Q4K.block_bytes();
        let k = tensor(tensors, "blk.1.attn_k.weight");
        assert_eq!((k.kind, k.dims[0]), (Q4K.into(), 256));
        k.data[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    });
    let trace = |gguf| {
        let options = LoadOptions { check_blocks: false, ..LoadOptions::default() };
        let model = Model::load(gguf, Cpu::new(), options, &mut |_, _| {}).unwrap();
        let mut context = model.context(ContextOptions { trace: true, ..common::options() }).unwrap();
        common::recorded(&model, &mut context, &[1, 2, 3]).1
    };
    let report = common::compared(&trace(common::gguf()), &trace(spoiled), 0.99);
    let (last, logits) = &report.rows[report.rows.len() - 1];
    assert_eq!((last.stage, logits.verdict), (Stage::Logits, Verdict::NanB));
    let (shape, summary) = logits.b.as_ref().unwrap();
    assert_eq!(summary.nan, shape.iter().product::<usize>(), "all of them");
    let (point, first) = report.first_divergence().unwrap();
    assert_eq!(point.to_string(), "layer01.k");
    assert_eq!((first.verdict, first.first_bad), (Verdict::NanB, Some(5)));
    assert_eq!(report.last_agreement().unwrap().0.to_string(), "layer01.q");
}
