//! The program as its users start it, and files for it.
#![allow(dead_code)] // No test uses everything.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kquant_moe::gguf::{GgmlType, Gguf, Header, Value};
use serde_json::Value as Json;
use tempfile::TempDir;

pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tiny-qwen3moe-q4_k_m.gguf");
pub const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/reference");

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kquant-moe"));
    command.args(args).stdin(Stdio::null());
    command
}

/// The program on a machine whose GPUs, if any, are hidden.
pub fn run(args: &[&str]) -> Output {
    command(args).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
}

/// The same with this text as standard input.
pub fn run_with(args: &[&str], input: &[u8]) -> Output {
    let mut command = command(args);
    command.env("CUDA_VISIBLE_DEVICES", "").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    // What is refused is not read to the end.
    let writer = std::thread::spawn(move || stdin.write_all(&input).is_ok());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// What a successful run writes to standard output. It writes nothing to standard error.
#[track_caller]
pub fn succeeds(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a successful `run` writes to standard output, and the notes on standard error.
#[track_caller]
pub fn generates(args: &[&str]) -> (String, Vec<String>) {
    noted(args, run(args))
}

/// Standard output and notes of a run that succeeded.
#[track_caller]
pub fn noted(args: &[&str], output: Output) -> (String, Vec<String>) {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    (String::from_utf8(output.stdout).unwrap(), stderr.lines().map(str::to_owned).collect())
}

/// The message of a run that fails: one line, and nothing on standard output.
#[track_caller]
pub fn fails(args: &[&str]) -> String {
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
pub fn fails_with(args: &[&str], parts: &[&str]) {
    let message = fails(args);
    for part in parts {
        assert!(message.contains(part), "{args:?}: {part:?} is not in {message:?}");
    }
}

pub fn prompts() -> serde_json::Map<String, Json> {
    let text = fs::read_to_string(format!("{REFERENCE}/prompts.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub fn joined(ids: &Json, separator: &str) -> String {
    ids.as_array().unwrap().iter().map(Json::to_string).collect::<Vec<_>>().join(separator)
}

/// A tensor of a model that is about to be written.
pub struct Part {
    pub name: String,
    pub kind: GgmlType,
    pub dims: Vec<u64>,
    pub data: Vec<u8>,
}

/// The tiny model with some tensors changed, and with other or more metadata: `None` leaves a key out.
pub fn changed(dir: &TempDir, change: impl Fn(&mut Part) -> bool, metadata: &[(&str, Option<Value<'_>>)]) -> String {
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
    for (key, value) in metadata {
        if let (None, Some(value)) = (tiny.entries().find(|(found, _)| found.starts_with(key)), value) {
            header.set_value(key, *value).unwrap();
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

pub fn keep(_: &mut Part) -> bool {
    true
}

pub fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

pub fn npy<T: npyz::Deserialize>(path: impl AsRef<Path>) -> (Vec<u64>, Vec<T>) {
    let file = npyz::NpyFile::new(fs::File::open(path).unwrap()).unwrap();
    (file.shape().to_vec(), file.into_vec().unwrap())
}
