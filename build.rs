//! Compiles `cuda/*.cu` with `nvcc` into one static library, when there is an `nvcc` to do it with.
//!
//! Without one the crate still builds: `cfg(kqm_cuda)` stays unset and CUDA calls return an error that says why. `KQUANT_MOE_CUDA`
//! (`auto`, `require`, `off`) and the feature `cuda`, which requires, say whether that is acceptable, `KQUANT_MOE_CUDA_ARCHS` (such
//! as `89,90,120`) for which cards to compile, and `KQUANT_MOE_WERROR=1` turns warnings into errors. See docs/building.md for the
//! whole list.
//!
//! With the feature `bindgen` it also generates `OUT_DIR/sys.rs`, which `tests/bindings.rs` compares with the committed
//! `src/sys.rs`.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fmt::Write as _,
    fs,
    hash::{DefaultHasher, Hasher},
    path::{Path, PathBuf},
    process::{Command, Stdio, exit},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// The first release that compiles for sm_120, one of the default targets.
const OLDEST_NVCC: Version = Version(12, 8);
/// Ada, Hopper with its warpgroups, and consumer Blackwell: the cards the kernels are tuned for.
const DEFAULT_ARCHS: [Arch; 3] =
    [Arch { number: 89, specific: false }, Arch { number: 90, specific: true }, Arch { number: 120, specific: false }];
/// `mma.m16n8k32` with s8 operands exists from here on.
const OLDEST_ARCH: u32 = 80;
/// Every variable that changes what is compiled or with what.
const VARIABLES: [&str; 14] = [
    "KQUANT_MOE_CUDA",
    "KQUANT_MOE_CUDA_ARCHS",
    "KQUANT_MOE_WERROR",
    "DOCS_RS",
    "NVCC",
    "CUDA_HOME",
    "CUDA_PATH",
    "PATH",
    "VIRTUAL_ENV",
    "CXX",
    "CXXFLAGS",
    "NVCC_APPEND_FLAGS",
    "NVCC_PREPEND_FLAGS",
    "LIBCLANG_PATH",
];

#[path = "build/nvcc.rs"]
mod nvcc;

type Result<T> = std::result::Result<T, String>;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(kqm_cuda)");
    println!("cargo::rustc-check-cfg=cfg(kqm_avx512)");
    if env::var("CARGO_CFG_TARGET_ARCH").unwrap() == "x86_64" && rustc_minor().is_some_and(|minor| minor >= 89) {
        println!("cargo::rustc-cfg=kqm_avx512");
    }
    for name in VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/nvcc.rs");

    let cuda_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("cuda");
    if let Err(text) = run(&cuda_dir) {
        for line in text.lines() {
            println!("cargo::error={line}");
        }
        exit(1);
    }
}

fn run(cuda_dir: &Path) -> Result<()> {
    let files = walk(cuda_dir)?;
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    // The directories too: a new file changes only them.
    for dir in files.iter().filter_map(|file| file.parent()).collect::<BTreeSet<_>>() {
        println!("cargo::rerun-if-changed={}", dir.display());
    }

    #[cfg(feature = "bindgen")]
    bindings::generate(&cuda_dir.join("kquant_moe.h"))?;

    let built = match find_toolkit()? {
        Ok(toolkit) => Ok(compile(&toolkit, &files, cuda_dir)?),
        Err(reason) => Err(reason),
    };
    // For dependents (`links`): DEP_KQUANT_MOE_INCLUDE and DEP_KQUANT_MOE_ARCHS, empty without CUDA.
    println!("cargo::metadata=include={}", cuda_dir.display());
    let archs = built.as_ref().map_or(Vec::new(), |b| b.archs.code.iter().map(Arch::to_string).collect());
    println!("cargo::metadata=archs={}", archs.join(","));
    // For tests/sass.rs.
    println!("cargo::rustc-env=KQUANT_MOE_CUDA_LIB={}", built.as_ref().map_or("", |b| &b.library));
    println!("cargo::rustc-env=KQUANT_MOE_CUDA_BIN={}", built.as_ref().map_or("", |b| &b.bin));
    if built.is_ok() {
        println!("cargo::rustc-cfg=kqm_cuda");
    }
    write_constant(built.as_ref())
}

