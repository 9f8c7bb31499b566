//! What an engine that links the library relies on: threads, memory, repetition.

mod common;

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;

use kquant_moe::device::{CudaDevice, Device};
use kquant_moe::gguf::Gguf;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{
    Backend, Config, Context, ContextOptions, LoadOptions, Logits, MemoryPlan, Model, Tensor, Tensors, Weights,
};
use kquant_moe::{Error, Result, sys};

const TINY: &[u8] = include_bytes!("data/tiny-qwen3moe-q4_k_m.gguf");

/// Held by the tests here: what one of them allocates is not to be counted by another.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails to compile when a type is not what it is said to be.
#[test]
fn models_and_contexts_cross_threads() {
    fn send<T: Send>() {}
    fn share<T: Send + Sync>() {}
    fn of<B: Backend + Sync>() {
        share::<Weights<B>>();
        share::<Model<B>>();
        send::<Context<B>>();
    }
    of::<Cpu>();
    of::<Gpu<CudaDevice>>();
    share::<Context<Cpu>>();
    share::<Context<Gpu<CudaDevice>>>();
    share::<CudaDevice>();
    send::<kquant_moe::device::CudaGraph>();
    share::<Gguf>();
    share::<Tensor>();
    share::<Error>();
}

/// Two contexts on two threads give the bits that one gives alone.
fn contexts_do_not_disturb_each_other<B: Backend + Sync>(backend: B) {
    let model = common::model(backend);
    let prompts = common::prompts();
    let run = |context: &mut Context<B>, tokens: &[u32]| {
        context.reset();
        // A prefill, and decode: other kernels, and many small launches.
        let (first, rest) = tokens.split_at(tokens.len() / 2);
        let mut logits = context.forward(&model, first, Logits::All).unwrap();
        for token in rest {
            logits.extend(context.forward(&model, &[*token], Logits::Last).unwrap());
        }
        common::bits(&logits)
    };
    let mut alone = model.context(common::options()).unwrap();
    let expected: Vec<_> = prompts.iter().map(|prompt| run(&mut alone, &prompt.tokens)).collect();
    let start = Barrier::new(2);
    thread::scope(|scope| {
        for number in 0..2 {
            let (model, prompts, expected, run, start) = (&model, &prompts, &expected, &run, &start);
            scope.spawn(move || {
                let mut context = model.context(common::options()).unwrap();
                start.wait();
                for round in 0..12 {
                    let which = (number + round) % prompts.len();
                    assert!(run(&mut context, &prompts[which].tokens) == expected[which], "thread {number}, {round}");
                }
            });
        }
    });
}

#[test]
fn two_threads_on_the_cpu() {
    let _alone = alone();
    contexts_do_not_disturb_each_other(Cpu::new());
}

#[test]
fn two_threads_on_the_gpu() {
    let _alone = alone();
    if let Some(device) = common::cuda_device() {
        contexts_do_not_disturb_each_other(Gpu::new(device));
    }
}

/// One life of a model: file, weights, context, a token.
fn live<B: Backend>(backend: B) {
    let gguf = Arc::new(Gguf::from_static("tiny", TINY).unwrap());
    // The check reads all weights, which takes longer than all the rest, and keeps nothing.
    let options = LoadOptions { check_blocks: false };
    let model = Model::load(gguf, backend, options, &mut |_, _| {}).unwrap();
    let mut context = model.context(ContextOptions { capacity: 8, ..common::options() }).unwrap();
    context.next_token(&model, &[1]).unwrap();
}

const LIVES: usize = 1000;

/// Bytes of this process in memory.
fn resident() -> Option<u64> {
    let pages: u64 = fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    // The page size of every machine that the kernels are built for; with larger ones the bound is only stricter.
    Some(pages * 4096)
}

#[test]
fn a_thousand_loads_on_the_cpu_leave_nothing() {
    let _alone = alone();
    // The first ones make the threads and fill the allocator's pools.
    (0..50).for_each(|_| live(Cpu::new()));
    let Some(before) = resident() else {
        println!("skipped: no /proc/self/statm");
        return;
    };
    (0..LIVES).for_each(|_| live(Cpu::new()));
    let grown = resident().unwrap().saturating_sub(before);
    println!("{LIVES} loads: {grown} bytes more");
    assert!(grown < 32 << 20, "{grown} bytes more after {LIVES} loads");
}

#[test]
fn a_thousand_loads_on_the_gpu_leave_nothing() {
    let _alone = alone();
    let Some(device) = common::cuda_device() else { return };
    let free = || device.memory().unwrap().0;
    // Needs a card that no other program allocates from meanwhile.
    live(Gpu::new(device.clone()));
    let before = free();
    (0..LIVES).for_each(|_| live(Gpu::new(device.clone())));
    assert_eq!(free(), before, "free bytes after {LIVES} loads");
}

/// A device of host memory without kernels, which counts what is allocated.
#[derive(Clone)]
struct Small(Arc<Memory>);

struct Memory {
    /// What the device says is free.
    free: AtomicU64,
    allocated: AtomicU64,
    calls: AtomicU64,
}

impl Small {
    fn with(free: u64) -> Self {
        Self(Arc::new(Memory { free: free.into(), allocated: 0.into(), calls: 0.into() }))
    }

