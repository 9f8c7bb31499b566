//! Facts about the machine and the build, for reports.

use kquant_moe::Result;
use kquant_moe::device::{CUDA_BUILD, CudaDevice};
use serde_json::{Value, json};

/// The crate's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How the kernels were compiled: toolkit and targets, or `none` and why.
pub fn cuda_build() -> String {
    match CUDA_BUILD {
        Ok(build) => build.to_string(),
        Err(reason) => format!("none: {reason}"),
    }
}

/// The CPU's name and the number of threads in use.
pub fn cpu() -> String {
    let threads = rayon::current_num_threads();
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    format!("{}, {threads} threads", name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()))
}

/// The facts that a measurement needs to mean anything.
pub fn facts(device: Option<&CudaDevice>) -> Result<Value> {
    Ok(json!({
        "crate": format!("kquant-moe {VERSION}"),
        "cpu": cpu(),
        "cuda_build": cuda_build(),
        "device": device.map(CudaDevice::describe).transpose()?,
    }))
}
