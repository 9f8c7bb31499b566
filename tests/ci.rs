//! The scripts in `.ci` that run tests elsewhere notice what did not run there. Stand-ins take the place of test binaries, of
//! the program and of cargo.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An executable file.
fn script(path: &Path, body: &str) {
    fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a script of `.ci`, with these variables and nothing of the caller's but the system's own programs and those of `first`.
fn run(name: &str, args: &[&Path], first: &Path, variables: &[(&str, &str)]) -> (i32, String) {
    let Output { status, stdout, stderr } = Command::new("bash")
        .arg(root().join(".ci").join(name))
        .args(args)
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", first.display()))
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (status.code().unwrap(), text)
}

/// The sources of the tests, by name.
fn sources() -> BTreeMap<String, String> {
    let files = fs::read_dir(root().join("tests")).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
        .map(|file| (file.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(file).unwrap()))
        .collect()
}

/// The tests of a source, with their text: from the attribute to the end of the function.
fn tests(source: &str) -> Vec<(String, String)> {
    let of = |text: &str| {
        let name = text.split_once("fn ").unwrap().1.split(['(', '<']).next().unwrap().to_owned();
        (name, text.split_once("\n}").map_or(text, |(body, _)| body).to_owned())
    };
    source.split("\n#[test]\n").skip(1).map(of).collect()
}

/// `.ci/gpu` takes tests by the words in their names.
#[test]
fn tests_that_open_a_gpu_say_so_in_their_names() {
    let mut found = 0;
    for (file, source) in sources() {
        for (name, body) in tests(&source) {
            if body.contains(concat!("cuda_device", "()")) {
                assert!(name.contains("cuda") || name.contains("gpu"), "tests/{file}.rs: {name}");
                found += 1;
            }
        }
    }
    assert!(found > 20, "{found} tests");
}

/// Stand-ins for test binaries and the program, in a directory.
struct Stands(TempDir);

const PASSES: &str = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'";

impl Stands {
    fn new() -> Self {
        let stands = Self(TempDir::new().unwrap());
        for name in sources().keys() {
            stands.set(name, PASSES);
        }
        stands.set("kquant-moe", "echo 'a line'");
        stands
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// One that notes what it is called with, and does something.
    fn set(&self, name: &str, body: &str) {
        script(&self.path(name), &format!("echo \"{name} $*\" >>'{}'\n{body}", self.path("calls").display()));
    }

    fn gpu(&self, variables: &[(&str, &str)]) -> (i32, String) {
        let _ = fs::remove_file(self.path("calls"));
        run("gpu", &[self.0.path()], Path::new("/nonexistent"), variables)
    }

    fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.path("calls")).unwrap().lines().map(str::to_owned).collect()
    }
}

#[test]
fn the_gpu_run_takes_every_file_that_opens_a_gpu() {
    let stands = Stands::new();
    let (code, text) = stands.gpu(&[]);
    assert_eq!(code, 0, "{text}");
    let calls = stands.calls();
    let wanted = sources().into_iter().filter(|(_, source)| {
        let opens = |line: &str| line.starts_with("on_devices!") || line.contains(concat!("cuda_device", "()"));
        source.lines().any(opens)
    });
    let wanted: Vec<String> = wanted.map(|(name, _)| name).collect();
    let called = calls.iter().filter_map(|call| call.strip_suffix(" cuda gpu --show-output"));
    assert_eq!(called.collect::<Vec<_>>(), wanted);
    for name in
        ["argmax", "rope", "reference", "regressions", "throughput", "untraced", "planted", "robustness", "probe"]
    {
        assert!(wanted.iter().any(|wanted| wanted == name), "{name}");
    }
    assert!(!wanted.iter().any(|name| ["ci", "contract", "cli", "gguf"].contains(&name.as_str())), "{wanted:?}");
    let programs: Vec<&String> = calls.iter().filter(|call| call.starts_with("kquant-moe")).collect();
    let expected = ["verify --require-cuda --kv f32", "verify --require-cuda --kv f16", "bench --backend cuda"];
    assert_eq!(programs, expected.map(|call| format!("kquant-moe {call}")).iter().collect::<Vec<_>>());
}

