//! Reads what `cuobjdump --dump-sass` and `--dump-resource-usage` print: functions, loops, and what instructions cost.

/// One instruction of a disassembly.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    pub address: u64,
    /// With its modifiers, without the predicate: `IMMA.16832.S8.S8`.
    pub opcode: String,
    pub operands: String,
}

/// One kernel for one target.
#[derive(Debug, Clone)]
pub struct Function {
    /// `sm_89`.
    pub arch: String,
    /// The name of the source file without `.cu`, which is that of its object in the library.
    pub unit: String,
    /// The mangled name.
    pub name: String,
    pub code: Vec<Instruction>,
}

/// Registers and memory of one kernel for one target.
#[derive(Debug, PartialEq)]
pub struct Resources {
    pub arch: String,
    pub unit: String,
    pub name: String,
    pub registers: u32,
    /// Bytes of stack and local memory: spills, or arrays that registers could not hold.
    pub stack: u32,
    pub local: u32,
}

/// The unit and target that the lines to come belong to.
#[derive(Default)]
struct Place {
    arch: String,
    unit: String,
}

impl Place {
    fn follow(&mut self, line: &str) {
        if let Some(arch) = line.strip_prefix("arch = ") {
            self.arch = arch.to_owned();
        } else if let Some(member) = line.strip_prefix("member ") {
            // `member PATH.a:UNIT.o:`
            let object = member.trim_end_matches(':').rsplit(':').next().unwrap();
            self.unit = object.strip_suffix(".o").unwrap_or(object).to_owned();
        }
    }
}

/// The functions of a disassembly.
pub fn parse(text: &str) -> Vec<Function> {
    let mut place = Place::default();
    let mut functions: Vec<Function> = Vec::new();
    for line in text.lines().map(str::trim) {
        place.follow(line);
        if let Some(name) = line.strip_prefix("Function : ") {
            functions.push(Function {
                arch: place.arch.clone(),
                unit: place.unit.clone(),
                name: name.to_owned(),
                code: Vec::new(),
            });
        } else if let (Some(instruction), Some(function)) = (Instruction::parse(line), functions.last_mut()) {
            function.code.push(instruction);
        }
    }
    functions
}

/// The functions of a resource listing.
pub fn parse_resources(text: &str) -> Vec<Resources> {
    let mut place = Place::default();
    let mut name = None;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        place.follow(line);
        if let Some(function) = line.strip_prefix("Function ") {
            name = function.strip_suffix(':').map(str::to_owned);
        } else if line.starts_with("REG:") {
            let field = |key: &str| {
                let value = line.split(' ').find_map(|field| field.strip_prefix(key));
                value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {key} in {line:?}"))
            };
            found.push(Resources {
                arch: place.arch.clone(),
                unit: place.unit.clone(),
                name: name.take().expect("a resource line without a function"),
                registers: field("REG:"),
                stack: field("STACK:"),
                local: field("LOCAL:"),
            });
        }
    }
    found
}

/// What an instruction does, for the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Fp64,
    Tensor,
    Integer,
    LoadStore,
    Conversion,
    Other,
}

impl Class {
    pub const ALL: [Self; 6] =
        [Self::Fp64, Self::Tensor, Self::Integer, Self::LoadStore, Self::Conversion, Self::Other];
}

/// Where an instruction runs, for the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipe {
    Fp64,
    Tensor,
    /// Additions, logic, shifts, comparisons, moves.
    Alu,
    /// Multiply-adds, of integers and of f32.
    Fma,
    /// The one integer unit that a warp's lanes share.
    Uniform,
    /// Loads, stores and shuffles.
    Memory,
    /// Conversions and other functions at a quarter of the rate.
    Special,
    /// Control: only an issue slot.
    None,
}

impl Pipe {
    pub const ALL: [Self; 7] =
        [Self::Fp64, Self::Tensor, Self::Alu, Self::Fma, Self::Uniform, Self::Memory, Self::Special];
}

/// Warp instructions that a multiprocessor of either card starts in a cycle: one for each of its four schedulers.
pub const ISSUE_RATE: f64 = 4.0;

impl Instruction {
    /// `/*0070*/ @!P0 BRA 0x6e0 ; /* encoding */`; `None` for lines of another kind.
    fn parse(line: &str) -> Option<Self> {
        let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
        let address = u64::from_str_radix(address, 16).ok()?;
        let mut text = rest.split_once(';')?.0.trim();
        if text.starts_with('@') {
            text = text.split_once(' ')?.1.trim();
        }
        let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
        Some(Self { address, opcode: opcode.to_owned(), operands: operands.trim().to_owned() })
    }

    /// The opcode without modifiers.
    pub fn base(&self) -> &str {
        self.opcode.split('.').next().unwrap()
    }

    pub fn is_mma(&self) -> bool {
        self.base() == "IMMA"
    }

    /// Depth of an int8 product of 16 x k by k x 8.
    pub fn mma_k(&self) -> Option<u32> {
        match self.opcode.strip_prefix("IMMA.")?.split('.').next()? {
            "16832" => Some(32),
            "16816" => Some(16),
            other => panic!("unknown shape of IMMA: {other}"),
        }
    }

    /// fp64 arithmetic, which sm_89 and sm_120 run at 1/64 of the rate of f32.
    pub fn is_fp64_arithmetic(&self) -> bool {
        matches!(self.base(), "DFMA" | "DMUL" | "DADD")
    }

