//! The table of types: the same on both sides, and nothing else gets through a dispatch.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::blocks::{BLOCK, Blocks, TensorType};
use kquant_moe::device::{Buffer, Device};
use kquant_moe::gguf::GgmlType;
use kquant_moe::oracle::embedding::dequantize;
use kquant_moe::{kernels, sys};

on_devices!(every_launcher_takes_the_types_of_the_table_and_no_other);

/// Room for every operand of every launch here, all zeros.
struct Room<D: Device> {
    buffer: Buffer<D, u8>,
}

impl<D: Device> Room<D> {
    const BYTES: usize = 1 << 20;

    fn new(device: &D) -> Self {
        Self { buffer: Buffer::zeroed(device, Self::BYTES).unwrap() }
    }

    /// A part of its own for operand `index`.
    fn at<T>(&self, index: usize) -> *mut T {
        self.buffer.slice().as_ptr().wrapping_add(index * (64 << 10)).cast_mut().cast()
    }

    /// A matrix of the least shape: 16 rows of one super-block.
    fn matrix(&self, type_: u32) -> sys::kqm_matrix {
        sys::kqm_matrix { tiles: self.at::<u8>(0).cast(), type_, rows: 16, cols: BLOCK as u32, experts: 1 }
    }

    fn groups(&self) -> sys::kqm_groups {
        sys::kqm_groups { order: self.at(6), items: self.at(7), count: self.at(8) }
    }
}

/// The statuses of every launcher that dispatches on a type, with this one in the place of each operand that has one and
/// `other` in the rest.
fn statuses<D: Device>(device: &D, room: &Room<D>, kind: u32, other: u32) -> Vec<(&'static str, sys::kqm_status)> {
    let (table, stream) = (device.kernels(), device.stream());
    let mut found = Vec::new();
    let matvec =
        sys::kqm_matvec_args { w: room.matrix(kind), x: room.at(1), y: room.at(2), tokens: 1, ..Default::default() };
    let repack = sys::kqm_repack_args {
        blocks: room.at::<u8>(1).cast(),
        tiles: room.at::<u8>(2).cast(),
        type_: kind,
        rows: 16,
        cols: BLOCK as u32,
        experts: 1,
    };
    // SAFETY: all operands are in the room, at their least shapes.
    unsafe {
        found.push(("repack", table.repack.unwrap()(&repack, stream)));
        found.push(("matvec", table.matvec.unwrap()(&matvec, stream)));
        for tokens in [2, 3] {
            found.push((
                "matvec of more tokens",
                table.matvec.unwrap()(&sys::kqm_matvec_args { tokens, ..matvec }, stream),
            ));
        }
    }
    for tokens in [1, 2, 3] {
        for place in 0..3 {
            let mut qkv = sys::kqm_qkv_args {
                x: room.at(1),
                y: [room.at(2), room.at(3), room.at(4)],
                tokens,
                ..Default::default()
            };
            qkv.w = [0, 1, 2].map(|i| room.matrix(if i == place { kind } else { other }));
            // SAFETY: as above.
            found.push((["qkv, q", "qkv, k", "qkv, v"][place], unsafe { table.qkv.unwrap()(&qkv, stream) }));
        }
    }
    for tokens in [1, 2] {
        for (what, gate, up) in
            [("moe_swiglu, gate", kind, other), ("moe_swiglu, up", other, kind), ("moe_swiglu, both", kind, kind)]
        {
            let swiglu = sys::kqm_moe_swiglu_args {
                gate: room.matrix(gate),
                up: room.matrix(up),
                x: room.at(1),
                indices: room.at(5),
                groups: room.groups(),
                out: room.at(2),
                tokens,
                top_k: 1,
                ..Default::default()
            };
            // SAFETY: as above; there are no items.
            found.push((what, unsafe { table.moe_swiglu.unwrap()(&swiglu, stream) }));
        }
        let down = sys::kqm_moe_down_args {
            down: room.matrix(kind),
            x: room.at(1),
            indices: room.at(5),
            weights: room.at(9),
            groups: room.groups(),
            expert_out: room.at(2),
            y: room.at(3),
            tokens,
            top_k: 1,
            ..Default::default()
        };
        // SAFETY: as above.
        found.push(("moe_down", unsafe { table.moe_down.unwrap()(&down, stream) }));
    }
    found
}

