// Stand-in for Metal's mathematics: float through the C library, half and bfloat through float, vectors by elements.
#pragma once

#include "metal_operators.h"

namespace metal {

#define SIM_MAP1(name)                                                                          \
  template <::flextrace_sim::vector_like A>                                                     \
  SIM_INLINE auto name(const A& a) {                                                            \
    return ::flextrace_sim::map([](auto x) { return name(x); }, a);                             \
  }
#define SIM_MAP2(name)                                                                          \
  template <class A, class B>                                                                   \
    requires ::flextrace_sim::some_vector<A, B>                                                 \
  SIM_INLINE auto name(const A& a, const B& b) {                                                \
    return ::flextrace_sim::map([](auto x, auto y) { return name(x, y); }, a, b);               \
  }
#define SIM_MAP3(name)                                                                          \
  template <class A, class B, class C>                                                          \
    requires ::flextrace_sim::some_vector<A, B, C>                                              \
  SIM_INLINE auto name(const A& a, const B& b, const C& c) {                                    \
    return ::flextrace_sim::map([](auto x, auto y, auto z) { return name(x, y, z); }, a, b, c); \
  }
#define SIM_MATH1(name, formula)                                                  \
  SIM_INLINE float name(float x) { return formula; }                              \
  SIM_INLINE half name(half x) { return half(name(float(x))); }                   \
  SIM_INLINE bfloat name(bfloat x) { return bfloat(name(float(x))); }             \
  SIM_MAP1(name)
#define SIM_MATH2(name, formula)                                                  \
  SIM_INLINE float name(float x, float y) { return formula; }                     \
  SIM_INLINE half name(half x, half y) { return half(name(float(x), float(y))); } \
  SIM_INLINE bfloat name(bfloat x, bfloat y) { return bfloat(name(float(x), float(y))); } \
  SIM_MAP2(name)
#define SIM_MATH3(name, formula)                                                  \
  SIM_INLINE float name(float x, float y, float z) { return formula; }            \
  SIM_INLINE half name(half x, half y, half z) { return half(name(float(x), float(y), float(z))); } \
  SIM_INLINE bfloat name(bfloat x, bfloat y, bfloat z) { return bfloat(name(float(x), float(y), float(z))); } \
  SIM_MAP3(name)

SIM_MATH1(acos, __builtin_acosf(x))
SIM_MATH1(acosh, __builtin_acoshf(x))
SIM_MATH1(asin, __builtin_asinf(x))
SIM_MATH1(asinh, __builtin_asinhf(x))
SIM_MATH1(atan, __builtin_atanf(x))
SIM_MATH1(atanh, __builtin_atanhf(x))
SIM_MATH1(ceil, __builtin_ceilf(x))
SIM_MATH1(cos, __builtin_cosf(x))
SIM_MATH1(cosh, __builtin_coshf(x))
SIM_MATH1(cospi, __builtin_cosf(M_PI_F* x))
SIM_MATH1(exp, __builtin_expf(x))
SIM_MATH1(exp10, __builtin_powf(10.0f, x))
SIM_MATH1(exp2, __builtin_exp2f(x))
SIM_MATH1(fabs, __builtin_fabsf(x))
SIM_MATH1(floor, __builtin_floorf(x))
SIM_MATH1(fract, __builtin_fminf(x - __builtin_floorf(x), 0.99999994f))
SIM_MATH1(log, __builtin_logf(x))
SIM_MATH1(log10, __builtin_log10f(x))
SIM_MATH1(log2, __builtin_log2f(x))
SIM_MATH1(rint, __builtin_rintf(x))
SIM_MATH1(round, __builtin_roundf(x))
SIM_MATH1(rsqrt, 1.0f / __builtin_sqrtf(x))
SIM_MATH1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
SIM_MATH1(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f * (x == x))
SIM_MATH1(sin, __builtin_sinf(x))
SIM_MATH1(sinh, __builtin_sinhf(x))
SIM_MATH1(sinpi, __builtin_sinf(M_PI_F* x))
SIM_MATH1(sqrt, __builtin_sqrtf(x))
SIM_MATH1(tan, __builtin_tanf(x))
SIM_MATH1(tanh, __builtin_tanhf(x))
SIM_MATH1(trunc, __builtin_truncf(x))
SIM_MATH2(atan2, __builtin_atan2f(x, y))
SIM_MATH2(copysign, __builtin_copysignf(x, y))
SIM_MATH2(divide, x / y)
SIM_MATH2(fdim, __builtin_fdimf(x, y))
SIM_MATH2(fmax, __builtin_fmaxf(x, y))
SIM_MATH2(fmin, __builtin_fminf(x, y))
SIM_MATH2(fmod, __builtin_fmodf(x, y))
SIM_MATH2(pow, __builtin_powf(x, y))
SIM_MATH2(powr, __builtin_powf(x, y))
SIM_MATH2(step, y < x ? 0.0f : 1.0f)
SIM_MATH3(fma, __builtin_fmaf(x, y, z))
SIM_MATH3(mix, x + (y - x) * z)
SIM_MATH1(abs, __builtin_fabsf(x))
SIM_MATH2(max, __builtin_fmaxf(x, y))
SIM_MATH2(min, __builtin_fminf(x, y))
SIM_MATH3(clamp, __builtin_fminf(__builtin_fmaxf(x, y), z))

template <class T>
concept sim_integer = std::is_integral_v<T>;
template <sim_integer T>
SIM_INLINE T abs(T x) { return x < T(0) ? T(-x) : x; }
template <sim_integer T>
SIM_INLINE constexpr T max(T x, T y) { return x < y ? y : x; }
template <sim_integer T>
SIM_INLINE constexpr T min(T x, T y) { return y < x ? y : x; }
template <sim_integer T>
SIM_INLINE constexpr T clamp(T x, T low, T high) { return x < low ? low : high < x ? high : x; }
template <sim_integer T>
SIM_INLINE T popcount(T x) { return T(__builtin_popcountll(std::make_unsigned_t<T>(x))); }
template <sim_integer T>
SIM_INLINE T clz(T x) {
  return T(x == 0 ? int(sizeof(T)) * 8
                  : __builtin_clzll(std::make_unsigned_t<T>(x)) - (64 - int(sizeof(T)) * 8));
}
template <sim_integer T>
SIM_INLINE T ctz(T x) { return T(x == 0 ? int(sizeof(T)) * 8 : __builtin_ctzll(std::make_unsigned_t<T>(x))); }
SIM_INLINE uint mulhi(uint x, uint y) { return uint(ulong(x) * y >> 32); }
SIM_INLINE int mulhi(int x, int y) { return int(long(x) * y >> 32); }
template <class T>
SIM_INLINE T max3(T x, T y, T z) { return max(max(x, y), z); }
template <class T>
SIM_INLINE T min3(T x, T y, T z) { return min(min(x, y), z); }

template <class T>
concept sim_floating = is_floating_point_v<T>;
template <sim_floating T>
SIM_INLINE bool isnan(T x) { return __builtin_isnan(float(x)); }
template <sim_floating T>
SIM_INLINE bool isinf(T x) { return __builtin_isinf(float(x)) != 0; }
template <sim_floating T>
SIM_INLINE bool isfinite(T x) { return __builtin_isfinite(float(x)); }
template <sim_floating T>
SIM_INLINE bool signbit(T x) { return __builtin_signbit(float(x)) != 0; }
template <sim_floating T>
SIM_INLINE T ldexp(T x, int exponent) { return T(__builtin_ldexpf(float(x), exponent)); }
SIM_MAP1(isnan)
SIM_MAP1(isinf)
SIM_MAP1(isfinite)
SIM_MAP1(signbit)
SIM_MAP1(popcount)

// c ? b : a, element by element.
template <::flextrace_sim::scalar T>
SIM_INLINE T select(T a, T b, bool c) { return c ? b : a; }
template <class T, int N>
SIM_INLINE vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> c) {
  for (int i = 0; i < N; i++) {
    a.data[i] = c.data[i] ? b.data[i] : a.data[i];
  }
  return a;
}

