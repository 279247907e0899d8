// segments.cu: numbers and the order of their elements -> the sum of each element's, a warp for each.
#include "../tile/types.h"

constexpr int THREADS = 128;

// values: in any order. order: places in it, sorted by element. starts: where each element's begin in `order`, and
// where the last one's end. sums: one for each element.
INLINE void sum_segments(const float* values, const int* order, const int* starts, float* sums, int count) {
  const int64_t element = int64_t(blockIdx.x) * (THREADS / LANES) + threadIdx.x / LANES;
  if (element >= count) return;
  float sum = 0.0f;
  for (int64_t i = starts[element] + threadIdx.x % LANES; i < starts[element + 1]; i += LANES) sum += values[order[i]];
  UNROLL
  for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(EVERY_LANE, sum, step);
  if (threadIdx.x % LANES == 0) sums[element] = sum;
}
