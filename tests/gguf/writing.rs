//! What the writer refuses, and that what it writes does not depend on how it is called.

use std::io::{self, Write};

use kquant_moe::Error;
use kquant_moe::blocks::TensorType;
use kquant_moe::gguf::{Gguf, GgufError, Header, Place, Rule};

use crate::TINY;

#[track_caller]
fn refused<T>(result: kquant_moe::Result<T>, expected: &str) {
    match result.map(|_| ()) {
        Err(ref error @ Error::Gguf { source: GgufError::Unwritable { .. }, .. }) => {
            assert_eq!(error.to_string(), format!("out.gguf: {expected}"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_header_refuses_what_the_reader_would() {
    let mut header = Header::new("out.gguf");
    header.set("a", "text").unwrap();
    refused(header.set("a", &1_u32), "cannot write metadata key \"a\": expected a unique key, found it twice");
    refused(header.set("", &1_u32), "cannot write metadata key \"\": expected a key, found an empty string");
    let long = "k".repeat(65_536);
    let cut = "k".repeat(100);
    refused(
        header.set(&long, &1_u32),
        &format!(
            "cannot write metadata key \"{cut}\"...: expected a key of at most 65535 bytes, found a length of 65536"
        ),
    );
    refused(
        header.set("deep", &vec![vec![vec![vec![vec![1_u8]]]]]),
        "cannot write metadata key \"deep\": expected arrays nested at most 4 deep, found a deeper one",
    );
    header.set("shallow", &vec![vec![vec![vec![1_u8]]]]).unwrap();
    refused(
        header.set("long", &"x".repeat((64 << 20) + 1)),
        "cannot write metadata key \"long\": expected a string of at most 67108864 bytes, found a length of 67108865",
    );
    refused(
        header.set("general.alignment", &48_u32),
        "cannot write metadata key \"general.alignment\": expected an alignment that is a power of two from 8 to 1048576, found 48",
    );
    refused(
        header.set("general.alignment", &64_u64),
        "cannot write metadata key \"general.alignment\": expected a value of type u32, found u64",
    );

    header.tensor("t", TensorType::F32, &[4]).unwrap();
    refused(
        header.tensor("t", TensorType::F32, &[4]),
        "cannot write tensor \"t\": expected a unique name, found it twice",
    );
    refused(
        header.tensor("", TensorType::F32, &[4]),
        "cannot write tensor \"\": expected a name, found an empty string",
    );
    let long = "n".repeat(65);
    refused(
        header.tensor(&long, TensorType::F32, &[4]),
        &format!("cannot write tensor \"{long}\": expected a name of at most 64 bytes, found a length of 65"),
    );
    refused(header.tensor("u", TensorType::F32, &[]), "cannot write tensor \"u\": expected 1 to 4 dimensions, found 0");
    refused(
        header.tensor("u", TensorType::F32, &[1; 5]),
        "cannot write tensor \"u\": expected 1 to 4 dimensions, found 5",
    );
    refused(
        header.tensor("u", TensorType::F32, &[4, 0]),
        "cannot write tensor \"u\": expected dimensions of at least 1, found 0 in dimension 1",
    );
    refused(
        header.tensor("u", TensorType::Q4K, &[128]),
        "cannot write tensor \"u\": expected rows of a multiple of 256 weights for type Q4_K, found 128",
    );
    refused(
        header.tensor("u", TensorType::F32, &[u64::MAX, 2]),
        "cannot write tensor \"u\": expected a size below 2^63 bytes, found dimensions [18446744073709551615, 2]",
    );
    header.tensor("large", TensorType::F32, &[1 << 59]).unwrap();
    refused(
        header.tensor("u", TensorType::F32, &[1 << 59]),
        "cannot write tensor \"u\": expected a size below 2^63 bytes, found dimensions [576460752303423488]",
    );
}

/// What is at a limit is written and read, and what is one beyond it is neither.
#[test]
fn limits_are_the_last_that_pass() {
    const STRING: usize = 64 << 20;
    let written = |set: &dyn Fn(&mut Header) -> kquant_moe::Result<()>| {
        let mut header = Header::new("out.gguf");
        set(&mut header)?;
        Gguf::from_vec("out.gguf", header.begin(Vec::new())?.finish()?)
    };
    let key = |len: usize| written(&|header| header.set(&"k".repeat(len), &1_u8));
    assert_eq!(key(65_535).unwrap().entries().next().unwrap().0.len(), 65_535);
    assert!(key(65_536).is_err() && key(0).is_err() && key(1).is_ok());
    let text = |len: usize| written(&|header| header.set("text", &"x".repeat(len)));
    assert_eq!(text(STRING).unwrap().string("text").unwrap().len(), STRING);
    assert!(text(STRING + 1).is_err() && text(0).is_ok());
    let alignment = |value: u32| written(&|header| header.set("general.alignment", &value));
    for value in [8, 16, 1 << 19, 1 << 20] {
        let gguf = alignment(value).unwrap();
        assert_eq!((gguf.alignment(), gguf.data_offset() % u64::from(value)), (value.into(), 0));
    }
    for value in [0, 1, 2, 4, 12, 24, (1 << 20) - 8, (1 << 20) + 8, 1 << 21] {
        assert!(alignment(value).is_err(), "{value}");
    }
    let name = |len: usize| {
        let mut header = Header::new("out.gguf");
        header.tensor(&"n".repeat(len), TensorType::F32, &[1])?;
        let mut writer = header.begin(Vec::new())?;
        writer.write(&"n".repeat(len), &[0; 4])?;
        Gguf::from_vec("out.gguf", writer.finish()?)
    };
    assert_eq!(name(64).unwrap().tensors().next().unwrap().name().len(), 64);
    assert!(name(65).is_err() && name(0).is_err());
    let rank = |dims: &[u64]| Header::new("out.gguf").tensor("t", TensorType::F32, dims);
    assert!(rank(&[1]).is_ok() && rank(&[1; 4]).is_ok() && rank(&[]).is_err() && rank(&[1; 5]).is_err());
    // All the data that a file may say it has.
    let mut header = Header::new("out.gguf");
    header.tensor("a", TensorType::F32, &[(1 << 60) - (1 << 19)]).unwrap();
    assert!(header.tensor("b", TensorType::F32, &[1 << 19]).is_err());
    header.tensor("c", TensorType::F32, &[1 << 18]).unwrap();
}

#[test]
fn data_must_come_in_order_and_in_full() {
    let mut header = Header::new("out.gguf");
    header.tensor("first", TensorType::F32, &[4]).unwrap();
    header.tensor("second", TensorType::F32, &[1]).unwrap();
    let mut writer = header.begin(Vec::new()).unwrap();
    assert_eq!(writer.expects(), Some(("first", 16)));
    refused(
        writer.write("second", &[0; 4]),
        "cannot write tensor \"second\": expected data for tensor \"first\", found data for this one",
    );
    refused(writer.write("first", &[0; 17]), "cannot write tensor \"first\": expected 16 bytes as declared, found 17");
    writer.write("first", &[1; 10]).unwrap();
    assert_eq!(writer.expects(), Some(("first", 6)));
    refused(writer.write("first", &[0; 7]), "cannot write tensor \"first\": expected 16 bytes as declared, found 17");
    writer.write("first", &[2; 6]).unwrap();
    writer.write("second", &[3; 4]).unwrap();
    assert_eq!(writer.expects(), None);
    refused(
        writer.write("second", &[0; 1]),
        "cannot write tensor \"second\": expected data for no more tensors, found data for this one",
    );
    let gguf = Gguf::from_vec("out.gguf", writer.finish().unwrap()).unwrap();
    assert_eq!(gguf.tensor("first").unwrap().data(), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
    assert_eq!(gguf.tensor("second").unwrap().data(), [3; 4]);

    let mut header = Header::new("out.gguf");
    header.tensor("only", TensorType::F32, &[4]).unwrap();
    let mut writer = header.begin(Vec::new()).unwrap();
    writer.write("only", &[0; 3]).unwrap();
    refused(writer.finish(), "cannot write tensor \"only\": expected 16 bytes as declared, found 3");
}

#[test]
fn too_many_entries_and_tensors_are_refused() {
    let mut header = Header::new("out.gguf");
    for n in 0..65_536 {
        header.set(&n.to_string(), &1_u8).unwrap();
        header.tensor(&n.to_string(), TensorType::F32, &[1]).unwrap();
    }
    for (result, what) in
        [(header.set("more", &1_u8), "metadata entries"), (header.tensor("more", TensorType::F32, &[1]), "tensors")]
    {
        let Err(Error::Gguf { source: GgufError::Unwritable { place, rule }, .. }) = result else {
            panic!("accepted");
        };
        assert!(matches!(place, Place::Key(_) | Place::Tensor(_)));
        assert_eq!(rule, Rule::Count { what, most: 65_536, found: 65_537 });
    }
    // What was accepted is readable: the limits of both sides are the same.
    let mut writer = header.begin(Vec::new()).unwrap();
    for n in 0..65_536 {
        writer.write(&n.to_string(), &[0; 4]).unwrap();
    }
    let gguf = Gguf::from_vec("out.gguf", writer.finish().unwrap()).unwrap();
    assert_eq!((gguf.entries().count(), gguf.tensors().len()), (65_536, 65_536));
}

#[test]
fn the_model_can_be_written_again() {
    let tiny = Gguf::from_static("tiny", TINY).unwrap();
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("copy.gguf");
    let mut header = Header::new(&path);
    for (key, value) in tiny.entries() {
        header.set_value(key, value).unwrap();
    }
    for tensor in tiny.tensors() {
        header.tensor(tensor.name(), tensor.ggml_type(), tensor.dims()).unwrap();
    }
    assert_eq!(header.file_len(), TINY.len() as u64);
    let mut writer = header.create().unwrap();
    for tensor in tiny.tensors() {
        for piece in tensor.data().chunks(100_000) {
            writer.write(tensor.name(), piece).unwrap();
        }
    }
    writer.finish().unwrap();
    assert!(std::fs::read(&path).unwrap() == TINY);
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let header = || {
        let mut header = Header::new("out.gguf");
        header.tensor("t", TensorType::F32, &[100]).unwrap();
        header
    };
    let is_full = |error: Error| matches!(&error, Error::Io { path, source } if path.as_os_str() == "out.gguf" && source.kind() == io::ErrorKind::StorageFull);
    assert!(header().begin(Full(10)).err().is_some_and(is_full));
    let mut writer = header().begin(Full(300)).unwrap();
    assert!(writer.write("t", &[0; 400]).err().is_some_and(is_full));
    let missing = Header::new("/nonexistent/out.gguf").create().err().unwrap();
    assert!(missing.to_string().starts_with("/nonexistent/out.gguf: "));
}
