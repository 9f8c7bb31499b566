//! Weights that are nibbles with values from a table.

/// The values of IQ4_NL and IQ4_XS: data of the formats.
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
