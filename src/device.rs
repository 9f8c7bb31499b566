//! Devices: where kernels run and their operands live.
//!
//! [`Device`] is what the kernel wrappers and the GPU backend need of one: memory, an ordered queue, and the table of
//! launchers. [`CudaDevice`] is the real one; the tests add one whose kernels are the same sources run on the CPU.

use std::marker::PhantomData;

use crate::{Error, Result, sys};

mod build;
mod cuda;
mod probe;
mod runtime;

pub use build::{CUDA_BUILD, CudaBuild, Target};
pub use cuda::{CudaDevice, CudaGraph, CudaMark, kernels};
/// The crate whose streams [`CudaDevice::from_stream`] takes, in the version that it takes them of.
#[cfg(feature = "cudarc")]
pub use cudarc;
pub use probe::Probe;

/// Which device's memory an address is of. Equal for all that may be used together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId {
    executor: &'static str,
    number: u64,
}

impl DeviceId {
    /// The memory `number` of an executor, such as a device by the address of its context.
    pub const fn new(executor: &'static str, number: u64) -> Self {
        Self { executor, number }
    }
}

/// Memory and a queue of one device. Clones share the queue; [`Device::fork`] makes another one.
///
/// # Safety
/// `allocate` returns memory that stays valid, until `free`, for the kernels and copies of every device of the same `id`,
/// aligned to 256 bytes; copies, fills and launches on one queue take effect in the order of the calls.
pub unsafe trait Device: Clone + Send + Sync + 'static {
    /// Recorded launches.
    type Graph: Send;

    /// `"cuda"`, or the name of another executor.
    fn name(&self) -> &'static str;
    /// Whose memory it allocates and can use: that of its clones and forks.
    fn id(&self) -> DeviceId;
    /// The launchers.
    fn kernels(&self) -> &'static sys::kqm_kernels;
    /// The queue, as launchers take it.
    fn stream(&self) -> sys::kqm_stream;
    /// The same device with a queue of its own.
    fn fork(&self) -> Result<Self>;
    /// Makes the device current for the calling thread; called before every launch.
    fn activate(&self) -> Result<()>;
    /// Whether a launch of this kernel is made, asked once before each one. A device that measures leaves launches out, see
    /// [`Probe`].
    #[inline]
    fn wants(&self, _kernel: &'static str) -> bool {
        true
    }
    /// Whether fp64 is so slow, as on consumer cards, that the norm of a single token is better made once, by a kernel of its own,
    /// than by every block that needs it. Values do not depend on it.
    #[inline]
    fn slow_fp64(&self) -> bool {
        false
    }
    /// Free and total bytes.
    fn memory(&self) -> Result<(u64, u64)>;
    /// Allocates `bytes` bytes with unspecified contents.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    /// Frees an allocation, after the work that uses it.
    ///
    /// # Safety
    /// `address` comes from `allocate` of this device, and nothing uses it afterwards.
    unsafe fn free(&self, address: u64);
    /// Copies host bytes to the device. On return `from` may be reused.
    ///
    /// # Safety
    /// `to` .. `to + from.len()` lies in one allocation of this device.
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()>;
    /// Copies device bytes to the host, after all earlier work, and waits for them.
    ///
    /// # Safety
    /// `from` .. `from + to.len()` lies in one allocation of this device.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;
    /// Copies within the device.
    ///
    /// # Safety
    /// Both ranges lie in allocations of this device and do not overlap.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Sets bytes to zero.
    ///
    /// # Safety
    /// `address` .. `address + bytes` lies in one allocation of this device.
    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()>;
    /// Waits for all work of the queue and reports what failed.
    fn synchronize(&self) -> Result<()>;
    /// Records the launches that `enqueue` makes, without doing them. `None`: the device cannot, and nothing was recorded. The
    /// launches must have been made once before; `enqueue` may not allocate, copy from or to the host, or wait.
    ///
    /// # Errors
    /// Those of `enqueue`, [`Error::Cuda`] and [`Error::DeviceLost`].
    fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<Self::Graph>>;
    /// Enqueues recorded launches. The memory that they use must still be there.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::DeviceLost`].
    ///
    /// # Safety
    /// Every buffer that the recorded launches use is alive, and nothing else uses those that they write.
    unsafe fn replay(&self, graph: &mut Self::Graph) -> Result<()>;
}

/// Types that device buffers hold: plain data, valid for any bytes.
///
/// # Safety
/// The type has no padding and no invalid values.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: any bits are a number, and a number has no padding.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
/// Structures of numbers without padding: each is as large as its fields together.
macro_rules! plain_structures {
    ($($structure:ident { $($field:ident),* })*) => { $(
        // SAFETY: any bits are numbers, and there is no padding.
        unsafe impl Plain for sys::$structure {}
        const _: () = {
            const fn bytes<T>(_: fn(&sys::$structure) -> &T) -> usize {
                size_of::<T>()
            }
            assert!(size_of::<sys::$structure>() == 0 $(+ bytes(|structure| &structure.$field))*);
        };
    )* };
}
plain_structures! {
    kqm_fixed_block { digit, sum_low, sum_high, unit, reserved }
    kqm_sampling { seed, temperature, top_p, min_p, penalty, top_k, window }
    kqm_sample_state {
        best, sum, count, above, above_weight, limit, total, prefix, least, ties, done, largest, drawing
    }
    kqm_sample_part { weight, ties }
}

