//! The trained test model with its reference values, and the checks that every backend has to pass.
#![allow(dead_code, unused_imports)]

pub mod changed;
mod devices;
mod emulated;
pub mod hooked;
pub mod launches;
pub mod random;
pub mod shaped;
mod table;

pub use devices::{cuda_device, emulated_device};
pub use emulated::EmulatedDevice;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kquant_moe::diff::{Array, Comparison, Point, Report, Values};
use kquant_moe::gguf::Gguf;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::{Backend, CacheType, Context, ContextOptions, LoadOptions, Logits, Model};
use kquant_moe::trace::{Data, Record, Select, Selection, Stage};

/// One prompt of the reference.
pub struct Prompt {
    pub name: String,
    pub tokens: Vec<u32>,
    /// The 24 greedy tokens that follow.
    pub greedy: Vec<u32>,
    /// Logits of the f64 forward, `[tokens, vocab]`.
    pub logits: Vec<f32>,
    /// Chosen experts of the f64 forward, `[layer, token, top_k]`.
    pub routers: Vec<i32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn npy<T: npyz::Deserialize>(name: &str) -> Vec<T> {
    let file = BufReader::new(File::open(data(name)).unwrap());
    npyz::NpyFile::new(file).unwrap().into_vec().unwrap()
}

pub fn gguf() -> Arc<Gguf> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/cli/model/tiny-qwen3moe-q4_k_m.gguf");
    Arc::new(Gguf::read(path).unwrap())
}

pub fn prompts() -> Vec<Prompt> {
    let json: serde_json::Value = serde_json::from_reader(File::open(data("reference/prompts.json")).unwrap()).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let json = json.as_object().unwrap();
    assert_eq!(json.len(), 4, "prompts of the reference");
    json.iter()
        .map(|(name, prompt)| Prompt {
            name: name.clone(),
            tokens: ids(&prompt["tokens"]),
            greedy: ids(&prompt["greedy_24"]),
            logits: npy(&format!("reference/{name}.logits.npy")),
            routers: npy(&format!("reference/{name}.routers.npy")),
        })
        .collect()
}

/// Logits of Hugging Face transformers, in f32 on the dequantized weights, `[tokens, vocab]`.
pub fn hugging_face(name: &str) -> Vec<f32> {
    npy(&format!("reference/{name}.hf-f32-logits.npy"))
}

pub fn model<B: Backend>(backend: B) -> Model<B> {
    model_of(gguf(), backend)
}

pub fn model_of<B: Backend>(gguf: Arc<Gguf>, backend: B) -> Model<B> {
    Model::load(gguf, backend, LoadOptions::default(), &mut |_, _| {}).unwrap()
}

pub fn options() -> ContextOptions {
    ContextOptions::default().capacity(256).cache(CacheType::F32).max_batch(512).trace(false)
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let distance: f64 = found.iter().zip(expected).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
    (distance / norm).sqrt()
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).reduce(|best, index| if row[index] > row[best] { index } else { best }).unwrap()
}

/// Logits close to the f64 forward's, with the same most probable token and the same experts everywhere.
pub fn matches_the_reference<B: Backend>(backend: B) {
    let model = model(backend);
    let config = model.config().clone();
    let mut context = model.context(options().trace(true)).unwrap();
    for prompt in prompts() {
        context.reset();
        let mut routers = Vec::new();
        let mut sink = Select::new(Selection::default().stages(vec![Stage::MoeRouterIndices]), |record: Record<'_>| {
            let Data::U32(indices) = record.data else { panic!("{:?} is not u32", record.stage) };
            assert_eq!(record.shape, [prompt.tokens.len(), config.top_k]);
            routers.extend(indices.iter().map(|&index| index as i32));
            Ok(())
        });
        let logits = context.trace(&model, &prompt.tokens, Logits::All, &mut sink).unwrap();
        let distance = relative_l2(&logits, &prompt.logits);
        println!("{}: relative L2 {distance:.3e} over {} tokens", prompt.name, prompt.tokens.len());
        assert!(distance <= 4.0e-7, "{}: relative L2 {distance:e}", prompt.name);
        for (token, (found, expected)) in
            logits.chunks(config.vocab).zip(prompt.logits.chunks(config.vocab)).enumerate()
        {
            assert_eq!(argmax(found), argmax(expected), "{}: most probable token at {token}", prompt.name);
        }
        assert_eq!(routers, prompt.routers, "{}: experts", prompt.name);
    }
}

