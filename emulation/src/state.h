// The state of one operating system thread's emulated device: the grid that runs, its block, warps and threads.
#ifndef KQM_EMULATION_STATE_H
#define KQM_EMULATION_STATE_H

#include "emulation.h"
#include "fiber.h"
#include "shadow.h"

#include <atomic>
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
  uint32_t size;
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
  bool waited = false; // for the launch before
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

// A launch that may not be complete when a later one begins.
struct earlier_launch {
  uint32_t number;
  std::string kernel;
};

// What is known of the launches before the one that runs. Numbers are unique in the program and ascend.
struct dependences {
  uint32_t number = 0; // of the launch that runs
  // Launches since the host last waited, without those that are complete whenever anybody asks.
  std::vector<earlier_launch> earlier;
  // Of those, the ones from this number on may still run when the launch begins, and, without the very last one, even after it has
  // waited for that.
  uint32_t from_start = 0;
  uint32_t from_wait = 0;
  bool waited = false;         // some thread has
  bool released_early = false; // some thread released the next launch before it had waited itself
  uint64_t synchronizations = 0;
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
  dependences dependence;

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

// The last part of a path: reports do not depend on where the sources lie.
const char *base_name(const char *path);

// Reports a failure of `thread` and ends the launch.
[[noreturn]] void fail_thread(thread_state *thread, failure code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

// Waits until all lanes of `mask` have called; the last one calls `finish`, which sees every lane's payload. `orders`: memory accesses of
// the lanes before it come before those after it. Of CUDA's warp operations only __syncwarp does that.
void collective(uint32_t mask, void *payload, finish_function finish, bool orders, const char *operation, const char *file, int line);

uint64_t next_random(engine &device);

void dependence_begin_launch(engine &device);
void dependence_end_launch(engine &device);
// What threads that have met know of the launches before: if one of them has waited for those, all have.
void dependence_share(thread_state *const *threads, uint32_t count);
void dependence_begin_thread(thread_state &thread);
// A read of global memory by the running thread that the compiler does not see.
void check_global_read(const void *address, size_t bytes, const char *file, int line);

// "1 byte past the end of the buffer of 64 bytes", or empty when no buffer is near.
std::string describe_address(uintptr_t address);
// "moe_down.cu:94" for an address of compiled code, or empty when nobody knows.
std::string describe_code(const void *code);
// Who last wrote which byte of a buffer: numbers of launches.
struct written {
  const char *begin;
  size_t bytes;
  uint32_t *launch; // of each byte
};

// Buffers by their addresses, in granules of 64 KiB that no two buffers share. Two levels, of which the second is made on demand: looked up
// at every access. All copies of the emulation in a program use one.
struct memory_map {
  static constexpr size_t GRANULE_BITS = 16, LEAF_BITS = 15, ROOT_BITS = 17;
  struct leaf {
    std::atomic<written *> granule[1u << LEAF_BITS];
  };
  std::atomic<leaf *> root[1u << ROOT_BITS];
  std::atomic<uint32_t> launches; // so far
};
memory_map &all_buffers();
// How often the calling thread of the host has waited for its launches.
uint64_t synchronizations();

// The buffer at an address, or null.
inline const written *buffer_at(uintptr_t address) {
  memory_map &map = all_buffers();
  const uintptr_t granule = address >> memory_map::GRANULE_BITS, index = granule >> memory_map::LEAF_BITS;
  if (index >> memory_map::ROOT_BITS) return nullptr;
  const memory_map::leaf *const leaf = map.root[index].load(std::memory_order_acquire);
  if (!leaf) return nullptr;
  return leaf->granule[granule & ((1u << memory_map::LEAF_BITS) - 1)].load(std::memory_order_acquire);
}

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
