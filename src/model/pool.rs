//! Many sequences at once, each as if it were alone: a pool of pages that they share, and batches of any of them.
//!
//! Values do not depend on who else is in a batch, on how prompts are cut, or on whether a sequence shares pages with others: every
//! logit is that of [`Context`](super::Context), to the bit. Whatever fails changes no sequence.
//!
//! ```no_run
//! # use kquant_moe::model::{Backend, Model};
//! use kquant_moe::model::{Entry, Generation, Logits, Next, PoolOptions};
//! use kquant_moe::oracle::sample::Sampling;
//!
//! # fn run<B: Backend>(model: &Model<B>) -> kquant_moe::Result<()> {
//! let mut pool = model.pool(PoolOptions::default().pages(1024).sequences(64))?;
//! // What the two prompts share is computed once, if it fills pages.
//! let prompts = [[1, 2, 3], [1, 2, 4]];
//! let [a, b] = [pool.create_from(&prompts[0])?, pool.create_from(&prompts[1])?];
//! let known = [pool.position(a)?, pool.position(b)?];
//! let drawn = Sampling { temperature: 0.7, top_p: 0.9, seed: 5, ..Sampling::default() };
//! let next = pool.step(
//!     model,
//!     &[
//!         Next::new(a, &prompts[0][known[0]..], Sampling::GREEDY),
//!         Next::new(b, &prompts[1][known[1]..], drawn),
//!     ],
//! )?;
//! // Eight steps of both at once; and then a prompt beside a sequence that goes on.
//! let more = pool.decode(model, &[Next::new(a, &next[..1], Sampling::GREEDY), Next::new(b, &next[1..], drawn)], 8)?;
//! let c = pool.fork(a)?;
//! let logits = pool.forward(
//!     model,
//!     &[Entry::new(c, &[7, 8, 9], Logits::All), Entry::new(b, &more[1][7..], Logits::Last)],
//! )?;
//! assert_eq!(logits[0].len(), 3 * model.config().vocab);
//! // Drafts from the text itself, checked several at a time.
//! let generation = Generation::new(100).draft(6);
//! let text = pool.generate(model, a, &more[0][7..], &generation, |_| std::ops::ControlFlow::Continue(()))?;
//! # Ok(())
//! # }
//! ```

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::Model;
use super::backend::{Backend, Batch, CacheType, Draw, NO_CHOICE, PAGE, SamplerShape};
use super::config::Config;
use super::context::{
    Logits, MOST_TOKENS, MemoryPlan, OfFloats, Room, Sizes, State, check_capacity, check_free, weight_bytes,
};
use super::draft::Drafts;
use super::forward::{Tracer, forward, head};
use super::pages::{Pages, PagesShape, Plan, Sequence};
use super::weights::Tensors;
use crate::kernels::{RowSampling, Sample, SamplePart, SampleState};
use crate::oracle::sample::Sampling;
use crate::trace::NoTrace;
use crate::{Error, Result};

/// How a pool is made: [`PoolOptions::default`], and what is to be different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolOptions {
    /// Pages of 64 positions, which all sequences together can have.
    pub pages: usize,
    /// Most sequences at a time.
    pub sequences: usize,
    /// Most positions of a sequence, at most the model's context length.
    pub capacity: usize,
    /// Element type of the cache.
    pub cache: CacheType,
    /// Most tokens that are computed at once. Larger batches are split; values do not depend on it.
    pub max_batch: usize,
    /// Most tokens that a repetition penalty looks back.
    pub window: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { pages: 512, sequences: 64, capacity: 4096, cache: CacheType::F32, max_batch: 2048, window: 256 }
    }
}

/// Methods of the options' own names.
macro_rules! options {
    ($($(#[$doc:meta])* $option:ident: $type:ty;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub const fn $option(mut self, $option: $type) -> Self {
            self.$option = $option;
            self
        }
    )*};
}

impl PoolOptions {
    options! {
        /// Another number of pages.
        pages: usize;
        /// Another number of sequences.
        sequences: usize;
        /// Another number of positions of a sequence.
        capacity: usize;
        /// Another element type of the cache.
        cache: CacheType;
        /// Another number of tokens that are computed at once, at most.
        max_batch: usize;
        /// Another number of tokens that a penalty looks back, at most.
        window: usize;
    }

    fn shape(&self) -> PagesShape {
        PagesShape { pages: self.pages, sequences: self.sequences, capacity: self.capacity }
    }

