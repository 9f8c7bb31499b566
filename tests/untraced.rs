//! What a trace costs a forward that is not traced: nothing. Tracing adds outputs to the kernels that run anyway; no
//! kernel runs, and none is replaced by another, because of it.

mod common;

use std::collections::BTreeSet;
use std::time::Instant;

use common::launches::{self, Event, Launch, Noted};
use common::{bits, cuda_device, emulated_device};
use kquant_moe::device::Device;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{Backend, Context, Logits, Model};
use kquant_moe::trace::{NoTrace, Record, Select, Selection, Sink};

/// A sink that wants no stage, or all of them.
fn sink(all: bool) -> impl Sink {
    let stages = if all { None } else { Some(Vec::new()) };
    Select::new(Selection::default().stages(stages), |_: Record<'_>| Ok(()))
}

fn launched<'a>(events: &'a [Event]) -> Vec<&'a Launch> {
    let launch = |event: &'a Event| if let Event::Launch(launch) = event { Some(launch) } else { None };
    events.iter().filter_map(launch).collect()
}

/// The arguments in which two launches differ, `kernel.argument`. The first has null pointers there.
fn outputs_added(plain: &Launch, traced: &Launch) -> Vec<String> {
    let fields = |launch: &Launch| -> Vec<String> {
        launch.args.split([',', '{']).map(|field| field.trim_matches([' ', '}']).to_owned()).collect()
    };
    let (plain_fields, traced_fields) = (fields(plain), fields(traced));
    assert_eq!(plain_fields.len(), traced_fields.len(), "{plain:?}, {traced:?}");
    let differ = plain_fields.iter().zip(&traced_fields).filter(|(plain, traced)| plain != traced);
    differ
        .map(|(plain_field, _)| {
            let name = plain_field.strip_suffix(": 0x0");
            format!("{}.{}", plain.kernel, name.unwrap_or_else(|| panic!("{plain:?}, {traced:?}")))
        })
        .collect()
}

/// A forward, one with a sink that wants nothing, and one that is traced throughout make the same launches. The first
/// two also make them with the same arguments, to the last pointer, and read the same back; the third has outputs more.
fn traces_add_no_launch<D: Device>(device: &D) {
    let model = common::model(Gpu::new(Noted(device.clone())));
    let context = |trace| model.context(common::options().trace(trace)).unwrap();
    let (mut untraced, mut traced) = (context(false), context(true));
    let batch =
        &["rms_norm.out", "rope.q_normed", "rope.k_normed", "rope.k_out", "attention.out", "attention.scores"][..];
    let single = &["qkv.out", "attention.q_normed", "attention.k_normed", "attention.k_out", "attention.out"][..];
    let single = &[single, &["attention.scores", "rms_norm.out"]].concat()[..];
    let both = ["q4_k_matvec.product", "moe_swiglu.gate_out", "moe_swiglu.up_out", "moe_down.sum"];
    for (tokens, outputs) in [(&[766, 306, 598, 284, 280][..], batch), (&[766], single)] {
        let noted = |context: &mut Context<_>, sink: Option<bool>| {
            context.reset();
            launches::take();
            let logits = match sink {
                None => context.forward(&model, tokens, Logits::All),
                Some(all) => context.trace(&model, tokens, Logits::All, &mut self::sink(all)),
            };
            (bits(&logits.unwrap()), launches::take())
        };
        let (logits, plain) = noted(&mut traced, None);
        let (no_stage_logits, no_stage) = noted(&mut traced, Some(false));
        assert_eq!(plain, no_stage);
        assert!(logits == no_stage_logits);
        let (all_logits, all) = noted(&mut traced, Some(true));
        assert!(logits == all_logits);
        let (untraced_logits, without_room) = noted(&mut untraced, None);
        assert!(logits == untraced_logits);

        let work = |events: &[Event]| -> Vec<_> {
            launched(events).iter().map(|&Launch { kernel, work, .. }| (*kernel, *work)).collect()
        };
        assert_eq!(work(&plain), work(&all), "with all stages");
        assert_eq!(work(&plain), work(&without_room), "of a context without room for a trace");
        // The emulation sees through the launchers to the grids; a GPU does not.
        assert!(device.name() == "cuda" || launched(&plain).iter().all(|launch| launch.work[0] > 0));
        let pairs = launched(&plain).into_iter().zip(launched(&all));
        let added: BTreeSet<String> = pairs.flat_map(|(plain, all)| outputs_added(plain, all)).collect();
        let expected: BTreeSet<String> = outputs.iter().copied().chain(both).map(str::to_owned).collect();
        assert_eq!(added, expected, "{} tokens", tokens.len());
        println!("{} tokens: {} launches in each", tokens.len(), launched(&plain).len());
    }
}

#[test]
fn traces_add_no_launch_emulated() {
    if let Some(device) = emulated_device() {
        traces_add_no_launch(&device);
    }
}

#[test]
fn traces_add_no_launch_on_a_gpu() {
    if let Some(device) = cuda_device() {
        traces_add_no_launch(&device);
    }
}

/// Seconds of some tokens, one by one.
fn seconds<B: Backend, S: Sink>(model: &Model<B>, context: &mut Context<B>, sink: &mut S) -> f64 {
    context.reset();
    let begin = Instant::now();
    for token in 0..24 {
        context.trace(model, &[token], Logits::Last, sink).unwrap();
    }
    begin.elapsed().as_secs_f64()
}

/// Where others use the machine, too, one comparison can be off; several in a row cannot.
fn a_trace_of_nothing_takes_no_time<B: Backend>(backend: B) {
    const MOST: f64 = 1.25;
    let model = common::model(backend);
    let context = |trace| model.context(common::options().trace(trace)).unwrap();
    let (mut plain, mut traced) = (context(false), context(true));
    let mut ratios = Vec::new();
    while ratios.len() < 6 {
        // One after the other, so that what slows the machine down slows both.
        let mut pairs: Vec<f64> = (0..11)
            .map(|_| seconds(&model, &mut traced, &mut sink(false)) / seconds(&model, &mut plain, &mut NoTrace))
            .collect();
        pairs.sort_by(f64::total_cmp);
        ratios.push(pairs[pairs.len() / 2]);
        println!("a trace of no stage takes {:.3} times as long as no trace", pairs[pairs.len() / 2]);
        if ratios.last().is_some_and(|&ratio| ratio < MOST) {
            return;
        }
    }
    panic!("a trace of no stage takes {ratios:?} times as long as no trace");
}

#[test]
fn a_trace_of_nothing_takes_no_time_on_the_cpu() {
    a_trace_of_nothing_takes_no_time(Cpu::new());
}

#[test]
fn a_trace_of_nothing_takes_no_time_on_a_gpu() {
    if let Some(device) = cuda_device() {
        a_trace_of_nothing_takes_no_time(Gpu::new(device));
    }
}
