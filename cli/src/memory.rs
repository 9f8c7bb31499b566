//! Host memory in use, as the system counts it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(2);

/// Bytes of the process that are in memory and are no file's: the heap, stacks, copies. The pages of a mapped model
/// file do not count, since the system takes them back when it needs them; so the peak that it keeps (`VmHWM`), in
/// which they do, says little. `None` where the system is not Linux.
fn anonymous() -> Option<u64> {
    parse(&fs::read_to_string("/proc/self/status").ok()?)
}

/// `RssAnon` of `/proc/self/status`, in bytes.
fn parse(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Watches the memory that a piece of work takes, beyond what there was before it.
pub struct Peak {
    before: u64,
    seen: Arc<Seen>,
    watcher: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    most: AtomicU64,
    done: AtomicBool,
}

impl Seen {
    fn look(&self) {
        self.most.fetch_max(anonymous().unwrap_or(0), Ordering::Relaxed);
    }
}

impl Peak {
    /// Starts to look, every few milliseconds on a thread of its own. `None` where the system does not say.
    pub fn watch() -> Option<Self> {
        let before = anonymous()?;
        let seen = Arc::new(Seen::default());
        let watched = seen.clone();
        let watcher = thread::Builder::new().spawn(move || {
            while !watched.done.load(Ordering::Relaxed) {
                watched.look();
                thread::park_timeout(PERIOD);
            }
        });
        Some(Self { before, seen, watcher: Some(watcher.ok()?) })
    }

    /// Looks now: where memory is known to be at its fullest.
    pub fn sample(&self) {
        self.seen.look();
    }

    /// The most bytes seen, beyond those before.
    pub fn bytes(self) -> u64 {
        self.seen.look();
        self.seen.most.load(Ordering::Relaxed).saturating_sub(self.before)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.seen.done.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            watcher.thread().unpark();
            // It cannot have panicked, and nothing would follow from it.
            let _ = watcher.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_understood() {
        let status = "VmHWM:\t  300 kB\nRssAnon:\t     120 kB\nRssFile:\t 180 kB\n";
        assert_eq!(parse(status), Some(120 * 1024));
        for wrong in ["", "RssAnon:\tx kB\n", "RssAnon:\t120\n", "RssAnon:\t18446744073709551615 kB\n"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_was_freed_again_is_seen() {
        const BYTES: usize = 64 << 20;
        let (sampled, watched) = (Peak::watch().unwrap(), Peak::watch().unwrap());
        let full = std::hint::black_box(vec![1_u8; BYTES]);
        sampled.sample();
        thread::sleep(50 * PERIOD);
        drop(full);
        for peak in [sampled, watched] {
            let bytes = peak.bytes();
            assert!(bytes >= BYTES as u64 / 2, "{bytes}");
        }
    }
}
