// types.h: number types and what a thread knows of its place. The text includes no header of CUDA's: NVRTC needs a
// second longer for those.
#pragma once
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned int uint;
typedef long int64_t;
typedef unsigned long uint64_t;

#define INLINE __device__ __forceinline__
#define CALLED __device__ __noinline__  // rare, and long
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#undef INFINITY
#undef NAN
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)

constexpr int LANES = 32;
constexpr uint EVERY_LANE = ~0u;

struct float16_t {
  uint16_t bits;
  INLINE operator float() const {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
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
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
INLINE bfloat16_t narrowed<bfloat16_t>(float x) {
  bfloat16_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// Two neighbours in one register, the first in the low half. float32 has no pairs: it is never asked.
template <typename T>
INLINE uint packed(float first, float second) {
  return 0;
}
template <>
INLINE uint packed<float16_t>(float first, float second) {
  uint pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
template <>
INLINE uint packed<bfloat16_t>(float first, float second) {
  uint pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
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
