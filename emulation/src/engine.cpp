// Launches, scheduling, barriers and reports.
#include "state.h"

#include <algorithm>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace kqm_emulation {

__thread thread_view *current = nullptr;

engine &this_engine() {
  static thread_local engine device;
  return device;
}

uint64_t next_random(engine &device) {
  uint64_t x = device.random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  device.random = x;
  return x * 0x2545f4914f6cdd1dull >> 16;
}

const char *base_name(const char *path) {
  const char *const slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

namespace {

constexpr int32_t OUT_OF_MEMORY = 2;         // cudaErrorMemoryAllocation
constexpr int32_t INVALID_CONFIGURATION = 9; // cudaErrorInvalidConfiguration

std::string format_list(const char *format, va_list list) {
  char text[1024];
  vsnprintf(text, sizeof text, format, list);
  return text;
}

std::string text(const char *format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char *format, ...) {
  va_list list;
  va_start(list, format);
  std::string result = format_list(format, list);
  va_end(list);
  return result;
}

// "0-3,7" for the set bits.
std::string ranges(uint32_t bits) {
  std::string result;
  for (int i = 0; i < 32;) {
    if (!(bits >> i & 1)) {
      i++;
      continue;
    }
    int last = i;
    while (last < 31 && bits >> (last + 1) & 1) last++;
    result += text(last == i ? "%s%d" : "%s%d-%d", result.empty() ? "" : ",", i, last);
    i = last + 1;
  }
  return result;
}

// Who waits where, in groups of the same place.
std::string who_waits(const engine &device) {
  std::string result;
  int groups = 0;
  for (uint32_t w = 0; w < device.warp_count; w++) {
    const warp_state &warp = device.warps[w];
    uint32_t left = warp.present;
    while (left) {
      const thread_state &first = warp.lanes[__builtin_ctz(left)];
      const bool exited = warp.exited >> first.lane & 1;
      uint32_t group = 0;
      for (uint32_t lane = 0; lane < 32; lane++) {
        if (!(left >> lane & 1)) continue;
        const thread_state &thread = warp.lanes[lane];
        const bool same = exited ? warp.exited >> lane & 1
                                 : !(warp.exited >> lane & 1) && thread.waits.operation == first.waits.operation &&
                                       thread.waits.mask == first.waits.mask && thread.file == first.file &&
                                       thread.line == first.line;
        if (same) group |= 1u << lane;
      }
      left &= ~group;
      if (++groups > 16) return result + "; ...";
      result += text("%swarp %u lanes %s ", result.empty() ? "" : "; ", w, ranges(group).c_str());
      if (exited)
        result += "have exited";
      else if (!first.waits.operation)
        result += first.file ? text("run after %s:%d", base_name(first.file), first.line) : "have not begun";
      else if (first.waits.mask)
        result += text("wait in %s of mask %08x at %s:%d", first.waits.operation, first.waits.mask,
                       base_name(first.file), first.line);
      else
        result += text("wait in %s at %s:%d", first.waits.operation, base_name(first.file), first.line);
    }
  }
  return result;
}

void leave_launch(thread_state *self) {
  fiber_switch(self->own, self->device->launcher, true);
  __builtin_unreachable();
}

[[noreturn]] void report(thread_state *thread, failure code, const char *file, int line, const std::string &what) {
  engine &device = *thread->device;
  // What came of a value that was never written is not worth telling, but for two accesses that nothing orders: those may be why.
  if (device.shared.missing.found && code != RACE && code != ASYNC_COPY) {
    const missing_value missing = device.shared.missing;
    report(missing.reader, UNINITIALISED, missing.file, missing.line, take_missing(device.shared));
  }
  const uint3 block = device.grid.block_index;
  const uint3 index = thread->thread_index;
  std::string place = file ? text("%s:%d", base_name(file), line) : std::string();
  if (!file && thread->file) place = text("after %s:%d", base_name(thread->file), thread->line);
  device.status = code;
  device.error = text("kernel %s, block (%u,%u,%u), thread (%u,%u,%u) (warp %u, lane %u)%s%s: ", device.kernel.c_str(),
                      block.x, block.y, block.z, index.x, index.y, index.z, thread->warp->number, thread->lane,
                      place.empty() ? "" : ", ", place.c_str()) +
                 what;
  // The failing thread may be another one than the running one.
  leave_launch(running());
  __builtin_unreachable();
}

// Takes the next thread that could run out of the ready sets; null when there is none.
thread_state *take_next(engine &device, uint32_t warp_number) {
  warp_state *warp = &device.warps[warp_number];
  if (__builtin_expect(device.schedule != 0, 0)) {
    // Mostly go on with the warp, so that the fast path of the collectives is what shuffled schedules test.
    if (!device.ready_warps) return nullptr;
    if (!warp->ready || (next_random(device) & 7) == 0) {
      const uint32_t turn = uint32_t(next_random(device) & 31);
      const uint32_t rotated = turn ? device.ready_warps >> turn | device.ready_warps << (32 - turn) : device.ready_warps;
      warp = &device.warps[(uint32_t(__builtin_ctz(rotated)) + turn) & 31];
    }
    const uint32_t turn = uint32_t(next_random(device) & 31);
    const uint32_t rotated = turn ? warp->ready >> turn | warp->ready << (32 - turn) : warp->ready;
    const uint32_t lane = (uint32_t(__builtin_ctz(rotated)) + turn) & 31;
    warp->ready &= ~(1u << lane);
    if (!warp->ready) device.ready_warps &= ~(1u << warp->number);
    return &warp->lanes[lane];
  }
  if (!warp->ready) {
    if (!device.ready_warps) return nullptr;
    const uint32_t later = device.ready_warps & ~((2u << warp_number) - 1);
    warp = &device.warps[__builtin_ctz(later ? later : device.ready_warps)];
  }
  const uint32_t lane = uint32_t(__builtin_ctz(warp->ready));
  warp->ready &= warp->ready - 1;
  if (!warp->ready) device.ready_warps &= ~(1u << warp->number);
  return &warp->lanes[lane];
}

// The thread after this one in cyclic order that could run, so that none that polls can starve what it polls for. There
// is one: at least the caller itself.
thread_state *take_after(engine &device, const thread_state &self) {
  warp_state *warp = self.warp;
  const uint32_t later_lanes = warp->ready & ~((2u << self.lane) - 1);
  const uint32_t later_warps = device.ready_warps & ~((2u << warp->number) - 1);
  if (!later_lanes) warp = &device.warps[__builtin_ctz(later_warps ? later_warps : device.ready_warps)];
  const uint32_t lane = uint32_t(__builtin_ctz(later_lanes ? later_lanes : warp->ready));
  warp->ready &= ~(1u << lane);
  if (!warp->ready) device.ready_warps &= ~(1u << warp->number);
  return &warp->lanes[lane];
}

void check_time(thread_state *self) {
  if (self->device->expired)
    report(self, TIME_LIMIT, self->file, self->line,
           text("the launch has run for more than %llu ms; ", (unsigned long long)self->device->time_limit_ms) +
               who_waits(*self->device));
}

// Runs `next` until the running thread is taken out of the ready sets again.
void continue_with(thread_state *self, thread_state *next) {
  if (next == self) return;
  self->device->counts.switches++;
  current = next;
  fiber_switch(self->own, next->own);
}

// Lets others run until this thread is taken out of the ready sets again.
void suspend(thread_state *self) {
  engine &device = *self->device;
  thread_state *const next = take_next(device, self->warp->number);
  if (!next)
    report(self, DEADLOCK, self->file, self->line, "every thread of the block waits: " + who_waits(device));
  if (__builtin_expect(device.expired, 0)) check_time(self);
  continue_with(self, next);
}

void make_ready(engine &device, warp_state &warp, uint32_t lanes) {
  if (!lanes) return;
  warp.ready |= lanes;
  device.ready_warps |= 1u << warp.number;
}

// The thread that released others goes on, except where the schedule is shuffled.
void after_release(thread_state *self) {
  if (__builtin_expect(self->device->schedule != 0, 0)) {
    make_ready(*self->device, *self->warp, 1u << self->lane);
    suspend(self);
  }
}

bool same_place(const char *file_a, int line_a, const char *file_b, int line_b) {
  return line_a == line_b && (file_a == file_b || strcmp(file_a, file_b) == 0);
}

// Lanes of `mask` now know what each of them has done.
void advance_clock(warp_clock &clock, uint32_t mask) {
  const uint32_t now = ++clock.tick;
  if (mask == 0xffffffffu) {
    clock.full = now;
    return;
  }
  clock.partial = true;
  uint32_t merged[32] = {};
  for (uint32_t lane = 0; lane < 32; lane++)
    if (mask >> lane & 1)
      for (int i = 0; i < 32; i++) merged[i] = std::max(merged[i], clock.known[lane][i]);
  for (uint32_t lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) merged[lane] = now;
  for (uint32_t lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) memcpy(clock.known[lane], merged, sizeof merged);
}

void thread_exits(thread_state *self) {
  engine &device = *self->device;
  warp_state &warp = *self->warp;
  const uint32_t bit = 1u << self->lane;
  if (device.barrier_arrived)
    report(self, DIVERGENCE, nullptr, 0,
           text("exits while %u threads of the block wait in a barrier at %s:%d", device.barrier_arrived,
                base_name(device.barrier_file), device.barrier_line));
  for (uint32_t i = 0; i < warp.open_count; i++) {
    const open_operation &open = warp.open[i];
    if (open.mask & bit)
      report(self, DIVERGENCE, nullptr, 0,
             text("exits while lanes %s wait for it in %s of mask %08x at %s:%d", ranges(open.arrived).c_str(),
                  open.operation, open.mask, base_name(open.file), open.line));
  }
  warp.exited |= bit;
  device.exited++;
  if (device.exited == device.thread_count) {
    if (device.shared.missing.found) report(self, UNINITIALISED, nullptr, 0, "");
    leave_launch(self);
  }
  thread_state *const next = take_next(device, warp.number);
  if (!next)
    report(self, DEADLOCK, nullptr, 0, "every other thread of the block waits: " + who_waits(device));
  device.counts.switches++;
  current = next;
  fiber_switch(self->own, next->own, true);
  __builtin_unreachable();
}

void thread_begins() {
  fiber_arrived();
  thread_state *const self = running();
  const launch_request &request = *self->device->request;
  request.thread(request.closure);
  thread_exits(self);
}

void run_block(engine &device, uint64_t number) {
  const dim3 grid = device.grid.grid_size;
  const dim3 block = device.grid.block_size;
  device.grid.block_index = {uint32_t(number % grid.x), uint32_t(number / grid.x % grid.y),
                             uint32_t(number / grid.x / grid.y)};
  device.exited = 0;
  device.barrier_arrived = 0;
  device.ready_warps = 0;
  for (uint32_t i = 0; i < device.thread_count; i++) {
    thread_state &thread = device.threads[i];
    thread.thread_index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    thread.file = nullptr;
    thread.waits = {};
    dependence_begin_thread(thread);
    thread.copy_groups = 0;
    thread.copies.clear();
    fiber_restart(thread.own, thread_begins);
  }
  for (uint32_t w = 0; w < device.warp_count; w++) {
    warp_state &warp = device.warps[w];
    warp.exited = 0;
    warp.open_count = 0;
    warp.ready = 0;
    warp.clock.tick = warp.clock.full = 0;
    memset(warp.clock.seen, 0, sizeof warp.clock.seen);
    if (warp.clock.partial) memset(warp.clock.known, 0, sizeof warp.clock.known);
    warp.clock.partial = false;
    make_ready(device, warp, warp.present);
  }
  shared_begin_block(device);
  device.counts.blocks++;
  thread_state *const first = take_next(device, 0);
  current = first;
  fiber_switch(device.launcher, first->own);
  current = nullptr;
}

bool can_be_launched(dim3 grid, dim3 block) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  return grid.x && grid.y && grid.z && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535 && threads &&
         threads <= 1024 && block.x <= 1024 && block.y <= 1024 && block.z <= 64;
}

bool prepare(engine &device, const launch_request &request) {
  const dim3 grid = request.grid;
  const dim3 block = request.block;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  device.grid.block_size = block;
  device.grid.grid_size = grid;
  device.thread_count = uint32_t(threads);
  device.warp_count = (device.thread_count + 31) / 32;
  if (!device.stacks.grow(device.thread_count)) return false;
  if (device.threads.size() < device.thread_count) device.threads.resize(device.thread_count);
  if (device.warps.size() < device.warp_count) device.warps.resize(device.warp_count);
  for (uint32_t i = 0; i < device.thread_count; i++) {
    thread_state &thread = device.threads[i];
    device.stacks.give(i, thread.own);
    thread.grid = &device.grid;
    thread.device = &device;
    thread.warp = &device.warps[i / 32];
    thread.number = i;
    thread.lane = i % 32;
  }
  for (uint32_t w = 0; w < device.warp_count; w++) {
    warp_state &warp = device.warps[w];
    const uint32_t lanes = std::min(32u, device.thread_count - 32 * w);
    warp.lanes = &device.threads[32 * w];
    warp.number = w;
    warp.present = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  }
  return true;
}

// "kernel<Tile, 4>" of the text "(kernel<Tile, 4>)". When the launcher is a template, " with Tile = ..." follows.
std::string kernel_name(const launch_request &request) {
  std::string name = request.kernel;
  if (name.size() > 1 && name.front() == '(' && name.back() == ')') name = name.substr(1, name.size() - 2);
  const char *const parameters = strrchr(request.launcher, '[');
  if (name.find('<') == std::string::npos || !parameters) return name;
  // What compilers write: "[with Tile = A; kqm_status = B]" or "[Tile = A]"; aliases of the signature come last.
  std::string values = parameters + 1;
  if (values.compare(0, 5, "with ") == 0) values = values.substr(5);
  return name + " with " + values.substr(0, std::min(values.find("; kqm_"), values.find(']')));
}

} // namespace

