//! Files that are valid GGUF but not a model that can run: each is refused with an error that names what is wrong.

mod common;

use std::sync::Arc;

use common::changed::{Tensor, tensor};
use kquant_moe::blocks::{Blocks, TensorType};
use kquant_moe::gguf::{GgmlType, Gguf, Value};
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::synth::{Preset, SynthOptions, synth};
use kquant_moe::model::{Config, LoadOptions, Logits, Model};
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
    let gguf = changed(&[], |_| {});
    Model::load(gguf.clone(), Cpu::new(), LoadOptions::default(), &mut |done, total| steps.push((done, total)))
        .unwrap();
    // From nothing to everything, by one matrix at a time, each as large as it is in the file.
    let total = gguf.tensors().map(|tensor| tensor.data().len() as u64).sum();
    assert!(steps.iter().all(|step| step.1 == total), "{steps:?}");
    let (first, rest) = steps.split_first().unwrap();
    let ((_, before), last) = (rest.split_last().unwrap(), rest[rest.len() - 1]);
    assert_eq!((first.0, last.0), (0, total));
    let matrices: Vec<u64> = (0..4)
        .flat_map(|layer| {
            ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]
                .map(|part| format!("blk.{layer}.{part}.weight"))
        })
        .chain(["output.weight".into()])
        .map(|name| gguf.require_tensor(&name).unwrap().data().len() as u64)
        .collect();
    let sums = matrices.iter().scan(0, |sum, bytes| {
        *sum += bytes;
        Some(*sum)
    });
    assert!(before.iter().map(|step| step.0).eq(sums), "{before:?}");
}

#[test]
fn hyperparameters_are_checked() {
    for (key, value, message) in [
        ("general.architecture", Value::String("llama"), "\"llama\" is not supported"),
        ("qwen3moe.expert_used_count", Value::U32(17), "experts used: expected at most 16, found 17"),
        ("qwen3moe.expert_used_count", Value::U32(0), "experts used"),
        ("qwen3moe.attention.head_count_kv", Value::U32(3), "4 query heads cannot share 3"),
        ("qwen3moe.embedding_length", Value::U32(257), "hidden width: expected a multiple of 32, found 257"),
        ("qwen3moe.attention.key_length", Value::U32(0), "value_length"),
        ("qwen3moe.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), "epsilon"),
        ("qwen3moe.rope.freq_base", Value::F32(f32::INFINITY), "RoPE base"),
        ("qwen3moe.rope.scaling.type", Value::String("longrope"), "\"longrope\" is not supported"),
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
        // The same number of blocks, of 292 bytes.
        gate.kind = GgmlType::from_number(15).unwrap();
        gate.data.resize(gate.data.len() / 144 * 292, 0);
    });
    let Error::UnsupportedType { tensor: name, found, .. } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), found.as_str()), ("blk.3.ffn_gate_exps.weight", "Q8_K"));

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

