//! What broken files and broken promises cost: the program says what is wrong in one line, within a second and 200 MiB.
//!
//! A file of its own that holds no large data itself: a child's peak is at least that of the process that starts it.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufWriter, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

#[allow(dead_code)]
#[path = "../../tests/gguf/malformed.rs"]
mod malformed;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tiny-qwen3moe-q4_k_m.gguf");

const MOST_TIME: Duration = Duration::from_secs(1);
const MOST_MEMORY: u64 = 200 << 20;

/// What runs have cost at most, and which.
#[derive(Default)]
struct Worst {
    runs: usize,
    time: (Duration, String),
    memory: (u64, String),
}

impl Worst {
    /// Runs the program, on a machine whose GPUs, if any, are hidden. It must fail, with one line that names all of `parts`
    /// and nothing else.
    #[track_caller]
    #[expect(clippy::zombie_processes, reason = "wait4 waits, and says what was used")]
    fn fails(&mut self, args: &[&str], parts: &[&str]) {
        let start = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_kquant-moe"))
            .args(args)
            .env("CUDA_VISIBLE_DEVICES", "")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        let mut status = 0;
        // SAFETY: a structure of numbers; the pointers are valid for one value each, and the child is not waited for elsewhere.
        let (waited, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage), usage)
        };
        let time = start.elapsed();
        let memory = usage.ru_maxrss as u64 * 1024;
        assert_eq!(waited, child.id() as libc::pid_t);

        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1, "{args:?}: status {status:#x}: {stderr}");
        assert_eq!(stdout, "", "{args:?}");
        let message = stderr.strip_prefix("error: ").and_then(|rest| rest.strip_suffix('\n'));
        let message = message.unwrap_or_else(|| panic!("{args:?}: {stderr}"));
        assert!(message.len() < 1000 && !message.contains(char::is_control), "{args:?}: {message:.1000}");
        for part in parts {
            assert!(message.contains(part), "{args:?}: {part:?} is not in {message:?}");
        }
        assert!(!message.contains("panicked"), "{args:?}: {message}");

        self.runs += 1;
        self.time = self.time.clone().max((time, args.join(" ")));
        self.memory = self.memory.clone().max((memory, args.join(" ")));
        assert!(time < MOST_TIME, "{args:?}: {time:?}");
        assert!(memory < MOST_MEMORY, "{args:?}: {memory} bytes");
    }
}

impl Drop for Worst {
    fn drop(&mut self) {
        let Self { runs, time: (time, slowest), memory: (memory, largest) } = self;
        println!("{runs} runs; longest: {time:.0?} ({slowest}); largest: {} MiB ({largest})", *memory >> 20);
    }
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

#[test]
fn malformed_files_end_in_one_line_soon_and_small() {
    let (dir, mut worst) = (TempDir::new().unwrap(), Worst::default());
    let out = path(&dir, "out.npy");
    let corpus = malformed::corpus();
    assert!(corpus.len() > 50);
    for case in corpus {
        let file = path(&dir, &format!("{}.gguf", case.name));
        fs::write(&file, &case.bytes).unwrap();
        for args in [vec!["info", &file], vec!["run", &file], vec!["logits", &file, "--tokens", "1", "--out", &out]] {
            worst.fails(&args, &[case.name]);
        }
        fs::remove_file(&file).unwrap();
    }
    // Sound, but no model.
    let file = path(&dir, "valid.gguf");
    fs::write(&file, malformed::valid()).unwrap();
    worst.fails(&["run", &file], &["valid.gguf", "qwen3moe"]);
}

#[test]
fn files_cut_anywhere_end_in_one_line_soon_and_small() {
    let (dir, mut worst) = (TempDir::new().unwrap(), Worst::default());
    let bytes = fs::read(TINY).unwrap();
    let file = path(&dir, "cut.gguf");
    let lengths = (0..40).map(|step| step * step * 61).chain([bytes.len() - 4096, bytes.len() - 1]);
    for len in lengths {
        fs::write(&file, &bytes[..len]).unwrap();
        worst.fails(&["run", &file], &["cut.gguf"]);
    }
}

/// Files of some 60 MB that are all metadata: as large as they may be without being mapped instead of read.
#[test]
fn large_metadata_is_refused_soon_and_small() {
    const BYTES: u64 = 60 << 20;
    const STRING: u32 = 8;
    let (dir, mut worst) = (TempDir::new().unwrap(), Worst::default());
    let write = |name: &str, entries: u64, body: &dyn Fn(&mut dyn Write) -> std::io::Result<()>| {
        let file = path(&dir, name);
        let mut out = BufWriter::new(fs::File::create(&file).unwrap());
        out.write_all(b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0").unwrap();
        out.write_all(&entries.to_le_bytes()).unwrap();
        body(&mut out).unwrap();
        out.into_inner().unwrap();
        file
    };
    let key = |out: &mut dyn Write, key: &str, kind: u32| {
        out.write_all(&(key.len() as u64).to_le_bytes())?;
        out.write_all(key.as_bytes())?;
        out.write_all(&kind.to_le_bytes())
    };

    // One value, of characters that are longer when escaped.
    let file = write("string.gguf", 1, &|out| {
        key(out, "general.architecture", STRING)?;
        out.write_all(&BYTES.to_le_bytes())?;
        (0..BYTES / 4).try_for_each(|_| out.write_all(b"\x1b[m\n"))
    });
    worst.fails(&["run", &file], &["not supported", "qwen3moe"]);

    // As many keys as there may be, the longest that fit.
    let file = write("keys.gguf", 65_536, &|out| {
        (0..65_536).try_for_each(|number| {
            key(out, &format!("{number:0width$}", width = (BYTES / 65_536) as usize - 13), 0)?;
            out.write_all(&[7])
        })
    });
    worst.fails(&["run", &file], &["general.architecture", "missing"]);

    // As many tensors as a file of this size has room for.
    let file = write("nothing.gguf", 0, &|out| (0..BYTES).step_by(64).try_for_each(|_| out.write_all(&[0; 64])));
    let mut bytes = fs::OpenOptions::new().write(true).open(&file).unwrap();
    bytes.write_all(b"GGUF\x03\0\0\0\0\0\x01\0\0\0\0\0").unwrap();
    worst.fails(&["run", &file], &["tensor number 0", "found an empty string"]);
}
