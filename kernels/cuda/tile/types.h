// types.h: 16-bit numbers, and their ways from and to float32.
#pragma once
#include "ptx.h"

struct float16_t {
  uint16_t bits;
  INLINE operator float() const { return ptx::f32_of_f16(bits); }
};
struct bfloat16_t {
  uint16_t bits;
  INLINE operator float() const { return __uint_as_float(uint(bits) << 16); }
};

template <typename T>
INLINE T narrowed(float x) {
  return x;
}
template <>
INLINE float16_t narrowed<float16_t>(float x) {
  float16_t y;
  y.bits = ptx::f16_of_f32(x);
  return y;
}
template <>
INLINE bfloat16_t narrowed<bfloat16_t>(float x) {
  bfloat16_t y;
  y.bits = ptx::bf16_of_f32(x);
  return y;
}

// Two neighbours in one register, the first in the low half. float32 has no pairs: it is never asked.
template <typename T>
INLINE uint packed(float first, float second) {
  return 0;
}
template <>
INLINE uint packed<float16_t>(float first, float second) {
  return ptx::f16x2_of_f32(second, first);
}
template <>
INLINE uint packed<bfloat16_t>(float first, float second) {
  return ptx::bf16x2_of_f32(second, first);
}

// Whether some number in the register is infinite or nan.
template <typename T>
INLINE bool is_special(uint word);
template <>
INLINE bool is_special<float>(uint word) {
  return (word & 0x7f800000u) == 0x7f800000u;
}
template <>
INLINE bool is_special<float16_t>(uint word) {
  return (word & 0x7c00u) == 0x7c00u || (word & 0x7c000000u) == 0x7c000000u;
}
template <>
INLINE bool is_special<bfloat16_t>(uint word) {
  return (word & 0x7f80u) == 0x7f80u || (word & 0x7f800000u) == 0x7f800000u;
}

INLINE int smaller(int a, int b) { return a < b ? a : b; }
INLINE int larger(int a, int b) { return a > b ? a : b; }
