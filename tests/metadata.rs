//! Metadata that change what is computed: obeyed or refused by name, never ignored.

mod common;

use std::sync::Arc;

use kquant_moe::Error;
use kquant_moe::gguf::{Gguf, Header, Override, Value};
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{Config, LoadOptions, Logits, Model, RopeScaling, Tensors, Yarn};
use kquant_moe::oracle::moe_router::Weighting;

/// The test model with other metadata.
fn with(metadata: &[(&str, Option<Value<'_>>)]) -> Arc<Gguf> {
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (full(key), *value)).collect();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    common::changed::changed(&common::gguf(), &metadata, |_| {})
}

/// Keys of the architecture are given without it.
fn full(key: &str) -> String {
    if key.starts_with("general.") { key.into() } else { format!("qwen3moe.{key}") }
}

fn config(metadata: &[(&str, Option<Value<'_>>)]) -> Config {
    Config::from_gguf(&with(metadata)).unwrap_or_else(|error| panic!("{metadata:?}: {error}"))
}

/// The one error of a file, which names the key.
fn refused(key: &str, value: Value<'_>) -> String {
    let errors = Config::read(&with(&[(key, Some(value))])).unwrap_err();
    let [error] = &errors[..] else { panic!("{key} {value:?}: {errors:?}") };
    assert!(error.to_string().contains(&full(key)), "{key}: {error}");
    error.to_string()
}

#[test]
fn what_the_forward_does_not_know_is_refused_unless_it_changes_nothing() {
    let usual = config(&[]);
    let no = Value::Bool(false);
    let yes = Value::Bool(true);
    let (u, f) = (Value::U32, Value::F32);
    for (key, same, other) in [
        ("expert_weights_scale", &[f(1.0), f(0.0), u(1)][..], &[f(2.5), f(0.5), f(-1.0), f(f32::NAN)][..]),
        ("expert_weights_norm", &[yes, u(1)], &[u(2), f(0.5)]),
        ("expert_gating_func", &[u(0), u(1)], &[u(2), u(3)]),
        ("expert_shared_count", &[u(0)], &[u(1)]),
        ("expert_shared_feed_forward_length", &[u(0)], &[u(256)]),
        ("expert_chunk_feed_forward_length", &[u(0)], &[u(256)]),
        ("expert_group_count", &[u(0), u(1)], &[u(2)]),
        ("expert_group_used_count", &[u(0), u(1)], &[u(2)]),
        ("attention.scale", &[f(1.0 / 128_f32.sqrt()), f(0.0)], &[f(1.0), f(0.0625)]),
        ("attention.sliding_window", &[u(0), u(4096), Value::U64(1 << 40)], &[u(1), u(4095)]),
        ("attention.causal", &[yes], &[no]),
        ("attention.max_alibi_bias", &[f(0.0)], &[f(8.0)]),
        ("attention.clamp_kqv", &[f(0.0)], &[f(8.0)]),
        ("attn_logit_softcapping", &[f(0.0)], &[f(50.0)]),
        ("final_logit_softcapping", &[f(0.0)], &[f(30.0)]),
        ("router_logit_softcapping", &[f(0.0)], &[f(30.0)]),
        ("logit_scale", &[f(0.0), f(1.0)], &[f(0.5)]),
        ("embedding_scale", &[f(0.0), f(1.0)], &[f(12.0)]),
        ("residual_scale", &[f(0.0), f(1.0)], &[f(0.2)]),
        ("leading_dense_block_count", &[u(0)], &[u(1)]),
        ("interleave_moe_layer_step", &[u(0), u(1)], &[u(2)]),
        ("moe_every_n_layers", &[u(0), u(1)], &[u(2)]),
        ("decoder_sparse_step", &[u(1)], &[u(2)]),
        ("nextn_predict_layers", &[u(0)], &[u(1)]),
        ("use_parallel_residual", &[no], &[yes]),
        ("rope.dimension_count", &[u(128)], &[u(64), u(0), u(256)]),
        ("rope.scaling.attn_factor", &[f(1.0)], &[f(0.9)]),
        ("rope.scaling.yarn_attn_factor", &[f(1.0)], &[f(0.9)]),
        ("rope.scaling.yarn_ext_factor", &[f(-1.0)], &[f(1.0), f(0.0)]),
        ("rope.scaling.yarn_log_multiplier", &[f(0.0)], &[f(0.1)]),
        ("rope.scaling.finetuned", &[yes, no], &[]),
        ("vocab_size", &[u(2048)], &[]),
        ("feed_forward_length", &[u(512), u(7)], &[]),
        ("attention.sliding_window_pattern", &[u(4)], &[]),
        ("general.type", &[Value::String("model")], &[Value::String("adapter")]),
        ("general.quantization_version", &[u(2)], &[u(1), u(3)]),
        // What nothing is known about.
        ("attention.new_trick", &[], &[u(0), u(1)]),
        ("", &[], &[u(0)]),
    ] {
        for &value in same {
            assert_eq!(config(&[(key, Some(value))]), usual, "{key} {value:?}");
        }
        for &value in other {
            refused(key, value);
        }
    }
    refused("expert_gating_func", Value::String("softmax"));
    // Another architecture's keys say nothing about this one.
    let file = common::changed::changed(&common::gguf(), &[("qwen2moe.expert_count", Some(u(3)))], |_| {});
    assert_eq!(Config::from_gguf(&file).unwrap(), usual);
}

#[test]
fn numbers_may_stand_for_every_layer() {
    let mut header = Header::new("arrays");
    header.set("equal", &[4_u32; 4]).unwrap();
    header.set("other", &[4_u32, 4, 2, 4]).unwrap();
    header.set("scales", &[1.0_f32; 4]).unwrap();
    header.set("heads", &[2_i32; 4]).unwrap();
    let arrays = Gguf::from_vec("arrays", header.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
    for (key, array) in
        [("attention.head_count", "equal"), ("attention.head_count_kv", "heads"), ("expert_weights_scale", "scales")]
    {
        assert_eq!(config(&[(key, arrays.metadata(array))]), config(&[]), "{key}");
    }
    for key in ["attention.head_count", "expert_used_count"] {
        let errors = Config::read(&with(&[(key, arrays.metadata("other"))])).unwrap_err();
        assert!(errors[0].to_string().contains(&full(key)) && errors[0].to_string().contains("differ"), "{errors:?}");
    }
}

#[test]
fn rope_is_scaled_as_the_file_says() {
    let kind = |name| ("rope.scaling.type", Some(Value::String(name)));
    let number = |key, value| (key, Some(Value::F32(value)));
    let factor = |value| number("rope.scaling.factor", value);
    let context = |positions| ("rope.scaling.original_context_length", Some(Value::U32(positions)));
    let scaling = |metadata: &[_]| config(metadata).rope_scaling;
    let yarn = Yarn { factor: 4.0, original_context: 4096, beta_fast: 32.0, beta_slow: 1.0, attn_factor: 1.0 };
    for (metadata, expected) in [
        (&[][..], RopeScaling::None),
        (&[kind("none")], RopeScaling::None),
        (&[kind("none"), factor(4.0)], RopeScaling::None),
        (&[kind("linear")], RopeScaling::None),
        (&[kind("linear"), factor(1.0)], RopeScaling::None),
        (&[kind("linear"), factor(0.0)], RopeScaling::None),
        (&[kind("linear"), factor(4.0)], RopeScaling::Linear { factor: 4.0 }),
        (&[factor(0.5)], RopeScaling::Linear { factor: 0.5 }),
        (&[number("rope.scale_linear", 2.0)], RopeScaling::Linear { factor: 2.0 }),
        (&[number("rope.scale_linear", 2.0), factor(3.0)], RopeScaling::Linear { factor: 3.0 }),
        (&[kind("linear"), factor(2.0), context(1024)], RopeScaling::Linear { factor: 2.0 }),
        (&[kind("yarn"), factor(4.0)], RopeScaling::Yarn(yarn)),
        (
            &[kind("yarn"), factor(4.0), context(1024), number("rope.scaling.yarn_ext_factor", 1.0)],
            RopeScaling::Yarn(Yarn { original_context: 1024, ..yarn }),
        ),
        (
            &[
                kind("yarn"),
                factor(2.0),
                number("rope.scaling.yarn_beta_fast", 16.0),
                number("rope.scaling.yarn_beta_slow", 2.0),
                number("rope.scaling.attn_factor", 0.5),
            ],
            RopeScaling::Yarn(Yarn { factor: 2.0, beta_fast: 16.0, beta_slow: 2.0, attn_factor: 0.5, ..yarn }),
        ),
    ] {
        assert_eq!(scaling(metadata), expected, "{metadata:?}");
    }
    for (metadata, parts) in [
        (&[kind("longrope")][..], &["rope.scaling.type", "longrope"][..]),
        (&[kind("yarn")], &["rope.scaling.factor"]),
        (&[kind("yarn"), factor(0.0)], &["rope.scaling.factor"]),
        (&[kind("yarn"), factor(0.5)], &["YaRN factor", "0.5"]),
        (&[kind("yarn"), factor(f32::INFINITY)], &["YaRN factor"]),
        (&[kind("yarn"), factor(2.0), context(0)], &["original context"]),
        (&[kind("yarn"), factor(2.0), context((1 << 24) + 1)], &["original context"]),
        (&[kind("yarn"), factor(2.0), number("rope.scaling.yarn_beta_fast", 0.0)], &["beta fast"]),
        (&[kind("yarn"), factor(2.0), number("rope.scaling.yarn_beta_slow", f32::NAN)], &["beta slow"]),
        (&[kind("yarn"), factor(2.0), number("rope.scaling.attn_factor", -1.0)], &["attention factor"]),
        (&[kind("yarn"), factor(2.0), number("rope.freq_base", 1.0)], &["YaRN", "RoPE base"]),
        (&[kind("yarn"), factor(2.0), number("rope.scaling.yarn_ext_factor", 0.5)], &["yarn_ext_factor"]),
        (&[kind("linear"), factor(2.0), number("rope.scaling.attn_factor", 2.0)], &["attn_factor", "without YaRN"]),
        (&[kind("linear"), factor(-1.0)], &["RoPE scaling factor"]),
        (&[kind("linear"), factor(f32::NAN)], &["RoPE scaling factor"]),
        (&[factor(f32::INFINITY)], &["RoPE scaling factor"]),
    ] {
        let errors = Config::read(&with(metadata)).unwrap_err();
        let text = errors[0].to_string();
        assert!(errors.len() == 1 && parts.iter().all(|part| text.contains(part)), "{metadata:?}: {errors:?}");
    }
    // Bounds that still pass.
    config(&[kind("yarn"), factor(1.0), context(1)]);
    config(&[kind("yarn"), factor(1.0), context(1 << 24)]);
    // Without a base it is the one that such files are made with.
    assert_eq!(config(&[("rope.freq_base", None)]).rope_base, 10_000.0);
}

fn logits(gguf: Arc<Gguf>, options: LoadOptions) -> Vec<u32> {
    let model = Model::load(gguf, Cpu::new(), options, &mut |_, _| {}).unwrap();
    let mut context = model.context(common::options().capacity(64)).unwrap();
    common::bits(&context.forward(&model, &[766, 306, 598, 284, 280], Logits::All).unwrap())
}

/// What is obeyed changes the logits, from the second position on, and what changes nothing does not.
#[test]
fn scaling_comes_to_the_logits() {
    let usual = logits(with(&[]), LoadOptions::default());
    let vocab = usual.len() / 5;
    let scaled = |kind, factor| {
        let metadata = [
            ("rope.scaling.type", Some(Value::String(kind))),
            ("rope.scaling.factor", Some(Value::F32(factor))),
            ("rope.scaling.original_context_length", Some(Value::U32(1024))),
        ];
        logits(with(&metadata), LoadOptions::default())
    };
    assert!(scaled("none", 4.0) == usual && scaled("linear", 1.0) == usual && scaled("yarn", 1.0) == usual);
    let (linear, yarn) = (scaled("linear", 4.0), scaled("yarn", 4.0));
    assert!(linear != usual && yarn != usual && linear != yarn);
    // The first token sees itself alone.
    assert_eq!((&linear[..vocab], &yarn[..vocab]), (&usual[..vocab], &usual[..vocab]));
}

/// Weights that are not renormalised are those of every backend.
#[test]
fn weights_may_not_be_renormalised() {
    let file = |norm| with(&[("expert_weights_norm", Some(Value::Bool(norm)))]);
    assert_eq!(Config::from_gguf(&file(false)).unwrap().weighting, Weighting::OfAll);
    let (usual, of_all) = (logits(with(&[]), LoadOptions::default()), logits(file(false), LoadOptions::default()));
    assert!(logits(file(true), LoadOptions::default()) == usual && of_all != usual);
    let Some(device) = common::emulated_device() else { return };
    let model = Model::load(file(false), Gpu::new(device), LoadOptions::default(), &mut |_, _| {}).unwrap();
    let mut context = model.context(common::options().capacity(64)).unwrap();
    let vocab = of_all.len() / 5;
    // Several tokens, and one alone.
    let tokens = [766, 306, 598, 284, 280];
    let mut found = common::bits(&context.forward(&model, &tokens[..4], Logits::All).unwrap());
    found.extend(common::bits(&context.forward(&model, &tokens[4..], Logits::All).unwrap()));
    let differ = found.iter().zip(&of_all).filter(|(found, expected)| found != expected).count();
    assert_eq!((found.len() / vocab, differ), (5, 0));
}

#[test]
fn options_take_the_place_of_the_file() {
    let overrides =
        |texts: &[&str]| LoadOptions::default().overrides(texts.iter().map(|text| text.parse().unwrap()).collect());
    let load = |texts: &[&str]| Model::load(common::gguf(), Cpu::new(), overrides(texts), &mut |_, _| {});
    let model = load(&["qwen3moe.expert_used_count=2", "qwen3moe.context_length=100"]).unwrap();
    assert_eq!((model.config().top_k, model.config().context_length), (2, 100));
    assert!(model.context(common::options().capacity(101)).is_err());
    // As a file that says so from the start.
    let file = with(&[("expert_used_count", Some(Value::U32(2)))]);
    let found = logits(common::gguf(), overrides(&["qwen3moe.expert_used_count=2"]));
    assert!(found == logits(file, LoadOptions::default()) && found != logits(with(&[]), LoadOptions::default()));
    for (text, part) in [
        ("qwen3moe.expert_used_count=17", "experts used"),
        ("qwen3moe.expert_used_count=two", "is no u32"),
        ("qwen3moe.expert_shared_count=1", "expert_shared_count"),
        ("qwen3moe.nonsense=1", "qwen3moe.nonsense"),
        ("split.count=2", "cannot be overridden"),
        ("general.architecture=llama", "\"llama\""),
    ] {
        let error = load(&[text]).map(drop).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let parsed: Override = "a=b=c".parse().unwrap();
    assert_eq!((parsed.key.as_str(), parsed.value.as_str()), ("a", "b=c"));
}

/// A file says at once everything that is wrong with it.
#[test]
fn every_obstacle_is_listed() {
    let errors = Config::read(&with(&[
        ("expert_count", None),
        ("block_count", Some(Value::String("4"))),
        ("expert_gating_func", Some(Value::U32(2))),
        ("unheard_of", Some(Value::U32(0))),
    ]))
    .unwrap_err();
    let texts: Vec<String> = errors.iter().map(Error::to_string).collect();
    for part in ["block_count", "expert_count", "expert_gating_func", "unheard_of"] {
        assert_eq!(texts.iter().filter(|text| text.contains(part)).count(), 1, "{part}: {texts:?}");
    }
    assert_eq!(texts.len(), 4);
    assert_eq!(Config::from_gguf(&with(&[("expert_count", None)])).unwrap_err().to_string(), texts[1]);
    // Values that break several rules.
    let odd = [("embedding_length", Some(Value::U32(257))), ("attention.head_count_kv", Some(Value::U32(3)))];
    assert_eq!(Config::read(&with(&odd)).unwrap_err().len(), 2);

    let bad = common::changed::changed(&common::gguf(), &[], |tensors| {
        tensors.retain(|tensor| tensor.name != "blk.1.attn_q.weight");
        common::changed::tensor(tensors, "blk.2.attn_q.weight").dims.swap(0, 1);
        common::changed::tensor(tensors, "blk.3.attn_q_norm.weight").name = "blk.3.attn_q_norm.bias".into();
    });
    let config = Config::from_gguf(&bad).unwrap();
    let texts: Vec<String> = Tensors::read(&bad, &config).unwrap_err().iter().map(Error::to_string).collect();
    let [missing, shape, norm, stray] = &texts[..] else { panic!("{texts:?}") };
    assert!(missing.contains("blk.1.attn_q.weight is missing") && shape.contains("blk.2.attn_q.weight: shape"));
    assert!(norm.contains("blk.3.attn_q_norm.weight is missing") && stray.contains("blk.3.attn_q_norm.bias"));
    // A file may say that it has millions of layers.
    let many = common::shaped::reshaped!(Config::from_gguf(&common::gguf()).unwrap(), layers: 1 << 24);
    let errors = Tensors::read(&common::gguf(), &many).unwrap_err();
    // All twelve tensors of 100 layers, the first of which is the fifth.
    assert_eq!(errors.len(), 1200);
    assert!(errors[1199].to_string().contains("blk.103.ffn_down_exps.weight"), "{}", errors[1199]);
}
