//! Random operands.

use half::{bf16, f16};
use kquant_moe::blocks::TensorType::{IQ4XS, Q2K, Q3K, Q4K, Q5K, Q6K};
use kquant_moe::blocks::{BLOCK, Factor, TensorType};
use kquant_moe::device::Device;
use kquant_moe::kernels::Matrix;
use kquant_moe::oracle::{self, FixedBlock};

use super::compare::ok;

/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    pub fn gaussian(&mut self) -> f32 {
        ((-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }

    /// Cauchy: has no variance.
    fn heavy_tailed(&mut self) -> f32 {
        (std::f64::consts::PI * (self.uniform() - 0.5)).tan() as f32
    }

    /// Below 2^`exponent` in size, of several sizes: as `tests/data/pins.py` has it.
    pub fn number(&mut self, exponent: i32) -> f32 {
        let bits = self.bits();
        let integer = (bits >> 40) as i32 - (1 << 23);
        (f64::from(integer) * 2_f64.powi(exponent - 23 - (bits % 8) as i32)) as f32
    }

    pub fn numbers(&mut self, exponent: i32, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number(exponent)).collect()
    }

    pub fn gaussians(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.gaussian()).collect()
    }

    /// `count` different numbers below `n`, in no order.
    pub fn distinct(&mut self, n: usize, count: usize) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..n as u32).collect();
        for i in 0..count {
            let other = i + self.below(n - i);
            numbers.swap(i, other);
        }
        numbers.truncate(count);
        numbers
    }
}

/// Distributions of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    Gaussian,
    HeavyTailed,
    Zero,
    OneHot,
    Denormal,
    /// Near the largest f32.
    Large,
    /// Gaussian, with one NaN or infinity.
    NonFinite,
    /// Every run of 256 of another distribution, without the last one.
    Mixed,
}

impl Activations {
    pub const ALL: [Self; 8] = [
        Self::Gaussian,
        Self::HeavyTailed,
        Self::Zero,
        Self::OneHot,
        Self::Denormal,
        Self::Large,
        Self::NonFinite,
        Self::Mixed,
    ];

    /// One row.
    pub fn row(self, random: &mut Random, cols: usize) -> Vec<f32> {
        let at = random.below(cols);
        match self {
            Self::Gaussian => random.gaussians(cols),
            Self::HeavyTailed => (0..cols).map(|_| random.heavy_tailed()).collect(),
            Self::Zero => (0..cols).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }).collect(),
            Self::OneHot => (0..cols).map(|i| if i == at { -1.5 } else { 0.0 }).collect(),
            Self::Denormal => (0..cols)
                .map(|_| {
                    let bits = random.bits() as u32;
                    // Of every magnitude, down to the smallest number.
                    f32::from_bits(bits & 0x8000_0000 | (bits & 0x007f_ffff) >> random.below(23))
                })
                .collect(),
            Self::Large => (0..cols)
                .map(|i| if i == at { -f32::MAX } else { f32::MAX * (random.uniform() as f32 * 2.0 - 1.0) })
                .collect(),
            Self::NonFinite => {
                let mut row = random.gaussians(cols);
                // NaNs with a payload and a sign: results have neither.
                let values = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::from_bits(0xffc1_2345)];
                row[at] = values[random.below(values.len())];
                row
            }
            Self::Mixed => {
                let run = |_| Self::ALL[random.below(6)].row(random, BLOCK);
                let mut row: Vec<f32> = (0..cols.div_ceil(BLOCK)).flat_map(run).collect();
                row.truncate(cols);
                row
            }
        }
    }

    /// Rows of all distributions in turn, starting with the `first`.
    pub fn rows(random: &mut Random, first: usize, rows: usize, cols: usize) -> Vec<f32> {
        (0..rows).flat_map(|row| Self::ALL[(first + row) % Self::ALL.len()].row(random, cols)).collect()
    }
}

/// Whether a row holds a NaN or an infinity.
pub fn has_non_finite(row: &[f32]) -> bool {
    row.iter().any(|x| !x.is_finite())
}

/// NaNs with another payload, another sign, and both; the third one is a signalling NaN.
pub const NANS: [f32; 4] = [
    f32::from_bits(0x7fff_ffff),
    f32::from_bits(0xffc0_0001),
    f32::from_bits(0x7fa0_0000),
    f32::from_bits(0xffbf_ffff),
];

/// The same as f16.
pub const HALF_NANS: [f16; 4] =
    [f16::from_bits(0x7fff), f16::from_bits(0xfe01), f16::from_bits(0x7d00), f16::from_bits(0xfdff)];

/// Numbers as a file has them in a type of floats.
pub fn floats_as(kind: TensorType, numbers: &[f32]) -> Vec<u8> {
    match kind {
        TensorType::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        TensorType::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        TensorType::BF16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        other => unreachable!("{other}"),
    }
}

