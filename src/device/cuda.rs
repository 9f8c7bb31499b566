//! The CUDA device: cudarc's context and stream, this crate's launchers.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys as driver};

use super::{Device, DeviceId};
use crate::{Error, Result, sys};

impl From<DriverError> for Error {
    fn from(error: DriverError) -> Self {
        let (code, message) = (error.0 as u32, text(error));
        if Self::is_device_lost(code) { Self::DeviceLost { code, message } } else { Self::Cuda(message) }
    }
}

/// The driver's words for an error.
fn text(error: DriverError) -> String {
    error.error_string().map_or_else(|_| format!("{error:?}"), |text| text.to_string_lossy().into_owned())
}

/// A CUDA device and one of its streams.
#[derive(Clone, Debug)]
pub struct CudaDevice {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: &'static sys::kqm_kernels,
    slow_fp64: bool,
}

/// From how many f32 operations on in the time of an fp64 one fp64 counts as slow: data-centre cards have 2, others 32 or 64.
const SLOW_FP64: i32 = 8;

/// Whether the driver's library can be loaded. cudarc panics when it is asked for a device without one.
fn driver_is_present() -> bool {
    #[cfg(unix)]
    {
        use std::ffi::{c_char, c_int, c_void};
        unsafe extern "C" {
            fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
        }
        const RTLD_LAZY: c_int = 1;
        // SAFETY: the names are NUL-terminated. The library stays loaded, as cudarc would keep it.
        [c"libcuda.so.1", c"libcuda.so"].iter().any(|name| unsafe { !dlopen(name.as_ptr(), RTLD_LAZY).is_null() })
    }
    #[cfg(not(unix))]
    {
        std::panic::catch_unwind(|| result::init().is_ok()).unwrap_or(false)
    }
}

/// The launchers of this build: the C ABI of `cuda/kquant_moe.h` for engines that hold pointers and streams of their own and
/// want none of this crate's types. No launcher is missing. Getting the table touches no device.
///
/// A launcher enqueues its work on the stream it is given, in the CUDA context that is current on the calling thread; calling
/// one is `unsafe`, since it trusts the pointers in its arguments. It returns `KQM_OK`, a negative `KQM_` code for arguments
/// that it refuses, or the positive `cudaError_t` of the launch.
///
/// ```no_run
/// use kquant_moe::sys;
///
/// /// `y = a + b`, for `len` floats in device memory.
/// ///
/// /// # Safety
/// /// The pointers are good for `len` floats in the context that is current, and so is the stream.
/// unsafe fn add(a: *const f32, b: *const f32, y: *mut f32, len: u64, stream: sys::kqm_stream) -> kquant_moe::Result<i32> {
///     let residual_add = kquant_moe::device::kernels()?.residual_add.expect("no launcher is missing");
///     // SAFETY: the caller's promise is the launcher's.
///     Ok(unsafe { residual_add(&sys::kqm_residual_add_args { a, b, y, count: len }, stream) })
/// }
/// ```
///
/// # Errors
/// [`Error::NoCuda`] when the build has no kernels.
pub fn kernels() -> Result<&'static sys::kqm_kernels> {
    #[cfg(kqm_cuda)]
    {
        // SAFETY: the function returns the address of a constant.
        Ok(unsafe { &*sys::kqm_kernel_table() })
    }
    #[cfg(not(kqm_cuda))]
    {
        Err(Error::NoCuda("this build has no CUDA kernels (no nvcc was found when it was compiled)".into()))
    }
}

/// The context of device `ordinal`: its primary one, which the CUDA runtime and other users of cudarc share.
fn open(ordinal: usize) -> Result<Arc<CudaContext>> {
    if !driver_is_present() {
        return Err(Error::NoCuda("the driver library is not installed".into()));
    }
    let count = result::init().and_then(|()| result::device::get_count()).map_err(|e| Error::NoCuda(text(e)))?;
    if ordinal >= usize::try_from(count).unwrap_or(0) {
        return Err(Error::NoCuda(format!("there is no device {ordinal} (devices: {count})")));
    }
    Ok(CudaContext::new(ordinal)?)
}

impl CudaDevice {
    /// Opens device `ordinal` with a stream of its own.
    ///
    /// # Errors
    /// [`Error::NoCuda`] when the build has no kernels or the machine no driver or no such device; what the driver reports.
    pub fn new(ordinal: usize) -> Result<Self> {
        let kernels = kernels()?;
        let context = open(ordinal)?;
        let stream = context.new_stream()?;
        Self::with(context, stream, kernels)
    }

