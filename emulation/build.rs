//! Compiles the emulation and, against it, the kernels of `../cuda`, as plain C++. Without a C++ compiler the crate
//! builds all the same and says at run time why it cannot emulate.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Separates the compiler's arguments in the environment variable that hands them to the crate.
const SEPARATOR: &str = "\u{1f}";

fn main() -> Result<(), Box<dyn Error>> {
    for path in ["../cuda", "include", "src", "build.rs"] {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-env-changed=KQUANT_MOE_EMULATION_SANITIZE");
    let (compiler, arguments, unavailable) = match compile()? {
        Ok((compiler, arguments)) => {
            println!("cargo:rustc-cfg=emulation_available");
            (compiler, arguments, String::new())
        }
        Err(reason) => (String::new(), String::new(), reason),
    };
    println!("cargo:rustc-env=KQM_EMULATION_COMPILER={compiler}");
    println!("cargo:rustc-env=KQM_EMULATION_ARGUMENTS={arguments}");
    println!("cargo:rustc-env=KQM_EMULATION_UNAVAILABLE={unavailable}");
    Ok(())
}

/// The compiler and its arguments, or why there is no emulation.
fn compile() -> Result<Result<(String, String), String>, Box<dyn Error>> {
    let os = env::var("CARGO_CFG_TARGET_OS")?;
    let architecture = env::var("CARGO_CFG_TARGET_ARCH")?;
    if os != "linux" || !["x86_64", "aarch64"].contains(&architecture.as_str()) {
        return Ok(Err(format!("the emulation runs on Linux, x86-64 or aarch64, and this is {os}, {architecture}")));
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .define("KQM_EMULATION", None)
        .include(root.join("include"))
        .include(root.join("../cuda"))
        .flag("-g1")
        .flag("-Wextra")
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        .flag("-fvisibility=hidden");
    // glibc's fma is exact too, but a call; the bits are the same.
    if architecture == "x86_64" && env::var("HOST")? == env::var("TARGET")? && host_has_fma() {
        build.flag("-mfma");
    }
    let sanitizers = env::var("KQUANT_MOE_EMULATION_SANITIZE").unwrap_or_default();
    let sanitizes = !sanitizers.is_empty();
    if sanitizes {
        build
            .flag(format!("-fsanitize={sanitizers}"))
            .flag("-fno-sanitize-recover=all")
            .flag("-fno-omit-frame-pointer");
    }
    // Which of a kernel's loops run at least once, the compiler cannot know. Where it matters the sanitizers do.
    build.flag_if_supported("-Wno-maybe-uninitialized");
    let Some(compiler) = working_compiler(&build) else {
        return Ok(Err("no C++ compiler was found when the tests were built (CXX names one)".to_string()));
    };

    let mut runtime = build.clone();
    runtime.opt_level(3);
    for file in ["dependence", "engine", "fiber", "memory", "shared", "warp"] {
        runtime.file(root.join("src").join(file).with_extension("cpp"));
    }
    runtime.try_compile("kqm_emulation_runtime")?;

    let kernels = kernel_sources(&root.join("../cuda"))?;
    let mut table = build.clone();
    let defines_table = kernels.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>()?;
    let defines_table = defines_table.iter().any(|source| source.contains("kqm_kernel_table"));
    table.define("KQM_EMULATION_HAS_TABLE", if defines_table { "1" } else { "0" });
    table.file(root.join("src/table.cpp")).try_compile("kqm_emulation_table")?;

    // The kernels' accesses of global memory call the runtime (src/dependence.cpp), which has the thread sanitizer's functions. Another
    // sanitizer needs the compiler's instrumentation for itself.
    if !sanitizes {
        build.flag("-fsanitize=thread");
        build.flag_if_supported("--param=tsan-instrument-func-entry-exit=0");
    }
    // The language of a .cu file must be said; it would be taken for a linker script.
    build.flag("-x").flag("c++");
    // An archive without members cannot be linked.
    if !kernels.is_empty() {
        build.clone().files(kernels).try_compile("kqm_emulation_kernels")?;
    }
    let arguments: Vec<String> =
        build.try_get_compiler()?.args().iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    Ok(Ok((compiler, arguments.join(SEPARATOR))))
}

fn working_compiler(build: &cc::Build) -> Option<String> {
    let tool = build.try_get_compiler().ok()?;
    let works = Command::new(tool.path())
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    works.then(|| tool.path().to_string_lossy().into_owned())
}

fn kernel_sources(directory: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(sources)
}

fn host_has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}
