//! Exact sums over 256 weights, each written once for every set of instructions.
//!
//! An activation X is split into three balanced digits to the base 2^13, `X = low + 2^13 middle + 2^26 high`, all at most 2^12 in size,
//! because |X| <= 2^38. A weight with its sub-block's scale is an integer of at most 2^12 in size, too, and so is one without. The
//! instructions multiply pairs of 16-bit integers and add them up in 32 bits, in 8 sums or 16, so that each is at most 2^29 or 2^28 in
//! size when all 256 products of at most 2^24 are added. 16 sums are added by fours before they are widened: at most 2^30.
//!
//! There is no order in sums of integers, so all implementations give the same bits; `dot.rs` tests each against the oracle.

use crate::blocks::BLOCK;
use crate::oracle::matvec::join;

/// Integers of a size up to 2^12: weights of a super-block, or a digit of its activations.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Integers(pub [i16; BLOCK]);

impl Integers {
    /// All 0.
    pub const ZERO: Self = Self([0; BLOCK]);
}

/// Bits of a digit of an activation.
pub const DIGIT_BITS: u32 = 13;

/// The three digits of 256 activations, the lowest one first.
pub type Digits = [Integers; 3];

/// Where a block of 32 weights has its weight `k` when the lanes of vectors belong to blocks: by fours, those of all eight blocks in turn.
#[inline(always)]
pub fn place_by_block(block: usize, k: usize) -> usize {
    k / 4 * 32 + block * 4 + k % 4
}

/// Sums with some of a CPU's instructions. A value exists only where the CPU has them.
pub trait Sums: Copy {
    /// Calls `f`, and compiles what is inlined into it for these instructions.
    fn call<Y>(self, f: impl FnOnce() -> Y) -> Y;

    /// `sum w[r][k] * X[t][k]` in place `t * R + r`, exact, for R T = 8.
    fn dots<const R: usize, const T: usize>(self, w: [&Integers; R], x: [&Digits; T]) -> [i64; 8];

    /// The same of the eight blocks of 32 by themselves, of which both have theirs as [`place_by_block`] says.
    fn dots_by_block(self, w: &Integers, x: &Digits) -> [i64; 8];

    /// The sum of each eight, as a balanced tree of neighbours.
    #[inline(always)]
    fn add_lanes(self, v: [[f64; 8]; 8]) -> [f64; 8] {
        v.map(join)
    }
}

/// No more than Rust has.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Sums for Plain {
    #[inline(always)]
    fn call<Y>(self, f: impl FnOnce() -> Y) -> Y {
        f()
    }

    #[inline(always)]
    fn dots<const R: usize, const T: usize>(self, w: [&Integers; R], x: [&Digits; T]) -> [i64; 8] {
        std::array::from_fn(|i| {
            let sums = x[i / R].each_ref().map(|x| {
                let mut sums = [0_i32; 8];
                for (w, x) in w[i % R].0.as_chunks::<16>().0.iter().zip(x.0.as_chunks::<16>().0) {
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        for k in [2 * lane, 2 * lane + 1] {
                            *sum += i32::from(w[k]) * i32::from(x[k]);
                        }
                    }
                }
                sums.into_iter().map(i64::from).sum()
            });
            whole(sums)
        })
    }

    #[inline(always)]
    fn dots_by_block(self, w: &Integers, x: &Digits) -> [i64; 8] {
        std::array::from_fn(|block| {
            let product = |x: &Integers, at: usize| i32::from(w.0[at]) * i32::from(x.0[at]);
            let sums = x.each_ref().map(|x| (0..32).map(|k| product(x, place_by_block(block, k))).sum());
            whole(sums.map(|sum: i32| sum.into()))
        })
    }
}

/// The sum that three digits' sums are.
#[inline(always)]
fn whole(sums: [i64; 3]) -> i64 {
    sums[0] + (sums[1] << DIGIT_BITS) + (sums[2] << (2 * DIGIT_BITS))
}

