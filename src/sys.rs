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
pub const KQM_ABI_VERSION: u32 = 1;
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
/** repack: a quantized matrix in GGUF's row layout to tile layout, a permutation of bytes (see common/tiles.cuh).
Rows are padded with zero blocks to a multiple of 16.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_repack_args {
    /// \[rows\]\[cols / 256\] blocks as in the file
    pub blocks: *const ::core::ffi::c_void,
    /// \[ceil(rows / 16)\]\[cols / 256\] tiles, 16-byte aligned
    pub tiles: *mut ::core::ffi::c_void,
    pub type_: u32,
    pub rows: u32,
    pub cols: u32,
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
/// quantize: f32 activations to block fixed point.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_quantize_args {
    /// \[tokens, cols\]
    pub x: *const f32,
    /// \[tokens, cols / 256\]
    pub out: *mut kqm_fixed_block,
    pub tokens: u32,
    /// a multiple of 256
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_quantize_args"][::core::mem::size_of::<kqm_quantize_args>() - 24usize];
    ["Alignment of kqm_quantize_args"][::core::mem::align_of::<kqm_quantize_args>() - 8usize];
    ["Offset of field: kqm_quantize_args::x"][::core::mem::offset_of!(kqm_quantize_args, x) - 0usize];
    ["Offset of field: kqm_quantize_args::out"][::core::mem::offset_of!(kqm_quantize_args, out) - 8usize];
    ["Offset of field: kqm_quantize_args::tokens"][::core::mem::offset_of!(kqm_quantize_args, tokens) - 16usize];
    ["Offset of field: kqm_quantize_args::cols"][::core::mem::offset_of!(kqm_quantize_args, cols) - 20usize];
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
/** rope: per-head RMSNorm of q and k, RoPE (NeoX layout: dimension i is paired with i + head_dim / 2), and the write
of k and v into the cache. Position of token t is start + t.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_rope_args {
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
    /// \[1\] position of token 0
    pub start: *const u32,
    /// \[tokens, heads, head_dim\]; may equal q
    pub q_out: *mut f32,
    /// \[optional\] \[tokens, heads, head_dim\]
    pub q_normed: *mut f32,
    /// \[optional\] \[tokens, kv_heads, head_dim\]
    pub k_normed: *mut f32,
    /// \[optional\] \[tokens, kv_heads, head_dim\]
    pub k_out: *mut f32,
    /// \[capacity, kv_heads, head_dim\] f32 or f16
    pub k_cache: *mut ::core::ffi::c_void,
    /// \[capacity, kv_heads, head_dim\] f32 or f16
    pub v_cache: *mut ::core::ffi::c_void,
    /// KQM_TYPE_F32 or KQM_TYPE_F16
    pub cache_type: u32,
    /// below 2^31; tokens at positions \>= capacity are not written
    pub capacity: u32,
    pub tokens: u32,
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
    ["Size of kqm_rope_args"][::core::mem::size_of::<kqm_rope_args>() - 136usize];
    ["Alignment of kqm_rope_args"][::core::mem::align_of::<kqm_rope_args>() - 8usize];
    ["Offset of field: kqm_rope_args::q"][::core::mem::offset_of!(kqm_rope_args, q) - 0usize];
    ["Offset of field: kqm_rope_args::k"][::core::mem::offset_of!(kqm_rope_args, k) - 8usize];
    ["Offset of field: kqm_rope_args::v"][::core::mem::offset_of!(kqm_rope_args, v) - 16usize];
    ["Offset of field: kqm_rope_args::q_weight"][::core::mem::offset_of!(kqm_rope_args, q_weight) - 24usize];
    ["Offset of field: kqm_rope_args::k_weight"][::core::mem::offset_of!(kqm_rope_args, k_weight) - 32usize];
    ["Offset of field: kqm_rope_args::table"][::core::mem::offset_of!(kqm_rope_args, table) - 40usize];
    ["Offset of field: kqm_rope_args::start"][::core::mem::offset_of!(kqm_rope_args, start) - 48usize];
    ["Offset of field: kqm_rope_args::q_out"][::core::mem::offset_of!(kqm_rope_args, q_out) - 56usize];
    ["Offset of field: kqm_rope_args::q_normed"][::core::mem::offset_of!(kqm_rope_args, q_normed) - 64usize];
    ["Offset of field: kqm_rope_args::k_normed"][::core::mem::offset_of!(kqm_rope_args, k_normed) - 72usize];
    ["Offset of field: kqm_rope_args::k_out"][::core::mem::offset_of!(kqm_rope_args, k_out) - 80usize];
    ["Offset of field: kqm_rope_args::k_cache"][::core::mem::offset_of!(kqm_rope_args, k_cache) - 88usize];
    ["Offset of field: kqm_rope_args::v_cache"][::core::mem::offset_of!(kqm_rope_args, v_cache) - 96usize];
    ["Offset of field: kqm_rope_args::cache_type"][::core::mem::offset_of!(kqm_rope_args, cache_type) - 104usize];
    ["Offset of field: kqm_rope_args::capacity"][::core::mem::offset_of!(kqm_rope_args, capacity) - 108usize];
    ["Offset of field: kqm_rope_args::tokens"][::core::mem::offset_of!(kqm_rope_args, tokens) - 112usize];
    ["Offset of field: kqm_rope_args::heads"][::core::mem::offset_of!(kqm_rope_args, heads) - 116usize];
    ["Offset of field: kqm_rope_args::kv_heads"][::core::mem::offset_of!(kqm_rope_args, kv_heads) - 120usize];
    ["Offset of field: kqm_rope_args::head_dim"][::core::mem::offset_of!(kqm_rope_args, head_dim) - 124usize];
    ["Offset of field: kqm_rope_args::eps"][::core::mem::offset_of!(kqm_rope_args, eps) - 128usize];
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
/** attention: causal grouped-query attention of `tokens` queries over the cache, in chunks of KQM_ATTENTION_CHUNK
positions. Token t sees positions 0 ..= start + t.*/
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct kqm_attention_args {
    /// \[tokens, heads, head_dim\]
    pub q: *const f32,
    /// \[capacity, kv_heads, head_dim\]
    pub k_cache: *const ::core::ffi::c_void,
    /// \[capacity, kv_heads, head_dim\]
    pub v_cache: *const ::core::ffi::c_void,
    /// \[1\]
    pub start: *const u32,
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
    /// below 2^31
    pub capacity: u32,
    pub tokens: u32,
    /// at most 65535; a multiple of kv_heads, at most 16 times
    pub heads: u32,
    pub kv_heads: u32,
    /// 64, 128, 192 or 256
    pub head_dim: u32,
    /// 1 / sqrt(head_dim)
    pub scale: f32,
    /** \[optional: rope.q NULL\] a single token: do what kqm_rope does first, in the same launch; its
    shapes, start and caches are those above*/
    pub rope: kqm_rope_args,
    /** 1, with rope: the launch right before this one in the stream is kqm_qkv, kqm_float_matvec, or a kernel that does not let its
    successor start early. start and caches, which it does not write, are read while it still runs*/
    pub follows_qkv: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_attention_args"][::core::mem::size_of::<kqm_attention_args>() - 248usize];
    ["Alignment of kqm_attention_args"][::core::mem::align_of::<kqm_attention_args>() - 8usize];
    ["Offset of field: kqm_attention_args::q"][::core::mem::offset_of!(kqm_attention_args, q) - 0usize];
    ["Offset of field: kqm_attention_args::k_cache"][::core::mem::offset_of!(kqm_attention_args, k_cache) - 8usize];
    ["Offset of field: kqm_attention_args::v_cache"][::core::mem::offset_of!(kqm_attention_args, v_cache) - 16usize];
    ["Offset of field: kqm_attention_args::start"][::core::mem::offset_of!(kqm_attention_args, start) - 24usize];
    ["Offset of field: kqm_attention_args::out"][::core::mem::offset_of!(kqm_attention_args, out) - 32usize];
    ["Offset of field: kqm_attention_args::fixed"][::core::mem::offset_of!(kqm_attention_args, fixed) - 40usize];
    ["Offset of field: kqm_attention_args::scores"][::core::mem::offset_of!(kqm_attention_args, scores) - 48usize];
    ["Offset of field: kqm_attention_args::workspace"]
        [::core::mem::offset_of!(kqm_attention_args, workspace) - 56usize];
    ["Offset of field: kqm_attention_args::workspace_bytes"]
        [::core::mem::offset_of!(kqm_attention_args, workspace_bytes) - 64usize];
    ["Offset of field: kqm_attention_args::cache_type"]
        [::core::mem::offset_of!(kqm_attention_args, cache_type) - 72usize];
    ["Offset of field: kqm_attention_args::capacity"][::core::mem::offset_of!(kqm_attention_args, capacity) - 76usize];
    ["Offset of field: kqm_attention_args::tokens"][::core::mem::offset_of!(kqm_attention_args, tokens) - 80usize];
    ["Offset of field: kqm_attention_args::heads"][::core::mem::offset_of!(kqm_attention_args, heads) - 84usize];
    ["Offset of field: kqm_attention_args::kv_heads"][::core::mem::offset_of!(kqm_attention_args, kv_heads) - 88usize];
    ["Offset of field: kqm_attention_args::head_dim"][::core::mem::offset_of!(kqm_attention_args, head_dim) - 92usize];
    ["Offset of field: kqm_attention_args::scale"][::core::mem::offset_of!(kqm_attention_args, scale) - 96usize];
    ["Offset of field: kqm_attention_args::rope"][::core::mem::offset_of!(kqm_attention_args, rope) - 104usize];
    ["Offset of field: kqm_attention_args::follows_qkv"]
        [::core::mem::offset_of!(kqm_attention_args, follows_qkv) - 240usize];
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
probabilities renormalised to sum 1.*/
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
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_moe_router_args"][::core::mem::size_of::<kqm_moe_router_args>() - 104usize];
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
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_moe_swiglu_args"][::core::mem::size_of::<kqm_moe_swiglu_args>() - 136usize];
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
    /// \[optional\] \[tokens, rows\]; may equal y
    pub residual: *const f32,
    /// \[tokens, rows\]
    pub y: *mut f32,
    pub tokens: u32,
    pub top_k: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_moe_down_args"][::core::mem::size_of::<kqm_moe_down_args>() - 120usize];
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
    ["Offset of field: kqm_moe_down_args::tokens"][::core::mem::offset_of!(kqm_moe_down_args, tokens) - 112usize];
    ["Offset of field: kqm_moe_down_args::top_k"][::core::mem::offset_of!(kqm_moe_down_args, top_k) - 116usize];
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
    /// \[optional\] \[1\]: incremented by 1 (the position of the next token in a decode loop)
    pub advance: *mut u32,
    /// \[optional\] \[history_len\]: at \*advance, before it, out\[0\] or, of no finite value, 2^32 - 1
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
    /// Text of a status: a static string.
    pub status_text: ::core::option::Option<unsafe extern "C" fn(arg1: kqm_status) -> *const ::core::ffi::c_char>,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of kqm_kernels"][::core::mem::size_of::<kqm_kernels>() - 160usize];
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
    ["Offset of field: kqm_kernels::status_text"][::core::mem::offset_of!(kqm_kernels, status_text) - 152usize];
};
pub const KQM_ABI: _bindgen_ty_1 = 16819264;
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
    /// Bytes of workspace that kqm_attention needs for these shapes (pointers are ignored); 0 for a caller with another header.
    pub fn kqm_launch_attention_workspace(caller: kqm_caller, args: *const kqm_attention_args) -> u64;
    /** The table of this build: the CUDA kernels, or (KQM_EMULATION) the same sources run on the CPU. NULL unless `abi` is this build's
    KQM_ABI, which is the caller's when both have the same header.*/
    pub fn kqm_kernel_table(abi: u32) -> *const kqm_kernels;
}
