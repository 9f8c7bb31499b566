// float_matvec: y[i, r] = sum_k W[r, k] x[i, k] for weights that are floats; of experts, the products of a token's pairs as moe_swiglu and
// moe_down want them.
//
// Shapes: W [experts][rows, cols] of F32, F16 or BF16 as in a file, x [pairs / share, cols] f32, y [count, rows]; pair p = output * ranks + rank.
// Maths: value[p, r] = f32(tree_dot(W[expert p][r], x[p / share])) (common/tree.cuh); weights and activations are exact in f64.
//
//   one value for each output           y = value, or residual + value
//   with the other half of a SwiGLU     y = silu(gate) * value, or silu(value) * up                     f32
//   with the weights of the ranks       y = residual + f32(tree_sum over ranks of weight * value)      f64, as moe_down
//
// Launch: one CTA for four rows and up to eight outputs, whose activations become f64 once for the four rows, or, with experts, for the pairs
// of one output, each of which has rows of its own; one warp for a run of 256 columns (16 warps at most).
// Bound by: the weights' bytes for few outputs, fp64 for many.
#include "common/exp.cuh"
#include "common/floats.cuh"
#include "common/tree.cuh"

#include <algorithm>

namespace {

const int max_warps = 16, most_outputs = 8, run_columns = 256;

// What becomes of the value of an output and a row.
__device__ __forceinline__ void store(const kqm_float_matvec_args &a, size_t at, float value) {
  if (a.gate)
    value = kqm_canonical(__fmul_rn(kqm_silu(a.gate[at]), value));
  else if (a.up)
    value = kqm_canonical(__fmul_rn(kqm_silu(value), a.up[at]));
  a.y[at] = a.residual ? kqm_canonical(__fadd_rn(a.residual[at], value)) : value;
}

// The pairs of a CTA: those of `outputs` outputs from `first` on.
struct Pairs {
  uint32_t first;
  int outputs, count;

  __device__ __forceinline__ Pairs(const kqm_float_matvec_args &a, int outputs_at_once)
      : first(blockIdx.x * outputs_at_once),
        outputs(min(outputs_at_once, int(a.count - first))),
        count(outputs * int(a.ranks)) {}
  // A pair's number in the batch.
  __device__ __forceinline__ size_t number(const kqm_float_matvec_args &a, int pair) const {
    return size_t(first) * a.ranks + pair;
  }
  __device__ __forceinline__ uint32_t expert(const kqm_float_matvec_args &a, int pair) const {
    return a.indices ? a.indices[number(a, pair)] : 0;
  }
};

const int rows = kqm_tree_rows;

// run_sum[pair][row][run] of four rows: a warp has runs of its own.
template <class Weight>
__device__ __forceinline__ void sum_runs(const kqm_float_matvec_args &a, const Pairs &pairs, uint32_t first_row,
                                         int runs, KQM_SHARED_ARG(double) run_sum) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  KQM_LOOP
  for (int run = warp; run < runs; run += warps) {
    const uint32_t column = run * run_columns + 8 * lane;
    const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    KqmEight w[rows];
    const auto load = [&](uint32_t expert) {
      KQM_UNROLL
      for (int r = 0; r < rows; r++) {
        // Behind the last row it is the last one again, of which nothing is stored.
        const size_t row = size_t(expert) * a.rows + min(first_row + r, a.rows - 1);
        w[r] = column < a.cols ? Weight::load(static_cast<const typename Weight::Stored *>(a.w) + row * a.cols + column)
                               : KqmEight{zero, zero};
      }
    };
    if (!a.indices) load(0);
    KQM_LOOP
    for (int pair = 0; pair < pairs.count; pair++) {
      if (a.indices) {
        const uint32_t expert = pairs.expert(a, pair);
        if (expert >= a.experts) continue;
        load(expert);
      }
      const float4 *in = reinterpret_cast<const float4 *>(a.x + pairs.number(a, pair) / a.share * a.cols + column);
      const float4 x0 = column < a.cols ? in[0] : zero, x1 = column < a.cols ? in[1] : zero;
      double v[rows];
      KQM_UNROLL
      for (int r = 0; r < rows; r++) v[r] = kqm_tree_leaves(w[r].first, w[r].second, x0, x1);
      const double sum = kqm_tree_warp_of_rows(v, lane);
      if (lane < rows) run_sum[(pair * rows + kqm_tree_row_of(lane)) * runs + run] = sum;
    }
  }
}

