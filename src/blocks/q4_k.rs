//! Q4_K.

use half::f16;

use super::{BLOCK, Factor, Field, SuperBlock, Weights, around_1, fill, packed_scales};

/// Q4_K: 256 weights `d * sc[j] * q - dmin * m[j]`, eight sub-blocks of 32. 4.5 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockQ4K {
    /// f16, little-endian: scale of the sub-block scales.
    pub d: [u8; 2],
    /// f16, little-endian: scale of the sub-block mins.
    pub dmin: [u8; 2],
    /// Eight 6-bit scales and eight 6-bit mins, packed.
    pub scales: [u8; 12],
    /// Byte `32 g + k` holds weight `64 g + k` in its low and weight `64 g + 32 + k` in its high nibble.
    pub qs: [u8; 128],
}
const _: () = assert!(size_of::<BlockQ4K>() == 144 && align_of::<BlockQ4K>() == 1);

impl Weights for BlockQ4K {
    const IN_FILE: usize = BLOCK;
    const FACTORS: &[Factor] = &[Factor::Half(0), Factor::Half(2)];
    const TILE: &[Field] = &[Field::lanes(16, 128, 8), Field::rows(0, 16)];

    /// Quants are uniform on 0..16 (mean 7.5, standard deviation 4.61), scales on 32..64 (root mean square 48.4); mins equal
    /// the scales and weigh 7.5 times as much, so that the mean is 0.
    fn synthetic(bits: &mut impl FnMut() -> u64, spread: f64) -> Self {
        let d = spread / (48.4 * 4.61) * around_1(bits);
        let mut block = Self {
            d: f16::from_f64(d).to_le_bytes(),
            dmin: f16::from_f64(7.5 * d).to_le_bytes(),
            scales: packed_scales::synthetic(bits),
            qs: [0; 128],
        };
        fill(bits, &mut block.qs);
        block
    }
}

impl SuperBlock for BlockQ4K {
    packed_scales::with_packed_scales!();

    #[inline]
    fn quant(&self, j: usize, k: usize) -> i32 {
        (self.qs[32 * (j / 2) + k] >> (4 * (j % 2)) & 15).into()
    }

    #[inline(always)]
    fn scaled_quants(&self, out: &mut [i16; BLOCK]) {
        let groups = out.as_chunks_mut::<64>().0;
        for (g, (weights, qs)) in groups.iter_mut().zip(self.qs.as_chunks::<32>().0).enumerate() {
            let (low, high) = weights.split_at_mut(32);
            let (low_scale, high_scale) = (self.scale(2 * g) as i16, self.scale(2 * g + 1) as i16);
            for k in 0..32 {
                low[k] = i16::from(qs[k] & 15) * low_scale;
                high[k] = i16::from(qs[k] >> 4) * high_scale;
            }
        }
    }
}
