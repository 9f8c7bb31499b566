//! The bookkeeping of a pool of pages: which sequence has which pages, and who else has them. Plain data; what is in the pages
//! lies with a backend.
//!
//! A page holds the keys and values of [`PAGE`] neighbouring positions of a sequence, in all layers. Sequences that begin with the
//! same tokens can share pages, since what is stored at a position follows from the tokens up to it alone. A page that several
//! sequences have is never written: the one that goes on gets a copy first. Full pages are found by their tokens, also after
//! the last sequence that had them is gone, for as long as nobody else needs their room.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::backend::PAGE;
use super::host_has_room;
use crate::{Error, Result};

/// Names a sequence of one pool. The handle of a sequence that was dropped names nothing, also when its place has a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sequence {
    pool: u64,
    slot: u32,
    generation: u32,
}

impl std::fmt::Display for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// How large a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesShape {
    /// Pages.
    pub pages: usize,
    /// Most sequences at a time.
    pub sequences: usize,
    /// Most positions of a sequence.
    pub capacity: usize,
}

impl PagesShape {
    /// Fails for a count that is 0, or more than 32 bits have.
    pub(super) fn check(&self) -> Result<()> {
        let Self { pages, sequences, capacity } = *self;
        for (what, n) in [("pages", pages), ("sequences", sequences), ("positions of a sequence", capacity)] {
            if n == 0 || n >= u32::MAX as usize {
                return Err(Error::Invalid(format!("pool: expected 1 to {} {what}, found {n}", u32::MAX - 1)));
            }
        }
        Ok(())
    }
}

/// A page whose contents are to be copied before the batch writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The page that is shared.
    pub from: u32,
    /// The page that takes its place.
    pub to: u32,
}

/// Tokens of a full page, and what comes before them: what is stored in it follows from that.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Content {
    /// Number of the contents of the page before, which no other contents ever have; 0: it is the first page.
    before: u64,
    tokens: [u32; PAGE],
}

#[derive(Debug, Default)]
struct Page {
    /// Sequences that have it, and plans that may give it back.
    references: u32,
    /// Under which it is found.
    content: Option<Arc<Content>>,
    /// Its place among the pages that are kept.
    released: u64,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    used: bool,
    /// A plan is at work on it.
    planned: bool,
    tokens: Vec<u32>,
    pages: Vec<u32>,
    /// Numbers of the contents of the full pages.
    contents: Vec<u64>,
}

/// A pool's pages and sequences.
#[derive(Debug)]
pub struct Pages {
    id: u64,
    shape: PagesShape,
    pages: Vec<Page>,
    /// Pages that nobody has and nobody finds.
    blank: Vec<u32>,
    /// Pages that nobody has and that are found by their tokens, by the time since then.
    kept: BTreeMap<u64, u32>,
    /// The page of some contents, and their number.
    found: HashMap<Arc<Content>, (u32, u64)>,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    time: u64,
    next_content: u64,
}

/// Room for the next tokens of a batch of sequences, to be [committed](Pages::commit) when they are computed or
/// [abandoned](Pages::abandon). Until then its sequences can only be read.
#[derive(Debug)]
#[must_use = "sequences of a plan can only be read until it is committed or abandoned"]
pub struct Plan {
    pool: u64,
    extensions: Vec<Extension>,
    copies: Vec<PageCopy>,
}

#[derive(Debug)]
struct Extension {
    sequence: Sequence,
    tokens: usize,
    /// Pages that it had.
    pages: usize,
    /// The last one of them, which was shared and is replaced by a copy.
    replaced: Option<u32>,
}

impl Plan {
    /// Pages to be copied before anything of the batch is written.
    pub fn copies(&self) -> &[PageCopy] {
        &self.copies
    }
}

/// Which pool is which.
static NEXT_POOL: AtomicU64 = AtomicU64::new(0);

const fn pages_for(positions: usize) -> usize {
    positions.div_ceil(PAGE)
}

