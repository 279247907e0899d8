// bounds.h: ranges.h and captured_ranges.h for Metal.
#pragma once
#include "ops.h"
namespace bounds {

constexpr constant int64_t LEAST = -2147483647 - 1, MOST = 2147483647;

// Infinities are not known either: they are the extremes of a block that holds a nan (launch.py).
INLINE bool is_known(float x) { return (as_type<uint>(x) & 0x7f800000u) != 0x7f800000u; }
INLINE float floor_of(float x) { return metal::floor(x); }
INLINE float ceil_of(float x) { return metal::ceil(x); }
INLINE float trunc_of(float x) { return metal::trunc(x); }
INLINE float round_of(float x) { return metal::rint(x); }

}  // namespace bounds
#include "../../template/ranges.h"
#include "../../template/captured_ranges.h"
