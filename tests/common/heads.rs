//! Attention of one head whose result shows the order in which it is summed up.

use super::pins::{self, Pin};

pub const HEAD_DIM: usize = 64;
/// Positions of a chunk.
const CHUNK: usize = 64;

/// A query, and a key and a value for each position that it sees: `[seen, HEAD_DIM]`.
#[derive(Clone)]
pub struct Case {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    /// The output's first dimensions.
    pub expected: Vec<f32>,
}

impl Case {
    pub fn seen(&self) -> usize {
        self.k.len() / HEAD_DIM
    }

    /// All positions of `chunks` chunks, of the last one the first position only; scores are the keys' first dimensions.
    fn new(chunks: usize, expected: Vec<f32>) -> Self {
        let seen = if chunks == 1 { CHUNK } else { CHUNK * (chunks - 1) + 1 };
        let mut q = vec![0.0; HEAD_DIM];
        // The scale is 1 / 8.
        q[0] = 8.0;
        Self { q, k: vec![0.0; seen * HEAD_DIM], v: vec![0.0; seen * HEAD_DIM], expected }
    }

    /// Scores whose softmax has a denominator of many sizes, with values that show its last bit.
    pub fn denominator(pin: &Pin) -> Self {
        let mut case = Self::new(pin.number("chunks"), pin.values("y"));
        // The scores of all positions, or of the first position of each chunk: the others' probabilities are 0.
        let (step, scores) = (pin.number("step"), pin.values("scores"));
        for (position, key) in case.k.chunks_mut(HEAD_DIM).enumerate() {
            key[0] = if position % step == 0 { scores[position / step] } else { -400.0 };
        }
        let values = pin.values("values");
        case.v[pin.number("place") * HEAD_DIM..][..values.len()].copy_from_slice(&values);
        case
    }

    pub fn denominators() -> Vec<Self> {
        pins::list("denominators").iter().map(Self::denominator).collect()
    }

    /// Equal scores, and one value in each chunk, such that they cancel: in each dimension other ones.
    pub fn joins() -> Vec<Self> {
        let pins = pins::list("joins");
        pins.chunk_by(|a, b| a.number("chunks") == b.number("chunks"))
            .map(|pins| {
                let mut case = Self::new(pins[0].number("chunks"), Vec::new());
                for (dimension, pin) in pins.iter().enumerate() {
                    for (chunk, value) in pin.values("values").into_iter().enumerate() {
                        case.v[chunk * CHUNK * HEAD_DIM + dimension] = value;
                    }
                    case.expected.extend(pin.values("y"));
                }
                case
            })
            .collect()
    }
}
