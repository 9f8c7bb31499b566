//! `verify`: what the crate promises, checked on a model.

use std::fmt;
use std::ops::ControlFlow;

use kquant_moe::device::{CudaDevice, Device as _};
use kquant_moe::diff::{Array, Point, Report, Values};
use kquant_moe::model::backend::PAGE;
use kquant_moe::model::{Backend, Context, ContextOptions, Entry, Generation, Logits, Model, Next, Pool, PoolOptions};
use kquant_moe::oracle::sample::Sampling;
use kquant_moe::trace::{NoTrace, Record, Select, Selection, Stage};
use kquant_moe::{Error, Result};
use serde_json::{Value, json};

use super::Outcome;
use super::backend::{self, Job, Kv};
use super::capture::Capture;
use super::input::{DEFAULT_TEXT, ModelArgs, Piped, Prompt, Source};
use super::output::{Out, Progress};
use super::{diff, machine};

/// Weights of a token's experts may sum to this much less or more than 1.
const WEIGHTS_SUM: f64 = 1e-6;
/// Share of the card's memory that may be in use.
const MEMORY_SHARE: f64 = 0.95;
/// Most probable tokens that are compared.
const TOP: usize = 5;
/// Sequences that are computed together.
const SEQUENCES: usize = 4;
/// Steps of sequences together.
const STEPS: usize = 4;
/// Tokens that are generated with drafts and without, behind so many, and tokens of a draft.
const GENERATED: usize = 8;
const PROMPT: usize = 16;
const DRAFT: usize = 3;
/// In the table of a failed clause, stages with a smaller cosine are said to diverge instead of to match.
const MIN_COSINE: f64 = 0.99;

/// Checks a model: GPU against CPU, layer by layer, in bits; prefill against decode; one run against another; many sequences
/// against each alone. Without a GPU it checks what the CPU can and says what it skips. Fails when a clause fails.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: Prompt,
    /// Fail when there is no CUDA device
    #[arg(long)]
    require_cuda: bool,
    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t)]
    kv: Kv,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn verify(args: &Args, out: &mut Out) -> Result<Outcome> {
    let source = args.model.open()?;
    let tokens = args.prompt.resolve(&source, DEFAULT_TEXT, Piped::Ignored)?.tokens;
    let capacity = source.capacity(tokens.len(), None)?;
    let options = ContextOptions::default().capacity(capacity).cache(args.kv.cache_type());
    let gather = || Gather { source: &source, tokens: &tokens, options };

    let (gpu, no_gpu) = match backend::open_device() {
        Ok(device) => (Some(backend::run(Some(&device), gather())?), None),
        Err(Error::NoCuda(reason)) => (None, Some(reason)),
        Err(error) => return Err(error),
    };
    let cpu = backend::run(None, gather())?;
    let clauses =
        Clauses { cpu: &cpu, gpu: gpu.as_ref(), no_gpu, require_cuda: args.require_cuda, vocab: source.config.vocab };
    let Findings { clauses, outcome, report } = clauses.findings();

    let (summary, clauses_skipped) = summary(&clauses);
    if args.json {
        let clauses = clauses.iter().map(Clause::json);
        out.json(&json!({
            "model": source.name(),
            "tokens": tokens,
            "kv": args.kv.name(),
            "cpu": cpu.on,
            "cuda": gpu.as_ref().map(|gpu| &gpu.on),
            "cuda_build": machine::cuda_build(),
            "crate": format!("kquant-moe {}", machine::VERSION),
            "passed": outcome == Outcome::Ok,
            "skipped": clauses_skipped,
            "clauses": clauses.collect::<Vec<_>>(),
            "diff": report.as_ref().map(|(_, report)| diff::json_report(report)),
        }))?;
        return Ok(outcome);
    }
    out.line(format_args!("{}, {} tokens, KV cache in {}", source.name(), tokens.len(), args.kv.name()))?;
    out.line(format_args!("cpu:  {}", cpu.on))?;
    if let Some(gpu) = &gpu {
        out.line(format_args!("cuda: {}\n", gpu.on))?;
        layers(&cpu.prefill.compare(&gpu.prefill, MIN_COSINE), out)?;
    }
    out.line("")?;
    for clause in &clauses {
        out.line(clause)?;
    }
    if let Some((title, report)) = report {
        out.line(format_args!("\n{title}"))?;
        out.line(diff::conclusion(&report))?;
        // The layer in which agreement ends says what there is to say.
        let inexact = report.rows.iter().find(|(_, row)| row.differing != Some(0)).map(|(point, _)| point.layer);
        let rows: Vec<_> = report.rows.into_iter().filter(|(point, _)| Some(point.layer) == inexact).collect();
        diff::table(&rows, out)?;
    }
    out.line(format_args!("\n{summary}"))?;
    Ok(outcome)
}

/// What the clauses come to, in one line, and how many of them were skipped.
fn summary(clauses: &[Clause]) -> (String, usize) {
    let count = |wanted: fn(&State) -> bool| clauses.iter().filter(|clause| wanted(&clause.state)).count();
    let (passed, failed) =
        (count(|state| matches!(state, State::Pass)), count(|state| matches!(state, State::Fail(_))));
    let (all, skipped) = (clauses.len(), clauses.len() - passed - failed);
    let without = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    let text = match (failed, skipped) {
        (0, 0) => format!("passed: all {all} clauses"),
        (0, _) => format!("passed in part: {passed} of {all} clauses{without}"),
        _ => format!("FAILED: {failed} of {all} clauses, {passed} passed{without}"),
    };
    (text, skipped)
}

