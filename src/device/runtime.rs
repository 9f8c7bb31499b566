//! The CUDA runtime that the kernels are linked with: the calls that a device makes of it, with C's names and types.
//!
//! It comes as a static library with the compiler that built the kernels and loads the driver when it is first called, so a
//! build depends on no other installation, and where the driver is missing it says so.
#![allow(non_snake_case)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

use crate::{Error, Result, sys};

/// `cudaError_t`.
pub type Status = c_int;
/// `cudaEvent_t`, `cudaGraph_t`, `cudaGraphExec_t`.
pub type Handle = *mut c_void;

/// `cudaSuccess`.
pub const SUCCESS: Status = 0;
/// `cudaErrorMemoryAllocation`.
pub const OUT_OF_MEMORY: Status = 2;
/// `cudaErrorNoDevice`: what every call returns in a build without kernels.
#[cfg(not(kqm_cuda))]
pub const NO_DEVICE: Status = 100;

/// `cudaMemcpyHostToDevice`.
pub const TO_DEVICE: c_int = 1;
/// `cudaMemcpyDeviceToHost`.
pub const TO_HOST: c_int = 2;
/// `cudaMemcpyDeviceToDevice`.
pub const WITHIN_DEVICE: c_int = 3;

/// `cudaStreamNonBlocking`: the stream does not wait for the legacy default stream.
pub const NON_BLOCKING: c_uint = 1;
/// `cudaStreamCaptureModeThreadLocal`.
pub const CAPTURE_THREAD_LOCAL: c_int = 1;
/// `cudaGraphInstantiateFlagAutoFreeOnLaunch`.
pub const AUTO_FREE_ON_LAUNCH: c_ulonglong = 1;

/// `cudaDevAttrL2CacheSize`.
pub const L2_BYTES: c_int = 38;
/// `cudaDevAttrComputeCapabilityMajor`.
pub const CAPABILITY_MAJOR: c_int = 75;
/// `cudaDevAttrComputeCapabilityMinor`.
pub const CAPABILITY_MINOR: c_int = 76;
/// `cudaDevAttrSingleToDoublePrecisionPerfRatio`.
pub const SINGLE_TO_DOUBLE_RATIO: c_int = 87;

/// Declares functions of the runtime, and in a build without kernels, which is linked with none, functions of the same types that
/// say that there is no device.
macro_rules! runtime {
    ($(fn $name:ident($($argument:ident: $type:ty),*);)*) => {
        #[cfg(kqm_cuda)]
        unsafe extern "C" {
            $(pub fn $name($($argument: $type),*) -> Status;)*
        }
        $(
            /// Does nothing.
            ///
            /// # Safety
            /// None is needed: the arguments are not looked at.
            #[cfg(not(kqm_cuda))]
            pub unsafe fn $name($(_: $type),*) -> Status {
                NO_DEVICE
            }
        )*
    };
}

runtime! {
    fn cudaDriverGetVersion(version: *mut c_int);
    fn cudaGetLastError();
    fn cudaGetDriverEntryPointByVersion(
        name: *const c_char, function: *mut *mut c_void, version: c_uint, flags: c_ulonglong, found: *mut c_int
    );
    fn cudaGetDeviceCount(count: *mut c_int);
    fn cudaSetDevice(device: c_int);
    fn cudaDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int);
    fn cudaMemGetInfo(free: *mut usize, total: *mut usize);
    fn cudaMalloc(address: *mut *mut c_void, bytes: usize);
    fn cudaFree(address: *mut c_void);
    fn cudaMemcpyAsync(to: *mut c_void, from: *const c_void, bytes: usize, kind: c_int, stream: sys::kqm_stream);
    fn cudaMemsetAsync(address: *mut c_void, value: c_int, bytes: usize, stream: sys::kqm_stream);
    fn cudaStreamCreateWithFlags(stream: *mut sys::kqm_stream, flags: c_uint);
    fn cudaStreamDestroy(stream: sys::kqm_stream);
    fn cudaStreamSynchronize(stream: sys::kqm_stream);
    fn cudaStreamBeginCapture(stream: sys::kqm_stream, mode: c_int);
    fn cudaStreamEndCapture(stream: sys::kqm_stream, graph: *mut Handle);
    fn cudaGraphInstantiate(executable: *mut Handle, graph: Handle, flags: c_ulonglong);
    fn cudaGraphUpload(executable: Handle, stream: sys::kqm_stream);
    fn cudaGraphLaunch(executable: Handle, stream: sys::kqm_stream);
    fn cudaGraphGetNodes(graph: Handle, nodes: *mut Handle, count: *mut usize);
    fn cudaGraphExecDestroy(executable: Handle);
    fn cudaGraphDestroy(graph: Handle);
    fn cudaEventCreateWithFlags(event: *mut Handle, flags: c_uint);
    fn cudaEventRecord(event: Handle, stream: sys::kqm_stream);
    fn cudaEventSynchronize(event: Handle);
    fn cudaEventElapsedTime(milliseconds: *mut f32, from: Handle, to: Handle);
    fn cudaEventDestroy(event: Handle);
}

/// The runtime's words for an error.
pub fn text(status: Status) -> String {
    #[cfg(kqm_cuda)]
    {
        unsafe extern "C" {
            fn cudaGetErrorString(status: Status) -> *const c_char;
        }
        // SAFETY: the function returns a static, NUL-terminated string for any number.
        unsafe { CStr::from_ptr(cudaGetErrorString(status)) }.to_string_lossy().into_owned()
    }
    #[cfg(not(kqm_cuda))]
    {
        format!("error {status}")
    }
}

/// Turns a status into an error. The runtime also keeps it until it is asked for the last one, which is done here, so that no later
/// launch is taken to have failed with it.
pub fn check(status: Status) -> Result<()> {
    if status == SUCCESS {
        return Ok(());
    }
    // SAFETY: the call has no arguments.
    unsafe { cudaGetLastError() };
    match u32::try_from(status) {
        Ok(code) if Error::is_device_lost(code) => Err(Error::DeviceLost { code, message: text(status) }),
        _ => Err(Error::Cuda(text(status))),
    }
}

/// A function of the driver, which the runtime has loaded.
///
/// # Safety
/// `F` is the type of a pointer to the function as it was in CUDA 12.0.
pub unsafe fn driver<F: Copy>(name: &CStr) -> Result<F> {
    const VERSION: c_uint = 12_000;
    let (mut function, mut found) = (std::ptr::null_mut(), SUCCESS);
    // SAFETY: the name is NUL-terminated, and the pointers are valid for one value each.
    check(unsafe { cudaGetDriverEntryPointByVersion(name.as_ptr(), &mut function, VERSION, 0, &mut found) })?;
    if function.is_null() || found != SUCCESS {
        return Err(Error::Cuda(format!("the driver has no {}", name.to_string_lossy())));
    }
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: both are pointers, and the caller vouches for the type.
    Ok(unsafe { std::mem::transmute_copy(&function) })
}
