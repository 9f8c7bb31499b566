// Shared memory: arrays whose every access is checked for bounds, alignment, initialisation and order.
#ifndef KQM_EMULATION_SHARED_H
#define KQM_EMULATION_SHARED_H

#include "engine.h"
#include "numbers.h"

#include <type_traits>

namespace kqm_emulation {

// A piece of a shared array, as `offset` bytes into the block's shared memory. `index` is the element of the declared
// array at which the piece begins; with `name` it makes reports readable.
struct shared_piece {
  const char *name;
  uint32_t offset;
  uint32_t count;
  uint32_t index;
  uint32_t element;
};

shared_piece declare_shared(const void *site, const char *name, size_t element, size_t count, const char *file, int line);
shared_piece declare_dynamic_shared(const char *name, size_t element, const char *file, int line);
shared_piece offset_shared(const shared_piece &piece, int64_t elements, const char *file, int line);
void read_shared(const shared_piece &piece, int64_t index, void *value, uint32_t bytes, const char *file, int line);
void write_shared(const shared_piece &piece, int64_t index, const void *value, uint32_t bytes, const char *file,
                  int line);
// The bytes of an element of which the running thread is about to change the value atomically.
void *atomic_shared(const shared_piece &piece, int64_t index, uint32_t bytes, const char *file, int line);
void async_copy(const shared_piece &piece, int64_t index, const void *source, uint32_t bytes, const char *file, int line);
void async_commit();
void barrier_make(const shared_piece &piece, int64_t index, uint32_t warps, const char *file, int line);
void barrier_arrive(const shared_piece &piece, int64_t index, const char *file, int line);
void barrier_wait(const shared_piece &piece, int64_t index, uint32_t parity, const char *file, int line);
void async_wait(uint32_t newest, const char *file, int line);

// An index that notes where it was written: operator[] itself cannot have default arguments.
struct located_index {
  int64_t value;
  const char *file;
  int line;
  template <class I, class = std::enable_if_t<std::is_integral<I>::value || std::is_enum<I>::value>>
  located_index(I i, const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE())
      : value(int64_t(i)), file(file_), line(line_) {}
};

// What a conversion to f32 makes of a NaN is decided here for the f64 numbers of shared memory: the sums of most kernels pass through it.
template <class T> static inline T as_read(T value) { return value; }
static inline double as_read(double value) { return made(value); }

// What name[i] gives: reads by conversion, writes by assignment.
template <class T> class shared_element {
public:
  shared_element(const shared_piece &piece, const located_index &index) : piece_(piece), index_(index) {}
  shared_element(const shared_element &) = default;

  operator T() const {
    T value;
    read_shared(piece_, index_.value, &value, sizeof value, index_.file, index_.line);
    return as_read(value);
  }
  T operator=(T value) const {
    write_shared(piece_, index_.value, &value, sizeof value, index_.file, index_.line);
    return value;
  }
  T operator=(const shared_element &other) const { return *this = T(other); }
  template <class U> T operator+=(const U &other) const { return *this = T(T(*this) + other); }
  template <class U> T operator-=(const U &other) const { return *this = T(T(*this) - other); }
  template <class U> T operator*=(const U &other) const { return *this = T(T(*this) * other); }
  template <class U> T operator|=(const U &other) const { return *this = T(T(*this) | other); }
  template <class U> T operator&=(const U &other) const { return *this = T(T(*this) & other); }
  template <class U> T operator^=(const U &other) const { return *this = T(T(*this) ^ other); }

private:
  const shared_piece &piece_;
  located_index index_;
};

template <class T> struct shared_array : shared_piece {
  static_assert(std::is_trivially_copyable<T>::value, "shared memory holds plain values");
  explicit shared_array(const shared_piece &piece) : shared_piece(piece) {}
  shared_element<T> operator[](const located_index &index) const { return {*this, index}; }
};

} // namespace kqm_emulation

