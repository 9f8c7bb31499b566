//! Files that break one rule each, and what the reader must say about them.

/// A broken file.
pub struct Case {
    /// Unique, and fit for a file name.
    pub name: &'static str,
    /// The file's contents.
    pub bytes: Vec<u8>,
    /// How the message calls the part of the file, before the offset.
    pub place: &'static str,
    /// What the message says about it, after the offset: all of it or a part.
    pub rule: &'static str,
}

/// A file in parts that can be broken one by one.
#[derive(Clone)]
struct Parts {
    magic: [u8; 4],
    version: [u8; 4],
    tensor_count: Option<u64>,
    entry_count: Option<u64>,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: usize,
    data: Vec<u8>,
}

impl Parts {
    fn bytes(&self) -> Vec<u8> {
        let mut out = self.head();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }

    /// Everything before the padding.
    fn head(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.magic);
        out.extend(self.version);
        out.extend(long(self.tensor_count.unwrap_or(self.tensors.len() as u64)));
        out.extend(long(self.entry_count.unwrap_or(self.entries.len() as u64)));
        out.extend(self.entries.concat());
        out.extend(self.tensors.concat());
        out
    }
}

fn int(v: u32) -> Vec<u8> {
    v.to_le_bytes().to_vec()
}

fn long(v: u64) -> Vec<u8> {
    v.to_le_bytes().to_vec()
}

fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    [long(text.as_ref().len() as u64), text.as_ref().to_vec()].concat()
}

fn entry(key: impl AsRef<[u8]>, kind: u32, value: &[u8]) -> Vec<u8> {
    [string(key), int(kind), value.to_vec()].concat()
}

fn tensor(name: impl AsRef<[u8]>, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|&dim| long(dim)).collect();
    [string(name), int(dims.len() as u32), dims_bytes, int(kind), long(offset)].concat()
}

const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Two entries and two tensors, of 32 and 144 bytes.
fn parts() -> Parts {
    Parts {
        magic: *b"GGUF",
        version: 3_u32.to_le_bytes(),
        tensor_count: None,
        entry_count: None,
        entries: vec![
            entry("general.architecture", STRING, &string("qwen3moe")),
            entry("general.file_type", 4, &int(15)),
        ],
        tensors: vec![tensor("output_norm.weight", &[8], 0, 0), tensor("blk.0.attn_q.weight", &[256, 1], 12, 32)],
        alignment: 32,
        data: (0..32 + 160).map(|i| i as u8).collect(),
    }
}

/// The file that the broken ones are made from.
pub fn valid() -> Vec<u8> {
    parts().bytes()
}

fn with(change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    let mut parts = parts();
    change(&mut parts);
    parts.bytes()
}

/// A valid file whose second entry has this type and value.
fn value(kind: u32, value: &[u8]) -> Vec<u8> {
    with(|p| p.entries[1] = entry("general.file_type", kind, value))
}

/// A file that ends with this type and this part of a value.
fn cut_value(kind: u32, value: &[u8]) -> Vec<u8> {
    let mut parts = parts();
    parts.entries[1] = entry("general.file_type", kind, value);
    parts.tensors.clear();
    parts.head()
}

/// A valid file whose only entry is `general.alignment`.
fn aligned(kind: u32, value: &[u8]) -> Vec<u8> {
    with(|p| p.entries = vec![entry("general.alignment", kind, value)])
}

/// A valid file whose second tensor is this.
fn second(second: Vec<u8>) -> Vec<u8> {
    with(|p| p.tensors[1] = second)
}

/// The same, with the file ending `keep` bytes into that tensor's description. The name has 19 bytes.
fn cut_tensor(keep: usize) -> Vec<u8> {
    let mut parts = parts();
    // The first tensor is dropped and the second one has four dimensions, so that the count passes.
    parts.tensors = vec![tensor("blk.0.attn_q.weight", &[256, 1, 1, 1], 12, 0)];
    parts.tensors[0].truncate(keep);
    parts.tensor_count = Some(1);
    parts.head()
}

