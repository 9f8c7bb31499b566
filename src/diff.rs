//! Comparison of two traces, stage by stage: where does one forward leave the other, and how far.
//!
//! Nothing here reads files or prints. Values are compared as numbers in f64, which holds every element type that a trace
//! can have exactly, so that equal bits and equal numbers are the same thing (zeros of different sign are different).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::trace::Stage;
use crate::{Error, Result};

/// A stage of one layer, or a stage outside of the layers. Ordered as the forward computes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Point {
    /// The layer; `None` for a stage outside of the layers.
    pub layer: Option<usize>,
    /// The stage.
    pub stage: Stage,
}

impl Point {
    fn order(&self) -> (u8, usize, Stage) {
        let part = match self.stage {
            Stage::Embedding => 0,
            stage if stage.in_layer() => 1,
            _ => 2,
        };
        (part, self.layer.unwrap_or(0), self.stage)
    }
}

impl Ord for Point {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for Point {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Point {
    /// `layer07.attn_norm`, or `logits`: the file name of the values, without its extension.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => f.pad(&format!("layer{layer:02}.{}", self.stage)),
            None => f.pad(self.stage.name()),
        }
    }
}

impl FromStr for Point {
    type Err = Error;

    /// # Errors
    /// [`Error::Invalid`] for anything that [`Display`](fmt::Display) does not write.
    fn from_str(name: &str) -> Result<Self> {
        let unknown = || Error::Invalid(format!("{name:?} is not the name of a stage"));
        let point = match name.split_once('.') {
            None => Self { layer: None, stage: name.parse()? },
            Some((layer, stage)) => {
                let digits = layer.strip_prefix("layer").ok_or_else(unknown)?;
                Self { layer: Some(digits.parse().map_err(|_| unknown())?), stage: stage.parse()? }
            }
        };
        if point.layer.is_some() == point.stage.in_layer() && point.to_string() == name {
            Ok(point)
        } else {
            Err(unknown())
        }
    }
}

/// The values of a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Single precision; half precision widens to it exactly.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
    /// Indices.
    Int(Vec<i64>),
}

impl Values {
    /// The number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::Int(values) => values.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, index: usize) -> f64 {
        match self {
            Self::F32(values) => values[index].into(),
            Self::F64(values) => values[index],
            Self::Int(values) => values[index] as f64,
        }
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for index in 0..self.len() {
            let value = self.get(index);
            if value.is_nan() {
                summary.nan += 1;
            } else if value.is_infinite() {
                summary.inf += 1;
            } else {
                let (min, max) = summary.range.unwrap_or((value, value));
                summary.range = Some((min.min(value), max.max(value)));
            }
        }
        summary
    }
}

/// Values with their shape, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The last dimension is contiguous.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` values.
    pub values: Values,
}

/// What the comparison of a stage comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// All bits are equal.
    Equal,
    /// Close: the cosine, and the quotient of the lengths, are at least the smallest cosine allowed.
    Match,
    /// Not close, infinities in different places, different indices, or different numbers of values.
    Diverge,
    /// There are NaNs in the first trace only.
    NanA,
    /// There are NaNs in the second trace only.
    NanB,
    /// There are NaNs in both traces.
    NanBoth,
    /// One of the traces has no such stage.
    Missing,
}

impl Verdict {
    /// Whether the stage is in both traces and the values agree.
    pub fn agrees(self) -> bool {
        matches!(self, Self::Equal | Self::Match)
    }

    /// Whether the stage is in both traces and the values do not agree.
    pub fn diverges(self) -> bool {
        !self.agrees() && self != Self::Missing
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Equal => "Equal",
            Self::Match => "Match",
            Self::Diverge => "Diverge",
            Self::NanA => "NanA",
            Self::NanB => "NanB",
            Self::NanBoth => "NanBoth",
            Self::Missing => "Missing",
        })
    }
}

/// What the values of one trace are like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// NaNs.
    pub nan: usize,
    /// Infinities of either sign.
    pub inf: usize,
    /// Smallest and largest finite value; `None` when no value is finite.
    pub range: Option<(f64, f64)>,
}

