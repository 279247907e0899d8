// Stand-in for <metal_stdlib>: Metal Shading Language read as C++20. The address spaces become nothing; declarations of
// threadgroup memory are rewritten before (rewrite.py), so that a `threadgroup` still here is an error.
#pragma once

#include "metal_types.h"
#include "metal_vector.h"
#include "metal_operators.h"
#include "metal_math.h"
#include "metal_simdgroup.h"
#include "metal_atomic.h"

namespace flextrace_sim {

// What the runtime hands to a kernel's parameters, whatever their declared types.
struct pointer {
  void* address;
  template <class T>
  SIM_INLINE operator T*() const { return static_cast<T*>(address); }
};
struct reference {
  void* address;
  template <class T>
  SIM_INLINE operator T&() const { return *static_cast<T*>(address); }
};
struct triple {
  const unsigned* at;
  template <class T>
  SIM_INLINE operator metal::vec<T, 3>() const { return metal::vec<T, 3>(at[0], at[1], at[2]); }
  template <class T>
  SIM_INLINE operator metal::vec<T, 2>() const { return metal::vec<T, 2>(at[0], at[1]); }
  template <metal::sim_integer T>
  SIM_INLINE operator T() const { return T(at[0]); }
};

}  // namespace flextrace_sim

// Function-scope threadgroup memory: one array for all lanes of the threadgroup.
#define SIM_THREADGROUP(site, name, ...) \
  std::type_identity_t<__VA_ARGS__>& name = *static_cast<std::type_identity_t<__VA_ARGS__>*>( \
      sim_threadgroup(site, sizeof(__VA_ARGS__), alignof(__VA_ARGS__), #name))

#define __METAL_VERSION__ 320
#define __METAL__ 1
#define device
#define constant
#define thread
#define kernel
