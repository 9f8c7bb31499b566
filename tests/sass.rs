//! What the compiler made of the hot kernels, read from the SASS in the library that was built: needs `nvcc` and
//! `cuobjdump`, no GPU. An H200 runs fp64 at half the rate of f32 and so hides what costs an RTX 4090 or 5090 dearly;
//! this does not.
//!
//! `cargo test --release --test sass -- --nocapture` prints the table.

#[path = "sass/analysis.rs"]
mod analysis;

use kquant_moe::blocks::TensorType;

use analysis::{Class, Function, ISSUE_RATE, Instruction, Pipe, Resources};
use kquant_moe::device::CUDA_BUILD;
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The kernels that read weights: where time goes.
const HOT: [&str; 6] = ["matvec", "q4_k_matvec", "q6_k_gemv", "qkv", "moe_swiglu", "moe_down"];

/// Most fp64 operations (one lane, one instruction) for a weight and a pair of tokens.
const FP64_PER_WEIGHT: f64 = 1.0 / 16.0;

/// How much faster than memory delivers weights of the usual types the instructions must be able to take them, at one or two tokens.
const HEADROOM: f64 = 1.5;

/// A card of each default target. Bandwidth, multiprocessors and boost clock as published.
struct Card {
    name: &'static str,
    arch: &'static str,
    bytes_per_second: f64,
    multiprocessors: f64,
    clock: f64,
}

const CARDS: [Card; 2] = [
    Card { name: "RTX 4090", arch: "sm_89", bytes_per_second: 1008e9, multiprocessors: 128.0, clock: 2.52e9 },
    Card { name: "RTX 5090", arch: "sm_120", bytes_per_second: 1792e9, multiprocessors: 170.0, clock: 2.41e9 },
];

/// Rows of a tile, what a warp multiplies at a time, and weights of one.
const TILE_ROWS: usize = 16;
const TILE_WEIGHTS: u32 = 16 * 256;

/// Digit planes of an activation.
const PLANES: u32 = 5;

/// Tensor-core products of a tile with the planes of one token: m16n8k32 and m16n8k16, first those with the weights, then those of mins or of
/// sums of activations, which are outside of a loop over the halves of a tile.
fn products(kind: TensorType) -> [[u32; 2]; 2] {
    use TensorType::*;
    match kind {
        // One for each sub-block; mins times the low and the high digits of the sums.
        Q4K | Q5K => [[8, 0], [0, 2]],
        Q6K => [[0, 16], [0, 0]],
        // Mins times the digits themselves.
        Q2K => [[8, 0], [8, 0]],
        Q3K | IQ4XS | IQ3S | IQ3XXS | IQ2XXS | IQ1S | TQ2_0 | TQ1_0 => [[8, 0], [0, 0]],
        // One for each half of 32 weights, with zeros in the place of the other.
        IQ2S | IQ2XS | IQ1M => [[16, 0], [0, 0]],
        // One for each block; the unit matrix times the low and the high digits of the sums.
        Q4_1 | Q5_1 => [[8, 0], [0, 2]],
        Q4_0 | Q5_0 | Q8_0 | IQ4NL | MXFP4 => [[8, 0], [0, 0]],
        other => unreachable!("{other} is not in this table"),
    }
}

/// How much faster than memory delivers weights of a type the instructions must be able to take them, at one or two tokens; `None` for those
/// of which only the figure is shown: blocks of 32, which are joined in fp64, so that cards with slow fp64 feel it, and codebooks and
/// ternary types, which take more instructions to unpack than an RTX 5090 has beside so few bytes (0.69 to 0.98 of what its memory
/// delivers; an RTX 4090 keeps up).
fn headroom(kind: TensorType) -> Option<f64> {
    use TensorType::*;
    match kind {
        Q4K | Q5K | Q6K => Some(HEADROOM),
        Q2K | Q3K | IQ4XS => Some(1.0),
        _ => None,
    }
}

