//! Tensor types and the layouts of their blocks, each defined here and nowhere else in Rust.
//!
//! A block type is a file beside this one, which implements [`SuperBlock`] or [`SmallBlock`], and a line of the table below. Names,
//! sizes, checks of files, the oracles, the CPU's products, embedding, repacking and synthetic weights follow. On the device it is
//! a file of `cuda/common/types/` and its place in the table of `cuda/common/types.cuh`; `tests/types.rs` shows that both tables
//! have the same types.
//!
//! There are two families: super-blocks of 256 weights with integer scales, and blocks of 32 weights with a factor of their own, of
//! which [`Eight`] neighbours go together. Both are [`Weights`]: 256 neighbours of a row, which products, tiles and fixed-point
//! blocks have as their unit. What differs by family is a trait with an implementation for each, where it is needed: the oracles of
//! products and of the embedding, and the CPU's products.

use std::fmt;

use half::f16;

mod codebooks;
mod factor;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod nibbles;
mod packed_scales;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod tq1_0;
mod tq2_0;

/// Weights in a super-block, and activations in a fixed-point block.
pub const BLOCK: usize = 256;

/// The table: what a type is called here, its number and name in GGML, and its blocks. Floats, then types of blocks, each in the
/// order of numbers. `$` is that sign, for the macros that this one defines.
macro_rules! table {
    ($d:tt
     floats { $($Float:ident = $float_number:literal, $float_name:literal, $float_bytes:literal;)* }
     matrices { $First:ident = $first_number:literal, $first_name:literal, $FirstBlock:ty;
                $($Type:ident = $number:literal, $name:literal, $Block:ty;)* }) => {
        /// Tensor types of GGUF that this crate knows, with GGML's numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum TensorType {
            $(#[doc = $float_name] $Float = $float_number,)*
            #[doc = $first_name] $First = $first_number,
            $(#[doc = $name] $Type = $number,)*
        }

        impl TensorType {
            /// Every type.
            pub const ALL: &[Self] = &[$(Self::$Float,)* Self::$First, $(Self::$Type,)*];
            /// Floats, which have no blocks.
            pub const FLOATS: &[Self] = &[$(Self::$Float,)*];
            /// Those of blocks.
            pub const MATRICES: &[Self] = &[Self::$First, $(Self::$Type,)*];
            /// The names of [`Self::ALL`], for errors.
            pub const ALL_NAMES: &str = concat!($($float_name, ", ",)* $first_name, $(", ", $name,)*);
            /// The names of [`Self::FLOATS`], for errors.
            pub const FLOAT_NAMES: &str = {
                let names = concat!($($float_name, ", ",)*);
                names.split_at(names.len() - ", ".len()).0
            };

            /// GGML's name, such as `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Float => $float_name,)*
                    Self::$First => $first_name,
                    $(Self::$Type => $name,)*
                }
            }

            /// Weights in one block of a file.
            pub const fn block_len(self) -> usize {
                match self {
                    $(Self::$Float => 1,)*
                    Self::$First => <$FirstBlock>::IN_FILE,
                    $(Self::$Type => <$Block>::IN_FILE,)*
                }
            }

            /// Bytes of one block of a file.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(Self::$Float => $float_bytes,)*
                    Self::$First => size_of::<$FirstBlock>() * <$FirstBlock>::IN_FILE / BLOCK,
                    $(Self::$Type => size_of::<$Block>() * <$Block>::IN_FILE / BLOCK,)*
                }
            }
        }

        /// Weights of one type, 256 at a time: of a quantized matrix `[rows, cols]`, row-major, they are `rows * cols / 256`.
        #[derive(Clone, Copy, Debug)]
        #[non_exhaustive]
        pub enum Blocks<'a> {
            #[doc = $first_name] $First(&'a [$FirstBlock]),
            $(#[doc = $name] $Type(&'a [$Block]),)*
        }

        impl<'a> Blocks<'a> {
            /// The weights of a tensor's bytes; `None` for a type that is not one of blocks, and for bytes that are not those of
            /// a whole number of 256 weights.
            pub fn new(kind: TensorType, bytes: &'a [u8]) -> Option<Self> {
                match kind {
                    TensorType::$First => blocks(bytes).map(Self::$First),
                    $(TensorType::$Type => blocks(bytes).map(Self::$Type),)*
                    _ => None,
                }
            }

            /// Their type.
            pub const fn kind(&self) -> TensorType {
                match self {
                    Self::$First(_) => TensorType::$First,
                    $(Self::$Type(_) => TensorType::$Type,)*
                }
            }

            /// Blocks `range`.
            ///
            /// # Panics
            /// When there are not as many.
            pub fn part(self, range: std::ops::Range<usize>) -> Self {
                match self {
                    Self::$First(blocks) => Self::$First(&blocks[range]),
                    $(Self::$Type(blocks) => Self::$Type(&blocks[range]),)*
                }
            }
        }

        /// `with_blocks!(blocks, w => expression)`: the expression for the slice that a [`Blocks`] holds, whatever its type.
        macro_rules! with_blocks {
            ($d blocks:expr, $d w:ident => $d then:expr) => {
                match $d blocks {
                    $crate::blocks::Blocks::$First($d w) => $d then,
                    $($crate::blocks::Blocks::$Type($d w) => $d then,)*
                }
            };
        }
        pub(crate) use with_blocks;

        /// `with_weights!(kind, T => expression, else other)`: the expression with T as 256 weights of that type.
        macro_rules! with_weights {
            ($d kind:expr, $d T:ident => $d then:expr, else $d other:expr) => {
                match $d kind {
                    $crate::blocks::TensorType::$First => { type $d T = $FirstBlock; $d then }
                    $($crate::blocks::TensorType::$Type => { type $d T = $Block; $d then })*
                    _ => $d other,
                }
            };
        }
        pub(crate) use with_weights;
    };
}