void fail_thread(thread_state *thread, failure code, const char *file, int line, const char *format, ...) {
  va_list list;
  va_start(list, format);
  const std::string what = format_list(format, list);
  va_end(list);
  report(thread, code, file, line, what);
}

void fail(failure code, const char *file, int line, const char *format, ...) {
  va_list list;
  va_start(list, format);
  const std::string what = format_list(format, list);
  va_end(list);
  report(running(), code, file, line, what);
}

void at(const char *file, int line) {
  thread_state *const self = running();
  self->file = file;
  self->line = line;
}

void yield(const char *file, int line) {
  thread_state *const self = running();
  self->file = file;
  self->line = line;
  check_time(self);
  make_ready(*self->device, *self->warp, 1u << self->lane);
  if (self->device->schedule != 0)
    suspend(self);
  else
    continue_with(self, take_after(*self->device, *self));
}

int barrier(barrier_kind kind, bool predicate, const char *file, int line) {
  thread_state *const self = running();
  engine &device = *self->device;
  self->file = file;
  self->line = line;
  if (device.exited)
    report(self, DIVERGENCE, file, line, text("barrier after %u threads of the block have exited: ", device.exited) +
                                             who_waits(device));
  if (!device.barrier_arrived) {
    device.barrier_is = kind;
    device.barrier_file = file;
    device.barrier_line = line;
    device.barrier_count = 0;
  } else if (kind != device.barrier_is || !same_place(file, line, device.barrier_file, device.barrier_line)) {
    report(self, DIVERGENCE, file, line,
           text("barrier while %u threads of the block wait in another one at %s:%d", device.barrier_arrived,
                base_name(device.barrier_file), device.barrier_line));
  }
  device.barrier_arrived++;
  device.barrier_count += predicate;
  if (device.barrier_arrived < device.thread_count) {
    self->waits = {"__syncthreads", 0};
    suspend(self);
    return device.barrier_result;
  }
  device.counts.operations++;
  switch (kind) {
  case barrier_kind::plain: device.barrier_result = 0; break;
  case barrier_kind::any: device.barrier_result = device.barrier_count != 0; break;
  case barrier_kind::all: device.barrier_result = device.barrier_count == device.thread_count; break;
  case barrier_kind::count: device.barrier_result = int(device.barrier_count); break;
  }
  const int result = device.barrier_result;
  device.barrier_arrived = 0;
  device.shared.epoch++;
  for (uint32_t i = 0; i < device.thread_count; i++) device.threads[i].waits = {};
  if (!device.dependence.earlier.empty()) {
    thread_state *threads[1024];
    for (uint32_t i = 0; i < device.thread_count; i++) threads[i] = &device.threads[i];
    dependence_share(threads, device.thread_count);
  }
  for (uint32_t w = 0; w < device.warp_count; w++) {
    warp_state &warp = device.warps[w];
    make_ready(device, warp, &warp == self->warp ? warp.present & ~(1u << self->lane) : warp.present);
  }
  after_release(self);
  return result;
}

