//! Rows of an embedding table.

use super::*;

/// Operands of `embedding`.
#[non_exhaustive]
pub struct Embedding<'a> {
    /// `[vocab, cols]` as it stands in the file.
    pub table: Slice<'a, u8>,
    /// Any type.
    pub kind: TensorType,
    /// Rows of the table.
    pub vocab: usize,
    /// A multiple of 256.
    pub cols: usize,
    /// `[tokens]`. An id that is not below `vocab` gives a row of NaN.
    pub ids: Slice<'a, u32>,
    /// Ids in use.
    pub tokens: usize,
    /// `[tokens, cols]`.
    pub out: SliceMut<'a, f32>,
}

impl<'a> Embedding<'a> {
    /// Of `tokens` ids, from a table of `[vocab, cols]`.
    pub fn new(
        table: Slice<'a, u8>,
        kind: TensorType,
        [vocab, cols]: [usize; 2],
        ids: Slice<'a, u32>,
        tokens: usize,
        out: SliceMut<'a, f32>,
    ) -> Self {
        Self { table, kind, vocab, cols, ids, tokens, out }
    }
}

impl Embedding<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        let row_blocks = self.cols / self.kind.block_len();
        at_least(device, "embedding", "table", self.table.place(), &[self.vocab, row_blocks, self.kind.block_bytes()])?;
        at_least(device, "embedding", "ids", self.ids.place(), &[self.tokens])?;
        at_least(device, "embedding", "out", self.out.place(), &[self.tokens, self.cols])?;
        launch!(
            device,
            embedding,
            sys::kqm_embedding_args {
                table: self.table.as_ptr().cast(),
                tokens: self.ids.as_ptr(),
                out: self.out.as_ptr(),
                type_: self.kind as u32,
                vocab: count("embedding", "vocab", self.vocab)?,
                cols: count("embedding", "cols", self.cols)?,
                count: count("embedding", "tokens", self.tokens)?,
            }
        )
    }
}
