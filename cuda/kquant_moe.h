/* kquant-moe: the whole C ABI of the CUDA kernels.
 *
 * Every launcher is `kqm_status kqm_NAME(const kqm_NAME_args *, kqm_stream)`. It checks its arguments, enqueues one
 * or more kernels on the stream and returns; it never allocates, synchronises or blocks, so it can be captured in a
 * CUDA graph. All pointers inside an argument structure are device pointers. Pointers marked [optional] may be NULL;
 * every other one may not. Row-major everywhere; the last index is contiguous.
 *
 * The context that is current on the calling thread must be the one that the stream and the memory belong to, since the
 * launch goes through the CUDA runtime: that is the primary context of the device. An engine on the runtime is in it after
 * cudaSetDevice; one on the driver API retains it (cuDevicePrimaryCtxRetain) and makes it current (cuCtxSetCurrent).
 *
 * The arithmetic of every kernel is defined in docs/arithmetic.md and executed in plain Rust by the oracle of the
 * same name: results are equal to the bit for every batch size, card and launch shape. A NaN is always stored as
 * 0x7fc00000. The compiler's flags are part of that definition, see cuda/common/flags.cuh; examples/c builds the kernels
 * and links them with CMake.
 *
 * The CPU emulation of the kernels (emulation/) exports the same table.
 */
#ifndef KQUANT_MOE_H
#define KQUANT_MOE_H

#include <stdint.h>

/* The emulation build keeps the same names in a namespace, so that one program can hold both builds. */
#if defined(KQM_EMULATION)
#define KQM_ABI_BEGIN namespace kqm_emulated {
#define KQM_ABI_END }
#elif defined(__cplusplus)
#define KQM_ABI_BEGIN extern "C" {
#define KQM_ABI_END }
#else
#define KQM_ABI_BEGIN
#define KQM_ABI_END
#endif

KQM_ABI_BEGIN

/* 0: success. Negative: one of the codes below. Positive: a cudaError_t of the launch. */
typedef int32_t kqm_status;
#define KQM_OK 0
#define KQM_NULL_POINTER (-1)     /* a required pointer is NULL */
#define KQM_BAD_SHAPE (-2)        /* a count is zero, too large or not a multiple of what the kernel needs */
#define KQM_UNSUPPORTED_TYPE (-3) /* a matrix type that the kernel does not compute with */
#define KQM_MISALIGNED (-4)       /* a pointer is not aligned as its layout demands */
#define KQM_WORKSPACE (-5)        /* the workspace is smaller than the launcher needs */
#define KQM_OTHER_ABI (-6)        /* the caller was compiled with another version of this header */

/* cudaStream_t / CUstream. */
typedef void *kqm_stream;

/* The version of this ABI: another one when what is here changes its meaning or its layout. */
#define KQM_ABI_VERSION 2
/* Who calls: the version, and the size of the argument structure, as the caller was compiled with them. */
typedef uint64_t kqm_caller;
#define KQM_CALLER(args_type) (((kqm_caller)KQM_ABI_VERSION << 32) | (kqm_caller)sizeof(args_type))

/* Tensor types, with GGML's numbers. Matrices may have those of common/types.cuh, matrices of floats (kqm_float_matvec) F32, F16 and BF16,
 * and embedding tables all of them; every launcher refuses the others with KQM_UNSUPPORTED_TYPE. */
#define KQM_TYPE_F32 0
#define KQM_TYPE_F16 1
#define KQM_TYPE_Q4_0 2
#define KQM_TYPE_Q4_1 3
#define KQM_TYPE_Q5_0 6
#define KQM_TYPE_Q5_1 7
#define KQM_TYPE_Q8_0 8
#define KQM_TYPE_Q2_K 10
#define KQM_TYPE_Q3_K 11
#define KQM_TYPE_Q4_K 12
#define KQM_TYPE_Q5_K 13
#define KQM_TYPE_Q6_K 14
#define KQM_TYPE_IQ2_XXS 16
#define KQM_TYPE_IQ2_XS 17
#define KQM_TYPE_IQ3_XXS 18
#define KQM_TYPE_IQ1_S 19
#define KQM_TYPE_IQ4_NL 20
#define KQM_TYPE_IQ3_S 21
#define KQM_TYPE_IQ2_S 22
#define KQM_TYPE_IQ4_XS 23
#define KQM_TYPE_IQ1_M 29
#define KQM_TYPE_BF16 30
#define KQM_TYPE_TQ1_0 34
#define KQM_TYPE_TQ2_0 35
#define KQM_TYPE_MXFP4 39

