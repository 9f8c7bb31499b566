//! Rows of an embedding table, dequantized.

use half::f16;

use super::canonical;
use crate::blocks::{self, BLOCK, BlockQ4K, BlockQ6K, TensorType};

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

/// Weights in f32. `row` holds whole blocks of the type, `out` as many weights.
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
        TensorType::Q4K => {
            for (block, out) in blocks::q4_k(row).unwrap_or_default().iter().zip(out.as_chunks_mut().0) {
                q4_k(block, out);
            }
        }
        TensorType::Q6K => {
            for (block, out) in blocks::q6_k(row).unwrap_or_default().iter().zip(out.as_chunks_mut().0) {
                q6_k(block, out);
            }
        }
    }
}

/// `d * (sc * q) - dmin * m`: both products are exact, the difference rounds once.
fn q4_k(block: &BlockQ4K, out: &mut [f32; BLOCK]) {
    let (d, dmin) = (block.d().to_f32(), block.dmin().to_f32());
    for (index, out) in out.iter_mut().enumerate() {
        let (j, k) = (index / 32, index % 32);
        let quant = f32::from(u16::from(block.scale(j)) * u16::from(block.quant(j, k)));
        *out = canonical(d * quant - dmin * f32::from(block.min(j)));
    }
}

/// `d * (sc * (q - 32))`, which is exact.
fn q6_k(block: &BlockQ6K, out: &mut [f32; BLOCK]) {
    let d = block.d().to_f32();
    for (index, out) in out.iter_mut().enumerate() {
        let (j, k) = (index / 16, index % 16);
        *out = canonical(d * f32::from(i16::from(block.scale(j)) * i16::from(block.quant(j, k))));
    }
}