    fn sizes(&self, config: &Config, floats: OfFloats) -> Result<Sizes> {
        let Self { pages, sequences, capacity, cache, max_batch, window } = *self;
        check_capacity(config, "pool", capacity, max_batch)?;
        self.shape().check()?;
        if window == 0 || window >= u32::MAX as usize {
            return Err(Error::Invalid(format!(
                "pool: expected a window of 1 to {} tokens, found {window}",
                u32::MAX - 1
            )));
        }
        if sequences.saturating_mul(capacity.div_ceil(PAGE)) > u32::MAX as usize {
            return Err(Error::Invalid(format!("pool: {sequences} sequences of {capacity} positions are too many")));
        }
        let tokens = max_batch.min(pages.saturating_mul(PAGE)).min(MOST_TOKENS);
        Ok(Sizes::of(config, Room { capacity, pages, sequences, cache, tokens, trace: false }, floats))
    }

    fn sampler(&self, config: &Config, sizes: &Sizes) -> SamplerShape {
        SamplerShape { rows: sizes.rows, vocab: config.vocab, history: self.window }
    }
}

impl MemoryPlan {
    /// The plan for a model's tensors and a pool's options, with the backend's workspace.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options that [`Model::pool`] would refuse, and for counts that the backend's kernels do not take.
    pub fn of_pool<B: Backend>(backend: &B, config: &Config, tensors: &Tensors, options: &PoolOptions) -> Result<Self> {
        let sizes = options.sizes(config, OfFloats::of_tensors(tensors))?;
        Ok(Self { weights: weight_bytes(tensors), ..Self::without_weights(backend, config, &sizes, options)? })
    }

    fn without_weights<B: Backend>(backend: &B, config: &Config, sizes: &Sizes, options: &PoolOptions) -> Result<Self> {
        let SamplerShape { rows, vocab, history } = options.sampler(config, sizes);
        let row = size_of::<RowSampling>() + size_of::<SampleState>() + Sample::parts(vocab) * size_of::<SamplePart>();
        // Of each row the tokens before it, its position and its own token, too.
        let sampler = rows * (row + 4 * (history + 2));
        Ok(Self {
            weights: 0,
            cache: sizes.cache_bytes(),
            activations: sizes.activation_bytes() + sampler as u64,
            workspace: backend.workspace_bytes(sizes.cache)?,
        })
    }
}

/// Tokens that a sequence goes on with, and which of their logits are wanted.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Entry<'a> {
    /// The sequence: at most once in a batch.
    pub sequence: Sequence,
    /// Its next tokens, at least one.
    pub tokens: &'a [u32],
    /// The tokens whose logits are returned.
    pub logits: Logits,
}

impl<'a> Entry<'a> {
    /// The next tokens of a sequence.
    pub fn new(sequence: Sequence, tokens: &'a [u32], logits: Logits) -> Self {
        Self { sequence, tokens, logits }
    }
}

/// Tokens that a sequence goes on with, and how the one behind them is chosen.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Next<'a> {
    /// The sequence: at most once in a batch.
    pub sequence: Sequence,
    /// Its next tokens, at least one.
    pub tokens: &'a [u32],
    /// How the next one is drawn; [`Sampling::GREEDY`] takes the most probable one.
    pub sampling: Sampling,
}

impl<'a> Next<'a> {
    /// The next tokens of a sequence.
    pub fn new(sequence: Sequence, tokens: &'a [u32], sampling: Sampling) -> Self {
        Self { sequence, tokens, sampling }
    }
}

/// How [`Pool::generate`] goes about it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Generation {
    /// Most tokens.
    pub count: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Most tokens of a draft; 0: none are asked for.
    pub draft: usize,
}

impl Generation {
    /// So many tokens, the most probable ones, without drafts.
    pub fn new(count: usize) -> Self {
        Self { count, sampling: Sampling::GREEDY, draft: 0 }
    }

    /// With tokens that are drawn in another way.
    #[must_use]
    pub fn sampling(self, sampling: Sampling) -> Self {
        Self { sampling, ..self }
    }

    /// With drafts of at most so many tokens.
    #[must_use]
    pub fn draft(self, draft: usize) -> Self {
        Self { draft, ..self }
    }
}

/// A row of logits: of which entry of the batch, and of which of its tokens.
#[derive(Clone, Copy)]
struct Row {
    entry: usize,
    token: usize,
}

/// Gets a buffer of logits and whose its first rows are.
type Take<'a, B> = dyn FnMut(&B, &<B as Backend>::Floats, &mut <B as Backend>::Sampler, &[Row]) -> Result<()> + 'a;

/// Sequences of a model, and their pages.
pub struct Pool<B: Backend> {
    backend: B,
    config: Config,
    options: PoolOptions,
    sizes: Sizes,
    state: State<B>,
    sampler: B::Sampler,
    pages: Pages,
    /// Of each place the pages that the backend knows.
    tables: Vec<Vec<u32>>,
    /// What is recorded: steps of so many rows, whose tokens are drawn or not.
    steps: HashMap<(usize, bool), B::Graph>,
    /// Whether the backend records.
    records: bool,
    /// The model whose sequences they are.
    model: u64,
}

/// Tokens that [`Pool::generate`] decodes at a time where steps are recorded: reading each one back at once would cost more than to
/// compute a few that a caller does not want.
const DECODE_AT_ONCE: usize = 8;

