// Fibers: stacks with guard pages and the switch between them.
#ifndef KQM_EMULATION_FIBER_H
#define KQM_EMULATION_FIBER_H

#include <stddef.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define KQM_EMULATION_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KQM_EMULATION_ASAN 1
#endif
#endif
#if !defined(KQM_EMULATION_ASAN)
#define KQM_EMULATION_ASAN 0
#endif

namespace kqm_emulation {

struct fiber {
  void *stack_pointer = nullptr;
  char *stack = nullptr; // lowest byte; a guard page lies below
  size_t stack_bytes = 0;
#if KQM_EMULATION_ASAN
  void *fake_stack = nullptr;
#endif
};

// A fiber for the stack that the caller already runs on.
fiber fiber_of_this_thread();

// Lets the fiber begin anew at `entry`, whatever it was doing.
void fiber_restart(fiber &fiber, void (*entry)());

// Where the stack pointer stands when a fiber begins.
void *fiber_stack_top(const fiber &fiber);

// Continues `to`; returns when something switches back to `from`. `leaving`: nothing ever will.
void fiber_switch(fiber &from, const fiber &to, bool leaving = false);

// Must be the first call of an entry, and of whatever else begins on a fiber's stack.
void fiber_arrived();

// Stacks for the fibers of one operating system thread.
class stack_pool {
public:
  stack_pool() = default;
  stack_pool(const stack_pool &) = delete;
  stack_pool &operator=(const stack_pool &) = delete;
  ~stack_pool();
  // False when memory for them cannot be had.
  bool grow(size_t count);
  void give(size_t index, fiber &fiber) const;

private:
  std::vector<char *> chunks_;
};

} // namespace kqm_emulation

#endif
