//! Every fault that can be planted, with a name that survives changes elsewhere in its file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::lexer::{Token, tokens};
use crate::rules::{Edit, apply, faults};

/// What is counted on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Kernels, their headers and launchers.
    Cuda,
    /// Single conditions of launchers.
    Conditions,
    /// What the emulation checks with.
    Emulation,
    /// The library.
    Src,
    /// The oracles and the CPU backend.
    Oracle,
    /// Single checks of operands in the kernels' wrappers.
    Operands,
}

impl Class {
    pub const ALL: [Self; 6] = [Self::Cuda, Self::Conditions, Self::Emulation, Self::Src, Self::Oracle, Self::Operands];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Conditions => "conditions",
            Self::Emulation => "emulation",
            Self::Src => "src",
            Self::Oracle => "oracle",
            Self::Operands => "operands",
        }
    }

    /// The class of a Rust file's faults.
    pub fn of_rust(file: &str) -> Self {
        let oracle = file.starts_with("src/oracle/") || file.starts_with("src/model/cpu");
        if oracle { Self::Oracle } else { Self::Src }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A single fault.
#[derive(Clone, Debug)]
pub struct Mutant {
    pub class: Class,
    /// Below the repository's root.
    pub file: String,
    pub rule: String,
    pub edits: Vec<Edit>,
    /// The first line that changes, from one on.
    pub line: usize,
    pub hunk: Hunk,
    /// What the function (or another declaration) around it hashes to.
    pub item: String,
}

/// The lines of a fault and their neighbours, without indentation: what names a fault, together with its file and rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hunk {
    pub before: String,
    pub old: String,
    pub new: String,
    pub after: String,
}

impl Mutant {
    pub fn new(class: Class, file: &str, rule: &str, source: &str, edits: Vec<Edit>, item: String) -> Self {
        let (line, hunk) = hunk(source, &apply(source, &edits));
        Self { class, file: file.to_owned(), rule: rule.to_owned(), edits, line, hunk, item }
    }

    /// The mutated source.
    pub fn text(&self, source: &str) -> String {
        apply(source, &self.edits)
    }

    /// Sixteen digits that name it.
    pub fn id(&self) -> String {
        let Hunk { before, old, new, after } = &self.hunk;
        hash([self.file.as_str(), &self.rule, before, old, new, after])
    }

    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.place(), self.rule)?;
        write!(f, "{}", self.hunk)
    }
}

impl fmt::Display for Hunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hunk { before, old, new, after } = self;
        write!(f, "  {before}\n- {old}\n+ {new}\n  {after}")
    }
}

fn hunk(old: &str, new: &str) -> (usize, Hunk) {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same = |a: &&str, b: &&str| a == b;
    let first = old.iter().zip(&new).take_while(|(a, b)| same(a, b)).count();
    let most = old.len().min(new.len()) - first;
    let last = old.iter().rev().zip(new.iter().rev()).take(most).take_while(|(a, b)| same(a, b)).count();
    let join = |lines: &[&str]| {
        let lines: Vec<&str> = lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
        lines.join(" ")
    };
    let filled = |line: &&&str| !line.trim().is_empty();
    let hunk = Hunk {
        before: old[..first].iter().rev().find(filled).map_or("", |line| line.trim()).to_owned(),
        old: join(&old[first..old.len() - last]),
        new: join(&new[first..new.len() - last]),
        after: old[old.len() - last..].iter().find(filled).map_or("", |line| line.trim()).to_owned(),
    };
    (first + 1, hunk)
}

/// Sixteen hexadecimal digits of texts, told apart.
pub fn hash<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> String {
    let mut state = Sha256::new();
    for part in parts {
        state.update((part.as_ref().len() as u64).to_le_bytes());
        state.update(part);
    }
    state.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this program is a package of the repository").to_owned()
}

pub fn read(file: &str) -> Result<String, String> {
    fs::read_to_string(root().join(file)).map_err(|error| format!("{file}: {error}"))
}

