//! `bench`: tokens per second of decode and prefill, and on a GPU where the time of a decode step goes.

use std::num::NonZeroUsize;
use std::time::Instant;

use kquant_moe::device::{CudaDevice, CudaMark, Device as _, Probe};
use kquant_moe::model::backend::PAGE;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{
    Backend, Context, ContextOptions, Entry, Logits, MemoryPlan, Model, Next, Pool, PoolOptions, Sequence,
};
use kquant_moe::oracle::sample::Sampling;
use kquant_moe::{Error, Result};
use serde_json::{Value, json};

use super::Outcome;
use super::backend::{Choice, Kv};
use super::input::{ModelArgs, Source};
use super::kernels::{Kernels, Row, measure_prefill, prefill_json, prefill_table};
use super::machine;
use super::output::{Out, Progress, bytes};

/// Bytes that are copied to measure the card's bandwidth.
const COPY_BYTES: usize = 1 << 30;

/// Measures decode, token by token with the KV cache, of one sequence or of many together, and prefill; on a GPU also memory and each
/// kernel of a decode step of one, and of a prefill.
/// Each figure is the median of several runs after one that does not count.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens to decode in each run
    #[arg(long, value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// Runs
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Positions in use when decoding starts
    #[arg(long, value_name = "POSITIONS", default_value_t = 0)]
    depth: usize,
    /// Decode so many sequences of different tokens together, each --tokens at --depth
    #[arg(long, value_name = "B")]
    sequences: Option<NonZeroUsize>,
    /// Tokens of the prompt whose prefill is measured, from an empty cache; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 512)]
    prefill: usize,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    backend: Choice,
    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t)]
    kv: Kv,
    /// Write JSON, with the facts about machine and build
    #[arg(long)]
    json: bool,
}

/// Seconds of each run.
#[derive(Default)]
struct Measured {
    decode: Vec<f64>,
    /// Of the same runs, by the device's clock: from the first step to the last one.
    decode_on_device: Vec<f64>,
    prefill: Vec<f64>,
}

/// What is measured on a GPU.
struct Card {
    /// Bytes per second of a copy, read plus written.
    copy_bandwidth: f64,
    /// Bytes of the GPU's memory: all, free before anything was loaded, and free after decoding.
    total: u64,
    free_before: u64,
    free_after: u64,
    plan: MemoryPlan,
    /// Seconds of a token by the device's clock.
    step: f64,
    kernels: Kernels,
    /// Of the prefill.
    prefill: Vec<Row>,
}

