//! Causal attention of one query head over the cache.

use half::f16;

use super::canonical;
use super::exp::exp;
use super::tree::tree_sum;
use crate::sys;

const CHUNK: usize = sys::KQM_ATTENTION_CHUNK as usize;

/// An element of the cache.
pub trait Element: Copy + Send + Sync {
    /// The element for a value, rounded to nearest even; overflow gives infinity.
    fn from_f32(x: f32) -> Self;
    /// Its value.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        canonical(x)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        if x.is_nan() { Self::from_bits(0x7e00) } else { f16::from_f32(x) }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

/// Keys and values of one KV head.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a, T> {
    /// Keys, from this head's dimension 0 at position 0 on.
    pub k: &'a [T],
    /// Values, likewise.
    pub v: &'a [T],
    /// Elements from one position to the next: `kv_heads * head_dim`.
    pub stride: usize,
}

/// Factor of the scores, `1 / sqrt(head_dim)`, in f64 rounded to f32.
pub fn scale(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}

/// `out = softmax(q k * scale) v` over the positions `0..seen`, at least one. `q` and `out` are `[head_dim]`. `scores`
/// gets the scaled scores of the positions seen, and minus infinity behind them.
///
/// Source: Vaswani et al., "Attention Is All You Need" (2017); the chunks are joined as in Milakov, Gimelshein, "Online
/// normalizer calculation for softmax" (2018).
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
    let (mut m, mut l, mut o) = (f32::NEG_INFINITY, 0.0_f64, vec![0.0_f64; head_dim]);
    for first in (0..seen).step_by(CHUNK) {
        let count = CHUNK.min(seen - first);
        let mut s = [0.0_f32; CHUNK];
        for (i, s) in s[..count].iter_mut().enumerate() {
            *s = dot(q, &head.k[(first + i) * head.stride..][..head_dim]) * scale;
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
        let mut o_c: Vec<f32> = head.v[first * head.stride..][..head_dim].iter().map(|v| p[0] * v.to_f32()).collect();
        for (i, &p) in p.iter().enumerate().take(count).skip(1) {
            for (o, v) in o_c.iter_mut().zip(&head.v[(first + i) * head.stride..][..head_dim]) {
                *o = p.mul_add(v.to_f32(), *o);
            }
        }
        let m_new = maximum(m, m_c);
        let (a, b) = (f64::from(exp(m - m_new)), f64::from(exp(m_c - m_new)));
        l = l.mul_add(a, l_c * b);
        for (o, &o_c) in o.iter_mut().zip(&o_c) {
            *o = o.mul_add(a, f64::from(o_c) * b);
        }
        m = m_new;
    }
    let inverse = 1.0 / l;
    for (out, o) in out.iter_mut().zip(o) {
        *out = canonical((o * inverse) as f32);
    }
}

/// Four chains of fma over every fourth dimension.
#[inline(always)]
fn dot<T: Element>(q: &[f32], k: &[T]) -> f32 {
    let mut a: [f32; 4] = std::array::from_fn(|j| q[j] * k[j].to_f32());
    for (q, k) in q.as_chunks::<4>().0.iter().zip(k.as_chunks::<4>().0).skip(1) {
        for j in 0..4 {
            a[j] = q[j].mul_add(k[j].to_f32(), a[j]);
        }
    }
    (a[0] + a[1]) + (a[2] + a[3])
}

/// The larger one; NaN when either is.
#[inline(always)]
fn maximum(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}
