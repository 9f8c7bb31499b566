//! Devices that tests run on, where there are any.

use std::env;

use kquant_moe::device::CudaDevice;

use super::EmulatedDevice;

/// The emulation, or nothing where there is no C++ compiler.
pub fn emulated_device() -> Option<EmulatedDevice> {
    match EmulatedDevice::new() {
        Ok(device) => Some(device),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

/// The first GPU, or nothing where there is none and none is demanded.
pub fn cuda_device() -> Option<CudaDevice> {
    match CudaDevice::new(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let demanded = env::var("KQUANT_MOE_REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(!demanded, "KQUANT_MOE_REQUIRE_GPU=1, but {error}");
            println!("skipped: {error}");
            None
        }
    }
}