/* Weights of one super-block, and activations of one fixed-point block. */
#define KQM_BLOCK 256
/* Rows of a weight tile (one tensor-core fragment). */
#define KQM_TILE_ROWS 16
/* Most experts the router chooses from, and most it chooses. */
#define KQM_MAX_EXPERTS 512
#define KQM_MAX_TOP_K 32
/* What the weights of a token's chosen experts are: their softmax probabilities, divided by the sum of the chosen ones' or by that of all
 * experts'. */
#define KQM_WEIGHTS_OF_CHOSEN 0
#define KQM_WEIGHTS_OF_ALL 1
/* Cache positions that attention reduces in f32 before it continues in f64, and positions of a page of the cache. */
#define KQM_ATTENTION_CHUNK 64
/* Most (token, expert) pairs of one expert that one work item of the expert kernels covers. */
#define KQM_ITEM_PAIRS 32

/* exp (docs/arithmetic.md): constants rounded to f32, shared with the oracle through the bindings. */
#define KQM_EXP_LOG2E 1.4426950216293335
#define KQM_EXP_LN2_HIGH 0.693145751953125
#define KQM_EXP_LN2_LOW 1.428606765330187e-06
#define KQM_EXP_C2 0.5
#define KQM_EXP_C3 0.1666666716337204
#define KQM_EXP_C4 0.0416666679084301
#define KQM_EXP_C5 0.008333333767950535
#define KQM_EXP_C6 0.0013888889225199819
#define KQM_EXP_C7 0.00019841270113829523

/* 256 activations as block fixed point: x[k] = X[k] * unit, X an integer of |X| <= 2^38 written as five balanced
 * base-256 digits ("planes"): X = sum of 256^p digit_p, each digit in -128..127. */
#define KQM_PLANES 5
typedef struct kqm_fixed_block {
  int8_t digit[8][KQM_PLANES][32]; /* [sub-block][plane][k]: plane p of activation 32 * sub-block + k */
  int8_t sum_low[KQM_PLANES][8];   /* [plane][sub-block]: low balanced base-256 digit of the sum of the 32 digits */
  int8_t sum_high[KQM_PLANES][8];  /* [plane][sub-block]: (sum - low) / 256 */
  double unit;     /* 2^(e - 38); NaN when the block holds a non-finite activation (its digits are 0 then) */
  double reserved; /* 0; keeps blocks 16-byte aligned */
} kqm_fixed_block;

/* A quantized matrix [rows, cols], or a stack of `experts` of them, in tile layout (see kqm_repack). */
typedef struct kqm_matrix {
  const void *tiles; /* [experts][ceil(rows / 16)][cols / 256] tiles, each the bytes of 16 blocks; 16-byte aligned */
  uint32_t type;     /* KQM_TYPE_...: one of common/types.cuh */
  uint32_t rows;
  uint32_t cols;    /* a multiple of 256 */
  uint32_t experts; /* 1 for a plain matrix */
} kqm_matrix;

/* The (token, expert) pairs of a batch, grouped by expert. Pair p = token * top_k + rank. */
typedef struct kqm_groups {
  uint32_t *order; /* [pairs] pair numbers, ascending by (expert, pair) */
  uint32_t *items; /* [max_items][3] work items: expert, first position in order, pairs (1..KQM_ITEM_PAIRS) */
  uint32_t *count; /* [1] items in use; the remaining ones are not read */
} kqm_groups;

/* repack: a quantized matrix, or a stack of experts' matrices, in GGUF's row layout to tile layout, a permutation of bytes (see
 * common/tiles.cuh). Rows of each matrix are padded with zero blocks to a multiple of 16. */
typedef struct kqm_repack_args {
  const void *blocks; /* [experts][rows][cols / 256] blocks as in the file */
  void *tiles;        /* [experts][ceil(rows / 16)][cols / 256] tiles, 16-byte aligned */
  uint32_t type;
  uint32_t rows;
  uint32_t cols;
  uint32_t experts; /* 1 for a plain matrix */
} kqm_repack_args;

