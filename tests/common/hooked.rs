//! A device whose calls can be watched, and fail.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use kquant_moe::device::{Device, DeviceId};
use kquant_moe::{Error, Result, sys};

use super::EmulatedDevice;

/// A call to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Of so many bytes.
    Allocate(usize),
    /// Of so many bytes. It cannot fail.
    Free(usize),
    Upload,
    Download,
    Copy,
    Clear,
    Launch,
    Synchronize,
    Fork,
    Record,
}

/// What happens besides the calls.
pub trait Hook: Send + Sync + 'static {
    /// Comes before each call. An error takes the call's place; an [`Error::Kernel`] is what the launcher then returns as its
    /// status.
    fn before(&self, call: Call) -> Result<()>;

    /// Free bytes.
    fn free(&self) -> u64 {
        1 << 32
    }
}

/// The emulation, with a hook.
pub struct Hooked<H> {
    device: EmulatedDevice,
    hook: Arc<H>,
    /// Bytes of each allocation.
    sizes: Arc<Mutex<HashMap<u64, usize>>>,
}

impl<H> Hooked<H> {
    pub fn new(device: EmulatedDevice, hook: H) -> Self {
        Self { device, hook: Arc::new(hook), sizes: Arc::default() }
    }

    pub fn hook(&self) -> &H {
        &self.hook
    }
}

impl<H> Clone for Hooked<H> {
    fn clone(&self) -> Self {
        Self { device: self.device.clone(), hook: self.hook.clone(), sizes: self.sizes.clone() }
    }
}

thread_local! {
    /// What this thread's next launch returns instead of being made; 0: it is made.
    static STATUS: Cell<sys::kqm_status> = const { Cell::new(sys::KQM_OK) };
}

unsafe extern "C" fn fail<A>(_: *const A, _: sys::kqm_stream) -> sys::kqm_status {
    STATUS.take()
}

/// The emulation's table with launchers that fail.
fn failing(table: &sys::kqm_kernels) -> &'static sys::kqm_kernels {
    static FAILING: OnceLock<sys::kqm_kernels> = OnceLock::new();
    FAILING.get_or_init(|| sys::kqm_kernels {
        repack: Some(fail),
        quantize: Some(fail),
        matvec: Some(fail),
        q4_k_matvec: Some(fail),
        q6_k_gemv: Some(fail),
        qkv: Some(fail),
        embedding: Some(fail),
        rms_norm: Some(fail),
        rope: Some(fail),
        attention: Some(fail),
        moe_router: Some(fail),
        moe_group: Some(fail),
        moe_swiglu: Some(fail),
        moe_down: Some(fail),
        residual_add: Some(fail),
        argmax: Some(fail),
        float_matvec: Some(fail),
        sample: Some(fail),
        moe_layer: Some(fail),
        // Named one by one, so that no launcher is forgotten.
        attention_workspace: table.attention_workspace,
        moe_layer_workspace: table.moe_layer_workspace,
        moe_max_items: table.moe_max_items,
        status_text: table.status_text,
    })
}

// SAFETY: memory is that of the emulation, and so is the order of work.
unsafe impl<H: Hook> Device for Hooked<H> {
    type Graph = <EmulatedDevice as Device>::Graph;

    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<Self::Graph>> {
        self.hook.before(Call::Record)?;
        self.device.record(enqueue)
    }

    unsafe fn replay(&self, graph: &mut Self::Graph) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.device.replay(graph) }
    }

    fn wants(&self, kernel: &'static str) -> bool {
        self.device.wants(kernel)
    }

    fn name(&self) -> &'static str {
        self.device.name()
    }

    fn id(&self) -> DeviceId {
        self.device.id()
    }

    fn kernels(&self) -> &'static sys::kqm_kernels {
        let table = self.device.kernels();
        if STATUS.get() == sys::KQM_OK { table } else { failing(table) }
    }

    fn stream(&self) -> sys::kqm_stream {
        self.device.stream()
    }

    fn fork(&self) -> Result<Self> {
        self.hook.before(Call::Fork)?;
        Ok(self.clone())
    }

    /// Called before every launch, and for nothing else.
    fn activate(&self) -> Result<()> {
        match self.hook.before(Call::Launch) {
            Err(Error::Kernel { status, .. }) => STATUS.set(status),
            result => result?,
        }
        self.device.activate()
    }

    fn slow_fp64(&self) -> bool {
        self.device.slow_fp64()
    }

    fn memory(&self) -> Result<(u64, u64)> {
        Ok((self.hook.free(), self.hook.free()))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.hook.before(Call::Allocate(bytes))?;
        let address = self.device.allocate(bytes)?;
        self.sizes.lock().unwrap().insert(address, bytes);
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        let bytes = self.sizes.lock().unwrap().remove(&address).expect("an allocation");
        // As of a real device: errors of earlier work do not show here.
        let _ = self.hook.before(Call::Free(bytes));
        // SAFETY: the caller's promise.
        unsafe { self.device.free(address) };
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.hook.before(Call::Upload)?;
        // SAFETY: the caller's promise.
        unsafe { self.device.upload(to, from) }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.hook.before(Call::Download)?;
        // SAFETY: the caller's promise.
        unsafe { self.device.download(from, to) }
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.hook.before(Call::Copy)?;
        // SAFETY: the caller's promise.
        unsafe { self.device.copy(to, from, bytes) }
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.hook.before(Call::Clear)?;
        // SAFETY: the caller's promise.
        unsafe { self.device.clear(address, bytes) }
    }

    fn synchronize(&self) -> Result<()> {
        self.hook.before(Call::Synchronize)?;
        self.device.synchronize()
    }
}
