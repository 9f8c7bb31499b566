//! Runs the CUDA kernels of `kquant-moe` on the CPU, for tests.
//!
//! The kernel sources are compiled unchanged as C++ against `include/emulation.h`. Each thread of a block is a fiber;
//! barriers and warp operations are where fibers meet, and everything that the CUDA programming model leaves undefined
//! there, or in shared memory, or outside a buffer, ends the launch with a status of at least 10000 and a report (see
//! [`Failure`] and `README.md`). Settings and reports belong to the calling thread, so tests may run in parallel.

use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::time::Duration;

mod buffer;
mod library;

pub use buffer::{Buffer, Plain};
pub use library::{Library, Substitution, compile_command, link, link_program};

/// What broke a rule of the programming model. The numbers are the statuses that the launch returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[non_exhaustive]
pub enum Failure {
    /// A barrier or warp operation that its threads do not all reach, or reach at different places.
    Divergence = 10001,
    /// Every thread of the block waits.
    Deadlock = 10002,
    /// A mask without the caller, or with lanes that the block does not have.
    BadMask = 10003,
    /// A shuffle that reads a lane outside its mask, or of a width that is no power of two.
    BadShuffle = 10004,
    /// Shared memory read before anything in the block wrote it.
    Uninitialised = 10005,
    /// An index outside a shared array.
    OutOfBounds = 10006,
    /// A vector access to an address that is no multiple of its size.
    Misaligned = 10007,
    /// Two threads touch the same shared bytes, one of them writes, and nothing orders them.
    Race = 10008,
    /// Shared memory touched while an asynchronous copy still fills it.
    AsyncCopy = 10009,
    /// An access outside every buffer.
    MemoryFault = 10010,
    /// A thread needs more stack than a fiber has.
    StackOverflow = 10011,
    /// The bytes next to a buffer were overwritten.
    BufferOverrun = 10012,
    /// More shared memory than a block may have, or a launch from a kernel.
    BadLaunch = 10013,
    /// The launch does not end.
    TimeLimit = 10014,
    /// An integer division by zero.
    ArithmeticTrap = 10015,
    /// Memory of a launch that may still run, touched before the wait for it.
    Dependency = 10016,
}

impl Failure {
    /// The failure that a launch status stands for, if it is one.
    pub fn from_status(status: i32) -> Option<Self> {
        const ALL: [Failure; 16] = [
            Failure::Divergence,
            Failure::Deadlock,
            Failure::BadMask,
            Failure::BadShuffle,
            Failure::Uninitialised,
            Failure::OutOfBounds,
            Failure::Misaligned,
            Failure::Race,
            Failure::AsyncCopy,
            Failure::MemoryFault,
            Failure::StackOverflow,
            Failure::BufferOverrun,
            Failure::BadLaunch,
            Failure::TimeLimit,
            Failure::ArithmeticTrap,
            Failure::Dependency,
        ];
        ALL.into_iter().find(|failure| *failure as i32 == status)
    }
}

/// What the calling thread has emulated so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Statistics {
    /// Grids launched.
    pub launches: u64,
    /// Blocks run.
    pub blocks: u64,
    /// Switches from one fiber to another.
    pub switches: u64,
    /// Barriers and warp operations completed.
    pub operations: u64,
}

/// The interface of one copy of the emulation: the one in this program, or the one in a [`Library`].
#[derive(Clone, Copy)]
struct Runtime {
    last_error: unsafe extern "C" fn() -> *const c_char,
    add_to_report: unsafe extern "C" fn(*const c_char),
    last_status: unsafe extern "C" fn() -> i32,
    set_schedule: unsafe extern "C" fn(u64),
    set_time_limit: unsafe extern "C" fn(u64),
    statistics: unsafe extern "C" fn(*mut Statistics),
    record: unsafe extern "C" fn(),
    recorded: unsafe extern "C" fn() -> *mut c_void,
    recorded_launches: unsafe extern "C" fn(*const c_void) -> usize,
    replay: unsafe extern "C" fn(*const c_void, usize) -> i32,
    forget: unsafe extern "C" fn(*mut c_void),
}

impl Runtime {
    fn last_error(&self) -> String {
        // SAFETY: the text belongs to this thread and stays until its next launch.
        unsafe { CStr::from_ptr((self.last_error)()) }.to_string_lossy().into_owned()
    }
    fn add_to_report(&self, line: &str) {
        let line = CString::new(line).expect("a line without a zero");
        // SAFETY: the text is copied.
        unsafe { (self.add_to_report)(line.as_ptr()) }
    }
    fn last_status(&self) -> i32 {
        // SAFETY: reads a number of this thread.
        unsafe { (self.last_status)() }
    }
    fn set_schedule(&self, seed: u64) {
        // SAFETY: sets a number of this thread.
        unsafe { (self.set_schedule)(seed) }
    }
    fn set_time_limit(&self, limit: Duration) {
        let milliseconds = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        // SAFETY: sets a number of this thread.
        unsafe { (self.set_time_limit)(milliseconds) }
    }
    fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::default();
        // SAFETY: the structure has the same layout on both sides.
        unsafe { (self.statistics)(&mut statistics) };
        statistics
    }
    fn record<T>(self, enqueue: impl FnOnce() -> T) -> (T, Recording) {
        // SAFETY: launches of this thread are kept from here on.
        unsafe { (self.record)() };
        let result = enqueue();
        // SAFETY: ends what the call above began.
        let launches = unsafe { (self.recorded)() };
        assert!(!launches.is_null(), "recordings do not nest");
        (result, Recording { launches, runtime: self })
    }
}

