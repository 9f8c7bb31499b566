//! Many sequences at once: whatever joins, leaves, forks or is cut, every logit and every token is that of the sequence alone, in bits.

mod common;

use std::ops::ControlFlow;

use common::random::Random;
use common::shaped::{self, SMALL, reshaped};
use common::{bits, cuda_device, emulated_device};
use kquant_moe::Error;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::gpu::Gpu;
use kquant_moe::model::{
    Backend, CacheType, Config, ContextOptions, Entry, Generation, LoadOptions, Logits, Model, Next, Pool, PoolOptions,
    Sequence,
};
use kquant_moe::oracle::sample::{Sampling, sample};

/// Positions of a page.
const PAGE: usize = 64;
const LONG: Config = reshaped!(SMALL, context_length: 400);

fn sequence_alone(model: &Model<Cpu>, cache: CacheType, tokens: &[u32]) -> Vec<Vec<u32>> {
    let options = ContextOptions::default().capacity(LONG.context_length).cache(cache);
    let logits = model.context(options).unwrap().forward(model, tokens, Logits::All).unwrap();
    logits.chunks_exact(LONG.vocab).map(bits).collect()
}

fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|&bits| f32::from_bits(bits)).collect()
}

/// A sequence, and what came of it.
#[derive(Clone)]
struct Live {
    sequence: Sequence,
    tokens: Vec<u32>,
    /// By position, where they were asked for.
    logits: Vec<Option<Vec<u32>>>,
    /// Position of the logits that a token was chosen from, how, and the token.
    chosen: Vec<(usize, Sampling, u32)>,
}

impl Live {
    fn new(sequence: Sequence, tokens: &[u32]) -> Self {
        Self { sequence, tokens: tokens.to_vec(), logits: vec![None; tokens.len()], chosen: Vec::new() }
    }

    fn truncate(&mut self, position: usize) {
        self.tokens.truncate(position);
        self.logits.truncate(position);
        self.chosen.retain(|&(at, ..)| at < position);
    }

    fn append(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.logits.resize(self.tokens.len(), None);
    }
}

/// What was compared.
#[derive(Debug, Default)]
struct Compared {
    logits: usize,
    tokens: usize,
    different: usize,
    refused: usize,
    reused: usize,
    shared: usize,
    largest: usize,
}

impl Compared {
    fn add(&mut self, other: &Self) {
        self.logits += other.logits;
        self.tokens += other.tokens;
        self.different += other.different;
        self.refused += other.refused;
        self.reused += other.reused;
        self.shared += other.shared;
        self.largest = self.largest.max(other.largest);
    }
}

struct Schedule<'a, B: Backend> {
    model: &'a Model<B>,
    /// The same model, for sequences alone.
    cpu: &'a Model<Cpu>,
    pool: Pool<B>,
    random: Random,
    /// Most tokens that a sequence goes on with at a time.
    longest: usize,
    live: Vec<Live>,
    compared: Compared,
}

