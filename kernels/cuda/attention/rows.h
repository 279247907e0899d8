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

// Four words of each lane of a quad -> the words of one tile: lane c gets word c of all four lanes.
INLINE uint4 transposed(uint w0, uint w1, uint w2, uint w3, int lane) {
  const bool odd = lane & 1, upper = lane & 2;
  const uint a = __shfl_xor_sync(EVERY_LANE, odd ? w0 : w1, 1), b = __shfl_xor_sync(EVERY_LANE, odd ? w2 : w3, 1);
  if (odd) w0 = a, w2 = b;
  else w1 = a, w3 = b;
  const uint c = __shfl_xor_sync(EVERY_LANE, upper ? w0 : w2, 2), d = __shfl_xor_sync(EVERY_LANE, upper ? w1 : w3, 2);
  if (upper) w0 = c, w1 = d;
  else w2 = c, w3 = d;
  return {w0, w1, w2, w3};
}

// out = O / sum of P, of 8 TILES columns from `column` on. A row with nothing to attend to has sum 0 and gives 0, and
// -inf as its statistics, which are written with the first columns. scale: what its maximum has yet to be multiplied by.
template <int VALUE_DIM, typename T, int TILES>
INLINE void write_rows(const Results<T>& to, const Sums (&sums)[TILES], const RowState& state, const AttentionParams& p,
                       int64_t head, int first_row, int column, float scale, int lane) {
  UNROLL
  for (int half = 0; half < 2; half++) {
    const float sum = sum_of_row(state.sum[half]), inverse = sum == 0.0f ? 0.0f : __fdiv_rn(1.0f, sum);
    const int row = first_row + 8 * half + lane / 4;
    const bool exists = row < p.q_len;
    const int64_t at = head * p.q_len + row;
    T* out = to.out + at * VALUE_DIM;
    const auto word = [&](int d) {
      return packed<T>(sums[d].at[2 * half] * inverse, sums[d].at[2 * half + 1] * inverse);
    };
    if constexpr (sizeof(T) == 2 && VALUE_DIM % 8 == 0 && TILES % 4 == 0) {  // 16 bytes at a time
      UNROLL
      for (int d = 0; d < TILES; d += 4) {
        const uint4 words = transposed(word(d), word(d + 1), word(d + 2), word(d + 3), lane);
        const int of_lane = column + 8 * (d + (lane & 3));
        if (exists && of_lane < VALUE_DIM) *(uint4*)(out + of_lane) = words;
      }
    } else {
      UNROLL
      for (int d = 0; d < TILES; d++) {
        const int of_lane = column + 8 * d + 2 * (lane & 3);
        if constexpr (sizeof(T) == 2 && VALUE_DIM % 2 == 0) {
          if (exists && of_lane < VALUE_DIM) *(uint*)(out + of_lane) = word(d);
        } else {
          if (exists && of_lane < VALUE_DIM) out[of_lane] = narrowed<T>(sums[d].at[2 * half] * inverse);
          if (exists && of_lane + 1 < VALUE_DIM) out[of_lane + 1] = narrowed<T>(sums[d].at[2 * half + 1] * inverse);
        }
      }
    }
    if (exists && column == 0 && (lane & 3) == 0) {
      const float max = state.max[half] * scale;
      to.lse[at] = sum == 0.0f ? -INFINITY : max + logf(sum);
      to.max_scores[at] = sum == 0.0f ? -INFINITY : max;
    }
  }
}
