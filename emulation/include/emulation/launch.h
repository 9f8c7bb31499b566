// Launches: the grid runs before the launch returns, or, while launches are recorded, when the recording is replayed.
#ifndef KQM_EMULATION_LAUNCH_H
#define KQM_EMULATION_LAUNCH_H

#include "engine.h"

#include <tuple>
#include <type_traits>
#include <utility>

namespace kqm_emulation {

struct launch_request {
  const char *kernel;
  const char *launcher; // with what its template parameters stand for, which the kernel's may be made of
  dim3 grid;
  dim3 block;
  size_t dynamic_shared_bytes;
  size_t most_shared_bytes; // that the device gives a block
  void (*thread)(const void *closure);
  const void *closure;
  // Of the closure, for a launch that is kept and made later.
  void *(*copy)(const void *closure);
  void (*drop)(void *closure);
  const char *file;
  int line;
};

// 0, a cudaError_t that the device would give, or a `failure`.
int32_t run(const launch_request &request);

template <class... P> struct closure {
  void (*kernel)(P...);
  std::tuple<std::decay_t<P>...> arguments;
  static void call(const void *self) {
    const closure &that = *static_cast<const closure *>(self);
    std::apply(that.kernel, that.arguments);
  }
  static void *copy(const void *self) { return new closure(*static_cast<const closure *>(self)); }
  static void drop(void *self) { delete static_cast<closure *>(self); }
};

template <class... P, class... A>
static inline int32_t launch(size_t most_shared_bytes, const char *name, const char *launcher, const char *file, int line,
                             void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared_bytes, void *,
                             A &&...arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
  const closure<P...> thread{kernel, {static_cast<std::decay_t<P>>(std::forward<A>(arguments))...}};
  return run({name, launcher, grid, block, dynamic_shared_bytes, most_shared_bytes, &closure<P...>::call, &thread, &closure<P...>::copy,
              &closure<P...>::drop, file, line});
}

} // namespace kqm_emulation

// Few, so that small matrices already have more row tiles than run at once.
static inline unsigned kqm_multiprocessors() { return 3; }
static inline unsigned kqm_shared_memory() { return 100 << 10; }
// What a card has that multiplies by warpgroups, and that it does.
static inline unsigned kqm_warpgroup_shared_memory() { return 227 << 10; }

// KQM_LAUNCH(kernel, grid, block, dynamic_shared_bytes, stream, arguments...)
// At most as much shared memory as a block may have on sm_89 and sm_120.
#define KQM_LAUNCH(kernel, grid, block, dynamic_shared_bytes, ...)                                                      \
  ::kqm_emulation::launch(size_t(99) << 10, #kernel, __PRETTY_FUNCTION__, __FILE__, __LINE__, kernel, grid, block,      \
                          dynamic_shared_bytes, __VA_ARGS__)
// As much as on sm_90.
#define KQM_LAUNCH_WARPGROUPS(kernel, grid, block, dynamic_shared_bytes, ...)                                           \
  ::kqm_emulation::launch(kqm_warpgroup_shared_memory(), #kernel, __PRETTY_FUNCTION__, __FILE__, __LINE__, kernel, grid, \
                          block, dynamic_shared_bytes, __VA_ARGS__)

#endif
