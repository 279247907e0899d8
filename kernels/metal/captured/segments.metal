// segments.metal: numbers and the order of their elements -> the sum of each element's, a simdgroup for each.
#include "../tile/simdgroup.h"

// values: in any order. order: places in it, sorted by element. starts: where each element's begin in `order`, and
// where the last one's end. sums: one for each element; lengths: how many.
INLINE void sum_segments(const device float* values, const device int* order, const device int* starts,
                         const constant int* lengths, device float* sums, int simdgroups, Thread at) {
  const int64_t element = int64_t(at.group.x) * simdgroups + at.simdgroup;
  if (element >= lengths[0]) return;
  float sum = 0.0f;
  for (int64_t i = starts[element] + int(at.lane); i < starts[element + 1]; i += LANES) sum += values[order[i]];
  sum = metal::simd_sum(sum);
  if (at.lane == 0) sums[element] = sum;
}

// -- body: what MLX puts between the braces --
sum_segments(values, order, starts, lengths, sums, SIMDGROUPS,
             thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
                       thread_index_in_simdgroup));