/// The tiles that one turn of a product loop multiplies with the planes of `tokens` tokens.
///
/// They follow from the number of tensor-core products. Counting 16 x 32 weights for each would be wrong: those for further tokens or
/// planes multiply the same weights again, and those of mins multiply none. One and two tokens take a product each where eight take
/// five, one a plane. A loop is over tiles of one type, or the code of a choice between all types of its kernel, each of them
/// once. A kernel of another shape does not divide evenly and fails here; then this is the place to describe it. Loops of types that
/// nothing is asked of may have any shape, and then have no row in the table.
#[derive(Debug, PartialEq)]
struct Tiles {
    /// Halves of a tile of each type.
    halves: u32,
    /// The types: all of them are there, or one of them that the numbers do not tell from the others.
    kinds: Vec<TensorType>,
    all: bool,
    tokens: u32,
}

impl Tiles {
    fn of(name: &str, code: &[Instruction]) -> Option<Self> {
        let count = |k| code.iter().filter(|i| i.mma_k() == Some(k)).count() as u32;
        let (found, kinds) = ([count(32), count(16)], kinds(name));
        // Halves of tiles of all these types, if there is such a number of them.
        let halves_of = |kinds: &[TensorType], tokens: u32| {
            let of_token = if tokens == 8 { PLANES } else { tokens };
            let sum = |part: usize, k: usize| kinds.iter().map(|&kind| products(kind)[part][k]).sum::<u32>();
            (1..=8).find(|halves| {
                let is =
                    |others: u32| (0..2).all(|k| 2 * found[k] == of_token * halves * (sum(0, k) + others * sum(1, k)));
                is(1) || is(0)
            })
        };
        for &tokens in tokens(name) {
            if let Some(halves) = halves_of(&kinds, tokens) {
                return Some(Self { halves, kinds, all: true, tokens });
            }
            let of_one: Vec<_> = kinds.iter().filter_map(|&kind| Some((halves_of(&[kind], tokens)?, kind))).collect();
            // Half a tile of a type with mins has as many products as a whole one of a type without. A loop over halves has the mins
            // outside, so that it is the whole tile.
            let whole = of_one.iter().find(|one| one.0 == 2).or(of_one.first());
            if let Some(&(halves, _)) = whole {
                let kinds = of_one.iter().filter(|one| one.0 == halves).map(|one| one.1).collect();
                return Some(Self { halves, kinds, all: false, tokens });
            }
        }
        if kinds.iter().all(|&kind| headroom(kind).is_none()) {
            return None;
        }
        panic!(
            "{name}: {} m16n8k32 and {} m16n8k16 are not those of {:?} tokens and tiles of {kinds:?}; describe the kernel in \
             tests/sass.rs",
            found[0],
            found[1],
            tokens(name)
        );
    }

    fn count(&self) -> f64 {
        f64::from(self.halves) / 2.0 * if self.all { self.kinds.len() as f64 } else { 1.0 }
    }

    fn weights(&self) -> f64 {
        f64::from(TILE_WEIGHTS) * self.count()
    }

    /// Where a type is not told from others, it counts as the smallest one, for which memory is fastest.
    fn bytes(&self) -> f64 {
        let bytes = self.kinds.iter().map(|kind| TILE_ROWS * kind.bytes_of(256));
        let bytes = if self.all { bytes.sum() } else { bytes.min().unwrap_or(0) };
        bytes as f64 * f64::from(self.halves) / 2.0
    }

    /// The most that one of the types asks for; `None` where there is one that asks for nothing.
    fn headroom(&self) -> Option<f64> {
        self.kinds.iter().map(|&kind| headroom(kind)).collect::<Option<Vec<_>>>()?.into_iter().reduce(f64::max)
    }

    /// Pairs of tokens; a single token counts as one.
    fn pairs(&self) -> f64 {
        f64::from(self.tokens.div_ceil(2))
    }
}

