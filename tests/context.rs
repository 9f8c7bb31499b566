//! States of a context: what it forgets, what it refuses, and whose values it gives when models, calls and lengths change.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::shaped::{self, SMALL, UNEVEN};
use common::{EmulatedDevice, bits, emulated_device};
use kquant_moe::Error;
use kquant_moe::gguf::Gguf;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{Backend, CacheType, Config, Context, ContextOptions, Logits, Model};

const PROMPT: [u32; 5] = [66, 6, 58, 28, 20];
/// Positions of a context.
const CAPACITY: usize = 24;

fn options() -> ContextOptions {
    ContextOptions { capacity: CAPACITY, ..common::options() }
}

/// A small model, another of its shape, and one of another.
fn files() -> [Arc<Gguf>; 3] {
    [shaped::model(&SMALL, 1), shaped::model(&SMALL, 2), shaped::model(&Config { layers: 2, ..SMALL }, 1)]
}

fn last<B: Backend>(model: &Model<B>, context: &mut Context<B>, tokens: &[u32]) -> Vec<u32> {
    bits(&context.forward(model, tokens, Logits::Last).unwrap())
}

/// What a sequence of tokens gives from the start.
fn from_the_start<B: Backend>(model: &Model<B>, tokens: &[u32]) -> Vec<u32> {
    last(model, &mut model.context(options()).unwrap(), tokens)
}

fn truncates<B: Backend>(backend: B) {
    let model = common::model_of(files()[0].clone(), backend);
    let mut context = model.context(options()).unwrap();
    context.truncate(7);
    assert_eq!(context.position(), 0);
    last(&model, &mut context, &PROMPT);
    for position in [PROMPT.len(), PROMPT.len() + 1, CAPACITY, CAPACITY + 1, usize::MAX] {
        context.truncate(position);
        assert_eq!(context.position(), PROMPT.len(), "to {position}");
    }
    assert!(last(&model, &mut context, &[17]) == from_the_start(&model, &[&PROMPT[..], &[17]].concat()));
    // To any earlier position; what was behind it is forgotten.
    for position in (0..=PROMPT.len()).rev() {
        context.truncate(position);
        assert_eq!(context.position(), position);
        let expected = from_the_start(&model, &[&PROMPT[..position], &[18, 19]].concat());
        assert!(last(&model, &mut context, &[18, 19]) == expected, "from {position}");
        assert_eq!(context.position(), position + 2);
        context.truncate(position);
    }
    last(&model, &mut context, &PROMPT);
    context.reset();
    assert_eq!(context.position(), 0);
    assert!(last(&model, &mut context, &[20]) == from_the_start(&model, &[20]));
}

#[test]
fn truncates_on_the_cpu() {
    truncates(Cpu::new());
}

#[test]
fn truncates_emulated() {
    if let Some(device) = emulated_device() {
        truncates(Gpu::new(device));
    }
}

