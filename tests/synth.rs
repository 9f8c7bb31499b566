//! Synthetic models load and run.

mod common;

use std::cell::Cell;
use std::sync::Arc;

use kquant_moe::Error;
use kquant_moe::blocks::TensorType;
use kquant_moe::gguf::Gguf;
use kquant_moe::model::backend::Backend;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::synth::{Preset, SynthOptions, synth, synth_with};
use kquant_moe::model::{CacheType, Config, ContextOptions, LoadOptions, Logits, MemoryPlan, Model, Tensors};

fn file(name: &str, options: SynthOptions) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("kquant-moe-{}-{name}.gguf", std::process::id()));
    let mut last = (0, 0);
    let len = synth(&path, options, &mut |done, total| last = (done, total)).unwrap();
    assert_eq!((last, std::fs::metadata(&path).unwrap().len()), ((len, len), len));
    path
}

#[test]
fn a_tiny_one_has_the_shape_of_the_test_model_and_runs() {
    let options = SynthOptions::new(Preset::Tiny, 7).layers(5);
    let (path, again) = (file("a", options), file("b", options));
    let other = file("c", SynthOptions::new(Preset::Tiny, 8).layers(5));
    let [bytes, same, different] = [&path, &again, &other].map(|path| std::fs::read(path).unwrap());
    assert!(bytes == same, "the same seed gives the same file");
    assert!(bytes != different, "another seed gives another file");

    let gguf = Arc::new(Gguf::read(&path).unwrap());
    for path in [path, again, other] {
        std::fs::remove_file(path).unwrap();
    }
    let config = Config::from_gguf(&gguf).unwrap();
    let mut expected = Config::from_gguf(&common::gguf()).unwrap();
    expected.layers = 5;
    assert_eq!(config, expected);
    let tensors = Tensors::find(&gguf, &config).unwrap();
    let wide: Vec<_> = tensors.layers.iter().map(|layer| layer.down.kind() == TensorType::Q6K).collect();
    assert_eq!(wide, [false, false, true, false, true]);
    assert!(tensors.layers.iter().all(|layer| layer.v.kind() == layer.down.kind()));

    let options = ContextOptions::default().capacity(64);
    let plan = MemoryPlan::new(&config, &tensors, &options).unwrap();
    assert_eq!(plan.cache, 2 * 5 * 64 * 256 * 4);
    assert!(plan.weights as usize > bytes.len() * 99 / 100 - 60_000 && (plan.weights as usize) < bytes.len());

    let model = Model::load(gguf, Cpu::new(), LoadOptions::default(), &mut |_, _| {}).unwrap();
    let mut context = model.context(options).unwrap();
    let logits = context.forward(&model, &[72, 101, 108, 108, 111], Logits::All).unwrap();
    assert!(logits.iter().all(|x| x.is_finite()));
    let size = (logits.iter().map(|x| f64::from(x * x)).sum::<f64>() / logits.len() as f64).sqrt();
    assert!((0.1..10.0).contains(&size), "logits of size {size}");
}

/// A model of two layers whose matrices have the types that `kind` gives.
fn of_types(kind: &dyn Fn(&str, TensorType) -> TensorType) -> Result<Arc<Gguf>, Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("types.gguf");
    let options = SynthOptions::new(Preset::Tiny, 9).layers(2);
    synth_with(&path, options, kind, &mut |_, _| {})?;
    Ok(Arc::new(Gguf::read(&path).unwrap()))
}

/// All matrices of one type, and types in turn until every one was there.
fn every_type_runs<B: Backend>(backend: impl Fn() -> B) {
    // One of each family, and with a codebook; the kernels' own tests are of every type.
    for kind in [TensorType::Q5K, TensorType::Q8_0, TensorType::IQ2S, TensorType::BF16] {
        let gguf = of_types(&|_, _| kind).unwrap();
        let matrices = gguf.tensors().filter(|tensor| tensor.tensor_type().is_ok_and(|found| found == kind)).count();
        assert_eq!(matrices, 2 + 2 * 7, "{kind}");
        common::equals_the_cpu(&gguf, backend(), CacheType::F32, &[3, 1, 4, 1, 5], 1);
    }
    let turn = Cell::new(0);
    while turn.get() < TensorType::ALL.len() {
        let next = |_: &str, _| {
            turn.set(turn.get() + 1);
            TensorType::ALL[turn.get() % TensorType::ALL.len()]
        };
        common::equals_the_cpu(&of_types(&next).unwrap(), backend(), CacheType::F16, &[3, 1, 4, 1, 5], 1);
    }
    // Floats beside blocks where one kernel multiplies with several matrices of blocks.
    for floats in [["ffn_gate", "attn_q"], ["ffn_up", "attn_v"]] {
        let next =
            |name: &str, usual| if floats.iter().any(|part| name.contains(part)) { TensorType::F16 } else { usual };
        common::equals_the_cpu(&of_types(&next).unwrap(), backend(), CacheType::F16, &[3, 1, 4, 1, 5], 1);
    }
}

#[test]
fn models_of_every_type_run_emulated() {
    if let Some(device) = common::emulated_device() {
        every_type_runs(|| Gpu::new(device.clone()));
    }
}

#[test]
fn models_of_every_type_run_on_a_gpu() {
    if let Some(device) = common::cuda_device() {
        every_type_runs(|| Gpu::new(device.clone()));
    }
}

/// Two layers of the largest shape that there is: 64 query heads for 4 KV heads, a hidden width of 4096.
#[test]
fn the_largest_shape_runs_on_a_gpu() {
    if let Some(device) = common::cuda_device() {
        let path = file("largest", SynthOptions::new(Preset::Qwen3_235bA22b, 7).layers(2));
        // SAFETY: nobody but this test knows the file.
        let gguf = Arc::new(unsafe { Gguf::map(&path) }.unwrap());
        common::equals_the_cpu(&gguf, Gpu::new(device), CacheType::F16, &[3, 1, 4, 1, 5], 1);
        std::fs::remove_file(path).unwrap();
    }
}
