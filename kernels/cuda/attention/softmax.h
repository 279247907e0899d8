// softmax.h: the online softmax (arXiv 1805.02867) on score tiles in registers. A score that is not attended to is
// -inf. The running maximum starts at the lowest finite number.
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

// Scores -> weights, in place: 2^(scale (score - max)), -inf gives 0; the row's output so far shrinks by `shrink`.
// scale: what is still to be multiplied to the scores, times log2(e). What is subtracted is scale * max as a float, the
// same number for all tiles with one maximum, so its product is not to be fused with the difference.
template <int TILES>
INLINE void update_rows(RowState& state, Sums (&scores)[TILES], float (&shrink)[2], float scale) {
  constexpr float LARGE = 4096.0f;  // beyond, a product's rounding shows, and later overflows: maxima are subtracted first
  float largest[2], shift[2], sum[2] = {0.0f, 0.0f};
  UNROLL
  for (int half = 0; half < 2; half++) {
    float most = state.max[half];
    UNROLL
    for (int j = 0; j < TILES; j++) most = fmaxf(most, fmaxf(scores[j].at[2 * half], scores[j].at[2 * half + 1]));
    largest[half] = max_of_row(most);
    shift[half] = __fmul_rn(largest[half], scale);
  }
  const auto weigh = [&] {
    UNROLL
    for (int half = 0; half < 2; half++) {
      UNROLL
      for (int j = 0; j < TILES; j++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
          float& score = scores[j].at[2 * half + e];
          score = ptx::ex2_approx_ftz(fmaf(score, scale, -shift[half]));
          sum[half] += score;
        }
      }
    }
  };
  if (fmaxf(fabsf(shift[0]), fabsf(shift[1])) < LARGE) {
    UNROLL
    for (int half = 0; half < 2; half++) shrink[half] = ptx::ex2_approx_ftz(__fmul_rn(state.max[half], scale) - shift[half]);
    weigh();
  } else {
    UNROLL
    for (int half = 0; half < 2; half++) {
      const bool in_range = fabsf(shift[half]) < LARGE;
      const float before = state.max[half], nearer = in_range ? 0.0f : largest[half];
      shrink[half] = ptx::ex2_approx_ftz(in_range ? __fmul_rn(before, scale) - shift[half] : (before - nearer) * scale);
      UNROLL
      for (int j = 0; j < TILES; j++) {
        UNROLL
        for (int e = 0; e < 2; e++) scores[j].at[2 * half + e] -= nearer;
      }
      if (!in_range) shift[half] = 0.0f;
    }
    weigh();  // in both branches, so that ptxas does not move it behind what comes later
  }
  UNROLL
  for (int half = 0; half < 2; half++) {
    state.sum[half] = state.sum[half] * shrink[half] + sum[half];
    state.max[half] = largest[half];
  }
}
