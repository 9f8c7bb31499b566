//! The forward in f64 of the dequantized weights: plain loops, nothing of the crate but its reading of files and of blocks.

use std::sync::Arc;

use kquant_moe::gguf::Gguf;
use kquant_moe::model::weights::LayerTensors;
use kquant_moe::model::{Config, RopeScaling, Tensor, Tensors};
use kquant_moe::oracle::Matrix;
use kquant_moe::oracle::embedding::{dequantize, exact};
use kquant_moe::oracle::moe_router::Weighting;

/// What the forward gives.
pub struct Forward {
    /// `[tokens, vocab]`.
    pub logits: Vec<f64>,
    /// By layer and token: the experts chosen, highest probability first.
    pub experts: Vec<Vec<Vec<usize>>>,
}

/// A matrix of a tensor in the file, without rounding: of an expert, where there are some.
fn weights(gguf: &Gguf, tensor: &Tensor, expert: usize) -> Vec<f64> {
    let (kind, shape) = (tensor.kind(), gguf.require_tensor(tensor.name()).unwrap().shape());
    let matrix = shape.iter().rev().take(2).product::<u64>() as usize;
    rows(gguf, tensor, kind.bytes_of(expert * matrix), matrix)
}

/// So many weights from a byte of a tensor in the file on, without rounding.
fn rows(gguf: &Gguf, tensor: &Tensor, from: usize, count: usize) -> Vec<f64> {
    let kind = tensor.kind();
    let mut bytes = gguf.require_tensor(tensor.name()).unwrap().data()[from..][..kind.bytes_of(count)].to_vec();
    if tensor.is_floats() {
        let mut floats = vec![0.0; count];
        dequantize(kind, &bytes, &mut floats);
        return floats.into_iter().map(f64::from).collect();
    }
    // Blocks of 32 are read in eights.
    let whole = count.next_multiple_of(256);
    bytes.resize(kind.bytes_of(whole), 0);
    let mut out = vec![0.0; whole];
    exact(Matrix::new(kind, &bytes).unwrap(), &mut out);
    out.truncate(count);
    out
}

fn product(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn rms_norm(x: &[f64], weight: &[f64], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, weight)| x / (mean + f64::from(eps)).sqrt() * weight).collect()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let p: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.into_iter().map(|p| p / sum).collect()
}

/// Normed and rotated heads of one token.
fn heads(x: &[f64], weight: &[f64], position: usize, config: &Config) -> Vec<f64> {
    assert!(config.rope_scaling == RopeScaling::None && config.weighting == Weighting::OfChosen);
    let half = config.head_dim / 2;
    let mut out = Vec::new();
    for head in x.chunks_exact(config.head_dim) {
        let x = rms_norm(head, weight, config.rms_eps);
        let turned = (0..config.head_dim).map(|d| {
            let i = d % half;
            let angle = position as f64 * f64::from(config.rope_base).powf(-(i as f64) / half as f64);
            let (sine, cosine) = angle.sin_cos();
            if d < half { x[i] * cosine - x[i + half] * sine } else { x[i] * sine + x[i + half] * cosine }
        });
        out.extend(turned);
    }
    out
}

/// Attention of all tokens, `[tokens][heads * head_dim]`.
fn attention(gguf: &Gguf, normed: &[Vec<f64>], layer: &LayerTensors, config: &Config) -> Vec<Vec<f64>> {
    let all = |tensor: &Tensor| weights(gguf, tensor, 0);
    let [q, k, v, q_norm, k_norm] = [&layer.q, &layer.k, &layer.v, &layer.q_norm, &layer.k_norm].map(all);
    let of_tokens = |w: &[f64], norm: Option<&[f64]>| -> Vec<Vec<f64>> {
        let rows = normed.iter().map(|x| product(w, x)).enumerate();
        rows.map(|(token, x)| norm.map_or(x.clone(), |norm| heads(&x, norm, token, config))).collect()
    };
    let (q, k, v) = (of_tokens(&q, Some(&q_norm)), of_tokens(&k, Some(&k_norm)), of_tokens(&v, None));
    let (dim, group) = (config.head_dim, config.heads / config.kv_heads);
    (0..normed.len())
        .map(|token| {
            let head = |head: usize| {
                let from = head / group * dim;
                let q = &q[token][head * dim..][..dim];
                let scores: Vec<f64> =
                    k[..=token].iter().map(|k| product(&k[from..][..dim], q)[0] / (dim as f64).sqrt()).collect();
                let p = softmax(&scores);
                (0..dim)
                    .map(move |d| (d, from))
                    .map(|(d, from)| p.iter().zip(&v).map(|(p, v)| p * v[from + d]).sum())
                    .collect::<Vec<f64>>()
            };
            (0..config.heads).flat_map(head).collect()
        })
        .collect()
}

/// The experts' output of one token, and which they are.
fn experts(gguf: &Gguf, x: &[f64], layer: &LayerTensors, config: &Config) -> (Vec<f64>, Vec<usize>) {
    let logits = product(&weights(gguf, &layer.router, 0), x);
    let mut order: Vec<usize> = (0..config.experts).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(config.top_k);
    let p = softmax(&order.iter().map(|&expert| logits[expert]).collect::<Vec<_>>());
    let mut sum = vec![0.0; config.hidden];
    for (&expert, p) in order.iter().zip(p) {
        let of_expert = |tensor: &Tensor| weights(gguf, tensor, expert);
        let [gate, up] = [&layer.gate, &layer.up].map(|tensor| product(&of_expert(tensor), x));
        let swiglu: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        for (sum, down) in sum.iter_mut().zip(product(&of_expert(&layer.down), &swiglu)) {
            *sum += p * down;
        }
    }
    (sum, order)
}

/// The forward of a model's file.
pub fn forward(gguf: &Arc<Gguf>, tokens: &[u32]) -> Forward {
    let config = Config::from_gguf(gguf).unwrap();
    let tensors = Tensors::find(gguf, &config).unwrap();
    let vector = |tensor: &Tensor| weights(gguf, tensor, 0);
    let row_bytes = tensors.embedding.kind().bytes_of(config.hidden);
    let embedding = |token: u32| rows(gguf, &tensors.embedding, token as usize * row_bytes, config.hidden);
    let mut hidden: Vec<Vec<f64>> = tokens.iter().map(|&token| embedding(token)).collect();
    let mut chosen = Vec::new();
    for layer in &tensors.layers {
        let norm = vector(&layer.attn_norm);
        let normed: Vec<_> = hidden.iter().map(|x| rms_norm(x, &norm, config.rms_eps)).collect();
        let output = weights(gguf, &layer.attn_output, 0);
        for (hidden, attended) in hidden.iter_mut().zip(attention(gguf, &normed, layer, &config)) {
            hidden.iter_mut().zip(product(&output, &attended)).for_each(|(hidden, x)| *hidden += x);
        }
        let norm = vector(&layer.ffn_norm);
        let mut of_layer = Vec::new();
        for hidden in &mut hidden {
            let (sum, experts) = experts(gguf, &rms_norm(hidden, &norm, config.rms_eps), layer, &config);
            hidden.iter_mut().zip(sum).for_each(|(hidden, x)| *hidden += x);
            of_layer.push(experts);
        }
        chosen.push(of_layer);
    }
    let (norm, output) = (vector(&tensors.output_norm), weights(gguf, &tensors.output, 0));
    let logits = hidden.iter().flat_map(|x| product(&output, &rms_norm(x, &norm, config.rms_eps))).collect();
    Forward { logits, experts: chosen }
}
