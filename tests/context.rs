//! States of a context: what it forgets, what it refuses, and whose values it gives when models, calls and lengths change.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::shaped::{self, SMALL, UNEVEN, reshaped};
use common::{EmulatedDevice, bits, cuda_device, emulated_device};
use kquant_moe::Error;
use kquant_moe::gguf::Gguf;
use kquant_moe::kernels::{DownInput, FusedNorm};
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{Backend, CacheType, Config, Context, ContextOptions, LoadOptions, Logits, Model};

const PROMPT: [u32; 5] = [66, 6, 58, 28, 20];
/// Positions of a context.
const CAPACITY: usize = 24;

fn options() -> ContextOptions {
    common::options().capacity(CAPACITY)
}

/// A small model, another of its shape, and one of another.
fn files() -> [Arc<Gguf>; 3] {
    [shaped::model(&SMALL, 1), shaped::model(&SMALL, 2), shaped::model(&reshaped!(SMALL, layers: 2), 1)]
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

/// Several steps are made at once, and none behind the last position.
#[test]
fn fills_up_recorded() {
    if let Some(device) = emulated_device() {
        fills_up(Gpu::new(device.recording()));
    }
}

#[test]
fn fills_up_on_a_gpu() {
    if let Some(device) = cuda_device() {
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
    const COUNT: usize = 12;
    let model = common::model_of(files()[0].clone(), backend);
    let expected = greedy(&model, &PROMPT, COUNT + 2);
    assert!(expected.iter().any(|token| *token != expected[0]), "{expected:?}");
    // The first call records, where anything is recorded.
    let mut context = model.context(options()).unwrap();
    for stop in [0, 1, 2, 3, 8, 9, 10, 11, 12, 1] {
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
    for parts in [vec![COUNT], vec![1; COUNT], vec![3, 8, 1]] {
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

/// Where steps are recorded, several are made at once, and some are made that nobody wants.
#[test]
fn generation_stops_anywhere_recorded() {
    if let Some(device) = emulated_device() {
        generation_stops_anywhere(Gpu::new(device.recording()));
    }
}

#[test]
fn generation_stops_anywhere_on_a_gpu() {
    if let Some(device) = cuda_device() {
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

#[test]
fn models_change_recorded() {
    if let Some(device) = emulated_device() {
        models_change(Gpu::new(device.recording()));
    }
}

#[test]
fn models_change_on_a_gpu() {
    if let Some(device) = cuda_device() {
        models_change(Gpu::new(device));
    }
}

/// Steps that were recorded read the context as it is: after it was cut back, after other calls, and up to the last position.
#[test]
fn recorded_steps_follow_the_context() {
    let Some(device) = emulated_device() else { return };
    let model = common::model_of(files()[0].clone(), Gpu::new(device.recording()));
    let mut context = model.context(options()).unwrap();
    let expected = greedy(&model, &PROMPT, CAPACITY - PROMPT.len() + 1);
    context.next_token(&model, &PROMPT).unwrap();
    context.decode(&model, expected[0], 2).unwrap();
    for from in [PROMPT.len() + 1, PROMPT.len(), PROMPT.len() + 2] {
        context.truncate(from);
        let done = from - PROMPT.len();
        // Forwards between the steps leave the position behind them.
        if from == PROMPT.len() + 1 {
            context.forward(&model, &[1, 2, 3], Logits::Last).unwrap();
            context.truncate(from);
        }
        let tokens = context.decode(&model, expected[done], CAPACITY - from).unwrap();
        assert_eq!(tokens, expected[done + 1..], "from {from}");
        assert_eq!(context.position(), CAPACITY);
    }
    // A context of its own records for itself.
    let mut another = model.context(options()).unwrap();
    another.next_token(&model, &[9]).unwrap();
    let tokens = another.decode(&model, 8, 5).unwrap();
    assert_eq!(tokens, greedy(&model, &[9, 8], 5));
    context.truncate(PROMPT.len());
    assert_eq!(context.decode(&model, expected[0], 4).unwrap(), expected[1..5]);
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
        Select::new(Selection::default(), record)
    };
    let mut plain = model.context(options()).unwrap();
    assert!(matches!(plain.trace(&model, &PROMPT, Logits::Last, &mut sink(false)), Err(Error::Invalid(_))));
    let mut traced = model.context(options().trace(true)).unwrap();
    let error = traced.trace(&model, &PROMPT, Logits::Last, &mut sink(true)).unwrap_err();
    assert!(matches!(&error, Error::Invalid(text) if text == "the disk is full"), "{error}");
    assert_eq!((plain.position(), traced.position()), (0, 0));
    assert_eq!(
        bits(&traced.trace(&model, &PROMPT, Logits::Last, &mut sink(false)).unwrap()),
        last(&model, &mut plain, &PROMPT)
    );
}

/// A shape in which nothing can be taken for something else: every stage of the emulated kernels.
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

/// Every head dimension, KV heads for one and for sixteen query heads, one expert and all of them.
const SHAPES: [Config; 5] = [
    reshaped!(SMALL, heads: 16, kv_heads: 1, head_dim: 64),
    reshaped!(SMALL, heads: 2, kv_heads: 2, head_dim: 128, experts: 5, top_k: 5),
    reshaped!(SMALL, heads: 4, kv_heads: 2, head_dim: 192, expert_ff: 768),
    reshaped!(SMALL, heads: 3, kv_heads: 1, head_dim: 256, hidden: 768),
    reshaped!(SMALL, experts: 1, top_k: 1, vocab: 1, layers: 2),
];

/// Tokens of the vocabulary, more than two chunks of attention.
fn sequence(config: &Config) -> Vec<u32> {
    (0..140_u32).map(|number| number.wrapping_mul(2_654_435_761) % config.vocab as u32).collect()
}

#[test]
fn every_shape_has_the_same_bits_in_batches_and_alone() {
    for (number, config) in SHAPES.iter().enumerate() {
        let model = common::model_of(shaped::model(config, 7 + number as u64), Cpu::new());
        let tokens = sequence(config);
        for cache in [CacheType::F32, CacheType::F16] {
            let what = format!("shape {number}, {cache:?}");
            let mut context = model.context(common::options().cache(cache).capacity(140)).unwrap();
            let mut pieces = |sizes: &[usize]| common::in_pieces(&model, &mut context, &tokens, sizes);
            let whole = pieces(&[140]);
            assert!(whole.iter().all(|&bits| f32::from_bits(bits).is_finite()), "{what}");
            assert!(pieces(&[1]) == whole && pieces(&[33, 2, 1, 64]) == whole, "{what}");
        }
    }
}

/// Wider than a kernel that makes its own norm takes, and more experts' blocks than one that makes its own fixed point does.
#[test]
fn what_is_not_fused_emulated_has_the_bits_of_the_cpu() {
    let Some(device) = emulated_device() else { return };
    let wide = reshaped!(SMALL, hidden: FusedNorm::MAX_COLS + 256, experts: 2, top_k: 1, vocab: 5);
    let top_k = DownInput::MAX_BLOCKS / 3 + 1;
    assert!(3 * top_k > DownInput::MAX_BLOCKS && top_k <= 32, "{top_k} experts");
    let many = reshaped!(SMALL, experts: top_k, top_k: top_k, expert_ff: 768, vocab: 9);
    for config in [wide, many] {
        let gguf = shaped::model(&config, 9);
        common::equals_the_cpu(&gguf, Gpu::new(device.clone()), CacheType::F32, &sequence(&config)[..3], 1);
    }
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let ContextOptions { capacity, cache, max_batch, trace, .. } = ContextOptions::default();
    assert_eq!((capacity, cache, max_batch, trace), (4096, CacheType::F32, 2048, false));
    assert!(LoadOptions::default().check_blocks);
    assert_eq!((Logits::default(), CacheType::default()), (Logits::Last, CacheType::F32));
    assert_eq!(kquant_moe::trace::Positions::default(), kquant_moe::trace::Positions::All);
    let selection = kquant_moe::trace::Selection::default();
    assert!(selection.stages.is_none() && selection.layers.is_none());
}

#[test]
fn every_shape_emulated_has_the_bits_of_the_cpu() {
    let Some(device) = emulated_device() else { return };
    for (number, config) in SHAPES.iter().enumerate() {
        let gguf = shaped::model(config, 7 + number as u64);
        let cache = [CacheType::F16, CacheType::F32][number % 2];
        common::equals_the_cpu(&gguf, Gpu::new(device.clone()), cache, &sequence(config)[..5], 1);
    }
}

/// The halves of a cache in half precision are those of its values: what is stored is rounded, once, to nearest.
#[test]
fn caches_of_either_type_give_other_bits() {
    let model = common::model_of(shaped::model(&SMALL, 4), Cpu::new());
    let [single, half] = [CacheType::F32, CacheType::F16].map(|cache| {
        let mut context = model.context(options().cache(cache)).unwrap();
        context.forward(&model, &PROMPT, Logits::Last).unwrap()
    });
    assert!(bits(&single) != bits(&half));
    assert!(common::relative_l2(&half, &single) < 1e-2);
}

/// A matrix comes to a device in as many parts as it takes.
#[test]
fn matrices_are_loaded_in_parts() {
    let Some(device) = emulated_device() else { return };
    let config = reshaped!(SMALL, experts: 5, vocab: 40);
    let gguf = shaped::model(&config, 5);
    let tokens = [1, 2, 3, 39, 7, 8];
    let logits = |staging| {
        let model = common::model_of(gguf.clone(), Gpu::new(device.clone()).with_staging(staging));
        bits(&model.context(options()).unwrap().forward(&model, &tokens, Logits::All).unwrap())
    };
    let cpu = common::model_of(gguf.clone(), Cpu::new());
    let expected = bits(&cpu.context(options()).unwrap().forward(&cpu, &tokens, Logits::All).unwrap());
    // Of five experts one at a time, two (and one that is left), three, four, and all.
    let expert = 256 * 144;
    for staging in [0, expert, 2 * expert, 2 * 256 * 210, 3 * expert + 1, 5 * 256 * 210, usize::MAX] {
        assert!(logits(staging) == expected, "in parts of {staging} bytes");
    }
}

/// Every stage of every layer, traced in batches of a few tokens, has the rows of a trace of one batch, at their positions; and a
/// trace of the last position has the last of them.
#[test]
fn traces_in_batches_have_the_same_rows() {
    use kquant_moe::trace::{Data, Positions, Record, Select, Selection, Stage};
    type Row = (Stage, Option<usize>, usize, Vec<u32>);
    let config = reshaped!(SMALL, layers: 2);
    let model = common::model_of(shaped::model(&config, 6), Cpu::new());
    let tokens = &sequence(&config)[..19];
    let traced = |max_batch, positions, stages: Option<Vec<Stage>>, layers| {
        let options = options().max_batch(max_batch).trace(true);
        let mut context = model.context(options).unwrap();
        let mut rows: Vec<Row> = Vec::new();
        let record = |record: Record<'_>| {
            let values = match record.data {
                Data::F32(values) => bits(values),
                Data::U32(values) => values.to_vec(),
            };
            for (row, values) in values.chunks_exact(values.len() / record.shape[0]).enumerate() {
                // Later batches see more positions than earlier ones: those that a token does not see are left out.
                let unseen = f32::NEG_INFINITY.to_bits();
                let seen = values.iter().filter(|&&bits| record.stage != Stage::AttnScores || bits != unseen);
                rows.push((record.stage, record.layer, record.position + row, seen.copied().collect()));
            }
            Ok(())
        };
        let mut sink = Select::new(Selection::default().stages(stages).layers(layers).positions(positions), record);
        // After some tokens that are not traced.
        context.forward(&model, &[3, 2, 1], Logits::None).unwrap();
        context.trace(&model, tokens, Logits::All, &mut sink).unwrap();
        rows.sort();
        rows
    };
    let whole = traced(22, Positions::All, None, None);
    assert_eq!(whole.len(), (3 + 2 * 22) * 19);
    assert!(whole.iter().all(|row| (3..22).contains(&row.2)));
    let scores = whole.iter().filter(|row| row.0 == Stage::AttnScores);
    assert!(scores.into_iter().all(|row| row.3.len() == config.heads * (row.2 + 1)));
    let last: Vec<Row> = whole.iter().filter(|row| row.2 == 21).cloned().collect();
    for max_batch in [22, 7, 1] {
        assert!(traced(max_batch, Positions::All, None, None) == whole, "batches of {max_batch}");
        assert!(traced(max_batch, Positions::Last, None, None) == last, "the last, batches of {max_batch}");
    }
    // A choice has what is chosen, as it is in all of them.
    for stage in Stage::ALL {
        let chosen = |row: &&Row| row.0 == *stage && row.1.is_none_or(|layer| layer == 1);
        let expected: Vec<Row> = whole.iter().filter(chosen).cloned().collect();
        assert_eq!(expected.len(), 19);
        assert!(traced(8, Positions::All, Some(vec![*stage]), Some(vec![1])) == expected, "{stage}");
    }
}

/// What an earlier queue still does is waited for where another one, or the host, goes on: before a context's queue is made,
/// before the memory that a matrix was staged in is freed, and at the end of a forward without logits.
#[test]
fn a_queue_is_waited_for() {
    use common::hooked::{Call, Hook, Hooked};
    use std::sync::Mutex;
    #[derive(Default)]
    struct Log(Mutex<Vec<Call>>);
    impl Hook for Log {
        fn before(&self, call: Call) -> kquant_moe::Result<()> {
            self.0.lock().unwrap().push(call);
            Ok(())
        }
    }
    let Some(emulation) = emulated_device() else { return };
    let device = Hooked::new(emulation, Log::default());
    let calls = || std::mem::take(&mut *device.hook().0.lock().unwrap());
    let model = common::model_of(files()[0].clone(), Gpu::new(device.clone()));
    // Every matrix is uploaded and repacked, and its stage freed.
    let loading = calls();
    let frees: Vec<usize> = (0..loading.len()).filter(|&at| matches!(loading[at], Call::Free(_))).collect();
    assert_eq!(frees.len(), 8, "{loading:?}");
    assert!(frees.iter().all(|&at| loading[at - 1] == Call::Synchronize), "{loading:?}");

    let mut context = model.context(options()).unwrap();
    let making = calls();
    let fork = making.iter().position(|call| *call == Call::Fork).unwrap();
    assert_eq!(making[fork - 1], Call::Synchronize, "{making:?}");
    assert!(!making.contains(&Call::Launch));

    context.forward(&model, &PROMPT, Logits::None).unwrap();
    assert_eq!(calls().last(), Some(&Call::Synchronize));
}
