//! Reading and writing GGUF files: the committed model, random files, and every broken file of the corpus.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use kquant_moe::Error;
use kquant_moe::blocks::TensorType;
use kquant_moe::gguf::{Gguf, GgufError, Value, ValueType};

#[path = "gguf/differential.rs"]
mod differential;
#[path = "gguf/malformed.rs"]
mod malformed;
#[path = "gguf/model.rs"]
mod model;
#[path = "gguf/properties.rs"]
mod properties;
#[path = "gguf/split.rs"]
mod split;
#[path = "gguf/writing.rs"]
mod writing;

const TINY_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cli/model/tiny-qwen3moe-q4_k_m.gguf");
static TINY: &[u8] = include_bytes!("../cli/model/tiny-qwen3moe-q4_k_m.gguf");

#[test]
fn the_model_opens_in_every_way() {
    // SAFETY: nobody writes to the committed model.
    let mapped = unsafe { Gguf::map(TINY_PATH) }.unwrap();
    let read = Gguf::read(TINY_PATH).unwrap();
    let embedded = Gguf::from_static("embedded", TINY).unwrap();
    assert_eq!(mapped.path().as_os_str(), TINY_PATH);
    assert_eq!(embedded.path().as_os_str(), "embedded");
    for gguf in [mapped, read, embedded] {
        assert_eq!(gguf.version(), 3);
        assert_eq!(gguf.alignment(), 32);
        assert_eq!(gguf.file_len(), TINY.len() as u64);
        let count = |kind| gguf.tensors().filter(|tensor| tensor.tensor_type().unwrap() == kind).count();
        assert_eq!(count(TensorType::Q4K), 25);
        assert_eq!(count(TensorType::Q6K), 5);
        assert_eq!(count(TensorType::F32), 21);
        assert_eq!(gguf.tensors().len(), 51);
        for tensor in gguf.tensors() {
            let start = tensor.offset() as usize;
            assert_eq!(tensor.data(), &TINY[start..start + tensor.data().len()]);
        }

        let embedding = gguf.require_tensor("token_embd.weight").unwrap();
        assert_eq!(embedding.dims(), [256, 2048]);
        assert_eq!(embedding.shape(), [2048, 256]);
        let experts = gguf.require_tensor("blk.0.ffn_gate_exps.weight").unwrap();
        assert_eq!(experts.shape(), [16, 256, 256]);
        assert_eq!(experts.elements(), 1 << 20);
        assert_eq!(experts.data().len(), (1 << 20) / 256 * 144);
    }
}

#[test]
fn the_model_describes_itself() {
    let gguf = Gguf::from_static("tiny.gguf", TINY).unwrap();
    assert_eq!(gguf.string("general.architecture").unwrap(), "qwen3moe");
    assert_eq!(gguf.u32("qwen3moe.block_count").unwrap(), 4);
    assert_eq!(gguf.u64("qwen3moe.block_count").unwrap(), 4);
    assert_eq!(gguf.f32("qwen3moe.rope.freq_base").unwrap(), 1e6);
    assert!(!gguf.bool("tokenizer.ggml.add_bos_token").unwrap());
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens.len(), 2048);
    assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), 2048);
    let kinds = gguf.i32s("tokenizer.ggml.token_type").unwrap();
    assert_eq!(kinds.len(), 2048);
    let Some(Value::Array(array)) = gguf.metadata("tokenizer.ggml.tokens") else {
        panic!("not an array");
    };
    assert_eq!(array.element_type(), ValueType::String);
    assert!(array.iter().eq(tokens.into_iter().map(Value::String)));
}

#[test]
fn wrong_questions_get_answers_that_name_the_key() {
    let gguf = Gguf::from_static("tiny.gguf", TINY).unwrap();
    let text = |error: Error| error.to_string();
    assert_eq!(
        gguf.u32("qwen3moe.absent").map_err(text).unwrap_err(),
        "tiny.gguf: metadata key \"qwen3moe.absent\" is missing, expected u32"
    );
    assert_eq!(
        gguf.u32("general.architecture").map_err(text).unwrap_err(),
        "tiny.gguf: metadata key \"general.architecture\": expected u32, found string"
    );
    assert_eq!(
        gguf.string("tokenizer.ggml.tokens").map_err(text).unwrap_err(),
        "tiny.gguf: metadata key \"tokenizer.ggml.tokens\": expected string, found array of string"
    );
    assert_eq!(
        gguf.i32s("tokenizer.ggml.tokens").map_err(text).unwrap_err(),
        "tiny.gguf: metadata key \"tokenizer.ggml.tokens\": expected array of i32, found array of string"
    );
    assert_eq!(
        gguf.f32("qwen3moe.block_count").map_err(text).unwrap_err(),
        "tiny.gguf: metadata key \"qwen3moe.block_count\": expected f32, found u32"
    );
    assert!(gguf.metadata("qwen3moe.absent").is_none());
    assert_eq!(gguf.get::<u32>("qwen3moe.absent").unwrap(), None);
    assert!(gguf.get::<u32>("general.architecture").is_err());
    assert!(gguf.tensor("absent").is_none());
    assert_eq!(gguf.require_tensor("absent").map_err(text).unwrap_err(), "tensor absent is missing");

    let mut header = kquant_moe::gguf::Header::new("x");
    header.set("big", &(u64::from(u32::MAX) + 1)).unwrap();
    let bytes = header.begin(Vec::new()).unwrap().finish().unwrap();
    let gguf = Gguf::from_vec("x", bytes).unwrap();
    assert_eq!(
        gguf.u32("big").map_err(text).unwrap_err(),
        "x: metadata key \"big\": expected u32, found 4294967296, which does not fit"
    );
    assert_eq!(gguf.u64("big").unwrap(), 4_294_967_296);
}

