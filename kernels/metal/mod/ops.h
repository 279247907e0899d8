// ops.h: what generated mods call besides the Metal library. Semantics are Python's on float32 and int32; an int
// divided by 0 gives 0, and an array index is Python's (a negative one counts from the end, once) and then clamped.
#pragma once
#include "../tile/simdgroup.h"

// The strides of an array that lies row after row, by its shape: strides[0] is that of its first axis.
template <int NDIM>
struct RowMajor {
  const device int* shape;
  int64_t operator[](int) const thread {
    int64_t stride = 1;
    for (int axis = 1; axis < NDIM; axis++) stride *= shape[axis];
    return stride;
  }
  RowMajor<NDIM - 1> operator+(int) const thread {
    RowMajor<NDIM - 1> next;
    next.shape = shape + 1;
    return next;
  }
};

namespace fx {

// -- captured arrays ---------------------------------------------------------------------------------------------

INLINE int inside(int index, int size) {
  return metal::clamp(index < 0 ? index + size : index, 0, size - 1);
}

// The place of array[index, ...] in memory, in elements.
template <typename Shape, typename Strides>
INLINE int64_t offset(Shape shape, Strides strides, int index) {
  return inside(index, shape[0]) * int64_t(strides[0]);
}
template <typename Shape, typename Strides, typename... Rest>
INLINE int64_t offset(Shape shape, Strides strides, int index, Rest... rest) {
  return inside(index, shape[0]) * int64_t(strides[0]) + offset(shape + 1, strides + 1, rest...);
}

// -- integers ----------------------------------------------------------------------------------------------------

// int wraps: its own + - * << would leave an overflow undefined.
INLINE int add(int a, int b) { return int(uint(a) + uint(b)); }
INLINE int sub(int a, int b) { return int(uint(a) - uint(b)); }
INLINE int mul(int a, int b) { return int(uint(a) * uint(b)); }
INLINE int neg(int a) { return int(0u - uint(a)); }
INLINE int abs(int a) { return a < 0 ? neg(a) : a; }
// Python's shifts at 32 bits; a negative count is taken as one that is too large.
INLINE int shl(int a, int count) { return uint(count) < 32u ? int(uint(a) << (count & 31)) : 0; }
INLINE int shr(int a, int count) { return a >> (uint(count) < 32u ? count : 31); }

INLINE int floor_div(int a, int b) {
  if (b == 0) return 0;
  if (b == -1) return neg(a);
  int quotient = a / b;
  return quotient - int(a % b != 0 && (a ^ b) < 0);
}
INLINE int mod(int a, int b) {
  if (b == 0 || b == -1) return 0;
  int remainder = a % b;
  return remainder != 0 && (remainder ^ b) < 0 ? remainder + b : remainder;
}

// -- conversions -------------------------------------------------------------------------------------------------

INLINE int to_int(bool x) { return x ? 1 : 0; }
INLINE int to_int(int x) { return x; }
// Truncates; saturates beyond int32; nan gives 0.
INLINE int to_int(float x) {
  if (!(x >= -2147483648.0f)) return x < 0.0f ? (-2147483647 - 1) : 0;
  return x >= 2147483648.0f ? 2147483647 : int(x);
}

// -- floats ------------------------------------------------------------------------------------------------------

// nan where either is.
INLINE float min(float a, float b) { return a != a ? a : a < b ? a : b; }
INLINE float max(float a, float b) { return a != a ? a : a > b ? a : b; }

// CPython's float_divmod, in float32.
INLINE float mod(float a, float b) {
  float remainder = metal::precise::fmod(a, b);
  if (remainder == 0.0f) return metal::copysign(0.0f, b);
  return (b < 0.0f) != (remainder < 0.0f) ? remainder + b : remainder;
}
INLINE float floor_div(float a, float b) {
  if (b == 0.0f) return a / b;
  float remainder = metal::precise::fmod(a, b);
  float quotient = (a - remainder) / b;
  if (remainder != 0.0f && (b < 0.0f) != (remainder < 0.0f)) quotient -= 1.0f;
  if (quotient == 0.0f) return metal::copysign(0.0f, a / b);
  float below = metal::floor(quotient);
  return quotient - below > 0.5f ? below + 1.0f : below;
}

INLINE float pow(float a, float b) { return metal::precise::pow(a, b); }
INLINE float sigmoid(float x) { return 1.0f / (1.0f + metal::precise::exp(-x)); }

// x + x^2 / 2 + x^3 / 6 + ... near 0, where exp(x) - 1 would cancel.
INLINE float expm1(float x) {
  if (!(metal::abs(x) < 0.5f)) return metal::precise::exp(x) - 1.0f;
  float p = 2.4801587e-5f;
  p = p * x + 1.9841270e-4f;
  p = p * x + 1.3888889e-3f;
  p = p * x + 8.3333333e-3f;
  p = p * x + 4.1666667e-2f;
  p = p * x + 1.6666667e-1f;
  p = p * x + 0.5f;
  return p * (x * x) + x;
}

// 2 atanh(s), s = x / (2 + x), near 0, where 1 + x would round.
INLINE float log1p(float x) {
  if (!(metal::abs(x) < 0.25f)) return metal::precise::log(1.0f + x);
  float s = x / (2.0f + x), z = s * s;
  float p = 1.8181818e-1f;
  p = p * z + 2.2222222e-1f;
  p = p * z + 2.8571429e-1f;
  p = p * z + 0.4f;
  p = p * z + 6.6666667e-1f;
  return p * (z * s) + 2.0f * s;
}

// Polynomials fitted to erf(x) / x, in x^2, and to erfc(x) exp(x^2), in 1 / x.
INLINE float erf(float x) {
  float size = metal::abs(x), z = x * x;
  if (size < 1.0f) {
    float p = 7.88249745e-05f;
    p = p * z - 8.01885501e-04f;
    p = p * z + 5.18931216e-03f;
    p = p * z - 2.68543288e-02f;
    p = p * z + 1.12835974e-01f;
    p = p * z - 3.76126260e-01f;
    p = p * z + 1.12837911e+00f;
    return p * x;
  }
  if (size >= 4.0f) return x < 0.0f ? -1.0f : 1.0f;
  float t = 1.0f / size;
  float p = -7.10661896e-03f;
  p = p * t + 1.68430135e-02f;
  p = p * t + 4.87054139e-02f;
  p = p * t - 2.71460921e-01f;
  p = p * t + 5.18174708e-01f;
  p = p * t - 4.81059134e-01f;
  p = p * t + 4.45175804e-02f;
  p = p * t + 5.58676898e-01f;
  p = p * t + 2.92626151e-04f;
  return metal::copysign(1.0f - p * metal::precise::exp(-z), x);
}

}  // namespace fx
