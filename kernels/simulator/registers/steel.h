// steel.h: what MLX's attention kernel takes of other headers, of MLX's and of Metal's, for steel.py.
#pragma once
#define METAL_FUNC inline __attribute__((always_inline))

typedef unsigned long size_t;
typedef metal::vec<short, 2> short2;
typedef metal::vec<int, 2> int2;
typedef metal::vec<uint, 3> uint3;
typedef metal::vec<ulong, 3> ulong3;

namespace metal {
template <typename T>
struct is_integral {
  static constexpr bool value = __is_integral(T);
};
template <typename T>
using remove_addrspace_t = __remove_cv(T);
template <typename A, typename B>
constexpr bool is_same_v = __is_same(A, B);
template <typename A, typename B>
struct is_same {
  static constexpr bool value = __is_same(A, B);
};
template <bool B, typename A, typename C>
struct conditional {
  typedef A type;
};
template <typename A, typename C>
struct conditional<false, A, C> {
  typedef C type;
};
template <bool B, typename A, typename C>
using conditional_t = typename conditional<B, A, C>::type;
template <bool B, typename T = void>
struct enable_if {};
template <typename T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool B, typename T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <typename T>
struct pointer_element {};
template <typename T>
struct pointer_element<device T*> {
  typedef __remove_cv(T) type;
};
template <typename T>
struct pointer_element<threadgroup T*> {
  typedef __remove_cv(T) type;
};
template <typename T>
using pointer_element_t = typename pointer_element<__remove_cv(T)>::type;
inline float log2(float x) { return precise::log2(x); }
}  // namespace metal
using namespace metal;

constexpr float M_LOG2E_F = 1.44269504f, M_LN2_F = 0.69314718f;
template <typename T>
struct Limits {
  static constexpr float finite_min = -3.40282347e+38f;
};
