//! What an engine that links the library relies on: threads, memory, repetition.

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::{env, fs, thread};

use cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};
use kquant_moe::blocks::TensorType;
use kquant_moe::device::{Buffer, CudaDevice, Device, Slice, SliceMut};
use kquant_moe::gguf::{Gguf, Value};
use kquant_moe::kernels::{ResidualAdd, max_items};
use kquant_moe::model::backend::PAGE;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{
    Backend, CacheType, Config, Context, ContextOptions, Entry, LoadOptions, Logits, MemoryPlan, Model, Next, Pool,
    PoolOptions, Sequence, Tensor, Tensors, Weights,
};
use kquant_moe::oracle::sample::Sampling;
use kquant_moe::{Error, Result, sys};

use common::hooked::{Call, Hook, Hooked};
use common::shaped::{self, SMALL, UNEVEN, reshaped};

const TINY: &[u8] = include_bytes!("../cli/model/tiny-qwen3moe-q4_k_m.gguf");

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
        send::<Pool<B>>();
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
    let model = load(backend).unwrap();
    let mut context = model.context(common::options().capacity(8)).unwrap();
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

/// How a device fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// One call is refused; the device goes on.
    Refused,
    /// From one call on every one fails.
    Lost,
}

/// The number of an access to memory that is not there.
const ILLEGAL_ADDRESS: u32 = 700;

impl Failure {
    /// What takes the place of a call. A launcher returns the status; whatever comes of it is for the crate to say.
    fn error(self, call: Call) -> Error {
        let (message, kernel) = ("as the test wants it".to_owned(), "any");
        match (self, call) {
            (Self::Refused, Call::Launch) => Error::Kernel { kernel, status: sys::KQM_BAD_SHAPE, message },
            (Self::Refused, _) => Error::Cuda(message),
            (Self::Lost, Call::Launch) => Error::Kernel { kernel, status: ILLEGAL_ADDRESS as i32, message },
            (Self::Lost, _) => Error::DeviceLost { code: ILLEGAL_ADDRESS, message },
        }
    }

    fn is_behind(self, error: &Error) -> bool {
        match (self, error) {
            (Self::Refused, Error::Cuda(_) | Error::Kernel { status: sys::KQM_BAD_SHAPE, .. }) => true,
            (Self::Lost, Error::DeviceLost { code, .. }) => *code == ILLEGAL_ADDRESS,
            _ => false,
        }
    }
}

/// A card that says how much is free, counts what is allocated, and fails when it should.
#[derive(Default)]
struct Card {
    free: AtomicU64,
    allocated: AtomicU64,
    allocations: AtomicU64,
    /// Most bytes at once.
    peak: AtomicU64,
    calls: AtomicU64,
    /// The number of the call that fails, and how.
    plan: Mutex<Option<(u64, Failure)>>,
}

impl Card {
    fn with(free: u64) -> Self {
        Self { free: free.into(), ..Self::default() }
    }

    /// Bytes and allocations.
    fn allocated(&self) -> (u64, u64) {
        (self.allocated.load(Ordering::Relaxed), self.allocations.load(Ordering::Relaxed))
    }

    /// The calls of `work` are numbered from 0; number `at` fails.
    fn failing<T>(&self, at: u64, failure: Failure, work: impl FnOnce() -> T) -> T {
        self.calls.store(0, Ordering::Relaxed);
        *self.plan.lock().unwrap() = Some((at, failure));
        let result = work();
        *self.plan.lock().unwrap() = None;
        result
    }
}