/// How many tokens a kernel takes at a time: eight when it is for many, and of experts' items also two, in a loop of its own; two when it says
/// so, else the first `Li<N>E` of its mangled name, if that is one or two, else one.
fn tokens(name: &str) -> &'static [u32] {
    if ["moe_down_many_tokens", "moe_swiglu_many_tokens"].iter().any(|kernel| name.contains(kernel)) {
        return &[8, 2];
    }
    if name.contains("many_tokens") {
        return &[8];
    }
    if name.contains("two_tokens") {
        return &[2];
    }
    let first = name.match_indices("Li").find_map(|(at, _)| name[at + 2..].split_once('E')?.0.parse::<u32>().ok());
    if first == Some(2) { &[2] } else { &[1] }
}

/// Whether a kernel is for warpgroups, which code for sm_90a alone has: elsewhere it is a trap that no launcher reaches.
fn for_warpgroups(name: &str) -> bool {
    name.contains("_groups")
}

/// The types that a kernel's mangled name says it is for; one with several chooses between them inside.
fn kinds(name: &str) -> Vec<TensorType> {
    let named = |kind: &&TensorType| name.contains(&format!("KqmTile{kind:?}"));
    TensorType::MATRICES.iter().filter(named).copied().collect()
}

/// Whether the kernel also norms a single token's row before its products (its template argument says so). Most of its fp64 is the
/// norm's, which every block makes for itself. So it is not
/// launched on cards whose fp64 is slow (`Device::slow_fp64`); the table shows it for what it would cost there.
fn has_prologue(function: &Function) -> bool {
    function.unit == "qkv" && function.name.contains("qkv_one_token") && function.name.contains("ELb1E")
}

/// One product loop and what it costs per turn.
struct Loop<'a> {
    function: &'a Function,
    tiles: Tiles,
    code: &'a [Instruction],
}

/// The sum over super-blocks is elsewhere: for each, a load from shared memory, an fp64 addition and at most one instruction more;
/// per tile and pair of tokens a warp does that once (two tokens, 16 rows).
const ROW_SUM: [(Class, Pipe, f64); 3] =
    [(Class::Fp64, Pipe::Fp64, 16.0), (Class::LoadStore, Pipe::Memory, 2.0), (Class::Integer, Pipe::Alu, 0.5)];

impl Loop<'_> {
    /// Additions of the row sum that one turn of this loop brings.
    fn row_sums(&self) -> f64 {
        self.tiles.count() * self.tiles.pairs()
    }

    /// Warp instructions of a class.
    fn instructions(&self, class: Class) -> f64 {
        let own = self.code.iter().filter(|i| i.class() == class).count() as f64;
        own + self.row_sums() * ROW_SUM.iter().filter(|(c, ..)| *c == class).count() as f64
    }

    /// Operations of a class, lane by lane, for each weight.
    fn per_weight(&self, class: Class) -> f64 {
        32.0 * self.instructions(class) / self.tiles.weights()
    }

    /// fp64 arithmetic, without conversions, for each weight and pair of tokens.
    fn fp64_per_weight(&self) -> f64 {
        let own = self.code.iter().filter(|i| i.is_fp64_arithmetic()).count() as f64;
        32.0 * (own + self.row_sums()) / (self.tiles.weights() * self.tiles.pairs())
    }

    /// The busiest unit of a multiprocessor and the cycles that a turn keeps it busy.
    fn compute_cycles(&self) -> (String, f64) {
        let issue = Class::ALL.iter().map(|&class| self.instructions(class)).sum::<f64>() / ISSUE_RATE;
        let pipes = Pipe::ALL.iter().map(|&pipe| {
            let own: f64 = self.code.iter().filter(|i| i.pipe() == pipe).map(Instruction::cycles).sum();
            let sums: f64 = ROW_SUM.iter().filter(|(_, p, _)| *p == pipe).map(|(_, _, cycles)| cycles).sum();
            (format!("{pipe:?}").to_lowercase(), own + self.row_sums() * sums)
        });
        pipes.chain([("issue".to_owned(), issue)]).max_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
    }

    /// Cycles in which memory delivers a turn's weights to one multiprocessor.
    fn memory_cycles(&self, card: &Card) -> f64 {
        self.tiles.bytes() * card.clock * card.multiprocessors / card.bytes_per_second
    }

    fn headroom(&self, card: &Card) -> f64 {
        self.memory_cycles(card) / self.compute_cycles().1
    }
}