    /// A load from or store to local memory: a spill, or an array that registers could not hold.
    pub fn is_local_memory(&self) -> bool {
        matches!(self.base(), "LDL" | "STL")
    }

    fn branch_target(&self) -> Option<u64> {
        if self.base() != "BRA" {
            return None;
        }
        let target = self.operands.rsplit([' ', ',']).next()?.strip_prefix("0x")?;
        u64::from_str_radix(target, 16).ok()
    }

    pub fn class(&self) -> Class {
        match self.pipe() {
            _ if matches!(self.base(), "I2F" | "F2I" | "F2F" | "I2FP" | "F2FP" | "FRND") => Class::Conversion,
            Pipe::Fp64 => Class::Fp64,
            Pipe::Tensor => Class::Tensor,
            Pipe::Alu | Pipe::Uniform => Class::Integer,
            Pipe::Fma if self.base().starts_with('I') => Class::Integer,
            Pipe::Memory => Class::LoadStore,
            Pipe::Fma | Pipe::Special | Pipe::None => Class::Other,
        }
    }

    pub fn pipe(&self) -> Pipe {
        match self.base() {
            "DFMA" | "DMUL" | "DADD" | "DSETP" | "DMNMX" => Pipe::Fp64,
            // Conversions from and to 64 bits run where fp64 does.
            "I2F" | "F2I" | "F2F" | "FRND" if self.opcode.contains("64") => Pipe::Fp64,
            "I2F" | "F2I" | "F2F" | "FRND" | "MUFU" | "POPC" | "FLO" | "BREV" => Pipe::Special,
            "IMMA" | "HMMA" => Pipe::Tensor,
            "IMAD" | "FFMA" | "FMUL" | "FADD" | "HADD2" | "HMUL2" | "HFMA2" => Pipe::Fma,
            "SHFL" | "ATOM" | "ATOMG" | "ATOMS" | "RED" | "REDG" => Pipe::Memory,
            "BRA" | "BRX" | "EXIT" | "NOP" | "BAR" | "BSSY" | "BSYNC" | "CALL" | "RET" | "WARPSYNC" | "DEPBAR"
            | "LDGDEPBAR" | "MEMBAR" | "ERRBAR" | "YIELD" | "ACQBULK" | "PREEXIT" | "CCTL" => Pipe::None,
            base if base.starts_with("LD") || base.starts_with("ST") => Pipe::Memory,
            base if base.starts_with('U') || base == "R2UR" => Pipe::Uniform,
            _ => Pipe::Alu,
        }
    }

    /// Cycles for which one warp's instruction keeps its pipe busy, of a whole multiprocessor of sm_89 or sm_120.
    ///
    /// fp64: 2 lanes a cycle. int8 products: 1,024 multiply-adds a cycle, which is what 660 (RTX 4090) and 838 (RTX
    /// 5090) dense TOPS come to, so 4 cycles for m16n8k32. Integers: 64 lanes in either pipe (sm_120 may do better).
    /// Memory: 32 lanes or 128 bytes. Special functions and conversions: 16 lanes.
    pub fn cycles(&self) -> f64 {
        match self.pipe() {
            Pipe::Fp64 => 16.0,
            Pipe::Tensor => f64::from(self.mma_k().unwrap_or(32)) / 8.0,
            Pipe::Alu | Pipe::Fma | Pipe::Uniform => 0.5,
            Pipe::Memory if self.opcode.contains(".128") => 4.0,
            Pipe::Memory if self.opcode.contains(".64") => 2.0,
            Pipe::Memory => 1.0,
            Pipe::Special => 2.0,
            Pipe::None => 0.0,
        }
    }
}

impl Function {
    /// The innermost loops that contain a tensor-core product. When no loop does but the code has some: the code up to the barrier
    /// behind the last one, where, as behind a loop, the sums begin.
    ///
    /// A loop is the code from a branch target to the last branch back to it. Behind the last EXIT are no loops but what is called, and
    /// what a warp does whose lanes have diverged, which then returns to where it came from.
    pub fn product_loops(&self) -> Vec<&[Instruction]> {
        let mut loops: Vec<(u64, u64)> = Vec::new();
        let exit = self.code.iter().rposition(|instruction| instruction.base() == "EXIT").unwrap_or(self.code.len());
        for branch in &self.code[..exit] {
            if let Some(target) = branch.branch_target().filter(|&target| target <= branch.address) {
                match loops.iter_mut().find(|(start, _)| *start == target) {
                    Some((_, end)) => *end = branch.address,
                    None => loops.push((target, branch.address)),
                }
            }
        }
        loops.retain(|&span| self.between(span).iter().any(Instruction::is_mma));
        loops.sort_unstable();
        let innermost: Vec<_> = loops
            .iter()
            .filter(|a| !loops.iter().any(|b| b != *a && a.0 <= b.0 && b.1 <= a.1))
            .map(|&span| self.between(span))
            .collect();
        if let (true, Some(last)) = (innermost.is_empty(), self.code.iter().rposition(Instruction::is_mma)) {
            let barrier = self.code[last..].iter().position(|instruction| instruction.base() == "BAR");
            return vec![&self.code[..barrier.map_or(self.code.len(), |at| last + at)]];
        }
        innermost
    }

    fn between(&self, (start, end): (u64, u64)) -> &[Instruction] {
        let at = |address| self.code.partition_point(|instruction| instruction.address < address);
        &self.code[at(start)..at(end + 1)]
    }
}
