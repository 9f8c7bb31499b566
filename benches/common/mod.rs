//! What the benchmarks share: the measurement on the device, the shapes of the model, random operands.
//!
//! On a GPU a launch is timed by the device's own clock, within a captured graph of many launches, and on operands that are
//! not in its cache: the launches rotate over as many copies of the weights (or of the KV cache) as exceed five times the
//! L2. Activations, which in a model the kernel before has just written, are as warm as there. Without a GPU the oracle
//! is measured instead, at a small size.
#![allow(dead_code, unused_imports)]

#[path = "../../tests/common/compare.rs"]
mod compare;
#[path = "../../tests/common/data.rs"]
mod data;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use kquant_moe::Result;
use kquant_moe::device::{CUDA_BUILD, CudaDevice};

pub use compare::ok;
pub use data::{Activations, Random, Weights, fixed_blocks, floats_as};

/// Qwen3-30B-A3B.
pub const HIDDEN: usize = 2048;
pub const FF: usize = 768;
pub const EXPERTS: usize = 128;
pub const TOP_K: usize = 8;
pub const HEADS: usize = 32;
pub const KV_HEADS: usize = 4;
pub const HEAD_DIM: usize = 128;
pub const VOCAB: usize = 151_936;
/// Decode, and a micro-batch of a prefill.
pub const TOKENS: [usize; 2] = [1, 64];

/// Launches in a graph, at least: the start of the graph is spread over them.
const LAUNCHES: usize = 64;
/// Copies, at most. Operands of which so many fit into the L2 are activations.
const MOST_COPIES: usize = 512;
/// Where the driver does not say.
const USUAL_L2: usize = 64 << 20;

/// The first GPU, if there is one, and the machine's facts on standard output.
pub fn gpu() -> Option<CudaDevice> {
    match CudaDevice::new(0) {
        Ok(device) => {
            println!("{}; built with {}", ok(device.describe()), CUDA_BUILD.unwrap());
            Some(device)
        }
        Err(error) => {
            println!("{error}; measuring the oracle on {} cores", rayon::current_num_threads());
            None
        }
    }
}

/// The group of a kernel's measurements.
pub fn group<'a>(criterion: &'a mut Criterion, kernel: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(kernel);
    group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    group
}

/// Measures a kernel. A launch reads `bytes` of the operands that `make(copy)` gives.
pub fn on_gpu<O>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    device: &CudaDevice,
    id: &str,
    bytes: usize,
    make: impl Fn(usize) -> O,
    launch: impl Fn(&mut O) -> Result<()>,
) {
    let mut copies: Vec<O> = (0..(5 * l2(device) / bytes + 1).clamp(2, MOST_COPIES)).map(make).collect();
    // Once outside the graph, for what the first launch sets up.
    ok(launch(&mut copies[0]));
    let count = copies.len();
    let launches = LAUNCHES.next_multiple_of(count);
    let mut graph = ok(device.capture(|| (0..launches).try_for_each(|i| launch(&mut copies[i % count]))));
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|iterations| {
            let graphs = iterations.div_ceil(launches as u64);
            // SAFETY: the copies that the graph works on are there until the end, and nothing else uses them.
            let seconds = ok(device.time(|| (0..graphs).try_for_each(|_| unsafe { graph.launch() })));
            Duration::from_secs_f64(seconds * iterations as f64 / (graphs * launches as u64) as f64)
        });
    });
}

/// Measures the oracle, which reads `bytes`.
pub fn on_cpu(group: &mut BenchmarkGroup<'_, WallTime>, id: &str, bytes: usize, mut run: impl FnMut()) {
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(format!("oracle/{id}"), |bencher| bencher.iter(&mut run));
}

/// Bytes of the GPU's L2.
fn l2(device: &CudaDevice) -> usize {
    device.l2_bytes().ok().and_then(|bytes| usize::try_from(bytes).ok()).filter(|&bytes| bytes > 0).unwrap_or(USUAL_L2)
}
