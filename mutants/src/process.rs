//! Builds and test programs, with limits.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::inventory::root;

/// What became of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By this test.
    Found(String),
    Survived,
    /// The compiler refuses it.
    NotCompiled,
    /// The compiler makes the same of it.
    Equal,
}

impl Outcome {
    pub fn write(&self) -> String {
        match self {
            Self::Found(test) => format!("found {test}"),
            Self::Survived => "survived".into(),
            Self::NotCompiled => "not-compiled".into(),
            Self::Equal => "equal".into(),
        }
    }

    pub fn read(text: &str) -> Option<Self> {
        Some(match text.split_once(' ') {
            Some(("found", test)) => Self::Found(test.to_owned()),
            None if text == "survived" => Self::Survived,
            None if text == "not-compiled" => Self::NotCompiled,
            None if text == "equal" => Self::Equal,
            _ => return None,
        })
    }
}

/// A compiled test.
#[derive(Clone, Debug)]
pub struct Test {
    pub name: String,
    pub program: PathBuf,
    /// Where it runs.
    pub directory: PathBuf,
    /// Seconds of processor time after which it hangs.
    pub limit: u64,
}

/// Seconds of processor time that a test may take before anybody has seen how long it takes.
const FIRST_LIMIT: u64 = 300;

/// Builds tests of a package (`lib` and `bin` stand for unit tests); `None` when they do not compile.
pub fn build_tests(
    directory: &Path,
    arguments: &[&str],
    tests: &[&str],
    show: bool,
) -> Result<Option<Vec<Test>>, String> {
    let mut command = cargo(directory);
    command.args(["test", "--release", "--no-run", "--message-format=json-render-diagnostics"]).args(arguments);
    for &test in tests {
        match test {
            "lib" => command.arg("--lib"),
            "bin" => command.arg("--bins"),
            _ => command.args(["--test", test]),
        };
    }
    let output = command.output().map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        if show {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
        return Ok(None);
    }
    let mut found = Vec::new();
    for line in output.stdout.split(|&byte| byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<Value>(line) else { continue };
        let Some(program) = message["executable"].as_str() else { continue };
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let name = if kind == "test" { message["target"]["name"].as_str().unwrap_or_default() } else { kind };
        if tests.contains(&name) && message["profile"]["test"] == true {
            found.push(Test {
                name: name.to_owned(),
                program: program.into(),
                directory: message["manifest_path"]
                    .as_str()
                    .and_then(|path| Path::new(path).parent())
                    .unwrap_or(directory)
                    .to_owned(),
                limit: FIRST_LIMIT,
            });
        }
    }
    // As they were asked for: the cheap ones come first.
    found.sort_by_key(|test| tests.iter().position(|&name| name == test.name));
    if found.len() != tests.len() {
        return Err(format!("cargo built {} of the tests {tests:?}", found.len()));
    }
    Ok(Some(found))
}

/// Cargo in a directory, with the target directory of whoever started this program.
fn cargo(directory: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(directory).env("CARGO_TERM_COLOR", "never");
    // A copy is built again for each fault, and without what only a GPU runs.
    if directory != root() {
        command.env("CARGO_INCREMENTAL", "1").env("KQUANT_MOE_CUDA", "off");
    }
    command
}

impl Test {
    /// The same with a limit: runs it without a fault, in which it must pass, and takes the limit from the time it took.
    pub fn measured(&self, environment: &[(&str, OsString)]) -> Result<Self, String> {
        let (found, time) = self.timed(environment, false);
        if let Some(test) = found {
            return Err(format!("{test} fails without a fault: no fault can be judged by it"));
        }
        // Five times as long is a hang; the seconds are for whatever else the machine does.
        Ok(Self { limit: 5 * time.as_secs() + 10, ..self.clone() })
    }

    /// Which of its tests fails first; `None` when it passes. `show`: all of its output, to the end.
    pub fn run(&self, environment: &[(&str, OsString)], show: bool) -> Option<String> {
        self.timed(environment, show).0
    }

