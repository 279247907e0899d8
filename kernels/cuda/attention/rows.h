// rows.h: what a lane holds of 16 query rows, divided by their sums and written.
#pragma once
#include "params.h"
#include "softmax.h"

// out: [batch, query_heads, q_len, VALUE_DIM], row after row; lse, max_scores: float32 [batch, query_heads, q_len],
// natural.
template <typename T>
struct Results {
  T* out;
  float *lse, *max_scores;
};

// out = O / sum of P, of 8 TILES columns from `column` on. A row with nothing to attend to has sum 0 and gives 0, and
// -inf as its statistics, which are written with the first columns. scale: what its maximum has yet to be multiplied by.
template <int VALUE_DIM, typename T, int TILES>
INLINE void write_rows(const Results<T>& to, const Sums (&sums)[TILES], const RowState& state, const AttentionParams& p,
                       int64_t head, int first_row, int column, float scale, int lane) {
  UNROLL
  for (int half = 0; half < 2; half++) {
    const float sum = sum_of_row(state.sum[half]), inverse = sum == 0.0f ? 0.0f : __fdiv_rn(1.0f, sum);
    const int row = first_row + 8 * half + lane / 4;
    if (row >= p.q_len) continue;
    const int64_t at = head * p.q_len + row;
    UNROLL
    for (int d = 0; d < TILES; d++) {
      const int of_lane = column + 8 * d + 2 * (lane & 3);
      const float first = sums[d].at[2 * half] * inverse, second = sums[d].at[2 * half + 1] * inverse;
      T* out = to.out + at * VALUE_DIM + of_lane;
      if constexpr (sizeof(T) == 2 && VALUE_DIM % 2 == 0) {
        if (of_lane < VALUE_DIM) *(uint*)out = packed<T>(first, second);
      } else {
        if (of_lane < VALUE_DIM) out[0] = narrowed<T>(first);
        if (of_lane + 1 < VALUE_DIM) out[1] = narrowed<T>(second);
      }
    }
    if (column == 0 && (lane & 3) == 0) {
      const float max = state.max[half] * scale;
      to.lse[at] = sum == 0.0f ? -INFINITY : max + logf(sum);
      to.max_scores[at] = sum == 0.0f ? -INFINITY : max;
    }
  }
}
