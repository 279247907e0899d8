// Stand-in for Metal's vectors of 2 to 4 elements: swizzles, operators element by element, packed forms.
#pragma once

#include "metal_types.h"

namespace metal {
template <class T, int N>
struct vec;
}

namespace flextrace_sim {

// Some elements of a vector, named by a swizzle such as .xy; converts to a vector and may be assigned.
template <class T, int Stored, int... I>
struct swizzle {
  T data[Stored];
  static constexpr int count = sizeof...(I);
  using vector = metal::vec<T, count>;

  SIM_INLINE constexpr operator vector() const { return vector(data[I]...); }
  SIM_INLINE constexpr T operator[](int at) const { return vector(*this)[at]; }
  SIM_INLINE swizzle& operator=(vector value) {
    int from = 0;
    ((data[I] = value[from++]), ...);
    return *this;
  }
  SIM_INLINE swizzle& operator=(const swizzle& other) { return *this = vector(other); }
  template <class U>
  SIM_INLINE swizzle& operator+=(const U& other) { return *this = vector(*this) + other; }
  template <class U>
  SIM_INLINE swizzle& operator-=(const U& other) { return *this = vector(*this) - other; }
  template <class U>
  SIM_INLINE swizzle& operator*=(const U& other) { return *this = vector(*this) * other; }
  template <class U>
  SIM_INLINE swizzle& operator/=(const U& other) { return *this = vector(*this) / other; }
};

template <class T, int N>
struct [[gnu::may_alias]] alignas(sizeof(T) * (N == 3 ? 4 : N)) whole {
  T data[N];
};

template <class T>
struct shape {  // how many elements a constructor argument brings; 0: none of ours
  static constexpr int count = metal::is_arithmetic_v<T> ? 1 : 0;
  static constexpr bool is_vector = false;
  using element = T;
};
template <class T, int N>
struct shape<metal::vec<T, N>> {
  static constexpr int count = N;
  static constexpr bool is_vector = true;
  using element = T;
};
template <class T, int S, int... I>
struct shape<swizzle<T, S, I...>> {
  static constexpr int count = sizeof...(I);
  static constexpr bool is_vector = true;
  using element = T;
};

template <class A>
using bare = std::remove_cv_t<std::remove_reference_t<A>>;
template <class A>
concept vector_like = shape<bare<A>>::is_vector;
template <class A>
concept scalar = metal::is_arithmetic_v<bare<A>>;
template <class A, class... B>
concept some_vector = (vector_like<A> || ... || vector_like<B>)&&((vector_like<A> || scalar<A>)&&...&&(
    vector_like<B> || scalar<B>));

// The vector type that operands of mixed vectors and scalars work in: that of the first vector.
template <class A, class... B>
struct first_vector : first_vector<B...> {};
template <vector_like A, class... B>
struct first_vector<A, B...> {
  using type = metal::vec<typename shape<bare<A>>::element, shape<bare<A>>::count>;
};

template <class V, class A>
SIM_INLINE constexpr auto at(const A& operand, int i) {
  if constexpr (vector_like<A>) {
    static_assert(shape<A>::count == shape<V>::count, "vectors of different lengths");
    return operand[i];
  } else {
    return typename shape<V>::element(operand);
  }
}

template <class F, class... A>
SIM_INLINE constexpr auto map(F f, const A&... operands) {
  using V = typename first_vector<A...>::type;
  using R = bare<decltype(f(at<V>(operands, 0)...))>;
  metal::vec<R, shape<V>::count> result{};
  for (int i = 0; i < shape<V>::count; i++) {
    result.data[i] = f(at<V>(operands, i)...);
  }
  return result;
}

}  // namespace flextrace_sim

#define SIM_SWIZZLE2(a, b, i, j) ::flextrace_sim::swizzle<T, SIM_STORED, i, j> a##b;
#define SIM_SWIZZLE3(a, b, c, i, j, k) ::flextrace_sim::swizzle<T, SIM_STORED, i, j, k> a##b##c;
#define SIM_SWIZZLE4(a, b, c, d, i, j, k, l) ::flextrace_sim::swizzle<T, SIM_STORED, i, j, k, l> a##b##c##d;

