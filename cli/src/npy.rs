//! NumPy's `.npy` files: a writer that can append, and a reader for what traces hold.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use kquant_moe::diff::{Array, Values};
use kquant_moe::{Error, Result};

use super::output::io_error;

const MAGIC: &[u8] = b"\x93NUMPY";
/// The data begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// Element types that are written.
pub trait Element: Copy {
    /// The type as the header has it.
    const DESCR: &'static str;
    /// Its bytes.
    fn bytes(self) -> [u8; 4];
}

impl Element for f32 {
    const DESCR: &'static str = "<f4";

    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

impl Element for i32 {
    const DESCR: &'static str = "<i4";

    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

impl Element for u32 {
    const DESCR: &'static str = "<u4";

    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

/// Writes a file.
pub fn write<T: Element>(path: &Path, shape: &[usize], values: &[T]) -> Result<()> {
    create::<T>(path, shape)?;
    append(path, values)
}

/// Creates a file with a header for values of this shape, which [`append`] adds.
pub fn create<T: Element>(path: &Path, shape: &[usize]) -> Result<()> {
    let dims: String = shape.iter().map(|dim| format!("{dim}, ")).collect();
    let mut header = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({dims}), }}", T::DESCR);
    // Magic, version and the length of the header, and the line break that ends it.
    let before = MAGIC.len() + 4;
    let end = (before + header.len() + 1).next_multiple_of(ALIGNMENT);
    header += &" ".repeat(end - before - header.len() - 1);
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    // At most a few dimensions of at most 20 digits.
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    fs::write(path, bytes).map_err(|source| io_error(path, source))
}

/// Adds values to a file.
pub fn append<T: Element>(path: &Path, values: &[T]) -> Result<()> {
    let write = || {
        let mut file = BufWriter::new(File::options().append(true).open(path)?);
        values.iter().try_for_each(|value| file.write_all(&value.bytes()))?;
        file.flush()
    };
    write().map_err(|source| io_error(path, source))
}

/// Reads a file of f16, f32, f64, i32 or u32, in either byte order and either order of dimensions.
pub fn read(path: &Path) -> Result<Array> {
    let bytes = fs::read(path).map_err(|source| io_error(path, source))?;
    parse(&bytes).map_err(|what| {
        let source = io::Error::new(io::ErrorKind::InvalidData, what);
        Error::Io { path: path.into(), source }
    })
}

fn parse(bytes: &[u8]) -> Result<Array, String> {
    let (header, data) = split(bytes).ok_or("not a .npy file, or one that ends in its header")?;
    let header = std::str::from_utf8(header).map_err(|_| "the .npy header is not text")?;
    let descr =
        entry(header, "descr").and_then(|value| value.split('\'').nth(1)).ok_or("no descr in the .npy header")?;
    let fortran = entry(header, "fortran_order").ok_or("no fortran_order in the .npy header")?.starts_with("True");
    let dims = entry(header, "shape").and_then(|value| value.strip_prefix('(')?.split(')').next());
    let dims = dims.ok_or("no shape in the .npy header")?.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    let shape: Vec<usize> =
        dims.map(str::parse).collect::<Result<_, _>>().map_err(|_| "a wrong shape in the .npy header")?;
    let native_little = cfg!(target_endian = "little");
    let little = descr.starts_with(['<', '|']) || (descr.starts_with('=') && native_little);
    let kind = descr.trim_start_matches(['<', '>', '|', '=']);
    let count = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
    let size = kind.get(1..).and_then(|size| size.parse::<usize>().ok());
    let expected = count.zip(size).and_then(|(count, size)| count.checked_mul(size));
    if expected != Some(data.len()) {
        return Err(format!("{} bytes of data do not fit the shape {shape:?} of {descr}", data.len()));
    }
    let values = match kind {
        "f2" => Values::F32(decode(data, little, |bytes| half::f16::from_le_bytes(bytes).to_f32())),
        "f4" => Values::F32(decode(data, little, f32::from_le_bytes)),
        "f8" => Values::F64(decode(data, little, f64::from_le_bytes)),
        "i4" => Values::Int(decode(data, little, |bytes| i32::from_le_bytes(bytes).into())),
        "u4" => Values::Int(decode(data, little, |bytes| u32::from_le_bytes(bytes).into())),
        _ => return Err(format!("type {descr} is not read here (supported: f2, f4, f8, i4, u4)")),
    };
    let values = match values {
        values if !fortran => values,
        Values::F32(values) => Values::F32(row_major(&values, &shape)),
        Values::F64(values) => Values::F64(row_major(&values, &shape)),
        Values::Int(values) => Values::Int(row_major(&values, &shape)),
    };
    Ok(Array { shape, values })
}

/// Header and data.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (version, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<2>()?;
    let (len, rest) = if version[0] == 1 {
        let (len, rest) = rest.split_first_chunk()?;
        (u16::from_le_bytes(*len).into(), rest)
    } else {
        let (len, rest) = rest.split_first_chunk()?;
        (u32::from_le_bytes(*len) as usize, rest)
    };
    rest.split_at_checked(len)
}

