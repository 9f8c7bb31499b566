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

#[cfg(test)]
mod tests {
    use super::*;
    use kquant_moe::diff::Verdict;

    fn add(capture: &mut Capture, stage: Stage, shape: &[usize], data: Data<'_>) {
        capture.add(Record::new(stage, stage.in_layer().then_some(0), 0, shape, data)).unwrap();
    }

    #[test]
    fn rows_of_batches_follow_each_other() {
        const NO: f32 = f32::NEG_INFINITY;
        let mut capture = Capture::default();
        add(&mut capture, Stage::Q, &[2, 2], Data::F32(&[1.0, 2.0, 3.0, 4.0]));
        add(&mut capture, Stage::Q, &[1, 2], Data::F32(&[5.0, 6.0]));
        add(&mut capture, Stage::MoeRouterIndices, &[1, 2], Data::U32(&[7, u32::MAX]));
        add(&mut capture, Stage::MoeRouterIndices, &[2, 2], Data::U32(&[1, 2, 3, 4]));
        // One head that sees one position, then two heads' worth of rows that see three.
        add(&mut capture, Stage::AttnScores, &[1, 2, 1], Data::F32(&[1.0, 2.0]));
        add(&mut capture, Stage::AttnScores, &[2, 2, 3], Data::F32(&[3.0; 12]));
        let array = |stage| &capture.arrays[&Point { layer: Some(0), stage }];
        assert_eq!(array(Stage::Q).shape, [3, 2]);
        assert_eq!(array(Stage::Q).values, Values::F32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert_eq!(array(Stage::MoeRouterIndices).shape, [3, 2]);
        assert_eq!(array(Stage::MoeRouterIndices).values, Values::Int(vec![7, u32::MAX.into(), 1, 2, 3, 4]));
        assert_eq!(array(Stage::AttnScores).shape, [3, 2, 3]);
        let scores = [&[1.0, NO, NO, 2.0, NO, NO], &[3.0; 12][..]].concat();
        assert_eq!(array(Stage::AttnScores).values, Values::F32(scores));
        assert_eq!(widen(&[1.0, 2.0], 2, 2), [1.0, 2.0]);
    }

    #[test]
    fn captures_are_compared_stage_by_stage() {
        let (mut a, mut b) = (Capture::default(), Capture::default());
        for (capture, value) in [(&mut a, 1.0), (&mut b, -1.0)] {
            add(capture, Stage::Logits, &[1, 1], Data::F32(&[value]));
            add(capture, Stage::Embedding, &[1, 1], Data::F32(&[3.0]));
        }
        add(&mut a, Stage::K, &[1, 1], Data::F32(&[3.0]));
        add(&mut b, Stage::V, &[1, 1], Data::F32(&[3.0]));
        let report = a.compare(&b, 0.5);
        let rows: Vec<_> = report.rows.iter().map(|(point, row)| (point.stage, row.verdict)).collect();
        let expected = [
            (Stage::Embedding, Verdict::Equal),
            (Stage::K, Verdict::Missing),
            (Stage::V, Verdict::Missing),
            (Stage::Logits, Verdict::Diverge),
        ];
        assert_eq!(rows, expected);
    }
}