impl Pages {
    /// A pool without sequences.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a count that is 0, or more than 32 bits have.
    pub fn new(shape: PagesShape) -> Result<Self> {
        shape.check()?;
        host_has_room::<Page>(shape.pages)?;
        Ok(Self {
            id: NEXT_POOL.fetch_add(1, Ordering::Relaxed),
            shape,
            pages: (0..shape.pages).map(|_| Page::default()).collect(),
            blank: (0..shape.pages as u32).rev().collect(),
            kept: BTreeMap::new(),
            found: HashMap::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            time: 0,
            next_content: 1,
        })
    }

    /// How large the pool is.
    pub fn shape(&self) -> PagesShape {
        self.shape
    }

    /// Pages that no sequence has.
    pub fn free(&self) -> usize {
        self.blank.len() + self.kept.len()
    }

    /// Of the free pages those that are found by their tokens.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Sequences that are there.
    pub fn sequences(&self) -> usize {
        self.slots.len() - self.free_slots.len()
    }

    /// How many sequences have a page: 0 for one that is free or does not exist.
    pub fn references(&self, page: u32) -> u32 {
        self.pages.get(page as usize).map_or(0, |page| page.references)
    }

    /// The tokens of a sequence: one for each of its positions.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn tokens(&self, sequence: Sequence) -> Result<&[u32]> {
        Ok(&self.slot(sequence)?.tokens)
    }

    /// The pages of a sequence, in the order of positions. Those of a plan are among them.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn table(&self, sequence: Sequence) -> Result<&[u32]> {
        Ok(&self.slot(sequence)?.pages)
    }

    /// Where a sequence lies among the pool's: below [`PagesShape::sequences`], and no other one's while it is there.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn place(&self, sequence: Sequence) -> Result<usize> {
        self.slot(sequence).map(|_| sequence.slot as usize)
    }

    /// A new, empty sequence.
    ///
    /// # Errors
    /// [`Error::TooManySequences`].
    pub fn create(&mut self) -> Result<Sequence> {
        if self.sequences() == self.shape.sequences {
            return Err(Error::TooManySequences { most: self.shape.sequences });
        }
        let slot = self.free_slots.pop().unwrap_or(self.slots.len() as u32);
        if slot as usize == self.slots.len() {
            self.slots.push(Slot::default());
        }
        let place = &mut self.slots[slot as usize];
        place.used = true;
        Ok(Sequence { pool: self.id, slot, generation: place.generation })
    }

    /// A new sequence with as many of the first tokens as there are full pages with those tokens.
    ///
    /// # Errors
    /// [`Error::TooManySequences`].
    pub fn create_from(&mut self, tokens: &[u32]) -> Result<Sequence> {
        let sequence = self.create()?;
        let tokens = &tokens[..tokens.len().min(self.shape.capacity)];
        let mut before = 0;
        for page_tokens in tokens.chunks_exact(PAGE) {
            let Some((page, content)) = self.find(before, page_tokens) else { break };
            self.acquire(page);
            let slot = &mut self.slots[sequence.slot as usize];
            slot.pages.push(page);
            slot.contents.push(content);
            slot.tokens.extend_from_slice(page_tokens);
            before = content;
        }
        Ok(sequence)
    }

    /// Another sequence with the same tokens. The two share all pages.
    ///
    /// # Errors
    /// [`Error::NoSequence`], [`Error::TooManySequences`], [`Error::Invalid`] for a sequence of a plan.
    pub fn fork(&mut self, sequence: Sequence) -> Result<Sequence> {
        let slot = self.unplanned(sequence)?;
        let (tokens, pages, contents) = (slot.tokens.clone(), slot.pages.clone(), slot.contents.clone());
        let fork = self.create()?;
        for &page in &pages {
            self.pages[page as usize].references += 1;
        }
        let slot = &mut self.slots[fork.slot as usize];
        (slot.tokens, slot.pages, slot.contents) = (tokens, pages, contents);
        Ok(fork)
    }

    /// Forgets all positions of a sequence from `position` on. One that is not reached yet changes nothing.
    ///
    /// # Errors
    /// [`Error::NoSequence`], [`Error::Invalid`] for a sequence of a plan.
    pub fn truncate(&mut self, sequence: Sequence, position: usize) -> Result<()> {
        self.unplanned(sequence)?;
        let slot = &mut self.slots[sequence.slot as usize];
        slot.tokens.truncate(position);
        slot.contents.truncate(slot.tokens.len() / PAGE);
        let rest = slot.pages.split_off(pages_for(slot.tokens.len()));
        self.release(rest);
        Ok(())
    }

    /// Ends a sequence. Its handle names nothing from here on.
    ///
    /// # Errors
    /// [`Error::NoSequence`], [`Error::Invalid`] for a sequence of a plan.
    pub fn drop(&mut self, sequence: Sequence) -> Result<()> {
        self.truncate(sequence, 0)?;
        let slot = &mut self.slots[sequence.slot as usize];
        slot.used = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.free_slots.push(sequence.slot);
        Ok(())
    }

    /// Room for so many more tokens of each of these sequences.
    ///
    /// # Errors
    /// [`Error::NoSequence`], [`Error::ContextOverflow`], [`Error::PoolFull`], and [`Error::Invalid`] for a sequence that is there twice or
    /// already in a plan. Nothing has changed then.
    pub fn plan(&mut self, wanted: &[(Sequence, usize)]) -> Result<Plan> {
        let mut needed = 0;
        for (index, &(sequence, tokens)) in wanted.iter().enumerate() {
            let found = self.needed(sequence, tokens);
            match found {
                Ok(pages) => needed += pages,
                Err(_) => self.unmark(&wanted[..index]),
            }
            found?;
            self.slots[sequence.slot as usize].planned = true;
        }
        if needed > self.free() {
            self.unmark(wanted);
            return Err(Error::PoolFull { needed, free: self.free() });
        }
        let mut plan = Plan { pool: self.id, extensions: Vec::with_capacity(wanted.len()), copies: Vec::new() };
        for &(sequence, tokens) in wanted {
            let slot = &self.slots[sequence.slot as usize];
            let (used, pages) = (slot.tokens.len(), slot.pages.len());
            let written = slot.pages.last().copied().filter(|_| tokens > 0 && !used.is_multiple_of(PAGE));
            let mut replaced = None;
            match written {
                Some(from) if self.references(from) > 1 => {
                    let to = self.take();
                    plan.copies.push(PageCopy { from, to });
                    self.slots[sequence.slot as usize].pages[pages - 1] = to;
                    replaced = Some(from);
                }
                // What it held behind the sequence's end is lost.
                Some(page) => self.forget(page),
                None => {}
            }
            for _ in pages..pages_for(used + tokens) {
                let page = self.take();
                self.slots[sequence.slot as usize].pages.push(page);
            }
            plan.extensions.push(Extension { sequence, tokens, pages, replaced });
        }
        Ok(plan)
    }

    /// The tokens of a plan's sequences are computed: as many as were planned or fewer, in the order of the plan. Pages that fewer
    /// tokens do not need are free again.
    ///
    /// # Errors
    /// [`Error::Invalid`] for more tokens than were planned, tokens of another number of sequences, or the plan of another pool. The plan is
    /// abandoned then, if it is one of this pool.
    pub fn commit(&mut self, plan: Plan, tokens: &[&[u32]]) -> Result<()> {
        self.commit_as(plan, tokens, true)
    }

    fn commit_as(&mut self, plan: Plan, tokens: &[&[u32]], found: bool) -> Result<()> {
        self.check_pool(&plan)?;
        let fits = |(extension, tokens): (&Extension, &&[u32])| tokens.len() <= extension.tokens;
        if tokens.len() != plan.extensions.len() || !plan.extensions.iter().zip(tokens).all(fits) {
            self.abandon(plan)?;
            return Err(Error::Invalid("pool: tokens that are not those of the plan".into()));
        }
        for (extension, tokens) in plan.extensions.into_iter().zip(tokens) {
            self.release(extension.replaced.into_iter().collect());
            let slot = &mut self.slots[extension.sequence.slot as usize];
            slot.planned = false;
            slot.tokens.extend_from_slice(tokens);
            let rest = slot.pages.split_off(pages_for(slot.tokens.len()));
            self.release(rest);
            self.note_full_pages(extension.sequence.slot as usize, found);
        }
        Ok(())
    }

    /// [`Self::commit`] of what came from elsewhere: full pages are not found by their tokens.
    ///
    /// # Errors
    /// Those of [`Self::commit`].
    pub fn commit_apart(&mut self, plan: Plan, tokens: &[&[u32]]) -> Result<()> {
        self.commit_as(plan, tokens, false)
    }

    /// The sequences of a plan stay as they were before it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the plan of another pool.
    pub fn abandon(&mut self, plan: Plan) -> Result<()> {
        self.check_pool(&plan)?;
        for extension in plan.extensions {
            let slot = &mut self.slots[extension.sequence.slot as usize];
            slot.planned = false;
            let mut rest = slot.pages.split_off(extension.pages);
            if let (Some(page), Some(last)) = (extension.replaced, slot.pages.last_mut()) {
                rest.push(std::mem::replace(last, page));
            }
            self.release(rest);
        }
        Ok(())
    }

    fn check_pool(&self, plan: &Plan) -> Result<()> {
        if plan.pool == self.id { Ok(()) } else { Err(Error::Invalid("pool: the plan of another pool".into())) }
    }

    fn slot(&self, sequence: Sequence) -> Result<&Slot> {
        let slot = self.slots.get(sequence.slot as usize).filter(|_| sequence.pool == self.id);
        slot.filter(|slot| slot.used && slot.generation == sequence.generation).ok_or(Error::NoSequence { sequence })
    }

    fn unplanned(&self, sequence: Sequence) -> Result<&Slot> {
        let slot = self.slot(sequence)?;
        if slot.planned {
            return Err(Error::Invalid(format!("pool: sequence {sequence} is part of a plan")));
        }
        Ok(slot)
    }

    /// Pages that so many more tokens of a sequence need.
    fn needed(&self, sequence: Sequence, tokens: usize) -> Result<usize> {
        let slot = self.unplanned(sequence)?;
        let (used, capacity) = (slot.tokens.len(), self.shape.capacity);
        if tokens > capacity - used {
            return Err(Error::ContextOverflow { used, wanted: tokens, capacity });
        }
        let is_copied = tokens > 0
            && !used.is_multiple_of(PAGE)
            && slot.pages.last().is_some_and(|&page| self.references(page) > 1);
        Ok(pages_for(used + tokens) - slot.pages.len() + usize::from(is_copied))
    }

    fn unmark(&mut self, wanted: &[(Sequence, usize)]) {
        for (sequence, _) in wanted {
            self.slots[sequence.slot as usize].planned = false;
        }
    }

    /// A page for new contents, of which [`Self::free`] says that there is one.
    fn take(&mut self) -> u32 {
        let page = self.blank.pop().unwrap_or_else(|| {
            let (_, page) = self.kept.pop_first().expect("a free page was counted");
            self.forget(page);
            page
        });
        self.pages[page as usize].references = 1;
        page
    }

    /// A page is one sequence's more, which may be the first.
    fn acquire(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        if entry.references == 0 {
            self.kept.remove(&entry.released);
        }
        entry.references += 1;
    }

    /// Pages, in the order of positions, are one sequence's less. The last ones are forgotten first, because nobody finds a page
    /// without those before it.
    fn release(&mut self, pages: Vec<u32>) {
        for page in pages.into_iter().rev() {
            let entry = &mut self.pages[page as usize];
            entry.references -= 1;
            if entry.references > 0 {
                continue;
            }
            if entry.content.is_some() {
                entry.released = self.time;
                self.kept.insert(self.time, page);
                self.time += 1;
            } else {
                self.blank.push(page);
            }
        }
    }

    /// The page is not found by its tokens any more.
    fn forget(&mut self, page: u32) {
        if let Some(content) = self.pages[page as usize].content.take() {
            self.found.remove(&content);
        }
    }

    /// The page with these tokens behind those contents, and the number of its contents.
    fn find(&self, before: u64, tokens: &[u32]) -> Option<(u32, u64)> {
        let tokens = <[u32; PAGE]>::try_from(tokens).ok()?;
        self.found.get(&Content { before, tokens }).copied()
    }

    /// The pages of a sequence that became full are found by their tokens from here on, unless others already are or they are not `listed`.
    fn note_full_pages(&mut self, slot: usize, listed: bool) {
        let Self { slots, pages, found, next_content, .. } = self;
        let slot = &mut slots[slot];
        let known = slot.contents.len();
        let mut new_number = || {
            *next_content += 1;
            *next_content - 1
        };
        for (tokens, &page) in slot.tokens.chunks_exact(PAGE).zip(&slot.pages).skip(known) {
            let Ok(tokens) = <[u32; PAGE]>::try_from(tokens) else { continue };
            if !listed {
                slot.contents.push(new_number());
                continue;
            }
            let content = Arc::new(Content { before: slot.contents.last().copied().unwrap_or(0), tokens });
            let (_, number) = *found.entry(content.clone()).or_insert_with(|| {
                pages[page as usize].content = Some(content);
                (page, new_number())
            });
            slot.contents.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device has in its pages: at each position a number that depends on all tokens up to it, as keys and values do.
    struct Device {
        pages: Vec<[u64; PAGE]>,
    }

    /// The number at the last of these tokens' positions.
    fn number(before: u64, token: u32) -> u64 {
        (before ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) + 1
    }

    fn numbers(tokens: &[u32]) -> Vec<u64> {
        tokens
            .iter()
            .scan(0, |before, &token| {
                *before = number(*before, token);
                Some(*before)
            })
            .collect()
    }

    impl Device {
        /// Writes the numbers of `tokens` from position `start` on, page by page, as far as they are planned.
        fn write(&mut self, pages: &Pages, table: &[u32], start: usize, all: &[u64]) {
            for (position, &value) in all.iter().enumerate().skip(start) {
                let page = table[position / PAGE];
                assert_eq!(pages.references(page), 1, "a shared page is written");
                self.pages[page as usize][position % PAGE] = value;
            }
        }

        fn copy(&mut self, copies: &[PageCopy]) {
            for copy in copies {
                self.pages[copy.to as usize] = self.pages[copy.from as usize];
            }
        }

        fn check(&self, pages: &Pages, sequence: Sequence, tokens: &[u32]) {
            assert_eq!(pages.tokens(sequence).unwrap(), tokens);
            let table = pages.table(sequence).unwrap();
            assert_eq!(table.len(), tokens.len().div_ceil(PAGE));
            for (position, value) in numbers(tokens).into_iter().enumerate() {
                assert_eq!(self.pages[table[position / PAGE] as usize][position % PAGE], value, "{position}");
            }
        }
    }

    /// Every page is somebody's, kept or blank; and counts are those of the tables.
    fn check_counts(pages: &Pages) {
        let mut counts = vec![0; pages.pages.len()];
        for slot in pages.slots.iter().filter(|slot| slot.used) {
            slot.pages.iter().for_each(|&page| counts[page as usize] += 1);
        }
        let found: Vec<u32> = pages.pages.iter().map(|page| page.references).collect();
        assert_eq!(found, counts);
        let mut free: Vec<u32> = pages.blank.iter().chain(pages.kept.values()).copied().collect();
        free.sort_unstable();
        let expected: Vec<u32> = (0..counts.len() as u32).filter(|&page| counts[page as usize] == 0).collect();
        assert_eq!(free, expected);
        assert!(pages.blank.iter().all(|&page| pages.pages[page as usize].content.is_none()));
        assert_eq!(pages.pages.iter().filter(|page| page.content.is_some()).count(), pages.found.len());
        for (content, &(page, _)) in &pages.found {
            assert_eq!(pages.pages[page as usize].content.as_ref(), Some(content));
        }
    }

    fn pool(pages: usize, sequences: usize, capacity: usize) -> (Pages, Device) {
        let shape = PagesShape { pages, sequences, capacity };
        (Pages::new(shape).unwrap(), Device { pages: vec![[0; PAGE]; pages] })
    }

    fn extend(pages: &mut Pages, device: &mut Device, sequence: Sequence, tokens: &[u32]) -> Result<()> {
        let all = [pages.tokens(sequence)?, tokens].concat();
        let plan = pages.plan(&[(sequence, tokens.len())])?;
        device.copy(plan.copies());
        let table = pages.table(sequence)?.to_vec();
        device.write(pages, &table, all.len() - tokens.len(), &numbers(&all));
        pages.commit(plan, &[tokens])
    }

    /// xorshift64*.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
        }
    }

    /// Thousands of sequences that are created, extended together, forked, truncated and dropped, next to lists of tokens.
    #[test]
    fn sequences_have_what_they_would_have_alone() {
        let mut random = Random(7);
        let (mut dropped, mut shared, mut full, mut abandoned, mut copies, mut reused) = (0, 0, 0, 0, 0, 0);
        for (count, most, capacity) in [(12, 5, 300), (60, 24, 500), (200, 64, 640)] {
            let (mut pages, mut device) = pool(count, most, capacity);
            let mut live: Vec<(Sequence, Vec<u32>)> = Vec::new();
            let mut gone: Vec<Sequence> = Vec::new();
            let until = dropped + 8000;
            for step in 0.. {
                if dropped == until {
                    break;
                }
                match random.below(10) {
                    0 | 1 => match pages.create() {
                        Ok(sequence) => live.push((sequence, Vec::new())),
                        Err(error) => assert!(matches!(error, Error::TooManySequences { .. }) && live.len() == most),
                    },
                    2 => {
                        // Texts that begin alike: few of them, and long.
                        let text: Vec<u32> = (0..capacity as u32 + 70).map(|i| i % (2 + step % 3)).collect();
                        let text = &text[..random.below(text.len())];
                        if let Ok(sequence) = pages.create_from(text) {
                            let found = pages.tokens(sequence).unwrap().len();
                            assert!(found.is_multiple_of(PAGE) && found <= capacity);
                            reused += found / PAGE;
                            live.push((sequence, text[..found].to_vec()));
                            let rest = text[found..].len().min(capacity - found);
                            if extend(&mut pages, &mut device, sequence, &text[found..][..rest]).is_ok() {
                                live.last_mut().unwrap().1.extend_from_slice(&text[found..][..rest]);
                            }
                        }
                    }
                    3 if !live.is_empty() => {
                        let (sequence, tokens) = live[random.below(live.len())].clone();
                        if let Ok(fork) = pages.fork(sequence) {
                            live.push((fork, tokens));
                            shared += 1;
                        }
                    }
                    4 if !live.is_empty() => {
                        let index = random.below(live.len());
                        let (sequence, tokens) = &mut live[index];
                        let position = random.below(tokens.len() + 3);
                        tokens.truncate(position);
                        pages.truncate(*sequence, position).unwrap();
                    }
                    5 if !live.is_empty() => {
                        let (sequence, _) = live.swap_remove(random.below(live.len()));
                        pages.drop(sequence).unwrap();
                        gone.push(sequence);
                        dropped += 1;
                    }
                    _ => {
                        // Some sequences, each at most once, with tokens of a small alphabet.
                        let mut chosen: Vec<usize> = (0..live.len()).filter(|_| random.below(3) == 0).collect();
                        if chosen.len() > 1 && random.below(2) == 0 {
                            chosen.reverse();
                        }
                        let lengths: Vec<usize> =
                            chosen.iter().map(|_| [0, 1, 1, 2, 64, 90][random.below(6)]).collect();
                        let wanted: Vec<(Sequence, usize)> =
                            chosen.iter().zip(&lengths).map(|(&index, &n)| (live[index].0, n)).collect();
                        let free = pages.free();
                        let plan = match pages.plan(&wanted) {
                            Ok(plan) => plan,
                            Err(Error::PoolFull { needed, free: found }) => {
                                assert!(needed > free && found == free);
                                full += 1;
                                continue;
                            }
                            Err(error) => {
                                assert!(matches!(error, Error::ContextOverflow { .. }), "{error}");
                                continue;
                            }
                        };
                        copies += plan.copies().len();
                        device.copy(plan.copies());
                        let mut tokens = Vec::new();
                        for (&index, &n) in chosen.iter().zip(&lengths) {
                            let (sequence, old) = &live[index];
                            let new: Vec<u32> = (0..n).map(|_| random.below(2) as u32).collect();
                            let all = [&old[..], &new].concat();
                            let table = pages.table(*sequence).unwrap().to_vec();
                            device.write(&pages, &table, old.len(), &numbers(&all));
                            // Fewer may be taken than were planned.
                            let taken = if random.below(4) == 0 { random.below(n + 1) } else { n };
                            tokens.push(new[..taken].to_vec());
                        }
                        if random.below(5) == 0 {
                            pages.abandon(plan).unwrap();
                            assert_eq!(pages.free(), free);
                            abandoned += 1;
                        } else {
                            let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
                            pages.commit(plan, &tokens).unwrap();
                            for (&index, tokens) in chosen.iter().zip(tokens) {
                                live[index].1.extend_from_slice(tokens);
                            }
                        }
                    }
                }
                if step % 8 == 0 {
                    live.iter().for_each(|(sequence, tokens)| device.check(&pages, *sequence, tokens));
                    check_counts(&pages);
                    assert_eq!(pages.sequences(), live.len());
                }
                if let Some(sequence) = gone.last() {
                    assert!(matches!(pages.tokens(*sequence), Err(Error::NoSequence { .. })));
                }
            }
            for (sequence, tokens) in live.drain(..) {
                device.check(&pages, sequence, &tokens);
                pages.drop(sequence).unwrap();
                gone.push(sequence);
            }
            check_counts(&pages);
            assert_eq!((pages.free(), pages.sequences()), (count, 0));
            assert!(gone.into_iter().all(|sequence| pages.drop(sequence).is_err()));
        }
        println!(
            "{dropped} dropped, {shared} forked, {full} times full, {abandoned} abandoned, {copies} copied, {reused} found"
        );
        assert!([dropped, shared, full, abandoned, copies, reused].into_iter().all(|n| n > 100));
    }

    #[test]
    fn full_pages_are_found_until_others_need_them() {
        let text = |salt: u32, n: u32| (0..n).map(|i| i * 3 + salt).collect::<Vec<u32>>();
        let (mut pages, mut device) = pool(6, 4, 1000);
        let first = pages.create().unwrap();
        extend(&mut pages, &mut device, first, &text(0, 200)).unwrap();
        // Found while somebody has them: three full pages of four, and only from the beginning on.
        let second = pages.create_from(&text(0, 300)).unwrap();
        device.check(&pages, second, &text(0, 192));
        assert_eq!(pages.table(second).unwrap(), &pages.table(first).unwrap()[..3]);
        assert_eq!(pages.free(), 2);
        for other in [text(1, 300), text(0, 63), text(0, 300)[64..].to_vec()] {
            let none = pages.create_from(&other).unwrap();
            assert_eq!(pages.tokens(none).unwrap(), []);
            pages.drop(none).unwrap();
        }
        // And after they are gone.
        pages.drop(first).unwrap();
        pages.drop(second).unwrap();
        assert_eq!((pages.free(), pages.kept()), (6, 3));
        // Others that need room take blank pages first, then the last page of the text, which is no use without the others.
        let other = pages.create().unwrap();
        extend(&mut pages, &mut device, other, &text(5, 256)).unwrap();
        let third = pages.create_from(&text(0, 300)).unwrap();
        device.check(&pages, third, &text(0, 128));
        assert_eq!(pages.free(), 0);
        let error = pages.plan(&[(third, 1)]).unwrap_err().to_string();
        assert_eq!(error, "the pool of pages is full: 1 more are needed, 0 are free");
        pages.drop(third).unwrap();
        // The oldest go first.
        extend(&mut pages, &mut device, other, &text(6, 64)).unwrap();
        let fourth = pages.create_from(&text(0, 300)).unwrap();
        device.check(&pages, fourth, &text(0, 64));
        // What is written over is not found any more.
        pages.truncate(fourth, 30).unwrap();
        extend(&mut pages, &mut device, fourth, &[1]).unwrap();
        let fifth = pages.create_from(&text(0, 300)).unwrap();
        assert_eq!(pages.tokens(fifth).unwrap(), []);
        check_counts(&pages);
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        for shape in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [u32::MAX as usize, 1, 1]] {
            let [pages, sequences, capacity] = shape;
            assert!(matches!(Pages::new(PagesShape { pages, sequences, capacity }), Err(Error::Invalid(_))));
        }
        let (mut pages, mut device) = pool(4, 2, 150);
        let (mut others, _) = pool(4, 2, 150);
        let a = pages.create().unwrap();
        let b = pages.create().unwrap();
        assert!(matches!(pages.create(), Err(Error::TooManySequences { most: 2 })));
        assert!(matches!(pages.fork(a), Err(Error::TooManySequences { most: 2 })));
        assert!(matches!(others.tokens(a), Err(Error::NoSequence { sequence }) if sequence == a));
        extend(&mut pages, &mut device, a, &[1; 100]).unwrap();
        for wanted in [&[(a, 1), (a, 1)][..], &[(b, 1), (a, 1), (b, 2)]] {
            assert!(matches!(pages.plan(wanted), Err(Error::Invalid(_))));
        }
        let overflow = pages.plan(&[(b, 2), (a, 51)]);
        assert!(matches!(overflow, Err(Error::ContextOverflow { used: 100, wanted: 51, capacity: 150 })));
        assert!(matches!(pages.plan(&[(a, 50), (b, 65)]), Err(Error::PoolFull { needed: 3, free: 2 })));
        // All of that left nothing behind; and a plan is exclusive.
        let plan = pages.plan(&[(a, 50), (b, 2)]).unwrap();
        assert!(
            [pages.truncate(a, 0), pages.drop(b)].into_iter().all(|result| matches!(result, Err(Error::Invalid(_))))
        );
        assert!(matches!(pages.fork(a), Err(Error::Invalid(_))));
        assert!(matches!(pages.plan(&[(b, 1)]), Err(Error::Invalid(_))));
        assert!(matches!(pages.commit(plan, &[&[1], &[1, 2, 3]]), Err(Error::Invalid(_))));
        device.check(&pages, a, &[1; 100]);
        assert_eq!(pages.free(), 2);
        let plan = pages.plan(&[(a, 1)]).unwrap();
        assert!(matches!(pages.commit(plan, &[]), Err(Error::Invalid(_))));
        let foreign = pages.plan(&[(a, 1)]).unwrap();
        assert!(matches!(others.abandon(foreign), Err(Error::Invalid(_))));
    }
}
