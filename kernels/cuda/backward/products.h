// products.h: the two kinds of matrix products of gradients, a warp's, over rows in shared memory.
#pragma once
#include "plan.h"
#include "../tile/products.h"

// A pair of products. SWAPPED: the factors have changed places, and float32 adds its parts as if they had not.
template <bool SWAPPED, typename Left, typename Right>
INLINE void multiply_in_order(Sums& c0, Sums& c1, const Left& a, const Right& b) {
  if constexpr (SWAPPED && sizeof(T) == 4) {
    UNROLL
    for (int k = 0; k < 2; k++) {
      ptx::mma_m16n8k8_tf32(c0.at, a.high[k], b.low[k][0], b.low[k][1]);
      ptx::mma_m16n8k8_tf32(c0.at, a.low[k], b.high[k][0], b.high[k][1]);
      ptx::mma_m16n8k8_tf32(c0.at, a.high[k], b.high[k][0], b.high[k][1]);
      ptx::mma_m16n8k8_tf32(c1.at, a.high[k], b.low[k][2], b.low[k][3]);
      ptx::mma_m16n8k8_tf32(c1.at, a.low[k], b.high[k][2], b.high[k][3]);
      ptx::mma_m16n8k8_tf32(c1.at, a.high[k], b.high[k][2], b.high[k][3]);
    }
  } else {
    Step<T>::multiply_pair(c0, c1, a, b);
  }
}

// Zeros for what is infinite or nan; split() has that in the low part.
template <typename Right>
INLINE void clear_specials(Right& b) {
  UNROLL
  for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(T) == 4) {
      UNROLL
      for (int k = 0; k < 2; k++) b.low[k][i] = is_special<float>(b.low[k][i]) ? 0u : b.low[k][i];
    } else {
      const uint low = b.at[i] & 0xffffu, high = b.at[i] & 0xffff0000u;
      b.at[i] = (is_special<T>(low) ? 0u : low) | (is_special<T>(high) ? 0u : high);
    }
  }
}

// sums += own rows, times rows of a tile transposed: Q K^T, d_out V^T, and these transposed.
template <int COLUMNS, int LD, bool SWAPPED>
INLINE void multiply_own(Sums (&sums)[ROW_TILES][OTHERS], const T* own, const T* others, int lane) {
  typedef typename Step<T>::Left Left;
  typedef typename Step<T>::Right Right;
  const auto multiply = [](Sums& c0, Sums& c1, const Left& a, const Right& b) { multiply_in_order<SWAPPED>(c0, c1, a, b); };
  multiply_transposed<COLUMNS, LD>(sums, own, others, lane, multiply);
}

// sums += weights, times rows of a tile, in N tiles of their columns from `begin` on: dS K, dS^T Q, P^T d_out.
//
// GAPS: some weights are 0 because a row and a row of the tile do not attend to each other, and what the latter holds
// must not reach the former, be it infinite or nan: such values count as 0. Where a weight is not 0 beside one, it is
// nan already: from a score that is infinite or nan itself, or by differentiate.h.
template <bool GAPS, int COLUMNS, int LD, int N>
INLINE void add_weighted(Sums (&sums)[ROW_TILES][N], const Sums (&weights)[ROW_TILES][OTHERS], const T* others,
                         int begin, int lane) {
  UNROLL
  for (int j = 0; j < OTHERS; j += 2) {
    typename Step<T>::Left left[ROW_TILES];
    UNROLL
    for (int r = 0; r < ROW_TILES; r++) Step<T>::left_of(left[r], &weights[r][j]);
    UNROLL
    for (int d = 0; d < N; d += 2) {
      if (SLICES > 1 && begin + 8 * d >= COLUMNS) break;  // the last slice may have fewer
      typename Step<T>::Right right;
      Step<T>::template load_values<LD>(right, others + 8 * j * LD + begin + 8 * d, lane);
      if (GAPS) clear_specials(right);
      UNROLL
      for (int r = 0; r < ROW_TILES; r++) Step<T>::multiply_pair(sums[r][d], sums[r][d + 1], left[r], right);
    }
  }
}

// Either; gaps: the same in all lanes.
template <int COLUMNS, int LD, int N>
INLINE void add_rows(Sums (&sums)[ROW_TILES][N], const Sums (&weights)[ROW_TILES][OTHERS], const T* others, int begin,
                     bool gaps, int lane) {
  if (gaps) add_weighted<true, COLUMNS, LD>(sums, weights, others, begin, lane);
  else add_weighted<false, COLUMNS, LD>(sums, weights, others, begin, lane);
}
