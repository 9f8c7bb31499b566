//! Causal attention of one query head over the cache.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::canonical;
use super::exp::exp;
use super::tree::tree_sum;
use crate::sys;

const CHUNK: usize = sys::KQM_ATTENTION_CHUNK as usize;
/// Chains of fma in a sum over dimensions, over the positions of a chunk, and over chunks.
const CHAINS: usize = 8;

/// An element of the cache.
pub trait Element: Copy + Send + Sync {
    /// The element for a value, rounded to nearest even; overflow gives infinity.
    fn from_f32(x: f32) -> Self;
    /// Their values: as many as there is room for.
    fn to_f32(from: &[Self], to: &mut [f32]);
}

impl Element for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        canonical(x)
    }

    #[inline(always)]
    fn to_f32(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(&from[..to.len()]);
    }
}

impl Element for f16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        if x.is_nan() { Self::from_bits(0x7e00) } else { f16::from_f32(x) }
    }

    #[inline(always)]
    fn to_f32(from: &[Self], to: &mut [f32]) {
        from[..to.len()].convert_to_f32_slice(to);
    }
}

/// Keys and values of one KV head.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Head<'a, T> {
    /// Keys, from this head's dimension 0 at position 0 on.
    pub k: &'a [T],
    /// Values, likewise.
    pub v: &'a [T],
    /// Elements from one position to the next: `kv_heads * head_dim`.
    pub stride: usize,
    /// Where the chunks are; `None`: one behind the other.
    pub pages: Option<Pages<'a>>,
}

/// The pages of a sequence: chunk c is page `table[c]` of a pool. A page that the table or the pool does not have holds NaNs.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Pages<'a> {
    /// Pages by chunk.
    pub table: &'a [u32],
    /// Pages of the pool.
    pub pool: usize,
}

impl<'a> Pages<'a> {
    /// Positions of a page.
    pub const POSITIONS: usize = CHUNK;
    /// The pages of a token without a place: there are none.
    pub const ABSENT: Self = Self { table: &[], pool: 0 };

    /// Pages by chunk, of a pool of so many.
    pub fn new(table: &'a [u32], pool: usize) -> Self {
        Self { table, pool }
    }

    /// Where a position is among those of the pool.
    pub fn row(&self, position: usize) -> Option<usize> {
        let page = *self.table.get(position / CHUNK)? as usize;
        (page < self.pool).then_some(page * CHUNK + position % CHUNK)
    }
}

impl<'a, T> Head<'a, T> {
    /// Keys and values that begin at a head's first ones.
    pub fn new(k: &'a [T], v: &'a [T], stride: usize) -> Self {
        Self { k, v, stride, pages: None }
    }

    /// The same keys and values as a pool of pages.
    #[must_use]
    pub fn paged(self, pages: Pages<'a>) -> Self {
        Self { pages: Some(pages), ..self }
    }

    /// The row of a chunk's first position, which begins at position `first` of the sequence.
    fn row(&self, first: usize) -> Option<usize> {
        self.pages.map_or(Some(first), |pages| pages.row(first))
    }
}

/// Factor of the scores, `1 / sqrt(head_dim)`, in f64 rounded to f32.
pub fn scale(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}