/// Writes one line for each layer: how many stages are equal in bits.
fn layers(report: &Report, out: &mut Out) -> Result<()> {
    for rows in report.rows.chunk_by(|(a, _), (b, _)| a.layer == b.layer) {
        let name = match rows {
            [(Point { layer: Some(layer), .. }, _), ..] => format!("layer {layer:02}"),
            [(Point { stage: Stage::Embedding, .. }, _), ..] => "embedding".into(),
            _ => "output".into(),
        };
        let different = rows.iter().filter(|(_, row)| row.differing != Some(0));
        let different: Vec<String> = different.map(|(point, _)| point.stage.to_string()).collect();
        let equal = rows.len() - different.len();
        let names = if different.is_empty() { String::new() } else { format!(", not {}", different.join(", ")) };
        out.line(format_args!("{name:<10} {equal} of {} stages equal in bits{names}", rows.len()))?;
    }
    Ok(())
}

/// What a clause compares, for the table when it fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Parity,
    Decode,
    Other,
}

enum State {
    Pass,
    Fail(String),
    Skipped(String),
}

struct Clause {
    name: &'static str,
    about: About,
    state: State,
}

impl Clause {
    fn json(&self) -> Value {
        let (state, reason) = match &self.state {
            State::Pass => ("pass", None),
            State::Fail(reason) => ("fail", Some(reason)),
            State::Skipped(reason) => ("skipped", Some(reason)),
        };
        json!({ "clause": self.name, "result": state, "reason": reason })
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match &self.state {
            State::Pass => write!(f, "{name:<42} pass"),
            State::Fail(reason) => write!(f, "{name:<42} FAIL     {reason}"),
            State::Skipped(reason) => write!(f, "{name:<42} skipped  {reason}"),
        }
    }
}

/// What a backend computed.
struct Evidence {
    backend: &'static str,
    /// CPU or GPU.
    on: String,
    /// Every stage of one prefill.
    prefill: Capture,
    /// Every stage, token by token, if that is not equal to the prefill.
    decode: Option<Capture>,
    /// Logits of a prefill without a trace, and of decode without a trace.
    untraced: [Vec<f32>; 2],
    /// The first difference between the traced prefill and a second one.
    unstable: Option<String>,
    /// Where sequences of a pool leave what they are alone.
    pool: PoolFaults,
    /// Bytes of the card in use, and all that it has.
    memory: Option<(u64, u64)>,
}

/// Where sequences of a pool leave what they are alone.
#[derive(Default)]
struct PoolFaults {
    /// Of different lengths, computed together.
    together: Option<String>,
    /// Forked from another one.
    forked: Option<String>,
    /// Generated with drafts.
    speculated: Option<String>,
}

struct Gather<'a> {
    source: &'a Source,
    tokens: &'a [u32],
    options: ContextOptions,
}

impl Job for Gather<'_> {
    type Output = Evidence;

    fn run<B: Backend>(self, backend: B, device: Option<&CudaDevice>) -> Result<Evidence> {
        let name = backend.name();
        let tokens = self.tokens;
        let (model, mut plain) = self.source.load_with_context(backend, self.options)?;
        let mut traced = model.context(self.options.trace(true))?;
        let one_by_one: Vec<&[u32]> = tokens.chunks(1).collect();
        let progress = Progress::count(if device.is_some() { "checking the GPU" } else { "checking the CPU" }, 8);

        let prefill = capture(&model, &mut traced, &[tokens])?;
        progress.step();
        // Large models have gigabytes of values: only what differs is kept.
        let unstable = first_difference(&prefill, &capture(&model, &mut traced, &[tokens])?, &|_| true);
        progress.step();
        let decode = capture(&model, &mut traced, &one_by_one)?;
        progress.step();
        let decode = first_difference(&prefill, &decode, &|_| true).is_some().then_some(decode);
        let whole = untraced(&model, &mut plain, &[tokens])?;
        progress.step();
        let untraced = [whole, untraced(&model, &mut plain, &one_by_one)?];
        let memory = device.map(|device| device.memory()).transpose()?;
        drop((plain, traced));
        let pool = self.pool_faults(&model, &progress)?;
        drop(progress);
        Ok(Evidence {
            backend: name,
            on: device.map_or_else(|| Ok(machine::cpu()), CudaDevice::describe)?,
            prefill,
            decode,
            untraced,
            unstable,
            pool,
            memory: memory.map(|(free, total)| (total - free, total)),
        })
    }
}

impl Gather<'_> {
    /// Compares what a pool computes with what a context does.
    fn pool_faults<B: Backend>(&self, model: &Model<B>, progress: &Progress) -> Result<PoolFaults> {
        let most = model.config().context_length;
        let capacity = (self.tokens.len() + GENERATED).min(most);
        let options = PoolOptions::default()
            .pages(SEQUENCES * capacity.div_ceil(PAGE))
            .sequences(SEQUENCES)
            .capacity(capacity)
            .cache(self.options.cache);
        let context = || model.context(self.options.capacity(capacity));
        let both = || Ok::<_, Error>(Both { model, context: context()?, pool: model.pool(options)? });
        let all = self.tokens;
        let together = Both::together(both()?, all)?;
        progress.step();
        // Both of the others need room for a token more, or a few.
        let forked = Both::forked(both()?, &all[..all.len().min(most - 1)])?;
        progress.step();
        let prompt = capacity.saturating_sub(GENERATED).clamp(1, PROMPT);
        let speculated = Both::speculated(both()?, &all[..all.len().min(prompt)])?;
        progress.step();
        Ok(PoolFaults { together, forked, speculated })
    }
}

/// A new context and a new pool of the same model.
struct Both<'a, B: Backend> {
    model: &'a Model<B>,
    context: Context<B>,
    pool: Pool<B>,
}

/// What a pool computes; that the values are not finite is a fault, and no error.
fn or_fault<T>(computed: Result<T>) -> Result<Result<T, String>> {
    match computed {
        Err(error @ (Error::SequenceNotFinite { .. } | Error::NotFinite { .. })) => Ok(Err(error.to_string())),
        computed => computed.map(Ok),
    }
}

