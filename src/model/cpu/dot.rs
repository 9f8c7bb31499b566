//! Products of rows of quantized blocks with activations, fast.
//!
//! The oracle's sums are exact integers, so any order gives them, and `sums.rs` computes them with what the CPU has: eight products at
//! once, of R rows and T tokens, R T = 8. Rows are unpacked to integers of 16 bits, a tile of them for as many tokens as there are. What
//! is not an exact integer is done as the oracle does it.

use std::ops::Add;

use super::sums::{DIGIT_BITS, Digits, Integers, Plain, Sums, place_by_block};
use crate::blocks::{BLOCK, Eight, SmallBlock, SuperBlock, Weights, with_blocks};
use crate::oracle::tree::TreeSum;
use crate::oracle::{FixedBlock, Matrix, canonical};

/// A fixed-point block as the products here want it.
#[derive(Clone, Debug)]
pub struct SplitBlock {
    /// Its digits in order.
    digits: Digits,
    /// The same ones as [`place_by_block`] says.
    by_block: Digits,
    /// Sums of the sub-blocks of 16 and of 32, exact.
    sums_of_16: [f64; 16],
    sums_of_32: [f64; 8],
    unit: f64,
}

impl SplitBlock {
    /// The block of 256 activations of 0.
    pub const ZERO: Self = Self {
        digits: [Integers::ZERO; 3],
        by_block: [Integers::ZERO; 3],
        sums_of_16: [0.0; 16],
        sums_of_32: [0.0; 8],
        unit: 0.0,
    };
}

impl From<&FixedBlock> for SplitBlock {
    #[inline(always)]
    fn from(block: &FixedBlock) -> Self {
        let mut rest = block.x;
        let mut lower = || {
            let digit = rest.map(|x| (x << (64 - DIGIT_BITS)) >> (64 - DIGIT_BITS));
            rest = std::array::from_fn(|k| (rest[k] - digit[k]) >> DIGIT_BITS);
            digit
        };
        let (low, middle) = (lower(), lower());
        // What is left is at most 2^12 in size, of either sign.
        let digits = [low, middle, rest].map(|digits| digits.map(|digit| digit as i16));
        let sub_blocks = block.x.as_chunks::<16>().0;
        let sums: [i64; 16] = std::array::from_fn(|j| sub_blocks[j].iter().sum());
        Self {
            by_block: digits.each_ref().map(by_block),
            digits: digits.map(Integers),
            sums_of_16: sums.map(|sum| sum as f64),
            sums_of_32: std::array::from_fn(|j| (sums[2 * j] + sums[2 * j + 1]) as f64),
            unit: block.unit,
        }
    }
}

/// Integers in the order of [`place_by_block`].
#[inline(always)]
fn by_block(from: &[i16; BLOCK]) -> Integers {
    let mut to = Integers::ZERO;
    for (block, from) in from.as_chunks::<32>().0.iter().enumerate() {
        for (i, from) in from.as_chunks::<4>().0.iter().enumerate() {
            to.0[place_by_block(block, 4 * i)..][..4].copy_from_slice(from);
        }
    }
    to
}

/// A type's 256 weights as the products want them.
trait Unpack: Weights {
    type Unpacked: Clone;

    const ZERO: Self::Unpacked;

    fn unpack(&self, to: &mut Self::Unpacked);

    /// v of `docs/arithmetic.md` for row r and token t in place `t * R + r`.
    fn v<const R: usize, const T: usize>(sums: impl Sums, w: &[Self::Unpacked; R], x: [&SplitBlock; T]) -> [f64; 8];
}

/// Integer weights of a super-block with what turns an integer sum into its contribution.
#[derive(Clone)]
struct Scaled {
    /// `scale * quant`, at most 4096 in size.
    weights: Integers,
    d: f64,
    dmin: f64,
    /// Mins of the sub-blocks, as many as there are; all 0 in a type without.
    mins: [f64; 16],
}

