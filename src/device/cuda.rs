//! The CUDA device: a stream of the CUDA runtime, this crate's launchers.

use std::any::Any;
use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use super::build::{CUDA_BUILD, CudaBuild};
use super::runtime::{self, Handle, check};
use super::{Device, DeviceId};
use crate::{Error, Result, sys};

/// A CUDA device and one of its streams. Clones share the stream.
#[derive(Clone, Debug)]
pub struct CudaDevice {
    ordinal: c_int,
    stream: Arc<Stream>,
    kernels: &'static sys::kqm_kernels,
    slow_fp64: bool,
}

#[derive(Debug)]
struct Stream {
    raw: sys::kqm_stream,
    owner: Owner,
}

/// Whose a stream is, and with that who destroys it.
#[derive(Debug)]
enum Owner {
    /// This crate's.
    Crate,
    /// The engine's, which promised to keep it, or gave what keeps it.
    Engine { _keeps: Option<Arc<dyn Any + Send + Sync>> },
}

// SAFETY: a stream is a handle that any thread may use; the driver takes locks.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of the current device.
    fn new() -> Result<Arc<Self>> {
        let mut raw = null_mut();
        // SAFETY: the pointer is valid for one handle.
        check(unsafe { runtime::cudaStreamCreateWithFlags(&mut raw, runtime::NON_BLOCKING) })?;
        Ok(Arc::new(Self { raw, owner: Owner::Crate }))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Owner::Crate = self.owner {
            // SAFETY: nobody else has the handle. Work that is still on the stream is finished; an error is one of that work.
            let _ = check(unsafe { runtime::cudaStreamDestroy(self.raw) });
        }
    }
}

/// From how many f32 operations on in the time of an fp64 one fp64 counts as slow: data-centre cards have 2, others 32 or 64.
const SLOW_FP64: i32 = 8;

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
        // SAFETY: the function returns the address of a constant, or null to a caller of another header.
        let table = unsafe { sys::kqm_kernel_table(sys::KQM_ABI).as_ref() };
        table.ok_or_else(|| Error::NoCuda("the kernels were compiled with another version of kquant_moe.h".into()))
    }
    #[cfg(not(kqm_cuda))]
    {
        Err(no_kernels())
    }
}

/// The error of a build without kernels, which says why it has none.
#[cfg(not(kqm_cuda))]
fn no_kernels() -> Error {
    let reason = CUDA_BUILD.err().unwrap_or("the reason is not known");
    Error::NoCuda(format!("this build has no CUDA kernels: {reason}"))
}

/// An attribute of a device.
fn attribute(attribute: c_int, ordinal: c_int) -> Result<i32> {
    let mut value = 0;
    // SAFETY: the pointer is valid for one integer.
    check(unsafe { runtime::cudaDeviceGetAttribute(&mut value, attribute, ordinal) })?;
    Ok(value)
}

/// Major and minor number of a device's compute capability.
fn capability(ordinal: c_int) -> Result<(u32, u32)> {
    let number = |which| attribute(which, ordinal).map(i32::unsigned_abs);
    Ok((number(runtime::CAPABILITY_MAJOR)?, number(runtime::CAPABILITY_MINOR)?))
}

/// The name of a device. The runtime tells it only as part of a structure whose layout changes between releases.
fn name(ordinal: c_int) -> Result<String> {
    // SAFETY: the types are those of the driver's header.
    let (get, get_name) = unsafe {
        (
            runtime::driver::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>(c"cuDeviceGet")?,
            runtime::driver::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(c"cuDeviceGetName")?,
        )
    };
    let mut device = 0;
    let mut name = [0_u8; 256];
    // SAFETY: the pointers are valid for one integer and for as many bytes as is said.
    unsafe {
        check(get(&mut device, ordinal))?;
        check(get_name(name.as_mut_ptr().cast(), name.len() as c_int, device))?;
    }
    Ok(name.split(|&byte| byte == 0).next().map(String::from_utf8_lossy).unwrap_or_default().into_owned())
}