/// What a loader may find, and the names and sizes of what it takes for what.
#[test]
fn tensors_are_found_by_shape_and_type() {
    use kquant_moe::model::Tensor;
    let bytes = |kind: TensorType, weights: usize| weights / kind.block_len() * kind.block_bytes();
    let gguf = common::gguf();
    let kinds = &[TensorType::Q4K, TensorType::Q6K];
    let find = |name: &str, shape: &[usize]| Tensor::find(&gguf, name, shape, kinds, "Q4_K, Q6_K");
    let experts = find("blk.0.ffn_gate_exps.weight", &[16, 256, 256]).unwrap();
    assert_eq!((experts.experts(), experts.rows(), experts.cols()), (16, 256, 256));
    assert_eq!((experts.kind(), experts.bytes().len()), (TensorType::Q4K, bytes(TensorType::Q4K, 16 * 256 * 256)));
    assert!(matches!(experts.blocks(), Some(Blocks::Q4K(blocks)) if blocks.len() == 16 * 256));
    let output = find("output.weight", &[2048, 256]).unwrap();
    assert_eq!((output.experts(), output.rows(), output.cols(), output.kind()), (1, 2048, 256, TensorType::Q6K));
    assert!(matches!(output.blocks(), Some(Blocks::Q6K(blocks)) if blocks.len() == 2048));
    // Dimensions of 1 in front are no difference, and any other is.
    assert!(find("output.weight", &[1, 2048, 256]).is_ok());
    for shape in [&[256, 2048][..], &[2048, 512], &[2048], &[2, 1024, 256], &[2048, 256, 1], &[2047, 256]] {
        assert!(matches!(find("output.weight", shape), Err(Error::WrongShape { .. })), "{shape:?}");
    }
    assert!(matches!(find("output.weight", &[1, 1, 2048, 256]), Err(Error::Invalid(_))));
    assert!(matches!(find("output_norm.weight", &[256]), Err(Error::UnsupportedType { .. })));
    assert!(matches!(find("nothing", &[256]), Err(Error::MissingTensor(_))));
    let norm = Tensor::find(&gguf, "output_norm.weight", &[256], &[TensorType::F32], "F32").unwrap();
    assert_eq!((norm.experts(), norm.rows(), norm.cols()), (1, 1, 256));
    let expected: Vec<f32> = norm.bytes().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    assert_eq!(norm.f32s().unwrap(), expected);
    assert!(matches!(output.f32s(), Err(Error::UnsupportedType { supported: "F32, F16, BF16", .. })));
    assert!(norm.blocks().is_none());
    // Whole tiles of 16 rows, of each expert.
    let uneven = common::shaped::model(&common::shaped::reshaped!(common::shaped::SMALL, vocab: 17), 1);
    let table = Tensor::find(&uneven, "output.weight", &[17, 256], kinds, "").unwrap();
    assert_eq!((table.tiled_bytes(), table.bytes().len()), (32 * 210, 17 * 210));
    assert_eq!(output.tiled_bytes(), output.bytes().len() as u64);
    let odd = common::shaped::model(&common::shaped::reshaped!(common::shaped::SMALL, hidden: 512, expert_ff: 256), 1);
    let down = Tensor::find(&odd, "blk.0.ffn_down_exps.weight", &[3, 512, 256], kinds, "").unwrap();
    assert_eq!(down.tiled_bytes(), 3 * 512 * 144);
}

/// Tensors of widths that are no multiple of 256 are continued with zeros, rows and columns, and are the file's in front.
#[test]
fn narrow_tensors_are_continued_with_zeros() {
    use kquant_moe::model::Tensors;
    for kind in [TensorType::Q5_1, TensorType::BF16] {
        let gguf = common::shaped::narrow(kind);
        let config = Config::from_gguf(&gguf).unwrap();
        let tensors = Tensors::find(&gguf, &config).unwrap();
        let layer = &tensors.layers[0];
        // Where only columns of blocks are continued, floats are as they are in the file.
        let heads = if kind == TensorType::BF16 { 128 } else { 256 };
        for (tensor, shape, [rows, cols]) in [
            (&tensors.embedding, [1, 2048, 512], [2048, 288]),
            (&tensors.output_norm, [1, 1, 512], [1, 288]),
            (&layer.q, [1, 128, 512], [128, 288]),
            (&layer.k, [1, 64, 512], [64, 288]),
            (&layer.q_norm, [1, 1, 64], [1, 64]),
            (&layer.attn_output, [1, 512, heads], [288, 128]),
            (&layer.router, [1, 16, 512], [16, 288]),
            (&layer.up, [16, 256, 512], [96, 288]),
            (&layer.down, [16, 512, 256], [288, 96]),
        ] {
            let (name, kind) = (tensor.name(), tensor.kind());
            assert_eq!([tensor.experts(), tensor.rows(), tensor.cols()], shape, "{name}");
            assert_eq!(tensor.bytes().len(), tensor.byte_len(), "{name}");
            assert!(tensor.tiled_bytes() >= tensor.byte_len() as u64, "{name}");
            let mut in_file = gguf.require_tensor(name).unwrap().data().chunks_exact(kind.bytes_of(cols));
            for (row, bytes) in tensor.bytes().chunks_exact(kind.bytes_of(tensor.cols())).enumerate() {
                let expected = if row % tensor.rows() < rows { in_file.next().unwrap() } else { &[] };
                let (front, behind) = bytes.split_at(expected.len());
                assert!(front == expected && behind.iter().all(|&byte| byte == 0), "{name}, row {row}");
            }
            assert!(in_file.next().is_none(), "{name}");
            if kind == TensorType::F32 {
                let values = tensor.bytes().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
                assert!(values.eq(tensor.f32s().unwrap()), "{name}");
            }
        }
        // Places are those in the file: the first block, or value, of the third row.
        for (name, place) in
            [("blk.0.attn_output.weight", 2 * 128 / kind.block_len()), ("blk.0.ffn_gate_inp.weight", 2 * 288)]
        {
            let spoilt = common::changed::changed(&gguf, &[], |tensors| {
                let tensor = tensor(tensors, name);
                let kind = TensorType::try_from(tensor.kind).unwrap();
                tensor.data[place * kind.block_bytes()..][..kind.block_bytes().min(4)].fill(0xff);
            });
            let error = load(spoilt).map(drop).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(&format!(" {place} is")), "{error}");
        }
    }
    // No file has K-quants of such widths.
    let options = SynthOptions::new(Preset::Tiny, 3).hidden(288);
    let error = synth(std::env::temp_dir().join("none.gguf"), options, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("output.weight") && error.contains("multiple of 256 weights for type Q6_K"), "{error}");
}