// The results of four rows, a thread each: an output's values from their runs, and what becomes of them.
__device__ __forceinline__ void finish(const kqm_float_matvec_args &a, const Pairs &pairs, uint32_t first_row, int runs,
                                       KQM_SHARED_ARG(double) run_sum) {
  KQM_LOOP
  for (int i = threadIdx.x; i < pairs.outputs * rows; i += blockDim.x) {
    const int output = i / rows, r = i % rows;
    const uint32_t row = first_row + r;
    if (row >= a.rows) continue;
    const auto value = [&](int rank) {
      const int pair = output * int(a.ranks) + rank;
      float of_pair = __uint_as_float(0x7fc00000u);
      if (pairs.expert(a, pair) < a.experts)
        of_pair = kqm_canonical(float(kqm_tree_sum_shared(run_sum, (pair * rows + r) * runs, 1, runs)));
      if (a.product) a.product[pairs.number(a, pair) * a.rows + row] = of_pair;
      return of_pair;
    };
    const size_t at = size_t(pairs.first + output) * a.rows + row;
    if (a.weights) {
      const float *weights = a.weights + pairs.number(a, output * int(a.ranks));
      const float sum = kqm_canonical(
          float(kqm_tree_sum([&](int rank) { return double(weights[rank]) * double(value(rank)); }, int(a.ranks))));
      if (a.sum) a.sum[at] = sum;
      store(a, at, sum);
    } else {
      store(a, at, value(0));
    }
  }
}

// Shared memory: the sums over runs, [pairs of the CTA][4 rows][runs].
template <class Weight>
__global__ void __launch_bounds__(32 * max_warps) float_matvec_kernel(kqm_float_matvec_args a, int outputs_at_once) {
  KQM_DYNAMIC_SHARED(double, run_sum);
  const int runs = (int(a.cols) + run_columns - 1) / run_columns;
  const Pairs pairs(a, outputs_at_once);
  kqm_touch_arguments(a);
  kqm_wait_then_release();
  // One turn, but for matrices of more rows than a grid has CTAs for.
  KQM_LOOP
  for (uint32_t first_row = blockIdx.y * rows; first_row < a.rows; first_row += gridDim.y * rows) {
    sum_runs<Weight>(a, pairs, first_row, runs, run_sum);
    __syncthreads();
    finish(a, pairs, first_row, runs, run_sum);
    __syncthreads();
  }
}

}  // namespace

KQM_ABI_BEGIN
kqm_status kqm_float_matvec(const kqm_float_matvec_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr && args->w && args->x && args->y, KQM_NULL_POINTER);
  KQM_REQUIRE(args->type == KQM_TYPE_F32 || args->type == KQM_TYPE_F16 || args->type == KQM_TYPE_BF16,
              KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(args->rows > 0 && args->rows <= kqm_max_rows && args->cols > 0 && args->cols % 32 == 0 &&
                  args->cols <= kqm_max_cols && args->count > 0 && args->count <= 0x7fffffffu && args->ranks > 0 &&
                  args->ranks <= KQM_MAX_TOP_K && args->share > 0,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(args->experts > 0 && (args->indices != nullptr || args->experts == 1), KQM_BAD_SHAPE);
  // Several values for an output are to be added up.
  KQM_REQUIRE(args->weights != nullptr || args->ranks == 1, KQM_NULL_POINTER);
  KQM_REQUIRE(args->weights != nullptr || args->sum == nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(args->gate == nullptr || args->up == nullptr, KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(args->w, 16) && kqm_aligned(args->x, 16), KQM_MISALIGNED);
  const unsigned runs = kqm_ceil_div(args->cols, uint32_t(run_columns));
  // Without experts all outputs have the same weights.
  const uint32_t outputs = args->indices || args->weights ? 1 : std::min(uint32_t(most_outputs), args->count);
  const dim3 grid(kqm_ceil_div(args->count, outputs), std::min(kqm_ceil_div(args->rows, uint32_t(rows)), 65535u)),
      cta(32 * kqm_even_warps(runs, max_warps));
  const size_t shared = size_t(outputs) * args->ranks * rows * runs * sizeof(double);
  return kqm_launch_floats(args->type, [&](auto type) {
    return KQM_LAUNCH(float_matvec_kernel<decltype(type)>, grid, cta, shared, stream, *args, int(outputs));
  });
}
KQM_ABI_END
