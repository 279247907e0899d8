// row_tile.h: tiles of a matrix on their way from device memory to threadgroup memory, 16 bytes of a row at once.
#pragma once
#include "../tile/staging.h"

// Stands in for StagedTile of staging.h, and lays tiles out as it does.
template <typename T, int ROWS, int COLUMNS, int THREADS>
struct RowTile {
  static constexpr constant int PIECE = 16 / int(sizeof(T)) < FRAGMENT ? 16 / int(sizeof(T)) : FRAGMENT;
  static constexpr constant int PIECES = COLUMNS / PIECE;  // of a row
  static constexpr constant int COUNT = (ROWS * PIECES + THREADS - 1) / THREADS;
  static constexpr constant bool EVEN = ROWS * PIECES % THREADS == 0;
  static constexpr constant int LD = Leading<T, COLUMNS>::value;
  static_assert(COLUMNS % FRAGMENT == 0, "rows are made of whole pieces");

  struct alignas(sizeof(T)) Piece {  // in device memory rows begin anywhere
    T values[PIECE];
  };
  Piece pieces[COUNT];

  // Zero beyond the end of either range; neither is longer than the tile.
  void load(const thread Matrix<T>& from, Range rows, Range columns, uint index) thread {
    UNROLL
    for (int i = 0; i < COUNT; i++) {
      const int at = int(index) + i * THREADS;
      const int row = rows.first + at / PIECES, column = columns.first + at % PIECES * PIECE;
      const device T* start = from.at(row, column);
      if (from.column_stride == 1 && row < rows.end && column + PIECE <= columns.end) {
        pieces[i] = *reinterpret_cast<const device Piece*>(start);
      } else {
        UNROLL
        for (int e = 0; e < PIECE; e++)
          pieces[i].values[e] = row < rows.end && column + e < columns.end ? start[e * from.column_stride] : T(0);
      }
    }
  }
  void store(threadgroup T* to, uint index) const thread {
    UNROLL
    for (int i = 0; i < COUNT; i++) {
      const int at = int(index) + i * THREADS, row = at / PIECES;
      if (EVEN || row < ROWS) *reinterpret_cast<threadgroup Piece*>(to + row * LD + at % PIECES * PIECE) = pieces[i];
    }
  }

  // As AsyncTile is called.
  void load(const thread Matrix<T>& from, Range rows, Range columns, threadgroup T*, uint index) thread {
    load(from, rows, columns, index);
  }
};