/* quantize: activations to block fixed point. */
typedef struct kqm_quantize_args {
  const void *x;        /* [tokens, cols] of `type` */
  kqm_fixed_block *out; /* [tokens, cols / 256] */
  float *floats;        /* [optional] [tokens, cols]: the activations as f32, which is exact */
  uint32_t type;        /* KQM_TYPE_F32, KQM_TYPE_F16 or KQM_TYPE_BF16 */
  uint32_t tokens;
  uint32_t cols; /* a multiple of 256 */
} kqm_quantize_args;

/* matvec: y[t, r] = sum_k W[r, k] x[t, k] (+ residual[t, r]), for a matrix of any type. q4_k_matvec and q6_k_gemv are its entries for
 * Q4_K and Q6_K, and refuse every other type. */
typedef struct kqm_matvec_args {
  kqm_matrix w;             /* experts == 1 */
  const kqm_fixed_block *x; /* [tokens, w.cols / 256] */
  const float *residual;    /* [optional] [tokens, w.rows]; added in f32 after the sum is rounded; may equal y */
  float *product;           /* [optional] [tokens, w.rows]: the sum before the residual is added */
  float *y;                 /* [tokens, w.rows] */
  uint32_t tokens;
} kqm_matvec_args;
typedef kqm_matvec_args kqm_q4_k_matvec_args;
typedef kqm_matvec_args kqm_q6_k_gemv_args;

/* RMSNorm of a single token inside the kernel that needs its result: what kqm_rms_norm does, without its launch. Rows of at
 * most KQM_FUSED_COLS columns. */
#define KQM_FUSED_COLS 4096
typedef struct kqm_fused_norm {
  const float *x;      /* [optional: NULL for no fused norm] [cols] */
  const float *weight; /* [cols] */
  float *out;          /* [optional] [cols]: the normed row */
  float eps;
  uint32_t width; /* values that the mean is of, 1 ..= cols: those behind them are zeros */
} kqm_fused_norm;

/* qkv: up to three products with the same activations in one launch, each matrix of its own type. */
typedef struct kqm_qkv_args {
  kqm_matrix w[3];          /* all with the same cols; matrices with rows == 0 are left out */
  const kqm_fixed_block *x; /* [tokens, cols / 256]; not read with a fused norm */
  kqm_fused_norm norm;      /* a single token: x is made from this row */
  float *y[3];              /* [tokens, w[i].rows] */
  uint32_t tokens;
} kqm_qkv_args;

/* embedding: rows of a table, dequantized. */
typedef struct kqm_embedding_args {
  const void *table;      /* [vocab, cols] in GGUF's row layout: F32, F16, BF16 or a type of common/types.cuh */
  const uint32_t *tokens; /* [tokens]; an id >= vocab gives a row of NaN */
  float *out;             /* [tokens, cols] */
  uint32_t type;
  uint32_t vocab;
  uint32_t cols; /* a multiple of 256 */
  uint32_t count;
} kqm_embedding_args;

/* rms_norm: y = (x * r) * weight, r = 1 / sqrt(mean(x^2) + eps); written as f32, as fixed point, or both. */
typedef struct kqm_rms_norm_args {
  const float *x;         /* [tokens, cols] */
  const float *weight;    /* [cols] */
  float *out;             /* [optional] [tokens, cols] */
  kqm_fixed_block *fixed; /* [optional] [tokens, cols / 256] */
  uint32_t tokens;
  uint32_t cols; /* a multiple of 256, at most 16384 */
  float eps;
  uint32_t width; /* values that the mean is of, 1 ..= cols: those behind them are zeros */
} kqm_rms_norm_args;

/* The tokens of a batch, and where each one is. The caches of keys and of values are pools of pages, [pool_pages][KQM_ATTENTION_CHUNK
 * positions, kv_heads, head_dim], which sequences share: position p of sequence s is position p % KQM_ATTENTION_CHUNK of page
 * pages[s][p / KQM_ATTENTION_CHUNK]. Tokens may be of any sequences and positions, in any order. A token whose position is not below the
 * reach, whose sequence is none of them, or whose page is none of the pool has no place: it gives NaN and leaves the caches alone. Any
 * other page that the pool does not have holds NaNs for the tokens that see it. A position of a page that is written belongs to one token
 * of the batch, and is seen as that token's position alone.
 *
 * What follows from the host's numbers is laid out when a launch is made, and recorded with it; what is in memory is read when it runs.
 * No value depends on `reach`, unless a token is at it or behind, nor on `singles`, which are for the speed of attention: its launch and
 * its workspace are laid out for the reach, and the less that is the better. It takes the first `singles` tokens one at a time, whatever
 * they are, and the others together with their neighbours, for which neighbours had better be at positions of one sequence that follow each
 * other. Where fewer than four are left these are single, too. */
