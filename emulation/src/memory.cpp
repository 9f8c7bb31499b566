// Device memory for tests, placed against guard pages, and the handler that turns faults of emulated threads into
// reports.
#include "state.h"

#include <dlfcn.h>
#include <errno.h>
#include <map>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#if KQM_EMULATION_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) (static_cast<void>(address), static_cast<void>(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) (static_cast<void>(address), static_cast<void>(bytes))
#endif

namespace kqm_emulation {

namespace {

// What the bytes around a buffer hold.
constexpr uint8_t CANARY = 0xc3;
constexpr size_t LEAST_GUARD_BYTES = 1 << 20; // a multiple of every page size

// guard | canary | buffer | canary up to a multiple of 16 | guard
struct buffer {
  char *mapping;
  size_t mapping_bytes;
  char *pages; // between the guards
  size_t page_bytes;
  char *begin;
  size_t bytes;
  pthread_t owner;
  written *writers;
  size_t writers_bytes; // mapped for them
};

std::mutex registry_lock;
std::map<uintptr_t, buffer> &registry() {
  // Never destroyed: threads may still free buffers when the program ends.
  static std::map<uintptr_t, buffer> *const buffers = new std::map<uintptr_t, buffer>;
  return *buffers;
}

// The same questions to another copy of the emulation: a library with a planted fault runs on the program's buffers.
using describe_function = size_t (*)(uintptr_t address, char *text, size_t bytes);
using overrun_function = size_t (*)(char *text, size_t bytes);
using synchronizations_function = uint64_t (*)();
describe_function describe_elsewhere = nullptr;
overrun_function overrun_elsewhere = nullptr;
synchronizations_function synchronizations_elsewhere = nullptr;
memory_map *map_elsewhere = nullptr;

memory_map own_map;
// The file of this copy's code, where the name that it was loaded by is gone.
std::string own_object;
__thread uint64_t own_synchronizations;

// Lets the addresses of a buffer's pages lead to who wrote them, or, with null, to nothing.
void set_buffer_at(const char *begin, size_t bytes, written *writers) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) >> memory_map::GRANULE_BITS;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes - 1) >> memory_map::GRANULE_BITS;
  for (uintptr_t granule = first; granule <= last; granule++) {
    const uintptr_t index = granule >> memory_map::LEAF_BITS;
    if (index >> memory_map::ROOT_BITS) return;
    std::atomic<memory_map::leaf *> &place = own_map.root[index];
    memory_map::leaf *leaf = place.load(std::memory_order_acquire);
    if (!leaf) {
      leaf = new memory_map::leaf();
      place.store(leaf, std::memory_order_release);
    }
    leaf->granule[granule & ((1u << memory_map::LEAF_BITS) - 1)].store(writers, std::memory_order_release);
  }
}

bool intact(const char *begin, const char *end) {
  ASAN_UNPOISON_MEMORY_REGION(begin, size_t(end - begin));
  bool same = true;
  for (const char *p = begin; p < end; p++) same &= uint8_t(*p) == CANARY;
  ASAN_POISON_MEMORY_REGION(begin, size_t(end - begin));
  return same;
}

std::string describe_here(uintptr_t address) {
  const std::lock_guard<std::mutex> hold(registry_lock);
  char text[160];
  for (const auto &entry : registry()) {
    const buffer &b = entry.second;
    const uintptr_t mapping = reinterpret_cast<uintptr_t>(b.mapping);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(b.begin);
    if (address < mapping || address - mapping >= b.mapping_bytes) continue;
    if (address >= begin + b.bytes)
      snprintf(text, sizeof text, "%zu bytes past the end of the buffer of %zu bytes at %p",
               size_t(address - begin - b.bytes), b.bytes, static_cast<void *>(b.begin));
    else if (address < begin)
      snprintf(text, sizeof text, "%zu bytes before the buffer of %zu bytes at %p", size_t(begin - address), b.bytes,
               static_cast<void *>(b.begin));
    else
      snprintf(text, sizeof text, "byte %zu of the buffer of %zu bytes at %p", size_t(address - begin), b.bytes,
               static_cast<void *>(b.begin));
    return text;
  }
  return {};
}

