// products.h: the two kinds of matrix products of gradients, over tiles of B columns in threadgroup memory.
//
// Scores are summed in the order of the forward kernel, so that equal ones are equal here too. Gradients may be beyond
// half: weights are float, whatever T is.
#pragma once
#include "../attention/products.h"
#include "own_rows.h"

// sums += own rows, times the rows of a tile transposed, in fragment d of this part's columns. `tile` counts tiles of
// columns.
template <typename P, int B, typename Own, typename T>
INLINE void multiply_own_fragment(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
                                  const thread Own& own, const thread int* row, const threadgroup T* others, int tile,
                                  int d, LanePlace place) {
  typedef typename ProductOf<T>::type F;
  constexpr int LD = Leading<T, B>::value;
  Fragment<F> mine[P::ROW_FRAGMENTS], other;
  others += (own.part * Own::OF_TILE + d) * FRAGMENT;
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) own.get(mine[r], r, row, tile * Own::OF_TILE + d, place);
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    load_transposed<LD>(other, others + j * FRAGMENT * LD, place);
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++)
      metal::simdgroup_multiply_accumulate(sums[r][j], mine[r], other, sums[r][j]);
  }
}

// The same in all fragments of the tile's columns: Q K^T, d_out V^T, and these transposed. A loop keeps few loads under
// way, so that they do not crowd out sums; where own rows are in registers each needs a number known beforehand.
template <typename P, int B, typename Own, typename T>
INLINE void multiply_own(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], const thread Own& own,
                         const thread int* row, const threadgroup T* others, int tile, LanePlace place) {
  if (Own::HELD) {
    UNROLL
    for (int d = 0; d < Own::OF_TILE; d++) multiply_own_fragment<P, B>(sums, own, row, others, tile, d, place);
  } else {
    ROLLED
    for (int d = 0; d < Own::OF_TILE; d++) multiply_own_fragment<P, B>(sums, own, row, others, tile, d, place);
  }
}

// sums += weights, times the rows of a tile, in this part of its columns: dS K, dS^T Q, P^T d_out. The sums' columns
// begin with those of `tile`.
//
// GAPS: some weights are 0 because a row and a row of the tile do not attend to each other, and what the latter holds
// must not reach the former, be it infinite or nan: such values count as 0. Where a weight is not 0 beside one, it is
// nan already: from a score that is infinite or nan itself, or by differentiate.h.
template <bool GAPS, typename P, int B, int N, typename T>
INLINE void add_weighted(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][N],
                         thread Fragment<float> (&weights)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
                         const threadgroup T* others, int tile, int part, LanePlace place) {
  constexpr int LD = Leading<T, B>::value, COLUMNS = B / FRAGMENT / P::PARTS;
  others += part * COLUMNS * FRAGMENT;
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    UNROLL
    for (int d = 0; d < COLUMNS; d++) {
      Fragment<float> other;
      load<LD>(other, others + j * FRAGMENT * LD + d * FRAGMENT, place);
      if (GAPS && is_special(elements(other)[0])) elements(other)[0] = 0.0f;
      if (GAPS && is_special(elements(other)[1])) elements(other)[1] = 0.0f;
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++)
        metal::simdgroup_multiply_accumulate(sums[r][tile * COLUMNS + d], weights[r][j], other,
                                             sums[r][tile * COLUMNS + d]);
    }
  }
}

// Either; gaps: the same in all lanes.
template <typename P, int B, int N, typename T>
INLINE void add_rows(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][N],
                     thread Fragment<float> (&weights)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
                     const threadgroup T* others, int tile, bool gaps, int part, LanePlace place) {
  if (gaps) add_weighted<true, P, B>(sums, weights, others, tile, part, place);
  else add_weighted<false, P, B>(sums, weights, others, tile, part, place);
}
