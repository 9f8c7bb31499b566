//! `run`: text that goes on, or answers.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::Instant;

use kquant_moe::device::CudaDevice;
use kquant_moe::model::backend::PAGE;
use kquant_moe::model::{
    Backend, Context, ContextOptions, Drafts, Entry, Generation, Logits, Model, Pool, PoolOptions,
};
use kquant_moe::oracle::sample::Sampling;
use kquant_moe::{Error, Result};

use super::Outcome;
use super::backend::{self, Choice, Job, Kv};
use super::chat::{self, ChatArgs};
use super::input::{ModelArgs, Piped, Prompt, Source, Start};
use super::output::{self, Out};
use super::sampling::{self, SamplingArgs};
use super::tokenizer::{Decoder, Tokenizer};

const PROMPT: &str = "fn main() {\n";
const TOKENS: usize = 64;

/// Tokens that are computed at once where the logits of speculated ones are compared.
const SPECULATED: usize = 5;

/// The CPU computes larger models too slowly for a check that nobody asked for.
const PARITY_BYTES: u64 = 1 << 30;

/// Generates text. Writes the prompt and what follows it to standard output, as text or, when the file has no tokenizer, as token
/// ids; the speed, and whether CPU and GPU agree, to standard error.
#[derive(clap::Args, Clone, Default)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: Prompt,
    /// Tokens to generate at most [default: 64, and for an answer of --chat as many as fit]
    #[arg(short, value_name = "N", alias = "count")]
    pub n: Option<usize>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub backend: Choice,
    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t)]
    pub kv: Kv,
    /// Positions to make room for [default: as many as are needed; for --chat 4096, or all that the model has]
    #[arg(long, value_name = "POSITIONS")]
    pub context: Option<usize>,
    /// Guess up to N tokens from what followed the last ones elsewhere in the text, and check them all at once; the text stays the same
    #[arg(long, value_name = "N", conflicts_with = "chat")]
    pub speculate: Option<NonZeroUsize>,
    /// Write only what is generated
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub chat: ChatArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Out) -> Result<Outcome> {
    if args.chat.chat {
        return chat::chat(args, out);
    }
    let sampling = args.sampling.sampling()?;
    let source = args.model.open()?;
    let Start { tokens: prompt, tokenizer } = args.prompt.resolve(&source, PROMPT, Piped::Prompt)?;
    let (count, capacity) = lengths(&source, prompt.len(), args.n, args.context)?;
    let options = ContextOptions::default().capacity(capacity).cache(args.kv.cache_type());
    let ends = source.ends()?;
    let device = args.backend.device()?;

    let mut writer = Writer {
        tokenizer: tokenizer.as_ref(),
        decoder: Decoder::default(),
        first: true,
        quiet: args.quiet,
        ends,
        out,
    };
    let compare = device.is_some() && source.gguf.file_len() <= PARITY_BYTES && !args.quiet;
    let speculate = args.speculate;
    let job = Generate {
        source: &source,
        prompt: &prompt,
        count,
        options,
        compare,
        sampling,
        speculate,
        writer: &mut writer,
    };
    let generated = backend::run(device.as_ref(), job)?;
    writer.finish()?;
    if args.quiet || out.is_closed() {
        return Ok(Outcome::Ok);
    }
    output::note(generated.speed(prompt.len()));
    let (parity, outcome) = match (&device, &generated.logits) {
        (None, _) => match backend::open_device() {
            Ok(_) => ("parity: not compared with the GPU (--backend cpu)".to_owned(), Outcome::Ok),
            Err(error) => (format!("parity: CPU only, {error}"), Outcome::Ok),
        },
        (Some(_), None) => ("parity: not compared with the CPU (large model; `verify` does)".to_owned(), Outcome::Ok),
        (Some(_), Some(logits)) => parity(&source, &prompt, &generated.tokens, options, logits)?,
    };
    output::note(parity);
    Ok(outcome)
}