    /// The device of an engine's own stream, with the engine's context. Kernels, copies and fills of this value go to that
    /// stream, in order with the engine's own work; what the engine allocates in the context comes in as
    /// [`Slice::from_raw`](super::Slice::from_raw). Contexts of a model have streams of their own, and their results are
    /// there when a call returns.
    ///
    /// The legacy default stream will do, except for [`Self::capture`]: CUDA captures no work on it.
    ///
    /// ```no_run
    /// use kquant_moe::device::{Buffer, CudaDevice, SliceMut, cudarc::driver::{CudaContext, DevicePtrMut}};
    /// use kquant_moe::kernels::ResidualAdd;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // What the engine has.
    /// let stream = CudaContext::new(0)?.new_stream()?;
    /// let mut y = stream.alloc_zeros::<f32>(256)?;
    ///
    /// let device = CudaDevice::from_stream(stream.clone())?;
    /// let a = Buffer::from_slice(&device, &[1.0; 256])?;
    /// let (address, _guard) = y.device_ptr_mut(&stream);
    /// // SAFETY: 256 floats, which nothing else uses while the guard is there.
    /// let out = unsafe { SliceMut::from_raw(&device, address, 256) };
    /// ResidualAdd { a: a.slice(), b: a.slice(), y: out }.launch(&device)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoCuda`] when the build has no kernels; what the driver reports.
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        Self::with(stream.context().clone(), stream, kernels()?)
    }

    /// [`Self::from_stream`] for an engine that does not use cudarc: `stream` is a `CUstream` or `cudaStream_t` of the primary
    /// context of device `ordinal`, which is the one that the CUDA runtime uses, or null for its default stream. Dropping the
    /// device does not destroy the stream.
    ///
    /// # Safety
    /// The stream is valid, and stays so until this device, its clones, and the buffers, models and graphs made with them are
    /// gone.
    ///
    /// # Errors
    /// Those of [`Self::new`], and [`Error::Invalid`] for a stream of another context.
    pub unsafe fn from_raw_stream(ordinal: usize, stream: sys::kqm_stream) -> Result<Self> {
        let kernels = kernels()?;
        let context = open(ordinal)?;
        let stream: driver::CUstream = stream.cast();
        if !stream.is_null() {
            let mut owner = std::ptr::null_mut();
            // SAFETY: the caller vouches for the stream; the pointer is valid for one handle.
            unsafe { driver::cuStreamGetCtx(stream, &mut owner) }.result()?;
            if owner != context.cu_ctx() {
                return Err(Error::Invalid(format!(
                    "the stream is not one of the primary context of device {ordinal}"
                )));
            }
        }
        // SAFETY: it is a stream of this context, which the caller keeps; the engine orders its own work on it.
        let stream = unsafe { context.wrap_borrowed_stream(stream) };
        Self::with(context, stream, kernels)
    }

    fn with(context: Arc<CudaContext>, stream: Arc<CudaStream>, kernels: &'static sys::kqm_kernels) -> Result<Self> {
        let ratio = driver::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO;
        let slow_fp64 = context.attribute(ratio)? >= SLOW_FP64;
        Ok(Self { context, stream, kernels, slow_fp64 })
    }

    /// Name, compute capability, memory and driver version, for reports.
    pub fn describe(&self) -> Result<String> {
        let (major, minor) = self.context.compute_capability()?;
        let gib = self.context.total_mem()? as f64 / f64::from(1 << 30);
        let mut version = 0;
        self.activate()?;
        // SAFETY: the pointer is valid for one integer.
        unsafe { driver::cuDriverGetVersion(&mut version) }.result()?;
        let (a, b) = (version / 1000, version % 1000 / 10);
        Ok(format!("{} (sm_{major}{minor}, {gib:.0} GiB, driver for CUDA {a}.{b})", self.context.name()?))
    }

    /// Bytes per second, read plus written, of a copy within the device: the ceiling of everything that is bound by memory.
    /// Median of several copies of `bytes` bytes (a quarter of the free memory at most).
    pub fn copy_bandwidth(&self, bytes: usize) -> Result<f64> {
        let bytes = bytes.min(self.memory()?.0 as usize / 4).max(1 << 20);
        let from = super::Buffer::<Self, u8>::zeroed(self, bytes)?;
        let mut to = super::Buffer::<Self, u8>::zeroed(self, bytes)?;
        let mut times = Vec::new();
        for _ in 0..7 {
            times.push(self.time(|| to.copy_from(self, 0, &from, 0, bytes))?);
        }
        times.sort_by(f64::total_cmp);
        Ok(2.0 * bytes as f64 / times[times.len() / 2])
    }

    /// Seconds between the start and the end of the work that `enqueue` puts on the stream, by the device's clock.
    pub fn time(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<f64> {
        let start = self.mark()?;
        enqueue()?;
        self.mark()?.seconds_since(&start)
    }

    /// A mark on the stream: the work that is on it now lies before the mark.
    pub fn mark(&self) -> Result<CudaMark> {
        Ok(CudaMark { event: self.stream.record_event(Some(driver::CUevent_flags::CU_EVENT_DEFAULT))? })
    }

    /// Captures the work that `enqueue` puts on the stream as a graph, which goes to the device at once, so that the first
    /// launch is not slower than the others. The work may not allocate, copy from or to the host, or wait.
    pub fn capture(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        self.stream.begin_capture(driver::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let enqueued = enqueue();
        // The capture must end whether or not the work could be enqueued.
        let graph =
            self.stream.end_capture(driver::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
        enqueued?;
        let graph = graph?.ok_or_else(|| Error::Cuda("the captured graph is empty".into()))?;
        graph.upload()?;
        Ok(CudaGraph { graph })
    }
}

/// A place in the work of a stream, and the device's time when the work got there.
#[derive(Debug)]
pub struct CudaMark {
    event: CudaEvent,
}

impl CudaMark {
    /// Seconds from an earlier mark to this one, by the device's clock. Waits until the work has got here.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for what failed on the way.
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        Ok(f64::from(earlier.event.elapsed_ms(&self.event)?) / 1e3)
    }
}

/// A captured sequence of launches.
pub struct CudaGraph {
    graph: cudarc::driver::CudaGraph,
}

// SAFETY: a graph may move between threads; the driver only forbids concurrent use, which `&mut self` in `launch` excludes.
unsafe impl Send for CudaGraph {}
// SAFETY: what takes a shared reference does not touch the executable graph, and only counts the nodes of the other one.
unsafe impl Sync for CudaGraph {}

impl std::fmt::Debug for CudaGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CudaGraph")
    }
}

