//! `generate`: many prompts at once. Lines of JSON in, lines of JSON out.
//!
//! What is generated for a line depends on the line and the model alone, so that a pool may compute any of them together: who waits, who
//! joins and who leaves is decided here, and changes no token.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kquant_moe::device::CudaDevice;
use kquant_moe::model::backend::PAGE;
use kquant_moe::model::{Backend, MemoryPlan, Model, Next, Pool, PoolOptions, Sequence};
use kquant_moe::oracle::sample::Sampling;
use kquant_moe::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Outcome;
use super::backend::{self, Choice, Job, Kv};
use super::input::{ModelArgs, ModelOptions, Source};
use super::output::{self, Out, Progress, io_error};
use super::run;
use super::sampling::SamplingArgs;
use super::tokenizer::{Decoder, Tokenizer};

/// Steps that a GPU computes before their tokens are read back. A sequence that ends meanwhile computes the rest of them for
/// nothing.
const STEPS_ON_GPU: usize = 8;

/// Goes on with many prompts at once. Each line in is an object: "id", a string or an integer; "prompt", a text, or "tokens", a list of ids;
/// and if wanted "n", "temp", "top_k", "top_p", "min_p" and "seed", which are what `run` has as options. Each line out, as soon as it is
/// done: "id", "text", "tokens", and "finish", which is "stop" at a token that ends a text, or "length". What is wrong with a line is
/// said in its place as "error", and the exit code is 1. Standard error has the rest.
#[derive(clap::Args)]
pub struct Args {
    /// File with the lines; standard input when there is none, and for `-`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    model: ModelOptions,
    /// Most prompts that are computed at once; what comes of them does not depend on it
    #[arg(long, value_name = "B", default_value = "16")]
    parallel: NonZeroUsize,
    /// Pages of 64 positions that they share; who finds too few free waits [default: as many as are needed and fit]
    #[arg(long, value_name = "N")]
    pages: Option<NonZeroUsize>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    backend: Choice,
    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t)]
    kv: Kv,
    /// Leave out the speed
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the command.
pub fn generate(args: &Args, out: &mut Out) -> Result<Outcome> {
    let lines = read(args.file.as_deref())?;
    let source = ModelArgs::from(args.model.clone()).open()?;
    let tokenizer = Tokenizer::from_gguf(&source.gguf, source.config.vocab);
    // Tokens can be gone on with also where this program does not know the file's way to split texts.
    let tokenizer = if lines.iter().any(|line| line.is_text()) { tokenizer? } else { tokenizer.ok().flatten() };
    let ends = source.ends()?;
    let device = args.backend.device()?;

    let mut answers = Answers { tokenizer: tokenizer.as_ref(), failed: 0, out };
    let mut requests = VecDeque::new();
    for line in lines {
        match line.request(&source, tokenizer.as_ref()) {
            Ok(request) => requests.push_back(request),
            Err(fault) => answers.fail(line.id.as_ref(), line.number, &fault)?,
        }
    }
    let count = requests.len();
    let outcome = |answers: &Answers<'_>| if answers.failed > 0 { Outcome::Failed } else { Outcome::Ok };
    if count == 0 {
        return Ok(outcome(&answers));
    }
    let job = Work { source: &source, args, requests, ends, answers: &mut answers };
    let done = backend::run(device.as_ref(), job)?;
    if !args.quiet {
        output::note(done.speed(count, answers.failed));
    }
    Ok(outcome(&answers))
}

/// The lines that are not blank.
fn read(file: Option<&Path>) -> Result<Vec<Line>> {
    let bytes = match file.filter(|path| path.as_os_str() != "-") {
        Some(path) => fs::read(path).map_err(|source| io_error(path, source))?,
        None => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).map_err(|source| io_error("standard input", source))?;
            bytes
        }
    };
    if let Some(path) = file.filter(|_| bytes.starts_with(b"GGUF")) {
        return Err(Error::Invalid(format!("{}: lines of JSON are expected; a model is given as -m", path.display())));
    }
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    Ok(lines
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(index, line)| Line::new(index + 1, line))
        .collect())
}

/// What a line is known by in what comes out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Unsigned(u64),
    Signed(i64),
}

