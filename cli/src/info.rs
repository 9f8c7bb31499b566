//! `info`: what is in a GGUF file, what keeps it from running, and what it takes to run it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kquant_moe::Result;
use kquant_moe::device::{CudaDevice, Device as _};
use kquant_moe::gguf::{Gguf, Quoted, Tensor};
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{Config, ContextOptions, MemoryPlan, RopeScaling, Tensors, Yarn, end_tokens};
use serde_json::{Map, Value, json};

use super::Outcome;
use super::backend::{self, Kv};
use super::input::{ModelArgs, Source};
use super::machine;
use super::output::{Out, bytes};
use super::tokenizer::Tokenizer;

/// Shows what is in a GGUF file, a model or not: shape, tensor types, everything that keeps it from running here, and of a model
/// the memory plan and what this build and machine can run it on. Reads no weights. Fails for a file that does not run.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Positions of the context that memory is planned for [default: 4096, or all that the model has]
    #[arg(long, value_name = "POSITIONS")]
    context: Option<usize>,
    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t)]
    kv: Kv,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Tensors of a file that is no model whose types are said not to be supported.
const MOST_OBSTACLES: usize = 2000;

/// A model, and what it takes.
struct Running {
    source: Source,
    options: ContextOptions,
    plan: MemoryPlan,
}

/// Runs the command.
pub fn info(args: &Args, out: &mut Out) -> Result<Outcome> {
    let gguf = args.model.gguf()?;
    let mut obstacles = Vec::new();
    let mut found = None;
    match Config::read(&gguf) {
        Err(errors) => {
            obstacles.extend(errors);
            // Which types would do where, the shape would say.
            obstacles.extend(gguf.tensors().filter_map(|tensor| tensor.tensor_type().err()).take(MOST_OBSTACLES));
        }
        Ok(config) => match Tensors::read(&gguf, &config) {
            Err(errors) => obstacles.extend(errors),
            Ok(tensors) => found = Some(args.model.source(gguf.clone(), config, tensors)),
        },
    }
    obstacles.extend(end_tokens(&gguf, vocabulary(&gguf)).err());
    let mut obstacles: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
    obstacles = joined(obstacles);

    let device = backend::open_device();
    let running = match found {
        None => None,
        Some(source) => {
            let config = &source.config;
            let default = ContextOptions::default();
            let capacity = args.context.unwrap_or(default.capacity.min(config.context_length));
            let options = default.capacity(capacity).cache(args.kv.cache_type());
            let plan = match &device {
                Ok(device) => MemoryPlan::on(&Gpu::new(device.clone()), config, &source.tensors, &options)?,
                Err(_) => MemoryPlan::new(config, &source.tensors, &options)?,
            };
            Some(Running { source, options, plan })
        }
    };
    let outcome = if obstacles.is_empty() { Outcome::Ok } else { Outcome::Failed };
    if args.json {
        out.json(&json_report(&gguf, running.as_ref(), &obstacles, device, args.kv)?)?;
        return Ok(outcome);
    }

    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name:<20} {value}").unwrap_or_default();
    let parts = gguf.paths().len();
    let parts = if parts > 1 { format!(", {parts} parts") } else { String::new() };
    line("file", format!("{} ({}{parts})", gguf.path().display().to_string().escape_debug(), bytes(gguf.file_len())));
    if let Ok(Some(name)) = gguf.get::<&str>("general.name") {
        line("name", Quoted(name).to_string().trim_matches('"').to_owned());
    }
    line("architecture", format!("{}, GGUF version {}", architecture(&gguf), gguf.version()));
    if let Some(Running { source, .. }) = &running {
        let Config { layers, hidden, heads, kv_heads, head_dim, experts, top_k, expert_ff, vocab, .. } = source.config;
        line("layers", layers.to_string());
        line("hidden width", hidden.to_string());
        line("attention", format!("{heads} heads, {kv_heads} KV heads, of {head_dim}"));
        line("experts", format!("{experts} of width {expert_ff}, {top_k} for each token"));
        line("vocabulary", format!("{vocab} tokens, {}", tokenizer(&gguf)));
        let base = source.config.rope_base;
        line("positions", format!("{}, RoPE base {base}{}", source.config.context_length, scaling(&source.config)));
    } else {
        line("tokenizer", tokenizer(&gguf));
    }
    for (kind, Total { tensors, bytes: sum }) in totals(&gguf) {
        line(kind, format!("{tensors} tensors, {}", bytes(sum)));
    }
    for Types { name, types } in types(&gguf) {
        let types: Vec<String> = match types.as_slice() {
            [(kind, _)] => vec![(*kind).to_owned()],
            many => many.iter().map(|(kind, layers)| format!("{kind} (layers {layers})")).collect(),
        };
        line(&name, types.join(", "));
    }
    if let Some(Running { source, options, plan }) = &running {
        line("read for each token", format!("{} of weights", bytes(source.bytes_per_token())));
        let capacity = options.capacity;
        line("memory", format!("{} for {capacity} positions, KV cache in {}", bytes(plan.total()), args.kv.name()));
        line("  weights", bytes(plan.weights));
        line("  KV cache", bytes(plan.cache));
        line("  activations", bytes(plan.activations));
        if plan.workspace > 0 {
            line("  workspace", bytes(plan.workspace));
        }
    }
    line("CUDA build", machine::cuda_build());
    match device {
        Ok(device) => {
            let (free, _) = device.memory()?;
            let fits = running.as_ref().map(|running| running.plan.total() <= free);
            let fits = fits.map_or("", |fits| if fits { ": the plan fits" } else { ": the plan does not fit" });
            line("CUDA device", format!("{}, {} free{fits}", device.describe()?, bytes(free)));
        }
        Err(error) => line("CUDA device", error.to_string()),
    }
    line("CPU", machine::cpu());
    if !obstacles.is_empty() {
        let count = obstacles.len();
        let things = if count == 1 { "one thing is".to_owned() } else { format!("{count} things are") };
        text += &format!("\nIt does not run here: {things} in the way.\n");
        for obstacle in &obstacles {
            text += &format!("- {obstacle}\n");
        }
    }
    out.text(text)?;
    Ok(outcome)
}