impl<T: SuperBlock> Unpack for T {
    type Unpacked = Scaled;

    const ZERO: Scaled = Scaled { weights: Integers::ZERO, d: 0.0, dmin: 0.0, mins: [0.0; 16] };

    #[inline(always)]
    fn unpack(&self, to: &mut Scaled) {
        self.scaled_quants(&mut to.weights.0);
        to.d = f64::from(self.factor());
        if T::MINS {
            to.dmin = self.dmin().to_f64();
            for (j, min) in to.mins[..BLOCK / T::SUB_BLOCK].iter_mut().enumerate() {
                *min = f64::from(self.min(j));
            }
        }
    }

    #[inline(always)]
    fn v<const R: usize, const N: usize>(sums: impl Sums, w: &[Scaled; R], x: [&SplitBlock; N]) -> [f64; 8] {
        let t = sums.dots(w.each_ref().map(|w| &w.weights), x.map(|x| &x.digits));
        let mut v = [0.0; 8];
        for i in 0..8 {
            v[i] = w[i % R].d * t[i] as f64;
        }
        if T::MINS {
            // Integers below 2^53 throughout: exact in any order.
            let mut products = [[0.0; 8]; 8];
            for i in 0..8 {
                let (mins, x) = (&w[i % R].mins, x[i / R]);
                for j in 0..8 {
                    products[i][j] = if T::SUB_BLOCK == 32 {
                        mins[j] * x.sums_of_32[j]
                    } else {
                        mins[8 + j].mul_add(x.sums_of_16[8 + j], mins[j] * x.sums_of_16[j])
                    };
                }
            }
            let m = sums.add_lanes(products);
            for i in 0..8 {
                v[i] = (-w[i % R].dmin).mul_add(m[i], v[i]);
            }
        }
        v
    }
}

/// Eight blocks of integer weights, as [`place_by_block`] says, with their factors.
#[derive(Clone)]
struct Factored {
    weights: Integers,
    d: [f64; 8],
    m: [f64; 8],
}

impl<B: SmallBlock> Unpack for Eight<B> {
    type Unpacked = Factored;

    const ZERO: Factored = Factored { weights: Integers::ZERO, d: [0.0; 8], m: [0.0; 8] };

    #[inline(always)]
    fn unpack(&self, to: &mut Factored) {
        let mut quants = [0; BLOCK];
        for (j, (block, quants)) in self.0.iter().zip(quants.as_chunks_mut::<32>().0).enumerate() {
            *quants = block.quants().map(i16::from);
            to.d[j] = f64::from(block.d());
            to.m[j] = block.m().to_f64();
        }
        to.weights = by_block(&quants);
    }

    #[inline(always)]
    fn v<const R: usize, const T: usize>(sums: impl Sums, w: &[Factored; R], x: [&SplitBlock; T]) -> [f64; 8] {
        let mut v = [[0.0; 8]; 8];
        for i in 0..8 {
            let (w, x) = (&w[i % R], x[i / R]);
            let t = sums.dots_by_block(&w.weights, &x.by_block);
            for j in 0..8 {
                v[i][j] = w.d[j] * t[j] as f64;
                if B::MINS {
                    v[i][j] = w.m[j].mul_add(x.sums_of_32[j], v[i][j]);
                }
            }
        }
        sums.add_lanes(v)
    }
}

/// Sums of eight products.
#[derive(Clone, Copy, Debug, Default)]
struct Lanes([f64; 8]);

impl Add for Lanes {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
}

/// Rows that are unpacked together for more than one token: they and a few tokens' activations stay in the first cache.
const TILE: usize = 16;

/// Adds the products of a block of a tile's weights with `T` tokens' activations to their sums, those of R neighbouring rows in each.
#[inline(always)]
fn add_block<T: Unpack, const R: usize, const N: usize>(
    sums: impl Sums,
    w: &[T::Unpacked],
    x: [&SplitBlock; N],
    to: &mut [TreeSum<Lanes>],
) {
    let units: [f64; 8] = std::array::from_fn(|i| x[i / R].unit);
    for (w, to) in w.as_chunks::<R>().0.iter().zip(to) {
        let v = T::v(sums, w, x);
        to.add(Lanes(std::array::from_fn(|i| units[i] * v[i])));
    }
}

