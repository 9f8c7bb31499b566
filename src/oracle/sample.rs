//! Sampling of a token: temperature, top-k, top-p and min-p over exact integers, and a random number that depends on the seed and
//! the position alone.

use std::cmp::Ordering;

use super::argmax::argmax;
use super::exp::exp;
use super::moe_router::compare;

/// How a token is drawn. The definition: `docs/arithmetic.md`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it: finite and at least 0. With 0 the largest one is taken.
    pub temperature: f32,
    /// Only so many of the most probable tokens; 0: all.
    pub top_k: usize,
    /// Only the most probable tokens whose probabilities together reach this share, from 0 to 1; 1: all.
    pub top_p: f32,
    /// Only tokens at least so many times as probable as the most probable one, from 0 to 1; 0: all.
    pub min_p: f32,
    /// Logits of tokens of the window are divided by it where they are above 0, and multiplied with it elsewhere: finite and above 0; 1: none are.
    pub penalty: f32,
    /// The last so many tokens of the sequence.
    pub window: usize,
    /// Selects one of many sequences.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, penalty: 1.0, window: 0, seed: 0 }
    }
}

impl Sampling {
    /// The largest logit, ties to the lower id.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, penalty: 1.0, window: 0, seed: 0 };

    /// What is wrong with the values, if anything is.
    pub fn fault(&self) -> Option<String> {
        let Self { temperature, top_p, min_p, penalty, .. } = *self;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Some(format!("temperature: expected a finite number of at least 0, found {temperature}"));
        }
        if !(penalty.is_finite() && penalty > 0.0) {
            return Some(format!("penalty: expected a finite number above 0, found {penalty}"));
        }
        [("top-p", top_p), ("min-p", min_p)]
            .into_iter()
            .find(|(_, share)| !(0.0..=1.0).contains(share))
            .map(|(name, share)| format!("{name}: expected a number from 0 to 1, found {share}"))
    }

    /// Whether the logits of some tokens are changed.
    pub fn penalises(&self) -> bool {
        self.penalty != 1.0 && self.window > 0
    }
}

/// Weight of the most probable token.
const ONE: f32 = (1_u64 << 32) as f32;

/// The token that is drawn at `position`, behind the tokens `before` it, of a row of at most 2^24 logits: 2^32 - 1 where the largest logit
/// is not finite, or the sampling makes no sense.
pub fn sample(logits: &[f32], sampling: &Sampling, before: &[u32], position: u64) -> u32 {
    let Sampling { temperature, top_k, top_p, min_p, penalty, window, seed } = *sampling;
    if sampling.fault().is_some() {
        return u32::MAX;
    }
    let penalised: Vec<f32>;
    let logits = if sampling.penalises() {
        let mut listed = vec![false; logits.len()];
        for &token in &before[before.len().saturating_sub(window)..] {
            if let Some(listed) = listed.get_mut(token as usize) {
                *listed = true;
            }
        }
        let change = |logit: f32| if logit > 0.0 { logit / penalty } else { logit * penalty };
        penalised =
            logits.iter().zip(listed).map(|(&logit, listed)| if listed { change(logit) } else { logit }).collect();
        &penalised
    } else {
        logits
    };
    let best = argmax(logits);
    let largest = logits[best as usize];
    if !largest.is_finite() {
        return u32::MAX;
    }
    if temperature == 0.0 {
        return best;
    }
    // Scaled once more than an f32 needs to hold: rounding down to an integer is exact from here on.
    let probability = |logit: f32| exp((logit - largest) / temperature);
    let weight = |logit: f32| (probability(logit) * ONE) as u64;

    // The most probable first, ties to the lower id.
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let rank = |&a: &u32, &b: &u32| -> Ordering { compare(logits[b as usize], logits[a as usize]).then(a.cmp(&b)) };
    if top_k != 0 {
        let k = top_k.min(order.len());
        order.select_nth_unstable_by(k - 1, rank);
        order.truncate(k);
    }
    if top_p != 1.0 {
        order.sort_unstable_by(rank);
        let all: u64 = order.iter().map(|&id| weight(logits[id as usize])).sum();
        let limit = ((f64::from(top_p) * all as f64).ceil() as u64).clamp(1, all);
        let mut before = 0;
        order.retain(|&id| {
            let kept = before < limit;
            before += weight(logits[id as usize]);
            kept
        });
    }
    order.retain(|&id| probability(logits[id as usize]) >= min_p);

    // The draw is among ids in their own order, which nothing has to be sorted for.
    order.sort_unstable();
    let weights: Vec<u64> = order.iter().map(|&id| weight(logits[id as usize])).collect();
    order[drawn(&weights, random(seed, position))]
}

