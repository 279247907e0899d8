// bounds.h: ranges.h and captured_ranges.h for CUDA.
#pragma once
#include "ops.h"
#define inline INLINE
namespace bounds {

constexpr int64_t LEAST = -2147483647 - 1, MOST = 2147483647;

inline bool is_known(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
inline float floor_of(float x) { return floorf(x); }
inline float ceil_of(float x) { return ceilf(x); }
inline float trunc_of(float x) { return truncf(x); }
inline float round_of(float x) { return rintf(x); }

}  // namespace bounds
#include "../../template/ranges.h"
#include "../../template/captured_ranges.h"
#undef inline
