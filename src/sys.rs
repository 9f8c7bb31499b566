//! The C ABI of the kernels, generated from `cuda/kquant_moe.h`: do not edit.
//!
//! `KQUANT_MOE_BLESS=1 cargo test --features bindgen --test bindings` writes it anew.
#![allow(missing_docs, non_camel_case_types, clippy::all)]

pub const KQM_OK: i32 = 0;
pub const KQM_NULL_POINTER: i32 = -1;
pub const KQM_BAD_SHAPE: i32 = -2;
pub const KQM_UNSUPPORTED_TYPE: i32 = -3;
pub const KQM_MISALIGNED: i32 = -4;
pub const KQM_WORKSPACE: i32 = -5;
pub const KQM_OTHER_ABI: i32 = -6;
pub const KQM_ABI_VERSION: u32 = 2;
pub const KQM_TYPE_F32: u32 = 0;
pub const KQM_TYPE_F16: u32 = 1;
pub const KQM_TYPE_Q4_0: u32 = 2;
pub const KQM_TYPE_Q4_1: u32 = 3;
pub const KQM_TYPE_Q5_0: u32 = 6;
pub const KQM_TYPE_Q5_1: u32 = 7;
pub const KQM_TYPE_Q8_0: u32 = 8;
pub const KQM_TYPE_Q2_K: u32 = 10;
pub const KQM_TYPE_Q3_K: u32 = 11;
pub const KQM_TYPE_Q4_K: u32 = 12;
pub const KQM_TYPE_Q5_K: u32 = 13;
pub const KQM_TYPE_Q6_K: u32 = 14;
pub const KQM_TYPE_IQ2_XXS: u32 = 16;
pub const KQM_TYPE_IQ2_XS: u32 = 17;
pub const KQM_TYPE_IQ3_XXS: u32 = 18;
pub const KQM_TYPE_IQ1_S: u32 = 19;
pub const KQM_TYPE_IQ4_NL: u32 = 20;
pub const KQM_TYPE_IQ3_S: u32 = 21;
pub const KQM_TYPE_IQ2_S: u32 = 22;
pub const KQM_TYPE_IQ4_XS: u32 = 23;
pub const KQM_TYPE_IQ1_M: u32 = 29;
pub const KQM_TYPE_BF16: u32 = 30;
pub const KQM_TYPE_TQ1_0: u32 = 34;
pub const KQM_TYPE_TQ2_0: u32 = 35;
pub const KQM_TYPE_MXFP4: u32 = 39;
pub const KQM_BLOCK: u32 = 256;
pub const KQM_TILE_ROWS: u32 = 16;
pub const KQM_MAX_EXPERTS: u32 = 512;
pub const KQM_MAX_TOP_K: u32 = 32;
pub const KQM_WEIGHTS_OF_CHOSEN: u32 = 0;
pub const KQM_WEIGHTS_OF_ALL: u32 = 1;
pub const KQM_ATTENTION_CHUNK: u32 = 64;
pub const KQM_ITEM_PAIRS: u32 = 32;
pub const KQM_EXP_LOG2E: f64 = 1.4426950216293335;
pub const KQM_EXP_LN2_HIGH: f64 = 0.693145751953125;
pub const KQM_EXP_LN2_LOW: f64 = 0.000001428606765330187;
pub const KQM_EXP_C2: f64 = 0.5;
pub const KQM_EXP_C3: f64 = 0.1666666716337204;
pub const KQM_EXP_C4: f64 = 0.0416666679084301;
pub const KQM_EXP_C5: f64 = 0.008333333767950535;
pub const KQM_EXP_C6: f64 = 0.0013888889225199819;
pub const KQM_EXP_C7: f64 = 0.00019841270113829523;
pub const KQM_PLANES: u32 = 5;
pub const KQM_FUSED_COLS: u32 = 4096;
pub const KQM_FUSED_UNITS: u32 = 24;
pub const KQM_SAMPLE_PART: u32 = 2048;
/// 0: success. Negative: one of the codes below. Positive: a cudaError_t of the launch.
pub type kqm_status = i32;
/// cudaStream_t / CUstream.
pub type kqm_stream = *mut ::core::ffi::c_void;
/// Who calls: the version, and the size of the argument structure, as the caller was compiled with them.
pub type kqm_caller = u64;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct kqm_fixed_block {
    /// \[sub-block\]\[plane\]\[k\]: plane p of activation 32 \* sub-block + k
    pub digit: [[[i8; 32usize]; 5usize]; 8usize],
    /// \[plane\]\[sub-block\]: low balanced base-256 digit of the sum of the 32 digits
    pub sum_low: [[i8; 8usize]; 5usize],
    /// \[plane\]\[sub-block\]: (sum - low) / 256
    pub sum_high: [[i8; 8usize]; 5usize],
    /// 2^(e - 38); NaN when the block holds a non-finite activation (its digits are 0 then)
    pub unit: f64,
    /// 0; keeps blocks 16-byte aligned
    pub reserved: f64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_fixed_block"][::core::mem::size_of::<kqm_fixed_block>() - 1376usize];
    ["Alignment of kqm_fixed_block"][::core::mem::align_of::<kqm_fixed_block>() - 8usize];
    ["Offset of field: kqm_fixed_block::digit"][::core::mem::offset_of!(kqm_fixed_block, digit) - 0usize];
    ["Offset of field: kqm_fixed_block::sum_low"][::core::mem::offset_of!(kqm_fixed_block, sum_low) - 1280usize];
    ["Offset of field: kqm_fixed_block::sum_high"][::core::mem::offset_of!(kqm_fixed_block, sum_high) - 1320usize];
    ["Offset of field: kqm_fixed_block::unit"][::core::mem::offset_of!(kqm_fixed_block, unit) - 1360usize];
    ["Offset of field: kqm_fixed_block::reserved"][::core::mem::offset_of!(kqm_fixed_block, reserved) - 1368usize];
};
/// A quantized matrix \[rows, cols\], or a stack of `experts` of them, in tile layout (see kqm_repack).
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_matrix {
    /// \[experts\]\[ceil(rows / 16)\]\[cols / 256\] tiles, each the bytes of 16 blocks; 16-byte aligned
    pub tiles: *const ::core::ffi::c_void,
    /// KQM_TYPE_...: one of common/types.cuh
    pub type_: u32,
    pub rows: u32,
    /// a multiple of 256
    pub cols: u32,
    /// 1 for a plain matrix
    pub experts: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_matrix"][::core::mem::size_of::<kqm_matrix>() - 24usize];
    ["Alignment of kqm_matrix"][::core::mem::align_of::<kqm_matrix>() - 8usize];
    ["Offset of field: kqm_matrix::tiles"][::core::mem::offset_of!(kqm_matrix, tiles) - 0usize];
    ["Offset of field: kqm_matrix::type_"][::core::mem::offset_of!(kqm_matrix, type_) - 8usize];
    ["Offset of field: kqm_matrix::rows"][::core::mem::offset_of!(kqm_matrix, rows) - 12usize];
    ["Offset of field: kqm_matrix::cols"][::core::mem::offset_of!(kqm_matrix, cols) - 16usize];
    ["Offset of field: kqm_matrix::experts"][::core::mem::offset_of!(kqm_matrix, experts) - 20usize];
};
impl Default for kqm_matrix {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// The (token, expert) pairs of a batch, grouped by expert. Pair p = token \* top_k + rank.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_groups {
    /// \[pairs\] pair numbers, ascending by (expert, pair)
    pub order: *mut u32,
    /// \[max_items\]\[3\] work items: expert, first position in order, pairs (1..KQM_ITEM_PAIRS)
    pub items: *mut u32,
    /// \[1\] items in use; the remaining ones are not read
    pub count: *mut u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_groups"][::core::mem::size_of::<kqm_groups>() - 24usize];
    ["Alignment of kqm_groups"][::core::mem::align_of::<kqm_groups>() - 8usize];
    ["Offset of field: kqm_groups::order"][::core::mem::offset_of!(kqm_groups, order) - 0usize];
    ["Offset of field: kqm_groups::items"][::core::mem::offset_of!(kqm_groups, items) - 8usize];
    ["Offset of field: kqm_groups::count"][::core::mem::offset_of!(kqm_groups, count) - 16usize];
};
impl Default for kqm_groups {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/** repack: a quantized matrix, or a stack of experts' matrices, in GGUF's row layout to tile layout, a permutation of bytes (see
common/tiles.cuh). Rows of each matrix are padded with zero blocks to a multiple of 16.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_repack_args {
    /// \[experts\]\[rows\]\[cols / 256\] blocks as in the file
    pub blocks: *const ::core::ffi::c_void,
    /// \[experts\]\[ceil(rows / 16)\]\[cols / 256\] tiles, 16-byte aligned
    pub tiles: *mut ::core::ffi::c_void,
    pub type_: u32,
    pub rows: u32,
    pub cols: u32,
    /// 1 for a plain matrix
    pub experts: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_repack_args"][::core::mem::size_of::<kqm_repack_args>() - 32usize];
    ["Alignment of kqm_repack_args"][::core::mem::align_of::<kqm_repack_args>() - 8usize];
    ["Offset of field: kqm_repack_args::blocks"][::core::mem::offset_of!(kqm_repack_args, blocks) - 0usize];
    ["Offset of field: kqm_repack_args::tiles"][::core::mem::offset_of!(kqm_repack_args, tiles) - 8usize];
    ["Offset of field: kqm_repack_args::type_"][::core::mem::offset_of!(kqm_repack_args, type_) - 16usize];
    ["Offset of field: kqm_repack_args::rows"][::core::mem::offset_of!(kqm_repack_args, rows) - 20usize];
    ["Offset of field: kqm_repack_args::cols"][::core::mem::offset_of!(kqm_repack_args, cols) - 24usize];
    ["Offset of field: kqm_repack_args::experts"][::core::mem::offset_of!(kqm_repack_args, experts) - 28usize];
};
impl Default for kqm_repack_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// quantize: activations to block fixed point.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_quantize_args {
    /// \[tokens, cols\] of `type`
    pub x: *const ::core::ffi::c_void,
    /// \[tokens, cols / 256\]
    pub out: *mut kqm_fixed_block,
    /// \[optional\] \[tokens, cols\]: the activations as f32, which is exact
    pub floats: *mut f32,
    /// KQM_TYPE_F32, KQM_TYPE_F16 or KQM_TYPE_BF16
    pub type_: u32,
    pub tokens: u32,
    /// a multiple of 256
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_quantize_args"][::core::mem::size_of::<kqm_quantize_args>() - 40usize];
    ["Alignment of kqm_quantize_args"][::core::mem::align_of::<kqm_quantize_args>() - 8usize];
    ["Offset of field: kqm_quantize_args::x"][::core::mem::offset_of!(kqm_quantize_args, x) - 0usize];
    ["Offset of field: kqm_quantize_args::out"][::core::mem::offset_of!(kqm_quantize_args, out) - 8usize];
    ["Offset of field: kqm_quantize_args::floats"][::core::mem::offset_of!(kqm_quantize_args, floats) - 16usize];
    ["Offset of field: kqm_quantize_args::type_"][::core::mem::offset_of!(kqm_quantize_args, type_) - 24usize];
    ["Offset of field: kqm_quantize_args::tokens"][::core::mem::offset_of!(kqm_quantize_args, tokens) - 28usize];
    ["Offset of field: kqm_quantize_args::cols"][::core::mem::offset_of!(kqm_quantize_args, cols) - 32usize];
};
impl Default for kqm_quantize_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/** matvec: y\[t, r\] = sum_k W\[r, k\] x\[t, k\] (+ residual\[t, r\]), for a matrix of any type. q4_k_matvec and q6_k_gemv are its entries for
Q4_K and Q6_K, and refuse every other type.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_matvec_args {
    /// experts == 1
    pub w: kqm_matrix,
    /// \[tokens, w.cols / 256\]
    pub x: *const kqm_fixed_block,
    /// \[optional\] \[tokens, w.rows\]; added in f32 after the sum is rounded; may equal y
    pub residual: *const f32,
    /// \[optional\] \[tokens, w.rows\]: the sum before the residual is added
    pub product: *mut f32,
    /// \[tokens, w.rows\]
    pub y: *mut f32,
    pub tokens: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_matvec_args"][::core::mem::size_of::<kqm_matvec_args>() - 64usize];
    ["Alignment of kqm_matvec_args"][::core::mem::align_of::<kqm_matvec_args>() - 8usize];
    ["Offset of field: kqm_matvec_args::w"][::core::mem::offset_of!(kqm_matvec_args, w) - 0usize];
    ["Offset of field: kqm_matvec_args::x"][::core::mem::offset_of!(kqm_matvec_args, x) - 24usize];
    ["Offset of field: kqm_matvec_args::residual"][::core::mem::offset_of!(kqm_matvec_args, residual) - 32usize];
    ["Offset of field: kqm_matvec_args::product"][::core::mem::offset_of!(kqm_matvec_args, product) - 40usize];
    ["Offset of field: kqm_matvec_args::y"][::core::mem::offset_of!(kqm_matvec_args, y) - 48usize];
    ["Offset of field: kqm_matvec_args::tokens"][::core::mem::offset_of!(kqm_matvec_args, tokens) - 56usize];
};
impl Default for kqm_matvec_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/** matvec: y\[t, r\] = sum_k W\[r, k\] x\[t, k\] (+ residual\[t, r\]), for a matrix of any type. q4_k_matvec and q6_k_gemv are its entries for
Q4_K and Q6_K, and refuse every other type.*/
pub type kqm_q4_k_matvec_args = kqm_matvec_args;
/** matvec: y\[t, r\] = sum_k W\[r, k\] x\[t, k\] (+ residual\[t, r\]), for a matrix of any type. q4_k_matvec and q6_k_gemv are its entries for
Q4_K and Q6_K, and refuse every other type.*/
pub type kqm_q6_k_gemv_args = kqm_matvec_args;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_fused_norm {
    /// \[optional: NULL for no fused norm\] \[cols\]
    pub x: *const f32,
    /// \[cols\]
    pub weight: *const f32,
    /// \[optional\] \[cols\]: the normed row
    pub out: *mut f32,
    pub eps: f32,
    /// values that the mean is of, 1 ..= cols: those behind them are zeros
    pub width: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_fused_norm"][::core::mem::size_of::<kqm_fused_norm>() - 32usize];
    ["Alignment of kqm_fused_norm"][::core::mem::align_of::<kqm_fused_norm>() - 8usize];
    ["Offset of field: kqm_fused_norm::x"][::core::mem::offset_of!(kqm_fused_norm, x) - 0usize];
    ["Offset of field: kqm_fused_norm::weight"][::core::mem::offset_of!(kqm_fused_norm, weight) - 8usize];
    ["Offset of field: kqm_fused_norm::out"][::core::mem::offset_of!(kqm_fused_norm, out) - 16usize];
    ["Offset of field: kqm_fused_norm::eps"][::core::mem::offset_of!(kqm_fused_norm, eps) - 24usize];
    ["Offset of field: kqm_fused_norm::width"][::core::mem::offset_of!(kqm_fused_norm, width) - 28usize];
};
impl Default for kqm_fused_norm {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// qkv: up to three products with the same activations in one launch, each matrix of its own type.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_qkv_args {
    /// all with the same cols; matrices with rows == 0 are left out
    pub w: [kqm_matrix; 3usize],
    /// \[tokens, cols / 256\]; not read with a fused norm
    pub x: *const kqm_fixed_block,
    /// a single token: x is made from this row
    pub norm: kqm_fused_norm,
    /// \[tokens, w\[i\].rows\]
    pub y: [*mut f32; 3usize],
    pub tokens: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_qkv_args"][::core::mem::size_of::<kqm_qkv_args>() - 144usize];
    ["Alignment of kqm_qkv_args"][::core::mem::align_of::<kqm_qkv_args>() - 8usize];
    ["Offset of field: kqm_qkv_args::w"][::core::mem::offset_of!(kqm_qkv_args, w) - 0usize];
    ["Offset of field: kqm_qkv_args::x"][::core::mem::offset_of!(kqm_qkv_args, x) - 72usize];
    ["Offset of field: kqm_qkv_args::norm"][::core::mem::offset_of!(kqm_qkv_args, norm) - 80usize];
    ["Offset of field: kqm_qkv_args::y"][::core::mem::offset_of!(kqm_qkv_args, y) - 112usize];
    ["Offset of field: kqm_qkv_args::tokens"][::core::mem::offset_of!(kqm_qkv_args, tokens) - 136usize];
};
impl Default for kqm_qkv_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// embedding: rows of a table, dequantized.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_embedding_args {
    /// \[vocab, cols\] in GGUF's row layout: F32, F16, BF16 or a type of common/types.cuh
    pub table: *const ::core::ffi::c_void,
    /// \[tokens\]; an id \>= vocab gives a row of NaN
    pub tokens: *const u32,
    /// \[tokens, cols\]
    pub out: *mut f32,
    pub type_: u32,
    pub vocab: u32,
    /// a multiple of 256
    pub cols: u32,
    pub count: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_embedding_args"][::core::mem::size_of::<kqm_embedding_args>() - 40usize];
    ["Alignment of kqm_embedding_args"][::core::mem::align_of::<kqm_embedding_args>() - 8usize];
    ["Offset of field: kqm_embedding_args::table"][::core::mem::offset_of!(kqm_embedding_args, table) - 0usize];
    ["Offset of field: kqm_embedding_args::tokens"][::core::mem::offset_of!(kqm_embedding_args, tokens) - 8usize];
    ["Offset of field: kqm_embedding_args::out"][::core::mem::offset_of!(kqm_embedding_args, out) - 16usize];
    ["Offset of field: kqm_embedding_args::type_"][::core::mem::offset_of!(kqm_embedding_args, type_) - 24usize];
    ["Offset of field: kqm_embedding_args::vocab"][::core::mem::offset_of!(kqm_embedding_args, vocab) - 28usize];
    ["Offset of field: kqm_embedding_args::cols"][::core::mem::offset_of!(kqm_embedding_args, cols) - 32usize];
    ["Offset of field: kqm_embedding_args::count"][::core::mem::offset_of!(kqm_embedding_args, count) - 36usize];
};
impl Default for kqm_embedding_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// rms_norm: y = (x \* r) \* weight, r = 1 / sqrt(mean(x^2) + eps); written as f32, as fixed point, or both.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_rms_norm_args {
    /// \[tokens, cols\]
    pub x: *const f32,
    /// \[cols\]
    pub weight: *const f32,
    /// \[optional\] \[tokens, cols\]
    pub out: *mut f32,
    /// \[optional\] \[tokens, cols / 256\]
    pub fixed: *mut kqm_fixed_block,
    pub tokens: u32,
    /// a multiple of 256, at most 16384
    pub cols: u32,
    pub eps: f32,
    /// values that the mean is of, 1 ..= cols: those behind them are zeros
    pub width: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_rms_norm_args"][::core::mem::size_of::<kqm_rms_norm_args>() - 48usize];
    ["Alignment of kqm_rms_norm_args"][::core::mem::align_of::<kqm_rms_norm_args>() - 8usize];
    ["Offset of field: kqm_rms_norm_args::x"][::core::mem::offset_of!(kqm_rms_norm_args, x) - 0usize];
    ["Offset of field: kqm_rms_norm_args::weight"][::core::mem::offset_of!(kqm_rms_norm_args, weight) - 8usize];
    ["Offset of field: kqm_rms_norm_args::out"][::core::mem::offset_of!(kqm_rms_norm_args, out) - 16usize];
    ["Offset of field: kqm_rms_norm_args::fixed"][::core::mem::offset_of!(kqm_rms_norm_args, fixed) - 24usize];
    ["Offset of field: kqm_rms_norm_args::tokens"][::core::mem::offset_of!(kqm_rms_norm_args, tokens) - 32usize];
    ["Offset of field: kqm_rms_norm_args::cols"][::core::mem::offset_of!(kqm_rms_norm_args, cols) - 36usize];
    ["Offset of field: kqm_rms_norm_args::eps"][::core::mem::offset_of!(kqm_rms_norm_args, eps) - 40usize];
    ["Offset of field: kqm_rms_norm_args::width"][::core::mem::offset_of!(kqm_rms_norm_args, width) - 44usize];
};
impl Default for kqm_rms_norm_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/** The tokens of a batch, and where each one is. The caches of keys and of values are pools of pages, \[pool_pages\]\[KQM_ATTENTION_CHUNK
positions, kv_heads, head_dim\], which sequences share: position p of sequence s is position p % KQM_ATTENTION_CHUNK of page
pages\[s\]\[p / KQM_ATTENTION_CHUNK\]. Tokens may be of any sequences and positions, in any order. A token whose position is not below the
reach, whose sequence is none of them, or whose page is none of the pool has no place: it gives NaN and leaves the caches alone. Any
other page that the pool does not have holds NaNs for the tokens that see it. A position of a page that is written belongs to one token
of the batch, and is seen as that token's position alone.

What follows from the host's numbers is laid out when a launch is made, and recorded with it; what is in memory is read when it runs.
No value depends on `reach`, unless a token is at it or behind, nor on `singles`, which are for the speed of attention: its launch and
its workspace are laid out for the reach, and the less that is the better. It takes the first `singles` tokens one at a time, whatever
they are, and the others together with their neighbours, for which neighbours had better be at positions of one sequence that follow each
other. Where fewer than four are left these are single, too.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_batch {
    /// \[tokens\]
    pub position: *const u32,
    /// \[tokens\]
    pub sequence: *const u32,
    /// \[sequences, ceil(capacity / KQM_ATTENTION_CHUNK)\]; those that no token sees may be anything
    pub pages: *const u32,
    pub tokens: u32,
    /// times ceil(capacity / KQM_ATTENTION_CHUNK) less than 2^32
    pub sequences: u32,
    /// most positions of a sequence, below 2^31
    pub capacity: u32,
    /// pages of the cache of keys, and of that of values
    pub pool_pages: u32,
    /// no token is at this position or behind it; 0: the capacity
    pub reach: u32,
    /// at most all tokens
    pub singles: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_batch"][::core::mem::size_of::<kqm_batch>() - 48usize];
    ["Alignment of kqm_batch"][::core::mem::align_of::<kqm_batch>() - 8usize];
    ["Offset of field: kqm_batch::position"][::core::mem::offset_of!(kqm_batch, position) - 0usize];
    ["Offset of field: kqm_batch::sequence"][::core::mem::offset_of!(kqm_batch, sequence) - 8usize];
    ["Offset of field: kqm_batch::pages"][::core::mem::offset_of!(kqm_batch, pages) - 16usize];
    ["Offset of field: kqm_batch::tokens"][::core::mem::offset_of!(kqm_batch, tokens) - 24usize];
    ["Offset of field: kqm_batch::sequences"][::core::mem::offset_of!(kqm_batch, sequences) - 28usize];
    ["Offset of field: kqm_batch::capacity"][::core::mem::offset_of!(kqm_batch, capacity) - 32usize];
    ["Offset of field: kqm_batch::pool_pages"][::core::mem::offset_of!(kqm_batch, pool_pages) - 36usize];
    ["Offset of field: kqm_batch::reach"][::core::mem::offset_of!(kqm_batch, reach) - 40usize];
    ["Offset of field: kqm_batch::singles"][::core::mem::offset_of!(kqm_batch, singles) - 44usize];
};
impl Default for kqm_batch {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/** rope: per-head RMSNorm of q and k, RoPE (NeoX layout: dimension i is paired with i + head_dim / 2), and the write
of k and v into the cache.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_rope_args {
    pub batch: kqm_batch,
    /// \[tokens, heads, head_dim\]
    pub q: *const f32,
    /// \[tokens, kv_heads, head_dim\]
    pub k: *const f32,
    /// \[tokens, kv_heads, head_dim\]
    pub v: *const f32,
    /// \[optional\] \[head_dim\] RMSNorm weight; NULL: q is not normalised
    pub q_weight: *const f32,
    /// \[optional\] \[head_dim\]
    pub k_weight: *const f32,
    /// \[capacity, head_dim / 2, 2\]: cosine and sine of each position and dimension pair
    pub table: *const f32,
    /// \[tokens, heads, head_dim\]; may equal q
    pub q_out: *mut f32,
    /// \[optional\] \[tokens, heads, head_dim\]
    pub q_normed: *mut f32,
    /// \[optional\] \[tokens, kv_heads, head_dim\]
    pub k_normed: *mut f32,
    /// \[optional\] \[tokens, kv_heads, head_dim\]
    pub k_out: *mut f32,
    /// \[pool_pages, KQM_ATTENTION_CHUNK, kv_heads, head_dim\] f32 or f16
    pub k_cache: *mut ::core::ffi::c_void,
    /// \[pool_pages, KQM_ATTENTION_CHUNK, kv_heads, head_dim\] f32 or f16
    pub v_cache: *mut ::core::ffi::c_void,
    /// KQM_TYPE_F32 or KQM_TYPE_F16
    pub cache_type: u32,
    /// at most 65535
    pub heads: u32,
    /// at most 65535
    pub kv_heads: u32,
    /// even, a multiple of 8, at most 256
    pub head_dim: u32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_rope_args"][::core::mem::size_of::<kqm_rope_args>() - 168usize];
    ["Alignment of kqm_rope_args"][::core::mem::align_of::<kqm_rope_args>() - 8usize];
    ["Offset of field: kqm_rope_args::batch"][::core::mem::offset_of!(kqm_rope_args, batch) - 0usize];
    ["Offset of field: kqm_rope_args::q"][::core::mem::offset_of!(kqm_rope_args, q) - 48usize];
    ["Offset of field: kqm_rope_args::k"][::core::mem::offset_of!(kqm_rope_args, k) - 56usize];
    ["Offset of field: kqm_rope_args::v"][::core::mem::offset_of!(kqm_rope_args, v) - 64usize];
    ["Offset of field: kqm_rope_args::q_weight"][::core::mem::offset_of!(kqm_rope_args, q_weight) - 72usize];
    ["Offset of field: kqm_rope_args::k_weight"][::core::mem::offset_of!(kqm_rope_args, k_weight) - 80usize];
    ["Offset of field: kqm_rope_args::table"][::core::mem::offset_of!(kqm_rope_args, table) - 88usize];
    ["Offset of field: kqm_rope_args::q_out"][::core::mem::offset_of!(kqm_rope_args, q_out) - 96usize];
    ["Offset of field: kqm_rope_args::q_normed"][::core::mem::offset_of!(kqm_rope_args, q_normed) - 104usize];
    ["Offset of field: kqm_rope_args::k_normed"][::core::mem::offset_of!(kqm_rope_args, k_normed) - 112usize];
    ["Offset of field: kqm_rope_args::k_out"][::core::mem::offset_of!(kqm_rope_args, k_out) - 120usize];
    ["Offset of field: kqm_rope_args::k_cache"][::core::mem::offset_of!(kqm_rope_args, k_cache) - 128usize];
    ["Offset of field: kqm_rope_args::v_cache"][::core::mem::offset_of!(kqm_rope_args, v_cache) - 136usize];
    ["Offset of field: kqm_rope_args::cache_type"][::core::mem::offset_of!(kqm_rope_args, cache_type) - 144usize];
    ["Offset of field: kqm_rope_args::heads"][::core::mem::offset_of!(kqm_rope_args, heads) - 148usize];
    ["Offset of field: kqm_rope_args::kv_heads"][::core::mem::offset_of!(kqm_rope_args, kv_heads) - 152usize];
    ["Offset of field: kqm_rope_args::head_dim"][::core::mem::offset_of!(kqm_rope_args, head_dim) - 156usize];
    ["Offset of field: kqm_rope_args::eps"][::core::mem::offset_of!(kqm_rope_args, eps) - 160usize];
};
impl Default for kqm_rope_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/** attention: causal grouped-query attention of a batch's queries over the cache, in chunks of KQM_ATTENTION_CHUNK
positions. A token sees the positions of its sequence up to its own.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_attention_args {
    pub batch: kqm_batch,
    /// \[tokens, heads, head_dim\]
    pub q: *const f32,
    /// \[pool_pages, KQM_ATTENTION_CHUNK, kv_heads, head_dim\]
    pub k_cache: *const ::core::ffi::c_void,
    /// \[pool_pages, KQM_ATTENTION_CHUNK, kv_heads, head_dim\]
    pub v_cache: *const ::core::ffi::c_void,
    /// \[optional\] \[tokens, heads, head_dim\]
    pub out: *mut f32,
    /// \[optional\] \[tokens, ceil(heads \* head_dim / 256)\], the last block filled up with zeros
    pub fixed: *mut kqm_fixed_block,
    /// \[optional\] \[tokens, heads, capacity\]: scaled scores; -inf where masked
    pub scores: *mut f32,
    /// kqm_attention_workspace() bytes, 16-byte aligned
    pub workspace: *mut ::core::ffi::c_void,
    pub workspace_bytes: u64,
    pub cache_type: u32,
    /// at most 65535; a multiple of kv_heads, at most 16 times
    pub heads: u32,
    pub kv_heads: u32,
    /// 64, 128, 192 or 256
    pub head_dim: u32,
    /// 1 / sqrt(head_dim)
    pub scale: f32,
    /** \[optional: rope.q NULL\] a single token: do what kqm_rope does first, in the same launch; its
    batch, shapes and caches are those above*/
    pub rope: kqm_rope_args,
    /** 1, with rope: the launch right before this one in the stream is kqm_qkv, kqm_float_matvec, or a kernel that does not let its
    successor start early. The batch and the caches, which it does not write, are read while it still runs*/
    pub follows_qkv: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_attention_args"][::core::mem::size_of::<kqm_attention_args>() - 312usize];
    ["Alignment of kqm_attention_args"][::core::mem::align_of::<kqm_attention_args>() - 8usize];
    ["Offset of field: kqm_attention_args::batch"][::core::mem::offset_of!(kqm_attention_args, batch) - 0usize];
    ["Offset of field: kqm_attention_args::q"][::core::mem::offset_of!(kqm_attention_args, q) - 48usize];
    ["Offset of field: kqm_attention_args::k_cache"][::core::mem::offset_of!(kqm_attention_args, k_cache) - 56usize];
    ["Offset of field: kqm_attention_args::v_cache"][::core::mem::offset_of!(kqm_attention_args, v_cache) - 64usize];
    ["Offset of field: kqm_attention_args::out"][::core::mem::offset_of!(kqm_attention_args, out) - 72usize];
    ["Offset of field: kqm_attention_args::fixed"][::core::mem::offset_of!(kqm_attention_args, fixed) - 80usize];
    ["Offset of field: kqm_attention_args::scores"][::core::mem::offset_of!(kqm_attention_args, scores) - 88usize];
    ["Offset of field: kqm_attention_args::workspace"]
        [::core::mem::offset_of!(kqm_attention_args, workspace) - 96usize];
    ["Offset of field: kqm_attention_args::workspace_bytes"]
        [::core::mem::offset_of!(kqm_attention_args, workspace_bytes) - 104usize];
    ["Offset of field: kqm_attention_args::cache_type"]
        [::core::mem::offset_of!(kqm_attention_args, cache_type) - 112usize];
    ["Offset of field: kqm_attention_args::heads"][::core::mem::offset_of!(kqm_attention_args, heads) - 116usize];
    ["Offset of field: kqm_attention_args::kv_heads"][::core::mem::offset_of!(kqm_attention_args, kv_heads) - 120usize];
    ["Offset of field: kqm_attention_args::head_dim"][::core::mem::offset_of!(kqm_attention_args, head_dim) - 124usize];
    ["Offset of field: kqm_attention_args::scale"][::core::mem::offset_of!(kqm_attention_args, scale) - 128usize];
    ["Offset of field: kqm_attention_args::rope"][::core::mem::offset_of!(kqm_attention_args, rope) - 136usize];
    ["Offset of field: kqm_attention_args::follows_qkv"]
        [::core::mem::offset_of!(kqm_attention_args, follows_qkv) - 304usize];
};
impl Default for kqm_attention_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/** moe_router: logits = W x (F32 weights), the top_k largest (ties to the lower expert), and their softmax
probabilities, renormalised to sum 1 or not.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_moe_router_args {
    /// \[tokens, cols\]; not read with a fused norm
    pub x: *const f32,
    /// a single token: x is made from this row
    pub norm: kqm_fused_norm,
    /// \[optional\] with a fused norm: x as fixed point, \[cols / 256\]
    pub fixed: *mut kqm_fixed_block,
    /// \[experts, cols\]
    pub w: *const f32,
    /// \[tokens, experts\]
    pub logits: *mut f32,
    /** \[tokens, top_k\], highest probability first; NULL for a single token: only the logits are made, and
    moe_swiglu chooses*/
    pub indices: *mut u32,
    /// \[tokens, top_k\]; not written without indices
    pub weights: *mut f32,
    /// \[tokens\] zero before the first call; the launcher leaves it zero. Not used without indices
    pub done: *mut u32,
    pub tokens: u32,
    /// a multiple of 256
    pub cols: u32,
    /// at most KQM_MAX_EXPERTS
    pub experts: u32,
    /// 1 ..= min(experts, KQM_MAX_TOP_K)
    pub top_k: u32,
    /// KQM_WEIGHTS_...
    pub weighting: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_moe_router_args"][::core::mem::size_of::<kqm_moe_router_args>() - 112usize];
    ["Alignment of kqm_moe_router_args"][::core::mem::align_of::<kqm_moe_router_args>() - 8usize];
    ["Offset of field: kqm_moe_router_args::x"][::core::mem::offset_of!(kqm_moe_router_args, x) - 0usize];
    ["Offset of field: kqm_moe_router_args::norm"][::core::mem::offset_of!(kqm_moe_router_args, norm) - 8usize];
    ["Offset of field: kqm_moe_router_args::fixed"][::core::mem::offset_of!(kqm_moe_router_args, fixed) - 40usize];
    ["Offset of field: kqm_moe_router_args::w"][::core::mem::offset_of!(kqm_moe_router_args, w) - 48usize];
    ["Offset of field: kqm_moe_router_args::logits"][::core::mem::offset_of!(kqm_moe_router_args, logits) - 56usize];
    ["Offset of field: kqm_moe_router_args::indices"][::core::mem::offset_of!(kqm_moe_router_args, indices) - 64usize];
    ["Offset of field: kqm_moe_router_args::weights"][::core::mem::offset_of!(kqm_moe_router_args, weights) - 72usize];
    ["Offset of field: kqm_moe_router_args::done"][::core::mem::offset_of!(kqm_moe_router_args, done) - 80usize];
    ["Offset of field: kqm_moe_router_args::tokens"][::core::mem::offset_of!(kqm_moe_router_args, tokens) - 88usize];
    ["Offset of field: kqm_moe_router_args::cols"][::core::mem::offset_of!(kqm_moe_router_args, cols) - 92usize];
    ["Offset of field: kqm_moe_router_args::experts"][::core::mem::offset_of!(kqm_moe_router_args, experts) - 96usize];
    ["Offset of field: kqm_moe_router_args::top_k"][::core::mem::offset_of!(kqm_moe_router_args, top_k) - 100usize];
    ["Offset of field: kqm_moe_router_args::weighting"]
        [::core::mem::offset_of!(kqm_moe_router_args, weighting) - 104usize];
};
impl Default for kqm_moe_router_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// moe_group: the pairs of a batch grouped by expert, so that an expert's weights are read once for its tokens.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_moe_group_args {
    /// \[tokens, top_k\]
    pub indices: *const u32,
    /// max_items = kqm_moe_max_items()
    pub groups: kqm_groups,
    pub tokens: u32,
    pub experts: u32,
    pub top_k: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_moe_group_args"][::core::mem::size_of::<kqm_moe_group_args>() - 48usize];
    ["Alignment of kqm_moe_group_args"][::core::mem::align_of::<kqm_moe_group_args>() - 8usize];
    ["Offset of field: kqm_moe_group_args::indices"][::core::mem::offset_of!(kqm_moe_group_args, indices) - 0usize];
    ["Offset of field: kqm_moe_group_args::groups"][::core::mem::offset_of!(kqm_moe_group_args, groups) - 8usize];
    ["Offset of field: kqm_moe_group_args::tokens"][::core::mem::offset_of!(kqm_moe_group_args, tokens) - 32usize];
    ["Offset of field: kqm_moe_group_args::experts"][::core::mem::offset_of!(kqm_moe_group_args, experts) - 36usize];
    ["Offset of field: kqm_moe_group_args::top_k"][::core::mem::offset_of!(kqm_moe_group_args, top_k) - 40usize];
};
impl Default for kqm_moe_group_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// moe_swiglu: out\[p\] = silu(W_gate\[e\] x) \* (W_up\[e\] x) for every pair p = (token, e).
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_moe_swiglu_args {
    /// \[experts\]\[ff, cols\]
    pub gate: kqm_matrix,
    /// \[experts\]\[ff, cols\]
    pub up: kqm_matrix,
    /// \[tokens, cols / 256\]
    pub x: *const kqm_fixed_block,
    /// \[tokens, top_k\]: used for a single token, whose pairs need no grouping
    pub indices: *mut u32,
    /// \[optional\] \[experts\]: a single token: choose the experts here, and write indices and weights
    pub logits: *const f32,
    /// \[top_k\], with logits
    pub weights: *mut f32,
    /// used for two or more tokens; may hold NULL for a single one
    pub groups: kqm_groups,
    /// \[optional\] \[pairs, ff\]
    pub gate_out: *mut f32,
    /// \[optional\] \[pairs, ff\]
    pub up_out: *mut f32,
    /// \[pairs, ff\]
    pub out: *mut f32,
    pub tokens: u32,
    pub top_k: u32,
    /// KQM_WEIGHTS_..., with logits
    pub weighting: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_moe_swiglu_args"][::core::mem::size_of::<kqm_moe_swiglu_args>() - 144usize];
    ["Alignment of kqm_moe_swiglu_args"][::core::mem::align_of::<kqm_moe_swiglu_args>() - 8usize];
    ["Offset of field: kqm_moe_swiglu_args::gate"][::core::mem::offset_of!(kqm_moe_swiglu_args, gate) - 0usize];
    ["Offset of field: kqm_moe_swiglu_args::up"][::core::mem::offset_of!(kqm_moe_swiglu_args, up) - 24usize];
    ["Offset of field: kqm_moe_swiglu_args::x"][::core::mem::offset_of!(kqm_moe_swiglu_args, x) - 48usize];
    ["Offset of field: kqm_moe_swiglu_args::indices"][::core::mem::offset_of!(kqm_moe_swiglu_args, indices) - 56usize];
    ["Offset of field: kqm_moe_swiglu_args::logits"][::core::mem::offset_of!(kqm_moe_swiglu_args, logits) - 64usize];
    ["Offset of field: kqm_moe_swiglu_args::weights"][::core::mem::offset_of!(kqm_moe_swiglu_args, weights) - 72usize];
    ["Offset of field: kqm_moe_swiglu_args::groups"][::core::mem::offset_of!(kqm_moe_swiglu_args, groups) - 80usize];
    ["Offset of field: kqm_moe_swiglu_args::gate_out"]
        [::core::mem::offset_of!(kqm_moe_swiglu_args, gate_out) - 104usize];
    ["Offset of field: kqm_moe_swiglu_args::up_out"][::core::mem::offset_of!(kqm_moe_swiglu_args, up_out) - 112usize];
    ["Offset of field: kqm_moe_swiglu_args::out"][::core::mem::offset_of!(kqm_moe_swiglu_args, out) - 120usize];
    ["Offset of field: kqm_moe_swiglu_args::tokens"][::core::mem::offset_of!(kqm_moe_swiglu_args, tokens) - 128usize];
    ["Offset of field: kqm_moe_swiglu_args::top_k"][::core::mem::offset_of!(kqm_moe_swiglu_args, top_k) - 132usize];
    ["Offset of field: kqm_moe_swiglu_args::weighting"]
        [::core::mem::offset_of!(kqm_moe_swiglu_args, weighting) - 136usize];
};
impl Default for kqm_moe_swiglu_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// moe_down: y\[t\] = residual\[t\] + sum_rank weights\[t, rank\] \* (W_down\[e\] x\[pair\]).
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_moe_down_args {
    /// \[experts\]\[rows, cols\]
    pub down: kqm_matrix,
    /// \[pairs, cols / 256\]; not read when swiglu is set
    pub x: *const kqm_fixed_block,
    /** \[optional\] \[pairs, cols\]: a single token: x is made from these rows; needs
    top_k \* cols / 256 \<= KQM_FUSED_UNITS*/
    pub swiglu: *const f32,
    /// \[tokens, top_k\]
    pub indices: *const u32,
    /// \[tokens, top_k\]
    pub weights: *const f32,
    /// used for two or more tokens; may hold NULL for a single one
    pub groups: kqm_groups,
    /// \[pairs, rows\]: the products before the sum
    pub expert_out: *mut f32,
    /// \[optional\] \[tokens, rows\]: the sum before the residual is added
    pub sum: *mut f32,
    /// \[optional\] \[tokens, rows\] of `type`; may equal y
    pub residual: *const ::core::ffi::c_void,
    /// \[tokens, rows\] of `type`
    pub y: *mut ::core::ffi::c_void,
    /// KQM_TYPE_F32, KQM_TYPE_F16 or KQM_TYPE_BF16
    pub type_: u32,
    pub tokens: u32,
    pub top_k: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_moe_down_args"][::core::mem::size_of::<kqm_moe_down_args>() - 128usize];
    ["Alignment of kqm_moe_down_args"][::core::mem::align_of::<kqm_moe_down_args>() - 8usize];
    ["Offset of field: kqm_moe_down_args::down"][::core::mem::offset_of!(kqm_moe_down_args, down) - 0usize];
    ["Offset of field: kqm_moe_down_args::x"][::core::mem::offset_of!(kqm_moe_down_args, x) - 24usize];
    ["Offset of field: kqm_moe_down_args::swiglu"][::core::mem::offset_of!(kqm_moe_down_args, swiglu) - 32usize];
    ["Offset of field: kqm_moe_down_args::indices"][::core::mem::offset_of!(kqm_moe_down_args, indices) - 40usize];
    ["Offset of field: kqm_moe_down_args::weights"][::core::mem::offset_of!(kqm_moe_down_args, weights) - 48usize];
    ["Offset of field: kqm_moe_down_args::groups"][::core::mem::offset_of!(kqm_moe_down_args, groups) - 56usize];
    ["Offset of field: kqm_moe_down_args::expert_out"]
        [::core::mem::offset_of!(kqm_moe_down_args, expert_out) - 80usize];
    ["Offset of field: kqm_moe_down_args::sum"][::core::mem::offset_of!(kqm_moe_down_args, sum) - 88usize];
    ["Offset of field: kqm_moe_down_args::residual"][::core::mem::offset_of!(kqm_moe_down_args, residual) - 96usize];
    ["Offset of field: kqm_moe_down_args::y"][::core::mem::offset_of!(kqm_moe_down_args, y) - 104usize];
    ["Offset of field: kqm_moe_down_args::type_"][::core::mem::offset_of!(kqm_moe_down_args, type_) - 112usize];
    ["Offset of field: kqm_moe_down_args::tokens"][::core::mem::offset_of!(kqm_moe_down_args, tokens) - 116usize];
    ["Offset of field: kqm_moe_down_args::top_k"][::core::mem::offset_of!(kqm_moe_down_args, top_k) - 120usize];
};
impl Default for kqm_moe_down_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/** moe_layer: a whole MoE layer of normed activations, y\[t\] = residual\[t\] + sum_rank weights\[t, rank\] \* down(swiglu(x\[t\])): quantize,
moe_router, moe_group, moe_swiglu, quantize and moe_down, with what they leave for each other in the workspace. Its contents do not
matter, and nobody else may use it until the layer is done. The counts must be those that the kernels take, with at most 65,535 items
(kqm_moe_max_items).*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_moe_layer_args {
    /// \[tokens, gate.cols\] of `x_type`
    pub x: *const ::core::ffi::c_void,
    /// \[gate.experts, gate.cols\]
    pub router: *const f32,
    /// \[experts\]\[ff, cols\]
    pub gate: kqm_matrix,
    /// \[experts\]\[ff, cols\]
    pub up: kqm_matrix,
    /// \[experts\]\[rows, ff\]
    pub down: kqm_matrix,
    /// \[optional\] \[tokens, down.rows\] of `y_type`; may equal y
    pub residual: *const ::core::ffi::c_void,
    /// \[tokens, down.rows\] of `y_type`
    pub y: *mut ::core::ffi::c_void,
    /// kqm_moe_layer_workspace() bytes, 16-byte aligned
    pub workspace: *mut ::core::ffi::c_void,
    pub workspace_bytes: u64,
    /// KQM_TYPE_F32, KQM_TYPE_F16 or KQM_TYPE_BF16, and so is y_type
    pub x_type: u32,
    pub y_type: u32,
    /// at most 65,535
    pub tokens: u32,
    pub top_k: u32,
    /// KQM_WEIGHTS_...
    pub weighting: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_moe_layer_args"][::core::mem::size_of::<kqm_moe_layer_args>() - 144usize];
    ["Alignment of kqm_moe_layer_args"][::core::mem::align_of::<kqm_moe_layer_args>() - 8usize];
    ["Offset of field: kqm_moe_layer_args::x"][::core::mem::offset_of!(kqm_moe_layer_args, x) - 0usize];
    ["Offset of field: kqm_moe_layer_args::router"][::core::mem::offset_of!(kqm_moe_layer_args, router) - 8usize];
    ["Offset of field: kqm_moe_layer_args::gate"][::core::mem::offset_of!(kqm_moe_layer_args, gate) - 16usize];
    ["Offset of field: kqm_moe_layer_args::up"][::core::mem::offset_of!(kqm_moe_layer_args, up) - 40usize];
    ["Offset of field: kqm_moe_layer_args::down"][::core::mem::offset_of!(kqm_moe_layer_args, down) - 64usize];
    ["Offset of field: kqm_moe_layer_args::residual"][::core::mem::offset_of!(kqm_moe_layer_args, residual) - 88usize];
    ["Offset of field: kqm_moe_layer_args::y"][::core::mem::offset_of!(kqm_moe_layer_args, y) - 96usize];
    ["Offset of field: kqm_moe_layer_args::workspace"]
        [::core::mem::offset_of!(kqm_moe_layer_args, workspace) - 104usize];
    ["Offset of field: kqm_moe_layer_args::workspace_bytes"]
        [::core::mem::offset_of!(kqm_moe_layer_args, workspace_bytes) - 112usize];
    ["Offset of field: kqm_moe_layer_args::x_type"][::core::mem::offset_of!(kqm_moe_layer_args, x_type) - 120usize];
    ["Offset of field: kqm_moe_layer_args::y_type"][::core::mem::offset_of!(kqm_moe_layer_args, y_type) - 124usize];
    ["Offset of field: kqm_moe_layer_args::tokens"][::core::mem::offset_of!(kqm_moe_layer_args, tokens) - 128usize];
    ["Offset of field: kqm_moe_layer_args::top_k"][::core::mem::offset_of!(kqm_moe_layer_args, top_k) - 132usize];
    ["Offset of field: kqm_moe_layer_args::weighting"]
        [::core::mem::offset_of!(kqm_moe_layer_args, weighting) - 136usize];
};
impl Default for kqm_moe_layer_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// residual_add: y = a + b.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_residual_add_args {
    /// \[count\]
    pub a: *const f32,
    /// \[count\]
    pub b: *const f32,
    /// \[count\]; may equal a or b
    pub y: *mut f32,
    pub count: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_residual_add_args"][::core::mem::size_of::<kqm_residual_add_args>() - 32usize];
    ["Alignment of kqm_residual_add_args"][::core::mem::align_of::<kqm_residual_add_args>() - 8usize];
    ["Offset of field: kqm_residual_add_args::a"][::core::mem::offset_of!(kqm_residual_add_args, a) - 0usize];
    ["Offset of field: kqm_residual_add_args::b"][::core::mem::offset_of!(kqm_residual_add_args, b) - 8usize];
    ["Offset of field: kqm_residual_add_args::y"][::core::mem::offset_of!(kqm_residual_add_args, y) - 16usize];
    ["Offset of field: kqm_residual_add_args::count"][::core::mem::offset_of!(kqm_residual_add_args, count) - 24usize];
};
impl Default for kqm_residual_add_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/** float_matvec: products with weights that are floats, as they are in a file. Output i has `ranks` pairs p = i \* ranks + rank, and
value\[p, r\] = sum_k W\[indices\[p\]\]\[r, k\] x\[p / share, k\]. y\[i\] is the value of its only pair, or with `weights` the sum over its ranks of
weights\[p\] \* value\[p\], with the residual added, or as one half of a SwiGLU.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_float_matvec_args {
    /// \[experts\]\[rows, cols\], 16-byte aligned
    pub w: *const ::core::ffi::c_void,
    /// \[ceil(count \* ranks / share), cols\], 16-byte aligned
    pub x: *const f32,
    /// \[optional\] \[count, ranks\]: experts; one \>= experts gives NaN. Without, there is one matrix
    pub indices: *const u32,
    /// \[optional\] \[count, ranks\]; without, ranks == 1
    pub weights: *const f32,
    /// \[optional\] \[count, rows\]: y = silu(gate) \* value
    pub gate: *const f32,
    /// \[optional, not with gate\] \[count, rows\]: y = silu(value) \* up
    pub up: *const f32,
    /// \[optional\] \[count, rows\]; added in f32; may equal y
    pub residual: *const f32,
    /// \[optional\] \[count, ranks, rows\]: the values of all pairs
    pub product: *mut f32,
    /// \[optional, with weights\] \[count, rows\]: the sum before the residual is added
    pub sum: *mut f32,
    /// \[count, rows\]
    pub y: *mut f32,
    /// KQM_TYPE_F32, KQM_TYPE_F16 or KQM_TYPE_BF16
    pub type_: u32,
    pub rows: u32,
    /// a multiple of 32, at most 16384
    pub cols: u32,
    pub experts: u32,
    pub count: u32,
    /// at most KQM_MAX_TOP_K
    pub ranks: u32,
    /// neighbouring pairs with the same row of x
    pub share: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_float_matvec_args"][::core::mem::size_of::<kqm_float_matvec_args>() - 112usize];
    ["Alignment of kqm_float_matvec_args"][::core::mem::align_of::<kqm_float_matvec_args>() - 8usize];
    ["Offset of field: kqm_float_matvec_args::w"][::core::mem::offset_of!(kqm_float_matvec_args, w) - 0usize];
    ["Offset of field: kqm_float_matvec_args::x"][::core::mem::offset_of!(kqm_float_matvec_args, x) - 8usize];
    ["Offset of field: kqm_float_matvec_args::indices"]
        [::core::mem::offset_of!(kqm_float_matvec_args, indices) - 16usize];
    ["Offset of field: kqm_float_matvec_args::weights"]
        [::core::mem::offset_of!(kqm_float_matvec_args, weights) - 24usize];
    ["Offset of field: kqm_float_matvec_args::gate"][::core::mem::offset_of!(kqm_float_matvec_args, gate) - 32usize];
    ["Offset of field: kqm_float_matvec_args::up"][::core::mem::offset_of!(kqm_float_matvec_args, up) - 40usize];
    ["Offset of field: kqm_float_matvec_args::residual"]
        [::core::mem::offset_of!(kqm_float_matvec_args, residual) - 48usize];
    ["Offset of field: kqm_float_matvec_args::product"]
        [::core::mem::offset_of!(kqm_float_matvec_args, product) - 56usize];
    ["Offset of field: kqm_float_matvec_args::sum"][::core::mem::offset_of!(kqm_float_matvec_args, sum) - 64usize];
    ["Offset of field: kqm_float_matvec_args::y"][::core::mem::offset_of!(kqm_float_matvec_args, y) - 72usize];
    ["Offset of field: kqm_float_matvec_args::type_"][::core::mem::offset_of!(kqm_float_matvec_args, type_) - 80usize];
    ["Offset of field: kqm_float_matvec_args::rows"][::core::mem::offset_of!(kqm_float_matvec_args, rows) - 84usize];
    ["Offset of field: kqm_float_matvec_args::cols"][::core::mem::offset_of!(kqm_float_matvec_args, cols) - 88usize];
    ["Offset of field: kqm_float_matvec_args::experts"]
        [::core::mem::offset_of!(kqm_float_matvec_args, experts) - 92usize];
    ["Offset of field: kqm_float_matvec_args::count"][::core::mem::offset_of!(kqm_float_matvec_args, count) - 96usize];
    ["Offset of field: kqm_float_matvec_args::ranks"][::core::mem::offset_of!(kqm_float_matvec_args, ranks) - 100usize];
    ["Offset of field: kqm_float_matvec_args::share"][::core::mem::offset_of!(kqm_float_matvec_args, share) - 104usize];
};
impl Default for kqm_float_matvec_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// argmax: index of the largest value of each row, ties to the lower index; a NaN counts as largest.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_argmax_args {
    /// \[rows, cols\]
    pub x: *const f32,
    /// \[rows\]
    pub out: *mut u32,
    /// \[rows\] zero before the first call; the launcher leaves it zero
    pub partial: *mut u64,
    /// \[rows\] zero before the first call; the launcher leaves it zero
    pub done: *mut u32,
    /// \[optional\] \[rows\]: each incremented by 1 (the positions of a decode loop's next tokens)
    pub advance: *mut u32,
    /// \[optional\] \[rows, history_len\]: of row r at advance\[r\], before it, out\[r\] or, of no finite value, 2^32 - 1
    pub history: *mut u32,
    pub history_len: u32,
    pub rows: u32,
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_argmax_args"][::core::mem::size_of::<kqm_argmax_args>() - 64usize];
    ["Alignment of kqm_argmax_args"][::core::mem::align_of::<kqm_argmax_args>() - 8usize];
    ["Offset of field: kqm_argmax_args::x"][::core::mem::offset_of!(kqm_argmax_args, x) - 0usize];
    ["Offset of field: kqm_argmax_args::out"][::core::mem::offset_of!(kqm_argmax_args, out) - 8usize];
    ["Offset of field: kqm_argmax_args::partial"][::core::mem::offset_of!(kqm_argmax_args, partial) - 16usize];
    ["Offset of field: kqm_argmax_args::done"][::core::mem::offset_of!(kqm_argmax_args, done) - 24usize];
    ["Offset of field: kqm_argmax_args::advance"][::core::mem::offset_of!(kqm_argmax_args, advance) - 32usize];
    ["Offset of field: kqm_argmax_args::history"][::core::mem::offset_of!(kqm_argmax_args, history) - 40usize];
    ["Offset of field: kqm_argmax_args::history_len"][::core::mem::offset_of!(kqm_argmax_args, history_len) - 48usize];
    ["Offset of field: kqm_argmax_args::rows"][::core::mem::offset_of!(kqm_argmax_args, rows) - 52usize];
    ["Offset of field: kqm_argmax_args::cols"][::core::mem::offset_of!(kqm_argmax_args, cols) - 56usize];
};
impl Default for kqm_argmax_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// How a token is drawn (docs/arithmetic.md). Of a row for which something here makes no sense no token is chosen.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct kqm_sampling {
    pub seed: u64,
    /// finite, at least 0; 0: the largest logit is taken
    pub temperature: f32,
    /// 0 .. 1; 1: all
    pub top_p: f32,
    /// 0 .. 1; 0: all
    pub min_p: f32,
    /// finite, above 0: of each token of the window; 1: none
    pub penalty: f32,
    /// 0: all
    pub top_k: u32,
    /// the last so many tokens, at most history_len
    pub window: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_sampling"][::core::mem::size_of::<kqm_sampling>() - 32usize];
    ["Alignment of kqm_sampling"][::core::mem::align_of::<kqm_sampling>() - 8usize];
    ["Offset of field: kqm_sampling::seed"][::core::mem::offset_of!(kqm_sampling, seed) - 0usize];
    ["Offset of field: kqm_sampling::temperature"][::core::mem::offset_of!(kqm_sampling, temperature) - 8usize];
    ["Offset of field: kqm_sampling::top_p"][::core::mem::offset_of!(kqm_sampling, top_p) - 12usize];
    ["Offset of field: kqm_sampling::min_p"][::core::mem::offset_of!(kqm_sampling, min_p) - 16usize];
    ["Offset of field: kqm_sampling::penalty"][::core::mem::offset_of!(kqm_sampling, penalty) - 20usize];
    ["Offset of field: kqm_sampling::top_k"][::core::mem::offset_of!(kqm_sampling, top_k) - 24usize];
    ["Offset of field: kqm_sampling::window"][::core::mem::offset_of!(kqm_sampling, window) - 28usize];
};
/// What kqm_sample keeps of a row between its launches.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_sample_state {
    /// as argmax has it
    pub best: u64,
    /// weights by digit of the logit's order
    pub sum: [u64; 256usize],
    /// the same of tokens
    pub count: [u32; 256usize],
    /// what is chosen already: weight, or tokens
    pub above: u64,
    /// its weight
    pub above_weight: u64,
    /// how much is chosen
    pub limit: u64,
    /// the weight of what top-k left
    pub total: u64,
    /// the digits of the last one's order so far
    pub prefix: u32,
    /// the order of the last one that is kept
    pub least: u32,
    /// how many of its logit are kept
    pub ties: u32,
    pub done: u32,
    pub largest: f32,
    pub drawing: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_sample_state"][::core::mem::size_of::<kqm_sample_state>() - 3136usize];
    ["Alignment of kqm_sample_state"][::core::mem::align_of::<kqm_sample_state>() - 8usize];
    ["Offset of field: kqm_sample_state::best"][::core::mem::offset_of!(kqm_sample_state, best) - 0usize];
    ["Offset of field: kqm_sample_state::sum"][::core::mem::offset_of!(kqm_sample_state, sum) - 8usize];
    ["Offset of field: kqm_sample_state::count"][::core::mem::offset_of!(kqm_sample_state, count) - 2056usize];
    ["Offset of field: kqm_sample_state::above"][::core::mem::offset_of!(kqm_sample_state, above) - 3080usize];
    ["Offset of field: kqm_sample_state::above_weight"]
        [::core::mem::offset_of!(kqm_sample_state, above_weight) - 3088usize];
    ["Offset of field: kqm_sample_state::limit"][::core::mem::offset_of!(kqm_sample_state, limit) - 3096usize];
    ["Offset of field: kqm_sample_state::total"][::core::mem::offset_of!(kqm_sample_state, total) - 3104usize];
    ["Offset of field: kqm_sample_state::prefix"][::core::mem::offset_of!(kqm_sample_state, prefix) - 3112usize];
    ["Offset of field: kqm_sample_state::least"][::core::mem::offset_of!(kqm_sample_state, least) - 3116usize];
    ["Offset of field: kqm_sample_state::ties"][::core::mem::offset_of!(kqm_sample_state, ties) - 3120usize];
    ["Offset of field: kqm_sample_state::done"][::core::mem::offset_of!(kqm_sample_state, done) - 3124usize];
    ["Offset of field: kqm_sample_state::largest"][::core::mem::offset_of!(kqm_sample_state, largest) - 3128usize];
    ["Offset of field: kqm_sample_state::drawing"][::core::mem::offset_of!(kqm_sample_state, drawing) - 3132usize];
};
impl Default for kqm_sample_state {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// What a CTA finds in its part of a row.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct kqm_sample_part {
    /// of what is kept but for ties
    pub weight: u64,
    pub ties: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_sample_part"][::core::mem::size_of::<kqm_sample_part>() - 16usize];
    ["Alignment of kqm_sample_part"][::core::mem::align_of::<kqm_sample_part>() - 8usize];
    ["Offset of field: kqm_sample_part::weight"][::core::mem::offset_of!(kqm_sample_part, weight) - 0usize];
    ["Offset of field: kqm_sample_part::ties"][::core::mem::offset_of!(kqm_sample_part, ties) - 8usize];
};
/** sample: draws a token of each row of logits. The last choices of a row's sequence, whose logits may be penalised, are in `history` where argmax
puts them: under the position p whose logits they come from, here at p % history_len.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_sample_args {
    /// \[rows, cols\]
    pub x: *const f32,
    /// \[rows\]
    pub sampling: *const kqm_sampling,
    /// \[rows\]: that of the logits; the token's own is the next one
    pub position: *mut u32,
    /// \[optional\] \[rows, history_len\]
    pub history: *mut u32,
    /// \[rows\]: 2^32 - 1 where the largest logit is not finite
    pub out: *mut u32,
    /// \[rows\] zero before the first call; the launcher's own from then on
    pub state: *mut kqm_sample_state,
    /// \[rows, ceil(cols / KQM_SAMPLE_PART)\]
    pub parts: *mut kqm_sample_part,
    /// 0 without history
    pub history_len: u32,
    /// 1: each position is incremented, and the token goes to the history
    pub advance: u32,
    pub rows: u32,
    /// at most 2^24
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_sample_args"][::core::mem::size_of::<kqm_sample_args>() - 72usize];
    ["Alignment of kqm_sample_args"][::core::mem::align_of::<kqm_sample_args>() - 8usize];
    ["Offset of field: kqm_sample_args::x"][::core::mem::offset_of!(kqm_sample_args, x) - 0usize];
    ["Offset of field: kqm_sample_args::sampling"][::core::mem::offset_of!(kqm_sample_args, sampling) - 8usize];
    ["Offset of field: kqm_sample_args::position"][::core::mem::offset_of!(kqm_sample_args, position) - 16usize];
    ["Offset of field: kqm_sample_args::history"][::core::mem::offset_of!(kqm_sample_args, history) - 24usize];
    ["Offset of field: kqm_sample_args::out"][::core::mem::offset_of!(kqm_sample_args, out) - 32usize];
    ["Offset of field: kqm_sample_args::state"][::core::mem::offset_of!(kqm_sample_args, state) - 40usize];
    ["Offset of field: kqm_sample_args::parts"][::core::mem::offset_of!(kqm_sample_args, parts) - 48usize];
    ["Offset of field: kqm_sample_args::history_len"][::core::mem::offset_of!(kqm_sample_args, history_len) - 56usize];
    ["Offset of field: kqm_sample_args::advance"][::core::mem::offset_of!(kqm_sample_args, advance) - 60usize];
    ["Offset of field: kqm_sample_args::rows"][::core::mem::offset_of!(kqm_sample_args, rows) - 64usize];
    ["Offset of field: kqm_sample_args::cols"][::core::mem::offset_of!(kqm_sample_args, cols) - 68usize];
};
impl Default for kqm_sample_args {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/** The launchers as a table, so that one caller can drive the CUDA build or the CPU emulation of the same sources. They do not ask
who calls: who has the table was asked when it was given.*/
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct kqm_kernels {
    pub repack:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_repack_args, arg2: kqm_stream) -> kqm_status>,
    pub quantize:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_quantize_args, arg2: kqm_stream) -> kqm_status>,
    pub matvec:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_matvec_args, arg2: kqm_stream) -> kqm_status>,
    pub q4_k_matvec:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_q4_k_matvec_args, arg2: kqm_stream) -> kqm_status>,
    pub q6_k_gemv:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_q6_k_gemv_args, arg2: kqm_stream) -> kqm_status>,
    pub qkv: ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_qkv_args, arg2: kqm_stream) -> kqm_status>,
    pub embedding:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_embedding_args, arg2: kqm_stream) -> kqm_status>,
    pub rms_norm:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_rms_norm_args, arg2: kqm_stream) -> kqm_status>,
    pub rope: ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_rope_args, arg2: kqm_stream) -> kqm_status>,
    pub attention_workspace: ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_attention_args) -> u64>,
    pub attention:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_attention_args, arg2: kqm_stream) -> kqm_status>,
    pub moe_router:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_moe_router_args, arg2: kqm_stream) -> kqm_status>,
    pub moe_max_items: ::core::option::Option<unsafe extern "C" fn(tokens: u32, experts: u32, top_k: u32) -> u32>,
    pub moe_group:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_moe_group_args, arg2: kqm_stream) -> kqm_status>,
    pub moe_swiglu:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_moe_swiglu_args, arg2: kqm_stream) -> kqm_status>,
    pub moe_down:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_moe_down_args, arg2: kqm_stream) -> kqm_status>,
    pub residual_add: ::core::option::Option<
        unsafe extern "C" fn(arg1: *const kqm_residual_add_args, arg2: kqm_stream) -> kqm_status,
    >,
    pub argmax:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_argmax_args, arg2: kqm_stream) -> kqm_status>,
    pub float_matvec: ::core::option::Option<
        unsafe extern "C" fn(arg1: *const kqm_float_matvec_args, arg2: kqm_stream) -> kqm_status,
    >,
    pub sample:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_sample_args, arg2: kqm_stream) -> kqm_status>,
    pub moe_layer_workspace: ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_moe_layer_args) -> u64>,
    pub moe_layer:
        ::core::option::Option<unsafe extern "C" fn(arg1: *const kqm_moe_layer_args, arg2: kqm_stream) -> kqm_status>,
    /// Text of a status: a static string.
    pub status_text: ::core::option::Option<unsafe extern "C" fn(arg1: kqm_status) -> *const ::core::ffi::c_char>,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_kernels"][::core::mem::size_of::<kqm_kernels>() - 184usize];
    ["Alignment of kqm_kernels"][::core::mem::align_of::<kqm_kernels>() - 8usize];
    ["Offset of field: kqm_kernels::repack"][::core::mem::offset_of!(kqm_kernels, repack) - 0usize];
    ["Offset of field: kqm_kernels::quantize"][::core::mem::offset_of!(kqm_kernels, quantize) - 8usize];
    ["Offset of field: kqm_kernels::matvec"][::core::mem::offset_of!(kqm_kernels, matvec) - 16usize];
    ["Offset of field: kqm_kernels::q4_k_matvec"][::core::mem::offset_of!(kqm_kernels, q4_k_matvec) - 24usize];
    ["Offset of field: kqm_kernels::q6_k_gemv"][::core::mem::offset_of!(kqm_kernels, q6_k_gemv) - 32usize];
    ["Offset of field: kqm_kernels::qkv"][::core::mem::offset_of!(kqm_kernels, qkv) - 40usize];
    ["Offset of field: kqm_kernels::embedding"][::core::mem::offset_of!(kqm_kernels, embedding) - 48usize];
    ["Offset of field: kqm_kernels::rms_norm"][::core::mem::offset_of!(kqm_kernels, rms_norm) - 56usize];
    ["Offset of field: kqm_kernels::rope"][::core::mem::offset_of!(kqm_kernels, rope) - 64usize];
    ["Offset of field: kqm_kernels::attention_workspace"]
        [::core::mem::offset_of!(kqm_kernels, attention_workspace) - 72usize];
    ["Offset of field: kqm_kernels::attention"][::core::mem::offset_of!(kqm_kernels, attention) - 80usize];
    ["Offset of field: kqm_kernels::moe_router"][::core::mem::offset_of!(kqm_kernels, moe_router) - 88usize];
    ["Offset of field: kqm_kernels::moe_max_items"][::core::mem::offset_of!(kqm_kernels, moe_max_items) - 96usize];
    ["Offset of field: kqm_kernels::moe_group"][::core::mem::offset_of!(kqm_kernels, moe_group) - 104usize];
    ["Offset of field: kqm_kernels::moe_swiglu"][::core::mem::offset_of!(kqm_kernels, moe_swiglu) - 112usize];
    ["Offset of field: kqm_kernels::moe_down"][::core::mem::offset_of!(kqm_kernels, moe_down) - 120usize];
    ["Offset of field: kqm_kernels::residual_add"][::core::mem::offset_of!(kqm_kernels, residual_add) - 128usize];
    ["Offset of field: kqm_kernels::argmax"][::core::mem::offset_of!(kqm_kernels, argmax) - 136usize];
    ["Offset of field: kqm_kernels::float_matvec"][::core::mem::offset_of!(kqm_kernels, float_matvec) - 144usize];
    ["Offset of field: kqm_kernels::sample"][::core::mem::offset_of!(kqm_kernels, sample) - 152usize];
    ["Offset of field: kqm_kernels::moe_layer_workspace"]
        [::core::mem::offset_of!(kqm_kernels, moe_layer_workspace) - 160usize];
    ["Offset of field: kqm_kernels::moe_layer"][::core::mem::offset_of!(kqm_kernels, moe_layer) - 168usize];
    ["Offset of field: kqm_kernels::status_text"][::core::mem::offset_of!(kqm_kernels, status_text) - 176usize];
};
pub const KQM_ABI: _bindgen_ty_1 = 38332312;
pub type _bindgen_ty_1 = ::core::ffi::c_uint;
unsafe extern "C" {
    /// Most work items that a batch of `tokens` can give.
    pub fn kqm_moe_max_items(tokens: u32, experts: u32, top_k: u32) -> u32;
    pub fn kqm_launch_repack(caller: kqm_caller, args: *const kqm_repack_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_quantize(caller: kqm_caller, args: *const kqm_quantize_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_q4_k_matvec(
        caller: kqm_caller,
        args: *const kqm_q4_k_matvec_args,
        stream: kqm_stream,
    ) -> kqm_status;
    pub fn kqm_launch_q6_k_gemv(caller: kqm_caller, args: *const kqm_q6_k_gemv_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_qkv(caller: kqm_caller, args: *const kqm_qkv_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_embedding(caller: kqm_caller, args: *const kqm_embedding_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_rms_norm(caller: kqm_caller, args: *const kqm_rms_norm_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_rope(caller: kqm_caller, args: *const kqm_rope_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_attention(caller: kqm_caller, args: *const kqm_attention_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_moe_router(
        caller: kqm_caller,
        args: *const kqm_moe_router_args,
        stream: kqm_stream,
    ) -> kqm_status;
    pub fn kqm_launch_moe_group(caller: kqm_caller, args: *const kqm_moe_group_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_moe_swiglu(
        caller: kqm_caller,
        args: *const kqm_moe_swiglu_args,
        stream: kqm_stream,
    ) -> kqm_status;
    pub fn kqm_launch_moe_down(caller: kqm_caller, args: *const kqm_moe_down_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_residual_add(
        caller: kqm_caller,
        args: *const kqm_residual_add_args,
        stream: kqm_stream,
    ) -> kqm_status;
    pub fn kqm_launch_argmax(caller: kqm_caller, args: *const kqm_argmax_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_matvec(caller: kqm_caller, args: *const kqm_matvec_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_float_matvec(
        caller: kqm_caller,
        args: *const kqm_float_matvec_args,
        stream: kqm_stream,
    ) -> kqm_status;
    pub fn kqm_launch_sample(caller: kqm_caller, args: *const kqm_sample_args, stream: kqm_stream) -> kqm_status;
    pub fn kqm_launch_moe_layer(caller: kqm_caller, args: *const kqm_moe_layer_args, stream: kqm_stream) -> kqm_status;
    /// Bytes of workspace that kqm_attention needs for these shapes (pointers are ignored), and for all of a lower reach; 0 for a caller with another header.
    pub fn kqm_launch_attention_workspace(caller: kqm_caller, args: *const kqm_attention_args) -> u64;
    /// Bytes of workspace that kqm_moe_layer needs for these shapes (pointers are ignored); 0 for a caller with another header.
    pub fn kqm_launch_moe_layer_workspace(caller: kqm_caller, args: *const kqm_moe_layer_args) -> u64;
    /** The table of this build: the CUDA kernels, or (KQM_EMULATION) the same sources run on the CPU. NULL unless `abi` is this build's
    KQM_ABI, which is the caller's when both have the same header.*/
    pub fn kqm_kernel_table(abi: u32) -> *const kqm_kernels;
}
