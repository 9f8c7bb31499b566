//! Drafts from the text itself: what followed when its last tokens stood somewhere before. Texts repeat names, quotations and
//! forms, so such a draft is often right, and costs nothing. Whoever checks it against the model keeps what is.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use crate::{Error, Result};

/// Longest match that is looked for.
const MOST: usize = 16;

/// A text, and where its runs of tokens stood last.
#[derive(Clone, Debug)]
pub struct Drafts {
    shortest: usize,
    longest: usize,
    tokens: Vec<u32>,
    /// Where the run of so many tokens with this hash ended last, which something followed. The tokens there say whether it is the
    /// same run.
    ends: HashMap<(u8, u64), u32>,
    /// For each token but the first: the entries that it replaced, by length.
    replaced: Vec<Vec<Option<u32>>>,
}

impl Default for Drafts {
    /// Matches of 2 to 8 tokens.
    fn default() -> Self {
        Self::of_lengths(2, 8)
    }
}

impl Drafts {
    /// An empty text, of which matches of so many tokens are looked for.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that are not 1 to 16.
    pub fn new(lengths: RangeInclusive<usize>) -> Result<Self> {
        let (shortest, longest) = lengths.into_inner();
        if shortest == 0 || shortest > longest || longest > MOST {
            return Err(Error::Invalid(format!(
                "drafts: expected matches of 1 to {MOST} tokens, found {shortest} to {longest}"
            )));
        }
        Ok(Self::of_lengths(shortest, longest))
    }

    fn of_lengths(shortest: usize, longest: usize) -> Self {
        Self { shortest, longest, tokens: Vec::new(), ends: HashMap::new(), replaced: Vec::new() }
    }

    /// The text.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The text goes on.
    pub fn push(&mut self, token: u32) {
        let end = self.tokens.len();
        if end > 0 {
            // Runs that end here are found from now on, when there is something behind them.
            let mut replaced = Vec::with_capacity(self.longest + 1 - self.shortest);
            let runs: Vec<(usize, u64)> = self.runs(end).collect();
            for (length, hash) in runs {
                replaced.push(self.ends.insert((length as u8, hash), end as u32));
            }
            self.replaced.push(replaced);
        }
        self.tokens.push(token);
    }

    /// The text goes on.
    pub fn extend(&mut self, tokens: &[u32]) {
        tokens.iter().for_each(|&token| self.push(token));
    }

    /// Forgets all tokens from `length` on, as if they had never been there.
    pub fn truncate(&mut self, length: usize) {
        while self.tokens.len() > length {
            self.tokens.pop();
            let runs: Vec<(usize, u64)> = self.runs(self.tokens.len()).collect();
            for ((length, hash), before) in runs.into_iter().zip(self.replaced.pop().unwrap_or_default()) {
                match before {
                    Some(end) => self.ends.insert((length as u8, hash), end),
                    None => self.ends.remove(&(length as u8, hash)),
                };
            }
        }
    }

    /// What followed the longest run of last tokens that stood somewhere before, where it did last: `count` tokens, or none without a
    /// match. A draft that reaches the end of the text goes on with itself, as a text that repeats itself would.
    pub fn draft(&self, count: usize) -> Vec<u32> {
        let mut draft: Vec<u32> = Vec::new();
        let Some(start) = self.longest_match() else { return draft };
        for from in (0..count).map(|place| start + place) {
            let token = self.tokens.get(from).copied().unwrap_or_else(|| draft[from - self.tokens.len()]);
            draft.push(token);
        }
        draft
    }

    /// Where the longest match ends.
    fn longest_match(&self) -> Option<usize> {
        let mut runs: Vec<(usize, u64)> = self.runs(self.tokens.len()).collect();
        while let Some((length, hash)) = runs.pop() {
            let end = self.ends.get(&(length as u8, hash)).map(|&end| end as usize);
            let run = &self.tokens[self.tokens.len() - length..];
            if let Some(end) = end.filter(|&end| self.tokens[end - length..end] == *run) {
                return Some(end);
            }
        }
        None
    }

