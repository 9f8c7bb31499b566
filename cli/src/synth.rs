//! `synth`: models of random weights.

use std::path::PathBuf;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use kquant_moe::Result;
use kquant_moe::model::synth::{self, Mix, SynthOptions};

use super::Outcome;
use super::output::{self, Out, Progress, bytes};

/// Writes a model of random weights, in the shape and the types of a real one: for measuring without the real file.
#[derive(clap::Args)]
pub struct Args {
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The shape
    #[arg(long, value_enum)]
    preset: Preset,
    /// Layers, when they are to be other than the preset's
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Width of the residual stream, when it is to be another than the preset's
    #[arg(long, value_name = "N")]
    hidden: Option<usize>,
    /// Width of an expert, when it is to be another than the preset's
    #[arg(long, value_name = "N")]
    expert_ff: Option<usize>,
    /// Query heads, key and value heads, and dimensions of a head, when they are to be other than the preset's
    #[arg(long, value_name = "Q,KV,DIM", value_parser = heads)]
    heads: Option<[usize; 3]>,
    /// The types of matrices: a mix, a type for all, or types for parts (`q5_k_m`, `q8_0`, `q6_k,experts=iq4_xs,down=q5_k`)
    #[arg(long, value_name = "TYPES", default_value = "q4_k_m")]
    types: Mix,
    /// Selects one of many models of the same shape
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Overwrite a file that is there
    #[arg(long)]
    force: bool,
}

fn heads(text: &str) -> std::result::Result<[usize; 3], String> {
    let counts: std::result::Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    counts
        .ok()
        .and_then(|counts| counts.try_into().ok())
        .ok_or_else(|| "expected three numbers, such as 32,4,128".into())
}

#[derive(Clone, Copy)]
struct Preset(synth::Preset);

impl ValueEnum for Preset {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Preset; synth::Preset::ALL.len()] = {
            let mut all = [Preset(synth::Preset::ALL[0]); synth::Preset::ALL.len()];
            let mut number = 1;
            while number < all.len() {
                all[number] = Preset(synth::Preset::ALL[number]);
                number += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

/// Runs the command.
pub fn synth(args: &Args, out: &mut Out) -> Result<Outcome> {
    let options = SynthOptions::new(args.preset.0, args.seed)
        .layers(args.layers)
        .hidden(args.hidden)
        .expert_ff(args.expert_ff)
        .heads(args.heads);
    output::check_output(&args.out, args.force, None)?;
    let mut progress = None;
    let len = synth::synth_mix(&args.out, options, &args.types, &mut |done, total| {
        progress.get_or_insert_with(|| Progress::bytes("writing", total)).set(done);
    })?;
    drop(progress);
    out.line(format_args!("{}: {}", args.out.display(), bytes(len)))?;
    Ok(Outcome::Ok)
}
