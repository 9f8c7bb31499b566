//! `moe_group` on every device.

#[path = "common/kernels.rs"]
mod common;

use common::*;
use kquant_moe::device::{Buffer, Device};
use kquant_moe::kernels::{Groups, MoeGroup, max_items};
use kquant_moe::{oracle, sys};

on_devices!(equals_the_oracle, refuses_bad_arguments);

/// Compares order, items and their number. Memory behind them is guarded by the emulation.
fn check<D: Device>(device: &D, what: &str, indices: &[u32], experts: usize, top_k: usize) {
    let tokens = indices.len() / top_k;
    let expected = oracle::moe_group::moe_group(indices, experts);
    let most = ok(max_items(device, tokens, experts, top_k));
    assert!(expected.items.len() <= most, "{what}: {} items, at most {most}", expected.items.len());
    let indices = input(device, indices);
    let mut groups = ok(Groups::new(device, tokens, experts, top_k));
    ok(MoeGroup::new(indices.slice(), &mut groups, [tokens, top_k], experts).launch(device));
    let read = |buffer: &Buffer<D, u32>| {
        let mut values = vec![0; buffer.len()];
        ok(buffer.read(device, 0, &mut values));
        values
    };
    assert_same(&format!("{what}, count"), &read(groups.count()), &[expected.items.len() as u32]);
    assert_same(&format!("{what}, order"), &read(groups.order()), &expected.order);
    let items = read(groups.items());
    assert_same(&format!("{what}, items"), &items[..3 * expected.items.len()], expected.items.as_flattened());
    assert!(items[3 * expected.items.len()..].iter().all(|&word| word == 0), "{what}: items behind the last one");
}

fn equals_the_oracle<D: Device>(device: &D, size: Size) {
    let mut random = Random::new(25);
    let shapes = size.shapes(
        &[(1, 1, 1), (1, 128, 8), (2, 8, 8), (3, 16, 4), (8, 5, 1), (9, 128, 8), (17, 512, 32), (40, 7, 3), (33, 1, 1)],
        &[(70, 128, 8), (512, 128, 8), (2000, 512, 32)],
    );
    for (tokens, experts, top_k) in shapes {
        let what = format!("{tokens} tokens, {top_k} of {experts} experts");
        let spread: Vec<u32> = (0..tokens).flat_map(|_| random.distinct(experts, top_k)).collect();
        check(device, &what, &spread, experts, top_k);
        check(device, &what, &moe::choose(&mut random, tokens, experts, top_k), experts, top_k);
        // All tokens choose the last experts.
        let last: Vec<u32> = (0..tokens).flat_map(|_| (experts - top_k) as u32..experts as u32).collect();
        check(device, &what, &last, experts, top_k);
    }
    for (tokens, experts, top_k) in [(1, 1, 1), (1, 5, 3), (9, 5, 3), (40, 128, 8), (17, 512, 32), (33, 1, 1)] {
        for absent in moe::absent(experts) {
            let what = format!("{tokens} tokens, {top_k} of {experts} experts, expert {absent}");
            check(device, &what, &moe::with_absent(&mut random, tokens, experts, top_k, absent), experts, top_k);
            // No expert exists.
            check(device, &what, &vec![absent; tokens * top_k], experts, top_k);
        }
        // As many items as there can be: of every expert, and of those that do not exist, one pair too many to be full.
        let all = (0..=experts as u32).flat_map(|expert| vec![expert; if expert == 0 { 2 } else { 9 }]);
        let mut all: Vec<u32> = all.collect();
        all.truncate(all.len() / top_k * top_k);
        check(device, "all experts", &all, experts, top_k);
    }
    // Nothing demands that the experts of a token differ.
    check(device, "one expert", &[3; 160], 8, 8);
}

fn refuses_bad_arguments<D: Device>(device: &D, _: Size) {
    let indices: Buffer<D, u32> = Buffer::zeroed(device, 1024).unwrap();
    let mut groups = ok(Groups::new(device, 32, 512, 32));
    let mut run =
        |tokens, experts, top_k| MoeGroup::new(indices.slice(), &mut groups, [tokens, top_k], experts).launch(device);
    for (tokens, experts, top_k) in [(0, 8, 2), (1, 0, 1), (1, 513, 2), (1, 8, 0), (1, 8, 9), (1, 64, 33)] {
        assert_status(run(tokens, experts, top_k), sys::KQM_BAD_SHAPE);
    }
    assert_invalid(run(33, 512, 32));
    ok(run(32, 512, 32));
    assert_eq!(status_without_arguments!(device, moe_group), sys::KQM_NULL_POINTER);
    ok(device.activate());
    // SAFETY: the launcher refuses.
    let status = unsafe { device.kernels().moe_group.unwrap()(&sys::kqm_moe_group_args::default(), device.stream()) };
    assert_eq!(status, sys::KQM_NULL_POINTER);
    ok(device.synchronize());
}
