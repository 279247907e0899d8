// merge_plan.h: what the kernel that merges splits is made for, and its template.
#pragma once
#include "../tile/types.h"

// {{ element
typedef float16_t T;
// }}
constexpr bool VALUE_MEANS = false;  // values lack a mean row
constexpr int THREADS = 128;
