// own_rows.h: the rows that a simdgroup has for the whole kernel (queries and their d_out, or keys and their values),
// as the left operand of products: kept in registers, in threadgroup memory, or read again for each tile.
#pragma once
#include "../attention/plan.h"
#include "../tile/fragments.h"
#include "../tile/staging.h"

// Template arguments of the kernels.
enum Keeping { IN_REGISTERS = 0, IN_THREADGROUP = 1, IN_DEVICE = 2 };

// COLUMNS: of the matrix. WIDTH: of its tiles of B columns, all together; of each tile a simdgroup has its part.
template <typename T, typename P, int KEPT, int COLUMNS, int WIDTH, int B>
struct OwnRows {
  typedef typename ProductOf<T>::type F;
  static constexpr constant int FRAGMENTS = WIDTH / FRAGMENT / P::PARTS, OF_TILE = B / FRAGMENT / P::PARTS;
  static constexpr constant int LD = Leading<T, WIDTH>::value;
  static constexpr constant bool HELD = KEPT == IN_REGISTERS;
  Fragment<F> held[P::ROW_FRAGMENTS][HELD ? FRAGMENTS : 1];
  Matrix<T> rows;
  const threadgroup T* staged;  // the first row of this simdgroup
  int part;

  // The next barrier makes what is in threadgroup memory readable. row: of each fragment, the lane's; of_group: all.
  INLINE void start(Matrix<T> from, const thread int* row, Range of_group, threadgroup T* memory, LanePlace place,
             Thread at) thread {
    rows = from;
    part = int(at.simdgroup) % P::PARTS;
    if (HELD) {
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
        UNROLL
        for (int d = 0; d < FRAGMENTS; d++) read(held[r][HELD ? d : 0], row[r], d, place);
      }
    }
    if (KEPT == IN_THREADGROUP) {
      StagedTile<T, P::BQ, WIDTH, P::THREADS>::copy(from, of_group, range_of(0, WIDTH, COLUMNS), memory, at.index());
      staged = memory + int(at.simdgroup) / P::PARTS * P::ROWS * LD;
    }
  }

  // The first column of this part's fragment d.
  INLINE int column_of(int d) const thread {
    return ((d / OF_TILE * P::PARTS + part) * OF_TILE + d % OF_TILE) * FRAGMENT;
  }

  // Fragment d of a row, from device memory.
  INLINE void read(thread Fragment<F>& f, int row, int d, LanePlace place) const thread {
    const device T* from = rows.at(row, 0);
    int column = column_of(d) + place.column;
    F first = column < COLUMNS ? F(from[column * rows.column_stride]) : F(0);
    F second = column + 1 < COLUMNS ? F(from[(column + 1) * rows.column_stride]) : F(0);
    set(f, first, second);
  }

  INLINE void get(thread Fragment<F>& f, int r, const thread int* row, int d, LanePlace place) const thread {
    if (HELD) f = held[r][HELD ? d : 0];
    else if (KEPT == IN_THREADGROUP) load<LD>(f, staged + r * FRAGMENT * LD + column_of(d), place);
    else read(f, row[r], d, place);
  }
};