// The address of the static variable tells the array from every other one, also between instances of a template.
#define KQM_SHARED(type, name, count)                                                                                   \
  static char kqm_site_##name;                                                                                         \
  const ::kqm_emulation::shared_array<type> name(                                                                      \
      ::kqm_emulation::declare_shared(&kqm_site_##name, #name, sizeof(type), count, __FILE__, __LINE__))
#define KQM_DYNAMIC_SHARED(type, name)                                                                                  \
  const ::kqm_emulation::shared_array<type> name(                                                                      \
      ::kqm_emulation::declare_dynamic_shared(#name, sizeof(type), __FILE__, __LINE__))
#define KQM_SHARED_ARG(type) const ::kqm_emulation::shared_array<type> &

template <class T>
static inline kqm_emulation::shared_array<T> kqm_shared_offset(const kqm_emulation::shared_array<T> &array,
                                                               int64_t elements, KQM_EMULATION_HERE) {
  return kqm_emulation::shared_array<T>(kqm_emulation::offset_shared(array, elements, file, line));
}

template <class V, class T>
static inline V kqm_shared_load(const kqm_emulation::shared_array<T> &array, int64_t index, KQM_EMULATION_HERE) {
  V value;
  kqm_emulation::read_shared(array, index, &value, sizeof value, file, line);
  return kqm_emulation::as_read(value);
}

template <class V, class T>
static inline void kqm_shared_store(const kqm_emulation::shared_array<T> &array, int64_t index,
                                    const std::common_type_t<V> &value, KQM_EMULATION_HERE) {
  kqm_emulation::write_shared(array, index, &value, sizeof value, file, line);
}

template <class T>
static inline T kqm_shared_atomic_add(const kqm_emulation::shared_array<T> &array, int64_t index,
                                      const std::common_type_t<T> &value, KQM_EMULATION_HERE) {
  static_assert(std::is_integral<T>::value, "the order of a floating-point sum would show in its value");
  T *const place = static_cast<T *>(kqm_emulation::atomic_shared(array, index, sizeof(T), file, line));
  const T old = *place;
  *place = T(std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(value));
  return old;
}

template <class T>
static inline T kqm_shared_atomic_max(const kqm_emulation::shared_array<T> &array, int64_t index,
                                      const std::common_type_t<T> &value, KQM_EMULATION_HERE) {
  static_assert(std::is_integral<T>::value, "atomic maximum of integers only");
  T *const place = static_cast<T *>(kqm_emulation::atomic_shared(array, index, sizeof(T), file, line));
  const T old = *place;
  if (old < value) *place = value;
  return old;
}

template <class T>
static inline void kqm_async_copy_16(const kqm_emulation::shared_array<T> &array, int64_t index, const void *source,
                                     KQM_EMULATION_HERE) {
  kqm_emulation::async_copy(array, index, source, 16, file, line);
}
template <class T>
static inline void kqm_async_copy_4(const kqm_emulation::shared_array<T> &array, int64_t index, const void *source,
                                    KQM_EMULATION_HERE) {
  kqm_emulation::async_copy(array, index, source, 4, file, line);
}
static inline void kqm_async_commit() { kqm_emulation::async_commit(); }
template <int Newest> static inline void kqm_async_wait(KQM_EMULATION_HERE) {
  static_assert(Newest >= 0, "a count of groups");
  kqm_emulation::async_wait(Newest, file, line);
}

template <class T>
static inline void kqm_barrier_make(const kqm_emulation::shared_array<T> &array, int64_t index, uint32_t warps,
                                    KQM_EMULATION_HERE) {
  kqm_emulation::barrier_make(array, index, warps, file, line);
}
static inline void kqm_barriers_made() {}
template <class T>
static inline void kqm_barrier_arrive(const kqm_emulation::shared_array<T> &array, int64_t index, KQM_EMULATION_HERE) {
  kqm_emulation::barrier_arrive(array, index, file, line);
}
template <class T>
static inline void kqm_barrier_wait(const kqm_emulation::shared_array<T> &array, int64_t index, uint32_t parity,
                                    KQM_EMULATION_HERE) {
  kqm_emulation::barrier_wait(array, index, parity, file, line);
}
static inline void kqm_async_copies_for_products() {}

#endif