/// Tokens to generate, and positions of the context for them. What nobody asked for is no more than fits.
pub fn lengths(source: &Source, prompt: usize, n: Option<usize>, context: Option<usize>) -> Result<(usize, usize)> {
    // The last token is not appended.
    let needed = |count: usize| prompt.saturating_add(count.saturating_sub(1));
    match n {
        Some(count) => match source.capacity(needed(count), context) {
            Ok(capacity) => Ok((count, capacity)),
            Err(error) => Err(Error::Invalid(format!("-n {count} after a prompt of {prompt} tokens: {error}"))),
        },
        None => {
            let most = context.unwrap_or(source.config.context_length).min(source.config.context_length);
            let count = TOKENS.min((most + 1).saturating_sub(prompt)).max(1);
            Ok((count, source.capacity(needed(count), context)?))
        }
    }
}

/// Compares the GPU's logits of the generated tokens with the CPU's.
fn parity(
    source: &Source,
    prompt: &[u32],
    generated: &[u32],
    options: ContextOptions,
    gpu: &[f32],
) -> Result<(String, Outcome)> {
    let cpu = backend::run(None, PrefillLogits { source, prompt, generated, options })?;
    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    let rows = cpu.chunks(source.config.vocab).zip(gpu.chunks(source.config.vocab));
    let different = rows.clone().position(|(cpu, gpu)| bits(cpu) != bits(gpu));
    Ok(match different {
        None if cpu.len() == gpu.len() => {
            let tokens = generated.len();
            (format!("parity: CPU and GPU logits are equal to the bit for all {tokens} tokens"), Outcome::Ok)
        }
        None => ("parity: FAIL, CPU and GPU gave different numbers of logits".to_owned(), Outcome::Failed),
        Some(token) => {
            (format!("parity: FAIL, CPU and GPU logits differ from generated token {token} on"), Outcome::Failed)
        }
    })
}

/// Writes tokens as they come.
struct Writer<'a> {
    tokenizer: Option<&'a Tokenizer>,
    decoder: Decoder,
    /// Whether no id has been written yet.
    first: bool,
    /// Whether the prompt is left out.
    quiet: bool,
    /// Tokens that end the text, and are not written.
    ends: Vec<u32>,
    out: &'a mut Out,
}

