//! Weights of four bits, or of four and one.

/// The values of IQ4_NL and IQ4_XS: data of the formats.
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The values of MXFP4: twice those of e2m1.
pub(super) const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The 16 low nibbles, then the 16 high ones.
#[inline(always)]
pub(super) fn split(bytes: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|k| if k < 16 { bytes[k] & 15 } else { bytes[k - 16] >> 4 })
}

/// The same, each with a fifth bit: that of number k is bit k of `fifths`, little-endian.
#[inline(always)]
pub(super) fn with_fifths(bytes: &[u8; 16], fifths: [u8; 4]) -> [u8; 32] {
    let (low, fifths) = (split(bytes), u32::from_le_bytes(fifths));
    std::array::from_fn(|k| low[k] | (((fifths >> k) & 1) as u8 * 16))
}
