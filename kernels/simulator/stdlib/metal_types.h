// Stand-in for Metal's scalar types, type traits and limits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../runtime/interface.h"

#define SIM_INLINE __attribute__((always_inline)) inline
#define METAL_FUNC inline

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
using std::ptrdiff_t;
using std::size_t;

// bfloat converts to float by itself, and from anything only when asked, as in Metal.
struct bfloat {
  uint16_t bits;

  bfloat() = default;
  // Without it, an element of memory that is an argument of a call is copied by no access that a hook sees.
  SIM_INLINE constexpr bfloat(const bfloat& other) : bits(other.bits) {}
  SIM_INLINE constexpr bfloat& operator=(const bfloat& other) {
    bits = other.bits;
    return *this;
  }
  template <class U>
    requires(std::is_arithmetic_v<U> || std::is_same_v<U, half>)
  SIM_INLINE constexpr explicit bfloat(U value) : bits(rounded(static_cast<float>(value))) {}
  SIM_INLINE constexpr operator float() const { return __builtin_bit_cast(float, uint32_t(bits) << 16); }

  static constexpr uint16_t rounded(float value) {
    uint32_t wide = __builtin_bit_cast(uint32_t, value);
    if ((wide & 0x7FFFFFFFu) > 0x7F800000u) {
      return uint16_t(0x7FC0);
    }
    return uint16_t((wide + 0x7FFFu + (wide >> 16 & 1u)) >> 16);  // to nearest, ties to even
  }
  static constexpr bfloat of_bits(uint16_t bits) {
    bfloat made{};
    made.bits = bits;
    return made;
  }
};

#define SIM_BFLOAT_OPERATOR(op)                                                                             \
  SIM_INLINE constexpr bfloat operator op(bfloat a, bfloat b) { return bfloat(float(a) op float(b)); }      \
  template <class U>                                                                                        \
    requires(std::is_arithmetic_v<U> || std::is_same_v<U, bfloat>)                                          \
  SIM_INLINE constexpr bfloat& operator op##=(bfloat& a, U b) { return a = bfloat(float(a) op float(b)); }
SIM_BFLOAT_OPERATOR(+)
SIM_BFLOAT_OPERATOR(-)
SIM_BFLOAT_OPERATOR(*)
SIM_BFLOAT_OPERATOR(/)
#undef SIM_BFLOAT_OPERATOR
SIM_INLINE constexpr bfloat operator-(bfloat a) { return bfloat::of_bits(uint16_t(a.bits ^ 0x8000u)); }

constexpr half operator""h(long double value) { return half(value); }
constexpr half operator""H(long double value) { return half(value); }
constexpr bfloat operator""bf(long double value) { return bfloat(float(value)); }

constexpr float M_E_F = 2.71828182845904523536f, M_LOG2E_F = 1.44269504088896340736f;
constexpr float M_LOG10E_F = 0.43429448190325182765f, M_LN2_F = 0.69314718055994530942f;
constexpr float M_LN10_F = 2.30258509299404568402f, M_PI_F = 3.14159265358979323846f;
constexpr float M_PI_2_F = M_PI_F / 2, M_PI_4_F = M_PI_F / 4, M_1_PI_F = 1 / M_PI_F, M_2_PI_F = 2 / M_PI_F;
constexpr float M_SQRT2_F = 1.41421356237309504880f, M_SQRT1_2_F = 0.70710678118654752440f;
constexpr float M_2_SQRTPI_F = 1.12837916709551257390f, MAXFLOAT = 3.402823466e38f;
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define FLT_MAX 3.402823466e38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u

namespace metal {

using ::bfloat;
using ::half;
using std::add_const_t;
using std::bool_constant;
using std::conditional;
using std::conditional_t;
using std::decay_t;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_convertible;
using std::is_convertible_v;
using std::is_integral;
using std::is_integral_v;
using std::is_same;
using std::is_same_v;
using std::is_signed;
using std::is_signed_v;
using std::is_unsigned;
using std::is_unsigned_v;
using std::make_signed_t;
using std::make_unsigned_t;
using std::remove_const_t;
using std::remove_cv;
using std::remove_cv_t;
using std::remove_reference_t;
using std::true_type;

template <class T>
struct is_floating_point : std::bool_constant<std::is_same_v<T, float> || std::is_same_v<T, half> ||
                                              std::is_same_v<T, bfloat>> {};
template <class T>
constexpr bool is_floating_point_v = is_floating_point<T>::value;
template <class T>
struct is_arithmetic : std::bool_constant<is_floating_point_v<T> || std::is_integral_v<T>> {};
template <class T>
constexpr bool is_arithmetic_v = is_arithmetic<T>::value;
template <class T>
using remove_addrspace_t = std::remove_cv_t<T>;
template <class... Ts>
using _disjunction = std::disjunction<Ts...>;

template <class T>
struct numeric_limits : std::numeric_limits<T> {};
template <>
struct numeric_limits<half> {
  static constexpr bool is_specialized = true, is_signed = true, has_infinity = true;
  static constexpr int digits = 11;
  static constexpr half max() { return half(65504.0f); }
  static constexpr half lowest() { return half(-65504.0f); }
  static constexpr half min() { return half(6.103515625e-05f); }
  static constexpr half epsilon() { return half(0.0009765625f); }
  static constexpr half infinity() { return half(__builtin_inff()); }
  static constexpr half quiet_NaN() { return half(__builtin_nanf("")); }
};
template <>
struct numeric_limits<bfloat> {
  static constexpr bool is_specialized = true, is_signed = true, has_infinity = true;
  static constexpr int digits = 8;
  static constexpr bfloat max() { return bfloat::of_bits(0x7F7F); }
  static constexpr bfloat lowest() { return bfloat::of_bits(0xFF7F); }
  static constexpr bfloat min() { return bfloat::of_bits(0x0080); }
  static constexpr bfloat epsilon() { return bfloat::of_bits(0x3C00); }
  static constexpr bfloat infinity() { return bfloat::of_bits(0x7F80); }
  static constexpr bfloat quiet_NaN() { return bfloat::of_bits(0x7FC0); }
};

template <class To, class From>
SIM_INLINE constexpr To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the bits, so both types have one size");
  if constexpr (std::is_trivially_copyable_v<To> && std::is_trivially_copyable_v<From>) {
    return __builtin_bit_cast(To, value);
  } else {
    To result;
    __builtin_memcpy(&result, &value, sizeof(To));
    return result;
  }
}

}  // namespace metal

using metal::as_type;
