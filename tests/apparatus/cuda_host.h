// cuda_host.h: what CUDA text says beside C++, for a host compiler: a generated mod runs there element by element.
// Approximate functions (Special<true>) and 16-bit numbers are written in PTX and are not for the host.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#define __device__
#define __forceinline__ __inline__
#define __noinline__
#define __restrict__
#define asm(...)

inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float(int(bits)); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline unsigned __cvta_generic_to_shared(const void*) { return 0; }  // for PTX alone
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __float2int_rz(float x) { return x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : int(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
