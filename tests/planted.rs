//! Faults planted in weights and in the cache, one at a time: a test of `diff`. It must name the layer and the stage in
//! which a fault shows first, the value there, and the stage before as the last that agrees. The truth is the CPU's
//! trace without the fault; the other trace is the CPU's own, that of the emulated kernels, or that of a GPU where
//! there is one.

mod common;

use std::sync::Arc;

use common::changed::{changed, tensor};
use common::launches::{Noted, before_attention};
use common::random::Random;
use common::{Recorded, compared, cuda_device, emulated_device};
use half::f16;
use kquant_moe::Error;
use kquant_moe::blocks::Factor;
use kquant_moe::blocks::TensorType::{self, Q4K, Q6K};
use kquant_moe::device::Device;
use kquant_moe::diff::{Point, Report, Verdict};
use kquant_moe::gguf::Gguf;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::synth::{Preset, SynthOptions, synth};
use kquant_moe::model::{Backend, CacheType, ContextOptions, LoadOptions, Logits, Model};
use kquant_moe::trace::Stage;

/// The first layer, one in the middle, and the last.
const LAYERS: usize = 3;
const TOKENS: [u32; 4] = [766, 306, 598, 284];
/// What stages with a smaller cosine than diverge, unless `diff` is told otherwise.
const MIN_COSINE: f64 = 0.99;
/// `diff --exact`.
const EXACT: f64 = f64::INFINITY;

/// The quantized matrices of a layer, and the stages that they feed.
const MATRICES: [(&str, Stage); 7] = [
    ("attn_q", Stage::Q),
    ("attn_k", Stage::K),
    ("attn_v", Stage::V),
    ("attn_output", Stage::AttnProj),
    ("ffn_gate_exps", Stage::MoeExpertGate),
    ("ffn_up_exps", Stage::MoeExpertUp),
    ("ffn_down_exps", Stage::MoeExpertOut),
];

/// Where a block has its factors, of two bytes each. The first one is that of the scales.
fn factors(kind: TensorType) -> Vec<usize> {
    let place = |&factor: &Factor| match factor {
        Factor::Half(at) => at,
        other => unreachable!("{other:?}"),
    };
    kind.factors().iter().map(place).collect()
}

/// A small model whose matrices are all of one type. Read as the other type their bytes are finite weights, too, so
/// that no check of a loader can tell.
fn model_file(kind: TensorType) -> Arc<Gguf> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("small.gguf");
    synth(&path, SynthOptions::new(Preset::Tiny, 3).layers(LAYERS), &mut |_, _| {}).unwrap();
    let mut random = Random::new(70);
    let other = if kind == Q4K { Q6K } else { Q4K };
    changed(&Gguf::read(&path).unwrap(), &[], |tensors| {
        for layer in 0..LAYERS {
            for (part, _) in MATRICES {
                let tensor = tensor(tensors, &format!("blk.{layer}.{part}.weight"));
                let blocks = tensor.dims.iter().product::<u64>() as usize / 256;
                tensor.kind = kind.into();
                tensor.data = if kind == Q4K { random.q4_k(blocks) } else { random.q6_k(blocks) };
                for block in tensor.data.chunks_exact_mut(other.block_bytes()) {
                    // Below 2, as the blocks' own factors are.
                    factors(other).iter().for_each(|at| block[at + 1] &= !0x40);
                }
            }
        }
    })
}

fn load<B: Backend>(gguf: &Arc<Gguf>, backend: B) -> Model<B> {
    Model::load(gguf.clone(), backend, LoadOptions::default().check_blocks(false), &mut |_, _| {}).unwrap()
}

fn options() -> ContextOptions {
    common::options().capacity(16).trace(true)
}

/// All stages of all tokens.
fn trace<B: Backend>(gguf: &Arc<Gguf>, backend: B) -> Vec<Recorded> {
    let model = load(gguf, backend);
    let mut context = model.context(options()).unwrap();
    common::recorded(&model, &mut context, &TOKENS).1
}

