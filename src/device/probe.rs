//! A device that leaves launches out and counts the others: for measurements of single kernels within a model.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, DeviceId};
use crate::{Result, sys};

/// Another device, of whose launches only those of chosen kernels are made. Clones and forks share the choice and the counts.
///
/// A kernel whose predecessors are left out computes with what they left in its operands before. That is as safe as any
/// contents of a buffer, but the results mean nothing.
#[derive(Clone, Debug)]
pub struct Probe<D: Device> {
    device: D,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The kernel whose launches are made; those of all kernels when there is none.
    only: Option<&'static str>,
    /// Launches made, by kernel.
    counts: Vec<(&'static str, usize)>,
}

impl<D: Device> Probe<D> {
    /// A probe that makes all launches.
    pub fn new(device: D) -> Self {
        Self { device, state: Arc::default() }
    }

    /// The device itself.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// From now on only the launches of this kernel are made, or those of all kernels.
    pub fn only(&self, kernel: Option<&'static str>) {
        self.state().only = kernel;
    }

    /// Calls of launchers since the last time, by kernel, in the order of each kernel's first one.
    pub fn take_counts(&self) -> Vec<(&'static str, usize)> {
        std::mem::take(&mut self.state().counts)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is sound between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: everything is the inner device's; a launch that is left out has no effect to be ordered.
unsafe impl<D: Device> Device for Probe<D> {
    type Graph = D::Graph;

    fn name(&self) -> &'static str {
        self.device.name()
    }

    fn id(&self) -> DeviceId {
        self.device.id()
    }

    fn kernels(&self) -> &'static sys::kqm_kernels {
        self.device.kernels()
    }

    fn stream(&self) -> sys::kqm_stream {
        self.device.stream()
    }

    fn fork(&self) -> Result<Self> {
        Ok(Self { device: self.device.fork()?, state: self.state.clone() })
    }

    fn activate(&self) -> Result<()> {
        self.device.activate()
    }

    fn wants(&self, kernel: &'static str) -> bool {
        let mut state = self.state();
        if state.only.is_some_and(|only| only != kernel) {
            return false;
        }
        match state.counts.iter_mut().find(|(counted, _)| *counted == kernel) {
            Some((_, count)) => *count += 1,
            None => state.counts.push((kernel, 1)),
        }
        self.device.wants(kernel)
    }

    fn slow_fp64(&self) -> bool {
        self.device.slow_fp64()
    }

    fn memory(&self) -> Result<(u64, u64)> {
        self.device.memory()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.device.allocate(bytes)
    }

    unsafe fn free(&self, address: u64) {
        // SAFETY: the caller's promise is the inner device's, here and below.
        unsafe { self.device.free(address) };
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.device.upload(to, from) }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.device.download(from, to) }
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.device.copy(to, from, bytes) }
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.device.clear(address, bytes) }
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<D::Graph>> {
        self.device.record(enqueue)
    }

    unsafe fn replay(&self, graph: &mut D::Graph) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.device.replay(graph) }
    }
}