/// The valid file with dimensions and type of the second tensor replaced.
fn shaped(dims: &[u64], kind: u32) -> Vec<u8> {
    second(tensor("blk.0.attn_q.weight", dims, kind, 32))
}

fn placed(offset: u64) -> Vec<u8> {
    second(tensor("blk.0.attn_q.weight", &[256, 1], 12, offset))
}

fn nested(levels: usize) -> Vec<u8> {
    let mut out = [int(ARRAY), long(1)].concat().repeat(levels - 1);
    out.extend([int(0), long(1)].concat());
    out.push(7);
    out
}

/// Every broken file.
#[rustfmt::skip]
pub fn corpus() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name, bytes, place, rule| {
        cases.push(Case {
            name,
            bytes,
            place,
            rule,
        })
    };

    let header = "header";
    let valid = valid();
    let cut = |length: usize| valid[..length].to_vec();
    add("empty", cut(0), header, "expected 4 bytes of the magic, found the end of the file after 0");
    add("magic-cut", cut(3), header, "expected 4 bytes of the magic, found the end of the file after 3");
    add("magic-other", with(|p| p.magic = *b"GGML"), header, "not a GGUF file: expected the bytes \"GGUF\", found \"GGML\"");
    add("magic-lower-case", with(|p| p.magic = *b"gguf"), header, "found \"gguf\"");
    add("magic-zip", with(|p| p.magic = *b"PK\x03\x04"), header, "found \"PK\\x03\\x04\"");
    add("magic-newline", with(|p| p.magic = *b"\n\"\n\r"), header, "found \"\\n\\\"\\n\\r\"");
    add("version-cut", cut(7), header, "expected 4 bytes of the version, found the end of the file after 3");
    for (name, version, rule) in [
        ("version-0", 0, "expected version 2 or 3 of the format, found 0"),
        ("version-1", 1, "expected version 2 or 3 of the format, found 1"),
        ("version-4", 4, "expected version 2 or 3 of the format, found 4"),
        ("version-max", u32::MAX, "expected version 2 or 3 of the format, found 4294967295"),
        ("big-endian-3", 3 << 24, "expected a little-endian file, found a big-endian one (version 3, byte-swapped)"),
        ("big-endian-2", 2 << 24, "expected a little-endian file, found a big-endian one (version 2, byte-swapped)"),
    ] {
        add(name, with(|p| p.version = version.to_le_bytes()), header, rule);
    }
    add("tensor-count-cut", cut(15), header, "expected 8 bytes of the tensor count, found the end of the file after 7");
    add("metadata-count-cut", cut(20), header, "expected 8 bytes of the metadata count, found the end of the file after 4");
    add("header-only", cut(24), header, "expected at most 0 tensors in a file of this size, found a count of 2");
    add("tensor-count-large", with(|p| p.tensor_count = Some(20)), header, "tensors in a file of this size, found a count of 20");
    add("tensor-count-max", with(|p| p.tensor_count = Some(u64::MAX)), header, "tensors in a file of this size, found a count of 18446744073709551615");
    add("tensor-count-above-limit", with(|p| {
        p.tensor_count = Some(65_537);
        p.data = vec![0; 65_537 * 33];
    }), header, "expected at most 65536 tensors in a file of this size, found a count of 65537");
    add("metadata-count-large", with(|p| p.entry_count = Some(50)), header, "metadata entries in a file of this size, found a count of 50");
    add("metadata-count-max", with(|p| p.entry_count = Some(u64::MAX)), header, "metadata entries in a file of this size, found a count of 18446744073709551615");
    add("metadata-count-above-limit", with(|p| {
        p.entry_count = Some(65_537);
        p.data = vec![0; 65_537 * 14];
    }), header, "expected at most 65536 metadata entries in a file of this size, found a count of 65537");
    add("counts-large-together", with(|p| {
        p.tensor_count = Some(10);
        p.entry_count = Some(20);
    }), header, "metadata entries in a file of this size, found a count of 20");

    let first = "metadata entry 0";
    add("metadata-count-one-more", with(|p| {
        p.entry_count = Some(3);
        p.tensors.clear();
        p.tensor_count = Some(0);
        p.data.clear();
        p.alignment = 1 << 10;
    }), "metadata entry 2", "expected a key, found an empty string");
    add("key-length-above-limit", with(|p| p.entries[0] = entry("k".repeat(65_536), 0, &[1])), first, "expected a key of at most 65535 bytes, found a length of 65536");
    add("key-length-max", with(|p| p.entries[0] = [long(u64::MAX), vec![b'k'; 8]].concat()), first, "expected a key of at most 65535 bytes, found a length of 18446744073709551615");
    add("key-length-cut", {
        let mut parts = parts();
        parts.entries = vec![entry("k", 8, &string("")), vec![0; 7]];
        parts.tensors.clear();
        parts.head()
    }, "metadata entry 1", "expected 8 bytes of a length, found the end of the file after 7");
    add("key-past-end", with(|p| p.entries[0] = long(5_000)), first, "expected 5000 bytes of key, found the end of the file after ");
    add("key-empty", with(|p| p.entries[0] = entry("", 0, &[1])), first, "expected a key, found an empty string");
    add("key-not-utf8", with(|p| p.entries[0] = entry(b"gen\xff", 0, &[1])), first, "expected a key in UTF-8, found an invalid sequence 3 bytes into it");
    add("key-twice", with(|p| p.entries[1] = p.entries[0].clone()), "metadata key \"general.architecture\"", "expected a unique key, found it twice");
    add("key-with-newline-twice", with(|p| p.entries = vec![entry("a\nb", 0, &[1]); 2]), "metadata key \"a\\nb\"", "expected a unique key, found it twice");

    let second_key = "metadata key \"general.file_type\"";
    add("value-type-cut", {
        let mut bytes = cut_value(0, &[]);
        bytes.pop();
        bytes
    }, second_key, "expected 4 bytes of a value type, found the end of the file after 3");
    add("value-type-13", value(13, &[0; 4]), second_key, "expected a value type from 0 to 12, found 13");
    add("value-type-max", value(u32::MAX, &[0; 4]), second_key, "expected a value type from 0 to 12, found 4294967295");
    for (name, kind, present, rule) in [
        ("u8-cut", 0, 0, "expected 1 byte of a value, found the end of the file after 0"),
        ("i8-cut", 1, 0, "expected 1 byte of a value, found the end of the file after 0"),
        ("u16-cut", 2, 1, "expected 2 bytes of a value, found the end of the file after 1"),
        ("i16-cut", 3, 1, "expected 2 bytes of a value, found the end of the file after 1"),
        ("u32-cut", 4, 3, "expected 4 bytes of a value, found the end of the file after 3"),
        ("i32-cut", 5, 3, "expected 4 bytes of a value, found the end of the file after 3"),
        ("f32-cut", 6, 3, "expected 4 bytes of a value, found the end of the file after 3"),
        ("bool-cut", 7, 0, "expected 1 byte of a value, found the end of the file after 0"),
        ("string-length-cut", 8, 7, "expected 8 bytes of a length, found the end of the file after 7"),
        ("array-type-cut", 9, 3, "expected 4 bytes of a value type, found the end of the file after 3"),
        ("array-length-cut", 9, 11, "expected 8 bytes of an array's length, found the end of the file after 7"),
        ("u64-cut", 10, 7, "expected 8 bytes of a value, found the end of the file after 7"),
        ("i64-cut", 11, 7, "expected 8 bytes of a value, found the end of the file after 7"),
        ("f64-cut", 12, 7, "expected 8 bytes of a value, found the end of the file after 7"),
    ] {
        add(name, cut_value(kind, &vec![0; present]), second_key, rule);
    }
    add("bool-2", value(BOOL, &[2]), second_key, "expected a bool of 0 or 1, found 2");
    add("bool-255", value(BOOL, &[255]), second_key, "expected a bool of 0 or 1, found 255");
    add("string-past-end", value(STRING, &long(1_000)), second_key, "expected 1000 bytes of string, found the end of the file after ");
    add("string-above-limit", value(STRING, &long((64 << 20) + 1)), second_key, "expected a string of at most 67108864 bytes, found a length of 67108865");
    add("string-length-max", value(STRING, &long(u64::MAX)), second_key, "expected a string of at most 67108864 bytes, found a length of 18446744073709551615");
    add("string-not-utf8", value(STRING, &string(b"ab\xc3(")), second_key, "expected a string in UTF-8, found an invalid sequence 2 bytes into it");
    add("string-utf8-cut", value(STRING, &string(b"ab\xe2\x82")), second_key, "expected a string in UTF-8, found an invalid sequence 2 bytes into it");
    add("string-surrogate", value(STRING, &string(b"\xed\xa0\x80")), second_key, "expected a string in UTF-8, found an invalid sequence 0 bytes into it");
    add("string-overlong", value(STRING, &string(b"a\xc0\xaf")), second_key, "expected a string in UTF-8, found an invalid sequence 1 byte into it");

    let array = |kind: u32, len: u64, elements: &[u8]| value(ARRAY, &[int(kind), long(len), elements.to_vec()].concat());
    add("array-type-13", array(13, 0, &[]), second_key, "expected a value type from 0 to 12, found 13");
    add("array-past-end", array(4, 1_000, &[0; 8]), second_key, "array elements in the bytes that remain, found a count of 1000");
    add("array-of-u8-length-max", array(0, u64::MAX, &[0; 8]), second_key, "array elements in the bytes that remain, found a count of 18446744073709551615");
    add("array-bytes-overflow", array(12, 1 << 61, &[0; 8]), second_key, "array elements in the bytes that remain, found a count of 2305843009213693952");
    add("array-of-string-length-max", array(8, u64::MAX, &string("a")), second_key, "array elements in the bytes that remain, found a count of 18446744073709551615");
    add("array-of-bool-2", array(7, 3, &[0, 1, 2]), second_key, "expected a bool of 0 or 1, found 2");
    add("array-of-string-not-utf8", array(8, 2, &[string("a"), string(b"\x80")].concat()), second_key, "expected a string in UTF-8, found an invalid sequence 0 bytes into it");
    add("array-of-string-past-end", array(8, 2, &[string("a"), long(900)].concat()), second_key, "expected 900 bytes of string, found the end of the file after ");
    add("array-of-array-past-end", array(9, 1, &[int(5), long(5_000)].concat()), second_key, "array elements in the bytes that remain, found a count of 5000");
    add("array-of-array-count", array(9, 100, &[int(0), long(0)].concat()), second_key, "array elements in the bytes that remain, found a count of 100");
    add("array-nested-5", value(ARRAY, &nested(5)), second_key, "expected arrays nested at most 4 deep, found a deeper one");
    add("array-nested-50000", value(ARRAY, &nested(50_000)), second_key, "expected arrays nested at most 4 deep, found a deeper one");

    let alignment = "metadata key \"general.alignment\"";
    for (name, found, rule) in [
        ("alignment-0", 0, "expected an alignment that is a power of two from 8 to 1048576, found 0"),
        ("alignment-1", 1, "expected an alignment that is a power of two from 8 to 1048576, found 1"),
        ("alignment-4", 4, "expected an alignment that is a power of two from 8 to 1048576, found 4"),
        ("alignment-24", 24, "expected an alignment that is a power of two from 8 to 1048576, found 24"),
        ("alignment-above-limit", 1 << 21, "expected an alignment that is a power of two from 8 to 1048576, found 2097152"),
        ("alignment-max", u32::MAX, "expected an alignment that is a power of two from 8 to 1048576, found 4294967295"),
    ] {
        add(name, aligned(4, &int(found)), alignment, rule);
    }
    add("alignment-u64", aligned(10, &long(32)), alignment, "expected a value of type u32, found u64");
    add("alignment-string", aligned(STRING, &string("32")), alignment, "expected a value of type u32, found string");

    let number = "tensor number 1";
    let name = "tensor \"blk.0.attn_q.weight\"";
    add("name-length-above-limit", second(tensor("n".repeat(65), &[256], 12, 32)), number, "expected a name of at most 64 bytes, found a length of 65");
    add("name-length-max", second([long(u64::MAX), vec![b'n'; 40]].concat()), number, "expected a name of at most 64 bytes, found a length of 18446744073709551615");
    add("name-empty", second(tensor("", &[256], 12, 32)), number, "expected a name, found an empty string");
    add("name-not-utf8", second(tensor(b"blk.\xfe", &[256], 12, 32)), number, "expected a name in UTF-8, found an invalid sequence 4 bytes into it");
    add("name-twice", second(tensor("output_norm.weight", &[8], 0, 32)), "tensor \"output_norm.weight\"", "expected a unique name, found it twice");
    add("name-past-end", {
        let mut parts = parts();
        parts.tensors = vec![[long(64), vec![b'n'; 30]].concat()];
        parts.head()
    }, "tensor number 0", "expected 64 bytes of name, found the end of the file after 30");
    add("name-length-cut", {
        let mut parts = parts();
        parts.tensors = vec![tensor("a", &[1, 1, 1, 1], 0, 0), vec![0; 7]];
        parts.head()
    }, "tensor number 1", "expected 8 bytes of a length, found the end of the file after 7");
    // 8 + 19 bytes of name, 4 of rank, 4 * 8 of dimensions, 4 of type, 8 of offset. The reader wants 33 for any tensor.
    add("dimension-cut", cut_tensor(27 + 4 + 7), name, "expected 8 bytes of a dimension, found the end of the file after 7");
    add("second-dimension-cut", cut_tensor(27 + 4 + 8), name, "expected 8 bytes of a dimension, found the end of the file after 0");
    add("type-cut", cut_tensor(27 + 4 + 32 + 3), name, "expected 4 bytes of the tensor type, found the end of the file after 3");
    add("offset-cut", cut_tensor(27 + 4 + 32 + 4 + 7), name, "expected 8 bytes of the data offset, found the end of the file after 7");
    add("rank-cut", {
        let mut parts = parts();
        parts.tensors = vec![[string("n".repeat(40)), vec![1, 0, 0]].concat()];
        parts.head()
    }, "tensor \"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\"", "expected 4 bytes of the number of dimensions, found the end of the file after 3");
    add("rank-0", shaped(&[], 0), name, "expected 1 to 4 dimensions, found 0");
    add("rank-5", shaped(&[256, 1, 1, 1, 1], 12), name, "expected 1 to 4 dimensions, found 5");
    add("rank-max", second([string("blk.0.attn_q.weight"), int(u32::MAX), vec![1; 40]].concat()), name, "expected 1 to 4 dimensions, found 4294967295");
    add("dimension-0-zero", shaped(&[0, 4], 12), name, "expected dimensions of at least 1, found 0 in dimension 0");
    add("dimension-2-zero", shaped(&[256, 1, 0], 12), name, "expected dimensions of at least 1, found 0 in dimension 2");
    add("product-overflow", shaped(&[1 << 32, 1 << 32], 0), name, "expected a size below 2^63 bytes, found dimensions [4294967296, 4294967296]");
    add("product-overflow-to-small", shaped(&[1 << 32, 1 << 31, 2, 1], 12), name, "expected a size below 2^63 bytes, found dimensions [4294967296, 2147483648, 2, 1]");
    add("product-max", shaped(&[u64::MAX; 4], 0), name, "expected a size below 2^63 bytes, found dimensions [18446744073709551615, ");
    add("bytes-overflow", shaped(&[1 << 62], 28), name, "expected a size below 2^63 bytes, found dimensions [4611686018427387904]");
    add("bytes-2-to-63", shaped(&[1 << 61], 0), name, "expected a size below 2^63 bytes, found dimensions [2305843009213693952]");
    add("type-4-removed", shaped(&[256, 1], 4), name, "expected a known tensor type, found number 4");
    add("type-36-removed", shaped(&[256, 1], 36), name, "expected a known tensor type, found number 36");
    add("type-unknown", shaped(&[256, 1], 1_000), name, "expected a known tensor type, found number 1000");
    add("type-max", shaped(&[256, 1], u32::MAX), name, "expected a known tensor type, found number 4294967295");
    add("blocks-q4-k", shaped(&[255, 1], 12), name, "expected rows of a multiple of 256 weights for type Q4_K, found 255");
    add("blocks-q6-k", shaped(&[128, 2], 14), name, "expected rows of a multiple of 256 weights for type Q6_K, found 128");
    add("blocks-q4-0", shaped(&[31, 32], 2), name, "expected rows of a multiple of 32 weights for type Q4_0, found 31");
    add("offset-1", placed(1), name, "expected a data offset that is a multiple of 32, found 1");
    add("offset-8", placed(40), name, "expected a data offset that is a multiple of 32, found 40");
    add("offset-of-other-alignment", with(|p| {
        p.entries[1] = entry("general.alignment", 4, &int(64));
        p.alignment = 64;
    }), name, "expected a data offset that is a multiple of 64, found 32");
    add("offset-max", placed(u64::MAX - 31), name, "expected data inside the 192 bytes of tensor data, found 144 bytes from offset 18446744073709551584");
    add("offset-past-end", placed(64), name, "expected data inside the 192 bytes of tensor data, found 144 bytes from offset 64");
    add("offset-at-end", placed(192), name, "expected data inside the 192 bytes of tensor data, found 144 bytes from offset 192");
    add("overlap-same", with(|p| p.tensors[1] = tensor("blk.0.attn_q.weight", &[8], 0, 0)), name, "expected data of its own, found an overlap with tensor \"output_norm.weight\" that ends at offset 32");
    add("overlap-partly", with(|p| p.tensors[0] = tensor("output_norm.weight", &[10], 0, 0)), name, "expected data of its own, found an overlap with tensor \"output_norm.weight\" that ends at offset 40");
    add("overlap-inside", with(|p| {
        p.tensors[0] = tensor("output_norm.weight", &[8], 0, 64);
        p.tensors[1] = tensor("blk.0.attn_q.weight", &[256, 1], 12, 0);
    }), "tensor \"output_norm.weight\"", "expected data of its own, found an overlap with tensor \"blk.0.attn_q.weight\" that ends at offset 144");
    add("data-total", shaped(&[256, 2], 12), "tensor data", "expected 320 bytes for the tensors listed, found 192 up to the end of the file");
    add("data-total-saturates", with(|p| {
        p.tensors = ["a", "b", "c"].iter().map(|n| tensor(n, &[(1 << 61) - 1], 0, 0)).collect();
    }), "tensor data", "expected 18446744073709551615 bytes for the tensors listed, found ");
    add("data-cut", with(|p| p.data.truncate(175)), "tensor data", "expected 176 bytes for the tensors listed, found 175 up to the end of the file");
    add("data-none", with(|p| p.data.clear()), "tensor data", "expected 176 bytes for the tensors listed, found 0 up to the end of the file");
    add("data-padding-cut", parts().head(), "tensor data", "expected 176 bytes for the tensors listed, found 0 up to the end of the file");
    cases
}