/// The greedy continuation of the f64 forward.
pub fn generates_the_reference<B: Backend>(backend: B) {
    let model = model(backend);
    let mut context = model.context(options()).unwrap();
    for prompt in prompts() {
        context.reset();
        let mut streamed = Vec::new();
        let generated = context
            .generate(&model, &prompt.tokens, prompt.greedy.len(), |token| {
                streamed.push(token);
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(generated, prompt.greedy, "{}", prompt.name);
        assert_eq!(streamed, generated);
        assert_eq!(context.position(), prompt.tokens.len() + prompt.greedy.len() - 1);
    }
}

/// Logits of all tokens, fed in pieces of the given sizes (the last one repeats).
pub fn in_pieces<B: Backend>(model: &Model<B>, context: &mut Context<B>, tokens: &[u32], sizes: &[usize]) -> Vec<u32> {
    context.reset();
    let (mut rest, mut logits) = (tokens, Vec::new());
    for index in 0.. {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(sizes[index.min(sizes.len() - 1)].min(rest.len()));
        logits.extend(context.forward(model, piece, Logits::All).unwrap());
        rest = after;
    }
    bits(&logits)
}

/// A sequence has the same logits, to the bit, however it is cut into calls and micro-batches, and every time.
pub fn does_not_depend_on_batches<B: Backend>(backend: B) {
    let model = model(backend);
    // Longer than two chunks of attention.
    let tokens: Vec<u32> = prompts().iter().flat_map(|prompt| prompt.tokens.clone()).cycle().take(150).collect();
    for cache in [CacheType::F32, CacheType::F16] {
        let mut context = model.context(options().cache(cache)).unwrap();
        let whole = in_pieces(&model, &mut context, &tokens, &[tokens.len()]);
        assert!(whole.iter().all(|&bits| f32::from_bits(bits).is_finite()));
        assert_eq!(in_pieces(&model, &mut context, &tokens, &[tokens.len()]), whole, "a second run");
        assert_eq!(in_pieces(&model, &mut context, &tokens, &[1]), whole, "token by token");
        assert_eq!(in_pieces(&model, &mut context, &tokens, &[63, 2, 1, 70]), whole, "uneven pieces");
        let mut context = model.context(options().cache(cache).max_batch(7)).unwrap();
        assert_eq!(in_pieces(&model, &mut context, &tokens, &[tokens.len()]), whole, "micro-batches of 7");
        let vocab = model.config().vocab;
        context.reset();
        let last = context.forward(&model, &tokens, Logits::Last).unwrap();
        assert_eq!(bits(&last), whole[(tokens.len() - 1) * vocab..], "logits of the last token only");
        context.truncate(100);
        assert!(context.forward(&model, &tokens[100..140], Logits::None).unwrap().is_empty());
        let rest = context.forward(&model, &tokens[140..], Logits::All).unwrap();
        assert_eq!(bits(&rest), whole[140 * vocab..], "after a truncation");
    }
}

/// A trace changes no bit of the logits, and gives every stage of every layer once.
pub fn traces_without_effect<B: Backend>(backend: B) {
    let model = model(backend);
    let config = model.config().clone();
    let prompt = &prompts()[0];
    let mut context = model.context(options().trace(true)).unwrap();
    let plain = context.forward(&model, &prompt.tokens, Logits::All).unwrap();
    context.reset();
    let mut seen = Vec::new();
    let mut sink = Select::new(Selection::default(), |record: Record<'_>| {
        let values = match record.data {
            Data::F32(values) => values.len(),
            Data::U32(values) => values.len(),
        };
        assert_eq!(values, record.shape.iter().product::<usize>(), "{}", record.stage);
        assert_eq!((record.position, record.shape[0]), (0, prompt.tokens.len()), "{}", record.stage);
        if let (Stage::Logits, Data::F32(values)) = (record.stage, record.data) {
            assert_eq!(bits(values), bits(&plain));
        }
        seen.push((record.layer, record.stage));
        Ok(())
    });
    let traced = context.trace(&model, &prompt.tokens, Logits::All, &mut sink).unwrap();
    assert_eq!(bits(&traced), bits(&plain));
    let mut expected = vec![(None, Stage::Embedding)];
    for layer in 0..config.layers {
        expected.extend(Stage::ALL.iter().filter(|stage| stage.in_layer()).map(|&stage| (Some(layer), stage)));
    }
    expected.extend([(None, Stage::OutputNorm), (None, Stage::Logits)]);
    assert_eq!(seen, expected);
}

/// A record of a trace, its values as bits.
#[derive(Debug, PartialEq)]
pub struct Recorded {
    pub stage: Stage,
    pub layer: Option<usize>,
    pub position: usize,
    pub shape: Vec<usize>,
    pub bits: Vec<u32>,
}

/// The logits of all tokens, with every stage of every layer.
pub fn recorded<B: Backend>(model: &Model<B>, context: &mut Context<B>, tokens: &[u32]) -> (Vec<f32>, Vec<Recorded>) {
    let mut records = Vec::new();
    let mut sink =
        Select::new(Selection::default(), |Record { stage, layer, position, shape, data, .. }: Record<'_>| {
            let bits = match data {
                Data::F32(values) => bits(values),
                Data::U32(values) => values.to_vec(),
            };
            records.push(Recorded { stage, layer, position, shape: shape.to_vec(), bits });
            Ok(())
        });
    let logits = context.trace(model, tokens, Logits::All, &mut sink).unwrap();
    (logits, records)
}