/// All files below a directory, sorted, as paths below the root.
pub fn files_below(directory: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let entries = fs::read_dir(root().join(directory)).map_err(|error| format!("{directory}: {error}"))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("{directory}: {error}"))?;
        let path = format!("{directory}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The header of the ABI. `tests/bindings.rs` compares each of its constants and structures with `src/sys.rs`, and there is no
/// other code in it.
const BINDINGS: &str = "cuda/kquant_moe.h";

/// The sources of `cuda/` or of the emulation, in which faults are planted.
pub fn cpp_files(directory: &str) -> Result<Vec<String>, String> {
    let source = |file: &String| [".cu", ".cuh", ".h", ".cpp"].iter().any(|end| file.ends_with(end));
    Ok(files_below(directory)?.into_iter().filter(|file| source(file) && file != BINDINGS).collect())
}

/// Every fault of `cuda/` and of the emulation.
pub fn cpp_mutants() -> Result<Vec<Mutant>, String> {
    let mut found = Vec::new();
    for (class, directory) in
        [(Class::Cuda, "cuda"), (Class::Emulation, "emulation/src"), (Class::Emulation, "emulation/include")]
    {
        for file in cpp_files(directory)? {
            found.extend(mutants_of(class, &file, &read(&file)?)?);
        }
    }
    Ok(found)
}

/// Every fault of a C++ source.
pub fn mutants_of(class: Class, file: &str, source: &str) -> Result<Vec<Mutant>, String> {
    let tokens = tokens(source).map_err(|text| format!("{file}: {text}"))?;
    let items = items(source, &tokens);
    let mutant = |fault: crate::rules::Fault| {
        let at = fault.edits.iter().map(|edit| edit.range.start).min().unwrap_or(0);
        let item = items.range(..=at).next_back().map_or_else(String::new, |(_, item)| item.clone());
        let launcher = class == Class::Cuda && ["condition", "status"].contains(&fault.rule);
        let class = if launcher { Class::Conditions } else { class };
        Mutant::new(class, file, fault.rule, source, fault.edits, item)
    };
    Ok(faults(source, &tokens).into_iter().map(mutant).collect())
}

/// Where each function, type or other declaration of a file begins, and what its tokens hash to.
fn items(source: &str, tokens: &[Token]) -> BTreeMap<usize, String> {
    let text = |at: usize| &source[tokens[at].range.clone()];
    let mut found = BTreeMap::new();
    let (mut start, mut depth, mut at) = (0, 0, 0);
    while at < tokens.len() {
        let directive = tokens[at].directive.is_some();
        let mut ends = directive && tokens.get(at + 1).is_none_or(|next| next.directive != tokens[at].directive);
        if !directive {
            match text(at) {
                "{" if depth == 0 && ["namespace", "extern"].contains(&text(start)) => ends = true,
                "{" | "(" => depth += 1,
                "}" if depth == 0 => ends = true,
                "}" => {
                    depth -= 1;
                    ends = depth == 0 && tokens.get(at + 1).is_none_or(|_| text(at + 1) != ";");
                }
                ")" => depth -= 1,
                ";" => ends = depth == 0,
                _ => {}
            }
        }
        if ends {
            found.insert(tokens[start].range.start, hash((start..=at).map(text)));
            start = at + 1;
        }
        at += 1;
    }
    if start < tokens.len() {
        found.insert(tokens[start].range.start, hash((start..tokens.len()).map(text)));
    }
    found
}

/// The files of `cuda/` that a file includes, itself among them.
pub fn includes(file: &str) -> Result<BTreeSet<String>, String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![file.to_owned()]);
    while let Some(file) = open.pop() {
        if found.contains(&file) {
            continue;
        }
        for line in read(&file)?.lines() {
            let name = line.strip_prefix("#include \"").and_then(|rest| rest.split('"').next());
            if let Some(path) = name.and_then(|name| resolve(&file, name)) {
                open.push(path);
            }
        }
        found.insert(file);
    }
    Ok(found)
}

/// An included file below the root: beside the file, or in one of the directories of the build.
fn resolve(file: &str, name: &str) -> Option<String> {
    let directory = file.rsplit_once('/').map_or("", |(directory, _)| directory);
    [directory, "cuda", "emulation/include"].iter().find_map(|directory| {
        let mut path: Vec<&str> = directory.split('/').collect();
        for part in name.split('/') {
            if part == ".." {
                path.pop();
            } else {
                path.push(part);
            }
        }
        let path = path.join("/");
        root().join(&path).is_file().then_some(path)
    })
}

/// The kernels that a file of `cuda/` is part of: names of `.cu` files, without the ending.
pub fn kernels_of(file: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for kernel in cpp_files("cuda")?.into_iter().filter(|name| name.ends_with(".cu")) {
        if includes(&kernel)?.contains(file) {
            found.push(kernel["cuda/".len()..kernel.len() - ".cu".len()].to_owned());
        }
    }
    Ok(found)
}

/// What results of a file's faults depend on, besides the file's own text: what is compiled with it, and the tests.
/// Comments do not count.
pub fn surroundings(files: &BTreeSet<String>) -> Result<String, String> {
    let mut parts = Vec::new();
    for file in files {
        parts.push(file.clone());
        parts.push(without_comments(file, &fs::read(root().join(file)).map_err(|error| format!("{file}: {error}"))?));
    }
    Ok(hash(parts))
}