table! {
    $
    floats {
        F32 = 0, "F32", 4;
        F16 = 1, "F16", 2;
        BF16 = 30, "BF16", 2;
    }
    matrices {
        Q4_0 = 2, "Q4_0", crate::blocks::Eight<crate::blocks::BlockQ4_0>;
        Q4_1 = 3, "Q4_1", crate::blocks::Eight<crate::blocks::BlockQ4_1>;
        Q5_0 = 6, "Q5_0", crate::blocks::Eight<crate::blocks::BlockQ5_0>;
        Q5_1 = 7, "Q5_1", crate::blocks::Eight<crate::blocks::BlockQ5_1>;
        Q8_0 = 8, "Q8_0", crate::blocks::Eight<crate::blocks::BlockQ8_0>;
        Q2K = 10, "Q2_K", crate::blocks::BlockQ2K;
        Q3K = 11, "Q3_K", crate::blocks::BlockQ3K;
        Q4K = 12, "Q4_K", crate::blocks::BlockQ4K;
        Q5K = 13, "Q5_K", crate::blocks::BlockQ5K;
        Q6K = 14, "Q6_K", crate::blocks::BlockQ6K;
        IQ2XXS = 16, "IQ2_XXS", crate::blocks::BlockIQ2XXS;
        IQ2XS = 17, "IQ2_XS", crate::blocks::BlockIQ2XS;
        IQ3XXS = 18, "IQ3_XXS", crate::blocks::BlockIQ3XXS;
        IQ1S = 19, "IQ1_S", crate::blocks::BlockIQ1S;
        IQ4NL = 20, "IQ4_NL", crate::blocks::Eight<crate::blocks::BlockIQ4NL>;
        IQ3S = 21, "IQ3_S", crate::blocks::BlockIQ3S;
        IQ2S = 22, "IQ2_S", crate::blocks::BlockIQ2S;
        IQ4XS = 23, "IQ4_XS", crate::blocks::BlockIQ4XS;
        IQ1M = 29, "IQ1_M", crate::blocks::BlockIQ1M;
        TQ1_0 = 34, "TQ1_0", crate::blocks::BlockTQ1_0;
        TQ2_0 = 35, "TQ2_0", crate::blocks::BlockTQ2_0;
        MXFP4 = 39, "MXFP4", crate::blocks::Eight<crate::blocks::BlockMXFP4>;
    }
}

pub use factor::Factor;
pub use iq1_m::BlockIQ1M;
pub use iq1_s::BlockIQ1S;
pub use iq2_s::BlockIQ2S;
pub use iq2_xs::BlockIQ2XS;
pub use iq2_xxs::BlockIQ2XXS;
pub use iq3_s::BlockIQ3S;
pub use iq3_xxs::BlockIQ3XXS;
pub use iq4_nl::BlockIQ4NL;
pub use iq4_xs::BlockIQ4XS;
pub use mxfp4::BlockMXFP4;
pub use q2_k::BlockQ2K;
pub use q3_k::BlockQ3K;
pub use q4_0::BlockQ4_0;
pub use q4_1::BlockQ4_1;
pub use q4_k::BlockQ4K;
pub use q5_0::BlockQ5_0;
pub use q5_1::BlockQ5_1;
pub use q5_k::BlockQ5K;
pub use q6_k::BlockQ6K;
pub use q8_0::BlockQ8_0;
pub use tq1_0::BlockTQ1_0;
pub use tq2_0::BlockTQ2_0;