/// The report names this point as the first that diverges, with the verdict and the value, and the one before as the
/// last that agrees; everything before is equal in bits.
#[track_caller]
fn assert_found(what: &str, report: &Report, layer: usize, stage: Stage, verdict: Verdict, index: Option<usize>) {
    let at = |stage| Point { layer: Some(layer), stage };
    let before = Stage::ALL.iter().rev().find(|&&other| other < stage).unwrap();
    let (point, row) = report.first_divergence().unwrap_or_else(|| panic!("{what}: nothing diverges"));
    assert_eq!((*point, row.verdict), (at(stage), verdict), "{what}");
    if let Some(index) = index {
        assert_eq!(row.first_bad, Some(index), "{what}: first bad value");
    }
    let (point, row) = report.last_agreement().unwrap();
    assert_eq!((*point, row.verdict), (at(*before), Verdict::Equal), "{what}: last that agrees");
    assert_eq!(report.first_difference().unwrap().0, at(stage), "{what}: first whose bits differ");
}

/// One factor of one block of every matrix in turn: 64 times as large, and off by one in its last bit.
fn a_changed_scale_is_found<B: Backend + Clone>(backend: &B, kinds: &[TensorType]) {
    const ROW: usize = 37;
    for &kind in kinds {
        let good = model_file(kind);
        let truth = trace(&good, Cpu::new());
        for (layer, (part, stage)) in (0..LAYERS).flat_map(|layer| MATRICES.map(|matrix| (layer, matrix))) {
            // The expert that the last token takes last, and the first token and rank that take it.
            let chosen = truth.iter().find(|record| {
                part.ends_with("_exps") && (record.layer, record.stage) == (Some(layer), Stage::MoeRouterIndices)
            });
            let expert = chosen.map_or(0, |record| record.bits[record.bits.len() - 1] as usize);
            let pair = chosen.map_or(0, |record| record.bits.iter().position(|&e| e as usize == expert).unwrap());
            for (change, min_cosine) in [(64.0, MIN_COSINE), (1.0, EXACT)] {
                let mut rows = 0;
                let bad = changed(&good, &[], |tensors| {
                    let tensor = tensor(tensors, &format!("blk.{layer}.{part}.weight"));
                    rows = tensor.dims[1] as usize;
                    let blocks = tensor.dims[0] as usize / 256;
                    // The last block of the row.
                    let at = ((expert * rows + ROW + 1) * blocks - 1) * kind.block_bytes() + factors(kind)[0];
                    let place = &mut tensor.data[at..at + 2];
                    let factor = f16::from_le_bytes([place[0], place[1]]);
                    let new = match change {
                        1.0 => f16::from_bits(factor.to_bits() ^ 1),
                        _ => f16::from_f64(factor.to_f64() * change),
                    };
                    assert!(new.is_finite() && new != factor);
                    place.copy_from_slice(&new.to_le_bytes());
                });
                let what = format!("{kind:?} scale times {change} in blk.{layer}.{part}");
                let report = compared(&truth, &trace(&bad, backend.clone()), min_cosine);
                assert_found(&what, &report, layer, stage, Verdict::Diverge, Some(pair * rows + ROW));
            }
        }
    }
}

#[test]
fn a_changed_scale_on_the_cpu() {
    a_changed_scale_is_found(&Cpu::new(), &[Q4K, Q6K]);
}

#[test]
fn a_changed_q4_k_scale_emulated() {
    if let Some(device) = emulated_device() {
        a_changed_scale_is_found(&Gpu::new(device), &[Q4K]);
    }
}

#[test]
fn a_changed_q6_k_scale_emulated() {
    if let Some(device) = emulated_device() {
        a_changed_scale_is_found(&Gpu::new(device), &[Q6K]);
    }
}

#[test]
fn a_changed_scale_on_a_gpu() {
    if let Some(device) = cuda_device() {
        a_changed_scale_is_found(&Gpu::new(device), &[Q4K, Q6K]);
    }
}

/// The file with a tensor said to be of the other type, and its bytes filled up with zeros or cut to that type's size.
fn mislabelled(good: &Gguf, name: &str) -> Arc<Gguf> {
    changed(good, &[], |tensors| {
        let tensor = tensor(tensors, name);
        let other = if tensor.kind == Q4K.into() { Q6K } else { Q4K };
        tensor.kind = other.into();
        tensor.data.resize(tensor.dims.iter().product::<u64>() as usize / 256 * other.block_bytes(), 0);
    })
}