impl Writer<'_> {
    fn id(&mut self, token: u32) -> Result<()> {
        let space = if std::mem::take(&mut self.first) { "" } else { " " };
        self.out.text(format_args!("{space}{token}"))
    }

    fn prompt(&mut self, prompt: &[u32]) -> Result<()> {
        match self.tokenizer {
            _ if self.quiet => Ok(()),
            Some(tokenizer) => {
                // A character that the prompt begins may end in what follows.
                let text: String = prompt.iter().map(|&token| self.decoder.push(tokenizer, token)).collect();
                self.out.text(text)
            }
            None => prompt.iter().try_for_each(|&token| self.id(token)),
        }
    }

    /// Writes a token; breaks at the one that ends the text, and when nobody reads any more.
    fn push(&mut self, token: u32) -> Result<ControlFlow<()>> {
        if self.ends.contains(&token) {
            return Ok(ControlFlow::Break(()));
        }
        match self.tokenizer {
            None => self.id(token)?,
            Some(tokenizer) => {
                let text = self.decoder.push(tokenizer, token);
                self.out.text(text)?;
            }
        }
        Ok(if self.out.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Writes what is held back, and ends the line.
    fn finish(self) -> Result<()> {
        self.out.line(self.decoder.finish())
    }
}

struct Generate<'a, 'b> {
    source: &'a Source,
    prompt: &'a [u32],
    count: usize,
    options: ContextOptions,
    compare: bool,
    sampling: Option<Sampling>,
    /// Most tokens of a draft.
    speculate: Option<NonZeroUsize>,
    writer: &'a mut Writer<'b>,
}

struct Generated {
    tokens: Vec<u32>,
    /// Logits that each of the tokens was chosen by, if they are to be compared.
    logits: Option<Vec<f32>>,
    /// What came of drafts, if there were any to be.
    drafted: Option<Drafted>,
    backend: &'static str,
    device: String,
    prefill_seconds: f64,
    decode_seconds: f64,
}

impl Generated {
    fn speed(&self, prompt: usize) -> String {
        let Self { backend, device, .. } = self;
        let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        let prefill = rate(prompt, self.prefill_seconds);
        let decode = match self.tokens.len() {
            0 => "no token generated (-n 0)".to_owned(),
            1 => "one token generated".to_owned(),
            count => format!("{:.1} tokens/s over {count} tokens", rate(count - 1, self.decode_seconds)),
        };
        let drafted = self
            .drafted
            .map_or(String::new(), |Drafted { right, all }| format!(", {right} of {all} drafted tokens were right"));
        format!("{backend} ({device}): {decode}{drafted}, prompt of {prompt} at {prefill:.1} tokens/s")
    }
}

impl Job for Generate<'_, '_> {
    type Output = Generated;

    fn run<B: Backend>(self, backend: B, device: Option<&CudaDevice>) -> Result<Generated> {
        let name = backend.name();
        // Drafts are a pool's, and plain steps a context's. The tokens are the same.
        let ContextOptions { capacity, cache, .. } = self.options;
        let pool = PoolOptions::default().pages(capacity.div_ceil(PAGE)).sequences(1).capacity(capacity).cache(cache);
        let (model, mut way) = match self.speculate {
            Some(most) => {
                let (model, pool) = self.source.load_with_pool(backend, pool)?;
                (model, Way::Drafts(Box::new(pool), most.get()))
            }
            None => {
                let (model, context) = self.source.load_with_context(backend, self.options)?;
                (model, Way::Plain(Box::new(context)))
            }
        };
        self.writer.prompt(self.prompt)?;
        let start = Instant::now();
        let (mut first, mut last) = (None, start);
        let (mut failed, mut seen) = (None, self.prompt.to_vec());
        let each = |token| {
            last = Instant::now();
            first.get_or_insert(last);
            seen.push(token);
            self.writer.push(token).unwrap_or_else(|error| {
                failed = Some(error);
                ControlFlow::Break(())
            })
        };
        let sampling = self.sampling.as_ref();
        let mut drafted = None;
        let tokens = match &mut way {
            Way::Plain(context) => self
                .source
                .prefill(&model, context, self.prompt)
                .and_then(|rest| sampling::generate(&model, context, rest, self.count, sampling, each)),
            Way::Drafts(pool, most) => {
                let generation = Generation::new(self.count).sampling(sampling.copied().unwrap_or(Sampling::GREEDY));
                let drafted = drafted.insert(Drafted::default());
                speculate(&model, pool, self.prompt, &generation.draft(*most), drafted, each)
            }
        };
        // Steps are computed several at a time: the token that shows it may not have been seen.
        let tokens = tokens.map_err(|error| self.source.located(&model, &seen, self.options, error))?;
        if let Some(error) = failed {
            return Err(error);
        }
        let prefilled = first.unwrap_or_else(Instant::now);
        let logits = match (self.compare, way) {
            (false, _) => None,
            (true, Way::Plain(mut context)) => Some(decode_logits(&model, &mut context, self.prompt, &tokens)?),
            (true, Way::Drafts(mut pool, _)) => Some(drafted_logits(&model, &mut pool, self.prompt, &tokens)?),
        };
        Ok(Generated {
            tokens,
            logits,
            drafted,
            backend: name,
            device: device.map_or_else(|| Ok(super::machine::cpu()), CudaDevice::describe)?,
            prefill_seconds: (prefilled - start).as_secs_f64(),
            decode_seconds: last.saturating_duration_since(prefilled).as_secs_f64(),
        })
    }
}

/// How tokens are generated.
enum Way<B: Backend> {
    /// One after the other.
    Plain(Box<Context<B>>),
    /// With drafts of at most so many.
    Drafts(Box<Pool<B>>, usize),
}

/// Tokens of drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Drafted {
    right: usize,
    all: usize,
}

impl Drafted {
    /// Counts drafts, each with its place in the text, of which a token is right as long as all before it are.
    fn of(text: &[u32], drafts: &[(usize, Vec<u32>)]) -> Self {
        let right =
            |(place, draft): &(usize, Vec<u32>)| draft.iter().zip(&text[*place..]).take_while(|(a, b)| a == b).count();
        Self { right: drafts.iter().map(right).sum(), all: drafts.iter().map(|(_, draft)| draft.len()).sum() }
    }
}

