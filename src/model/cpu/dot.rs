//! Products of rows of quantized blocks with activations, fast.
//!
//! The oracle's sums are exact integers, so any order gives them. Here an activation X is split into three balanced
//! 16-bit parts, `X = low + 2^16 middle + 2^32 high`, and a weight with its sub-block's scale is an integer of 16 bits too:
//! the products are the multiply-adds of pairs of 16-bit integers that every x86-64 with AVX2 does 16 at a time. What is
//! not an exact integer is done as the oracle does it.

use crate::blocks::{BLOCK, Eight, SmallBlock, SuperBlock, Weights, with_blocks};
use crate::oracle::matvec::join;
use crate::oracle::tree::TreeSum;
use crate::oracle::{FixedBlock, Matrix, canonical};

/// A fixed-point block as the products here want it.
#[derive(Clone, Debug)]
pub struct SplitBlock {
    /// Low, middle and high parts.
    parts: [[i16; BLOCK]; 3],
    /// Sums of the sub-blocks of 16 and of 32, exact.
    sums_of_16: [f64; 16],
    sums_of_32: [f64; 8],
    unit: f64,
}

impl SplitBlock {
    /// The block of 256 activations of 0.
    pub const ZERO: Self = Self { parts: [[0; BLOCK]; 3], sums_of_16: [0.0; 16], sums_of_32: [0.0; 8], unit: 0.0 };
}

impl From<&FixedBlock> for SplitBlock {
    #[inline(always)]
    fn from(block: &FixedBlock) -> Self {
        let mut rest = block.x;
        // |X| <= 2^38, so |high| <= 2^6.
        let parts = std::array::from_fn(|_| {
            let part = rest.map(|x| x as i16);
            rest = std::array::from_fn(|k| (rest[k] - i64::from(part[k])) >> 16);
            part
        });
        let sub_blocks = block.x.as_chunks::<16>().0;
        let sums: [i64; 16] = std::array::from_fn(|j| sub_blocks[j].iter().sum());
        Self {
            parts,
            sums_of_16: sums.map(|sum| sum as f64),
            sums_of_32: std::array::from_fn(|j| (sums[2 * j] + sums[2 * j + 1]) as f64),
            unit: block.unit,
        }
    }
}

/// A type's 256 weights as the products want them.
trait Unpack: Weights {
    type Unpacked: Default + Clone;

    fn unpack(&self, to: &mut Self::Unpacked);

    /// v of `docs/arithmetic.md`, with `dot` for the integer sums over 256 weights.
    fn v(w: &Self::Unpacked, x: &SplitBlock, dot: impl Fn(&[i16; BLOCK], &SplitBlock) -> i64) -> f64;
}

/// Integer weights of a super-block with what turns an integer sum into its contribution.
#[derive(Clone)]
struct Scaled {
    /// `scale * quant`, at most 4096 in size.
    weights: [i16; BLOCK],
    d: f64,
    dmin: f64,
    /// Mins of the sub-blocks, as many as there are; all 0 in a type without.
    mins: [f64; 16],
}

impl Default for Scaled {
    fn default() -> Self {
        Self { weights: [0; BLOCK], d: 0.0, dmin: 0.0, mins: [0.0; 16] }
    }
}

impl<T: SuperBlock> Unpack for T {
    type Unpacked = Scaled;

    #[inline(always)]
    fn unpack(&self, to: &mut Scaled) {
        self.scaled_quants(&mut to.weights);
        to.d = f64::from(self.factor());
        if T::MINS {
            to.dmin = self.dmin().to_f64();
            for (j, min) in to.mins[..BLOCK / T::SUB_BLOCK].iter_mut().enumerate() {
                *min = f64::from(self.min(j));
            }
        }
    }

    #[inline(always)]
    fn v(w: &Scaled, x: &SplitBlock, dot: impl Fn(&[i16; BLOCK], &SplitBlock) -> i64) -> f64 {
        let v = w.d * dot(&w.weights, x) as f64;
        if !T::MINS {
            return v;
        }
        // Integers below 2^53 throughout: exact in any order.
        let sums: &[f64] = if T::SUB_BLOCK == 32 { &x.sums_of_32 } else { &x.sums_of_16 };
        let m: f64 = w.mins.iter().zip(sums).map(|(min, sum)| min * sum).sum();
        (-w.dmin).mul_add(m, v)
    }
}