/// What `cuobjdump` says of the library.
struct Library {
    functions: Vec<Function>,
    resources: Vec<Resources>,
}

impl Library {
    fn hot_functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(|f| HOT.contains(&f.unit.as_str()) && !for_warpgroups(&f.name))
    }

    fn loops(&self) -> Vec<Loop<'_>> {
        self.hot_functions()
            .flat_map(|function| function.product_loops().into_iter().map(move |code| (function, code)))
            .filter_map(|(function, code)| Some(Loop { function, tiles: Tiles::of(&function.name, code)?, code }))
            .collect()
    }
}

/// What the kernels were built with; empty when there are none.
fn built() -> String {
    CUDA_BUILD.map_or_else(|_| String::new(), |build| build.to_string())
}

/// The library's disassembly for the cards of the table; `None`, said once a test, when there is none to be had and it is not demanded.
fn library() -> Option<&'static Library> {
    let build = built();
    let missing = CARDS.iter().find(|card| !build.split([' ', ',']).any(|word| word == card.arch));
    found(match missing {
        Some(card) if cfg!(kqm_cuda) => Err(format!("the kernels were not built for {} ({build})", card.arch)),
        _ => disassembly().map_err(str::to_owned),
    })
}

/// The same for whatever the kernels were built for.
fn any_library() -> Option<&'static Library> {
    found(disassembly().map_err(str::to_owned))
}

fn disassembly() -> Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(read_library).as_ref().map_err(String::as_str)
}

fn found(library: Result<&'static Library, String>) -> Option<&'static Library> {
    match library {
        Ok(library) => Some(library),
        Err(reason) => {
            let demanded = env::var("KQUANT_MOE_REQUIRE_CUOBJDUMP").is_ok_and(|value| value == "1");
            assert!(!demanded, "KQUANT_MOE_REQUIRE_CUOBJDUMP=1, but {reason}");
            println!("skipped: {reason}");
            None
        }
    }
}

fn read_library() -> Result<Library, String> {
    if let Err(reason) = CUDA_BUILD {
        return Err(format!("the crate was built without CUDA: {reason}"));
    }
    let cuobjdump = find_cuobjdump().ok_or("there is no cuobjdump beside nvcc, in CUOBJDUMP or in PATH")?;
    let dump = |what| {
        // It starts nvdisasm, which comes with it.
        let mut path = cuobjdump.parent().unwrap().as_os_str().to_owned();
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_default());
        let output = Command::new(&cuobjdump).arg(what).arg(env!("KQUANT_MOE_CUDA_LIB")).env("PATH", path).output();
        let output = output.map_err(|e| format!("{} does not run: {e}", cuobjdump.display()))?;
        if !output.status.success() {
            return Err(format!("{} {what}: {}", cuobjdump.display(), String::from_utf8_lossy(&output.stderr)));
        }
        Ok(String::from_utf8(output.stdout).unwrap())
    };
    Ok(Library {
        functions: analysis::parse(&dump("--dump-sass")?),
        resources: analysis::parse_resources(&dump("--dump-resource-usage")?),
    })
}

fn find_cuobjdump() -> Option<PathBuf> {
    if let Some(path) = env::var_os("CUOBJDUMP") {
        return Some(PathBuf::from(path));
    }
    let beside = Path::new(env!("KQUANT_MOE_CUDA_BIN")).join("cuobjdump");
    let path = env::var_os("PATH").unwrap_or_default();
    [beside].into_iter().chain(env::split_paths(&path).map(|dir| dir.join("cuobjdump"))).find(|file| file.is_file())
}