/// Rows of the embedding table; without one every token counts as known.
fn vocabulary(gguf: &Gguf) -> usize {
    gguf.tensor("token_embd.weight").map_or(usize::MAX, |table| table.shape()[0] as usize)
}

fn architecture(gguf: &Gguf) -> String {
    match gguf.get::<&str>("general.architecture") {
        Ok(Some(name)) => Quoted(name).to_string().trim_matches('"').to_owned(),
        _ => "unknown".into(),
    }
}

fn tokenizer(gguf: &Gguf) -> String {
    match Tokenizer::from_gguf(gguf, vocabulary(gguf)) {
        Ok(Some(_)) => "tokenizer gpt2/qwen2".into(),
        Ok(None) => "no tokenizer".into(),
        Err(error) => error.to_string(),
    }
}

fn scaling(config: &Config) -> String {
    match config.rope_scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(", linear scaling by {factor}"),
        RopeScaling::Yarn(Yarn { factor, original_context, .. }) => {
            format!(", YaRN by {factor} from {original_context} positions")
        }
        other => format!(", {other:?}"),
    }
}

/// Messages that differ in the layer alone, as one with all of the layers; in the order of the first of each.
fn joined(messages: Vec<String>) -> Vec<String> {
    let mut groups: Vec<(String, Vec<usize>, String)> = Vec::new();
    for message in messages {
        let (key, layer) = match split_layer(&message) {
            Some((before, layer, after)) => (format!("{before}blk.*.{after}"), Some(layer)),
            None => (message.clone(), None),
        };
        match groups.iter_mut().find(|group| group.0 == key) {
            Some(group) => group.1.extend(layer),
            None => groups.push((key, layer.into_iter().collect(), message)),
        }
    }
    let text = |(key, layers, message): (String, Vec<usize>, String)| match layers.as_slice() {
        [_, _, ..] => key.replacen("blk.*.", &format!("blk.({}).", ranges(&layers)), 1),
        _ => message,
    };
    groups.into_iter().map(text).collect()
}

/// A text with the name of a tensor of a layer, around the layer.
fn split_layer(text: &str) -> Option<(&str, usize, &str)> {
    let (before, rest) = text.split_once("blk.")?;
    let (layer, after) = rest.split_once('.')?;
    Some((before, layer.parse().ok()?, after))
}

/// Tensors of a type.
#[derive(Clone, Copy, Default)]
struct Total {
    tensors: usize,
    bytes: u64,
}

fn totals(gguf: &Gguf) -> BTreeMap<&'static str, Total> {
    let mut totals: BTreeMap<&'static str, Total> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let total = totals.entry(tensor.ggml_type().name()).or_default();
        total.tensors += 1;
        total.bytes += tensor.data().len() as u64;
    }
    totals
}

