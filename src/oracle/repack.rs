//! Matrices in tile layout: a permutation of the bytes, in which a tensor-core fragment's lanes find their weights side
//! by side. Tiles are 16 rows by one super-block, ordered `[row tile][super-block]`; rows that are missing in the last
//! tile are zero blocks. The layout is that of `cuda/common/tiles.cuh`.

use super::Matrix;
use crate::blocks::{self, BLOCK, Field, Weights, with_blocks};
use crate::sys;

const ROWS: usize = sys::KQM_TILE_ROWS as usize;

/// The matrix as tiles, each field of a block as its [`Field`] says.
pub fn repack(w: Matrix<'_>, cols: usize) -> Vec<u8> {
    with_blocks!(w, blocks => tiles(blocks, cols))
}

fn tiles<T: Weights>(blocks: &[T], cols: usize) -> Vec<u8> {
    let (in_row, size) = (cols / BLOCK, size_of::<T>());
    let rows = blocks.len() / in_row;
    let bytes = blocks::bytes(blocks);
    let mut out = Vec::with_capacity(rows.next_multiple_of(ROWS) * in_row * size);
    for first in (0..rows).step_by(ROWS) {
        for column in 0..in_row {
            let mut tile = vec![[0; ROWS]; size];
            for row in 0..ROWS.min(rows - first) {
                let block = &bytes[((first + row) * in_row + column) * size..][..size];
                for (of_rows, &byte) in tile.iter_mut().zip(block) {
                    of_rows[row] = byte;
                }
            }
            for field in T::TILE {
                write(field, &tile, &mut out);
            }
        }
    }
    out
}

/// Appends a field of the blocks whose bytes are `tile[byte][row]`.
fn write(field: &Field, tile: &[[u8; ROWS]], out: &mut Vec<u8>) {
    let bytes: Vec<[u8; ROWS]> = field.places().map(|place| tile[place]).collect();
    let Some(run) = field.run else {
        for row in 0..ROWS {
            out.extend(bytes.iter().map(|of_rows| of_rows[row]));
        }
        return;
    };
    for chunk in bytes.chunks_exact(32) {
        for lane in 0..32 {
            let (r, c) = (lane / 4, lane % 4);
            for row in [r, r + 8] {
                // The runs are dealt to the four lanes in turn.
                for runs in chunk.chunks_exact(4 * run) {
                    out.extend(runs[run * c..][..run].iter().map(|of_rows| of_rows[row]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::TensorType;

    fn noise(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect()
    }

    fn sorted(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.sort_unstable();
        bytes
    }

    #[test]
    fn tiles_keep_every_byte() {
        let (rows, in_row) = (18, 3);
        for &kind in TensorType::MATRICES {
            let bytes = noise(rows * kind.bytes_of(in_row * BLOCK));
            let tiles = repack(Matrix::new(kind, &bytes).unwrap(), in_row * BLOCK);
            assert_eq!(tiles.len(), 2 * ROWS * kind.bytes_of(in_row * BLOCK));
            let kept: Vec<u8> = tiles.into_iter().filter(|&byte| byte != 0).collect();
            assert_eq!(sorted(kept), sorted(bytes), "{kind}");
        }
    }

    #[test]
    fn a_lane_holds_its_rows() {
        let bytes = noise(16 * 144);
        let tile = repack(Matrix::new(TensorType::Q4K, &bytes).unwrap(), BLOCK);
        // Chunk 2, lane 4 * 3 + 1, second half: row 11, qs[64 + 8..].
        assert_eq!(tile[(2 * 32 + 13) * 16 + 8..][..8], bytes[11 * 144 + 16 + 72..][..8]);
        // Header of row 5.
        assert_eq!(tile[2048 + 5 * 16..][..16], bytes[5 * 144..][..16]);

        let bytes = noise(16 * 210);
        let tile = repack(Matrix::new(TensorType::Q6K, &bytes).unwrap(), BLOCK);
        // Chunk 3, lane 4 * 6 + 2, row 14, word 7 (h = 1, m = 3): ql[64 + 48 + 8..].
        assert_eq!(tile[(3 * 32 + 26) * 16 + 12..][..4], bytes[14 * 210 + 120..][..4]);
        // qh chunk 1, lane 4 * 6 + 2, row 6, word 1: qh[32 + 16 + 8..].
        assert_eq!(tile[2048 + (32 + 26) * 16 + 4..][..4], bytes[6 * 210 + 128 + 56..][..4]);
        assert_eq!(tile[3072 + 7 * 16..][..16], bytes[7 * 210 + 192..][..16]);
        assert_eq!(tile[3328 + 7 * 2..][..2], bytes[7 * 210 + 208..][..2]);
    }
}
