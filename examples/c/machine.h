/* What the example needs of a machine, so that it runs on a GPU and, for tests, on the emulation of one: memory, a stream of its own, and
 * the table of launchers. An engine has its own of all this. */
#ifndef MACHINE_H
#define MACHINE_H

#include <stddef.h>

#include "kquant_moe.h"

/* The launchers, or NULL: those that are linked have another header. */
const kqm_kernels *machine_kernels(void);
/* A stream, whose context is current from here on; 0 or a status. */
int machine_stream(kqm_stream *stream);
int machine_allocate(void **memory, size_t bytes);
int machine_free(void *memory);
/* Copies to and from the machine, in the order of the stream. A download waits for it. */
int machine_upload(void *to, const void *from, size_t bytes, kqm_stream stream);
int machine_download(void *to, const void *from, size_t bytes, kqm_stream stream);
/* Text of a status of one of these functions. */
const char *machine_text(int status);

#endif
