//! Faults in Rust sources: those that cargo-mutants lists, and single checks of the kernels' wrappers dropped. They are tried in a
//! copy of the repository, built with little optimisation and from where the last build ended.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::inventory::{Class, Mutant, files_below, hash, read, root};
use crate::kernels::is_test;
use crate::process::{Outcome, Test, build_tests, mirror, write_changed};
use crate::rules::Edit;

/// Which tests judge a file, by how its path begins: the first entry that fits counts. `*` is the file's own name.
const TESTS: [(&str, &[&str]); 14] = [
    (
        "src/oracle/",
        &[
            "lib",
            "*",
            "oracle_rows",
            "oracle_matvec",
            "oracle_moe",
            "oracle_attention",
            "oracle_quantize",
            "rms_norm",
            "moe_router",
        ],
    ),
    ("src/model/cpu/dot", &["lib", "oracle_matvec", "q6_k_gemv", "agreement", "reference"]),
    ("src/model/cpu", &["lib", "agreement", "model", "library", "planted", "reference"]),
    ("src/model/synth", &["lib", "synth", "model"]),
    ("src/model/rope_table", &["lib", "oracle_pins", "rope", "agreement"]),
    (
        "src/model/",
        &["lib", "model", "metadata", "not_finite", "library", "robustness", "untraced", "reference", "context"],
    ),
    ("src/kernels/mod", &["operands", "lib", "moe_group", "repack", "moe_router", "library"]),
    ("src/kernels/", &["operands", "*", "library"]),
    ("src/gguf/", &["lib", "gguf", "gguf_memory"]),
    ("src/device", &["lib", "buffers", "safety", "probe", "library", "robustness"]),
    ("src/blocks", &["lib", "oracle_quantize", "gguf", "repack"]),
    ("src/diff", &["lib", "planted"]),
    ("src/trace", &["lib", "model", "untraced"]),
    ("src/", &["lib", "library"]),
];
const LITTLE_OPTIMISATION: &str = "profile.release.package.kquant-moe.opt-level=1";
/// Cargo names what it builds by the place in the workspace and the profile, and must not take the copy for the original.
const TOLD_APART: &str = "profile.release.package.kquant-moe-emulation.opt-level=2";
/// Added to the wrappers' module of the copy: which of the numbered checks is left out.
const SWITCH: &str = r#"
fn dropped(number: usize) -> bool {
    static DROPPED: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
    *DROPPED.get_or_init(|| std::env::var("KQUANT_MOE_DROPPED").ok()?.parse().ok()) == Some(number)
}
"#;

/// The tests of a file that there are.
fn tests_of(file: &str) -> Vec<String> {
    let name = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".rs");
    let tests = TESTS.iter().find(|(start, _)| file.starts_with(start)).map_or(&[][..], |(_, tests)| tests);
    let mut found = Vec::new();
    for test in tests.iter().map(|&test| if test == "*" { name } else { test }) {
        // Unit tests are for the file that they stand in.
        let unit = read(file).is_ok_and(|source| source.contains("#[cfg(test)]"));
        let exists = if ["lib", "bin"].contains(&test) { unit } else { is_test(test) };
        if exists && !found.iter().any(|other| other == test) {
            found.push(test.to_owned());
        }
    }
    found
}

