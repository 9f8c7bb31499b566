// The state of one operating system thread's emulated device: the grid that runs, its block, warps and threads.
#ifndef KQM_EMULATION_STATE_H
#define KQM_EMULATION_STATE_H

#include "emulation.h"
#include "fiber.h"
#include "shadow.h"

#include <memory>
#include <string>
#include <vector>

namespace kqm_emulation {

struct engine;
struct thread_state;
struct warp_state;

// What a thread waits for; null text: it does not wait.
struct wait {
  const char *operation = nullptr;
  uint32_t mask = 0; // of a warp operation; 0 for a barrier
};

struct pending_copy {
  uint32_t offset;
  uint32_t group;
  uint8_t bytes[16];
};

struct thread_state : thread_view {
  fiber own;
  engine *device = nullptr;
  warp_state *warp = nullptr;
  void *payload = nullptr; // operands and results of the warp operation that the thread waits in
  uint32_t number = 0;     // in the block
  uint32_t lane = 0;
  const char *file = nullptr; // where the thread was last seen
  int line = 0;
  wait waits;
  uint32_t copy_groups = 0; // committed so far
  std::vector<pending_copy> copies;
};

using finish_function = void (*)(warp_state &warp, uint32_t mask);

// A warp operation that some of its lanes have reached.
struct open_operation {
  const char *operation;
  const char *file;
  int line;
  uint32_t mask;
  uint32_t arrived;
};

struct warp_state {
  thread_state *lanes = nullptr; // of the block's threads, the 32 (or fewer) of this warp
  uint32_t number = 0;
  uint32_t present = 0; // lanes that the block has
  uint32_t ready = 0;   // lanes that could run
  uint32_t exited = 0;
  uint32_t open_count = 0;
  open_operation open[32];
  warp_clock clock;
};

struct statistics {
  uint64_t launches;
  uint64_t blocks;
  uint64_t switches;
  uint64_t operations; // barriers and warp operations
};

// Launches that were recorded instead of made, each with arguments of its own.
struct recording {
  std::vector<launch_request> launches;
  recording() = default;
  ~recording() {
    for (const launch_request &launch : launches) launch.drop(const_cast<void *>(launch.closure));
  }
  recording(const recording &) = delete;
  recording &operator=(const recording &) = delete;
};

struct engine {
  grid_view grid;
  const launch_request *request = nullptr;
  std::unique_ptr<recording> records; // while launches are recorded
  std::string kernel;
  fiber launcher;
  stack_pool stacks;
  std::vector<thread_state> threads;
  std::vector<warp_state> warps;
  uint32_t thread_count = 0;
  uint32_t warp_count = 0;
  uint32_t ready_warps = 0;
  uint32_t exited = 0;

  uint32_t barrier_arrived = 0;
  uint32_t barrier_count = 0; // of true predicates
  int barrier_result = 0;
  barrier_kind barrier_is = barrier_kind::plain;
  const char *barrier_file = nullptr;
  int barrier_line = 0;

  shared_memory shared;

  int32_t status = 0;
  std::string error;
  uint64_t schedule = 0;
  uint64_t random = 0;
  uint64_t time_limit_ms = 120000;
  volatile bool expired = false;
  statistics counts = {};
};

inline thread_state *running() { return static_cast<thread_state *>(current); }

// The engine of this operating system thread.
engine &this_engine();

// Reports a failure of `thread` and ends the launch.
[[noreturn]] void fail_thread(thread_state *thread, failure code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

// Waits until all lanes of `mask` have called; the last one calls `finish`, which sees every lane's payload.
void collective(uint32_t mask, void *payload, finish_function finish, const char *operation, const char *file, int line);

uint64_t next_random(engine &device);

// "1 byte past the end of the buffer of 64 bytes", or empty when no buffer is near.
std::string describe_address(uintptr_t address);
// Empty, or which of the calling thread's buffers has been written past its end.
std::string overrun_buffer();

// Turns faults of emulated threads into reports. Once per launch, on the thread that launches.
class fault_guard {
public:
  explicit fault_guard(engine &device);
  ~fault_guard();
  fault_guard(const fault_guard &) = delete;
  fault_guard &operator=(const fault_guard &) = delete;
};

} // namespace kqm_emulation

#endif
