//! What is known of faults: results cached by the content they depend on, the results of the last sample, and survivors that
//! somebody has judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::inventory::{Class, Hunk, Mutant, hash, read, root, surroundings};
use crate::process::Outcome;
use crate::{emulation, kernels, rust};

/// The committed results of the last sample.
const RESULTS: &str = "mutants/results.txt";
/// The committed list of survivors that are no gap.
const JUDGED: &str = "mutants/judged.txt";

/// Results of earlier runs on this machine.
pub struct Cache {
    directory: PathBuf,
    surroundings: BTreeMap<(Class, String), String>,
}

impl Cache {
    pub fn new(work: &Path) -> Result<Self, String> {
        let directory = work.join("cache");
        fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        Ok(Self { directory, surroundings: BTreeMap::new() })
    }

    /// What results of a class in a file depend on.
    pub fn surroundings(&mut self, class: Class, file: &str) -> Result<String, String> {
        let key = (class, file.to_owned());
        if let Some(known) = self.surroundings.get(&key) {
            return Ok(known.clone());
        }
        let mut files = match class {
            Class::Cuda | Class::Conditions => kernels::dependencies(file)?,
            Class::Emulation => emulation::dependencies()?,
            Class::Src | Class::Oracle | Class::Operands => rust::dependencies(file)?,
        };
        files.insert(file.to_owned());
        let found = surroundings(&files)?;
        self.surroundings.insert(key, found.clone());
        Ok(found)
    }

    fn path(&mut self, mutant: &Mutant) -> Result<PathBuf, String> {
        let surroundings = self.surroundings(mutant.class, &mutant.file)?;
        let text = mutant.text(&read(&mutant.file)?);
        Ok(self.directory.join(hash([mutant.id(), hash([text]), surroundings])))
    }

    pub fn get(&mut self, mutant: &Mutant) -> Result<Option<Outcome>, String> {
        let path = self.path(mutant)?;
        Ok(fs::read_to_string(path).ok().and_then(|text| Outcome::read(&text)))
    }

    pub fn put(&mut self, mutant: &Mutant, outcome: &Outcome) -> Result<(), String> {
        let path = self.path(mutant)?;
        fs::write(&path, outcome.write()).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// What the repository says of the last sample.
#[derive(Default, Debug, PartialEq)]
pub struct Results {
    /// By class and file: what its results depended on.
    pub files: BTreeMap<(String, String), String>,
    /// Functions and other declarations that were there, by file: faults in them were to be had for the sample.
    pub items: BTreeSet<(String, String)>,
    /// By the name of the fault: class, file, rule and outcome.
    pub faults: BTreeMap<String, (String, String, String, Outcome)>,
}

impl Results {
    pub fn load() -> Result<Self, String> {
        if root().join(RESULTS).exists() { Self::parse(&read(RESULTS)?) } else { Ok(Self::default()) }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut this = Self::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let wrong = || format!("{RESULTS}: {line}");
            let words: Vec<&str> = line.splitn(6, '\t').collect();
            match words[..] {
                ["file", class, file, hash] => {
                    this.files.insert((class.into(), file.into()), hash.into());
                }
                ["item", file, hash] => {
                    this.items.insert((file.into(), hash.into()));
                }
                ["fault", id, class, file, rule, outcome] => {
                    let outcome = Outcome::read(outcome).ok_or_else(wrong)?;
                    this.faults.insert(id.into(), (class.into(), file.into(), rule.into(), outcome));
                }
                _ => return Err(wrong()),
            }
        }
        Ok(this)
    }

    fn write(&self) -> String {
        let mut text =
            String::from("# Written by `.ci/mutants sample --record`: what the last sample depended on and found.\n");
        for ((class, file), hash) in &self.files {
            let _ = writeln!(text, "file\t{class}\t{file}\t{hash}");
        }
        for (file, hash) in &self.items {
            let _ = writeln!(text, "item\t{file}\t{hash}");
        }
        for (id, (class, file, rule, outcome)) in &self.faults {
            let _ = writeln!(text, "fault\t{id}\t{class}\t{file}\t{rule}\t{}", outcome.write());
        }
        text
    }

    pub fn save(&self) -> Result<(), String> {
        fs::write(root().join(RESULTS), self.write()).map_err(|error| format!("{RESULTS}: {error}"))
    }

    /// Whether the faults of a function were there when the last sample was drawn.
    pub fn knows(&self, mutant: &Mutant) -> bool {
        self.items.contains(&(mutant.file.clone(), mutant.item.clone()))
    }
}

/// A survivor that is no gap of the tests, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    pub file: String,
    pub rule: String,
    pub hunk: Hunk,
    pub reason: String,
}

impl Judged {
    pub fn load() -> Result<Vec<Self>, String> {
        if root().join(JUDGED).exists() { Self::parse(&read(JUDGED)?) } else { Ok(Vec::new()) }
    }

    fn parse(text: &str) -> Result<Vec<Self>, String> {
        let mut found = Vec::new();
        let text: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        for entry in
            text.join("\n").split("\n\n").map(|entry| entry.trim_matches('\n')).filter(|entry| !entry.is_empty())
        {
            let wrong = |what: &str| format!("{JUDGED}: {what}:\n{entry}");
            let mut lines = entry.lines();
            let head = lines.next().unwrap_or_default();
            let (file, rule) = head.split_once(' ').ok_or_else(|| wrong("no file and rule"))?;
            let mut take = |sign: &str| {
                let line = lines.next().ok_or_else(|| wrong("a line is missing"))?;
                let rest =
                    line.strip_prefix(sign).ok_or_else(|| wrong(&format!("a line should begin with '{sign}'")))?;
                Ok::<_, String>(rest.trim().to_owned())
            };
            let hunk = Hunk { before: take(" ")?, old: take("-")?, new: take("+")?, after: take(" ")? };
            let reason: Vec<&str> = lines.map(|line| line.trim_start_matches('=').trim()).collect();
            let reason = reason.join(" ");
            if reason.len() < 20 {
                return Err(wrong("no reason"));
            }
            found.push(Self { file: file.into(), rule: rule.into(), hunk, reason });
        }
        Ok(found)
    }

    pub fn is(&self, mutant: &Mutant) -> bool {
        self.file == mutant.file && self.rule == mutant.rule && self.hunk == mutant.hunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_as_written() {
        let mut results = Results::default();
        results.files.insert(("cuda".into(), "cuda/a.cu".into()), "01".into());
        results.items.insert(("cuda/a.cu".into(), "02".into()));
        let fault = ("cuda".into(), "cuda/a.cu".into(), "bound".into(), Outcome::Found("a::b c".into()));
        results.faults.insert("03".into(), fault);
        assert_eq!(Results::parse(&results.write()).unwrap(), results);
        assert!(Results::parse("fault\t1").is_err());
    }

    #[test]
    fn judgements_have_reasons() {
        let entry = "# All of them.\n\ncuda/a.cu bound\n  int a;\n- if (a < b) c();\n+ if (a <= b) c();\n  \n= The two are never\n= equal here.\n";
        let judged = Judged::parse(entry).unwrap();
        assert_eq!(judged.len(), 1);
        assert_eq!(judged[0].reason, "The two are never equal here.");
        assert_eq!((judged[0].hunk.before.as_str(), judged[0].hunk.after.as_str()), ("int a;", ""));
        assert!(Judged::parse("cuda/a.cu bound\n  a\n- b\n+ c\n  d\n").is_err());
    }

    #[test]
    fn the_lists_of_the_repository_are_sound() {
        Results::load().unwrap();
        Judged::load().unwrap();
    }
}