/// AVX2.
#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    use std::arch::x86_64::*;

    use super::{DIGIT_BITS, Digits, Integers, Sums};

    /// AVX2 and FMA.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx2(());

    impl Avx2 {
        /// Where the CPU has them.
        #[inline]
        pub fn new() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
                .then_some(Self(()))
        }
    }

    impl Sums for Avx2 {
        #[inline(always)]
        fn call<Y>(self, f: impl FnOnce() -> Y) -> Y {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn call<Y>(f: impl FnOnce() -> Y) -> Y {
                f()
            }
            // SAFETY: a value of this type says that the CPU has the features.
            unsafe { call(f) }
        }

        #[inline(always)]
        fn dots<const R: usize, const T: usize>(self, w: [&Integers; R], x: [&Digits; T]) -> [i64; 8] {
            let mut out = [0; 8];
            // Four at a time, whose twelve sums are as many as there are registers for.
            for half in 0..2 {
                // SAFETY: a value of this type says that the CPU has the features.
                let sums = unsafe {
                    match R {
                        8 => four::<4, 1>(std::array::from_fn(|r| w[4 * half + r]), [x[0]]),
                        4 => four::<4, 1>([w[0], w[1], w[2], w[3]], [x[half]]),
                        _ => four::<2, 2>([w[0], w[1]], [x[2 * half], x[2 * half + 1]]),
                    }
                };
                out[4 * half..][..4].copy_from_slice(&sums);
            }
            out
        }

        #[inline(always)]
        fn dots_by_block(self, w: &Integers, x: &Digits) -> [i64; 8] {
            // SAFETY: a value of this type says that the CPU has the features.
            unsafe { by_block(w, x) }
        }
    }

    /// 16 of the integers, from number `16 i` on.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(from: &Integers, i: usize) -> __m256i {
        // SAFETY: the reference is to 32 bytes.
        unsafe { _mm256_loadu_si256(from.0.as_chunks::<16>().0[i].as_ptr().cast()) }
    }

    /// Sums of neighbouring lanes, in 64 bits.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn widen(sums: __m256i) -> __m256i {
        let one = _mm256_set1_epi64x(1);
        // A multiplication extends the lower half's sign.
        let (even, odd) = (_mm256_mul_epi32(sums, one), _mm256_mul_epi32(_mm256_srli_epi64::<32>(sums), one));
        _mm256_add_epi64(even, odd)
    }

    /// What three digits' sums are together, in four parts.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn whole(sums: [__m256i; 3]) -> __m256i {
        const BITS: i32 = DIGIT_BITS as i32;
        let upper = _mm256_add_epi64(widen(sums[1]), _mm256_slli_epi64::<BITS>(widen(sums[2])));
        _mm256_add_epi64(widen(sums[0]), _mm256_slli_epi64::<BITS>(upper))
    }

    /// `Sums::dots` for R T = 4.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn four<const R: usize, const T: usize>(w: [&Integers; R], x: [&Digits; T]) -> [i64; 4] {
        let zero = [_mm256_setzero_si256(); 3];
        let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
        for i in 0..16 {
            let product = |[low, middle, high]: [__m256i; 3], place: usize| {
                let (w, x) = (load(w[place % R], i), x[place / R]);
                [
                    _mm256_add_epi32(low, _mm256_madd_epi16(w, load(&x[0], i))),
                    _mm256_add_epi32(middle, _mm256_madd_epi16(w, load(&x[1], i))),
                    _mm256_add_epi32(high, _mm256_madd_epi16(w, load(&x[2], i))),
                ]
            };
            // No loop, so that no sum has an address.
            (a, b, c, d) = (product(a, 0), product(b, 1), product(c, 2), product(d, 3));
        }
        let (a, b, c, d) = (whole(a), whole(b), whole(c), whole(d));
        let ab = _mm256_add_epi64(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        let cd = _mm256_add_epi64(_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));
        let (low, high) = (_mm256_permute2x128_si256::<0x20>(ab, cd), _mm256_permute2x128_si256::<0x31>(ab, cd));
        to_array(_mm256_add_epi64(low, high))
    }

    /// `Sums::dots_by_block`.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn by_block(w: &Integers, x: &Digits) -> [i64; 8] {
        let mut sums = [[_mm256_setzero_si256(); 3]; 2];
        for i in 0..8 {
            for (half, sums) in sums.iter_mut().enumerate() {
                let w = load(w, 2 * i + half);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, load(x, 2 * i + half)));
                }
            }
        }
        // Two lanes are a block's.
        let [first, second] = [to_array(whole(sums[0])), to_array(whole(sums[1]))];
        std::array::from_fn(|i| if i < 4 { first[i] } else { second[i - 4] })
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn to_array(lanes: __m256i) -> [i64; 4] {
        let mut out = [0; 4];
        // SAFETY: the array has 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), lanes) };
        out
    }
}