impl<B: Backend> Both<'_, B> {
    /// Where logits differ from those of a context, which computes `tokens` at once.
    fn logits_fault(&mut self, what: &str, tokens: &[u32], found: &[f32]) -> Result<Option<String>> {
        let alone = untraced(self.model, &mut self.context, &[tokens])?;
        let alone = &alone[alone.len().saturating_sub(found.len())..];
        let vocab = self.model.config().vocab;
        let bad = bits(alone).zip(bits(found)).position(|(alone, found)| alone != found);
        let first = tokens.len() - found.len() / vocab;
        Ok(bad.map(|index| format!("{what}: the logits of token {}", first + index / vocab)))
    }

    fn forward(&mut self, entries: &[Entry<'_>]) -> Result<Result<Vec<Vec<f32>>, String>> {
        or_fault(self.pool.forward(self.model, entries))
    }

    /// Sequences of different lengths and contents: all but the last token of each in one batch, the last ones in another, and then steps
    /// that feed each other.
    fn together(mut self, tokens: &[u32]) -> Result<Option<String>> {
        let texts: Vec<&[u32]> =
            (0..SEQUENCES).map(|number| &tokens[number * tokens.len() / (SEQUENCES + 1)..]).collect();
        let mut sequences = Vec::new();
        for _ in &texts {
            sequences.push(self.pool.create()?);
        }
        let pairs = || sequences.iter().zip(&texts);
        let longer = pairs().filter(|(_, text)| text.len() > 1);
        let entries: Vec<Entry<'_>> =
            longer.map(|(&sequence, text)| Entry::new(sequence, &text[..text.len() - 1], Logits::All)).collect();
        let last: Vec<Entry<'_>> =
            pairs().map(|(&sequence, text)| Entry::new(sequence, &text[text.len() - 1..], Logits::All)).collect();
        let (first, last) = match (self.forward(&entries)?, self.forward(&last)?) {
            (Ok(first), Ok(last)) => (first, last),
            (Err(fault), _) | (_, Err(fault)) => return Ok(Some(fault)),
        };
        // Behind the longest one there is room for these and for the last token that they choose.
        let steps = STEPS.min((self.context.capacity() - tokens.len()).saturating_sub(1));
        let what = |number: usize| format!("sequence {number} of {SEQUENCES}");
        let (mut first, mut alone) = (first.into_iter(), Vec::new());
        for (number, (text, last)) in texts.iter().zip(last).enumerate() {
            let found = if text.len() > 1 { first.next().unwrap_or_default() } else { Vec::new() };
            if let Some(fault) = self.logits_fault(&what(number), text, &[found, last].concat())? {
                return Ok(Some(fault));
            }
            if steps > 0 {
                // The context goes on from there.
                let each = |_| ControlFlow::Continue(());
                let generated = self.context.generate(self.model, &text[..1], steps, each);
                let after = |tokens: Vec<u32>| {
                    let logits = self.context.forward(self.model, &tokens[steps - 1..], Logits::Last)?;
                    Ok((tokens, logits))
                };
                match or_fault(generated.and_then(after))? {
                    Ok(step) => alone.push(step),
                    Err(fault) => return Ok(Some(fault)),
                }
            }
        }
        let next: Vec<Next<'_>> =
            pairs().map(|(&sequence, text)| Next::new(sequence, &text[..1], Sampling::GREEDY)).collect();
        let found = match or_fault(self.pool.decode(self.model, &next, steps))? {
            Ok(found) if steps > 0 => found,
            Ok(_) => return Ok(None),
            Err(fault) => return Ok(Some(fault)),
        };
        if let Some(number) = alone.iter().zip(&found).position(|((alone, _), found)| alone != found) {
            return Ok(Some(format!("{}: the tokens of {steps} steps", what(number))));
        }
        let last: Vec<Entry<'_>> = sequences
            .iter()
            .zip(&found)
            .map(|(&sequence, found)| Entry::new(sequence, &found[steps - 1..], Logits::Last))
            .collect();
        let logits = match self.forward(&last)? {
            Ok(logits) => logits,
            Err(fault) => return Ok(Some(fault)),
        };
        let bad = alone.iter().zip(&logits).position(|((_, alone), found)| bits(alone).ne(bits(found)));
        Ok(bad.map(|number| format!("{}: the logits after {steps} steps", what(number))))
    }

    /// Two that part after half of the tokens.
    fn forked(mut self, tokens: &[u32]) -> Result<Option<String>> {
        if tokens.is_empty() {
            // A model of a single position has nothing behind a fork.
            return Ok(None);
        }
        let (before, behind) = tokens.split_at(tokens.len().div_ceil(2));
        let other = &tokens[..behind.len().max(1)];
        let first = self.pool.create()?;
        if let Err(fault) = self.forward(&[Entry::new(first, before, Logits::None)])? {
            return Ok(Some(fault));
        }
        let second = self.pool.fork(first)?;
        for (sequence, what, behind) in [(second, "the fork", other), (first, "what was forked", behind)] {
            if behind.is_empty() {
                continue;
            }
            let found = match self.forward(&[Entry::new(sequence, behind, Logits::All)])? {
                Ok(found) => found.concat(),
                Err(fault) => return Ok(Some(fault)),
            };
            if let Some(fault) = self.logits_fault(what, &[before, behind].concat(), &found)? {
                return Ok(Some(fault));
            }
        }
        Ok(None)
    }

    /// Tokens that are the most probable ones, and tokens that are drawn, with drafts of which the last token is wrong.
    fn speculated(mut self, prompt: &[u32]) -> Result<Option<String>> {
        let count = GENERATED.min(self.context.capacity() + 1 - prompt.len());
        let drawn = Sampling { seed: 1, ..Sampling::default() };
        for (what, sampling) in [("most probable", Sampling::GREEDY), ("drawn", drawn)] {
            self.context.reset();
            let each = |_| ControlFlow::Continue(());
            let plain = self.context.generate_sampled(self.model, prompt, count, &sampling, each);
            let plain = match or_fault(plain)? {
                Ok(plain) => plain,
                Err(fault) => return Ok(Some(fault)),
            };
            let sequence = self.pool.create()?;
            let draft = |text: &[u32], most: usize| {
                let mut draft: Vec<u32> = plain.iter().copied().skip(text.len() - prompt.len()).take(most).collect();
                draft.iter_mut().skip(DRAFT - 1).for_each(|token| *token ^= 1);
                draft
            };
            let generation = Generation::new(count).sampling(sampling).draft(DRAFT);
            let found = self.pool.generate_with(self.model, sequence, prompt, &generation, draft, each);
            let found = match or_fault(found)? {
                Ok(found) => found,
                Err(fault) => return Ok(Some(fault)),
            };
            if let Some(index) = plain.iter().zip(&found).position(|(plain, found)| plain != found) {
                return Ok(Some(format!(
                    "{what} tokens: token {index} is {} instead of {}",
                    found[index], plain[index]
                )));
            }
            if plain.len() != found.len() {
                return Ok(Some(format!("{what} tokens: {} instead of {}", found.len(), plain.len())));
            }
        }
        Ok(None)
    }
}