/// Makes device `ordinal` current, in its primary context, after a check that there is one and that this build has code for it.
fn open(ordinal: usize) -> Result<c_int> {
    let count = CudaDevice::count()?;
    let Some(device) = c_int::try_from(ordinal).ok().filter(|_| ordinal < count) else {
        return Err(Error::NoCuda(format!("there is no device {ordinal} (devices: {count})")));
    };
    let card = capability(device)?;
    if let Ok(build) = CUDA_BUILD
        && !build.has_code_for(card)
    {
        return Err(no_code_for(&name(device)?, card, &build));
    }
    // SAFETY: the call has no pointers.
    check(unsafe { runtime::cudaSetDevice(device) })?;
    Ok(device)
}

/// The error of a card that the build has neither machine code nor PTX for.
fn no_code_for(name: &str, (major, minor): (u32, u32), build: &CudaBuild) -> Error {
    Error::NoCuda(format!(
        "{name} is sm_{major}{minor}, and this build has neither machine code nor PTX for it ({build}); \
         KQUANT_MOE_CUDA_ARCHS={major}{minor} builds it"
    ))
}

impl CudaDevice {
    /// How many devices there are.
    ///
    /// # Errors
    /// [`Error::NoCuda`] when the build has no kernels or the machine no driver.
    pub fn count() -> Result<usize> {
        kernels()?;
        let (mut version, mut count) = (0, 0);
        // SAFETY: the pointer is valid for one integer.
        check(unsafe { runtime::cudaDriverGetVersion(&mut version) })?;
        if version == 0 {
            return Err(Error::NoCuda("no NVIDIA driver is installed (libcuda.so.1)".into()));
        }
        // SAFETY: as above.
        match check(unsafe { runtime::cudaGetDeviceCount(&mut count) }) {
            Ok(()) => Ok(usize::try_from(count).unwrap_or(0)),
            Err(Error::Cuda(text)) => Err(Error::NoCuda(format!("{text} (driver for CUDA {})", release(version)))),
            Err(error) => Err(error),
        }
    }

    /// Opens device `ordinal`, in its primary context, with a stream of its own.
    ///
    /// # Errors
    /// [`Error::NoCuda`] when the build has no kernels, or none for this card, or the machine no driver or no such device; what
    /// the driver reports.
    pub fn new(ordinal: usize) -> Result<Self> {
        let ordinal = open(ordinal)?;
        Self::with(ordinal, Stream::new()?)
    }

    /// The device of an engine's own stream: `stream` is a `cudaStream_t` or `CUstream` of the primary context of device `ordinal`,
    /// which is the one that the CUDA runtime uses, or null for its default stream. Dropping the device does not destroy it.
    ///
    /// Kernels, copies and fills of this value go to that stream, in order with the engine's own work; what the engine allocates
    /// in the context comes in as [`Slice::from_raw`](super::Slice::from_raw). Contexts of a model have streams of their own, and
    /// their results are there when a call returns. The default stream will do, except for [`Self::capture`]: CUDA captures no
    /// work on it.
    ///
    /// ```no_run
    /// use kquant_moe::device::{Buffer, CudaDevice, SliceMut};
    /// use kquant_moe::kernels::ResidualAdd;
    /// use kquant_moe::sys::kqm_stream;
    ///
    /// /// Writes 256 times 2 to memory of the engine's, in order with the work on its stream.
    /// ///
    /// /// # Safety
    /// /// The stream is one of device 0 and lives on; `y` is the address of 256 floats there, which nothing else uses meanwhile.
    /// unsafe fn twos(stream: kqm_stream, y: u64) -> kquant_moe::Result<()> {
    ///     // SAFETY: the caller's promise.
    ///     let device = unsafe { CudaDevice::from_raw_stream(0, stream)? };
    ///     let a = Buffer::from_slice(&device, &[1.0; 256])?;
    ///     // SAFETY: the caller's promise.
    ///     let y = unsafe { SliceMut::from_raw(&device, y, 256) };
    ///     ResidualAdd::new(a.slice(), a.slice(), y).launch(&device)
    /// }
    /// ```
    ///
    /// # Safety
    /// The stream is valid, and stays so until this device, its clones, and the buffers, models and graphs made with them are
    /// gone.
    ///
    /// # Errors
    /// Those of [`Self::new`], and [`Error::Invalid`] for a stream of another context.
    pub unsafe fn from_raw_stream(ordinal: usize, stream: sys::kqm_stream) -> Result<Self> {
        // SAFETY: the caller's promise.
        unsafe { Self::of_engine(ordinal, stream, None) }
    }

