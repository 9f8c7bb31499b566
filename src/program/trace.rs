//! `trace`: intermediate values of a forward, as files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kquant_moe::device::CudaDevice;
use kquant_moe::diff::Point;
use kquant_moe::model::{Backend, ContextOptions, Logits};
use kquant_moe::trace::{Data, Positions, Record, Select, Selection, Stage};
use kquant_moe::{Error, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Outcome;
use super::backend::{self, Job};
use super::input::{Sequence, Source};
use super::output::{Out, Progress, io_error};
use super::{capture, machine, npy};

/// Writes the values of every stage: `embedding.npy`, `layer00.attn_norm.npy` and so on, and `manifest.json`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    sequence: Sequence,
    /// Stages to write, separated by commas; all when not given
    #[arg(long, value_name = "STAGES", value_delimiter = ',')]
    stages: Option<Vec<Stage>>,
    /// Layers to write, separated by commas; all when not given
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    layers: Option<Vec<usize>>,
    /// Tokens to write the values of
    #[arg(long, value_enum, default_value_t)]
    positions: Rows,
    /// Directory for the files, which must be empty or new
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Rows {
    /// Every token
    #[default]
    All,
    /// The last token
    Last,
}

/// Runs the command.
pub fn trace(args: &Args, out: &mut Out) -> Result<Outcome> {
    let sequence = &args.sequence;
    let (source, tokens) = (sequence.open()?, sequence.tokens());
    let layers = source.config.layers;
    if let Some(&layer) = args.layers.iter().flatten().find(|&&layer| layer >= layers) {
        return Err(Error::Invalid(format!("--layers: there is no layer {layer} (layers: {layers})")));
    }
    let options = sequence.options(&source, true)?;
    let device = sequence.backend.device()?;
    empty_dir(&args.out)?;
    let (positions, rows) = match args.positions {
        Rows::All => (Positions::All, tokens.len()),
        Rows::Last => (Positions::Last, 1),
    };
    let selection = Selection { stages: args.stages.clone(), layers: args.layers.clone(), positions };
    let files = Files { dir: &args.out, rows, positions: tokens.len(), written: BTreeMap::new() };
    let written = backend::run(device.as_ref(), Trace { source: &source, tokens, options, selection, files })?;

    let stages = written.iter().map(|(point, (shape, dtype))| {
        json!({
            "file": format!("{point}.npy"),
            "stage": point.stage.name(),
            "layer": point.layer,
            "dtype": dtype,
            "shape": shape,
        })
    });
    let manifest = json!({
        "crate": format!("kquant-moe {}", machine::VERSION),
        "model": source.name(),
        "model_bytes": source.gguf.file_len(),
        "model_sha256": sha256(&sequence.model)?,
        "tokens": tokens,
        "positions": if positions == Positions::Last { "last" } else { "all" },
        "backend": if device.is_some() { "cuda" } else { "cpu" },
        "device": device.as_ref().map_or_else(|| Ok(machine::cpu()), CudaDevice::describe)?,
        "kv": sequence.kv.name(),
        "stages": stages.collect::<Vec<Value>>(),
    });
    let path = args.out.join("manifest.json");
    fs::write(&path, format!("{manifest:#}\n")).map_err(|source| io_error(path, source))?;
    out.line(format_args!("{}: {} stages", args.out.display(), written.len()))?;
    Ok(Outcome::Ok)
}

/// Makes sure that the directory exists and that nothing of another trace is in it.
fn empty_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|source| io_error(dir, source))?;
    match fs::read_dir(dir).map_err(|source| io_error(dir, source))?.next() {
        None => Ok(()),
        Some(_) => Err(Error::Invalid(format!("{}: the directory is not empty", dir.display()))),
    }
}

fn sha256(path: &Path) -> Result<String> {
    let hash = || {
        let mut file = fs::File::open(path)?;
        let progress = Progress::new("hashing", file.metadata()?.len());
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        loop {
            let len = std::io::Read::read(&mut file, &mut buffer)?;
            if len == 0 {
                return Ok(hasher.finalize());
            }
            hasher.update(&buffer[..len]);
            done += len as u64;
            progress.set(done);
        }
    };
    let hash = hash().map_err(|source| io_error(path, source))?;
    Ok(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The files of a trace. Values are written as they come, so that a trace may be larger than memory.
struct Files<'a> {
    dir: &'a Path,
    /// Rows that every stage will have.
    rows: usize,
    /// Positions that the last token sees.
    positions: usize,
    /// Shape and type of what was begun.
    written: BTreeMap<Point, (Vec<usize>, &'static str)>,
}

impl Files<'_> {
    fn record(&mut self, record: Record<'_>) -> Result<()> {
        match record.data {
            Data::F32(scores) if record.stage == Stage::AttnScores => {
                let seen = record.shape[2];
                self.append(&record, Some(self.positions), &capture::widen(scores, seen, self.positions))
            }
            Data::F32(values) => self.append(&record, None, values),
            Data::U32(values) => self.append(&record, None, values),
        }
    }

    fn append<T: npy::Element>(&mut self, record: &Record<'_>, last: Option<usize>, values: &[T]) -> Result<()> {
        let point = Point { layer: record.layer, stage: record.stage };
        let path = self.dir.join(format!("{point}.npy"));
        if !self.written.contains_key(&point) {
            let mut shape = record.shape.to_vec();
            shape[0] = self.rows;
            if let (Some(last), Some(dim)) = (last, shape.last_mut()) {
                *dim = last;
            }
            npy::create::<T>(&path, &shape)?;
            self.written.insert(point, (shape, T::DESCR));
        }
        npy::append(&path, values)
    }
}

struct Trace<'a> {
    source: &'a Source,
    tokens: &'a [u32],
    options: ContextOptions,
    selection: Selection,
    files: Files<'a>,
}

impl Job for Trace<'_> {
    type Output = BTreeMap<Point, (Vec<usize>, &'static str)>;

    fn run<B: Backend>(mut self, backend: B, _: Option<&CudaDevice>) -> Result<Self::Output> {
        let (model, mut context) = self.source.load_with_context(backend, self.options)?;
        let logits = match self.selection.positions {
            Positions::All => Logits::All,
            Positions::Last => Logits::Last,
        };
        let mut sink = Select { selection: self.selection, record: |record: Record<'_>| self.files.record(record) };
        context.trace(&model, self.tokens, logits, &mut sink)?;
        Ok(self.files.written)
    }
}
