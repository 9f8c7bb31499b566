// Programmatic dependent launch, and every access of global memory by a kernel.
//
// Launches run one after another. Which of them might overlap on a device follows from what their threads did: a launch begins when every
// block of the one before has released it or exited, and its wait ends when that one is complete. So before its wait a thread may not read
// what a launch that might still run writes, and may not write at all.
//
// Kernels are compiled with the instrumentation of the thread sanitizer, whose functions are these: they are called at each access.
#include "state.h"

#include <stdlib.h>
#include <string.h>

namespace kqm_emulation {

namespace {

// The last launch that may be running when the thread does what it does now; null when all are complete.
const earlier_launch *may_still_run(const thread_state &self, uint32_t number) {
  const dependences &state = self.device->dependence;
  const size_t count = state.earlier.size() - (self.waited && !state.earlier.empty());
  const uint32_t from = self.waited ? state.from_wait : state.from_start;
  for (size_t i = count; i-- > 0;) {
    if (state.earlier[i].number < from) break;
    if (number == 0 || state.earlier[i].number == number) return &state.earlier[i];
  }
  return nullptr;
}

void update_earlier_complete(thread_state &thread) { thread.earlier_complete = !may_still_run(thread, 0); }

// "after its wait" is for chains in which a kernel does not wait.
const char *when(const thread_state &self) {
  return self.waited ? "although a launch between the two did not wait for it" : "before its wait for earlier launches";
}

// An access of global memory in compiled code, or where a function of the emulation was called.
struct place {
  const void *code;
  const char *file;
  int line;
};

[[noreturn]] void fail_dependence(thread_state *self, const place &where, const std::string &what) {
  if (where.file) fail_thread(self, DEPENDENCY, where.file, where.line, "%s", what.c_str());
  const std::string place = describe_code(where.code);
  const size_t colon = place.rfind(':');
  if (colon == std::string::npos) fail_thread(self, DEPENDENCY, nullptr, 0, "%s", what.c_str());
  fail_thread(self, DEPENDENCY, place.substr(0, colon).c_str(), atoi(place.c_str() + colon + 1), "%s", what.c_str());
}

void check_read(const void *address, size_t bytes, const place &where) {
  thread_state *const self = running();
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  const written *const buffer = buffer_at(at);
  if (!buffer) return;
  const size_t offset = at - reinterpret_cast<uintptr_t>(buffer->begin);
  for (size_t i = offset; i < offset + bytes && i < buffer->bytes; i++) {
    if (buffer->launch[i] == 0 || buffer->launch[i] == self->device->dependence.number) continue;
    if (const earlier_launch *const writer = may_still_run(*self, buffer->launch[i]))
      fail_dependence(self, where, std::string("reads ") + when(*self) + " what kernel " + writer->kernel + " wrote, which may still run (" +
                                      describe_address(at) + ")");
  }
}

void note_write(const void *address, size_t bytes, const void *code) {
  thread_state *const self = running();
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  const written *const buffer = buffer_at(at);
  if (!buffer) return;
  if (__builtin_expect(!self->earlier_complete, 0)) {
    const earlier_launch *const other = may_still_run(*self, 0);
    fail_dependence(self, {code, nullptr, 0}, std::string("writes ") + when(*self) + ", while kernel " + other->kernel + " may still run (" +
                                    describe_address(at) + ")");
  }
  const uint32_t number = self->device->dependence.number;
  const size_t offset = at - reinterpret_cast<uintptr_t>(buffer->begin);
  for (size_t i = offset; i < offset + bytes && i < buffer->bytes; i++) buffer->launch[i] = number;
}

} // namespace

void dependence_begin_thread(thread_state &thread) {
  thread.waited = false;
  update_earlier_complete(thread);
}

void dependence_begin_launch(engine &device) {
  dependences &state = device.dependence;
  state.number = all_buffers().launches.fetch_add(1, std::memory_order_relaxed) + 1;
  const uint64_t now = synchronizations();
  if (now != state.synchronizations) state.earlier.clear();
  state.synchronizations = now;
  if (state.earlier.empty()) state.from_start = state.from_wait = state.number;
  state.waited = state.released_early = false;
}

void dependence_end_launch(engine &device) {
  dependences &state = device.dependence;
  if (device.status) {
    // What comes after a launch that failed is of no interest.
    state.earlier.clear();
    return;
  }
  // What may still run after a wait of this launch: without the launch before, which is then complete.
  uint32_t after_wait = state.number;
  for (size_t i = 0; i + 1 < state.earlier.size(); i++)
    if (state.earlier[i].number >= state.from_wait) {
      after_wait = state.earlier[i].number;
      break;
    }
  const uint32_t from_start = state.from_start;
  state.from_start = state.waited && !state.released_early ? after_wait : from_start;
  state.from_wait = state.waited ? after_wait : from_start;
  state.earlier.push_back({state.number, device.kernel});
  const uint32_t first = state.from_start < state.from_wait ? state.from_start : state.from_wait;
  size_t complete = 0;
  while (state.earlier[complete].number < first) complete++;
  state.earlier.erase(state.earlier.begin(), state.earlier.begin() + long(complete));
}

void dependence_share(thread_state *const *threads, uint32_t count) {
  bool waited = false;
  for (uint32_t i = 0; i < count; i++) waited |= threads[i]->waited;
  if (!waited) return;
  for (uint32_t i = 0; i < count; i++) {
    if (threads[i]->waited) continue;
    threads[i]->waited = true;
    update_earlier_complete(*threads[i]);
  }
}

void wait_for_dependencies() {
  thread_state *const self = running();
  self->device->dependence.waited = self->waited = true;
  update_earlier_complete(*self);
}

void release_dependents() {
  thread_state *const self = running();
  if (!self->waited) self->device->dependence.released_early = true;
}

void check_global_read(const void *address, size_t bytes, const char *file, int line) {
  if (!running()->earlier_complete) check_read(address, bytes, {nullptr, file, line});
}

} // namespace kqm_emulation