typedef struct kqm_batch {
  const uint32_t *position; /* [tokens] */
  const uint32_t *sequence; /* [tokens] */
  const uint32_t
      *pages; /* [sequences, ceil(capacity / KQM_ATTENTION_CHUNK)]; those that no token sees may be anything */
  uint32_t tokens;
  uint32_t sequences;  /* times ceil(capacity / KQM_ATTENTION_CHUNK) less than 2^32 */
  uint32_t capacity;   /* most positions of a sequence, below 2^31 */
  uint32_t pool_pages; /* pages of the cache of keys, and of that of values */
  uint32_t reach;      /* no token is at this position or behind it; 0: the capacity */
  uint32_t singles;    /* at most all tokens */
} kqm_batch;

/* rope: per-head RMSNorm of q and k, RoPE (NeoX layout: dimension i is paired with i + head_dim / 2), and the write
 * of k and v into the cache. */
typedef struct kqm_rope_args {
  kqm_batch batch;
  const float *q;        /* [tokens, heads, head_dim] */
  const float *k;        /* [tokens, kv_heads, head_dim] */
  const float *v;        /* [tokens, kv_heads, head_dim] */
  const float *q_weight; /* [optional] [head_dim] RMSNorm weight; NULL: q is not normalised */
  const float *k_weight; /* [optional] [head_dim] */
  const float *table;    /* [capacity, head_dim / 2, 2]: cosine and sine of each position and dimension pair */
  float *q_out;          /* [tokens, heads, head_dim]; may equal q */
  float *q_normed;       /* [optional] [tokens, heads, head_dim] */
  float *k_normed;       /* [optional] [tokens, kv_heads, head_dim] */
  float *k_out;          /* [optional] [tokens, kv_heads, head_dim] */
  void *k_cache;         /* [pool_pages, KQM_ATTENTION_CHUNK, kv_heads, head_dim] f32 or f16 */
  void *v_cache;         /* [pool_pages, KQM_ATTENTION_CHUNK, kv_heads, head_dim] f32 or f16 */
  uint32_t cache_type;   /* KQM_TYPE_F32 or KQM_TYPE_F16 */
  uint32_t heads;        /* at most 65535 */
  uint32_t kv_heads;     /* at most 65535 */
  uint32_t head_dim;     /* even, a multiple of 8, at most 256 */
  float eps;
} kqm_rope_args;

/* attention: causal grouped-query attention of a batch's queries over the cache, in chunks of KQM_ATTENTION_CHUNK
 * positions. A token sees the positions of its sequence up to its own. */
typedef struct kqm_attention_args {
  kqm_batch batch;
  const float *q;         /* [tokens, heads, head_dim] */
  const void *k_cache;    /* [pool_pages, KQM_ATTENTION_CHUNK, kv_heads, head_dim] */
  const void *v_cache;    /* [pool_pages, KQM_ATTENTION_CHUNK, kv_heads, head_dim] */
  float *out;             /* [optional] [tokens, heads, head_dim] */
  kqm_fixed_block *fixed; /* [optional] [tokens, ceil(heads * head_dim / 256)], the last block filled up with zeros */
  float *scores;          /* [optional] [tokens, heads, capacity]: scaled scores; -inf where masked */
  void *workspace;        /* kqm_attention_workspace() bytes, 16-byte aligned */
  uint64_t workspace_bytes;
  uint32_t cache_type;
  uint32_t heads; /* at most 65535; a multiple of kv_heads, at most 16 times */
  uint32_t kv_heads;
  uint32_t head_dim;  /* 64, 128, 192 or 256 */
  float scale;        /* 1 / sqrt(head_dim) */
  kqm_rope_args rope; /* [optional: rope.q NULL] a single token: do what kqm_rope does first, in the same launch; its
                       * batch, shapes and caches are those above */
  uint32_t
      follows_qkv; /* 1, with rope: the launch right before this one in the stream is kqm_qkv, kqm_float_matvec, or a kernel that does not let its
                         * successor start early. The batch and the caches, which it does not write, are read while it still runs */
} kqm_attention_args;

