//! Arguments, exit codes, help, and what the program says of itself.

mod common;

use std::io::Read;
use std::process::Stdio;

use common::*;
use kquant_moe::device::CUDA_BUILD;
use tempfile::TempDir;

#[test]
fn cuda_that_is_not_there_is_an_error() {
    let dir = TempDir::new().unwrap();
    let out = path(&dir, "out");
    for args in [
        vec!["run", "--backend", "cuda"],
        vec!["bench", "--backend", "cuda"],
        vec!["bench", "--backend", "cuda", "--sequences", "2"],
        vec!["generate", "--backend", "cuda"],
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
        vec!["run", "-m", TINY, TINY],
        vec!["run", "--override", "novalue"],
        vec!["-n", "x"],
        vec!["run", "-p", "x", "--prompt-file", "y"],
        vec!["run", "--interactive"],
        vec!["completions", "dos"],
        vec!["trace", TINY, "--tokens", "1", "--out", "x", "--stages", "q,nonsense"],
        vec!["synth", "--out", "x", "--preset", "huge"],
        vec!["synth", "--out", "x", "--preset", "tiny", "--types", "q9_k"],
        vec!["synth", "--out", "x", "--preset", "tiny", "--types", "router=q8_0"],
        vec!["synth", "--out", "x", "--preset", "tiny", "--heads", "2,1"],
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
    let commands = [
        "run",
        "generate",
        "logits",
        "verify",
        "info",
        "synth",
        "bench",
        "trace",
        "diff",
        "tokenize",
        "detokenize",
        "completions",
    ];
    for command in commands {
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
        let (_, notes) = generates(&["run", "-n", "1"]);
        let parity = format!("parity: CPU only, no CUDA: this build has no CUDA kernels: {reason}");
        assert_eq!(notes.last(), Some(&parity));
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

#[test]
fn a_word_that_is_no_command_is_said_to_be_none() {
    let output = run(&["fly"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("\"fly\" is no command"), "{error}");
    // What looks like a file is one that is not there.
    fails_with(&["fly.gguf"], &["fly.gguf", "No such file"]);
    fails_with(&["./fly"], &["./fly", "No such file"]);
    // Errors about -n call it so.
    let output = run(&["run", "-n", "x"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("'-n <N>'"));
}

#[test]
fn outputs_that_are_there_are_kept() {
    let dir = TempDir::new().unwrap();
    let out = path(&dir, "l.npy");
    let args = ["logits", TINY, "--tokens", "1", "--out", &out];
    succeeds(&args);
    let before = std::fs::read(&out).unwrap();
    fails_with(&args, &["l.npy", "--force"]);
    let other = path(&dir, "other.npy");
    fails_with(&["logits", TINY, "--tokens", "2", "--out", &other, "--routers", &out], &["l.npy", "--force"]);
    assert_eq!(std::fs::read(&out).unwrap(), before);
    assert!(!std::path::Path::new(&other).exists());
    succeeds(&["logits", "--tokens", "2", "--out", &out, "--force"]);
    assert_ne!(std::fs::read(&out).unwrap(), before);
    // The model that is read, by whatever name.
    let model = path(&dir, "model.gguf");
    std::fs::copy(TINY, &model).unwrap();
    let same = path(&dir, "./model.gguf");
    for out in [&model, &same] {
        fails_with(&["logits", &model, "--tokens", "1", "--force", "--out", out], &["the model that is read"]);
    }
    assert_eq!(std::fs::read(&model).unwrap(), std::fs::read(TINY).unwrap());
}

#[test]
fn values_of_the_built_in_model_and_of_text() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (path(&dir, "a.npy"), path(&dir, "b.npy"));
    succeeds(&["logits", TINY, "--tokens", "766,306,598,284,280", "--out", &a]);
    succeeds(&["logits", "-p", "fn main() {\n", "--out", &b]);
    assert_eq!(npy::<f32>(&a), npy::<f32>(&b));
    let out = path(&dir, "trace");
    succeeds(&["trace", "-p", "fn main() {\n", "--stages", "logits", "--backend", "cpu", "--out", &out]);
    assert_eq!(npy::<f32>(format!("{out}/logits.npy")), npy::<f32>(&a));
    let manifest = std::fs::read(format!("{out}/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["tokens"], serde_json::json!([766, 306, 598, 284, 280]));
    // The same file, whether it is built in or not.
    let out = path(&dir, "file");
    succeeds(&["trace", TINY, "--tokens", "1", "--stages", "q", "--layers", "0", "--backend", "cpu", "--out", &out]);
    let file: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{out}/manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["model_sha256"], file["model_sha256"]);
}

#[test]
fn shells_complete_commands_and_options() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeeds(&["completions", shell]);
        assert!(["kquant-moe", "detokenize", "prompt-file"].iter().all(|word| script.contains(word)), "{shell}");
    }
}
