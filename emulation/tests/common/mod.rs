//! The libraries of the self-tests, each compiled once a program.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kquant_moe_emulation::{Library, available};

/// The sources in a folder of `tests/`, compiled once; `None` (and a note) where nothing can be emulated.
pub fn library(folder: &str) -> Option<&'static Library> {
    // Each test program has one folder.
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            if let Err(reason) = available() {
                let required = std::env::var("KQUANT_MOE_REQUIRE_EMULATION").is_ok_and(|value| value == "1");
                assert!(!required, "KQUANT_MOE_REQUIRE_EMULATION=1, but {reason}");
                eprintln!("skipped: {reason}");
                return None;
            }
            Some(Library::compile(&sources(folder), &[]).expect("the test kernels compile"))
        })
        .as_ref()
}

/// A folder of `tests/`.
pub fn sources(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder)
}
