// ops.h: what generated mods call. Semantics are Python's on float32 and int32; an int divided by 0 gives 0, and an
// array index is Python's (a negative one counts from the end, once) and then clamped.
//
// APPROXIMATE, where q is of 16 bits: exp, tanh, sigmoid and quotients by the special function units. Their errors are
// far below those of q: tests/kernels/cuda/test_cuda_functions.py has them.
#pragma once
#include "../tile/types.h"

// The shape of a captured array, which lies row after row.
template <int NDIM>
struct Shape {
  int sizes[NDIM];
  INLINE int operator[](int axis) const { return sizes[axis]; }
  INLINE Shape<NDIM - 1> operator+(int) const {
    Shape<NDIM - 1> rest;
    UNROLL
    for (int axis = 1; axis < NDIM; axis++) rest.sizes[axis - 1] = sizes[axis];
    return rest;
  }
};
template <>
struct Shape<0> {
  int sizes[1];
};

// Its strides: strides[0] is that of its first axis.
template <int NDIM>
struct RowMajor {
  Shape<NDIM> shape;
  INLINE int64_t operator[](int) const {
    int64_t stride = 1;
    UNROLL
    for (int axis = 1; axis < NDIM; axis++) stride *= shape[axis];
    return stride;
  }
  INLINE RowMajor<NDIM - 1> operator+(int) const {
    RowMajor<NDIM - 1> rest;
    rest.shape = shape + 1;
    return rest;
  }
};
template <>
struct RowMajor<0> {
  Shape<0> shape;
};

namespace fx {

// -- captured arrays ---------------------------------------------------------------------------------------------

INLINE int inside(int index, int size) { return smaller(larger(index < 0 ? index + size : index, 0), size - 1); }

// The place of array[index, ...] in memory, in elements.
template <typename Of, typename Strides>
INLINE int64_t offset(Of shape, Strides strides, int index) {
  return inside(index, shape[0]) * strides[0];
}
template <typename Of, typename Strides, typename... Rest>
INLINE int64_t offset(Of shape, Strides strides, int index, Rest... rest) {
  return inside(index, shape[0]) * strides[0] + offset(shape + 1, strides + 1, rest...);
}

// -- integers ----------------------------------------------------------------------------------------------------

// int wraps: its own + - * << would leave an overflow undefined.
INLINE int add(int a, int b) { return int(uint(a) + uint(b)); }
INLINE int sub(int a, int b) { return int(uint(a) - uint(b)); }
INLINE int mul(int a, int b) { return int(uint(a) * uint(b)); }
INLINE int neg(int a) { return int(0u - uint(a)); }
INLINE int abs(int a) { return a < 0 ? neg(a) : a; }
INLINE int min(int a, int b) { return a < b ? a : b; }
INLINE int max(int a, int b) { return a > b ? a : b; }
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
INLINE int to_int(float x) { return x != x ? 0 : __float2int_rz(x); }  // truncates, saturates beyond int32

// -- floats ------------------------------------------------------------------------------------------------------

// nan where either is.
INLINE float min(float a, float b) { return a != a ? a : a < b ? a : b; }
INLINE float max(float a, float b) { return a != a ? a : a > b ? a : b; }
INLINE float abs(float a) { return fabsf(a); }

// CPython's float_divmod, in float32.
INLINE float mod(float a, float b) {
  float remainder = fmodf(a, b);
  if (remainder == 0.0f) return copysignf(0.0f, b);
  return (b < 0.0f) != (remainder < 0.0f) ? remainder + b : remainder;
}
INLINE float floor_div(float a, float b) {
  if (b == 0.0f) return __fdiv_rn(a, b);
  float remainder = fmodf(a, b);
  float quotient = __fdiv_rn(a - remainder, b);
  if (remainder != 0.0f && (b < 0.0f) != (remainder < 0.0f)) quotient -= 1.0f;
  if (quotient == 0.0f) return copysignf(0.0f, __fdiv_rn(a, b));
  float below = floorf(quotient);
  return quotient - below > 0.5f ? below + 1.0f : below;
}

// Quotients, and what is made of exp. Precise ones are those of CUDA's library, of 2 units in the last place at most.
template <bool APPROXIMATE>
struct Special {
  static INLINE float div(float a, float b) { return __fdiv_rn(a, b); }
  static INLINE float exp(float x) { return expf(x); }
  static INLINE float exp2(float x) { return exp2f(x); }
  static INLINE float tanh(float x) { return tanhf(x); }
  static INLINE float sigmoid(float x) { return __fdiv_rn(1.0f, 1.0f + expf(-x)); }
};
template <>
struct Special<true> {
  static INLINE float div(float a, float b) { return ptx::div_full(a, b); }
  static INLINE float exp2(float x) { return ptx::ex2_approx(x); }
  static INLINE float exp(float x) { return exp2(x * 1.44269504f); }
  static INLINE float tanh(float x) { return ptx::tanh_approx(x); }
  static INLINE float sigmoid(float x) { return 0.5f * tanh(0.5f * x) + 0.5f; }
};

}  // namespace fx
