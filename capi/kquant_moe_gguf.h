/* kquant-moe: the checked reader of GGUF files, for engines in C.
 *
 * It is the reader of the Rust crate in a shared library (capi/): versions 2 and 3, of one file or of several parts, of which any is
 * named. A file is mapped, so nobody may change it while it is open, and all rules of the format are checked when it is opened: afterwards every name is unique, and every tensor's
 * data lies in the file and is as long as its type and dimensions demand.
 *
 * What is given out belongs to the file and is valid until kqm_gguf_close. Several threads may read one file at once.
 */
#ifndef KQUANT_MOE_GGUF_H
#define KQUANT_MOE_GGUF_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of what is here. */
#define KQM_GGUF_VERSION 1

/* An open file. */
typedef struct kqm_gguf kqm_gguf;

/* Text in a file: UTF-8, without a zero at its end. */
typedef struct kqm_gguf_text {
  const char *bytes;
  uint64_t count;
} kqm_gguf_text;

typedef struct kqm_gguf_tensor {
  kqm_gguf_text name;
  const void *data; /* nothing is promised about its alignment */
  uint64_t bytes;
  uint64_t dims[4]; /* as in the file: the first one is contiguous; 1 behind the last one */
  uint32_t rank;    /* dimensions in use: 1 ..= 4 */
  uint32_t type;    /* GGML's number, as KQM_TYPE_...; it may be one without kernels */
} kqm_gguf_tensor;

/* What the functions below return: 1 for what is there, 0 for what is not, of another type or not to be asked for. */
typedef int32_t kqm_gguf_found;

/* Opens a file, with KQM_GGUF_VERSION. NULL when it cannot be read or breaks a rule, or when the version is another one than the
 * library's: then `error` has one line that says why, cut to `error_bytes` with a zero at its end. */
kqm_gguf *kqm_gguf_open(uint32_t version, const char *path, char *error, uint64_t error_bytes);
/* Closes it. NULL is no file. */
void kqm_gguf_close(kqm_gguf *file);

/* Tensors, and those by number and by name. */
uint64_t kqm_gguf_tensors(const kqm_gguf *file);
kqm_gguf_found kqm_gguf_tensor_at(const kqm_gguf *file, uint64_t index, kqm_gguf_tensor *out);
kqm_gguf_found kqm_gguf_tensor_named(const kqm_gguf *file, const char *name, kqm_gguf_tensor *out);

/* Metadata: an integer that is not negative, a float, a text. */
kqm_gguf_found kqm_gguf_integer(const kqm_gguf *file, const char *key, uint64_t *out);
kqm_gguf_found kqm_gguf_float(const kqm_gguf *file, const char *key, float *out);
kqm_gguf_found kqm_gguf_string(const kqm_gguf *file, const char *key, kqm_gguf_text *out);

#ifdef __cplusplus
}
#endif
#endif
