//! Manners of a library, read off its source: it prints nothing, never ends the process, leaves nothing to be done, and says
//! why what is unsafe is sound.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below a directory with one of the extensions, sorted.
fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extensions));
        } else if path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Where, in the files, a line's code breaks a rule. Tests inside of a file, which come last in it, and comments do not count.
fn offences(files: &[PathBuf], breaks: impl Fn(&[&str], usize) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let all: Vec<&str> = text.lines().collect();
        let tests = all.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{'));
        let lines = &all[..tests.unwrap_or(all.len())];
        let code = |line: &str| !line.trim_start().starts_with("//");
        let bad = (0..lines.len()).filter(|&at| code(lines[at]) && breaks(lines, at));
        found.extend(bad.map(|at| format!("{}:{}: {}", file.display(), at + 1, lines[at].trim())));
    }
    found
}

/// Whether the line has the word, not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(letter) && !line[at + word.len()..].starts_with(letter))
}

fn library() -> Vec<PathBuf> {
    let files = files(&root().join("src"), &["rs"]);
    assert!(files.len() > 40, "{} files", files.len());
    files
}

#[test]
fn it_prints_nothing_and_never_exits() {
    let forbidden = ["println", "eprintln", "print", "eprint", "dbg", "process", "stdout", "stderr"];
    let found = offences(&library(), |lines, at| {
        // Words of documentation, which `offences` leaves out, and of messages, which stand in quotes.
        let unquoted: String = lines[at].split('"').step_by(2).collect();
        forbidden.iter().any(|word| {
            let is_macro = !["process", "stdout", "stderr"].contains(word);
            has_word(&unquoted, word) && (!is_macro || unquoted.contains(&format!("{word}!")))
        })
    });
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn nothing_is_left_to_be_done() {
    let files = [library(), files(&root().join("cli/src"), &["rs"])].concat();
    let found = offences(&files, |lines, at| ["todo!", "unimplemented!"].iter().any(|word| lines[at].contains(word)));
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// An unsafe block or implementation has a `SAFETY` comment right before it or before the statement it is part of; what is
/// declared unsafe says what it demands.
#[test]
fn what_is_unsafe_is_explained() {
    let places = ["src", "cli", "tests", "benches"];
    let generated = root().join("src/sys.rs");
    let files: Vec<PathBuf> =
        places.iter().flat_map(|place| files(&root().join(place), &["rs"])).filter(|file| *file != generated).collect();
    let found = offences(&files, |lines, at| {
        let code: String = lines[at].split('"').step_by(2).collect();
        let code = code.split("//").next().unwrap_or_default();
        if !has_word(code, "unsafe") {
            return false;
        }
        // Types of functions, and declarations of another language's, have nothing to explain.
        if code.contains("unsafe extern") || code.contains(": unsafe fn") {
            return false;
        }
        // Implementations of a trait's functions keep the trait's contract.
        let declared = code.contains("unsafe fn") || code.contains("unsafe trait");
        if declared && !code.trim_start().starts_with("pub ") && in_trait_impl(lines, at) {
            return false;
        }
        let words = if declared { "# Safety" } else { "SAFETY" };
        !explained(lines, at, words)
    });
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Whether one of the last comments before the line, at most a statement away, has the words.
fn explained(lines: &[&str], at: usize, words: &str) -> bool {
    let mut code = 0;
    for line in lines[..at].iter().rev() {
        let line = line.trim_start();
        let comment = line.starts_with("//");
        if comment && line.contains(words) {
            return true;
        }
        if !comment && !line.starts_with("#[") {
            code += 1;
        }
        // Past the start of the function, or too far away.
        if code > 6 || line.starts_with("fn ") || line.starts_with("pub fn ") || line == "}" {
            return false;
        }
    }
    false
}

/// Whether the line is inside of `impl Trait for Type`.
fn in_trait_impl(lines: &[&str], at: usize) -> bool {
    let opening = lines[..at].iter().rev().find(|line| {
        let line = line.trim_start();
        ["impl", "unsafe impl", "trait", "pub trait", "pub unsafe trait"]
            .iter()
            .any(|word| line.strip_prefix(word).is_some_and(|rest| rest.starts_with([' ', '<'])))
    });
    opening.is_some_and(|line| line.contains("impl") && line.contains(" for "))
}

#[test]
fn every_kernel_source_says_what_it_is() {
    for file in files(&root().join("cuda"), &["cu", "cuh", "h"]) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//") || text.starts_with("/*"), "{} opens without a comment", file.display());
    }
}

#[test]
fn every_file_says_what_it_is() {
    for dir in ["src", "cli", "tests", "benches", "emulation/src", "emulation/tests"] {
        for file in files(&root().join(dir), &["rs"]) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.starts_with("//!"), "{} opens without a comment", file.display());
        }
    }
}

#[test]
fn offences_are_seen() {
    let seen = |line: &str, word| has_word(line, word);
    assert!(
        seen("    println!(\"x\")", "println") && !seen("eprintln!()", "println") && !seen("stdout_of()", "stdout")
    );
    let lines = ["// SAFETY: so.", "let x =", "    unsafe { y };", "}", "unsafe { z };"];
    assert!(explained(&lines, 2, "SAFETY") && !explained(&lines, 4, "SAFETY"));
    let lines = ["impl A for B {", "    unsafe fn f() {", "impl B {", "    unsafe fn g() {"];
    assert!(in_trait_impl(&lines, 1) && !in_trait_impl(&lines, 3));
}