/// All values of a forward over the calls' tokens.
fn capture<B: Backend>(model: &Model<B>, context: &mut Context<B>, calls: &[&[u32]]) -> Result<Capture> {
    let mut capture = Capture::default();
    context.reset();
    for call in calls {
        let record = |record: Record<'_>| capture.add(record);
        context.trace(model, call, Logits::All, &mut Select::new(Selection::default(), record))?;
    }
    Ok(capture)
}

/// The logits of a forward over the calls' tokens.
fn untraced<B: Backend>(model: &Model<B>, context: &mut Context<B>, calls: &[&[u32]]) -> Result<Vec<f32>> {
    let mut logits = Vec::new();
    context.reset();
    for call in calls {
        // Values that are not finite are a clause of their own.
        logits.extend(context.trace(model, call, Logits::All, &mut NoTrace)?);
    }
    Ok(logits)
}

/// The first of the wanted stages whose bits differ, and where.
fn first_difference(a: &Capture, b: &Capture, wanted: &dyn Fn(Point) -> bool) -> Option<String> {
    let points = a.arrays.keys().chain(b.arrays.keys()).filter(|&&point| wanted(point));
    let differ = |point: &&Point| match (a.arrays.get(point), b.arrays.get(point)) {
        (Some(a), Some(b)) => bad_index(a, b).is_some(),
        _ => true,
    };
    let point = points.filter(differ).min()?;
    let (Some(a), Some(b)) = (a.arrays.get(point), b.arrays.get(point)) else {
        return Some(format!("{point} is in one of the two only"));
    };
    let index = bad_index(a, b)?;
    let row = index / a.shape.iter().skip(1).product::<usize>().max(1);
    Some(format!("{point} at token {row} (value {index})"))
}

/// The first index at which bits differ; comparing bits, a NaN equals itself.
fn bad_index(a: &Array, b: &Array) -> Option<usize> {
    if a.values.len() != b.values.len() {
        return Some(a.values.len().min(b.values.len()));
    }
    match (&a.values, &b.values) {
        (Values::F32(a), Values::F32(b)) => a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits()),
        (Values::Int(a), Values::Int(b)) => a.iter().zip(b).position(|(a, b)| a != b),
        _ => Some(0),
    }
}

/// The logits of a capture, or no values.
fn logits(capture: &Capture) -> &[f32] {
    match capture.arrays.get(&Point { layer: None, stage: Stage::Logits }) {
        Some(Array { values: Values::F32(values), .. }) => values,
        _ => &[],
    }
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}

/// The most probable tokens of a row of logits. A NaN counts as larger than any number, ties go to the lower id.
fn top(logits: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    let key = |&id: &usize| if logits[id].is_nan() { f32::INFINITY } else { logits[id] };
    ids.sort_by(|a, b| {
        let nan = logits[*b].is_nan().cmp(&logits[*a].is_nan());
        nan.then(key(b).total_cmp(&key(a))).then(a.cmp(b))
    });
    ids.truncate(TOP);
    ids
}

impl Evidence {
    /// Where decode leaves prefill.
    fn decode_fault(&self) -> Option<String> {
        if let Some(decode) = &self.decode {
            return first_difference(&self.prefill, decode, &|_| true);
        }
        let [prefill, decode] = &self.untraced;
        bits(prefill).ne(bits(decode)).then(|| "the logits without a trace".into())
    }

    /// Where a second run leaves the first.
    fn repeat_fault(&self) -> Option<String> {
        let same = bits(&self.untraced[0]).eq(bits(logits(&self.prefill)));
        self.unstable.clone().or_else(|| (!same).then(|| "the logits with a trace and without".into()))
    }

    /// The first value that is not finite and should be.
    fn finite_fault(&self) -> Option<String> {
        self.prefill.arrays.iter().find_map(|(point, array)| {
            let Values::F32(values) = &array.values else { return None };
            let index = match (point.stage, array.shape.as_slice()) {
                // Scores of later positions than the token's own are masked.
                (Stage::AttnScores, &[_, heads, seen]) => values.iter().enumerate().position(|(index, value)| {
                    let masked = index % seen > index / (heads * seen);
                    if masked { *value != f32::NEG_INFINITY } else { !value.is_finite() }
                }),
                _ => values.iter().position(|value| !value.is_finite()),
            }?;
            Some(format!("{point}: value {index} is {}", values[index]))
        })
    }

    /// The first token whose experts' weights do not sum to 1.
    fn weights_fault(&self) -> Option<String> {
        let layers = self.prefill.arrays.iter().filter(|(point, _)| point.stage == Stage::MoeRouter);
        layers.into_iter().find_map(|(point, array)| {
            let (Values::F32(values), Some(&k)) = (&array.values, array.shape.last()) else { return None };
            let mut sums = values.chunks(k).map(|weights| weights.iter().map(|&weight| f64::from(weight)).sum::<f64>());
            let row = sums.position(|sum| sum.is_nan() || (sum - 1.0).abs() > WEIGHTS_SUM)?;
            let sum: f64 = values[row * k..][..k].iter().map(|&weight| f64::from(weight)).sum();
            Some(format!("{point}: the weights of token {row} sum to {sum}"))
        })
    }
}

