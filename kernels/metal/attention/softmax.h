// softmax.h: the online softmax (arXiv 1805.02867) on score fragments in registers.
//
// A score that is not attended to is -inf. It is told by its bits and never computed with: -inf less a maximum of -inf
// is nan, and metal::fast::exp2 promises nothing of infinities. The running maximum starts at the lowest finite number.
#pragma once
#include "../tile/fragments.h"

constexpr constant float LOWEST = -3.40282347e+38f;
constexpr constant float LOG2_E = 1.44269504f;
constexpr constant uint MINUS_INFINITY_BITS = 0xff800000u;

INLINE float minus_infinity() { return as_type<float>(MINUS_INFINITY_BITS); }
INLINE bool is_minus_infinity(float x) { return as_type<uint>(x) == MINUS_INFINITY_BITS; }

// One row's statistics.
struct RowState {
  float max;  // LOWEST before the first key
  float sum;  // the sum of the weights that this lane has held, relative to max

  INLINE void start() thread {
    max = LOWEST;
    sum = 0.0f;
  }
};

// Scores -> weights, in place. Returns what the row's output so far shrinks by.
// The maximum is subtracted before anything else is done to a score: scores of any size keep their differences.
// GUARD: some scores may be -inf; in `gaps`, bit j is set if one of this lane's in key fragment j is.
template <bool GUARD, int KEY_FRAGMENTS>
INLINE float update_row(thread RowState& row, thread Fragment<float> (&scores)[KEY_FRAGMENTS], thread uint& gaps) {
  float largest = row.max;
  UNROLL
  for (int j = 0; j < KEY_FRAGMENTS; j++) {
    float first = elements(scores[j])[0], second = elements(scores[j])[1];
    if (!GUARD || !is_minus_infinity(first)) largest = metal::max(largest, first);
    if (!GUARD || !is_minus_infinity(second)) largest = metal::max(largest, second);
  }
  largest = max_of_row(largest);

  float shrink = metal::fast::exp2((row.max - largest) * LOG2_E), sum = row.sum * shrink;
  UNROLL
  for (int j = 0; j < KEY_FRAGMENTS; j++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      float score = elements(scores[j])[e];
      bool left_out = GUARD && is_minus_infinity(score);
      float weight = left_out ? 0.0f : metal::fast::exp2((score - largest) * LOG2_E);
      if (left_out) gaps |= 1u << j;
      elements(scores[j])[e] = weight;
      sum += weight;
    }
  }
  row.max = largest;
  row.sum = sum;
  return shrink;
}

// Updates all rows of a lane: P = exp(S - max), and O, in `sums`, shrinks by what each row's maximum has grown.
// Returns gaps: bit j is set if some row of this lane does not attend to some key of key fragment j.
template <bool GUARD, typename F, int ROWS, int KEY_FRAGMENTS, int VALUE_FRAGMENTS>
INLINE uint update_rows(thread RowState (&state)[ROWS], thread Fragment<float> (&sums)[ROWS][VALUE_FRAGMENTS],
                        thread Fragment<F> (&weights)[ROWS][KEY_FRAGMENTS],
                        thread Fragment<float> (&scores)[ROWS][KEY_FRAGMENTS]) {
  uint gaps = 0;
  UNROLL
  for (int r = 0; r < ROWS; r++) {
    const float shrink = update_row<GUARD>(state[r], scores[r], gaps);
    UNROLL
    for (int i = 0; i < VALUE_FRAGMENTS; i++) elements(sums[r][i]) *= shrink;
    UNROLL
    for (int j = 0; j < KEY_FRAGMENTS; j++) convert(weights[r][j], scores[r][j]);
  }
  return gaps;
}
