// intrinsics.h: the words and functions of CUDA that need no other thread, for a host compiler.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#define __device__
#define __global__
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

template <typename To, typename From>
inline To cuda_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline float __int_as_float(int bits) { return cuda_bits<float>(bits); }
inline float __uint_as_float(unsigned bits) { return cuda_bits<float>(bits); }
inline int __float_as_int(float x) { return cuda_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_bits<unsigned>(x); }

inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdividef(float a, float b) { return std::fabs(b) > 0x1p126f && !std::isinf(b) ? 0.0f * a : a / b; }
inline float __expf(float x) { return std::exp2(x * 1.44269504f); }
inline float __saturatef(float x) { return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __float2int_rz(float x) {
  return x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : x != x ? 0 : int(x);
}
inline int __float2int_rn(float x) { return __float2int_rz(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return __float2int_rz(std::floor(x)); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
  return y;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned count) {
  return unsigned(((uint64_t(high) << 32) | low) >> (count & 31));
}
// PTX ISA, prmt, in its default mode: a nibble of the selector names a byte of {y, x}, its highest bit the byte's sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = (uint64_t(y) << 32) | x;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned nibble = selector >> (4 * i) & 15, byte = unsigned(bytes >> (8 * (nibble & 7))) & 255;
    out |= (nibble & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
  }
  return out;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += int(int8_t(a >> (8 * i))) * int(int8_t(b >> (8 * i)));
  return c;
}
inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }

#define CUDA_VECTOR(name, element, bytes, ...) \
  struct alignas(bytes) name {                 \
    element __VA_ARGS__;                       \
  };
CUDA_VECTOR(uint2, unsigned, 8, x, y)
CUDA_VECTOR(uint4, unsigned, 16, x, y, z, w)
CUDA_VECTOR(int2, int, 8, x, y)
CUDA_VECTOR(int4, int, 16, x, y, z, w)
CUDA_VECTOR(float2, float, 8, x, y)
CUDA_VECTOR(float4, float, 16, x, y, z, w)
// Macros, as g++ does not tell the runtime of what a call's result is stored to.
#define make_uint2(...) (uint2{__VA_ARGS__})
#define make_uint4(...) (uint4{__VA_ARGS__})
#define make_int2(...) (int2{__VA_ARGS__})
#define make_int4(...) (int4{__VA_ARGS__})
#define make_float2(...) (float2{__VA_ARGS__})
#define make_float4(...) (float4{__VA_ARGS__})

template <typename T>
inline T __ldg(const T* at) {
  return *at;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