impl TensorType {
    /// The factors of a block; none for floats.
    pub fn factors(self) -> &'static [Factor] {
        with_weights!(self, T => T::FACTORS, else &[])
    }

    /// Bytes of `count` weights, whole blocks of them.
    pub const fn bytes_of(self, count: usize) -> usize {
        count / self.block_len() * self.block_bytes()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A block layout: `repr(C)`, made of bytes only, for which any bytes are valid.
pub trait Block: sealed::Sealed + Copy + Send + Sync + 'static {}

/// 256 neighbouring weights of a row.
pub trait Weights: Block {
    /// Weights of a block as files have them: 256 or 32.
    const IN_FILE: usize;
    /// The factors of a block of a file.
    const FACTORS: &'static [Factor];
    /// The fields in the order of their tile, which is that of the `Layout` of the same type in `cuda/common/types/`.
    const TILE: &'static [Field];

    /// Random weights around 0 with this standard deviation, from random `bits`.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self;
}

/// A type of 256 weights `factor * scale(j) * quant(j, k) - dmin * min(j)` for weight k of sub-block j: integers but for two
/// factors.
pub trait SuperBlock: Weights {
    /// Weights in a sub-block: 16 or 32.
    const SUB_BLOCK: usize;
    /// Whether there are mins. Where there are none, `dmin` and `min` are not used.
    const MINS: bool;
    /// What `d` is to be multiplied with: a power of two, 1 for most types.
    const TIMES: f32 = 1.0;

    /// Scale of the sub-block scales, but for [`Self::TIMES`].
    fn d(&self) -> f16;

    /// Scale of the sub-block scales, exact.
    #[inline]
    fn factor(&self) -> f32 {
        self.d().to_f32() * Self::TIMES
    }

    /// Scale of the sub-block mins.
    #[inline]
    fn dmin(&self) -> f16 {
        f16::ZERO
    }

    /// Scale of a sub-block.
    fn scale(&self, j: usize) -> i32;

    /// Min of a sub-block.
    #[inline]
    fn min(&self, _j: usize) -> i32 {
        0
    }

    /// Quant of weight `k` of sub-block `j`, less what the type takes off it.
    fn quant(&self, j: usize, k: usize) -> i32;

    /// All 256 products `scale(j) * quant(j, k)`, at most 4096 in size: what [`Self::scale`] and [`Self::quant`] give, fast.
    #[inline(always)]
    fn scaled_quants(&self, out: &mut [i16; BLOCK]) {
        for (j, out) in out.chunks_exact_mut(Self::SUB_BLOCK).enumerate() {
            let scale = self.scale(j);
            for (k, out) in out.iter_mut().enumerate() {
                *out = (scale * self.quant(j, k)) as i16;
            }
        }
    }
}

/// A type of 32 weights `d * quant(k) + m`.
pub trait SmallBlock: Block {
    /// Whether there is an offset. Where there is none, `m` is not used.
    const MINS: bool;
    /// The factors.
    const FACTORS: &'static [Factor];
    /// The fields of eight blocks, see [`Weights::TILE`].
    const TILE: &'static [Field];

    /// The factor: an f16 or a power of two.
    fn d(&self) -> f32;

    /// The offset.
    #[inline]
    fn m(&self) -> f16 {
        f16::ZERO
    }

    /// All quants, less what the type takes off them: 8-bit integers.
    fn quants(&self) -> [i8; 32];

    /// Random weights around 0 with this standard deviation, from random `bits`.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self;
}

/// Eight neighbouring blocks of 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Eight<B>(pub [B; 8]);

impl<B: SmallBlock> sealed::Sealed for Eight<B> {}
impl<B: SmallBlock> Block for Eight<B> {}

impl<B: SmallBlock> Weights for Eight<B> {
    const IN_FILE: usize = 32;
    const FACTORS: &'static [Factor] = B::FACTORS;
    const TILE: &'static [Field] = B::TILE;

    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        Self(std::array::from_fn(|_| B::synthetic(bits, spread)))
    }
}

/// A field of a block in tile layout: a tile has a field of all of its 16 rows, then the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// First byte in the block.
    pub at: usize,
    /// Bytes in the block.
    pub bytes: usize,
    /// Neighbouring bytes that a lane has of each 32 bytes, 1, 2, 4 or 8; `None`: `[16 rows][bytes]`.
    pub run: Option<usize>,
    /// Where it is not in one piece: the bytes of a piece, and those from one to the next.
    pub pieces: Option<(usize, usize)>,
}

