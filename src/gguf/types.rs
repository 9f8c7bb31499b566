//! The tensor types that GGML numbers, with their block sizes.

use std::fmt;

use crate::blocks::TensorType;

/// Number, name, weights in a block, bytes of a block. Numbers missing here were never used or were taken back.
#[rustfmt::skip]
const TABLE: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

/// A tensor type of GGML. The file is readable whatever types it holds; [`TensorType`] are those with kernels.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GgmlType(u8);

impl GgmlType {
    /// The type with this number in the file format, if there is one.
    pub fn from_number(number: u32) -> Option<Self> {
        TABLE.iter().position(|row| row.0 == number).map(|index| Self(index as u8))
    }

    /// Every known type, by number.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..TABLE.len()).map(|index| Self(index as u8))
    }

    /// GGML's number.
    pub const fn number(self) -> u32 {
        TABLE[self.0 as usize].0
    }

    /// GGML's name, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        TABLE[self.0 as usize].1
    }

    /// Weights in one block.
    pub const fn block_len(self) -> u64 {
        TABLE[self.0 as usize].2
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> u64 {
        TABLE[self.0 as usize].3
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<TensorType> for GgmlType {
    fn from(kind: TensorType) -> Self {
        Self::from_number(kind as u32).expect("the table has every type with kernels")
    }
}

impl TryFrom<GgmlType> for TensorType {
    /// The type, which has no kernels.
    type Error = GgmlType;

    fn try_from(kind: GgmlType) -> Result<Self, GgmlType> {
        Self::ALL.iter().copied().find(|&known| known as u32 == kind.number()).ok_or(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_types_agree_with_the_table() {
        for &kind in TensorType::ALL {
            let ggml = GgmlType::from(kind);
            assert_eq!(ggml.number(), kind as u32);
            assert_eq!(ggml.name(), kind.name());
            assert_eq!(ggml.block_len(), kind.block_len() as u64);
            assert_eq!(ggml.block_bytes(), kind.block_bytes() as u64);
            assert_eq!(TensorType::try_from(ggml), Ok(kind));
        }
        let supported = GgmlType::all().filter(|&kind| TensorType::try_from(kind).is_ok()).count();
        assert_eq!(supported, TensorType::ALL.len());
        for kinds in [TensorType::FLOATS, TensorType::MATRICES] {
            assert!(kinds.is_sorted_by_key(|&kind| kind as u32));
        }
    }

    #[test]
    fn numbers_ascend_and_come_back() {
        let numbers: Vec<u32> = GgmlType::all().map(GgmlType::number).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b));
        for kind in GgmlType::all() {
            assert_eq!(GgmlType::from_number(kind.number()), Some(kind));
        }
        for gone in [4, 5, 31, 32, 33, 36, 37, 38, 1 << 31, u32::MAX] {
            assert_eq!(GgmlType::from_number(gone), None);
        }
    }
}
