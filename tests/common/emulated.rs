//! The kernels' own sources, run on the CPU.

use std::cell::Cell;
use std::fmt::Debug;
use std::path::Path;
use std::sync::OnceLock;

use kquant_moe::device::{Device, DeviceId};
use kquant_moe::{Error, Result, sys};
use kquant_moe_emulation::{self as emulation, Library, Recording};

use super::table::table_around;

thread_local! {
    static LAUNCHES: Cell<u64> = const { Cell::new(0) };
    /// The device in use on this thread.
    static IN_USE: Cell<Option<&'static Library>> = const { Cell::new(None) };
}

/// The launchers of the device in use.
fn launchers() -> &'static sys::kqm_kernels {
    let table = IN_USE.get().map_or_else(emulation::table, |library| library.table().expect("a table"));
    // SAFETY: the table is a constant of this program or of a library that stays loaded, compiled from the header that
    // the bindings were made of.
    unsafe { table.cast::<sys::kqm_kernels>().as_ref() }.expect("the emulation has no kernels")
}

/// Adds the arguments to the report of a launch that fails: types, shapes and tokens.
fn report_arguments<A: Debug>(
    kernel: &'static str,
    args: *const A,
    launch: impl FnOnce() -> sys::kqm_status,
) -> sys::kqm_status {
    let status = launch();
    if status > sys::KQM_OK {
        // SAFETY: what was launched had arguments.
        let text = format!("{kernel} with {:?}", unsafe { &*args });
        IN_USE.get().map_or_else(|| emulation::add_to_report(&text), |library| library.add_to_report(&text));
    }
    status
}

static TABLE: sys::kqm_kernels = table_around!(launchers, report_arguments);

/// A device whose launches run at once, on the calling thread. Allocations end at a guard page.
#[derive(Clone)]
pub struct EmulatedDevice {
    /// Kernels with a planted fault; without them those of `cuda/`.
    faulty: Option<&'static Library>,
    /// Whether it records launches, as a GPU does.
    records: bool,
    slow_fp64: bool,
    /// Whose memory is said to be its own.
    id: DeviceId,
}

impl EmulatedDevice {
    const PLAIN: Self = Self { faulty: None, records: false, slow_fp64: false, id: DeviceId::new("emulation", 0) };

    /// Fails where the emulation could not be compiled. `KQUANT_MOE_EMULATED_KERNELS` names a shared object whose kernels
    /// take the place of those of `cuda/`, for programs that plant faults in them.
    pub fn new() -> Result<Self, &'static str> {
        emulation::available()?;
        static OTHER: OnceLock<Option<Library>> = OnceLock::new();
        let other = OTHER.get_or_init(|| {
            let path = std::env::var_os("KQUANT_MOE_EMULATED_KERNELS")?;
            Some(Library::open(Path::new(&path)).expect("KQUANT_MOE_EMULATED_KERNELS is a library of kernels"))
        });
        Ok(Self { faulty: other.as_ref(), ..Self::PLAIN })
    }

    /// The same device, which records launches, with copies of their arguments, and makes them when the recording is replayed.
    pub fn recording(self) -> Self {
        Self { records: true, ..self }
    }

    /// The same device, which says that its fp64 is slow.
    pub fn with_slow_fp64(self) -> Self {
        Self { slow_fp64: true, ..self }
    }

    /// A device that has nothing to do with the others.
    pub fn other(self) -> Self {
        Self { id: DeviceId::new("emulation", 1), ..self }
    }

    /// A device with other kernels, which stay loaded.
    pub fn faulty(library: Library) -> Self {
        Self { faulty: Some(Box::leak(Box::new(library))), ..Self::PLAIN }
    }

    /// Each launch runs its blocks and threads in another order, the first one ascending.
    fn next_schedule(&self) {
        let launch = LAUNCHES.get();
        LAUNCHES.set(launch + 1);
        self.faulty.map_or_else(|| emulation::set_schedule(launch), |library| library.set_schedule(launch));
    }

    /// The report of this thread's last launch; empty when it broke no rule.
    pub fn report(&self) -> String {
        self.faulty.map_or_else(emulation::last_error, Library::last_error)
    }
}

// SAFETY: memory lives until it is freed; work is done when a call returns. The alignment is 16, less than the trait
// promises and all that kernels may demand, so that the guard page catches reads behind a buffer.
unsafe impl Device for EmulatedDevice {
    type Graph = Recording;

    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<Recording>> {
        if !self.records {
            return Ok(None);
        }
        let (enqueued, recording) = match self.faulty {
            Some(library) => library.record(enqueue),
            None => emulation::record(enqueue),
        };
        enqueued.map(|()| Some(recording))
    }

    unsafe fn replay(&self, recording: &mut Recording) -> Result<()> {
        // SAFETY: the caller vouches for the memory of the launches.
        let replayed = unsafe { recording.replay(|| self.next_schedule()) };
        replayed.map_err(|status| Error::Kernel { kernel: "a recorded one", status, message: self.report() })
    }

    fn slow_fp64(&self) -> bool {
        self.slow_fp64
    }

    fn name(&self) -> &'static str {
        "emulation"
    }

    fn id(&self) -> DeviceId {
        self.id
    }

    fn kernels(&self) -> &'static sys::kqm_kernels {
        IN_USE.set(self.faulty);
        &TABLE
    }

    fn stream(&self) -> sys::kqm_stream {
        std::ptr::null_mut()
    }

    fn fork(&self) -> Result<Self> {
        Ok(self.clone())
    }

    /// Called before every launch.
    fn activate(&self) -> Result<()> {
        self.next_schedule();
        Ok(())
    }

    fn memory(&self) -> Result<(u64, u64)> {
        Ok((1 << 32, 1 << 32))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        Ok(emulation::alloc(bytes, emulation::POISON) as u64)
    }

    unsafe fn free(&self, address: u64) {
        // SAFETY: the caller owns the allocation.
        let freed = unsafe { emulation::free(address as *mut u8) };
        if let Err(error) = freed
            && !std::thread::panicking()
        {
            panic!("{error}");
        }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        emulation::synchronize();
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        emulation::synchronize();
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        emulation::synchronize();
        // SAFETY: the caller vouches for both ranges.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        emulation::synchronize();
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) };
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        emulation::synchronize();
        Ok(())
    }
}