using namespace kqm_emulation;

// What the compiler calls in the kernels.
#define KQM_HERE __builtin_return_address(0)
#define KQM_ON_READ(address, bytes)                                                                                     \
  do {                                                                                                                 \
    if (__builtin_expect(current && !current->earlier_complete, 0)) check_read(address, bytes, {KQM_HERE, nullptr, 0});                \
  } while (0)
#define KQM_ON_WRITE(address, bytes)                                                                                    \
  do {                                                                                                                 \
    if (__builtin_expect(current != nullptr, 1)) note_write(address, bytes, KQM_HERE);                          \
  } while (0)
#define KQM_ACCESS(bytes)                                                                                               \
  extern "C" void __tsan_read##bytes(void *address) { KQM_ON_READ(address, bytes); }                                   \
  extern "C" void __tsan_write##bytes(void *address) { KQM_ON_WRITE(address, bytes); }                                 \
  extern "C" void __tsan_unaligned_read##bytes(void *address) { KQM_ON_READ(address, bytes); }                         \
  extern "C" void __tsan_unaligned_write##bytes(void *address) { KQM_ON_WRITE(address, bytes); }                       \
  extern "C" void __tsan_volatile_read##bytes(void *address) { KQM_ON_READ(address, bytes); }                          \
  extern "C" void __tsan_volatile_write##bytes(void *address) { KQM_ON_WRITE(address, bytes); }
KQM_ACCESS(1)
KQM_ACCESS(2)
KQM_ACCESS(4)
KQM_ACCESS(8)
KQM_ACCESS(16)
extern "C" void __tsan_read_range(void *address, size_t bytes) { KQM_ON_READ(address, bytes); }
extern "C" void __tsan_write_range(void *address, size_t bytes) { KQM_ON_WRITE(address, bytes); }
extern "C" void *__tsan_memcpy(void *to, const void *from, size_t bytes) {
  KQM_ON_READ(from, bytes);
  KQM_ON_WRITE(to, bytes);
  return memcpy(to, from, bytes);
}
extern "C" void *__tsan_memmove(void *to, const void *from, size_t bytes) {
  KQM_ON_READ(from, bytes);
  KQM_ON_WRITE(to, bytes);
  return memmove(to, from, bytes);
}
extern "C" void *__tsan_memset(void *to, int value, size_t bytes) {
  KQM_ON_WRITE(to, bytes);
  return memset(to, value, bytes);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