/// What stands in a line.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    prompt: Option<String>,
    tokens: Option<Vec<u32>>,
    n: Option<usize>,
    temp: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    seed: Option<u64>,
    /// Read apart, since what is wrong with a line is said with its id.
    #[serde(rename = "id")]
    _id: serde::de::IgnoredAny,
}

/// A line that came in.
struct Line {
    /// From 1 on.
    number: usize,
    id: Option<Id>,
    fields: Result<Fields, String>,
}

/// What is to be generated.
#[derive(Debug)]
struct Request {
    number: usize,
    id: Id,
    prompt: Vec<u32>,
    count: usize,
    sampling: Sampling,
}

impl Line {
    fn new(number: usize, line: &[u8]) -> Self {
        let line = match std::str::from_utf8(line) {
            Ok(line) => line,
            Err(error) => {
                let fault = format!("the line is not UTF-8 from byte {} on", error.valid_up_to());
                return Self { number, id: None, fields: Err(fault) };
            }
        };
        let value = serde_json::from_str::<Value>(line).ok();
        let id = value.as_ref().and_then(|value| Id::deserialize(value.get("id")?).ok());
        let fields = match &value {
            Some(Value::Object(fields)) if id.is_none() && fields.contains_key("id") => {
                Err("id: expected a string or an integer of 64 bits".into())
            }
            Some(value) if !value.is_object() => Err("expected a JSON object".into()),
            _ => serde_json::from_str::<Fields>(line).map_err(|error| fault_of(&error)),
        };
        Self { number, id, fields }
    }

    fn is_text(&self) -> bool {
        self.fields.as_ref().is_ok_and(|fields| fields.prompt.is_some())
    }

    /// What is to be generated, or what is wrong.
    fn request(&self, source: &Source, tokenizer: Option<&Tokenizer>) -> Result<Request, String> {
        let fields = self.fields.as_ref().map_err(String::clone)?;
        let id = self.id.clone().ok_or("missing field `id`")?;
        let prompt = match (&fields.prompt, &fields.tokens, tokenizer) {
            (None, Some(tokens), _) => tokens.clone(),
            (Some(text), None, Some(tokenizer)) => tokenizer.encode(text).map_err(|error| error.to_string())?,
            (Some(_), None, None) => return Err("the model has no tokenizer: give the prompt as tokens".into()),
            _ => return Err("expected either a prompt or tokens".into()),
        };
        source.check_tokens(&prompt).map_err(|error| error.to_string())?;
        let Fields { temp, top_k, top_p, min_p, seed, .. } = *fields;
        let sampling = SamplingArgs { temp, top_k, top_p, min_p, seed }.checked()?.unwrap_or(Sampling::GREEDY);
        let (count, _) = run::lengths(source, prompt.len(), fields.n, None).map_err(|error| error.to_string())?;
        Ok(Request { number: self.number, id, prompt, count, sampling })
    }
}

/// The message without the number of a line, which is always the first one of what was read.
fn fault_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    format!("{} at column {}", &text[..end], error.column())
}

impl Request {
    /// Positions that it needs: the last token is not appended.
    fn positions(&self) -> usize {
        self.prompt.len() + self.count.saturating_sub(1)
    }

    fn pages(&self) -> usize {
        self.positions().div_ceil(PAGE)
    }
}

/// Why a text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Finish {
    Stop,
    Length,
}

/// Writes what comes of lines.
struct Answers<'a> {
    tokenizer: Option<&'a Tokenizer>,
    /// Lines with an error.
    failed: usize,
    out: &'a mut Out,
}

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a Id,
    /// None where the file has no tokenizer that this program knows.
    text: Option<String>,
    tokens: &'a [u32],
    finish: Finish,
}

#[derive(Serialize)]
struct Failure<'a> {
    id: Option<&'a Id>,
    line: usize,
    error: &'a str,
}

impl Answers<'_> {
    fn write(&mut self, answer: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(answer).map_err(|error| Error::Invalid(error.to_string()))?;
        self.out.line(line)
    }

    fn answer(&mut self, id: &Id, tokens: &[u32], finish: Finish) -> Result<()> {
        let text = self.tokenizer.map(|tokenizer| {
            let mut decoder = Decoder::default();
            let text: String = tokens.iter().map(|&token| decoder.push(tokenizer, token)).collect();
            text + &decoder.finish()
        });
        self.write(&Answer { id, text, tokens, finish })
    }

    fn fail(&mut self, id: Option<&Id>, line: usize, error: &str) -> Result<()> {
        self.failed += 1;
        self.write(&Failure { id, line, error })
    }
}