/// Appends a prompt and generates with drafts from the text itself.
fn speculate<B: Backend>(
    model: &Model<B>,
    pool: &mut Pool<B>,
    prompt: &[u32],
    generation: &Generation,
    drafted: &mut Drafted,
    each: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    let sequence = pool.create()?;
    let (mut known, mut drafts) = (Drafts::default(), Vec::new());
    let draft = |text: &[u32], most| {
        known.extend(&text[known.tokens().len()..]);
        let draft = known.draft(most);
        drafts.push((text.len(), draft.clone()));
        draft
    };
    let tokens = pool.generate_with(model, sequence, prompt, generation, draft, each)?;
    *drafted = Drafted::of(&[prompt, &tokens].concat(), &drafts);
    pool.drop(sequence)?;
    Ok(tokens)
}

/// [`decode_logits`] on the way that generated the tokens with drafts: several at once.
fn drafted_logits<B: Backend>(
    model: &Model<B>,
    pool: &mut Pool<B>,
    prompt: &[u32],
    generated: &[u32],
) -> Result<Vec<f32>> {
    let Some((_, appended)) = generated.split_last() else { return Ok(Vec::new()) };
    let sequence = pool.create()?;
    let mut logits = pool.forward(model, &[Entry::new(sequence, prompt, Logits::Last)])?.concat();
    for tokens in appended.chunks(SPECULATED) {
        logits.extend(pool.forward(model, &[Entry::new(sequence, tokens, Logits::All)])?.concat());
    }
    Ok(logits)
}

/// The logits that generated tokens were chosen by, computed on the way that generated them: token by token.
fn decode_logits<B: Backend>(
    model: &Model<B>,
    context: &mut Context<B>,
    prompt: &[u32],
    generated: &[u32],
) -> Result<Vec<f32>> {
    let Some((_, appended)) = generated.split_last() else { return Ok(Vec::new()) };
    context.reset();
    let mut logits = context.forward(model, prompt, Logits::Last)?;
    for &token in appended {
        logits.extend(context.forward(model, &[token], Logits::Last)?);
    }
    Ok(logits)
}

/// The same logits, computed all at once.
struct PrefillLogits<'a> {
    source: &'a Source,
    prompt: &'a [u32],
    generated: &'a [u32],
    options: ContextOptions,
}