void collective(uint32_t mask, void *payload, finish_function finish, bool orders, const char *operation, const char *file, int line) {
  thread_state *const self = running();
  engine &device = *self->device;
  warp_state &warp = *self->warp;
  const uint32_t bit = 1u << self->lane;
  self->file = file;
  self->line = line;
  self->payload = payload;
  if (__builtin_expect(!(mask & bit), 0))
    report(self, BAD_MASK, file, line, text("%s of mask %08x, which does not name the caller", operation, mask));
  if (__builtin_expect(mask & ~warp.present, 0))
    report(self, BAD_MASK, file, line,
           text("%s of mask %08x, which names lanes %s; a block of %u threads does not have them", operation, mask,
                ranges(mask & ~warp.present).c_str(), device.thread_count));
  if (__builtin_expect(mask & warp.exited, 0))
    report(self, DIVERGENCE, file, line,
           text("%s of mask %08x waits for lanes %s, which have exited", operation, mask,
                ranges(mask & warp.exited).c_str()));

  open_operation *open = nullptr;
  for (uint32_t i = 0; i < warp.open_count; i++) {
    open_operation &candidate = warp.open[i];
    if (!(candidate.mask & ~candidate.arrived & bit)) continue;
    const bool here = operation == candidate.operation && same_place(file, line, candidate.file, candidate.line);
    if (here && mask == candidate.mask) {
      open = &candidate;
      break;
    }
    // A lane may first meet some of the others elsewhere, but not under the same mask or at the same place.
    if (mask == candidate.mask)
      report(self, DIVERGENCE, file, line,
             text("%s of mask %08x while lanes %s of the same mask wait in %s at %s:%d", operation, mask,
                  ranges(candidate.arrived).c_str(), candidate.operation, base_name(candidate.file), candidate.line));
    if (here)
      report(self, DIVERGENCE, file, line,
             text("%s of mask %08x while lanes %s wait for this lane at the same place with mask %08x", operation, mask,
                  ranges(candidate.arrived).c_str(), candidate.mask));
  }
  if (!open) {
    open = &warp.open[warp.open_count++];
    *open = {operation, file, line, mask, 0};
  }
  open->arrived |= bit;
  if (open->arrived != mask) {
    self->waits = {operation, mask};
    suspend(self);
    return;
  }
  *open = warp.open[--warp.open_count];
  device.counts.operations++;
  if (finish) finish(warp, mask);
  if (orders) {
    advance_clock(warp.clock, mask);
    if (!device.dependence.earlier.empty()) {
      thread_state *threads[32];
      uint32_t count = 0;
      for (uint32_t left = mask; left; left &= left - 1) threads[count++] = &warp.lanes[__builtin_ctz(left)];
      dependence_share(threads, count);
    }
  }
  for (uint32_t left = mask; left; left &= left - 1) warp.lanes[__builtin_ctz(left)].waits = {};
  make_ready(device, warp, mask & ~bit);
  after_release(self);
}