fn embedding_status<D: Device>(device: &D, room: &Room<D>, type_: u32) -> sys::kqm_status {
    let args = sys::kqm_embedding_args {
        table: room.at::<u8>(0).cast(),
        tokens: room.at(1),
        out: room.at(2),
        type_,
        vocab: 1,
        cols: BLOCK as u32,
        count: 1,
    };
    // SAFETY: all operands are in the room.
    unsafe { device.kernels().embedding.unwrap()(&args, device.stream()) }
}

/// The two entries of `matvec` for one type each.
fn entry_statuses<D: Device>(device: &D, room: &Room<D>, kind: u32) -> [sys::kqm_status; 2] {
    let (table, stream) = (device.kernels(), device.stream());
    let args =
        sys::kqm_matvec_args { w: room.matrix(kind), x: room.at(1), y: room.at(2), tokens: 1, ..Default::default() };
    // SAFETY: all operands are in the room.
    unsafe { [table.q4_k_matvec.unwrap()(&args, stream), table.q6_k_gemv.unwrap()(&args, stream)] }
}

/// Every number that a file can hold and some that none can. A launcher that took one of them would compute with the blocks of
/// another type.
fn every_launcher_takes_the_types_of_the_table_and_no_other<D: Device>(device: &D, _: Size) {
    let room = Room::new(device);
    ok(device.activate());
    let known = |types: &[TensorType], number| types.iter().any(|&kind| kind as u32 == number);
    let status = |known| if known { sys::KQM_OK } else { sys::KQM_UNSUPPORTED_TYPE };
    for number in (0..64).chain([255, 256, 1 << 16 | sys::KQM_TYPE_Q4_K, 1 << 31, u32::MAX]) {
        let expected = status(known(TensorType::MATRICES, number));
        for other in [sys::KQM_TYPE_Q4_K, sys::KQM_TYPE_Q6_K] {
            for (what, found) in statuses(device, &room, number, other) {
                assert_eq!(found, expected, "{what}: type {number} beside {other}");
            }
        }
        assert_eq!(
            embedding_status(device, &room, number),
            status(known(TensorType::ALL, number)),
            "embedding: type {number}"
        );
        let entries = [sys::KQM_TYPE_Q4_K, sys::KQM_TYPE_Q6_K].map(|own| status(own == number));
        assert_eq!(entry_statuses(device, &room, number), entries, "q4_k_matvec, q6_k_gemv: type {number}");
    }
    ok(device.synchronize());
}

#[test]
fn the_header_has_the_numbers_of_ggml() {
    let header = include_str!("../cuda/kquant_moe.h");
    let defined: Vec<(&str, u32)> = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define KQM_TYPE_")?.split_once(' '))
        .map(|(name, number)| (name, number.parse().unwrap()))
        .collect();
    for &(name, number) in &defined {
        assert_eq!(GgmlType::from_number(number).map(GgmlType::name), Some(name));
    }
    for kind in TensorType::ALL {
        assert!(defined.contains(&(kind.name(), *kind as u32)), "{kind}");
    }
}

#[test]
fn matrices_of_other_types_are_refused() {
    for &kind in TensorType::ALL {
        let is_matrix = TensorType::MATRICES.contains(&kind);
        assert_eq!(Blocks::new(kind, &[]).is_some(), is_matrix, "{kind}");
        if let Some(device) = emulated_device() {
            assert_eq!(kernels::Matrix::zeroed(&device, kind, 16, BLOCK, 1).is_ok(), is_matrix, "{kind}");
        }
    }
}

/// Blocks of random bytes and their weights, made by the Python package `gguf` (`tests/data/vectors.py`): for each type its
/// number, the number of blocks, the blocks, and the weights as f32.
#[test]
fn blocks_decode_as_elsewhere() {
    let mut rest: &[u8] = include_bytes!("data/blocks.bin");
    let mut seen = Vec::new();
    let mut take = |count: usize| {
        let (part, after) = rest.split_at(count);
        rest = after;
        part
    };
    loop {
        let [number, count] = [take(4), take(4)].map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
        if count == 0 {
            break;
        }
        let kind = TensorType::try_from(GgmlType::from_number(number).unwrap()).unwrap();
        let mut found = vec![0.0; count as usize * kind.block_len()];
        dequantize(kind, take(kind.bytes_of(found.len())), &mut found);
        let expected: Vec<f32> = take(4 * found.len()).as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
        // Zeros may differ in their signs: who multiplies first decides them.
        assert_eq!(found, expected, "{kind}");
        seen.push(kind);
    }
    assert_eq!(seen, TensorType::MATRICES);
}
