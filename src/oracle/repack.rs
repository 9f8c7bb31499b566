//! Matrices in tile layout: a permutation of the bytes, in which a tensor-core fragment's lanes find their weights side
//! by side. Tiles are 16 rows by one super-block, ordered `[row tile][super-block]`; rows that are missing in the last
//! tile are zero blocks. The layout is that of `cuda/common/tiles.cuh`.

use crate::blocks::{BLOCK, BlockQ4K, BlockQ6K};
use crate::sys;

const ROWS: usize = sys::KQM_TILE_ROWS as usize;

/// Q4_K blocks `[rows, cols / 256]` as tiles.
///
/// A tile: `[4 chunks g][32 lanes][16]`, where lane `4 r + c` holds `qs[32 g + 8 c..][..8]` of row `r` and then of row
/// `r + 8`; then `[16 rows][16]`: `d`, `dmin` and `scales` of a row's block.
pub fn q4_k(blocks: &[BlockQ4K], cols: usize) -> Vec<u8> {
    let zero = BlockQ4K { d: [0; 2], dmin: [0; 2], scales: [0; 12], qs: [0; 128] };
    tiles(blocks, cols, zero, |tile, out| {
        for g in 0..4 {
            for lane in 0..32 {
                let (r, c) = (lane / 4, lane % 4);
                for row in [r, r + 8] {
                    out.extend_from_slice(&tile[row].qs[32 * g + 8 * c..][..8]);
                }
            }
        }
        for block in tile {
            out.extend_from_slice(&block.d);
            out.extend_from_slice(&block.dmin);
            out.extend_from_slice(&block.scales);
        }
    })
}

/// Q6_K blocks `[rows, cols / 256]` as tiles.
///
/// A tile: `[4 chunks i][32 lanes][2 rows r, r + 8][2 words w][4]` of `ql`, where word `n = 2 i + w = 4 h + m` holds
/// `ql[64 h + 16 m + 4 c..][..4]`; then `[2 chunks h][32 lanes][2 rows][2 words w][4]` of `qh`:
/// `qh[32 h + 16 w + 4 c..][..4]`; then `[16 rows][16]` scales and `[16 rows]` `d`.
pub fn q6_k(blocks: &[BlockQ6K], cols: usize) -> Vec<u8> {
    let zero = BlockQ6K { ql: [0; 128], qh: [0; 64], scales: [0; 16], d: [0; 2] };
    tiles(blocks, cols, zero, |tile, out| {
        for i in 0..4 {
            for lane in 0..32 {
                let (r, c) = (lane / 4, lane % 4);
                for row in [r, r + 8] {
                    for n in [2 * i, 2 * i + 1] {
                        let (h, m) = (n / 4, n % 4);
                        out.extend_from_slice(&tile[row].ql[64 * h + 16 * m + 4 * c..][..4]);
                    }
                }
            }
        }
        for h in 0..2 {
            for lane in 0..32 {
                let (r, c) = (lane / 4, lane % 4);
                for row in [r, r + 8] {
                    for w in 0..2 {
                        out.extend_from_slice(&tile[row].qh[32 * h + 16 * w + 4 * c..][..4]);
                    }
                }
            }
        }
        for block in tile {
            out.extend(block.scales.map(|scale| scale as u8));
        }
        for block in tile {
            out.extend_from_slice(&block.d);
        }
    })
}

/// Calls `write` with the 16 blocks of every tile, in order.
fn tiles<T: Copy>(blocks: &[T], cols: usize, zero: T, write: impl Fn(&[T; ROWS], &mut Vec<u8>)) -> Vec<u8> {
    let in_row = cols / BLOCK;
    let rows = blocks.len() / in_row;
    let mut out = Vec::new();
    for first in (0..rows).step_by(ROWS) {
        for column in 0..in_row {
            let block = |row: usize| if row < rows { blocks[row * in_row + column] } else { zero };
            write(&std::array::from_fn(|row| block(first + row)), &mut out);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks;

    fn noise(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect()
    }

    fn sorted(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.sort_unstable();
        bytes
    }

    #[test]
    fn tiles_have_the_size_of_the_abi_and_keep_every_byte() {
        let (rows, in_row) = (18, 3);
        let bytes = noise(rows * in_row * 144);
        let tiles = q4_k(blocks::q4_k(&bytes).unwrap(), in_row * BLOCK);
        assert_eq!(tiles.len(), 2 * in_row * sys::KQM_TILE_BYTES_Q4_K as usize);
        let kept: Vec<u8> = tiles.into_iter().filter(|&byte| byte != 0).collect();
        assert_eq!(sorted(kept), sorted(bytes));

        let bytes = noise(rows * in_row * 210);
        let tiles = q6_k(blocks::q6_k(&bytes).unwrap(), in_row * BLOCK);
        assert_eq!(tiles.len(), 2 * in_row * sys::KQM_TILE_BYTES_Q6_K as usize);
        let kept: Vec<u8> = tiles.into_iter().filter(|&byte| byte != 0).collect();
        assert_eq!(sorted(kept), sorted(bytes));
    }

    #[test]
    fn a_lane_holds_its_rows() {
        let bytes = noise(16 * 144);
        let tile = q4_k(blocks::q4_k(&bytes).unwrap(), BLOCK);
        // Chunk 2, lane 4 * 3 + 1, second half: row 11, qs[64 + 8..].
        assert_eq!(tile[(2 * 32 + 13) * 16 + 8..][..8], bytes[11 * 144 + 16 + 72..][..8]);
        // Header of row 5.
        assert_eq!(tile[2048 + 5 * 16..][..16], bytes[5 * 144..][..16]);

        let bytes = noise(16 * 210);
        let tile = q6_k(blocks::q6_k(&bytes).unwrap(), BLOCK);
        // Chunk 3, lane 4 * 6 + 2, row 14, word 7 (h = 1, m = 3): ql[64 + 48 + 8..].
        assert_eq!(tile[(3 * 32 + 26) * 16 + 12..][..4], bytes[14 * 210 + 120..][..4]);
        // qh chunk 1, lane 4 * 6 + 2, row 6, word 1: qh[32 + 16 + 8..].
        assert_eq!(tile[2048 + (32 + 26) * 16 + 4..][..4], bytes[6 * 210 + 128 + 56..][..4]);
        assert_eq!(tile[3072 + 7 * 16..][..16], bytes[7 * 210 + 192..][..16]);
        assert_eq!(tile[3328 + 7 * 2..][..2], bytes[7 * 210 + 208..][..2]);
    }
}