/// What cargo-mutants would do to the library, the oracles and the program. Installs it where it is missing.
pub fn listed(files: Option<&BTreeSet<String>>) -> Result<Vec<Mutant>, String> {
    let tool = tool()?;
    let mut command = Command::new(tool);
    command.current_dir(root()).args(["mutants", "--list", "--json", "--package", "kquant-moe"]);
    for file in files.into_iter().flatten() {
        command.args(["--file", file]);
    }
    let output = command.output().map_err(|error| format!("cargo mutants: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo mutants: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let list: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo mutants: {error}"))?;
    let list = list.as_array().ok_or("cargo mutants lists nothing")?;
    let mut sources = BTreeMap::new();
    let mut found = Vec::new();
    for entry in list {
        let file = entry["file"].as_str().ok_or("a mutant without a file")?;
        if !sources.contains_key(file) {
            sources.insert(file.to_owned(), read(file)?);
        }
        let source = &sources[file];
        let range = span(source, &entry["span"]).ok_or_else(|| format!("a mutant without a place: {entry}"))?;
        let lines = source[range.clone()].matches('\n').count();
        let text = entry["replacement"].as_str().ok_or("a mutant without a replacement")?;
        // The lines behind it stay where they are, for whoever reads a report.
        let text = format!("{text}{}", "\n".repeat(lines.saturating_sub(text.matches('\n').count())));
        let function = span(source, &entry["function"]["span"]).unwrap_or(range.clone());
        let rule = entry["genre"].as_str().unwrap_or("other").to_lowercase();
        let edits = vec![Edit { range, text }];
        let item = hash([code(&source[function])]);
        found.push(Mutant::new(Class::of_rust(file), file, &rule, source, edits, item));
    }
    Ok(found)
}

/// The path of cargo-mutants: an installed one, or one installed into the target directory.
fn tool() -> Result<PathBuf, String> {
    let installed = Command::new("cargo-mutants").args(["mutants", "--version"]).output();
    if installed.is_ok_and(|output| output.status.success()) {
        return Ok("cargo-mutants".into());
    }
    let directory = target().join("tools");
    let program = directory.join("bin/cargo-mutants");
    if !program.exists() {
        eprintln!("installing cargo-mutants into {}", directory.display());
        let status = Command::new("cargo")
            .args(["install", "--locked", "--quiet", "cargo-mutants", "--root"])
            .arg(&directory)
            .env("CARGO_TARGET_DIR", directory.join("build"))
            .status();
        if !status.is_ok_and(|status| status.success()) {
            return Err("cargo-mutants could not be installed".into());
        }
    }
    Ok(program)
}

/// The target directory of this build.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Bytes of a span whose lines and columns (in characters) count from one.
fn span(source: &str, value: &Value) -> Option<std::ops::Range<usize>> {
    let place = |value: &Value| {
        let (line, column) = (value["line"].as_u64()? as usize, value["column"].as_u64()? as usize);
        let start: usize = source.split_inclusive('\n').take(line - 1).map(str::len).sum();
        let text = source[start..].split('\n').next()?;
        Some(start + text.char_indices().nth(column - 1).map_or(text.len(), |(at, _)| at))
    };
    Some(place(&value["start"])?..place(&value["end"])?)
}

/// A source without indentation and lines of comments.
fn code(source: &str) -> String {
    let lines: Vec<&str> =
        source.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).collect();
    lines.join("\n")
}

/// Each check of an operand dropped: statements that end the function with an error, and conditions that do.
pub fn operands() -> Result<Vec<Mutant>, String> {
    let mut found = Vec::new();
    for file in files_below("src/kernels")? {
        let source = read(&file)?;
        for (rule, range) in checks(&source) {
            let text = &source[range.clone()];
            let other = if rule == "statement" { String::new() } else { "if false ".into() };
            let text = format!("{other}{}", "\n".repeat(text.matches('\n').count()));
            let item = hash([code(&source[range.clone()])]);
            let edits = vec![Edit { range, text }];
            found.push(Mutant::new(Class::Operands, &file, rule, &source, edits, item));
        }
    }
    Ok(found)
}

/// Where checks are: statements `at_least(..)?;`, `..check(..)?;`, `check_..(..)?;`, and `if .. ` before `{ return Err(`.
fn checks(source: &str) -> Vec<(&'static str, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    let (mut offset, mut statement) = (0, None);
    let lines: Vec<&str> = source.split_inclusive('\n').collect();
    for (number, line) in lines.iter().enumerate() {
        let text = line.trim();
        let begin = offset + line.len() - line.trim_start().len();
        let end = offset + line.trim_end().len();
        if statement.is_none() {
            let call = text.split('(').next().unwrap_or_default();
            let name = call.rsplit(['.', ':']).next().unwrap_or_default();
            if text.contains('(') && (name == "at_least" || name == "check" || name.starts_with("check_")) {
                statement = Some(("statement", begin));
            } else if text.starts_with("if ") {
                statement = Some(("condition", begin));
            }
        }
        match statement {
            Some(("statement", begin)) if text.ends_with(';') => {
                if text.ends_with("?;") {
                    found.push(("statement", begin..end));
                }
                statement = None;
            }
            Some(("condition", begin)) if text.ends_with('{') => {
                let next = lines.get(number + 1).map_or("", |line| line.trim());
                if next.starts_with("return Err(") {
                    found.push(("condition", begin..end - 1));
                }
                statement = None;
            }
            // An expression, or the last one of a function.
            _ if text.ends_with('}')
                || text.ends_with(')') && statement.is_some_and(|(kind, _)| kind == "statement") =>
            {
                statement = None;
            }
            _ => {}
        }
        offset += line.len();
    }
    found
}

