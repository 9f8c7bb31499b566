//! Batches in caches of pages that are in no order.

use kquant_moe::device::{Buffer, Device};
use kquant_moe::kernels::Batch;

use super::memory::input;

/// What pages hold where nobody put anything: NaNs of either type of cache.
const NOTHING: u8 = 0xff;

/// Tokens and the pages of their sequences.
pub struct Paged<D: Device> {
    position: Buffer<D, u32>,
    sequence: Buffer<D, u32>,
    pages: Buffer<D, u32>,
    tables: Vec<Vec<u32>>,
    capacity: usize,
    pool: usize,
}

impl<D: Device> Paged<D> {
    /// Tokens as (sequence, position), and the pages of each sequence in a pool.
    pub fn new(device: &D, tokens: &[(u32, u32)], tables: &[Vec<u32>], capacity: usize, pool: usize) -> Self {
        let (sequence, position): (Vec<u32>, Vec<u32>) = tokens.iter().copied().unzip();
        let chunks = capacity.div_ceil(Batch::PAGE);
        // Pages that nobody has are not in the pool.
        let rows =
            tables.iter().flat_map(|table| table.iter().copied().chain(std::iter::repeat(u32::MAX)).take(chunks));
        let pages = input(device, &rows.collect::<Vec<u32>>());
        let (position, sequence) = (input(device, &position), input(device, &sequence));
        Self { position, sequence, pages, tables: tables.to_vec(), capacity, pool }
    }

    /// Neighbouring tokens of a single sequence, whose pages are in the pool from the last one on, behind one that it does not have. A
    /// position that is not below 2^32 is the largest number.
    pub fn run(device: &D, start: usize, tokens: usize, capacity: usize) -> Self {
        let chunks = capacity.div_ceil(Batch::PAGE) as u32;
        let position = |token: usize| u32::try_from(start + token).unwrap_or(u32::MAX);
        let tokens: Vec<_> = (0..tokens).map(|token| (0, position(token))).collect();
        let table: Vec<u32> = (1..=chunks).rev().collect();
        Self::new(device, &tokens, &[table], capacity, chunks as usize + 1)
    }

    pub fn batch(&self) -> Batch<'_> {
        let operands = [self.position.slice(), self.sequence.slice(), self.pages.slice()];
        Batch::new(operands, [self.position.len(), self.tables.len()], [self.capacity, self.pool])
    }

    /// Places of a sequence's first `count` positions in a pool of rows.
    fn rows(&self, sequence: usize, count: usize) -> impl Iterator<Item = usize> {
        let table = &self.tables[sequence];
        (0..count).map(|position| table[position / Batch::PAGE] as usize * Batch::PAGE + position % Batch::PAGE)
    }

    /// The pool of pages with the first sequence's rows of so many bytes, and `rest` in between.
    pub fn pool_with(&self, values: &[u8], row: usize, rest: u8) -> Vec<u8> {
        let mut pool = vec![rest; self.pool * Batch::PAGE * row];
        for (values, at) in values.chunks_exact(row).zip(self.rows(0, self.capacity)) {
            pool[at * row..][..row].copy_from_slice(values);
        }
        pool
    }

    /// [`Self::pool_with`] what nobody put there.
    pub fn pool(&self, values: &[u8], row: usize) -> Vec<u8> {
        self.pool_with(values, row, NOTHING)
    }

    /// A sequence's first positions in order, of a pool of rows of so many elements.
    pub fn in_order<T: Copy>(&self, pool: &[T], row: usize, sequence: usize, count: usize) -> Vec<T> {
        self.rows(sequence, count).flat_map(|at| &pool[at * row..][..row]).copied().collect()
    }
}