/// AVX-512 with its integer multiply-adds (VNNI). Compilers before Rust 1.89 have none of it.
#[cfg(kqm_avx512)]
#[expect(clippy::incompatible_msrv, reason = "only compilers that have it compile this module")]
pub mod avx512 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use super::{DIGIT_BITS, Digits, Integers, Sums};

    /// AVX-512 F, BW, DQ, VL and VNNI, with all that AVX2 has.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx512(());

    impl Avx512 {
        /// Where the CPU has them.
        #[inline]
        pub fn new() -> Option<Self> {
            let basic = super::avx2::Avx2::new().is_some();
            let first = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            let second = is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl");
            (basic && first && second && is_x86_feature_detected!("avx512vnni")).then_some(Self(()))
        }
    }

    impl Sums for Avx512 {
        #[inline(always)]
        fn call<Y>(self, f: impl FnOnce() -> Y) -> Y {
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            fn call<Y>(f: impl FnOnce() -> Y) -> Y {
                f()
            }
            // SAFETY: a value of this type says that the CPU has the features.
            unsafe { call(f) }
        }

        #[inline(always)]
        fn dots<const R: usize, const T: usize>(self, w: [&Integers; R], x: [&Digits; T]) -> [i64; 8] {
            // SAFETY: a value of this type says that the CPU has the features.
            unsafe { eight(w, x) }
        }

        #[inline(always)]
        fn dots_by_block(self, w: &Integers, x: &Digits) -> [i64; 8] {
            // SAFETY: a value of this type says that the CPU has the features.
            unsafe { by_block(w, x) }
        }

        #[inline(always)]
        fn add_lanes(self, v: [[f64; 8]; 8]) -> [f64; 8] {
            // SAFETY: a value of this type says that the CPU has the features.
            unsafe { add_f64(v) }
        }
    }

    /// 32 of the integers, from number `32 i` on.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load(from: &Integers, i: usize) -> __m512i {
        // SAFETY: the reference is to 64 bytes.
        unsafe { _mm512_loadu_si512(from.0.as_chunks::<32>().0[i].as_ptr().cast()) }
    }

    /// In each 32 bits of `sum`, two products of 16 bits more: `_mm512_dpwssd_epi32`, of which the compiler makes a multiplication and an
    /// addition, because that is faster in a chain of them; here are 24 chains side by side.
    #[target_feature(enable = "avx512f,avx512vnni")]
    #[inline]
    fn multiply_add(mut sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the instruction computes with these registers and nothing else.
        unsafe {
            asm!(
                "vpdpwssd {sum}, {w}, {x}",
                sum = inout(zmm_reg) sum,
                w = in(zmm_reg) w,
                x = in(zmm_reg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }

    /// The first of each two lanes, in 64 bits.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn even(sums: __m512i) -> __m512i {
        // A multiplication extends the sign.
        _mm512_mul_epi32(sums, _mm512_set1_epi64(1))
    }

    /// The second of each two lanes, in 64 bits.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn odd(sums: __m512i) -> __m512i {
        _mm512_srai_epi64::<32>(sums)
    }

    /// What three digits' sums are together.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn whole([low, middle, high]: [__m512i; 3]) -> __m512i {
        let upper = _mm512_add_epi64(middle, _mm512_slli_epi64::<DIGIT_BITS>(high));
        _mm512_add_epi64(low, _mm512_slli_epi64::<DIGIT_BITS>(upper))
    }

    /// `Sums::dots`: 24 sums in registers.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    fn eight<const R: usize, const T: usize>(w: [&Integers; R], x: [&Digits; T]) -> [i64; 8] {
        let zero = [_mm512_setzero_si512(); 3];
        let (mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h) = (zero, zero, zero, zero, zero, zero, zero, zero);
        for i in 0..8 {
            let product = |[low, middle, high]: [__m512i; 3], place: usize| {
                let (w, x) = (load(w[place % R], i), x[place / R]);
                [
                    multiply_add(low, w, load(&x[0], i)),
                    multiply_add(middle, w, load(&x[1], i)),
                    multiply_add(high, w, load(&x[2], i)),
                ]
            };
            // No loop, so that no sum has an address.
            (a, b, c, d) = (product(a, 0), product(b, 1), product(c, 2), product(d, 3));
            (e, f, g, h) = (product(e, 4), product(f, 5), product(g, 6), product(h, 7));
        }
        // Of each digit the sums of products a and b, c and d, e and f, g and h in 64 bits, in four parts.
        let digit = |n: usize| {
            let abcd = add_pairs(add_lanes(a[n], c[n]), add_lanes(b[n], d[n]));
            let efgh = add_pairs(add_lanes(e[n], g[n]), add_lanes(f[n], h[n]));
            [even(abcd), odd(abcd), even(efgh), odd(efgh)]
        };
        let (low, middle, high) = (digit(0), digit(1), digit(2));
        let whole = |i: usize| whole([low[i], middle[i], high[i]]);
        to_array(add_halves(add_halves(whole(0), whole(1)), add_halves(whole(2), whole(3))))
    }

    /// Of each 128 bits, in 32 bits: a0 + a2, b0 + b2, a1 + a3, b1 + b3.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add_lanes(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
    }

    /// Of each 128 bits, in 32 bits: a0 + a2, a1 + a3, b0 + b2, b1 + b3.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add_pairs(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
    }

    /// With numbers of 128 bits, lane by lane: a0 + a1, a2 + a3, b0 + b1, b2 + b3.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add_halves(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi64(_mm512_shuffle_i64x2::<0b10_00_10_00>(a, b), _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b))
    }

    /// `Sums::dots_by_block`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    fn by_block(w: &Integers, x: &Digits) -> [i64; 8] {
        let mut sums = [_mm512_setzero_si512(); 3];
        for i in 0..8 {
            let w = load(w, i);
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = multiply_add(*sum, w, load(x, i));
            }
        }
        // Two lanes are a block's.
        to_array(whole(sums.map(|sums| _mm512_add_epi64(even(sums), odd(sums)))))
    }

    /// `Sums::add_lanes`: neighbours, pairs of them, and pairs of those.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add_f64(v: [[f64; 8]; 8]) -> [f64; 8] {
        // SAFETY: the array has 64 bytes.
        let [a, b, c, d, e, f, g, h] = v.each_ref().map(|v| unsafe { _mm512_loadu_pd(v.as_ptr()) });
        let neighbours = |a: __m512d, b: __m512d| _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        let halves = |a: __m512d, b: __m512d| {
            _mm512_add_pd(_mm512_shuffle_f64x2::<0b10_00_10_00>(a, b), _mm512_shuffle_f64x2::<0b11_01_11_01>(a, b))
        };
        let (ab, cd, ef, gh) = (neighbours(a, b), neighbours(c, d), neighbours(e, f), neighbours(g, h));
        let sums = halves(halves(ab, cd), halves(ef, gh));
        let mut out = [0.0; 8];
        // SAFETY: the array has 64 bytes.
        unsafe { _mm512_storeu_pd(out.as_mut_ptr(), sums) };
        out
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn to_array(lanes: __m512i) -> [i64; 8] {
        let mut out = [0; 8];
        // SAFETY: the array has 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), lanes) };
        out
    }
}
