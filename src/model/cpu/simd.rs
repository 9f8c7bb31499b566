//! Runs code with the instructions that the CPU has.

#[cfg(target_arch = "x86_64")]
use super::sums::{Sums, avx2::Avx2};

/// Calls `f` from a function that may use AVX2 and FMA, where the CPU has them. What is inlined into `f` is compiled for
/// them; values do not depend on it, because every operation is an IEEE one.
#[inline]
pub fn with_fma<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = Avx2::new() {
        return avx2.call(f);
    }
    f()
}
