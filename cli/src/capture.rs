//! Values of a traced forward, kept in memory.

use std::collections::BTreeMap;

use kquant_moe::Result;
use kquant_moe::diff::{Array, Comparison, Point, Report, Values};
use kquant_moe::trace::{Data, Record, Stage};

/// Everything that was recorded, in forward order.
#[derive(Default)]
pub struct Capture {
    /// The values, rows (tokens) first.
    pub arrays: BTreeMap<Point, Array>,
}

/// Values of a record as `diff` compares them.
pub fn values(data: Data<'_>) -> Values {
    match data {
        Data::F32(values) => Values::F32(values.to_vec()),
        Data::U32(values) => Values::Int(values.iter().map(|&value| value.into()).collect()),
    }
}

/// Scores, `[rows, heads, seen]`, as `[rows, heads, width]`: positions that are not seen get minus infinity.
pub fn widen(scores: &[f32], seen: usize, width: usize) -> Vec<f32> {
    let unseen = width.saturating_sub(seen);
    scores
        .chunks(seen)
        .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(f32::NEG_INFINITY, unseen)))
        .collect()
}

impl Capture {
    /// Takes the rows of one batch, which follow those that are there.
    pub fn add(&mut self, record: Record<'_>) -> Result<()> {
        let point = Point { layer: record.layer, stage: record.stage };
        let Some(array) = self.arrays.get_mut(&point) else {
            self.arrays.insert(point, Array { shape: record.shape.to_vec(), values: values(record.data) });
            return Ok(());
        };
        if let (Stage::AttnScores, Values::F32(scores)) = (record.stage, &mut array.values) {
            // Later rows see more positions.
            let (seen, width) = (array.shape[2], record.shape[2]);
            *scores = widen(scores, seen, width);
            array.shape[2] = width;
        }
        array.shape[0] += record.shape[0];
        match (&mut array.values, values(record.data)) {
            (Values::F32(all), Values::F32(more)) => all.extend(more),
            (Values::Int(all), Values::Int(more)) => all.extend(more),
            // A stage has one element type.
            _ => {}
        }
        Ok(())
    }

    /// Compares with another capture.
    pub fn compare(&self, other: &Self, min_cosine: f64) -> Report {
        let mut points: Vec<Point> = self.arrays.keys().chain(other.arrays.keys()).copied().collect();
        points.sort_unstable();
        points.dedup();
        let row = |point| (point, Comparison::new(self.arrays.get(&point), other.arrays.get(&point), min_cosine));
        Report::new(points.into_iter().map(row).collect())
    }
}
