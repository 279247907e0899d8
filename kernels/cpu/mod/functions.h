// functions.h: the mathematical functions of ops.h. Those that attention uses most are polynomials over a register,
// within a few ulp of float32 and right at 0, inf and nan; the others call the C library a lane at a time. The
// polynomials are minimax fits made for this file.
#pragma once
#include "../tile/vector.h"

typedef double vdouble __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t half_vint __attribute__((vector_size(VECTOR_BYTES / 2)));

constexpr float LOG2_E = 0x1.715476p+0f;

// The softmax's e^x: right for x <= 0, 0 below -87 (of which no subnormal weight is left), nan for nan; within 2 ulp and
// what rounding LOG2_E costs, 1e-6 of the result.
INLINE vfloat exp_nonpositive(vfloat x) {
  constexpr float ROUND = 0x1.8p23f;  // adding it rounds to an integer and leaves that integer in the low bits
  vfloat shifted = x * LOG2_E + ROUND;
  vfloat f = x * LOG2_E - (shifted - ROUND);  // -0.5 .. 0.5
  vfloat p = 0x1.5bba14p-10f * f + 0x1.3cea88p-7f;
  p = p * f + 0x1.c6b752p-5f;
  p = p * f + 0x1.ebf9bcp-3f;
  p = p * f + 0x1.62e42ap-1f;
  p = p * f + 1.0f;
  return select(x < -87.0f, vfloat{}, bits_to_float(float_to_bits(p) + (float_to_bits(shifted) << 23)));
}