/// Eight blocks of integer weights with their factors.
#[derive(Clone)]
struct Factored {
    weights: [i16; BLOCK],
    d: [f64; 8],
    m: [f64; 8],
}

impl Default for Factored {
    fn default() -> Self {
        Self { weights: [0; BLOCK], d: [0.0; 8], m: [0.0; 8] }
    }
}

impl<B: SmallBlock> Unpack for Eight<B> {
    type Unpacked = Factored;

    #[inline(always)]
    fn unpack(&self, to: &mut Factored) {
        for (j, (block, weights)) in self.0.iter().zip(to.weights.as_chunks_mut::<32>().0).enumerate() {
            *weights = block.quants().map(i16::from);
            to.d[j] = f64::from(block.d());
            to.m[j] = block.m().to_f64();
        }
    }

    #[inline(always)]
    fn v(w: &Factored, x: &SplitBlock, _: impl Fn(&[i16; BLOCK], &SplitBlock) -> i64) -> f64 {
        let weights = w.weights.as_chunks::<32>().0;
        let parts = x.parts.each_ref().map(|part| part.as_chunks::<32>().0);
        let v: [f64; 8] = std::array::from_fn(|j| {
            // 32 products of 8 and 16 bits.
            let [low, middle, high] = parts
                .map(|part| weights[j].iter().zip(&part[j]).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum::<i32>());
            let t = i64::from(low) + (i64::from(middle) << 16) + (i64::from(high) << 32);
            let v = w.d[j] * t as f64;
            if B::MINS { w.m[j].mul_add(x.sums_of_32[j], v) } else { v }
        });
        join(v)
    }
}

/// `sum weights[k] * X[k]`, exact.
///
/// Sums of 16 products of a weight and a part of an activation fit into 32 bits: `16 * 4096 * 2^15 = 2^31`, and the positive
/// extreme is not reached, because a product of `-32 * -128` and `32767` is less and `-2^15` has a negative product.
#[inline(always)]
fn integer_dot(weights: &[i16; BLOCK], x: &SplitBlock) -> i64 {
    let mut total = 0;
    for (part, x) in x.parts.iter().enumerate() {
        for half in [0, 128] {
            let mut sums = [0_i32; 8];
            for i in (half..half + 128).step_by(16) {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    for k in [i + 2 * lane, i + 2 * lane + 1] {
                        *sum += i32::from(weights[k]) * i32::from(x[k]);
                    }
                }
            }
            total += sums.iter().map(|&sum| i64::from(sum)).sum::<i64>() << (16 * part);
        }
    }
    total
}

/// [`integer_dot`] with AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline]
fn integer_dot_avx2(weights: &[i16; BLOCK], x: &SplitBlock) -> i64 {
    use std::arch::x86_64::*;
    // SAFETY: the pointers are valid for 32 bytes, the loads need no alignment.
    let load = |values: &[i16; 16]| unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
    let widen = |sums: __m256i| {
        let (a, b) = (_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        _mm256_add_epi64(_mm256_cvtepi32_epi64(a), _mm256_cvtepi32_epi64(b))
    };
    let mut total = _mm256_setzero_si256();
    let weights = weights.as_chunks().0;
    let [x_low, x_middle, x_high] = x.parts.each_ref().map(|part| part.as_chunks().0);
    // All of the high parts' products fit into 32 bits: 32 * 4096 * 2^6 in each of eight sums.
    let mut high = _mm256_setzero_si256();
    for half in [0, 8] {
        let (mut low, mut middle) = (_mm256_setzero_si256(), _mm256_setzero_si256());
        for i in half..half + 8 {
            let w = load(&weights[i]);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(w, load(&x_low[i])));
            middle = _mm256_add_epi32(middle, _mm256_madd_epi16(w, load(&x_middle[i])));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(w, load(&x_high[i])));
        }
        total = _mm256_add_epi64(total, _mm256_add_epi64(widen(low), _mm256_slli_epi64::<16>(widen(middle))));
    }
    total = _mm256_add_epi64(total, _mm256_slli_epi64::<32>(widen(high)));
    let pair = _mm_add_epi64(_mm256_castsi256_si128(total), _mm256_extracti128_si256::<1>(total));
    _mm_cvtsi128_si64(pair) + _mm_extract_epi64::<1>(pair)
}