/// Room is counted to the last position, of every way to use one.
fn fills_up<B: Backend>(backend: B) {
    let model = common::model_of(files()[0].clone(), backend);
    let mut context = model.context(options()).unwrap();
    assert_eq!((context.capacity(), context.max_batch()), (CAPACITY, CAPACITY));
    let overflow = |error: Error, used: usize, wanted: usize| match error {
        Error::ContextOverflow { used: found, wanted: more, capacity } => {
            assert_eq!((found, more, capacity), (used, wanted, CAPACITY));
        }
        other => panic!("{other}"),
    };
    let tokens: Vec<u32> = (0..CAPACITY as u32).collect();
    context.forward(&model, &tokens[..4], Logits::None).unwrap();
    overflow(context.forward(&model, &tokens[3..], Logits::None).unwrap_err(), 4, CAPACITY - 3);
    overflow(context.next_token(&model, &tokens[3..]).unwrap_err(), 4, CAPACITY - 3);
    overflow(context.decode(&model, 1, CAPACITY - 3).unwrap_err(), 4, CAPACITY - 3);
    assert_eq!(context.position(), 4);
    context.forward(&model, &tokens[4..], Logits::None).unwrap();
    assert_eq!(context.position(), CAPACITY);
    overflow(context.forward(&model, &[1], Logits::None).unwrap_err(), CAPACITY, 1);
    overflow(context.decode(&model, 1, 1).unwrap_err(), CAPACITY, 1);
    assert!(context.decode(&model, 1, 0).unwrap().is_empty());
    context.truncate(4);
    assert_eq!(context.decode(&model, 1, CAPACITY - 4).unwrap().len(), CAPACITY - 4);
    assert_eq!(context.position(), CAPACITY);

    // Generation needs a position for every token but the last.
    for (count, fits) in [(CAPACITY - 4 + 1, true), (CAPACITY - 4 + 2, false)] {
        context.reset();
        let mut seen = 0;
        let generated = context.generate(&model, &tokens[..4], count, |_| {
            seen += 1;
            ControlFlow::Continue(())
        });
        match generated {
            Ok(generated) => assert_eq!((generated.len(), fits), (count, true)),
            Err(error) => {
                assert!(!fits, "{error}");
                overflow(error, CAPACITY, 1);
            }
        }
        assert_eq!((seen, context.position()), (CAPACITY - 4 + 1, CAPACITY));
    }
    // What a model does not have, and nothing at all.
    context.truncate(4);
    for result in [
        context.forward(&model, &[1, SMALL.vocab as u32], Logits::None).map(drop),
        context.next_token(&model, &[1, SMALL.vocab as u32]).map(drop),
        context.decode(&model, SMALL.vocab as u32, 1).map(drop),
    ] {
        assert!(matches!(result, Err(Error::TokenOutOfRange { vocab: 67, token: 67, .. })), "{result:?}");
    }
    assert!(matches!(context.next_token(&model, &[]), Err(Error::Invalid(_))));
    assert_eq!(context.position(), 4);
    context.forward(&model, &[SMALL.vocab as u32 - 1], Logits::None).unwrap();
}

#[test]
fn fills_up_on_the_cpu() {
    fills_up(Cpu::new());
}

#[test]
fn fills_up_emulated() {
    if let Some(device) = emulated_device() {
        fills_up(Gpu::new(device));
    }
}

/// The tokens that single forwards choose after a prompt.
fn greedy<B: Backend>(model: &Model<B>, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut context = model.context(options()).unwrap();
    let mut tokens = vec![context.next_token(model, prompt).unwrap()];
    while tokens.len() < count {
        tokens.push(context.next_token(model, &tokens[tokens.len() - 1..]).unwrap());
    }
    tokens
}

