//! `bench`: tokens per second of decode and prefill.

use std::time::Instant;

use kquant_moe::device::CudaDevice;
use kquant_moe::model::{Backend, Context, ContextOptions, Logits, Model};
use kquant_moe::{Error, Result};
use serde_json::json;

use super::Outcome;
use super::backend::{self, Choice, Job, Kv};
use super::input::{OptionalModel, Source};
use super::machine;
use super::output::Out;

/// Bytes that are copied to measure the card's bandwidth.
const COPY_BYTES: usize = 1 << 30;

/// Measures decode, token by token with the KV cache, and prefill. Each figure is the median of several runs after one
/// that does not count.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: OptionalModel,
    /// Tokens to decode in each run
    #[arg(long, value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// Runs
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Positions in use when decoding starts
    #[arg(long, value_name = "POSITIONS", default_value_t = 0)]
    depth: usize,
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
    prefill: Vec<f64>,
    /// Bytes per second that the device copies.
    copy_bandwidth: Option<f64>,
}

/// Runs the command.
pub fn bench(args: &Args, out: &mut Out) -> Result<Outcome> {
    if args.runs == 0 || args.tokens == 0 {
        return Err(Error::Invalid("bench: --runs and --tokens must be at least 1".into()));
    }
    let source = args.model.open()?;
    let capacity = source.capacity(args.depth.saturating_add(args.tokens).max(args.prefill), None)?;
    let options = ContextOptions { capacity, cache: args.kv.cache_type(), ..ContextOptions::default() };
    let device = args.backend.device()?;
    let measured = backend::run(device.as_ref(), Measure { source: &source, args, options })?;

    let decode = args.tokens as f64 / median(&measured.decode);
    let prefill = (args.prefill > 0).then(|| args.prefill as f64 / median(&measured.prefill));
    let bandwidth = decode * source.bytes_per_token() as f64;
    let share = measured.copy_bandwidth.map(|copy| bandwidth / copy);
    let name = device.as_ref().map_or("cpu", |_| "cuda");
    if args.json {
        let rates = |tokens: usize, runs: &[f64]| runs.iter().map(|run| tokens as f64 / run).collect::<Vec<_>>();
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
                "weight_bytes_per_token": source.bytes_per_token(),
                "weight_bytes_per_second": bandwidth,
                "copy_bytes_per_second": measured.copy_bandwidth,
                "share_of_copy_bandwidth": share,
            },
            "prefill": prefill.map(|rate| json!({
                "tokens": args.prefill,
                "tokens_per_second": rate,
                "runs": rates(args.prefill, &measured.prefill),
            })),
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
    Ok(Outcome::Ok)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

struct Measure<'a> {
    source: &'a Source,
    args: &'a Args,
    options: ContextOptions,
}

impl Measure<'_> {
    /// Tokens in no order, so that decode and prefill use all experts.
    fn tokens(&self, count: usize) -> Vec<u32> {
        let vocab = self.source.config.vocab as u64;
        let mut state = 1_u64;
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

    fn decode<B: Backend>(&self, model: &Model<B>, context: &mut Context<B>) -> Result<f64> {
        context.truncate(self.args.depth);
        let token = self.tokens(1)[0];
        let start = Instant::now();
        context.decode(model, token, self.args.tokens)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

impl Job for Measure<'_> {
    type Output = Measured;

    fn run<B: Backend>(self, backend: B, device: Option<&CudaDevice>) -> Result<Measured> {
        let (model, mut context) = self.source.load_with_context(backend, self.options)?;
        let mut measured = Measured::default();
        if self.args.prefill > 0 {
            let tokens = self.tokens(self.args.prefill);
            self.prefill(&model, &mut context, &tokens)?;
            for _ in 0..self.args.runs {
                measured.prefill.push(self.prefill(&model, &mut context, &tokens)?);
            }
        }
        context.reset();
        if self.args.depth > 0 {
            context.forward(&model, &self.tokens(self.args.depth), Logits::None)?;
        }
        self.decode(&model, &mut context)?;
        for _ in 0..self.args.runs {
            measured.decode.push(self.decode(&model, &mut context)?);
        }
        measured.copy_bandwidth = device.map(|device| device.copy_bandwidth(COPY_BYTES)).transpose()?;
        Ok(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
