// Shared memory of a block and its shadow: who wrote and read which bytes, and when.
#ifndef KQM_EMULATION_SHADOW_H
#define KQM_EMULATION_SHADOW_H

#include <stdint.h>
#include <vector>

namespace kqm_emulation {

// Order within a warp since the block began. `tick` counts the warp's collectives. An access at tick a of lane u comes
// before what lane t does now when a < max(full, known[t][u]).
struct warp_clock {
  uint32_t tick = 0;
  uint32_t full = 0; // tick of the last collective of all lanes
  bool partial = false; // some collective was of some lanes only: `known` has content
  uint32_t known[32][32] = {};
};

// What is known of the last accesses to a word (or, where threads touch parts of it, a byte).
struct shadow_cell {
  uint32_t write_epoch;
  uint32_t write_tick;
  uint32_t read_epoch;
  uint32_t read_tick;
  uint32_t reader_lanes; // lanes of the last reader's warp that have read since its last full collective
  uint16_t writer;
  uint16_t write_line;
  uint16_t reader;
  uint16_t read_line;
  uint16_t other_reader; // a reader of another warp in the same epoch, or NO_READER
  uint8_t atomic;        // the last write was an atomic operation
  uint8_t filling;       // an asynchronous copy will write here
};

constexpr uint16_t NO_READER = 0xffff;

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
  std::vector<shadow_cell> words;
  std::vector<shadow_cell> parts; // of words of which bytes have been touched singly
  std::vector<uint8_t> split;     // whether a word has parts
  // Counts block beginnings and barriers, over all launches of the thread: old cells never need clearing.
  uint32_t epoch = 0;
  uint32_t block_epoch = 0;
};

struct engine;
void shared_begin_launch(engine &device, uint32_t dynamic_bytes);
void shared_begin_block(engine &device);

} // namespace kqm_emulation

#endif
