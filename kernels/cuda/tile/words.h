// words.h: number types, and short words for what CUDA says of functions and loops. The text includes no header of
// CUDA's: NVRTC needs a second longer for those.
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
