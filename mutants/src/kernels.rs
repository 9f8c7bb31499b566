//! Faults in `cuda/`: each kernel that includes the file is compiled with the fault, and takes the place of the original one
//! in the kernel's own tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kquant_moe_emulation::{compile_command, link};

use crate::inventory::{Class, Mutant, files_below, includes, kernels_of, read, root, surroundings};
use crate::process::{Outcome, Test, build_tests, mirror, write_changed};

/// Tests of all kernels, after (for launchers before) each one's own.
const OF_ALL: [&str; 2] = ["launchers", "regressions"];
/// Kernels whose tests take long, in this order behind the others.
const SLOW: [&str; 8] =
    ["rope", "moe_router", "q6_k_gemv", "q4_k_matvec", "attention", "qkv", "moe_down", "moe_swiglu"];

/// Compiled tests, and a directory for each worker with the sources and objects of its fault.
pub struct Kernels {
    /// Each test, and with its limit once it has passed without a fault.
    tests: BTreeMap<String, (Test, OnceLock<Result<Test, String>>)>,
    work: PathBuf,
}

impl Kernels {
    /// Builds the tests that the mutants need.
    pub fn new(work: &Path, mutants: &[&Mutant]) -> Result<Self, String> {
        let mut names = BTreeSet::new();
        for file in mutants.iter().map(|mutant| &mutant.file).collect::<BTreeSet<_>>() {
            names.extend(kernels_of(file)?.into_iter().filter(|kernel| is_test(kernel)));
        }
        names.extend(OF_ALL.iter().map(|&name| name.to_owned()).filter(|name| is_test(name)));
        let list: Vec<&str> = names.iter().map(String::as_str).collect();
        let tests = build_tests(&root(), &[], &list, true)?.ok_or("the tests do not compile")?;
        let tests = tests.into_iter().map(|test| (test.name.clone(), (test, OnceLock::new()))).collect();
        Ok(Self { tests, work: work.to_owned() })
    }

    /// A test that has passed with the original of a kernel; `None` when there is no such test.
    fn test(&self, name: &str) -> Result<Option<&Test>, String> {
        let Some((test, measured)) = self.tests.get(name) else { return Ok(None) };
        let measure = || {
            let objects = if kernel_file(name).is_some() { vec![self.original(name)?] } else { Vec::new() };
            let library = self.work.join(format!("original-{name}.so"));
            link(&objects, None, true, &library)?;
            test.measured(&environment(&library))
        };
        measured.get_or_init(measure).as_ref().map(Some).map_err(String::clone)
    }

    /// The object of a kernel without a fault.
    fn original(&self, kernel: &str) -> Result<PathBuf, String> {
        let file = format!("cuda/{kernel}.cu");
        let key = surroundings(&with_runtime(includes(&file)?)?)?;
        let object = self.work.join(format!("original-{kernel}-{key}.o"));
        if !object.exists() {
            let unfinished = self.work.join(format!("unfinished-{kernel}-{:?}.o", std::thread::current().id()));
            compile(&root().join("cuda"), kernel, None, &unfinished)?.ok_or(format!("{file} does not compile"))?;
            fs::rename(&unfinished, &object).map_err(|error| format!("{}: {error}", object.display()))?;
        }
        Ok(object)
    }

    /// Tries a fault. Each worker has a number of its own. `show`: the tests' output.
    pub fn run(&self, worker: usize, mutant: &Mutant, show: bool) -> Result<Outcome, String> {
        let directory = self.work.join(format!("worker-{worker}"));
        let text = mutant.text(&read(&mutant.file)?);
        mirror(&cpp_sources()?, &root(), &directory)?;
        write_changed(&directory.join(&mutant.file), text.as_bytes())?;
        let outcome = self.try_kernels(&directory, mutant, show);
        write_changed(&directory.join(&mutant.file), read(&mutant.file)?.as_bytes())?;
        outcome
    }