/// The place in a list of weights, whose sum is below 2^64 and not 0, that 64 random bits draw.
fn drawn(weights: &[u64], random: u64) -> usize {
    let sum: u64 = weights.iter().sum();
    let drawn = ((u128::from(random) * u128::from(sum)) >> 64) as u64;
    let mut before = 0;
    let place = weights.iter().position(|weight| {
        before += weight;
        drawn < before
    });
    // What is drawn is less than the sum.
    place.unwrap_or(0)
}

/// 64 random bits of a seed and a position: the first two words of Philox4x32-10 with the seed as its key and the position as its
/// counter.
///
/// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).
pub fn random(seed: u64, position: u64) -> u64 {
    let [low, high, ..] = philox([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

/// Philox4x32 with ten rounds.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b, c, d] = counter;
        let (left, right) = (0xd251_1f53 * u64::from(a), 0xcd9e_8d57 * u64::from(c));
        counter = [(right >> 32) as u32 ^ b ^ key[0], right as u32, (left >> 32) as u32 ^ d ^ key[1], left as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of the authors' own library, Random123.
    #[test]
    fn philox_is_the_published_one() {
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), expected);
        }
        assert_eq!(random(0, 0), 0xe169_c58d_6627_e8d5);
        // Every bit of the seed and of the position counts.
        let mut all: Vec<u64> = (0..64).flat_map(|bit| [random(1 << bit, 0), random(0, 1 << bit)]).collect();
        all.push(random(0, 0));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 129);
    }

    /// Logits whose probabilities are these powers of two.
    fn logits(halvings: &[i32]) -> Vec<f32> {
        halvings.iter().map(|&n| -(n as f32) * std::f32::consts::LN_2).collect()
    }

    /// How often each token is drawn at the first so many positions.
    fn counts(logits: &[f32], sampling: &Sampling, positions: u64) -> Vec<u64> {
        let mut counts = vec![0; logits.len()];
        for position in 0..positions {
            counts[sample(logits, sampling, &[], position) as usize] += 1;
        }
        counts
    }

    /// The tokens that are drawn at all.
    fn kept(logits: &[f32], sampling: &Sampling) -> Vec<usize> {
        let counts = counts(logits, sampling, 4000);
        (0..logits.len()).filter(|&id| counts[id] > 0).collect()
    }

    /// Every one of a few outcomes has its share of the random numbers, to the last bit.
    #[test]
    fn weights_share_the_random_numbers() {
        const QUARTER: u64 = 1 << 62;
        for (weights, random, expected) in [
            (&[1, 2, 1][..], 0, 0),
            (&[1, 2, 1], QUARTER - 1, 0),
            (&[1, 2, 1], QUARTER, 1),
            (&[1, 2, 1], 3 * QUARTER - 1, 1),
            (&[1, 2, 1], 3 * QUARTER, 2),
            (&[1, 2, 1], u64::MAX, 2),
            (&[0, 1, 0, 1], 0, 1),
            (&[0, 1, 0, 1], 2 * QUARTER - 1, 1),
            (&[0, 1, 0, 1], 2 * QUARTER, 3),
            (&[u64::MAX], u64::MAX, 0),
        ] {
            assert_eq!(drawn(weights, random), expected, "{weights:?}, {random:#x}");
        }
    }

    #[test]
    fn tokens_come_as_often_as_they_are_probable() {
        // 1/4, 1/8, 1/2, 1/8.
        let logits = logits(&[1, 2, 0, 2]);
        let counts = counts(&logits, &Sampling::default(), 40_000);
        for (count, expected) in counts.iter().zip([10_000.0_f64, 5_000.0, 20_000.0, 5_000.0]) {
            assert!((*count as f64 - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
        // At half the temperature probabilities are squared: 4, 1, 16, 1 of 22.
        let cold = Sampling { temperature: 0.5, seed: 7, ..Sampling::default() };
        let counts = self::counts(&logits, &cold, 44_000);
        for (count, expected) in counts.iter().zip([8_000.0_f64, 2_000.0, 32_000.0, 2_000.0]) {
            assert!((*count as f64 - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn a_draw_depends_on_seed_and_position_alone() {
        let logits = logits(&[1; 64]);
        let at = |seed, position| sample(&logits, &Sampling { seed, ..Sampling::default() }, &[], position);
        // Equal weights share the 64 bits evenly.
        for (seed, position) in [(0, 0), (0, 1), (1, 0), (9, 1 << 40)] {
            assert_eq!(u64::from(at(seed, position)), random(seed, position) >> 58);
        }
    }

    #[test]
    fn filters_keep_the_most_probable() {
        // Sixteenths: 4, 1, 8, 1, 2.
        let logits = logits(&[2, 4, 1, 4, 3]);
        let with = |change: &dyn Fn(&mut Sampling)| {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            kept(&logits, &sampling)
        };
        assert_eq!(with(&|_| {}), [0, 1, 2, 3, 4]);
        // Of the two with equal logits the lower id.
        for (k, expected) in [(1, &[2][..]), (2, &[0, 2]), (3, &[0, 2, 4]), (4, &[0, 1, 2, 4]), (5, &[0, 1, 2, 3, 4])] {
            assert_eq!(with(&|s| s.top_k = k), expected, "top-k of {k}");
        }
        assert_eq!(with(&|s| s.top_k = 99), [0, 1, 2, 3, 4]);
        // The shares before each token in the order of probability: 0, 8, 12, 14 and 15 sixteenths.
        for (p, expected) in [
            (0.0, &[2][..]),
            (0.49, &[2]),
            (0.51, &[0, 2]),
            (0.74, &[0, 2]),
            (0.76, &[0, 2, 4]),
            (0.89, &[0, 1, 2, 4]),
            (0.95, &[0, 1, 2, 3, 4]),
            (1.0, &[0, 1, 2, 3, 4]),
        ] {
            assert_eq!(with(&|s| s.top_p = p), expected, "top-p of {p}");
        }
        // Probabilities next to the largest: 1/2, 1/8, 1, 1/8, 1/4.
        for (p, expected) in [
            (1.0, &[2][..]),
            (0.51, &[2]),
            (0.49, &[0, 2]),
            (0.26, &[0, 2]),
            (0.24, &[0, 2, 4]),
            (0.126, &[0, 2, 4]),
            (0.12, &[0, 1, 2, 3, 4]),
        ] {
            assert_eq!(with(&|s| s.min_p = p), expected, "min-p of {p}");
        }
        // Top-p is of what top-k leaves: 8 of 12 are two thirds.
        assert_eq!(with(&|s| (s.top_k, s.top_p) = (2, 0.66)), [2]);
        assert_eq!(with(&|s| (s.top_k, s.top_p) = (2, 0.67)), [0, 2]);
        // The temperature comes first: squared, 16 of 22 is 0.73.
        assert_eq!(with(&|s| (s.temperature, s.top_p) = (0.5, 0.7)), [2]);
        assert_eq!(with(&|s| (s.temperature, s.min_p) = (0.5, 0.3)), [2]);
    }

    #[test]
    fn one_token_and_many_of_them() {
        let narrow = Sampling { top_p: 0.0, min_p: 1.0, top_k: 1, ..Sampling::default() };
        assert_eq!(sample(&[-3.0], &narrow, &[], 5), 0);
        // What is 2^-32 of the largest is the last that is ever drawn, and nothing of it overflows.
        let mut many = vec![0.0_f32; 1 << 20];
        many.push(f32::NEG_INFINITY);
        let found = sample(&many, &Sampling::default(), &[], 3);
        assert_eq!(u64::from(found), random(0, 3) >> 44);
        let tiny = [0.0, -23.0, -40.0];
        assert_eq!(kept(&tiny, &Sampling::default()), [0]);
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        assert_eq!(Sampling::default().fault(), None);
        let with = |change: &dyn Fn(&mut Sampling)| {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            sampling.fault().unwrap_or_default()
        };
        for temperature in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(with(&|s| s.temperature = temperature).starts_with("temperature"), "{temperature}");
        }
        for penalty in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(with(&|s| s.penalty = penalty).starts_with("penalty"), "{penalty}");
        }
        assert_eq!(Sampling::GREEDY.fault(), None);
        for share in [-0.1, 1.1, f32::NAN] {
            assert!(with(&|s| s.top_p = share).starts_with("top-p"), "{share}");
            assert!(with(&|s| s.min_p = share).starts_with("min-p"), "{share}");
        }
        for share in [0.0, 1.0] {
            assert_eq!(with(&|s| (s.top_p, s.min_p, s.temperature) = (share, share, f32::MAX)), "");
        }
    }

    #[test]
    fn what_gives_no_token_is_told_from_tokens() {
        let greedy = |logits: &[f32]| sample(logits, &Sampling::GREEDY, &[], 0);
        assert_eq!(greedy(&[1.0, 3.0, 3.0, f32::NEG_INFINITY]), 1);
        for logits in [[0.0, f32::NAN], [f32::INFINITY, 1.0], [f32::NEG_INFINITY; 2]] {
            assert_eq!(greedy(&logits), u32::MAX);
            assert_eq!(sample(&logits, &Sampling::default(), &[], 0), u32::MAX);
        }
        assert_eq!(sample(&[1.0], &Sampling { top_p: -1.0, ..Sampling::default() }, &[], 0), u32::MAX);
    }

    #[test]
    fn tokens_of_the_window_are_penalised_once() {
        let logits = [4.0, 3.0, -1.0, -1.5];
        let best = |penalty, window, before: &[u32]| {
            sample(&logits, &Sampling { penalty, window, ..Sampling::GREEDY }, before, 0)
        };
        assert_eq!(best(1.0, 9, &[0]), 0);
        assert_eq!(best(2.0, 9, &[1]), 0);
        assert_eq!(best(2.0, 9, &[0]), 1);
        assert_eq!(best(2.0, 0, &[0]), 0);
        // 4 / 1.2 is more than 3, and 4 / 1.2 / 1.2 would not be.
        assert_eq!(best(1.2, 9, &[0, 0]), 0);
        // Only the last ones of the window; and what is no token does not matter.
        assert_eq!(best(2.0, 2, &[0, 1, 9]), 0);
        assert_eq!(best(2.0, 3, &[0, 1, u32::MAX]), 0);
        assert_eq!(best(2.0, 3, &[0, u32::MAX, 9]), 1);
        // Below 0 a penalty makes a logit smaller, too.
        assert_eq!(sample(&logits[2..], &Sampling { penalty: 2.0, window: 1, ..Sampling::GREEDY }, &[0], 0), 1);
        // What is drawn is penalised before the temperature.
        let drawn = Sampling { penalty: 4.0, window: 1, temperature: 0.01, ..Sampling::default() };
        assert_eq!(sample(&logits, &drawn, &[0], 7), 1);
    }
}