/* moe_router: logits = W x (F32 weights), the top_k largest (ties to the lower expert), and their softmax
 * probabilities, renormalised to sum 1 or not. */
typedef struct kqm_moe_router_args {
  const float *x;         /* [tokens, cols]; not read with a fused norm */
  kqm_fused_norm norm;    /* a single token: x is made from this row */
  kqm_fixed_block *fixed; /* [optional] with a fused norm: x as fixed point, [cols / 256] */
  const float *w;         /* [experts, cols] */
  float *logits;          /* [tokens, experts] */
  uint32_t
      *indices;   /* [tokens, top_k], highest probability first; NULL for a single token: only the logits are made, and
                      * moe_swiglu chooses */
  float *weights; /* [tokens, top_k]; not written without indices */
  uint32_t *done; /* [tokens] zero before the first call; the launcher leaves it zero. Not used without indices */
  uint32_t tokens;
  uint32_t cols;      /* a multiple of 256 */
  uint32_t experts;   /* at most KQM_MAX_EXPERTS */
  uint32_t top_k;     /* 1 ..= min(experts, KQM_MAX_TOP_K) */
  uint32_t weighting; /* KQM_WEIGHTS_... */
} kqm_moe_router_args;

/* moe_group: the pairs of a batch grouped by expert, so that an expert's weights are read once for its tokens. */
typedef struct kqm_moe_group_args {
  const uint32_t *indices; /* [tokens, top_k] */
  kqm_groups groups;       /* max_items = kqm_moe_max_items() */
  uint32_t tokens;
  uint32_t experts;
  uint32_t top_k;
} kqm_moe_group_args;
/* Most work items that a batch of `tokens` can give. */
uint32_t kqm_moe_max_items(uint32_t tokens, uint32_t experts, uint32_t top_k);

/* moe_swiglu: out[p] = silu(W_gate[e] x) * (W_up[e] x) for every pair p = (token, e). */
typedef struct kqm_moe_swiglu_args {
  kqm_matrix gate;          /* [experts][ff, cols] */
  kqm_matrix up;            /* [experts][ff, cols] */
  const kqm_fixed_block *x; /* [tokens, cols / 256] */
  uint32_t *indices;        /* [tokens, top_k]: used for a single token, whose pairs need no grouping */
  const float
      *logits;       /* [optional] [experts]: a single token: choose the experts here, and write indices and weights */
  float *weights;    /* [top_k], with logits */
  kqm_groups groups; /* used for two or more tokens; may hold NULL for a single one */
  float *gate_out;   /* [optional] [pairs, ff] */
  float *up_out;     /* [optional] [pairs, ff] */
  float *out;        /* [pairs, ff] */
  uint32_t tokens;
  uint32_t top_k;
  uint32_t weighting; /* KQM_WEIGHTS_..., with logits */
} kqm_moe_swiglu_args;

/* Most blocks of 256 that a single token's experts may have together for the fused form of moe_down. */
#define KQM_FUSED_UNITS 24
/* moe_down: y[t] = residual[t] + sum_rank weights[t, rank] * (W_down[e] x[pair]). */
typedef struct kqm_moe_down_args {
  kqm_matrix down;          /* [experts][rows, cols] */
  const kqm_fixed_block *x; /* [pairs, cols / 256]; not read when swiglu is set */
  const float *swiglu;      /* [optional] [pairs, cols]: a single token: x is made from these rows; needs
                             * top_k * cols / 256 <= KQM_FUSED_UNITS */
  const uint32_t *indices;  /* [tokens, top_k] */
  const float *weights;     /* [tokens, top_k] */
  kqm_groups groups;        /* used for two or more tokens; may hold NULL for a single one */
  float *expert_out;        /* [pairs, rows]: the products before the sum */
  float *sum;               /* [optional] [tokens, rows]: the sum before the residual is added */
  const void *residual;     /* [optional] [tokens, rows] of `type`; may equal y */
  void *y;                  /* [tokens, rows] of `type` */
  uint32_t type;            /* KQM_TYPE_F32, KQM_TYPE_F16 or KQM_TYPE_BF16 */
  uint32_t tokens;
  uint32_t top_k;
} kqm_moe_down_args;

