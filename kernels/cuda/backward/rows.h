// rows.h: the sums that a lane holds of ROW_TILES times 16 rows, cleared and written. The kernel has its plan before it.
#pragma once
#include "../tile/products.h"

template <int N>
INLINE void clear(Sums (&sums)[ROW_TILES][N]) {
  UNROLL
  for (int r = 0; r < ROW_TILES; r++) {
    UNROLL
    for (int d = 0; d < N; d++) sums[r][d] = Sums();
  }
}

// Rows of one head, times `factor`: `columns` of them in all, from `begin` on those of this slice.
template <int N>
INLINE void write_rows(T* to, const Sums (&sums)[ROW_TILES][N], float factor, int begin, int columns, int first_row,
                       int rows, int lane) {
  UNROLL
  for (int r = 0; r < ROW_TILES; r++) {
    UNROLL
    for (int half = 0; half < 2; half++) {
      const int row = first_row + 16 * r + 8 * half + lane / 4;
      if (row >= rows) continue;
      UNROLL
      for (int d = 0; d < N; d++) {
        const int column = begin + 8 * d + 2 * (lane & 3);
        const float first = factor * sums[r][d].at[2 * half], second = factor * sums[r][d].at[2 * half + 1];
        T* at = to + int64_t(row) * columns + column;
        if (sizeof(T) == 2 && columns % 2 == 0) {
          if (column < columns) *(uint*)at = packed<T>(first, second);
        } else {
          if (column < columns) at[0] = narrowed<T>(first);
          if (column + 1 < columns) at[1] = narrowed<T>(second);
        }
      }
    }
  }
}