/// Rows that are unpacked together, so that activations are loaded once for all of them.
const TILE: usize = 16;

/// `out[row][token] = w[row] x[token]`, with `dot` for the integer sums.
#[inline(always)]
fn rows<T: Unpack>(w: &[T], x: &[&[SplitBlock]], out: &mut [f32], dot: impl Fn(&[i16; BLOCK], &SplitBlock) -> i64) {
    let (tokens, blocks) = (x.len(), x[0].len());
    // A single token reads the weights in the order of memory.
    let tile = if tokens == 1 { 1 } else { TILE };
    let mut unpacked = vec![T::Unpacked::default(); tile];
    let mut sums = vec![TreeSum::default(); tile * tokens];
    for (w, out) in w.chunks(tile * blocks).zip(out.chunks_mut(tile * tokens)) {
        sums.fill(TreeSum::default());
        let in_tile = w.len() / blocks;
        for block in 0..blocks {
            for (row, unpacked) in unpacked[..in_tile].iter_mut().enumerate() {
                w[row * blocks + block].unpack(unpacked);
            }
            for (token, x) in x.iter().enumerate() {
                let x = &x[block];
                for (row, w) in unpacked[..in_tile].iter().enumerate() {
                    sums[row * tokens + token].add(x.unit * T::v(w, x, &dot));
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = canonical(sum.sum() as f32);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn rows_avx2<T: Unpack>(w: &[T], x: &[&[SplitBlock]], out: &mut [f32]) {
    rows(w, x, out, |weights, x| integer_dot_avx2(weights, x));
}

fn rows_of<T: Unpack>(w: &[T], x: &[&[SplitBlock]], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the CPU has the features.
        return unsafe { rows_avx2(w, x, out) };
    }
    rows(w, x, out, integer_dot);
}

/// `out[row][token] = w[first + row] x[token]` for as many rows as `out` holds. `x` has one entry for each token, at
/// least one, of `cols / 256` blocks.
pub fn product(w: Matrix<'_>, first: usize, x: &[&[SplitBlock]], out: &mut [f32]) {
    let (blocks, rows) = (x[0].len(), out.len() / x.len());
    let range = first * blocks..(first + rows) * blocks;
    with_blocks!(w, w => rows_of(&w[range], x, out));
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
        // The largest low and middle parts of either sign.
        x[2].x = [-32768 * 65537; BLOCK];
        x[3].x = [32767 * 65537; BLOCK];
        x
    }

    fn agrees(w: Matrix<'_>, rows_in_w: usize, blocks: usize) {
        agrees_on(w, rows_in_w, &[0, 100, 200].map(|seed| activations(blocks, seed)));
    }

    /// For the first row of activations, for the first two of them, and so on.
    fn agrees_on(w: Matrix<'_>, rows_in_w: usize, x: &[Vec<FixedBlock>]) {
        let split: Vec<Vec<SplitBlock>> = x.iter().map(|x| x.iter().map(SplitBlock::from).collect()).collect();
        for tokens in 1..=x.len() {
            let refs: Vec<&[SplitBlock]> = split[..tokens].iter().map(Vec::as_slice).collect();
            let expected: Vec<u32> =
                (0..rows_in_w).flat_map(|row| x[..tokens].iter().map(move |x| w.dot(row, x).to_bits())).collect();
            let mut out = vec![0.0; rows_in_w * tokens];
            product(w, 0, &refs, &mut out);
            assert_eq!(out.iter().map(|y| y.to_bits()).collect::<Vec<_>>(), expected);
            with_blocks!(w, w => rows(w, &refs, &mut out, integer_dot));
            assert_eq!(out.iter().map(|y| y.to_bits()).collect::<Vec<_>>(), expected);
        }
    }

    /// Random bits, a row of the smallest scales, mins and quants, and one of the largest (but for signs).
    #[test]
    fn equals_the_oracle() {
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
