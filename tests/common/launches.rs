//! A device that shows what is launched on it, and lets tests act before a launch.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;

use kquant_moe::Result;
use kquant_moe::device::{Device, DeviceId};
use kquant_moe::sys::{self, kqm_status, kqm_stream};
use kquant_moe_emulation as emulation;

use super::table::table_around;

/// Gets the operands of every launch of attention, before it.
pub type BeforeAttention = Box<dyn FnMut(&sys::kqm_attention_args)>;

thread_local! {
    /// The launchers of the device that is in use on this thread.
    static KERNELS: Cell<Option<&'static sys::kqm_kernels>> = const { Cell::new(None) };
    static SEEN: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
    static BEFORE_ATTENTION: RefCell<Option<BeforeAttention>> = const { RefCell::new(None) };
}

/// What this thread did on a device.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Launch(Launch),
    Upload(usize),
    Download(usize),
    Copy(usize),
}

/// A call of a launcher.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub kernel: &'static str,
    /// The structure of arguments, every pointer in it.
    pub args: String,
    /// What came of it on the emulation: grids, blocks, and barriers and warp operations in them. Nothing on a GPU.
    pub work: [u64; 3],
}

/// What this thread has done since the last call of this function.
pub fn take() -> Vec<Event> {
    SEEN.take()
}

/// Has `act` called before every launch of attention on this thread; `None`: no more.
pub fn before_attention(act: Option<BeforeAttention>) {
    BEFORE_ATTENTION.set(act);
}

fn act_before(args: &sys::kqm_attention_args) {
    // Taken out while it runs: it may use the device.
    if let Some(mut act) = BEFORE_ATTENTION.take() {
        act(args);
        BEFORE_ATTENTION.set(Some(act));
    }
}

fn kernels() -> &'static sys::kqm_kernels {
    KERNELS.get().expect("a device is in use")
}

fn work() -> [u64; 3] {
    if emulation::available().is_err() {
        return [0; 3];
    }
    let emulation::Statistics { launches, blocks, operations, .. } = emulation::statistics();
    [launches, blocks, operations]
}

fn note(event: Event) {
    SEEN.with_borrow_mut(|seen| seen.push(event));
}

/// Notes what a launcher is called with.
fn note_launch<A: Debug>(kernel: &'static str, args: *const A, launch: impl FnOnce() -> kqm_status) -> kqm_status {
    // SAFETY: the wrappers of the kernels pass a structure of theirs.
    let text = format!("{:?}", unsafe { &*args });
    if kernel == "attention" {
        // SAFETY: this is attention's structure.
        act_before(unsafe { &*args.cast() });
    }
    let before = work();
    let status = launch();
    let after = work();
    let work = std::array::from_fn(|i| after[i] - before[i]);
    note(Event::Launch(Launch { kernel, args: text, work }));
    status
}

/// A table of launchers that note what they are called with and call those of the device in use.
static TABLE: sys::kqm_kernels = table_around!(kernels, note_launch);

/// A device that notes what a thread does on it.
#[derive(Clone)]
pub struct Noted<D>(pub D);

// SAFETY: everything is the inner device's.
unsafe impl<D: Device> Device for Noted<D> {
    type Graph = D::Graph;

    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn id(&self) -> DeviceId {
        self.0.id()
    }

    fn kernels(&self) -> &'static sys::kqm_kernels {
        KERNELS.set(Some(self.0.kernels()));
        &TABLE
    }

    fn stream(&self) -> kqm_stream {
        self.0.stream()
    }

    fn fork(&self) -> Result<Self> {
        self.0.fork().map(Self)
    }

    fn activate(&self) -> Result<()> {
        self.0.activate()
    }

    fn wants(&self, kernel: &'static str) -> bool {
        self.0.wants(kernel)
    }

    fn slow_fp64(&self) -> bool {
        self.0.slow_fp64()
    }

    fn memory(&self) -> Result<(u64, u64)> {
        self.0.memory()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.0.allocate(bytes)
    }

    unsafe fn free(&self, address: u64) {
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.free(address) }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        note(Event::Upload(from.len()));
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.upload(to, from) }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        note(Event::Download(to.len()));
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.download(from, to) }
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        note(Event::Copy(bytes));
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.copy(to, from, bytes) }
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.clear(address, bytes) }
    }

    fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }

    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<D::Graph>> {
        self.0.record(enqueue)
    }

    unsafe fn replay(&self, graph: &mut D::Graph) -> Result<()> {
        // SAFETY: the caller keeps the contract.
        unsafe { self.0.replay(graph) }
    }
}