/// Bytes of one type read as the other: every matrix of the experts in turn.
fn a_mislabelled_type_is_found<B: Backend + Clone>(backend: &B) {
    for kind in [Q4K, Q6K] {
        let good = model_file(kind);
        let truth = trace(&good, Cpu::new());
        for (layer, &(part, stage)) in (0..LAYERS).flat_map(|layer| MATRICES[4..].iter().map(move |m| (layer, m))) {
            let name = format!("blk.{layer}.{part}.weight");
            let bad = mislabelled(&good, &name);
            // It looks sound.
            common::model_of(bad.clone(), Cpu::new());
            let report = compared(&truth, &trace(&bad, backend.clone()), MIN_COSINE);
            assert_found(&format!("{kind:?} of {name} as the other"), &report, layer, stage, Verdict::Diverge, Some(0));
        }
    }
}

#[test]
fn a_mislabelled_type_on_the_cpu() {
    a_mislabelled_type_is_found(&Cpu::new());
}

#[test]
fn a_mislabelled_type_emulated() {
    if let Some(device) = emulated_device() {
        a_mislabelled_type_is_found(&Gpu::new(device));
    }
}

#[test]
fn a_mislabelled_type_on_a_gpu() {
    if let Some(device) = cuda_device() {
        a_mislabelled_type_is_found(&Gpu::new(device));
    }
}

/// Trained weights are no finite ones of another type: the file is refused, and where that is not checked, `diff` says
/// NaN.
#[test]
fn a_mislabelled_type_of_trained_weights() {
    let good = common::gguf();
    let truth = trace(&good, Cpu::new());
    for (layer, (part, stage)) in [(0, MATRICES[4]), (1, MATRICES[6]), (2, MATRICES[5]), (3, MATRICES[6])] {
        let name = format!("blk.{layer}.{part}.weight");
        let bad = mislabelled(&good, &name);
        let refused = Model::load(bad.clone(), Cpu::new(), LoadOptions::default(), &mut |_, _| {}).map(drop);
        assert!(matches!(&refused, Err(Error::Model(text)) if text.contains(&name)), "{refused:?}");
        let report = compared(&truth, &trace(&bad, Cpu::new()), MIN_COSINE);
        assert_found(&name, &report, layer, stage, Verdict::NanB, None);
    }
}

/// What is wrong in the cache.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spoiled {
    Key,
    Value,
}

/// Position, and element of the key or value there.
const POSITION: usize = 1;
const ELEMENT: usize = 128 + 77;
const HEAD_DIM: usize = 128;
/// Query heads, and those of them that share a KV head.
const HEADS: usize = 4;
const SHARED: usize = 2;

/// A NaN at `POSITION` of one layer's cache, behind which `rows` tokens are traced, has come to the scores of the heads
/// that see it, or to one dimension of their outputs.
#[track_caller]
fn assert_nan_found(report: &Report, layer: usize, spoiled: Spoiled, rows: usize) {
    let head = ELEMENT / HEAD_DIM * SHARED;
    let (stage, index) = match spoiled {
        Spoiled::Key => (Stage::AttnScores, head * (POSITION + 1 + rows) + POSITION),
        Spoiled::Value => (Stage::AttnOut, head * HEAD_DIM + ELEMENT % HEAD_DIM),
    };
    let what = format!("{spoiled:?} of layer {layer}, {rows} tokens");
    assert_found(&what, report, layer, stage, Verdict::NanB, Some(index));
    let nan = report.first_divergence().unwrap().1.b.as_ref().unwrap().1.nan;
    assert_eq!(nan, rows * SHARED, "{what}: NaNs");
}