/// Everything that the clauses are about.
struct Clauses<'a> {
    cpu: &'a Evidence,
    gpu: Option<&'a Evidence>,
    /// Why there is no GPU.
    no_gpu: Option<String>,
    require_cuda: bool,
    vocab: usize,
}

/// What comes of the clauses.
struct Findings {
    clauses: Vec<Clause>,
    outcome: Outcome,
    /// Where the two traces that the first failed clause is about part.
    report: Option<(&'static str, Report)>,
}

impl Clauses<'_> {
    fn findings(&self) -> Findings {
        let clauses = self.all();
        let failed = clauses.iter().find(|clause| matches!(clause.state, State::Fail(_)));
        let outcome = if failed.is_some() { Outcome::Failed } else { Outcome::Ok };
        let Self { cpu, gpu, .. } = *self;
        let report = failed.and_then(|clause| match (clause.about, gpu) {
            (About::Parity, Some(gpu)) => Some(("A: cpu, B: cuda", cpu.prefill.compare(&gpu.prefill, MIN_COSINE))),
            (About::Decode, _) => [Some(cpu), gpu]
                .into_iter()
                .flatten()
                .find_map(|run| Some(("A: prefill, B: decode", run.prefill.compare(run.decode.as_ref()?, MIN_COSINE)))),
            _ => None,
        });
        Findings { clauses, outcome, report }
    }

    fn all(&self) -> Vec<Clause> {
        let stage = |wanted: Stage| {
            move |gpu: &Evidence, cpu: &Evidence| {
                first_difference(&cpu.prefill, &gpu.prefill, &|point| point.stage == wanted)
            }
        };
        let parity = |name, fault: &dyn Fn(&Evidence, &Evidence) -> Option<String>| Clause {
            name,
            about: About::Parity,
            state: self.on_gpu(|gpu| fault(gpu, self.cpu)),
        };
        let each = |name, about, fault: &dyn Fn(&Evidence) -> Option<String>| Clause {
            name,
            about,
            state: self.on_each(fault),
        };
        vec![
            Clause { name: "CUDA device present", about: About::Other, state: self.device() },
            parity("hidden state equal in every layer", &stage(Stage::FfnResidual)),
            parity("router indices equal in every layer", &stage(Stage::MoeRouterIndices)),
            parity("every recorded value equal", &|gpu, cpu| first_difference(&cpu.prefill, &gpu.prefill, &|_| true)),
            parity("top-1 and top-5 tokens equal", &|gpu, cpu| self.top_fault(gpu, cpu)),
            each("router weights sum to 1", About::Other, &Evidence::weights_fault),
            each("finite everywhere", About::Other, &Evidence::finite_fault),
            each("one prefill equals token-by-token decode", About::Decode, &Evidence::decode_fault),
            each("two runs equal", About::Other, &Evidence::repeat_fault),
            each("sequences together equal each alone", About::Other, &|run| run.pool.together.clone()),
            each("a fork equals what is computed anew", About::Other, &|run| run.pool.forked.clone()),
            each("tokens with drafts equal those without", About::Other, &|run| run.pool.speculated.clone()),
            Clause {
                name: "GPU memory at most 95% of the card",
                about: About::Other,
                state: self.on_gpu(memory_fault),
            },
        ]
    }

    fn device(&self) -> State {
        match (&self.no_gpu, self.require_cuda) {
            (None, _) => State::Pass,
            (Some(reason), true) => State::Fail(reason.clone()),
            (Some(reason), false) => State::Skipped(reason.clone()),
        }
    }

    fn on_gpu(&self, fault: impl FnOnce(&Evidence) -> Option<String>) -> State {
        match self.gpu.map(fault) {
            None => State::Skipped("no CUDA device".into()),
            Some(None) => State::Pass,
            Some(Some(reason)) => State::Fail(reason),
        }
    }

    fn on_each(&self, fault: &dyn Fn(&Evidence) -> Option<String>) -> State {
        let runs = [Some(self.cpu), self.gpu].into_iter().flatten();
        let faults: Vec<String> = runs.filter_map(|run| Some(format!("{}: {}", run.backend, fault(run)?))).collect();
        if faults.is_empty() { State::Pass } else { State::Fail(faults.join("; ")) }
    }

    fn top_fault(&self, gpu: &Evidence, cpu: &Evidence) -> Option<String> {
        let (cpu, gpu) = (logits(&cpu.prefill), logits(&gpu.prefill));
        if cpu.len() != gpu.len() {
            return Some(format!("{} and {} logits", cpu.len(), gpu.len()));
        }
        let rows = cpu.chunks(self.vocab).zip(gpu.chunks(self.vocab));
        let (token, cpu, gpu) =
            rows.enumerate().map(|(token, (cpu, gpu))| (token, top(cpu), top(gpu))).find(|(_, cpu, gpu)| cpu != gpu)?;
        Some(format!("token {token}: cpu {cpu:?}, cuda {gpu:?}"))
    }
}

fn memory_fault(gpu: &Evidence) -> Option<String> {
    let (used, total) = gpu.memory?;
    let share = used as f64 / total as f64;
    (share > MEMORY_SHARE).then(|| format!("{:.1}% is in use ({used} of {total} bytes)", 100.0 * share))
}

#[cfg(test)]
mod tests {
    use super::super::faulty::{Fault, Faulty};
    use super::*;
    use kquant_moe::trace::Data;

    /// A capture of a model with one layer, whose values are given.
    fn captured(hidden: &[f32], weights: &[f32], indices: &[u32], logits: &[f32]) -> Capture {
        let mut capture = Capture::default();
        let mut add = |layer, stage, columns: usize, data| {
            let len = match data {
                Data::F32(values) => values.len(),
                Data::U32(values) => values.len(),
            };
            capture.add(Record::new(stage, layer, 0, &[len / columns, columns], data)).unwrap();
        };
        add(Some(0), Stage::FfnResidual, 2, Data::F32(hidden));
        add(Some(0), Stage::MoeRouter, 2, Data::F32(weights));
        add(Some(0), Stage::MoeRouterIndices, 2, Data::U32(indices));
        add(None, Stage::Logits, 6, Data::F32(logits));
        capture
    }

