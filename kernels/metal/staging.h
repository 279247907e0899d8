// staging.h: tiles of K and V on their way from device memory through registers to threadgroup memory.
#pragma once
#include "plan.h"

// One head of q, k or v: rows of head_dim elements, any strides.
template <typename T>
struct Rows {
  const device T* data;
  int64_t row_stride;  // in elements
  int64_t column_stride;
  int rows;
};
template <typename T>
inline Rows<T> rows_of(const device T* data, const constant int64_t* strides, int batch, int head, int rows) {
  Rows<T> r;
  r.data = data + batch * strides[0] + head * strides[1];
  r.row_stride = strides[2];
  r.column_stride = strides[3];
  r.rows = rows;
  return r;
}

// Elements from one row to the next of a staged tile: 16 bytes more than it needs, so that rows start in other banks.
template <typename T, int WIDTH>
struct Leading {
  static constexpr constant int value = WIDTH + 16 / int(sizeof(T));
};

// Half of threadgroup memory, as where a tile of T lies: that of keys may have narrower elements than that of values.
template <typename T, typename Staged>
inline threadgroup T* tile_at(threadgroup Staged* half_of_memory) {
  static_assert(sizeof(T) <= sizeof(Staged), "memory is laid out for the wider elements");
  return reinterpret_cast<threadgroup T*>(half_of_memory);
}

// BK rows of WIDTH columns, spread over the threads' registers. `load` only issues reads, and `store` waits for
// them: arithmetic between the two hides their latency.
template <typename T, int BK, int WIDTH, int DIM, int THREADS>
struct StagedTile {
  static constexpr constant int COUNT = (BK * WIDTH + THREADS - 1) / THREADS;
  static constexpr constant bool EVEN = BK * WIDTH % THREADS == 0;
  static constexpr constant int LD = Leading<T, WIDTH>::value;
  T values[COUNT];

  // Where a thread's element i lies in the tile. Where whole rows make up a round of the threads, all its elements are
  // in one column, a fixed number of rows apart.
  static constexpr constant bool ONE_COLUMN = THREADS % WIDTH == 0;
  static constexpr constant int ROUND = THREADS / WIDTH;
  static int row_of(uint index, int i) {
    return ONE_COLUMN ? int(index) / WIDTH + i * ROUND : (int(index) + i * THREADS) / WIDTH;
  }
  static int column_of(uint index, int i) { return (int(index) + (ONE_COLUMN ? 0 : i * THREADS)) % WIDTH; }

  // Rows from first_row and columns from first_column on; zero beyond the last of either.
  void load(const thread Rows<T>& from, int first_row, int first_column, uint index) thread {
    const device T* at = from.data;
    UNROLL
    for (int i = 0; i < COUNT; i++) {
      int row = first_row + row_of(index, i), column = first_column + column_of(index, i);
      if (ONE_COLUMN && i > 0) at += ROUND * from.row_stride;
      else at = from.data + row * from.row_stride + column * from.column_stride;
      bool inside = row < from.rows && (DIM % WIDTH == 0 || column < DIM) && (EVEN || row < first_row + BK);
      values[i] = inside ? *at : T(0);
    }
  }

  // The call of AsyncTile, whose copy goes to `to` at once.
  void load(const thread Rows<T>& from, int first_row, int first_column, threadgroup T*, uint index) thread {
    load(from, first_row, first_column, index);
  }

  void store(threadgroup T* to, uint index) const thread {
    UNROLL
    for (int i = 0; i < COUNT; i++) {
      int row = row_of(index, i);
      if (EVEN || row < BK) to[row * LD + column_of(index, i)] = values[i];
    }
  }
};