impl CudaGraph {
    /// Enqueues the captured launches on the stream they were captured from.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::DeviceLost`].
    ///
    /// # Safety
    /// Every buffer that the captured launches use is alive, and nothing else uses those that they write.
    pub unsafe fn launch(&mut self) -> Result<()> {
        Ok(self.graph.launch()?)
    }

    /// What was captured, as a number of kernel launches: a launcher of this crate's may make several.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn launches(&self) -> Result<usize> {
        let mut nodes = 0;
        // SAFETY: the graph is alive; without an array of nodes the driver writes their number only.
        unsafe { driver::cuGraphGetNodes(self.graph.cu_graph(), std::ptr::null_mut(), &mut nodes) }.result()?;
        Ok(nodes)
    }
}

// SAFETY: allocations are the driver's (aligned to 256 bytes and more); all copies, fills and launches go to one stream.
unsafe impl Device for CudaDevice {
    type Graph = CudaGraph;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn id(&self) -> DeviceId {
        DeviceId::new("cuda", self.context.cu_ctx() as u64)
    }

    fn kernels(&self) -> &'static sys::kqm_kernels {
        self.kernels
    }

    fn stream(&self) -> sys::kqm_stream {
        self.stream.cu_stream().cast()
    }

    fn fork(&self) -> Result<Self> {
        Ok(Self { stream: self.context.new_stream()?, ..self.clone() })
    }

    fn activate(&self) -> Result<()> {
        Ok(self.context.bind_to_thread()?)
    }

    fn slow_fp64(&self) -> bool {
        self.slow_fp64
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = self.context.mem_get_info()?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.activate()?;
        // SAFETY: the driver checks the size.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(address),
            Err(DriverError(driver::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(Error::OutOfMemory { needed: bytes as u64, free: self.memory()?.0 })
            }
            Err(error) => Err(error.into()),
        }
    }

    unsafe fn free(&self, address: u64) {
        // An error here is one of earlier work, which the next call on the stream reports.
        if self.activate().is_ok() {
            // SAFETY: the caller owns the allocation; cuMemFree waits for work that uses it.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.activate()?;
        // SAFETY: the caller vouches for the range. The driver stages pageable memory before it returns.
        Ok(unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }?)
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.activate()?;
        // SAFETY: the caller vouches for the range; `to` is borrowed until the stream is done.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }?;
        Ok(self.stream.synchronize()?)
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.activate()?;
        // SAFETY: the caller vouches for the ranges.
        Ok(unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }?)
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.activate()?;
        // SAFETY: the caller vouches for the range.
        Ok(unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }?)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(self.stream.synchronize()?)
    }

    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<CudaGraph>> {
        self.capture(enqueue).map(Some)
    }

    unsafe fn replay(&self, graph: &mut CudaGraph) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { graph.launch() }
    }
}