/// Launches that were recorded instead of made, with copies of their arguments.
pub struct Recording {
    launches: *mut c_void,
    runtime: Runtime,
}

// SAFETY: the recording is not changed after it was made, and belongs to no thread.
unsafe impl Send for Recording {}

impl Recording {
    /// How many kernels it launches.
    pub fn launches(&self) -> usize {
        // SAFETY: the recording is alive.
        unsafe { (self.runtime.recorded_launches)(self.launches) }
    }

    /// Makes the launches on the calling thread, in their order; `before` is called before each one, for its schedule. Stops at the
    /// first that fails, and gives its status.
    ///
    /// # Safety
    /// All memory that the launches use is still there.
    pub unsafe fn replay(&self, mut before: impl FnMut()) -> Result<(), i32> {
        for launch in 0..self.launches() {
            before();
            // SAFETY: the recording has that launch, and the caller vouches for its operands.
            match unsafe { (self.runtime.replay)(self.launches, launch) } {
                0 => {}
                status => return Err(status),
            }
        }
        Ok(())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: the recording is this value's own.
        unsafe { (self.runtime.forget)(self.launches) };
    }
}

#[cfg(emulation_available)]
mod native {
    use super::*;

    unsafe extern "C" {
        pub fn kqm_emulation_table() -> *const c_void;
        pub fn kqm_emulation_alloc(bytes: usize, fill: u8) -> *mut c_void;
        pub fn kqm_emulation_free(pointer: *mut c_void) -> i32;
        pub fn kqm_emulation_describe(address: usize, text: *mut c_char, bytes: usize) -> usize;
        pub fn kqm_emulation_overrun(text: *mut c_char, bytes: usize) -> usize;
        pub fn kqm_emulation_synchronize();
        pub fn kqm_emulation_synchronizations() -> u64;
        pub fn kqm_emulation_buffers() -> *mut c_void;
        fn kqm_emulation_last_error() -> *const c_char;
        fn kqm_emulation_add_to_report(line: *const c_char);
        fn kqm_emulation_last_status() -> i32;
        fn kqm_emulation_set_schedule(seed: u64);
        fn kqm_emulation_set_time_limit(milliseconds: u64);
        fn kqm_emulation_statistics(out: *mut Statistics);
        fn kqm_emulation_record();
        fn kqm_emulation_recorded() -> *mut c_void;
        fn kqm_emulation_recorded_launches(recording: *const c_void) -> usize;
        fn kqm_emulation_replay(recording: *const c_void, launch: usize) -> i32;
        fn kqm_emulation_forget(recording: *mut c_void);
    }

    pub const RUNTIME: Runtime = Runtime {
        last_error: kqm_emulation_last_error,
        add_to_report: kqm_emulation_add_to_report,
        last_status: kqm_emulation_last_status,
        set_schedule: kqm_emulation_set_schedule,
        set_time_limit: kqm_emulation_set_time_limit,
        statistics: kqm_emulation_statistics,
        record: kqm_emulation_record,
        recorded: kqm_emulation_recorded,
        recorded_launches: kqm_emulation_recorded_launches,
        replay: kqm_emulation_replay,
        forget: kqm_emulation_forget,
    };
}

/// Stands in where there is no emulation: whoever calls it has not asked [`available`].
#[cfg(not(emulation_available))]
mod native {
    use super::*;

