//! `src/sys.rs` is what bindgen makes of `cuda/kquant_moe.h`. Needs the feature `bindgen`, and libclang with it.
#![cfg(feature = "bindgen")]

use std::{env, fs};

#[test]
fn committed_bindings_are_current() {
    let generated = fs::read_to_string(concat!(env!("OUT_DIR"), "/sys.rs")).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sys.rs");
    if env::var("KQUANT_MOE_BLESS").is_ok_and(|value| value == "1") {
        fs::write(path, &generated).unwrap();
    }
    let committed = fs::read_to_string(path).unwrap();
    if let Some((line, (old, new))) =
        committed.lines().chain([""]).zip(generated.lines().chain([""])).enumerate().find(|(_, (old, new))| old != new)
    {
        panic!(
            "src/sys.rs is not what cuda/kquant_moe.h gives; first at line {}:\n  committed: {old}\n  generated: {new}\n\
             KQUANT_MOE_BLESS=1 cargo test --features bindgen --test bindings writes it anew",
            line + 1
        );
    }
    assert_eq!(committed, generated);
}
