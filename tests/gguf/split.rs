//! Files in parts: found by the path of any of them, checked, and read as one.

use std::fs;
use std::path::{Path, PathBuf};

use kquant_moe::Error;
use kquant_moe::blocks::TensorType;
use kquant_moe::gguf::{Gguf, GgufError, Header, SplitFault, ToValue, part_paths};
use tempfile::TempDir;

/// What a part says of itself.
#[derive(Clone)]
struct Part {
    number: u16,
    count: Option<u16>,
    tensors: i32,
    names: Vec<String>,
    /// More metadata, as texts.
    metadata: Vec<(String, String)>,
}

impl Part {
    /// The bytes of the file. The tensors are rows of 8 floats, all of them the length of the name.
    fn bytes(&self) -> Vec<u8> {
        let mut header = Header::new("part");
        for (key, value) in &self.metadata {
            header.set(key, value).unwrap();
        }
        header.set("split.no", &self.number).unwrap();
        if let Some(count) = self.count {
            header.set("split.count", &count).unwrap();
        }
        header.set("split.tensors.count", &self.tensors).unwrap();
        for name in &self.names {
            header.tensor(name, TensorType::F32, &[8]).unwrap();
        }
        let mut writer = header.begin(Vec::new()).unwrap();
        for name in &self.names {
            writer.write(name, &(name.len() as f32).to_le_bytes().repeat(8)).unwrap();
        }
        writer.finish().unwrap()
    }
}

/// Three parts with 2, 0 and 3 tensors. The first one has the metadata, and the last one some of it, too.
fn parts() -> [Part; 3] {
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let part = |number, names: &[&str], metadata| Part {
        number,
        count: Some(3),
        tensors: 5,
        names: names.iter().map(|&name| name.to_owned()).collect(),
        metadata,
    };
    [
        part(0, &["a", "bb"], vec![text("general.architecture", "x"), text("x.name", "whole")]),
        part(1, &[], vec![]),
        part(2, &["ccc", "dddd", "eeeee"], vec![text("general.architecture", "y"), text("x.name", "whole")]),
    ]
}

fn write(dir: &Path, parts: &[Part]) -> Vec<PathBuf> {
    let path = |number: usize| dir.join(format!("model-{:05}-of-{:05}.gguf", number + 1, parts.len()));
    let paths: Vec<PathBuf> = (0..parts.len()).map(path).collect();
    for (path, part) in paths.iter().zip(parts) {
        fs::write(path, part.bytes()).unwrap();
    }
    paths
}

fn fault(result: Result<Gguf, Error>) -> (u64, u64, SplitFault, PathBuf) {
    match result {
        Err(Error::Gguf { path, source: GgufError::Split { part, count, fault } }) => (part, count, fault, path),
        Err(error) => panic!("{error}"),
        Ok(gguf) => panic!("{gguf:?}"),
    }
}

#[test]
fn any_part_opens_all() {
    let dir = TempDir::new().unwrap();
    let paths = write(dir.path(), &parts());
    let bytes: u64 = paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let mut all = Vec::new();
    for path in &paths {
        // SAFETY: nobody changes the files of the test.
        all.extend([Gguf::read(path).unwrap(), unsafe { Gguf::map(path) }.unwrap()]);
    }
    all.push(Gguf::from_parts(paths.iter().map(|path| (path, fs::read(path).unwrap()))).unwrap());
    for gguf in all {
        assert_eq!((gguf.path(), gguf.file_len()), (paths[0].as_path(), bytes));
        assert!(gguf.paths().eq(paths.iter().map(PathBuf::as_path)));
        let names: Vec<&str> = gguf.tensors().map(|tensor| tensor.name()).collect();
        assert_eq!(names, ["a", "bb", "ccc", "dddd", "eeeee"]);
        for name in names {
            let tensor = gguf.require_tensor(name).unwrap();
            assert_eq!(tensor.data(), (name.len() as f32).to_le_bytes().repeat(8));
        }
        assert!(gguf.tensor("ffffff").is_none());
        // Of the metadata those of the first part.
        assert_eq!((gguf.string("general.architecture").unwrap(), gguf.string("x.name").unwrap()), ("x", "whole"));
        assert_eq!((gguf.get("split.no").unwrap(), gguf.entries().count()), (Some(0), 5));
    }
}