/// What follows a key of the header's dictionary.
fn entry<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let after = header.split_once(&format!("'{key}'"))?.1;
    Some(after.trim_start().strip_prefix(':')?.trim_start())
}

fn decode<const N: usize, T>(data: &[u8], little: bool, from_le: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (elements, _) = data.as_chunks::<N>();
    let element = |&bytes: &[u8; N]| {
        let mut bytes = bytes;
        if !little {
            bytes.reverse();
        }
        from_le(bytes)
    };
    elements.iter().map(element).collect()
}

/// Values whose first dimension is contiguous, with the last one contiguous.
fn row_major<T: Copy>(values: &[T], shape: &[usize]) -> Vec<T> {
    let place = |mut index: usize| {
        let (mut place, mut stride) = (0, values.len());
        for &dim in shape.iter().rev() {
            stride /= dim;
            place += index % dim * stride;
            index /= dim;
        }
        place
    };
    (0..values.len()).map(|index| values[place(index)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn written_files_come_back_and_have_numpys_layout() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        write(&path, &[2, 3], &[1.0_f32, -0.0, 3.0, f32::INFINITY, 5.0, 6.5]).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 128 + 24);
        assert!(
            bytes.starts_with(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, ), }")
        );
        assert_eq!(bytes[127], b'\n');
        let array = read(&path).unwrap();
        assert_eq!(array.shape, [2, 3]);
        assert_eq!(array.values, Values::F32(vec![1.0, -0.0, 3.0, f32::INFINITY, 5.0, 6.5]));
        create::<u32>(&path, &[3]).unwrap();
        append(&path, &[1_u32]).unwrap();
        append(&path, &[2, u32::MAX]).unwrap();
        assert_eq!(read(&path).unwrap().values, Values::Int(vec![1, 2, u32::MAX.into()]));
        write(&path, &[1], &[-1_i32]).unwrap();
        assert_eq!(read(&path).unwrap().values, Values::Int(vec![-1]));
    }

    #[test]
    fn files_of_other_programs_are_read() {
        assert_eq!(parse(&file("<f2", "False", "(1,)", &[0, 0x3c])).unwrap().values, Values::F32(vec![1.0]));
        assert_eq!(parse(&file("<f8", "False", "()", &2.5_f64.to_le_bytes())).unwrap().values, Values::F64(vec![2.5]));
        assert_eq!(parse(&file(">i4", "False", "(1,)", &[0, 0, 1, 0])).unwrap().values, Values::Int(vec![256]));
        let columns: Vec<u8> = [0_u32, 3, 1, 4, 2, 5].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            parse(&file("<u4", "True", "(2, 3)", &columns)).unwrap().values,
            Values::Int(vec![0, 1, 2, 3, 4, 5])
        );
        assert!(parse(&file("<f4", "True", "(0, 3)", &[])).unwrap().values.is_empty());
    }

    #[test]
    fn broken_files_are_errors() {
        let good = file("<f4", "False", "(2,)", &[0; 8]);
        assert!(parse(&good).is_ok());
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err(), "{len}");
        }
        for (descr, shape) in [
            ("<f4", "(3,)"),
            ("<f4", "(18446744073709551615, 2)"),
            ("<f4", "(99999999999999999999,)"),
            ("<f4", "(-2,)"),
            ("<i8", "(1,)"),
            ("<c8", "(1,)"),
            ("é", "(2,)"),
            ("", "(2,)"),
        ] {
            assert!(parse(&file(descr, "False", shape, &[0; 8])).is_err(), "{descr} {shape}");
        }
        assert!(parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}").is_err());
        assert!(parse(b"\x93NUMPY\x01\x00\x02\x00{}").is_err());
    }

    /// A file whose data is not what its header says, by a byte, is no file of values.
    #[test]
    fn bytes_behind_the_values_are_errors() {
        for (descr, size) in [("<f2", 2), ("<f4", 4), ("<f8", 8), ("<i4", 4), ("<u4", 4)] {
            for (shape, count) in [("()", 1), ("(3,)", 3), ("(0,)", 0), ("(2, 0)", 0), ("(2, 3)", 6)] {
                let data = vec![0; size * count];
                assert!(parse(&file(descr, "False", shape, &data)).is_ok(), "{descr} {shape}");
                for more in [1, size - 1, size, 64] {
                    let longer = vec![0; size * count + more];
                    assert!(parse(&file(descr, "False", shape, &longer)).is_err(), "{descr} {shape}: {more} more");
                }
                if let Some((_, shorter)) = data.split_first() {
                    assert!(parse(&file(descr, "False", shape, shorter)).is_err(), "{descr} {shape}: one less");
                }
            }
        }
        // More values than memory has bytes.
        assert!(parse(&file("<f8", "False", "(2305843009213693952, 8)", &[])).is_err());
        assert!(parse(&file("<f8", "False", "(2305843009213693952,)", &[])).is_err());
    }

    #[test]
    fn byte_orders_and_orders_of_dimensions_are_read() {
        let value = 1.5_f64;
        for (descr, bytes) in [
            ("<f8", value.to_le_bytes().to_vec()),
            (">f8", value.to_be_bytes().to_vec()),
            ("=f8", value.to_ne_bytes().to_vec()),
        ] {
            assert_eq!(
                parse(&file(descr, "False", "(1,)", &bytes)).unwrap().values,
                Values::F64(vec![value]),
                "{descr}"
            );
        }
        for (descr, bytes) in [("<f4", 1.5_f32.to_le_bytes()), (">f4", 1.5_f32.to_be_bytes())] {
            assert_eq!(parse(&file(descr, "False", "(1,)", &bytes)).unwrap().values, Values::F32(vec![1.5]), "{descr}");
        }
        assert_eq!(parse(&file(">f2", "False", "(1,)", &[0x3e, 0])).unwrap().values, Values::F32(vec![1.5]));
        assert_eq!(parse(&file(">u4", "False", "(1,)", &[0xff; 4])).unwrap().values, Values::Int(vec![0xffff_ffff]));
        assert_eq!(parse(&file("<i4", "False", "(1,)", &[0xff; 4])).unwrap().values, Values::Int(vec![-1]));
        // Element [a][b][c] of shape [2, 3, 4] is the number abc.
        let number = |[a, b, c]: [u32; 3]| 100 * a + 10 * b + c;
        let rows = (0..2).flat_map(|a| (0..3).flat_map(move |b| (0..4).map(move |c| number([a, b, c]))));
        let columns = (0..4).flat_map(|c| (0..3).flat_map(move |b| (0..2).map(move |a| number([a, b, c]))));
        let columns: Vec<u8> = columns.flat_map(u32::to_le_bytes).collect();
        let array = parse(&file("<u4", "True", "(2, 3, 4)", &columns)).unwrap();
        assert_eq!(array.values, Values::Int(rows.map(i64::from).collect()));
        assert_eq!(array.shape, [2, 3, 4]);
    }

    #[test]
    fn headers_of_either_version_end_at_a_multiple_of_64() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        for shape in [&[][..], &[1], &[100_000], &[12, 345, 6789], &[1_000_000_000; 7]] {
            create::<f32>(&path, shape).unwrap();
            let bytes = fs::read(&path).unwrap();
            assert!(bytes.len().is_multiple_of(64) && bytes.ends_with(b"\n"), "{shape:?}: {} bytes", bytes.len());
            let text = std::str::from_utf8(&bytes[10..]).unwrap();
            assert_eq!(usize::from(u16::from_le_bytes([bytes[8], bytes[9]])), text.len());
        }
        // Version 2 has a length of four bytes.
        let header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }";
        let length = (header.len() as u32).to_le_bytes();
        let file = [MAGIC, &[2, 0], &length, header, &2.5_f32.to_le_bytes()].concat();
        assert_eq!(parse(&file).unwrap().values, Values::F32(vec![2.5]));
    }
}