/// `out[row][token] = w[row] x[token]` for as many rows as `out` holds.
#[inline(always)]
fn rows<T: Unpack>(sums: impl Sums, w: &[T], x: &[&[SplitBlock]], out: &mut [f32]) {
    let (tokens, blocks) = (x.len(), x[0].len());
    // A single token needs no more than what is computed at once.
    let tile = if tokens == 1 { 8 } else { TILE };
    let mut unpacked = vec![T::ZERO; tile];
    // Of each token as many as a tile has rows, by eight: those of the next four tokens, of the next two, and of the last one.
    let mut totals = vec![TreeSum::default(); tile / 8 * tokens];
    for (i, out) in out.chunks_mut(tile * tokens).enumerate() {
        totals.fill(TreeSum::default());
        let in_tile = out.len() / tokens;
        let (w, behind) = w[i * tile * blocks..].split_at(in_tile * blocks);
        // What lies behind the last row stays what it is, and goes nowhere.
        let in_use = &mut unpacked[..in_tile.next_multiple_of(8)];
        for block in 0..blocks {
            for (row, unpacked) in in_use[..in_tile].iter_mut().enumerate() {
                w[row * blocks + block].unpack(unpacked);
            }
            // As many of the next tile's as this step is of this one.
            prefetch(&behind[(block * tile).min(behind.len())..((block + 1) * tile).min(behind.len())]);
            for (first, count) in groups(tokens) {
                let to = &mut totals[tile / 8 * first..][..tile / 8 * count];
                match count {
                    4 => add_block::<T, 2, 4>(sums, in_use, std::array::from_fn(|t| &x[first + t][block]), to),
                    2 => add_block::<T, 4, 2>(sums, in_use, std::array::from_fn(|t| &x[first + t][block]), to),
                    _ => add_block::<T, 8, 1>(sums, in_use, [&x[first][block]], to),
                }
            }
        }
        for (first, count) in groups(tokens) {
            let rows = 8 / count;
            let totals = &totals[tile / 8 * first..][..tile / 8 * count];
            for (out, total) in out.chunks_mut(rows * tokens).zip(totals) {
                let total = total.sum().0;
                for (row, out) in out.chunks_exact_mut(tokens).enumerate() {
                    for (t, out) in out[first..][..count].iter_mut().enumerate() {
                        *out = canonical(total[t * rows + row] as f32);
                    }
                }
            }
        }
    }
}

/// Tokens by fours, two of those that are left, and the last one: the first of each group, and how many.
#[inline(always)]
fn groups(tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let count = match tokens - first {
            0 => return None,
            1 => 1,
            2 | 3 => 2,
            _ => 4,
        };
        first += count;
        Some((first - count, count))
    })
}

/// Asks for blocks ahead of time.
#[inline(always)]
fn prefetch<T: Weights>(w: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in crate::blocks::bytes(w).chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction reads nothing that the program sees, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = w;
}

/// What computes the sums, of those that the CPU has.
#[derive(Clone, Copy, Debug)]
enum Instructions {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2(super::sums::avx2::Avx2),
    #[cfg(kqm_avx512)]
    Avx512(super::sums::avx512::Avx512),
}

impl Instructions {
    /// All that the CPU has, the fastest ones first.
    fn all() -> impl Iterator<Item = Self> {
        let all = [
            #[cfg(kqm_avx512)]
            super::sums::avx512::Avx512::new().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            super::sums::avx2::Avx2::new().map(Self::Avx2),
            Some(Self::Plain),
        ];
        all.into_iter().flatten()
    }

