// staging.h: tiles of a matrix on their way from device memory through registers to threadgroup memory.
#pragma once
#include "matrix.h"

// Elements from one row to the next of a staged tile: 16 bytes more than it needs, so that rows start in other banks.
template <typename T, int COLUMNS>
struct Leading {
  static constexpr constant int value = COLUMNS + 16 / int(sizeof(T));
};

// Two halves of threadgroup memory that take turns: one to compute on, and one for the tile ahead.
template <typename T, int SIZE>
struct Halves {
  threadgroup T* in_use;
  threadgroup T* other;

  void start(threadgroup T* both) thread {
    in_use = both;
    other = both + SIZE;
  }
  threadgroup T* now() const thread { return in_use; }
  threadgroup T* ahead() const thread { return other; }
  void swap() thread {
    threadgroup T* filled = other;
    other = in_use;
    in_use = filled;
  }
};

// A half of threadgroup memory, as where a tile of T lies: its elements may be narrower than those it was declared for.
template <typename T, typename Staged>
inline threadgroup T* tile_at(threadgroup Staged* half_of_memory) {
  static_assert(sizeof(T) <= sizeof(Staged), "memory is laid out for the wider elements");
  return reinterpret_cast<threadgroup T*>(half_of_memory);
}

// ROWS x COLUMNS elements, spread over the threads' registers. `load` only issues reads, and `store` waits for them:
// arithmetic between the two hides their latency.
template <typename T, int ROWS, int COLUMNS, int THREADS>
struct StagedTile {
  static constexpr constant int COUNT = (ROWS * COLUMNS + THREADS - 1) / THREADS;
  static constexpr constant bool EVEN = ROWS * COLUMNS % THREADS == 0;
  static constexpr constant int LD = Leading<T, COLUMNS>::value;
  T values[COUNT];

  // Where a thread's element i lies in the tile. Where whole rows make up a round of the threads, all its elements are
  // in one column, a fixed number of rows apart.
  static constexpr constant bool ONE_COLUMN = THREADS % COLUMNS == 0;
  static constexpr constant int ROUND = THREADS / COLUMNS;
  static int row_of(uint index, int i) {
    return ONE_COLUMN ? int(index / COLUMNS) + i * ROUND : int((index + i * THREADS) / COLUMNS);
  }
  static int column_of(uint index, int i) { return int((index + (ONE_COLUMN ? 0 : i * THREADS)) % COLUMNS); }

  static void put(threadgroup T* to, T value, uint index, int i) {
    int row = row_of(index, i);
    if (EVEN || row < ROWS) to[row * LD + column_of(index, i)] = value;
  }

  // Zero beyond the end of either range; neither is longer than the tile.
  void load(const thread Matrix<T>& from, Range rows, Range columns, uint index) thread {
    const device T* at = from.data;
    UNROLL
    for (int i = 0; i < COUNT; i++) {
      int row = rows.first + row_of(index, i), column = columns.first + column_of(index, i);
      if (ONE_COLUMN && i > 0) at += ROUND * from.row_stride;
      else at = from.at(row, column);
      values[i] = row < rows.end && column < columns.end ? *at : T(0);
    }
  }
  void store(threadgroup T* to, uint index) const thread {
    UNROLL
    for (int i = 0; i < COUNT; i++) put(to, values[i], index, i);
  }

  // Both at once, some elements at a time, for tiles that registers cannot hold.
  static void copy(const thread Matrix<T>& from, Range rows, Range columns, threadgroup T* to, uint index) {
    _Pragma("clang loop unroll_count(8)")
    for (int i = 0; i < COUNT; i++) {
      int row = rows.first + row_of(index, i), column = columns.first + column_of(index, i);
      put(to, row < rows.end && column < columns.end ? *from.at(row, column) : T(0), index, i);
    }
  }

  // AsyncTile is called so: its copy goes to `to` at once.
  void load(const thread Matrix<T>& from, Range rows, Range columns, threadgroup T*, uint index) thread {
    load(from, rows, columns, index);
  }
};
