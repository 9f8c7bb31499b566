//! Opening any bytes gives a file or an error in one line.
#![no_main]

use kquant_moe::gguf::Gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = Gguf::from_vec("fuzz", bytes.to_vec()) {
        assert!(!error.to_string().contains(char::is_control));
    }
});
