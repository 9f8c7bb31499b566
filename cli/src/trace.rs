//! `trace`: intermediate values of a forward, as files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kquant_moe::device::CudaDevice;
use kquant_moe::diff::Point;
use kquant_moe::model::{Backend, ContextOptions, Logits};
use kquant_moe::trace::{Data, Positions, Record, Select, Selection, Stage};
use kquant_moe::{Error, Result};
use serde_json::{Value, json};

use super::Outcome;
use super::backend::{self, Job};
use super::input::{Sequence, Source};
use super::memory::Peak;
use super::output::{self, Out, Progress, io_error};
use super::{capture, machine, npy};

/// Tokens that are computed at once: values do not depend on it, and what the host holds of them does.
const BATCH: usize = 64;

/// Writes the values of every stage: `embedding.npy`, `layer00.attn_norm.npy` and so on, and `manifest.json`. Says how
/// long it took, and how much memory of the host it had at most, beyond what there was when the model was loaded.
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
    let began = Instant::now();
    let sequence = &args.sequence;
    let (source, tokens) = sequence.open()?;
    let layers = source.config.layers;
    if let Some(&layer) = args.layers.iter().flatten().find(|&&layer| layer >= layers) {
        return Err(Error::Invalid(format!("--layers: there is no layer {layer} (layers: {layers})")));
    }
    let options = sequence.options(&source, &tokens, true)?.max_batch(BATCH);
    let device = sequence.backend.device()?;
    empty_dir(&args.out)?;
    let (positions, rows) = match args.positions {
        Rows::All => (Positions::All, tokens.len()),
        Rows::Last => (Positions::Last, 1),
    };
    let selection = Selection::default().stages(args.stages.clone()).layers(args.layers.clone()).positions(positions);
    let files = Files { dir: &args.out, rows, positions: tokens.len(), memory: None, written: BTreeMap::new() };
    let traced = backend::run(device.as_ref(), Trace { source: &source, tokens: &tokens, options, selection, files })?;

    let stages = traced.written.iter().map(|(point, (shape, dtype))| {
        json!({
            "file": format!("{point}.npy"),
            "stage": point.stage.name(),
            "layer": point.layer,
            "dtype": dtype,
            "shape": shape,
        })
    });
    let sha256 = source.sha256()?;
    let [load, trace, total] = [traced.load, traced.trace, began.elapsed()].map(|time| time.as_secs_f64());
    let manifest = json!({
        "crate": format!("kquant-moe {}", machine::VERSION),
        "model": source.name(),
        "model_bytes": source.gguf.file_len(),
        "model_sha256": sha256,
        "tokens": tokens,
        "positions": if positions == Positions::Last { "last" } else { "all" },
        "backend": if device.is_some() { "cuda" } else { "cpu" },
        "device": device.as_ref().map_or_else(|| Ok(machine::cpu()), CudaDevice::describe)?,
        "kv": sequence.kv.name(),
        "seconds": { "load": load, "trace": trace, "total": total },
        "memory_beyond_model": traced.memory,
        "stages": stages.collect::<Vec<Value>>(),
    });
    let path = args.out.join("manifest.json");
    fs::write(&path, format!("{manifest:#}\n")).map_err(|source| io_error(path, source))?;
    let memory = traced.memory.map(|bytes| format!(", {} of memory beyond the model", output::bytes(bytes)));
    out.line(format_args!(
        "{}: {} stages in {total:.2} s ({load:.2} s to load the model, {trace:.2} s to trace){}",
        args.out.display(),
        traced.written.len(),
        memory.unwrap_or_default()
    ))?;
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

/// The files of a trace. Values are written as they come, so that a trace may be larger than memory.
struct Files<'a> {
    dir: &'a Path,
    /// Rows that every stage will have.
    rows: usize,
    /// Positions that the last token sees.
    positions: usize,
    /// What memory is in use, from when the model is loaded; nothing where the system does not say.
    memory: Option<Peak>,
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
        // The values are here, and in the context's buffers: more than between two records.
        if let Some(memory) = &self.memory {
            memory.sample();
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

/// What a trace comes to.
struct Traced {
    /// Shape and type of each stage.
    written: BTreeMap<Point, (Vec<usize>, &'static str)>,
    /// Until the model was loaded.
    load: Duration,
    /// From then until everything was written.
    trace: Duration,
    /// Most bytes of memory in use meanwhile, beyond those when the model was loaded.
    memory: Option<u64>,
}

impl Job for Trace<'_> {
    type Output = Traced;

    fn run<B: Backend>(mut self, backend: B, _: Option<&CudaDevice>) -> Result<Traced> {
        let began = Instant::now();
        let model = self.source.load(backend, &self.options)?;
        let loaded = Instant::now();
        self.files.memory = Peak::watch();
        let mut context = model.context(self.options)?;
        let (logits, call) = match self.selection.positions {
            // A call returns logits that were written when they were recorded: short calls keep few of them.
            Positions::All => (Logits::All, context.max_batch()),
            Positions::Last => (Logits::Last, self.tokens.len()),
        };
        let mut sink = Select::new(self.selection, |record: Record<'_>| self.files.record(record));
        let progress = Progress::count("tracing", self.tokens.len());
        for tokens in self.tokens.chunks(call) {
            context.trace(&model, tokens, logits, &mut sink)?;
            progress.set(context.position() as u64);
        }
        drop(progress);
        let memory = self.files.memory.take().map(Peak::bytes);
        Ok(Traced { written: self.files.written, load: loaded - began, trace: loaded.elapsed(), memory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_as_wide_as_the_last_token_sees() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { dir: dir.path(), rows: 3, positions: 4, memory: None, written: BTreeMap::new() };
        let mut files = files;
        let mut record = |stage, shape: &[usize], data: Data<'_>| {
            files.record(Record::new(stage, Some(1), 0, shape, data)).unwrap();
        };
        record(Stage::AttnScores, &[2, 1, 2], Data::F32(&[1.0, 2.0, 3.0, 4.0]));
        record(Stage::AttnScores, &[1, 1, 4], Data::F32(&[5.0, 6.0, 7.0, 8.0]));
        record(Stage::MoeRouterIndices, &[2, 1], Data::U32(&[1, 2]));
        record(Stage::MoeRouterIndices, &[1, 1], Data::U32(&[3]));
        let no = f32::NEG_INFINITY;
        let scores = npy::read(&dir.path().join("layer01.attn_scores.npy")).unwrap();
        assert_eq!(scores.shape, [3, 1, 4]);
        let expected = vec![1.0, 2.0, no, no, 3.0, 4.0, no, no, 5.0, 6.0, 7.0, 8.0];
        assert_eq!(scores.values, kquant_moe::diff::Values::F32(expected));
        let indices = npy::read(&dir.path().join("layer01.moe_router_indices.npy")).unwrap();
        assert_eq!((indices.shape, indices.values), (vec![3, 1], kquant_moe::diff::Values::Int(vec![1, 2, 3])));
        let types: Vec<_> = files.written.values().map(|(shape, dtype)| (shape.clone(), *dtype)).collect();
        assert_eq!(types, [(vec![3, 1, 4], "<f4"), (vec![3, 1], "<u4")]);
    }
}
