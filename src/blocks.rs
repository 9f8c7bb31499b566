//! Block layouts of GGUF tensors, each defined here and nowhere else in Rust.

use half::f16;

/// Weights in a super-block, and activations in a fixed-point block.
pub const BLOCK: usize = 256;

/// Tensor types of GGUF that this crate knows, with GGML's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum TensorType {
    /// IEEE single precision.
    F32 = 0,
    /// IEEE half precision.
    F16 = 1,
    /// 4-bit K-quant: 4.5 bits per weight.
    Q4K = 12,
    /// 6-bit K-quant: 6.5625 bits per weight.
    Q6K = 14,
}

impl TensorType {
    /// Weights in one block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Q4K | Self::Q6K => BLOCK,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q4K => size_of::<BlockQ4K>(),
            Self::Q6K => size_of::<BlockQ6K>(),
        }
    }
}

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

/// Q6_K: 256 weights `d * scales[j] * (q - 32)`, sixteen sub-blocks of 16. 6.5625 bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low four bits: byte `64 h + k` (h = 0, 1 halves of 128 weights) holds weight `128 h + k` in its low and weight
    /// `128 h + 64 + k` in its high nibble, k = 0..64.
    pub ql: [u8; 128],
    /// High two bits: byte `32 h + k` holds, in bits `2 i` and `2 i + 1`, those of weight `128 h + 32 i + k`, k = 0..32.
    pub qh: [u8; 64],
    /// Signed 8-bit scales, one for 16 weights.
    pub scales: [i8; 16],
    /// f16, little-endian.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ6K>() == 210 && align_of::<BlockQ6K>() == 1);

impl BlockQ4K {
    /// Scale of the sub-block scales.
    #[inline]
    pub fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    /// Scale of the sub-block mins.
    #[inline]
    pub fn dmin(&self) -> f16 {
        f16::from_le_bytes(self.dmin)
    }

    /// 6-bit scale of sub-block `j` (0..8).
    #[inline]
    pub fn scale(&self, j: usize) -> u8 {
        // The first four scales and mins lie in the low six bits of bytes 0..4 and 4..8. The last four have their low
        // four bits in the nibbles of bytes 8..12, and their high two in the high two bits of bytes 0..4 and 4..8.
        if j < 4 { self.scales[j] & 63 } else { self.scales[j + 4] & 15 | self.scales[j - 4] >> 6 << 4 }
    }

    /// 6-bit min of sub-block `j` (0..8).
    #[inline]
    pub fn min(&self, j: usize) -> u8 {
        if j < 4 { self.scales[j + 4] & 63 } else { self.scales[j + 4] >> 4 | self.scales[j] >> 6 << 4 }
    }

    /// 4-bit quant of weight `k` (0..32) of sub-block `j` (0..8).
    #[inline]
    pub fn quant(&self, j: usize, k: usize) -> u8 {
        self.qs[32 * (j / 2) + k] >> (4 * (j % 2)) & 15
    }
}

impl BlockQ6K {
    /// Scale of the sub-block scales.
    #[inline]
    pub fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    /// 8-bit scale of sub-block `j` (0..16).
    #[inline]
    pub fn scale(&self, j: usize) -> i8 {
        self.scales[j]
    }

    /// Quant minus 32, -32..32, of weight `k` (0..16) of sub-block `j` (0..16).
    #[inline]
    pub fn quant(&self, j: usize, k: usize) -> i8 {
        let weight = 16 * j + k;
        let (half, within) = (weight / 128, weight % 128);
        let low = self.ql[64 * half + within % 64] >> (4 * (within / 64)) & 15;
        let high = self.qh[32 * half + within % 32] >> (2 * (within / 32)) & 3;
        (low | high << 4) as i8 - 32
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

fn blocks<T: Block>(bytes: &[u8]) -> Option<&[T]> {
    if !bytes.len().is_multiple_of(size_of::<T>()) {
        return None;
    }
    // SAFETY: a block has alignment 1 and any bytes are a valid one; the length is a whole number of blocks.
    Some(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) })
}

/// A block layout: `repr(C)`, made of bytes only, for which any bytes are valid.
pub trait Block: sealed::Sealed + Copy + Send + Sync + 'static {}

impl Block for BlockQ4K {}
impl Block for BlockQ6K {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::BlockQ4K {}
    impl Sealed for super::BlockQ6K {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GGML's own order of writing: `get_scale_min_k4` and the loops of `dequantize_row_q4_K` and `dequantize_row_q6_K`.
    #[test]
    fn accessors_agree_with_the_order_of_ggml() {
        let noise: Vec<u8> = (0..210_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
        let q4 = q4_k(&noise[..144]).unwrap()[0];
        let mut order = Vec::new();
        for group in q4.qs.as_chunks::<32>().0 {
            order.extend(group.map(|byte| byte & 15));
            order.extend(group.map(|byte| byte >> 4));
        }
        for (index, &quant) in order.iter().enumerate() {
            assert_eq!(q4.quant(index / 32, index % 32), quant);
        }
        for j in 0..8 {
            let q = &q4.scales;
            let (scale, min) = if j < 4 {
                (q[j] & 63, q[j + 4] & 63)
            } else {
                ((q[j + 4] & 0xf) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4))
            };
            assert_eq!((q4.scale(j), q4.min(j)), (scale, min));
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
            assert_eq!(q6.quant(index / 16, index % 16), quant);
        }
    }

    #[test]
    fn casts_demand_whole_blocks() {
        assert!(q4_k(&[0; 143]).is_none());
        assert_eq!(q4_k(&[0; 288]).unwrap().len(), 2);
        assert!(q6_k(&[0; 211]).is_none());
        assert_eq!(bytes(q6_k(&[7; 420]).unwrap()), [7; 420]);
    }
}