std::string overrun_here() {
  const std::lock_guard<std::mutex> hold(registry_lock);
  for (const auto &entry : registry()) {
    const buffer &b = entry.second;
    if (!pthread_equal(b.owner, pthread_self()) || intact(b.begin + b.bytes, b.pages + b.page_bytes)) continue;
    char text[160];
    snprintf(text, sizeof text, "bytes past the end of the buffer of %zu bytes at %p were overwritten", b.bytes,
             static_cast<void *>(b.begin));
    return text;
  }
  return {};
}

size_t copy_text(const std::string &from, char *text, size_t bytes) {
  const size_t length = from.size() < bytes ? from.size() : bytes;
  memcpy(text, from.data(), length);
  return length;
}

// What the handler leaves for the thread that faulted. The handler itself only sends the thread on: it may have
// interrupted anything.
struct fault {
  int signal;
  uintptr_t address;
};
__thread fault last_fault;
__thread engine *guarded;

void after_fault() {
  thread_state *const self = running();
  const fault found = last_fault;
  if (found.signal == SIGFPE) fail_thread(self, ARITHMETIC_TRAP, nullptr, 0, "integer division by zero");
  if (found.signal == SIGVTALRM)
    fail_thread(self, TIME_LIMIT, nullptr, 0, "the launch has run for more than %llu ms",
                (unsigned long long)self->device->time_limit_ms);
  const uintptr_t stack = reinterpret_cast<uintptr_t>(self->own.stack);
  if (found.address < stack && stack - found.address <= size_t(sysconf(_SC_PAGESIZE)))
    fail_thread(self, STACK_OVERFLOW, nullptr, 0, "the thread needs more than %zu KiB of stack",
                self->own.stack_bytes >> 10);
  const std::string near = describe_address(found.address);
  if (!near.empty())
    fail_thread(self, MEMORY_FAULT, nullptr, 0, "access outside every buffer: %s", near.c_str());
  // The processor does not tell the address of a misaligned or non-canonical access.
  if (found.address == 0)
    fail_thread(self, MEMORY_FAULT, nullptr, 0, "access outside every buffer, through a null, wild or misaligned pointer");
  fail_thread(self, MEMORY_FAULT, nullptr, 0, "access outside every buffer, at %p",
              reinterpret_cast<void *>(found.address));
}

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGVTALRM};
struct sigaction previous[sizeof SIGNALS / sizeof *SIGNALS];

// Lets the interrupted thread continue in after_fault, at the top of its stack: what it did is given up.
void redirect(ucontext_t *context, const thread_state &thread) {
  // With its red zones, for the sanitizer.
  ASAN_UNPOISON_MEMORY_REGION(thread.own.stack, thread.own.stack_bytes);
#if defined(__x86_64__)
  context->uc_mcontext.gregs[REG_RSP] = greg_t(fiber_stack_top(thread.own));
  context->uc_mcontext.gregs[REG_RIP] = greg_t(&after_fault);
#else
  context->uc_mcontext.sp = reinterpret_cast<uintptr_t>(fiber_stack_top(thread.own));
  context->uc_mcontext.pc = reinterpret_cast<uintptr_t>(&after_fault);
  context->uc_mcontext.regs[29] = 0;
  context->uc_mcontext.regs[30] = 0;
#endif
}

void pass_on(int signal, siginfo_t *information, void *context) {
  for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++) {
    if (SIGNALS[i] != signal) continue;
    const struct sigaction &old = previous[i];
    if (old.sa_flags & SA_SIGINFO)
      old.sa_sigaction(signal, information, context);
    else if (old.sa_handler == SIG_DFL)
      ::signal(signal, SIG_DFL); // the instruction faults again and ends the program
    else if (old.sa_handler != SIG_IGN)
      old.sa_handler(signal);
  }
}

void on_signal(int signal, siginfo_t *information, void *context) {
  const int saved_errno = errno;
  thread_state *const thread = running();
  if (signal == SIGVTALRM) {
    if (!guarded) {
      pass_on(signal, information, context);
    } else if (!guarded->expired) {
      // The next barrier or warp operation ends the launch, unless the thread never comes to one.
      guarded->expired = true;
    } else if (thread) {
      last_fault = {signal, 0};
      redirect(static_cast<ucontext_t *>(context), *thread);
    }
  } else if (!thread) {
    pass_on(signal, information, context);
  } else {
    last_fault = {signal, signal == SIGFPE ? 0 : reinterpret_cast<uintptr_t>(information->si_addr)};
    redirect(static_cast<ucontext_t *>(context), *thread);
  }
  errno = saved_errno;
}

