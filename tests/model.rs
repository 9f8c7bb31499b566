//! Files that are valid GGUF but not a model that can run: each is refused with an error that names what is wrong.

mod common;

use std::sync::Arc;

use common::changed::{Tensor, tensor};
use kquant_moe::blocks::TensorType;
use kquant_moe::gguf::{GgmlType, Gguf, Value};
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::{ContextOptions, LoadOptions, Logits, Model};
use kquant_moe::{Error, Result};

/// The test model with changes.
fn changed(metadata: &[(&str, Option<Value<'_>>)], change: impl FnOnce(&mut Vec<Tensor>)) -> Arc<Gguf> {
    common::changed::changed(&common::gguf(), metadata, change)
}

fn load(gguf: Arc<Gguf>) -> Result<Model<Cpu>> {
    Model::load(gguf, Cpu::new(), LoadOptions::default(), &mut |_, _| {})
}

fn refused(metadata: &[(&str, Option<Value<'_>>)], change: impl FnOnce(&mut Vec<Tensor>)) -> Error {
    match load(changed(metadata, change)) {
        Ok(_) => panic!("the file was accepted"),
        Err(error) => error,
    }
}

#[test]
fn a_copy_is_accepted_and_progress_reaches_the_end() {
    let mut steps = Vec::new();
    Model::load(changed(&[], |_| {}), Cpu::new(), LoadOptions::default(), &mut |done, total| steps.push((done, total)))
        .unwrap();
    assert!(steps.is_sorted());
    assert_eq!(steps[0].0, 0);
    let last = steps[steps.len() - 1];
    assert_eq!(last.0, last.1);
}

#[test]
fn hyperparameters_are_checked() {
    for (key, value, message) in [
        ("general.architecture", Value::String("llama"), "\"llama\" is not supported"),
        ("qwen3moe.expert_used_count", Value::U32(17), "experts used: expected at most 16, found 17"),
        ("qwen3moe.expert_used_count", Value::U32(0), "experts used"),
        ("qwen3moe.attention.head_count_kv", Value::U32(3), "4 query heads cannot share 3"),
        ("qwen3moe.embedding_length", Value::U32(257), "hidden width: expected a multiple of 256, found 257"),
        ("qwen3moe.attention.key_length", Value::U32(0), "value_length"),
        ("qwen3moe.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), "epsilon"),
        ("qwen3moe.rope.freq_base", Value::F32(f32::INFINITY), "RoPE base"),
        ("qwen3moe.rope.scaling.type", Value::String("yarn"), "\"yarn\" is not supported"),
        ("qwen3moe.block_count", Value::U32(0), "layers"),
    ] {
        let error = refused(&[(key, Some(value))], |_| {});
        assert!(matches!(&error, Error::Model(text) if text.contains(message)), "{key}: {error}");
    }
    let error = refused(&[("qwen3moe.expert_count", None)], |_| {});
    assert!(matches!(&error, Error::Gguf { .. }) && error.to_string().contains("qwen3moe.expert_count"), "{error}");
    // A model of experts needs no width of a dense layer.
    load(changed(&[("qwen3moe.feed_forward_length", None)], |_| {})).unwrap();
}

#[test]
fn tensors_must_be_there_with_their_shape_and_type() {
    let error = refused(&[], |tensors| tensors.retain(|tensor| tensor.name != "blk.2.ffn_up_exps.weight"));
    assert!(matches!(&error, Error::MissingTensor(name) if name == "blk.2.ffn_up_exps.weight"), "{error}");

    let error = refused(&[], |tensors| {
        let q = tensor(tensors, "blk.1.attn_q.weight");
        q.dims.swap(0, 1);
    });
    let Error::WrongShape { tensor: name, found, expected } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), &found[..], &expected[..]), ("blk.1.attn_q.weight", &[256, 512][..], &[512, 256][..]));

    let error = refused(&[], |tensors| {
        let gate = tensor(tensors, "blk.3.ffn_gate_exps.weight");
        // The same number of blocks, of 176 bytes.
        gate.kind = GgmlType::from_number(13).unwrap();
        gate.data.resize(gate.data.len() / 144 * 176, 0);
    });
    let Error::UnsupportedType { tensor: name, found, .. } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), found.as_str()), ("blk.3.ffn_gate_exps.weight", "Q5_K"));

    let error = refused(&[], |tensors| {
        tensors.push(Tensor {
            name: "blk.0.attn_q.bias".into(),
            kind: TensorType::F32.into(),
            dims: vec![512],
            data: vec![0; 2048],
        });
    });
    assert!(matches!(&error, Error::Model(text) if text.contains("blk.0.attn_q.bias")), "{error}");
}