/// Runs the command.
pub fn bench(args: &Args, out: &mut Out) -> Result<Outcome> {
    if args.runs == 0 || args.tokens == 0 {
        return Err(Error::Invalid("bench: --runs and --tokens must be at least 1".into()));
    }
    let source = args.model.open()?;
    let capacity = source.capacity(args.depth.saturating_add(args.tokens).max(args.prefill), None)?;
    let options = ContextOptions::default().capacity(capacity).cache(args.kv.cache_type());
    let device = args.backend.device()?;
    if let Some(count) = args.sequences {
        return Together { measure: Measure { source: &source, args, options }, count: count.get() }.bench(device, out);
    }
    let measure = Measure { source: &source, args, options };
    // Unlike other commands, this one has work for a GPU that the CPU cannot do.
    let (measured, card) = match &device {
        None => (measure.rates(Cpu::new(), |_| Ok(None))?.0, None),
        Some(device) => measure.on_card(device).map(|(measured, card)| (measured, Some(card)))?,
    };

    let decode = args.tokens as f64 / median(&measured.decode);
    let prefill = (args.prefill > 0).then(|| args.prefill as f64 / median(&measured.prefill));
    let bandwidth = decode * source.bytes_per_token() as f64;
    let share = card.as_ref().map(|card| bandwidth / card.copy_bandwidth);
    let name = device.as_ref().map_or("cpu", |_| "cuda");
    if args.json {
        let on_device = rates(args.tokens, &measured.decode_on_device);
        out.json(&json!({
            "model": source.name(),
            "backend": name,
            "kv": args.kv.name(),
            "machine": machine::facts(device.as_ref())?,
            "decode": {
                "depth": args.depth,
                "tokens": args.tokens,
                "tokens_per_second": decode,
                "runs": rates(args.tokens, &measured.decode),
                "device_tokens_per_second": card.as_ref().map(|card| 1.0 / card.step),
                "device_runs": card.as_ref().map(|_| on_device),
                "weight_bytes_per_token": source.bytes_per_token(),
                "weight_bytes_per_second": bandwidth,
                "copy_bytes_per_second": card.as_ref().map(|card| card.copy_bandwidth),
                "share_of_copy_bandwidth": share,
            },
            "prefill": prefill.map(|rate| json!({
                "tokens": args.prefill,
                "tokens_per_second": rate,
                "runs": rates(args.prefill, &measured.prefill),
                "kernels": card.as_ref().map(|card| prefill_json(&card.prefill)),
            })),
            "memory": card.as_ref().map(Card::memory_json),
            "step": card.as_ref().map(|card| card.kernels.json(card.step, card.copy_bandwidth)),
        }))?;
        return Ok(Outcome::Ok);
    }
    let on = device.as_ref().map_or_else(|| Ok(machine::cpu()), CudaDevice::describe)?;
    out.line(format_args!("{} on {name} ({on}), KV cache in {}", source.name(), args.kv.name()))?;
    let share = share.map_or(String::new(), |share| format!(", {:.1}% of the card's copy bandwidth", 100.0 * share));
    let Args { tokens, depth, runs, .. } = args;
    out.line(format_args!("decode   {decode:10.2} tokens/s  median of {runs}, {tokens} tokens at depth {depth}"))?;
    out.line(format_args!("weights  {:10.2} GB/s{share}", bandwidth / 1e9))?;
    if let Some(prefill) = prefill {
        out.line(format_args!("prefill  {prefill:10.2} tokens/s  median of {runs}, {} tokens", args.prefill))?;
    }
    if let Some(card) = &card {
        let (host, step) = (1e6 / decode, 1e6 * card.step);
        out.line(format_args!("token    {host:10.2} us, of which the steps take {step:.2} us by the card's clock"))?;
        out.line(format_args!("memory   {}", card.memory()))?;
        out.text(format_args!("\n{}", card.kernels.table(card.step, card.copy_bandwidth)))?;
        if prefill.is_some() {
            out.text(format_args!("\n{}", prefill_table(&card.prefill, median(&measured.prefill))))?;
        }
    }
    Ok(Outcome::Ok)
}

/// Tokens per second of runs of so many seconds.
fn rates(tokens: usize, runs: &[f64]) -> Vec<f64> {
    runs.iter().map(|run| tokens as f64 / run).collect()
}

/// The value in the middle, or between the two of them.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

impl Card {
    fn in_use(&self) -> u64 {
        self.total - self.free_after
    }

    /// What this program took since it began to load.
    fn taken(&self) -> u64 {
        self.free_before.saturating_sub(self.free_after)
    }

    fn memory(&self) -> String {
        let MemoryPlan { weights, cache, activations, workspace, .. } = self.plan;
        let [weights, cache, rest] = [weights, cache, activations + workspace].map(bytes);
        let [used, total, taken, planned] = [self.in_use(), self.total, self.taken(), self.plan.total()].map(bytes);
        format!(
            "{used:>10} of {total} in use, {taken} for the model; planned {planned}: weights {weights}, KV cache {cache}, \
             rest {rest}"
        )
    }

    fn memory_json(&self) -> Value {
        let MemoryPlan { weights, cache, activations, workspace, .. } = self.plan;
        json!({
            "total": self.total,
            "in_use": self.in_use(),
            "taken": self.taken(),
            "planned": {
                "weights": weights,
                "cache": cache,
                "activations": activations,
                "workspace": workspace,
                "total": self.plan.total(),
            },
        })
    }
}

