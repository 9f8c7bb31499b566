//! The forward of the test model: the kernels against the CPU, in bits, and the CPU against Hugging Face transformers.

#[path = "common/kernels.rs"]
mod common;
#[path = "common/mod.rs"]
mod reference;

use std::collections::BTreeMap;

use common::{Size, on_devices};
use kquant_moe::device::Device;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{Backend, CacheType, ContextOptions, Logits, Model};
use kquant_moe::trace::{Data, Record, Select, Selection, Stage};

on_devices!(every_value_is_equal, prompts_continue_equally);

/// Values of a stage, as bits, by position.
type Trace = BTreeMap<(Option<usize>, Stage), Vec<u32>>;

/// Everything that a forward over `calls` computes.
fn trace<B: Backend>(model: &Model<B>, options: ContextOptions, calls: &[&[u32]]) -> Trace {
    let mut context = common::ok(model.context(ContextOptions { trace: true, ..options }));
    let mut trace = Trace::new();
    for call in calls {
        let record = |record: Record<'_>| {
            let values = trace.entry((record.layer, record.stage)).or_default();
            match record.data {
                Data::F32(data) => values.extend(data.iter().map(|value| value.to_bits())),
                Data::U32(data) => values.extend(data),
            }
            Ok(())
        };
        let mut sink = Select { selection: Selection::default(), record };
        common::ok(context.trace(model, call, Logits::All, &mut sink));
    }
    trace
}

/// Every stage of every layer, the experts' indices among them, in one prefill and token by token.
fn every_value_is_equal<D: Device>(device: &D, size: Size) {
    let (cpu, gpu) = (reference::model(Cpu::new()), reference::model(Gpu::new(device.clone())));
    let caches: &[CacheType] = if size == Size::Full { &[CacheType::F32, CacheType::F16] } else { &[CacheType::F16] };
    let prompts = reference::prompts();
    for (tokens, &cache) in prompts.iter().flat_map(|prompt| caches.iter().map(move |cache| (&prompt.tokens, cache))) {
        let options = ContextOptions { cache, capacity: 64, ..reference::options() };
        // At once, token by token, and decode after a prefill.
        let (first, last) = tokens.split_at(tokens.len() - 1);
        for calls in [vec![&tokens[..]], tokens.chunks(1).collect(), vec![first, last]] {
            let (expected, found) = (trace(&cpu, options, &calls), trace(&gpu, options, &calls));
            assert_eq!(found.len(), 3 + cpu.config().layers * (Stage::ALL.len() - 3));
            assert!(expected.keys().eq(found.keys()));
            for ((layer, stage), expected) in &expected {
                let what =
                    format!("{stage} of layer {layer:?}, {cache:?}, {} tokens in {} calls", tokens.len(), calls.len());
                common::assert_same(&what, &found[&(*layer, *stage)], expected);
            }
        }
    }
}

/// The most probable token at every position, as the backend's own argmax gives it, and the greedy continuation.
fn prompts_continue_equally<D: Device>(device: &D, size: Size) {
    let (cpu, gpu) = (reference::model(Cpu::new()), reference::model(Gpu::new(device.clone())));
    let count = if size == Size::Full { 64 } else { 8 };
    let options = ContextOptions { capacity: 128, ..reference::options() };
    let (mut on_cpu, mut on_gpu) = (cpu.context(options).unwrap(), common::ok(gpu.context(options)));
    for prompt in reference::prompts() {
        let tokens = prompt.tokens;
        on_cpu.reset();
        on_gpu.reset();
        let next = |_| std::ops::ControlFlow::Continue(());
        let expected = on_cpu.generate(&cpu, &tokens, count, next).unwrap();
        assert_eq!(common::ok(on_gpu.generate(&gpu, &tokens, count, next)), expected);
    }
}

#[test]
fn values_are_finite_and_the_weights_of_experts_sum_to_one() {
    let model = reference::model(Cpu::new());
    let top_k = model.config().top_k;
    for prompt in reference::prompts() {
        for ((layer, stage), values) in trace(&model, reference::options(), &[&prompt.tokens]) {
            let values: Vec<f32> = values.into_iter().map(f32::from_bits).collect();
            match stage {
                Stage::MoeRouterIndices => continue,
                // Minus infinity where masked, and nowhere else.
                Stage::AttnScores => {
                    let (seen, heads) = (prompt.tokens.len(), model.config().heads);
                    let masked = |index: usize| index % seen > index / (heads * seen);
                    let right = |(index, &value): (usize, &f32)| {
                        if masked(index) { value == f32::NEG_INFINITY } else { value.is_finite() }
                    };
                    assert!(values.iter().enumerate().all(right), "{stage} of layer {layer:?}");
                    continue;
                }
                Stage::MoeRouter => {
                    for weights in values.chunks(top_k) {
                        let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
                        assert!((sum - 1.0).abs() <= 1e-6, "layer {layer:?}: {weights:?} sum to {sum}");
                    }
                }
                _ => {}
            }
            assert!(values.iter().all(|value| value.is_finite()), "{stage} of layer {layer:?}");
        }
    }
}

/// Transformers in f32 on the dequantized weights: further from the f64 forward than this crate is.
#[test]
fn hugging_face_gives_the_same_tokens() {
    let model = reference::model(Cpu::new());
    let vocab = model.config().vocab;
    let largest = |row: &[f32]| (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap();
    for prompt in reference::prompts() {
        let theirs = reference::hugging_face(&prompt.name);
        let mut context = model.context(reference::options()).unwrap();
        let ours = context.forward(&model, &prompt.tokens, Logits::All).unwrap();
        let distance = reference::relative_l2(&ours, &theirs);
        let truth = reference::relative_l2(&theirs, &prompt.logits);
        println!("{}: relative L2 {distance:.3e}; theirs to the f64 forward {truth:.3e}", prompt.name);
        assert!(distance <= 1e-6, "{}: relative L2 {distance:e}", prompt.name);
        assert!(reference::relative_l2(&ours, &prompt.logits) < truth, "{}: closer than ours", prompt.name);
        for (token, (ours, theirs)) in ours.chunks(vocab).zip(theirs.chunks(vocab)).enumerate() {
            assert_eq!(largest(ours), largest(theirs), "{}: most probable token at {token}", prompt.name);
        }
    }
}
