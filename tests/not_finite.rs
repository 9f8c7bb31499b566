//! Values that are not finite are an error that says where they begin, in every way of computing.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::changed::tensor;
use common::emulated_device;
use kquant_moe::Error;
use kquant_moe::gguf::Gguf;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{Backend, CacheType, Context, LoadOptions, Logits, Model};
use kquant_moe::oracle::sample::Sampling;
use kquant_moe::trace::NoTrace;

const TOKENS: [u32; 5] = [766, 306, 598, 284, 280];

/// The test model with an embedding of one token that is not finite.
fn wrong_row(token: u32) -> Arc<Gguf> {
    common::changed::changed(&common::gguf(), &[], |tensors| {
        let table = tensor(tensors, "token_embd.weight");
        assert_eq!(table.kind.name(), "Q4_K");
        table.data[token as usize * 144..][..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    })
}

fn unchecked<B: Backend>(gguf: Arc<Gguf>, backend: B) -> Model<B> {
    let options = LoadOptions::default().check_blocks(false);
    Model::load(gguf, backend, options, &mut |_, _| {}).unwrap()
}

/// A model whose last stage gives what is too large, of which no later token takes notice.
fn large_norm() -> Arc<Gguf> {
    common::changed::changed(&common::gguf(), &[], |tensors| {
        tensor(tensors, "output_norm.weight").data = f32::MAX.to_le_bytes().repeat(256);
    })
}

fn context<B: Backend>(model: &Model<B>, trace: bool) -> Context<B> {
    let options = common::options().capacity(24).cache(CacheType::F16).trace(trace);
    model.context(options).unwrap()
}

#[track_caller]
fn place<T>(result: Result<T, Error>) -> (usize, Option<String>) {
    match result {
        Err(Error::NotFinite { position, point }) => (position, point.map(|point| point.to_string())),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no error"),
    }
}

/// Keys of 1e5 times the size do not fit into a cache of half precision.
fn large_keys() -> Arc<Gguf> {
    common::changed::changed(&common::gguf(), &[], |tensors| {
        for value in tensor(tensors, "blk.0.attn_k_norm.weight").data.as_chunks_mut().0 {
            *value = (f32::from_le_bytes(*value) * 1e5).to_le_bytes();
        }
    })
}

fn every_call_says_where<B: Backend + Clone>(backend: &B) {
    // The first key is infinite already. It shows in the scores, behind the rotation.
    let model = common::model_of(large_keys(), backend.clone());
    for (trace, point) in [(false, None), (true, Some("layer00.attn_scores".to_owned()))] {
        let mut context = context(&model, trace);
        let expected = (0, point);
        for logits in [Logits::Last, Logits::All] {
            assert_eq!(place(context.forward(&model, &TOKENS, logits)), expected);
        }
        assert_eq!(place(context.next_token(&model, &TOKENS)), expected);
        assert_eq!(place(context.generate(&model, &TOKENS, 3, |_| ControlFlow::Continue(()))), expected);
        let sampled = context.generate_sampled(&model, &TOKENS, 3, &Sampling::default(), |_| ControlFlow::Continue(()));
        assert_eq!(place(sampled), expected);
        assert_eq!(place(context.sample_token(&model, &TOKENS, &Sampling::default())), expected);
        assert_eq!(place(context.decode(&model, TOKENS[0], 4)), expected);
        assert_eq!(context.position(), 0);
        // Nobody looks at what only extends the cache; a trace shows what there is.
        context.forward(&model, &TOKENS[..2], Logits::None).unwrap();
        assert_eq!(context.position(), 2);
        assert_eq!(place(context.forward(&model, &TOKENS[2..], Logits::Last)).0, 2);
        context.reset();
        let logits = context.trace(&model, &TOKENS, Logits::All, &mut NoTrace).unwrap();
        assert!(logits.iter().all(|logit| logit.is_nan()));
    }

    // The third token is the first that is wrong.
    let model = unchecked(wrong_row(TOKENS[2]), backend.clone());
    for (trace, point) in [(false, None), (true, Some("embedding".to_owned()))] {
        let mut context = context(&model, trace);
        let expected = (2, point);
        assert_eq!(place(context.forward(&model, &TOKENS, Logits::Last)), expected);
        assert_eq!(place(context.forward(&model, &TOKENS, Logits::All)), expected);
        assert_eq!(place(context.next_token(&model, &TOKENS)), expected);
        assert_eq!(context.position(), 0);
        context.forward(&model, &TOKENS[..2], Logits::Last).unwrap();
        assert_eq!(place(context.next_token(&model, &TOKENS[2..])), expected);
        assert_eq!(place(context.decode(&model, TOKENS[2], 1)), expected);
        assert_eq!(context.position(), 2);
    }

    // Somewhere in the middle of many steps at once: the token that the third one chooses.
    let model = common::model_of(common::gguf(), backend.clone());
    let steps = context(&model, false).decode(&model, TOKENS[0], 8).unwrap();
    let third = steps[2];
    assert!(!steps[..2].contains(&third) && third != TOKENS[0]);
    let model = unchecked(wrong_row(third), backend.clone());
    for (trace, point) in [(false, None), (true, Some("embedding".to_owned()))] {
        let mut context = context(&model, trace);
        // Also where steps are replayed.
        for _ in 0..2 {
            assert_eq!(context.decode(&model, TOKENS[0], 3).unwrap(), steps[..3]);
            context.reset();
        }
        assert_eq!(place(context.decode(&model, TOKENS[0], 8)), (3, point.clone()));
        assert_eq!(context.position(), 0);
        let mut seen = Vec::new();
        let generated = context.generate(&model, &TOKENS[..1], 8, |token| {
            seen.push(token);
            ControlFlow::Continue(())
        });
        assert_eq!(place(generated), (3, point));
        assert!(steps[..3].starts_with(&seen) && !seen.is_empty(), "{seen:?}");
    }

    // What only the last stage makes of every token.
    let model = common::model_of(large_norm(), backend.clone());
    let mut context = context(&model, true);
    let (position, point) = place(context.forward(&model, &TOKENS, Logits::All));
    assert_eq!((position, point.as_deref()), (0, Some("output_norm")));
    assert_eq!(place(context.decode(&model, TOKENS[0], 2)).0, 0);
}

#[test]
fn on_the_cpu() {
    every_call_says_where(&Cpu::new());
}

#[test]
fn emulated() {
    if let Some(device) = emulated_device() {
        every_call_says_where(&Gpu::new(device));
    }
}

#[test]
fn on_a_gpu() {
    if let Some(device) = common::cuda_device() {
        every_call_says_where(&Gpu::new(device));
    }
}

#[test]
fn the_message_says_it() {
    let model = unchecked(wrong_row(TOKENS[2]), Cpu::new());
    let text = |trace| context(&model, trace).forward(&model, &TOKENS, Logits::Last).unwrap_err().to_string();
    assert_eq!(text(false), "the values at position 2 are not finite");
    assert_eq!(text(true), "the values at position 2 are not finite, first those of embedding");
}

#[test]
fn a_sampling_that_makes_no_sense_is_refused_before_anything_is_computed() {
    let model = common::model(Cpu::new());
    let mut context = context(&model, false);
    let cold = Sampling { temperature: -1.0, ..Sampling::default() };
    let repeated = Sampling { penalty: 1.5, window: 3, ..Sampling::default() };
    for sampling in [cold, repeated] {
        assert!(matches!(context.sample_token(&model, &TOKENS, &sampling), Err(Error::Invalid(_))));
        assert_eq!(context.position(), 0);
    }
    // With one token left of all, sampling is greedy.
    let first = Sampling { top_k: 1, seed: 5, ..Sampling::default() };
    let sampled = context.generate_sampled(&model, &TOKENS, 6, &first, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(context.position(), TOKENS.len() + 5);
    context.reset();
    assert_eq!(sampled, context.generate(&model, &TOKENS, 6, |_| ControlFlow::Continue(())).unwrap());
    // Tokens depend on their positions, not on how the sequence got there.
    let warm = Sampling { seed: 9, ..Sampling::default() };
    context.reset();
    let sampled = context.generate_sampled(&model, &TOKENS, 6, &warm, |_| ControlFlow::Continue(())).unwrap();
    context.reset();
    let mut again = vec![context.sample_token(&model, &TOKENS, &warm).unwrap()];
    context.reset();
    let all = [&TOKENS[..], &sampled[..5]].concat();
    again.push(context.sample_token(&model, &all, &warm).unwrap());
    assert_eq!(again, [sampled[0], sampled[5]]);
    context.reset();
    let mut stopped = Vec::new();
    let each = |token| {
        stopped.push(token);
        if stopped.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert_eq!(context.generate_sampled(&model, &TOKENS, 6, &warm, each).unwrap(), sampled[..2]);
    context.reset();
    assert!(context.generate_sampled(&model, &TOKENS, 0, &warm, |_| panic!("a token")).unwrap().is_empty());
    assert_eq!(context.position(), TOKENS.len());
}