impl Job for PrefillLogits<'_> {
    type Output = Vec<f32>;

    fn run<B: Backend>(self, backend: B, _: Option<&CudaDevice>) -> Result<Vec<f32>> {
        let (Some((last, before)), Some((_, appended))) = (self.prompt.split_last(), self.generated.split_last())
        else {
            return Ok(Vec::new());
        };
        let (model, mut context) = self.source.load_with_context(backend, self.options)?;
        if !before.is_empty() {
            context.forward(&model, before, Logits::None)?;
        }
        context.forward(&model, &[&[*last], appended].concat(), Logits::All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits that are equal pass, and one bit, one row, or all of them make the run fail.
    #[test]
    fn parity_is_of_all_bits_of_all_tokens() {
        let source = Source::built_in().unwrap();
        let vocab = source.config.vocab;
        let (prompt, options) = ([766, 306, 598], ContextOptions::default().capacity(8));
        let (model, mut context) = source.load_with_context(kquant_moe::model::cpu::Cpu::new(), options).unwrap();
        let generated = context.generate(&model, &prompt, 4, |_| ControlFlow::Continue(())).unwrap();
        let logits = decode_logits(&model, &mut context, &prompt, &generated).unwrap();
        assert_eq!(logits.len(), 4 * vocab);
        for (row, &token) in logits.chunks(vocab).zip(&generated) {
            assert!(row.iter().all(|&logit| logit <= row[token as usize]));
        }
        let parity = |generated: &[u32], logits: &[f32]| {
            let (text, outcome) = parity(&source, &prompt, generated, options, logits).unwrap();
            assert_eq!(text.contains("FAIL"), outcome == Outcome::Failed, "{text}");
            (text, outcome)
        };
        assert_eq!(parity(&generated, &logits).1, Outcome::Ok);
        assert!(parity(&generated, &logits).0.contains("all 4 tokens"));
        for (at, token) in [(0, 0), (vocab - 1, 0), (vocab, 1), (4 * vocab - 1, 3)] {
            let mut wrong = logits.clone();
            wrong[at] = wrong[at].next_up();
            let (text, outcome) = parity(&generated, &wrong);
            assert!(outcome == Outcome::Failed && text.contains(&format!("generated token {token} on")), "{text}");
        }
        assert_eq!(parity(&generated, &logits[..3 * vocab]).1, Outcome::Failed);
        assert_eq!(parity(&generated, &[]).1, Outcome::Failed);
        assert_eq!(parity(&[], &[]).1, Outcome::Ok);
        assert!(decode_logits(&model, &mut context, &prompt, &[]).unwrap().is_empty());
        let one = decode_logits(&model, &mut context, &prompt, &generated[..1]).unwrap();
        assert_eq!(one, logits[..vocab]);
    }

    #[test]
    fn as_many_tokens_as_fit_and_no_more_than_are_asked_for() {
        let source = Source::built_in().unwrap();
        let most = source.config.context_length;
        for (prompt, n, context, expected) in [
            (5, None, None, Some((64, 68))),
            (5, None, Some(100), Some((64, 100))),
            (5, None, Some(8), Some((4, 8))),
            (5, None, Some(5), Some((1, 5))),
            (5, None, Some(4), None),
            (most, None, None, Some((1, most))),
            (most - 1, None, None, Some((2, most))),
            (most + 1, None, None, None),
            (5, Some(0), None, Some((0, 5))),
            (5, Some(1), None, Some((1, 5))),
            (5, Some(4), Some(8), Some((4, 8))),
            (5, Some(5), Some(8), None),
            (5, Some(usize::MAX), None, None),
        ] {
            let found = lengths(&source, prompt, n, context);
            assert_eq!(found.as_ref().ok().copied(), expected, "{prompt}, {n:?}, {context:?}");
            if let (Err(error), Some(n)) = (found, n) {
                let error = error.to_string();
                assert!(error.starts_with(&format!("-n {n} ")) && error.contains("context overflow"), "{error}");
            }
        }
    }

    #[test]
    fn a_drafted_token_is_right_when_all_before_it_are() {
        let drafts = |drafts: &[(usize, &[u32])]| {
            let drafts: Vec<_> = drafts.iter().map(|&(place, draft)| (place, draft.to_vec())).collect();
            let Drafted { right, all } = Drafted::of(&[1, 2, 3, 4], &drafts);
            (right, all)
        };
        assert_eq!(drafts(&[]), (0, 0));
        assert_eq!(drafts(&[(1, &[2, 3]), (3, &[5])]), (2, 3));
        // Behind a wrong one, behind the end, and one that is empty.
        assert_eq!(drafts(&[(1, &[2, 9, 4]), (3, &[4, 5]), (4, &[6]), (2, &[])]), (2, 6));
    }

    #[test]
    fn speeds_are_of_the_tokens_between_the_first_and_the_last() {
        let generated = |count| Generated {
            tokens: vec![1; count],
            logits: None,
            drafted: None,
            backend: "cpu",
            device: "any".into(),
            prefill_seconds: 0.5,
            decode_seconds: 2.0,
        };
        let text = generated(9).speed(10);
        assert!(text.contains("4.0 tokens/s over 9 tokens") && text.contains("10 at 20.0 tokens/s"), "{text}");
        assert!(generated(2).speed(10).contains("0.5 tokens/s over 2 tokens"));
        let drafted = Some(Drafted { right: 3, all: 8 });
        assert!(
            Generated { drafted, ..generated(9) }.speed(10).contains("9 tokens, 3 of 8 drafted tokens were right, ")
        );
        for (count, text) in [(0, "-n 0"), (1, "one token")] {
            let speed = generated(count).speed(10);
            assert!(!speed.contains("over") && speed.contains(text), "{speed}");
        }
        assert!(Generated { decode_seconds: 0.0, ..generated(9) }.speed(10).contains(" 0.0 tokens/s over"));
    }
}
