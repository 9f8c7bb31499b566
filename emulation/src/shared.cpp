// Checked shared memory: every access is compared with what is known of the last ones to the same bytes.
#include "state.h"

#include <stdio.h>
#include <string.h>

namespace kqm_emulation {

namespace {

constexpr uint32_t MOST_SHARED_BYTES = 227 << 10;
constexpr uint8_t POISON = 0xb7;

void poison(shared_memory &shared, uint32_t offset, uint32_t bytes) {
  memset(shared.bytes + offset, POISON, bytes);
  memset(&shared.split[offset / 4], 0, (bytes + 3) / 4);
}

// Where an access lies, for the reports.
struct access {
  thread_state *self;
  const shared_piece *piece;
  int64_t index;
  const char *file;
  int line;
  uint32_t offset = 0; // in the block's shared memory, once it is known
  uint32_t bytes = 0;
};

#define KQM_FAIL_ACCESS(code, where, format, ...)                                                                       \
  fail_thread((where).self, code, (where).file, (where).line, format " (%s[%lld])", ##__VA_ARGS__,                     \
              (where).piece->name, (long long)((where).piece->index + (where).index))

// Whether what thread `number` did at that epoch and tick comes before what `self` does now.
bool ordered(const thread_state &self, uint32_t epoch, uint32_t tick, uint32_t number) {
  if (epoch != self.device->shared.epoch || number == self.number) return true;
  if (number / 32 != self.number / 32) return tick < self.warp->clock.seen[number / 32];
  const warp_clock &clock = self.warp->clock;
  return tick < clock.full || (clock.partial && tick < clock.known[self.lane][number % 32]);
}

// The place where the running thread does something now.
actor here(const access &where) {
  shared_memory &shared = where.self->device->shared;
  if (__builtin_expect(where.file != shared.last_file, 0)) {
    size_t number = 0;
    while (number < shared.files.size() && shared.files[number] != where.file) number++;
    // More than a launch has.
    if (number > 255) number = 255;
    if (number == shared.files.size()) shared.files.push_back(where.file);
    shared.last_file = where.file;
    shared.last_file_number = uint8_t(number);
  }
  return {uint16_t(where.self->number), uint16_t(where.line), shared.last_file_number};
}

std::string describe(const shared_memory &shared, const actor &who, const char *did) {
  char text[200];
  snprintf(text, sizeof text, "thread %u (warp %u, lane %u) %s at %s:%u", who.thread, who.thread / 32, who.thread % 32, did,
           base_name(shared.files[who.file]), who.line);
  return text;
}

[[noreturn]] void fail_race(const access &where, const char *now, const char *before, const actor &who) {
  KQM_FAIL_ACCESS(RACE, where, "%s of shared memory that %s, with nothing between them", now,
                  describe(where.self->device->shared, who, before).c_str());
}

void check_filling(const access &where, const shadow_cell &cell) {
  if (__builtin_expect(cell.filling && cell.write_epoch >= where.self->device->shared.block_epoch, 0))
    KQM_FAIL_ACCESS(ASYNC_COPY, where, "access of shared memory that may still be filled: %s",
                    describe(where.self->device->shared, cell.writer, "began an asynchronous copy").c_str());
}

// Notes a read of bytes that nothing wrote, the first one of the block.
void note_missing(const access &where, const char *did) {
  shared_memory &shared = where.self->device->shared;
  if (shared.missing.found) return;
  missing_value &missing = shared.missing;
  missing.found = true;
  missing.did = did;
  missing.reader = where.self;
  missing.file = where.file;
  missing.line = where.line;
  char text[100];
  snprintf(text, sizeof text, "%s[%lld]", where.piece->name, (long long)(where.piece->index + where.index));
  missing.element = text;
  missing.begin = where.offset;
  missing.end = where.offset + where.bytes;
  missing.epoch = shared.epoch;
  missing.tick = where.self->warp->clock.tick;
}

// A write of bytes that were missing says what was wrong: it should have come before the read, or be ordered with it.
void check_missing(const access &where) {
  shared_memory &shared = where.self->device->shared;
  const missing_value missing = shared.missing;
  if (where.offset >= missing.end || where.offset + where.bytes <= missing.begin) return;
  shared.missing.found = false;
  const std::string writer = describe(shared, here(where), "writes");
  if (ordered(*where.self, missing.epoch, missing.tick, missing.reader->number))
    fail_thread(missing.reader, UNINITIALISED, missing.file, missing.line,
                "%s of shared memory that nothing wrote in this block before; %s only later (%s)", missing.did, writer.c_str(),
                missing.element.c_str());
  fail_thread(missing.reader, RACE, missing.file, missing.line, "%s of shared memory that %s, with nothing between them (%s)",
              missing.did, writer.c_str(), missing.element.c_str());
}

void check_last_writes(const access &where, const shadow_cell &cell, const char *now) {
  const thread_state &self = *where.self;
  if (__builtin_expect(!ordered(self, cell.write_epoch, cell.write_tick, cell.writer.thread), 0))
    fail_race(where, now, "wrote", cell.writer);
  if (__builtin_expect(!cell.atomic, 1) || cell.write_epoch != self.device->shared.epoch) return;
  // Atomic operations before the last one, which need no order among themselves.
  if (cell.other_writer.thread != NOBODY) fail_race(where, now, "wrote", cell.other_writer);
  const uint32_t others = cell.atomic_lanes & ~(1u << self.lane);
  if (others && cell.writer.thread / 32 == self.number / 32 && cell.write_tick >= self.warp->clock.full) {
    actor other = cell.writer;
    other.thread = uint16_t(self.number / 32 * 32 + uint32_t(__builtin_ctz(others)));
    if (!ordered(self, cell.write_epoch, cell.write_tick, other.thread)) fail_race(where, now, "wrote", other);
  }
}

void cell_read(const access &where, shadow_cell &cell) {
  thread_state &self = *where.self;
  const shared_memory &shared = self.device->shared;
  check_filling(where, cell);
  if (__builtin_expect(cell.write_epoch < shared.block_epoch, 0)) {
    note_missing(where, "read");
    return;
  }
  check_last_writes(where, cell, "read");
  const uint32_t bit = 1u << self.lane;
  if (cell.read_epoch != shared.epoch) {
    cell.read_epoch = shared.epoch;
    cell.reader_lanes = bit;
    cell.other_reader.thread = NOBODY;
  } else {
    if (cell.reader.thread / 32 == self.number / 32) {
      cell.reader_lanes = (cell.read_tick < self.warp->clock.full ? 0 : cell.reader_lanes) | bit;
    } else {
      // One whose order is still open is worth remembering before one that is not.
      if (cell.other_reader.thread == NOBODY || ordered(self, shared.epoch, cell.other_tick, cell.other_reader.thread)) {
        cell.other_reader = cell.reader;
        cell.other_tick = cell.read_tick;
      }
      cell.reader_lanes = bit;
    }
    if (cell.reader.thread != self.number) cell.previous_reader = cell.reader;
  }
  cell.read_tick = self.warp->clock.tick;
  cell.reader = here(where);
}

void check_write(const access &where, const shadow_cell &cell, bool atomic) {
  const thread_state &self = *where.self;
  const shared_memory &shared = self.device->shared;
  const char *const now = atomic ? "atomic operation" : "write";
  if (__builtin_expect(shared.missing.found, 0)) check_missing(where);
  check_filling(where, cell);
  if (!(atomic && cell.atomic)) check_last_writes(where, cell, now);
  if (cell.read_epoch != shared.epoch) return;
  if (__builtin_expect(cell.other_reader.thread != NOBODY, 0) &&
      !ordered(self, cell.read_epoch, cell.other_tick, cell.other_reader.thread))
    fail_race(where, now, "read", cell.other_reader);
  if (__builtin_expect(cell.reader.thread / 32 != self.number / 32, 0)) {
    if (!ordered(self, cell.read_epoch, cell.read_tick, cell.reader.thread)) fail_race(where, now, "read", cell.reader);
    return;
  }
  const warp_clock &clock = self.warp->clock;
  const uint32_t others = cell.reader_lanes & ~(1u << self.lane);
  if (cell.read_tick < clock.full || !others) return;
  const actor &other = cell.reader.thread == self.number ? cell.previous_reader : cell.reader;
  if (!clock.partial) fail_race(where, now, "read", other);
  // With barriers of some lanes only the tick of the last reader is known, so only that one is judged.
  if (!ordered(self, cell.read_epoch, cell.read_tick, cell.reader.thread)) fail_race(where, now, "read", cell.reader);
}

void note_write(const access &where, shadow_cell &cell, bool atomic, bool filling) {
  thread_state &self = *where.self;
  const uint32_t epoch = self.device->shared.epoch;
  if (atomic) {
    const bool again = cell.atomic && cell.write_epoch == epoch;
    const bool own_warp = cell.writer.thread / 32 == self.number / 32;
    if (!again)
      cell.other_writer.thread = NOBODY;
    else if (!own_warp)
      cell.other_writer = cell.writer;
    cell.atomic_lanes = (again && own_warp && cell.write_tick >= self.warp->clock.full ? cell.atomic_lanes : 0) | 1u << self.lane;
  }
  cell.write_epoch = epoch;
  cell.write_tick = self.warp->clock.tick;
  cell.writer = here(where);
  cell.atomic = atomic;
  cell.filling = filling;
  // Reads before this write come before whatever the write comes before.
  cell.read_epoch = 0;
}

// Calls `visit` on the cells of the bytes. `same`: it leaves all cells of a word alike.
template <class F> void visit_cells(shared_memory &shared, uint32_t offset, uint32_t bytes, bool same, F visit) {
  const uint32_t end = offset + bytes;
  while (offset < end) {
    const uint32_t word = offset / 4;
    if (offset % 4 == 0 && end - offset >= 4) {
      if (__builtin_expect(!shared.split[word], 1)) {
        visit(shared.words[word]);
      } else {
        for (uint32_t i = 0; i < 4; i++) visit(shared.parts[offset + i]);
        if (same) {
          shared.words[word] = shared.parts[offset];
          shared.split[word] = 0;
        }
      }
      offset += 4;
    } else {
      if (!shared.split[word]) {
        shared.split[word] = 1;
        for (uint32_t i = 0; i < 4; i++) shared.parts[4 * word + i] = shared.words[word];
      }
      visit(shared.parts[offset]);
      offset++;
    }
  }
}

// Checks bounds and alignment; gives the offset of the access in the block's shared memory.
uint32_t locate(access &where, uint32_t bytes) {
  const shared_piece &piece = *where.piece;
  where.self->file = where.file;
  where.self->line = where.line;
  const int64_t begin = where.index * int64_t(piece.element);
  if (__builtin_expect(where.index < 0 || begin + int64_t(bytes) > int64_t(piece.count) * piece.element, 0))
    KQM_FAIL_ACCESS(OUT_OF_BOUNDS, where, "access of %u bytes outside a shared array; it has elements %u to %lld",
                    bytes, piece.index, (long long)piece.index + piece.count - 1);
  const uint32_t offset = piece.offset + uint32_t(begin);
  // Elements are aligned by their type; a vector must be by its size.
  if (__builtin_expect(bytes > piece.element && offset % bytes != 0, 0))
    KQM_FAIL_ACCESS(MISALIGNED, where, "vector access of %u bytes at byte %lld of a shared array", bytes,
                    (long long)piece.index * piece.element + begin);
  where.offset = offset;
  where.bytes = bytes;
  return offset;
}

void make_room(shared_memory &shared) {
  if (shared.bytes) return;
  shared.capacity = MOST_SHARED_BYTES;
  shared.storage.resize(shared.capacity + 128);
  shared.bytes = shared.storage.data() + (128 - reinterpret_cast<uintptr_t>(shared.storage.data()) % 128);
  shared.words.resize(shared.capacity / 4);
  shared.parts.resize(shared.capacity);
  shared.split.resize(shared.capacity / 4);
}

} // namespace

void shared_begin_launch(engine &device, uint32_t dynamic_bytes) {
  shared_memory &shared = device.shared;
  make_room(shared);
  if (shared.epoch > 0x80000000u) {
    shared.words.assign(shared.words.size(), shadow_cell());
    shared.parts.assign(shared.parts.size(), shadow_cell());
    shared.epoch = 0;
  }
  shared.dynamic = dynamic_bytes;
  shared.used = (dynamic_bytes + 15) / 16 * 16; // at most the capacity, which is a multiple of 16
  shared.arrays.clear();
  shared.files.clear();
  shared.last_file = nullptr;
}

void shared_begin_block(engine &device) {
  shared_memory &shared = device.shared;
  shared.block_epoch = ++shared.epoch;
  shared.missing.found = false;
  shared.barriers.clear();
  poison(shared, 0, shared.used);
}

std::string take_missing(shared_memory &shared) {
  shared.missing.found = false;
  return std::string(shared.missing.did) + " of shared memory that nothing wrote in this block (" + shared.missing.element + ")";
}

shared_piece declare_shared(const void *site, const char *name, size_t element, size_t count, const char *file, int line) {
  thread_state *const self = running();
  shared_memory &shared = self->device->shared;
  for (const static_array &array : shared.arrays)
    if (array.site == site) return {name, array.offset, uint32_t(count), 0, uint32_t(element)};
  const size_t bytes = (element * count + 15) / 16 * 16;
  const size_t static_bytes = shared.used - shared.dynamic + bytes;
  constexpr size_t MOST_STATIC_BYTES = 48 << 10;
  if (static_bytes > MOST_STATIC_BYTES || shared.dynamic + static_bytes > shared.capacity)
    fail_thread(self, BAD_LAUNCH, file, line,
                "with %s a block has %zu bytes of static and %u of dynamic shared memory; the most are %zu and, together, %u",
                name, static_bytes, shared.dynamic, MOST_STATIC_BYTES, shared.capacity);
  const uint32_t offset = shared.used;
  shared.used += uint32_t(bytes);
  poison(shared, offset, shared.used - offset);
  shared.arrays.push_back({site, offset});
  return {name, offset, uint32_t(count), 0, uint32_t(element)};
}

shared_piece declare_dynamic_shared(const char *name, size_t element, const char *, int) {
  return {name, 0, uint32_t(running()->device->shared.dynamic / element), 0, uint32_t(element)};
}

shared_piece offset_shared(const shared_piece &piece, int64_t elements, const char *file, int line) {
  if (elements < 0 || elements > int64_t(piece.count)) {
    const access where = {running(), &piece, elements, file, line};
    KQM_FAIL_ACCESS(OUT_OF_BOUNDS, where, "slice that begins outside a shared array of %u elements", piece.count);
  }
  const uint32_t skip = uint32_t(elements);
  return {piece.name, piece.offset + skip * piece.element, piece.count - skip, piece.index + skip, piece.element};
}

void read_shared(const shared_piece &piece, int64_t index, void *value, uint32_t bytes, const char *file, int line) {
  access where = {running(), &piece, index, file, line};
  shared_memory &shared = where.self->device->shared;
  const uint32_t offset = locate(where, bytes);
  visit_cells(shared, offset, bytes, false, [&](shadow_cell &cell) { cell_read(where, cell); });
  memcpy(value, shared.bytes + offset, bytes);
}

void write_shared(const shared_piece &piece, int64_t index, const void *value, uint32_t bytes, const char *file,
                  int line) {
  access where = {running(), &piece, index, file, line};
  shared_memory &shared = where.self->device->shared;
  const uint32_t offset = locate(where, bytes);
  visit_cells(shared, offset, bytes, true, [&](shadow_cell &cell) {
    check_write(where, cell, false);
    note_write(where, cell, false, false);
  });
  memcpy(shared.bytes + offset, value, bytes);
}

void *atomic_shared(const shared_piece &piece, int64_t index, uint32_t bytes, const char *file, int line) {
  access where = {running(), &piece, index, file, line};
  shared_memory &shared = where.self->device->shared;
  yield(file, line);
  const uint32_t offset = locate(where, bytes);
  visit_cells(shared, offset, bytes, true, [&](shadow_cell &cell) {
    if (cell.write_epoch < shared.block_epoch)
      note_missing(where, "atomic operation");
    else
      check_write(where, cell, true);
    note_write(where, cell, true, false);
  });
  return shared.bytes + offset;
}

void async_copy(const shared_piece &piece, int64_t index, const void *source, uint32_t bytes, const char *file, int line) {
  access where = {running(), &piece, index, file, line};
  thread_state &self = *where.self;
  shared_memory &shared = self.device->shared;
  const uint32_t offset = locate(where, bytes);
  if (offset % bytes != 0 || reinterpret_cast<uintptr_t>(source) % bytes != 0)
    KQM_FAIL_ACCESS(MISALIGNED, where, "asynchronous copy of %u bytes from %p to byte %u of shared memory", bytes,
                    source, offset);
  check_global_read(source, bytes, file, line);
  pending_copy copy;
  copy.offset = offset;
  copy.size = bytes;
  copy.group = self.copy_groups;
  memcpy(copy.bytes, source, bytes);
  visit_cells(shared, offset, bytes, true, [&](shadow_cell &cell) {
    check_write(where, cell, false);
    note_write(where, cell, false, true);
  });
  self.copies.push_back(copy);
}

void async_commit() { running()->copy_groups++; }

void async_wait(uint32_t newest, const char *file, int line) {
  thread_state &self = *running();
  shared_memory &shared = self.device->shared;
  self.file = file;
  self.line = line;
  size_t kept = 0;
  for (const pending_copy &copy : self.copies) {
    if (copy.group + newest >= self.copy_groups) {
      self.copies[kept++] = copy;
      continue;
    }
    memcpy(shared.bytes + copy.offset, copy.bytes, copy.size);
    // The bytes count as written now: what others did with them since the copy began would have been an error.
    visit_cells(shared, copy.offset, copy.size, true, [&](shadow_cell &cell) {
      cell.write_epoch = shared.epoch;
      cell.write_tick = self.warp->clock.tick;
      cell.filling = 0;
    });
  }
  self.copies.resize(kept);
}

namespace {

arrival_barrier &barrier_at(const access &where) {
  for (arrival_barrier &barrier : where.self->device->shared.barriers)
    if (barrier.offset == where.offset) return barrier;
  KQM_FAIL_ACCESS(UNINITIALISED, where, "use of a barrier that nothing has made");
}

} // namespace

void barrier_make(const shared_piece &piece, int64_t index, uint32_t warps, const char *file, int line) {
  access where = {running(), &piece, index, file, line};
  shared_memory &shared = where.self->device->shared;
  const uint32_t offset = locate(where, 8);
  const uint64_t nothing = 0;
  write_shared(piece, index, &nothing, sizeof nothing, file, line);
  shared.barriers.push_back({offset, warps, warps, 0, {}, {}});
}

void barrier_arrive(const shared_piece &piece, int64_t index, const char *file, int line) {
  warp_barrier(0xffffffffu, file, line);
  thread_state &self = *running();
  if (self.lane != 0) return;
  access where = {&self, &piece, index, file, line};
  locate(where, 8);
  arrival_barrier &barrier = barrier_at(where);
  const warp_clock &clock = self.warp->clock;
  for (uint32_t w = 0; w < 32; w++) {
    const uint32_t known = w == self.warp->number ? clock.full : clock.seen[w];
    if (barrier.gathered[w] < known) barrier.gathered[w] = known;
  }
  if (--barrier.pending != 0) return;
  barrier.pending = barrier.count;
  barrier.phase++;
  memcpy(barrier.seen, barrier.gathered, sizeof barrier.seen);
}

void barrier_wait(const shared_piece &piece, int64_t index, uint32_t parity, const char *file, int line) {
  thread_state &self = *running();
  access where = {&self, &piece, index, file, line};
  locate(where, 8);
  // The phase of that parity is complete when the one of the other parity is under way.
  while (barrier_at(where).phase % 2 == parity) yield(file, line);
  const arrival_barrier &barrier = barrier_at(where);
  for (uint32_t w = 0; w < 32; w++)
    if (self.warp->clock.seen[w] < barrier.seen[w]) self.warp->clock.seen[w] = barrier.seen[w];
}

} // namespace kqm_emulation
