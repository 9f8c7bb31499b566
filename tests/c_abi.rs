//! The header is C and C++, the examples in C compile, the table of launchers is complete, and a caller with another header is refused.

use std::fs;
use std::path::Path;
use std::process::Command;

use kquant_moe::{Error, device, sys};

/// Compiles `source` without output, warnings being errors. `None` when there is no such compiler.
fn compile(compiler: &str, language: &str, standard: &str, source: &str) -> Option<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("abi");
    fs::write(&file, source).unwrap();
    let mut command = Command::new(compiler);
    command.args(["-x", language, standard, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-I"]);
    let Ok(output) = command.arg(root.join("cuda")).arg(&file).output() else {
        println!("skipped: no {compiler}");
        return None;
    };
    assert!(output.status.success(), "{command:?}\n{}\n{source}", String::from_utf8_lossy(&output.stderr));
    Some(())
}

/// The compiler that a variable names, or the usual one.
fn compiler(variable: &str, usual: &str) -> String {
    std::env::var(variable).ok().filter(|name| !name.is_empty()).unwrap_or_else(|| usual.to_owned())
}

#[test]
fn the_example_of_the_readme_compiles() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let examples: Vec<&str> = readme.split("```c\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert!(!examples.is_empty(), "the README has no example in C");
    for example in examples {
        // C++ compilers compile C as well, and are what the kernels need anyway.
        for standard in ["-std=c99", "-std=c17"] {
            compile(&compiler("CC", "c++"), "c", standard, example);
        }
    }
}

#[test]
fn the_header_is_c_and_cpp() {
    // A function each, also where it is not called at once.
    let launcher =
        "#include \"kquant_moe.h\"\nkqm_status (*repack)(const kqm_repack_args *, kqm_stream) = kqm_repack;\n";
    // Layouts that the Rust bindings rely on.
    let sizes = "typedef char fixed_block[sizeof(kqm_fixed_block) == 1376 ? 1 : -1];\n";
    let source = format!("{launcher}{sizes}");
    compile(&compiler("CC", "c++"), "c", "-std=c99", &source);
    compile(&compiler("CXX", "c++"), "c++", "-std=c++17", &source);
}

/// The table of launchers is there for who has a build with kernels, and needs no device for it.
#[test]
fn the_table_has_every_launcher() {
    let table = match device::kernels() {
        Ok(table) => table,
        Err(Error::NoCuda(reason)) => return println!("skipped: {reason}"),
        Err(error) => panic!("{error}"),
    };
    let text = format!("{table:?}");
    assert!(text.contains("argmax: Some") && !text.contains("None"), "{text}");
    // Arguments are checked before anything is done with a device.
    let args =
        sys::kqm_residual_add_args { a: std::ptr::null(), b: std::ptr::null(), y: std::ptr::null_mut(), count: 1 };
    // SAFETY: the arguments are refused.
    let status = unsafe { table.residual_add.unwrap()(&args, std::ptr::null_mut()) };
    assert_eq!(status, sys::KQM_NULL_POINTER);
}

/// A call says with which header its caller was compiled.
#[test]
#[cfg(kqm_cuda)]
fn a_caller_with_another_header_is_refused() {
    let args = sys::kqm_residual_add_args::default();
    let caller = |version: u32, size: usize| u64::from(version) << 32 | size as u64;
    let (version, size) = (sys::KQM_ABI_VERSION, size_of_val(&args));
    for (caller, expected) in [
        (caller(version, size), sys::KQM_NULL_POINTER),
        (caller(version + 1, size), sys::KQM_OTHER_ABI),
        (caller(version, size + 8), sys::KQM_OTHER_ABI),
        (0, sys::KQM_OTHER_ABI),
    ] {
        // SAFETY: the arguments are refused.
        let status = unsafe { sys::kqm_launch_residual_add(caller, &args, std::ptr::null_mut()) };
        assert_eq!(status, expected, "{caller:#x}");
    }
    // SAFETY: the function only compares.
    assert!(unsafe { sys::kqm_kernel_table(sys::KQM_ABI + 1) }.is_null());
}
