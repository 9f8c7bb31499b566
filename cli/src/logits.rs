//! `logits`: the logits of every token, and the experts that were chosen, as files.

use std::path::PathBuf;

use kquant_moe::Result;
use kquant_moe::device::CudaDevice;
use kquant_moe::model::{Backend, ContextOptions, Logits};
use kquant_moe::trace::{Data, Positions, Record, Select, Selection, Stage};

use super::Outcome;
use super::backend::{self, Job};
use super::input::{Sequence, Source};
use super::npy;
use super::output::{self, Progress};

/// Computes the logits of every token and writes them as NumPy files.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    sequence: Sequence,
    /// File for the logits, f32 `[tokens, vocabulary]`
    #[arg(long, value_name = "L.npy")]
    out: PathBuf,
    /// File for the chosen experts, int32 `[layers, tokens, k]`, highest probability first
    #[arg(long, value_name = "R.npy")]
    routers: Option<PathBuf>,
    /// Overwrite files that are there
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn logits(args: &Args) -> Result<Outcome> {
    let sequence = &args.sequence;
    let (source, tokens) = sequence.open()?;
    let options = sequence.options(&source, &tokens, args.routers.is_some())?;
    for path in [Some(&args.out), args.routers.as_ref()].into_iter().flatten() {
        output::check_output(path, args.force, Some(&source.gguf))?;
    }
    let device = sequence.backend.device()?;
    let (logits, routers) = backend::run(device.as_ref(), Compute { source: &source, tokens: &tokens, options })?;
    let config = &source.config;
    npy::write(&args.out, &[tokens.len(), config.vocab], &logits)?;
    if let Some(path) = &args.routers {
        npy::write(path, &[config.layers, tokens.len(), config.top_k], &routers)?;
    }
    Ok(Outcome::Ok)
}

struct Compute<'a> {
    source: &'a Source,
    tokens: &'a [u32],
    options: ContextOptions,
}

impl Job for Compute<'_> {
    type Output = (Vec<f32>, Vec<i32>);

    fn run<B: Backend>(self, backend: B, _: Option<&CudaDevice>) -> Result<Self::Output> {
        let (model, mut context) = self.source.load_with_context(backend, self.options)?;
        let located = |error| self.source.located(&model, self.tokens, self.options, error);
        if !self.options.trace {
            let progress = Progress::count("prompt", self.tokens.len());
            let mut logits = Vec::new();
            for batch in self.tokens.chunks(context.max_batch()) {
                logits.extend(context.forward(&model, batch, Logits::All).map_err(located)?);
                progress.set((logits.len() / model.config().vocab) as u64);
            }
            return Ok((logits, Vec::new()));
        }
        let _progress = Progress::count("prompt", self.tokens.len());
        let mut layers = vec![Vec::new(); model.config().layers];
        let stages = Some(vec![Stage::MoeRouterIndices]);
        let record = |record: Record<'_>| {
            if let (Some(layer), Data::U32(experts)) = (record.layer, record.data) {
                layers[layer].extend(experts.iter().map(|&expert| expert as i32));
            }
            Ok(())
        };
        let selection = Selection::default().stages(stages).positions(Positions::All);
        let logits = context.trace(&model, self.tokens, Logits::All, &mut Select::new(selection, record))?;
        if !logits.iter().all(|logit| logit.is_finite()) {
            // A trace shows them, but here nobody would look.
            context.reset();
            context.forward(&model, self.tokens, Logits::All)?;
        }
        Ok((logits, layers.concat()))
    }
}
