// Stand-in for the operators of Metal's vectors, element by element.
#pragma once

#include "metal_vector.h"

namespace metal {

#define SIM_BINARY(op)                                                                          \
  template <class A, class B>                                                                   \
    requires ::flextrace_sim::some_vector<A, B>                                                 \
  SIM_INLINE constexpr auto operator op(const A& a, const B& b) {                               \
    using V = typename ::flextrace_sim::first_vector<A, B>::type;                               \
    using E = typename ::flextrace_sim::shape<V>::element;                                      \
    V result{};                                                                                 \
    for (int i = 0; i < ::flextrace_sim::shape<V>::count; i++) {                                \
      result.data[i] = static_cast<E>(::flextrace_sim::at<V>(a, i) op ::flextrace_sim::at<V>(b, i)); \
    }                                                                                           \
    return result;                                                                              \
  }                                                                                             \
  template <class T, int N, class B>                                                            \
    requires ::flextrace_sim::some_vector<vec<T, N>, B>                                         \
  SIM_INLINE constexpr vec<T, N>& operator op##=(vec<T, N>& a, const B& b) {                    \
    return a = a op b;                                                                          \
  }
#define SIM_COMPARE(op)                                                                         \
  template <class A, class B>                                                                   \
    requires ::flextrace_sim::some_vector<A, B>                                                 \
  SIM_INLINE constexpr auto operator op(const A& a, const B& b) {                               \
    using V = typename ::flextrace_sim::first_vector<A, B>::type;                               \
    vec<bool, ::flextrace_sim::shape<V>::count> result{};                                       \
    for (int i = 0; i < ::flextrace_sim::shape<V>::count; i++) {                                \
      result.data[i] = ::flextrace_sim::at<V>(a, i) op ::flextrace_sim::at<V>(b, i);            \
    }                                                                                           \
    return result;                                                                              \
  }
#define SIM_PREFIX(op)                                                                          \
  template <::flextrace_sim::vector_like A>                                                     \
  SIM_INLINE constexpr auto operator op(const A& a) {                                           \
    using V = typename ::flextrace_sim::first_vector<A>::type;                                  \
    V result{};                                                                                 \
    for (int i = 0; i < ::flextrace_sim::shape<V>::count; i++) {                                \
      result.data[i] = static_cast<typename ::flextrace_sim::shape<V>::element>(op a[i]);       \
    }                                                                                           \
    return result;                                                                              \
  }
SIM_BINARY(+)
SIM_BINARY(-)
SIM_BINARY(*)
SIM_BINARY(/)
SIM_BINARY(%)
SIM_BINARY(&)
SIM_BINARY(|)
SIM_BINARY(^)
SIM_BINARY(<<)
SIM_BINARY(>>)
SIM_COMPARE(==)
SIM_COMPARE(!=)
SIM_COMPARE(<)
SIM_COMPARE(<=)
SIM_COMPARE(>)
SIM_COMPARE(>=)
SIM_COMPARE(&&)
SIM_COMPARE(||)
SIM_PREFIX(-)
SIM_PREFIX(~)
SIM_PREFIX(!)

}  // namespace metal
