// softmax.cu: weights = exp(x - max of the row), divided by their sum where asked; a row by each block of threads.
#include "plan.h"

struct SoftmaxParams {
  int rows, columns, normalise;
};

// The sum or the maximum of all threads, the same in each.
template <typename Both>
INLINE float of_block(float x, float* parts, const Both& both) {
  UNROLL
  for (int step = LANES / 2; step > 0; step /= 2) x = both(x, __shfl_xor_sync(EVERY_LANE, x, step));
  if (threadIdx.x % LANES == 0) parts[threadIdx.x / LANES] = x;
  __syncthreads();
  x = parts[0];
  UNROLL
  for (int warp = 1; warp < THREADS / LANES; warp++) x = both(x, parts[warp]);
  __syncthreads();
  return x;
}

// x: float32 [rows, columns]; weights: [rows, columns]; max_scores, sums: float32 [rows]. A row of -inf has weights 0,
// the maximum -inf and the sum 0.
INLINE void run_stage(const T* x, O* weights, float* max_scores, float* sums, const SoftmaxParams& p) {
  __shared__ float parts[THREADS / LANES];
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const T* from = x + row * p.columns;
    float most = -INFINITY, total = 0.0f;
    for (int c = threadIdx.x; c < p.columns; c += THREADS) most = fmaxf(most, from[c]);
    most = of_block(most, parts, [](float a, float b) { return fmaxf(a, b); });
    const float shift = most == -INFINITY ? 0.0f : most;  // as -inf - -inf is nan
    for (int c = threadIdx.x; c < p.columns; c += THREADS) total += expf(from[c] - shift);
    total = of_block(total, parts, [](float a, float b) { return a + b; });
    const float factor = !p.normalise ? 1.0f : total == 0.0f ? 0.0f : __fdiv_rn(1.0f, total);
    for (int c = threadIdx.x; c < p.columns; c += THREADS) weights[row * p.columns + c] = narrowed<O>(expf(from[c] - shift) * factor);
    if (threadIdx.x == 0) max_scores[row] = most, sums[row] = total;
  }
}