int32_t run(const launch_request &request) {
  if (current) fail(BAD_LAUNCH, request.file, request.line, "a kernel launches a kernel");
  engine &device = this_engine();
  device.kernel = kernel_name(request);
  device.status = 0;
  device.error.clear();
  const std::string place = text(" launched at %s:%d: ", base_name(request.file), request.line);
  if (!can_be_launched(request.grid, request.block)) {
    device.error = "kernel " + device.kernel + place +
                   text("grid (%u,%u,%u) of blocks (%u,%u,%u) cannot be launched", request.grid.x, request.grid.y,
                        request.grid.z, request.block.x, request.block.y, request.block.z);
    return device.status = INVALID_CONFIGURATION;
  }
  if (request.dynamic_shared_bytes > request.most_shared_bytes) {
    device.error = "kernel " + device.kernel + place +
                   text("%zu bytes of dynamic shared memory, and a block has at most %zu", request.dynamic_shared_bytes,
                        request.most_shared_bytes);
    return device.status = BAD_LAUNCH;
  }
  if (device.records) {
    device.records->launches.push_back(request);
    device.records->launches.back().closure = request.copy(request.closure);
    return 0;
  }
  device.request = &request;
  if (!prepare(device, request)) {
    device.error = "kernel " + device.kernel + place + "no memory for the stacks of its threads";
    return device.status = OUT_OF_MEMORY;
  }
  dependence_begin_launch(device);
  shared_begin_launch(device, uint32_t(request.dynamic_shared_bytes));
  device.launcher = fiber_of_this_thread();
  device.random = device.schedule * 0x9e3779b97f4a7c15ull | 1;
  device.counts.launches++;
  const uint64_t blocks = uint64_t(request.grid.x) * request.grid.y * request.grid.z;
  {
    const fault_guard guard(device);
    if (device.schedule == 0) {
      for (uint64_t i = 0; i < blocks && !device.status; i++) run_block(device, i);
    } else {
      std::vector<uint32_t> order(blocks);
      for (uint64_t i = 0; i < blocks; i++) {
        const uint64_t j = next_random(device) % (i + 1);
        order[i] = order[j];
        order[j] = uint32_t(i);
      }
      for (uint64_t i = 0; i < blocks && !device.status; i++) run_block(device, order[i]);
    }
  }
  if (!device.status) {
    const std::string overrun = overrun_buffer();
    if (!overrun.empty()) {
      device.status = BUFFER_OVERRUN;
      device.error = "kernel " + device.kernel + place + overrun;
    }
  }
  dependence_end_launch(device);
  return device.status;
}

} // namespace kqm_emulation

