// Global memory: loads and stores with cache hints, atomics. Plain accesses need no help: buffers end at guard pages.
#ifndef KQM_EMULATION_GLOBAL_H
#define KQM_EMULATION_GLOBAL_H

#include "engine.h"
#include "numbers.h"

#include <type_traits>

namespace kqm_emulation {

template <class T> static inline void check_global(const T *pointer, const char *file, int line) {
  at(file, line);
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T) != 0)
    fail(MISALIGNED, file, line, "access of %zu bytes at %p, which is no multiple of %zu", sizeof(T),
         static_cast<const void *>(pointer), alignof(T));
}

template <class T> static inline T load(const T *pointer, const char *file, int line) {
  check_global(pointer, file, line);
  return *pointer;
}

template <class T> static inline void store(T *pointer, T value, const char *file, int line) {
  check_global(pointer, file, line);
  *pointer = value;
}

// Blocks run one after another and threads change only at calls like this one: the plain operation is atomic.
template <class T, class F> static inline T atomic(T *pointer, F change, const char *file, int line) {
  check_global(pointer, file, line);
  yield(file, line);
  const T old = *pointer;
  *pointer = change(old);
  return old;
}

template <class T> static inline T wrapping_add(T a, T b) {
  using U = std::make_unsigned_t<T>;
  return T(U(a) + U(b));
}

} // namespace kqm_emulation

#define KQM_LOAD(name)                                                                                                  \
  template <class T> static inline T name(const T *pointer, KQM_EMULATION_HERE) {                                      \
    return kqm_emulation::load(pointer, file, line);                                                                   \
  }
KQM_LOAD(__ldg)
KQM_LOAD(__ldca)
KQM_LOAD(__ldcg)
KQM_LOAD(__ldcs)
KQM_LOAD(__ldlu)
#undef KQM_LOAD
// Another thread of the block may be what a polling loop waits for.
template <class T> static inline T __ldcv(const T *pointer, KQM_EMULATION_HERE) {
  kqm_emulation::yield(file, line);
  return kqm_emulation::load(pointer, file, line);
}

#define KQM_STORE(name)                                                                                                 \
  template <class T> static inline void name(T *pointer, const std::common_type_t<T> &value, KQM_EMULATION_HERE) {     \
    kqm_emulation::store<T>(pointer, value, file, line);                                                               \
  }
KQM_STORE(__stwb)
KQM_STORE(__stcg)
KQM_STORE(__stcs)
KQM_STORE(__stwt)
#undef KQM_STORE

static inline uint4 kqm_load_streaming(const uint4 *pointer, KQM_EMULATION_HERE) {
  return kqm_emulation::load(pointer, file, line);
}

static inline double kqm_load_volatile(const double *pointer, KQM_EMULATION_HERE) {
  return kqm_emulation::load(pointer, file, line);
}

// Grids run one after another, but what they may touch is judged as if they overlapped (src/dependence.cpp).
static inline void kqm_wait_for_dependencies() { kqm_emulation::wait_for_dependencies(); }
static inline void kqm_release_dependents() { kqm_emulation::release_dependents(); }
// Arguments are always at hand, and nothing is put off: nothing to do.
static inline void kqm_materialize(uint32_t) {}
template <class T>
static inline void kqm_keep(T &) {}
template <class Arguments>
static inline void kqm_touch_arguments(const Arguments &) {}
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}

// No float types: the order of the additions would show in the sum.
#define KQM_ATOMICS(type)                                                                                               \
  static inline type atomicAdd(type *pointer, type value, KQM_EMULATION_HERE) {                                        \
    return kqm_emulation::atomic(                                                                                      \
        pointer, [=](type old) { return kqm_emulation::wrapping_add(old, value); },                                    \
        file, line);                                                                                                   \
  }                                                                                                                    \
  static inline type atomicMax(type *pointer, type value, KQM_EMULATION_HERE) {                                        \
    return kqm_emulation::atomic(pointer, [=](type old) { return old < value ? value : old; }, file, line);            \
  }                                                                                                                    \
  static inline type atomicMin(type *pointer, type value, KQM_EMULATION_HERE) {                                        \
    return kqm_emulation::atomic(pointer, [=](type old) { return value < old ? value : old; }, file, line);            \
  }                                                                                                                    \
  static inline type atomicExch(type *pointer, type value, KQM_EMULATION_HERE) {                                       \
    return kqm_emulation::atomic(pointer, [=](type) { return value; }, file, line);                                    \
  }                                                                                                                    \
  static inline type atomicCAS(type *pointer, type expected, type value, KQM_EMULATION_HERE) {                         \
    return kqm_emulation::atomic(pointer, [=](type old) { return old == expected ? value : old; }, file, line);        \
  }                                                                                                                    \
  static inline type atomicOr(type *pointer, type value, KQM_EMULATION_HERE) {                                         \
    return kqm_emulation::atomic(pointer, [=](type old) { return old | value; }, file, line);                    \
  }                                                                                                                    \
  static inline type atomicAnd(type *pointer, type value, KQM_EMULATION_HERE) {                                        \
    return kqm_emulation::atomic(pointer, [=](type old) { return old & value; }, file, line);                    \
  }
KQM_ATOMICS(int)
KQM_ATOMICS(unsigned int)
KQM_ATOMICS(unsigned long long)
#undef KQM_ATOMICS
// uint64_t is another type than unsigned long long here, though not on the device.
static inline uint64_t atomicAdd(uint64_t *pointer, unsigned long long value, KQM_EMULATION_HERE) {
  return atomicAdd(reinterpret_cast<unsigned long long *>(pointer), value, file, line);
}
static inline uint64_t atomicMax(uint64_t *pointer, unsigned long long value, KQM_EMULATION_HERE) {
  return atomicMax(reinterpret_cast<unsigned long long *>(pointer), value, file, line);
}
static inline uint64_t atomicExch(uint64_t *pointer, unsigned long long value, KQM_EMULATION_HERE) {
  return atomicExch(reinterpret_cast<unsigned long long *>(pointer), value, file, line);
}
static inline uint64_t atomicCAS(uint64_t *pointer, unsigned long long expected, unsigned long long value,
                                 KQM_EMULATION_HERE) {
  return atomicCAS(reinterpret_cast<unsigned long long *>(pointer), expected, value, file, line);
}

#endif