#[test]
fn every_hot_kernel_is_built_for_both_targets() {
    let Some(library) = library() else { return };
    for unit in HOT {
        for card in &CARDS {
            assert!(
                library.loops().iter().any(|l| l.function.unit == unit && l.function.arch == card.arch),
                "{unit} has no tensor-core products for {}",
                card.arch
            );
        }
    }
}

#[test]
fn nothing_is_spilled() {
    let Some(library) = library() else { return };
    let mut spilled = Vec::new();
    let of_a_card = |arch: &str| CARDS.iter().any(|card| card.arch == arch);
    for resources in library.resources.iter().filter(|r| HOT.contains(&r.unit.as_str()) && of_a_card(&r.arch)) {
        if resources.stack + resources.local > 0 {
            spilled.push(format!("{resources:?}"));
        }
    }
    for function in library.hot_functions().filter(|function| of_a_card(&function.arch)) {
        let count = function.code.iter().filter(|i| i.is_local_memory()).count();
        if count > 0 {
            spilled.push(format!("{count} accesses to local memory in {} for {}", function.name, function.arch));
        }
    }
    assert!(spilled.is_empty(), "local memory in hot kernels:\n{}", spilled.join("\n"));
}

#[test]
fn fp64_is_rare() {
    let Some(library) = library() else { return };
    for l in library.loops().iter().filter(|l| !has_prologue(l.function) && l.tiles.headroom().is_some()) {
        let found = l.fp64_per_weight();
        let (name, arch) = (&l.function.name, &l.function.arch);
        assert!(found <= FP64_PER_WEIGHT, "{name} for {arch}: {found:.4} fp64 operations a weight");
    }
}

#[test]
fn instructions_keep_up_with_memory() {
    let Some(library) = library() else { return };
    println!(
        "Operations of one lane per weight, and what bounds each product loop (tests/sass/analysis.rs has the rates):"
    );
    println!("G weights/s: memory delivers, instructions can take; ratio of the two; the busiest unit");
    print!("{:<12} {:<9} {:<14} {:>6}", "kernel", "card", "types", "tokens");
    for class in Class::ALL {
        print!(" {:>10}", format!("{class:?}").to_lowercase());
    }
    println!(" {:>8} {:>8} {:>6}  unit", "memory", "compute", "ratio");
    let mut slow = Vec::new();
    for l in library.loops() {
        let Some(card) = CARDS.iter().find(|card| card.arch == l.function.arch) else { continue };
        let types = l.tiles.kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join("|");
        print!("{:<12} {:<9} {types:<14} {:>6}", l.function.unit, card.name, l.tiles.tokens);
        for class in Class::ALL {
            print!(" {:>10.4}", l.per_weight(class));
        }
        let (unit, compute) = l.compute_cycles();
        let rate = |cycles| l.tiles.weights() * card.clock * card.multiprocessors / cycles / 1e9;
        let ratio = l.headroom(card);
        println!(" {:>8.0} {:>8.0} {ratio:>6.2}  {unit}", rate(l.memory_cycles(card)), rate(compute));
        // More tokens are more work for the same bytes: there it is the instructions that are to be the bound.
        let least = l.tiles.headroom().unwrap_or(0.0);
        if l.tiles.tokens <= 2 && ratio < least && !has_prologue(l.function) {
            slow.push(format!("{} on {}: {ratio:.2}, bound by {unit}", l.function.name, card.name));
        }
    }
    assert!(slow.is_empty(), "too slow beside what memory delivers:\n{}", slow.join("\n"));
}

/// Dependent launch, in the order of the code: which kernels wait for their dependencies before they release their dependents, and that all do
/// both. A kernel behind one of the former may read at once what was complete when that one was launched; behind another it may not.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    WaitsFirst,
    ReleasesFirst,
}

