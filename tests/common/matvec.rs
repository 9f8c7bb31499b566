//! The checks of `matvec`, `q4_k_matvec` and `q6_k_gemv`, which differ only in the type of the weights.

use kquant_moe::blocks::{BLOCK, TensorType};
use kquant_moe::device::{Buffer, Device, Slice, SliceMut};
use kquant_moe::kernels::{FixedBlock, Matrix, Matvec, Q4KMatvec, Q6KGemv};
use kquant_moe::{Result, oracle, sys};
use rayon::prelude::*;

use super::*;

/// Launches the kernel for that type of weights.
fn launch<D: Device>(kind: TensorType, operands: Matvec<'_, D>, device: &D) -> Result<()> {
    match kind {
        TensorType::Q4K => Q4KMatvec(operands).launch(device),
        TensorType::Q6K => Q6KGemv(operands).launch(device),
        _ => operands.launch(device),
    }
}

fn oracle(kind: TensorType, w: &Weights, x: &[oracle::FixedBlock]) -> Vec<f32> {
    let blocks = w.cols / BLOCK;
    let mut y = vec![0.0; x.len() / blocks * w.rows];
    x.par_chunks(blocks).zip(y.par_chunks_mut(w.rows)).for_each(|(x, y)| match w.expert(0) {
        oracle::Matrix::Q4K(w) if kind == TensorType::Q4K => oracle::q4_k_matvec::q4_k_matvec(w, x.len() * BLOCK, x, y),
        oracle::Matrix::Q6K(w) if kind == TensorType::Q6K => oracle::q6_k_gemv::q6_k_gemv(w, x.len() * BLOCK, x, y),
        w => oracle::matvec::matvec(w, x.len() * BLOCK, x, y),
    });
    y
}

/// Activations as the oracle and as the kernel take them.
type Fixed = (Vec<oracle::FixedBlock>, Vec<FixedBlock>);

/// A matrix, and the same on a device.
struct Case<'a, D: Device> {
    device: &'a D,
    w: Weights,
    matrix: Matrix<D>,
}

impl<'a, D: Device> Case<'a, D> {
    fn new(device: &'a D, w: Weights) -> Self {
        let matrix = w.upload(device);
        Self { device, w, matrix }
    }

    /// Compares what the kernel makes of the activations with the oracle, and returns it.
    fn check(&self, what: &str, x: &Fixed, residual: Option<&[f32]>, optional: bool) -> Vec<f32> {
        let (kind, rows, cols) = (self.w.kind, self.w.rows, self.w.cols);
        let tokens = x.0.len() / (cols / BLOCK);
        let what = format!("{kind:?} [{rows}, {cols}], {tokens} tokens, {what}");
        let digits = input(self.device, &x.1);
        let mut y = match residual {
            Some(residual) => Output::starting_with(self.device, residual),
            None => Output::new(self.device, tokens * rows),
        };
        let mut product = Output::new(self.device, tokens * rows);
        let operands = Matvec::new(&self.matrix, digits.slice(), y.slice(), tokens)
            .accumulate(residual.is_some())
            .product(product.slice_if(optional));
        ok(launch(kind, operands, self.device));
        let products = oracle(kind, &self.w, &x.0);
        if optional {
            assert_bits(&format!("{what}, product"), &product.read(), &products);
        }
        let sum = match residual {
            Some(residual) => {
                let mut sum = residual.to_vec();
                oracle::residual_add::residual_add(&mut sum, &products);
                sum
            }
            None => products,
        };
        let y = y.read();
        assert_bits(&what, &y, &sum);
        y
    }
}

/// Rows that fill no tile, one tile and several, more tiles than thread blocks, rows of few and of many super-blocks.
pub fn equals_the_oracle<D: Device>(device: &D, size: Size, kind: TensorType) {
    let shapes = size.shapes(
        &[(1, 256), (15, 768), (17, 2048), (65, 4096), (40, 4352), (800, 256)],
        &[(2048, 4096), (4096, 2048), (9000, 256), (2050, 768), (512, 16384)],
    );
    equals_the_oracle_at(device, kind, shapes, size.shapes(&[1, 2, 3, 8, 9, 17], &[64, 70]));
}

/// The same for fewer shapes, which take every kernel there is for a type.
pub fn equals_the_oracle_in_short<D: Device>(device: &D, size: Size, kind: TensorType) {
    let shapes =
        size.shapes(&[(1, 256), (17, 2048), (20, 4352), (600, 256)], &[(2048, 4096), (9000, 256), (512, 16384)]);
    equals_the_oracle_at(device, kind, shapes, size.shapes(&[1, 2, 9], &[70]));
}

/// So many tokens that warpgroups multiply them, where there are any and the type is theirs: rows that fill no tile, no CTA and several,
/// trees of every height and two that are no power of two.
pub fn takes_many_tokens<D: Device>(device: &D, _: Size, kind: TensorType) {
    let shapes = vec![(70, 256), (200, 512), (33, 768), (16, 1280), (40, 2048), (100, 4096), (20, 4352)];
    equals_the_oracle_at(device, kind, shapes, vec![64, 81, 90]);
}

