//! Kernels that are compiled when a test runs: kernels of the tests' own, and kernels with a planted fault.
//!
//! A fault is a substitution in the text of a source. Each library is a shared object with its own copy of the
//! emulation and hidden symbols, so that many variants of one kernel fit in one program.

use std::ffi::{CString, OsStr, c_char, c_void};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::{Recording, Runtime, Statistics, native};

/// A piece of text to replace in a source. It must occur exactly once, so that it neither goes stale nor hits by chance.
#[derive(Clone, Copy, Debug)]
pub struct Substitution<'a> {
    /// Path below the directory of the sources.
    pub file: &'a str,
    /// The text as it is.
    pub find: &'a str,
    /// The text that takes its place.
    pub replace: &'a str,
}

/// Compiled kernels in a shared object.
pub struct Library {
    object: libloading::Library,
    runtime: Runtime,
    /// The file, whose name is gone: reports look lines up in it.
    _file: File,
}

impl Library {
    /// Compiles all `.cu` files of a directory, with the substitutions made.
    pub fn compile(directory: &Path, substitutions: &[Substitution]) -> Result<Self, String> {
        Self::build(directory, substitutions, None)
    }

    /// Compiles those `.cu` files of `cuda/` with the substitutions made, also in the headers they include; the other
    /// kernels are taken as already compiled. Its [`table`](Self::table) is the table of all of them.
    pub fn faulty_kernels(files: &[&str], substitutions: &[Substitution]) -> Result<Self, String> {
        Self::build(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda"), substitutions, Some(files))
    }

    /// `kernels`: which files of `cuda/` to compile; `None` for all files of another directory.
    fn build(directory: &Path, substitutions: &[Substitution], kernels: Option<&[&str]>) -> Result<Self, String> {
        crate::available()?;
        let work = WorkDirectory::new()?;
        let sources = work.0.join("sources");
        copy_tree(directory, &sources)?;
        for substitution in substitutions {
            substitute(&sources, substitution)?;
        }
        let mut objects = Vec::new();
        for source in files_in(&sources)? {
            let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let wanted = kernels.is_none_or(|files| files.contains(&name.as_str()));
            if source.extension() != Some(OsStr::new("cu")) || !wanted {
                continue;
            }
            let object = work.0.join(&name).with_extension("o");
            run(compile_command()?.arg("-I").arg(&sources).arg("-c").arg(&source).arg("-o").arg(&object))?;
            objects.push(object);
        }
        if let Some(files) = kernels
            && files.len() != objects.len()
        {
            return Err(format!("{files:?} are not all in {}", directory.display()));
        }
        let shared_object = work.0.join("kernels.so");
        link(&objects, None, kernels.is_some(), &shared_object)?;
        Self::open(&shared_object)
    }

    /// Loads a shared object that [`link`] made.
    pub fn open(path: &Path) -> Result<Self, String> {
        // SAFETY: the object was compiled from sources of this repository; loading it runs no code of theirs.
        let object = unsafe { libloading::Library::new(path) }.map_err(|error| error.to_string())?;
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let file_name = CString::new(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        let file_name = file_name.map_err(|error| error.to_string())?;
        let runtime = Runtime {
            last_error: symbol(&object, "kqm_emulation_last_error")?,
            add_to_report: symbol(&object, "kqm_emulation_add_to_report")?,
            last_status: symbol(&object, "kqm_emulation_last_status")?,
            set_schedule: symbol(&object, "kqm_emulation_set_schedule")?,
            set_time_limit: symbol(&object, "kqm_emulation_set_time_limit")?,
            statistics: symbol(&object, "kqm_emulation_statistics")?,
            record: symbol(&object, "kqm_emulation_record")?,
            recorded: symbol(&object, "kqm_emulation_recorded")?,
            recorded_launches: symbol(&object, "kqm_emulation_recorded_launches")?,
            replay: symbol(&object, "kqm_emulation_replay")?,
            forget: symbol(&object, "kqm_emulation_forget")?,
        };
        type Describe = unsafe extern "C" fn(usize, *mut c_char, usize) -> usize;
        type Overrun = unsafe extern "C" fn(*mut c_char, usize) -> usize;
        type Synchronizations = unsafe extern "C" fn() -> u64;
        type ShareBuffers = unsafe extern "C" fn(Describe, Overrun, Synchronizations, *mut c_void, *const c_char);
        let share_buffers: ShareBuffers = symbol(&object, "kqm_emulation_share_buffers")?;
        // SAFETY: the functions stay where they are as long as the program runs.
        unsafe {
            share_buffers(
                native::kqm_emulation_describe,
                native::kqm_emulation_overrun,
                native::kqm_emulation_synchronizations,
                native::kqm_emulation_buffers(),
                file_name.as_ptr(),
            );
        }
        Ok(Library { object, runtime, _file: file })
    }

    /// The `kqm_kernels` table of [`faulty_kernels`](Self::faulty_kernels).
    pub fn table(&self) -> Result<*const c_void, String> {
        let table: unsafe extern "C" fn() -> *const c_void = symbol(&self.object, "kqm_emulation_table")?;
        // SAFETY: returns the address of a constant of the library.
        Ok(unsafe { table() })
    }

    /// A function that the sources define with `KQM_EMULATION_EXPORT`.
    ///
    /// # Safety
    /// `F` must be the function's type, as an `unsafe extern "C" fn`, and must not outlive the library.
    pub unsafe fn function<F: Copy>(&self, name: &str) -> Result<F, String> {
        symbol(&self.object, name)
    }

    /// The report of this thread's last launch; empty when it broke no rule.
    pub fn last_error(&self) -> String {
        self.runtime.last_error()
    }

    /// As [`crate::add_to_report`].
    pub fn add_to_report(&self, line: &str) {
        self.runtime.add_to_report(line)
    }

    /// The status of this thread's last launch.
    pub fn last_status(&self) -> i32 {
        self.runtime.last_status()
    }

    /// As [`crate::set_schedule`].
    pub fn set_schedule(&self, seed: u64) {
        self.runtime.set_schedule(seed)
    }

    /// As [`crate::set_time_limit`].
    pub fn set_time_limit(&self, limit: Duration) {
        self.runtime.set_time_limit(limit)
    }

    /// As [`crate::record`]. The recording must not outlive the library.
    pub fn record<T>(&self, enqueue: impl FnOnce() -> T) -> (T, Recording) {
        self.runtime.record(enqueue)
    }

    /// As [`crate::statistics`].
    pub fn statistics(&self) -> Statistics {
        self.runtime.statistics()
    }
}

/// Whether an argument brings a sanitizer whose runtime is to be linked: that of the thread sanitizer is the emulation's own.
fn sanitizes(argument: &str) -> bool {
    argument.starts_with("-fsanitize=") && argument != "-fsanitize=thread"
}

fn symbol<F: Copy>(object: &libloading::Library, name: &str) -> Result<F, String> {
    // SAFETY: callers give the type that the C++ side has; the copied address lives as long as the library.
    unsafe { object.get::<F>(name.as_bytes()) }.map(|found| *found).map_err(|error| error.to_string())
}

/// The compiler with the arguments that the kernels of this build were compiled with, for code of a shared object; what is
/// missing are the sources' directory (`-I`) and the files.
pub fn compile_command() -> Result<Command, String> {
    crate::available()?;
    let mut compile = compiler();
    compile.args(env!("KQM_EMULATION_ARGUMENTS").split('\u{1f}')).arg("-fPIC");
    Ok(compile)
}

/// Links objects with the emulation's runtime (or another archive of it) into a shared object for [`Library::open`].
/// `kernels`: the objects are of files of `cuda/`; the other kernels are taken as already compiled, and all are in one
/// table.
pub fn link(objects: &[PathBuf], runtime: Option<&Path>, kernels: bool, shared_object: &Path) -> Result<(), String> {
    crate::available()?;
    let archives = Path::new(env!("OUT_DIR"));
    let mut link = compiler();
    link.args(env!("KQM_EMULATION_ARGUMENTS").split('\u{1f}').filter(|a| sanitizes(a)));
    link.arg("-shared").arg("-Wl,-Bsymbolic").args(objects).arg("-Wl,--whole-archive");
    link.arg(runtime.map_or_else(|| archives.join("libkqm_emulation_runtime.a"), Path::to_owned));
    if kernels {
        link.arg(archives.join("libkqm_emulation_table.a"));
    }
    link.arg("-Wl,--no-whole-archive");
    // The changed objects come first: of the archive the linker takes only what is still missing.
    let compiled = archives.join("libkqm_emulation_kernels.a");
    if kernels && compiled.exists() {
        link.arg(compiled).arg("-Wl,--no-undefined");
    }
    run(link.arg("-o").arg(shared_object))
}

/// Compiles files in C and links them, other libraries and all emulated kernels into a program.
pub fn link_program(
    sources: &[PathBuf],
    includes: &[PathBuf],
    libraries: &[PathBuf],
    program: &Path,
) -> Result<(), String> {
    crate::available()?;
    let (work, archives) = (WorkDirectory::new()?, Path::new(env!("OUT_DIR")));
    let mut link = compiler();
    for (number, source) in sources.iter().enumerate() {
        let object = work.0.join(format!("{number}.o"));
        let mut compile =
            Command::new(std::env::var_os("CC").filter(|cc| !cc.is_empty()).unwrap_or_else(|| "cc".into()));
        compile.args(["-std=c99", "-O2", "-Wall", "-Wextra", "-pedantic", "-Werror"]);
        includes.iter().for_each(|directory| {
            compile.arg("-I").arg(directory);
        });
        run(compile.arg("-c").arg(source).arg("-o").arg(&object))?;
        link.arg(object);
    }
    link.args(env!("KQM_EMULATION_ARGUMENTS").split('\u{1f}').filter(|a| sanitizes(a)));
    let [runtime, table, kernels] =
        ["runtime", "table", "kernels"].map(|part| archives.join(format!("libkqm_emulation_{part}.a")));
    link.arg("-Wl,--whole-archive").arg(runtime).arg(table).arg("-Wl,--no-whole-archive").arg(kernels).args(libraries);
    run(link.arg("-pthread").arg("-o").arg(program))
}

fn compiler() -> Command {
    Command::new(env!("KQM_EMULATION_COMPILER"))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// A directory that goes when the library is loaded (or could not be built).
struct WorkDirectory(PathBuf);

impl WorkDirectory {
    fn new() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("OUT_DIR")).join(format!("library-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(WorkDirectory(path))
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        // What is left behind does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn files_in(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let describe = |error: std::io::Error| format!("{}: {error}", directory.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(describe)? {
        paths.push(entry.map_err(describe)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), String> {
    fs::create_dir_all(to).map_err(|error| format!("{}: {error}", to.display()))?;
    for path in files_in(from)? {
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            fs::copy(&path, &target).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}

fn substitute(sources: &Path, substitution: &Substitution) -> Result<(), String> {
    let path = sources.join(substitution.file);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", substitution.file))?;
    let found = text.matches(substitution.find).count();
    if found != 1 {
        return Err(format!("{}: {:?} occurs {found} times, not once", substitution.file, substitution.find));
    }
    fs::write(&path, text.replace(substitution.find, substitution.replace))
        .map_err(|error| format!("{}: {error}", substitution.file))
}