impl<'a, B: Backend> Schedule<'a, B> {
    fn new(model: &'a Model<B>, cpu: &'a Model<Cpu>, options: PoolOptions, seed: u64) -> Self {
        let pool = model.pool(options).unwrap();
        let random = Random::new(seed);
        Self { model, cpu, pool, random, longest: 200, live: Vec::new(), compared: Compared::default() }
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.random.below(LONG.vocab) as u32).collect()
    }

    /// One of a few texts, which begin alike.
    fn text(&mut self) -> Vec<u32> {
        let salt = self.random.below(3);
        let length = 1 + self.random.below(self.longest);
        (0..length).map(|i| ((i * i + if i < 70 { 0 } else { salt }) % LONG.vocab) as u32).collect()
    }

    fn sampling(&mut self) -> Sampling {
        let usual = Sampling { seed: self.random.bits(), ..Sampling::default() };
        match self.random.below(5) {
            0 | 1 => Sampling::GREEDY,
            2 => Sampling { temperature: 0.8, top_k: 20, top_p: 0.9, ..usual },
            3 => Sampling { penalty: 1.3, window: 20, min_p: 0.01, ..usual },
            _ => Sampling { penalty: 1.5, window: 32, ..Sampling::GREEDY },
        }
    }

    /// Compares a sequence with what it is alone.
    fn check(&mut self, live: &Live) {
        if live.tokens.is_empty() {
            return;
        }
        let expected = sequence_alone(self.cpu, self.pool.options().cache, &live.tokens);
        for (found, expected) in live.logits.iter().zip(&expected) {
            if let Some(found) = found {
                self.compared.logits += 1;
                self.compared.different += usize::from(found != expected);
            }
        }
        for &(position, sampling, token) in &live.chosen {
            let before = &live.tokens[..=position];
            self.compared.tokens += 1;
            let right = sample(&floats(&expected[position]), &sampling, before, position as u64 + 1) == token;
            self.compared.different += usize::from(!right);
        }
    }

    /// Nothing may have changed.
    fn refused(&mut self, error: &Error) {
        assert!(
            matches!(error, Error::PoolFull { .. } | Error::ContextOverflow { .. } | Error::TooManySequences { .. }),
            "{error}"
        );
        self.compared.refused += 1;
        for live in &self.live {
            assert_eq!(self.pool.pages().tokens(live.sequence).unwrap(), live.tokens);
        }
    }

    /// Some sequences, each once, in any order.
    fn some(&mut self) -> Vec<usize> {
        let share = 1 + self.random.below(3);
        let mut chosen: Vec<usize> = (0..self.live.len()).filter(|_| self.random.below(share) == 0).collect();
        for i in (1..chosen.len()).rev() {
            chosen.swap(i, self.random.below(i + 1));
        }
        chosen
    }

    fn forward(&mut self) {
        let chosen = self.some();
        let lengths = [1, 1, 1, 1, 2, 5, 40, 90];
        let parts: Vec<(Vec<u32>, Logits)> = chosen
            .iter()
            .map(|_| {
                let count = lengths[self.random.below(8)].min(self.longest);
                (self.tokens(count), [Logits::None, Logits::Last, Logits::All][self.random.below(3)])
            })
            .collect();
        let mut entries = Vec::new();
        for (&index, (tokens, logits)) in chosen.iter().zip(&parts) {
            entries.push(Entry::new(self.live[index].sequence, tokens, *logits));
        }
        let found = match self.pool.forward(self.model, &entries) {
            Ok(found) => found,
            Err(error) => return self.refused(&error),
        };
        self.compared.largest = self.compared.largest.max(entries.len());
        for ((&index, (tokens, logits)), found) in chosen.iter().zip(&parts).zip(found) {
            let live = &mut self.live[index];
            live.append(tokens);
            let rows: Vec<Vec<u32>> = found.chunks_exact(LONG.vocab).map(bits).collect();
            assert_eq!(
                rows.len(),
                match logits {
                    Logits::None => 0,
                    Logits::Last => 1,
                    _ => tokens.len(),
                }
            );
            let first = live.tokens.len() - rows.len();
            live.logits[first..].iter_mut().zip(rows).for_each(|(place, row)| *place = Some(row));
        }
    }

    fn choose(&mut self) {
        let chosen = self.some();
        let count = 1 + self.random.below(6);
        let how = self.random.below(3);
        let parts: Vec<(Vec<u32>, Sampling)> = chosen
            .iter()
            .map(|&index| {
                let length = if how == 0 { 1 } else { 1 + self.random.below(5) };
                let mut tokens = self.tokens(length);
                // A guess that is right here and there, where the text is known.
                if how == 2 && self.random.below(2) == 0 {
                    tokens[0] = self.live[index].tokens.last().copied().unwrap_or(0);
                }
                (tokens, self.sampling())
            })
            .collect();
        let mut entries = Vec::new();
        for (&index, (tokens, sampling)) in chosen.iter().zip(&parts) {
            entries.push(Next::new(self.live[index].sequence, tokens, *sampling));
        }
        let found = match how {
            0 => self.pool.decode(self.model, &entries, count),
            1 => self.pool.step(self.model, &entries).map(|next| next.into_iter().map(|token| vec![token]).collect()),
            _ => self.pool.speculate(self.model, &entries),
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.refused(&error),
        };
        for ((&index, (tokens, sampling)), found) in chosen.iter().zip(&parts).zip(found) {
            let live = &mut self.live[index];
            let last = found.len() - 1;
            // What is appended, and how many tokens were chosen before the last one's logits.
            let appended = match how {
                0 => [&tokens[..], &found[..last]].concat(),
                1 => tokens.clone(),
                _ => tokens[..=last].to_vec(),
            };
            if how == 2 {
                assert_eq!(tokens[1..=last], found[..last], "a guess that was taken is what was chosen");
                assert!(tokens.get(last + 1) != Some(&found[last]), "a guess that was right is taken");
            }
            live.append(&appended);
            let first = live.tokens.len() - found.len();
            live.chosen.extend(found.iter().enumerate().map(|(i, &token)| (first + i, *sampling, token)));
        }
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0 => match self.pool.create() {
                Ok(sequence) => self.live.push(Live::new(sequence, &[])),
                Err(error) => self.refused(&error),
            },
            1 | 2 => {
                let text = self.text();
                match self.pool.create_from(&text) {
                    Ok(sequence) => {
                        let known = self.pool.position(sequence).unwrap();
                        assert!(known < text.len() && known.is_multiple_of(PAGE));
                        self.compared.reused += known;
                        self.live.push(Live::new(sequence, &text[..known]));
                        let entry = Entry::new(sequence, &text[known..], Logits::All);
                        match self.pool.forward(self.model, &[entry]) {
                            Ok(found) => {
                                let live = self.live.last_mut().unwrap();
                                live.append(&text[known..]);
                                let rows = found[0].chunks_exact(LONG.vocab).map(bits).map(Some);
                                live.logits[known..].iter_mut().zip(rows).for_each(|(place, row)| *place = row);
                            }
                            Err(error) => self.refused(&error),
                        }
                    }
                    Err(error) => self.refused(&error),
                }
            }
            3 if !self.live.is_empty() => {
                let index = self.random.below(self.live.len());
                match self.pool.fork(self.live[index].sequence) {
                    Ok(sequence) => {
                        let fork = Live { sequence, ..self.live[index].clone() };
                        self.compared.shared += fork.tokens.len();
                        self.live.push(fork);
                    }
                    Err(error) => self.refused(&error),
                }
            }
            4 if !self.live.is_empty() => {
                let index = self.random.below(self.live.len());
                let position = self.random.below(self.live[index].tokens.len() + 2);
                let live = self.live[index].clone();
                self.check(&live);
                self.live[index].truncate(position);
                self.pool.truncate(live.sequence, position).unwrap();
            }
            5 if !self.live.is_empty() => {
                let index = self.random.below(self.live.len());
                let live = self.live.swap_remove(index);
                self.check(&live);
                self.pool.drop(live.sequence).unwrap();
                assert!(matches!(self.pool.position(live.sequence), Err(Error::NoSequence { .. })));
            }
            6 if !self.live.is_empty() => {
                let index = self.random.below(self.live.len());
                let saved = self.pool.save(self.live[index].sequence).unwrap();
                match self.pool.restore(&saved) {
                    Ok(sequence) => {
                        assert!(self.pool.save(sequence).unwrap() == saved, "a saved sequence comes back");
                        self.live.push(Live { sequence, ..self.live[index].clone() });
                    }
                    Err(error) => self.refused(&error),
                }
            }
            7..=9 => self.forward(),
            _ => self.choose(),
        }
    }

    fn run(mut self, steps: usize) -> Compared {
        // All at once.
        for _ in 0..self.pool.options().sequences {
            let sequence = self.pool.create().unwrap();
            self.live.push(Live::new(sequence, &[]));
        }
        for _ in 0..steps {
            self.step();
        }
        for live in std::mem::take(&mut self.live) {
            self.check(&live);
            self.pool.drop(live.sequence).unwrap();
        }
        assert_eq!(self.pool.pages().free(), self.pool.options().pages);
        println!("{:?}", self.compared);
        assert_eq!(self.compared.different, 0);
        self.compared
    }
}

