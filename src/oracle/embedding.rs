//! Rows of an embedding table, dequantized.

use half::f16;

use super::{Matrix, canonical};
use crate::blocks::{BLOCK, Blocks, SuperBlock, TensorType, with_blocks};

/// An embedding table `[vocab, cols]` in GGUF's row layout.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// Its bytes: `vocab * cols` weights in whole blocks.
    pub bytes: &'a [u8],
    /// Its type.
    pub kind: TensorType,
    /// Weights in a row.
    pub cols: usize,
}

/// `out[t] = table[tokens[t]]`, `[tokens, cols]`. An id that is not in the table gives a row of NaN.
pub fn embedding(table: Table<'_>, tokens: &[u32], out: &mut [f32]) {
    let row_bytes = table.cols / table.kind.block_len() * table.kind.block_bytes();
    for (&token, out) in tokens.iter().zip(out.chunks_exact_mut(table.cols)) {
        match table.bytes.chunks_exact(row_bytes).nth(token as usize) {
            Some(row) => dequantize(table.kind, row, out),
            None => out.fill(canonical(f32::NAN)),
        }
    }
}

/// Weights in f32. `row` holds whole blocks of the type (of other bytes nothing is made), `out` as many weights.
pub fn dequantize(kind: TensorType, row: &[u8], out: &mut [f32]) {
    match kind {
        TensorType::F32 => {
            for (&bytes, out) in row.as_chunks().0.iter().zip(out) {
                *out = canonical(f32::from_le_bytes(bytes));
            }
        }
        TensorType::F16 => {
            for (&bytes, out) in row.as_chunks().0.iter().zip(out) {
                *out = canonical(f16::from_le_bytes(bytes).to_f32());
            }
        }
        _ => {
            let Some(blocks) = Blocks::new(kind, row) else { return };
            with_blocks!(blocks, blocks => {
                for (block, out) in blocks.iter().zip(out.as_chunks_mut().0) {
                    super_block(block, out);
                }
            });
        }
    }
}

/// `d * (sc * q)`, which is exact, and for a type with mins that less `dmin * m`, which is exact, too: the difference rounds
/// once.
fn super_block<T: SuperBlock>(block: &T, out: &mut [f32; BLOCK]) {
    let (d, dmin) = (block.d().to_f32(), block.dmin().to_f32());
    for (index, out) in out.iter_mut().enumerate() {
        let (j, k) = (index / T::SUB_BLOCK, index % T::SUB_BLOCK);
        // The integers are below 2^13.
        let product = d * (block.scale(j) * block.quant(j, k)) as f32;
        *out = canonical(if T::MINS { product - dmin * block.min(j) as f32 } else { product });
    }
}

/// The weights of a matrix without any rounding, as many as `out` holds: a weight with a min is a difference of 54 bits at most.
pub fn exact(w: Matrix<'_>, out: &mut [f64]) {
    with_blocks!(w, blocks => {
        for (block, out) in blocks.iter().zip(out.as_chunks_mut().0) {
            exact_super_block(block, out);
        }
    });
}

fn exact_super_block<T: SuperBlock>(block: &T, out: &mut [f64; BLOCK]) {
    let (d, dmin) = (block.d().to_f64(), block.dmin().to_f64());
    for (index, out) in out.iter_mut().enumerate() {
        let (j, k) = (index / T::SUB_BLOCK, index % T::SUB_BLOCK);
        let product = d * f64::from(block.scale(j) * block.quant(j, k));
        *out = if T::MINS { product - dmin * f64::from(block.min(j)) } else { product };
    }
}
