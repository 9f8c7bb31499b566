//! Block layouts of GGUF tensors, each defined here and nowhere else in Rust.

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
