//! Eight scales and eight mins of six bits in 12 bytes: what Q4_K and Q5_K have in common.
//!
//! The first four scales and mins lie in the low six bits of bytes 0..4 and 4..8. The last four have their low four bits in
//! the nibbles of bytes 8..12, and their high two in the high two bits of bytes 0..4 and 4..8.

/// What [`SuperBlock`](super::SuperBlock) wants of a block that begins with `d`, `dmin` and such scales, in fields of these names.
macro_rules! with_packed_scales {
    () => {
        const SUB_BLOCK: usize = 32;
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
            packed_scales::scale(&self.scales, j).into()
        }

        #[inline]
        fn min(&self, j: usize) -> i32 {
            packed_scales::min(&self.scales, j).into()
        }
    };
}
pub(super) use with_packed_scales;

/// Scale `j` (0..8).
#[inline]
pub(super) fn scale(bytes: &[u8; 12], j: usize) -> u8 {
    if j < 4 { bytes[j] & 63 } else { bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4 }
}

/// Min `j` (0..8).
#[inline]
pub(super) fn min(bytes: &[u8; 12], j: usize) -> u8 {
    if j < 4 { bytes[j + 4] & 63 } else { bytes[j + 4] >> 4 | bytes[j] >> 6 << 4 }
}

/// Scales that are uniform on 32..64, and mins that equal them.
pub(super) fn synthetic(bits: &mut impl FnMut() -> u64) -> [u8; 12] {
    let bits = bits();
    let codes: [u8; 8] = std::array::from_fn(|j| (bits >> (5 * j)) as u8 & 31 | 32);
    let mut bytes = [0; 12];
    for j in 0..4 {
        let (first, second) = (codes[j], codes[j + 4]);
        bytes[j] = first | second >> 4 << 6;
        bytes[j + 4] = first | second >> 4 << 6;
        bytes[j + 8] = second & 15 | (second & 15) << 4;
    }
    bytes
}
