//! Faults in the emulation: it is built with the fault, without kernels, and its own tests judge it. What they do not notice
//! meets the kernels' tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kquant_moe_emulation::link;

use crate::inventory::{Mutant, files_below, read, root};
use crate::kernels::{compile, cpp_sources, environment, is_test, with_runtime};
use crate::process::{Outcome, Test, build_tests, mirror, write_changed};

/// The emulation's tests, without those that measure its speed; cheap ones first.
const TESTS: [&str; 4] = ["lib", "rules", "kernels", "faults"];
/// Kernels whose tests see what the emulation computes and how, cheap ones first.
const KERNELS: [&str; 9] =
    ["residual_add", "argmax", "rms_norm", "quantize", "moe_group", "embedding", "rope", "moe_router", "q6_k_gemv"];
/// A package of its own, so that nothing but the emulation is built.
const WORKSPACE: &str = "[workspace]\nmembers = [\"emulation\"]\nresolver = \"3\"\n";

pub struct Emulation {
    work: PathBuf,
    /// The emulation's own tests in each worker's directory, with their limits.
    own: Vec<Test>,
    /// Tests of kernels, and with their limits once they have passed without a fault.
    kernels: Vec<(Test, OnceLock<Result<Test, String>>)>,
}

impl Emulation {
    /// Builds the tests in the directory of each worker, and sees the emulation's own pass.
    pub fn new(work: &Path, workers: usize) -> Result<Self, String> {
        let mut this = Self { work: work.to_owned(), own: Vec::new(), kernels: Vec::new() };
        for worker in 0..workers {
            let directory = this.prepare(worker)?;
            this.own = build(&directory, true)?.ok_or("the emulation's tests do not compile")?;
            keep_originals(&directory)?;
        }
        this.own = this.own.iter().map(|test| test.measured(&[])).collect::<Result<_, _>>()?;
        let names: Vec<&str> = KERNELS.into_iter().filter(|name| is_test(name)).collect();
        let kernels = build_tests(&root(), &[], &names, true)?.ok_or("the tests of kernels do not compile")?;
        this.kernels = kernels.into_iter().map(|test| (test, OnceLock::new())).collect();
        Ok(this)
    }

    fn directory(&self, worker: usize) -> PathBuf {
        self.work.join(format!("emulation-{worker}"))
    }

    /// The emulation without kernels, as a workspace.
    fn prepare(&self, worker: usize) -> Result<PathBuf, String> {
        let directory = self.directory(worker);
        mirror(&sources()?, &root(), &directory)?;
        // Kernels are not compiled with it: there are only headers.
        let headers: Vec<String> = cpp_sources()?.into_iter().filter(|file| !file.ends_with(".cu")).collect();
        mirror(&headers, &root(), &directory)?;
        write_changed(&directory.join("Cargo.toml"), WORKSPACE.as_bytes())?;
        if !directory.join("Cargo.lock").exists() {
            mirror(&["Cargo.lock".into()], &root(), &directory)?;
        }
        Ok(directory)
    }

    pub fn run(&self, worker: usize, mutant: &Mutant, show: bool) -> Result<Outcome, String> {
        let directory = self.prepare(worker)?;
        let text = mutant.text(&read(&mutant.file)?);
        write_changed(&directory.join(&mutant.file), text.as_bytes())?;
        let outcome = self.try_tests(&directory, mutant, show);
        write_changed(&directory.join(&mutant.file), read(&mutant.file)?.as_bytes())?;
        outcome
    }

    fn try_tests(&self, directory: &Path, mutant: &Mutant, show: bool) -> Result<Outcome, String> {
        let Some(tests) = build(directory, show)? else { return Ok(Outcome::NotCompiled) };
        let header = mutant.file.starts_with("emulation/include/");
        let same_runtime =
            originals(directory)?.iter().all(|(original, new)| fs::read(original).ok() == fs::read(new).ok());
        if same_runtime && !header {
            return Ok(Outcome::Equal);
        }
        for mut test in tests {
            test.limit = self.own.iter().find(|own| own.name == test.name).map_or(test.limit, |own| own.limit);
            if let Some(found) = test.run(&[], show) {
                return Ok(Outcome::Found(found));
            }
        }
        self.try_kernels(directory, header, same_runtime, show)
    }