/// Generation ends after any number of tokens, when the caller says so or when there are enough; the context is then where
/// single forwards would be, and goes on like them.
fn generation_stops_anywhere<B: Backend>(backend: B) {
    const COUNT: usize = 14;
    let model = common::model_of(files()[0].clone(), backend);
    let expected = greedy(&model, &PROMPT, COUNT + 2);
    assert!(expected.iter().any(|token| *token != expected[0]), "{expected:?}");
    // The first call records, where anything is recorded.
    let mut context = model.context(options()).unwrap();
    for stop in (0..=COUNT).chain([9, 8, 1]) {
        for by_caller in [false, true] {
            context.reset();
            let what = format!("{stop} tokens, by the caller: {by_caller}");
            let (count, mut seen) = (if by_caller { COUNT } else { stop }, Vec::new());
            let generated = context.generate(&model, &PROMPT, count, |token| {
                seen.push(token);
                if seen.len() == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let wanted = if stop == 0 && by_caller { COUNT } else { stop };
            assert_eq!(generated.unwrap(), expected[..wanted], "{what}");
            assert_eq!(seen, expected[..wanted], "{what}");
            assert_eq!(context.position(), PROMPT.len() + wanted.saturating_sub(1), "{what}");
            if wanted > 0 {
                let next = context.next_token(&model, &expected[wanted - 1..wanted]).unwrap();
                assert_eq!(next, expected[wanted], "{what}: what comes next");
            }
        }
    }
    // As many as are asked for at once, however they are asked for.
    for parts in [vec![COUNT], vec![1; COUNT], vec![3, 8, 3], vec![9, 5]] {
        context.reset();
        let mut tokens = vec![context.next_token(&model, &PROMPT).unwrap()];
        for part in parts {
            let last = tokens[tokens.len() - 1];
            tokens.extend(context.decode(&model, last, part).unwrap());
        }
        assert_eq!(tokens, expected[..=COUNT]);
        assert_eq!(context.position(), PROMPT.len() + COUNT);
    }
}

#[test]
fn generation_stops_anywhere_on_the_cpu() {
    generation_stops_anywhere(Cpu::new());
}

#[test]
fn generation_stops_anywhere_emulated() {
    if let Some(device) = emulated_device() {
        generation_stops_anywhere(Gpu::new(device));
    }
}

/// A context goes from one model to another of its configuration, and gives each one's values, whichever way it is asked.
fn models_change<B: Backend + Clone>(backend: B) {
    let [one, other, different] = files().map(|file| common::model_of(file, backend.clone()));
    let tokens: Vec<Vec<u32>> = [&one, &other].map(|model| greedy(model, &PROMPT, 8)).into();
    assert!(tokens[0] != tokens[1], "the models say the same");
    let mut context = one.context(options()).unwrap();
    // Twice each: what the first time records must not be what the second one does.
    for turn in [0, 1, 0, 0, 1, 1] {
        let (model, tokens) = ([&one, &other][turn], &tokens[turn]);
        context.reset();
        assert_eq!(context.next_token(model, &PROMPT).unwrap(), tokens[0]);
        assert_eq!(context.decode(model, tokens[0], 3).unwrap(), tokens[1..4], "model {turn}");
        assert_eq!(context.decode(model, tokens[3], 1).unwrap(), tokens[4..5], "model {turn}");
        assert_eq!(context.decode(model, tokens[4], 3).unwrap(), tokens[5..8], "model {turn}");
    }
    let position = context.position();
    for result in [
        context.forward(&different, &[1], Logits::Last).map(drop),
        context.next_token(&different, &[1]).map(drop),
        context.decode(&different, 1, 1).map(drop),
        context.generate(&different, &[1], 1, |_| ControlFlow::Continue(())).map(drop),
    ] {
        assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    }
    assert_eq!(context.position(), position);
}

#[test]
fn models_change_on_the_cpu() {
    models_change(Cpu::new());
}

#[test]
fn models_change_emulated() {
    if let Some(device) = emulated_device() {
        models_change(Gpu::new(device));
    }
}

/// Without room for a trace there is none; a sink that fails ends the forward, which leaves the position as it was.
#[test]
fn a_trace_needs_its_room_and_may_fail() {
    use kquant_moe::trace::{Record, Select, Selection};
    let model = common::model_of(files()[0].clone(), Cpu::new());
    let sink = |fails| {
        let record = move |record: Record<'_>| match record.layer {
            Some(0) if fails => Err(Error::Invalid("the disk is full".into())),
            _ => Ok(()),
        };
        Select { selection: Selection::default(), record }
    };
    let mut plain = model.context(options()).unwrap();
    assert!(matches!(plain.trace(&model, &PROMPT, Logits::Last, &mut sink(false)), Err(Error::Invalid(_))));
    let mut traced = model.context(ContextOptions { trace: true, ..options() }).unwrap();
    let error = traced.trace(&model, &PROMPT, Logits::Last, &mut sink(true)).unwrap_err();
    assert!(matches!(&error, Error::Invalid(text) if text == "the disk is full"), "{error}");
    assert_eq!((plain.position(), traced.position()), (0, 0));
    assert_eq!(
        bits(&traced.trace(&model, &PROMPT, Logits::Last, &mut sink(false)).unwrap()),
        last(&model, &mut plain, &PROMPT)
    );
}

/// A shape in which nothing can be taken for something else: every stage of the emulated kernels, and of the CPU in batches.
fn an_uneven_shape(device: EmulatedDevice, cache: CacheType) {
    let gguf = shaped::model(&UNEVEN, 3);
    common::equals_the_cpu(&gguf, Gpu::new(device), cache, &[5, 1002, 0, 77, 5, 6], 2);
}

#[test]
fn an_uneven_shape_emulated_with_an_f32_cache() {
    if let Some(device) = emulated_device() {
        an_uneven_shape(device, CacheType::F32);
    }
}

#[test]
fn an_uneven_shape_emulated_with_an_f16_cache() {
    if let Some(device) = emulated_device() {
        an_uneven_shape(device, CacheType::F16);
    }
}
