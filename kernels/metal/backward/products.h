// products.h: the two kinds of matrix products of gradients, over tiles of B columns in threadgroup memory.
//
// Scores are summed in the order of the forward kernel, so that equal ones are equal here too. Gradients may be beyond
// half: weights are float, whatever T is.
#pragma once
#include "../attention/products.h"
#include "own_rows.h"

// sums += own rows, times the rows of a tile transposed, in fragment d of its columns. `tile` counts tiles of columns.
template <typename P, int B, typename Own, typename T>
inline void multiply_own_fragment(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
                                  const thread Own& own, const thread int* row, const threadgroup T* others, int tile,
                                  int d, LanePlace place) {
  typedef typename ProductOf<T>::type F;
  constexpr int LD = Leading<T, B>::value;
  Fragment<F> mine[P::ROW_FRAGMENTS], other;
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) own.get(mine[r], r, row, tile * (B / FRAGMENT) + d, place);
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    load_transposed<LD>(other, others + j * FRAGMENT * LD + d * FRAGMENT, place);
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++)
      metal::simdgroup_multiply_accumulate(sums[r][j], mine[r], other, sums[r][j]);
  }
}

// The same in all fragments of the tile's columns: Q K^T, d_out V^T, and these transposed. A loop keeps few loads under
// way, so that they do not crowd out sums; where own rows are in registers each needs a number known beforehand.
template <typename P, int B, typename Own, typename T>
inline void multiply_own(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], const thread Own& own,
                         const thread int* row, const threadgroup T* others, int tile, LanePlace place) {
  if (Own::HELD) {
    UNROLL
    for (int d = 0; d < B / FRAGMENT; d++) multiply_own_fragment<P, B>(sums, own, row, others, tile, d, place);
  } else {
    ROLLED
    for (int d = 0; d < B / FRAGMENT; d++) multiply_own_fragment<P, B>(sums, own, row, others, tile, d, place);
  }
}

// sums += weights, times the rows of a tile: dS K, dS^T Q, P^T d_out. The sums' columns begin with those of `tile`.
template <typename P, int B, int N, typename T>
inline void add_weighted(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][N],
                         thread Fragment<float> (&weights)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
                         const threadgroup T* others, int tile, LanePlace place) {
  constexpr int LD = Leading<T, B>::value, COLUMNS = B / FRAGMENT;
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    UNROLL
    for (int d = 0; d < COLUMNS; d++) {
      Fragment<float> other;
      load<LD>(other, others + j * FRAGMENT * LD + d * FRAGMENT, place);
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++)
        metal::simdgroup_multiply_accumulate(sums[r][tile * COLUMNS + d], weights[r][j], other,
                                             sums[r][tile * COLUMNS + d]);
    }
  }
}

// add_weighted where a weight of 0 leaves its row out, whatever that holds. This is rare: loops keep it small.
template <typename P, int B, int N, typename T>
inline void add_weighted_special(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][N],
                                 thread Fragment<float> (&weights)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
                                 const threadgroup T* others, int tile, LanePlace place) {
  constexpr int LD = Leading<T, B>::value, COLUMNS = B / FRAGMENT;
  ROLLED
  for (int i = 0; i < P::KEY_FRAGMENTS * COLUMNS; i++) {
    const int j = i / COLUMNS, d = i % COLUMNS;
    Fragment<float> other, marks;
    load<LD>(other, others + j * FRAGMENT * LD + d * FRAGMENT, place);
    const bool special = split_values(other, marks);
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      Fragment<float> weight = weights[r][0], sum;
      UNROLL
      for (int n = 1; n < P::KEY_FRAGMENTS; n++) {
        if (n == j) elements(weight) = elements(weights[r][n]);
      }
      clear(sum);
      if (special) add_marked(sum, weight, marks);
      metal::simdgroup_multiply_accumulate(sum, weight, other, sum);
      UNROLL
      for (int n = 0; n < COLUMNS; n++) {
        if (n == d) elements(sums[r][tile * COLUMNS + n]) += elements(sum);
      }
    }
  }
}

// What holds_special asks of a plan.
template <int B>
struct TileOf {
  static constexpr constant int BV = B;
};

// One of the two; gaps: bit j is set where a row leaves out some row of the tile's fragment j, the same in all lanes.
template <typename P, int B, int N, typename T>
inline void add_rows(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][N],
                     thread Fragment<float> (&weights)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
                     const threadgroup T* others, int tile, uint gaps, LanePlace place, uint lane) {
  if (gaps != 0 && holds_special<T, TileOf<B>>(others, gaps, lane))
    add_weighted_special<P, B>(sums, weights, others, tile, place);
  else add_weighted<P, B>(sums, weights, others, tile, place);
}