namespace fx {

template <class F>
INLINE vfloat per_lane(vfloat x, F f) {
  float lanes[VL];
  store_vector(lanes, x);
  for (int i = 0; i < VL; i++) lanes[i] = f(lanes[i]);
  return load_vector<vfloat>(lanes);
}
template <class F>
INLINE vfloat per_lane(vfloat x, vfloat y, F f) {
  float lanes[VL], others[VL];
  store_vector(lanes, x);
  store_vector(others, y);
  for (int i = 0; i < VL; i++) lanes[i] = f(lanes[i], others[i]);
  return load_vector<vfloat>(lanes);
}

// f of ints in float64, in two halves, truncated back to int.
struct int_halves {
  half_vint half[2];
};
template <class F>
INLINE vint per_double(vint x, F f) {
  int_halves a, result;
  __builtin_memcpy(&a, &x, sizeof x);
  for (int i = 0; i < 2; i++)
    result.half[i] = __builtin_convertvector(f(__builtin_convertvector(a.half[i], vdouble)), half_vint);
  return load_vector<vint>(&result);
}
template <class F>
INLINE vint per_double(vint x, vint y, F f) {
  int_halves a, b, result;
  __builtin_memcpy(&a, &x, sizeof x);
  __builtin_memcpy(&b, &y, sizeof y);
  for (int i = 0; i < 2; i++)
    result.half[i] = __builtin_convertvector(
        f(__builtin_convertvector(a.half[i], vdouble), __builtin_convertvector(b.half[i], vdouble)), half_vint);
  return load_vector<vint>(&result);
}

// -- rounding to an integer: floats from 2^23 up are integers already; the sign of a zero is kept ----------------

INLINE vint sign_bit(vfloat x) { return float_to_bits(x) & INT32_MIN; }
INLINE vfloat magnitude(vfloat x) { return bits_to_float(float_to_bits(x) & INT32_MAX); }
INLINE vfloat with_sign(vfloat x, vfloat sign) { return bits_to_float(float_to_bits(x) | sign_bit(sign)); }

INLINE vfloat trunc(vfloat x) {
  vint small = magnitude(x) < 0x1p23f;
  vfloat whole = int_to_float(__builtin_convertvector(select(small, x, vfloat{}), vint));
  return select(small, with_sign(whole, x), x);
}
INLINE vfloat floor(vfloat x) {
  vfloat whole = trunc(x);
  return select(whole > x, whole - 1.0f, whole);
}
INLINE vfloat ceil(vfloat x) {
  vfloat whole = trunc(x);
  return select(whole < x, with_sign(whole + 1.0f, x), whole);
}
INLINE vfloat round(vfloat x) {  // half to even
  vfloat size = magnitude(x);
  return select(size < 0x1p23f, with_sign((size + 0x1p23f) - 0x1p23f, x), x);
}

// The product by itself, not fused with a following addition: a mod computes in float32, step by step, as written.
// (clang fuses within one expression only, see vector.h.)
template <class A>
INLINE A rounded(A product) {
#if defined(REGISTER_CLASS) && !defined(__clang__)
  if constexpr (!__is_same(A, int32_t) && !__is_same(A, vint)) asm("" : "+" REGISTER_CLASS(product));
#endif
  return product;
}

// -- exponentials ------------------------------------------------------------------------------------------------

// x * 2^n for |n| <= 252, in two steps so that neither factor overflows. The result may: it is rounded by itself.
INLINE vfloat scale_by_power(vfloat x, vint n) {
  vint half = n >> 1;
  return rounded(x * bits_to_float((half + 127) << 23) * bits_to_float((n - half + 127) << 23));
}
INLINE vfloat clamp(vfloat x, float low, float high) {  // nan stays
  x = select(x < low, splat(low), x);
  return select(x > high, splat(high), x);
}

INLINE vfloat exp2(vfloat x) {
  x = clamp(x, -160.0f, 130.0f);
  vfloat n = round(x), f = x - n;
  vfloat p = 0x1.41fbbcp-13f * f + 0x1.5f3e52p-10f;
  p = p * f + 0x1.3b2d4cp-7f;
  p = p * f + 0x1.c6aee8p-5f;
  p = p * f + 0x1.ebfbdcp-3f;
  p = p * f + 0x1.62e430p-1f;
  p = p * f + 1.0f;
  return scale_by_power(p, __builtin_convertvector(select(n == n, n, vfloat{}), vint));
}

// x = n ln 2 + r
struct exponent {
  vint n;
  vfloat r;
};
INLINE exponent split_exponent(vfloat x) {
  vfloat n = round(x * 0x1.715476p+0f);
  vfloat r = x - n * 0x1.62e4p-1f;  // the first factor has 15 bits: the product is exact
  r = r - n * 0x1.7f7d1cp-20f;
  return {__builtin_convertvector(select(n == n, n, vfloat{}), vint), r};
}
// e^r - 1 for |r| <= ln 2 / 2
INLINE vfloat expm1_polynomial(vfloat r) {
  vfloat p = 0x1.a0332ep-13f * r + 0x1.6d78d8p-10f;
  p = p * r + 0x1.11118ep-7f;
  p = p * r + 0x1.5554aap-5f;
  p = p * r + 0x1.555554p-3f;
  p = p * r + 0.5f;
  return p * (r * r) + r;
}
INLINE vfloat exp(vfloat x) {
  exponent e = split_exponent(clamp(x, -110.0f, 90.0f));
  return scale_by_power(expm1_polynomial(e.r) + 1.0f, e.n);
}
INLINE vfloat expm1(vfloat x) {
  exponent e = split_exponent(clamp(x, -20.0f, 89.0f));
  vfloat power = bits_to_float((e.n + 126) << 23);  // 2^(n-1): 2^n would overflow before the result does
  vfloat result = rounded((power * expm1_polynomial(e.r) + (power - 0.5f)) * 2.0f);
  return select(e.n == 0, expm1_polynomial(e.r), result);
}
INLINE vfloat sigmoid(vfloat x) { return 1.0f / (1.0f + exp(-x)); }

// x P(x^2) / Q(x^2) for |x| <= 9.02, where tanh rounds to 1.
INLINE vfloat tanh(vfloat x) {
  x = clamp(x, -9.02f, 9.02f);
  vfloat z = x * x;
  vfloat p = 0x1.c9a35ep-27f * z + 0x1.59553ap-16f;
  p = p * z + 0x1.c9f846p-9f;
  p = p * z + 0x1.12043ep-3f;
  p = p * z + 1.0f;
  vfloat q = 0x1.a0b81cp-21f * z + 0x1.5841c2p-12f;
  q = q * z + 0x1.a7df1cp-6f;
  q = q * z + 0x1.de5768p-2f;
  q = q * z + 1.0f;
  return x * p / q;
}

// -- logarithms --------------------------------------------------------------------------------------------------

// x = 2^n (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), and log(1 + f) in two parts: f - correction.
struct logarithm {
  vfloat n, f, correction;
};
INLINE logarithm split_logarithm(vfloat x) {
  vint subnormal = x < 0x1p-126f;
  vint bits = float_to_bits(select(subnormal, x * 0x1p23f, x)) - 0x3f3504f3;  // sqrt(1/2)
  vfloat n = int_to_float((bits >> 23) - select(subnormal, splat(23), vint{}));
  vfloat f = bits_to_float((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
  vfloat s = f / (f + 2.0f), z = s * s, half_square = 0.5f * f * f;
  vfloat r = 0x1.e31420p-3f * z + 0x1.24381ap-2f;
  r = r * z + 0x1.999a7ep-2f;
  r = r * z + 0x1.555554p-1f;
  return {n, f, half_square - s * (half_square + r * z)};
}
INLINE vfloat logarithm_of_special(vfloat x, vfloat result) {  // 0, below, inf, nan
  result = select(x == 0.0f, splat(-INFINITE), result);
  result = select(x < 0.0f, splat(__builtin_nanf("")), result);
  return select(x < INFINITE, result, x);
}
INLINE vfloat log(vfloat x) {
  logarithm l = split_logarithm(x);
  vfloat small = l.n * 0x1.7f7d1cp-20f - l.correction;
  return logarithm_of_special(x, l.n * 0x1.62e4p-1f + (l.f + small));
}
INLINE vfloat log2(vfloat x) {
  logarithm l = split_logarithm(x);
  return logarithm_of_special(x, l.n + (l.f - l.correction) * 0x1.715476p+0f);
}

// log(1 + x), corrected by what 1 + x rounds off.
INLINE vfloat log1p(vfloat x) {
  vfloat u = x + 1.0f;
  vfloat correction = (x - (u - 1.0f)) / u;
  return log(u) + select((u > 0.0f) & (u < INFINITE), correction, vfloat{});
}

// -- sine and cosine ---------------------------------------------------------------------------------------------

// sin(x + quarters * pi / 2). The parts of pi / 2 have 11 bits each, so that their products with n are exact up to the
// bound; beyond it the C library reduces the argument.
template <class F>
INLINE vfloat sine(vfloat x, int32_t quarters, F library) {
  vint inside = magnitude(x) < 0x1p13f;
  if (__builtin_expect(any_lane(~inside), false)) return per_lane(x, library);
  vfloat n = round(x * 0x1.45f306p-1f);
  vfloat r = ((x - n * 0x1.92p+0f) - n * 0x1.fb4p-12f) - n * 0x1.444p-24f - n * 0x1.68c234p-39f, z = r * r;
  vfloat s = (-0x1.993ce2p-13f * z + 0x1.110726p-7f) * z - 0x1.555544p-3f;
  vfloat c = (0x1.99e538p-16f * z - 0x1.6c0c1ep-10f) * z + 0x1.55554ap-5f;
  vint quadrant = __builtin_convertvector(n, vint) + quarters;
  vfloat result = select((quadrant & 1) != 0, c * (z * z) + (1.0f - 0.5f * z), s * (r * z) + r);
  return bits_to_float(float_to_bits(result) ^ ((quadrant & 2) << 30));
}
INLINE vfloat sin(vfloat x) {
  return sine(x, 0, [](float lane) { return __builtin_sinf(lane); });
}
INLINE vfloat cos(vfloat x) {
  return sine(x, 1, [](float lane) { return __builtin_cosf(lane); });
}

// -- the C library's, one number or a lane at a time -------------------------------------------------------------

#define UNIFORM(name) \
  INLINE float name(float x) { return __builtin_##name##f(x); }
#define PER_LANE(name) \
  UNIFORM(name)        \
  INLINE vfloat name(vfloat x) { return per_lane(x, [](float lane) { return __builtin_##name##f(lane); }); }
UNIFORM(exp)
UNIFORM(exp2)
UNIFORM(expm1)
UNIFORM(log)
UNIFORM(log2)
UNIFORM(log1p)
UNIFORM(sin)
UNIFORM(cos)
UNIFORM(tanh)
UNIFORM(floor)
UNIFORM(ceil)
UNIFORM(trunc)
PER_LANE(sqrt)
PER_LANE(log10)
PER_LANE(tan)
PER_LANE(asin)
PER_LANE(acos)
PER_LANE(atan)
PER_LANE(sinh)
PER_LANE(cosh)
PER_LANE(asinh)
PER_LANE(acosh)
PER_LANE(atanh)
PER_LANE(erf)
#undef PER_LANE
#undef UNIFORM
INLINE float round(float x) { return __builtin_nearbyintf(x); }
INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }
INLINE float rsqrt(float x) { return 1.0f / sqrt(x); }
INLINE vfloat rsqrt(vfloat x) { return 1.0f / sqrt(x); }

}  // namespace fx
