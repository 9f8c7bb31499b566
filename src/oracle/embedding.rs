//! Rows of an embedding table, dequantized.

use half::{bf16, f16};

use super::{Matrix, canonical};
use crate::blocks::{BLOCK, Blocks, Eight, SmallBlock, SuperBlock, TensorType, Weights, with_blocks};

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
        TensorType::BF16 => {
            for (&bytes, out) in row.as_chunks().0.iter().zip(out) {
                *out = canonical(bf16::from_le_bytes(bytes).to_f32());
            }
        }
        _ => {
            let Some(blocks) = Blocks::new(kind, row) else { return };
            with_blocks!(blocks, blocks => {
                for (block, out) in blocks.iter().zip(out.as_chunks_mut().0) {
                    block.rounded(out);
                }
            });
        }
    }
}

/// What becomes of a type's weights as floats.
trait Dequantize: Weights {
    /// In f32, rounded once where that is no number of f32.
    fn rounded(&self, out: &mut [f32; BLOCK]);
    /// Without any rounding.
    fn exact(&self, out: &mut [f64; BLOCK]);
}

/// `d * (sc * q)`, which is exact, and for a type with mins that less `dmin * m`, which is exact, too: the difference rounds
/// once.
impl<T: SuperBlock> Dequantize for T {
    fn rounded(&self, out: &mut [f32; BLOCK]) {
        let (d, dmin) = (self.factor(), self.dmin().to_f32());
        for (index, out) in out.iter_mut().enumerate() {
            let (j, k) = (index / T::SUB_BLOCK, index % T::SUB_BLOCK);
            // The integers are below 2^13.
            let product = d * (self.scale(j) * self.quant(j, k)) as f32;
            *out = canonical(if T::MINS { product - dmin * self.min(j) as f32 } else { product });
        }
    }

    fn exact(&self, out: &mut [f64; BLOCK]) {
        let (d, dmin) = (f64::from(self.factor()), self.dmin().to_f64());
        for (index, out) in out.iter_mut().enumerate() {
            let (j, k) = (index / T::SUB_BLOCK, index % T::SUB_BLOCK);
            let product = d * f64::from(self.scale(j) * self.quant(j, k));
            *out = if T::MINS { product - dmin * f64::from(self.min(j)) } else { product };
        }
    }
}

/// `d * q`, and for a type with mins that plus `m`: the sum rounds once.
impl<B: SmallBlock> Dequantize for Eight<B> {
    fn rounded(&self, out: &mut [f32; BLOCK]) {
        for (block, out) in self.0.iter().zip(out.as_chunks_mut::<32>().0) {
            for (q, out) in block.quants().into_iter().zip(out) {
                let product = block.d() * f32::from(q);
                *out = canonical(if B::MINS { product + block.m().to_f32() } else { product });
            }
        }
    }

    fn exact(&self, out: &mut [f64; BLOCK]) {
        for (block, out) in self.0.iter().zip(out.as_chunks_mut::<32>().0) {
            for (q, out) in block.quants().into_iter().zip(out) {
                let product = f64::from(block.d()) * f64::from(q);
                *out = if B::MINS { product + block.m().to_f64() } else { product };
            }
        }
    }
}

/// The weights of a matrix without any rounding, as many as `out` holds: a weight with a min is a difference of 54 bits at most.
pub fn exact(w: Matrix<'_>, out: &mut [f64]) {
    with_blocks!(w, blocks => {
        for (block, out) in blocks.iter().zip(out.as_chunks_mut().0) {
            block.exact(out);
        }
    });
}