    /// The same, and the processor time it took.
    fn timed(&self, environment: &[(&str, OsString)], show: bool) -> (Option<String>, Duration) {
        // The limit is one of processor time, so that a busy machine does not make tests fail; one that sleeps for good ends by
        // the clock.
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"ulimit -t "$1"; shift; exec "$@""#, "sh", &self.limit.to_string()])
            .arg(&self.program)
            .args(["--test-threads=1", "--skip", "cuda"])
            .current_dir(&self.directory)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            // Where the emulation is missing nothing would be found.
            .env("KQUANT_MOE_REQUIRE_EMULATION", "1")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if show { Stdio::inherit() } else { Stdio::null() });
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return (Some(format!("{}: {error}", self.name)), Duration::ZERO),
        };
        let mut stdout = child.stdout.take().expect("the output is piped");
        let (sender, receiver) = channel();
        // It ends with the last process that has the pipe.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        let deadline = Instant::now() + Duration::from_secs(20 * self.limit);
        let mut output = Vec::new();
        let (mut hangs, mut stopped) = (false, false);
        while !stopped {
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => output.extend(bytes),
                Err(RecvTimeoutError::Timeout) => hangs = true,
                Err(RecvTimeoutError::Disconnected) => break,
            }
            stopped = hangs || !show && failed(&output).is_some();
        }
        if stopped {
            // It may have ended by itself.
            let _ = child.kill();
        }
        let (success, time) = wait(&child);
        if show {
            println!("{}", String::from_utf8_lossy(&output));
        }
        if let Some(test) = failed(&output) {
            return (Some(format!("{}::{test}", self.name)), time);
        }
        let text = String::from_utf8_lossy(&output);
        if success && !hangs && text.contains("test result: ok.") {
            return (None, time);
        }
        // The name of the test that ran is the last thing written.
        let last = text.lines().last().unwrap_or_default().trim_end_matches(" ... ").trim_start_matches("test ");
        (Some(format!("{}::{last} (hangs or crashes)", self.name)), time)
    }
}

/// Waits for a child: whether it succeeded, and the processor time that it used.
fn wait(child: &Child) -> (bool, Duration) {
    // SAFETY: both are numbers, for which zeros are valid, and are filled in; the child has not been waited for.
    let (waited, status, usage) = unsafe {
        let (mut status, mut usage) = (0, std::mem::zeroed::<libc::rusage>());
        (libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage), status, usage)
    };
    let time = |value: libc::timeval| Duration::new(value.tv_sec as u64, 1000 * value.tv_usec as u32);
    (waited > 0 && status == 0, time(usage.ru_utime) + time(usage.ru_stime))
}

/// The first test of which the output says that it failed.
fn failed(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    text.lines().find_map(|line| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned()))
}

/// Copies files into another directory, where they differ from what is there.
pub fn mirror(files: &[String], from: &Path, to: &Path) -> Result<(), String> {
    for file in files {
        let (source, target) = (from.join(file), to.join(file));
        let bytes = fs::read(&source).map_err(|error| format!("{file}: {error}"))?;
        write_changed(&target, &bytes)?;
    }
    Ok(())
}

/// Writes a file unless it has these bytes: what is not touched is not built again.
pub fn write_changed(path: &Path, bytes: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let describe = |error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).map_err(describe)?;
    fs::write(path, bytes).map_err(describe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_as_written() {
        for outcome in [Outcome::Found("a::b c".into()), Outcome::Survived, Outcome::NotCompiled, Outcome::Equal] {
            assert_eq!(Outcome::read(&outcome.write()), Some(outcome));
        }
        assert_eq!(Outcome::read("nothing"), None);
    }

    #[test]
    fn the_first_failure_is_found() {
        let output = b"\nrunning 3 tests\ntest a ... ok\ntest b::c ... FAILED\ntest d ... FAILED\n";
        assert_eq!(failed(output), Some("b::c".into()));
        assert_eq!(failed(b"test a ... ok\ntest FAILED ... ok\n"), None);
    }

    fn shell(script: &str, limit: u64) -> Option<String> {
        let directory = std::env::temp_dir();
        let path = directory.join(format!("kquant-moe-mutants-{}-{limit}-{}", std::process::id(), script.len()));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let found = Test { name: "t".into(), program: path.clone(), directory, limit }.run(&[], false);
        fs::remove_file(path).unwrap();
        found
    }

    #[test]
    fn hangs_crashes_and_silence_are_failures() {
        assert_eq!(shell("echo 'test result: ok. 1 passed'", 10), None);
        assert_eq!(shell("echo 'test a ... FAILED'; sleep 100", 10), Some("t::a".into()));
        assert_eq!(shell("printf 'test a ... '; while :; do :; done", 1), Some("t::a (hangs or crashes)".into()));
        assert_eq!(shell("printf 'test a ... '; kill -SEGV $$", 10), Some("t::a (hangs or crashes)".into()));
        assert!(shell("exit 0", 10).is_some());
    }
}