using kqm_emulation::this_engine;

// The interface for the host program. Every setting and report belongs to the calling operating system thread.
KQM_EMULATION_EXPORT const char *kqm_emulation_last_error() { return this_engine().error.c_str(); }
// Adds a line to the last launch's report.
KQM_EMULATION_EXPORT void kqm_emulation_add_to_report(const char *line) { (this_engine().error += '\n') += line; }
KQM_EMULATION_EXPORT int32_t kqm_emulation_last_status() { return this_engine().status; }
KQM_EMULATION_EXPORT void kqm_emulation_set_schedule(uint64_t seed) { this_engine().schedule = seed; }
KQM_EMULATION_EXPORT void kqm_emulation_set_time_limit(uint64_t milliseconds) {
  this_engine().time_limit_ms = milliseconds;
}
KQM_EMULATION_EXPORT void kqm_emulation_statistics(kqm_emulation::statistics *out) { *out = this_engine().counts; }

// From here on the calling thread's launches are kept instead of made.
KQM_EMULATION_EXPORT void kqm_emulation_record() { this_engine().records.reset(new kqm_emulation::recording); }
// What was kept since; null when nothing recorded.
KQM_EMULATION_EXPORT void *kqm_emulation_recorded() { return this_engine().records.release(); }
KQM_EMULATION_EXPORT size_t kqm_emulation_recorded_launches(const void *recording) {
  return static_cast<const kqm_emulation::recording *>(recording)->launches.size();
}
// Makes launch number `index` on the calling thread, as if it were called now.
KQM_EMULATION_EXPORT int32_t kqm_emulation_replay(const void *recording, size_t index) {
  return kqm_emulation::run(static_cast<const kqm_emulation::recording *>(recording)->launches[index]);
}
KQM_EMULATION_EXPORT void kqm_emulation_forget(void *recording) {
  delete static_cast<kqm_emulation::recording *>(recording);
}