impl Order {
    /// `None` for any other order, as when one of several paths has another one. `ACQBULK` is `griddepcontrol.wait`, `PREEXIT` is
    /// `griddepcontrol.launch_dependents`; the paths of a kernel follow each other, each with one or more waits and its release.
    fn of(code: &[Instruction]) -> Option<Self> {
        let is_wait = |i: &Instruction| match i.base() {
            "ACQBULK" => Some(true),
            "PREEXIT" => Some(false),
            _ => None,
        };
        let marks: Vec<bool> = code.iter().filter_map(is_wait).collect();
        match marks[..] {
            [false, true] => Some(Self::ReleasesFirst),
            [true, .., false] if !marks.windows(2).any(|pair| pair == [false, false]) => Some(Self::WaitsFirst),
            _ => None,
        }
    }

    /// What the comments of `common/hw.cuh` promise to the kernels behind.
    fn promised(function: &Function) -> Self {
        let waits = ["qkv", "float_matvec", "moe_router", "attention"].contains(&function.unit.as_str());
        if waits { Self::WaitsFirst } else { Self::ReleasesFirst }
    }
}

#[test]
fn dependent_launch_keeps_its_order() {
    let Some(library) = any_library() else { return };
    let newer = |arch: &str| {
        let number = arch.strip_prefix("sm_").map(|arch| arch.trim_end_matches('a'));
        number.and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n >= 90)
    };
    // The table is there for its text and never launched, kernels for warpgroups only where they are.
    let launched = |function: &&Function| {
        function.unit != "table" && (!for_warpgroups(&function.name) || function.arch == "sm_90a")
    };
    let mut checked = 0;
    for function in library.functions.iter().filter(|function| newer(&function.arch)).filter(launched) {
        let order = Order::of(&function.code);
        assert_eq!(
            order,
            Some(Order::promised(function)),
            "{} of {} for {}",
            function.name,
            function.unit,
            function.arch
        );
        checked += 1;
    }
    println!("{checked} kernels");
    let build = built();
    assert!(checked > 0 || !build.split([' ', ',']).any(newer), "no kernel of {build}");
    // Without dependent launch there is neither.
    for function in library.functions.iter().filter(|function| !newer(&function.arch)) {
        let marked = function.code.iter().any(|i| ["ACQBULK", "PREEXIT"].contains(&i.base()));
        assert!(!marked, "{} for {}", function.name, function.arch);
    }
}

#[test]
fn orders_of_wait_and_release_are_told_apart() {
    let code = |marks: &str| -> Vec<Instruction> {
        let opcode = |mark| match mark {
            'w' => "ACQBULK",
            'r' => "PREEXIT",
            _ => "NOP",
        };
        let instruction =
            |(at, mark)| Instruction { address: 16 * at, opcode: opcode(mark).to_owned(), operands: String::new() };
        (0_u64..).zip(marks.chars()).map(instruction).collect()
    };
    let order = |marks| Order::of(&code(marks));
    for marks in ["w.r", "wwr", ".wr.wr.", "w.r.w.w.r"] {
        assert_eq!(order(marks), Some(Order::WaitsFirst), "{marks}");
    }
    assert_eq!(order("r..w"), Some(Order::ReleasesFirst));
    for marks in ["", "..", "w", "r", "wrrw", "wr.rw", "rw.wr", "wrr", "wrw", "rww"] {
        assert_eq!(order(marks), None, "{marks}");
    }
}

/// Kernels in which the last CTA to finish reads what the others wrote, and the atomic operations that each of them makes for itself or for
/// the count of those that have finished.
const LAST_FINISHES: [(&str, &str, usize); 6] = [
    ("moe_router", "", 1),
    ("argmax", "", 3),
    ("sample", "sample_largest", 3),
    ("sample", "sample_digitILb0E", 5),
    ("sample", "sample_digitILb1E", 3),
    ("sample", "sample_draw", 1),
];