struct Work<'a, 'b> {
    source: &'a Source,
    args: &'a Args,
    /// At least one.
    requests: VecDeque<Request>,
    ends: Vec<u32>,
    answers: &'a mut Answers<'b>,
}

/// What was done, for the note at the end.
#[derive(Default)]
struct Done {
    on: String,
    prompt_tokens: usize,
    /// Of these, tokens that the pool had from other prompts.
    found: usize,
    tokens: usize,
    seconds: f64,
}

impl Done {
    fn speed(&self, lines: usize, failed: usize) -> String {
        let Self { on, prompt_tokens, found, tokens, seconds } = self;
        let rate = if *seconds > 0.0 { *tokens as f64 / seconds } else { 0.0 };
        let failed = if failed > 0 { format!(", {failed} lines failed") } else { String::new() };
        format!(
            "{on}: {tokens} tokens for {lines} prompts in {seconds:.2} s, {rate:.1} tokens/s; prompts of {prompt_tokens} tokens, \
             of which {found} were shared{failed}"
        )
    }
}

impl Work<'_, '_> {
    /// As many pages as the largest requests need that can be there at the same time, or fewer if those do not fit.
    fn options<B: Backend>(&self, backend: &B) -> Result<PoolOptions> {
        let mut needs: Vec<usize> = self.requests.iter().map(Request::pages).collect();
        needs.sort_unstable_by(|a, b| b.cmp(a));
        needs.truncate(self.args.parallel.get());
        let positions = self.requests.iter().map(Request::positions).max().unwrap_or(1);
        let mut options = PoolOptions::default()
            .pages(self.args.pages.map_or(needs.iter().sum(), NonZeroUsize::get))
            .sequences(needs.len())
            .capacity(positions)
            .cache(self.args.kv.cache_type());
        let source = self.source;
        let plan = |options: &PoolOptions| {
            MemoryPlan::of_pool(backend, &source.config, &source.tensors, options)?.check(backend)
        };
        while self.args.pages.is_none()
            && options.pages > 1
            && let Err(Error::OutOfMemory { .. }) = plan(&options)
        {
            options = options.pages(options.pages * 7 / 8);
        }
        Ok(options)
    }
}

impl Job for Work<'_, '_> {
    type Output = Done;

    fn run<B: Backend>(self, backend: B, device: Option<&CudaDevice>) -> Result<Done> {
        let on = device.map_or_else(|| Ok(super::machine::cpu()), CudaDevice::describe)?;
        let on = format!("{} ({on})", backend.name());
        let options = self.options(&backend)?;
        let (model, pool) = self.source.load_with_pool(backend, options)?;
        let at_once = if device.is_some() { STEPS_ON_GPU } else { 1 };
        let start = Instant::now();
        let done = Batching::new(&model, pool, self.requests, at_once, &self.ends, self.answers).run()?;
        Ok(Done { on, seconds: start.elapsed().as_secs_f64(), ..done })
    }
}

/// A request that is in the pool.
struct Running {
    request: Request,
    sequence: Sequence,
    generated: Vec<u32>,
    /// Whether its prompt is in the pool.
    begun: bool,
}

impl Running {
    /// Tokens that its sequence goes on with.
    fn next(&self, known: usize) -> &[u32] {
        match self.generated.as_slice() {
            [.., last] => std::slice::from_ref(last),
            [] => &self.request.prompt[known..],
        }
    }
}

/// Requests that come and go.
struct Batching<'a, 'b, B: Backend> {
    model: &'a Model<B>,
    pool: Pool<B>,
    waiting: VecDeque<Request>,
    running: Vec<Running>,
    /// Pages that the running ones may come to need. Those that they share count for each, so that the pool is never too full for
    /// who was let in.
    reserved: usize,
    at_once: usize,
    ends: &'a [u32],
    answers: &'a mut Answers<'b>,
    progress: Progress,
    done: Done,
}

