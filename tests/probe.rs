//! Decode steps with the launches of one kernel only: what `bench` measures kernels with.

mod common;

use std::collections::BTreeMap;

use common::shaped::{self, SMALL, UNEVEN, reshaped};
use common::{EmulatedDevice, cuda_device, emulated_device};
use kquant_moe::Error;
use kquant_moe::device::{Device, Probe};
use kquant_moe::kernels::FusedNorm;
use kquant_moe::model::gpu::{Gpu, weight_reads};
use kquant_moe::model::{Backend, Config, Context, Model, Tensors};
use kquant_moe_emulation::Recording;

const PROMPT: [u32; 4] = [766, 306, 598, 17];
/// Positions of the context.
const CAPACITY: usize = 24;
/// Where steps are measured.
const POSITION: usize = PROMPT.len() + 2;

type Probed<D> = Gpu<Probe<D>>;

/// The test model on a device, with a context that has decoded tokens and is at `POSITION`.
fn decoded<D: Device>(device: D) -> (Model<Probed<D>>, Context<Probed<D>>) {
    let model = common::model(Gpu::new(Probe::new(device)));
    let mut context = model.context(common::options().capacity(CAPACITY)).unwrap();
    let next = context.next_token(&model, &PROMPT).unwrap();
    context.decode(&model, next, 2).unwrap();
    assert_eq!(context.position(), POSITION);
    (model, context)
}

fn probe<D: Device>(model: &Model<Probed<D>>) -> &Probe<D> {
    model.backend().device()
}

/// Launches of one step by kernel, which together are those of a step that is recorded whole. `launches`: of a recording.
fn partition<D: Device>(device: D, launches: impl Fn(&D::Graph) -> usize) -> Vec<(&'static str, usize)> {
    let (model, mut context) = decoded(device);
    let probe = probe(&model);
    probe.take_counts();
    let whole = launches(context.record_steps(&model, 1).unwrap().unwrap().graph());
    let kernels = probe.take_counts();
    let mut sum = 0;
    for &(kernel, count) in &kernels {
        probe.only(Some(kernel));
        let alone = launches(context.record_steps(&model, 1).unwrap().unwrap().graph());
        assert!(alone >= count, "{kernel}: {alone} launches by {count} calls");
        assert_eq!(probe.take_counts(), [(kernel, count)]);
        assert_eq!(launches(context.record_steps(&model, 5).unwrap().unwrap().graph()), 5 * alone, "{kernel}");
        assert_eq!(probe.take_counts(), [(kernel, 5 * count)]);
        sum += alone;
    }
    assert_eq!(sum, whole, "{kernels:?}");
    kernels
}

fn recording() -> Option<EmulatedDevice> {
    emulated_device().map(EmulatedDevice::recording)
}

#[test]
fn the_kernels_of_a_step_are_its_parts() {
    let Some(device) = recording() else { return };
    let kernels = partition(device, Recording::launches);
    let gguf = common::gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let layers = config.layers;
    let expected: BTreeMap<_, _> = [
        ("embedding", 1),
        ("qkv", layers),
        ("attention", layers),
        ("q4_k_matvec", layers),
        ("moe_router", layers),
        ("moe_swiglu", layers),
        ("moe_down", layers),
        ("rms_norm", 1),
        ("q6_k_gemv", 1),
        ("argmax", 1),
    ]
    .into();
    assert_eq!(kernels.iter().copied().collect::<BTreeMap<_, _>>(), expected);
    assert_eq!((kernels[0].0, kernels[kernels.len() - 1].0), ("embedding", "argmax"), "not in the order of the step");

    // The weights are read by kernels of the step, by all of them but one.
    let tensors = Tensors::find(&gguf, &config).unwrap();
    let reads = weight_reads(&config, &tensors, false);
    let readers: Vec<_> = expected.into_keys().filter(|&kernel| kernel != "argmax").collect();
    assert_eq!(reads.keys().copied().collect::<Vec<_>>(), readers);
    assert!(reads.values().all(|&bytes| bytes > 0), "{reads:?}");

    // Norms that are kernels of their own read their weights there.
    let apart = weight_reads(&config, &tensors, true);
    let norms = (2 * layers * config.hidden * size_of::<f32>()) as u64;
    assert_eq!(apart["rms_norm"], reads["rms_norm"] + norms);
    assert_eq!(apart.values().sum::<u64>(), reads.values().sum::<u64>());
}

