// Stand-in for Metal's atomics. Lanes never run at the same time here, so the operations are plain; what matters is
// that the checks know them as atomic.
#pragma once

#include "metal_types.h"

namespace metal {

enum memory_order { memory_order_relaxed };

template <class T>
struct atomic {
  T value;
};
template <class T>
using _atomic = atomic<T>;
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;

}  // namespace metal

namespace flextrace_sim {

#define SIM_UNCHECKED __attribute__((no_sanitize_thread, noinline))
template <class T>
SIM_UNCHECKED T load(const volatile T* at) { return *at; }
template <class T>
SIM_UNCHECKED void store(volatile T* at, T value) { *at = value; }

}  // namespace flextrace_sim

namespace metal {

template <class T>
SIM_INLINE T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
  sim_atomic(const_cast<const atomic<T>*>(object), sizeof(T), 0);
  return ::flextrace_sim::load(&object->value);
}
template <class T>
SIM_INLINE void atomic_store_explicit(volatile atomic<T>* object, std::type_identity_t<T> value, memory_order) {
  sim_atomic(const_cast<const atomic<T>*>(object), sizeof(T), 2);
  ::flextrace_sim::store(&object->value, value);
}

#define SIM_FETCH(name, formula)                                                                         \
  template <class T>                                                                                     \
  SIM_INLINE T atomic_##name##_explicit(volatile atomic<T>* object, std::type_identity_t<T> value, memory_order) { \
    sim_atomic(const_cast<const atomic<T>*>(object), sizeof(T), 1);                                      \
    T old = ::flextrace_sim::load(&object->value);                                                       \
    ::flextrace_sim::store(&object->value, T(formula));                                                  \
    return old;                                                                                          \
  }
SIM_FETCH(fetch_add, old + value)
SIM_FETCH(fetch_sub, old - value)
SIM_FETCH(fetch_max, old < value ? value : old)
SIM_FETCH(fetch_min, value < old ? value : old)
SIM_FETCH(fetch_and, old& value)
SIM_FETCH(fetch_or, old | value)
SIM_FETCH(fetch_xor, old ^ value)
SIM_FETCH(exchange, value)
#undef SIM_FETCH

template <class T>
SIM_INLINE bool atomic_compare_exchange_weak_explicit(
    volatile atomic<T>* object, T* expected, std::type_identity_t<T> desired, memory_order, memory_order) {
  sim_atomic(const_cast<const atomic<T>*>(object), sizeof(T), 1);
  T old = ::flextrace_sim::load(&object->value);
  if (__builtin_memcmp(&old, expected, sizeof(T)) == 0) {
    ::flextrace_sim::store(&object->value, desired);
    return true;
  }
  *expected = old;
  return false;
}

}  // namespace metal