/// Whether the count of the CTAs that have finished stands between two fences: what a CTA wrote is visible before it counts, and the last
/// one reads what the others wrote after that. The emulation runs a grid's CTAs one after the other and cannot tell a kernel without them.
fn counts_between_fences(code: &[Instruction]) -> bool {
    let is_fence = |i: &Instruction| i.opcode == "MEMBAR.SC.GPU";
    // Other sums that are made with such an operation come before the first fence.
    let counts = (0..code.len()).filter(|&at| code[at].base() == "ATOMG" && code[at].opcode.contains(".ADD."));
    counts.into_iter().any(|at| code[..at].iter().any(is_fence) && code[at..].iter().any(is_fence))
}

#[test]
fn the_last_cta_reads_behind_fences() {
    let Some(library) = any_library() else { return };
    for (unit, part, atomics) in LAST_FINISHES {
        let is_meant = |function: &&Function| function.unit == unit && function.name.contains(part);
        let functions: Vec<_> = library.functions.iter().filter(is_meant).collect();
        assert!(!functions.is_empty(), "no kernel {part} of {unit}");
        for Function { name, arch, code, .. } in functions {
            assert!(counts_between_fences(code), "{name} for {arch} lacks a fence before or behind the count");
            let found = code.iter().filter(|i| ["ATOM", "ATOMG", "RED", "REDG"].contains(&i.base())).count();
            assert_eq!(found, atomics, "{name} for {arch}: another number of atomic operations");
        }
    }
}

#[test]
fn a_dropped_fence_is_noticed() {
    let code = |opcodes: &[&str]| -> Vec<Instruction> {
        let instruction = |(at, &opcode): (u64, &&str)| Instruction {
            address: 16 * at,
            opcode: opcode.to_owned(),
            operands: String::new(),
        };
        (0_u64..).zip(opcodes).map(instruction).collect()
    };
    let (fence, count) = ("MEMBAR.SC.GPU", "ATOMG.E.ADD.STRONG.GPU");
    assert!(counts_between_fences(&code(&["STG.E", fence, "BAR.SYNC", count, "BAR.SYNC", fence, "LDG.E"])));
    assert!(counts_between_fences(&code(&[count, fence, count, fence])));
    for dropped in [
        &[fence, count][..],
        &[count, fence],
        &["MEMBAR.ALL.CTA", count, fence],
        &[fence, "RED.E.MAX.64.STRONG.GPU", fence],
        &[count, count, fence],
        &[count, fence, count],
    ] {
        assert!(!counts_between_fences(&code(dropped)), "{dropped:?}");
    }
}

/// `tests/sass/sample.cu`, compiled for both targets: two products a turn of the inner loop.
const SAMPLE: &str = include_str!("sass/sample.sass");

#[test]
fn the_sample_is_parsed() {
    let functions = analysis::parse(SAMPLE);
    assert_eq!(functions.iter().map(|f| f.arch.as_str()).collect::<Vec<_>>(), ["sm_89", "sm_120"]);
    for (function, spans) in functions.iter().zip([(0x140, 0x2c0), (0x190, 0x300)]) {
        assert_eq!(function.unit, "sample");
        assert_eq!(function.name, "_Z5dummyPK5uint4PK5uint2Pfii");
        let loops = function.product_loops();
        assert_eq!(loops.len(), 1, "{}: the outer loop is not innermost", function.arch);
        let (first, last) = (loops[0].first().unwrap(), loops[0].last().unwrap());
        assert_eq!((first.address, last.address), spans);
        assert_eq!(last.base(), "BRA");
        let count = |test: fn(&Instruction) -> bool| loops[0].iter().filter(|i| test(i)).count();
        assert_eq!(count(|i| i.mma_k() == Some(32)), 2);
        assert_eq!(count(|i| i.mma_k() == Some(16)), 0);
        assert_eq!(count(Instruction::is_fp64_arithmetic), 1, "that of the outer loop is not counted");
        assert_eq!(count(|i| i.class() == Class::Conversion), 1);
        assert_eq!(count(|i| i.pipe() == Pipe::Fp64), 2, "a conversion to f64 runs where fp64 does");
        assert_eq!(count(|i| i.class() == Class::LoadStore), 4);
        assert_eq!(count(Instruction::is_local_memory), 0);
    }
}