impl<'a, 'b, B: Backend> Batching<'a, 'b, B> {
    /// All of the requests wait.
    fn new(
        model: &'a Model<B>,
        pool: Pool<B>,
        waiting: VecDeque<Request>,
        at_once: usize,
        ends: &'a [u32],
        answers: &'a mut Answers<'b>,
    ) -> Self {
        let progress = Progress::count("prompts", waiting.len());
        let (running, done) = (Vec::new(), Done::default());
        Self { model, pool, waiting, running, reserved: 0, at_once, ends, answers, progress, done }
    }

    fn run(mut self) -> Result<Done> {
        let mut at_once = self.at_once;
        while !self.answers.out.is_closed() {
            self.admit()?;
            if self.running.is_empty() {
                break;
            }
            match self.compute(at_once) {
                Ok(found) => {
                    self.take(found)?;
                    at_once = self.at_once;
                }
                // Of several steps nobody knows which one it was: one at a time they say so.
                Err(Error::SequenceNotFinite { .. }) if at_once > 1 => at_once = 1,
                Err(Error::SequenceNotFinite { sequence, .. }) => self.give_up(sequence)?,
                Err(error) => return Err(error),
            }
        }
        Ok(self.done)
    }

    /// Lets requests in, in their order, as long as there is room.
    fn admit(&mut self) -> Result<()> {
        let PoolOptions { pages, sequences, .. } = *self.pool.options();
        let first = self.running.len();
        while self.running.len() < sequences
            && let Some(request) = self.waiting.pop_front()
        {
            let needed = request.pages();
            if needed > pages {
                let fault =
                    format!("{needed} pages of {PAGE} positions are needed, and the pool has {pages} (--pages)");
                self.answers.fail(Some(&request.id), request.number, &fault)?;
                self.progress.step();
                continue;
            }
            if request.count == 0 {
                self.answers.answer(&request.id, &[], Finish::Length)?;
                self.progress.step();
                continue;
            }
            if needed > pages - self.reserved {
                self.waiting.push_front(request);
                break;
            }
            let sequence = self.pool.create_from(&request.prompt)?;
            let known = self.pool.position(sequence)?;
            // What is computed in this round is found in the next one.
            if self.running[first..].iter().any(|other| shared(&other.request.prompt, &request.prompt) > known) {
                self.pool.drop(sequence)?;
                self.waiting.push_front(request);
                break;
            }
            self.reserved += needed;
            self.done.prompt_tokens += request.prompt.len();
            self.done.found += known;
            self.running.push(Running { request, sequence, generated: Vec::new(), begun: false });
        }
        Ok(())
    }

    /// The next tokens of everyone: one, when somebody has just come, or up to `at_once`.
    fn compute(&mut self, at_once: usize) -> Result<Vec<Vec<u32>>> {
        let Self { model, pool, running, .. } = self;
        let mut entries = Vec::with_capacity(running.len());
        for running in running.iter() {
            let known = if running.begun { 0 } else { pool.position(running.sequence)? };
            entries.push(Next::new(running.sequence, running.next(known), running.request.sampling));
        }
        if running.iter().any(|running| !running.begun) {
            return Ok(pool.step(model, &entries)?.into_iter().map(|token| vec![token]).collect());
        }
        let left = running.iter().map(|running| running.request.count - running.generated.len()).min();
        pool.decode(model, &entries, left.unwrap_or(1).min(at_once))
    }

    /// Appends what was found, and answers who is done.
    fn take(&mut self, found: Vec<Vec<u32>>) -> Result<()> {
        let mut left = Vec::with_capacity(self.running.len());
        for (mut running, found) in std::mem::take(&mut self.running).into_iter().zip(found) {
            running.begun = true;
            let end = found.iter().position(|token| self.ends.contains(token));
            running.generated.extend_from_slice(&found[..end.unwrap_or(found.len())]);
            let finish = match end {
                Some(_) => Finish::Stop,
                None if running.generated.len() == running.request.count => Finish::Length,
                None => {
                    left.push(running);
                    continue;
                }
            };
            self.done.tokens += running.generated.len();
            self.answers.answer(&running.request.id, &running.generated, finish)?;
            self.leave(&running)?;
        }
        self.running = left;
        Ok(())
    }

