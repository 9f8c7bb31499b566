//! Devices that tests run on, where there are any.

use std::env;

use kquant_moe::device::CudaDevice;

use super::EmulatedDevice;

/// The emulation, or nothing where there is no C++ compiler and it is not demanded.
pub fn emulated_device() -> Option<EmulatedDevice> {
    match EmulatedDevice::new() {
        Ok(device) => Some(device),
        Err(reason) => {
            assert!(!demanded("KQUANT_MOE_REQUIRE_EMULATION"), "KQUANT_MOE_REQUIRE_EMULATION=1, but {reason}");
            println!("skipped: {reason}");
            None
        }
    }
}

fn demanded(variable: &str) -> bool {
    env::var(variable).is_ok_and(|value| value == "1")
}

/// The first GPU, or nothing where there is none and none is demanded.
pub fn cuda_device() -> Option<CudaDevice> {
    match CudaDevice::new(0) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(!demanded("KQUANT_MOE_REQUIRE_GPU"), "KQUANT_MOE_REQUIRE_GPU=1, but {error}");
            println!("skipped: {error}");
            None
        }
    }
}