namespace metal {

#define SIM_VECTOR(N, NAMES, COLOURS, SWIZZLES)                                                              \
  template <class T>                                                                                         \
  struct alignas(sizeof(T) * (N == 3 ? 4 : N)) vec<T, N> {                                                   \
    union {                                                                                                  \
      T data[N];                                                                                             \
      struct {                                                                                               \
        NAMES                                                                                                \
      };                                                                                                     \
      struct {                                                                                               \
        COLOURS                                                                                              \
      };                                                                                                     \
      SWIZZLES                                                                                               \
    };                                                                                                       \
    vec() = default;                                                                                         \
    SIM_INLINE constexpr vec(const vec& other) { copy(other); }                                              \
    SIM_INLINE constexpr vec& operator=(const vec& other) {                                                  \
      copy(other);                                                                                           \
      return *this;                                                                                          \
    }                                                                                                        \
    SIM_INLINE constexpr void copy(const vec& other) {                                                       \
      if (__builtin_is_constant_evaluated()) {                                                               \
        for (int i = 0; i < N; i++) {                                                                        \
          data[i] = other.data[i];                                                                           \
        }                                                                                                    \
      } else { /* one access, as wide as the vector */                                                       \
        using whole = ::flextrace_sim::whole<T, N>;                                                          \
        *reinterpret_cast<whole*>(data) = *reinterpret_cast<const whole*>(other.data);                       \
      }                                                                                                      \
    }                                                                                                        \
    template <::flextrace_sim::scalar U>                                                                     \
    SIM_INLINE constexpr vec(U value) : data{} {                                                             \
      for (int i = 0; i < N; i++) {                                                                          \
        data[i] = static_cast<T>(value);                                                                     \
      }                                                                                                      \
    }                                                                                                        \
    template <class U>                                                                                       \
    SIM_INLINE constexpr explicit vec(const vec<U, N>& other) : data{} {                                     \
      for (int i = 0; i < N; i++) {                                                                          \
        data[i] = static_cast<T>(other.data[i]);                                                             \
      }                                                                                                      \
    }                                                                                                        \
    template <class U, int S, int... I>                                                                      \
      requires(!std::is_same_v<U, T> && sizeof...(I) == N)                                                   \
    SIM_INLINE constexpr explicit vec(const ::flextrace_sim::swizzle<U, S, I...>& other) : vec(vec<U, N>(other)) {} \
    template <class... A>                                                                                    \
      requires(sizeof...(A) >= 2 && (::flextrace_sim::shape<::flextrace_sim::bare<A>>::count + ...) == N)    \
    SIM_INLINE constexpr vec(const A&... parts) : data{} {                                                   \
      int next = 0;                                                                                          \
      (place(next, parts), ...);                                                                             \
    }                                                                                                        \
    template <class A>                                                                                       \
    SIM_INLINE constexpr void place(int& next, const A& part) {                                              \
      if constexpr (::flextrace_sim::vector_like<A>) {                                                       \
        for (int i = 0; i < ::flextrace_sim::shape<A>::count; i++) {                                         \
          data[next++] = static_cast<T>(part[i]);                                                            \
        }                                                                                                    \
      } else {                                                                                               \
        data[next++] = static_cast<T>(part);                                                                 \
      }                                                                                                      \
    }                                                                                                        \
    SIM_INLINE constexpr T& operator[](int i) { return data[i]; }                                            \
    SIM_INLINE constexpr const T& operator[](int i) const { return data[i]; }                                \
  };

// clang-format off
#define SIM_STORED 2
SIM_VECTOR(2, T x; T y;, T r; T g;,
  SIM_SWIZZLE2(x,x,0,0) SIM_SWIZZLE2(x,y,0,1) SIM_SWIZZLE2(y,x,1,0) SIM_SWIZZLE2(y,y,1,1)
  SIM_SWIZZLE2(r,g,0,1) SIM_SWIZZLE2(g,r,1,0)
  SIM_SWIZZLE4(x,y,x,y,0,1,0,1) SIM_SWIZZLE4(x,x,y,y,0,0,1,1) SIM_SWIZZLE4(x,x,x,x,0,0,0,0))
#undef SIM_STORED
#define SIM_STORED 3
SIM_VECTOR(3, T x; T y; T z;, T r; T g; T b;,
  SIM_SWIZZLE2(x,x,0,0) SIM_SWIZZLE2(x,y,0,1) SIM_SWIZZLE2(x,z,0,2) SIM_SWIZZLE2(y,x,1,0) SIM_SWIZZLE2(y,y,1,1)
  SIM_SWIZZLE2(y,z,1,2) SIM_SWIZZLE2(z,x,2,0) SIM_SWIZZLE2(z,y,2,1) SIM_SWIZZLE2(z,z,2,2) SIM_SWIZZLE2(r,g,0,1)
  SIM_SWIZZLE3(x,y,z,0,1,2) SIM_SWIZZLE3(x,z,y,0,2,1) SIM_SWIZZLE3(y,x,z,1,0,2) SIM_SWIZZLE3(y,z,x,1,2,0)
  SIM_SWIZZLE3(z,x,y,2,0,1) SIM_SWIZZLE3(z,y,x,2,1,0) SIM_SWIZZLE3(x,x,x,0,0,0) SIM_SWIZZLE3(y,y,y,1,1,1)
  SIM_SWIZZLE3(z,z,z,2,2,2) SIM_SWIZZLE3(r,g,b,0,1,2))
#undef SIM_STORED
#define SIM_STORED 4
SIM_VECTOR(4, T x; T y; T z; T w;, T r; T g; T b; T a;,
  SIM_SWIZZLE2(x,x,0,0) SIM_SWIZZLE2(x,y,0,1) SIM_SWIZZLE2(x,z,0,2) SIM_SWIZZLE2(x,w,0,3) SIM_SWIZZLE2(y,x,1,0)
  SIM_SWIZZLE2(y,y,1,1) SIM_SWIZZLE2(y,z,1,2) SIM_SWIZZLE2(y,w,1,3) SIM_SWIZZLE2(z,x,2,0) SIM_SWIZZLE2(z,y,2,1)
  SIM_SWIZZLE2(z,z,2,2) SIM_SWIZZLE2(z,w,2,3) SIM_SWIZZLE2(w,x,3,0) SIM_SWIZZLE2(w,y,3,1) SIM_SWIZZLE2(w,z,3,2)
  SIM_SWIZZLE2(w,w,3,3) SIM_SWIZZLE2(r,g,0,1) SIM_SWIZZLE2(b,a,2,3)
  SIM_SWIZZLE3(x,y,z,0,1,2) SIM_SWIZZLE3(y,z,w,1,2,3) SIM_SWIZZLE3(z,y,x,2,1,0) SIM_SWIZZLE3(x,y,w,0,1,3)
  SIM_SWIZZLE3(x,z,w,0,2,3) SIM_SWIZZLE3(y,x,z,1,0,2) SIM_SWIZZLE3(y,z,x,1,2,0) SIM_SWIZZLE3(z,x,y,2,0,1)
  SIM_SWIZZLE3(x,z,y,0,2,1) SIM_SWIZZLE3(r,g,b,0,1,2)
  SIM_SWIZZLE4(x,y,z,w,0,1,2,3) SIM_SWIZZLE4(w,z,y,x,3,2,1,0) SIM_SWIZZLE4(x,x,x,x,0,0,0,0)
  SIM_SWIZZLE4(y,y,y,y,1,1,1,1) SIM_SWIZZLE4(z,z,z,z,2,2,2,2) SIM_SWIZZLE4(w,w,w,w,3,3,3,3)
  SIM_SWIZZLE4(x,y,x,y,0,1,0,1) SIM_SWIZZLE4(z,w,z,w,2,3,2,3) SIM_SWIZZLE4(x,x,y,y,0,0,1,1)
  SIM_SWIZZLE4(z,z,w,w,2,2,3,3) SIM_SWIZZLE4(y,x,w,z,1,0,3,2) SIM_SWIZZLE4(z,w,x,y,2,3,0,1)
  SIM_SWIZZLE4(x,z,y,w,0,2,1,3) SIM_SWIZZLE4(r,g,b,a,0,1,2,3))
#undef SIM_STORED
// clang-format on

// Packed vectors: stored without padding, computed as vectors.
template <class T, int N>
struct packed_vec {
  T data[N];
  packed_vec() = default;
  SIM_INLINE packed_vec(const packed_vec& other) { *this = other; }  // seen by the hooks, as bfloat's
  SIM_INLINE packed_vec& operator=(const packed_vec& other) {
    for (int i = 0; i < N; i++) {
      data[i] = other.data[i];
    }
    return *this;
  }
  SIM_INLINE packed_vec(vec<T, N> value) {
    for (int i = 0; i < N; i++) {
      data[i] = value.data[i];
    }
  }
  SIM_INLINE operator vec<T, N>() const {
    vec<T, N> value;
    for (int i = 0; i < N; i++) {
      value.data[i] = data[i];
    }
    return value;
  }
  SIM_INLINE T& operator[](int i) { return data[i]; }
  SIM_INLINE const T& operator[](int i) const { return data[i]; }
};

#define SIM_NAMED(type)                                                            \
  typedef vec<type, 2> type##2;                                                    \
  typedef vec<type, 3> type##3;                                                    \
  typedef vec<type, 4> type##4;                                                    \
  typedef packed_vec<type, 2> packed_##type##2;                                    \
  typedef packed_vec<type, 3> packed_##type##3;                                    \
  typedef packed_vec<type, 4> packed_##type##4;
SIM_NAMED(bool)
SIM_NAMED(char)
SIM_NAMED(uchar)
SIM_NAMED(short)
SIM_NAMED(ushort)
SIM_NAMED(int)
SIM_NAMED(uint)
SIM_NAMED(long)
SIM_NAMED(ulong)
SIM_NAMED(half)
SIM_NAMED(bfloat)
SIM_NAMED(float)
#undef SIM_NAMED

template <::flextrace_sim::vector_like A>
SIM_INLINE constexpr bool all(const A& a) {
  bool result = true;
  for (int i = 0; i < ::flextrace_sim::shape<A>::count; i++) {
    result = result && a[i];
  }
  return result;
}
template <::flextrace_sim::vector_like A>
SIM_INLINE constexpr bool any(const A& a) {
  bool result = false;
  for (int i = 0; i < ::flextrace_sim::shape<A>::count; i++) {
    result = result || a[i];
  }
  return result;
}
SIM_INLINE constexpr bool all(bool a) { return a; }
SIM_INLINE constexpr bool any(bool a) { return a; }

}  // namespace metal
