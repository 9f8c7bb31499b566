//! Model files: what is in them, and what is wrong with them.

mod common;

use std::fs;

use common::*;
use kquant_moe::gguf::{GgmlType, Gguf, Header, Value};
use kquant_moe::model::{Config, ContextOptions, MemoryPlan, Tensors};
use serde_json::Value as Json;
use tempfile::TempDir;

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
    // Keys and values of 4 layers, two pages of 64 positions for 100, 2 heads of 128.
    assert_eq!(report["memory"]["cache"], 2 * 4 * 2 * 64 * 256 * 4);
    let half = json(&["info", "--json", "--context", "100", "--kv", "f16"]);
    assert_eq!(half["memory"]["cache"], 2 * 4 * 2 * 64 * 256 * 2);
    assert_eq!(half["memory"]["weights"], report["memory"]["weights"]);
    // The rest is the library's plan, for the positions that are asked for, or 4,096.
    let gguf = std::sync::Arc::new(Gguf::read(TINY).unwrap());
    let config = Config::from_gguf(&gguf).unwrap();
    let tensors = Tensors::find(&gguf, &config).unwrap();
    let all = json(&["info", TINY, "--json"]);
    for (report, capacity) in [(&report, 100), (&all, 4096)] {
        let options = ContextOptions::default().capacity(capacity);
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
    fails_with(&["synth", "--out", &a, "--preset", "tiny"], &["a.gguf", "--force"]);
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
    // Widths that are no multiple of 256, of which the trace has what the file has.
    let narrow = path(&dir, "narrow.gguf");
    let shape = ["--hidden", "288", "--expert-ff", "96", "--heads", "2,1,64", "--layers", "1"];
    let synth = ["synth", "--out", &narrow, "--preset", "tiny"];
    succeeds(&[&synth[..], &shape, &["--types", "q8_0"]].concat());
    let info = succeeds(&["info", &narrow]);
    assert!(info.contains("hidden width         288\n") && info.contains("16 of width 96, 4 for each token"), "{info}");
    assert!(
        succeeds(&["verify", &narrow, "--tokens", "5,6,7"]).contains("finite everywhere                          pass")
    );
    let traced = path(&dir, "narrow");
    succeeds(&["trace", &narrow, "--tokens", "5,6", "--backend", "cpu", "--out", &traced]);
    let header = fs::read(format!("{traced}/layer00.moe_expert_swiglu.npy")).unwrap();
    assert!(String::from_utf8_lossy(&header[..128]).contains("(2, 4, 96"), "{:?}", &header[..128]);
    fails_with(&[&synth[..], &shape, &["--force"]].concat(), &["output.weight", "Q6_K"]);
    fails_with(&[&synth[..], &["--hidden", "100", "--force"]].concat(), &["hidden width", "multiple of 32"]);
    let nowhere = path(&dir, "none/a.gguf");
    fails_with(&["synth", "--out", &nowhere, "--preset", "tiny"], &["none/a.gguf"]);
    fails_with(&["synth", "--out", &a, "--preset", "tiny", "--layers", "0", "--force"], &["layers"]);
    succeeds(&["synth", "--out", &a, "--preset", "tiny", "--layers", "1", "--force"]);
    assert!(succeeds(&["info", &a]).contains("layers               1\n"));
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

/// The tiny model in parts: the metadata, and then so many tensors in each.
fn split(dir: &TempDir, counts: &[usize]) -> Vec<String> {
    let tiny = Gguf::read(TINY).unwrap();
    let tensors: Vec<_> = tiny.tensors().collect();
    assert_eq!(counts.iter().sum::<usize>(), tensors.len());
    let mut rest = &tensors[..];
    let names: Vec<String> =
        (1..=counts.len()).map(|number| format!("tiny-{number:05}-of-{:05}.gguf", counts.len())).collect();
    for (number, (count, name)) in counts.iter().zip(&names).enumerate() {
        let mut header = Header::new(dir.path().join(name));
        if number == 0 {
            for (key, value) in tiny.entries() {
                header.set_value(key, value).unwrap();
            }
        }
        header.set("split.no", &(number as u16)).unwrap();
        header.set("split.count", &(counts.len() as u16)).unwrap();
        header.set("split.tensors.count", &(tensors.len() as i32)).unwrap();
        let (mine, others) = rest.split_at(*count);
        rest = others;
        for tensor in mine {
            header.tensor(tensor.name(), tensor.ggml_type(), tensor.dims()).unwrap();
        }
        let mut writer = header.create().unwrap();
        for tensor in mine {
            writer.write(tensor.name(), tensor.data()).unwrap();
        }
        writer.finish().unwrap();
    }
    names.iter().map(|name| path(dir, name)).collect()
}

#[test]
fn a_split_model_runs_from_any_part() {
    let dir = TempDir::new().unwrap();
    let parts = split(&dir, &[0, 20, 31]);
    let run = |model: &str| succeeds(&["run", model, "-p", "fn main() {\n", "-n", "8", "-q"]);
    let expected = run(TINY);
    for part in &parts {
        assert_eq!(run(part), expected);
        let info = succeeds(&["info", part]);
        assert!(info.contains(", 3 parts)") && info.contains("architecture         qwen3moe"), "{info}");
    }
    let bytes: u64 = parts.iter().map(|part| fs::metadata(part).unwrap().len()).sum();
    let report: Json = serde_json::from_str(&succeeds(&["info", &parts[1], "--json"])).unwrap();
    assert_eq!((&report["parts"], &report["file_bytes"]), (&Json::from(3), &Json::from(bytes)));
    // A trace names the whole: the hash is that of all parts one behind the other.
    let out = path(&dir, "trace");
    succeeds(&["trace", &parts[2], "--tokens", "1", "--stages", "logits", "--backend", "cpu", "--out", &out]);
    let manifest: Json = serde_json::from_slice(&fs::read(format!("{out}/manifest.json")).unwrap()).unwrap();
    let whole = path(&dir, "whole");
    fs::write(&whole, parts.iter().flat_map(|part| fs::read(part).unwrap()).collect::<Vec<_>>()).unwrap();
    let sum = std::process::Command::new("sha256sum").arg(&whole).output();
    if let Ok(sum) = sum {
        let sum = String::from_utf8(sum.stdout).unwrap();
        assert!(sum.starts_with(manifest["model_sha256"].as_str().unwrap()), "{sum}");
    }
    // None of the parts is overwritten.
    let logits = ["logits", &parts[0], "--tokens", "1", "--force", "--out", &parts[2]];
    fails_with(&logits, &["the model that is read"]);

    fs::remove_file(&parts[1]).unwrap();
    for command in ["run", "info", "verify"] {
        for part in [&parts[0], &parts[2]] {
            fails_with(&[command, part], &["part 2 of 3 is missing", "tiny-00002-of-00003.gguf"]);
        }
    }
    fs::write(&parts[1], b"GGUF").unwrap();
    fails_with(&["run", &parts[0]], &["tiny-00002-of-00003.gguf"]);
}

/// A file that does not run is shown all the same, with everything that is in its way.
#[test]
fn info_lists_types_and_obstacles_of_any_file() {
    let dir = TempDir::new().unwrap();
    let spoil = |part: &mut Part| {
        let layer = part.name.split('.').nth(1).and_then(|layer| layer.parse::<usize>().ok());
        if part.name.contains("ffn_up_exps") && layer != Some(1) {
            part.kind = GgmlType::all().find(|kind| kind.name() == "I8").unwrap();
            part.data = vec![0; part.dims.iter().product::<u64>() as usize];
        }
        part.name != "blk.2.attn_q.weight"
    };
    let model = changed(&dir, spoil, &[("tokenizer.ggml.eos_token_id", Some(Value::U32(5000)))]);
    let shown = |model: &str| {
        let output = run(&["info", model]);
        assert_eq!((output.status.code(), output.stderr.len()), (Some(1), 0));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = shown(&model);
    for part in [
        "I8                   3 tensors",
        "ffn_up_exps          I8 (layers 0, 2-3), Q4_K (layers 1)",
        "3 things are in the way",
        "blk.(0, 2-3).ffn_up_exps.weight: type I8 is not supported",
        "tensor blk.2.attn_q.weight is missing",
        "tokenizer.ggml.eos_token_id: token 5000",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let output = run(&["info", &model, "--json"]);
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["runs"]), (Some(1), &Json::from(false)));
    assert_eq!(report["obstacles"].as_array().unwrap().len(), 3, "{report}");
    assert_eq!(report["types"]["I8"]["tensors"], 3);
    // Another architecture, with types that nothing here computes with.
    let other = [("general.architecture", Some(Value::String("llama")))];
    let text = shown(&changed(&dir, spoil, &other));
    for part in
        ["architecture         llama", "\"llama\" is not supported", "Q6_K", "blk.(0, 2-3).ffn_up_exps.weight: type I8"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    // Nothing at all.
    let empty = changed(&dir, |_| false, &[("", None)]);
    assert!(shown(&empty).contains("general.architecture"));
    // What runs says so.
    let report: Json = serde_json::from_str(&succeeds(&["info", "--json"])).unwrap();
    assert_eq!((&report["runs"], report["obstacles"].as_array().unwrap().len()), (&Json::from(true), 0));
}

#[test]
fn metadata_are_obeyed_or_refused_and_can_be_overridden() {
    let dir = TempDir::new().unwrap();
    let f = Value::F32;
    for (key, value) in [
        ("qwen3moe.expert_weights_scale", f(2.5)),
        ("qwen3moe.expert_weights_norm", Value::U32(2)),
        ("qwen3moe.expert_gating_func", Value::U32(2)),
        ("qwen3moe.expert_shared_count", Value::U32(1)),
        ("qwen3moe.attention.scale", f(1.0)),
        ("qwen3moe.attention.sliding_window", Value::U32(64)),
        ("qwen3moe.rope.dimension_count", Value::U32(64)),
        ("qwen3moe.rope.scaling.type", Value::String("longrope")),
        ("qwen3moe.something_new", Value::U32(1)),
    ] {
        fails_with(&["run", &changed(&dir, keep, &[(key, Some(value))])], &[key]);
    }
    let text = |model: &str, more: &[&str]| {
        succeeds(&[&["run", model, "-p", "fn main() {\n", "-n", "16", "-q"], more].concat())
    };
    let usual = text(TINY, &[]);
    let yarn = [
        ("qwen3moe.rope.scaling.type", Some(Value::String("yarn"))),
        ("qwen3moe.rope.scaling.factor", Some(f(4.0))),
        ("qwen3moe.rope.scaling.original_context_length", Some(Value::U32(1024))),
    ];
    let scaled = changed(&dir, keep, &yarn);
    assert!(succeeds(&["info", &scaled]).contains("YaRN by 4 from 1024 positions"));
    let stretched = text(&scaled, &[]);
    let overrides = [
        "--override",
        "qwen3moe.rope.scaling.type=yarn",
        "--override",
        "qwen3moe.rope.scaling.factor=4.0",
        "--override",
        "qwen3moe.rope.scaling.original_context_length=1024",
    ];
    assert_eq!(text(TINY, &overrides), stretched);
    assert_eq!(text(&scaled, &["--override", "qwen3moe.rope.scaling.type=none"]), usual);
    let report: Json =
        serde_json::from_str(&succeeds(&["info", "--override", "qwen3moe.expert_used_count=2", "--json"])).unwrap();
    assert_eq!(report["top_k"], 2);
    let fewer = changed(&dir, keep, &[("qwen3moe.expert_used_count", Some(Value::U32(2)))]);
    assert_eq!(text(TINY, &["--override", "qwen3moe.expert_used_count=2"]), text(&fewer, &[]));
    fails_with(&["run", "--override", "qwen3moe.expert_used_count=x"], &["expert_used_count", "\"x\"", "u32"]);
    fails_with(&["run", "--override", "qwen3moe.context_length=16", "-n", "40"], &["-n 40", "16"]);
    // A key of the tokenizer.
    let ended = text(TINY, &["--override", "tokenizer.ggml.eos_token_id=258"]);
    assert_eq!(ended, "\n");
}

#[test]
fn presets_are_listed() {
    let help = succeeds(&["synth", "--help"]);
    for name in ["tiny", "qwen3-30b-a3b", "qwen3-235b-a22b"] {
        assert!(help.contains(name), "{name}: {help}");
    }
}