/// The comparison of one stage.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// The result.
    pub verdict: Verdict,
    /// Shape and summary of the first trace's values.
    pub a: Option<(Vec<usize>, Summary)>,
    /// Shape and summary of the second trace's values.
    pub b: Option<(Vec<usize>, Summary)>,
    /// Values whose bits differ; `None` when there is nothing to compare value by value.
    pub differing: Option<usize>,
    /// Index of the first value that is NaN in either trace, or else of the first one whose bits differ.
    pub first_bad: Option<usize>,
    /// Cosine of the angle between the two, over the places where both are finite; `None` for indices.
    pub cosine: Option<f64>,
    /// Length of the difference over the length of the first, over the same places; `None` for indices.
    pub relative_l2: Option<f64>,
    /// Largest distance in representable numbers, over the same places: of f32, or of f64 when both are. `None` for
    /// indices.
    pub max_ulps: Option<u64>,
}

/// The power of two that brings the largest of all finite values, of which these are the smallest and largest of each trace,
/// to between 1 and 2 (and the largest of denormal numbers to above 2^-53): so that squares neither overflow nor vanish.
fn unit_scale(ranges: impl Iterator<Item = (f64, f64)>) -> f64 {
    let largest = ranges.fold(0.0, |largest: f64, (min, max)| largest.max(min.abs()).max(max.abs()));
    // The exponent, biased by 1023; 0 for denormal numbers.
    let exponent = (largest.to_bits() >> 52) as i32;
    2_f64.powi(1023 - exponent.max(1))
}

/// Sums over the places where both are finite, of scaled values.
#[derive(Default)]
struct Sums {
    ab: f64,
    aa: f64,
    bb: f64,
    dd: f64,
}

impl Sums {
    fn cosine(&self) -> f64 {
        match (self.aa == 0.0, self.bb == 0.0) {
            (true, true) => 1.0,
            (false, false) => self.ab / (self.aa.sqrt() * self.bb.sqrt()),
            _ => 0.0,
        }
    }

    fn relative_l2(&self) -> f64 {
        if self.dd == 0.0 { 0.0 } else { (self.dd / self.aa).sqrt() }
    }

    /// Quotient of the lengths, at most 1.
    fn scale(&self) -> f64 {
        let (a, b) = (self.aa.sqrt(), self.bb.sqrt());
        if a == b { 1.0 } else { a.min(b) / a.max(b) }
    }
}

impl Comparison {
    /// Compares the values of a stage in two traces. Shapes may differ as long as the number of values is the same:
    /// programs differ in the dimensions that they keep apart. Values that are not equal match when their cosine, and
    /// the quotient of their lengths, is at least `min_cosine`; with infinity nothing but equal bits agrees.
    pub fn new(a: Option<&Array>, b: Option<&Array>, min_cosine: f64) -> Self {
        let side = |array: &Array| (array.shape.clone(), array.values.summary());
        let mut result = Self {
            verdict: Verdict::Missing,
            a: a.map(side),
            b: b.map(side),
            differing: None,
            first_bad: None,
            cosine: None,
            relative_l2: None,
            max_ulps: None,
        };
        let (Some(Array { values: a, .. }), Some(Array { values: b, .. })) = (a, b) else { return result };
        if a.len() == b.len() {
            result.compare(a, b, min_cosine);
        } else {
            result.verdict = Verdict::Diverge;
        }
        let nan = |side: &Option<(_, Summary)>| side.as_ref().is_some_and(|(_, summary)| summary.nan > 0);
        match (nan(&result.a), nan(&result.b)) {
            (true, true) => result.verdict = Verdict::NanBoth,
            (true, false) => result.verdict = Verdict::NanA,
            (false, true) => result.verdict = Verdict::NanB,
            (false, false) => {}
        }
        result
    }