fn without_comments(file: &str, bytes: &[u8]) -> String {
    let source = String::from_utf8_lossy(bytes);
    let cpp = [".cu", ".cuh", ".h", ".cpp"].iter().any(|end| file.ends_with(end));
    if cpp && let Ok(tokens) = tokens(&source) {
        let texts: Vec<&str> = tokens.into_iter().map(|token| &source[token.range]).collect();
        return texts.join(" ");
    }
    let comment = if file.ends_with(".toml") { "#" } else { "//" };
    let lines: Vec<&str> =
        source.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(comment)).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::RULES;

    #[test]
    fn every_rule_has_faults_and_every_file_is_read() {
        let mutants = cpp_mutants().unwrap();
        for (rule, _) in RULES {
            let count = mutants.iter().filter(|mutant| mutant.rule == rule).count();
            assert!(count > 0, "{rule} plants nothing: either the sources or the rule have lost it");
        }
        // Files of declarations alone, and of what is compiled for the device only.
        let without =
            ["cuda/table.cu", "cuda/common/flags.cuh", "emulation/include/emulation.h", "emulation/src/table.cpp"];
        for directory in ["cuda", "emulation/src", "emulation/include"] {
            for file in cpp_files(directory).unwrap() {
                let some = mutants.iter().any(|mutant| mutant.file == file);
                assert!(some || without.contains(&file.as_str()), "{file} has no faults");
            }
        }
    }

    #[test]
    fn every_fault_changes_one_place_and_keeps_the_lines() {
        for directory in ["cuda", "emulation/src", "emulation/include"] {
            for file in cpp_files(directory).unwrap() {
                let source = read(&file).unwrap();
                for mutant in mutants_of(Class::Cuda, &file, &source).unwrap() {
                    let text = mutant.text(&source);
                    assert!(text != source && text.lines().count() == source.lines().count(), "{mutant}");
                    assert!(!mutant.item.is_empty(), "{mutant}");
                }
            }
        }
    }

    #[test]
    fn every_condition_of_a_launcher_is_dropped() {
        let mutants = cpp_mutants().unwrap();
        for file in cpp_files("cuda").unwrap() {
            let source = read(&file).unwrap();
            let lines: Vec<&str> = source.lines().map(str::trim).collect();
            for (number, line) in (1..).zip(&lines).filter(|(_, line)| !line.starts_with("#define")) {
                if !line.contains("KQM_REQUIRE(") && !line.contains("KQM_TRY(") {
                    continue;
                }
                let length = lines[number - 1..].iter().position(|line| line.ends_with(';')).unwrap();
                let here = |mutant: &&Mutant| mutant.file == file && (number..=number + length).contains(&mutant.line);
                let dropped = mutants.iter().filter(here).filter(|mutant| mutant.class == Class::Conditions).count();
                let conjuncts: usize =
                    lines[number - 1..number + length].iter().map(|line| line.matches("&&").count()).sum();
                assert!(dropped > conjuncts, "{file}:{number}: {conjuncts} conjunctions, {dropped} dropped conditions");
            }
        }
    }

    #[test]
    fn a_fault_is_named_by_its_lines() {
        let source = "int f() {\n  a();\n\n  if (b < 1) c();\n}\n";
        let name = |source: &str| {
            let found = mutants_of(Class::Cuda, "x", source).unwrap();
            let mutant = found.into_iter().find(|mutant| mutant.rule == "bound").unwrap();
            (mutant.line, mutant.id(), mutant.hunk)
        };
        let (line, id, hunk) = name(source);
        assert_eq!(line, 4);
        assert_eq!((hunk.before.as_str(), hunk.old.as_str()), ("a();", "if (b < 1) c();"));
        assert_eq!((hunk.new.as_str(), hunk.after.as_str()), ("if (b <= 1) c();", "}"));
        let moved = format!("int g;\n\n{source}");
        assert_eq!((name(&moved).0, name(&moved).1), (6, id));
        assert_ne!(name(&source.replace("a()", "d()")).1, name(source).1);
    }

    #[test]
    fn items_are_hashed_one_by_one() {
        let hashes = |source: &str| items(source, &tokens(source).unwrap()).into_values().collect::<Vec<_>>();
        let source = "namespace {\nint f() { return 1; }\nstruct S { int a; };\n}\n#define A 1\n#define B 2\n";
        let (before, after) = (hashes(source), hashes(&source.replace("return 1", "return 2")));
        assert_eq!(before.len(), 6);
        let changed: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
        assert_eq!(changed, [false, true, false, false, false, false]);
        assert_eq!(hashes(source), hashes(&source.replace("int f() {", "int f() { // a comment\n")));
    }

    #[test]
    fn kernels_are_found_through_headers() {
        let kernels = kernels_of("cuda/common/choose.cuh").unwrap();
        assert!(kernels.contains(&"moe_router".to_owned()) && !kernels.contains(&"argmax".to_owned()), "{kernels:?}");
        assert!(kernels_of("cuda/common/hw.cuh").unwrap().len() > 10);
        assert_eq!(kernels_of("cuda/argmax.cu").unwrap(), ["argmax"]);
    }
}