/// Text of a file comes into messages escaped and cut, wherever it stands.
#[test]
fn messages_stay_short_lines() {
    let long = "long\n".repeat(1 << 20);
    let stray = |tensors: &mut Vec<Tensor>| {
        let (name, kind) = ("blk.0.\nattn_q\u{1b}[31m.bias".into(), TensorType::F32.into());
        tensors.push(Tensor { name, kind, dims: vec![512], data: vec![0; 2048] });
    };
    for error in [
        refused(&[("general.architecture", Some(Value::String(&long)))], |_| {}),
        refused(&[("qwen3moe.rope.scaling.type", Some(Value::String(&long)))], |_| {}),
        refused(&[], stray),
    ] {
        let message = error.to_string();
        assert!(message.len() < 300 && !message.contains(char::is_control), "{} bytes: {error:.300}", message.len());
    }
}

#[test]
fn weights_must_be_finite() {
    let nan = half::f16::NAN.to_le_bytes();
    let spoil = |name: &'static str, from: usize, bytes: Vec<u8>| {
        let change =
            move |tensors: &mut Vec<Tensor>| tensor(tensors, name).data[from..][..bytes.len()].copy_from_slice(&bytes);
        let gguf = changed(&[], change);
        let error = load(gguf.clone()).map(drop).unwrap_err();
        assert!(matches!(&error, Error::Model(text) if text.contains(name)), "{error}");
        gguf
    };
    let unchecked = spoil("blk.1.attn_k.weight", 144 * 5 + 2, nan.to_vec());
    spoil("output.weight", 210 * 7 + 208, nan.to_vec());
    spoil("token_embd.weight", 0, half::f16::INFINITY.to_le_bytes().to_vec());
    spoil("blk.0.ffn_norm.weight", 8, f32::NAN.to_le_bytes().to_vec());
    let options = LoadOptions { check_blocks: false };
    Model::load(unchecked, Cpu::new(), options, &mut |_, _| {}).unwrap();
}

/// What the fuzzer starts from gets past every check; it would find little otherwise.
#[test]
fn the_seed_of_the_fuzzer_is_a_model() {
    let mut bytes = include_bytes!("../fuzz/seeds/qwen3moe-header").to_vec();
    bytes.resize(bytes.len() + (512 << 10), 0);
    let model = load(Arc::new(Gguf::from_vec("seed", bytes).unwrap())).unwrap();
    let mut context = model.context(ContextOptions { capacity: 16, ..common::options() }).unwrap();
    // Weights of zeros, and a vocabulary of four tokens.
    assert_eq!(context.forward(&model, &[1, 2], Logits::All).unwrap(), [0.0; 8]);
}

#[test]
fn a_model_without_an_output_matrix_uses_the_embedding() {
    let model = load(changed(&[], |tensors| tensors.retain(|tensor| tensor.name != "output.weight"))).unwrap();
    assert_eq!(model.weights().output.name(), "token_embd.weight");
    let mut context = model.context(common::options()).unwrap();
    assert_eq!(context.next_token(&model, &[1, 2, 3]).unwrap(), {
        context.reset();
        context.next_token(&model, &[1, 2, 3]).unwrap()
    });

    // Only a quantized table can be the output matrix.
    let error = refused(&[], |tensors| {
        tensors.retain(|tensor| tensor.name != "output.weight");
        let table = tensor(tensors, "token_embd.weight");
        table.kind = TensorType::F16.into();
        table.data = vec![0; 2 * 256 * 2048];
    });
    let Error::UnsupportedType { tensor: name, supported, .. } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), *supported), ("token_embd.weight", "Q4_K, Q6_K"));
}
