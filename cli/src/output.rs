//! What the program writes: results on standard output, everything else on standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use kquant_moe::{Error, Result};

/// Files below this load too fast for a progress bar.
const PROGRESS_BYTES: u64 = 256 << 20;

/// Standard output. When its reader is gone, what comes is dropped: a command whose result is also an exit code goes on to
/// that, and others ask [`Out::is_closed`].
pub struct Out {
    stdout: io::Stdout,
    closed: bool,
}

impl Out {
    /// Standard output.
    pub fn new() -> Self {
        Self { stdout: io::stdout(), closed: false }
    }

    /// Whether the reader is gone.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes text and makes it visible.
    pub fn text(&mut self, text: impl Display) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        match write!(self.stdout, "{text}").and_then(|()| self.stdout.flush()) {
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

/// A progress bar on standard error over `total` bytes: for large files, when a person looks.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar that says what is `doing`.
    pub fn new(doing: &'static str, total: u64) -> Self {
        if total < PROGRESS_BYTES || !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::new(total).with_style(style).with_message(doing))
    }

    /// Sets the bytes done.
    pub fn set(&self, done: u64) {
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
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
