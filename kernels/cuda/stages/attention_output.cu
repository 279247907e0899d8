// attention_output.cu: the end of attention: out = product / sum, lse = max + log(sum); a row that attended to nothing
// (sum 0) gives 0 and -inf. A row by each block of threads.
#include "plan.h"

struct OutputParams {
  int rows, columns;
};

// product: float32 [rows, columns]; max_scores, sums, lse: float32 [rows], natural.
INLINE void run_stage(const T* product, const float* max_scores, const float* sums, O* out, float* lse, const OutputParams& p) {
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const float sum = sums[row], inverse = sum == 0.0f ? 0.0f : __fdiv_rn(1.0f, sum);
    for (int c = threadIdx.x; c < p.columns; c += THREADS) {
      out[row * p.columns + c] = narrowed<O>(product[row * p.columns + c] * inverse);
    }
    if (threadIdx.x == 0) lse[row] = sum == 0.0f ? -INFINITY : max_scores[row] + logf(sum);
  }
}