/// `values` as bytes.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain data has no padding; the length is that of the slice.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// `values` as bytes that may be overwritten.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: plain data has no padding and no invalid values; the length is that of the slice.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Where an operand lies, and how many elements it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) device: DeviceId,
    pub(crate) len: usize,
}

/// Device memory read by a kernel: `len` elements at an address of one device.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a, T> {
    device: DeviceId,
    address: u64,
    len: usize,
    lifetime: PhantomData<&'a T>,
}

/// Device memory written by a kernel.
#[derive(Debug)]
pub struct SliceMut<'a, T> {
    device: DeviceId,
    address: u64,
    len: usize,
    lifetime: PhantomData<&'a mut T>,
}

/// The address of elements `from .. from + len` of `whole` at `address`.
fn part_of<T>(address: u64, whole: usize, from: usize, len: usize) -> Result<u64> {
    match from.checked_add(len) {
        Some(end) if end <= whole => Ok(address + (from * size_of::<T>()) as u64),
        _ => Err(Error::Invalid(format!("elements {from}..{from}+{len} of {whole}"))),
    }
}

impl<'a, T> Slice<'a, T> {
    /// Memory that somebody else manages, such as a tensor of the engine that links this crate.
    ///
    /// # Safety
    /// `len` elements at `address` are valid memory of the device, aligned for the type, initialised, and not written while
    /// the slice is in use by enqueued work.
    pub unsafe fn from_raw<D: Device>(device: &D, address: u64, len: usize) -> Self {
        Self { device: device.id(), address, len, lifetime: PhantomData }
    }
    /// `len` elements from index `from`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are fewer.
    pub fn part(&self, from: usize, len: usize) -> Result<Self> {
        Ok(Self { address: part_of::<T>(self.address, self.len, from, len)?, len, ..*self })
    }
    /// The address.
    pub fn as_ptr(&self) -> *const T {
        self.address as *const T
    }
    /// Whose memory it is.
    pub fn device(&self) -> DeviceId {
        self.device
    }
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub(crate) fn place(&self) -> Place {
        Place { device: self.device, len: self.len }
    }
}

impl<'a, T> SliceMut<'a, T> {
    /// Memory that somebody else manages.
    ///
    /// # Safety
    /// `len` elements at `address` are valid memory of the device, aligned for the type, that nothing else touches while
    /// the slice is in use by enqueued work.
    pub unsafe fn from_raw<D: Device>(device: &D, address: u64, len: usize) -> Self {
        Self { device: device.id(), address, len, lifetime: PhantomData }
    }
    /// `len` elements from index `from`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are fewer.
    pub fn part(&mut self, from: usize, len: usize) -> Result<SliceMut<'_, T>> {
        let address = part_of::<T>(self.address, self.len, from, len)?;
        Ok(SliceMut { device: self.device, address, len, lifetime: PhantomData })
    }
    /// The first `at` elements, and the others.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are fewer.
    pub fn split_at(self, at: usize) -> Result<(Self, Self)> {
        let address = part_of::<T>(self.address, self.len, at, 0)?;
        let behind = Self { address, len: self.len - at, ..self };
        Ok((Self { device: behind.device, address: self.address, len: at, lifetime: PhantomData }, behind))
    }
    /// The address.
    pub fn as_ptr(&self) -> *mut T {
        self.address as *mut T
    }
    /// Whose memory it is.
    pub fn device(&self) -> DeviceId {
        self.device
    }
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub(crate) fn place(&self) -> Place {
        Place { device: self.device, len: self.len }
    }
}

/// Device memory of `len` elements, freed when dropped unless somebody else manages it ([`Buffer::from_raw`]).
#[derive(Debug)]
pub struct Buffer<D: Device, T: Plain> {
    device: D,
    address: u64,
    len: usize,
    owned: bool,
    element: PhantomData<T>,
}

