// bounds.h: ranges.h for C++.
#pragma once
#include "ops.h"
namespace bounds {

constexpr int64_t LEAST = -2147483647 - 1, MOST = 2147483647;

inline bool is_known(float x) { return x == x; }
inline float floor_of(float x) { return fx::floor(x); }
inline float ceil_of(float x) { return fx::ceil(x); }
inline float trunc_of(float x) { return fx::trunc(x); }
inline float round_of(float x) { return fx::round(x); }

}  // namespace bounds
#include "../../template/ranges.h"