#[test]
fn cuda_the_kernels_of_a_step_are_its_parts() {
    let Some(device) = cuda_device() else { return };
    partition(device, |graph| graph.launches().unwrap());
}

/// Any kernel alone, whatever the others left: nothing out of bounds, and the sequence goes on as if nothing had been.
#[test]
fn kernels_run_without_the_others() {
    let Some(device) = emulated_device() else { return };
    let (model, mut context) = decoded(device);
    let expected = context.decode(&model, 5, 3).unwrap();
    let probe = probe(&model);
    probe.take_counts();
    context.truncate(POSITION);
    context.decode(&model, 5, 1).unwrap();
    let kernels = probe.take_counts();
    assert_eq!(kernels.len(), 10, "{kernels:?}");
    for (kernel, count) in kernels {
        probe.only(Some(kernel));
        context.truncate(POSITION);
        context.decode(&model, 0, 2).unwrap();
        assert_eq!(probe.take_counts(), [(kernel, 2 * count)]);
    }
    probe.only(None);
    context.truncate(POSITION);
    assert_eq!(context.decode(&model, 5, 3).unwrap(), expected);
}

#[test]
fn emulated_replays_leave_the_sequence_alone() {
    if let Some(device) = recording() {
        replays_leave_the_sequence_alone(device, 1);
    }
}

#[test]
fn cuda_replays_leave_the_sequence_alone() {
    if let Some(device) = cuda_device() {
        replays_leave_the_sequence_alone(device, 4);
    }
}

/// Each kernel alone, and `replays` times as often as it takes.
fn replays_leave_the_sequence_alone<D: Device>(device: D, replays: usize) {
    let (model, mut context) = decoded(device);
    let expected = context.decode(&model, 5, 3).unwrap();
    let probe = probe(&model);
    context.truncate(POSITION);
    probe.take_counts();
    context.record_steps(&model, 1).unwrap().unwrap().replay(replays, |_| Ok(())).unwrap();
    for (kernel, _) in probe.take_counts() {
        probe.only(Some(kernel));
        let mut steps = context.record_steps(&model, 3).unwrap().unwrap();
        for _ in 0..replays {
            steps.replay(replays, |_| Ok(())).unwrap();
        }
    }
    probe.only(None);
    assert_eq!(context.position(), POSITION);
    assert_eq!(context.decode(&model, 5, 3).unwrap(), expected);
}

/// The device's clock has the steps of a decode between two marks, and the same tokens come of it.
#[test]
fn cuda_marks_enclose_the_steps() {
    let Some(device) = cuda_device() else { return };
    let (model, mut context) = decoded(device);
    let expected = context.decode(&model, 5, 3).unwrap();
    context.truncate(POSITION);
    let mut marks = Vec::new();
    let tokens = context.decode_marked(&model, 5, 3, |backend| {
        marks.push(backend.device().device().mark()?);
        Ok(())
    });
    assert_eq!(tokens.unwrap(), expected);
    let [start, end] = &marks[..] else { panic!("{} marks", marks.len()) };
    assert!(end.seconds_since(start).unwrap() > 0.0);
}