/// Writes the constant that src/device/build.rs includes: what was built, or why nothing was. Cargo shows a dependency's warnings
/// to nobody, so the reason has to be in the program.
fn write_constant(built: std::result::Result<&Built, &String>) -> Result<()> {
    let value = match built {
        Ok(built) => {
            let target = |arch: &Arch| format!("Target {{ capability: {}, specific: {} }}", arch.number, arch.specific);
            format!(
                "Ok(CudaBuild {{ nvcc: {:?}, targets: &[{}], ptx: {} }})",
                built.version.to_string(),
                built.archs.code.iter().map(target).collect::<Vec<_>>().join(", "),
                built.archs.ptx
            )
        }
        Err(reason) => format!("Err({reason:?})"),
    };
    let text = format!(
        "/// The CUDA kernels of this build, or why it has none.\n\
         pub const CUDA_BUILD: Result<CudaBuild, &str> = {value};\n"
    );
    let path = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("cuda_build.rs");
    fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// What `KQUANT_MOE_CUDA` and the feature `cuda` ask for.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Auto,
    Require,
    Off,
}

impl Mode {
    fn read() -> Result<Self> {
        let demanded = cfg!(feature = "cuda");
        match variable("KQUANT_MOE_CUDA").as_deref() {
            None | Some("auto") if demanded => Ok(Self::Require),
            None | Some("auto") => Ok(Self::Auto),
            Some("require") => Ok(Self::Require),
            Some("off") if demanded => {
                Err("KQUANT_MOE_CUDA=off forbids what the feature `cuda` of kquant-moe demands: CUDA kernels"
                    .to_owned())
            }
            Some("off") => Ok(Self::Off),
            Some(other) => Err(format!("KQUANT_MOE_CUDA is \"{other}\"; it must be auto, require or off")),
        }
    }
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Version(u32, u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A usable `nvcc` and the directory of its static CUDA runtime.
struct Toolkit {
    /// What runs `nvcc` where something is compiled, such as `ccache`.
    launcher: Vec<OsString>,
    nvcc: PathBuf,
    version: Version,
    lib: PathBuf,
}

/// A toolkit, or why the kernels are not wanted, or not required and impossible; the latter warns.
fn find_toolkit() -> Result<std::result::Result<Toolkit, String>> {
    // docs.rs has no toolkit and its documentation does not depend on one.
    if env::var_os("DOCS_RS").is_some() {
        return Ok(Err("it was built for documentation only (DOCS_RS)".to_owned()));
    }
    let mode = Mode::read()?;
    if mode == Mode::Off {
        return Ok(Err("it was built with KQUANT_MOE_CUDA=off".to_owned()));
    }
    let os = env::var("CARGO_CFG_TARGET_OS").unwrap();
    let mut rejected = Vec::new();
    if os == "linux" {
        for (launcher, nvcc) in candidates(&mut rejected)? {
            match Toolkit::probe(launcher, &nvcc)? {
                Ok(toolkit) => return Ok(Ok(toolkit)),
                Err(reason) => rejected.push(reason),
            }
        }
        if rejected.is_empty() {
            rejected.push(
                "no nvcc in NVCC, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda or Python's site-packages".to_owned(),
            );
        }
    } else {
        rejected.push(format!("the kernels are built on Linux only, and the target is {os}"));
    }
    let reasons = rejected.join("; ");
    if mode == Mode::Require {
        let demand = if cfg!(feature = "cuda") { "the feature `cuda`" } else { "KQUANT_MOE_CUDA=require" };
        return Err(format!(
            "CUDA kernels are required ({demand}), but {reasons}.\n\
             Install CUDA {OLDEST_NVCC} or later, or: pip install \"nvidia-cuda-nvcc==13.0.*\" \
             \"nvidia-cuda-crt==13.0.*\" \"nvidia-nvvm==13.0.*\" \"nvidia-cuda-runtime==13.0.*\" \
             \"nvidia-cuda-cccl==13.0.*\""
        ));
    }
    println!(
        "cargo::warning=building without CUDA: {reasons} (KQUANT_MOE_CUDA=off silences this, =require makes it an error)"
    );
    Ok(Err(reasons))
}

/// Every `nvcc` there is, with what runs it, in the order of preference. Where one was said to be and is not goes to `rejected`.
fn candidates(rejected: &mut Vec<String>) -> Result<Vec<(Vec<OsString>, PathBuf)>> {
    if let Some(named) = variable("NVCC") {
        // Whoever names an nvcc does not want another one.
        return Ok(vec![nvcc::split(&named, find_in_path)?]);
    }
    let mut found = Vec::new();
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        let Some(home) = variable(name) else { continue };
        let nvcc = Path::new(&home).join("bin/nvcc");
        if nvcc.is_file() {
            found.push(nvcc);
        } else {
            rejected.push(format!("{name} names {home}, a folder without bin/nvcc"));
        }
    }
    found.extend(find_in_path("nvcc"));
    found.push(PathBuf::from("/usr/local/cuda/bin/nvcc"));
    found.extend(pip_toolkits());
    found.retain(|nvcc| nvcc.is_file());
    Ok(found.into_iter().map(|nvcc| (Vec::new(), nvcc)).collect())
}

/// `program` itself when it has a directory part, else the first file of that name in `PATH`.
fn find_in_path(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// The toolkits that `pip install nvidia-cuda-nvcc` leaves in `site-packages/nvidia/cu*`.
fn pip_toolkits() -> Vec<PathBuf> {
    let mut packages = Vec::new();
    if let Some(venv) = variable("VIRTUAL_ENV") {
        let lib = Path::new(&venv).join("lib");
        packages.extend(subdirectories(&lib, "python").map(|python| python.join("site-packages/nvidia")));
    }
    let python = Command::new("python3")
        .args(["-c", "import nvidia; print('\\n'.join(nvidia.__path__))"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    if let Ok(output) = python
        && output.status.success()
    {
        packages.extend(String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from));
    }
    packages.iter().flat_map(|dir| subdirectories(dir, "cu")).map(|toolkit| toolkit.join("bin/nvcc")).collect()
}

/// Directories in `dir` whose name starts with `prefix`, the highest name first.
fn subdirectories(dir: &Path, prefix: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.into_iter().rev()
}

impl Toolkit {
    /// The outer error is an `nvcc` that runs and fails, which always ends the build; the inner one says why an `nvcc`
    /// that works is of no use.
    fn probe(launcher: Vec<OsString>, nvcc: &Path) -> Result<std::result::Result<Self, String>> {
        let text = output_of(nvcc, &["--version"])?;
        let version =
            parse_version(&text).ok_or_else(|| format!("{} --version names no release:\n{text}", nvcc.display()))?;
        if version < OLDEST_NVCC {
            return Ok(Err(format!("{} is CUDA {version}, and {OLDEST_NVCC} is needed", nvcc.display())));
        }
        // The driver may be a wrapper or a link, so it says itself where its toolkit is.
        let plan = output_of(nvcc, &["--dryrun", "-c", "-x", "cu", "/dev/null"])?;
        let top = plan.lines().find_map(|line| line.strip_prefix("#$ TOP=")).map(PathBuf::from);
        let top = top.or_else(|| Some(nvcc.parent()?.parent()?.to_owned())).unwrap_or_default();
        let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap();
        let targets = [format!("targets/{arch}-linux/lib"), "targets/sbsa-linux/lib".to_owned()];
        let lib = [top.join("lib64"), top.join("lib"), top.join(&targets[0]), top.join(&targets[1])]
            .into_iter()
            // Distributions that package CUDA themselves put its libraries among the others.
            .chain([PathBuf::from(format!("/usr/lib/{arch}-linux-gnu"))])
            .find(|dir| dir.join("libcudart_static.a").is_file());
        let Some(lib) = lib else {
            return Ok(Err(format!("{} has no libcudart_static.a beside it", nvcc.display())));
        };
        let lib = lib.canonicalize().unwrap_or(lib);
        Ok(Ok(Self { launcher, nvcc: nvcc.to_owned(), version, lib }))
    }

    /// The targets to compile for, each known to this `nvcc`.
    fn archs(&self) -> Result<Archs> {
        // Without a list also PTX for cards that are older than those that the kernels are tuned for.
        let (mut code, mut ptx) = (DEFAULT_ARCHS.to_vec(), OLDEST_ARCH);
        if let Some(list) = variable("KQUANT_MOE_CUDA_ARCHS") {
            let wrong = |item: &str| {
                format!(
                    "KQUANT_MOE_CUDA_ARCHS is \"{list}\", and \"{item}\" is not a compute capability from {OLDEST_ARCH} \
                     on; it must look like 89,90a,120"
                )
            };
            code = list
                .split(',')
                .map(str::trim)
                .map(|item| Arch::parse(item).ok_or_else(|| wrong(item)))
                .collect::<Result<_>>()?;
            code.sort_unstable();
            code.dedup();
            ptx = code[0].number;
        }
        // A card takes whichever of two codes its driver likes, and only one has warpgroups.
        if let Some(arch) = code.windows(2).find(|pair| pair[0].number == pair[1].number) {
            return Err(format!("KQUANT_MOE_CUDA_ARCHS names {} and {}: one of them is enough", arch[0], arch[1]));
        }
        let known = output_of(&self.nvcc, &["--list-gpu-code"])?;
        for arch in &code {
            if !known.split_whitespace().any(|code| code == format!("sm_{}", arch.number)) {
                return Err(format!(
                    "{} (CUDA {}) does not compile for sm_{arch}; {}. Use that, or set KQUANT_MOE_CUDA_ARCHS.",
                    self.nvcc.display(),
                    self.version,
                    toolkit_for(arch.number)
                ));
            }
        }
        Ok(Archs { code, ptx })
    }
}

/// Which toolkits know a target that the one at hand does not.
fn toolkit_for(arch: u32) -> String {
    let first = match arch {
        80 => "11.0",
        86 => "11.1",
        87 => "11.4",
        89 | 90 => "11.8",
        100 | 120 => "12.8",
        101 => return "CUDA 12.8 and 12.9 do (later ones call it sm_110)".to_owned(),
        103 | 121 => "12.9",
        88 | 110 => "13.0",
        _ => return "no release up to CUDA 13.0 does".to_owned(),
    };
    format!("CUDA {first} and later do")
}

fn parse_version(text: &str) -> Option<Version> {
    let (major, minor) = text.split_once("release ")?.1.split(',').next()?.split_once('.')?;
    Some(Version(major.parse().ok()?, minor.parse().ok()?))
}

/// A target: a compute capability, or the variant of one with what only its cards have, such as 90a.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Arch {
    number: u32,
    specific: bool,
}

impl Arch {
    /// The one whose instructions for warpgroups the kernels use.
    const HOPPER: Self = Self { number: 90, specific: true };

    fn parse(text: &str) -> Option<Self> {
        let (number, specific) = match text.strip_suffix('a') {
            Some(number) => (number, true),
            None => (text, false),
        };
        let number = number.parse().ok().filter(|&number| number >= if specific { 90 } else { OLDEST_ARCH })?;
        Some(Self { number, specific })
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.number, if self.specific { "a" } else { "" })
    }
}

/// What to compile for: machine code, and the PTX from which drivers compile for later cards.
struct Archs {
    code: Vec<Arch>,
    ptx: u32,
}

/// What was built, as text for the crate and its dependents.
struct Built {
    version: Version,
    archs: Archs,
    library: String,
    bin: String,
}

fn compile(toolkit: &Toolkit, files: &[PathBuf], cuda_dir: &Path) -> Result<Built> {
    let archs = toolkit.archs()?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    // Kernels lie directly in cuda/; below it are headers.
    let sources: Vec<_> = files
        .iter()
        .filter(|file| file.parent() == Some(cuda_dir) && file.extension().is_some_and(|ext| ext == "cu"))
        .collect();
    if sources.is_empty() {
        return Err(format!("{} holds no .cu files to compile", cuda_dir.display()));
    }

    let tool = compiler(toolkit, &archs, cuda_dir)?;
    let mut shared = DefaultHasher::new();
    shared.write(format!("{} {tool:?}", toolkit.version).as_bytes());
    for header in files.iter().filter(|file| !sources.contains(file)) {
        shared.write(&read(header)?);
    }

    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1).clamp(1, sources.len());
    let objects: Vec<_> =
        sources.iter().map(|source| out_dir.join(source.file_stem().unwrap()).with_extension("o")).collect();
    let next = AtomicUsize::new(0);
    let errors = Mutex::new(String::new());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(source) = sources.get(i) else { break };
                    if let Err(text) = compile_one(&tool, source, &objects[i], shared.clone()) {
                        writeln!(errors.lock().unwrap(), "{text}").unwrap();
                    }
                }
            });
        }
    });
    let errors = errors.into_inner().unwrap();
    if !errors.is_empty() {
        return Err(errors);
    }

    // `cpp` links the C++ runtime that `CXX` uses; the launchers' host code is C++.
    cc::Build::new().cpp(true).objects(&objects).try_compile("kquant_moe_cuda").map_err(|e| e.to_string())?;
    // After the kernels, which need it.
    println!("cargo::rustc-link-search=native={}", toolkit.lib.display());
    println!("cargo::rustc-link-lib=static=cudart_static");
    for system in ["dl", "rt", "pthread"] {
        println!("cargo::rustc-link-lib={system}");
    }

    Ok(Built {
        version: toolkit.version,
        archs,
        library: out_dir.join("libkquant_moe_cuda.a").display().to_string(),
        bin: toolkit.nvcc.parent().unwrap_or(Path::new("")).display().to_string(),
    })
}