/// One element of the cache, in the memory of a device, becomes NaN between two calls.
fn a_nan_in_the_cache_is_found<D: Device>(device: &D) {
    let gguf = model_file(Q4K);
    let (cpu, gpu) = (load(&gguf, Cpu::new()), load(&gguf, Gpu::new(Noted(device.clone()))));
    let (first, rest) = TOKENS.split_at(POSITION + 1);
    for (cache, nan) in
        [(CacheType::F32, f32::NAN.to_le_bytes().to_vec()), (CacheType::F16, f16::NAN.to_le_bytes().to_vec())]
    {
        let options = options().cache(cache);
        let (mut right, mut wrong) = (cpu.context(options).unwrap(), gpu.context(options).unwrap());
        // A batch, and the single token of a decode step.
        for rest in [rest, &rest[..1]] {
            right.reset();
            right.forward(&cpu, first, Logits::None).unwrap();
            let truth = common::recorded(&cpu, &mut right, rest).1;
            for (layer, spoiled) in (0..LAYERS).flat_map(|layer| [(layer, Spoiled::Key), (layer, Spoiled::Value)]) {
                wrong.reset();
                wrong.forward(&gpu, first, Logits::None).unwrap();
                let (mut launches, device, nan) = (0.., device.clone(), nan.clone());
                before_attention(Some(Box::new(move |args| {
                    if launches.next() == Some(layer) {
                        assert_eq!((args.kv_heads * args.head_dim) as usize, HEADS / SHARED * HEAD_DIM);
                        let cache = if spoiled == Spoiled::Key { args.k_cache } else { args.v_cache };
                        let element = POSITION * HEADS / SHARED * HEAD_DIM + ELEMENT;
                        // SAFETY: the element lies in the cache, whose pages are in order: [positions, kv_heads, head_dim].
                        unsafe { device.upload(cache as u64 + (element * nan.len()) as u64, &nan) }.unwrap();
                        // The launch is on another queue.
                        device.synchronize().unwrap();
                    }
                })));
                let found = common::recorded(&gpu, &mut wrong, rest).1;
                before_attention(None);
                assert_nan_found(&compared(&truth, &found, MIN_COSINE), layer, spoiled, rest.len());
            }
        }
    }
}

#[test]
fn a_nan_in_the_cache_emulated() {
    if let Some(device) = emulated_device() {
        a_nan_in_the_cache_is_found(&device);
    }
}

#[test]
fn a_nan_in_the_cache_on_a_gpu() {
    if let Some(device) = cuda_device() {
        a_nan_in_the_cache_is_found(&device);
    }
}

/// The cache of a backend cannot be reached from outside. A model with a NaN among the weights of one layer's keys or
/// values computes one token of the context, which is not traced; the right model goes on from there.
fn a_nan_projected_into_the_cache_is_found<B: Backend + Clone>(backend: &B) {
    let good = model_file(Q4K);
    let (cpu, right_model) = (load(&good, Cpu::new()), load(&good, backend.clone()));
    let (first, rest) = TOKENS.split_at(POSITION + 1);
    let mut right = cpu.context(options()).unwrap();
    right.forward(&cpu, first, Logits::None).unwrap();
    let truth = common::recorded(&cpu, &mut right, rest).1;
    for (layer, (part, spoiled)) in
        (0..LAYERS).flat_map(|layer| [("attn_k", Spoiled::Key), ("attn_v", Spoiled::Value)].map(|part| (layer, part)))
    {
        let bad = changed(&good, &[], |tensors| {
            let at = ELEMENT * Q4K.block_bytes();
            let tensor = tensor(tensors, &format!("blk.{layer}.{part}.weight"));
            tensor.data[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
        });
        let wrong_model = load(&bad, backend.clone());
        let mut context = right_model.context(options()).unwrap();
        context.forward(&right_model, &first[..POSITION], Logits::None).unwrap();
        context.forward(&wrong_model, &first[POSITION..], Logits::None).unwrap();
        let found = common::recorded(&right_model, &mut context, rest).1;
        assert_nan_found(&compared(&truth, &found, MIN_COSINE), layer, spoiled, rest.len());
    }
}

#[test]
fn a_nan_projected_into_the_cache_on_the_cpu() {
    a_nan_projected_into_the_cache_is_found(&Cpu::new());
}

#[test]
fn a_nan_projected_into_the_cache_emulated() {
    if let Some(device) = emulated_device() {
        a_nan_projected_into_the_cache_is_found(&Gpu::new(device));
    }
}

#[test]
fn a_nan_projected_into_the_cache_on_a_gpu() {
    if let Some(device) = cuda_device() {
        a_nan_projected_into_the_cache_is_found(&Gpu::new(device));
    }
}