void install_handlers() {
  for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGNALS[i], &action, &previous[i]);
  }
}

// What faults and the time limit need once per operating system thread: a stack for the handler, as a fiber's own may
// be what overflowed, and a timer of the thread's processor time.
class thread_guard {
public:
  thread_guard() {
    stack_t old;
    if (sigaltstack(nullptr, &old) == 0 && (old.ss_flags & SS_DISABLE)) {
      constexpr size_t BYTES = 64 << 10;
      stack_.reset(new char[BYTES]);
      stack_t own = {};
      own.ss_sp = stack_.get();
      own.ss_size = BYTES;
      sigaltstack(&own, nullptr);
    }
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGVTALRM;
#if defined(sigev_notify_thread_id)
    event.sigev_notify_thread_id = pid_t(syscall(SYS_gettid));
#else
    event._sigev_un._tid = pid_t(syscall(SYS_gettid));
#endif
    has_timer_ = timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer_) == 0;
  }
  ~thread_guard() {
    if (has_timer_) timer_delete(timer_);
    if (stack_) {
      stack_t off = {};
      off.ss_flags = SS_DISABLE;
      sigaltstack(&off, nullptr);
    }
  }
  thread_guard(const thread_guard &) = delete;
  thread_guard &operator=(const thread_guard &) = delete;
  // The timer goes off after that time, and once more each second; 0 stops it.
  void set(uint64_t milliseconds) {
    if (!has_timer_) return;
    itimerspec when = {};
    when.it_value.tv_sec = time_t(milliseconds / 1000);
    when.it_value.tv_nsec = long(milliseconds % 1000 * 1000000);
    when.it_interval.tv_sec = milliseconds ? 1 : 0;
    timer_settime(timer_, 0, &when, nullptr);
  }

private:
  std::unique_ptr<char[]> stack_;
  timer_t timer_ = {};
  bool has_timer_ = false;
};

thread_guard &this_guard() {
  static thread_local thread_guard guard;
  return guard;
}

} // namespace

fault_guard::fault_guard(engine &device) {
  static const bool installed = (install_handlers(), true);
  static_cast<void>(installed);
  device.expired = false;
  guarded = &device;
  this_guard().set(device.time_limit_ms);
}

fault_guard::~fault_guard() {
  this_guard().set(0);
  guarded = nullptr;
}

std::string describe_address(uintptr_t address) {
  std::string here = describe_here(address);
  if (!here.empty() || !describe_elsewhere) return here;
  char text[160];
  return std::string(text, describe_elsewhere(address, text, sizeof text));
}

memory_map &all_buffers() { return map_elsewhere ? *map_elsewhere : own_map; }

uint64_t synchronizations() { return synchronizations_elsewhere ? synchronizations_elsewhere() : own_synchronizations; }

std::string describe_code(const void *code) {
  Dl_info object;
  if (!dladdr(code, &object) || !object.dli_fname) return {};
  const char *const file = own_object.empty() ? object.dli_fname : own_object.c_str();
  // The address behind a call: the call itself is one byte before.
  const uintptr_t offset = reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(object.dli_fbase) - 1;
  char text[600];
  snprintf(text, sizeof text, "addr2line -s -e '%s' 0x%zx 2>/dev/null", file, size_t(offset));
  FILE *const lines = popen(text, "r");
  if (!lines) return {};
  const bool found = fgets(text, sizeof text, lines) != nullptr;
  pclose(lines);
  if (!found || text[0] == '?') return {};
  text[strcspn(text, " \n")] = 0;
  return text;
}

std::string overrun_buffer() {
  std::string here = overrun_here();
  if (!here.empty() || !overrun_elsewhere) return here;
  char text[160];
  return std::string(text, overrun_elsewhere(text, sizeof text));
}

} // namespace kqm_emulation

using namespace kqm_emulation;

