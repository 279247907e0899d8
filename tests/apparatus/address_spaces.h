// address_spaces.h: Metal's address spaces as OpenCL's, and just enough declarations of the Metal library, so that
// clang (C++ for OpenCL) type-checks a kernel's pointers. Nothing here is ever run.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#define threadgroup __local
#define constant __constant
#define thread __private
#include "metal_types.h"

struct bfloat16_t {
  ushort bits;
  bfloat16_t() = default;
  bfloat16_t(float x);
  operator float() const;
  operator float() const __local;
  operator float() const __global;
  operator float() const __constant;
};

namespace metal {
template <typename T>
T min(T a, T b);
template <typename T>
T max(T a, T b);
template <typename T>
T clamp(T x, T low, T high);
template <typename T>
T abs(T x);
float copysign(float a, float b);
float floor(float), ceil(float), trunc(float), rint(float);
uint ctz(uint x);
uint popcount(uint x);
namespace fast {
float exp2(float x);
}
namespace precise {
float exp(float), exp2(float), log(float), log2(float), log10(float), sqrt(float), rsqrt(float);
float sin(float), cos(float), tan(float), asin(float), acos(float), atan(float), sinh(float), cosh(float);
float tanh(float), asinh(float), acosh(float), atanh(float);
float pow(float, float), fmod(float, float), atan2(float, float);
}  // namespace precise

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
void threadgroup_barrier(mem_flags flags);
void simdgroup_barrier(mem_flags flags);
bool simd_any(bool x);
bool simd_all(bool x);
uint simd_or(uint x);
ulong simd_ballot(bool x);
float simd_max(float x);
float simd_sum(float x);
template <typename T>
T simd_shuffle(T x, ushort lane);
template <typename T>
T simd_shuffle_xor(T x, ushort mask);

template <typename T, int C, int R>
struct simdgroup_matrix {
  vec<T, 2> pair;
  __private vec<T, 2>& thread_elements() __private { return pair; }
};
template <typename T>
void simdgroup_load(__private simdgroup_matrix<T, 8, 8>& to, const __local T* from, ulong elements_per_row,
                    ulong2 origin = ulong2(0), bool transpose = false);
template <typename D, typename A, typename B, typename C>
void simdgroup_multiply_accumulate(__private simdgroup_matrix<D, 8, 8>& d, const __private simdgroup_matrix<A, 8, 8>& a,
                                   const __private simdgroup_matrix<B, 8, 8>& b,
                                   const __private simdgroup_matrix<C, 8, 8>& c);
}  // namespace metal
