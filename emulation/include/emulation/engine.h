// The running thread, the barriers, and the statuses of a launch that broke a rule.
#ifndef KQM_EMULATION_ENGINE_H
#define KQM_EMULATION_ENGINE_H

#include "types.h"

// Default arguments: the place of the call, for the reports.
#define KQM_EMULATION_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// Makes a function visible outside a library that is built with hidden symbols.
#define KQM_EMULATION_EXPORT extern "C" __attribute__((visibility("default")))

namespace kqm_emulation {

// Statuses of a launch that broke a rule. Positive and far above every cudaError_t.
enum failure : int32_t {
  DIVERGENCE = 10001,      // a barrier or warp operation that its threads do not all reach, or reach differently
  DEADLOCK = 10002,        // every thread of the block waits
  BAD_MASK = 10003,        // a mask without the caller, or with lanes that the block does not have
  BAD_SHUFFLE = 10004,     // a shuffle that reads a lane outside its mask, or a width that is no power of two
  UNINITIALISED = 10005,   // shared memory read before anything in the block wrote it
  OUT_OF_BOUNDS = 10006,   // an index outside a shared array
  MISALIGNED = 10007,      // a vector access to an address that is no multiple of its size
  RACE = 10008,            // two threads touch the same shared bytes, one writes, nothing orders them
  ASYNC_COPY = 10009,      // shared memory touched while an asynchronous copy still fills it
  MEMORY_FAULT = 10010,    // an access outside every buffer
  STACK_OVERFLOW = 10011,  // a thread needs more stack than a fiber has
  BUFFER_OVERRUN = 10012,  // the bytes next to a buffer were overwritten
  BAD_LAUNCH = 10013,      // a grid, block or amount of shared memory that the device would refuse
  TIME_LIMIT = 10014,      // the launch does not end
  ARITHMETIC_TRAP = 10015, // an integer division by zero
  DEPENDENCY = 10016,      // memory of a launch that may still run touched before the wait for it
};

struct grid_view {
  uint3 block_index;
  dim3 block_size;
  dim3 grid_size;
};

struct thread_view {
  uint3 thread_index;
  const grid_view *grid;
  // Whether every launch before this one is complete for all that this thread knows: it may touch all memory.
  bool earlier_complete;
};

// The thread that runs. __thread rather than thread_local, which would ask at each access whether to initialise it.
extern __thread thread_view *current;

enum class barrier_kind { plain, any, all, count };
int barrier(barrier_kind kind, bool predicate, const char *file, int line);

// Gives other threads a chance to run, so that a loop that polls memory does not keep the block to itself.
void yield(const char *file, int line);

// Programmatic dependent launch.
void wait_for_dependencies();
void release_dependents();

// Remembers where the running thread is, for the report of a fault that has no place of its own.
void at(const char *file, int line);

[[noreturn]] void fail(failure code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

} // namespace kqm_emulation

#define threadIdx (::kqm_emulation::current->thread_index)
#define blockIdx (::kqm_emulation::current->grid->block_index)
#define blockDim (::kqm_emulation::current->grid->block_size)
#define gridDim (::kqm_emulation::current->grid->grid_size)
#define warpSize 32

static inline void __syncthreads(KQM_EMULATION_HERE) {
  kqm_emulation::barrier(kqm_emulation::barrier_kind::plain, false, file, line);
}
// Threads may come from different places: its number is the place.
static inline void kqm_named_barrier(int id) { kqm_emulation::barrier(kqm_emulation::barrier_kind::plain, false, "kqm_named_barrier", id); }
static inline int __syncthreads_or(int predicate, KQM_EMULATION_HERE) {
  return kqm_emulation::barrier(kqm_emulation::barrier_kind::any, predicate != 0, file, line);
}
static inline int __syncthreads_and(int predicate, KQM_EMULATION_HERE) {
  return kqm_emulation::barrier(kqm_emulation::barrier_kind::all, predicate != 0, file, line);
}
static inline int __syncthreads_count(int predicate, KQM_EMULATION_HERE) {
  return kqm_emulation::barrier(kqm_emulation::barrier_kind::count, predicate != 0, file, line);
}

#endif