/// Keys that other writers leave out, or add.
#[test]
fn head_dimensions_may_follow_from_the_width() {
    // 512 values of four heads, and below of eight.
    let wide = common::shaped::reshaped!(common::shaped::SMALL, hidden: 512, heads: 4, head_dim: 128);
    let without = [("qwen3moe.attention.key_length", None)];
    let wide_file = common::changed::changed(&common::shaped::model(&wide, 1), &without, |_| {});
    assert_eq!(Config::from_gguf(&wide_file).unwrap(), wide);
    let shape = common::shaped::reshaped!(common::shaped::SMALL, hidden: 512, heads: 8, head_dim: 64);
    let gguf = common::shaped::model(&shape, 1);
    let (key, value) = ("qwen3moe.attention.key_length", "qwen3moe.attention.value_length");
    let with =
        |metadata: &[(&str, Option<Value<'_>>)]| Config::from_gguf(&common::changed::changed(&gguf, metadata, |_| {}));
    for metadata in [&[][..], &[(key, None)], &[(value, None)], &[(key, None), (value, None)]] {
        assert_eq!(with(metadata).unwrap(), shape, "{metadata:?}");
    }
    for length in [0, 63, 128] {
        let error = with(&[(value, Some(Value::U32(length)))]).unwrap_err();
        assert!(matches!(&error, Error::Model(text) if text.contains("value_length")), "{error}");
    }
    // 512 values of no heads, or of too many.
    for heads in [0, 1024] {
        let heads = ("qwen3moe.attention.head_count", Some(Value::U32(heads)));
        assert!(matches!(with(&[(key, None), (value, None), heads]), Err(Error::Model(_))));
    }
    let scaling = |kind| with(&[("qwen3moe.rope.scaling.type", Some(Value::String(kind)))]);
    assert_eq!(scaling("none").unwrap(), shape);
    assert!(matches!(scaling(""), Err(Error::Model(_))));
}

#[test]
fn weights_must_be_finite() {
    let nan = half::f16::NAN.to_le_bytes();
    let spoil = |name: &'static str, from: usize, bytes: Vec<u8>| {
        let change =
            move |tensors: &mut Vec<Tensor>| tensor(tensors, name).data[from..][..bytes.len()].copy_from_slice(&bytes);
        let gguf = changed(&[], change);
        let error = load(gguf.clone()).map(drop).unwrap_err();
        // And the place: the number of the block, or of the value.
        let place = match gguf.require_tensor(name).unwrap().tensor_type().unwrap() {
            TensorType::F32 => format!("value {}", from / 4),
            kind => format!("block {}", from / kind.block_bytes()),
        };
        assert!(matches!(&error, Error::Model(text) if text.contains(name) && text.contains(&place)), "{error}");
        gguf
    };
    let unchecked = spoil("blk.1.attn_k.weight", 144 * 5 + 2, nan.to_vec());
    let infinity = half::f16::NEG_INFINITY.to_le_bytes();
    spoil("blk.1.attn_k.weight", 144 * 5, infinity.to_vec());
    spoil("output.weight", 210 * 7 + 208, nan.to_vec());
    spoil("token_embd.weight", 0, half::f16::INFINITY.to_le_bytes().to_vec());
    spoil("token_embd.weight", 144 * 2047 + 2, half::f16::INFINITY.to_le_bytes().to_vec());
    spoil("blk.0.ffn_norm.weight", 8, f32::NAN.to_le_bytes().to_vec());
    spoil("blk.3.ffn_gate_inp.weight", 4 * (16 * 256 - 1), f32::INFINITY.to_le_bytes().to_vec());
    for part in ["attn_q", "attn_v", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
        // Layers 0 and 1 are in Q4_K throughout.
        let name: &str = Box::leak(format!("blk.1.{part}.weight").into_boxed_str());
        spoil(name, 144 * 9, nan.to_vec());
    }
    // Tables in half precision.
    for (kind, one, nan) in [
        (TensorType::F16, half::f16::ONE.to_le_bytes(), nan),
        (TensorType::BF16, half::bf16::ONE.to_le_bytes(), half::bf16::NEG_INFINITY.to_le_bytes()),
    ] {
        let halves = changed(&[], |tensors| {
            let table = tensor(tensors, "token_embd.weight");
            table.kind = kind.into();
            table.data = one.repeat(2048 * 256);
            table.data[2 * 1000..2 * 1001].copy_from_slice(&nan);
        });
        let error = load(halves).map(drop).unwrap_err();
        assert!(matches!(&error, Error::Model(text) if text.contains("value 1000 ")), "{error}");
    }
    let options = LoadOptions::default().check_blocks(false);
    Model::load(unchecked, Cpu::new(), options, &mut |_, _| {}).unwrap();
}

/// What the fuzzer starts from gets past every check; it would find little otherwise.
#[test]
fn the_seed_of_the_fuzzer_is_a_model() {
    let mut bytes = include_bytes!("../fuzz/seeds/qwen3moe-header").to_vec();
    bytes.resize(bytes.len() + (512 << 10), 0);
    let model = load(Arc::new(Gguf::from_vec("seed", bytes).unwrap())).unwrap();
    let mut context = model.context(common::options().capacity(16)).unwrap();
    // Weights of zeros, and a vocabulary of four tokens.
    assert_eq!(context.forward(&model, &[1, 2], Logits::All).unwrap(), [0.0; 8]);
}

#[test]
fn a_model_without_an_output_matrix_uses_the_embedding() {
    let logits = |gguf: Arc<Gguf>, output: &str| {
        let model = load(gguf).unwrap();
        assert_eq!(model.weights().output.name(), output);
        let mut context = model.context(common::options()).unwrap();
        common::bits(&context.forward(&model, &[1, 2, 3], Logits::All).unwrap())
    };
    let tied = changed(&[], |tensors| tensors.retain(|tensor| tensor.name != "output.weight"));
    // A copy of the table in the place of the output matrix gives the same logits, and the matrix that is there others.
    let copied = changed(&[], |tensors| {
        let table = tensor(tensors, "token_embd.weight");
        let (kind, data) = (table.kind, table.data.clone());
        let output = tensor(tensors, "output.weight");
        (output.kind, output.data) = (kind, data);
    });
    let tied = logits(tied, "token_embd.weight");
    assert!(tied == logits(copied, "output.weight"));
    assert!(tied != logits(common::gguf(), "output.weight"));

    // So is a table of floats, and it is the numbers that count, not how they are written.
    let floats = |kind: TensorType| {
        changed(&[], |tensors| {
            tensors.retain(|tensor| tensor.name != "output.weight");
            let table = tensor(tensors, "token_embd.weight");
            let halves = (0..256 * 2048_u32).map(|i| half::bf16::from_f32((i % 251) as f32 / 1024.0 - 0.1));
            table.data = match kind {
                TensorType::BF16 => halves.flat_map(half::bf16::to_le_bytes).collect(),
                _ => halves.flat_map(|half| half.to_f32().to_le_bytes()).collect(),
            };
            table.kind = kind.into();
        })
    };
    let [as_bf16, as_f32] = [TensorType::BF16, TensorType::F32].map(|kind| logits(floats(kind), "token_embd.weight"));
    assert!(as_bf16 == as_f32);
}