#[test]
fn a_part_that_is_missing_is_named() {
    for (missing, given) in [(0, 1), (1, 0), (1, 2), (2, 0)] {
        let dir = TempDir::new().unwrap();
        let paths = write(dir.path(), &parts());
        fs::remove_file(&paths[missing]).unwrap();
        let (part, count, fault, path) = fault(Gguf::read(&paths[given]));
        assert_eq!((part, count, path), (missing as u64 + 1, 3, paths[given].clone()));
        assert_eq!(fault, SplitFault::Missing { path: paths[missing].clone() });
        // SAFETY: nobody changes the files of the test.
        let text = unsafe { Gguf::map(&paths[given]) }.unwrap_err().to_string();
        let name = paths[missing].display().to_string();
        assert!(text.contains(&format!("part {} of 3 is missing", missing + 1)) && text.contains(&name), "{text}");
    }
    // What is there and no file, or no GGUF file, is another error.
    let dir = TempDir::new().unwrap();
    let paths = write(dir.path(), &parts());
    fs::write(&paths[1], "no part").unwrap();
    let error = Gguf::read(&paths[0]).unwrap_err();
    assert!(
        matches!(&error, Error::Gguf { path, source: GgufError::Malformed { .. } } if *path == paths[1]),
        "{error}"
    );
}

/// Each fault, in files and in memory.
#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let name = |text: &str| text.to_owned();
    type Change<'a> = &'a dyn Fn(&mut [Part; 3]);
    let cases: [(Change, u64, SplitFault); 12] = [
        (&|parts| parts[1].number = 2, 2, SplitFault::Number { found: 3 }),
        (&|parts| parts[2].number = 0, 3, SplitFault::Number { found: 1 }),
        (&|parts| parts[0].number = 1, 1, SplitFault::Number { found: 2 }),
        (&|parts| parts[1].count = Some(4), 2, SplitFault::Count { found: Some(4) }),
        (&|parts| parts[2].count = None, 3, SplitFault::Count { found: None }),
        (&|parts| parts[2].count = Some(1), 3, SplitFault::Count { found: None }),
        (&|parts| parts[0].tensors = 6, 1, SplitFault::Tensors { expected: 6, found: 5 }),
        (&|parts| parts[2].tensors = 4, 3, SplitFault::Tensors { expected: 4, found: 5 }),
        (&|parts| parts[1].names.push(name("a")), 2, SplitFault::Twice { tensor: "a".into() }),
        (&|parts| parts[2].names.push(name("bb")), 3, SplitFault::Twice { tensor: "bb".into() }),
        (&|parts| parts[2].metadata[1].1 = name("part"), 3, SplitFault::Key { key: "x.name".into() }),
        (&|parts| parts[1].metadata.push((name("x.more"), name("more"))), 2, SplitFault::Key { key: "x.more".into() }),
    ];
    for (change, part, expected) in cases {
        let dir = TempDir::new().unwrap();
        let mut parts = parts();
        change(&mut parts);
        let paths = write(dir.path(), &parts);
        let bytes = paths.iter().map(|path| (path, fs::read(path).unwrap()));
        for result in [Gguf::from_parts(bytes)].into_iter().chain(
            // The one that says something wrong about its place may not even be taken for a part.
            (0..3).filter(|&given| parts[given].count == Some(3)).map(|given| Gguf::read(&paths[given])),
        ) {
            let (found, count, fault, path) = fault(result);
            assert_eq!((found, count, &fault, &path), (part, 3, &expected, &paths[part as usize - 1]));
        }
    }
}

