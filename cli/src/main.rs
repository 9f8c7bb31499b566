//! The command-line program: arguments, the choice of a command, and how its result becomes an exit code.

mod backend;
mod bench;
mod capture;
mod diff;
#[cfg(test)]
mod faulty;
mod info;
mod input;
mod kernels;
mod logits;
mod machine;
mod memory;
mod npy;
mod output;
mod run;
mod synth;
mod tokenizer;
mod trace;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use kquant_moe::Result;
use output::Out;

const EXAMPLES: &str = "\
Examples:
  kquant-moe                                      write some Rust with the built-in model
  kquant-moe run --prompt 'pub struct ' -n 32     the same with another prompt
  kquant-moe run model.gguf --prompt 'Hello'      a model of yours
  kquant-moe verify model.gguf                    compare CPU and GPU, layer by layer, in bits
  kquant-moe info model.gguf                      shape, types, memory
  kquant-moe bench model.gguf --depth 2048        tokens/s with 2048 positions in use
  kquant-moe synth --preset qwen3-30b-a3b --out big.gguf
  kquant-moe trace model.gguf --tokens 1,2,3 --backend cpu --out a
  kquant-moe diff a b                             where does one trace leave the other

Exit codes: 0 success, 1 failure, 2 wrong usage. Model files must not change while the program runs.";

/// Runs quantized Qwen3-MoE models in GGUF files on the CPU or on a CUDA GPU, with the same bits on both.
#[derive(Parser)]
#[command(name = "kquant-moe", version = version(), after_help = EXAMPLES)]
struct Cli {
    /// `run` with the built-in model when there is none.
    #[command(subcommand)]
    command: Option<Command>,
}

/// The version, and what it was built with.
fn version() -> String {
    format!("{} (CUDA kernels: {})", machine::VERSION, machine::cuda_build())
}

#[derive(Subcommand)]
enum Command {
    /// Generate text greedily
    Run(run::Args),
    /// Write the logits of every token to a file
    Logits(logits::Args),
    /// Check the results: GPU against CPU in bits, prefill against decode, run against run
    Verify(verify::Args),
    /// Show a model's shape, types and memory, and the CUDA devices
    Info(info::Args),
    /// Write a model of random weights
    Synth(synth::Args),
    /// Measure decode and prefill
    Bench(bench::Args),
    /// Write intermediate values, one file for each stage and layer
    Trace(trace::Args),
    /// Compare two directories that `trace`, or another program, wrote
    Diff(diff::Args),
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
    let command = Cli::parse().command.unwrap_or_else(|| Command::Run(run::Args::default()));
    match carry_out(command) {
        Ok(Outcome::Ok) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Err(error) => {
            output::report("error", &error);
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: Command) -> Result<Outcome> {
    let mut out = Out::new();
    match command {
        Command::Run(args) => run::run(&args, &mut out),
        Command::Logits(args) => logits::logits(&args),
        Command::Verify(args) => verify::verify(&args, &mut out),
        Command::Info(args) => info::info(&args, &mut out),
        Command::Synth(args) => synth::synth(&args, &mut out),
        Command::Bench(args) => bench::bench(&args, &mut out),
        Command::Trace(args) => trace::trace(&args, &mut out),
        Command::Diff(args) => diff::diff(&args, &mut out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