impl Field {
    /// A field of which every lane has a part.
    ///
    /// `[bytes / 32 chunks][32 lanes][rows r and r + 8][8 bytes]` for lane `4 r + c`: of the chunk's 32 bytes those that lane c of
    /// four has when they are dealt in runs of `run` bytes.
    pub const fn lanes(at: usize, bytes: usize, run: usize) -> Self {
        Self { at, bytes, run: Some(run), pieces: None }
    }

    /// A field that a tile has row by row.
    pub const fn rows(at: usize, bytes: usize) -> Self {
        Self { at, bytes, run: None, pieces: None }
    }

    /// The same bytes in pieces of so many, one every `stride` bytes.
    pub const fn in_pieces(self, piece: usize, stride: usize) -> Self {
        Self { pieces: Some((piece, stride)), ..self }
    }

    /// The same field of eight blocks, one after the other.
    pub const fn of_eight<B: SmallBlock>(self) -> Self {
        Self { bytes: 8 * self.bytes, pieces: Some((self.bytes, size_of::<B>())), ..self }
    }

    /// Its bytes in the block or the eight of them.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        let (piece, stride) = self.pieces.unwrap_or((self.bytes, 0));
        let at = self.at;
        (0..self.bytes).map(move |i| at + i / piece * stride + i % piece)
    }
}

/// The blocks of a Q4_K tensor's bytes; `None` when they are not a whole number of blocks.
pub fn q4_k(bytes: &[u8]) -> Option<&[BlockQ4K]> {
    blocks(bytes)
}

/// The blocks of a Q6_K tensor's bytes; `None` when they are not a whole number of blocks.
pub fn q6_k(bytes: &[u8]) -> Option<&[BlockQ6K]> {
    blocks(bytes)
}

/// The bytes of blocks.
pub fn bytes<T: Block>(blocks: &[T]) -> &[u8] {
    // SAFETY: a block is made of bytes without padding, and the slice covers exactly its memory.
    unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), size_of_val(blocks)) }
}

/// The bytes of a block, to be changed.
fn bytes_of<T: Block>(block: &mut T) -> &mut [u8] {
    // SAFETY: a block is made of bytes without padding, any of which are valid.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(block).cast(), size_of::<T>()) }
}

/// The blocks of a tensor's bytes; `None` when they are not a whole number of blocks.
pub fn blocks<T: Block>(bytes: &[u8]) -> Option<&[T]> {
    if !bytes.len().is_multiple_of(size_of::<T>()) {
        return None;
    }
    // SAFETY: a block has alignment 1 and any bytes are a valid one; the length is a whole number of blocks.
    Some(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) })
}

mod sealed {
    pub trait Sealed {}
}

/// Says of types that they are blocks.
macro_rules! layouts {
    ($($Block:ident)*) => {
        $(impl sealed::Sealed for $Block {}
        impl Block for $Block {})*
    };
}
layouts!(
    BlockQ4_0 BlockQ4_1 BlockQ5_0 BlockQ5_1 BlockQ8_0 BlockQ2K BlockQ3K BlockQ4K BlockQ5K BlockQ6K BlockIQ1S BlockIQ1M BlockIQ2XXS
    BlockIQ2XS BlockIQ2S BlockIQ3XXS BlockIQ3S BlockIQ4NL BlockIQ4XS BlockTQ1_0 BlockTQ2_0 BlockMXFP4
);

/// A factor from 0.75 to 1.25.
fn around_1(bits: &mut impl FnMut() -> u64) -> f64 {
    0.75 + (bits() >> 48) as f64 / 131_072.0
}

/// A number of about this size, of either sign.
fn either_sign(bits: &mut impl FnMut() -> u64, size: f64) -> f64 {
    let size = size * around_1(bits);
    if bits() >> 63 == 0 { size } else { -size }
}