impl<D: Device, T: Plain> Buffer<D, T> {
    /// Memory with unspecified contents, to be written before anybody reads it.
    fn unspecified(device: &D, len: usize) -> Result<Self> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::Invalid(format!("a buffer of {len} elements is too large")))?;
        let address = if bytes == 0 { 0 } else { device.allocate(bytes)? };
        Ok(Self { device: device.clone(), address, len, owned: true, element: PhantomData })
    }

    /// Memory that somebody else manages, such as the arena of the engine that links this crate. Nothing is allocated, and nothing freed.
    ///
    /// # Safety
    /// `len` elements at `address` are valid memory of the device, aligned to 16 bytes or, where a structure that is made of one piece of memory
    /// says so, as its elements are. Until the buffer is dropped and the work that was
    /// enqueued with it is done they stay there, and nothing else writes them or reads what this buffer writes.
    pub unsafe fn from_raw(device: &D, address: u64, len: usize) -> Self {
        Self { device: device.clone(), address, len, owned: false, element: PhantomData }
    }

    /// Memory filled with zeros.
    pub fn zeroed(device: &D, len: usize) -> Result<Self> {
        let buffer = Self::unspecified(device, len)?;
        if len > 0 {
            // SAFETY: the range is the allocation.
            unsafe { device.clear(buffer.address, len * size_of::<T>())? };
        }
        Ok(buffer)
    }

    /// Memory with a copy of `values`.
    pub fn from_slice(device: &D, values: &[T]) -> Result<Self> {
        let mut buffer = Self::unspecified(device, values.len())?;
        buffer.write(device, 0, values)?;
        Ok(buffer)
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it, to read.
    pub fn slice(&self) -> Slice<'_, T> {
        Slice { device: self.device.id(), address: self.address, len: self.len, lifetime: PhantomData }
    }

    /// All of it, to write.
    pub fn slice_mut(&mut self) -> SliceMut<'_, T> {
        SliceMut { device: self.device.id(), address: self.address, len: self.len, lifetime: PhantomData }
    }

    pub(crate) fn place(&self) -> Place {
        Place { device: self.device.id(), len: self.len }
    }

    fn range(&self, from: usize, len: usize) -> Result<u64> {
        part_of::<T>(self.address, self.len, from, len)
    }

    /// Fails unless it is memory of the device whose queue is to work on it.
    fn on(&self, device: &D) -> Result<()> {
        if self.device.id() == device.id() {
            return Ok(());
        }
        Err(Error::Invalid(format!("a buffer of {} elements lies on another device", self.len)))
    }

    /// `len` elements from index `from`, to read.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are fewer.
    pub fn part(&self, from: usize, len: usize) -> Result<Slice<'_, T>> {
        self.slice().part(from, len)
    }

    /// `len` elements from index `from`, to write.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are fewer.
    pub fn part_mut(&mut self, from: usize, len: usize) -> Result<SliceMut<'_, T>> {
        let address = self.range(from, len)?;
        Ok(SliceMut { device: self.device.id(), address, len, lifetime: PhantomData })
    }

    /// Copies `values` to index `from` ..., in the order of `device`'s queue.
    pub fn write(&mut self, device: &D, from: usize, values: &[T]) -> Result<()> {
        self.on(device)?;
        let address = self.range(from, values.len())?;
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: the range was checked, and so was whose memory it is.
        unsafe { device.upload(address, bytes_of(values)) }
    }

    /// Copies the elements from index `from` to `out`, after all earlier work of `device`'s queue.
    pub fn read(&self, device: &D, from: usize, out: &mut [T]) -> Result<()> {
        self.on(device)?;
        let address = self.range(from, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        // SAFETY: the range was checked, and so was whose memory it is; plain data takes any bytes.
        unsafe { device.download(address, bytes_of_mut(out)) }
    }

    /// Copies `len` elements from index `from` of `source` to index `to`.
    pub fn copy_from(&mut self, device: &D, to: usize, source: &Self, from: usize, len: usize) -> Result<()> {
        self.on(device)?;
        source.on(device)?;
        let (to, from) = (self.range(to, len)?, source.range(from, len)?);
        if len == 0 {
            return Ok(());
        }
        // SAFETY: both ranges were checked, and so was whose memory they are; they lie in different buffers, since one
        // is borrowed mutably.
        unsafe { device.copy(to, from, len * size_of::<T>()) }
    }

    /// Copies `len` elements from index `from` to index `to`, which do not overlap.
    pub fn copy_within(&mut self, device: &D, to: usize, from: usize, len: usize) -> Result<()> {
        self.on(device)?;
        let (target, source) = (self.range(to, len)?, self.range(from, len)?);
        if to.abs_diff(from) < len {
            return Err(Error::Invalid(format!("{len} elements from index {from} to {to} overlap")));
        }
        if len == 0 {
            return Ok(());
        }
        // SAFETY: both ranges were checked, and so was whose memory they are; they do not overlap.
        unsafe { device.copy(target, source, len * size_of::<T>()) }
    }
}

impl<D: Device, T: Plain> Drop for Buffer<D, T> {
    fn drop(&mut self) {
        if self.owned && self.address != 0 {
            // SAFETY: the buffer owns the allocation, and slices of it borrow the buffer.
            unsafe { self.device.free(self.address) };
        }
    }
}

/// Turns a launcher's status into an error that names the kernel.
pub(crate) fn check_launch<D: Device>(device: &D, kernel: &'static str, status: sys::kqm_status) -> Result<()> {
    if status == sys::KQM_OK {
        return Ok(());
    }
    let message = match device.kernels().status_text {
        // SAFETY: the function returns a static, NUL-terminated string for any status.
        Some(text) => unsafe { std::ffi::CStr::from_ptr(text(status)) }.to_string_lossy().into_owned(),
        None => "unknown status".into(),
    };
    match u32::try_from(status) {
        Ok(code) if Error::is_device_lost(code) => {
            Err(Error::DeviceLost { code, message: format!("{message}, found by the launch of {kernel}") })
        }
        _ => Err(Error::Kernel { kernel, status, message }),
    }
}
