// scale.cu: out = x * factor, in float32, rounded once.
#include "plan.h"

// factor: by its bits, as MLX passes ints.
struct ScaleParams {
  int rows, columns, factor;
};

INLINE void run_stage(const T* x, O* out, const ScaleParams& p) {
  const float factor = __int_as_float(p.factor);
  const int64_t count = int64_t(p.rows) * p.columns, step = int64_t(gridDim.x) * THREADS;
  for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < count; i += step) out[i] = narrowed<O>(float(x[i]) * factor);
}