    fn compare(&mut self, a: &Values, b: &Values, min_cosine: f64) {
        let indices = matches!(a, Values::Int(_)) || matches!(b, Values::Int(_));
        let single = matches!(a, Values::F32(_)) || matches!(b, Values::F32(_));
        let scale = unit_scale([&self.a, &self.b].into_iter().flatten().filter_map(|(_, summary)| summary.range));
        let mut sums = Sums::default();
        let mut ulps = 0;
        let mut differing = 0;
        let (mut first_nan, mut first_differing) = (None, None);
        let mut same_infinities = true;
        for index in 0..a.len() {
            let (x, y) = (a.get(index), b.get(index));
            if x.is_nan() || y.is_nan() {
                first_nan = first_nan.or(Some(index));
            }
            if x.to_bits() != y.to_bits() {
                differing += 1;
                first_differing = first_differing.or(Some(index));
            }
            if x.is_finite() && y.is_finite() {
                ulps = ulps.max(if single { ulps_f32(x as f32, y as f32) } else { ulps_f64(x, y) });
                let (x, y) = (x * scale, y * scale);
                sums.ab += x * y;
                sums.aa += x * x;
                sums.bb += y * y;
                sums.dd += (x - y) * (x - y);
            } else if x != y {
                same_infinities = false;
            }
        }
        self.differing = Some(differing);
        self.first_bad = first_nan.or(first_differing);
        let close = if indices {
            false
        } else {
            self.cosine = Some(sums.cosine());
            self.relative_l2 = Some(sums.relative_l2());
            self.max_ulps = Some(ulps);
            same_infinities && sums.cosine() >= min_cosine && sums.scale() >= min_cosine
        };
        self.verdict = match (differing, close) {
            (0, _) => Verdict::Equal,
            (_, true) => Verdict::Match,
            (_, false) => Verdict::Diverge,
        };
    }
}

/// Representable numbers between two finite ones; both zeros count as one.
fn ulps_f32(a: f32, b: f32) -> u64 {
    let place = |x: f32| i64::from(x.to_bits() & !(1 << 31)) * if x.is_sign_negative() { -1 } else { 1 };
    place(a).abs_diff(place(b))
}

fn ulps_f64(a: f64, b: f64) -> u64 {
    let place = |x: f64| (x.to_bits() & !(1 << 63)) as i64 * if x.is_sign_negative() { -1 } else { 1 };
    place(a).abs_diff(place(b))
}

/// The comparison of two traces: every stage that either of them has, in forward order.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The stages.
    pub rows: Vec<(Point, Comparison)>,
}

impl Report {
    /// A report of comparisons in any order.
    pub fn new(mut rows: Vec<(Point, Comparison)>) -> Self {
        rows.sort_by_key(|row| row.0);
        Self { rows }
    }

    /// The first stage, in forward order, whose values do not agree.
    pub fn first_divergence(&self) -> Option<&(Point, Comparison)> {
        self.rows.iter().find(|(_, row)| row.verdict.diverges())
    }

    /// The first stage, in forward order, that is in both traces and is not equal in bits. Between two runs that
    /// promise the same bits, this is the stage that broke the promise: values a little off are a match, and what comes
    /// of them may diverge only layers later, where another expert is chosen, or nowhere.
    pub fn first_difference(&self) -> Option<&(Point, Comparison)> {
        self.rows.iter().find(|(_, row)| !matches!(row.verdict, Verdict::Equal | Verdict::Missing))
    }

    /// The last stage before the first divergence whose values agree; the last one of all when nothing diverges.
    pub fn last_agreement(&self) -> Option<&(Point, Comparison)> {
        let before = self.rows.iter().take_while(|(_, row)| !row.verdict.diverges());
        before.filter(|(_, row)| row.verdict.agrees()).last()
    }

