//! The trained test model against the f64 forward of its dequantized weights, and the GPU backend against the CPU.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::launches::{self, Event, Launch, Noted};
use common::{EmulatedDevice, cuda_device, emulated_device};
use kquant_moe::Error;
use kquant_moe::gguf::Gguf;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{CacheType, Logits};
use kquant_moe::trace::NoTrace;

#[test]
fn cpu_matches_the_reference() {
    common::matches_the_reference(Cpu::new());
}

#[test]
fn cpu_generates_the_reference() {
    common::generates_the_reference(Cpu::new());
}

#[test]
fn cpu_does_not_depend_on_batches() {
    common::does_not_depend_on_batches(Cpu::new());
}

#[test]
fn cpu_traces_without_effect() {
    common::traces_without_effect(Cpu::new());
}

#[test]
fn cuda_matches_the_reference() {
    if let Some(device) = cuda_device() {
        common::matches_the_reference(Gpu::new(device));
    }
}

#[test]
fn cuda_generates_the_reference() {
    if let Some(device) = cuda_device() {
        common::generates_the_reference(Gpu::new(device));
    }
}

#[test]
fn cuda_does_not_depend_on_batches() {
    if let Some(device) = cuda_device() {
        common::does_not_depend_on_batches(Gpu::new(device));
    }
}

#[test]
fn cuda_traces_without_effect() {
    if let Some(device) = cuda_device() {
        common::traces_without_effect(Gpu::new(device));
    }
}

#[test]
fn cuda_equals_the_cpu() {
    for cache in [CacheType::F32, CacheType::F16] {
        for prompt in common::prompts() {
            if let Some(device) = cuda_device() {
                common::equals_the_cpu(&common::gguf(), Gpu::new(device), cache, &prompt.tokens, 70);
            }
        }
    }
}

/// The shortest prompt, and some tokens after it.
fn emulation_equals_the_cpu(cache: CacheType) {
    let Some(device) = emulated_device() else { return };
    let prompt = common::prompts().into_iter().min_by_key(|prompt| prompt.tokens.len()).unwrap();
    common::equals_the_cpu(&common::gguf(), Gpu::new(device), cache, &prompt.tokens, 4);
}

#[test]
fn emulation_equals_the_cpu_with_an_f32_cache() {
    emulation_equals_the_cpu(CacheType::F32);
}

#[test]
fn emulation_equals_the_cpu_with_an_f16_cache() {
    emulation_equals_the_cpu(CacheType::F16);
}

#[test]
fn emulation_matches_the_reference() {
    if let Some(device) = emulated_device() {
        common::matches_the_reference(Gpu::new(device));
    }
}

/// KQUANT_MOE_FULL_MODEL names a file of full size, such as the program's `synth` writes.
#[test]
fn cuda_equals_the_cpu_at_full_size() {
    let Some(path) = std::env::var_os("KQUANT_MOE_FULL_MODEL").map(PathBuf::from) else {
        println!("skipped: KQUANT_MOE_FULL_MODEL names no file");
        return;
    };
    if let Some(device) = cuda_device() {
        // SAFETY: nobody changes the file while the test runs.
        let gguf = Arc::new(unsafe { Gguf::map(path) }.unwrap());
        common::equals_the_cpu(&gguf, Gpu::new(device), CacheType::F16, &[9707, 11, 1879, 0, 358], 3);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let model = common::model(Cpu::new());
    let mut context = model.context(common::options().capacity(8)).unwrap();
    context.forward(&model, &[1, 2, 3], Logits::None).unwrap();
    let error = context.forward(&model, &[1, 2048], Logits::Last).unwrap_err();
    assert!(matches!(error, Error::TokenOutOfRange { token: 2048, position: 1, vocab: 2048 }), "{error}");
    let error = context.forward(&model, &[1; 6], Logits::Last).unwrap_err();
    assert!(matches!(error, Error::ContextOverflow { used: 3, wanted: 6, capacity: 8 }), "{error}");
    let error = context.forward(&model, &[], Logits::Last).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert_eq!(context.position(), 3);
    assert_eq!(context.trace(&model, &[1; 5], Logits::Last, &mut NoTrace).unwrap().len(), 2048);
    assert_eq!(context.position(), 8);
    for options in [common::options().capacity(0), common::options().capacity(1 << 30), common::options().max_batch(0)]
    {
        assert!(matches!(model.context(options), Err(Error::Invalid(_))));
    }
}

/// Where fp64 is slow, norms are kernels of their own, and the bits are the same.
#[test]
fn slow_fp64_changes_launches_and_no_bits() {
    let Some(device) = common::emulated_device() else { return };
    let decoded = |device: EmulatedDevice| {
        let model = common::model(Gpu::new(Noted(device)));
        let mut context = model.context(common::options()).unwrap();
        launches::take();
        let logits: Vec<u32> = [766, 306, 598]
            .iter()
            .flat_map(|&token| common::bits(&context.forward(&model, &[token], Logits::Last).unwrap()))
            .collect();
        let norm = |event: &Event| matches!(event, Event::Launch(Launch { kernel: "rms_norm", .. }));
        (logits, launches::take().iter().filter(|event| norm(event)).count())
    };
    let (fast, slow) = (decoded(device.clone()), decoded(device.with_slow_fp64()));
    assert!(fast.0 == slow.0);
    let layers = common::model(Cpu::new()).config().layers;
    assert_eq!((fast.1, slow.1), (3, 3 * (1 + 2 * layers)), "launches of rms_norm");
}
