//! Any bytes are weights: every block decodes to what its fields say, and tiles keep every byte.
#![no_main]

use kquant_moe::blocks::{BLOCK, Factor, TensorType};
use kquant_moe::oracle::embedding::{Table, dequantize, embedding};
use kquant_moe::oracle::{FixedBlock, Matrix, product, quantize::quantize, repack};
use libfuzzer_sys::fuzz_target;

// The first byte chooses the type and the number of blocks in a row.
fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, bytes)) = bytes.split_first() else {
        return;
    };
    let kinds = TensorType::ALL;
    let kind = kinds[usize::from(choice) % kinds.len()];
    let cols = BLOCK * (1 + usize::from(choice) / kinds.len() % 4);
    let row_bytes = cols / kind.block_len() * kind.block_bytes();
    let bytes = &bytes[..bytes.len() / row_bytes * row_bytes];
    let rows = bytes.len() / row_bytes;

    // A row at a time, all at once, and as a table: the same weights. A NaN is the one that kernels store.
    let mut weights = vec![0.0; rows * cols];
    dequantize(kind, bytes, &mut weights);
    assert!(weights.iter().all(|w| !w.is_nan() || w.to_bits() == 0x7fc0_0000));
    let ids: Vec<u32> = (0..=rows as u32).collect();
    let mut looked_up = vec![0.0; (rows + 1) * cols];
    embedding(Table { bytes, kind, cols }, &ids, &mut looked_up);
    let (found, beyond) = looked_up.split_at(rows * cols);
    assert!(bits(found).eq(bits(&weights)));
    assert!(beyond.iter().all(|x| x.is_nan()));

    let Some(matrix) = Matrix::new(kind, bytes) else { return };
    for (block, weights) in bytes.chunks_exact(kind.block_bytes()).zip(weights.chunks_exact(kind.block_len())) {
        // What is not finite has a factor that is not, or one near the end of f32's range.
        let finite = |factor: &Factor| factor.get(block).abs() < 2_f32.powi(124);
        assert!(weights.iter().all(|w| w.is_finite()) || !kind.factors().iter().all(finite));
    }
    let tiles = repack::repack(matrix, cols);
    // A permutation of the bytes, and zeros for the rows that fill the last tile.
    assert_eq!(tiles.len(), rows.next_multiple_of(16) * row_bytes);
    let mut count = [0_usize; 256];
    for &byte in &tiles {
        count[usize::from(byte)] += 1;
    }
    count[0] -= tiles.len() - bytes.len();
    for &byte in bytes {
        count[usize::from(byte)] -= 1;
    }
    assert_eq!(count, [0; 256]);

    // A product with one activation, exact in fixed point, is the weight itself.
    let mut x = vec![0.0; cols];
    let column = usize::from(choice) * 5 % cols;
    x[column] = 1.0;
    let mut fixed = vec![FixedBlock { x: [0; BLOCK], unit: 0.0 }; cols / BLOCK];
    quantize(&x, &mut fixed);
    let mut y = vec![0.0; rows];
    product(matrix, cols, &fixed, &mut y);
    for (row, &y) in weights.chunks(cols).zip(&y) {
        let finite = row.iter().all(|w| w.is_finite());
        assert!(!finite || (y - row[column]).abs() <= row[column].abs() * f32::EPSILON);
    }
});

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}