fn options(pages: usize, sequences: usize, max_batch: usize) -> PoolOptions {
    PoolOptions::default().pages(pages).sequences(sequences).capacity(300).max_batch(max_batch).window(32)
}

#[test]
fn sequences_are_as_each_alone_on_the_cpu() {
    let model = common::model_of(shaped::model(&LONG, 1), Cpu::new());
    let mut all = Compared::default();
    for (seed, pages, sequences, max_batch, cache, steps) in [
        (1, 200, 64, 2048, CacheType::F32, 90),
        (2, 24, 12, 64, CacheType::F16, 160),
        (3, 16, 9, 7, CacheType::F32, 120),
        (4, 12, 5, 1, CacheType::F32, 80),
    ] {
        let options = options(pages, sequences, max_batch).cache(cache);
        all.add(&Schedule::new(&model, &model, options, seed).run(steps));
    }
    println!("{all:?}");
    assert!(all.logits > 3000 && all.tokens > 800 && all.refused > 10 && all.reused > 100 && all.shared > 100);
    assert!(all.largest > 20, "no large batch");
}

/// On a device that records the steps of so many sequences, and replays them.
fn sequences_are_as_each_alone<B: Backend>(backend: B, longest: usize, runs: &[(u64, usize, CacheType)]) {
    let gguf = shaped::model(&LONG, 1);
    let (model, cpu) = (common::model_of(gguf.clone(), backend), common::model_of(gguf, Cpu::new()));
    let mut all = Compared::default();
    for &(seed, steps, cache) in runs {
        let mut schedule = Schedule::new(&model, &cpu, options(16, 6, 48).cache(cache), seed);
        schedule.longest = longest;
        all.add(&schedule.run(steps));
    }
    println!("{all:?}");
    assert!(all.logits > 100 && all.tokens > 40 && all.shared > 0, "{all:?}");
}