#[test]
fn the_gpu_run_fails_when_something_did_not_run() {
    let skips = |reason: &str| format!("echo 'skipped: {reason}'\n{PASSES}");
    let model = "KQUANT_MOE_FULL_MODEL names no model";
    for (name, body, variables, expected) in [
        // Not there, not one that matches, a failure, a skip.
        ("regressions", None, &[][..], 1),
        ("throughput", Some("echo 'test result: ok. 0 passed; 0 failed; 0 ignored'".to_owned()), &[], 1),
        ("rope", Some("echo nothing".to_owned()), &[], 1),
        ("probe", Some(format!("{PASSES}; exit 101")), &[], 1),
        ("planted", Some(skips("no CUDA device")), &[], 1),
        // Without a model, what wants one is left out, and with one it is not.
        ("throughput", Some(skips(model)), &[], 0),
        ("throughput", Some(skips(model)), &[("KQUANT_MOE_FULL_MODEL", "big.gguf")], 1),
        ("throughput", Some(skips("no CUDA device")), &[("KQUANT_MOE_FULL_MODEL", "big.gguf")], 1),
        ("kquant-moe", Some("[ $1 != verify ]".to_owned()), &[], 1),
        ("kquant-moe", Some("[ $1 != bench ]".to_owned()), &[], 1),
        ("kquant-moe", Some("[ $1 = verify ] || [ $7 != 6000 ]".to_owned()), &[("KQUANT_MOE_FULL_MODEL", "m")], 0),
        ("kquant-moe", Some("[ $1 = verify ] || [ \"$8\" != 6000 ]".to_owned()), &[("KQUANT_MOE_FULL_MODEL", "m")], 1),
        ("kquant-moe", None, &[], 1),
    ] {
        let stands = Stands::new();
        match &body {
            None => fs::remove_file(stands.path(name)).unwrap(),
            Some(body) => stands.set(name, body),
        }
        let (code, text) = stands.gpu(variables);
        assert_eq!(code, expected, "{name}: {body:?}, {variables:?}\n{text}");
        // The others are run all the same.
        assert!(text.contains("untraced         2 passed, 0 of them skipped: ok"), "{text}");
    }
    let nowhere = run("gpu", &[Path::new("/nonexistent")], Path::new("/nonexistent"), &[]);
    assert_ne!(nowhere.0, 0, "{}", nowhere.1);
}

/// A cargo that has Miri, or has not, and whose tests print this.
fn cargo(has_miri: bool, library: &str, others: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    let version = if has_miri { "echo miri 0.1" } else { "exit 1" };
    let body = format!(
        "case \"$*\" in\n*--version) {version} ;;\n*--lib*) {library} ;;\n*--test*) {others} ;;\n*) exit 3 ;;\nesac"
    );
    script(&dir.path().join("cargo"), &body);
    dir
}

#[test]
fn miri_fails_when_it_is_wanted_and_not_there_or_finds_no_test() {
    let names = [
        "blocks::tests::x",
        "gguf::types::tests::y",
        "oracle::repack::tests::a_lane_holds",
        "model::cpu::dot::tests::a_block_z",
    ];
    let library = |leave_out: usize| {
        let lines = names.iter().enumerate().filter(|(number, _)| *number != leave_out);
        lines.map(|(_, name)| format!("echo 'test {name} ... ok'")).collect::<Vec<_>>().join("; ")
    };
    let some = "echo 'test result: ok. 5 passed; 0 failed'";
    let none = "echo 'test result: ok. 0 passed; 0 failed'";
    let required = &[("KQUANT_MOE_REQUIRE_MIRI", "1")][..];
    let miri = |dir: TempDir, variables: &[(&str, &str)]| run("miri", &[], dir.path(), variables);
    assert_eq!(miri(cargo(true, &library(9), some), required).0, 0);
    let (code, text) = miri(cargo(false, "", ""), &[]);
    assert!(code == 77 && text.contains("skipped: no Miri"), "{code}: {text}");
    assert_eq!(miri(cargo(false, "", ""), required).0, 1);
    for (leave_out, name) in names.iter().enumerate() {
        let (code, text) = miri(cargo(true, &library(leave_out), some), &[]);
        assert_eq!(code, 1, "{name}: {text}");
    }
    assert_eq!(miri(cargo(true, &library(9), none), &[]).0, 1);
    assert_ne!(miri(cargo(true, &format!("{}; exit 101", library(9)), some), &[]).0, 0);
    assert_ne!(miri(cargo(true, &library(9), &format!("{some}; exit 101")), &[]).0, 0);
    assert_eq!(miri(cargo(true, &library(9).replace("ok'", "FAILED'"), some), &[]).0, 1);
}

/// Where everything is built, a test that skips for want of the emulation or of the compiled kernels has failed.
#[test]
fn the_whole_run_lets_no_test_skip() {
    let script = fs::read_to_string(root().join(".ci/run")).unwrap();
    let tests: Vec<&str> =
        script.lines().filter(|line| line.contains("cargo test") && line.contains("--no-fail-fast")).collect();
    let [tests] = tests[..] else { panic!("{tests:?}") };
    for demand in ["KQUANT_MOE_REQUIRE_EMULATION=1 ", "KQUANT_MOE_REQUIRE_CUOBJDUMP=1 "] {
        assert!(tests.contains(demand), "{demand}: {tests}");
    }
}
