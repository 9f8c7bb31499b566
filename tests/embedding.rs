//! `embedding` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use half::f16;
use kquant_moe::blocks::{BLOCK, Factor, TensorType};
use kquant_moe::device::{Buffer, Device, Slice, SliceMut, bytes_of};
use kquant_moe::kernels::Embedding;
use kquant_moe::oracle::embedding::{Table, embedding};
use kquant_moe::sys;

on_devices!(equals_the_oracle, dequantizes_every_bit_pattern, stores_one_nan, refuses_bad_arguments);

fn run<D: Device>(device: &D, table: Table<'_>, ids: &[u32]) -> Vec<f32> {
    let (bytes, ids_device) = (input(device, table.bytes), input(device, ids));
    let row_bytes = table.cols / table.kind.block_len() * table.kind.block_bytes();
    let mut out = Output::new(device, ids.len() * table.cols);
    ok(Embedding::new(
        bytes.slice(),
        table.kind,
        [table.bytes.len() / row_bytes, table.cols],
        ids_device.slice(),
        ids.len(),
        out.slice(),
    )
    .launch(device));
    out.read()
}

fn check<D: Device>(device: &D, what: &str, table: Table<'_>, ids: &[u32]) -> Vec<f32> {
    let got = run(device, table, ids);
    let mut expected = vec![0.0; ids.len() * table.cols];
    embedding(table, ids, &mut expected);
    assert_bits(what, &got, &expected);
    got
}

/// A table of random rows.
fn bytes(random: &mut Random, kind: TensorType, vocab: usize, cols: usize) -> Vec<u8> {
    if TensorType::FLOATS.contains(&kind) {
        floats_as(kind, &Activations::rows(random, 0, vocab, cols))
    } else {
        Weights::random(random, kind, 1, vocab, cols).bytes
    }
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(11);
    let shapes = size.shapes(&[(1, 256), (50, 768), (9, 2048), (3, 4352)], &[(3000, 2048)]);
    for (vocab, cols) in shapes {
        for &kind in TensorType::ALL {
            let bytes = bytes(&mut random, kind, vocab, cols);
            for tokens in [1, 17] {
                let mut ids: Vec<u32> = (0..tokens).map(|_| random.below(vocab) as u32).collect();
                if tokens > 1 {
                    // Ids that are not in the table, first of all the one right behind it.
                    ids[3] = vocab as u32;
                    ids[7] = u32::MAX;
                    ids[8] = ids[9];
                }
                let what = format!("{kind:?} [{vocab}, {cols}], {tokens} tokens");
                let got = check(device, &what, Table { bytes: &bytes, kind, cols }, &ids);
                if tokens > 1 {
                    assert_nan(&what, &got[3 * cols..4 * cols]);
                    assert_nan(&what, &got[7 * cols..8 * cols]);
                }
            }
        }
    }
}

/// Every f16, as a weight and as the scale of a block: signed zeros, denormals, infinities and NaNs among them.
fn dequantizes_every_bit_pattern<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(12);
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for kind in [TensorType::F16, TensorType::BF16] {
        let table = Table { bytes: &all, kind, cols: 256 };
        check(device, &format!("every {kind}"), table, &(0..256).collect::<Vec<u32>>());
    }
    let places = |&kind: &TensorType| kind.factors().iter().map(move |&factor| (kind, factor));
    for (kind, factor) in TensorType::MATRICES.iter().flat_map(places) {
        let mut table = Weights::random(&mut random, kind, 1, 256, 256).bytes;
        let patterns = if kind.block_len() == BLOCK { 256 } else { 2048 };
        for (i, block) in table.chunks_exact_mut(kind.block_bytes()).enumerate() {
            let scale = (i * (65536 / patterns) + random.below(65536 / patterns)) as u16;
            match factor {
                Factor::Exponent(at) => block[at] = i as u8,
                _ => factor.set(block, f16::from_bits(scale)),
            }
        }
        let what = format!("{kind:?}, {factor:?}");
        check(device, &what, Table { bytes: &table, kind, cols: 256 }, &(0..256).collect::<Vec<u32>>());
    }
}

/// NaNs in the weights of every type, none of them the one that is stored.
fn stores_one_nan<D: Device>(device: &D, _: Size) {
    let mut random = Random::new(120);
    let floats: Vec<f32> = NANS.into_iter().cycle().take(256).collect();
    let halves: Vec<u8> = HALF_NANS.into_iter().cycle().take(256).flat_map(f16::to_le_bytes).collect();
    let top_halves: Vec<u8> =
        floats.iter().flat_map(|nan| (nan.to_bits() >> 16 | 0x40).to_le_bytes()[..2].to_vec()).collect();
    for (kind, bytes) in
        [(TensorType::F32, bytes_of(&floats).to_vec()), (TensorType::F16, halves), (TensorType::BF16, top_halves)]
    {
        assert_stored_nan("every weight", &check(device, "NaN", Table { bytes: &bytes, kind, cols: 256 }, &[0]));
    }
    for &kind in TensorType::MATRICES {
        let mut w = Weights::random(&mut random, kind, 4, 3, 512);
        if !w.spoil() {
            continue;
        }
        let ids: Vec<u32> = (0..12).collect();
        let got = check(device, "NaN", Table { bytes: &w.bytes, kind, cols: 512 }, &ids);
        let last = 512 - kind.block_len();
        for rows in got.chunks(3 * 512) {
            assert_stored_nan("the last block", &rows[512 + last..1024]);
            assert_stored_nan("the last block", &rows[1024 + last..]);
        }
    }
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let table: Buffer<D, u8> = Buffer::zeroed(device, 4096).unwrap();
    let ids: Buffer<D, u32> = Buffer::zeroed(device, 4).unwrap();
    let mut out: Buffer<D, f32> = Buffer::zeroed(device, 1024).unwrap();
    let (table_at, out_at) = (table.slice().as_ptr() as u64, out.slice_mut().as_ptr() as u64);
    let run = |table: u64, out: u64, vocab, cols, tokens| {
        // SAFETY: as long as the buffers say, or refused before anything is read.
        let (table, out) = unsafe { (Slice::from_raw(device, table, 4096), SliceMut::from_raw(device, out, 1024)) };
        Embedding::new(table, TensorType::F32, [vocab, cols], ids.slice(), tokens, out).launch(device)
    };
    assert_status(run(0, out_at, 1, 256, 1), sys::KQM_NULL_POINTER);
    assert_status(run(table_at, 0, 1, 256, 1), sys::KQM_NULL_POINTER);
    assert_status(run(table_at, out_at, 0, 256, 1), sys::KQM_BAD_SHAPE);
    assert_status(run(table_at, out_at, 1, 0, 1), sys::KQM_BAD_SHAPE);
    assert_status(run(table_at, out_at, 1, 200, 1), sys::KQM_BAD_SHAPE);
    assert_status(run(table_at, out_at, 1, 256, 0), sys::KQM_BAD_SHAPE);
    assert_status(run(table_at + 2, out_at, 1, 256, 1), sys::KQM_MISALIGNED);
    assert_invalid(run(table_at, out_at, 5, 256, 1));
    assert_invalid(run(table_at, out_at, 1, 256, 5));
    assert_eq!(status_without_arguments!(device, embedding), sys::KQM_NULL_POINTER);
    ok(run(table_at, out_at, 4, 256, 4));
    ok(device.synchronize());
}