/// The same as bits of two bytes each.
pub fn halves_as(kind: TensorType, numbers: &[f32]) -> Vec<u16> {
    floats_as(kind, numbers).as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes)).collect()
}

/// A row of one number in each super-block, somewhere in it.
pub fn one_a_block(random: &mut Random, numbers: &[f32]) -> Vec<f32> {
    numbers
        .iter()
        .flat_map(|&number| {
            let at = random.below(BLOCK);
            (0..BLOCK).map(move |k| if k == at { number } else { 0.0 })
        })
        .collect()
}

/// Activations as the oracle and as the kernels take them.
pub fn fixed_blocks(x: &[f32]) -> (Vec<FixedBlock>, Vec<kquant_moe::kernels::FixedBlock>) {
    let blocks: Vec<FixedBlock> = x.as_chunks().0.iter().map(FixedBlock::new).collect();
    let digits = blocks.iter().map(FixedBlock::digits).collect();
    (blocks, digits)
}

/// Types that kernels for several matrices choose between (`cuda/common/types.cuh`).
pub const CHOSEN: [TensorType; 6] = [Q2K, Q3K, Q4K, Q5K, Q6K, IQ4XS];

/// Types of three matrices: all of one type, of every type and its neighbours, and of every pair of the types that kernels choose between.
pub fn mixes() -> Vec<[TensorType; 3]> {
    let of = |kinds: &[TensorType], places: [usize; 3]| places.map(|i| kinds[i % kinds.len()]);
    let all = TensorType::MATRICES;
    let mut mixes: Vec<_> = (0..all.len()).flat_map(|i| [of(all, [i; 3]), of(all, [i, i + 1, i + 3])]).collect();
    mixes.extend((0..2 * CHOSEN.len()).map(|i| of(&CHOSEN, [i, i + 1 + i / CHOSEN.len(), i + 3])));
    mixes
}

/// 256 weights that are all this factor, times integers of 1.
fn equal_weights(kind: TensorType, factor: f16) -> Vec<u8> {
    let d = factor.to_le_bytes();
    // Bytes and how often they come.
    let parts: &[(&[u8], usize)] = match kind {
        // Scales of 1, mins of 0, quants of 1.
        TensorType::Q2K => &[(&[1], 16), (&[0x55], 64), (&d, 1), (&[0, 0], 1)],
        // Quants of 4 + 1, scales of 32 + 1.
        TensorType::Q3K => &[(&[0xff], 32), (&[0x55], 64), (&[0x11], 8), (&[0xaa], 4), (&d, 1)],
        // Scales of 1, mins of 0, quants of 1.
        TensorType::Q4K => &[(&d, 1), (&[0, 0], 1), (&[1], 4), (&[0], 4), (&[1], 4), (&[0x11], 128)],
        // The same without fifth bits.
        TensorType::Q5K => &[(&d, 1), (&[0, 0], 1), (&[1], 4), (&[0], 4), (&[1], 4), (&[0], 32), (&[0x11], 128)],
        // Quants of 32 + 1, scales of 1.
        TensorType::Q6K => &[(&[0x11], 128), (&[0xaa], 64), (&[1], 16), (&d, 1)],
        // Quants of 1, and offsets of 0.
        TensorType::Q4_0 => &[(&d, 1), (&[0x99], 16)],
        TensorType::Q4_1 => &[(&d, 1), (&[0, 0], 1), (&[0x11], 16)],
        TensorType::Q5_0 => &[(&d, 1), (&[0xff], 4), (&[0x11], 16)],
        TensorType::Q5_1 => &[(&d, 1), (&[0, 0], 1), (&[0], 4), (&[0x11], 16)],
        TensorType::Q8_0 => &[(&d, 1), (&[1], 32)],
        TensorType::IQ4NL => &[(&d, 1), (&[0x88], 16)],
        // Scales of 32 + 1, quants whose value is 1.
        TensorType::IQ4XS => &[(&d, 1), (&[0xaa], 2), (&[0x11], 4), (&[0x88], 128)],
        other => unreachable!("{other}"),
    };
    let block: Vec<u8> = parts.iter().flat_map(|(bytes, times)| bytes.repeat(*times)).collect();
    assert_eq!(block.len(), kind.block_bytes(), "{kind}");
    block.repeat(BLOCK / kind.block_len())
}

/// Quantized matrices `[experts][rows, cols]` in GGUF's layout.
#[derive(Clone)]
pub struct Weights {
    pub kind: TensorType,
    pub experts: usize,
    pub rows: usize,
    pub cols: usize,
    pub bytes: Vec<u8>,
}

