// What is left to the mat-vecs of a decode step when they do nothing: kernels of their launch shapes that read as many bytes of weights,
// in a chain of dependent launches as in a step, and leave the arithmetic out. docs/performance.md compares.
//
//   nvcc -O3 -std=c++17 -arch=sm_90 benches/floor.cu -o floor && ./floor
//
// Each line is one launch in a graph of many, over weights that rotate through 1 GB.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

// What a kernel does besides being launched.
enum Does : int {
  nothing = 0,
  weights_before = 1,  // reads weights before it waits for the launch before it
  weights_after = 2,   // or behind that, as a kernel must whose experts are chosen just then
  activations = 4,     // reads the activations behind it
  sums = 8,            // adds up its warps' numbers behind a barrier, and stores
};

const int tile_words = 144;  // of 16 bytes: a tile of Q4_K

void check(cudaError_t status, const char *what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

__device__ uint4 load_streaming(const uint4 *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// TILES tiles a warp.
template <int TILES, int DOES>
__global__ void __launch_bounds__(1024) kernel(const uint4 *weights, const uint4 *x, float *y) {
  __shared__ double part[32][16];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  uint4 tile[TILES][5];
  const auto load = [&] {
    const uint4 *own = weights + (size_t(blockIdx.x) * warps + warp) * TILES * tile_words;
    for (int t = 0; t < TILES; t++) {
      for (int i = 0; i < 4; i++) tile[t][i] = load_streaming(own + t * tile_words + 32 * i + lane);
      tile[t][4] = load_streaming(own + t * tile_words + 128 + lane / 2);
    }
  };
  if (DOES & weights_before) load();
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (DOES & weights_after) load();
  uint32_t mixed = 0;
  const auto mix = [&](const uint4 &v) { mixed ^= v.x ^ v.y ^ v.z ^ v.w; };
  if (DOES & activations) {
    for (int i = 0; i < 3; i++) mix(x[warp * 86 + (32 * i + lane) % 86]);
  }
  if (DOES & (weights_before | weights_after)) {
    for (int t = 0; t < TILES; t++)
      for (int i = 0; i < 5; i++) mix(tile[t][i]);
  }
  if (DOES & sums) {
    if (lane < 16) part[warp][lane] = double(mixed);
    __syncthreads();
    if (threadIdx.x >= 16) return;
    double sum = 0.0;
    for (int w = 0; w < warps; w++) sum += part[w][threadIdx.x];
    y[blockIdx.x * 16 + threadIdx.x] = float(sum);
  } else if (mixed == 0x12345678) {
    y[blockIdx.x] = 1.0f;
  }
}

struct Bench {
  cudaStream_t stream;
  cudaEvent_t start, end;
  uint8_t *weights;
  uint4 *x;
  float *y;
  double copy;  // bytes a second, read plus written
  static constexpr size_t bytes = size_t(1) << 30;

  Bench() {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    check(cudaEventCreate(&start), "event");
    check(cudaEventCreate(&end), "event");
    check(cudaMalloc(&weights, 2 * bytes), "weights");
    check(cudaMemset(weights, 1, 2 * bytes), "weights");
    check(cudaMalloc(&x, 1 << 20), "activations");
    check(cudaMemset(x, 0, 1 << 20), "activations");
    check(cudaMalloc(&y, 1 << 20), "results");
    copy = 2.0 * bytes / seconds([&] {
      check(cudaMemcpyAsync(weights + bytes, weights, bytes, cudaMemcpyDeviceToDevice, stream), "copy");
    });
    std::printf("copy %.2f TB/s\n", copy * 1e-12);
  }

  template <class Run>
  double seconds(Run run) {
    std::vector<float> times;
    for (int i = 0; i < 9; i++) {
      check(cudaEventRecord(start, stream), "record");
      run();
      check(cudaEventRecord(end, stream), "record");
      check(cudaEventSynchronize(end), "run");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, start, end), "time");
      times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2] * 1e-3;
  }

  // `chains` chains of launches side by side: more than one says what memory gives when launches do not wait for each other.
  template <int TILES, int DOES>
  void measure(const char *what, unsigned blocks, unsigned warps, unsigned chains = 1) {
    const size_t read = size_t(blocks) * warps * TILES * tile_words * 16;
    const unsigned launches = unsigned(bytes / read) / chains * chains;
    std::vector<cudaStream_t> streams(chains);
    std::vector<cudaEvent_t> ends(chains);
    cudaEvent_t fork;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    check(cudaEventCreate(&fork), "event");
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    check(cudaEventRecord(fork, stream), "record");
    for (unsigned c = 0; c < chains; c++) {
      check(cudaStreamCreateWithFlags(&streams[c], cudaStreamNonBlocking), "stream");
      check(cudaEventCreate(&ends[c]), "event");
      check(cudaStreamWaitEvent(streams[c], fork), "fork");
    }
    for (unsigned i = 0; i < launches; i++) {
      cudaLaunchAttribute attribute{};
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(blocks);
      config.blockDim = dim3(32 * warps);
      config.stream = streams[i % chains];
      config.attrs = &attribute;
      config.numAttrs = 1;
      const uint4 *own = reinterpret_cast<const uint4 *>(weights + i * read);
      check(cudaLaunchKernelEx(&config, kernel<TILES, DOES>, own, static_cast<const uint4 *>(x), y + i % chains * 8192), "launch");
    }
    for (unsigned c = 0; c < chains; c++) {
      check(cudaEventRecord(ends[c], streams[c]), "record");
      check(cudaStreamWaitEvent(stream, ends[c]), "join");
    }
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(cudaGraphInstantiate(&executable, graph, 0), "graph");
    const double each = seconds([&] { check(cudaGraphLaunch(executable, stream), "launch"); }) / launches;
    std::printf("%-58s %5.2f us", what, each * 1e6);
    if (DOES & (weights_before | weights_after))
      std::printf("  %4.1f MB, %3.0f%% of copy", double(read) * 1e-6, 100.0 * double(read) / each / copy);
    std::printf("\n");
  }
};

}  // namespace

int main() {
  Bench bench;
  bench.measure<1, nothing>("an empty kernel", 128, 16);
  bench.measure<1, activations>("activations", 128, 16);
  bench.measure<1, activations | sums>("activations, sums", 128, 16);
  bench.measure<1, weights_before>("attention output: weights", 128, 16);
  bench.measure<1, weights_before | activations | sums>("attention output: weights, activations, sums", 128, 16);
  bench.measure<1, weights_before | activations | sums>("the same, four chains side by side", 128, 16, 4);
  bench.measure<2, weights_before | activations | sums>("q, k, v: weights, activations, sums", 160, 8);
  bench.measure<2, weights_after | activations | sums>("gate and up of 8 experts: weights late, activations, sums", 384, 8);
  bench.measure<1, weights_after | activations | sums>("down of 8 experts: weights late, activations, sums", 128, 24);
}