/// A copy of the repository in which Rust faults are tried, one at a time: compilers use all cores.
pub struct Rust {
    directory: PathBuf,
    limits: BTreeMap<String, u64>,
    /// Tests of the wrappers, built with a switch for each check.
    switched: Option<(Vec<Mutant>, BTreeMap<String, Test>)>,
}

impl Rust {
    pub fn new(work: &Path) -> Result<Self, String> {
        let this = Self { directory: work.join("rust"), limits: BTreeMap::new(), switched: None };
        this.restore()?;
        Ok(this)
    }

    /// All files as they are.
    fn restore(&self) -> Result<(), String> {
        let mut files = vec!["Cargo.toml".to_owned(), "Cargo.lock".into(), "build.rs".into(), "README.md".into()];
        for directory in [
            "src",
            "tests",
            "cuda",
            "emulation",
            "benches",
            "build",
            "mutants",
            "cli",
            "docs",
            "examples",
            "fuzz/seeds",
        ] {
            files.extend(files_below(directory)?);
        }
        mirror(&files, &root(), &self.directory)
    }

    fn build(&self, test: &str, show: bool) -> Result<Option<Test>, String> {
        let target = target();
        let target = target.to_str().ok_or("a path that is not UTF-8")?;
        // The dependencies are those of the other builds.
        let mut arguments = vec!["--config", LITTLE_OPTIMISATION, "--config", TOLD_APART, "--target-dir", target];
        // Without the program, where it does not matter, it need not be linked again.
        if !["bin", "cli", "hostile"].contains(&test) {
            arguments.push("--no-default-features");
        }
        Ok(build_tests(&self.directory, &arguments, &[test], show)?.and_then(|mut tests| tests.pop()))
    }

    /// Tries a fault that cargo-mutants lists.
    pub fn run(&mut self, mutant: &Mutant, show: bool) -> Result<Outcome, String> {
        self.switched = None;
        self.restore()?;
        let tests = tests_of(&mutant.file);
        if tests.is_empty() {
            return Err(format!("{} has no tests", mutant.file));
        }
        for test in &tests {
            if !self.limits.contains_key(test) {
                let built = self.build(test, true)?.ok_or(format!("{test} does not compile"))?;
                self.limits.insert(test.clone(), built.measured(&[])?.limit);
            }
        }
        write_changed(&self.directory.join(&mutant.file), mutant.text(&read(&mutant.file)?).as_bytes())?;
        for name in &tests {
            let Some(mut test) = self.build(name, show)? else { return Ok(Outcome::NotCompiled) };
            test.limit = self.limits[name];
            if let Some(found) = test.run(&[], show) {
                return Ok(Outcome::Found(found));
            }
        }
        Ok(Outcome::Survived)
    }

    /// Tries a dropped check. All of them are built at once, each behind a switch.
    pub fn run_operand(&mut self, mutant: &Mutant, show: bool) -> Result<Outcome, String> {
        if self.switched.is_none() {
            self.restore()?;
            self.switched = Some(self.switch()?);
        }
        let Some((all, tests)) = &self.switched else { return Err("no switches".into()) };
        let number = all.iter().position(|other| other.file == mutant.file && other.edits == mutant.edits);
        let number = number.ok_or_else(|| format!("no switch for {mutant}"))?;
        for name in tests_of(&mutant.file) {
            let environment = [("KQUANT_MOE_DROPPED", OsString::from(number.to_string()))];
            if let Some(found) = tests[&name].run(&environment, show) {
                return Ok(Outcome::Found(found));
            }
        }
        Ok(Outcome::Survived)
    }