#[test]
fn recordings_stay_within_the_cache() {
    let Some(device) = recording() else { return };
    let (model, mut context) = decoded(device);
    let overflow = |result: Result<(), Error>, wanted: usize| {
        let Err(Error::ContextOverflow { used, wanted: found, capacity }) = result else { panic!("{result:?}") };
        assert_eq!((used, found, capacity), (POSITION, wanted, CAPACITY));
    };
    let room = CAPACITY - POSITION;
    let mut marks = 0;
    let mut steps = context.record_steps(&model, 3).unwrap().unwrap();
    steps
        .replay(room / 3, |_| {
            marks += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(marks, 2);
    overflow(steps.replay(room / 3 + 1, |_| Ok(())), 3 * (room / 3 + 1));
    overflow(steps.replay(usize::MAX, |_| Ok(())), usize::MAX);
    overflow(context.record_steps(&model, room + 1).map(drop), room + 1);
    assert!(matches!(context.record_steps(&model, 0), Err(Error::Invalid(_))));
    context.record_steps(&model, room).unwrap().unwrap();
}

/// Steps are recorded once they have been done: not before, not for another model, and not where nothing is recorded.
#[test]
fn steps_are_recorded_after_one_was_decoded() {
    let Some(device) = recording() else { return };
    let (model, mut context) = decoded(device.clone());
    let other = common::model(Gpu::new(Probe::new(device)));
    assert!(context.record_steps(&other, 1).unwrap().is_none());
    let mut fresh = model.context(common::options()).unwrap();
    assert!(fresh.record_steps(&model, 1).unwrap().is_none());
    fresh.next_token(&model, &PROMPT).unwrap();
    assert!(fresh.record_steps(&model, 1).unwrap().is_none());
    never_records(kquant_moe::model::cpu::Cpu::new());
    never_records(Gpu::new(emulated_device().unwrap()));
}

fn never_records<B: Backend>(backend: B) {
    let model = common::model(backend);
    let mut context = model.context(common::options()).unwrap();
    context.decode(&model, 1, 2).unwrap();
    assert!(context.record_steps(&model, 1).unwrap().is_none());
}

/// By kernel, and to the byte: norms are read by who makes them, experts' matrices by the part that a token uses, and of the table
/// one row.
#[test]
fn weights_are_read_by_the_kernels_that_need_them() {
    let narrow = reshaped!(SMALL, hidden: FusedNorm::MAX_COLS, vocab: 5);
    let wide = reshaped!(narrow.clone(), hidden: FusedNorm::MAX_COLS + 256);
    for (config, fuses) in [(UNEVEN, true), (narrow, true), (wide, false)] {
        let gguf = shaped::model(&config, 1);
        let tensors = Tensors::find(&gguf, &config).unwrap();
        let &Config { layers, hidden, head_dim, experts, top_k, expert_ff, .. } = &config;
        let matrix = |name: String, rows: usize, cols: usize| {
            let kind = gguf.require_tensor(&name).unwrap().tensor_type().unwrap();
            (kind, (rows * cols / 256 * kind.block_bytes()) as u64)
        };
        for slow_fp64 in [false, true] {
            let mut expected = BTreeMap::<&str, u64>::new();
            let mut add = |kernel, bytes: u64| *expected.entry(kernel).or_default() += bytes;
            let product = kquant_moe::kernels::matvec_kernel;
            let norm = |kernel| if fuses && !slow_fp64 { kernel } else { "rms_norm" };
            add("embedding", matrix("token_embd.weight".into(), 1, hidden).1);
            for layer in 0..layers {
                let part = |part: &str, rows, cols| matrix(format!("blk.{layer}.{part}.weight"), rows, cols);
                for (part_name, rows) in
                    [("attn_q", config.q_width()), ("attn_k", config.kv_width()), ("attn_v", config.kv_width())]
                {
                    add("qkv", part(part_name, rows, hidden).1);
                }
                add(norm("qkv"), 4 * hidden as u64);
                add("attention", 2 * 4 * head_dim as u64);
                let (kind, bytes) = part("attn_output", hidden, config.q_width());
                add(product(kind), bytes);
                add(norm("moe_router"), 4 * hidden as u64);
                add("moe_router", 4 * (experts * hidden) as u64);
                for (part_name, kernel) in
                    [("ffn_gate_exps", "moe_swiglu"), ("ffn_up_exps", "moe_swiglu"), ("ffn_down_exps", "moe_down")]
                {
                    add(kernel, top_k as u64 * part(part_name, expert_ff, hidden).1);
                }
            }
            add("rms_norm", 4 * hidden as u64);
            let (kind, bytes) = matrix("output.weight".into(), config.vocab, hidden);
            add(product(kind), bytes);
            assert_eq!(weight_reads(&config, &tensors, slow_fp64), expected, "hidden {hidden}, slow: {slow_fp64}");
        }
    }
}