    /// Bytes and calls.
    fn allocated(&self) -> (u64, u64) {
        (self.0.allocated.load(Ordering::Relaxed), self.0.calls.load(Ordering::Relaxed))
    }
}

const WORKSPACE: u64 = 12_345 * 16;

static KERNELS: sys::kqm_kernels = {
    unsafe extern "C" fn repack(_: *const sys::kqm_repack_args, _: sys::kqm_stream) -> sys::kqm_status {
        sys::KQM_OK
    }
    unsafe extern "C" fn workspace(_: *const sys::kqm_attention_args) -> u64 {
        WORKSPACE
    }
    unsafe extern "C" fn items(_: u32, _: u32, _: u32) -> u32 {
        1
    }
    sys::kqm_kernels {
        repack: Some(repack),
        attention_workspace: Some(workspace),
        moe_max_items: Some(items),
        quantize: None,
        q4_k_matvec: None,
        q6_k_gemv: None,
        qkv: None,
        embedding: None,
        rms_norm: None,
        rope: None,
        attention: None,
        moe_router: None,
        moe_group: None,
        moe_swiglu: None,
        moe_down: None,
        residual_add: None,
        argmax: None,
        status_text: None,
    }
};

// SAFETY: allocations are vectors of 256-byte aligned pages that live until they are freed; nothing is asynchronous.
unsafe impl Device for Small {
    type Graph = std::convert::Infallible;

    fn record(&self, _enqueue: impl FnOnce() -> Result<()>) -> Result<Option<Self::Graph>> {
        Ok(None)
    }

    unsafe fn replay(&self, graph: &mut Self::Graph) -> Result<()> {
        match *graph {}
    }

    fn name(&self) -> &'static str {
        "small"
    }
    fn kernels(&self) -> &'static sys::kqm_kernels {
        &KERNELS
    }
    fn stream(&self) -> sys::kqm_stream {
        std::ptr::null_mut()
    }
    fn fork(&self) -> Result<Self> {
        Ok(self.clone())
    }
    fn activate(&self) -> Result<()> {
        Ok(())
    }
    fn memory(&self) -> Result<(u64, u64)> {
        let free = self.0.free.load(Ordering::Relaxed);
        Ok((free, free))
    }
    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        self.0.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
        let layout = std::alloc::Layout::from_size_align(bytes + 256, 256).unwrap();
        // SAFETY: the size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!start.is_null());
        // SAFETY: the first 256 bytes are there for the size.
        unsafe { start.cast::<usize>().write(bytes) };
        Ok(start as u64 + 256)
    }
    unsafe fn free(&self, address: u64) {
        let start = (address - 256) as *mut u8;
        // SAFETY: the address comes from `allocate`, which left the size before it.
        unsafe {
            let bytes = start.cast::<usize>().read();
            self.0.allocated.fetch_sub(bytes as u64, Ordering::Relaxed);
            std::alloc::dealloc(start, std::alloc::Layout::from_size_align_unchecked(bytes + 256, 256));
        }
    }
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller vouches for both ranges.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }
    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller vouches for the range.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) };
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

fn load(device: &Small) -> Result<Model<Gpu<Small>>> {
    let options = LoadOptions { check_blocks: false };
    Model::load(common::gguf(), Gpu::new(device.clone()), options, &mut |_, _| {})
}

#[test]
fn too_little_memory_is_said_before_anything_is_allocated() {
    let _alone = alone();
    let gguf = common::gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let tensors = Tensors::find(&gguf, &config).unwrap();
    for trace in [false, true] {
        let options = ContextOptions { trace, ..common::options() };
        let plan = MemoryPlan::on(&Gpu::new(Small::with(u64::MAX)), &config, &tensors, &options).unwrap();
        assert_eq!(plan.workspace, WORKSPACE);

        // Not even the weights fit.
        let device = Small::with(plan.weights);
        let Err(Error::OutOfMemory { needed, free }) = load(&device) else { panic!("the weights were loaded") };
        assert!(needed > plan.weights && free == plan.weights, "{needed} needed, {free} free");
        assert_eq!(device.allocated(), (0, 0));

        // They fit to the byte, with what it takes to load them.
        let device = Small::with(needed);
        let model = load(&device).unwrap();
        let (weights, calls) = device.allocated();
        assert!(weights <= plan.weights && plan.weights - weights < plan.weights / 100, "{weights} of {plan:?}");

        // The context does not, by one byte.
        let rest = plan.total() - plan.weights;
        device.0.free.store(rest - 1, Ordering::Relaxed);
        let Err(Error::OutOfMemory { needed, free }) = model.context(options) else { panic!("a context was made") };
        assert_eq!((needed, free), (rest, rest - 1));
        assert_eq!(device.allocated(), (weights, calls));

        // Now it does, and takes no more than that.
        device.0.free.store(rest, Ordering::Relaxed);
        let context = model.context(options).unwrap();
        let taken = device.allocated().0 - weights;
        assert!(taken <= rest && rest - taken < rest / 20, "{taken} taken of {rest} planned");
        drop((context, model));
        assert_eq!(device.allocated().0, 0, "bytes left");
    }
}
