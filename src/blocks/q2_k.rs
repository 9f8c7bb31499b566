//! Q2_K.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, around_1, fill};

/// Q2_K: 256 weights `d * sc[j] * q - dmin * m[j]`, sixteen sub-blocks of 16. 2.625 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockQ2K {
    /// Byte `j` holds the scale of sub-block `j` in its low and its min in its high nibble.
    pub scales: [u8; 16],
    /// Byte `32 h + k` holds, in bits `2 i` and `2 i + 1`, weight `128 h + 32 i + k`, k = 0..32.
    pub qs: [u8; 64],
    /// f16, little-endian: scale of the sub-block scales.
    pub d: [u8; 2],
    /// f16, little-endian: scale of the sub-block mins.
    pub dmin: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ2K>() == 84 && align_of::<BlockQ2K>() == 1);

impl Weights for BlockQ2K {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(80), Factor::Half(82)];
    const TILE: &[Field] = &[Field::lanes(16, 64, 8), Field::rows(0, 16), Field::rows(80, 4)];

    /// Quants are uniform on 0..4 (mean 1.5, standard deviation 1.118), scales on 8..16 (root mean square 11.73); mins equal the
    /// scales and weigh 1.5 times as much, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = f16::from_f64(spread / (11.73 * 1.118) * around_1(bits));
        let dmin = f16::from_f64(1.5 * d.to_f64());
        let codes = bits();
        let mut block = Self {
            scales: std::array::from_fn(|j| ((codes >> (4 * j)) as u8 & 7 | 8) * 0x11),
            qs: [0; 64],
            d: d.to_le_bytes(),
            dmin: dmin.to_le_bytes(),
        };
        fill(bits, &mut block.qs);
        block
    }
}

impl SuperBlock for BlockQ2K {
    const SUB_BLOCK: usize = 16;
    const MINS: bool = true;

    #[inline]
    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    #[inline]
    fn dmin(&self) -> f16 {
        f16::from_le_bytes(self.dmin)
    }

    #[inline]
    fn scale(&self, j: usize) -> i32 {
        (self.scales[j] & 15).into()
    }

    #[inline]
    fn min(&self, j: usize) -> i32 {
        (self.scales[j] >> 4).into()
    }

    #[inline]
    fn quant(&self, j: usize, k: usize) -> i32 {
        (self.qs[32 * (j / 8) + 16 * (j % 2) + k] >> (2 * (j % 8 / 2)) & 3).into()
    }

    #[inline(always)]
    fn scaled_quants(&self, out: &mut [i16; BLOCK]) {
        for (i, weights) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let qs = &self.qs.as_chunks::<32>().0[i / 4];
            let (first, second) = (self.scale(2 * i) as i16, self.scale(2 * i + 1) as i16);
            for (k, weight) in weights.iter_mut().enumerate() {
                *weight = i16::from(qs[k] >> (2 * (i % 4)) & 3) * if k < 16 { first } else { second };
            }
        }
    }
}