    fn rows<T: Unpack>(self, w: &[T], x: &[&[SplitBlock]], out: &mut [f32]) {
        /// Where `rows` is compiled for the instructions.
        fn with<T: Unpack>(sums: impl Sums, w: &[T], x: &[&[SplitBlock]], out: &mut [f32]) {
            sums.call(
                #[inline(always)]
                || rows(sums, w, x, out),
            );
        }
        match self {
            Self::Plain => with(Plain, w, x, out),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(sums) => with(sums, w, x, out),
            #[cfg(kqm_avx512)]
            Self::Avx512(sums) => with(sums, w, x, out),
        }
    }

    /// [`product`] with these.
    fn product(self, w: Matrix<'_>, first: usize, x: &[&[SplitBlock]], out: &mut [f32]) {
        with_blocks!(w, w => self.rows(&w[first * x[0].len()..], x, out));
    }
}

/// `out[row][token] = w[first + row] x[token]` for as many rows as `out` holds. `x` has one entry for each token, at
/// least one, of `cols / 256` blocks.
pub fn product(w: Matrix<'_>, first: usize, x: &[&[SplitBlock]], out: &mut [f32]) {
    let instructions = Instructions::all().next().expect("the plain ones are always there");
    instructions.product(w, first, x, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    use crate::blocks::TensorType;

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mix = |i: u64| (i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..len as u64).map(|i| (mix(mix(i) >> 29) >> 56) as u8).collect()
    }

    /// Rows that make the integer sums as large as they get, in both directions, next to random ones.
    fn activations(blocks: usize, seed: u64) -> Vec<FixedBlock> {
        let mut x: Vec<FixedBlock> = (0..blocks as u64)
            .map(|block| {
                let bytes = noise(2048, seed + block);
                let words = bytes.as_chunks().0;
                FixedBlock { x: std::array::from_fn(|k| i64::from_le_bytes(words[k]) >> 25), unit: 2_f64.powi(-37) }
            })
            .collect();
        x[0].x = [1 << 38; BLOCK];
        x[1].x = [-(1 << 38); BLOCK];
        // The largest low and middle digits of either sign.
        x[2].x = [-4096 * 8193; BLOCK];
        x[3].x = [4095 * 8193; BLOCK];
        x
    }

    fn agrees(w: Matrix<'_>, rows_in_w: usize, blocks: usize) {
        let x: [_; 7] = std::array::from_fn(|token| activations(blocks, 100 * token as u64));
        agrees_on(w, rows_in_w, &x);
    }

    /// For the first row of activations, for the first two of them, and so on.
    fn agrees_on(w: Matrix<'_>, rows_in_w: usize, x: &[Vec<FixedBlock>]) {
        let split: Vec<Vec<SplitBlock>> = x.iter().map(|x| x.iter().map(SplitBlock::from).collect()).collect();
        let dots: Vec<Vec<u32>> =
            (0..rows_in_w).map(|row| x.iter().map(|x| w.dot(row, x).to_bits()).collect()).collect();
        for tokens in 1..=x.len() {
            let refs: Vec<&[SplitBlock]> = split[..tokens].iter().map(Vec::as_slice).collect();
            let expected: Vec<u32> = dots.iter().flat_map(|dots| &dots[..tokens]).copied().collect();
            for instructions in Instructions::all() {
                let mut out = vec![0.0; rows_in_w * tokens];
                instructions.product(w, 0, &refs, &mut out);
                let bits: Vec<_> = out.iter().map(|y| y.to_bits()).collect();
                assert_eq!(bits, expected, "{instructions:?}, {}, {tokens} tokens", w.kind());
            }
        }
    }

    /// Random bits, a row of the smallest scales, mins and quants, and one of the largest (but for signs).
    #[test]
    fn equals_the_oracle() {
        println!("{:?}", Instructions::all().collect::<Vec<_>>());
        let (rows, in_row) = (19, 5);
        for (seed, &kind) in TensorType::MATRICES.iter().enumerate() {
            let row_bytes = kind.bytes_of(in_row * BLOCK);
            let mut bytes = noise(rows * row_bytes, seed as u64 + 1);
            for (row, blocks) in bytes.chunks_exact_mut(row_bytes).enumerate() {
                for block in blocks.chunks_exact_mut(kind.block_bytes()) {
                    if row < 2 {
                        block.fill([0, 0xff][row]);
                    }
                    for &factor in kind.factors() {
                        let size = f16::from_f32(0.01 + factor.get(block).abs().min(0.1));
                        factor.set(block, if row % 2 == 0 { size } else { -size });
                    }
                }
            }
            agrees(Matrix::new(kind, &bytes).unwrap(), rows, in_row);
        }
    }

    /// The largest products of scale and quant of either sign.
    #[test]
    fn equals_the_oracle_at_the_ends_of_q6_k() {
        let (rows, in_row) = (4, 5);
        let mut bytes = noise(rows * in_row * 210, 2);
        for (row, (quant, scale)) in [(0, 0x80), (0, 0x7f), (0xff, 0x80), (0xff, 0x7f)].into_iter().enumerate() {
            for block in bytes.as_chunks_mut::<210>().0[row * in_row..][..in_row].iter_mut() {
                block[..192].fill(quant);
                block[192..208].fill(scale);
                block[209] &= 0x3f;
            }
        }
        agrees(Matrix::new(TensorType::Q6K, &bytes).unwrap(), rows, in_row);
    }

    /// Blocks whose contributions cancel, so that the sum shows its order; and d T = dmin M, where all that is left is what the first
    /// product lost.
    #[test]
    fn equals_the_oracle_where_sums_cancel() {
        // One activation in each block, of 2^0 or of +-2^60, with units to match.
        let exponents = [0, 60, 1, 60, 58, 2, 0, 58, 3, 60, 0, 60, 5, 57, 1, 57, 0, 2, 60, 60, 1];
        let negative = [3, 7, 11, 15, 19];
        let x: Vec<FixedBlock> = exponents
            .iter()
            .enumerate()
            .map(|(place, &exponent)| {
                let mut block = FixedBlock { x: [0; BLOCK], unit: 2_f64.powi(exponent - 37) };
                block.x[7 * place] = if negative.contains(&place) { -(1 << 37) } else { 1 << 37 };
                block
            })
            .collect();
        let mut bytes = Vec::new();
        for row in 0..18 {
            for _ in 0..x.len() {
                // Factors 1 + row / 1024 and 0, scales and quants of 1.
                bytes.extend([row, 0x3c, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]);
                bytes.extend([0x11; 128]);
            }
        }
        agrees_on(Matrix::new(TensorType::Q4K, &bytes).unwrap(), 18, &[x.clone(), x]);

        // Random ones, which use all bits of the integers: the first four blocks are others.
        let x = activations(7, 7).split_off(4);
        let mut bytes = Vec::new();
        for row in 0..18 {
            for _ in 0..x.len() {
                // d = dmin, scales and mins of 63, quants of 1.
                bytes.extend([2 * row + 1, 0x3c, 2 * row + 1, 0x3c]);
                bytes.extend([0xff; 12]);
                bytes.extend([0x11; 128]);
            }
        }
        let w = Matrix::new(TensorType::Q4K, &bytes).unwrap();
        assert!((0..18).any(|row| w.dot(row, &x) != 0.0));
        agrees_on(w, 18, &[x.clone(), x]);
    }

    #[test]
    fn a_block_that_is_not_finite_makes_the_product_nan() {
        let x = [FixedBlock { x: [0; BLOCK], unit: f64::NAN }];
        let split = [SplitBlock::from(&x[0])];
        let bytes = noise(144, 3);
        let mut out = [0.0];
        product(Matrix::new(TensorType::Q4K, &bytes).unwrap(), 0, &[&split], &mut out);
        assert_eq!(out[0].to_bits(), 0x7fc0_0000);
    }
}
