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
#[inline(always)]
pub(super) fn scale(bytes: &[u8; 12], j: usize) -> u8 {
    let [low, _, high] = words(bytes);
    (if j < 4 { low & SIX_BITS } else { high & FOUR_BITS | (low >> 6 & TWO_BITS) << 4 }).to_le_bytes()[j % 4]
}

/// Min `j` (0..8).
#[inline(always)]
pub(super) fn min(bytes: &[u8; 12], j: usize) -> u8 {
    let [_, low, high] = words(bytes);
    (if j < 4 { low & SIX_BITS } else { high >> 4 & FOUR_BITS | (low >> 6 & TWO_BITS) << 4 }).to_le_bytes()[j % 4]
}

/// These bits of each of four bytes.
const SIX_BITS: u32 = 0x3f3f_3f3f;
const FOUR_BITS: u32 = 0x0f0f_0f0f;
const TWO_BITS: u32 = 0x0303_0303;

/// The bytes by fours, with which the compiler does for four scales what is written down for one.
#[inline(always)]
fn words(bytes: &[u8; 12]) -> [u32; 3] {
    let words = bytes.as_chunks::<4>().0;
    [words[0], words[1], words[2]].map(u32::from_le_bytes)
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
