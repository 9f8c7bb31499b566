//! `run --chat`: questions and answers, in the form that the file's own template gives them.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Instant;

use kquant_moe::device::CudaDevice;
use kquant_moe::model::{Backend, Context, ContextOptions, Model};
use kquant_moe::oracle::sample::Sampling;
use kquant_moe::{Error, Result};

use super::Outcome;
use super::backend::{self, Job};
use super::input::{Piped, Source, text_of};
use super::output::{self, Out, io_error};
use super::run::Args;
use super::sampling;
use super::template::{Message, Template};
use super::tokenizer::{Decoder, Tokenizer};

/// Options of a talk.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Chat")]
pub struct ChatArgs {
    /// Answer, in the form of the file's chat template: the prompt, or one line after the other from a terminal
    #[arg(long, conflicts_with = "tokens")]
    pub chat: bool,
    /// What the model is told first
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Go on with every line of standard input as a question
    #[arg(short, long, requires = "chat")]
    interactive: bool,
    /// Tell a model that thinks before it answers not to
    #[arg(long, requires = "chat")]
    no_think: bool,
}

/// Runs the command.
pub fn chat(args: &Args, out: &mut Out) -> Result<Outcome> {
    let sampling = args.sampling.sampling()?;
    let source = args.model.open()?;
    let template = Template::from_gguf(&source.gguf)?;
    let tokenizer = Tokenizer::from_gguf(&source.gguf, source.config.vocab)?
        .ok_or_else(|| Error::Model(format!("{} has no tokenizer, and cannot be talked to", source.name())))?;
    let ChatArgs { interactive, ref system, no_think, .. } = args.chat;
    let question = args.prompt.text(if interactive { Piped::Ignored } else { Piped::Prompt })?;
    let more = interactive || (question.is_none() && io::stdin().is_terminal());
    if question.is_none() && !more {
        return Err(Error::Invalid(
            "--chat: there is no question: give one with -p, or lines with --interactive".into(),
        ));
    }
    let default = ContextOptions::default();
    let capacity = args.context.unwrap_or(default.capacity.min(source.config.context_length));
    let options = default.capacity(capacity).cache(args.kv.cache_type());
    let device = args.backend.device()?;
    let talk = Talk {
        ends: source.ends()?,
        source: &source,
        template,
        tokenizer,
        options,
        sampling,
        most: args.n,
        think: no_think.then_some(false),
        quiet: args.quiet,
        messages: system.iter().map(|text| Message { role: "system", content: text.clone() }).collect(),
        question,
        more,
        out,
    };
    backend::run(device.as_ref(), talk)
}

struct Talk<'a> {
    source: &'a Source,
    template: Template,
    tokenizer: Tokenizer,
    ends: Vec<u32>,
    options: ContextOptions,
    sampling: Option<Sampling>,
    /// Tokens of an answer.
    most: Option<usize>,
    think: Option<bool>,
    quiet: bool,
    messages: Vec<Message>,
    /// The first question, if it is known.
    question: Option<String>,
    /// Whether lines of standard input are further questions.
    more: bool,
    out: &'a mut Out,
}

impl Job for Talk<'_> {
    type Output = Outcome;

    fn run<B: Backend>(mut self, backend: B, _: Option<&CudaDevice>) -> Result<Outcome> {
        let (model, mut context) = self.source.load_with_context(backend, self.options)?;
        // The tokens in the context.
        let mut held = Vec::new();
        while let Some(question) = self.next_question()? {
            self.messages.push(Message { role: "user", content: question });
            let answer = self.answer(&model, &mut context, &mut held)?;
            self.messages.push(Message { role: "assistant", content: answer });
            if self.out.is_closed() {
                break;
            }
        }
        Ok(Outcome::Ok)
    }
}

impl Talk<'_> {
    /// The next question that is no blank line, until there are no more.
    fn next_question(&mut self) -> Result<Option<String>> {
        if let Some(question) = self.question.take() {
            return Ok(Some(question));
        }
        if !self.more {
            return Ok(None);
        }
        loop {
            if io::stdin().is_terminal() && !self.quiet {
                // There is nowhere left to say that this failed.
                let _ = write!(io::stderr(), "> ");
            }
            let mut line = Vec::new();
            let read = io::stdin().lock().read_until(b'\n', &mut line);
            if read.map_err(|source| io_error("standard input", source))? == 0 {
                return Ok(None);
            }
            let line = text_of(line, "standard input")?;
            let line = line.trim_end_matches(['\r', '\n']);
            if !line.trim().is_empty() {
                return Ok(Some(line.to_owned()));
            }
        }
    }

    /// Writes the answer as it comes, and returns it. `held` are the tokens that the context has, of which those that the talk
    /// begins with now as it did before need not be computed again.
    fn answer<B: Backend>(
        &mut self,
        model: &Model<B>,
        context: &mut Context<B>,
        held: &mut Vec<u32>,
    ) -> Result<String> {
        let tokens = self.tokenizer.encode_part(&self.template.render(&self.messages, self.think)?)?;
        self.source.check_tokens(&tokens)?;
        let capacity = context.capacity();
        let room = (capacity + 1).saturating_sub(tokens.len());
        if room == 0 {
            let text =
                format!("the talk has {} tokens, and the context {capacity} positions (--context)", tokens.len());
            return Err(Error::Invalid(text));
        }
        let count = self.most.unwrap_or(room);
        if count > room {
            let text = format!(
                "-n {count}: the talk has {} tokens, and of {capacity} positions {room} are left",
                tokens.len()
            );
            return Err(Error::Invalid(text));
        }
        // The last token is computed in any case, since its logits are wanted.
        let same = held.iter().zip(&tokens).take_while(|(a, b)| a == b).count().min(tokens.len() - 1);
        context.truncate(same);
        held.truncate(same);

        let mut decoder = Decoder::default();
        let (mut answer, mut failed, mut seen) = (String::new(), None, tokens.clone());
        let began = Instant::now();
        let mut first = None;
        let each = |token| {
            first.get_or_insert_with(Instant::now);
            seen.push(token);
            if self.ends.contains(&token) {
                return ControlFlow::Break(());
            }
            let text = decoder.push(&self.tokenizer, token);
            answer += &text;
            match self.out.text(text) {
                Ok(()) if !self.out.is_closed() => ControlFlow::Continue(()),
                Ok(()) => ControlFlow::Break(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        let rest = self.source.prefill(model, context, &tokens[same..]);
        let generated =
            rest.and_then(|rest| sampling::generate(model, context, rest, count, self.sampling.as_ref(), each));
        let generated = generated.map_err(|error| self.source.located(model, &seen, self.options, error))?;
        if let Some(error) = failed {
            return Err(error);
        }
        let text = decoder.finish();
        answer += &text;
        self.out.line(text)?;
        held.extend(tokens[same..].iter().chain(&generated));
        held.truncate(context.position());
        if !self.quiet {
            let seconds = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
            let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
            output::note(format_args!(
                "[{}: {} tokens at {:.1} tokens/s, prompt of {} after {same} that were there, {:.2} s]",
                model.backend().name(),
                generated.len(),
                rate(generated.len().saturating_sub(1), seconds),
                tokens.len() - same,
                began.elapsed().as_secs_f64()
            ));
        }
        Ok(answer)
    }
}