    /// The device of an engine's stream.
    ///
    /// # Safety
    /// That of [`Self::from_raw_stream`], for as long as `keeps` is kept.
    unsafe fn of_engine(
        ordinal: usize,
        raw: sys::kqm_stream,
        keeps: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self> {
        let device = open(ordinal)?;
        if !raw.is_null() {
            let (mut current, mut owner) = (null_mut(), null_mut());
            // SAFETY: the types are those of the driver's header; the pointers are valid for one handle each, and the caller
            // vouches for the stream.
            unsafe {
                type Current = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
                type OfStream = unsafe extern "C" fn(sys::kqm_stream, *mut *mut c_void) -> c_int;
                check(runtime::driver::<Current>(c"cuCtxGetCurrent")?(&mut current))?;
                check(runtime::driver::<OfStream>(c"cuStreamGetCtx")?(raw, &mut owner))?;
            }
            if owner != current {
                return Err(Error::Invalid(format!(
                    "the stream is not one of the primary context of device {ordinal}"
                )));
            }
        }
        Self::with(device, Arc::new(Stream { raw, owner: Owner::Engine { _keeps: keeps } }))
    }

    fn with(ordinal: c_int, stream: Arc<Stream>) -> Result<Self> {
        let slow_fp64 = attribute(runtime::SINGLE_TO_DOUBLE_RATIO, ordinal)? >= SLOW_FP64;
        Ok(Self { ordinal, stream, kernels: kernels()?, slow_fp64 })
    }

    /// Puts a copy on the stream.
    ///
    /// # Safety
    /// Both ranges are valid until the copy is done, and `kind` says where they are.
    unsafe fn enqueue_copy(&self, to: *mut c_void, from: *const c_void, bytes: usize, kind: c_int) -> Result<()> {
        self.activate()?;
        // SAFETY: the caller's promise; the stream is alive.
        check(unsafe { runtime::cudaMemcpyAsync(to, from, bytes, kind, self.stream.raw) })
    }

    /// Bytes of the second-level cache.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn l2_bytes(&self) -> Result<u64> {
        Ok(u64::from(attribute(runtime::L2_BYTES, self.ordinal)?.unsigned_abs()))
    }

    /// [`Self::from_raw_stream`] for a stream of cudarc, which the device keeps. Needs the feature `cudarc`; which version of CUDA
    /// cudarc is for, the engine says with cudarc's own features.
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
    /// ResidualAdd::new(a.slice(), a.slice(), out).launch(&device)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Self::from_raw_stream`].
    #[cfg(feature = "cudarc")]
    pub fn from_stream(stream: Arc<cudarc::driver::CudaStream>) -> Result<Self> {
        let (ordinal, raw) = (stream.context().ordinal(), stream.cu_stream().cast());
        // SAFETY: the stream is valid for as long as it is kept.
        unsafe { Self::of_engine(ordinal, raw, Some(stream)) }
    }