/// The command that compiles a kernel, less the file names. `cc` contributes the host compiler and its flags.
fn compiler(toolkit: &Toolkit, archs: &Archs, cuda_dir: &Path) -> Result<Vec<OsString>> {
    // Of all places `cc` looks in for nvcc, the one that precedes the others.
    let name = format!("NVCC_{}", env::var("TARGET").unwrap());
    // SAFETY: no other thread has been started.
    unsafe { env::set_var(name, &toolkit.nvcc) };
    let mut build = cc::Build::new();
    build
        .cuda(true)
        .cudart("none")
        .cargo_metadata(false)
        .include(cuda_dir)
        // The same code whatever the cargo profile: an unoptimized kernel is no help to anyone, and `debug` would
        // compile the device code for a debugger.
        .opt_level(3)
        .debug(false)
        .inherit_rustflags(false)
        .warnings(true)
        .extra_warnings(true)
        .pic(true)
        .flag("-std=c++17")
        // Results are defined to the bit (cuda/common/flags.cuh).
        .flags(["-fmad=false", "-DKQM_FMAD_FALSE", "-prec-div=true", "-prec-sqrt=true", "-ftz=false"])
        .flags(["-Xcompiler", "-ffp-contract=off"])
        // Line numbers for profilers; they cost no instructions.
        .flag("-lineinfo")
        // There are many kernels, and they are much alike.
        .flag("--compress-mode=size");
    for arch in &archs.code {
        build.flag("-gencode").flag(format!("arch=compute_{arch},code=sm_{arch}"));
    }
    // PTX, from which the driver compiles for any later card.
    build.flag("-gencode").flag(format!("arch=compute_{0},code=compute_{0}", archs.ptx));
    if archs.code.contains(&Arch::HOPPER) {
        // Launchers choose kernels for warpgroups on the cards that have this code.
        build.flag("-DKQM_HAS_SM_90A");
    }
    if variable("KQUANT_MOE_WERROR").as_deref() == Some("1") {
        build.flags(["-Werror", "all-warnings", "-Xcompiler", "-Werror"]);
    }
    let tool = build.try_get_compiler().map_err(|e| e.to_string())?;
    let args = nvcc::quoted(tool.args().iter().cloned());
    Ok(toolkit.launcher.iter().cloned().chain([toolkit.nvcc.clone().into_os_string()]).chain(args).collect())
}

