//! What the build script makes of the words in its environment.

#[path = "../build/nvcc.rs"]
mod nvcc;

use std::ffi::OsString;
use std::path::PathBuf;

/// Programs that there are: by name in a directory of the system's, or by their paths.
fn find(program: &str) -> Option<PathBuf> {
    match program {
        "nvcc" | "ccache" | "env" => Some(PathBuf::from("/usr/bin").join(program)),
        "/opt/cuda/bin/nvcc" | "/opt/my cuda/nvcc" => Some(program.into()),
        _ => None,
    }
}

#[test]
fn a_compiler_may_have_words_before_it() {
    for (value, words, nvcc) in [
        ("nvcc", &[][..], "/usr/bin/nvcc"),
        ("/opt/cuda/bin/nvcc", &[], "/opt/cuda/bin/nvcc"),
        ("/opt/my cuda/nvcc", &[], "/opt/my cuda/nvcc"),
        ("ccache nvcc", &["/usr/bin/ccache"], "/usr/bin/nvcc"),
        ("  ccache  /opt/cuda/bin/nvcc ", &["/usr/bin/ccache"], "/opt/cuda/bin/nvcc"),
        ("env X=1 nvcc", &["/usr/bin/env", "X=1"], "/usr/bin/nvcc"),
    ] {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        assert_eq!(nvcc::split(value, find), Ok((words, nvcc.into())), "{value}");
    }
    for (value, missing) in [
        ("cc", "NVCC is cc, which does not exist"),
        ("ccache cc", "NVCC is ccache cc, and cc does not exist"),
        ("sccache nvcc", "NVCC is sccache nvcc, and sccache does not exist"),
        (" ", "NVCC is  , which does not exist"),
    ] {
        assert_eq!(nvcc::split(value, find), Err(missing.into()), "{value}");
    }
}

#[test]
fn flags_of_the_host_compiler_stay_whole() {
    let quoted = |arguments: &[&str]| -> Vec<String> {
        let arguments = nvcc::quoted(arguments.iter().map(OsString::from));
        arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    };
    for (arguments, expected) in [
        (&["-Wp,-D_FORTIFY_SOURCE=2"][..], &["-Xcompiler", "-Wp\\,-D_FORTIFY_SOURCE=2"][..]),
        (&["-Xcompiler", "-Wp,-DA,-DB", "-O3"], &["-Xcompiler", "-Wp\\,-DA\\,-DB", "-O3"]),
        (&["-Wl,-z,now", "-Wa,-x"], &["-Xcompiler", "-Wl\\,-z\\,now", "-Xcompiler", "-Wa\\,-x"]),
        (&["-Xcompiler", "-Wp\\,-DA"], &["-Xcompiler", "-Wp\\,-DA"]),
        (&["-gencode", "arch=compute_89,code=sm_89", "-Wall"], &["-gencode", "arch=compute_89,code=sm_89", "-Wall"]),
        (&["-Xcompiler", "-Werror", "-Wp,"], &["-Xcompiler", "-Werror", "-Xcompiler", "-Wp\\,"]),
    ] {
        assert_eq!(quoted(arguments), expected, "{arguments:?}");
    }
}
