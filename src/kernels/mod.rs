//! Checked wrappers of the launchers, one file for a kernel.
//!
//! Each kernel is a structure of its operands. `new` takes those that it cannot do without, methods of their own names add
//! the others, and `launch` checks that every operand is memory of the device and as long as the shapes demand, enqueues the
//! kernel on the device's queue and returns. Numbers in that
//! memory which say where to read or write, such as an expert's index, are checked by the kernel: what names nothing
//! gives NaN. Launches do not wait; when the work itself fails, the device is lost, and the next call that notices says
//! so ([`Error::DeviceLost`]). Values are defined in `docs/arithmetic.md`, and the oracle of the same name computes the
//! same bits.

use std::ffi::c_void;
use std::ops::Range;

use crate::blocks::{BLOCK, TensorType};
use crate::device::{Buffer, Device, Place, Slice, SliceMut, check_launch};
use crate::{Error, Result, sys};

mod argmax;
mod attention;
mod embedding;
mod float_matvec;
mod matvec;
mod moe_down;
mod moe_group;
mod moe_layer;
mod moe_router;
mod moe_swiglu;
mod q4_k_matvec;
mod q6_k_gemv;
mod qkv;
mod quantize;
mod repack;
mod residual_add;
mod rms_norm;
mod rope;
mod sample;

pub use argmax::{Argmax, DecodeLoop};
pub use attention::{Attention, Queries};
pub use embedding::Embedding;
pub use float_matvec::{FloatMatrix, FloatMatvec};
pub use matvec::{Matvec, matvec_kernel};
pub use moe_down::{DownInput, MoeDown};
pub use moe_group::{Groups, MoeGroup, max_items};
pub use moe_layer::MoeLayer;
pub use moe_router::{MoeRouter, RouterChoice, RouterInput};
pub use moe_swiglu::{Choose, MoeSwiglu};
pub use q4_k_matvec::Q4KMatvec;
pub use q6_k_gemv::Q6KGemv;
pub use qkv::Qkv;
pub use quantize::Quantize;
pub use repack::{Repack, tile_bytes};
pub use residual_add::ResidualAdd;
pub use rms_norm::RmsNorm;
pub use rope::{CacheMut, Rope};
pub use sample::{RowSampling, Sample, SamplePart, SampleState};

pub use crate::oracle::moe_router::Weighting;

/// Methods that give an operand which may be absent. They take it as such or as an `Option`.
macro_rules! optional_operands {
    ($($(#[$doc:meta])* $operand:ident: $type:ty;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $operand(mut self, $operand: impl Into<Option<$type>>) -> Self {
            self.$operand = $operand.into();
            self
        }
    )*};
}
use optional_operands;

/// 256 activations in block fixed point, as the kernels store them.
pub type FixedBlock = sys::kqm_fixed_block;

/// A quantized matrix, or a stack of experts' matrices, in tile layout on a device.
#[derive(Debug)]
pub struct Matrix<D: Device> {
    tiles: Buffer<D, u8>,
    kind: TensorType,
    rows: usize,
    cols: usize,
    experts: usize,
}

impl<D: Device> Matrix<D> {
    /// Room for a matrix, to be filled by [`Repack`]: zeros.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a type without a kernel or columns that are not whole super-blocks.
    pub fn zeroed(device: &D, kind: TensorType, rows: usize, cols: usize, experts: usize) -> Result<Self> {
        let bytes = Self::bytes_of(kind, rows, cols, experts)?;
        Ok(Self { tiles: Buffer::zeroed(device, bytes)?, kind, rows, cols, experts })
    }

    /// A matrix in memory that somebody else manages, of [`Matrix::bytes_of`] bytes: tiles, or room for them. Nothing is allocated.
    ///
    /// # Errors
    /// Those of [`Matrix::bytes_of`].
    ///
    /// # Safety
    /// That of [`Buffer::from_raw`].
    pub unsafe fn from_raw(
        device: &D,
        address: u64,
        kind: TensorType,
        [experts, rows, cols]: [usize; 3],
    ) -> Result<Self> {
        let bytes = Self::bytes_of(kind, rows, cols, experts)?;
        // SAFETY: the caller's promise.
        let tiles = unsafe { Buffer::from_raw(device, address, bytes) };
        Ok(Self { tiles, kind, rows, cols, experts })
    }