fn equals_the_oracle_at<D: Device>(device: &D, kind: TensorType, shapes: Vec<(usize, usize)>, tokens: Vec<usize>) {
    let mut random = Random::new(1);
    for (rows, cols) in shapes {
        let case = Case::new(device, Weights::random(&mut random, kind, 1, rows, cols));
        for (index, &tokens) in tokens.iter().enumerate() {
            let x = Activations::rows(&mut random, index, tokens, cols);
            let residual = random.gaussians(tokens * rows);
            let residual = (index % 2 == 1).then_some(&residual[..]);
            let y = case.check("random", &fixed_blocks(&x), residual, index % 3 != 0);
            for (x, y) in x.chunks(cols).zip(y.chunks(rows)) {
                if has_non_finite(x) {
                    assert_nan("of what is not finite", y);
                }
            }
        }
    }
}

/// Numbers of tokens that leave any number of them for the last group of eight.
pub fn takes_any_number_of_tokens<D: Device>(device: &D, _: Size, kind: TensorType) {
    let mut random = Random::new(3);
    let case = Case::new(device, Weights::random(&mut random, kind, 1, 70, 512));
    for tokens in (1..=17).chain([24, 25]) {
        case.check("any number", &fixed_blocks(&random.gaussians(tokens * 512)), None, false);
    }
}

/// On each of the launcher's paths: sums over super-blocks whose order shows, and super-blocks in which all but a rounding error cancels.
pub fn sums_in_one_order<D: Device>(device: &D, _: Size, kind: TensorType) {
    let mut random = Random::new(4);
    // A row tile a block with a warp for each super-block, several tiles a block with and without such warps; with eight super-blocks and
    // with other numbers of them; whole groups of 16 and parts of them.
    for (rows, blocks) in [
        (18, 1),
        (18, 2),
        (18, 8),
        (100, 8),
        (260, 3),
        (18, 9),
        (200, 15),
        (18, 16),
        (18, 17),
        (20, 31),
        (18, 33),
        (18, 48),
        (18, 64),
    ] {
        let case = Case::new(device, Weights::uniform(&mut random, kind, 1, rows, blocks * BLOCK));
        let sequences = pins::sequences(blocks);
        let x: Vec<Vec<f32>> = sequences.iter().map(|sequence| one_a_block(&mut random, sequence)).collect();
        for (index, x) in x.iter().enumerate() {
            case.check(&format!("sequence {index}"), &fixed_blocks(x), None, true);
        }
        for pair in x.windows(2) {
            case.check("two sequences", &fixed_blocks(&pair.concat()), None, true);
        }
        case.check("all sequences", &fixed_blocks(&x.concat()), None, true);
    }
    if kind == TensorType::Q4K {
        for (rows, blocks) in [(18, 1), (100, 2), (100, 8), (18, 17)] {
            let case = Case::new(device, Weights::cancelling(&mut random, 1, rows, blocks * BLOCK));
            for tokens in [1, 2, 5] {
                let x: Vec<f32> = (0..tokens * blocks)
                    .flat_map(|_| [random.numbers(1, BLOCK / 2), random.numbers(-14, BLOCK / 2)].concat())
                    .collect();
                let y = case.check("d T = dmin M", &fixed_blocks(&x), None, true);
                assert!(y.iter().any(|&y| y != 0.0), "the first product is to be rounded");
            }
        }
    }
}

/// NaNs in all operands, none of them the one that is stored.
pub fn stores_one_nan<D: Device>(device: &D, _: Size, kind: TensorType) {
    let mut random = Random::new(5);
    for (rows, blocks) in [(18, 2), (100, 8), (18, 17), (260, 3)] {
        let mut w = Weights::random(&mut random, kind, 1, rows, blocks * BLOCK);
        if !w.spoil() {
            continue;
        }
        let case = Case::new(device, w);
        for tokens in [1, 2, 5] {
            let mut x = fixed_blocks(&random.gaussians(tokens * blocks * BLOCK));
            let mut residual = random.gaussians(tokens * rows);
            for (nan, place) in NANS.into_iter().zip([4, 7, 11, 17]) {
                residual[(tokens - 1) * rows + place] = nan;
            }
            let y = case.check("NaN in weights and residuals", &x, Some(&residual), true);
            for (token, y) in y.chunks(rows).enumerate() {
                assert_stored_nan("weights", &y[1..3]);
                if token == tokens - 1 {
                    assert_stored_nan("residuals", &[y[4], y[7], y[11], y[17]]);
                }
            }
            // A unit that is another NaN than the one that quantize makes.
            let unit = f64::from_bits(0xfff4_5678_9abc_def0);
            x.0[(tokens - 1) * blocks].unit = unit;
            x.1[(tokens - 1) * blocks].unit = unit;
            let y = case.check("NaN in activations", &x, None, true);
            assert_stored_nan("activations", &y[(tokens - 1) * rows..]);
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
            ok(launch(kind, Matvec::new(&matrix, x, y.slice(), tokens), device));
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
        let tiles = matrix.tiles_of(0..experts).unwrap();
        // SAFETY: the range is the experts'.
        ok(unsafe { device.clear(tiles.as_ptr() as u64, tiles.len()) });
        matrix
    };
    let (right, wrong, stack) = (matrix(kind, 1), matrix(other, 1), matrix(kind, 2));
    let x: Buffer<D, FixedBlock> = Buffer::zeroed(device, 4).unwrap();
    let y: Buffer<D, f32> = Buffer::zeroed(device, 64).unwrap();
    let address = y.slice().as_ptr() as u64;
    let run = |w, x: Slice<'_, FixedBlock>, y: Option<u64>, tokens| {
        // SAFETY: as long as the buffer says; the launcher reads none of it when it refuses.
        let y = unsafe { SliceMut::from_raw(device, y.unwrap_or(address), 64) };
        launch(kind, Matvec::new(w, x, y, tokens), device)
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
