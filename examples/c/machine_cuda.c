/* The machine of the example: GPU 0. */
#include "machine.h"

#include <cuda_runtime_api.h>

const kqm_kernels *machine_kernels(void) { return kqm_kernel_table(KQM_ABI); }

int machine_stream(kqm_stream *stream) {
  /* The primary context of device 0 is current from here on. */
  const cudaError_t status = cudaSetDevice(0);
  return status != cudaSuccess ? (int)status
                               : (int)cudaStreamCreateWithFlags((cudaStream_t *)stream, cudaStreamNonBlocking);
}

int machine_allocate(void **memory, size_t bytes) { return (int)cudaMalloc(memory, bytes); }

int machine_free(void *memory) { return (int)cudaFree(memory); }

int machine_upload(void *to, const void *from, size_t bytes, kqm_stream stream) {
  return (int)cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream);
}

int machine_download(void *to, const void *from, size_t bytes, kqm_stream stream) {
  const cudaError_t status = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, (cudaStream_t)stream);
  return status != cudaSuccess ? (int)status : (int)cudaStreamSynchronize((cudaStream_t)stream);
}

const char *machine_text(int status) { return cudaGetErrorString((cudaError_t)status); }