struct Measure<'a> {
    source: &'a Source,
    args: &'a Args,
    options: ContextOptions,
}

impl Measure<'_> {
    /// Tokens in no order, so that decode and prefill use all experts.
    fn tokens(&self, count: usize) -> Vec<u32> {
        self.tokens_from(1, count)
    }

    /// The same from another start.
    fn tokens_from(&self, mut state: u64, count: usize) -> Vec<u32> {
        let vocab = self.source.config.vocab as u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocab) as u32
        };
        (0..count).map(|_| next()).collect()
    }

    fn prefill<B: Backend>(&self, model: &Model<B>, context: &mut Context<B>, tokens: &[u32]) -> Result<f64> {
        context.reset();
        let start = Instant::now();
        context.next_token(model, tokens)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds of all runs of prefill, if it is measured.
    fn prefills<B: Backend>(
        &self,
        model: &Model<B>,
        context: &mut Context<B>,
        progress: &Progress,
    ) -> Result<Vec<f64>> {
        let mut seconds = Vec::new();
        if self.args.prefill > 0 {
            let tokens = self.tokens(self.args.prefill);
            self.prefill(model, context, &tokens)?;
            progress.step();
            for _ in 0..self.args.runs {
                seconds.push(self.prefill(model, context, &tokens)?);
                progress.step();
            }
        }
        Ok(seconds)
    }

    /// Seconds by the host's clock, and by the device's where `mark` marks its queue.
    fn decode<B: Backend>(
        &self,
        model: &Model<B>,
        context: &mut Context<B>,
        mark: &impl Fn(&B) -> Result<Option<CudaMark>>,
    ) -> Result<(f64, Option<f64>)> {
        context.truncate(self.args.depth);
        let token = self.tokens(1)[0];
        let mut marks = Vec::new();
        let start = Instant::now();
        context.decode_marked(model, token, self.args.tokens, |backend| {
            marks.extend(mark(backend)?);
            Ok(())
        })?;
        let seconds = start.elapsed().as_secs_f64();
        Ok((seconds, between(&marks)?))
    }

    /// Loads the model and measures its rates. The context is left where the last run of decode ended.
    fn rates<B: Backend>(
        &self,
        backend: B,
        mark: impl Fn(&B) -> Result<Option<CudaMark>>,
    ) -> Result<(Measured, Model<B>, Context<B>)> {
        let (model, mut context) = self.source.load_with_context(backend, self.options)?;
        let mut measured = Measured::default();
        // Both kinds of runs, one more of each, and the way to the depth.
        let progress = Progress::count("measuring", 2 * self.args.runs + 3);
        measured.prefill = self.prefills(&model, &mut context, &progress)?;
        context.reset();
        if self.args.depth > 0 {
            context.forward(&model, &self.tokens(self.args.depth), Logits::None)?;
        }
        progress.set(self.args.runs as u64 + 2);
        self.decode(&model, &mut context, &mark)?;
        progress.step();
        for _ in 0..self.args.runs {
            let (seconds, on_device) = self.decode(&model, &mut context, &mark)?;
            measured.decode.push(seconds);
            measured.decode_on_device.extend(on_device);
            progress.step();
        }
        drop(progress);
        Ok((measured, model, context))
    }

    /// [`Self::rates`] on a GPU, and what else there is to measure.
    fn on_card(&self, device: &CudaDevice) -> Result<(Measured, Card)> {
        let backend = Gpu::new(Probe::new(device.clone()));
        let plan = MemoryPlan::on(&backend, &self.source.config, &self.source.tensors, &self.options)?;
        let (free_before, total) = device.memory()?;
        let (measured, model, mut context) =
            self.rates(backend, |backend| backend.device().device().mark().map(Some))?;
        let (free_after, _) = device.memory()?;
        let copy_bandwidth = device.copy_bandwidth(COPY_BYTES)?;
        // The middle of the runs, of which the step's time is the mean.
        context.truncate(self.args.depth + self.args.tokens / 2);
        let cache_bytes = plan.cache / self.options.capacity as u64 * (context.position() as u64 + 1);
        let kernels = Kernels::measure(self.source, &model, &mut context, cache_bytes, self.args.runs)?;
        let step = median(&measured.decode_on_device) / self.args.tokens as f64;
        let prefill = if self.args.prefill > 0 {
            let tokens = self.tokens(self.args.prefill);
            measure_prefill(model.backend().device(), self.args.runs, || {
                context.reset();
                let start = Instant::now();
                // Without logits: those of a prefill without most of its kernels mean nothing.
                context.forward(&model, &tokens, Logits::None)?;
                Ok(start.elapsed().as_secs_f64())
            })?
        } else {
            Vec::new()
        };
        Ok((measured, Card { copy_bandwidth, total, free_before, free_after, plan, step, kernels, prefill }))
    }
}

