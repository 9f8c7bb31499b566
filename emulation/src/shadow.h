// Shared memory of a block and its shadow: who wrote and read which bytes, and when.
#ifndef KQM_EMULATION_SHADOW_H
#define KQM_EMULATION_SHADOW_H

#include <stdint.h>
#include <string>
#include <vector>

namespace kqm_emulation {

struct thread_state;

// Order within a warp since the block began. `tick` counts the warp's barriers. An access at tick a of lane u comes
// before what lane t does now when a < max(full, known[t][u]).
struct warp_clock {
  uint32_t tick = 0;
  uint32_t full = 0; // tick of the last barrier of all lanes
  bool partial = false; // some barrier was of some lanes only: `known` has content
  uint32_t known[32][32] = {};
  // What the warp has learned of others by waiting for arrival barriers: what warp w did at ticks below seen[w] comes before what this one
  // does now.
  uint32_t seen[32] = {};
};

// A barrier that warps arrive at without waiting, and wait for without arriving (PTX's mbarrier).
struct arrival_barrier {
  uint32_t offset;  // of its eight bytes
  uint32_t count;   // of warps that complete a phase
  uint32_t pending; // of the current phase
  uint32_t phase;   // completed so far
  uint32_t seen[32]; // what whoever waits learns
  uint32_t gathered[32];
};

// A thread and the place in the code where it did something. `file` counts those of a launch.
struct actor {
  uint16_t thread;
  uint16_t line;
  uint8_t file;
};

constexpr uint16_t NOBODY = 0xffff;

// What is known of the last accesses to a word (or, where threads touch parts of it, a byte).
struct shadow_cell {
  uint32_t write_epoch;
  uint32_t write_tick;
  uint32_t read_epoch;
  uint32_t read_tick;
  uint32_t reader_lanes; // lanes of the last reader's warp that have read since its last full barrier
  uint32_t atomic_lanes; // the same of lanes that have changed the value atomically, where the last write did
  actor writer;
  actor other_writer; // where the last write was an atomic operation: one of another warp in the same epoch, or NOBODY
  actor reader;
  actor previous_reader; // the last one before it that is another thread
  actor other_reader;    // a reader of another warp in the same epoch, or NOBODY
  uint32_t other_tick;   // when that was
  uint8_t atomic;        // the last write was an atomic operation
  uint8_t filling;       // an asynchronous copy will write here
};

// A read of bytes that nothing had written. The launch goes on, to see who does: then a barrier is missing.
struct missing_value {
  bool found = false;
  const char *did = nullptr;
  thread_state *reader = nullptr;
  const char *file = nullptr;
  int line = 0;
  std::string element;
  uint32_t begin = 0, end = 0;
  uint32_t epoch = 0, tick = 0;
};

struct static_array {
  const void *site;
  uint32_t offset;
};

struct shared_memory {
  std::vector<uint8_t> storage;
  uint8_t *bytes = nullptr; // storage, aligned
  uint32_t capacity = 0;
  uint32_t dynamic = 0; // bytes of the dynamic array, which comes first
  uint32_t used = 0;    // and the static ones declared so far
  std::vector<static_array> arrays;
  std::vector<arrival_barrier> barriers;
  std::vector<shadow_cell> words;
  std::vector<shadow_cell> parts; // of words of which bytes have been touched singly
  std::vector<uint8_t> split;     // whether a word has parts
  // Counts block beginnings and barriers, over all launches of the thread: old cells never need clearing.
  uint32_t epoch = 0;
  uint32_t block_epoch = 0;
  std::vector<const char *> files; // that accesses of this launch are in
  const char *last_file = nullptr;
  uint8_t last_file_number = 0;
  missing_value missing;
};

struct engine;
void shared_begin_launch(engine &device, uint32_t dynamic_bytes);
void shared_begin_block(engine &device);
// A text about a read of missing bytes, and that it has been told.
std::string take_missing(shared_memory &shared);

} // namespace kqm_emulation

#endif
