//! Factors of blocks: what is not an integer in them.

use half::f16;

/// Where a block of a file has a factor, and how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Factor {
    /// An f16, little-endian, from this byte on.
    Half(usize),
    /// An f16 in the top four bits of each of four 16-bit integers, little-endian, from this byte on; the first one has the lowest bits.
    Nibbles(usize),
    /// In this byte the exponent of `2^(e - 128)`: never anything that is not finite.
    Exponent(usize),
}

impl Factor {
    /// The factor of a block.
    ///
    /// # Panics
    /// When these are not the bytes of a block.
    pub fn get(self, block: &[u8]) -> f32 {
        match self {
            Self::Half(at) => f16::from_le_bytes([block[at], block[at + 1]]).to_f32(),
            Self::Nibbles(at) => f16::from_bits(nibbles(&block[at..at + 8])).to_f32(),
            Self::Exponent(at) => exponent(block[at]),
        }
    }

    /// Writes another one: an exponent gets the largest power of two that is not above its size.
    ///
    /// # Panics
    /// When these are not the bytes of a block.
    pub fn set(self, block: &mut [u8], factor: f16) {
        match self {
            Self::Half(at) => block[at..at + 2].copy_from_slice(&factor.to_le_bytes()),
            Self::Nibbles(at) => {
                for i in 0..4 {
                    let top = &mut block[at + 2 * i + 1];
                    *top = *top & 15 | ((factor.to_bits() >> (4 * i)) as u8) << 4;
                }
            }
            Self::Exponent(at) => {
                block[at] = (factor.to_f32().to_bits() >> 23) as u8;
                block[at] = block[at].saturating_add(1);
            }
        }
    }
}

/// What the top four bits of the odd bytes are together.
pub(super) fn nibbles(bytes: &[u8]) -> u16 {
    (0..4).map(|i| u16::from(bytes[2 * i + 1] >> 4) << (4 * i)).sum()
}

/// `2^(e - 128)`, which is not a normal number for an e of 0 or 1.
pub(super) fn exponent(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_come_back() {
        let mut block = [0x5a; 9];
        for factor in [1.0, -0.25, 65504.0, 2_f32.powi(-24)].map(f16::from_f32) {
            Factor::Half(2).set(&mut block, factor);
            assert_eq!(Factor::Half(2).get(&block), factor.to_f32());
            block.fill(0x5a);
            Factor::Nibbles(1).set(&mut block, factor);
            assert_eq!(Factor::Nibbles(1).get(&block), factor.to_f32());
            assert!(block[1..].as_chunks::<2>().0.iter().all(|pair| pair[1] & 15 == 10), "the other bits stay");
        }
        for (factor, power) in [(1.0, 1.0), (-0.3, 0.25), (65504.0, 32768.0), (2_f32.powi(-24), 2_f32.powi(-24))] {
            Factor::Exponent(4).set(&mut block, f16::from_f32(factor));
            assert_eq!(Factor::Exponent(4).get(&block), power);
        }
        for e in 0..=255 {
            assert_eq!(f64::from(exponent(e)), 2_f64.powi(i32::from(e) - 128));
        }
    }
}