/// Seconds between marks that come in pairs, of all pairs; none without marks.
fn between(marks: &[CudaMark]) -> Result<Option<f64>> {
    let pairs = marks.as_chunks().0.iter();
    let seconds = pairs.map(|[first, last]| last.seconds_since(first)).collect::<Result<Vec<_>>>()?;
    Ok((!seconds.is_empty()).then(|| seconds.iter().sum()))
}

/// Many sequences, which are decoded together.
struct Together<'a> {
    measure: Measure<'a>,
    count: usize,
}

/// Bytes of a GPU's memory, free and in all.
type Memory = (u64, u64);

/// What was measured of sequences together, and the memory of the GPU when they were there.
type Measurements = (Measured, Option<Memory>);

impl Together<'_> {
    fn options(&self) -> Result<PoolOptions> {
        let Args { depth, tokens, kv, .. } = self.measure.args;
        let capacity = self.measure.source.capacity(depth.saturating_add(*tokens), None)?;
        let pages = capacity.div_ceil(PAGE).saturating_mul(self.count);
        Ok(PoolOptions::default().pages(pages).sequences(self.count).capacity(capacity).cache(kv.cache_type()))
    }

    /// Measures and says what was found.
    fn bench(&self, device: Option<CudaDevice>, out: &mut Out) -> Result<Outcome> {
        let Self { measure: Measure { source, args, .. }, count } = self;
        let before = device.as_ref().map(CudaDevice::memory).transpose()?;
        let (measured, memory) = match &device {
            None => self.rates(Cpu::new(), |_| Ok(None), || Ok(None))?,
            Some(device) => {
                let mark = |backend: &Gpu<CudaDevice>| backend.device().mark().map(Some);
                self.rates(Gpu::new(device.clone()), mark, || device.memory().map(Some))?
            }
        };
        let (runs, steps) = (args.runs, args.tokens);
        let tokens = count * steps;
        let seconds = median(&measured.decode);
        let on_device = (!measured.decode_on_device.is_empty()).then(|| median(&measured.decode_on_device));
        let milliseconds = |seconds: f64| 1e3 * seconds / steps as f64;
        let prefill = (args.prefill > 0).then(|| args.prefill as f64 / median(&measured.prefill));
        let in_use = memory.map(|(free, total)| total - free);
        let taken = before.zip(memory).map(|((before, _), (after, _))| before.saturating_sub(after));
        let name = device.as_ref().map_or("cpu", |_| "cuda");
        if args.json {
            out.json(&json!({
                "model": source.name(),
                "backend": name,
                "kv": args.kv.name(),
                "machine": machine::facts(device.as_ref())?,
                "decode": {
                    "sequences": count,
                    "depth": args.depth,
                    "tokens": steps,
                    "tokens_per_second": tokens as f64 / seconds,
                    "milliseconds_per_step": milliseconds(seconds),
                    "runs": rates(tokens, &measured.decode),
                    "device_tokens_per_second": on_device.map(|seconds| tokens as f64 / seconds),
                    "device_milliseconds_per_step": on_device.map(milliseconds),
                    "device_runs": on_device.map(|_| rates(tokens, &measured.decode_on_device)),
                },
                "prefill": prefill.map(|rate| json!({
                    "tokens": args.prefill,
                    "tokens_per_second": rate,
                    "runs": rates(args.prefill, &measured.prefill),
                })),
                "memory": memory.map(|(_, total)| json!({ "total": total, "in_use": in_use, "taken": taken })),
            }))?;
            return Ok(Outcome::Ok);
        }
        let on = device.as_ref().map_or_else(|| Ok(machine::cpu()), CudaDevice::describe)?;
        out.line(format_args!("{} on {name} ({on}), KV cache in {}", source.name(), args.kv.name()))?;
        out.line(format_args!(
            "decode   {:10.2} tokens/s  of {count} sequences together, median of {runs}, {steps} steps at depth {}",
            tokens as f64 / seconds,
            args.depth
        ))?;
        let clock =
            on_device.map_or(String::new(), |seconds| format!(", {:.3} by the card's clock", milliseconds(seconds)));
        out.line(format_args!("step     {:10.3} ms{clock}", milliseconds(seconds)))?;
        if let Some(prefill) = prefill {
            out.line(format_args!("prefill  {prefill:10.2} tokens/s  median of {runs}, {} tokens", args.prefill))?;
        }
        if let (Some((_, total)), Some(in_use), Some(taken)) = (memory, in_use, taken) {
            let [in_use, total, taken] = [in_use, total, taken].map(bytes);
            out.line(format_args!("memory   {in_use:>10} of {total} in use, {taken} for the model"))?;
        }
        Ok(Outcome::Ok)
    }

    fn rates<B: Backend>(
        &self,
        backend: B,
        mark: impl Fn(&B) -> Result<Option<CudaMark>>,
        memory: impl Fn() -> Result<Option<Memory>>,
    ) -> Result<Measurements> {
        let Args { runs, depth, .. } = *self.measure.args;
        let mut measured = Measured::default();
        // Both kinds of runs, one more of each, and the way of each sequence to the depth.
        let progress = Progress::count("measuring", 2 * runs + 2 + self.count);
        let (model, mut pool) = self.measure.source.load_with_pool(backend, self.options()?)?;
        let mut sequences = Vec::with_capacity(self.count);
        for number in 0..self.count {
            let sequence = pool.create()?;
            let tokens = self.text(number, depth + 1);
            // The last one is what decoding starts from.
            if depth > 0 {
                pool.forward(&model, &[Entry::new(sequence, &tokens[..depth], Logits::None)])?;
            }
            sequences.push((sequence, tokens[depth]));
            progress.step();
        }
        self.decode(&model, &mut pool, &sequences, &mark)?;
        progress.step();
        for _ in 0..runs {
            let (seconds, on_device) = self.decode(&model, &mut pool, &sequences, &mark)?;
            measured.decode.push(seconds);
            measured.decode_on_device.extend(on_device);
            progress.step();
        }
        let memory = memory()?;
        drop(pool);
        if self.measure.args.prefill > 0 {
            let mut context = model.context(self.measure.options)?;
            measured.prefill = self.measure.prefills(&model, &mut context, &progress)?;
        }
        Ok((measured, memory))
    }

    /// Tokens of a sequence, which are no other's.
    fn text(&self, number: usize, count: usize) -> Vec<u32> {
        let mut tokens = self.measure.tokens_from(number as u64 + 1, count);
        // The first one tells sequences apart, however short they are, up to the size of the vocabulary.
        tokens[0] = (number % self.measure.source.config.vocab) as u32;
        tokens
    }

    /// Seconds by the host's clock, and by the device's where `mark` marks its queue.
    fn decode<B: Backend>(
        &self,
        model: &Model<B>,
        pool: &mut Pool<B>,
        sequences: &[(Sequence, u32)],
        mark: &impl Fn(&B) -> Result<Option<CudaMark>>,
    ) -> Result<(f64, Option<f64>)> {
        let Args { depth, tokens, .. } = *self.measure.args;
        for &(sequence, _) in sequences {
            pool.truncate(sequence, depth)?;
        }
        let entries: Vec<Next<'_>> = sequences
            .iter()
            .map(|(sequence, token)| Next::new(*sequence, std::slice::from_ref(token), Sampling::GREEDY))
            .collect();
        let mut marks = Vec::new();
        let start = Instant::now();
        pool.decode_marked(model, &entries, tokens, |backend| {
            marks.extend(mark(backend)?);
            Ok(())
        })?;
        Ok((start.elapsed().as_secs_f64(), between(&marks)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_that_are_decoded_together_are_different() {
        let source = Source::built_in().unwrap();
        let measure = Measure { source: &source, args: &args(), options: ContextOptions::default() };
        let together = Together { measure, count: 300 };
        for length in [1, 2, 100] {
            let texts: std::collections::HashSet<_> = (0..300).map(|number| together.text(number, length)).collect();
            assert_eq!(texts.len(), 300);
        }
        let [a, b] = [0, 1].map(|number| together.text(number, 100));
        let same = a.iter().zip(&b).filter(|(a, b)| a == b).count();
        assert!(same < 5, "{same}");
    }

    #[test]
    fn steps_together_are_marked_at_both_ends() {
        let source = Source::built_in().unwrap();
        let args = Args { tokens: 2, runs: 3, depth: 70, prefill: 3, ..args() };
        let measure = Measure { source: &source, args: &args, options: ContextOptions::default().capacity(72) };
        let marks = std::cell::Cell::new(0);
        let mark = |_: &Cpu| {
            marks.set(marks.get() + 1);
            Ok(None)
        };
        let together = Together { measure, count: 2 };
        assert_eq!(together.options().unwrap().pages, 4);
        let (measured, memory) = together.rates(Cpu::new(), mark, || Ok(Some((1, 2)))).unwrap();
        // The first run of each kind does not count.
        assert_eq!((measured.decode.len(), measured.prefill.len(), marks.get()), (3, 3, 2 * 4));
        assert_eq!((measured.decode_on_device.len(), memory), (0, Some((1, 2))));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    fn args() -> Args {
        Args {
            model: ModelArgs::default(),
            tokens: 1,
            runs: 1,
            depth: 0,
            sequences: None,
            prefill: 0,
            backend: Choice::Cpu,
            kv: Kv::F32,
            json: false,
        }
    }

    #[test]
    fn tokens_to_measure_with_are_of_all_the_vocabulary() {
        let source = Source::built_in().unwrap();
        let measure = Measure { source: &source, args: &args(), options: ContextOptions::default() };
        let tokens = measure.tokens(4096);
        assert_eq!(tokens[..100], measure.tokens(100));
        assert!(tokens.iter().all(|&token| token < 2048));
        let different: std::collections::HashSet<u32> = tokens.into_iter().collect();
        assert!(different.len() > 1600, "{} of 2048", different.len());
    }

    #[test]
    fn memory_is_what_is_not_free() {
        let mut plan = MemoryPlan::default();
        (plan.weights, plan.cache, plan.activations, plan.workspace) = (1000, 200, 30, 4);
        let kernels = Kernels { position: 0, rows: vec![], launches: 0, replayed: 0.0, joined: 0.0 };
        let card = Card {
            copy_bandwidth: 1.0,
            total: 10_000,
            free_before: 9_000,
            free_after: 7_500,
            plan,
            step: 1.0,
            kernels,
            prefill: Vec::new(),
        };
        assert_eq!((card.in_use(), card.taken()), (2_500, 1_500));
        let json = card.memory_json();
        assert_eq!((&json["in_use"], &json["taken"], &json["total"]), (&json!(2500), &json!(1500), &json!(10_000)));
        assert_eq!(
            json["planned"],
            json!({
                "weights": 1000, "cache": 200, "activations": 30, "workspace": 4, "total": 1234,
            })
        );
        // Another program gave memory back meanwhile.
        assert_eq!(Card { free_before: 7_000, ..card }.taken(), 0);
    }
}
