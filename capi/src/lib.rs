//! The reader of GGUF files as a C API: `kquant_moe_gguf.h`, which says what every function does. One reader for both languages, so that
//! whatever it refuses is refused in C, too.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use kquant_moe::gguf::{FromValue, Gguf, Tensor};

/// The version of the header.
pub const VERSION: u32 = 1;

/// An open file.
pub struct File {
    gguf: Gguf,
}

/// Text in a file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Text {
    pub bytes: *const c_char,
    pub count: u64,
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self { bytes: text.as_ptr().cast(), count: text.len() as u64 }
    }
}

/// A tensor in a file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TensorInfo {
    pub name: Text,
    pub data: *const c_void,
    pub bytes: u64,
    pub dims: [u64; 4],
    pub rank: u32,
    pub kind: u32,
}

impl From<Tensor<'_>> for TensorInfo {
    fn from(tensor: Tensor<'_>) -> Self {
        let mut dims = [1; 4];
        dims.iter_mut().zip(tensor.dims()).for_each(|(to, from)| *to = *from);
        Self {
            name: tensor.name().into(),
            data: tensor.data().as_ptr().cast(),
            bytes: tensor.data().len() as u64,
            dims,
            rank: tensor.dims().len() as u32,
            kind: tensor.ggml_type().number(),
        }
    }
}

/// What a caller calls something, if it is text at all.
///
/// # Safety
/// The pointer is null or of bytes with a zero at their end.
unsafe fn named<'a>(text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().ok()
}

/// Gives a value out, if it is there and there is a place for it.
///
/// # Safety
/// The pointer is null or of room for the value.
unsafe fn give<T>(value: Option<T>, out: *mut T) -> i32 {
    match value {
        Some(value) if !out.is_null() => {
            // SAFETY: the caller's promise.
            unsafe { out.write(value) };
            1
        }
        _ => 0,
    }
}

/// Opens a file.
///
/// # Safety
/// `path` is null or has a zero at its end; `error` is null or of `error_bytes` bytes. Nobody changes the file while it is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kqm_gguf_open(
    version: u32,
    path: *const c_char,
    error: *mut c_char,
    error_bytes: u64,
) -> *mut File {
    // SAFETY: the caller's promise.
    let opened = match unsafe { named(path) } {
        _ if version != VERSION => Err(format!("the caller has version {version} of kquant_moe_gguf.h, not {VERSION}")),
        None => Err("the path is null or not UTF-8".to_owned()),
        // SAFETY: the caller promises that nobody changes the file while it is open.
        Some(path) => unsafe { Gguf::map(path) }.map_err(|error| error.to_string()),
    };
    let message = match opened {
        Ok(gguf) => return Box::into_raw(Box::new(File { gguf })),
        Err(message) => message,
    };
    if !error.is_null() && error_bytes > 0 {
        let most = usize::try_from(error_bytes - 1).unwrap_or(usize::MAX);
        // Not within a character.
        let cut = (0..=most.min(message.len())).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        // SAFETY: as many bytes as there is room for, and the zero behind them.
        unsafe {
            error.copy_from_nonoverlapping(message.as_ptr().cast(), cut);
            error.add(cut).write(0);
        }
    }
    null_mut()
}

/// Closes a file.
///
/// # Safety
/// It is null or one that was opened, and nothing uses it or what it gave out from here on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kqm_gguf_close(file: *mut File) {
    if !file.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(file) });
    }
}

/// Tensors of a file.
///
/// # Safety
/// The file is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kqm_gguf_tensors(file: *const File) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { file.as_ref() }.map_or(0, |file| file.gguf.tensors().len() as u64)
}

/// A tensor by its number.
///
/// # Safety
/// The file is null or open, `out` is null or has room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kqm_gguf_tensor_at(file: *const File, index: u64, out: *mut TensorInfo) -> i32 {
    // SAFETY: the caller's promise.
    let tensor = unsafe { file.as_ref() }
        .zip(usize::try_from(index).ok())
        .and_then(|(file, index)| file.gguf.tensors().nth(index));
    // SAFETY: the caller's promise.
    unsafe { give(tensor.map(TensorInfo::from), out) }
}

/// A tensor by its name.
///
/// # Safety
/// That of [`kqm_gguf_tensor_at`]; `name` is null or has a zero at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kqm_gguf_tensor_named(file: *const File, name: *const c_char, out: *mut TensorInfo) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        let tensor = file.as_ref().zip(named(name)).and_then(|(file, name)| file.gguf.tensor(name));
        give(tensor.map(TensorInfo::from), out)
    }
}

/// A value of the metadata, if it is there and of the type.
///
/// # Safety
/// The file is null or open, and `key` is null or has a zero at its end.
unsafe fn value<'a, T: FromValue<'a>>(file: *const File, key: *const c_char) -> Option<T> {
    // SAFETY: the caller's promise.
    let (file, key) = unsafe { file.as_ref().zip(named(key))? };
    file.gguf.get(key).ok().flatten()
}

/// An integer.
///
/// # Safety
/// That of [`kqm_gguf_tensor_named`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kqm_gguf_integer(file: *const File, key: *const c_char, out: *mut u64) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { give(value(file, key), out) }
}

