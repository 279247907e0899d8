// registers.h: the Metal library for registers.py: enough of it to compile a kernel for gfx1100, each exchange between
// lanes and each 8x8 product an instruction that the compiler does not look into. Nothing here is ever run.
#pragma once
#define device __attribute__((address_space(1)))
#define threadgroup __attribute__((address_space(3)))
#define constant __attribute__((address_space(4)))
#define thread
#define __private
#define __local __attribute__((address_space(3)))
typedef _Float16 half;
#include "metal_types.h"
typedef __bf16 bfloat16_t;

namespace metal {
template <typename T>
T min(T a, T b) { return a < b ? a : b; }
template <typename T>
T max(T a, T b) { return a > b ? a : b; }
template <typename T>
T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <typename T>
T abs(T x) { return x < T(0) ? -x : x; }
inline float copysign(float a, float b) { return __builtin_copysignf(a, b); }
inline float floor(float a) { float r; __asm__("; floor %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float ceil(float a) { float r; __asm__("; ceil %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float trunc(float a) { float r; __asm__("; trunc %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float rint(float a) { float r; __asm__("; rint %0 %1" : "=v"(r) : "v"(a)); return r; }

inline uint ctz(uint x) { return __builtin_ctz(x); }
inline uint popcount(uint x) { return __builtin_popcount(x); }
namespace fast {
inline float exp2(float a) { float r; __asm__("; exp2 %0 %1" : "=v"(r) : "v"(a)); return r; }
}
namespace precise {
inline float exp(float a) { float r; __asm__("; exp %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float exp2(float a) { float r; __asm__("; exp2 %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float log(float a) { float r; __asm__("; log %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float log2(float a) { float r; __asm__("; log2 %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float log10(float a) { float r; __asm__("; log10 %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float sqrt(float a) { float r; __asm__("; sqrt %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float rsqrt(float a) { float r; __asm__("; rsqrt %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float sin(float a) { float r; __asm__("; sin %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float cos(float a) { float r; __asm__("; cos %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float tan(float a) { float r; __asm__("; tan %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float asin(float a) { float r; __asm__("; asin %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float acos(float a) { float r; __asm__("; acos %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float atan(float a) { float r; __asm__("; atan %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float sinh(float a) { float r; __asm__("; sinh %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float cosh(float a) { float r; __asm__("; cosh %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float tanh(float a) { float r; __asm__("; tanh %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float asinh(float a) { float r; __asm__("; asinh %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float acosh(float a) { float r; __asm__("; acosh %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float atanh(float a) { float r; __asm__("; atanh %0 %1" : "=v"(r) : "v"(a)); return r; }
inline float pow(float a, float b) { float r; __asm__("; pow %0 %1 %2" : "=v"(r) : "v"(a), "v"(b)); return r; }
inline float fmod(float a, float b) { float r; __asm__("; fmod %0 %1 %2" : "=v"(r) : "v"(a), "v"(b)); return r; }
inline float atan2(float a, float b) { float r; __asm__("; atan2 %0 %1 %2" : "=v"(r) : "v"(a), "v"(b)); return r; }
}  // namespace precise

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
inline void threadgroup_barrier(mem_flags flags) { __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "workgroup"); __builtin_amdgcn_s_barrier(); __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "workgroup"); }
inline void simdgroup_barrier(mem_flags) { __builtin_amdgcn_wave_barrier(); }
inline bool simd_any(bool x) { uint r; __asm__ volatile("; any %0 %1" : "=s"(r) : "v"(uint(x))); return r != 0; }
inline bool simd_all(bool x) { uint r; __asm__ volatile("; all %0 %1" : "=s"(r) : "v"(uint(x))); return r != 0; }
inline uint simd_ballot(bool x) { uint r; __asm__ volatile("; ballot %0 %1" : "=s"(r) : "v"(uint(x))); return r; }
inline float simd_max(float x) { float r; __asm__ volatile("; max %0 %1" : "=v"(r) : "v"(x)); return r; }
inline uint simd_or(uint x) { uint r; __asm__ volatile("; or %0 %1" : "=s"(r) : "v"(x)); return r; }


template <typename T>
T simd_shuffle(T x, ushort lane) { T r; __asm__ volatile("; shuffle %0 %1 %2" : "=v"(r) : "v"(x), "v"(uint(lane))); return r; }
template <typename T>
T simd_shuffle_xor(T x, ushort mask) { T r; __asm__ volatile("; shuffle %0 %1 %2" : "=v"(r) : "v"(x), "v"(uint(mask))); return r; }

template <typename T, int C, int R>
struct simdgroup_matrix {
  vec<T, 2> pair;
  __private vec<T, 2>& thread_elements() __private { return pair; }
};

inline uint my_lane() { return __builtin_amdgcn_mbcnt_lo(~0u, 0u); }
template <typename T>
void simdgroup_load(__private simdgroup_matrix<T, 8, 8>& to, const __local T* from, ulong ld, ulong2 origin = ulong2{0,0}, bool transpose = false) {
  uint lane = my_lane();
  uint row = ((lane >> 2) & 4) + ((lane >> 1) & 3), column = ((lane >> 1) & 4) + ((lane & 1) << 1);
  uint l = uint(ld);
  if (transpose) { to.pair[0] = from[column * l + row]; to.pair[1] = from[(column + 1) * l + row]; }
  else { to.pair[0] = from[row * l + column]; to.pair[1] = from[row * l + column + 1]; }
}
template <typename D, typename A, typename B, typename C>
void simdgroup_multiply_accumulate(__private simdgroup_matrix<D, 8, 8>& d, const __private simdgroup_matrix<A, 8, 8>& a,
                                   const __private simdgroup_matrix<B, 8, 8>& b,
                                   const __private simdgroup_matrix<C, 8, 8>& c) {
  vec<float, 2> x = c.pair;
  __asm__("; mma %0 %1 %2" : "+v"(x) : "v"(a.pair), "v"(b.pair));
  d.pair = x;
}
}  // namespace metal
