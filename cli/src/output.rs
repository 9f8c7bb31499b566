//! What the program writes: results on standard output, everything else on standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kquant_moe::gguf::Gguf;
use kquant_moe::{Error, Result};

/// Work that is done before this shows no progress.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two looks of a bar at the clock.
const TICK: Duration = Duration::from_millis(250);

/// Standard output. When its reader is gone, what comes is dropped: a command whose result is also an exit code goes on to
/// that, and others ask [`Out::is_closed`].
pub struct Out {
    stdout: Box<dyn Write>,
    closed: bool,
}

impl Out {
    /// Standard output.
    pub fn new() -> Self {
        Self::to(io::stdout())
    }

    /// What takes its place.
    pub fn to(writer: impl Write + 'static) -> Self {
        Self { stdout: Box::new(writer), closed: false }
    }

    /// Whether the reader is gone.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes text and makes it visible.
    pub fn text(&mut self, text: impl Display) -> Result<()> {
        self.raw(text.to_string().as_bytes())
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        match self.stdout.write_all(bytes).and_then(|()| self.stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            result => result.map_err(|source| io_error("standard output", source)),
        }
    }

    /// Writes a line.
    pub fn line(&mut self, text: impl Display) -> Result<()> {
        self.text(format_args!("{text}\n"))
    }

    /// Writes a JSON value, indented.
    pub fn json(&mut self, value: &serde_json::Value) -> Result<()> {
        self.line(format_args!("{value:#}"))
    }
}

/// An error of the system about a file.
pub fn io_error(path: impl AsRef<Path>, source: io::Error) -> Error {
    Error::Io { path: path.as_ref().into(), source }
}

/// One line on standard error, whatever the message holds: a file name can hold line breaks and terminal codes.
pub fn report(kind: &str, message: &dyn Display) {
    let mut line = format!("{kind}: ");
    for char in message.to_string().chars() {
        if char.is_control() { line.extend(char.escape_default()) } else { line.push(char) }
    }
    // There is nowhere left to say that this failed.
    let _ = writeln!(io::stderr(), "{line}");
}

/// A line on standard error that is no error: what is said about a result, which alone is on standard output.
pub fn note(line: impl Display) {
    // There is nowhere left to say that this failed.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Refuses to overwrite a file that is there, unless it is `force`d, and the model that is read in any case.
pub fn check_output(path: &Path, force: bool, model: Option<&Gguf>) -> Result<()> {
    let same = |part: &Path| part.canonicalize().is_ok_and(|part| path.canonicalize().is_ok_and(|path| path == part));
    if model.is_some_and(|model| model.paths().any(same)) {
        return Err(Error::Invalid(format!("{}: the file is the model that is read", path.display())));
    }
    if !force && path.exists() {
        return Err(Error::Invalid(format!("{}: the file exists; --force overwrites it", path.display())));
    }
    Ok(())
}

/// A progress bar on standard error, when a person looks, and once the work takes longer than two seconds.
pub struct Progress {
    bar: ProgressBar,
    waiting: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Progress {
    /// A bar over `total` bytes that says what is `doing`.
    pub fn bytes(doing: &'static str, total: u64) -> Self {
        Self::stderr(doing, total, "{decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}")
    }

    /// A bar over `total` of something that is counted.
    pub fn count(doing: &'static str, total: usize) -> Self {
        Self::stderr(doing, total as u64, "{pos}/{len} {elapsed}")
    }

    fn stderr(doing: &'static str, total: u64, figures: &str) -> Self {
        let target = io::stderr().is_terminal().then_some(ProgressDrawTarget::stderr);
        Self::new(doing, total, figures, PATIENCE, target)
    }

    /// The bar is drawn to the target, if there is one, when `patience` has passed.
    fn new(
        doing: &'static str,
        total: u64,
        figures: &str,
        patience: Duration,
        target: Option<impl FnOnce() -> ProgressDrawTarget + Send + 'static>,
    ) -> Self {
        let style = ProgressStyle::with_template(&format!("{{msg}} [{{wide_bar}}] {figures}"));
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden())
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(doing);
        let waiting = target.and_then(|target| {
            let (done, bar) = (Arc::new(AtomicBool::new(false)), bar.clone());
            let began = Instant::now();
            let seen = done.clone();
            let wait = move || {
                while !seen.load(Ordering::Acquire) {
                    match patience.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
                        Some(left) => thread::park_timeout(left),
                        None => {
                            bar.set_draw_target(target());
                            // Work of which nothing is heard for long goes on, too.
                            bar.enable_steady_tick(TICK);
                            return;
                        }
                    }
                }
            };
            Some((done, thread::Builder::new().spawn(wait).ok()?))
        });
        Self { bar, waiting }
    }

    /// Sets what is done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// One more is done.
    pub fn step(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((done, thread)) = self.waiting.take() {
            done.store(true, Ordering::Release);
            thread.thread().unpark();
            // It cannot have panicked, and nothing would follow from it.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

/// Bytes as people read them.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::InMemoryTerm;

    /// What a bar shows, and what is left of it.
    fn shown(patience: Duration, work: impl FnOnce(&Progress)) -> (String, String) {
        let term = InMemoryTerm::new(3, 80);
        let target = term.clone();
        let target = move || ProgressDrawTarget::term_like(Box::new(target));
        let progress = Progress::new("testing", 4, "{pos}/{len}", patience, Some(target));
        work(&progress);
        let during = term.contents();
        drop(progress);
        (during, term.contents())
    }

    #[test]
    fn progress_shows_when_it_takes_long() {
        let long = |progress: &Progress| {
            progress.step();
            thread::sleep(Duration::from_millis(600));
            progress.set(3);
            thread::sleep(Duration::from_millis(600));
        };
        let (during, after) = shown(Duration::from_millis(50), long);
        assert!(during.starts_with("testing [") && during.ends_with("3/4"), "{during:?}");
        assert_eq!(after, "");
        let began = Instant::now();
        assert_eq!(shown(Duration::from_secs(60), |progress| progress.step()).0, "");
        assert!(began.elapsed() < Duration::from_secs(30), "nobody waits for a bar");
    }

    #[test]
    fn files_that_are_there_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
        std::fs::write(&old, "").unwrap();
        assert!(check_output(&new, false, None).is_ok() && check_output(&old, true, None).is_ok());
        assert!(check_output(&old, false, None).unwrap_err().to_string().contains("--force"));
        let model = dir.path().join("model.gguf");
        std::fs::write(&model, include_bytes!("../model/tiny-qwen3moe-q4_k_m.gguf")).unwrap();
        let gguf = Gguf::read(&model).unwrap();
        // By any name.
        let other = dir.path().join("sub");
        std::fs::create_dir(&other).unwrap();
        for name in [model.clone(), other.join("../model.gguf")] {
            let error = check_output(&name, true, Some(&gguf)).unwrap_err().to_string();
            assert!(error.contains("the model that is read"), "{error}");
        }
        assert!(check_output(&old, true, Some(&gguf)).is_ok() && check_output(&new, false, Some(&gguf)).is_ok());
    }

    #[test]
    fn bytes_have_the_unit_that_fits() {
        for (count, text) in [
            (0, "0 B"),
            (9_999, "9999 B"),
            (10_000, "10.0 kB"),
            (999_949, "999.9 kB"),
            (1_000_000, "1.0 MB"),
            (12_340_000, "12.3 MB"),
            (1_000_000_000, "1.00 GB"),
            (18_550_000_000, "18.55 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