impl<B: Backend> Pool<B> {
    pub(super) fn new(model: &Model<B>, options: PoolOptions) -> Result<Self> {
        let config = model.config().clone();
        let sizes = options.sizes(&config, OfFloats::of_model(model))?;
        let plan = MemoryPlan::without_weights(model.backend(), &config, &sizes, &options)?;
        check_free(model.backend(), plan.total())?;
        let pages = Pages::new(options.shape())?;
        let backend = model.backend().fork()?;
        let state = State::new(&backend, &config, &sizes)?;
        let sampler = backend.sampler(options.sampler(&config, &sizes))?;
        let tables = vec![Vec::new(); options.sequences];
        let steps = HashMap::new();
        Ok(Self {
            backend,
            config,
            options,
            sizes,
            state,
            sampler,
            pages,
            tables,
            steps,
            records: true,
            model: model.id,
        })
    }

    /// How it was made.
    pub fn options(&self) -> &PoolOptions {
        &self.options
    }

    /// The bookkeeping: sequences, their tokens and pages, and what is free.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// A new, empty sequence.
    ///
    /// # Errors
    /// [`Error::TooManySequences`].
    pub fn create(&mut self) -> Result<Sequence> {
        self.pages.create()
    }

    /// A new sequence that begins as the prompt does: as far as the pool has pages with those tokens, but for the last one, whose logits
    /// are still to be computed. [`Self::position`] says how many it has.
    ///
    /// # Errors
    /// [`Error::TooManySequences`].
    pub fn create_from(&mut self, prompt: &[u32]) -> Result<Sequence> {
        self.pages.create_from(&prompt[..prompt.len().saturating_sub(1)])
    }

    /// Another sequence with the same tokens. Nothing is copied before one of the two goes on.
    ///
    /// # Errors
    /// [`Error::NoSequence`], [`Error::TooManySequences`].
    pub fn fork(&mut self, sequence: Sequence) -> Result<Sequence> {
        self.pages.fork(sequence)
    }

