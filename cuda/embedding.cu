// embedding: out[t] = table[tokens[t]], dequantized. Every weight is one correctly rounded f32: the products are exact.
//
// Shapes: table [vocab, cols] in GGUF's row layout (F32, F16, Q4_K, Q6_K), out [tokens, cols].
// Launch: one thread block for 256 values of a token. Bound by: latency.
#include "common/check.cuh"

namespace {

__device__ __forceinline__ float half_at(const uint8_t *p) { return kqm_half_to_float(uint16_t(p[0] | p[1] << 8)); }

// Weight k of a Q4_K block of 144 bytes: d, dmin, 12 bytes of scales, 128 of nibbles.
__device__ __forceinline__ float q4_k_weight(const uint8_t *block, int k) {
  const uint8_t *s = block + 4;
  const int j = k / 32, q = (block[16 + 32 * (k / 64) + k % 32] >> (4 * (j % 2))) & 15;
  const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
  const int min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
  return __fsub_rn(__fmul_rn(half_at(block), float(scale * q)), __fmul_rn(half_at(block + 2), float(min)));
}

// Weight k of a Q6_K block of 210 bytes: 128 bytes of low nibbles, 64 of high bits, 16 scales, d.
__device__ __forceinline__ float q6_k_weight(const uint8_t *block, int k) {
  const int h = k / 128, within = k % 128;
  const int low = (block[64 * h + within % 64] >> (4 * (within / 64))) & 15;
  const int high = (block[128 + 32 * h + within % 32] >> (2 * (within / 32))) & 3;
  return __fmul_rn(half_at(block + 208), float(int(int8_t(block[192 + k / 16])) * ((low | high << 4) - 32)));
}

__global__ void __launch_bounds__(KQM_BLOCK) embedding_kernel(kqm_embedding_args a) {
  const int k = threadIdx.x;
  const uint32_t block = blockIdx.x, t = blockIdx.y;
  kqm_release_dependents();
  kqm_touch_arguments(a);
  kqm_wait_for_dependencies();
  const uint32_t token = a.tokens[t];
  float value = __uint_as_float(0x7fc00000u);
  if (token < a.vocab) {
    const size_t blocks = a.cols / KQM_BLOCK, at = size_t(token) * blocks + block;
    if (a.type == KQM_TYPE_F32) value = static_cast<const float *>(a.table)[at * KQM_BLOCK + k];
    if (a.type == KQM_TYPE_F16) value = kqm_half_to_float(static_cast<const uint16_t *>(a.table)[at * KQM_BLOCK + k]);
    if (a.type == KQM_TYPE_Q4_K) value = q4_k_weight(static_cast<const uint8_t *>(a.table) + at * 144, k);
    if (a.type == KQM_TYPE_Q6_K) value = q6_k_weight(static_cast<const uint8_t *>(a.table) + at * 210, k);
  }
  a.out[size_t(t) * a.cols + block * KQM_BLOCK + k] = kqm_canonical(value);
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_embedding(const kqm_embedding_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->table && args->tokens && args->out, KQM_NULL_POINTER);
  KQM_REQUIRE(args->type == KQM_TYPE_F32 || args->type == KQM_TYPE_F16 || kqm_is_k_quant(args->type),
              KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->count > 0 && args->count <= 65535 && args->vocab > 0 && args->cols > 0 && args->cols % KQM_BLOCK == 0,
              KQM_BAD_SHAPE);
  const uintptr_t unit = args->type == KQM_TYPE_F32 ? 4 : args->type == KQM_TYPE_F16 ? 2 : 1;
  KQM_REQUIRE(kqm_aligned(args->table, unit), KQM_MISALIGNED);
  return KQM_LAUNCH(embedding_kernel, dim3(args->cols / KQM_BLOCK, args->count), dim3(KQM_BLOCK), 0, stream, *args);
}
KQM_ABI_END