    /// Ends a sequence whose values are not finite. The others stay as they are.
    fn give_up(&mut self, sequence: Sequence) -> Result<()> {
        let Some(index) = self.running.iter().position(|running| running.sequence == sequence) else {
            return Err(Error::NoSequence { sequence });
        };
        let running = self.running.remove(index);
        let behind = running.request.prompt.len() + running.generated.len() - 1;
        // The place where it shows does not depend on how the prompt was computed, unlike the one where it begins.
        let fault = format!("no token follows position {behind}: the values there are not finite");
        self.answers.fail(Some(&running.request.id), running.request.number, &fault)?;
        self.leave(&running)
    }

    fn leave(&mut self, running: &Running) -> Result<()> {
        self.pool.drop(running.sequence)?;
        self.reserved -= running.request.pages();
        self.progress.step();
        Ok(())
    }
}

/// Tokens of full pages with which both prompts begin, and which one of them can have from the other.
fn shared(a: &[u32], b: &[u32]) -> usize {
    let same = a.iter().zip(&b[..b.len() - 1]).take_while(|(a, b)| a == b).count();
    same / PAGE * PAGE
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Write;
    use std::rc::Rc;
    use std::sync::Arc;

    use kquant_moe::gguf::Gguf;
    use kquant_moe::model::{CacheType, Config, Tensors, cpu::Cpu};

    use super::*;

    fn fault(line: &str) -> (Option<Id>, String) {
        let source = Source::built_in().unwrap();
        let tokenizer = Tokenizer::from_gguf(&source.gguf, source.config.vocab).unwrap();
        let line = Line::new(1, line.as_bytes());
        (line.id.clone(), line.request(&source, tokenizer.as_ref()).map_or_else(|fault| fault, |_| String::new()))
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said_with_its_id() {
        let text = |text: &str| Some(Id::Text(text.into()));
        for (line, id, parts) in [
            (r#"{"id": 1, "prompt": "x"}"#, Some(Id::Unsigned(1)), ""),
            (r#"{"id": -1, "tokens": [1]}"#, Some(Id::Signed(-1)), ""),
            (
                r#"{"id": "a", "prompt": "x", "n": 3, "temp": 1, "top_k": 2, "top_p": 0.5, "min_p": 0, "seed": 9}"#,
                text("a"),
                "",
            ),
            ("{", None, "EOF while parsing an object at column 1"),
            ("[1]", None, "expected a JSON object"),
            (r#"{"prompt": "x"}"#, None, "missing field `id`"),
            (r#"{"id": null, "prompt": "x"}"#, None, "id: expected a string or an integer of 64 bits"),
            (r#"{"id": 1.5, "prompt": "x"}"#, None, "id: expected a string or an integer of 64 bits"),
            (r#"{"id": 18446744073709551616, "prompt": "x"}"#, None, "id: expected a string or an integer of 64 bits"),
            (r#"{"id": "a"}"#, text("a"), "expected either a prompt or tokens"),
            (r#"{"id": "a", "prompt": "x", "tokens": [1]}"#, text("a"), "expected either a prompt or tokens"),
            (r#"{"id": "a", "prompt": "x", "top": 1}"#, text("a"), "unknown field `top`"),
            (r#"{"id": "a", "prompt": "x", "n": 1, "n": 2}"#, text("a"), "duplicate field `n`"),
            (r#"{"id": "a", "prompt": ""}"#, text("a"), "the prompt is empty"),
            (r#"{"id": "a", "tokens": []}"#, text("a"), "the prompt is empty"),
            (r#"{"id": "a", "tokens": [1, 2048]}"#, text("a"), "token 2048 at position 1"),
            (r#"{"id": "a", "tokens": [-1]}"#, text("a"), "invalid value"),
            (r#"{"id": "a", "prompt": "x", "n": -1}"#, text("a"), "invalid value"),
            (
                r#"{"id": "a", "prompt": "x", "n": 5000}"#,
                text("a"),
                "-n 5000 after a prompt of 1 tokens: context overflow",
            ),
            (r#"{"id": "a", "prompt": "x", "temp": -1}"#, text("a"), "temperature: expected"),
            (r#"{"id": "a", "prompt": "x", "top_p": 1.5}"#, text("a"), "top-p: expected"),
        ] {
            let found = fault(line);
            assert_eq!(found.0, id, "{line}");
            assert!(found.1.contains(parts) && found.1.is_empty() == parts.is_empty(), "{line}: {}", found.1);
        }
        let broken = Line::new(3, b"{\"id\": \"\xff\"}");
        assert_eq!((broken.id, broken.fields.unwrap_err().as_str()), (None, "the line is not UTF-8 from byte 8 on"));
    }

    /// Standard output in memory.
    #[derive(Clone, Default)]
    struct Written(Rc<RefCell<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The built-in model with keys of which those of some tokens do not fit into half precision.
    fn large_keys() -> Source {
        let mut bytes = include_bytes!("../model/tiny-qwen3moe-q4_k_m.gguf").to_vec();
        let source = Source::built_in().unwrap();
        let weights = source.gguf.tensor("blk.0.attn_k_norm.weight").unwrap().data().to_vec();
        let at = bytes.windows(weights.len()).position(|window| window == weights).unwrap();
        for value in bytes[at..][..weights.len()].as_chunks_mut().0 {
            *value = (f32::from_le_bytes(*value) * 7000.0).to_le_bytes();
        }
        let gguf = Arc::new(Gguf::from_vec("large keys", bytes).unwrap());
        let config = Config::from_gguf(&gguf).unwrap();
        let tensors = Tensors::find(&gguf, &config).unwrap();
        ModelArgs::default().source(gguf, config, tensors)
    }

    /// As on a GPU: a text ends, or is not finite, somewhere among steps whose tokens are read back together.
    #[test]
    fn what_is_generated_does_not_depend_on_steps_at_once() {
        let source = large_keys();
        let request = |(number, prompt): (usize, &[u32])| Request {
            number,
            id: Id::Unsigned(number as u64),
            prompt: prompt.to_vec(),
            count: 20,
            sampling: Sampling {
                seed: number as u64,
                ..if number == 4 { Sampling::default() } else { Sampling::GREEDY }
            },
        };
        let prompts: [&[u32]; 6] = [&[20], &[4, 5], &[1, 2, 3], &[30], &[30], &[10]];
        let generated = |at_once: usize, ends: &[u32]| {
            let options = PoolOptions::default().pages(4).sequences(4).capacity(64).cache(CacheType::F16);
            let (model, pool) = source.load_with_pool(Cpu::new(), options).unwrap();
            let written = Written::default();
            let mut out = Out::to(written.clone());
            let mut answers = Answers { tokenizer: None, failed: 0, out: &mut out };
            let requests = prompts.into_iter().enumerate().map(request).collect();
            Batching::new(&model, pool, requests, at_once, ends, &mut answers).run().unwrap();
            let failed = answers.failed;
            let text = String::from_utf8(written.0.take()).unwrap();
            let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            lines.sort_by_key(|line| line["id"].as_u64());
            assert_eq!((lines.len(), failed), (6, lines.iter().filter(|line| line["error"].is_string()).count()));
            lines
        };
        let whole = generated(1, &[]);
        let errors: Vec<bool> = whole.iter().map(|line| line["error"].is_string()).collect();
        assert!(errors[1..3] == [true, true] && !errors[0] && !errors[3] && errors[5], "{whole:?}");
        assert!(whole[1]["error"].as_str().unwrap().contains("position 12:"), "{}", whole[1]);
        // A token at which the first text stops before its end, and maybe others.
        let end = whole[0]["tokens"][10].as_u64().unwrap() as u32;
        let ended = generated(1, &[end]);
        assert!(ended[0]["finish"] == "stop" && ended[0]["tokens"].as_array().unwrap().len() <= 10, "{}", ended[0]);
        for at_once in [3, 8] {
            assert_eq!(generated(at_once, &[]), whole, "{at_once}");
            assert_eq!(generated(at_once, &[end]), ended, "{at_once}");
        }
    }

    #[test]
    fn what_prompts_share_are_full_pages_but_not_the_last_token() {
        let text: Vec<u32> = (0..200).collect();
        for (a, b, expected) in
            [(200, 200, 192), (200, 128, 64), (200, 129, 128), (129, 200, 128), (128, 200, 128), (63, 200, 0)]
        {
            assert_eq!(shared(&text[..a], &text[..b]), expected, "{a}, {b}");
        }
        assert_eq!(shared(&text, &text[1..]), 0);
    }
}