/// `out = softmax(q k * scale) v` over the positions `0..seen`, at least one. `q` and `out` are `[head_dim]`. `scores`
/// gets the scaled scores of the positions seen, and minus infinity behind them.
///
/// Source: Vaswani et al., "Attention Is All You Need" (2017). Chunks are joined as their softmax over the common maximum.
#[inline(always)]
pub fn attention<T: Element>(
    q: &[f32],
    head: Head<'_, T>,
    seen: usize,
    scale: f32,
    out: &mut [f32],
    mut scores: Option<&mut [f32]>,
) {
    let head_dim = q.len();
    if let Some(scores) = &mut scores {
        scores.fill(f32::NEG_INFINITY);
    }
    // Of a position's keys or values.
    let mut values = vec![0.0; head_dim];
    // Of each chunk: its largest score, the sum of its weights, and its weighted values.
    let mut parts = Vec::with_capacity(seen.div_ceil(CHUNK));
    for first in (0..seen).step_by(CHUNK) {
        let count = CHUNK.min(seen - first);
        let row = head.row(first);
        let mut s = [0.0_f32; CHUNK];
        for (i, s) in s[..count].iter_mut().enumerate() {
            *s = row.map_or(f32::NAN, |row| {
                T::to_f32(&head.k[(row + i) * head.stride..], &mut values);
                dot(q, &values) * scale
            });
        }
        if let Some(scores) = &mut scores {
            for (out, &s) in scores[first..].iter_mut().zip(&s[..count]) {
                *out = canonical(s);
            }
        }
        let m_c = s[..count].iter().copied().fold(f32::NEG_INFINITY, maximum);
        let mut p = [0.0_f32; CHUNK];
        for (p, &s) in p.iter_mut().zip(&s[..count]) {
            *p = exp(s - m_c);
        }
        let l_c = tree_sum(p.map(f64::from));
        // Eight chains of eight positions; a masked position has p = 0 and v = 0.
        let mut chains = vec![0.0_f32; CHAINS * head_dim];
        for (g, chain) in chains.chunks_exact_mut(head_dim).enumerate() {
            for (i, &p) in p.iter().enumerate().skip(8 * g).take(8) {
                match row {
                    Some(row) if i < count => T::to_f32(&head.v[(row + i) * head.stride..], &mut values),
                    _ => values.fill(0.0),
                }
                if i == 8 * g {
                    for (chain, v) in chain.iter_mut().zip(&values) {
                        *chain = p * v;
                    }
                } else {
                    for (chain, &v) in chain.iter_mut().zip(&values) {
                        *chain = p.mul_add(v, *chain);
                    }
                }
            }
        }
        let o_c: Vec<_> =
            (0..head_dim).map(|d| tree_of_eight(std::array::from_fn(|g| chains[g * head_dim + d]))).collect();
        parts.push((m_c, l_c, o_c));
    }
    let m = parts.iter().map(|&(m_c, ..)| m_c).fold(f32::NEG_INFINITY, maximum);
    let (mut l, mut o) = ([0.0_f64; CHAINS], vec![[0.0_f64; CHAINS]; head_dim]);
    for (c, (m_c, l_c, o_c)) in parts.iter().enumerate() {
        let (chain, factor) = (c % CHAINS, f64::from(exp(m_c - m)));
        l[chain] = l_c.mul_add(factor, l[chain]);
        for (o, &o_c) in o.iter_mut().zip(o_c) {
            o[chain] = f64::from(o_c).mul_add(factor, o[chain]);
        }
    }
    let inverse = 1.0 / tree_of_eight(l);
    for (out, o) in out.iter_mut().zip(o) {
        *out = canonical((tree_of_eight(o) * inverse) as f32);
    }
}

/// Eight chains of fma, each over an eighth of the dimensions.
#[inline(always)]
fn dot(q: &[f32], k: &[f32]) -> f32 {
    let segment = q.len() / CHAINS;
    let mut chains = [0.0; CHAINS];
    for (g, chain) in chains.iter_mut().enumerate() {
        *chain = q[g * segment] * k[g * segment];
    }
    // All chains side by side, since none waits for another.
    for i in 1..segment {
        for (g, chain) in chains.iter_mut().enumerate() {
            *chain = q[g * segment + i].mul_add(k[g * segment + i], *chain);
        }
    }
    tree_of_eight(chains)
}

/// Balanced tree, neighbours first.
#[inline(always)]
fn tree_of_eight<T: Copy + std::ops::Add<Output = T>>(x: [T; CHAINS]) -> T {
    ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]))
}

/// The larger one; NaN when either is.
#[inline(always)]
fn maximum(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}