// Memory whose end lies at guarded addresses, as near as an alignment of 16 bytes allows; null when there is none left.
KQM_EMULATION_EXPORT void *kqm_emulation_alloc(size_t bytes, uint8_t fill) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  const size_t body = (bytes + 15) / 16 * 16;
  buffer b;
  b.page_bytes = body == 0 ? page : (body + page - 1) / page * page;
  // As wide as the buffer and more: a wrong row, tile or expert steps over a single page and into some other memory,
  // and whether that is noticed would depend on what lies there. It takes addresses, no memory.
  const size_t guard = b.page_bytes + LEAST_GUARD_BYTES;
  b.mapping_bytes = b.page_bytes + 2 * guard;
  void *const mapping = mmap(nullptr, b.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  b.mapping = static_cast<char *>(mapping);
  b.pages = b.mapping + guard;
  if (mprotect(b.pages, b.page_bytes, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, b.mapping_bytes);
    return nullptr;
  }
  b.begin = b.pages + b.page_bytes - body;
  b.bytes = bytes;
  b.owner = pthread_self();
  b.writers_bytes = sizeof(written) + sizeof(uint32_t) * bytes;
  void *const writers = mmap(nullptr, b.writers_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (writers == MAP_FAILED) {
    munmap(mapping, b.mapping_bytes);
    return nullptr;
  }
  b.writers = static_cast<written *>(writers);
  *b.writers = {b.begin, bytes, reinterpret_cast<uint32_t *>(b.writers + 1)};
  char *const end = b.begin + bytes;
  memset(b.pages, CANARY, size_t(b.begin - b.pages));
  memset(b.begin, fill, bytes);
  memset(end, CANARY, size_t(b.pages + b.page_bytes - end));
  ASAN_POISON_MEMORY_REGION(b.pages, size_t(b.begin - b.pages));
  ASAN_POISON_MEMORY_REGION(end, size_t(b.pages + b.page_bytes - end));
  const std::lock_guard<std::mutex> hold(registry_lock);
  registry()[reinterpret_cast<uintptr_t>(b.begin)] = b;
  set_buffer_at(b.pages, b.page_bytes, b.writers);
  return b.begin;
}

// 0; 1 when the bytes before the buffer were overwritten, 2 those after it; -1 when there is no such buffer.
KQM_EMULATION_EXPORT int32_t kqm_emulation_free(void *pointer) {
  buffer b;
  {
    const std::lock_guard<std::mutex> hold(registry_lock);
    const auto found = registry().find(reinterpret_cast<uintptr_t>(pointer));
    if (found == registry().end()) return -1;
    b = found->second;
    registry().erase(found);
    set_buffer_at(b.pages, b.page_bytes, nullptr);
  }
  const int32_t result = !intact(b.pages, b.begin) ? 1 : !intact(b.begin + b.bytes, b.pages + b.page_bytes) ? 2 : 0;
  ASAN_UNPOISON_MEMORY_REGION(b.pages, b.page_bytes);
  munmap(b.mapping, b.mapping_bytes);
  munmap(b.writers, b.writers_bytes);
  return result;
}

// Describes an address of this copy's buffers; gives the length of the text, 0 when it lies near none.
KQM_EMULATION_EXPORT size_t kqm_emulation_describe(uintptr_t address, char *text, size_t bytes) {
  return copy_text(describe_here(address), text, bytes);
}

// Which of the calling thread's buffers has been written past its end; 0 when none has.
KQM_EMULATION_EXPORT size_t kqm_emulation_overrun(char *text, size_t bytes) {
  return copy_text(overrun_here(), text, bytes);
}

// Lets this copy of the emulation know the buffers of another one, and the file of its own code.
KQM_EMULATION_EXPORT void kqm_emulation_share_buffers(describe_function describe, overrun_function overrun,
                                                      synchronizations_function synchronizations, void *map,
                                                      const char *object) {
  describe_elsewhere = describe;
  overrun_elsewhere = overrun;
  synchronizations_elsewhere = synchronizations;
  map_elsewhere = static_cast<memory_map *>(map);
  own_object = object;
}
KQM_EMULATION_EXPORT void *kqm_emulation_buffers() { return &own_map; }

// The host waits for all launches of the calling thread, or puts a copy between them and later ones.
KQM_EMULATION_EXPORT void kqm_emulation_synchronize() { own_synchronizations++; }
KQM_EMULATION_EXPORT uint64_t kqm_emulation_synchronizations() { return own_synchronizations; }
