//! The checks of `q4_k_matvec` and `q6_k_gemv`, which differ only in the type of the weights.

use kquant_moe::blocks::{BLOCK, TensorType};
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{FixedBlock, Matrix, Q4KMatvec, Q6KGemv};
use kquant_moe::{Result, oracle, sys};
use rayon::prelude::*;

use super::*;

/// Launches the kernel for that type of weights.
fn launch<D: Device>(kind: TensorType, operands: Q4KMatvec<'_, D>, device: &D) -> Result<()> {
    if kind == TensorType::Q4K { operands.launch(device) } else { Q6KGemv(operands).launch(device) }
}

fn oracle(kind: TensorType, w: &Weights, x: &[oracle::FixedBlock]) -> Vec<f32> {
    let blocks = w.cols / BLOCK;
    let mut y = vec![0.0; x.len() / blocks * w.rows];
    x.par_chunks(blocks).zip(y.par_chunks_mut(w.rows)).for_each(|(x, y)| match w.expert(0) {
        oracle::Matrix::Q4K(w) if kind == TensorType::Q4K => oracle::q4_k_matvec::q4_k_matvec(w, x.len() * BLOCK, x, y),
        oracle::Matrix::Q6K(w) => oracle::q6_k_gemv::q6_k_gemv(w, x.len() * BLOCK, x, y),
        oracle::Matrix::Q4K(_) => unreachable!("weights of another type"),
    });
    y
}

/// Rows that fill no tile, one tile and several, more tiles than thread blocks, rows of few and of many super-blocks.
pub fn equals_the_oracle<D: Device>(device: &D, size: Size, kind: TensorType) {
    let shapes = size.shapes(
        &[(1, 256), (15, 768), (17, 2048), (65, 4096), (40, 4352), (800, 256)],
        &[(2048, 4096), (4096, 2048), (9000, 256), (2050, 768), (512, 16384)],
    );
    let tokens = size.shapes(&[1, 2, 3, 8, 9, 17], &[64, 70]);
    let mut random = Random::new(1);
    for (rows, cols) in shapes {
        let w = Weights::random(&mut random, kind, 1, rows, cols);
        let matrix = w.upload(device);
        for (case, &tokens) in tokens.iter().enumerate() {
            let what = format!("{kind:?} [{rows}, {cols}], {tokens} tokens");
            let x = Activations::rows(&mut random, case, tokens, cols);
            let (blocks, digits) = fixed_blocks(&x);
            let residual = random.gaussians(tokens * rows);
            let (add, tap) = (case % 2 == 1, case % 3 != 0);
            let x_device = input(device, &digits);
            let mut y = if add { Output::starting_with(device, &residual) } else { Output::new(device, tokens * rows) };
            let mut product = Output::new(device, tokens * rows);
            ok(launch(
                kind,
                Q4KMatvec {
                    w: &matrix,
                    x: x_device.slice(),
                    y: y.slice(),
                    add,
                    product: product.slice_if(tap),
                    tokens,
                },
                device,
            ));
            let expected = oracle(kind, &w, &blocks);
            if tap {
                assert_bits(&format!("{what}, product"), &product.read(), &expected);
            }
            let mut sum = expected;
            if add {
                let products = std::mem::replace(&mut sum, residual);
                oracle::residual_add::residual_add(&mut sum, &products);
            }
            let y = y.read();
            assert_bits(&what, &y, &sum);
            for (x, y) in x.chunks(cols).zip(y.chunks(rows)) {
                if has_non_finite(x) {
                    assert_nan(&what, y);
                }
            }
        }
    }
}

/// A batch gives every token what it gets alone.
pub fn batch_equals_single_tokens<D: Device>(device: &D, size: Size, kind: TensorType) {
    let mut random = Random::new(2);
    for (rows, cols, tokens) in size.shapes(&[(40, 1024, 11), (17, 4352, 5), (70, 8448, 3)], &[(2048, 4096, 64)]) {
        let matrix = Weights::random(&mut random, kind, 1, rows, cols).upload(device);
        let x = input(device, &fixed_blocks(&Activations::rows(&mut random, 0, tokens, cols)).1);
        let run = |first: usize, tokens: usize| {
            let mut y = Output::new(device, tokens * rows);
            let blocks = cols / BLOCK;
            let x = x.part(first * blocks, tokens * blocks).unwrap();
            ok(launch(kind, Q4KMatvec { w: &matrix, x, y: y.slice(), add: false, product: None, tokens }, device));
            y.read()
        };
        let single: Vec<f32> = (0..tokens).flat_map(|token| run(token, 1)).collect();
        assert_bits(&format!("{kind:?} [{rows}, {cols}], {tokens} tokens"), &run(0, tokens), &single);
    }
}

/// Arguments that the launcher and its wrapper refuse.
pub fn refuses_bad_arguments<D: Device>(device: &D, kind: TensorType) {
    let other = if kind == TensorType::Q4K { TensorType::Q6K } else { TensorType::Q4K };
    let matrix = |kind, experts| {
        let mut matrix = Matrix::zeroed(device, kind, 16, 256, experts).unwrap();
        for expert in 0..experts {
            let tiles = matrix.expert_tiles(expert).unwrap();
            // SAFETY: the range is the expert's.
            ok(unsafe { device.clear(tiles.as_ptr() as u64, tiles.len()) });
        }
        matrix
    };
    let (right, wrong, stack) = (matrix(kind, 1), matrix(other, 1), matrix(kind, 2));
    let x: Buffer<D, FixedBlock> = Buffer::zeroed(device, 4).unwrap();
    let y: Buffer<D, f32> = Buffer::zeroed(device, 64).unwrap();
    let address = y.slice().as_ptr() as u64;
    let run = |w, x: Slice<'_, FixedBlock>, y: Option<u64>, tokens| {
        // SAFETY: as long as the buffer says; the launcher reads none of it when it refuses.
        let y = unsafe { SliceMut::from_raw(device, y.unwrap_or(address), 64) };
        launch(kind, Q4KMatvec { w, x, y, add: false, product: None, tokens }, device)
    };
    assert_status(run(&wrong, x.slice(), None, 1), sys::KQM_UNSUPPORTED_TYPE);
    assert_status(run(&stack, x.slice(), None, 1), sys::KQM_BAD_SHAPE);
    assert_status(run(&right, x.slice(), None, 0), sys::KQM_BAD_SHAPE);
    assert_status(run(&right, x.slice(), Some(0), 1), sys::KQM_NULL_POINTER);
    // SAFETY: never read.
    let (null, odd) =
        unsafe { (Slice::from_raw(device, 0, 4), Slice::from_raw(device, x.slice().as_ptr() as u64 + 8, 1)) };
    assert_status(run(&right, null, None, 1), sys::KQM_NULL_POINTER);
    assert_status(run(&right, odd, None, 1), sys::KQM_MISALIGNED);
    assert_invalid(run(&right, x.part(0, 1).unwrap(), None, 2));
    assert_invalid(run(&right, x.slice(), None, 5));
    assert!(Matrix::zeroed(device, TensorType::F16, 16, 256, 1).is_err());
    assert!(Matrix::zeroed(device, kind, 16, 255, 1).is_err());
    ok(run(&right, x.slice(), None, 4));
    ok(device.synchronize());
}
