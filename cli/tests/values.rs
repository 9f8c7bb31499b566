//! Values in files, and checks of them: `logits`, `trace`, `diff`, `verify`, `bench`.

mod common;

use std::fs;
use std::path::Path;
use std::time::Instant;

use common::*;
use serde_json::Value as Json;
use tempfile::TempDir;

#[test]
fn logits_and_routers_are_the_reference() {
    let dir = TempDir::new().unwrap();
    let (logits, routers) = (path(&dir, "l.npy"), path(&dir, "r.npy"));
    for (name, prompt) in prompts() {
        let ids = joined(&prompt["tokens"], ",");
        assert_eq!(
            succeeds(&["logits", TINY, "--tokens", &ids, "--out", &logits, "--routers", &routers, "--force"]),
            ""
        );
        let found = npy::<f32>(&logits);
        let expected = npy::<f32>(format!("{REFERENCE}/{name}.logits.npy"));
        assert_eq!(found.0, expected.0, "{name}");
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let mut difference = found.1.iter().zip(&expected.1).map(|(&a, &b)| f64::from(a) - f64::from(b));
        let relative = square(&mut difference) / square(&mut expected.1.iter().map(|&b| f64::from(b)));
        assert!(relative.sqrt() < 1e-6, "{name}: {}", relative.sqrt());
        assert_eq!(npy::<i32>(&routers), npy::<i32>(format!("{REFERENCE}/{name}.routers.npy")), "{name}");

        let plain = path(&dir, "plain.npy");
        succeeds(&["logits", TINY, "--tokens", &ids, "--out", &plain, "--force"]);
        assert_eq!(fs::read(&plain).unwrap(), fs::read(&logits).unwrap(), "{name}");
    }
}

#[test]
fn verify_passes_and_says_what_it_skips() {
    for kv in ["f32", "f16"] {
        let text = succeeds(&["verify", "--kv", kv]);
        assert!(!text.contains("FAIL"), "{text}");
        assert_eq!(text.matches(" pass\n").count(), 7, "{text}");
        assert_eq!(text.matches(" skipped  ").count(), 6, "{text}");
        assert!(text.ends_with("\npassed in part: 7 of 13 clauses, 6 skipped\n"), "{text}");
    }
    let report: Json = serde_json::from_str(&succeeds(&["verify", TINY, "--tokens", "1,2,3", "--json"])).unwrap();
    assert_eq!(report["passed"], true);
    assert_eq!((report["clauses"].as_array().unwrap().len(), &report["skipped"]), (13, &Json::from(6)));

    let output = run(&["verify", "--require-cuda", "--prompt", "x"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("CUDA device present") && line.contains(" FAIL ")), "{text}");
    assert!(text.ends_with("\nFAILED: 1 of 13 clauses, 7 passed, 5 skipped\n"), "{text}");
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
fn trace(dir: &TempDir, name: &str, more: &[&str]) -> std::path::PathBuf {
    let out = path(dir, name);
    succeeds(&[&["trace", TINY, "--tokens", "766,306,598", "--backend", "cpu", "--out", &out], more].concat());
    out.into()
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