/// Fills a field whose length is a multiple of 8.
fn fill(bits: &mut impl FnMut() -> u64, field: &mut [u8]) {
    for bytes in field.as_chunks_mut::<8>().0 {
        *bytes = bits().to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
    }

    /// GGML's own order of writing: `get_scale_min_k4` and the loops of `dequantize_row_q4_K` and `dequantize_row_q6_K`.
    #[test]
    fn accessors_agree_with_the_order_of_ggml() {
        let noise = noise(210);
        let q4 = q4_k(&noise[..144]).unwrap()[0];
        let mut order = Vec::new();
        for group in q4.qs.as_chunks::<32>().0 {
            order.extend(group.map(|byte| byte & 15));
            order.extend(group.map(|byte| byte >> 4));
        }
        for (index, &quant) in order.iter().enumerate() {
            assert_eq!(q4.quant(index / 32, index % 32), i32::from(quant));
        }
        for j in 0..8 {
            let q = &q4.scales;
            let (scale, min) = if j < 4 {
                (q[j] & 63, q[j + 4] & 63)
            } else {
                ((q[j + 4] & 0xf) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4))
            };
            assert_eq!((q4.scale(j), q4.min(j)), (i32::from(scale), i32::from(min)));
        }

        let q6 = q6_k(&noise).unwrap()[0];
        let mut order = [0_i8; 256];
        for half in 0..2 {
            let (ql, qh) = (&q6.ql[64 * half..], &q6.qh[32 * half..]);
            for l in 0..32 {
                let y = &mut order[128 * half..];
                y[l] = ((ql[l] & 15) | ((qh[l] & 3) << 4)) as i8 - 32;
                y[l + 32] = ((ql[l + 32] & 15) | (((qh[l] >> 2) & 3) << 4)) as i8 - 32;
                y[l + 64] = ((ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4)) as i8 - 32;
                y[l + 96] = ((ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4)) as i8 - 32;
            }
        }
        for (index, &quant) in order.iter().enumerate() {
            assert_eq!(q6.quant(index / 16, index % 16), i32::from(quant));
        }
    }

    #[test]
    fn casts_demand_whole_blocks() {
        assert!(q4_k(&[0; 143]).is_none());
        assert_eq!(q4_k(&[0; 288]).unwrap().len(), 2);
        assert!(q6_k(&[0; 211]).is_none());
        assert_eq!(bytes(q6_k(&[7; 420]).unwrap()), [7; 420]);
        for &kind in TensorType::ALL {
            let bytes = vec![0; 3 * kind.bytes_of(BLOCK)];
            let blocks = Blocks::new(kind, &bytes);
            assert_eq!(blocks.map(|blocks| blocks.kind()), TensorType::MATRICES.contains(&kind).then_some(kind));
            assert!(Blocks::new(kind, &bytes[1..]).is_none());
        }
    }

    /// A tile has every byte of 256 weights once.
    fn has_every_byte<T: Weights>(kind: TensorType) {
        let mut bytes: Vec<usize> = T::TILE.iter().flat_map(Field::places).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..size_of::<T>()).collect::<Vec<_>>(), "{kind}");
    }

    fn factors(kind: TensorType, block: &[u8]) -> Vec<u32> {
        kind.factors().iter().map(|factor| factor.get(block).to_bits()).collect()
    }

    /// A type's accessors, its fast products and its factors' places say the same of its bytes.
    fn agrees_with_itself<T: SuperBlock>(kind: TensorType) {
        let noise = noise(3 * size_of::<T>());
        for (bytes, block) in noise.chunks_exact(size_of::<T>()).zip(blocks::<T>(&noise).unwrap()) {
            let mut products = [0; BLOCK];
            block.scaled_quants(&mut products);
            for (i, product) in products.into_iter().enumerate() {
                let (j, k) = (i / T::SUB_BLOCK, i % T::SUB_BLOCK);
                assert_eq!(i32::from(product), block.scale(j) * block.quant(j, k), "{kind}, weight {i}");
                assert!((-4096..=4096).contains(&i32::from(product)));
            }
            let expected = if T::MINS { vec![block.d(), block.dmin()] } else { vec![block.d()] };
            let expected: Vec<u32> = expected.into_iter().map(|factor| factor.to_f32().to_bits()).collect();
            assert_eq!(factors(kind, bytes), expected);
        }
    }

    fn small_agrees_with_itself<B: SmallBlock>(kind: TensorType) {
        let noise = noise(3 * size_of::<B>());
        for (bytes, block) in noise.chunks_exact(size_of::<B>()).zip(blocks::<B>(&noise).unwrap()) {
            let expected = if B::MINS { vec![block.d(), block.m().to_f32()] } else { vec![block.d()] };
            assert_eq!(factors(kind, bytes), expected.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        }
    }

    trait Agrees {
        fn agrees(kind: TensorType);
    }
    impl<T: SuperBlock> Agrees for T {
        fn agrees(kind: TensorType) {
            agrees_with_itself::<T>(kind);
        }
    }
    impl<B: SmallBlock> Agrees for Eight<B> {
        fn agrees(kind: TensorType) {
            small_agrees_with_itself::<B>(kind);
        }
    }

    #[test]
    fn every_type_agrees_with_itself() {
        for &kind in TensorType::MATRICES {
            with_weights!(kind, T => has_every_byte::<T>(kind), else unreachable!());
            with_weights!(kind, T => T::agrees(kind), else unreachable!());
        }
    }
}