    /// Name, compute capability, memory and driver version, for reports.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::DeviceLost`].
    pub fn describe(&self) -> Result<String> {
        let (major, minor) = capability(self.ordinal)?;
        let gib = self.memory()?.1 as f64 / f64::from(1 << 30);
        let mut version = 0;
        // SAFETY: the pointer is valid for one integer.
        check(unsafe { runtime::cudaDriverGetVersion(&mut version) })?;
        let name = name(self.ordinal)?;
        Ok(format!("{name} (sm_{major}{minor}, {gib:.0} GiB, driver for CUDA {})", release(version)))
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
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::DeviceLost`].
    pub fn mark(&self) -> Result<CudaMark> {
        self.activate()?;
        let mut event = null_mut();
        // SAFETY: the pointer is valid for one handle; the stream is alive.
        unsafe {
            check(runtime::cudaEventCreateWithFlags(&mut event, 0))?;
            let mark = CudaMark { event };
            check(runtime::cudaEventRecord(mark.event, self.stream.raw))?;
            Ok(mark)
        }
    }

    /// Captures the work that `enqueue` puts on the stream as a graph, which goes to the device at once, so that the first
    /// launch is not slower than the others. The work may not allocate, copy from or to the host, or wait.
    ///
    /// # Errors
    /// Those of `enqueue`, [`Error::Cuda`] and [`Error::DeviceLost`].
    pub fn capture(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        self.activate()?;
        // SAFETY: the stream is alive.
        check(unsafe { runtime::cudaStreamBeginCapture(self.stream.raw, runtime::CAPTURE_THREAD_LOCAL) })?;
        let enqueued = enqueue();
        let mut graph = CudaGraph { graph: null_mut(), executable: null_mut(), device: self.clone() };
        // The capture must end whether or not the work could be enqueued.
        // SAFETY: the stream is alive, and the pointer is valid for one handle.
        let ended = check(unsafe { runtime::cudaStreamEndCapture(self.stream.raw, &mut graph.graph) });
        enqueued?;
        ended?;
        if graph.graph.is_null() {
            return Err(Error::Cuda("the captured graph is empty".into()));
        }
        // SAFETY: the graph and the stream are alive, and the pointer is valid for one handle.
        unsafe {
            let flags = runtime::AUTO_FREE_ON_LAUNCH;
            check(runtime::cudaGraphInstantiate(&mut graph.executable, graph.graph, flags))?;
            check(runtime::cudaGraphUpload(graph.executable, self.stream.raw))?;
        }
        Ok(graph)
    }
}

/// A version as the runtime gives it, as people write it.
fn release(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// A place in the work of a stream, and the device's time when the work got there.
#[derive(Debug)]
pub struct CudaMark {
    event: Handle,
}

// SAFETY: an event is a handle that any thread may use; the driver takes locks.
unsafe impl Send for CudaMark {}
// SAFETY: as above.
unsafe impl Sync for CudaMark {}

impl CudaMark {
    /// Seconds from an earlier mark to this one, by the device's clock. Waits until the work has got here.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for what failed on the way; [`Error::DeviceLost`].
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, and the pointer is valid for one number.
        unsafe {
            check(runtime::cudaEventSynchronize(earlier.event))?;
            check(runtime::cudaEventSynchronize(self.event))?;
            check(runtime::cudaEventElapsedTime(&mut milliseconds, earlier.event, self.event))?;
        }
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for CudaMark {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle. An error is one of earlier work, which the next call on the stream reports.
        let _ = check(unsafe { runtime::cudaEventDestroy(self.event) });
    }
}

/// A captured sequence of launches.
pub struct CudaGraph {
    graph: Handle,
    /// Null until the graph is instantiated.
    executable: Handle,
    device: CudaDevice,
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
        self.device.activate()?;
        // SAFETY: the graph and the stream are alive.
        check(unsafe { runtime::cudaGraphLaunch(self.executable, self.device.stream.raw) })
    }

    /// What was captured, as a number of kernel launches: a launcher of this crate's may make several.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn launches(&self) -> Result<usize> {
        let mut nodes = 0;
        // SAFETY: the graph is alive; without an array of nodes the runtime writes their number only.
        check(unsafe { runtime::cudaGraphGetNodes(self.graph, null_mut(), &mut nodes) })?;
        Ok(nodes)
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handles. An error is one of earlier work, which the next call on the stream reports.
        unsafe {
            if !self.executable.is_null() {
                let _ = check(runtime::cudaGraphExecDestroy(self.executable));
            }
            if !self.graph.is_null() {
                let _ = check(runtime::cudaGraphDestroy(self.graph));
            }
        }
    }
}

// SAFETY: allocations are CUDA's (aligned to 256 bytes and more); all copies, fills and launches go to one stream.
unsafe impl Device for CudaDevice {
    type Graph = CudaGraph;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn id(&self) -> DeviceId {
        DeviceId::new("cuda", self.ordinal as u64)
    }

    fn kernels(&self) -> &'static sys::kqm_kernels {
        self.kernels
    }

    fn stream(&self) -> sys::kqm_stream {
        self.stream.raw
    }

    fn fork(&self) -> Result<Self> {
        self.activate()?;
        Ok(Self { stream: Stream::new()?, ..self.clone() })
    }

    fn activate(&self) -> Result<()> {
        // SAFETY: the call has no pointers.
        check(unsafe { runtime::cudaSetDevice(self.ordinal) })
    }

    fn slow_fp64(&self) -> bool {
        self.slow_fp64
    }

    fn memory(&self) -> Result<(u64, u64)> {
        self.activate()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are valid for one number each.
        check(unsafe { runtime::cudaMemGetInfo(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.activate()?;
        let mut address = null_mut();
        // SAFETY: the pointer is valid for one address.
        match unsafe { runtime::cudaMalloc(&mut address, bytes) } {
            runtime::OUT_OF_MEMORY => {
                // Takes the status off the runtime, which would give it to a later launch.
                let _ = check(runtime::OUT_OF_MEMORY);
                Err(Error::OutOfMemory { needed: bytes as u64, free: self.memory()?.0 })
            }
            status => check(status).map(|()| address as u64),
        }
    }

    unsafe fn free(&self, address: u64) {
        // An error here is one of earlier work, which the next call on the stream reports.
        if self.activate().is_ok() {
            // SAFETY: the caller owns the allocation; cudaFree waits for work that uses it.
            let _ = check(unsafe { runtime::cudaFree(address as *mut c_void) });
        }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller vouches for the range. CUDA stages pageable memory before it returns.
        unsafe { self.enqueue_copy(to as *mut c_void, from.as_ptr().cast(), from.len(), runtime::TO_DEVICE) }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller vouches for the range; `to` is borrowed until the stream is done.
        unsafe { self.enqueue_copy(to.as_mut_ptr().cast(), from as *const c_void, to.len(), runtime::TO_HOST)? };
        self.synchronize()
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller vouches for the ranges.
        unsafe { self.enqueue_copy(to as *mut c_void, from as *const c_void, bytes, runtime::WITHIN_DEVICE) }
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.activate()?;
        // SAFETY: the caller vouches for the range.
        check(unsafe { runtime::cudaMemsetAsync(address as *mut c_void, 0, bytes, self.stream.raw) })
    }

    fn synchronize(&self) -> Result<()> {
        self.activate()?;
        // SAFETY: the stream is alive.
        check(unsafe { runtime::cudaStreamSynchronize(self.stream.raw) })
    }

    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<CudaGraph>> {
        self.capture(enqueue).map(Some)
    }

    unsafe fn replay(&self, graph: &mut CudaGraph) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { graph.launch() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Target;

    #[test]
    fn a_card_without_code_is_named_with_the_code_that_there_is() {
        const TARGETS: &[Target] =
            &[Target { capability: 89, specific: false }, Target { capability: 120, specific: false }];
        let build = CudaBuild { nvcc: "13.0", targets: TARGETS, ptx: 89 };
        let error = no_code_for("NVIDIA A100-SXM4-40GB", (8, 0), &build).to_string();
        for part in ["NVIDIA A100-SXM4-40GB is sm_80", "sm_89 sm_120", "compute_89", "KQUANT_MOE_CUDA_ARCHS=80"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    /// Without kernels every call of the runtime fails, and so does whatever would make one.
    #[test]
    fn a_build_without_kernels_says_why() {
        let Err(reason) = CUDA_BUILD else { return };
        assert!(!reason.is_empty());
        for error in [CudaDevice::new(0).unwrap_err(), kernels().unwrap_err(), CudaDevice::count().unwrap_err()] {
            assert_eq!(error.to_string(), format!("no CUDA: this build has no CUDA kernels: {reason}"));
        }
    }
}
