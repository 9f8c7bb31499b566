//! The kernels' own sources, run on the CPU.

use std::cell::Cell;

use kquant_moe::device::{Device, DeviceId};
use kquant_moe::{Result, sys};
use kquant_moe_emulation::{self as emulation, Library};

thread_local! {
    static LAUNCHES: Cell<u64> = const { Cell::new(0) };
    /// While a device that counts records: launches so far.
    static RECORDED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A device whose launches run at once, on the calling thread. Allocations end at a guard page.
#[derive(Clone)]
pub struct EmulatedDevice {
    /// Kernels with a planted fault; without them those of `cuda/`.
    faulty: Option<&'static Library>,
    /// Whether it records launches, only to count them: a replay does nothing.
    counts: bool,
    slow_fp64: bool,
    /// Whose memory is said to be its own.
    id: DeviceId,
}

impl EmulatedDevice {
    const PLAIN: Self = Self { faulty: None, counts: false, slow_fp64: false, id: DeviceId::new("emulation", 0) };

    /// Fails where the emulation could not be compiled.
    pub fn new() -> Result<Self, &'static str> {
        emulation::available()?;
        Ok(Self::PLAIN)
    }

    /// The same device, which records: a recording is the number of its launches, and to replay it does nothing.
    pub fn counting(self) -> Self {
        Self { counts: true, ..self }
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

    /// The report of this thread's last launch; empty when it broke no rule.
    pub fn report(&self) -> String {
        self.faulty.map_or_else(emulation::last_error, Library::last_error)
    }
}

// SAFETY: memory lives until it is freed; work is done when a call returns. The alignment is 16, less than the trait
// promises and all that kernels may demand, so that the guard page catches reads behind a buffer.
unsafe impl Device for EmulatedDevice {
    type Graph = usize;

    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<usize>> {
        if !self.counts {
            return Ok(None);
        }
        RECORDED.set(Some(0));
        let enqueued = enqueue();
        let launches = RECORDED.take();
        enqueued.map(|()| launches)
    }

    unsafe fn replay(&self, _graph: &mut usize) -> Result<()> {
        Ok(())
    }

    fn wants(&self, _kernel: &'static str) -> bool {
        match RECORDED.get() {
            Some(launches) => RECORDED.set(Some(launches + 1)),
            None => return true,
        }
        false
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
        let table = self.faulty.map_or_else(emulation::table, |library| library.table().expect("a table"));
        // SAFETY: the table is a constant of this program or of a library that stays loaded, compiled from the header that
        // the bindings were made of.
        unsafe { table.cast::<sys::kqm_kernels>().as_ref() }.expect("the emulation has no kernels")
    }

    fn stream(&self) -> sys::kqm_stream {
        std::ptr::null_mut()
    }

    fn fork(&self) -> Result<Self> {
        Ok(self.clone())
    }

    /// Called before every launch: each one runs its blocks and threads in another order, the first one ascending.
    fn activate(&self) -> Result<()> {
        let launch = LAUNCHES.get();
        LAUNCHES.set(launch + 1);
        self.faulty.map_or_else(|| emulation::set_schedule(launch), |library| library.set_schedule(launch));
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
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller vouches for both ranges.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) };
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
