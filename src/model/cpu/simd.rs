//! Runs code with the instructions that the CPU has.

/// Calls `f` from a function that may use AVX2 and FMA, where the CPU has them. What is inlined into `f` is compiled for
/// them; values do not depend on it, because every operation is an IEEE one.
#[inline]
pub fn with_fma<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn call<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            // SAFETY: the CPU has the features.
            return unsafe { call(f) };
        }
    }
    f()
}