/* moe_layer: a whole MoE layer of normed activations, y[t] = residual[t] + sum_rank weights[t, rank] * down(swiglu(x[t])): quantize,
 * moe_router, moe_group, moe_swiglu, quantize and moe_down, with what they leave for each other in the workspace. Its contents do not
 * matter, and nobody else may use it until the layer is done. The counts must be those that the kernels take, with at most 65,535 items
 * (kqm_moe_max_items). */
typedef struct kqm_moe_layer_args {
  const void *x;        /* [tokens, gate.cols] of `x_type` */
  const float *router;  /* [gate.experts, gate.cols] */
  kqm_matrix gate;      /* [experts][ff, cols] */
  kqm_matrix up;        /* [experts][ff, cols] */
  kqm_matrix down;      /* [experts][rows, ff] */
  const void *residual; /* [optional] [tokens, down.rows] of `y_type`; may equal y */
  void *y;              /* [tokens, down.rows] of `y_type` */
  void *workspace;      /* kqm_moe_layer_workspace() bytes, 16-byte aligned */
  uint64_t workspace_bytes;
  uint32_t x_type; /* KQM_TYPE_F32, KQM_TYPE_F16 or KQM_TYPE_BF16, and so is y_type */
  uint32_t y_type;
  uint32_t tokens; /* at most 65,535 */
  uint32_t top_k;
  uint32_t weighting; /* KQM_WEIGHTS_... */
} kqm_moe_layer_args;

/* residual_add: y = a + b. */
typedef struct kqm_residual_add_args {
  const float *a; /* [count] */
  const float *b; /* [count] */
  float *y;       /* [count]; may equal a or b */
  uint64_t count;
} kqm_residual_add_args;

/* float_matvec: products with weights that are floats, as they are in a file. Output i has `ranks` pairs p = i * ranks + rank, and
 * value[p, r] = sum_k W[indices[p]][r, k] x[p / share, k]. y[i] is the value of its only pair, or with `weights` the sum over its ranks of
 * weights[p] * value[p], with the residual added, or as one half of a SwiGLU. */
typedef struct kqm_float_matvec_args {
  const void *w;  /* [experts][rows, cols], 16-byte aligned */
  const float *x; /* [ceil(count * ranks / share), cols], 16-byte aligned */
  const uint32_t
      *indices;         /* [optional] [count, ranks]: experts; one >= experts gives NaN. Without, there is one matrix */
  const float *weights; /* [optional] [count, ranks]; without, ranks == 1 */
  const float *gate;    /* [optional] [count, rows]: y = silu(gate) * value */
  const float *up;      /* [optional, not with gate] [count, rows]: y = silu(value) * up */
  const float *residual; /* [optional] [count, rows]; added in f32; may equal y */
  float *product;        /* [optional] [count, ranks, rows]: the values of all pairs */
  float *sum;            /* [optional, with weights] [count, rows]: the sum before the residual is added */
  float *y;              /* [count, rows] */
  uint32_t type;         /* KQM_TYPE_F32, KQM_TYPE_F16 or KQM_TYPE_BF16 */
  uint32_t rows;
  uint32_t cols; /* a multiple of 32, at most 16384 */
  uint32_t experts;
  uint32_t count;
  uint32_t ranks; /* at most KQM_MAX_TOP_K */
  uint32_t share; /* neighbouring pairs with the same row of x */
} kqm_float_matvec_args;

/* argmax: index of the largest value of each row, ties to the lower index; a NaN counts as largest. */
typedef struct kqm_argmax_args {
  const float *x;    /* [rows, cols] */
  uint32_t *out;     /* [rows] */
  uint64_t *partial; /* [rows] zero before the first call; the launcher leaves it zero */
  uint32_t *done;    /* [rows] zero before the first call; the launcher leaves it zero */
  uint32_t *advance; /* [optional] [rows]: each incremented by 1 (the positions of a decode loop's next tokens) */
  uint32_t *
      history; /* [optional] [rows, history_len]: of row r at advance[r], before it, out[r] or, of no finite value, 2^32 - 1 */
  uint32_t history_len;
  uint32_t rows;
  uint32_t cols;
} kqm_argmax_args;

