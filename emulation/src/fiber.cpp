// Fibers: stacks with guard pages and the switch between them. The switch is assembly because the portable one
// (swapcontext) makes a system call each time, and a warp operation takes 32 switches.
#include "fiber.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if KQM_EMULATION_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// kqm_emulation_switch(void **save, void *load): pushes what a call must preserve, stores the stack pointer at `save`,
// takes `load` as the stack pointer, pops the same and returns there.
extern "C" void kqm_emulation_switch(void **save, void *load) __attribute__((visibility("hidden")));

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.hidden kqm_emulation_switch
.globl kqm_emulation_switch
.type kqm_emulation_switch, @function
kqm_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kqm_emulation_switch, . - kqm_emulation_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.hidden kqm_emulation_switch
.globl kqm_emulation_switch
.type kqm_emulation_switch, @function
kqm_emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size kqm_emulation_switch, . - kqm_emulation_switch
)");
#else
#error "fibers are written for x86-64 and aarch64"
#endif

namespace kqm_emulation {

namespace {

// The sanitizer surrounds every variable with red zones.
constexpr size_t STACK_BYTES = KQM_EMULATION_ASAN ? 256 << 10 : 64 << 10;
constexpr size_t STACKS_PER_CHUNK = 32;

size_t guard_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }

} // namespace

fiber fiber_of_this_thread() {
  fiber self;
#if KQM_EMULATION_ASAN
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    void *stack = nullptr;
    pthread_attr_getstack(&attributes, &stack, &self.stack_bytes);
    self.stack = static_cast<char *>(stack);
    pthread_attr_destroy(&attributes);
  }
#endif
  return self;
}

void *fiber_stack_top(const fiber &fiber) {
  const uintptr_t top = reinterpret_cast<uintptr_t>(fiber.stack + fiber.stack_bytes) & ~uintptr_t(15);
#if defined(__x86_64__)
  // A function begins with its return address pushed: no one returns from an entry, a zero ends debuggers' walks.
  void **const slot = reinterpret_cast<void **>(top) - 1;
  *slot = nullptr;
  return slot;
#else
  return reinterpret_cast<void *>(top);
#endif
}

void fiber_restart(fiber &fiber, void (*entry)()) {
#if KQM_EMULATION_ASAN
  // What ran here before may have been abandoned with its red zones in place.
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, fiber.stack_bytes);
  fiber.fake_stack = nullptr;
#endif
#if defined(__x86_64__)
  void **stack = static_cast<void **>(fiber_stack_top(fiber));
  *--stack = reinterpret_cast<void *>(entry);
  stack -= 6;
  memset(stack, 0, 6 * sizeof(void *));
#else
  void **stack = static_cast<void **>(fiber_stack_top(fiber)) - 20;
  memset(stack, 0, 20 * sizeof(void *));
  stack[11] = reinterpret_cast<void *>(entry); // x30
#endif
  fiber.stack_pointer = stack;
}

void fiber_switch(fiber &from, const fiber &to, bool leaving) {
#if KQM_EMULATION_ASAN
  __sanitizer_start_switch_fiber(leaving ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
  kqm_emulation_switch(&from.stack_pointer, to.stack_pointer);
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#else
  static_cast<void>(leaving);
  kqm_emulation_switch(&from.stack_pointer, to.stack_pointer);
#endif
}

void fiber_arrived() {
#if KQM_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

bool stack_pool::grow(size_t count) {
  const size_t guard = guard_bytes();
  while (chunks_.size() * STACKS_PER_CHUNK < count) {
    void *const chunk = mmap(nullptr, STACKS_PER_CHUNK * (guard + STACK_BYTES), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (chunk == MAP_FAILED) return false;
    chunks_.push_back(static_cast<char *>(chunk));
    for (size_t i = 0; i < STACKS_PER_CHUNK; i++)
      if (mprotect(chunks_.back() + i * (guard + STACK_BYTES), guard, PROT_NONE) != 0) return false;
  }
  return true;
}

void stack_pool::give(size_t index, fiber &fiber) const {
  const size_t guard = guard_bytes();
  fiber.stack = chunks_[index / STACKS_PER_CHUNK] + index % STACKS_PER_CHUNK * (guard + STACK_BYTES) + guard;
  // Tops at the same place of their pages would share a few cache sets, and every switch would miss the cache.
  fiber.stack_bytes = STACK_BYTES - index % 16 * 256;
}

stack_pool::~stack_pool() {
  for (char *const chunk : chunks_) {
#if KQM_EMULATION_ASAN
    ASAN_UNPOISON_MEMORY_REGION(chunk, STACKS_PER_CHUNK * (guard_bytes() + STACK_BYTES));
#endif
    munmap(chunk, STACKS_PER_CHUNK * (guard_bytes() + STACK_BYTES));
  }
}

} // namespace kqm_emulation
