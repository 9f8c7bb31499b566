//! What a build takes from its surroundings as words: the compiler and what runs it, and flags that are a host compiler's.

use std::{ffi::OsString, path::PathBuf};

/// `NVCC` as the words before the compiler, such as `ccache`, and the compiler; `find` finds a program. A value that is a program
/// as a whole has no words before it, although there may be blanks in its path.
pub fn split(value: &str, find: impl Fn(&str) -> Option<PathBuf>) -> Result<(Vec<OsString>, PathBuf), String> {
    if let Some(nvcc) = find(value) {
        return Ok((Vec::new(), nvcc));
    }
    let words: Vec<&str> = value.split_whitespace().collect();
    let missing = |word: &str| format!("NVCC is {value}, and {word} does not exist");
    match words.as_slice() {
        [launcher, arguments @ .., nvcc] => {
            let nvcc = find(nvcc).ok_or_else(|| missing(nvcc))?;
            let launcher = find(launcher).ok_or_else(|| missing(launcher))?;
            let words = arguments.iter().map(OsString::from);
            Ok((std::iter::once(launcher.into_os_string()).chain(words).collect(), nvcc))
        }
        _ => Err(format!("NVCC is {value}, which does not exist")),
    }
}

/// The arguments for `nvcc` with flags such as `-Wp,-DX=1` of `CXXFLAGS` as it hands them on whole: behind `-Xcompiler`, where a
/// comma separates flags unless it is escaped.
pub fn quoted(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut quoted = Vec::new();
    let mut for_host = false;
    for argument in arguments {
        let text = argument.to_str().unwrap_or_default();
        let of_host = ["-Wp,", "-Wa,", "-Wl,"].iter().any(|start| text.starts_with(start));
        if of_host && !for_host {
            quoted.push("-Xcompiler".into());
        }
        let escaped = (of_host || for_host).then(|| text.replace("\\,", ",").replace(',', "\\,"));
        for_host = text == "-Xcompiler";
        quoted.push(escaped.filter(|escaped| !escaped.is_empty()).map_or(argument, OsString::from));
    }
    quoted
}