#[test]
fn sequences_are_as_each_alone_emulated() {
    if let Some(device) = emulated_device() {
        sequences_are_as_each_alone(
            Gpu::new(device.recording()),
            70,
            &[(5, 24, CacheType::F32), (6, 16, CacheType::F16)],
        );
    }
}

#[test]
fn sequences_are_as_each_alone_on_the_gpu() {
    if let Some(device) = cuda_device() {
        sequences_are_as_each_alone(Gpu::new(device), 200, &[(7, 1000, CacheType::F32), (8, 1000, CacheType::F16)]);
    }
}

/// The first position whose values are not finite is named, with its sequence, in every way of computing; and nothing has changed.
fn what_is_not_finite_has_a_place<B: Backend>(backend: B) {
    const WRONG: u32 = 28;
    let gguf = common::changed::changed(&shaped::model(&SMALL, 1), &[], |tensors| {
        let table = common::changed::tensor(tensors, "token_embd.weight");
        table.data[WRONG as usize * 144..][..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    });
    let model = Model::load(gguf, backend, LoadOptions::default().check_blocks(false), &mut |_, _| {}).unwrap();
    let mut pool = model.pool(PoolOptions::default().pages(6).sequences(3).capacity(70).max_batch(5)).unwrap();
    let [a, b] = [(); 2].map(|()| pool.create().unwrap());
    pool.forward(&model, &[Entry::new(b, &[66], Logits::None)]).unwrap();
    let place = |error: Error| match error {
        Error::SequenceNotFinite { sequence, position } => (sequence, position),
        other => panic!("{other}"),
    };
    let text = [30, 59, WRONG, 20, 5, 6, 7];
    for logits in [Logits::Last, Logits::All] {
        let entries = [Entry::new(a, &[1, 2], logits), Entry::new(b, &text, logits)];
        assert_eq!(place(pool.forward(&model, &entries).unwrap_err()), (b, 3));
    }
    for sampling in [Sampling::GREEDY, Sampling { seed: 4, ..Sampling::default() }] {
        let entries = [Next::new(a, &[1, 2], sampling), Next::new(b, &text, sampling)];
        assert_eq!(place(pool.step(&model, &entries).unwrap_err()), (b, 3));
        let single = [Next::new(a, &[1], sampling), Next::new(b, &[WRONG], sampling)];
        assert_eq!(place(pool.decode(&model, &single, 3).unwrap_err()), (b, 1));
        assert_eq!(place(pool.speculate(&model, &single).unwrap_err()), (b, 1));
        // Behind a wrong guess nothing is looked at.
        let mut next = pool.step(&model, &[Next::new(b, &[30], sampling)]).unwrap()[0];
        pool.truncate(b, 1).unwrap();
        next = if next == WRONG { 0 } else { WRONG };
        let guess = [30, next, WRONG];
        assert_eq!(pool.speculate(&model, &[Next::new(b, &guess, sampling)]).unwrap()[0].len(), 1);
        pool.truncate(b, 1).unwrap();
    }
    assert_eq!([a, b].map(|sequence| pool.position(sequence).unwrap()), [0, 1]);
    // As nobody was ever there.
    let found = pool.forward(&model, &[Entry::new(b, &[30], Logits::Last)]).unwrap();
    let mut context = model.context(ContextOptions::default().capacity(8)).unwrap();
    assert!(bits(&found[0]) == bits(&context.forward(&model, &[66, 30], Logits::Last).unwrap()));
}

#[test]
fn what_is_not_finite_has_a_place_on_the_cpu() {
    what_is_not_finite_has_a_place(Cpu::new());
}

#[test]
fn what_is_not_finite_has_a_place_emulated() {
    if let Some(device) = emulated_device() {
        what_is_not_finite_has_a_place(Gpu::new(device.recording()));
    }
}

/// More steps than a pool keeps tokens of: what is drawn in them is what steps one by one draw.
fn many_steps_are_steps_one_by_one<B: Backend>(backend: B) {
    let model = common::model_of(shaped::model(&SMALL, 1), backend);
    let mut pool =
        model.pool(PoolOptions::default().pages(4).sequences(2).capacity(40).max_batch(4).window(3)).unwrap();
    let samplings = [
        Sampling { penalty: 2.0, window: 3, ..Sampling::GREEDY },
        Sampling { penalty: 1.4, window: 2, top_k: 30, seed: 9, ..Sampling::default() },
    ];
    let [a, b] = [(); 2].map(|()| pool.create().unwrap());
    pool.forward(&model, &[Entry::new(a, &[1, 2, 3, 4], Logits::None), Entry::new(b, &[5], Logits::None)]).unwrap();
    let first = [Next::new(a, &[6], samplings[0]), Next::new(b, &[7], samplings[1])];
    let found = pool.decode(&model, &first, 8).unwrap();
    assert_eq!([a, b].map(|sequence| pool.position(sequence).unwrap()), [12, 9]);
    pool.truncate(a, 4).unwrap();
    pool.truncate(b, 1).unwrap();
    let mut next = [6, 7];
    for (step, expected) in found[0].iter().zip(&found[1]).enumerate() {
        let entries = [Next::new(a, &next[..1], samplings[0]), Next::new(b, &next[1..], samplings[1])];
        let chosen = pool.step(&model, &entries).unwrap();
        assert_eq!([&chosen[0], &chosen[1]], [expected.0, expected.1], "step {step}");
        next = [chosen[0], chosen[1]];
    }
}

#[test]
fn many_steps_are_steps_one_by_one_on_the_cpu() {
    many_steps_are_steps_one_by_one(Cpu::new());
}

#[test]
fn many_steps_are_steps_one_by_one_emulated() {
    if let Some(device) = emulated_device() {
        many_steps_are_steps_one_by_one(Gpu::new(device.recording()));
    }
}

/// A draft that wants more pages than there are does not end what goes on without it.
#[test]
fn a_draft_without_room_is_no_error() {
    let model = common::model_of(shaped::model(&LONG, 1), Cpu::new());
    let prompt: Vec<u32> = (0..50).map(|token| token % 9).collect();
    let few = |count: &mut usize| {
        *count += 1;
        if *count == 10 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let run = |generation: &Generation| {
        let mut pool = model.pool(options(1, 1, 64)).unwrap();
        let sequence = pool.create().unwrap();
        let mut seen = 0;
        let guess = |_: &[u32], most: usize| vec![1; most];
        pool.generate_with(&model, sequence, &prompt, generation, guess, |_| few(&mut seen))
    };
    let plain = run(&Generation::new(100)).unwrap();
    assert_eq!(plain.len(), 10);
    assert_eq!(run(&Generation::new(100).draft(16)).unwrap(), plain);
    // Without an end there is none to the pages either.
    let mut pool = model.pool(options(1, 1, 64)).unwrap();
    let sequence = pool.create().unwrap();
    let endless =
        pool.generate(&model, sequence, &prompt, &Generation::new(100).draft(16), |_| ControlFlow::Continue(()));
    assert!(matches!(endless, Err(Error::PoolFull { .. })), "{endless:?}");
}

/// Greedy and sampled, with drafts of any quality and without: the same tokens.
#[test]
fn what_is_generated_does_not_depend_on_drafts() {
    let model = common::model_of(shaped::model(&LONG, 1), Cpu::new());
    let go_on = |_| ControlFlow::Continue(());
    let prompt = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6];
    let mut right = 0;
    let samplings = [
        Sampling::GREEDY,
        Sampling { temperature: 0.05, seed: 1, ..Sampling::default() },
        Sampling { temperature: 1.0, top_k: 3, seed: 2, ..Sampling::default() },
        Sampling { penalty: 1.05, window: 8, ..Sampling::GREEDY },
    ];
    for sampling in samplings {
        let plain = Generation::new(60).sampling(sampling);
        let mut pool = model.pool(options(24, 4, 64)).unwrap();
        let sequence = pool.create().unwrap();
        let expected = pool.generate(&model, sequence, &prompt, &plain, go_on).unwrap();
        assert_eq!(expected.len(), 60);
        assert_eq!(pool.position(sequence).unwrap(), prompt.len() + 59);
        // As a context does it.
        let mut context = model.context(ContextOptions::default().capacity(300)).unwrap();
        if sampling == Sampling::GREEDY {
            assert_eq!(context.generate(&model, &prompt, 60, go_on).unwrap(), expected);
        } else if !sampling.penalises() {
            assert_eq!(context.generate_sampled(&model, &prompt, 60, &sampling, go_on).unwrap(), expected);
        }
        for draft in [1, 4, 9] {
            let drafted = pool.create().unwrap();
            let found = pool.generate(&model, drafted, &prompt, &plain.draft(draft), go_on).unwrap();
            assert_eq!(found, expected, "drafts of {draft} from the text");
            assert_eq!(pool.pages().tokens(drafted).unwrap(), pool.pages().tokens(sequence).unwrap());
            pool.drop(drafted).unwrap();
            // The caller's: right as far as token number n, wrong behind it; or no tokens at all; and too many.
            for wrong in [0, 1, 3, 100] {
                let drafted = pool.create().unwrap();
                let guess = |text: &[u32], most: usize| {
                    let at = text.len() - prompt.len();
                    let mut guess: Vec<u32> = expected[at..].iter().copied().take(most).collect();
                    if let Some(token) = guess.get_mut(wrong) {
                        *token = if at.is_multiple_of(2) { u32::MAX } else { (*token + 1) % LONG.vocab as u32 };
                    }
                    guess.extend([1, 2, 3]);
                    right += guess.len().min(wrong);
                    guess
                };
                let found = pool.generate_with(&model, drafted, &prompt, &plain.draft(draft), guess, go_on).unwrap();
                assert_eq!(found, expected, "drafts of {draft}, wrong at {wrong}");
                pool.drop(drafted).unwrap();
            }
        }
        // Whoever stops early has what was seen.
        for draft in [0, 5] {
            let stopped = pool.create().unwrap();
            let mut seen = 0;
            let each = |_| {
                seen += 1;
                if seen == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let found = pool.generate(&model, stopped, &prompt, &plain.draft(draft), each).unwrap();
            assert_eq!((&found[..], pool.position(stopped).unwrap()), (&expected[..7], prompt.len() + 6));
            pool.drop(stopped).unwrap();
        }
        let none = pool.create().unwrap();
        let found = pool.generate(&model, none, &prompt, &Generation::new(0), |_| panic!("a token")).unwrap();
        assert_eq!((found.len(), pool.position(none).unwrap()), (0, prompt.len()));
    }
    assert!(right > 100, "{right} tokens of drafts");
}

#[test]
fn what_makes_no_sense_changes_nothing() {
    let model = common::model_of(shaped::model(&LONG, 1), Cpu::new());
    let other = common::model_of(shaped::model(&LONG, 2), Cpu::new());
    for wrong in [
        options(0, 4, 64),
        options(4, 0, 64),
        options(4, 4, 0),
        options(4, 4, 64).capacity(0),
        options(4, 4, 64).capacity(401),
        options(4, 4, 64).window(0),
        options(4, 1 << 30, 64),
    ] {
        assert!(matches!(model.pool(wrong), Err(Error::Invalid(_))), "{wrong:?}");
    }
    let mut pool = model.pool(options(4, 3, 64)).unwrap();
    let [a, b] = [(); 2].map(|()| pool.create().unwrap());
    let elsewhere = model.pool(options(4, 3, 64)).unwrap().create().unwrap();
    pool.forward(&model, &[Entry::new(a, &[1, 2, 3], Logits::None)]).unwrap();
    let saved = pool.save(a).unwrap();
    let invalid = |result: Result<Vec<Vec<f32>>, Error>| assert!(matches!(result, Err(Error::Invalid(_))));
    invalid(pool.forward(&other, &[Entry::new(a, &[1], Logits::Last)]));
    invalid(pool.forward(&model, &[Entry::new(a, &[], Logits::Last)]));
    invalid(pool.forward(&model, &[Entry::new(a, &[1], Logits::Last), Entry::new(a, &[1], Logits::Last)]));
    assert!(pool.forward(&model, &[]).unwrap().is_empty());
    let outside = pool.forward(&model, &[Entry::new(b, &[1], Logits::Last), Entry::new(a, &[1, 67], Logits::Last)]);
    assert!(matches!(outside, Err(Error::TokenOutOfRange { token: 67, position: 1, vocab: 67 })));
    let gone = pool.forward(&model, &[Entry::new(b, &[1], Logits::Last), Entry::new(elsewhere, &[1], Logits::Last)]);
    assert!(matches!(gone, Err(Error::NoSequence { sequence }) if sequence == elsewhere));
    let long = vec![1; 298];
    let overflow = pool.forward(&model, &[Entry::new(a, &long, Logits::Last)]);
    assert!(matches!(overflow, Err(Error::ContextOverflow { used: 3, wanted: 298, capacity: 300 })));
    let full =
        pool.forward(&model, &[Entry::new(b, &long[..200], Logits::Last), Entry::new(a, &long[..62], Logits::Last)]);
    assert!(matches!(full, Err(Error::PoolFull { needed: 5, free: 3 })));
    let full = pool.decode(&model, &[Next::new(b, &[1], Sampling::GREEDY)], 250);
    assert!(matches!(full, Err(Error::PoolFull { needed: 4, free: 3 })));
    let wrong = [
        Sampling { temperature: -1.0, ..Sampling::default() },
        Sampling { penalty: 1.1, window: 33, ..Sampling::default() },
    ];
    for sampling in wrong {
        let next = [Next::new(a, &[1], sampling)];
        assert!(matches!(pool.step(&model, &next), Err(Error::Invalid(_))));
        assert!(matches!(pool.decode(&model, &next, 2), Err(Error::Invalid(_))));
        assert!(matches!(pool.speculate(&model, &next), Err(Error::Invalid(_))));
    }
    assert!(matches!(pool.decode(&model, &[Next::new(a, &[1, 2], Sampling::GREEDY)], 2), Err(Error::Invalid(_))));
    assert!(pool.decode(&model, &[Next::new(a, &[1], Sampling::GREEDY)], 0).unwrap()[0].is_empty());
    assert!(pool.save(a).unwrap() == saved && pool.position(b).unwrap() == 0 && pool.pages().free() == 3);
}

/// Bytes that were not saved, or not by such a pool, give a sequence or an error in one line, never another sequence.
#[test]
fn saved_sequences_are_checked() {
    let model = common::model_of(shaped::model(&LONG, 1), Cpu::new());
    let mut pool = model.pool(options(8, 3, 64)).unwrap();
    let a = pool.create().unwrap();
    let tokens: Vec<u32> = (0..70).map(|i| i % 60).collect();
    pool.forward(&model, &[Entry::new(a, &tokens, Logits::None)]).unwrap();
    let saved = pool.save(a).unwrap();
    let free = pool.pages().free();
    for at in (0..saved.len()).step_by(997).chain(0..400).chain(saved.len() - 9..saved.len()) {
        for bit in [1, 0x80] {
            let mut wrong = saved.clone();
            wrong[at] ^= bit;
            assert!(matches!(pool.restore(&wrong), Err(Error::Invalid(_))), "byte {at}");
        }
    }
    for cut in [0, 7, 63, 64, 72, 300, saved.len() - 8, saved.len() - 1] {
        assert!(matches!(pool.restore(&saved[..cut]), Err(Error::Invalid(_))), "{cut} bytes");
    }
    assert_eq!((pool.pages().free(), pool.pages().sequences()), (free, 1));
    // Another cache, another shape, too few positions, and no room.
    let f16 = options(8, 3, 64).cache(CacheType::F16);
    assert!(matches!(model.pool(f16).unwrap().restore(&saved), Err(Error::Invalid(_))));
    let deep = common::model_of(shaped::model(&reshaped!(LONG, layers: 2), 1), Cpu::new());
    assert!(matches!(deep.pool(options(8, 3, 64)).unwrap().restore(&saved), Err(Error::Invalid(_))));
    let short = options(8, 3, 64).capacity(69);
    assert!(matches!(model.pool(short).unwrap().restore(&saved), Err(Error::ContextOverflow { .. })));
    let mut small = model.pool(options(1, 3, 64)).unwrap();
    assert!(matches!(small.restore(&saved), Err(Error::PoolFull { needed: 2, free: 1 })));
    assert_eq!(small.pages().sequences(), 0);
    // In another pool it goes on as in its own, and its pages are nobody else's to find.
    let mut other = model.pool(options(8, 3, 7)).unwrap();
    let b = other.restore(&saved).unwrap();
    let went_on = other.forward(&model, &[Entry::new(b, &[9, 8], Logits::All)]).unwrap();
    assert!(bits(&went_on[0]) == bits(&pool.forward(&model, &[Entry::new(a, &[9, 8], Logits::All)]).unwrap()[0]));
    let found = other.create_from(&tokens).unwrap();
    assert_eq!(other.position(found).unwrap(), 0);
    let found = pool.create_from(&tokens).unwrap();
    assert_eq!(pool.position(found).unwrap(), PAGE);
}
