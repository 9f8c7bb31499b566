//! The command-line program: arguments, the choice of a command, and how its result becomes an exit code.

mod backend;
mod bench;
mod capture;
mod chat;
mod diff;
#[cfg(test)]
mod faulty;
mod generate;
mod info;
mod input;
mod kernels;
mod logits;
mod machine;
mod memory;
mod npy;
mod output;
mod run;
mod sampling;
mod synth;
mod template;
mod tokenize;
mod tokenizer;
mod trace;
mod verify;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use kquant_moe::Result;
use output::Out;

const EXAMPLES: &str = "\
Examples:
  kquant-moe                                      write some Rust with the built-in model
  kquant-moe model.gguf -p 'pub struct ' -n 32    continue a text with a model of yours
  kquant-moe model.gguf < prompt.txt              the same with a text of any length
  kquant-moe model.gguf --chat                    talk; with -p 'Why?' one answer
  kquant-moe run -m model.gguf --temp 0.7 --top-p 0.8 --top-k 20 --seed 1
  kquant-moe generate -m model.gguf prompts.jsonl many prompts at once, a line of JSON each
  kquant-moe verify model.gguf                    compare CPU and GPU, layer by layer, in bits
  kquant-moe info model.gguf                      shape, types, memory, and what keeps a file from running
  kquant-moe bench model.gguf --depth 2048        tokens/s with 2048 positions in use
  kquant-moe synth --preset qwen3-30b-a3b --out big.gguf
  kquant-moe trace model.gguf --tokens 1,2,3 --backend cpu --out a
  kquant-moe diff a b                             where does one trace leave the other
  kquant-moe completions bash >> ~/.bash_completion

Exit codes: 0 success, 1 failure, 2 wrong usage. Model files must not change while the program runs.";

/// Runs quantized Qwen3-MoE models in GGUF files on the CPU or on a CUDA GPU, with the same bits on both.
#[derive(Parser)]
#[command(name = "kquant-moe", version = version(), after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// What `run` takes, which it is without a command.
    #[command(flatten)]
    run: run::Args,
}

/// The version, and what it was built with.
fn version() -> String {
    format!("{} (CUDA kernels: {})", machine::VERSION, machine::cuda_build())
}

#[derive(Subcommand)]
enum Command {
    /// Generate text, or answer (what is done without a command)
    Run(run::Args),
    /// Go on with many prompts at once: JSON lines in, JSON lines out
    Generate(generate::Args),
    /// Write the logits of every token to a file
    Logits(logits::Args),
    /// Check the results: GPU against CPU in bits, prefill against decode, run against run
    Verify(verify::Args),
    /// Show a file's shape, types and memory, what keeps it from running, and the CUDA devices
    Info(info::Args),
    /// Write a model of random weights
    Synth(synth::Args),
    /// Measure decode and prefill
    Bench(bench::Args),
    /// Write intermediate values, one file for each stage and layer
    Trace(trace::Args),
    /// Compare two directories that `trace`, or another program, wrote
    Diff(diff::Args),
    /// Write the token ids of a text
    Tokenize(tokenize::Args),
    /// Write the text of token ids
    Detokenize(tokenize::DetokenizeArgs),
    /// Write completions for a shell
    Completions(Completions),
}

/// Writes a script to standard output that completes this program's arguments.
#[derive(clap::Args)]
struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// What a command that could be carried out found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing wrong.
    Ok,
    /// Something wrong, which the command has said.
    Failed,
}

fn main() -> ExitCode {
    let Cli { command, run } = Cli::parse();
    if command.is_none() {
        refuse_misspelled(&run);
    }
    match carry_out(command.unwrap_or(Command::Run(run))) {
        Ok(Outcome::Ok) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Err(error) => {
            output::report("error", &error);
            ExitCode::FAILURE
        }
    }
}

/// Ends the program with a usage error when what stands in the place of a command is neither a command nor looks like a file.
fn refuse_misspelled(run: &run::Args) {
    if let Some(path) = &run.model.path
        && path.extension().is_none()
        && path.parent().is_none_or(|parent| parent.as_os_str().is_empty())
        && !path.exists()
    {
        let message = format!("{:?} is no command, and there is no such file", path.display().to_string());
        Cli::command().error(ErrorKind::InvalidSubcommand, message).exit();
    }
}

fn carry_out(command: Command) -> Result<Outcome> {
    let mut out = Out::new();
    match command {
        Command::Run(args) => run::run(&args, &mut out),
        Command::Generate(args) => generate::generate(&args, &mut out),
        Command::Logits(args) => logits::logits(&args),
        Command::Verify(args) => verify::verify(&args, &mut out),
        Command::Info(args) => info::info(&args, &mut out),
        Command::Synth(args) => synth::synth(&args, &mut out),
        Command::Bench(args) => bench::bench(&args, &mut out),
        Command::Trace(args) => trace::trace(&args, &mut out),
        Command::Diff(args) => diff::diff(&args, &mut out),
        Command::Tokenize(args) => tokenize::tokenize(&args, &mut out),
        Command::Detokenize(args) => tokenize::detokenize(&args, &mut out),
        Command::Completions(Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kquant-moe", &mut script);
            out.raw(&script)?;
            Ok(Outcome::Ok)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