/// A float.
///
/// # Safety
/// That of [`kqm_gguf_tensor_named`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kqm_gguf_float(file: *const File, key: *const c_char, out: *mut f32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { give(value(file, key), out) }
}

/// A text.
///
/// # Safety
/// That of [`kqm_gguf_tensor_named`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kqm_gguf_string(file: *const File, key: *const c_char, out: *mut Text) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { give(value::<&str>(file, key).map(Text::from), out) }
}

const _: () = assert!(size_of::<TensorInfo>() == 72 && size_of::<Text>() == 16);

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::ptr::null;

    use super::*;

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/model/tiny-qwen3moe-q4_k_m.gguf");

    fn open(version: u32, path: &str, room: u64) -> Result<*mut File, String> {
        let path = CString::new(path).unwrap();
        let mut error = [1 as c_char; 256];
        // SAFETY: room for the error.
        let file = unsafe { kqm_gguf_open(version, path.as_ptr(), error.as_mut_ptr(), room) };
        assert!(error[room as usize..].iter().all(|&byte| byte == 1));
        if !file.is_null() {
            return Ok(file);
        }
        // SAFETY: there is a zero in it.
        Err(unsafe { CStr::from_ptr(error.as_ptr()) }.to_str().unwrap().to_owned())
    }

    #[test]
    fn files_are_read_as_in_rust() {
        let (expected, file) = (Gguf::read(TINY).unwrap(), open(VERSION, TINY, 200).unwrap());
        let nothing = TensorInfo { name: "".into(), data: null(), bytes: 0, dims: [0; 4], rank: 0, kind: 0 };
        // SAFETY: the file is open until the last line.
        unsafe {
            assert_eq!(kqm_gguf_tensors(file), expected.tensors().len() as u64);
            for (index, tensor) in expected.tensors().enumerate() {
                let name = CString::new(tensor.name()).unwrap();
                let (mut by_number, mut by_name) = (nothing, nothing);
                assert_eq!(kqm_gguf_tensor_at(file, index as u64, &mut by_number), 1);
                assert_eq!(kqm_gguf_tensor_named(file, name.as_ptr(), &mut by_name), 1);
                for found in [by_number, by_name] {
                    let text = std::slice::from_raw_parts(found.name.bytes.cast::<u8>(), found.name.count as usize);
                    assert_eq!(text, tensor.name().as_bytes());
                    let data = std::slice::from_raw_parts(found.data.cast::<u8>(), found.bytes as usize);
                    assert!(data == tensor.data(), "{}", tensor.name());
                    let rank = tensor.dims().len();
                    assert_eq!((&found.dims[..rank], found.rank as usize), (tensor.dims(), rank));
                    assert!(found.dims[rank..].iter().all(|&dim| dim == 1));
                    assert_eq!(found.kind, tensor.ggml_type().number());
                }
            }
            let (mut integer, mut float, mut text) = (0, 0.0, Text::from(""));
            assert_eq!(kqm_gguf_integer(file, c"qwen3moe.expert_used_count".as_ptr(), &mut integer), 1);
            assert_eq!(kqm_gguf_float(file, c"qwen3moe.rope.freq_base".as_ptr(), &mut float), 1);
            assert_eq!(kqm_gguf_string(file, c"general.architecture".as_ptr(), &mut text), 1);
            assert_eq!((integer, float, text.count), (4, 1e6, 8));
            // What is not there, of another type, or no question.
            assert_eq!(kqm_gguf_integer(file, c"general.architecture".as_ptr(), &mut integer), 0);
            assert_eq!(kqm_gguf_integer(file, c"nothing".as_ptr(), &mut integer), 0);
            assert_eq!(kqm_gguf_integer(file, null(), &mut integer), 0);
            assert_eq!(kqm_gguf_integer(null(), c"nothing".as_ptr(), &mut integer), 0);
            assert_eq!(kqm_gguf_tensor_named(file, c"nothing".as_ptr(), null_mut()), 0);
            assert_eq!(kqm_gguf_tensor_at(file, kqm_gguf_tensors(file), null_mut()), 0);
            assert_eq!(kqm_gguf_tensor_at(file, 0, null_mut()), 0);
            kqm_gguf_close(file);
            kqm_gguf_close(null_mut());
        }
    }

    #[test]
    fn what_cannot_be_opened_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let broken = dir.path().join("broken.gguf");
        std::fs::write(&broken, &std::fs::read(TINY).unwrap()[..1000]).unwrap();
        let expected = Gguf::read(&broken).map(drop).unwrap_err().to_string();
        let path = broken.to_str().unwrap();
        let found = open(VERSION, path, 200).unwrap_err();
        assert!(!found.is_empty() && expected.starts_with(&found), "{found}");
        assert_eq!(open(VERSION, path, 11).unwrap_err(), expected[..10]);
        assert!(open(VERSION + 1, TINY, 200).unwrap_err().contains("kquant_moe_gguf.h"));
        // SAFETY: no path, and no room.
        assert!(unsafe { kqm_gguf_open(VERSION, null(), null_mut(), 0) }.is_null());
    }
}