#[test]
fn code_without_a_loop_is_taken_up_to_its_barrier() {
    let mut function = analysis::parse(SAMPLE).remove(0);
    function.code.retain(|i| i.base() != "BRA");
    let code = function.product_loops();
    assert_eq!((code.len(), code[0].len()), (1, function.code.len()));
    let last = function.code.iter().rposition(Instruction::is_mma).unwrap();
    let mut barrier = function.clone();
    barrier.code[last + 2].opcode = "BAR.SYNC.DEFER_BLOCKING".to_owned();
    assert_eq!(barrier.product_loops()[0].len(), last + 2);
    function.code.retain(|i| !i.is_mma());
    assert!(function.product_loops().is_empty());
}

#[test]
fn the_samples_resources_are_parsed() {
    let resources = analysis::parse_resources(include_str!("sass/sample.resources"));
    let fields: Vec<_> = resources.iter().map(|r| (r.arch.as_str(), r.registers, r.stack, r.local)).collect();
    assert_eq!(fields, [("sm_89", 30, 0, 0), ("sm_120", 36, 0, 0)]);
    assert!(resources.iter().all(|r| r.unit == "sample" && r.name == "_Z5dummyPK5uint4PK5uint2Pfii"));
}

#[test]
fn tokens_are_read_from_names() {
    assert_eq!(
        tokens("_ZN44_GLOBAL__N__676ed180_11_moe_down_cu_1f0db8e420moe_down_many_tokensI10KqmTileQ4KEEv"),
        [8, 2]
    );
    assert_eq!(tokens("_Z29kqm_matvec_many_tokens_kernelI10KqmTileQ4KEv15kqm_matvec_args"), [8]);
    assert_eq!(tokens("_Z17kqm_matvec_kernelI10KqmTileQ4KLi2ELb0EEv15kqm_matvec_args"), [2]);
    assert_eq!(tokens("_ZN37_GLOBAL__N__443048fa_6_qkv_cu_kqm_qkv14qkv_two_tokensEv12kqm_qkv_args"), [2]);
    assert_eq!(tokens("_ZN37_GLOBAL__N__443048fa_6_qkv_cu_kqm_qkv13qkv_one_tokenILb1ELi16EEEv12kqm_qkv_args"), [1]);
    assert_eq!(
        tokens("_ZN46_GLOBAL__N__21ae4aa5_13_moe_swiglu_cu_e6075db620moe_swiglu_one_tokenI10KqmTileQ4KS1_EEv"),
        [1]
    );
    assert_eq!(kinds("_Z29kqm_matvec_many_tokens_kernelI10KqmTileQ6KEv15kqm_matvec_args"), [TensorType::Q6K]);
    let table = "qkv_two_tokensI12KqmTypeTableIJ10KqmTileQ4K10KqmTileQ6K12KqmTileIQ4XSEEEEv12kqm_qkv_argsNS_5SplitE";
    assert_eq!((tokens(table), kinds(table)), (&[2][..], vec![TensorType::Q4K, TensorType::Q6K, TensorType::IQ4XS]));
    assert_eq!(kinds("qkv_many_tokensI12KqmTypeTableIJ11KqmTileQ8_0EEEEv12kqm_qkv_argsNS_5SplitE"), [TensorType::Q8_0]);
    assert_eq!(tokens("_Z5dummyPK5uint4PK5uint2Pfii"), [1]);
}
