//! One kernel, one name, five places: `cuda/NAME.cu`, `src/kernels/NAME.rs`, `src/oracle/NAME.rs`, `tests/NAME.rs` and
//! `benches/NAME.rs`.

use std::{collections::BTreeSet, fs, path::Path};

/// Directory, extension, and the files in it that belong to no kernel. `tests/` and `benches/` also hold what is not about
/// one kernel, so there nothing follows from a file's presence.
const PLACES: [(&str, &str, Strays); 5] = [
    ("cuda", "cu", Strays::Only(&["table"])),
    ("src/kernels", "rs", Strays::Only(&["mod"])),
    ("src/oracle", "rs", Strays::Only(&["mod", "exp", "tree"])),
    ("tests", "rs", Strays::Any),
    ("benches", "rs", Strays::Any),
];

enum Strays {
    Only(&'static [&'static str]),
    Any,
}

/// Names of the files with that extension directly in the directory; none when it does not exist.
fn names(dir: &str, extension: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let files = fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
    files
        .filter(|file| file.extension().is_some_and(|found| found == extension))
        .map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_kernel_is_in_all_five_places() {
    let mut kernels = BTreeSet::new();
    for (dir, extension, strays) in PLACES {
        if let Strays::Only(strays) = strays {
            kernels.extend(names(dir, extension).into_iter().filter(|name| !strays.contains(&name.as_str())));
        }
    }
    assert!(!kernels.is_empty(), "no kernels at all");
    let mut missing = Vec::new();
    for kernel in &kernels {
        for (dir, extension, _) in PLACES {
            if !names(dir, extension).contains(kernel) {
                missing.push(format!("{dir}/{kernel}.{extension}"));
            }
        }
    }
    assert!(missing.is_empty(), "missing:\n{}", missing.join("\n"));
}
