//! Index of the largest value of each row.

use super::*;

/// What a decode loop on the device does with the token that was found.
#[non_exhaustive]
pub struct DecodeLoop<'a> {
    /// `[rows]`: the positions, each advanced by one.
    pub position: SliceMut<'a, u32>,
    /// `[rows, any]`, tokens of each row by position: the found one is stored at the position before it advances, or 2^32 - 1 when its
    /// value is not finite.
    pub history: SliceMut<'a, u32>,
}

impl<'a> DecodeLoop<'a> {
    /// The positions, and the tokens of each row by position.
    pub fn new(position: SliceMut<'a, u32>, history: SliceMut<'a, u32>) -> Self {
        Self { position, history }
    }
}

/// Operands of `argmax`.
#[non_exhaustive]
pub struct Argmax<'a> {
    /// `[rows, cols]`.
    pub x: Slice<'a, f32>,
    /// `[rows]`.
    pub out: SliceMut<'a, u32>,
    /// `[rows]`, zero before the first launch and after every one.
    pub partial: SliceMut<'a, u64>,
    /// `[rows]`, zero before the first launch and after every one.
    pub done: SliceMut<'a, u32>,
    /// Feed the tokens back.
    pub feed: Option<DecodeLoop<'a>>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl<'a> Argmax<'a> {
    /// Of `[rows, cols]`. `partial` and `done` are memory of the kernel's own.
    pub fn new(
        x: Slice<'a, f32>,
        out: SliceMut<'a, u32>,
        partial: SliceMut<'a, u64>,
        done: SliceMut<'a, u32>,
        [rows, cols]: [usize; 2],
    ) -> Self {
        Self { x, out, partial, done, feed: None, rows, cols }
    }

    optional_operands! {
        /// Feeds the tokens back.
        feed: DecodeLoop<'a>;
    }
}

impl Argmax<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        const NAME: &str = "argmax";
        at_least(device, NAME, "x", self.x.place(), &[self.rows, self.cols])?;
        at_least(device, NAME, "out", self.out.place(), &[self.rows])?;
        at_least(device, NAME, "partial", self.partial.place(), &[self.rows])?;
        at_least(device, NAME, "done", self.done.place(), &[self.rows])?;
        let (mut advance, mut history, mut history_len) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        if let Some(feed) = self.feed {
            at_least(device, NAME, "feed.position", feed.position.place(), &[self.rows])?;
            at_least(device, NAME, "feed.history", feed.history.place(), &[0])?;
            // Of no rows there are no histories: that is for the launcher to refuse.
            history_len = count(NAME, "feed.history", feed.history.len() / self.rows.max(1))?;
            advance = feed.position.as_ptr();
            history = feed.history.as_ptr();
        }
        launch!(
            device,
            argmax,
            sys::kqm_argmax_args {
                x: self.x.as_ptr(),
                out: self.out.as_ptr(),
                partial: self.partial.as_ptr(),
                done: self.done.as_ptr(),
                advance,
                history,
                history_len,
                rows: count(NAME, "rows", self.rows)?,
                cols: count(NAME, "cols", self.cols)?,
            }
        )
    }
}
