//! The program as its users see it: output, files, exit codes and messages.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use kquant_moe::device::CUDA_BUILD;
use kquant_moe::gguf::{GgmlType, Gguf, Header, Value};
use kquant_moe::model::{Config, ContextOptions, MemoryPlan, Tensors};
use serde_json::Value as Json;
use tempfile::TempDir;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tiny-qwen3moe-q4_k_m.gguf");
const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/reference");

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kquant-moe"));
    command.args(args).stdin(Stdio::null());
    command
}

/// The program on a machine whose GPUs, if any, are hidden.
fn run(args: &[&str]) -> Output {
    command(args).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
}

/// What a successful run writes to standard output. It writes nothing to standard error.
#[track_caller]
fn succeeds(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The message of a run that fails: one line, and nothing on standard output.
#[track_caller]
fn fails(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    let message = stderr.strip_prefix("error: ").and_then(|rest| rest.strip_suffix('\n'));
    let message = message.unwrap_or_else(|| panic!("{args:?}: {stderr}"));
    assert!(!message.contains(|char: char| char.is_control()), "{args:?}: {stderr}");
    assert!(!message.contains("panicked"), "{args:?}: {stderr}");
    message.to_owned()
}

#[track_caller]
fn fails_with(args: &[&str], parts: &[&str]) {
    let message = fails(args);
    for part in parts {
        assert!(message.contains(part), "{args:?}: {part:?} is not in {message:?}");
    }
}

fn prompts() -> serde_json::Map<String, Json> {
    let text = fs::read_to_string(format!("{REFERENCE}/prompts.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn joined(ids: &Json, separator: &str) -> String {
    ids.as_array().unwrap().iter().map(Json::to_string).collect::<Vec<_>>().join(separator)
}

/// A tensor of a model that is about to be written.
struct Part {
    name: String,
    kind: GgmlType,
    dims: Vec<u64>,
    data: Vec<u8>,
}

/// The tiny model with some tensors changed, and with other metadata: `None` leaves a key out.
fn changed(dir: &TempDir, change: impl Fn(&mut Part) -> bool, metadata: &[(&str, Option<Value<'_>>)]) -> String {
    let tiny = Gguf::read(TINY).unwrap();
    let path = dir.path().join("changed.gguf");
    let mut header = Header::new(&path);
    for (key, value) in tiny.entries() {
        match metadata.iter().find(|(changed, _)| key.starts_with(changed)) {
            None => header.set_value(key, value).unwrap(),
            Some((_, Some(value))) => header.set_value(key, *value).unwrap(),
            Some((_, None)) => {}
        }
    }
    let mut parts = Vec::new();
    for tensor in tiny.tensors() {
        let (name, dims, data) = (tensor.name().into(), tensor.dims().to_vec(), tensor.data().to_vec());
        let mut part = Part { name, kind: tensor.ggml_type(), dims, data };
        if change(&mut part) {
            header.tensor(&part.name, part.kind, &part.dims).unwrap();
            parts.push(part);
        }
    }
    let mut writer = header.create().unwrap();
    for part in parts {
        writer.write(&part.name, &part.data).unwrap();
    }
    writer.finish().unwrap();
    path.to_str().unwrap().to_owned()
}

fn keep(_: &mut Part) -> bool {
    true
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

fn npy<T: npyz::Deserialize>(path: impl AsRef<Path>) -> (Vec<u64>, Vec<T>) {
    let file = npyz::NpyFile::new(fs::File::open(path).unwrap()).unwrap();
    (file.shape().to_vec(), file.into_vec().unwrap())
}

#[test]
fn alone_it_writes_rust_and_says_how_fast() {
    let text = succeeds(&[]);
    let expected = prompts()["main"]["greedy_text"].as_str().unwrap().to_owned();
    assert!(text.starts_with(&format!("fn main() {{\n{expected}")), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let [.., speed, parity] = lines.as_slice() else { panic!("{text}") };
    assert!(speed.starts_with("cpu (") && speed.contains("tokens/s"), "{speed}");
    assert!(parity.starts_with("parity: CPU only, no CUDA: "), "{parity}");
    let run = succeeds(&["run"]);
    assert_eq!(run.lines().count(), lines.len());
}

#[test]
fn greedy_text_is_the_reference() {
    for (name, prompt) in prompts() {
        let expected = format!("{}\n", prompt["greedy_text"].as_str().unwrap());
        let text = prompt["text"].as_str().unwrap();
        let ids = joined(&prompt["tokens"], ",");
        for start in [["--prompt", text], ["--tokens", ids.as_str()]] {
            let args = [&["run", TINY, "-n", "24", "-q"], start.as_slice()].concat();
            assert_eq!(succeeds(&args), expected, "{name}");
        }
        assert_eq!(succeeds(&["run", "--prompt", text, "-n", "24", "-q", "--backend", "cpu"]), expected, "{name}");
    }
}

#[test]
fn text_ends_with_the_end_token() {
    let dir = TempDir::new().unwrap();
    let main = &prompts()["main"];
    let end = main["greedy_24"][7].as_u64().unwrap() as u32;
    let model = changed(&dir, keep, &[("tokenizer.ggml.eos_token_id", Some(Value::U32(end)))]);
    let text = succeeds(&["run", &model, "--prompt", "fn main() {\n", "-q"]);
    assert_eq!(text, "    let mut c = Create\n");
}

/// Bytes that become no character, or not yet: at the end of a prompt, at the end of what is generated, and in between.
#[test]
fn text_may_end_in_half_a_character() {
    let dir = TempDir::new().unwrap();
    let tiny = Gguf::read(TINY).unwrap();
    let mut words: Vec<String> =
        tiny.strings("tokenizer.ggml.tokens").unwrap().into_iter().map(str::to_owned).collect();
    // In a byte-level vocabulary these two stand for the bytes of "é".
    let halves = ["Ã", "©"].map(|half| words.iter().position(|word| word == half).unwrap());
    let prompt = "766,306,598,284,280";
    let greedy = [258, 316, 493];
    assert_eq!(
        succeeds(&["run", TINY, "--tokens", &format!("1,{}", halves[0]), "-n", "0"]).lines().next(),
        Some("\"\u{fffd}")
    );
    assert_eq!(succeeds(&["run", TINY, "--tokens", &halves[0].to_string(), "-n", "0", "-q"]), "\n");

    // The model's first two tokens are the two halves, and the third is another first half.
    words.swap(halves[0], greedy[0]);
    words.swap(halves[1], greedy[1]);
    let third = words[greedy[2]].clone();
    let mut header = Header::new("words");
    header.set("words", &words).unwrap();
    let list = Gguf::from_vec("words", header.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
    let model = changed(&dir, keep, &[("tokenizer.ggml.tokens", list.metadata("words"))]);
    let run = |more: &[&str]| succeeds(&[&["run", &model, "--tokens", prompt], more].concat());
    assert_eq!(run(&["-n", "1", "-q"]), "\u{fffd}\n");
    assert_eq!(run(&["-n", "2", "-q"]), "é\n");
    assert_eq!(run(&["-n", "3", "-q"]), format!("é{}\n", third.replace('Ġ', " ").replace('Ċ', "\n")));
    // What the prompt begins, the first token ends.
    let begun = format!("{prompt},{}", greedy[0]);
    let text = succeeds(&["run", &model, "--tokens", &begun, "-n", "1"]);
    assert!(text.contains("é\n") && !text.contains('\u{fffd}'), "{text}");
    assert_eq!(succeeds(&["run", &model, "--tokens", &begun, "-n", "1", "-q"]), "\u{fffd}\n");
}

#[test]
fn without_a_tokenizer_there_are_ids() {
    let dir = TempDir::new().unwrap();
    let model = changed(&dir, keep, &[("tokenizer.", None)]);
    let main = &prompts()["main"];
    let ids = joined(&main["tokens"], ",");
    let expected = format!("{}\n", joined(&main["greedy_24"], " "));
    assert_eq!(succeeds(&["run", &model, "--tokens", &ids, "-n", "24", "--quiet"]), expected);
    let both = succeeds(&["run", &model, "--tokens", &ids, "-n", "24"]);
    assert!(both.starts_with(&format!("{} {expected}", joined(&main["tokens"], " "))), "{both}");
    fails_with(&["run", &model, "--prompt", "x"], &["changed.gguf", "no tokenizer", "--tokens"]);
    assert!(succeeds(&["run", &model, "-n", "2"]).starts_with("1 2 3 4 5 6 7 8 "));
}

#[test]
fn logits_and_routers_are_the_reference() {
    let dir = TempDir::new().unwrap();
    let (logits, routers) = (path(&dir, "l.npy"), path(&dir, "r.npy"));
    for (name, prompt) in prompts() {
        let ids = joined(&prompt["tokens"], ",");
        assert_eq!(succeeds(&["logits", TINY, "--tokens", &ids, "--out", &logits, "--routers", &routers]), "");
        let found = npy::<f32>(&logits);
        let expected = npy::<f32>(format!("{REFERENCE}/{name}.logits.npy"));
        assert_eq!(found.0, expected.0, "{name}");
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let mut difference = found.1.iter().zip(&expected.1).map(|(&a, &b)| f64::from(a) - f64::from(b));
        let relative = square(&mut difference) / square(&mut expected.1.iter().map(|&b| f64::from(b)));
        assert!(relative.sqrt() < 1e-6, "{name}: {}", relative.sqrt());
        assert_eq!(npy::<i32>(&routers), npy::<i32>(format!("{REFERENCE}/{name}.routers.npy")), "{name}");

        let plain = path(&dir, "plain.npy");
        succeeds(&["logits", TINY, "--tokens", &ids, "--out", &plain]);
        assert_eq!(fs::read(&plain).unwrap(), fs::read(&logits).unwrap(), "{name}");
    }
}

#[test]
fn verify_passes_and_says_what_it_skips() {
    for kv in ["f32", "f16"] {
        let text = succeeds(&["verify", "--kv", kv]);
        assert!(!text.contains("FAIL"), "{text}");
        assert_eq!(text.matches(" pass\n").count(), 4, "{text}");
        assert_eq!(text.matches(" skipped  ").count(), 6, "{text}");
    }
    let report: Json = serde_json::from_str(&succeeds(&["verify", TINY, "--tokens", "1,2,3", "--json"])).unwrap();
    assert_eq!(report["passed"], true);
    assert_eq!(report["clauses"].as_array().unwrap().len(), 10);

    let output = run(&["verify", "--require-cuda", "--prompt", "x"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("CUDA device present") && line.contains(" FAIL ")), "{text}");
    let output = run(&["verify", "--require-cuda", "--json", "--prompt", "x"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["passed"], &report["clauses"][0]["result"]), (&Json::from(false), &Json::from("fail")));
}

#[test]
fn verify_finds_a_model_whose_values_are_not_finite() {
    let dir = TempDir::new().unwrap();
    // The largest weight there is, in a norm: squares and products of it overflow.
    let model = changed(
        &dir,
        |part| {
            if part.name == "blk.2.ffn_norm.weight" {
                part.data = f32::MAX.to_le_bytes().repeat(256);
            }
            true
        },
        &[],
    );
    let output = run(&["verify", &model, "--tokens", "1,2,3"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.lines().find(|line| line.starts_with("finite everywhere")).unwrap();
    assert!(line.contains("FAIL") && line.contains("cpu: layer02."), "{line}");
    assert!(text.contains("two runs equal                             pass"), "{text}");
}

#[test]
fn info_shows_the_model_and_its_memory() {
    let text = succeeds(&["info", TINY]);
    for part in ["qwen3moe", "16 of width 256, 4 for each token", "Q4_K (layers 0-1), Q6_K (layers 2-3)", "KV cache"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let json = |args: &[&str]| -> Json { serde_json::from_str(&succeeds(args)).unwrap() };
    let report = json(&["info", TINY, "--json", "--context", "100"]);
    assert_eq!((&report["layers"], &report["top_k"]), (&Json::from(4), &Json::from(4)));
    assert_eq!(report["tensor_types"]["ffn_down_exps"]["Q6_K"], "2-3");
    // Keys and values of 4 layers, 100 positions, 2 heads of 128.
    assert_eq!(report["memory"]["cache"], 2 * 4 * 100 * 256 * 4);
    let half = json(&["info", "--json", "--context", "100", "--kv", "f16"]);
    assert_eq!(half["memory"]["cache"], 2 * 4 * 100 * 256 * 2);
    assert_eq!(half["memory"]["weights"], report["memory"]["weights"]);
    // The rest is the library's plan, for the positions that are asked for, or 4,096.
    let gguf = std::sync::Arc::new(Gguf::read(TINY).unwrap());
    let config = Config::from_gguf(&gguf).unwrap();
    let tensors = Tensors::find(&gguf, &config).unwrap();
    let all = json(&["info", TINY, "--json"]);
    for (report, capacity) in [(&report, 100), (&all, 4096)] {
        let options = ContextOptions { capacity, ..ContextOptions::default() };
        let plan = MemoryPlan::new(&config, &tensors, &options).unwrap();
        let expected = [plan.weights, plan.cache, plan.activations, 0, plan.total(), capacity as u64];
        let names = ["weights", "cache", "activations", "workspace", "total", "context"];
        assert_eq!(names.map(|name| report["memory"][name].as_u64().unwrap()), expected);
    }
    for (name, value) in [
        ("layers", config.layers),
        ("hidden", config.hidden),
        ("heads", config.heads),
        ("kv_heads", config.kv_heads),
        ("head_dim", config.head_dim),
        ("experts", config.experts),
        ("top_k", config.top_k),
        ("expert_ff", config.expert_ff),
        ("vocab", config.vocab),
        ("context_length", config.context_length),
    ] {
        assert_eq!(report[name], value, "{name}");
    }
    // A quarter of the experts and one row of the embedding table are read, and all of the rest.
    let gguf = Gguf::read(TINY).unwrap();
    let bytes = gguf.tensors().map(|tensor| {
        let len = tensor.data().len();
        match tensor.name() {
            "token_embd.weight" => len / 2048,
            name if name.contains("_exps") => len / 4,
            _ => len,
        }
    });
    assert_eq!(report["bytes_per_token"], bytes.sum::<usize>());
}

#[test]
fn synthetic_models_run_and_depend_on_the_seed() {
    let dir = TempDir::new().unwrap();
    let model = |name: &str, seed: &str| {
        let file = path(&dir, name);
        let text = succeeds(&["synth", "--out", &file, "--preset", "tiny", "--layers", "2", "--seed", seed]);
        assert!(text.contains(name), "{text}");
        file
    };
    let (a, b, c) = (model("a.gguf", "1"), model("b.gguf", "1"), model("c.gguf", "2"));
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    assert_ne!(fs::read(&a).unwrap(), fs::read(&c).unwrap());
    assert!(succeeds(&["info", &a]).contains("layers               2\n"));
    assert!(succeeds(&["verify", &a, "--tokens", "5,6,7"]).contains("finite everywhere                          pass"));
    let mixed = path(&dir, "mixed.gguf");
    let types = "q6_k_l,experts=iq4_xs,down=q5_0";
    succeeds(&["synth", "--out", &mixed, "--preset", "tiny", "--layers", "2", "--types", types]);
    let info = succeeds(&["info", &mixed]);
    for kind in ["Q8_0", "Q6_K", "IQ4_XS", "Q5_0"] {
        assert!(info.contains(kind), "{info}");
    }
    assert!(
        succeeds(&["verify", &mixed, "--tokens", "5,6,7"]).contains("finite everywhere                          pass")
    );
    let nowhere = path(&dir, "none/a.gguf");
    fails_with(&["synth", "--out", &nowhere, "--preset", "tiny"], &["none/a.gguf"]);
    fails_with(&["synth", "--out", &a, "--preset", "tiny", "--layers", "0"], &["layers"]);
}

#[test]
fn bench_reports_rates_and_the_machine() {
    let small = ["bench", "--tokens", "3", "--runs", "3", "--depth", "5", "--prefill", "7"];
    let text = succeeds(&small);
    assert!(text.contains("3 tokens at depth 5") && text.contains("GB/s") && text.contains("7 tokens\n"), "{text}");
    // What only a GPU has is left out.
    let starts: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(starts, ["decode", "weights", "prefill"], "{text}");
    let report: Json = serde_json::from_str(&succeeds(&[&small[..], &["--json"]].concat())).unwrap();
    assert_eq!(report["backend"], "cpu");
    for key in ["memory", "step"] {
        assert!(report.as_object().unwrap().contains_key(key) && report[key].is_null(), "{key}: {report}");
    }
    assert!(report["decode"]["device_runs"].is_null() && report["decode"]["copy_bytes_per_second"].is_null());
    // The rate is the middle one of the runs.
    for part in ["decode", "prefill"] {
        let mut runs: Vec<f64> =
            report[part]["runs"].as_array().unwrap().iter().map(|run| run.as_f64().unwrap()).collect();
        runs.sort_by(f64::total_cmp);
        assert!(runs.len() == 3 && runs[0] > 0.0, "{part}: {runs:?}");
        assert_eq!(report[part]["tokens_per_second"].as_f64().unwrap(), runs[1], "{part}");
    }
    assert_eq!((&report["decode"]["depth"], &report["decode"]["tokens"]), (&Json::from(5), &Json::from(3)));
    assert_eq!(report["prefill"]["tokens"], 7);
    let info: Json = serde_json::from_str(&succeeds(&["info", "--json"])).unwrap();
    let bytes = &report["decode"]["weight_bytes_per_token"];
    assert_eq!(bytes, &info["bytes_per_token"]);
    let rate = report["decode"]["weight_bytes_per_second"].as_f64().unwrap();
    let expected = report["decode"]["tokens_per_second"].as_f64().unwrap() * bytes.as_f64().unwrap();
    assert!((rate / expected - 1.0).abs() < 1e-9, "{rate}, {expected}");
    assert!(report["machine"]["crate"].as_str().unwrap().contains(env!("CARGO_PKG_VERSION")));
    let report = succeeds(&["bench", "--tokens", "1", "--runs", "1", "--prefill", "0", "--json"]);
    assert!(serde_json::from_str::<Json>(&report).unwrap()["prefill"].is_null());
    fails_with(&["bench", "--runs", "0"], &["--runs"]);
    fails_with(&["bench", "--depth", "99999"], &["context overflow", "4096"]);
    fails_with(&["bench", "--depth", &usize::MAX.to_string()], &["context overflow"]);
}

/// A trace of the tiny model in a new directory.
fn trace(dir: &TempDir, name: &str, more: &[&str]) -> PathBuf {
    let out = path(dir, name);
    succeeds(&[&["trace", TINY, "--tokens", "766,306,598", "--backend", "cpu", "--out", &out], more].concat());
    out.into()
}

/// Exit code and output of `diff`.
fn diff(a: &Path, b: &Path, more: &[&str]) -> (i32, String) {
    let output = run(&[&["diff", a.to_str().unwrap(), b.to_str().unwrap()], more].concat());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// Overwrites the values of a file, from one index on.
fn poke(file: &Path, index: usize, values: &[f32]) {
    let mut bytes = fs::read(file).unwrap();
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    for (value, place) in values.iter().zip(bytes[data + 4 * index..].chunks_mut(4)) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_trace_has_every_stage_and_a_manifest() {
    let dir = TempDir::new().unwrap();
    let all = trace(&dir, "all", &[]);
    assert_eq!(fs::read_dir(&all).unwrap().count(), 3 + 4 * 22 + 1);
    let manifest: Json = serde_json::from_str(&fs::read_to_string(all.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["tokens"], serde_json::json!([766, 306, 598]));
    assert_eq!(manifest["model_sha256"].as_str().unwrap().len(), 64);
    assert_eq!(manifest["model_bytes"], fs::metadata(TINY).unwrap().len());
    for (key, value) in [("positions", "all"), ("backend", "cpu"), ("kv", "f32"), ("model", TINY)] {
        assert_eq!(manifest[key], value, "{key}");
    }
    let stages = manifest["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 3 + 4 * 22);
    assert_eq!((&stages[0]["file"], &stages[90]["file"]), (&Json::from("embedding.npy"), &Json::from("logits.npy")));
    for stage in stages {
        let file = all.join(stage["file"].as_str().unwrap());
        let shape = match stage["dtype"].as_str().unwrap() {
            "<u4" => npy::<u32>(file).0,
            _ => npy::<f32>(file).0,
        };
        assert_eq!(stage["shape"], serde_json::json!(shape));
    }
    assert_eq!(npy::<f32>(all.join("layer03.attn_scores.npy")).0, [3, 4, 3]);

    // The last token's values are the last rows of all.
    let last = trace(&dir, "last", &["--positions", "last", "--stages", "q,logits,attn_scores", "--layers", "0,3"]);
    let manifest: Json = serde_json::from_slice(&fs::read(last.join("manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["positions"], manifest["stages"].as_array().unwrap().len()), (&Json::from("last"), 5));
    let mut names: Vec<_> = fs::read_dir(&last).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let scores = ["layer00.attn_scores.npy", "layer00.q.npy", "layer03.attn_scores.npy", "layer03.q.npy"];
    assert_eq!(names, [&scores[..], &["logits.npy", "manifest.json"]].concat());
    for name in [&scores[..], &["logits.npy"]].concat() {
        let (all, last) = (npy::<f32>(all.join(name)), npy::<f32>(last.join(name)));
        assert_eq!((last.0[0], &last.0[1..]), (1, &all.0[1..]), "{name}");
        assert!(all.1.ends_with(&last.1), "{name}");
    }

    // Logits of `logits` and of a trace are the same, and a second trace does not mix with the first.
    let logits = path(&dir, "l.npy");
    succeeds(&["logits", TINY, "--tokens", "766,306,598", "--out", &logits]);
    assert_eq!(npy::<f32>(&logits), npy::<f32>(all.join("logits.npy")));
    let all = all.to_str().unwrap();
    fails_with(&["trace", TINY, "--tokens", "1", "--out", all], &[all, "not empty"]);
    let new = path(&dir, "new");
    fails_with(&["trace", TINY, "--tokens", "1", "--layers", "4", "--out", &new], &["no layer 4"]);
}

/// The last line of a trace, and what its manifest says about time and memory.
fn cost_of_a_trace(dir: &TempDir, name: &str, model: &str, tokens: &str, more: &[&str]) -> (String, Json) {
    let out = path(dir, name);
    let text = succeeds(&[&["trace", model, "--tokens", tokens, "--backend", "cpu", "--out", &out], more].concat());
    let manifest: Json = serde_json::from_slice(&fs::read(Path::new(&out).join("manifest.json")).unwrap()).unwrap();
    (text.lines().last().unwrap().to_owned(), manifest)
}

#[test]
fn a_trace_says_what_it_costs() {
    let dir = TempDir::new().unwrap();
    let began = Instant::now();
    let (line, manifest) = cost_of_a_trace(&dir, "few", TINY, "766,306,598", &[]);
    let seconds = |name: &str| manifest["seconds"][name].as_f64().unwrap();
    let (load, trace, total) = (seconds("load"), seconds("trace"), seconds("total"));
    assert!(0.0 < load && 0.0 < trace && load + trace <= total, "{manifest}");
    assert!(total <= began.elapsed().as_secs_f64(), "{manifest}");
    assert!(
        line.contains(&format!(": 91 stages in {total:.2} s ({load:.2} s to load the model, {trace:.2} s")),
        "{line}"
    );
    if !cfg!(target_os = "linux") {
        assert!(manifest["memory_beyond_model"].is_null());
        return;
    }
    assert!(line.ends_with(" of memory beyond the model"), "{line}");
    let few = manifest["memory_beyond_model"].as_u64().unwrap();
    assert!(few < 64 << 20, "{few} bytes");

    // Keys and values of 4 layers, 512 positions, 2 heads of 128: 4 MiB. The scores of a batch of 64: half a MiB.
    let tokens = vec!["7"; 512].join(",");
    let (_, manifest) = cost_of_a_trace(&dir, "many", TINY, &tokens, &["--stages", "attn_scores", "--layers", "3"]);
    assert_eq!(manifest["stages"][0]["shape"], serde_json::json!([512, 4, 512]));
    let many = manifest["memory_beyond_model"].as_u64().unwrap();
    assert!(many > few && (9 << 19..64 << 20).contains(&many), "{many} bytes");
}

#[test]
fn diff_names_the_stage_where_traces_part() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (trace(&dir, "a", &[]), trace(&dir, "b", &[]));
    let (code, text) = diff(&a, &b, &[]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text.lines().filter(|line| line.contains(" Equal ")).count(), 91, "{text}");
    assert!(text.ends_with("91 stages compared, all agree\n"), "{text}");

    // One value of one stage is a little off, another stage is far off, a third has a NaN, a fourth is gone.
    let (_, v) = npy::<f32>(b.join("layer01.v.npy"));
    poke(&b.join("layer01.v.npy"), 5, &[v[5].next_up()]);
    poke(&b.join("layer02.attn_norm.npy"), 0, &[1e6]);
    poke(&b.join("layer02.q.npy"), 7, &[f32::NAN]);
    fs::remove_file(b.join("layer01.k.npy")).unwrap();
    let (code, text) = diff(&a, &b, &[]);
    assert_eq!(code, 1, "{text}");
    let verdict = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().nth(1);
    assert_eq!(verdict("layer01.v "), Some("Match"));
    assert_eq!(verdict("layer01.k "), Some("Missing"));
    assert_eq!(verdict("layer02.attn_norm"), Some("Diverge"));
    assert_eq!(verdict("layer02.q "), Some("NanB"));
    let last = text.lines().last().unwrap();
    assert!(last.contains("the first that diverges is layer02.attn_norm (Diverge)"), "{last}");
    assert!(last.contains("agrees is layer01.ffn_residual (Equal)"), "{last}");
    assert!(last.ends_with("; the first whose bits differ is layer01.v (Match)"), "{last}");
    let (code, json) = diff(&a, &b, &["--json"]);
    let report: Json = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &report["first_divergence"]), (1, &Json::from("layer02.attn_norm")));
    assert_eq!(report["first_difference"], "layer01.v");
    let row = report["stages"].as_array().unwrap().iter().find(|row| row["name"] == "layer01.v").unwrap();
    assert_eq!((&row["max_ulps"], &row["first_bad"]), (&Json::from(1), &Json::from(5)));

    // The first trace is the one with the NaN when they are given the other way round.
    assert!(diff(&b, &a, &[]).1.contains("NanA"));
    // What the manifests say of the traces is compared: of the same model, which tokens and which of them.
    let note = |other: &Path| {
        let output = run(&["diff", a.to_str().unwrap(), other.to_str().unwrap()]);
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(note(&b), "");
    assert_eq!(note(&trace(&dir, "positions", &["--positions", "last"])), "note: the manifests differ in positions\n");
    let tokens = path(&dir, "tokens");
    succeeds(&["trace", TINY, "--tokens", "766,306,599", "--backend", "cpu", "--out", &tokens]);
    assert_eq!(note(Path::new(&tokens)), "note: the manifests differ in tokens\n");
    // A stricter bound.
    fs::remove_file(b.join("layer02.attn_norm.npy")).unwrap();
    fs::remove_file(b.join("layer02.q.npy")).unwrap();
    let (code, text) = diff(&a, &b, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.ends_with(
            "88 stages compared, all agree (3 in one trace only); the first whose bits differ is layer01.v (Match)\n"
        ),
        "{text}"
    );
    // Bounds that a stage passes, and that it does not.
    assert_eq!(diff(&a, &b, &["--min-cosine", "0.999"]).0, 0);
    assert_eq!(diff(&a, &b, &["--min-cosine", "1.001"]).0, 1);
    assert_eq!(diff(&a, &b, &["--min-cosine", "1.001", "--json"]).0, 1);
    let (_, q) = npy::<f32>(b.join("layer03.q.npy"));
    poke(&b.join("layer03.q.npy"), 0, &q.iter().map(|x| x * 0.5).collect::<Vec<_>>());
    assert_eq!(["0.49", "0.51", "0.99"].map(|bound| diff(&a, &b, &["--min-cosine", bound]).0), [0, 1, 1]);
    poke(&b.join("layer03.q.npy"), 0, &q);
    let (code, text) = diff(&a, &b, &["--exact"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("the first that diverges is layer01.v (Diverge)"), "{text}");
}

/// From a file with one wrong block, or with a wrong type, to its name.
#[test]
fn trace_and_diff_lead_to_the_tensor_that_is_wrong() {
    let dir = TempDir::new().unwrap();
    let good = trace(&dir, "good", &[]);
    // Q4_K in layer 1 and Q6_K in layer 3; the factor of the first block of row 9, of the expert that the first token
    // prefers.
    for (layer, part, stage, before, bytes, factor) in [
        (1, "ffn_gate_exps", "moe_expert_gate", "moe_router_indices", 144, 0),
        (3, "ffn_down_exps", "moe_expert_out", "moe_expert_swiglu", 210, 208),
        (0, "attn_output", "attn_proj", "attn_out", 144, 0),
    ] {
        let expert = match part {
            "attn_output" => 0,
            _ => npy::<u32>(good.join(format!("layer{layer:02}.moe_router_indices.npy"))).1[0] as usize,
        };
        let name = format!("blk.{layer}.{part}.weight");
        for (lowest_bit, more) in [(false, &[][..]), (true, &["--exact"][..])] {
            let spoil = |part: &mut Part| {
                if part.name == name {
                    let row = expert * part.dims[1] as usize + 9;
                    let at = row * (part.dims[0] as usize / 256) * bytes + factor;
                    // The lowest bit of a factor, or its exponent: 2^4 times as much.
                    if lowest_bit { part.data[at] ^= 1 } else { part.data[at + 1] += 4 << 2 }
                }
                true
            };
            let out = path(&dir, &format!("{part}-{lowest_bit}"));
            let model = changed(&dir, spoil, &[]);
            succeeds(&["trace", &model, "--tokens", "766,306,598", "--backend", "cpu", "--out", &out]);
            let output = run(&[&["diff", good.to_str().unwrap(), &out], more].concat());
            assert_eq!(output.status.code(), Some(1), "{name}");
            assert_eq!(String::from_utf8(output.stderr).unwrap(), "note: the manifests differ in model_sha256\n");
            let text = String::from_utf8(output.stdout).unwrap();
            let expected = format!(
                "the first that diverges is layer{layer:02}.{stage} (Diverge); \
                 the last stage before it that agrees is layer{layer:02}.{before} (Equal)\n"
            );
            assert!(text.ends_with(&expected), "{text}");
        }
    }
    let name = "blk.2.ffn_up_exps.weight";
    let mislabel = |part: &mut Part| {
        if part.name == name {
            part.kind = GgmlType::from_number(14).unwrap();
            part.data.resize(part.data.len() / 144 * 210, 0);
        }
        true
    };
    let out = path(&dir, "mislabelled");
    fails_with(&["trace", &changed(&dir, mislabel, &[]), "--tokens", "1", "--out", &out], &[name, "not finite"]);
}

#[test]
fn diff_reads_what_other_programs_write() {
    let dir = TempDir::new().unwrap();
    let a = trace(&dir, "a", &["--stages", "embedding,moe_router_indices", "--layers", "0"]);
    let b = dir.path().join("b");
    fs::create_dir(&b).unwrap();
    let write = |name: &str, descr: &str, shape: &str, data: &[u8]| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let len = (header.len() as u16).to_le_bytes();
        fs::write(b.join(name), [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), data].concat()).unwrap();
    };
    let (_, embedding) = npy::<f32>(a.join("embedding.npy"));
    let doubles: Vec<u8> = embedding.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
    let halves: Vec<u8> = embedding.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    let (_, indices) = npy::<u32>(a.join("layer00.moe_router_indices.npy"));
    let signed: Vec<u8> = indices.iter().flat_map(|&value| (value as i32).to_le_bytes()).collect();
    write("layer00.moe_router_indices.npy", "<i4", "(12,)", &signed);
    write("embedding.npy", "<f8", "(3, 256)", &doubles);
    write("notes.npy", "<f4", "(1,)", &[0; 4]);
    let (code, text) = diff(&a, &b, &[]);
    assert_eq!((code, text.matches(" Equal ").count()), (0, 2), "{text}");
    write("embedding.npy", "<f2", "(768,)", &halves);
    let (code, text) = diff(&a, &b, &[]);
    assert_eq!((code, text.matches(" Match ").count()), (0, 1), "{text}");
    write("embedding.npy", "<f4", "(0,)", &[]);
    assert_eq!(diff(&a, &b, &[]).0, 1);

    let [a, b] = [a, b.clone()].map(|dir| dir.to_str().unwrap().to_owned());
    write("embedding.npy", "<i8", "(1,)", &[0; 8]);
    fails_with(&["diff", &a, &b], &["embedding.npy", "<i8"]);
    write("embedding.npy", "<f4", "(99,)", &[0; 8]);
    fails_with(&["diff", &a, &b], &["embedding.npy", "[99]"]);
    let empty = path(&dir, "empty");
    fails_with(&["diff", &a, &empty], &["empty", "No such file"]);
    fs::create_dir(&empty).unwrap();
    fails_with(&["diff", &a, &empty], &["no stage in common"]);
}

#[test]
fn bad_model_files_are_named() {
    let dir = TempDir::new().unwrap();
    let missing = path(&dir, "missing.gguf");
    let directory = dir.path().to_str().unwrap();
    let text = path(&dir, "text.gguf");
    fs::write(&text, "This is not a model, but long enough to be one.").unwrap();
    let truncated = path(&dir, "truncated.gguf");
    let bytes = fs::read(TINY).unwrap();
    fs::write(&truncated, &bytes[..bytes.len() / 2]).unwrap();
    let empty = path(&dir, "empty.gguf");
    fs::write(&empty, "").unwrap();
    for command in ["info", "run", "verify", "bench"] {
        fails_with(&[command, &missing], &["missing.gguf", "No such file"]);
        fails_with(&[command, directory], &[directory, "not a regular file"]);
        fails_with(&[command, &text], &["text.gguf", "not a GGUF file"]);
        fails_with(&[command, &truncated], &["truncated.gguf", "tensor data"]);
        fails_with(&[command, &empty], &["empty.gguf"]);
    }
    let odd = path(&dir, "line\nbreak\u{1b}[31m.gguf");
    fails_with(&["run", &odd], &["line\\nbreak\\u{1b}[31m.gguf"]);
}

#[test]
fn models_that_are_not_ours_are_named() {
    let dir = TempDir::new().unwrap();
    let architecture = changed(&dir, keep, &[("general.architecture", Some(Value::String("llama")))]);
    fails_with(&["run", &architecture], &["\"llama\"", "qwen3moe"]);
    let key = changed(&dir, keep, &[("qwen3moe.expert_used_count", None)]);
    fails_with(&["run", &key], &["qwen3moe.expert_used_count", "missing"]);
    let many = changed(&dir, keep, &[("qwen3moe.expert_used_count", Some(Value::U32(17)))]);
    fails_with(&["run", &many], &["experts used", "16", "17"]);

    let gone = changed(&dir, |part| part.name != "blk.3.attn_k.weight", &[]);
    fails_with(&["run", &gone], &["blk.3.attn_k.weight", "missing"]);
    let extra = |part: &mut Part| {
        if part.name == "blk.1.attn_q.weight" {
            part.name = "blk.1.attn_q.bias".into();
        }
        true
    };
    fails_with(&["run", &changed(&dir, extra, &[])], &["blk.1.attn_q"]);
    let shape = |part: &mut Part| {
        if part.name == "blk.1.attn_q.weight" {
            part.dims = vec![512, 256];
        }
        true
    };
    fails_with(&["run", &changed(&dir, shape, &[])], &["blk.1.attn_q.weight", "[256, 512]", "[512, 256]"]);
    let kind = |part: &mut Part| {
        if part.name == "blk.2.ffn_up_exps.weight" {
            part.kind = GgmlType::from_number(15).unwrap();
            part.data = vec![0; part.data.len() / 144 * 292];
        }
        true
    };
    fails_with(&["run", &changed(&dir, kind, &[])], &["blk.2.ffn_up_exps.weight", "Q8_K", "Q4_K", "Q5_K", "Q6_K"]);
    let nan = |part: &mut Part| {
        if part.name == "blk.2.ffn_up_exps.weight" {
            part.data[144..146].copy_from_slice(&half::f16::NAN.to_le_bytes());
        }
        true
    };
    fails_with(&["logits", &changed(&dir, nan, &[]), "--tokens", "1", "--out", "x"], &["blk.2.ffn_up_exps", "block 1"]);
}

#[test]
fn tokenizers_that_are_not_ours_are_named() {
    let dir = TempDir::new().unwrap();
    let pre = changed(&dir, keep, &[("tokenizer.ggml.pre", Some(Value::String("llama-bpe")))]);
    fails_with(&["run", &pre], &["llama-bpe", "qwen2"]);
    // Ids need no tokenizer.
    assert_eq!(succeeds(&["run", &pre, "--tokens", "766,306,598,284,280", "-n", "3", "-q"]), "258 316 493\n");
    assert!(succeeds(&["info", &pre]).contains("llama-bpe"));
    let long = format!("{}\n", "qwen2".repeat(1 << 20));
    let message = fails(&["run", &changed(&dir, keep, &[("tokenizer.ggml.pre", Some(Value::String(&long)))])]);
    assert!(message.len() < 300, "{} bytes", message.len());
    let mut words = Header::new("words");
    words.set("words", &vec!["word"; 2049]).unwrap();
    let words = Gguf::from_vec("words", words.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
    let many = changed(&dir, keep, &[("tokenizer.ggml.tokens", words.metadata("words"))]);
    fails_with(&["run", &many], &["2049 tokens", "2048"]);
    let merges = changed(&dir, keep, &[("tokenizer.ggml.merges", None)]);
    fails_with(&["run", &merges], &["tokenizer.ggml.merges"]);
}

#[test]
fn bad_prompts_are_named() {
    fails_with(&["run", "--prompt", ""], &["empty"]);
    fails_with(&["run", "--tokens", ""], &["empty"]);
    fails_with(&["run", "--tokens", "1,2048"], &["2048", "position 1"]);
    fails_with(&["verify", "--tokens", "4294967295"], &["4294967295"]);
    fails_with(&["run", "--context", "8", "-n", "9"], &["context overflow", "13", "8"]);
    // The last token needs no position.
    assert!(succeeds(&["run", "--context", "13", "-n", "9"]).contains("over 9 tokens"));
    fails_with(&["run", "-n", "5000"], &["context overflow", "4096"]);
    fails_with(&["run", "-n", &usize::MAX.to_string()], &["context overflow"]);
    fails_with(&["run", "--context", "5000"], &["4096", "5000"]);
    fails_with(&["run", "--context", "0"], &["found 0"]);
    fails_with(&["info", "--context", "5000"], &["4096", "5000"]);
    let dir = TempDir::new().unwrap();
    let out = path(&dir, "none/l.npy");
    fails_with(&["logits", TINY, "--tokens", "9999", "--out", &out], &["9999"]);
    fails_with(&["logits", TINY, "--tokens", "", "--out", &out], &["empty"]);
    fails_with(&["logits", TINY, "--tokens", "1", "--out", &out], &["none/l.npy"]);
    fails_with(&["trace", TINY, "--tokens", "9999", "--out", &out], &["9999"]);
}

#[test]
fn cuda_that_is_not_there_is_an_error() {
    let dir = TempDir::new().unwrap();
    let out = path(&dir, "out");
    for args in [
        vec!["run", "--backend", "cuda"],
        vec!["bench", "--backend", "cuda"],
        vec!["logits", TINY, "--tokens", "1", "--backend", "cuda", "--out", &out],
        vec!["trace", TINY, "--tokens", "1", "--backend", "cuda", "--out", &out],
    ] {
        fails_with(&args, &["no CUDA: "]);
    }
    assert!(!dir.path().join("out").exists());
}

#[test]
fn wrong_usage_is_another_exit_code() {
    for args in [
        vec!["fly"],
        vec!["run", "--backend", "tpu"],
        vec!["run", "--tokens", "1,x"],
        vec!["run", "--tokens", "-1"],
        vec!["run", "--tokens", "1", "--prompt", "x"],
        vec!["run", "-n", "-1"],
        vec!["logits", TINY],
        vec!["trace", TINY, "--tokens", "1", "--out", "x", "--stages", "q,nonsense"],
        vec!["synth", "--out", "x", "--preset", "huge"],
        vec!["synth", "--out", "x", "--preset", "tiny", "--types", "q9_k"],
        vec!["synth", "--out", "x", "--preset", "tiny", "--types", "router=q8_0"],
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: "), "{args:?}");
    }
    let stages = run(&["trace", TINY, "--tokens", "1", "--out", "x", "--stages", "nonsense"]);
    assert!(String::from_utf8(stages.stderr).unwrap().contains("moe_router_indices"));
}

#[test]
fn help_is_there_for_every_command() {
    let help = succeeds(&["--help"]);
    for command in ["run", "logits", "verify", "info", "synth", "bench", "trace", "diff"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
        assert!(succeeds(&[command, "--help"]).contains("Usage: kquant-moe"));
    }
    assert!(help.contains("Examples:"));
}

/// Whoever has no GPU results is told by the program what it was built with, and if that is no kernels, why.
#[test]
fn the_build_is_said() {
    let build = CUDA_BUILD.map_or_else(|reason| format!("none: {reason}"), |build| build.to_string());
    let version = format!("kquant-moe {} (CUDA kernels: {build})\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(succeeds(&["--version"]), version);
    let info = succeeds(&["info"]);
    assert!(info.contains(&format!("CUDA build           {build}\n")), "{info}");
    if let Err(reason) = CUDA_BUILD {
        let text = succeeds(&["run", "-n", "1"]);
        let parity = format!("parity: CPU only, no CUDA: this build has no CUDA kernels: {reason}\n");
        assert!(text.ends_with(&parity), "{text}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    for (args, code) in [
        (vec!["run", "-n", "2000"], 0),
        (vec!["info"], 0),
        (vec!["verify", "--tokens", "1,2"], 0),
        (vec!["verify", "--tokens", "1,2", "--require-cuda"], 1),
    ] {
        let mut child = command(&args)
            .env("CUDA_VISIBLE_DEVICES", "")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 1];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(code), ""), "{args:?}");
    }
}
