//! A token drawn of each row of logits.

use super::*;
use crate::oracle::sample::Sampling;

/// How a row's token is drawn, as the kernel takes it.
pub type RowSampling = sys::kqm_sampling;
/// What the kernel keeps of a row.
pub type SampleState = sys::kqm_sample_state;
/// What the kernel finds in a part of a row.
pub type SamplePart = sys::kqm_sample_part;

impl From<&Sampling> for RowSampling {
    fn from(sampling: &Sampling) -> Self {
        let Sampling { temperature, top_k, top_p, min_p, penalty, window, seed } = *sampling;
        // Who penalises nothing looks at no history.
        let window = if sampling.penalises() { window } else { 0 };
        // A row has fewer tokens than 32 bits count, and so has a history.
        let [top_k, window] = [top_k, window].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        Self { seed, temperature, top_p, min_p, penalty, top_k, window }
    }
}

/// Operands of `sample`.
#[non_exhaustive]
pub struct Sample<'a> {
    /// `[rows, cols]`.
    pub x: Slice<'a, f32>,
    /// `[rows]`.
    pub sampling: Slice<'a, RowSampling>,
    /// `[rows]`: that of the logits, before that of the token.
    pub position: SliceMut<'a, u32>,
    /// `[rows]`: 2^32 - 1 where the largest logit is not finite.
    pub out: SliceMut<'a, u32>,
    /// `[rows]`, zero before the first launch.
    pub state: SliceMut<'a, SampleState>,
    /// `[rows, parts(cols)]`.
    pub parts: SliceMut<'a, SamplePart>,
    /// `[rows, history_len]`: the token chosen from the logits of position p at p modulo `history_len`. Those of the window must be there.
    pub history: Option<SliceMut<'a, u32>>,
    /// Choices of a row that are kept.
    pub history_len: usize,
    /// Puts the tokens into the history, and increments the positions.
    pub advance: bool,
    /// Rows.
    pub rows: usize,
    /// Columns, at most 2^24.
    pub cols: usize,
}

impl<'a> Sample<'a> {
    /// Of `[rows, cols]`. `state` and `parts` are memory of the kernel's own.
    pub fn new(
        x: Slice<'a, f32>,
        (sampling, position): (Slice<'a, RowSampling>, SliceMut<'a, u32>),
        out: SliceMut<'a, u32>,
        (state, parts): (SliceMut<'a, SampleState>, SliceMut<'a, SamplePart>),
        [rows, cols]: [usize; 2],
    ) -> Self {
        Self { x, sampling, position, out, state, parts, history: None, history_len: 0, advance: false, rows, cols }
    }

    /// With the last choices of every row.
    #[must_use]
    pub fn history(self, history: SliceMut<'a, u32>, history_len: usize) -> Self {
        Self { history: Some(history), history_len, ..self }
    }

    /// Whether a decode loop goes on with the tokens.
    #[must_use]
    pub fn advance(self, advance: bool) -> Self {
        Self { advance, ..self }
    }

    /// Parts of a row of that many columns.
    pub fn parts(cols: usize) -> usize {
        cols.div_ceil(sys::KQM_SAMPLE_PART as usize)
    }
}

impl Sample<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        const NAME: &str = "sample";
        let Self { rows, cols, history_len, .. } = self;
        at_least(device, NAME, "x", self.x.place(), &[rows, cols])?;
        at_least(device, NAME, "sampling", self.sampling.place(), &[rows])?;
        at_least(device, NAME, "position", self.position.place(), &[rows])?;
        at_least(device, NAME, "out", self.out.place(), &[rows])?;
        at_least(device, NAME, "state", self.state.place(), &[rows])?;
        at_least(device, NAME, "parts", self.parts.place(), &[rows, Self::parts(cols)])?;
        if let Some(history) = &self.history {
            at_least(device, NAME, "history", history.place(), &[rows, history_len])?;
        }
        launch!(
            device,
            sample,
            sys::kqm_sample_args {
                x: self.x.as_ptr(),
                sampling: self.sampling.as_ptr(),
                position: self.position.as_ptr(),
                history: optional(self.history),
                out: self.out.as_ptr(),
                state: self.state.as_ptr(),
                parts: self.parts.as_ptr(),
                history_len: count(NAME, "history_len", history_len)?,
                advance: u32::from(self.advance),
                rows: count(NAME, "rows", rows)?,
                cols: count(NAME, "cols", cols)?,
            }
        )
    }
}