impl Weights {
    /// Random bits in every field. Scales are of the size that models have; a few are zero, tiny or the largest ones.
    pub fn random(random: &mut Random, kind: TensorType, experts: usize, rows: usize, cols: usize) -> Self {
        let mut bytes: Vec<u8> =
            (0..experts * rows * kind.bytes_of(cols)).map(|_| (random.bits() >> 32) as u8).collect();
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            for factor in kind.factors() {
                let scale = match random.below(64) {
                    0 => f16::from_f32(0.0),
                    1 => f16::from_bits(random.bits() as u16 & 0x83ff),
                    2 => f16::MAX,
                    _ => f16::from_f32(0.01 * random.gaussian()),
                };
                factor.set(block, scale);
            }
        }
        Self { kind, experts, rows, cols, bytes }
    }

    /// Rows whose weights are all the same, f16 factors themselves: with one activation in each super-block the contributions of a row are
    /// these activations, times its factor. The first row's factor is 1; a row of negative ones has contributions of -0 where x is 0.
    pub fn uniform(random: &mut Random, kind: TensorType, experts: usize, rows: usize, cols: usize) -> Self {
        let mut bytes = Vec::new();
        let factors: Vec<f16> = (0..rows)
            .map(|row| match row {
                0 => f16::ONE,
                1 => f16::NEG_ONE,
                _ => f16::from_bits((random.bits() as u16 & 0x83ff) | (12 + random.below(6) as u16) << 10),
            })
            .collect();
        for _ in 0..experts {
            for &factor in &factors {
                for _ in 0..cols / BLOCK {
                    bytes.extend(equal_weights(kind, factor));
                }
            }
        }
        Self { kind, experts, rows, cols, bytes }
    }

    /// Q4_K rows with d = dmin, scales and mins of 63 and quants of 1: d T = dmin M, and all that is left of a super-block is what the first
    /// product lost when it was rounded. Of activations of two sizes it loses something.
    pub fn cancelling(random: &mut Random, experts: usize, rows: usize, cols: usize) -> Self {
        let mut bytes = Vec::new();
        for _ in 0..experts * rows * (cols / BLOCK) {
            let factor = random.bits() as u16 & 0x83ff | 0x3801;
            bytes.extend([factor.to_le_bytes(); 2].concat());
            bytes.extend([0xff; 12]);
            bytes.extend([0x11; 128]);
        }
        Self { kind: TensorType::Q4K, experts, rows, cols, bytes }
    }

    /// Random bits in every field, but for factors that are finite: as `tests/data/pins.py` has it.
    pub fn pinned(random: &mut Random, kind: TensorType, rows: usize, cols: usize) -> Self {
        let mut bytes: Vec<u8> = (0..rows * kind.bytes_of(cols)).map(|_| (random.bits() >> 32) as u8).collect();
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            for &factor in kind.factors() {
                let Factor::Half(place) = factor else { continue };
                block[place + 1] &= 0xbf;
            }
        }
        Self { kind, experts: 1, rows, cols, bytes }
    }

    /// Puts a NaN into each factor of a row's last block: of row 1 of every expert into the first factor, of row 2 into the last one, with
    /// another payload in each expert. Whether the type's factors can be NaNs.
    pub fn spoil(&mut self) -> bool {
        let (size, row_bytes) = (self.kind.block_bytes(), self.kind.bytes_of(self.cols));
        let factors = self.kind.factors();
        for expert in 0..self.experts {
            for (row, factor) in [(1, factors[0]), (2, factors[factors.len() - 1])] {
                let end = (expert * self.rows + row + 1) * row_bytes;
                factor.set(&mut self.bytes[end - size..end], HALF_NANS[(expert + row) % HALF_NANS.len()]);
            }
        }
        !matches!(factors[0], Factor::Exponent(_))
    }

    /// Bytes of one expert's matrix.
    pub fn expert_bytes(&self, expert: usize) -> &[u8] {
        let size = self.bytes.len() / self.experts;
        &self.bytes[expert * size..][..size]
    }

    /// One expert's matrix for the oracle.
    pub fn expert(&self, expert: usize) -> oracle::Matrix<'_> {
        oracle::Matrix::new(self.kind, self.expert_bytes(expert)).unwrap()
    }

    /// The matrices on a device, in the oracle's tile layout: independent of the kernel that repacks.
    pub fn upload<D: Device>(&self, device: &D) -> Matrix<D> {
        let mut matrix = ok(Matrix::zeroed(device, self.kind, self.rows, self.cols, self.experts));
        for expert in 0..self.experts {
            let tiles = oracle::repack::repack(self.expert(expert), self.cols);
            let place = ok(matrix.tiles_of(expert..expert + 1));
            assert_eq!(place.len(), tiles.len());
            // SAFETY: the place is as long as the tiles.
            ok(unsafe { device.upload(place.as_ptr() as u64, &tiles) });
        }
        matrix
    }
}