/// The types of a kind of tensor.
struct Types {
    name: String,
    /// Type, and the layers that have it, such as `0-3, 7`.
    types: Vec<(&'static str, String)>,
}

/// Kinds of tensors that are listed at most: a file may have tens of thousands.
const MOST_KINDS: usize = 200;

/// Types of all tensors: of each that is outside of the layers, and of each kind that is in the layers, in the order of the file.
fn types(gguf: &Gguf) -> Vec<Types> {
    /// Layers by type.
    type Layers = Vec<(&'static str, Vec<usize>)>;
    let mut kinds: Vec<(String, Layers)> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for tensor in gguf.tensors() {
        let (name, layer) = kind_of(&tensor);
        let place = *places.entry(name.clone()).or_insert_with(|| {
            kinds.push((name, Vec::new()));
            kinds.len() - 1
        });
        let kind = tensor.ggml_type().name();
        let types = &mut kinds[place].1;
        match types.iter_mut().find(|entry| entry.0 == kind) {
            Some((_, layers)) => layers.extend(layer),
            None => types.push((kind, layer.into_iter().collect())),
        }
    }
    kinds.truncate(MOST_KINDS);
    let named = |(name, types): (String, Layers)| {
        let types = types.into_iter().map(|(kind, mut layers)| {
            layers.sort_unstable();
            (kind, ranges(&layers))
        });
        Types { name, types: types.collect() }
    };
    kinds.into_iter().map(named).collect()
}

/// What a tensor is called in every layer, and the layer.
fn kind_of(tensor: &Tensor<'_>) -> (String, Option<usize>) {
    let (name, layer) = match split_layer(tensor.name()) {
        Some(("", layer, part)) => (part, Some(layer)),
        _ => (tensor.name(), None),
    };
    (name.trim_end_matches(".weight").escape_debug().to_string(), layer)
}

/// Ascending numbers as ranges: `0-3, 7`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    runs.collect::<Vec<_>>().join(", ")
}

fn json_report(
    gguf: &Gguf,
    running: Option<&Running>,
    obstacles: &[String],
    device: Result<CudaDevice>,
    kv: Kv,
) -> Result<Value> {
    let kinds = types(gguf).into_iter().map(|Types { name, types }| {
        let types = types.into_iter().map(|(kind, layers)| (kind.to_owned(), Value::from(layers)));
        (name, Value::Object(types.collect()))
    });
    let totals = totals(gguf)
        .into_iter()
        .map(|(kind, Total { tensors, bytes })| (kind.to_owned(), json!({ "tensors": tensors, "bytes": bytes })));
    let device = match device {
        Ok(device) => {
            let (free, total) = device.memory()?;
            json!({ "name": device.describe()?, "free_bytes": free, "total_bytes": total })
        }
        Err(error) => json!({ "error": error.to_string() }),
    };
    let mut report = Map::new();
    let mut add = |values: Value| {
        if let Value::Object(values) = values {
            report.extend(values);
        }
    };
    add(json!({
        "file": gguf.path().display().to_string(),
        "parts": gguf.paths().len(),
        "file_bytes": gguf.file_len(),
        "gguf_version": gguf.version(),
        "architecture": architecture(gguf),
        "runs": obstacles.is_empty(),
        "obstacles": obstacles,
    }));
    if let Some(Running { source: Source { config, .. }, .. }) = running {
        add(json!({
            "layers": config.layers,
            "hidden": config.hidden,
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "experts": config.experts,
            "top_k": config.top_k,
            "expert_ff": config.expert_ff,
            "vocab": config.vocab,
            "context_length": config.context_length,
            "rms_eps": config.rms_eps,
            "rope_base": config.rope_base,
            "rope_scaling": scaling(config).trim_start_matches(", "),
        }));
    }
    add(json!({
        "tokenizer": tokenizer(gguf),
        "types": Value::Object(totals.collect()),
        "tensor_types": Value::Object(kinds.collect()),
    }));
    if let Some(Running { source, options, plan }) = running {
        add(json!({
            "bytes_per_token": source.bytes_per_token(),
            "memory": {
                "context": options.capacity,
                "kv": kv.name(),
                "weights": plan.weights,
                "cache": plan.cache,
                "activations": plan.activations,
                "workspace": plan.workspace,
                "total": plan.total(),
            },
        }));
    }
    add(json!({
        "crate": format!("kquant-moe {}", machine::VERSION),
        "cpu": machine::cpu(),
        "cuda_build": machine::cuda_build(),
        "cuda_device": device,
    }));
    Ok(Value::Object(report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_written_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn what_is_wrong_in_many_layers_is_said_once() {
        let messages = [
            "tensor blk.0.a.weight: no kernels",
            "other",
            "tensor blk.1.a.weight: no kernels",
            "tensor blk.1.b.weight: no kernels",
            "tensor blk.3.a.weight: no kernels",
            "tensor blk.x.a.weight: no kernels",
        ];
        let expected = [
            "tensor blk.(0-1, 3).a.weight: no kernels",
            "other",
            "tensor blk.1.b.weight: no kernels",
            "tensor blk.x.a.weight: no kernels",
        ];
        assert_eq!(joined(messages.map(str::to_owned).to_vec()), expected);
    }
}