    /// Lengths and hashes of the runs that end before `end`, ascending.
    fn runs(&self, end: usize) -> impl Iterator<Item = (usize, u64)> + use<'_> {
        let before = self.tokens[..end].iter().rev().take(self.longest);
        let hashes = before.scan(0_u64, |hash, &token| {
            *hash = (*hash ^ u64::from(token)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *hash ^= *hash >> 29;
            Some(*hash)
        });
        (1..).zip(hashes).skip(self.shortest - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, by looking everywhere.
    fn naive(tokens: &[u32], lengths: RangeInclusive<usize>, count: usize) -> Vec<u32> {
        for length in lengths.rev().filter(|&length| length < tokens.len()) {
            let run = &tokens[tokens.len() - length..];
            if let Some(end) = (length..tokens.len()).rev().find(|&end| tokens[end - length..end] == *run) {
                let mut all = tokens.to_vec();
                (0..count).for_each(|i| all.push(all[end + i]));
                return all.split_off(tokens.len());
            }
        }
        Vec::new()
    }

    #[test]
    fn the_longest_match_counts_and_of_those_the_last() {
        let draft = |tokens: &[u32], count| {
            let mut drafts = Drafts::default();
            drafts.extend(tokens);
            assert_eq!(drafts.tokens(), tokens);
            drafts.draft(count)
        };
        assert_eq!(draft(&[], 3), []);
        assert_eq!(draft(&[1, 2, 3], 3), []);
        // One token is no match, two are.
        assert_eq!(draft(&[1, 2, 3, 1], 3), []);
        assert_eq!(draft(&[1, 2, 3, 1, 2], 2), [3, 1]);
        assert_eq!(draft(&[1, 2, 3, 1, 2], 0), []);
        // The last of several, but a longer one wins.
        assert_eq!(draft(&[1, 2, 3, 9, 1, 2, 4, 9, 8, 1, 2], 1), [4]);
        assert_eq!(draft(&[8, 1, 2, 3, 9, 1, 2, 4, 9, 8, 1, 2], 1), [3]);
        // A text that repeats itself goes on doing so.
        assert_eq!(draft(&[7, 7, 7], 5), [7; 5]);
        assert_eq!(draft(&[5, 6, 5, 6, 5], 4), [6, 5, 6, 5]);
    }

    #[test]
    fn drafts_are_those_of_looking_everywhere_also_after_truncations() {
        let mut state = 5_u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let mut found = 0;
        for (lengths, alphabet) in [(1..=1, 9), (2..=8, 2), (2..=8, 5), (3..=16, 2), (1..=4, 30)] {
            let mut drafts = Drafts::new(lengths.clone()).unwrap();
            let mut tokens = Vec::new();
            for _ in 0..2000 {
                if random(40) == 0 {
                    let length = random(tokens.len() as u64 + 2) as usize;
                    tokens.truncate(length);
                    drafts.truncate(length);
                } else {
                    let token = random(alphabet) as u32;
                    tokens.push(token);
                    drafts.push(token);
                }
                let expected = naive(&tokens, lengths.clone(), 6);
                assert_eq!(drafts.draft(6), expected);
                found += usize::from(!expected.is_empty());
            }
            drafts.truncate(0);
            assert!(drafts.ends.is_empty() && drafts.replaced.is_empty() && drafts.tokens().is_empty());
        }
        assert!(found > 5000, "{found}");
    }

    #[test]
    fn lengths_that_make_no_sense_are_named() {
        let error = |lengths| Drafts::new(lengths).unwrap_err().to_string();
        for (shortest, longest) in [(0, 3), (3, 2), (1, 17)] {
            assert_eq!(
                error(shortest..=longest),
                format!("drafts: expected matches of 1 to 16 tokens, found {shortest} to {longest}")
            );
        }
        assert!(Drafts::new(1..=16).is_ok());
    }
}
