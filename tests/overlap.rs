//! Launches that overlap: release and wait exchanged in a kernel of the forward must be noticed where another kernel relies on their order.
//! The emulation judges every access of memory by what might still run (emulation/README.md).

#[path = "common/mod.rs"]
mod common;

use common::{EmulatedDevice, emulated_device};
use kquant_moe::blocks::TensorType;
use kquant_moe::device::Buffer;
use kquant_moe::kernels::{Argmax, Attention, Batch, DecodeLoop, Queries};
use kquant_moe::model::Logits;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::{Error, Result};
use kquant_moe_emulation::{Failure, Library, Substitution};

/// Tokens that the device feeds back to itself: the position, too, is advanced by a kernel.
const STEPS: usize = 3;

/// Decodes some tokens, with steps that are recorded and replayed.
fn decode(device: &EmulatedDevice) -> Result<()> {
    let model = common::model(Gpu::new(device.clone().recording()));
    let mut context = model.context(common::options().capacity(8))?;
    context.forward(&model, &[766, 306, 598], Logits::None)?;
    assert_eq!(context.decode(&model, 17, STEPS)?.len(), STEPS);
    Ok(())
}

/// argmax advances the position of the attention right behind it.
fn attention_behind_argmax(device: &EmulatedDevice) -> Result<()> {
    let (capacity, head_dim) = (64, 64);
    let x = Buffer::from_slice(device, &[1.0_f32, 2.0])?;
    let (mut token, mut partial, mut done) =
        (Buffer::zeroed(device, 1)?, Buffer::zeroed(device, 1)?, Buffer::zeroed(device, 1)?);
    let (mut position, mut history) = (Buffer::zeroed(device, 1)?, Buffer::zeroed(device, 1)?);
    let numbers = Buffer::zeroed(device, 1)?;
    let q = Buffer::from_slice(device, &vec![1.0_f32; head_dim])?;
    let cache: Buffer<_, u8> = Buffer::zeroed(device, 4 * capacity * head_dim)?;
    let mut out = Buffer::zeroed(device, head_dim)?;
    let mut workspace = Buffer::zeroed(device, Attention::workspace_bytes(device, capacity, 1, 1, head_dim)?)?;
    Argmax::new(x.slice(), token.slice_mut(), partial.slice_mut(), done.slice_mut(), [1, 2])
        .feed(DecodeLoop::new(position.slice_mut(), history.slice_mut()))
        .launch(device)?;
    let batch = Batch::new([position.slice(), numbers.slice(), numbers.slice()], [1, 1], [capacity, 1]);
    Attention::new(
        Queries::rotated(q.slice(), [cache.slice(), cache.slice()], batch),
        workspace.slice_mut(),
        TensorType::F32,
        [1, head_dim],
        1,
        0.125,
    )
    .out(out.slice_mut())
    .launch(device)
}

/// The fault must be found by the work, with these words in the report; without it the work passes.
fn noticed(work: fn(&EmulatedDevice) -> Result<()>, kernel: &str, (find, replace): (&str, &str), words: &[&str]) {
    let Some(device) = emulated_device() else { return };
    if !kquant_moe_emulation::sees_global_memory() {
        return;
    }
    work(&device).unwrap_or_else(|error| panic!("{error}: {}", device.report()));
    let library = Library::faulty_kernels(&[kernel], &[Substitution { file: kernel, find, replace }]).unwrap();
    let device = EmulatedDevice::faulty(library);
    let error = work(&device).expect_err("the fault was not noticed");
    let report = device.report();
    let Error::Kernel { status, .. } = error else { panic!("{error}: {report}") };
    assert_eq!(Failure::from_status(status), Some(Failure::Dependency), "{report}");
    for word in words {
        assert!(report.contains(word), "{word}: {report}");
    }
    println!("{report}");
}

/// attention reads the position, which argmax advanced, while qkv may still run. That qkv waits before it releases makes it right.
#[test]
fn qkv_that_releases_before_it_waits() {
    let from = "  const typename Tile::Unpacked unpacked(tile, lane);
  kqm_materialize(unpacked.checksum());
  kqm_wait_then_release();";
    let to = "  const typename Tile::Unpacked unpacked(tile, lane);
  kqm_materialize(unpacked.checksum());
  kqm_release_dependents();
  kqm_wait_for_dependencies();";
    let words = &["kernel attention_chunks", "before its wait", "what kernel argmax_kernel wrote"];
    noticed(decode, "qkv.cu", (from, to), words);
}

/// attention_join reads the position while attention_chunks may still run, which therefore waits before it releases.
#[test]
fn attention_that_releases_before_it_waits() {
    let from = "  kqm_touch_arguments(a);\n  // Behind qkv";
    let to = "  kqm_release_dependents();\n  kqm_touch_arguments(a);\n  // Behind qkv";
    let words = &["kernel attention_join", "before its wait", "what kernel argmax_kernel wrote"];
    noticed(attention_behind_argmax, "attention.cu", (from, to), words);
}

/// Attention that does not follow qkv waits before it reads the position.
#[test]
fn attention_that_does_not_wait_for_the_position() {
    let fault = ("if (!a.follows_qkv) kqm_wait_for_dependencies();", "");
    let words = &["kernel attention_chunks", "before its wait", "what kernel argmax_kernel wrote"];
    noticed(attention_behind_argmax, "attention.cu", fault, words);
}

/// What qkv computes is not read before the wait.
#[test]
fn attention_that_reads_queries_before_it_waits() {
    let load = "  if (a.rope.q) kqm_load_head(a.rope, row, row_lane, x);\n";
    let wait = "  kqm_wait_then_release();\n";
    let words = &["kernel attention_chunks", "before its wait", "what kernel qkv_one_token"];
    noticed(decode, "attention.cu", (&format!("{wait}{load}"), &format!("{load}{wait}")), words);
}

/// A kernel without a wait of its own.
#[test]
fn a_norm_that_does_not_wait() {
    let fault = ("  kqm_wait_for_dependencies();\n  const float4 first0", "  const float4 first0");
    noticed(decode, "rms_norm.cu", fault, &["kernel rms_norm_kernel", "before its wait"]);
}