    /// Stages that are in both traces.
    pub fn compared(&self) -> usize {
        self.rows.iter().filter(|(_, row)| row.verdict != Verdict::Missing).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Array {
        Array { shape: vec![values.len()], values: Values::F32(values.to_vec()) }
    }

    fn compare(a: &[f32], b: &[f32]) -> Comparison {
        Comparison::new(Some(&floats(a)), Some(&floats(b)), 0.99)
    }

    #[test]
    fn names_round_trip_in_forward_order() {
        let point = |name: &str| name.parse::<Point>().unwrap();
        let names = [
            "embedding",
            "layer00.attn_norm",
            "layer00.ffn_residual",
            "layer07.q",
            "layer47.moe_router_indices",
            "layer100.q",
            "output_norm",
            "logits",
        ];
        let points: Vec<Point> = names.iter().map(|name| point(name)).collect();
        assert!(points.is_sorted());
        for (name, point) in names.iter().zip(points) {
            assert_eq!(point.to_string(), *name);
        }
        for wrong in ["", "q", "layer0.q", "layer007.q", "layer00.logits", "layer00", "layer.q", "layer-1.q", "x"] {
            assert!(wrong.parse::<Point>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn equal_means_equal_bits() {
        let row = compare(&[1.0, -0.0, f32::NEG_INFINITY], &[1.0, -0.0, f32::NEG_INFINITY]);
        assert_eq!(row.verdict, Verdict::Equal);
        assert_eq!((row.differing, row.first_bad, row.max_ulps), (Some(0), None, Some(0)));
        assert_eq!((row.cosine, row.relative_l2), (Some(1.0), Some(0.0)));
        let row = compare(&[1.0, 0.0], &[1.0, -0.0]);
        assert_eq!(row.verdict, Verdict::Match);
        assert_eq!((row.differing, row.first_bad, row.max_ulps), (Some(1), Some(1), Some(0)));
    }

    #[test]
    fn one_ulp_is_a_match_and_another_direction_or_length_is_not() {
        let row = compare(&[1.0, 2.0, 3.0], &[1.0, 2.0_f32.next_up(), 3.0]);
        assert_eq!(row.verdict, Verdict::Match);
        assert_eq!((row.first_bad, row.max_ulps), (Some(1), Some(1)));
        assert!(row.relative_l2.unwrap() > 0.0 && row.relative_l2.unwrap() < 1e-6);
        assert_eq!(compare(&[1.0, 2.0], &[2.0, -1.0]).verdict, Verdict::Diverge);
        let scaled = compare(&[1.0, 2.0], &[1.5, 3.0]);
        assert!(scaled.cosine.unwrap() > 0.999_999);
        assert_eq!(scaled.verdict, Verdict::Diverge);
        assert_eq!(compare(&[0.0, 0.0], &[1.0, 0.0]).verdict, Verdict::Diverge);
    }

    #[test]
    fn nans_are_told_apart_and_never_agree() {
        let nan = f32::NAN;
        assert_eq!(compare(&[1.0, nan], &[1.0, 2.0]).verdict, Verdict::NanA);
        assert_eq!(compare(&[1.0, 2.0], &[1.0, nan]).verdict, Verdict::NanB);
        let both = compare(&[1.0, nan, 3.0], &[1.5, nan, 3.0]);
        assert_eq!((both.verdict, both.first_bad), (Verdict::NanBoth, Some(1)));
        assert_eq!(compare(&[nan, nan], &[nan, nan]).verdict, Verdict::NanBoth);
        assert!(Verdict::NanBoth.diverges());
        // Too few values to compare, and still the NaN is what is said.
        assert_eq!(compare(&[nan], &[1.0, 2.0]).verdict, Verdict::NanA);
    }

    #[test]
    fn infinities_must_be_in_the_same_places() {
        let inf = f32::INFINITY;
        assert_eq!(compare(&[1.0, inf], &[1.0, inf]).verdict, Verdict::Equal);
        assert_eq!(compare(&[1.0, inf], &[1.0_f32.next_up(), inf]).verdict, Verdict::Match);
        assert_eq!(compare(&[1.0, inf], &[1.0, -inf]).verdict, Verdict::Diverge);
        assert_eq!(compare(&[1.0, 2.0], &[1.0, inf]).verdict, Verdict::Diverge);
    }

    #[test]
    fn summaries_count_and_bound() {
        let row = compare(&[1.0, f32::NAN, f32::INFINITY, -3.0], &[f32::NEG_INFINITY; 4]);
        assert_eq!(row.a.unwrap().1, Summary { nan: 1, inf: 1, range: Some((-3.0, 1.0)) });
        assert_eq!(row.b.unwrap().1, Summary { nan: 0, inf: 4, range: None });
    }

    #[test]
    fn indices_are_equal_or_not() {
        let ints = |values: &[i64]| Array { shape: vec![values.len()], values: Values::Int(values.to_vec()) };
        let compare = |a: &[i64], b: &[i64]| Comparison::new(Some(&ints(a)), Some(&ints(b)), 0.0);
        assert_eq!(compare(&[3, 1], &[3, 1]).verdict, Verdict::Equal);
        let row = compare(&[3, 1], &[3, 2]);
        assert_eq!((row.verdict, row.cosine, row.first_bad), (Verdict::Diverge, None, Some(1)));
    }

    #[test]
    fn precisions_mix() {
        let double = |values: &[f64]| Array { shape: vec![values.len()], values: Values::F64(values.to_vec()) };
        let single = floats(&[0.1, 2.0]);
        let exact = double(&[f64::from(0.1_f32), 2.0]);
        assert_eq!(Comparison::new(Some(&single), Some(&exact), 0.99).verdict, Verdict::Equal);
        let row = Comparison::new(Some(&single), Some(&double(&[0.1, 2.0])), 0.99);
        assert_eq!((row.verdict, row.max_ulps), (Verdict::Match, Some(0)));
        let row = Comparison::new(Some(&exact), Some(&double(&[f64::from(0.1_f32), 2.0_f64.next_down()])), 0.99);
        assert_eq!((row.verdict, row.max_ulps), (Verdict::Match, Some(1)));
        assert_eq!(ulps_f32(-f32::MIN_POSITIVE, f32::MIN_POSITIVE), 2 * u64::from(f32::MIN_POSITIVE.to_bits()));
        assert_eq!(ulps_f64(f64::MIN, f64::MAX), 2 * f64::MAX.to_bits());
    }

    #[test]
    fn shapes_may_differ_but_not_the_number_of_values() {
        let a = Array { shape: vec![2, 2], values: Values::F32(vec![1.0; 4]) };
        let b = Array { shape: vec![4], ..a.clone() };
        assert_eq!(Comparison::new(Some(&a), Some(&b), 0.99).verdict, Verdict::Equal);
        let row = compare(&[1.0; 4], &[1.0; 5]);
        assert_eq!((row.verdict, row.differing, row.cosine), (Verdict::Diverge, None, None));
    }

    fn doubles(values: &[f64]) -> Array {
        Array { shape: vec![values.len()], values: Values::F64(values.to_vec()) }
    }

    fn compare_doubles(a: &[f64], b: &[f64], min_cosine: f64) -> Comparison {
        Comparison::new(Some(&doubles(a)), Some(&doubles(b)), min_cosine)
    }

    /// Lengths and products that come out exactly.
    #[test]
    fn figures_are_exact_and_relative_to_the_first() {
        let row = compare_doubles(&[3.0, 4.0], &[3.0, 14.0], 0.0);
        assert_eq!((row.relative_l2, row.differing, row.first_bad), (Some(2.0), Some(1), Some(1)));
        assert_eq!(compare_doubles(&[6.0, 8.0], &[3.0, 4.0], 0.0).relative_l2, Some(0.5));
        assert_eq!(compare_doubles(&[3.0, 4.0], &[6.0, 8.0], 0.0).relative_l2, Some(1.0));
        assert_eq!(compare_doubles(&[0.0, 0.0], &[6.0, 8.0], 0.0).relative_l2, Some(f64::INFINITY));
        assert_eq!(compare_doubles(&[3.0, 4.0], &[0.0, 0.0], 0.0).relative_l2, Some(1.0));
        assert_eq!(compare_doubles(&[3.0, 4.0], &[4.0, 3.0], 0.0).cosine, Some(0.96));
        assert_eq!(compare_doubles(&[3.0, 4.0], &[4.0, -3.0], 0.0).cosine, Some(0.0));
        assert_eq!(compare_doubles(&[3.0, 4.0], &[-3.0, -4.0], 0.0).cosine, Some(-1.0));
        assert_eq!(compare_doubles(&[0.0, -0.0], &[-0.0, 0.0], 0.0).cosine, Some(1.0));
        for (a, b) in [([0.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [0.0, 0.0])] {
            assert_eq!(compare_doubles(&a, &b, 0.0).cosine, Some(0.0));
        }
        // The largest distance, wherever it is.
        let ulps = |a: f32, n: u32| f32::from_bits(a.to_bits() + n);
        assert_eq!(compare(&[1.0, 2.0, 3.0], &[ulps(1.0, 2), ulps(2.0, 5), ulps(3.0, 1)]).max_ulps, Some(5));
        assert_eq!(compare(&[-1.0, 1.0], &[-ulps(1.0, 3), 1.0]).max_ulps, Some(3));
    }

    /// A threshold is the least that agrees: of the cosine, and of the quotient of the lengths, whichever is longer.
    #[test]
    fn what_is_at_the_threshold_agrees() {
        let (a, b) = ([3.0, 4.0], [4.0, 3.0]);
        for (min_cosine, verdict) in [(0.96, Verdict::Match), (0.96_f64.next_up(), Verdict::Diverge)] {
            assert_eq!(compare_doubles(&a, &b, min_cosine).verdict, verdict);
        }
        let twice = [6.0, 8.0];
        for (min_cosine, verdict) in [(0.5, Verdict::Match), (0.5_f64.next_up(), Verdict::Diverge)] {
            assert_eq!(compare_doubles(&a, &twice, min_cosine).verdict, verdict);
            assert_eq!(compare_doubles(&twice, &a, min_cosine).verdict, verdict);
        }
        // The most that a cosine comes to does not agree with infinity, and equal bits do.
        let near = [3.0, 4.0_f64.next_up()];
        assert_eq!(compare_doubles(&a, &near, 0.99).verdict, Verdict::Match);
        assert_eq!(compare_doubles(&a, &near, f64::INFINITY).verdict, Verdict::Diverge);
        assert_eq!(compare_doubles(&a, &a, f64::INFINITY).verdict, Verdict::Equal);
    }

    /// Numbers whose squares, or whose differences, no f64 holds.
    #[test]
    fn the_largest_and_the_smallest_numbers_are_compared_like_others() {
        for size in [1e200, 1e-200, f64::MIN_POSITIVE * 0.25, 2_f64.powi(1021), 1.0] {
            let row = |a: [f64; 2], b: [f64; 2]| compare_doubles(&a.map(|x| x * size), &b.map(|x| x * size), 0.99);
            assert_eq!(row([1.0, 2.0], [1.0, 2.0]).verdict, Verdict::Equal, "{size}");
            for other in [[1.0, 3.0], [-1.0, 2.0], [1.0, -2.0], [2.0, 4.0], [0.0, 0.0]] {
                for row in [row([1.0, 2.0], other), row(other, [1.0, 2.0])] {
                    assert_eq!(row.verdict, Verdict::Diverge, "{size}: {other:?}");
                    assert!(row.differing > Some(0) && row.max_ulps > Some(0), "{size}: {other:?}");
                }
            }
            let close = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-12;
            let far = row([3.0, 4.0], [-4.0, 3.0]);
            assert!(close(far.cosine, 0.0) && close(far.relative_l2, 2_f64.sqrt()), "{size}: {far:?}");
            assert!(close(row([3.0, 4.0], [4.0, 3.0]).cosine, 0.96), "{size}");
            let (a, b) = ([size, 2.0 * size], [size, (2.0 * size).next_up()]);
            let near = compare_doubles(&a, &b, 0.5);
            assert_eq!((near.verdict, near.max_ulps), (Verdict::Match, Some(1)), "{size}");
        }
        for other in [[1.0, 2.0], [1e-200, 2e-200]] {
            assert_eq!(compare_doubles(&[1e200, 2e200], &other, 0.5).verdict, Verdict::Diverge);
            assert_eq!(compare_doubles(&other, &[1e200, 2e200], 0.5).verdict, Verdict::Diverge);
        }
        assert_eq!(compare_doubles(&[f64::MAX; 2], &[f64::MIN; 2], 0.0).cosine.map(f64::round), Some(-1.0));
    }

    #[test]
    fn nans_and_infinities_take_no_part_in_the_figures() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        // Of 3, 4 and 4, 3.
        let cosine = Some(0.96);
        for (a, b, verdict, first) in [
            ([nan, 3.0, 4.0, inf], [1.0, 4.0, 3.0, inf], Verdict::NanA, 0),
            ([1.0, 3.0, 4.0, inf], [nan, 4.0, 3.0, inf], Verdict::NanB, 0),
            ([nan, 3.0, 4.0, inf], [nan, 4.0, 3.0, inf], Verdict::NanBoth, 0),
            // Each in a place of its own.
            ([inf, 3.0, 4.0, nan], [nan, 4.0, 3.0, inf], Verdict::NanBoth, 0),
            // The NaN is what is said to be bad, although other bits differ earlier.
            ([3.0, 4.0, 0.0, nan], [4.0, 3.0, 0.0, 1.0], Verdict::NanA, 3),
        ] {
            for min_cosine in [0.0, f64::INFINITY] {
                let row = compare_doubles(&a, &b, min_cosine);
                assert_eq!((row.verdict, row.first_bad), (verdict, Some(first)), "{a:?} {b:?}");
                assert_eq!(row.cosine, cosine, "{a:?} {b:?}");
            }
        }
        // NaNs of other bits differ, and no trace with NaNs agrees with another, not even with itself.
        let other_nan = f64::from_bits(nan.to_bits() ^ 1);
        assert_eq!(compare_doubles(&[nan], &[other_nan], 0.0).differing, Some(1));
        let row = compare_doubles(&[nan, 1.0], &[nan, 1.0], 0.0);
        assert_eq!((row.verdict, row.differing, row.first_bad), (Verdict::NanBoth, Some(0), Some(0)));
        assert!(!row.verdict.agrees() && row.verdict.diverges());
        // Nothing is left to compare, and nothing is close to an infinity but itself.
        assert_eq!(compare_doubles(&[inf, -inf], &[inf, -inf], 0.99).verdict, Verdict::Equal);
        assert_eq!(compare_doubles(&[inf, 1.0], &[1.0, inf], 0.0).verdict, Verdict::Diverge);
        assert_eq!(compare_doubles(&[f64::MAX], &[inf], 0.0).verdict, Verdict::Diverge);
    }

    #[test]
    fn verdicts_agree_diverge_or_are_missing() {
        use Verdict::{Diverge, Equal, Match, Missing, NanA, NanB, NanBoth};
        for (verdict, agrees, diverges) in [
            (Equal, true, false),
            (Match, true, false),
            (Diverge, false, true),
            (NanA, false, true),
            (NanB, false, true),
            (NanBoth, false, true),
            (Missing, false, false),
        ] {
            assert_eq!((verdict.agrees(), verdict.diverges()), (agrees, diverges), "{verdict}");
        }
        let one = floats(&[1.0]);
        for (a, b) in [(Some(&one), None), (None, Some(&one)), (None, None)] {
            let row = Comparison::new(a, b, 0.99);
            assert_eq!((row.verdict, row.a.is_some(), row.b.is_some()), (Missing, a.is_some(), b.is_some()));
        }
    }

    /// Indices are compared as numbers, also with a program that wrote them as floats, and never by their direction.
    #[test]
    fn indices_are_never_close() {
        let ints = Array { shape: vec![2], values: Values::Int(vec![1000, 1001]) };
        let (same, near) = (floats(&[1000.0, 1001.0]), floats(&[1000.0, 1002.0]));
        for (a, b) in [(&ints, &same), (&same, &ints)] {
            assert_eq!(Comparison::new(Some(a), Some(b), 0.0).verdict, Verdict::Equal);
        }
        for (a, b) in [(&ints, &near), (&near, &ints)] {
            let row = Comparison::new(Some(a), Some(b), 0.0);
            assert_eq!((row.verdict, row.first_bad, row.cosine), (Verdict::Diverge, Some(1), None));
            assert_eq!((row.relative_l2, row.max_ulps), (None, None));
        }
        let values = [&ints.values, &same.values, &doubles(&[]).values].map(|values| (values.len(), values.is_empty()));
        assert_eq!(values, [(2, false), (2, false), (0, true)]);
    }

    #[test]
    fn a_report_names_where_agreement_ends() {
        let row = |name: &str, a: Option<&[f32]>, b: Option<&[f32]>| {
            let (a, b) = (a.map(floats), b.map(floats));
            (name.parse().unwrap(), Comparison::new(a.as_ref(), b.as_ref(), 0.99))
        };
        let one: Option<&[f32]> = Some(&[1.0, 2.0]);
        let two: Option<&[f32]> = Some(&[-1.0, 2.0]);
        let report = Report::new(vec![
            row("logits", one, one),
            row("layer01.q", one, two),
            row("layer01.attn_norm", one, None),
            row("layer00.ffn_residual", one, one),
            row("embedding", one, one),
        ]);
        assert_eq!(report.first_divergence().unwrap().0.to_string(), "layer01.q");
        assert_eq!(report.last_agreement().unwrap().0.to_string(), "layer00.ffn_residual");
        assert_eq!(report.compared(), 4);
        assert_eq!(report.first_difference(), report.first_divergence());
        let report = Report::new(vec![row("logits", one, one), row("embedding", one, None)]);
        assert!(report.first_divergence().is_none() && report.first_difference().is_none());
        assert_eq!(report.last_agreement().unwrap().0.to_string(), "logits");
        // A match is no divergence, and not equal.
        let near: Option<&[f32]> = Some(&[1.0, 2.0_f32.next_up()]);
        let report =
            Report::new(vec![row("logits", one, two), row("output_norm", one, near), row("embedding", one, one)]);
        assert_eq!(report.first_difference().unwrap().0.to_string(), "output_norm");
        assert_eq!(report.last_agreement().unwrap().0.to_string(), "output_norm");
        assert_eq!(report.first_divergence().unwrap().0.to_string(), "logits");
    }
}
