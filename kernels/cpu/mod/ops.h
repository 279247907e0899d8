// ops.h: the vocabulary of generated mods, one function of namespace fx per op of an expression. Every operand may be
// uniform (float, int32_t, bool) or one per lane (vfloat, vint, vbool); uniform operands give a uniform result, which
// the compiler moves out of the loop over keys. Semantics are Python's, on float32 and wrapping int32 (-fwrapv).
#pragma once
#include "arrays.h"
#include "functions.h"
#include "../tile/params.h"
#include "../tile/vector.h"

// The constants that generated text names, as <math.h> has them.
#ifndef INFINITY
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#endif

namespace fx {

template <class T>
constexpr bool uniform_type = __is_same(T, float) || __is_same(T, int32_t) || __is_same(T, bool);
template <class... T>
constexpr bool uniform = (uniform_type<T> && ...);

// -- conversions -------------------------------------------------------------------------------------------------

INLINE int32_t to_int(bool x) { return x; }
INLINE vint to_int(vbool x) { return -x.lanes; }
INLINE int32_t to_int(int32_t x) { return x; }
INLINE vint to_int(vint x) { return x; }
// Truncates; saturates beyond int32; nan gives 0.
INLINE int32_t to_int(float x) {
  if (x != x) return 0;
  return x >= 0x1p31f ? INT32_MAX : x < -0x1p31f ? INT32_MIN : (int32_t)x;
}
INLINE vint to_int(vfloat x) {
  vint inside = (x >= -0x1p31f) & (x < 0x1p31f);
  vint result = __builtin_convertvector(select(inside, x, splat(0.0f)), vint);
  return result | select(x >= 0x1p31f, splat(INT32_MAX), vint{}) | select(x < -0x1p31f, splat(INT32_MIN), vint{});
}
INLINE float to_float(float x) { return x; }
INLINE vfloat to_float(vfloat x) { return x; }
INLINE float to_float(int32_t x) { return (float)x; }
INLINE vfloat to_float(vint x) { return int_to_float(x); }
INLINE float to_float(bool x) { return x; }
INLINE vfloat to_float(vbool x) { return int_to_float(to_int(x)); }

// -- arithmetic, int or float ------------------------------------------------------------------------------------

template <class A, class B>
INLINE auto add(A a, B b) { return a + b; }
template <class A, class B>
INLINE auto sub(A a, B b) { return a - b; }
template <class A, class B>
INLINE auto mul(A a, B b) { return rounded(a * b); }
template <class A>
INLINE A neg(A a) { return -a; }

// One of two numbers, a lane at a time.
template <class C, class A, class B>
INLINE auto where(C condition, A a, B b) {
  if constexpr (uniform<C, A, B>) return condition ? a : b;
  else if constexpr (uniform<C>) return condition ? splat(a) : splat(b);
  else return select(condition.lanes, splat(a), splat(b));
}

// min and max of floats are nan where either is.
template <class A, class B>
INLINE auto min(A a, B b) {
  if constexpr (uniform<A, B>) return a != a ? a : a < b ? a : b;
  else if constexpr (__is_same(decltype(a + b), vint)) return select(splat(a) < splat(b), splat(a), splat(b));
  else return select(splat(a) != splat(a), splat(a), select(splat(a) < splat(b), splat(a), splat(b)));
}
template <class A, class B>
INLINE auto max(A a, B b) {
  if constexpr (uniform<A, B>) return a != a ? a : a > b ? a : b;
  else if constexpr (__is_same(decltype(a + b), vint)) return select(splat(a) > splat(b), splat(a), splat(b));
  else return select(splat(a) != splat(a), splat(a), select(splat(a) > splat(b), splat(a), splat(b)));
}

INLINE float abs(float a) { return __builtin_fabsf(a); }
INLINE int32_t abs(int32_t a) { return a < 0 ? -a : a; }
INLINE vfloat abs(vfloat a) { return bits_to_float(float_to_bits(a) & INT32_MAX); }
INLINE vint abs(vint a) { return select(a < 0, -a, a); }

template <class A, class B>
INLINE auto div(A a, B b) { return a / b; }

// -- floor division and modulo: Python's, the remainder has the divisor's sign; an int divided by 0 gives 0 ------

INLINE int32_t floor_div(int32_t a, int32_t b) {
  if (b == 0) return 0;
  if (b == -1) return -a;
  int32_t quotient = a / b;
  return quotient - (a % b != 0 && (a ^ b) < 0);
}
// The quotient estimated in float64 is at most one off; the remainder says which way.
INLINE vint correct_quotient(vint estimate, vint a, vint b) {
  vint remainder = a - estimate * b;
  vint opposite = (remainder != 0) & ((remainder ^ b) < 0);  // true is -1
  vint too_small = (opposite == 0) & ((b > 0) ? (remainder >= b) : (remainder <= b));
  return estimate + opposite - too_small;
}
INLINE vint floor_div(vint a, int32_t b) {
  if (__builtin_constant_p(b) && b > 0 && (b & (b - 1)) == 0) return a >> __builtin_ctz(b);
  if (b == 0) return vint{};
  if (b == -1) return -a;
  double inverse = 1.0 / b;
  vint estimate = per_double(a, [inverse](vdouble x) { return x * inverse; });
  return correct_quotient(estimate, a, splat(b));
}
INLINE vint floor_div(vint a, vint b) {
  vint divisor = select((b == 0) | (b == -1), splat(1), b);
  vint estimate = per_double(a, divisor, [](vdouble x, vdouble y) { return x / y; });
  vint quotient = correct_quotient(estimate, a, divisor);
  return select(b == 0, vint{}, select(b == -1, -a, quotient));
}
INLINE vint floor_div(int32_t a, vint b) { return floor_div(splat(a), b); }

INLINE int32_t mod(int32_t a, int32_t b) { return b == 0 ? 0 : a - floor_div(a, b) * b; }
INLINE vint mod(vint a, vint b) { return select(b == 0, vint{}, a - floor_div(a, b) * b); }
INLINE vint mod(int32_t a, vint b) { return mod(splat(a), b); }
INLINE vint mod(vint a, int32_t b) {
  if (__builtin_constant_p(b) && b > 0 && (b & (b - 1)) == 0) return a & (b - 1);
  if (b == 0) return vint{};
  return a - floor_div(a, b) * b;
}

// As CPython's float_divmod, in float32.
INLINE float mod(float a, float b) {
  float remainder = __builtin_fmodf(a, b);
  if (remainder == 0) return __builtin_copysignf(0.0f, b);
  return (b < 0) != (remainder < 0) ? remainder + b : remainder;
}
INLINE float floor_div(float a, float b) {
  if (b == 0) return a / b;
  float remainder = __builtin_fmodf(a, b);
  float quotient = (a - remainder) / b;
  if (remainder != 0 && (b < 0) != (remainder < 0)) quotient -= 1.0f;
  if (quotient == 0) return __builtin_copysignf(0.0f, a / b);
  float below = __builtin_floorf(quotient);
  return quotient - below > 0.5f ? below + 1.0f : below;
}
#define PER_LANE_2(name)                                                                            \
  INLINE vfloat name(vfloat a, vfloat b) {                                                          \
    return per_lane(a, b, [](float x, float y) { return name(x, y); });                             \
  }                                                                                                 \
  INLINE vfloat name(vfloat a, float b) { return name(a, splat(b)); }                               \
  INLINE vfloat name(float a, vfloat b) { return name(splat(a), b); }
PER_LANE_2(mod)
PER_LANE_2(floor_div)

INLINE float pow(float a, float b) { return __builtin_powf(a, b); }
INLINE float atan2(float a, float b) { return __builtin_atan2f(a, b); }
INLINE vfloat pow(vfloat a, vfloat b) {
  return per_lane(a, b, [](float x, float y) { return pow(x, y); });
}
INLINE vfloat pow(vfloat a, float b) { return b == 2 ? a * a : pow(a, splat(b)); }
INLINE vfloat pow(float a, vfloat b) { return pow(splat(a), b); }
PER_LANE_2(atan2)
#undef PER_LANE_2

// -- bits of ints: shifts are Python's at 32 bits; a negative count is taken as one that is too large ---------------

template <class A, class B>
INLINE auto shl(A a, B b) {
  if constexpr (uniform<A, B>) return (uint32_t)b < 32 ? a << (b & 31) : 0;
  else return (splat(a) << (splat(b) & 31)) & ((splat(b) & ~31) == 0);
}
template <class A, class B>
INLINE auto shr(A a, B b) {
  if constexpr (uniform<A, B>) return a >> ((uint32_t)b < 32 ? b : 31);
  else return splat(a) >> ((splat(b) | ((splat(b) & ~31) != 0)) & 31);
}
template <class A, class B>
INLINE auto bit_and(A a, B b) { return a & b; }
template <class A, class B>
INLINE auto bit_or(A a, B b) { return a | b; }
template <class A, class B>
INLINE auto bit_xor(A a, B b) { return a ^ b; }
template <class A>
INLINE A bit_not(A a) { return ~a; }

// -- comparisons and logic: bool ---------------------------------------------------------------------------------

// What a comparison compares: bools count as 0 and 1.
INLINE float comparable(float x) { return x; }
INLINE vfloat comparable(vfloat x) { return x; }
INLINE int32_t comparable(int32_t x) { return x; }
INLINE vint comparable(vint x) { return x; }
INLINE int32_t comparable(bool x) { return x; }
INLINE vint comparable(vbool x) { return to_int(x); }

#define COMPARISON(name, operation)                                                                 \
  template <class A, class B>                                                                       \
  INLINE auto name(A a, B b) {                                                                      \
    if constexpr (uniform<A, B>) return comparable(a) operation comparable(b);                      \
    else return vbool{splat(comparable(a)) operation splat(comparable(b))};                         \
  }
COMPARISON(lt, <)
COMPARISON(le, <=)
COMPARISON(gt, >)
COMPARISON(ge, >=)
COMPARISON(eq, ==)
COMPARISON(ne, !=)
#undef COMPARISON

#define LOGIC(name, operation)                                                                      \
  template <class A, class B>                                                                       \
  INLINE auto name(A a, B b) {                                                                      \
    if constexpr (uniform<A, B>) return (bool)(a operation b);                                      \
    else return vbool{splat(a).lanes operation splat(b).lanes};                                     \
  }
LOGIC(and_, &)
LOGIC(or_, |)
LOGIC(xor_, ^)
#undef LOGIC
INLINE bool not_(bool a) { return !a; }
INLINE vbool not_(vbool a) { return {~a.lanes}; }

}  // namespace fx