    /// Bytes of the tiles of such a matrix, or stack of experts' matrices.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a type without a kernel or columns that are not whole super-blocks.
    pub fn bytes_of(kind: TensorType, rows: usize, cols: usize, experts: usize) -> Result<usize> {
        if !TensorType::MATRICES.contains(&kind)
            || rows == 0
            || cols == 0
            || !cols.is_multiple_of(BLOCK)
            || experts == 0
        {
            return Err(Error::Invalid(format!(
                "matrix {kind:?} [{experts}][{rows}, {cols}]: no kernel computes with it"
            )));
        }
        for (what, n) in [("rows", rows), ("cols", cols), ("experts", experts)] {
            count("matrix", what, n)?;
        }
        // Counts of 32 bits: the bytes of one expert's matrix fit into 64.
        experts
            .checked_mul(tile_bytes(kind, rows, cols))
            .ok_or_else(|| Error::Invalid(format!("matrix {kind:?} [{experts}][{rows}, {cols}]: too large")))
    }

    /// Its type: it decides which kernel multiplies with it.
    pub fn kind(&self) -> TensorType {
        self.kind
    }

    /// Rows of one expert's matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, a multiple of 256.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Matrices in the stack.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.tiles.len()
    }

    /// The tiles of some experts, to be written by [`Repack`].
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are no such experts.
    pub fn tiles_of(&mut self, experts: Range<usize>) -> Result<SliceMut<'_, u8>> {
        if experts.start > experts.end || experts.end > self.experts {
            return Err(Error::Invalid(format!("experts {experts:?} of a stack of {}", self.experts)));
        }
        let bytes = tile_bytes(self.kind, self.rows, self.cols);
        self.tiles.part_mut(experts.start * bytes, experts.len() * bytes)
    }

    /// Fails unless the operand `other` has this matrix's shape.
    fn same_shape(&self, kernel: &'static str, operand: &'static str, other: &Self) -> Result<()> {
        let shape = |matrix: &Self| (matrix.experts, matrix.rows, matrix.cols);
        if shape(self) == shape(other) {
            return Ok(());
        }
        let ((experts, rows, cols), expected) = (shape(other), shape(self));
        Err(Error::Invalid(format!(
            "{kernel}: {operand} has shape [{experts}][{rows}, {cols}], expected [{}][{}, {}]",
            expected.0, expected.1, expected.2
        )))
    }

    /// The operand as launchers take it.
    fn on(&self, device: &D, kernel: &'static str, operand: &'static str) -> Result<sys::kqm_matrix> {
        at_least(device, kernel, operand, self.tiles.place(), &[0])?;
        Ok(sys::kqm_matrix {
            tiles: self.tiles.slice().as_ptr().cast(),
            type_: self.kind as u32,
            rows: self.rows as u32,
            cols: self.cols as u32,
            experts: self.experts as u32,
        })
    }
}

/// Floats that a kernel reads. Those of two bytes are given as their bits.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Floats<'a> {
    /// f32.
    F32(Slice<'a, f32>),
    /// f16.
    F16(Slice<'a, u16>),
    /// bf16.
    BF16(Slice<'a, u16>),
}

impl<'a> From<Slice<'a, f32>> for Floats<'a> {
    fn from(floats: Slice<'a, f32>) -> Self {
        Self::F32(floats)
    }
}

impl Floats<'_> {
    /// Their type.
    pub fn kind(&self) -> TensorType {
        match self {
            Self::F32(_) => TensorType::F32,
            Self::F16(_) => TensorType::F16,
            Self::BF16(_) => TensorType::BF16,
        }
    }

    fn place(&self) -> Place {
        match self {
            Self::F32(floats) => floats.place(),
            Self::F16(floats) | Self::BF16(floats) => floats.place(),
        }
    }

    fn as_ptr(&self) -> *const c_void {
        match self {
            Self::F32(floats) => floats.as_ptr().cast(),
            Self::F16(floats) | Self::BF16(floats) => floats.as_ptr().cast(),
        }
    }
}