    const HIDDEN: &[f32] = &[1.0, 2.0];
    const WEIGHTS: &[f32] = &[0.75, 0.25];
    const INDICES: &[u32] = &[3, 1];
    const LOGITS: &[f32] = &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

    fn evidence(backend: &'static str) -> Evidence {
        Evidence {
            backend,
            on: String::new(),
            prefill: captured(HIDDEN, WEIGHTS, INDICES, LOGITS),
            decode: None,
            untraced: [LOGITS.to_vec(), LOGITS.to_vec()],
            unstable: None,
            pool: PoolFaults::default(),
            memory: (backend == "cuda").then_some((95, 100)),
        }
    }

    fn failed(cpu: &Evidence, gpu: Option<&Evidence>) -> Vec<&'static str> {
        let no_gpu = gpu.is_none().then(|| "none".to_owned());
        let clauses = Clauses { cpu, gpu, no_gpu, require_cuda: false, vocab: 6 };
        clauses.all().iter().filter(|clause| matches!(clause.state, State::Fail(_))).map(|clause| clause.name).collect()
    }

    #[test]
    fn sound_evidence_passes_every_clause() {
        let (cpu, gpu) = (evidence("cpu"), evidence("cuda"));
        assert!(failed(&cpu, Some(&gpu)).is_empty());
        let clauses = Clauses { cpu: &cpu, gpu: Some(&gpu), no_gpu: None, require_cuda: true, vocab: 6 };
        assert!(clauses.all().iter().all(|clause| matches!(clause.state, State::Pass)));
    }

    #[test]
    fn without_a_gpu_its_clauses_are_skipped_or_fail() {
        let cpu = evidence("cpu");
        for require_cuda in [false, true] {
            let clauses = Clauses { cpu: &cpu, gpu: None, no_gpu: Some("why".into()), require_cuda, vocab: 6 };
            let count = |wanted: fn(&State) -> bool| clauses.all().iter().filter(|c| wanted(&c.state)).count();
            assert_eq!(count(|state| matches!(state, State::Pass)), 7);
            assert_eq!(count(|state| matches!(state, State::Fail(_))), usize::from(require_cuda));
        }
    }

    /// Who reads the last line alone knows whether something was left out.
    #[test]
    fn the_summary_says_what_was_skipped() {
        let clause = |state| Clause { name: "", about: About::Other, state };
        let of = |passed: usize, failed: usize, skipped: usize| {
            let passed = (0..passed).map(|_| clause(State::Pass));
            let failed = (0..failed).map(|_| clause(State::Fail(String::new())));
            let skipped = (0..skipped).map(|_| clause(State::Skipped(String::new())));
            summary(&passed.chain(failed).chain(skipped).collect::<Vec<_>>())
        };
        assert_eq!(of(10, 0, 0), ("passed: all 10 clauses".into(), 0));
        assert_eq!(of(4, 0, 6), ("passed in part: 4 of 10 clauses, 6 skipped".into(), 6));
        assert_eq!(of(8, 2, 0), ("FAILED: 2 of 10 clauses, 8 passed".into(), 0));
        assert_eq!(of(3, 1, 6), ("FAILED: 1 of 10 clauses, 3 passed, 6 skipped".into(), 6));
    }

    #[test]
    fn each_fault_fails_its_clause() {
        let cpu = evidence("cpu");
        let parts = |gpu: Evidence| failed(&cpu, Some(&gpu));
        let with = |hidden: &[f32], weights: &[f32], indices: &[u32], logits: &[f32]| Evidence {
            prefill: captured(hidden, weights, indices, logits),
            untraced: [logits.to_vec(), logits.to_vec()],
            ..evidence("cuda")
        };
        let all = "every recorded value equal";
        let ulp = [1.0, 2.0_f32.next_up()];
        assert_eq!(parts(with(&ulp, WEIGHTS, INDICES, LOGITS)), ["hidden state equal in every layer", all]);
        assert_eq!(parts(with(HIDDEN, WEIGHTS, &[1, 3], LOGITS)), ["router indices equal in every layer", all]);
        let heavy = [0.75, 0.250_01];
        assert_eq!(parts(with(HIDDEN, &heavy, INDICES, LOGITS)), [all, "router weights sum to 1"]);
        let swapped = [0.0, 2.0, 1.0, 3.0, 4.0, 5.0];
        assert_eq!(parts(with(HIDDEN, WEIGHTS, INDICES, &swapped)), [all, "top-1 and top-5 tokens equal"]);
        let nan = [f32::NAN, 2.0];
        assert_eq!(
            parts(with(&nan, WEIGHTS, INDICES, LOGITS)),
            ["hidden state equal in every layer", all, "finite everywhere"]
        );
        let decode = Some(captured(&ulp, WEIGHTS, INDICES, LOGITS));
        assert_eq!(parts(Evidence { decode, ..evidence("cuda") }), ["one prefill equals token-by-token decode"]);
        let unstable = Some("logits".into());
        assert_eq!(parts(Evidence { unstable, ..evidence("cuda") }), ["two runs equal"]);
        let fault = || Some("why".to_owned());
        for (pool, clause) in [
            (PoolFaults { together: fault(), ..PoolFaults::default() }, TOGETHER_CLAUSE),
            (PoolFaults { forked: fault(), ..PoolFaults::default() }, FORK_CLAUSE),
            (PoolFaults { speculated: fault(), ..PoolFaults::default() }, DRAFTS_CLAUSE),
        ] {
            assert_eq!(parts(Evidence { pool, ..evidence("cuda") }), [clause]);
        }
        let memory = Some((96, 100));
        assert_eq!(parts(Evidence { memory, ..evidence("cuda") }), ["GPU memory at most 95% of the card"]);
    }

    #[test]
    fn nans_are_equal_to_themselves_in_bits_and_first_among_tokens() {
        let nan = captured(&[f32::NAN, 2.0], WEIGHTS, INDICES, LOGITS);
        let same = captured(&[f32::NAN, 2.0], WEIGHTS, INDICES, LOGITS);
        assert_eq!(first_difference(&nan, &same, &|_| true), None);
        assert_eq!(top(&[1.0, f32::NAN, f32::INFINITY, 1.0, -1.0, 0.0]), [1, 2, 0, 3, 5]);
    }

    const HIDDEN_CLAUSE: &str = "hidden state equal in every layer";
    const INDICES_CLAUSE: &str = "router indices equal in every layer";
    const VALUES_CLAUSE: &str = "every recorded value equal";
    const TOP_CLAUSE: &str = "top-1 and top-5 tokens equal";
    const WEIGHTS_CLAUSE: &str = "router weights sum to 1";
    const FINITE_CLAUSE: &str = "finite everywhere";
    const DECODE_CLAUSE: &str = "one prefill equals token-by-token decode";
    const REPEAT_CLAUSE: &str = "two runs equal";
    const TOGETHER_CLAUSE: &str = "sequences together equal each alone";
    const FORK_CLAUSE: &str = "a fork equals what is computed anew";
    const DRAFTS_CLAUSE: &str = "tokens with drafts equal those without";

    /// What the checks find of a backend with a fault: the clauses that fail, the outcome, and the first stage that the
    /// report names. The tokens are computed as `verify` computes them; `cuda`: the faulty backend stands for the GPU next to a
    /// sound CPU, or else for the CPU where there is no GPU.
    fn found(fault: Fault, cuda: bool) -> (Vec<&'static str>, Outcome, Option<String>) {
        let source = Source::built_in().unwrap();
        let tokens = [766, 306, 598, 284, 280];
        let options = ContextOptions::default().capacity(tokens.len());
        let gather = |fault, name| {
            Gather { source: &source, tokens: &tokens, options }.run(Faulty::new(name, fault), None).unwrap()
        };
        let cpu = gather(if cuda { Fault::None } else { fault }, "cpu");
        let gpu = cuda.then(|| gather(fault, "cuda"));
        let no_gpu = (!cuda).then(|| "none".to_owned());
        let vocab = source.config.vocab;
        let findings = Clauses { cpu: &cpu, gpu: gpu.as_ref(), no_gpu, require_cuda: false, vocab }.findings();
        let failed = findings.clauses.iter().filter(|clause| matches!(clause.state, State::Fail(_)));
        let parts = findings.report.and_then(|(_, report)| Some(report.first_difference()?.0.to_string()));
        (failed.map(|clause| clause.name).collect(), findings.outcome, parts)
    }

    #[test]
    fn a_sound_backend_passes() {
        for cuda in [false, true] {
            assert_eq!(found(Fault::None, cuda), (vec![], Outcome::Ok, None));
        }
    }

    #[test]
    fn a_fault_of_the_gpu_fails_the_clauses_that_are_about_it() {
        let hidden = "layer00.ffn_residual";
        for (fault, clauses, first) in [
            (Fault::Hidden, vec![HIDDEN_CLAUSE, VALUES_CLAUSE], Some(hidden)),
            // What is computed for one of many tokens is not what is computed for it alone.
            (Fault::Grouped, vec![HIDDEN_CLAUSE, VALUES_CLAUSE, DECODE_CLAUSE, TOGETHER_CLAUSE], Some(hidden)),
            (Fault::Single, vec![DECODE_CLAUSE, TOGETHER_CLAUSE], Some(hidden)),
            (Fault::Indices, vec![INDICES_CLAUSE, VALUES_CLAUSE, DECODE_CLAUSE], Some("layer00.moe_router_indices")),
            (Fault::Weights, vec![VALUES_CLAUSE, WEIGHTS_CLAUSE, DECODE_CLAUSE], Some("layer00.moe_router")),
            // The first row of what is computed is another one for a sequence alone, in a batch, and behind a fork.
            (
                Fault::Top,
                vec![VALUES_CLAUSE, TOP_CLAUSE, DECODE_CLAUSE, TOGETHER_CLAUSE, FORK_CLAUSE, DRAFTS_CLAUSE],
                Some("logits"),
            ),
            // The first prefill is the odd one, or the second.
            (Fault::Run(1), vec![HIDDEN_CLAUSE, VALUES_CLAUSE, DECODE_CLAUSE, REPEAT_CLAUSE], Some(hidden)),
            (Fault::Run(2), vec![REPEAT_CLAUSE], None),
            (Fault::Run(3), vec![DECODE_CLAUSE], Some(hidden)),
            (Fault::Untraced, vec![DECODE_CLAUSE, REPEAT_CLAUSE, TOGETHER_CLAUSE, FORK_CLAUSE], None),
            (Fault::UntracedSingle, vec![DECODE_CLAUSE, TOGETHER_CLAUSE], None),
        ] {
            let expected = (clauses, Outcome::Failed, first.map(str::to_owned));
            assert_eq!(found(fault, true), expected, "{fault:?}");
        }
        let (clauses, outcome, first) = found(Fault::Nan, true);
        assert!(clauses.contains(&FINITE_CLAUSE) && clauses.contains(&VALUES_CLAUSE), "{clauses:?}");
        assert_eq!((outcome, first.as_deref()), (Outcome::Failed, Some(hidden)));
    }

    #[test]
    fn a_fault_of_the_cpu_alone_is_found_as_well() {
        let hidden = "layer00.ffn_residual";
        for (fault, clauses, first) in [
            (Fault::Grouped, vec![DECODE_CLAUSE, TOGETHER_CLAUSE], Some(hidden)),
            (Fault::Single, vec![DECODE_CLAUSE, TOGETHER_CLAUSE], Some(hidden)),
            (Fault::Weights, vec![WEIGHTS_CLAUSE, DECODE_CLAUSE], None),
            (Fault::Run(2), vec![REPEAT_CLAUSE], None),
            (Fault::UntracedSingle, vec![DECODE_CLAUSE, TOGETHER_CLAUSE], None),
            (Fault::Together, vec![TOGETHER_CLAUSE], None),
            (Fault::Copies, vec![FORK_CLAUSE], None),
            (Fault::Choices, vec![DRAFTS_CLAUSE], None),
        ] {
            let expected = (clauses, Outcome::Failed, first.map(str::to_owned));
            assert_eq!(found(fault, false), expected, "{fault:?}");
        }
        assert!(found(Fault::Nan, false).0.contains(&FINITE_CLAUSE));
    }

    #[test]
    fn what_only_one_of_two_has_differs() {
        let both = || captured(HIDDEN, WEIGHTS, INDICES, LOGITS);
        for stage in [Stage::FfnResidual, Stage::Logits] {
            let mut less = both();
            less.arrays.retain(|point, _| point.stage != stage);
            for (a, b) in [(&less, &both()), (&both(), &less)] {
                assert!(first_difference(a, b, &|_| true).is_some_and(|text| text.contains(stage.name())), "{stage}");
                assert_eq!(first_difference(a, b, &|point| point.stage != stage), None, "{stage}");
            }
        }
        // Fewer values, and no logits at all: nothing that is there differs.
        let short = captured(HIDDEN, WEIGHTS, INDICES, &[]);
        assert!(first_difference(&both(), &short, &|_| true).is_some_and(|text| text.contains("value 0")));
        let cpu = evidence("cpu");
        let gpu = Evidence { prefill: short, untraced: [vec![], vec![]], ..evidence("cuda") };
        assert_eq!(failed(&cpu, Some(&gpu)), [VALUES_CLAUSE, TOP_CLAUSE]);
    }

    #[test]
    fn differences_are_named_by_their_first_value() {
        let values = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let with = |at: usize| {
            let mut values = values;
            values[at] = values[at].next_up();
            captured(&values, WEIGHTS, INDICES, LOGITS)
        };
        let all = captured(&values, WEIGHTS, INDICES, LOGITS);
        for (at, token) in [(0, 0), (1, 0), (2, 1), (5, 2)] {
            let text = first_difference(&all, &with(at), &|_| true).unwrap();
            assert_eq!(text, format!("layer00.ffn_residual at token {token} (value {at})"));
        }
        // The earliest stage, and zeros of different sign.
        let later = captured(HIDDEN, WEIGHTS, &[1, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 6.0]);
        let text = first_difference(&captured(HIDDEN, WEIGHTS, INDICES, LOGITS), &later, &|_| true).unwrap();
        assert!(text.starts_with("layer00.moe_router_indices at token 0 (value 0)"), "{text}");
        let (plus, minus) = ([0.0, 2.0], [-0.0, 2.0]);
        let [plus, minus] = [plus, minus].map(|hidden| captured(&hidden, WEIGHTS, INDICES, LOGITS));
        assert!(first_difference(&plus, &minus, &|_| true).is_some());
    }

    #[test]
    fn scores_are_finite_where_they_are_seen_and_nowhere_else() {
        const NO: f32 = f32::NEG_INFINITY;
        // Two tokens, two heads, two positions: the first token sees its own.
        let sound = [1.0, NO, 2.0, NO, 3.0, 4.0, 5.0, 6.0];
        let fault = |scores: &[f32]| {
            let mut evidence = evidence("cpu");
            let data = Data::F32(scores);
            let record = Record::new(Stage::AttnScores, Some(0), 0, &[2, 2, 2], data);
            evidence.prefill.add(record).unwrap();
            evidence.finite_fault()
        };
        assert_eq!(fault(&sound), None);
        for at in 0..8 {
            // What is masked shows, and what is seen is not there.
            let mut scores = sound;
            scores[at] = if sound[at] == NO { 0.0 } else { NO };
            assert!(fault(&scores).is_some_and(|text| text.contains(&format!("value {at} "))), "{at}");
            scores[at] = f32::NAN;
            assert!(fault(&scores).is_some(), "{at}");
        }
        let mut bare = evidence("cpu");
        bare.prefill = captured(HIDDEN, WEIGHTS, INDICES, &[0.0, 1.0, f32::INFINITY, 3.0, 4.0, 5.0]);
        assert!(bare.finite_fault().is_some());
    }

    #[test]
    fn weights_may_be_off_by_a_millionth() {
        let fault = |weights: &[f32]| {
            Evidence { prefill: captured(HIDDEN, weights, INDICES, LOGITS), ..evidence("cpu") }.weights_fault()
        };
        // Sums of floats near 1/4 are exact in f64, in steps of 2^-25.
        let step = 2_f32.powi(-25);
        for (steps, fails) in [(33.0, false), (34.0, true), (-33.0, false), (-34.0, true), (f32::NAN, true)] {
            assert_eq!(fault(&[0.75, 0.25 + steps * step]).is_some(), fails, "{steps} steps");
        }
        // Any row.
        assert!(fault(&[0.75, 0.25, 0.5, 0.5]).is_none());
        assert!(fault(&[0.75, 0.25, 0.5, 0.25]).is_some_and(|text| text.contains("token 1 sum to 0.75")));
    }

    #[test]
    fn the_most_probable_tokens_are_the_first_five() {
        assert_eq!(top(&[0.0, 5.0, 1.0, 4.0, 2.0, 3.0, 6.0]), [6, 1, 3, 5, 4]);
        assert_eq!(top(&[1.0; 7]), [0, 1, 2, 3, 4]);
        assert_eq!(top(&[-0.0, 0.0]), [1, 0]);
    }

    #[test]
    fn memory_in_use_is_a_share_of_all() {
        for (used, total, fails) in [(95, 100, false), (951, 1000, true), (0, 1, false), (1, 1, true)] {
            let evidence = Evidence { memory: Some((used, total)), ..evidence("cuda") };
            assert_eq!(memory_fault(&evidence).is_some(), fails, "{used} of {total}");
        }
    }
}