    /// The tests of kernels with the changed runtime and, for a header, with kernels compiled against it.
    fn try_kernels(&self, directory: &Path, header: bool, same_runtime: bool, show: bool) -> Result<Outcome, String> {
        let runtime = out_directory(directory)?.join("libkqm_emulation_runtime.a");
        let mut changed = !same_runtime;
        for (test, measured) in &self.kernels {
            let mut objects = Vec::new();
            if header {
                let object = directory.join(format!("{}.o", test.name));
                let include = directory.join("emulation/include");
                if compile(&root().join("cuda"), &test.name, Some(&include), &object)?.is_none() {
                    return Ok(Outcome::NotCompiled);
                }
                let original = directory.join(format!("original-{}.o", test.name));
                if !original.exists() {
                    // Against headers in the same place, whose name objects hold.
                    return Err(format!("{} was not compiled without a fault", test.name));
                }
                changed |= fs::read(&object).ok() != fs::read(&original).ok();
                objects.push(object);
            }
            if !changed {
                continue;
            }
            let library = directory.join("kernels.so");
            link(&objects, Some(&runtime), true, &library)?;
            let test = measured.get_or_init(|| test.measured(&[])).as_ref().map_err(String::clone)?;
            if let Some(found) = test.run(&environment(&library), show) {
                return Ok(Outcome::Found(found));
            }
        }
        Ok(if changed { Outcome::Survived } else { Outcome::Equal })
    }
}

/// Without a fault: the objects of the kernels, and of the runtime, to compare others with.
fn keep_originals(directory: &Path) -> Result<(), String> {
    for kernel in KERNELS {
        let object = directory.join(format!("original-{kernel}.o"));
        compile(&root().join("cuda"), kernel, Some(&directory.join("emulation/include")), &object)?
            .ok_or(format!("{kernel} does not compile"))?;
    }
    for (original, new) in originals(directory)? {
        fs::copy(&new, &original).map_err(|error| format!("{}: {error}", new.display()))?;
    }
    Ok(())
}

/// The runtime's objects, and where their originals are kept.
fn originals(directory: &Path) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let out = out_directory(directory)?;
    let entries = fs::read_dir(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let mut objects: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    objects.retain(|path| path.extension().is_some_and(|extension| extension == "o"));
    if objects.len() < 5 {
        return Err(format!("{} has no objects", out.display()));
    }
    let kept = |object: &PathBuf| {
        let name = object.file_name().unwrap_or_default().to_string_lossy();
        directory.join(format!("original-{}", name.rsplit('-').next().unwrap_or(&name)))
    };
    Ok(objects.into_iter().map(|object| (kept(&object), object)).collect())
}

/// Where the build script left its objects: there is one such directory, as this build always has the same arguments.
fn out_directory(directory: &Path) -> Result<PathBuf, String> {
    let build = directory.join("target/release/build");
    let entries = fs::read_dir(&build).map_err(|error| format!("{}: {error}", build.display()))?;
    let out = entries.flatten().map(|entry| entry.path().join("out"));
    let mut found = out.filter(|out| out.join("libkqm_emulation_runtime.a").exists());
    found.next().ok_or(format!("{} has no runtime", build.display()))
}

fn build(directory: &Path, show: bool) -> Result<Option<Vec<Test>>, String> {
    // Each worker has its own: one cargo would wait for the other.
    let target = directory.join("target");
    let arguments = ["--offline", "-p", "kquant-moe-emulation", "--target-dir", target.to_str().ok_or("a path")?];
    build_tests(directory, &arguments, &TESTS, show)
}

fn sources() -> Result<Vec<String>, String> {
    files_below("emulation")
}

/// What the result of a fault of the emulation depends on.
pub fn dependencies() -> Result<BTreeSet<String>, String> {
    let mut files: BTreeSet<String> = sources()?.into_iter().collect();
    files.extend(KERNELS.iter().map(|name| format!("tests/{name}.rs")));
    files.extend(KERNELS.iter().map(|name| format!("cuda/{name}.cu")));
    files.extend(files_below("tests/common")?);
    files.retain(|file| root().join(file).is_file());
    with_runtime(files)
}