/* How a token is drawn (docs/arithmetic.md). Of a row for which something here makes no sense no token is chosen. */
typedef struct kqm_sampling {
  uint64_t seed;
  float temperature; /* finite, at least 0; 0: the largest logit is taken */
  float top_p;       /* 0 .. 1; 1: all */
  float min_p;       /* 0 .. 1; 0: all */
  float penalty;     /* finite, above 0: of each token of the window; 1: none */
  uint32_t top_k;    /* 0: all */
  uint32_t window;   /* the last so many tokens, at most history_len */
} kqm_sampling;

/* Logits that one CTA of kqm_sample covers. */
#define KQM_SAMPLE_PART 2048
/* What kqm_sample keeps of a row between its launches. */
typedef struct kqm_sample_state {
  uint64_t best;         /* as argmax has it */
  uint64_t sum[256];     /* weights by digit of the logit's order */
  uint32_t count[256];   /* the same of tokens */
  uint64_t above;        /* what is chosen already: weight, or tokens */
  uint64_t above_weight; /* its weight */
  uint64_t limit;        /* how much is chosen */
  uint64_t total;        /* the weight of what top-k left */
  uint32_t prefix;       /* the digits of the last one's order so far */
  uint32_t least;        /* the order of the last one that is kept */
  uint32_t ties;         /* how many of its logit are kept */
  uint32_t done;
  float largest;
  uint32_t drawing;
} kqm_sample_state;
/* What a CTA finds in its part of a row. */
typedef struct kqm_sample_part {
  uint64_t weight; /* of what is kept but for ties */
  uint64_t ties;
} kqm_sample_part;

/* sample: draws a token of each row of logits. The last choices of a row's sequence, whose logits may be penalised, are in `history` where argmax
 * puts them: under the position p whose logits they come from, here at p % history_len. */
typedef struct kqm_sample_args {
  const float *x;               /* [rows, cols] */
  const kqm_sampling *sampling; /* [rows] */
  uint32_t *position;           /* [rows]: that of the logits; the token's own is the next one */
  uint32_t *history;            /* [optional] [rows, history_len] */
  uint32_t *out;                /* [rows]: 2^32 - 1 where the largest logit is not finite */
  kqm_sample_state *state;      /* [rows] zero before the first call; the launcher's own from then on */
  kqm_sample_part *parts;       /* [rows, ceil(cols / KQM_SAMPLE_PART)] */
  uint32_t history_len;         /* 0 without history */
  uint32_t advance;             /* 1: each position is incremented, and the token goes to the history */
  uint32_t rows;
  uint32_t cols; /* at most 2^24 */
} kqm_sample_args;

/* The launchers by name, each with a number of its own. */
#define KQM_EACH_LAUNCHER(X) \
  X(1, repack)               \
  X(2, quantize)             \
  X(3, q4_k_matvec)          \
  X(4, q6_k_gemv)            \
  X(5, qkv)                  \
  X(6, embedding)            \
  X(7, rms_norm)             \
  X(8, rope)                 \
  X(9, attention)            \
  X(10, moe_router)          \
  X(11, moe_group)           \
  X(12, moe_swiglu)          \
  X(13, moe_down)            \
  X(14, residual_add)        \
  X(15, argmax)              \
  X(16, matvec)              \
  X(17, float_matvec)        \
  X(18, sample)              \
  X(19, moe_layer)

/* kqm_NAME is compiled into the caller and says there who calls; kqm_launch_NAME, in the library, refuses a caller that has
 * another header. */
#define KQM_DECLARE_LAUNCHER(number, name)                                                           \
  kqm_status kqm_launch_##name(kqm_caller caller, const kqm_##name##_args *args, kqm_stream stream); \
  static inline kqm_status kqm_##name(const kqm_##name##_args *args, kqm_stream stream) {            \
    return kqm_launch_##name(KQM_CALLER(kqm_##name##_args), args, stream);                           \
  }
/* The same without the callers' part, for the sources of the kernels, which define functions of those names. */
#define KQM_DECLARE_EXPORT(number, name) \
  kqm_status kqm_launch_##name(kqm_caller caller, const kqm_##name##_args *args, kqm_stream stream);
#if defined(KQM_IMPLEMENTATION)
KQM_EACH_LAUNCHER(KQM_DECLARE_EXPORT)
#else
KQM_EACH_LAUNCHER(KQM_DECLARE_LAUNCHER)
#endif

