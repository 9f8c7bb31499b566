//! Synthetic models load and run.

mod common;

use std::sync::Arc;

use kquant_moe::blocks::TensorType;
use kquant_moe::gguf::Gguf;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::synth::{Preset, SynthOptions, synth};
use kquant_moe::model::{Config, ContextOptions, LoadOptions, Logits, MemoryPlan, Model, Tensors};

fn file(name: &str, options: SynthOptions) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("kquant-moe-{}-{name}.gguf", std::process::id()));
    let mut last = (0, 0);
    let len = synth(&path, options, &mut |done, total| last = (done, total)).unwrap();
    assert_eq!((last, std::fs::metadata(&path).unwrap().len()), ((len, len), len));
    path
}

#[test]
fn a_tiny_one_has_the_shape_of_the_test_model_and_runs() {
    let options = SynthOptions { preset: Preset::Tiny, layers: Some(5), seed: 7 };
    let (path, again) = (file("a", options), file("b", options));
    let other = file("c", SynthOptions { seed: 8, ..options });
    let [bytes, same, different] = [&path, &again, &other].map(|path| std::fs::read(path).unwrap());
    assert!(bytes == same, "the same seed gives the same file");
    assert!(bytes != different, "another seed gives another file");

    let gguf = Arc::new(Gguf::read(&path).unwrap());
    for path in [path, again, other] {
        std::fs::remove_file(path).unwrap();
    }
    let config = Config::from_gguf(&gguf).unwrap();
    assert_eq!(config, Config { layers: 5, ..Config::from_gguf(&common::gguf()).unwrap() });
    let tensors = Tensors::find(&gguf, &config).unwrap();
    let wide: Vec<_> = tensors.layers.iter().map(|layer| layer.down.kind() == TensorType::Q6K).collect();
    assert_eq!(wide, [false, false, true, false, true]);
    assert!(tensors.layers.iter().all(|layer| layer.v.kind() == layer.down.kind()));

    let options = ContextOptions { capacity: 64, ..ContextOptions::default() };
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