    fn missing() -> ! {
        panic!("{}", env!("KQM_EMULATION_UNAVAILABLE"))
    }
    pub unsafe fn kqm_emulation_table() -> *const c_void {
        missing()
    }
    pub unsafe fn kqm_emulation_alloc(_: usize, _: u8) -> *mut c_void {
        missing()
    }
    pub unsafe fn kqm_emulation_free(_: *mut c_void) -> i32 {
        missing()
    }
    pub unsafe extern "C" fn kqm_emulation_describe(_: usize, _: *mut c_char, _: usize) -> usize {
        missing()
    }
    pub unsafe extern "C" fn kqm_emulation_overrun(_: *mut c_char, _: usize) -> usize {
        missing()
    }
    pub unsafe fn kqm_emulation_synchronize() {
        missing()
    }
    pub unsafe extern "C" fn kqm_emulation_synchronizations() -> u64 {
        missing()
    }
    pub unsafe fn kqm_emulation_buffers() -> *mut c_void {
        missing()
    }
    unsafe extern "C" fn text() -> *const c_char {
        missing()
    }
    unsafe extern "C" fn line(_: *const c_char) {
        missing()
    }
    unsafe extern "C" fn status() -> i32 {
        missing()
    }
    unsafe extern "C" fn set(_: u64) {
        missing()
    }
    unsafe extern "C" fn fill(_: *mut Statistics) {
        missing()
    }
    unsafe extern "C" fn begin() {
        missing()
    }
    unsafe extern "C" fn end() -> *mut c_void {
        missing()
    }
    unsafe extern "C" fn launches(_: *const c_void) -> usize {
        missing()
    }
    unsafe extern "C" fn replay(_: *const c_void, _: usize) -> i32 {
        missing()
    }
    unsafe extern "C" fn forget(_: *mut c_void) {
        missing()
    }
    pub const RUNTIME: Runtime = Runtime {
        last_error: text,
        add_to_report: line,
        last_status: status,
        set_schedule: set,
        set_time_limit: set,
        statistics: fill,
        record: begin,
        recorded: end,
        recorded_launches: launches,
        replay,
        forget,
    };
}

/// Whether kernels can be emulated here, or why not. Nothing else may be called when they cannot.
pub fn available() -> Result<(), &'static str> {
    let reason = env!("KQM_EMULATION_UNAVAILABLE");
    if reason.is_empty() { Ok(()) } else { Err(reason) }
}

/// Whether accesses of global memory are seen, and so those that come before the wait for earlier launches. Not where the kernels are
/// compiled for a sanitizer.
pub fn sees_global_memory() -> bool {
    env!("KQM_EMULATION_ARGUMENTS").split('\u{1f}').any(|argument| argument == "-fsanitize=thread")
}

/// The `kqm_kernels` table of the emulated kernels; null as long as the sources define none.
pub fn table() -> *const c_void {
    // SAFETY: returns the address of a constant.
    unsafe { native::kqm_emulation_table() }
}

/// The report of this thread's last launch; empty when it broke no rule.
pub fn last_error() -> String {
    native::RUNTIME.last_error()
}

/// Adds a line to that report: what the caller knows of the launch.
pub fn add_to_report(line: &str) {
    native::RUNTIME.add_to_report(line)
}

/// The status of this thread's last launch.
pub fn last_status() -> i32 {
    native::RUNTIME.last_status()
}

/// Sets the order in which this thread's launches run blocks and threads: 0 is ascending, every other number an order
/// of its own.
pub fn set_schedule(seed: u64) {
    native::RUNTIME.set_schedule(seed)
}

/// Sets how much processor time a launch of this thread may take. Two minutes unless set.
pub fn set_time_limit(limit: Duration) {
    native::RUNTIME.set_time_limit(limit)
}

/// What this thread has emulated so far.
pub fn statistics() -> Statistics {
    native::RUNTIME.statistics()
}

/// The host waits for this thread's launches, or puts a copy between them and later ones: without it a launch may begin while earlier
/// ones still run, as far as those let it. [`Buffer`] says so itself when it is read or made of values.
pub fn synchronize() {
    // SAFETY: counts.
    unsafe { native::kqm_emulation_synchronize() }
}

/// Keeps the launches that `enqueue` makes on this thread instead of making them: they do nothing, return 0, and are made when the
/// recording is replayed.
pub fn record<T>(enqueue: impl FnOnce() -> T) -> (T, Recording) {
    native::RUNTIME.record(enqueue)
}

/// What new buffers are filled with, unless asked otherwise: no zero, no small number, and as f32 a tiny negative one.
pub const POISON: u8 = 0xa5;

/// Device memory of `bytes` bytes, each of them `fill`, for whoever cannot use [`Buffer`]. The memory ends at a guard
/// page, as near as an alignment of 16 allows.
pub fn alloc(bytes: usize, fill: u8) -> *mut u8 {
    // SAFETY: allocating has no conditions.
    let memory = unsafe { native::kqm_emulation_alloc(bytes, fill) };
    assert!(!memory.is_null(), "no memory for a buffer of {bytes} bytes");
    memory.cast()
}

/// What was found when a buffer was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeError {
    /// The bytes before the buffer were overwritten.
    Before,
    /// The bytes after the buffer were overwritten.
    After,
    /// The pointer is of no buffer.
    Unknown,
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            FreeError::Before => "the bytes before the buffer were overwritten",
            FreeError::After => "the bytes after the buffer were overwritten",
            FreeError::Unknown => "the pointer is of no buffer",
        })
    }
}

impl std::error::Error for FreeError {}

/// Frees memory of [`alloc`].
///
/// # Safety
/// Nothing may use the memory afterwards.
pub unsafe fn free(memory: *mut u8) -> Result<(), FreeError> {
    // SAFETY: the caller's.
    match unsafe { native::kqm_emulation_free(memory.cast()) } {
        0 => Ok(()),
        1 => Err(FreeError::Before),
        2 => Err(FreeError::After),
        _ => Err(FreeError::Unknown),
    }
}