    fn try_kernels(&self, directory: &Path, mutant: &Mutant, show: bool) -> Result<Outcome, String> {
        let mut kernels = kernels_of(&mutant.file)?;
        kernels.sort_by_key(|kernel| SLOW.iter().position(|slow| slow == kernel).map_or(0, |at| at + 1));
        let mut changed = Vec::new();
        for kernel in kernels {
            let object = directory.join(format!("{kernel}.o"));
            if compile(&directory.join("cuda"), &kernel, None, &object)?.is_none() {
                return Ok(Outcome::NotCompiled);
            }
            let same = fs::read(&object).ok() == fs::read(self.original(&kernel)?).ok();
            if same && !means_nothing_here(mutant) {
                continue;
            }
            changed.push(object.clone());
            let library = directory.join("kernels.so");
            link(&[object], None, true, &library)?;
            let mut tests: Vec<&str> = [kernel.as_str()].into_iter().chain(OF_ALL).collect();
            if mutant.class == Class::Conditions {
                tests.sort_by_key(|&test| test != "launchers");
            }
            for name in tests {
                if let Some(test) = self.test(name)?
                    && let Some(found) = test.run(&environment(&library), show)
                {
                    return Ok(Outcome::Found(found));
                }
            }
        }
        Ok(if changed.is_empty() { Outcome::Equal } else { Outcome::Survived })
    }
}

/// What the emulation gives no meaning yet may be the same code there and another on a device.
fn means_nothing_here(mutant: &Mutant) -> bool {
    mutant.rule == "fence"
}

pub fn environment(library: &Path) -> [(&'static str, OsString); 1] {
    [("KQUANT_MOE_EMULATED_KERNELS", library.into())]
}

pub fn is_test(name: &str) -> bool {
    root().join("tests").join(name).with_extension("rs").is_file()
}

fn kernel_file(name: &str) -> Option<String> {
    let file = format!("cuda/{name}.cu");
    root().join(&file).is_file().then_some(file)
}

/// The sources of `cuda/`, all of them.
pub fn cpp_sources() -> Result<Vec<String>, String> {
    files_below("cuda")
}

/// Adds what is compiled with every kernel.
pub fn with_runtime(mut files: BTreeSet<String>) -> Result<BTreeSet<String>, String> {
    files.extend(files_below("emulation/include")?);
    files.extend(files_below("emulation/src")?);
    files.insert("emulation/build.rs".into());
    Ok(files)
}

/// Compiles a kernel of a copy of `cuda/`; `None` when the compiler refuses. `include`: the emulation's headers, when they
/// are others. Without debug information, so that the same code is the same file, and optimised a little: what that
/// costs is less than what it saves in the tests.
pub fn compile(sources: &Path, kernel: &str, include: Option<&Path>, object: &Path) -> Result<Option<()>, String> {
    let mut command = compile_command()?;
    let mut arguments: Vec<OsString> = command.get_args().map(OsString::from).collect();
    if let Some(include) = include {
        arguments.splice(0..0, ["-I".into(), include.into()]);
    }
    let program = command.get_program().to_owned();
    command = std::process::Command::new(program);
    // Named from where it is, so that no object holds the name of a directory.
    command.current_dir(sources).args(["-I", "."]).args(arguments).args(["-O1", "-g0", "-w", "-c"]);
    command.arg(format!("{kernel}.cu")).arg("-o").arg(object);
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    Ok(output.status.success().then_some(()))
}

/// What the result of a fault of `cuda/` depends on.
pub fn dependencies(file: &str) -> Result<BTreeSet<String>, String> {
    let mut files = BTreeSet::new();
    for kernel in kernels_of(file)? {
        files.extend(includes(&format!("cuda/{kernel}.cu"))?);
        files.extend([
            format!("tests/{kernel}.rs"),
            format!("src/kernels/{kernel}.rs"),
            format!("src/oracle/{kernel}.rs"),
        ]);
    }
    files.extend(OF_ALL.iter().map(|name| format!("tests/{name}.rs")));
    for directory in ["tests/common", "src/oracle"] {
        files.extend(files_below(directory)?);
    }
    files.extend(["src/kernels/mod.rs".to_owned(), "src/sys.rs".into(), "src/model/cpu/dot.rs".into()]);
    files.retain(|file| root().join(file).is_file());
    with_runtime(files)
}