/// Floats that a kernel writes: what it computes in f32, rounded to nearest even where the type has two bytes.
#[derive(Debug)]
#[non_exhaustive]
pub enum FloatsMut<'a> {
    /// f32.
    F32(SliceMut<'a, f32>),
    /// f16.
    F16(SliceMut<'a, u16>),
    /// bf16.
    BF16(SliceMut<'a, u16>),
}

impl<'a> From<SliceMut<'a, f32>> for FloatsMut<'a> {
    fn from(floats: SliceMut<'a, f32>) -> Self {
        Self::F32(floats)
    }
}

impl FloatsMut<'_> {
    /// Their type.
    pub fn kind(&self) -> TensorType {
        match self {
            Self::F32(_) => TensorType::F32,
            Self::F16(_) => TensorType::F16,
            Self::BF16(_) => TensorType::BF16,
        }
    }

    fn place(&self) -> Place {
        match self {
            Self::F32(floats) => floats.place(),
            Self::F16(floats) | Self::BF16(floats) => floats.place(),
        }
    }

    fn as_ptr(&self) -> *mut c_void {
        match self {
            Self::F32(floats) => floats.as_ptr().cast(),
            Self::F16(floats) | Self::BF16(floats) => floats.as_ptr().cast(),
        }
    }
}

/// RMSNorm of a single token inside the kernel that needs its result: what [`RmsNorm`] does, without its launch.
#[non_exhaustive]
pub struct FusedNorm<'a> {
    /// `[cols]`, at most 4096.
    pub x: Slice<'a, f32>,
    /// `[cols]`.
    pub weight: Slice<'a, f32>,
    /// Added to the mean square.
    pub eps: f32,
    /// Values that the mean is of, at most `cols`; those behind them are zeros.
    pub width: usize,
    /// `[cols]`: the normed row.
    pub out: Option<SliceMut<'a, f32>>,
}

impl<'a> FusedNorm<'a> {
    /// Of the row x, of which the first `width` values count.
    pub fn new(x: Slice<'a, f32>, weight: Slice<'a, f32>, eps: f32, width: usize) -> Self {
        Self { x, weight, eps, width, out: None }
    }

    optional_operands! {
        /// Gives the normed row.
        out: SliceMut<'a, f32>;
    }
}

impl FusedNorm<'_> {
    /// Most columns.
    pub const MAX_COLS: usize = sys::KQM_FUSED_COLS as usize;

    fn args<D: Device>(
        norm: Option<Self>,
        device: &D,
        kernel: &'static str,
        cols: usize,
    ) -> Result<sys::kqm_fused_norm> {
        let Some(norm) = norm else { return Ok(sys::kqm_fused_norm::default()) };
        at_least(device, kernel, "norm.x", norm.x.place(), &[cols])?;
        at_least(device, kernel, "norm.weight", norm.weight.place(), &[cols])?;
        if let Some(out) = &norm.out {
            at_least(device, kernel, "norm.out", out.place(), &[cols])?;
        }
        let Self { x, weight, eps, width, out } = norm;
        let width = count(kernel, "norm.width", width)?;
        Ok(sys::kqm_fused_norm { x: x.as_ptr(), weight: weight.as_ptr(), out: optional(out), eps, width })
    }
}

/// The tokens of a batch, of any sequences and positions in any order, and where each one is in a cache: a pool of pages that sequences
/// share, each of 64 positions. A token whose position is not below the reach, whose sequence is none of them or whose page is none of
/// the pool gives NaN and is not written; any other page that the pool does not have holds NaNs for the tokens that see it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Batch<'a> {
    /// `[tokens]`.
    pub position: Slice<'a, u32>,
    /// `[tokens]`.
    pub sequence: Slice<'a, u32>,
    /// `[sequences, ceil(capacity / 64)]`: the pages of each sequence.
    pub pages: Slice<'a, u32>,
    /// Tokens.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Most positions of a sequence.
    pub capacity: usize,
    /// Pages of the cache of keys, and of that of values.
    pub pool_pages: usize,
    /// No token is at this position or behind it; 0: the capacity. The launch of attention and its workspace are laid out for it.
    pub reach: usize,
    /// The first so many tokens are taken one at a time by attention, the others together with their neighbours, for which neighbours
    /// had better be at positions of one sequence that follow each other. A matter of speed, never of bits.
    pub singles: usize,
}