#[test]
fn a_part_needs_the_others() {
    let dir = TempDir::new().unwrap();
    let paths = write(dir.path(), &parts());
    let first = fs::read(&paths[0]).unwrap();
    assert_eq!(fault(Gguf::from_vec("part", first.clone())).2, SplitFault::Alone);
    assert!(matches!(Gguf::from_parts::<&Path>([]), Err(Error::Invalid(_))));
    let two = paths[..2].iter().map(|path| (path, fs::read(path).unwrap()));
    assert_eq!(fault(Gguf::from_parts(two)).2, SplitFault::Count { found: Some(3) });
    // By other names the others are not found.
    for other in
        ["model.gguf", "model-1-of-3.gguf", "model-00001-of-00003", "-of-00003.gguf", "model-0000x-of-00003.gguf"]
    {
        let path = dir.path().join(other);
        fs::write(&path, &first).unwrap();
        let (part, count, fault, found) = fault(Gguf::read(&path));
        assert_eq!((part, count, fault, found), (1, 3, SplitFault::Name, path));
    }
    let path = dir.path().join("other-00002-of-00003.gguf");
    fs::write(&path, &first).unwrap();
    assert_eq!(fault(Gguf::read(&path)).2, SplitFault::Number { found: 1 });
    let path = dir.path().join("other-00001-of-00004.gguf");
    fs::write(&path, &first).unwrap();
    assert_eq!(fault(Gguf::read(&path)).2, SplitFault::Count { found: Some(3) });
    let path = dir.path().join("other-00000-of-00003.gguf");
    fs::write(&path, &first).unwrap();
    assert_eq!(fault(Gguf::read(&path)).2, SplitFault::Number { found: 1 });
}

#[test]
fn files_of_one_part_are_whole() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("any.gguf");
    for count in [None, Some(0), Some(1)] {
        let [mut part, ..] = parts();
        part.count = count;
        fs::write(&path, part.bytes()).unwrap();
        assert_eq!(Gguf::read(&path).unwrap().tensors().len(), 2, "{count:?}");
        assert_eq!(Gguf::from_vec("any", part.bytes()).unwrap().tensors().len(), 2, "{count:?}");
    }
    // A count that is no number, and a part that does not say which it is.
    let with = |set: &dyn Fn(&mut Header)| {
        let mut header = Header::new("any");
        set(&mut header);
        Gguf::from_vec("any", header.begin(Vec::new()).unwrap().finish().unwrap())
    };
    let set = |key, value: &dyn Fn(&mut Header, &str)| with(&|header| value(header, key)).unwrap_err().to_string();
    assert!(set("split.count", &|header, key| header.set(key, "3").unwrap()).contains("split.count"));
    assert!(set("split.count", &|header, key| header.set(key, &3_u16).unwrap()).contains("split.no"));
    assert!(set("split.count", &|header, key| header.set(key, &-3_i32).unwrap()).contains("does not fit"));
    // Any width of integer.
    fn part<T: ToValue>(no: T, count: T, tensors: T) -> Vec<u8> {
        let mut header = Header::new("any");
        for (key, value) in [("split.no", no), ("split.count", count), ("split.tensors.count", tensors)] {
            header.set(key, &value).unwrap();
        }
        header.begin(Vec::new()).unwrap().finish().unwrap()
    }
    Gguf::from_parts([("a", part(0_u16, 2, 0)), ("b", part(1_u64, 2, 0))]).unwrap();
    Gguf::from_parts([("a", part(0_i32, 2, 0)), ("b", part(1_u8, 2, 0))]).unwrap();
}

#[test]
fn names_say_which_parts_there_are() {
    let paths = part_paths(Path::new("dir/a-of-b-00002-of-00003.gguf")).unwrap();
    let expected = [1, 2, 3].map(|number| PathBuf::from(format!("dir/a-of-b-{number:05}-of-00003.gguf")));
    assert_eq!(paths, expected);
    for other in [
        "a.gguf",
        "a-00001-of-00003.bin",
        "a-001-of-003.gguf",
        "a-001-of-00003.gguf",
        "a-00001-of-003.gguf",
        "00001-of-00003.gguf",
        "a-00001-of-0000b.gguf",
        "",
    ] {
        assert_eq!(part_paths(Path::new(other)), None, "{other}");
    }
}
