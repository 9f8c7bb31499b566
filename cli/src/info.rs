//! `info`: what is in a model file and what it takes to run it.

use std::fmt::Write as _;
use std::path::PathBuf;

use kquant_moe::Result;
use kquant_moe::device::{CudaDevice, Device as _};
use kquant_moe::gguf::GgmlType;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{Config, ContextOptions, MemoryPlan, Tensor};
use serde_json::{Value, json};

use super::Outcome;
use super::backend::{self, Kv};
use super::input::Source;
use super::machine;
use super::output::{Out, bytes};

/// Shows a model's shape, tensor types, memory plan, and what this build and machine can run it on. Reads no weights.
#[derive(clap::Args)]
pub struct Args {
    /// GGUF file; the built-in model when there is none
    model: Option<PathBuf>,
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

/// The type of a kind of tensor in consecutive layers.
struct Types {
    name: String,
    /// Type, and the layers that have it, such as `0-3, 7`.
    types: Vec<(&'static str, String)>,
}

/// Runs the command.
pub fn info(args: &Args, out: &mut Out) -> Result<Outcome> {
    let source = Source::open(args.model.as_deref())?;
    let config = &source.config;
    let default = ContextOptions::default();
    let capacity = args.context.unwrap_or(default.capacity.min(config.context_length));
    let options = default.capacity(capacity).cache(args.kv.cache_type());
    let device = backend::open_device();
    let plan = match &device {
        Ok(device) => MemoryPlan::on(&Gpu::new(device.clone()), config, &source.tensors, &options)?,
        Err(_) => MemoryPlan::new(config, &source.tensors, &options)?,
    };
    if args.json {
        out.json(&json_report(&source, &options, &plan, device, args.kv)?)?;
        return Ok(Outcome::Ok);
    }

    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name:<20} {value}").unwrap_or_default();
    line("file", format!("{} ({})", source.name(), bytes(source.gguf.file_len())));
    if let Some(name) = source.gguf.get::<&str>("general.name")? {
        line("name", name.escape_debug().to_string());
    }
    let Config { layers, hidden, heads, kv_heads, head_dim, experts, top_k, expert_ff, vocab, .. } = *config;
    line(
        "architecture",
        format!("{}, GGUF version {}", kquant_moe::model::config::ARCHITECTURE, source.gguf.version()),
    );
    line("layers", layers.to_string());
    line("hidden width", hidden.to_string());
    line("attention", format!("{heads} heads, {kv_heads} KV heads, of {head_dim}"));
    line("experts", format!("{experts} of width {expert_ff}, {top_k} for each token"));
    line("vocabulary", format!("{vocab} tokens, {}", tokenizer(&source)));
    line("positions", format!("{}, RoPE base {}", config.context_length, config.rope_base));
    for Types { name, types } in types(&source) {
        let types: Vec<String> = match types.as_slice() {
            [(kind, _)] => vec![(*kind).to_owned()],
            many => many.iter().map(|(kind, layers)| format!("{kind} (layers {layers})")).collect(),
        };
        line(&name, types.join(", "));
    }
    line("read for each token", format!("{} of weights", bytes(source.bytes_per_token())));
    line("memory", format!("{} for {capacity} positions, KV cache in {}", bytes(plan.total()), args.kv.name()));
    line("  weights", bytes(plan.weights));
    line("  KV cache", bytes(plan.cache));
    line("  activations", bytes(plan.activations));
    if plan.workspace > 0 {
        line("  workspace", bytes(plan.workspace));
    }
    line("CUDA build", machine::cuda_build());
    match device {
        Ok(device) => {
            let (free, _) = device.memory()?;
            let fits = if plan.total() <= free { "the plan fits" } else { "the plan does not fit" };
            line("CUDA device", format!("{}, {} free: {fits}", device.describe()?, bytes(free)));
        }
        Err(error) => line("CUDA device", error.to_string()),
    }
    line("CPU", machine::cpu());
    out.text(text)?;
    Ok(Outcome::Ok)
}

fn tokenizer(source: &Source) -> String {
    match super::tokenizer::Tokenizer::from_gguf(&source.gguf, source.config.vocab) {
        Ok(Some(_)) => "tokenizer gpt2/qwen2".into(),
        Ok(None) => "no tokenizer".into(),
        Err(error) => error.to_string(),
    }
}

fn type_name(tensor: &Tensor) -> &'static str {
    GgmlType::from(tensor.kind()).name()
}

/// Types of all tensors: outside of the layers, and of each kind of tensor in the layers.
fn types(source: &Source) -> Vec<Types> {
    let tensors = &source.tensors;
    let single = |tensor: &Tensor| Types {
        name: tensor.name().trim_end_matches(".weight").into(),
        types: vec![(type_name(tensor), String::new())],
    };
    let mut all = vec![single(&tensors.embedding)];
    let first = tensors.layers.iter().take(1).flat_map(|layer| layer.iter());
    for (place, tensor) in first.enumerate() {
        let name = tensor.name().trim_start_matches("blk.0.").trim_end_matches(".weight").to_owned();
        let mut types: Vec<(&str, Vec<usize>)> = Vec::new();
        for (number, layer) in tensors.layers.iter().enumerate() {
            let Some(kind) = layer.iter().nth(place).map(type_name) else { continue };
            match types.iter_mut().find(|entry| entry.0 == kind) {
                Some((_, layers)) => layers.push(number),
                None => types.push((kind, vec![number])),
            }
        }
        let types = types.into_iter().map(|(kind, layers)| (kind, ranges(&layers))).collect();
        all.push(Types { name, types });
    }
    all.extend([single(&tensors.output_norm), single(&tensors.output)]);
    all
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
    source: &Source,
    options: &ContextOptions,
    plan: &MemoryPlan,
    device: Result<CudaDevice>,
    kv: Kv,
) -> Result<Value> {
    let config = &source.config;
    let types = types(source).into_iter().map(|Types { name, types }| {
        let types = types.into_iter().map(|(kind, layers)| (kind.to_owned(), Value::from(layers)));
        (name, Value::Object(types.collect()))
    });
    let device = match device {
        Ok(device) => {
            let (free, total) = device.memory()?;
            json!({ "name": device.describe()?, "free_bytes": free, "total_bytes": total })
        }
        Err(error) => json!({ "error": error.to_string() }),
    };
    Ok(json!({
        "file": source.name(),
        "file_bytes": source.gguf.file_len(),
        "gguf_version": source.gguf.version(),
        "architecture": kquant_moe::model::config::ARCHITECTURE,
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
        "tokenizer": tokenizer(source),
        "tensor_types": Value::Object(types.collect()),
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
        "crate": format!("kquant-moe {}", machine::VERSION),
        "cpu": machine::cpu(),
        "cuda_build": machine::cuda_build(),
        "cuda_device": device,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_written_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
        assert_eq!(ranges(&[]), "");
    }
}
