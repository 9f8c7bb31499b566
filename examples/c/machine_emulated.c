/* The machine of the example where there is no GPU: the emulation of the kernels (emulation/), as tests link it. */
#include "machine.h"

#include <string.h>

const void *kqm_emulation_table(void);
void *kqm_emulation_alloc(size_t bytes, uint8_t fill);
int32_t kqm_emulation_free(void *memory);

const kqm_kernels *machine_kernels(void) { return (const kqm_kernels *)kqm_emulation_table(); }

/* Launches are done when the launcher returns, on any stream. */
int machine_stream(kqm_stream *stream) {
  static char place;
  *stream = &place;
  return 0;
}

int machine_allocate(void **memory, size_t bytes) {
  /* What is not written shows. */
  *memory = kqm_emulation_alloc(bytes, 0xa5);
  return *memory == NULL;
}

int machine_free(void *memory) { return kqm_emulation_free(memory); }

int machine_upload(void *to, const void *from, size_t bytes, kqm_stream stream) {
  (void)stream;
  memcpy(to, from, bytes);
  return 0;
}

int machine_download(void *to, const void *from, size_t bytes, kqm_stream stream) {
  return machine_upload(to, from, bytes, stream);
}

const char *machine_text(int status) { return status == 0 ? "success" : "the emulation refuses"; }
