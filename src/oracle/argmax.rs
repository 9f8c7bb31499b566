//! Index of the largest value.

use std::cmp::Ordering;

use super::moe_router::compare;

/// Index of the largest value of a row, ties to the lower index; a NaN counts as larger than any number, and -0 equals 0.
pub fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (index, &value) in row.iter().enumerate() {
        if compare(value, row[best]) == Ordering::Greater {
            best = index;
        }
    }
    best as u32
}
