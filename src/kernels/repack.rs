//! Quantized rows as they stand in a file, to tiles.

use super::*;

/// Bytes of one matrix in tile layout: rows are padded to a multiple of 16.
pub fn tile_bytes(kind: TensorType, rows: usize, cols: usize) -> usize {
    rows.next_multiple_of(sys::KQM_TILE_ROWS as usize) * kind.bytes_of(cols)
}

/// Operands of `repack`.
#[non_exhaustive]
pub struct Repack<'a> {
    /// `[experts][rows, cols / 256]` blocks as in a file.
    pub blocks: Slice<'a, u8>,
    /// `[experts][ceil(rows / 16), cols / 256]` tiles.
    pub tiles: SliceMut<'a, u8>,
    /// One of [`TensorType::MATRICES`].
    pub kind: TensorType,
    /// Rows.
    pub rows: usize,
    /// A multiple of 256.
    pub cols: usize,
    /// Matrices in the stack.
    pub experts: usize,
}

impl<'a> Repack<'a> {
    /// Of a matrix of `[rows, cols]`.
    pub fn new(blocks: Slice<'a, u8>, tiles: SliceMut<'a, u8>, kind: TensorType, [rows, cols]: [usize; 2]) -> Self {
        Self { blocks, tiles, kind, rows, cols, experts: 1 }
    }

    /// Of a stack of so many experts' matrices.
    #[must_use]
    pub fn experts(mut self, experts: usize) -> Self {
        self.experts = experts;
        self
    }
}

impl Repack<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        at_least(
            device,
            "repack",
            "blocks",
            self.blocks.place(),
            &[self.experts, self.rows, self.cols / self.kind.block_len(), self.kind.block_bytes()],
        )?;
        let tile_rows = sys::KQM_TILE_ROWS as usize;
        let blocks = self.cols / self.kind.block_len();
        let tiles = [self.experts, self.rows.div_ceil(tile_rows), tile_rows, blocks, self.kind.block_bytes()];
        at_least(device, "repack", "tiles", self.tiles.place(), &tiles)?;
        launch!(
            device,
            repack,
            sys::kqm_repack_args {
                blocks: self.blocks.as_ptr().cast(),
                tiles: self.tiles.as_ptr().cast(),
                type_: self.kind as u32,
                rows: count("repack", "rows", self.rows)?,
                cols: count("repack", "cols", self.cols)?,
                experts: count("repack", "experts", self.experts)?,
            }
        )
    }
}