#[test]
fn version_2_reads_like_version_3() {
    let mut bytes = malformed::valid();
    bytes[4] = 2;
    let gguf = Gguf::from_vec("x", bytes).unwrap();
    assert_eq!(gguf.version(), 2);
    assert_eq!(gguf.u32("general.file_type").unwrap(), 15);
}

#[test]
fn a_file_without_tensors_needs_no_padding() {
    let bytes = [&b"GGUF\x03\0\0\0"[..], &[0; 16]].concat();
    let gguf = Gguf::from_vec("x", bytes).unwrap();
    assert_eq!((gguf.entries().count(), gguf.tensors().len()), (0, 0));
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.gguf");
    fs::write(&empty, b"").unwrap();
    let absent = directory.path().join("absent.gguf");
    for mapped in [true, false] {
        let open = |path: &Path| {
            if mapped {
                // SAFETY: nobody writes to these files while they are open.
                unsafe { Gguf::map(path) }
            } else {
                Gguf::read(path)
            }
        };
        for path in [directory.path(), &absent] {
            let error = open(path).unwrap_err();
            assert!(matches!(&error, Error::Io { path: named, .. } if named == path));
        }
        let error = open(&empty).unwrap_err();
        assert!(matches!(&error, Error::Gguf { path: named, .. } if *named == empty));
        #[cfg(unix)]
        assert!(matches!(
            open("/dev/zero".as_ref()),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::InvalidInput
        ));
    }
}

#[test]
fn an_open_file_can_be_shared_among_threads() {
    fn shareable<T: Send + Sync>(_: &T) {}
    let gguf = Gguf::from_static("tiny", TINY).unwrap();
    shareable(&gguf);
    shareable(&gguf.tensors().next());
}

#[test]
fn every_broken_file_is_refused_with_its_reason() {
    let valid = Gguf::from_vec("valid.gguf", malformed::valid()).unwrap();
    assert_eq!(valid.tensors().len(), 2);

    let corpus = malformed::corpus();
    assert!(corpus.len() >= 100, "{}", corpus.len());
    let mut names = HashSet::new();
    let mut wrong = Vec::new();
    for case in corpus {
        assert!(names.insert(case.name), "{} is there twice", case.name);
        let length = case.bytes.len() as u64;
        let error = match Gguf::from_vec("x.gguf", case.bytes) {
            Ok(_) => {
                wrong.push(format!("{}: was accepted", case.name));
                continue;
            }
            Err(error) => error,
        };
        let message = error.to_string();
        let as_expected = match error {
            Error::Gguf { source: GgufError::Malformed { place, offset, rule }, .. } => {
                message == format!("x.gguf: {place} at byte {offset}: {rule}")
                    && place.to_string() == case.place
                    && rule.to_string().contains(case.rule)
                    && message.contains("expected ")
                    && message.contains(" found ")
                    && !message.contains(char::is_control)
                    && message.len() < 400
                    && offset <= length.next_multiple_of(32)
            }
            _ => false,
        };
        if !as_expected {
            wrong.push(format!("{}: {message}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What some converters write once for each layer.
#[test]
fn arrays_of_one_value_are_that_value() {
    let mut header = kquant_moe::gguf::Header::new("arrays");
    header.set("equal", &[7_u32, 7, 7]).unwrap();
    header.set("one", &[7_u32]).unwrap();
    header.set("first", &[8_u32, 7, 7]).unwrap();
    header.set("last", &[7_u32, 7, 8]).unwrap();
    header.set("none", &Vec::<u32>::new()).unwrap();
    header.set("negative", &[-7_i32, -7]).unwrap();
    header.set("texts", &["7", "7"]).unwrap();
    header.set("plain", &7_u32).unwrap();
    let gguf = Gguf::from_vec("arrays", header.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
    for key in ["equal", "one", "plain"] {
        assert_eq!(gguf.get_one::<u32>(key).unwrap(), Some(7), "{key}");
    }
    assert_eq!(gguf.get_one::<u32>("missing").unwrap(), None);
    assert_eq!(gguf.get_one::<&str>("texts").unwrap(), Some("7"));
    let source = |key: &str| match gguf.get_one::<u32>(key) {
        Err(Error::Gguf { source, .. }) => source,
        other => panic!("{key}: {other:?}"),
    };
    for key in ["first", "last", "none"] {
        assert_eq!(source(key), GgufError::Varies { key: key.into(), expected: "u32" });
    }
    for (key, found) in [("negative", "array of i32"), ("texts", "array of string")] {
        assert_eq!(source(key), GgufError::WrongType { key: key.into(), expected: "u32", found: found.into() });
    }
}