    /// Forgets all positions of a sequence from `position` on. One that is not reached yet changes nothing.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn truncate(&mut self, sequence: Sequence, position: usize) -> Result<()> {
        self.pages.truncate(sequence, position)
    }

    /// Ends a sequence.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn drop(&mut self, sequence: Sequence) -> Result<()> {
        self.pages.drop(sequence)
    }

    /// Positions of a sequence in use: that of its next token.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn position(&self, sequence: Sequence) -> Result<usize> {
        Ok(self.pages.tokens(sequence)?.len())
    }

    /// Appends tokens to sequences and returns the logits asked for, `[rows, vocab]` of each entry.
    ///
    /// # Errors
    /// [`Error::NoSequence`], [`Error::TokenOutOfRange`], [`Error::ContextOverflow`], [`Error::PoolFull`], [`Error::Invalid`] for an entry
    /// without tokens, a sequence that is there twice or another model, [`Error::SequenceNotFinite`] for logits that are not finite, and what
    /// the backend reports. All sequences stay as they were then.
    pub fn forward(&mut self, model: &Model<B>, entries: &[Entry<'_>]) -> Result<Vec<Vec<f32>>> {
        let vocab = self.config.vocab;
        let mut found = vec![Vec::new(); entries.len()];
        let mut values = Vec::new();
        let plan = self.compute(model, entries, &mut |backend, logits, _, rows| {
            values.resize(rows.len() * vocab, 0.0);
            backend.read(logits, 0, &mut values)?;
            for (row, logits) in rows.iter().zip(values.chunks_exact(vocab)) {
                found[row.entry].extend_from_slice(logits);
            }
            Ok(())
        })?;
        if let Some(bad) = found.iter().position(|logits| !logits.iter().all(|logit| logit.is_finite())) {
            self.pages.abandon(plan)?;
            return Err(self.not_finite(model, entries[bad].sequence, entries[bad].tokens));
        }
        let tokens: Vec<&[u32]> = entries.iter().map(|entry| entry.tokens).collect();
        self.pages.commit(plan, &tokens)?;
        Ok(found)
    }

    /// Appends tokens to sequences and returns the token that comes next of each, which is not appended. The logits stay where the backend
    /// computes.
    ///
    /// # Errors
    /// Those of [`Self::forward`], and [`Error::Invalid`] for a sampling that makes no sense or looks back further than the pool's window.
    pub fn step(&mut self, model: &Model<B>, entries: &[Next<'_>]) -> Result<Vec<u32>> {
        let (plan, chosen) = self.choose(model, entries, Logits::Last)?;
        let next = chosen.iter().map(|chosen| chosen.first().copied().unwrap_or(NO_CHOICE)).collect::<Vec<_>>();
        if let Some(bad) = next.iter().position(|&token| token == NO_CHOICE) {
            self.pages.abandon(plan)?;
            return Err(self.not_finite(model, entries[bad].sequence, entries[bad].tokens));
        }
        let tokens: Vec<&[u32]> = entries.iter().map(|entry| entry.tokens).collect();
        self.pages.commit(plan, &tokens)?;
        Ok(next)
    }

    /// [`Self::step`] of tokens of which all but the first are a guess: appends the first one, and of the others as many as are those that
    /// would have been chosen. Returns these and the one behind them, which is not appended: what steps one after the other would give.
    ///
    /// # Errors
    /// Those of [`Self::step`].
    pub fn speculate(&mut self, model: &Model<B>, entries: &[Next<'_>]) -> Result<Vec<Vec<u32>>> {
        let (plan, mut chosen) = self.choose(model, entries, Logits::All)?;
        for (entry, chosen) in entries.iter().zip(&mut chosen) {
            let right = chosen.iter().zip(&entry.tokens[1..]).take_while(|(chosen, guess)| chosen == guess).count();
            chosen.truncate(right + 1);
        }
        if let Some(bad) = chosen.iter().position(|chosen| chosen.contains(&NO_CHOICE)) {
            self.pages.abandon(plan)?;
            return Err(self.not_finite(model, entries[bad].sequence, &entries[bad].tokens[..chosen[bad].len()]));
        }
        let kept = |(entry, chosen): (&Next<'_>, &Vec<u32>)| entry.tokens[..chosen.len()].to_vec();
        let tokens: Vec<Vec<u32>> = entries.iter().zip(&chosen).map(kept).collect();
        self.pages.commit(plan, &tokens.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        Ok(chosen)
    }

    /// Appends to each sequence its one token and, one after the other, the `count - 1` tokens that come next. Returns the `count` tokens that
    /// were chosen of each; the last one is not appended. Every step feeds the next one where the backend computes, and where the
    /// backend can record a step (CUDA: as a graph) it is recorded once for so many sequences and replayed.
    ///
    /// # Errors
    /// Those of [`Self::step`], and [`Error::Invalid`] for an entry with more tokens than one.
    pub fn decode(&mut self, model: &Model<B>, entries: &[Next<'_>], count: usize) -> Result<Vec<Vec<u32>>> {
        self.decode_marked(model, entries, count, |_| Ok(()))
    }

    /// [`Self::decode`], for measurements: `mark` gets the backend directly before the first step is enqueued and directly after the
    /// last one, of each group of sequences that are computed together.
    ///
    /// # Errors
    /// Those of [`Self::decode`], and those of `mark`.
    pub fn decode_marked(
        &mut self,
        model: &Model<B>,
        entries: &[Next<'_>],
        count: usize,
        mut mark: impl FnMut(&B) -> Result<()>,
    ) -> Result<Vec<Vec<u32>>> {
        if count == 0 {
            return Ok(vec![Vec::new(); entries.len()]);
        }
        self.check_samplings(entries)?;
        if let Some(entry) = entries.iter().find(|entry| entry.tokens.len() != 1) {
            return Err(Error::Invalid(format!(
                "a decode takes one token of a sequence, found {}",
                entry.tokens.len()
            )));
        }
        let plain = plain(entries, Logits::None);
        self.check(model, &plain)?;
        let wanted: Vec<(Sequence, usize)> = entries.iter().map(|entry| (entry.sequence, count)).collect();
        let plan = self.pages.plan(&wanted)?;
        let mut found = Vec::with_capacity(entries.len());
        let most = self.sizes.tokens.min(self.sizes.rows);
        let computed = self.prepare(&plan, &plain).and_then(|()| {
            entries.chunks(most).try_for_each(|entries| {
                found.extend(self.decode_together(model, entries, count, &mut mark)?);
                Ok(())
            })
        });
        if let Err(error) = computed {
            self.pages.abandon(plan)?;
            return Err(error);
        }
        let bad = |tokens: &Vec<u32>| tokens.iter().position(|&token| token == NO_CHOICE);
        if let Some((entry, place)) = found.iter().enumerate().find_map(|(entry, tokens)| Some((entry, bad(tokens)?))) {
            self.pages.abandon(plan)?;
            let Next { sequence, tokens, .. } = entries[entry];
            return Err(self.not_finite(model, sequence, &[tokens, &found[entry][..place]].concat()));
        }
        let appended: Vec<Vec<u32>> =
            entries.iter().zip(&found).map(|(entry, found)| [entry.tokens, &found[..count - 1]].concat()).collect();
        self.pages.commit(plan, &appended.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        Ok(found)
    }

    /// Appends `prompt` to a sequence and generates up to `generation.count` tokens, with drafts from the text itself. `each` gets every token
    /// as it comes and may end the loop. Returns the tokens; the last one is not appended.
    ///
    /// # Errors
    /// Those of [`Self::step`]. What was appended before the error stays.
    pub fn generate(
        &mut self,
        model: &Model<B>,
        sequence: Sequence,
        prompt: &[u32],
        generation: &Generation,
        each: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        let mut drafts = Drafts::default();
        let draft = |text: &[u32], most| {
            drafts.extend(&text[drafts.tokens().len()..]);
            drafts.draft(most)
        };
        self.generate_with(model, sequence, prompt, generation, draft, each)
    }

    /// [`Self::generate`] with drafts of the caller's: `draft` gets the whole text of the sequence and how many tokens are wanted, and gives
    /// at most so many that may come next. What is generated does not depend on them.
    ///
    /// # Errors
    /// Those of [`Self::generate`].
    pub fn generate_with(
        &mut self,
        model: &Model<B>,
        sequence: Sequence,
        prompt: &[u32],
        generation: &Generation,
        mut draft: impl FnMut(&[u32], usize) -> Vec<u32>,
        mut each: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        let Generation { count, sampling, draft: most } = *generation;
        let mut generated = Vec::new();
        if count == 0 {
            self.forward(model, &[Entry::new(sequence, prompt, Logits::None)])?;
            return Ok(generated);
        }
        let mut ready = self.step(model, &[Next::new(sequence, prompt, sampling)])?.into_iter();
        let mut text = self.pages.tokens(sequence)?.to_vec();
        loop {
            // What is ready is appended but for the last one, so there is one.
            let Some(next) = ready.next() else { return Ok(generated) };
            generated.push(next);
            text.push(next);
            if each(next).is_break() || generated.len() == count {
                // Tokens that nobody has seen were never appended.
                self.truncate(sequence, text.len() - 1)?;
                return Ok(generated);
            }
            if ready.len() > 0 {
                continue;
            }
            let room = self.options.capacity.saturating_sub(text.len() - 1).max(1);
            let wanted = (count - generated.len()).min(room);
            let mut guess = if most == 0 { Vec::new() } else { draft(&text, most.min(wanted - 1)) };
            guess.truncate(wanted - 1);
            // A guess of no token of the vocabulary is as wrong as any.
            let vocab = self.config.vocab;
            guess.truncate(guess.iter().position(|&token| token as usize >= vocab).unwrap_or(guess.len()));
            let at_once = if most == 0 && !self.steps.is_empty() { DECODE_AT_ONCE.min(wanted) } else { 1 };
            let single = guess.is_empty() && at_once == 1;
            let found = if guess.is_empty() {
                self.decode(model, &[Next::new(sequence, &[next], sampling)], at_once)
            } else {
                guess.insert(0, next);
                self.speculate(model, &[Next::new(sequence, &guess, sampling)])
            };
            let found = match found {
                // What stands in the way of several tokens need not stand in that of the next one.
                Err(Error::PoolFull { .. } | Error::SequenceNotFinite { .. }) if !single => {
                    self.decode(model, &[Next::new(sequence, &[next], sampling)], 1)?
                }
                found => found?,
            };
            ready = found.into_iter().next().unwrap_or_default().into_iter();
        }
    }

    /// A sequence as bytes: its tokens, and the keys and values of its positions. They depend on nothing else of the pool.
    ///
    /// # Errors
    /// [`Error::NoSequence`], and what the backend reports.
    pub fn save(&self, sequence: Sequence) -> Result<Vec<u8>> {
        let tokens = self.pages.tokens(sequence)?;
        let table = self.pages.table(sequence)?;
        let page_bytes = self.sizes.cache.page_bytes();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + 4 * tokens.len() + table.len() * page_bytes + 8);
        bytes.extend_from_slice(&self.head(tokens.len()));
        bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        for (number, &page) in table.iter().enumerate() {
            let mut values = self.backend.read_page(&self.state.cache, page as usize)?;
            // Behind the sequence's end there may be anything.
            let used = (tokens.len() - number * PAGE).min(PAGE);
            let part = values.len() / (2 * self.config.layers);
            values.chunks_exact_mut(part).for_each(|values| values[part / PAGE * used..].fill(0));
            bytes.extend_from_slice(&values);
        }
        bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
        Ok(bytes)
    }

    /// A new sequence as it was saved, from this pool or another one of the same model and element type. That it is the same model is for
    /// the caller to know: bytes say its shape alone. The pages of the sequence are not found by their tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] for bytes that no such pool has saved, [`Error::TooManySequences`], [`Error::ContextOverflow`],
    /// [`Error::PoolFull`], and what the backend reports. Nothing has changed then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<Sequence> {
        let (tokens, values) = self.parse(bytes)?;
        let sequence = self.pages.create()?;
        let restored = self.restore_into(sequence, &tokens, values);
        if restored.is_err() {
            self.pages.drop(sequence)?;
        }
        restored.map(|()| sequence)
    }

    fn restore_into(&mut self, sequence: Sequence, tokens: &[u32], values: &[u8]) -> Result<()> {
        let plan = self.pages.plan(&[(sequence, tokens.len())])?;
        let written = self.pages.table(sequence).map(<[u32]>::to_vec).and_then(|table| {
            let pages = values.chunks_exact(self.sizes.cache.page_bytes());
            table
                .iter()
                .zip(pages)
                .try_for_each(|(&page, values)| self.backend.write_page(&mut self.state.cache, page as usize, values))
        });
        match written.and_then(|()| self.backend.synchronize()) {
            Ok(()) => self.pages.commit_apart(plan, &[tokens]),
            Err(error) => {
                self.pages.abandon(plan)?;
                Err(error)
            }
        }
    }

    /// What saved bytes begin with.
    fn head(&self, tokens: usize) -> [u8; HEAD_BYTES] {
        let Config { layers, kv_heads, head_dim, vocab, rope_base, .. } = self.config;
        let element = self.sizes.cache.element_bytes();
        let numbers = [layers, kv_heads, head_dim, element, vocab, rope_base.to_bits() as usize, tokens];
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(MAGIC);
        for (bytes, number) in head[8..].chunks_exact_mut(8).zip(numbers) {
            bytes.copy_from_slice(&(number as u64).to_le_bytes());
        }
        head
    }

    /// Tokens and pages of saved bytes.
    fn parse<'a>(&self, bytes: &'a [u8]) -> Result<(Vec<u32>, &'a [u8])> {
        let fault = |fault: &str| Error::Invalid(format!("saved sequence: {fault}"));
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| fault("cut short"))?;
        if head[..8] != *MAGIC {
            return Err(fault("no saved sequence, or one of another version"));
        }
        let (rest, sum) = rest.split_last_chunk::<8>().ok_or_else(|| fault("cut short"))?;
        if u64::from_le_bytes(*sum) != checksum(&bytes[..bytes.len() - 8]) {
            return Err(fault("its checksum is another one"));
        }
        let count = head.last_chunk::<8>().map_or(0, |count| u64::from_le_bytes(*count));
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if self.head(count) != *head {
            return Err(fault("of a model or a cache of another shape"));
        }
        let tokens = count.checked_mul(4).and_then(|bytes| rest.split_at_checked(bytes));
        let (tokens, values) = tokens.ok_or_else(|| fault("cut short"))?;
        if Some(values.len()) != count.div_ceil(PAGE).checked_mul(self.sizes.cache.page_bytes()) {
            return Err(fault("of another length than its tokens need"));
        }
        let tokens: Vec<u32> = tokens.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
        self.check_tokens(&tokens)?;
        Ok((tokens, values))
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.config.vocab;
        match tokens.iter().position(|&token| token as usize >= vocab) {
            Some(position) => Err(Error::TokenOutOfRange { token: tokens[position], position, vocab }),
            None => Ok(()),
        }
    }

    fn check(&self, model: &Model<B>, entries: &[Entry<'_>]) -> Result<()> {
        if self.model != model.id {
            return Err(Error::Invalid("the pool was made for another model".into()));
        }
        for entry in entries {
            if entry.tokens.is_empty() {
                return Err(Error::Invalid(format!(
                    "a forward needs at least one token of sequence {}",
                    entry.sequence
                )));
            }
            self.check_tokens(entry.tokens)?;
        }
        Ok(())
    }

    fn check_samplings(&self, entries: &[Next<'_>]) -> Result<()> {
        for Next { sampling, .. } in entries {
            if let Some(fault) = sampling.fault() {
                return Err(Error::Invalid(fault));
            }
            let (window, most) = (sampling.window, self.options.window);
            if sampling.penalises() && window > most {
                return Err(Error::Invalid(format!(
                    "penalty: a window of {window} tokens, the pool was made for {most}"
                )));
            }
        }
        Ok(())
    }

    /// Computes what a batch plans, in as many forwards as it takes. The plan is to be committed or abandoned.
    fn compute(&mut self, model: &Model<B>, entries: &[Entry<'_>], take: &mut Take<'_, B>) -> Result<Plan> {
        self.check(model, entries)?;
        let wanted: Vec<(Sequence, usize)> = entries.iter().map(|entry| (entry.sequence, entry.tokens.len())).collect();
        let plan = self.pages.plan(&wanted)?;
        let computed = self
            .prepare(&plan, entries)
            .and_then(|()| self.compute_planned(model, entries, take))
            .and_then(|()| self.backend.synchronize());
        match computed {
            Ok(()) => Ok(plan),
            Err(error) => {
                self.pages.abandon(plan)?;
                Err(error)
            }
        }
    }

    /// Copies the pages that the plan does not share any longer, and tells the backend where the sequences' pages are.
    fn prepare(&mut self, plan: &Plan, entries: &[Entry<'_>]) -> Result<()> {
        let Self { backend, state, pages, tables, .. } = self;
        for copy in plan.copies() {
            backend.copy_page(&mut state.cache, copy.from as usize, copy.to as usize)?;
        }
        for entry in entries {
            let (place, table) = (pages.place(entry.sequence)?, pages.table(entry.sequence)?);
            // A call that fails may have written anything.
            let known = std::mem::take(&mut tables[place]);
            let same = known.iter().zip(table).take_while(|(known, page)| known == page).count();
            if same < table.len() {
                backend.set_pages(&mut state.input, place, same, &table[same..])?;
            }
            tables[place] = table.to_vec();
        }
        Ok(())
    }

    fn compute_planned(&mut self, model: &Model<B>, entries: &[Entry<'_>], take: &mut Take<'_, B>) -> Result<()> {
        // Single tokens first, then runs of neighbours.
        let is_single = |&entry: &usize| entries[entry].tokens.len() == 1;
        let (singles, runs): (Vec<usize>, Vec<usize>) = (0..entries.len()).partition(is_single);
        let rows_of = |entry: usize| (0..entries[entry].tokens.len()).map(move |token| Row { entry, token });
        let all: Vec<Row> = singles.iter().chain(&runs).flat_map(|&entry| rows_of(entry)).collect();
        let mut starts = Vec::with_capacity(entries.len());
        for entry in entries {
            starts.push((self.pages.place(entry.sequence)? as u32, self.pages.tokens(entry.sequence)?.len()));
        }
        let Self { backend, sizes, state, sampler, .. } = self;
        for (number, batch) in all.chunks(sizes.tokens).enumerate() {
            let tokens: Vec<u32> = batch.iter().map(|row| entries[row.entry].tokens[row.token]).collect();
            let positions: Vec<u32> = batch.iter().map(|row| (starts[row.entry].1 + row.token) as u32).collect();
            let sequences: Vec<u32> = batch.iter().map(|row| starts[row.entry].0).collect();
            let reach = positions.iter().max().map_or(0, |&position| position as usize + 1);
            let alone = singles.len().saturating_sub(number * sizes.tokens).min(batch.len());
            backend.set_batch(
                &mut state.input,
                &Batch::new(&tokens, &positions, &sequences).singles(alone).reach(reach),
            )?;
            forward(model, backend, state, batch.len(), &mut untraced(&mut NoTrace, batch.len()))?;
            let is_wanted = |&index: &usize| {
                let Row { entry, token } = batch[index];
                match entries[entry].logits {
                    Logits::None => false,
                    Logits::Last => token + 1 == entries[entry].tokens.len(),
                    Logits::All => true,
                }
            };
            let wanted: Vec<usize> = (0..batch.len()).filter(is_wanted).collect();
            for group in wanted.chunks(sizes.rows) {
                let indices: Vec<u32> = group.iter().map(|&index| index as u32).collect();
                let rows: Vec<Row> = group.iter().map(|&index| batch[index]).collect();
                head(model, backend, state, &indices, &mut untraced(&mut NoTrace, indices.len()))?;
                take(backend, &state.logits, sampler, &rows)?;
            }
        }
        Ok(())
    }

    /// Computes entries and chooses the tokens behind those whose logits are wanted.
    fn choose(&mut self, model: &Model<B>, entries: &[Next<'_>], logits: Logits) -> Result<(Plan, Vec<Vec<u32>>)> {
        self.check_samplings(entries)?;
        let mut texts = Vec::with_capacity(entries.len());
        for entry in entries {
            let before = self.pages.tokens(entry.sequence)?;
            let window = if entry.sampling.penalises() { entry.sampling.window } else { 0 };
            let known = &before[before.len().saturating_sub(window)..];
            texts.push((before.len(), known.len(), [known, entry.tokens].concat()));
        }
        let mut chosen = vec![Vec::new(); entries.len()];
        let plan = self.compute(model, &plain(entries, logits), &mut |backend, logits, sampler, rows| {
            let draw = |row: &Row| {
                let (start, known, text) = &texts[row.entry];
                Draw::new(entries[row.entry].sampling, &text[..known + row.token + 1], start + row.token)
            };
            backend.set_draws(sampler, &rows.iter().map(draw).collect::<Vec<_>>())?;
            for (row, token) in rows.iter().zip(backend.sample(logits, rows.len(), sampler)?) {
                chosen[row.entry].push(token);
            }
            Ok(())
        })?;
        Ok((plan, chosen))
    }

    /// Steps of sequences of which all rows fit, whose pages are planned.
    fn decode_together(
        &mut self,
        model: &Model<B>,
        entries: &[Next<'_>],
        count: usize,
        mark: &mut impl FnMut(&B) -> Result<()>,
    ) -> Result<Vec<Vec<u32>>> {
        let rows = entries.len();
        let is_drawn = entries.iter().any(|entry| entry.sampling.temperature != 0.0 || entry.sampling.penalises());
        let (mut tokens, mut positions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        let mut texts = Vec::with_capacity(rows);
        for entry in entries {
            let before = self.pages.tokens(entry.sequence)?;
            tokens.push(entry.tokens[0]);
            positions.push(before.len() as u32);
            sequences.push(self.pages.place(entry.sequence)? as u32);
            texts.push([&before[before.len().saturating_sub(self.options.window)..], entry.tokens].concat());
        }
        let Self { backend, config, options, state, sampler, steps, records, .. } = self;
        backend.set_batch(&mut state.input, &Batch::new(&tokens, &positions, &sequences).singles(rows))?;
        if is_drawn {
            let draw =
                |((entry, text), &position): ((&Next<'_>, _), &u32)| Draw::new(entry.sampling, text, position as usize);
            let draws: Vec<Draw<'_>> =
                entries.iter().zip(texts.iter().map(Vec::as_slice)).zip(&positions).map(draw).collect();
            backend.set_draws(sampler, &draws)?;
        }
        let vocab = config.vocab;
        let step = |state: &mut State<B>, sampler: &mut B::Sampler| {
            forward(model, backend, state, rows, &mut untraced(&mut NoTrace, rows))?;
            let all: Vec<u32> = (0..rows as u32).collect();
            head(model, backend, state, &all, &mut untraced(&mut NoTrace, rows))?;
            if is_drawn {
                backend.feed_back_drawn(&state.logits, rows, &mut state.input, sampler)
            } else {
                backend.feed_back(&state.logits, rows, vocab, &mut state.input)
            }
        };
        let mut found = vec![Vec::with_capacity(count); rows];
        let mut done = 0;
        mark(backend)?;
        while done < count {
            let now = if is_drawn { (count - done).min(options.window) } else { count };
            for _ in 0..now {
                if let Some(graph) = steps.get_mut(&(rows, is_drawn)) {
                    // SAFETY: the graph was recorded on this pool's memory, which is borrowed mutably, and on the weights of the
                    // model that the pool was made for, which is borrowed, too.
                    unsafe { backend.replay(graph)? };
                    continue;
                }
                step(state, sampler)?;
                if *records {
                    match backend.record(|| step(state, sampler))? {
                        Some(graph) => _ = steps.insert((rows, is_drawn), graph),
                        None => *records = false,
                    }
                }
            }
            if done + now == count {
                mark(backend)?;
            }
            for (row, (found, &start)) in found.iter_mut().zip(&positions).enumerate() {
                let from = start as usize + done;
                found.extend(if is_drawn {
                    backend.read_drawn(sampler, row, from, now)?
                } else {
                    backend.read_choices(&state.input, row, from, now)?
                });
            }
            done += now;
        }
        Ok(found)
    }

    /// Where the values of `tokens`, which follow what the sequence has, begin not to be finite: computes them again. The sequence stays as
    /// it is.
    fn not_finite(&mut self, model: &Model<B>, sequence: Sequence, tokens: &[u32]) -> Error {
        let start = match self.position(sequence) {
            Ok(start) => start,
            Err(error) => return error,
        };
        let (vocab, mut first, mut values) = (self.config.vocab, None, Vec::new());
        let entry = Entry::new(sequence, tokens, Logits::All);
        let plan = self.compute(model, &[entry], &mut |backend, logits, _, rows| {
            values.resize(rows.len() * vocab, 0.0);
            backend.read(logits, 0, &mut values)?;
            let bad = values.iter().position(|logit: &f32| !logit.is_finite());
            first = first.or(bad.map(|index| start + rows[index / vocab].token));
            Ok(())
        });
        match plan.and_then(|plan| self.pages.abandon(plan)) {
            // What computes something else the second time is no less broken.
            Ok(()) => Error::SequenceNotFinite { sequence, position: first.unwrap_or(start) },
            Err(error) => error,
        }
    }
}

/// Entries of a forward whose tokens are chosen from.
fn plain<'a>(entries: &[Next<'a>], logits: Logits) -> Vec<Entry<'a>> {
    entries.iter().map(|entry| Entry::new(entry.sequence, entry.tokens, logits)).collect()
}

/// Nothing is traced, so that positions, which only the input has, do not matter.
fn untraced(sink: &mut NoTrace, rows: usize) -> Tracer<'_, NoTrace> {
    Tracer { sink, layer: None, start: 0, rows, capacity: 0, last: true }
}

/// What saved sequences begin with; the last digit is the version.
const MAGIC: &[u8; 8] = b"kqmseq\0\x01";
/// The magic and seven numbers.
const HEAD_BYTES: usize = 64;

/// FNV-1a, of words: a change of any bit shows.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &word| step(sum, u64::from_le_bytes(word)));
    rest.iter().fold(step(sum, bytes.len() as u64), |sum, &byte| step(sum, byte.into()))
}
