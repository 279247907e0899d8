// softmax.h: the online softmax (arXiv 1805.02867) on score tiles in registers. A score that is not attended to is
// -inf. The running maximum starts at the lowest finite number, and is subtracted before anything else is done to a
// score: scores of any size keep their differences.
#pragma once
#include "../tile/products.h"

constexpr float LOWEST = -3.40282347e+38f;
constexpr float LOG2_E = 1.44269504f;

// The statistics of the two rows of a lane in 16 rows. sum: of the weights that this lane has held.
struct RowState {
  float max[2], sum[2];
  INLINE void start() { max[0] = max[1] = LOWEST, sum[0] = sum[1] = 0.0f; }
};

// Of the four lanes that hold a row.
INLINE float max_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, 1));
  return fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, 2));
}
INLINE float sum_of_row(float x) {
  x += __shfl_xor_sync(EVERY_LANE, x, 1);
  return x + __shfl_xor_sync(EVERY_LANE, x, 2);
}

// Scores -> weights, in place: 2^((score - max) scale), -inf gives 0; the row's output so far shrinks by `shrink`.
// scale: what is still to be multiplied to the scores, times log2(e). A product less the maximum's, in one instruction,
// is exact enough where the maximum is small; larger ones are subtracted first, which keeps their differences.
template <bool FUSED, int TILES>
INLINE void update_rows(RowState& state, Sums (&scores)[TILES], float (&shrink)[2], float scale) {
  constexpr float SMALL = 4096.0f;
  UNROLL
  for (int half = 0; half < 2; half++) {
    float largest = state.max[half];
    UNROLL
    for (int j = 0; j < TILES; j++) {
      UNROLL
      for (int e = 0; e < 2; e++) largest = fmaxf(largest, scores[j].at[2 * half + e]);
    }
    largest = max_of_row(largest);
    shrink[half] = ptx::ex2_approx_ftz((state.max[half] - largest) * scale);
    float sum = 0.0f;
    const float shift = largest * scale;
    if (FUSED && fabsf(shift) < SMALL) {
      UNROLL
      for (int j = 0; j < TILES; j++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
          float& score = scores[j].at[2 * half + e];
          score = ptx::ex2_approx_ftz(fmaf(score, scale, -shift));
          sum += score;
        }
      }
    } else {
      UNROLL
      for (int j = 0; j < TILES; j++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
          float& score = scores[j].at[2 * half + e];
          score = ptx::ex2_approx_ftz((score - largest) * scale);
          sum += score;
        }
      }
    }
    state.sum[half] = state.sum[half] * shrink[half] + sum;
    state.max[half] = largest;
  }
}