/// Compiles one kernel, unless its object is already that of the same command, headers and source.
fn compile_one(tool: &[OsString], source: &Path, object: &Path, mut hash: DefaultHasher) -> Result<()> {
    hash.write(&read(source)?);
    let key = format!("{:016x}", hash.finish());
    let stamp = object.with_extension("stamp");
    if object.is_file() && fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
        return Ok(());
    }
    let mut command = Command::new(&tool[0]);
    command.args(&tool[1..]).arg("-c").arg(source).arg("-o").arg(object).stdin(Stdio::null());
    let output = command.output().map_err(|e| format!("cannot run {}: {e}", tool[0].display()))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("nvcc failed on {} ({}): {command:?}\n{text}", source.display(), output.status));
    }
    for line in text.lines() {
        println!("cargo::warning={line}");
    }
    // A warning is to be seen again in the next build, so only a silent compilation is remembered.
    if text.trim().is_empty() {
        fs::write(&stamp, key).map_err(|e| format!("{}: {e}", stamp.display()))?;
    }
    Ok(())
}

/// Standard output and error of a tool that must succeed.
fn output_of(program: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("cannot run {}: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{} {} failed ({}):\n{text}", program.display(), args.join(" "), output.status));
    }
    Ok(text.into_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Y of the compiler's release 1.Y: `std::arch` has AVX-512 from 1.89 on.
fn rustc_minor() -> Option<u32> {
    let output = Command::new(env::var_os("RUSTC")?).arg("--version").stdin(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

/// Every file under `dir`, sorted.
fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let path = entry.map_err(|e| format!("{}: {e}", dir.display()))?.path();
        if path.is_dir() {
            files.extend(walk(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The value of an environment variable, `None` when it is empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(feature = "bindgen")]
mod bindings {
    use super::{Result, output_of, variable};
    use bindgen::callbacks::{IntKind, ParseCallbacks, Token, TokenKind};
    use std::{env, path::Path};

    /// Put at the top of the generated file, so that the committed one is exactly bindgen's output.
    const HEADER: &str = "\
//! The C ABI of the kernels, generated from `cuda/kquant_moe.h`: do not edit.
//!
//! `KQUANT_MOE_BLESS=1 cargo test --features bindgen --test bindings` writes it anew.
#![allow(missing_docs, non_camel_case_types, clippy::all)]
";

    pub fn generate(header: &Path) -> Result<()> {
        let out = Path::new(&env::var_os("OUT_DIR").unwrap()).join("sys.rs");
        bindgen::builder()
            .header(header.display().to_string())
            // The header's comments are plain ones; clang attaches only documentation comments unless told.
            .clang_arg("-fparse-all-comments")
            .parse_callbacks(Box::new(Callbacks))
            .allowlist_item("(kqm|KQM)_.*")
            .disable_header_comment()
            .raw_line(HEADER)
            .use_core()
            // Unlike rustfmt alone it writes comments as comments, not as attributes.
            .formatter(bindgen::Formatter::Prettyplease)
            .derive_default(true)
            .layout_tests(true)
            .merge_extern_blocks(true)
            .rust_target(bindgen::RustTarget::stable(88, 0).map_err(|e| e.to_string())?)
            .rust_edition(bindgen::RustEdition::Edition2024)
            .generate()
            .map_err(|e| e.to_string())?
            .write_to_file(&out)
            .map_err(|e| format!("{}: {e}", out.display()))?;
        let rustfmt = variable("RUSTFMT").unwrap_or_else(|| "rustfmt".to_owned());
        // The bindings are held to the crate's own style wherever the target directory is.
        let config = Path::new(&env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("rustfmt.toml").display().to_string();
        let args = ["--edition", "2024", "--config-path", &config, &out.display().to_string()];
        output_of(Path::new(&rustfmt), &args).map(drop)
    }

    #[derive(Debug)]
    struct Callbacks;

    impl ParseCallbacks for Callbacks {
        /// Writes numbers such as 1e-06 without the exponent, whose leading zero bindgen does not parse: it would leave
        /// the constant out.
        fn modify_macro(&self, _name: &str, tokens: &mut Vec<Token>) {
            for token in tokens.iter_mut().filter(|token| token.kind == TokenKind::Literal) {
                let number = std::str::from_utf8(&token.raw).ok().filter(|text| text.contains("e-"));
                if let Some(value) = number.and_then(|text| text.parse::<f64>().ok()) {
                    token.raw = value.to_string().into_bytes().into_boxed_slice();
                }
            }
        }

        /// Statuses are signed, also the one that is not negative.
        fn int_macro(&self, name: &str, _value: i64) -> Option<IntKind> {
            (name == "KQM_OK").then_some(IntKind::I32)
        }

        /// The header's `[rows, cols]` and `a * b` are neither links nor emphasis.
        fn process_comment(&self, comment: &str) -> Option<String> {
            let escape = |c: char| {
                if "[]*<>".contains(c) { format!("\\{c}") } else { c.to_string() }
            };
            Some(format!(" {}", comment.trim().chars().map(escape).collect::<String>()))
        }
    }
}
