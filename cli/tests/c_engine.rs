//! An engine in C: it reads a model file through the C API of the reader, and computes a layer with the emulated kernels, whose results are
//! those of a trace.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use kquant_moe_emulation as emulation;
use tempfile::TempDir;

/// The shared library of the reader, which cargo builds beside the tests.
fn reader() -> PathBuf {
    // What makes cargo build it.
    const { assert!(kquant_moe_gguf::VERSION == 1) };
    let beside = std::env::current_exe().unwrap();
    let found = beside.parent().unwrap().join("libkquant_moe_gguf.so");
    assert!(found.exists(), "{}", found.display());
    found
}

#[test]
fn a_layer_from_c_has_the_bits_of_a_trace() {
    if let Err(reason) = emulation::available() {
        return println!("skipped: {reason}");
    }
    let dir = TempDir::new().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (example, program, reader) = (root.join("examples/c"), dir.path().join("moe_layer"), reader());
    let sources = ["moe_layer.c", "machine_emulated.c"].map(|name| example.join(name));
    let includes = [root.join("cuda"), root.join("capi"), example];
    emulation::link_program(&sources, &includes, std::slice::from_ref(&reader), &program).unwrap();
    let trace = path(&dir, "trace");
    let stages = "ffn_norm,moe_ffn_out";
    succeeds(&["trace", TINY, "--tokens", "766,306,598,284", "--backend", "cpu", "--stages", stages, "--out", &trace]);
    let run = |file: &str, layer: &str| {
        let mut command = Command::new(&program);
        command.args([file, &trace, layer]).env("LD_LIBRARY_PATH", reader.parent().unwrap());
        let output = command.output().unwrap();
        let [out, error] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), out, error)
    };
    for layer in ["0", "3"] {
        let expected = format!("layer {layer}, 4 tokens: of 1024 values 0 differ together, 0 alone\n");
        assert_eq!(run(TINY, layer), (Some(0), expected, String::new()));
    }
    // Another value is seen, and what is missing or broken is named.
    let file = Path::new(&trace).join("layer03.moe_ffn_out.npy");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let (code, out, _) = run(TINY, "3");
    assert_eq!((code, out.as_str()), (Some(1), "layer 3, 4 tokens: of 1024 values 1 differ together, 1 alone\n"));
    assert!(run(TINY, "4").2.contains("blk.4.ffn_gate_exps.weight"));
    let broken = path(&dir, "broken.gguf");
    fs::write(&broken, &fs::read(TINY).unwrap()[..5000]).unwrap();
    let (code, _, error) = run(&broken, "0");
    assert!(code == Some(1) && error.starts_with(&format!("{broken}: ")) && error.lines().count() == 1, "{error}");
}
