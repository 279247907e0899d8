// terms.cu: what each query row has of the forward pass and of the gradients of that -> RowTerms, some lanes for each row.
#include "plan.h"
#include "../attention/softmax.h"

// d_out, out: [rows, VALUE_DIM]; lse, d_lse, and with WITH_MAX largest, ties, d_max: [rows], float32. terms: [TERMS, rows].
struct Tensors {
  const T *d_out, *out;
  const float *lse, *d_lse, *largest, *ties, *d_max, *factor;
  float* terms;
  int64_t rows;
};

// 16 bytes of a row, of which so many lanes have one each.
constexpr int PIECE = 16 / sizeof(T), PIECES = (VALUE_DIM + PIECE - 1) / PIECE;
constexpr int LANES_OF_ROW = PIECES > 16 ? 32 : PIECES > 8 ? 16 : PIECES > 4 ? 8 : 4;
struct __align__(16) Piece {
  T at[PIECE];
};

INLINE void row_terms(const Tensors& tensors) {
  const int lane = threadIdx.x % LANES_OF_ROW;
  const int64_t row = int64_t(blockIdx.x) * (THREADS / LANES_OF_ROW) + threadIdx.x / LANES_OF_ROW;
  const bool exists = row < tensors.rows;
  const T *d_out = tensors.d_out + (exists ? row : 0) * VALUE_DIM, *out = tensors.out + (exists ? row : 0) * VALUE_DIM;
  float sum = 0.0f;
  if (VALUE_DIM % PIECE == 0 && ((uint64_t(d_out) | uint64_t(out)) & 15) == 0) {
    for (int column = PIECE * lane; column < VALUE_DIM; column += PIECE * LANES_OF_ROW) {
      const Piece a = *(const Piece*)(d_out + column), b = *(const Piece*)(out + column);
      UNROLL
      for (int i = 0; i < PIECE; i++) sum += float(a.at[i]) * float(b.at[i]);
    }
  } else {
    for (int column = lane; column < VALUE_DIM; column += LANES_OF_ROW) sum += float(d_out[column]) * float(out[column]);
  }
  UNROLL
  for (int step = LANES_OF_ROW / 2; step > 0; step /= 2) sum += __shfl_xor_sync(EVERY_LANE, sum, step);
  if (lane != 0 || !exists) return;
  const float lse = tensors.lse[row], factor = tensors.factor[0];
  tensors.terms[row] = lse == -INFINITY ? INFINITY : lse;
  tensors.terms[tensors.rows + row] = factor * (sum - tensors.d_lse[row]);
  if constexpr (WITH_MAX) {
    const float ties = tensors.ties[row];
    tensors.terms[2 * tensors.rows + row] = tensors.largest[row];
    tensors.terms[3 * tensors.rows + row] = ties > 0.0f ? factor * __fdiv_rn(tensors.d_max[row], ties) : 0.0f;
  }
}