impl Hook for Card {
    fn before(&self, call: Call) -> Result<()> {
        // Memory can be given back whatever the card's state.
        if let Call::Free(bytes) = call {
            self.allocated.fetch_sub(bytes as u64, Ordering::Relaxed);
            return Ok(());
        }
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        match *self.plan.lock().unwrap() {
            Some((at, failure)) if number == at || number > at && failure == Failure::Lost => {
                return Err(failure.error(call));
            }
            _ => {}
        }
        if let Call::Allocate(bytes) = call {
            let before = self.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
            self.peak.fetch_max(before + bytes as u64, Ordering::Relaxed);
            self.allocations.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }
}

fn load_from<B: Backend>(gguf: Arc<Gguf>, backend: B) -> Result<Model<B>> {
    // The check reads all weights, which takes longer than all the rest, and keeps nothing.
    Model::load(gguf, backend, LoadOptions::default().check_blocks(false), &mut |_, _| {})
}

fn load<B: Backend>(backend: B) -> Result<Model<B>> {
    load_from(Arc::new(Gguf::from_static("tiny", TINY).unwrap()), backend)
}

/// The test model with its first layer only: every operation of a forward is in it once.
fn one_layer() -> Arc<Gguf> {
    let layers = [("qwen3moe.block_count", Some(Value::U32(1)))];
    common::changed::changed(&common::gguf(), &layers, |tensors| {
        tensors.retain(|tensor| !tensor.name.starts_with("blk.") || tensor.name.starts_with("blk.0."));
    })
}

/// The plan is what is allocated, to the byte: of weights, of the largest matrix that is loaded, and of a context.
fn too_little_memory_is_said(gguf: &Arc<Gguf>, options: ContextOptions) {
    let Some(emulation) = common::emulated_device() else { return };
    let with = |free: u64| Hooked::new(emulation.clone(), Card::with(free));
    let load = |device: &Hooked<Card>| load_from(gguf.clone(), Gpu::new(device.clone()));
    let config = Config::from_gguf(gguf).unwrap();
    let tensors = Tensors::find(gguf, &config).unwrap();
    let plan = MemoryPlan::on(&Gpu::new(with(u64::MAX)), &config, &tensors, &options).unwrap();
    assert!(plan.workspace > 0);
    let mut without_backend = MemoryPlan::new(&config, &tensors, &options).unwrap();
    without_backend.workspace = plan.workspace;
    assert_eq!(plan, without_backend);
    assert_eq!(plan.total(), plan.weights + plan.cache + plan.activations + plan.workspace);
    for (free, fits) in [(plan.total(), true), (plan.total() - 1, false)] {
        assert_eq!(plan.check(&Gpu::new(with(free))).is_ok(), fits, "{plan:?}");
    }

    // Not even the weights fit, with what it takes to load the largest matrix, by one byte.
    let matrices = tensors.iter().filter(|tensor| tensor.name() != "token_embd.weight" && !tensor.is_floats());
    let stage = matrices.map(|tensor| tensor.bytes().len()).max().unwrap_or(0) as u64;
    let device = with(plan.weights + stage - 1);
    let Err(Error::OutOfMemory { needed, free }) = load(&device) else { panic!("the weights were loaded") };
    assert_eq!((needed, free), (plan.weights + stage, plan.weights + stage - 1));
    assert_eq!(device.hook().allocated(), (0, 0));

    // They fit to the byte.
    let device = with(needed);
    let model = load(&device).unwrap();
    let (weights, calls) = device.hook().allocated();
    assert_eq!(weights, plan.weights);
    let peak = device.hook().peak.load(Ordering::Relaxed);
    // The output matrix is staged, unless it is floats, beside all others but the last norm and the embedding.
    let staged = if tensors.output.is_floats() { 0 } else { tensors.output.byte_len() as u64 };
    let missing = tensors.output_norm.f32_bytes() + tensors.embedding.byte_len() as u64;
    let least = plan.weights.max(plan.weights + staged - missing);
    assert!(peak >= least && peak <= needed, "{peak} bytes at most of {needed}, at least {least}");

    // The context does not, by one byte.
    let rest = plan.total() - plan.weights;
    device.hook().free.store(rest - 1, Ordering::Relaxed);
    let Err(Error::OutOfMemory { needed, free }) = model.context(options) else { panic!("a context was made") };
    assert_eq!((needed, free), (rest, rest - 1));
    assert_eq!(device.hook().allocated(), (weights, calls));

    // Now it does, and takes that. The plan has room for a work item of three numbers for each pair of a token and an expert;
    // a device knows how many there are at most.
    device.hook().free.store(rest, Ordering::Relaxed);
    let context = model.context(options).unwrap();
    let taken = device.hook().allocated().0 - weights;
    let (batch, top_k) = (context.max_batch(), config.top_k);
    let items = max_items(&device, batch, config.experts, top_k).unwrap();
    assert!(items <= batch * top_k, "{items} items");
    assert_eq!(rest - taken, (4 * 3 * (batch * top_k - items)) as u64, "{taken} taken of {rest} planned");
    // The cache's part of it.
    let bytes = if options.cache == CacheType::F16 { 2 } else { 4 };
    assert_eq!(
        plan.cache,
        (2 * config.layers * options.capacity.next_multiple_of(PAGE) * config.kv_width() * bytes) as u64
    );
    drop((context, model));
    assert_eq!(device.hook().allocated().0, 0, "bytes left");
}

#[test]
fn too_little_memory_is_said_before_anything_is_allocated() {
    let _alone = alone();
    // The largest matrices are the experts', or those of the output.
    let output = reshaped!(UNEVEN, vocab: 5003);
    // Matrices of floats are not staged, and some of them take buffers more.
    let with_floats = |parts: &[&str]| {
        common::changed::changed(&common::gguf(), &[], |tensors| {
            let of_parts = tensors.iter_mut().filter(|tensor| parts.iter().any(|part| tensor.name.contains(part)));
            of_parts.for_each(|tensor| tensor.round(TensorType::BF16));
        })
    };
    for gguf in [
        common::gguf(),
        shaped::model(&UNEVEN, 1),
        shaped::model(&output, 1),
        with_floats(&["attn_q.", "attn_output", "ffn_down", "_norm", "gate_inp"]),
        with_floats(&["blk.2.ffn_up_exps", "attn_v"]),
        with_floats(&["output.weight"]),
        shaped::narrow(TensorType::Q5_0),
        shaped::narrow(TensorType::F16),
    ] {
        for (trace, cache, capacity, max_batch) in [
            (false, CacheType::F32, 96, 512),
            (true, CacheType::F32, 96, 512),
            (false, CacheType::F16, 160, 1),
            (true, CacheType::F16, 33, 7),
        ] {
            too_little_memory_is_said(
                &gguf,
                ContextOptions::default().trace(trace).cache(cache).capacity(capacity).max_batch(max_batch),
            );
        }
    }
}

/// A launch that fails with an error after which CUDA's contexts do no more work says so, whichever it is; after any other, and
/// after a refusal of the launcher, the device goes on.
#[test]
fn launches_tell_a_lost_device_from_a_refusal() {
    const LOST: [i32; 18] = [4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 999];
    struct Fails(i32);
    impl Hook for Fails {
        fn before(&self, call: Call) -> Result<()> {
            match call {
                Call::Launch => Err(Error::Kernel { kernel: "any", status: self.0, message: String::new() }),
                _ => Ok(()),
            }
        }
    }
    let _alone = alone();
    let Some(emulation) = common::emulated_device() else { return };
    for status in (-10..1100).filter(|&status| status != sys::KQM_OK) {
        let device = Hooked::new(emulation.clone(), Fails(status));
        let x = Buffer::from_slice(&device, &[1.0_f32; 4]).unwrap();
        let mut y = Buffer::zeroed(&device, 4).unwrap();
        let error = ResidualAdd::new(x.slice(), x.slice(), y.slice_mut()).launch(&device).unwrap_err();
        match error {
            Error::DeviceLost { code, .. } => assert!(code as i32 == status && LOST.contains(&status), "{status}"),
            Error::Kernel { kernel, status: found, .. } => {
                assert!(kernel == "residual_add" && found == status && !LOST.contains(&status), "{status}");
            }
            other => panic!("{status}: {other}"),
        }
    }
}

/// A piece of work whose bits are known.
type Work<B> = fn(&Model<B>, &mut Context<B>) -> Result<Vec<u32>>;

const PROMPT: [u32; 3] = [766, 306, 598];

fn prefill<B: Backend>(model: &Model<B>, context: &mut Context<B>) -> Result<Vec<u32>> {
    Ok(common::bits(&context.forward(model, &PROMPT, Logits::All)?))
}

fn step<B: Backend>(model: &Model<B>, context: &mut Context<B>) -> Result<Vec<u32>> {
    Ok(common::bits(&context.forward(model, &[284], Logits::Last)?))
}

/// Two tokens that the device feeds back to itself.
fn decode<B: Backend>(model: &Model<B>, context: &mut Context<B>) -> Result<Vec<u32>> {
    context.decode(model, 284, 2)
}

/// A context with a sequence of one token.
fn started<B: Backend>(model: &Model<B>) -> Context<B> {
    let mut context = model.context(common::options().capacity(8)).unwrap();
    context.forward(model, &[280], Logits::None).unwrap();
    context
}

/// Every call of some work fails once, in every way: the error says so, the position stays as it was, nothing stays allocated,
/// and the process goes on: on the CPU, on a new card, and on this one when it is not lost.
fn any_call_may_fail(work: Work<Gpu<Hooked<Card>>>, on_cpu: Work<Cpu>) {
    let Some(emulation) = common::emulated_device() else { return };
    let gguf = one_layer();
    let cpu = load_from(gguf.clone(), Cpu::new()).unwrap();
    let cpu_works = || on_cpu(&cpu, &mut started(&cpu)).unwrap();
    let expected = cpu_works();
    let load_card = || {
        let device = Hooked::new(emulation.clone(), Card::with(1 << 30));
        (load_from(gguf.clone(), Gpu::new(device.clone())).unwrap(), device)
    };
    for failure in [Failure::Refused, Failure::Lost] {
        let (model, device) = load_card();
        let mut context = started(&model);
        let allocated = device.hook().allocated().0;
        let mut calls = 0;
        loop {
            let error = match device.hook().failing(calls, failure, || work(&model, &mut context)) {
                Err(error) => error,
                Ok(found) => {
                    assert!(found == expected, "{failure:?}: without a failure");
                    break;
                }
            };
            assert!(failure.is_behind(&error), "{failure:?} at call {calls}: {error}");
            assert_eq!(context.position(), 1, "{failure:?} at call {calls}");
            assert_eq!(device.hook().allocated().0, allocated, "{failure:?} at call {calls}: bytes");
            assert!(cpu_works() == expected, "{failure:?} at call {calls}: the CPU");
            let (new, _) = load_card();
            assert!(work(&new, &mut started(&new)).unwrap() == expected, "{failure:?} at call {calls}: a new card");
            if failure == Failure::Refused {
                assert!(work(&model, &mut context).unwrap() == expected, "call {calls} again");
                context.truncate(1);
            }
            calls += 1;
        }
        println!("{failure:?}: at {calls} calls");
        assert!(calls > 10, "{calls} calls");
        // What is left is dropped while nothing works on the card any more.
        device.hook().failing(0, failure, || drop((context, model)));
        assert_eq!(device.hook().allocated().0, 0, "{failure:?}: bytes");
    }
}

#[test]
fn any_call_of_a_prefill_may_fail() {
    let _alone = alone();
    any_call_may_fail(prefill, prefill);
}

#[test]
fn any_call_of_a_step_may_fail() {
    let _alone = alone();
    any_call_may_fail(step, step);
}

#[test]
fn any_call_of_a_decode_may_fail() {
    let _alone = alone();
    any_call_may_fail(decode, decode);
}

/// Work of three sequences of a pool.
type PoolWork<B> = fn(&Model<B>, &mut Pool<B>, [Sequence; 3]) -> Result<Vec<u32>>;

/// A prompt beside the token of a sequence that has to leave a page to another one.
fn pool_forward<B: Backend>(model: &Model<B>, pool: &mut Pool<B>, [_, fork, other]: [Sequence; 3]) -> Result<Vec<u32>> {
    let entries = [Entry::new(other, &[1, 2, 3], Logits::Last), Entry::new(fork, &[4], Logits::All)];
    Ok(common::bits(&pool.forward(model, &entries)?.concat()))
}

/// Tokens that are drawn, one of them behind a guess.
fn pool_speculate<B: Backend>(model: &Model<B>, pool: &mut Pool<B>, all: [Sequence; 3]) -> Result<Vec<u32>> {
    let drawn = Sampling { penalty: 1.2, window: 4, top_p: 0.9, seed: 5, ..Sampling::default() };
    Ok(pool
        .speculate(model, &[Next::new(all[1], &[1, 2, 3], drawn), Next::new(all[0], &[3], Sampling::GREEDY)])?
        .concat())
}

/// Tokens that the device feeds back to itself, of two sequences that had a page together.
fn pool_decode<B: Backend>(model: &Model<B>, pool: &mut Pool<B>, [first, fork, _]: [Sequence; 3]) -> Result<Vec<u32>> {
    let entries = [first, fork].map(|sequence| Next::new(sequence, &[7], Sampling::GREEDY));
    Ok(pool.decode(model, &entries, 2)?.concat())
}

/// The same of tokens that are drawn.
fn pool_draw<B: Backend>(model: &Model<B>, pool: &mut Pool<B>, [first, .., other]: [Sequence; 3]) -> Result<Vec<u32>> {
    let drawn = Sampling { penalty: 1.2, window: 4, top_k: 9, seed: 5, ..Sampling::default() };
    let entries = [first, other].map(|sequence| Next::new(sequence, &[7], drawn));
    Ok(pool.decode(model, &entries, 3)?.concat())
}

/// A sequence that was saved comes back.
fn pool_restore<B: Backend>(_: &Model<B>, pool: &mut Pool<B>, [first, ..]: [Sequence; 3]) -> Result<Vec<u32>> {
    let saved = pool.save(first)?;
    let restored = pool.restore(&saved)?;
    let same = pool.save(restored);
    pool.drop(restored)?;
    Ok(vec![u32::from(same? == saved)])
}

/// A pool with a sequence, one that shares its page, and one of its own.
fn started_pool<B: Backend>(model: &Model<B>) -> (Pool<B>, [Sequence; 3]) {
    let mut pool =
        model.pool(PoolOptions::default().pages(5).sequences(4).capacity(100).max_batch(4).window(8)).unwrap();
    let [first, other] = [(); 2].map(|()| pool.create().unwrap());
    pool.forward(model, &[Entry::new(first, &[8, 5], Logits::None), Entry::new(other, &[9], Logits::None)]).unwrap();
    let fork = pool.fork(first).unwrap();
    (pool, [first, fork, other])
}

/// Every call of some work of a pool fails once, in every way: the error says so, no sequence has changed, nothing stays allocated, and
/// the same work succeeds afterwards.
fn any_call_of_a_pool_may_fail(work: PoolWork<Gpu<Hooked<Card>>>, on_cpu: PoolWork<Cpu>) {
    let Some(emulation) = common::emulated_device() else { return };
    let gguf = shaped::model(&SMALL, 1);
    let cpu = load_from(gguf.clone(), Cpu::new()).unwrap();
    let (mut pool, all) = started_pool(&cpu);
    let expected = on_cpu(&cpu, &mut pool, all).unwrap();
    for failure in [Failure::Refused, Failure::Lost] {
        let device = Hooked::new(emulation.clone().recording(), Card::with(1 << 30));
        let model = load_from(gguf.clone(), Gpu::new(device.clone())).unwrap();
        let weights = device.hook().allocated().0;
        let mut failed = 0;
        loop {
            // Each call is the first of its kind: of a pool that has recorded nothing, and shares what it shared.
            let (mut pool, all) = started_pool(&model);
            let before = all.map(|sequence| pool.save(sequence).unwrap());
            let (allocated, free) = (device.hook().allocated().0, pool.pages().free());
            let found = device.hook().failing(failed, failure, || work(&model, &mut pool, all));
            let Err(error) = found else {
                assert!(found.unwrap() == expected, "{failure:?}: without a failure");
                break;
            };
            assert!(failure.is_behind(&error), "{failure:?} at call {failed}: {error}");
            assert_eq!(device.hook().allocated().0, allocated, "{failure:?} at call {failed}: bytes");
            assert_eq!(
                (pool.pages().free(), pool.pages().sequences()),
                (free, 3),
                "{failure:?} at call {failed}: pages"
            );
            for (&sequence, before) in all.iter().zip(&before) {
                assert!(
                    pool.save(sequence).unwrap() == *before,
                    "{failure:?} at call {failed}: {sequence} has changed"
                );
            }
            if failure == Failure::Refused {
                assert!(work(&model, &mut pool, all).unwrap() == expected, "call {failed} again");
            }
            drop(pool);
            assert_eq!(device.hook().allocated().0, weights, "{failure:?} at call {failed}: bytes");
            // What a lost device does is the same at every call; each is tried as one that is refused.
            failed += if failure == Failure::Lost { 4 } else { 1 };
        }
        println!("{failure:?}: up to call {failed}");
        assert!(failed > 5, "up to call {failed}");
    }
}

#[test]
fn any_call_of_a_pools_forward_may_fail() {
    let _alone = alone();
    any_call_of_a_pool_may_fail(pool_forward, pool_forward);
}

#[test]
fn any_call_of_a_pools_speculation_may_fail() {
    let _alone = alone();
    any_call_of_a_pool_may_fail(pool_speculate, pool_speculate);
}

#[test]
fn any_call_of_a_pools_decode_may_fail() {
    let _alone = alone();
    any_call_of_a_pool_may_fail(pool_decode, pool_decode);
}

#[test]
fn any_call_of_a_pools_drawn_decode_may_fail() {
    let _alone = alone();
    any_call_of_a_pool_may_fail(pool_draw, pool_draw);
}

#[test]
fn any_call_of_a_pools_restore_may_fail() {
    let _alone = alone();
    any_call_of_a_pool_may_fail(pool_restore, pool_restore);
}

/// A pool takes what its plan says, to the byte but for work items, and one byte less is said before anything is allocated.
#[test]
fn a_pool_takes_what_its_plan_says() {
    let _alone = alone();
    let Some(emulation) = common::emulated_device() else { return };
    for (gguf, options) in [
        (common::gguf(), PoolOptions::default().pages(7).sequences(3).capacity(100).max_batch(16)),
        (shaped::model(&UNEVEN, 1), PoolOptions::default().pages(3).sequences(9).capacity(33).cache(CacheType::F16)),
        (common::gguf(), PoolOptions::default().pages(2).sequences(5).capacity(64).max_batch(1).window(1)),
    ] {
        let config = Config::from_gguf(&gguf).unwrap();
        let tensors = Tensors::find(&gguf, &config).unwrap();
        let device = Hooked::new(emulation.clone(), Card::with(1 << 32));
        let plan = MemoryPlan::of_pool(&Gpu::new(device.clone()), &config, &tensors, &options).unwrap();
        let model = load_from(gguf, Gpu::new(device.clone())).unwrap();
        let (weights, calls) = device.hook().allocated();
        assert_eq!(weights, plan.weights);
        let rest = plan.total() - plan.weights;
        device.hook().free.store(rest - 1, Ordering::Relaxed);
        let Err(Error::OutOfMemory { needed, free }) = model.pool(options) else { panic!("a pool was made") };
        assert_eq!((needed, free), (rest, rest - 1));
        assert_eq!(device.hook().allocated(), (weights, calls));
        device.hook().free.store(rest, Ordering::Relaxed);
        let pool = model.pool(options).unwrap();
        let taken = device.hook().allocated().0 - weights;
        let (batch, top_k) = (options.max_batch.min(64 * options.pages), config.top_k);
        let items = max_items(&device, batch, config.experts, top_k).unwrap();
        assert_eq!(rest - taken, (4 * 3 * (batch * top_k - items)) as u64, "{taken} taken of {rest} planned");
        let bytes = if options.cache == CacheType::F16 { 2 } else { 4 };
        assert_eq!(plan.cache, (2 * config.layers * options.pages * 64 * config.kv_width() * bytes) as u64);
        drop((pool, model));
        assert_eq!(device.hook().allocated().0, 0, "bytes left");
    }
}

/// An engine's own stream, of cudarc or raw: kernels run in order with its work, and a model on it has the bits of the CPU.
#[test]
fn an_engine_brings_its_own_cuda_stream() {
    let _alone = alone();
    if common::cuda_device().is_none() {
        return;
    }
    let cpu = load(Cpu::new()).unwrap();
    let expected = prefill(&cpu, &mut started(&cpu)).unwrap();
    let context = CudaContext::new(0).unwrap();
    for stream in [context.new_stream().unwrap(), context.default_stream()] {
        let raw: sys::kqm_stream = stream.cu_stream().cast();
        // SAFETY: the stream outlives what is made with it here.
        let borrowed = unsafe { CudaDevice::from_raw_stream(0, raw) }.unwrap();
        #[cfg(feature = "cudarc")]
        let devices = [CudaDevice::from_stream(stream.clone()).unwrap(), borrowed];
        #[cfg(not(feature = "cudarc"))]
        let devices = [borrowed];
        for device in devices {
            assert_eq!(device.stream(), raw);
            // Nobody waits between the engine's copy, the kernel and the copy back.
            let a = stream.clone_htod(&[1.0_f32; 1000]).unwrap();
            let mut y = stream.alloc_zeros::<f32>(1000).unwrap();
            {
                let ((from, _reads), (to, _writes)) = (a.device_ptr(&stream), y.device_ptr_mut(&stream));
                // SAFETY: 1,000 floats each, which nothing else uses until the guards are gone.
                let (a, y) = unsafe { (Slice::from_raw(&device, from, 1000), SliceMut::from_raw(&device, to, 1000)) };
                ResidualAdd::new(a, a, y).launch(&device).unwrap();
            }
            assert_eq!(stream.clone_dtoh(&y).unwrap(), [2.0; 1000]);

            let model = load(Gpu::new(device)).unwrap();
            assert!(prefill(&model, &mut started(&model)).unwrap() == expected, "a model on the stream");
        }
        stream.synchronize().unwrap();
    }
    if CudaDevice::count().unwrap() > 1 {
        let other = CudaContext::new(1).unwrap().new_stream().unwrap();
        // SAFETY: the stream is valid for as long as it is looked at.
        let error = unsafe { CudaDevice::from_raw_stream(0, other.cu_stream().cast()) }.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
}

/// Set for the process whose GPU is lost.
const LOSER: &str = "KQUANT_MOE_TEST_LOSES_THE_GPU";

/// An access out of bounds ends the CUDA context of a process; the process itself goes on.
#[test]
fn a_lost_cuda_device_is_said_and_the_process_goes_on() {
    let _alone = alone();
    if env::var_os(LOSER).is_some() {
        return lose_the_gpu();
    }
    if common::cuda_device().is_none() {
        return;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_lost_cuda_device_is_said_and_the_process_goes_on", "--nocapture"])
        .env(LOSER, "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && stdout.contains("went on"), "{}\n{stdout}\n{stderr}", output.status);
    println!("{}", stdout.lines().filter(|line| line.contains("lost")).collect::<Vec<_>>().join("\n"));
}

fn lose_the_gpu() {
    let cpu = load(Cpu::new()).unwrap();
    let expected = decode(&cpu, &mut started(&cpu)).unwrap();
    let device = CudaDevice::new(0).unwrap();
    let model = load(Gpu::new(device.clone())).unwrap();
    let mut context = started(&model);
    // With a recorded step, which is dropped with the context.
    for _ in 0..2 {
        assert_eq!(decode(&model, &mut context).unwrap(), expected);
        context.truncate(1);
    }

    let x = Buffer::from_slice(&device, &[1.0_f32; 1000]).unwrap();
    // SAFETY: nothing is there, in the page behind the null pointer's, so that nothing but the kernel comes to harm.
    let nowhere = || unsafe { SliceMut::from_raw(&device, 1 << 12, 1000) };
    let launch = || ResidualAdd::new(x.slice(), x.slice(), nowhere()).launch(&device);
    launch().unwrap();
    let lost = |what: &str, result: Result<()>| match result {
        Err(error @ Error::DeviceLost { code: ILLEGAL_ADDRESS, .. }) => println!("lost: {what}: {error}"),
        other => panic!("{what}: {other:?}"),
    };
    lost("synchronize", device.synchronize());
    lost("a prefill", prefill(&model, &mut context).map(drop));
    lost("a decode", decode(&model, &mut context).map(drop));
    assert_eq!(context.position(), 1);
    lost("a launch", launch());
    lost("a context", model.context(common::options()).map(drop));
    lost("a buffer", Buffer::<_, f32>::zeroed(&device, 1).map(drop));
    lost("free memory", device.memory().map(drop));
    drop((context, model, x, device));
    // Whether the card can be opened anew is CUDA's business; asking does no harm.
    match CudaDevice::new(0) {
        Ok(_) => println!("lost, and opened anew"),
        Err(error) => println!("lost: the card anew: {error}"),
    }

    // Another card, where there is one, and the CPU.
    if CudaDevice::count().unwrap() > 1 {
        let model = load(Gpu::new(CudaDevice::new(1).unwrap())).unwrap();
        assert_eq!(decode(&model, &mut started(&model)).unwrap(), expected);
        println!("not lost: device 1");
    }
    assert_eq!(decode(&cpu, &mut started(&cpu)).unwrap(), expected);
    println!("went on");
}
