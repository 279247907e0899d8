// terms.cu: what each query row has of the forward pass and of the gradients of that -> RowTerms, a warp for each row.
#include "plan.h"
#include "../attention/softmax.h"

// d_out, out: [rows, VALUE_DIM]; lse, d_lse, and with WITH_MAX largest, ties, d_max: [rows], float32. terms: [TERMS, rows].
struct Tensors {
  const T *d_out, *out;
  const float *lse, *d_lse, *largest, *ties, *d_max, *factor;
  float* terms;
  int64_t rows;
};

struct __align__(2 * sizeof(T)) Pair {
  T first, second;
};

INLINE void row_terms(const Tensors& tensors) {
  const int lane = threadIdx.x % LANES;
  const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / LANES;
  if (row >= tensors.rows) return;
  const T *d_out = tensors.d_out + row * VALUE_DIM, *out = tensors.out + row * VALUE_DIM;
  float sum = 0.0f;
  if (VALUE_DIM % 2 == 0 && (uint64_t(d_out) | uint64_t(out)) % sizeof(Pair) == 0) {
    for (int column = 2 * lane; column < VALUE_DIM; column += 2 * LANES) {
      const Pair a = *(const Pair*)(d_out + column), b = *(const Pair*)(out + column);
      sum += float(a.first) * float(b.first) + float(a.second) * float(b.second);
    }
  } else {
    for (int column = lane; column < VALUE_DIM; column += LANES) sum += float(d_out[column]) * float(out[column]);
  }
  UNROLL
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(EVERY_LANE, sum, step);
  if (lane != 0) return;
  const float lse = tensors.lse[row], factor = tensors.factor[0];
  tensors.terms[row] = lse == -INFINITY ? INFINITY : lse;
  tensors.terms[tensors.rows + row] = factor * (sum - tensors.d_lse[row]);
  if constexpr (WITH_MAX) {
    const float ties = tensors.ties[row];
    tensors.terms[2 * tensors.rows + row] = tensors.largest[row];
    tensors.terms[3 * tensors.rows + row] = ties > 0.0f ? factor * __fdiv_rn(tensors.d_max[row], ties) : 0.0f;
  }
}