/// The comparison of two traces of the same calls, as the program's `diff` makes it.
pub fn compared(a: &[Recorded], b: &[Recorded], min_cosine: f64) -> Report {
    let array = |record: &Recorded| {
        let values = match record.stage {
            Stage::MoeRouterIndices => Values::Int(record.bits.iter().map(|&index| index.into()).collect()),
            _ => Values::F32(record.bits.iter().map(|&bits| f32::from_bits(bits)).collect()),
        };
        Array { shape: record.shape.clone(), values }
    };
    let point = |record: &Recorded| Point { layer: record.layer, stage: record.stage };
    assert_eq!(a.len(), b.len());
    let rows = a.iter().zip(b).map(|(a, b)| {
        assert_eq!((point(a), a.position), (point(b), b.position));
        (point(a), Comparison::new(Some(&array(a)), Some(&array(b)), min_cosine))
    });
    Report::new(rows.collect())
}

/// The same records with the same bits; the first that differ are named.
#[track_caller]
pub fn assert_same_records(what: &str, got: &[Recorded], expected: &[Recorded]) {
    for (got, expected) in got.iter().zip(expected) {
        let Recorded { stage, layer, position, .. } = expected;
        let place = format!("{what}: {stage} of layer {layer:?} at position {position}");
        assert_eq!((got.stage, got.layer, got.position), (*stage, *layer, *position), "{place}");
        assert_eq!((&got.shape, got.bits.len()), (&expected.shape, expected.bits.len()), "{place}");
        if let Some(i) = (0..got.bits.len()).find(|&i| got.bits[i] != expected.bits[i]) {
            panic!("{place}: [{i}] is {:#010x}, expected {:#010x}", got.bits[i], expected.bits[i]);
        }
    }
    assert_eq!(got.len(), expected.len(), "{what}: records");
}

/// Every stage of every layer has the bits of the CPU backend, for a prompt and for `steps` greedy tokens after it. The
/// logits are those of a context that is not traced, and of one batch of all tokens.
pub fn equals_the_cpu<B: Backend>(gguf: &Arc<Gguf>, backend: B, cache: CacheType, prompt: &[u32], steps: usize) {
    let (cpu, gpu) = (model_of(gguf.clone(), Cpu::new()), model_of(gguf.clone(), backend));
    let options = options().cache(cache).capacity(prompt.len() + steps + 3);
    let traced = options.trace(true);
    let (mut expected_context, mut context) = (cpu.context(traced).unwrap(), gpu.context(traced).unwrap());
    let mut plain = gpu.context(options).unwrap();
    let (mut tokens, mut logits) = (prompt.to_vec(), Vec::new());
    for step in 0..=steps {
        let what = if step == 0 { "prompt".into() } else { format!("token {step}") };
        let new = if step == 0 { prompt } else { &tokens[tokens.len() - 1..] };
        let (_, expected) = recorded(&cpu, &mut expected_context, new);
        let (found, records) = recorded(&gpu, &mut context, new);
        assert_same_records(&what, &records, &expected);
        assert_eq!(bits(&plain.forward(&gpu, new, Logits::All).unwrap()), bits(&found), "{what}, not traced");
        assert!(found.iter().all(|logit| logit.is_finite()), "{what}: logits are not finite");
        let next = argmax(&found[found.len() - gpu.config().vocab..]) as u32;
        logits.extend(bits(&found));
        if step < steps {
            tokens.push(next);
        }
    }
    assert_eq!(in_pieces(&gpu, &mut plain, &tokens, &[tokens.len()]), logits, "one batch");
}
