//! The libraries of the self-tests, each compiled once a program.

use std::path::Path;
use std::sync::OnceLock;

use kquant_moe_emulation::{Library, available};

/// The kernels of `tests/kernels`; `None` (and a note) where nothing can be emulated.
pub fn kernels() -> Option<&'static Library> {
    static KERNELS: OnceLock<Option<Library>> = OnceLock::new();
    KERNELS
        .get_or_init(|| {
            if let Err(reason) = available() {
                eprintln!("skipped: {reason}");
                return None;
            }
            Some(Library::compile(&directory(), &[]).expect("the test kernels compile"))
        })
        .as_ref()
}

/// Where the sources of the test kernels lie.
pub fn directory() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}