    fn switch(&self) -> Result<(Vec<Mutant>, BTreeMap<String, Test>), String> {
        let all = operands()?;
        let mut names = BTreeSet::new();
        for file in files_below("src/kernels")? {
            let source = read(&file)?;
            let mut edits = Vec::new();
            for (number, mutant) in all.iter().enumerate().filter(|(_, mutant)| mutant.file == file) {
                let range = mutant.edits[0].range.clone();
                let text = &source[range.clone()];
                let switch = format!("crate::kernels::dropped({number})");
                let text = if mutant.rule == "statement" {
                    format!("if !{switch} {{ {text} }}")
                } else {
                    let condition = text.trim_start_matches("if ").trim_end();
                    format!("if !{switch} && ({condition}) ")
                };
                edits.push(Edit { range, text });
            }
            if !edits.is_empty() {
                names.extend(tests_of(&file));
            }
            let mut text = crate::rules::apply(&source, &edits);
            if file == "src/kernels/mod.rs" {
                text += SWITCH;
            }
            write_changed(&self.directory.join(&file), text.as_bytes())?;
        }
        let mut tests = BTreeMap::new();
        for name in names {
            let test = self.build(&name, true)?.ok_or(format!("{name} does not compile with switches"))?;
            tests.insert(name, test.measured(&[])?);
        }
        Ok((all, tests))
    }
}

/// What the result of a fault in a Rust file depends on, besides the file.
pub fn dependencies(file: &str) -> Result<BTreeSet<String>, String> {
    let mut files: BTreeSet<String> = files_below("tests/common")?.into_iter().collect();
    files.extend(tests_of(file).into_iter().map(|test| format!("tests/{test}.rs")));
    files.retain(|file| root().join(file).is_file());
    // A file is read together with those beside it.
    let directory = file.rsplit_once('/').map_or("src", |(directory, _)| directory);
    files.extend(files_below(directory)?);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_found() {
        let source = "fn f() {\n    at_least(a, b)?;\n    self.groups.check(\n        a,\n    )?;\n    if a\n        || b\n    {\n        return Err(c);\n    }\n    if let Some(x) = y {\n        at_least(x)?;\n    }\n    at_least(z)\n}\n";
        let found: Vec<_> = checks(source).into_iter().map(|(rule, range)| (rule, &source[range])).collect();
        assert_eq!(
            found,
            [
                ("statement", "at_least(a, b)?;"),
                ("statement", "self.groups.check(\n        a,\n    )?;"),
                ("condition", "if a\n        || b\n    "),
                ("statement", "at_least(x)?;"),
            ]
        );
    }

    #[test]
    fn every_wrapper_has_checks() {
        let operands = operands().unwrap();
        for file in files_below("src/kernels").unwrap() {
            // The gemv of a single type, and that of any, have the checks of q4_k_matvec.
            let some = operands.iter().any(|mutant| mutant.file == file) || file == "src/kernels/matvec.rs";
            assert!(some || read(&file).unwrap().lines().count() < 20, "{file} has no checks");
        }
    }

    #[test]
    fn every_file_has_tests() {
        for file in files_below("src").unwrap() {
            assert!(!tests_of(&file).is_empty(), "{file}");
        }
        assert_eq!(tests_of("src/kernels/rope.rs").last().unwrap(), "library");
        for (_, tests) in TESTS {
            for test in tests.iter().filter(|test| !["*", "lib", "bin", "operands"].contains(test)) {
                assert!(is_test(test), "tests/{test}.rs is gone");
            }
        }
    }

    #[test]
    fn spans_are_of_characters() {
        let source = "a\nbé c\n";
        let value = serde_json::json!({"start": {"line": 2, "column": 2}, "end": {"line": 2, "column": 4}});
        assert_eq!(&source[span(source, &value).unwrap()], "é ");
    }
}