/* Bytes of workspace that kqm_attention needs for these shapes (pointers are ignored), and for all of a lower reach; 0 for a caller with another header. */
uint64_t kqm_launch_attention_workspace(kqm_caller caller, const kqm_attention_args *args);
#if !defined(KQM_IMPLEMENTATION)
static inline uint64_t kqm_attention_workspace(const kqm_attention_args *args) {
  return kqm_launch_attention_workspace(KQM_CALLER(kqm_attention_args), args);
}
#endif

/* Bytes of workspace that kqm_moe_layer needs for these shapes (pointers are ignored); 0 for a caller with another header. */
uint64_t kqm_launch_moe_layer_workspace(kqm_caller caller, const kqm_moe_layer_args *args);
#if !defined(KQM_IMPLEMENTATION)
static inline uint64_t kqm_moe_layer_workspace(const kqm_moe_layer_args *args) {
  return kqm_launch_moe_layer_workspace(KQM_CALLER(kqm_moe_layer_args), args);
}
#endif

/* The launchers as a table, so that one caller can drive the CUDA build or the CPU emulation of the same sources. They do not ask
 * who calls: who has the table was asked when it was given. */
typedef struct kqm_kernels {
  kqm_status (*repack)(const kqm_repack_args *, kqm_stream);
  kqm_status (*quantize)(const kqm_quantize_args *, kqm_stream);
  kqm_status (*matvec)(const kqm_matvec_args *, kqm_stream);
  kqm_status (*q4_k_matvec)(const kqm_q4_k_matvec_args *, kqm_stream);
  kqm_status (*q6_k_gemv)(const kqm_q6_k_gemv_args *, kqm_stream);
  kqm_status (*qkv)(const kqm_qkv_args *, kqm_stream);
  kqm_status (*embedding)(const kqm_embedding_args *, kqm_stream);
  kqm_status (*rms_norm)(const kqm_rms_norm_args *, kqm_stream);
  kqm_status (*rope)(const kqm_rope_args *, kqm_stream);
  uint64_t (*attention_workspace)(const kqm_attention_args *);
  kqm_status (*attention)(const kqm_attention_args *, kqm_stream);
  kqm_status (*moe_router)(const kqm_moe_router_args *, kqm_stream);
  uint32_t (*moe_max_items)(uint32_t tokens, uint32_t experts, uint32_t top_k);
  kqm_status (*moe_group)(const kqm_moe_group_args *, kqm_stream);
  kqm_status (*moe_swiglu)(const kqm_moe_swiglu_args *, kqm_stream);
  kqm_status (*moe_down)(const kqm_moe_down_args *, kqm_stream);
  kqm_status (*residual_add)(const kqm_residual_add_args *, kqm_stream);
  kqm_status (*argmax)(const kqm_argmax_args *, kqm_stream);
  kqm_status (*float_matvec)(const kqm_float_matvec_args *, kqm_stream);
  kqm_status (*sample)(const kqm_sample_args *, kqm_stream);
  uint64_t (*moe_layer_workspace)(const kqm_moe_layer_args *);
  kqm_status (*moe_layer)(const kqm_moe_layer_args *, kqm_stream);
  /* Text of a status: a static string. */
  const char *(*status_text)(kqm_status);
} kqm_kernels;

/* What the table depends on: the version, and the sizes of all structures, each with a weight of its own. */
#define KQM_WEIGHTED_SIZE(number, name) +(number) * (int)sizeof(kqm_##name##_args)
enum {
  KQM_ABI = KQM_ABI_VERSION * 0x1000000 KQM_EACH_LAUNCHER(KQM_WEIGHTED_SIZE) + 1001 * (int)sizeof(kqm_fixed_block) +
            1002 * (int)sizeof(kqm_kernels) + 1003 * (int)sizeof(kqm_sampling) + 1004 * (int)sizeof(kqm_sample_state) +
            1005 * (int)sizeof(kqm_sample_part)
};
/* The table of this build: the CUDA kernels, or (KQM_EMULATION) the same sources run on the CPU. NULL unless `abi` is this build's
 * KQM_ABI, which is the caller's when both have the same header. */
const kqm_kernels *kqm_kernel_table(uint32_t abi);

KQM_ABI_END
#endif