impl<'a> Batch<'a> {
    /// Positions of a page.
    pub const PAGE: usize = sys::KQM_ATTENTION_CHUNK as usize;

    /// `[position, sequence, pages]` of `[tokens, sequences]`, with `[capacity, pool_pages]`. None of the tokens is a single one, and they
    /// may be anywhere.
    pub fn new(
        [position, sequence, pages]: [Slice<'a, u32>; 3],
        [tokens, sequences]: [usize; 2],
        [capacity, pool_pages]: [usize; 2],
    ) -> Self {
        Self { position, sequence, pages, tokens, sequences, capacity, pool_pages, reach: 0, singles: 0 }
    }

    /// With a bound of the positions.
    #[must_use]
    pub fn reach(self, reach: usize) -> Self {
        Self { reach, ..self }
    }

    /// With so many single tokens at the beginning.
    #[must_use]
    pub fn singles(self, singles: usize) -> Self {
        Self { singles, ..self }
    }

    /// The checked batch as launchers take it.
    fn args<D: Device>(&self, device: &D, kernel: &'static str) -> Result<sys::kqm_batch> {
        let Self { position, sequence, pages, tokens, sequences, capacity, pool_pages, reach, singles } = *self;
        at_least(device, kernel, "batch.position", position.place(), &[tokens])?;
        at_least(device, kernel, "batch.sequence", sequence.place(), &[tokens])?;
        at_least(device, kernel, "batch.pages", pages.place(), &[sequences, capacity.div_ceil(Self::PAGE)])?;
        Ok(sys::kqm_batch {
            position: position.as_ptr(),
            sequence: sequence.as_ptr(),
            pages: pages.as_ptr(),
            tokens: count(kernel, "batch.tokens", tokens)?,
            sequences: count(kernel, "batch.sequences", sequences)?,
            capacity: count(kernel, "batch.capacity", capacity)?,
            pool_pages: count(kernel, "batch.pool_pages", pool_pages)?,
            reach: count(kernel, "batch.reach", reach)?,
            singles: count(kernel, "batch.singles", singles)?,
        })
    }
}

/// Activations of a product: as fixed point, or made from a row by a fused norm.
#[non_exhaustive]
pub enum Activations<'a> {
    /// `[tokens, cols / 256]`.
    Fixed(Slice<'a, FixedBlock>),
    /// A single token.
    Norm(FusedNorm<'a>),
}

/// Fails unless an operand lies on the device and has room for the product of `shape`.
fn at_least<D: Device>(
    device: &D,
    kernel: &'static str,
    operand: &'static str,
    found: Place,
    shape: &[usize],
) -> Result<()> {
    if found.device != device.id() {
        return Err(Error::Invalid(format!("{kernel}: {operand} lies on another device")));
    }
    let needed = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    match needed {
        Some(needed) if found.len >= needed => Ok(()),
        _ => Err(Error::Invalid(format!("{kernel}: {operand} has {} elements, expected {shape:?}", found.len))),
    }
}

/// A count as the launchers take it.
fn count(kernel: &'static str, what: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Invalid(format!("{kernel}: {what} = {n} is too large")))
}

fn optional<T>(slice: Option<SliceMut<'_, T>>) -> *mut T {
    slice.map_or(std::ptr::null_mut(), |slice| slice.as_ptr())
}

/// Calls one launcher of the device's table with checked arguments, unless the device does not want the kernel.
macro_rules! launch {
    ($device:expr, $kernel:ident, $args:expr) => {{
        let device = $device;
        let name = stringify!($kernel);
        if device.wants(name) {
            device.activate()?;
            let launcher = device.kernels().$kernel.ok_or(Error::Kernel {
                kernel: name,
                status: sys::KQM_NULL_POINTER,
                message: "the table has no launcher".into(),
            })?;
            let args = $args;
            // SAFETY: the wrapper checked that every operand is memory of the device and as long as the shapes demand.
            // It is borrowed, and given back to the device behind the work that is on its queues. The numbers in it are
            // checked by the kernels that use them.
            let status = unsafe { launcher(&args, device.stream()) };
            check_launch(device, name, status)
        } else {
            Ok(())
        }
    }};
}
use launch;