template <::flextrace_sim::vector_like A, ::flextrace_sim::vector_like B>
SIM_INLINE auto dot(const A& a, const B& b) {
  auto total = a[0] * b[0];
  for (int i = 1; i < ::flextrace_sim::shape<A>::count; i++) {
    total = total + a[i] * b[i];
  }
  return total;
}
template <::flextrace_sim::vector_like A>
SIM_INLINE auto length_squared(const A& a) { return dot(a, a); }
template <::flextrace_sim::vector_like A>
SIM_INLINE auto length(const A& a) { return sqrt(dot(a, a)); }
template <::flextrace_sim::vector_like A>
SIM_INLINE auto normalize(const A& a) { return a * rsqrt(dot(a, a)); }
template <class T>
SIM_INLINE vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {
  return vec<T, 3>(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}

// `precise` is the host's; so is `fast`, but for functions that have an error of their own.
#define SIM_USING(name) using ::metal::name;
#define SIM_PRECISIONS                                                                                    \
  SIM_USING(acos) SIM_USING(acosh) SIM_USING(asin) SIM_USING(asinh) SIM_USING(atan) SIM_USING(atan2)       \
  SIM_USING(atanh) SIM_USING(ceil) SIM_USING(copysign) SIM_USING(cos) SIM_USING(cosh) SIM_USING(cospi)     \
  SIM_USING(exp10) SIM_USING(exp2) SIM_USING(fabs) SIM_USING(fdim)                                         \
  SIM_USING(floor) SIM_USING(fma) SIM_USING(fmax) SIM_USING(fmin) SIM_USING(fmod) SIM_USING(fract)         \
  SIM_USING(ldexp) SIM_USING(pow) SIM_USING(powr)                                                          \
  SIM_USING(rint) SIM_USING(round) SIM_USING(sin) SIM_USING(sinh) SIM_USING(sinpi)                         \
  SIM_USING(tan) SIM_USING(trunc) SIM_USING(abs) SIM_USING(max)                                            \
  SIM_USING(min) SIM_USING(clamp) SIM_USING(saturate) SIM_USING(sign) SIM_USING(isnan) SIM_USING(isinf)    \
  SIM_USING(isfinite)
#define SIM_INEXACT                                                                                       \
  SIM_USING(divide) SIM_USING(exp) SIM_USING(log) SIM_USING(log10) SIM_USING(log2) SIM_USING(rsqrt)        \
  SIM_USING(sqrt) SIM_USING(tanh)
namespace fast {
SIM_PRECISIONS

// As wrong as the Metal Shading Language Specification lets fast functions be, upwards or downwards by the last bit of
// the argument; what is infinite, of which it promises nothing, is nan. (exp2, which the kernels' own softmax calls, is
// the host's.)
SIM_INLINE float off_by(float exact, float x, float ulps) {
  if (exact == 0.0f) return exact;  // the error of 0 is none, of however many ulps
  if (!__builtin_isfinite(exact)) return __builtin_nanf("");
  const float relative = ulps * 0x1p-24f;
  return exact * (1.0f + (__builtin_bit_cast(uint, x) & 1u ? relative : -relative));
}
SIM_INLINE float off_log(float exact, float x) {
  if (!(x >= 0.5f && x <= 2.0f)) return off_by(exact, x, 3.0f);
  return exact + (__builtin_bit_cast(uint, x) & 1u ? 0x1p-21f : -0x1p-21f);
}
SIM_MATH1(exp, off_by(__builtin_expf(x), x, 3.0f + __builtin_floorf(2.0f * __builtin_fabsf(x))))
SIM_MATH1(log, off_log(__builtin_logf(x), x))
SIM_MATH1(log10, off_log(__builtin_log10f(x), x))
SIM_MATH1(log2, off_log(__builtin_log2f(x), x))
SIM_MATH1(rsqrt, off_by(1.0f / __builtin_sqrtf(x), x, 2.0f))
SIM_MATH1(sqrt, x == 0.0f ? x : x * rsqrt(x))
SIM_MATH2(divide, off_by(x / y, x + y, 2.5f))
SIM_MATH1(tanh, divide(exp(2.0f * x) - 1.0f, exp(2.0f * x) + 1.0f))
}  // namespace fast
namespace precise {
SIM_PRECISIONS
SIM_INEXACT
}

}  // namespace metal
