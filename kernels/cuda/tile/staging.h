// staging.h: rows of a tensor on their way to shared memory, asynchronously where 16 bytes of a row lie together.
#pragma once
#include "types.h"

// A tensor, [batch, head, row, column], whose columns lie together; strides in elements.
template <typename T>
struct View {
  const T* data;
  int64_t batch_stride, head_stride, row_stride;

  INLINE const T* head(int64_t batch, int64_t head) const { return data + batch * batch_stride + head * head_stride; }
};
// Row after row.
template <typename T>
INLINE View<T> packed_view(const T* data, int64_t heads, int64_t rows, int64_t columns) {
  return {data, heads * rows * columns, rows * columns, columns};
}
// By where the neighbours of its first element lie: MLX hands over no strides.
template <typename T>
INLINE View<T> lying_view(const T* data, const T* next_batch, const T* next_head, const T* next_row) {
  return {data, next_batch - data, next_head - data, next_row - data};
}

// Rows of one head: row i begins at data + i * stride.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
  int count;  // rows that exist; those behind are zeros
};
template <typename T>
INLINE Rows<T> rows_of(const T* data, int64_t stride, int count) {
  Rows<T> rows;
  rows.data = data;
  rows.stride = stride;
  rows.count = count;
  return rows;
}

// ROWS rows of COLUMNS elements, of which the first `WIDTH` exist, to rows of LD elements of shared memory.
// A thread's share of them: it may look at those before others may.
template <typename T, int ROWS, int WIDTH, int COLUMNS, int LD, int THREADS>
struct Staged {
  static constexpr int VECTOR = 16 / sizeof(T), PER_ROW = COLUMNS / VECTOR, ALL = ROWS * PER_ROW;
  static_assert(COLUMNS % VECTOR == 0 && LD % VECTOR == 0, "16 bytes at a time");

  // first: of the rows; begin: the first column.
  static INLINE void load(T* to, const Rows<T>& rows, int first, int begin, int thread) {
    const bool aligned = ((uint64_t(rows.data) | uint64_t(rows.stride * sizeof(T))) & 15) == 0;
    UNROLL
    for (int i = 0; i < (ALL + THREADS - 1) / THREADS; i++) {
      const int at = i * THREADS + thread, row = at / PER_ROW, column = at % PER_ROW * VECTOR;
      if (ALL % THREADS != 0 && at >= ALL) break;
      const bool exists = first + row < rows.count;
      const int left = exists ? larger(0, smaller(VECTOR, WIDTH - begin - column)) : 0;
      const T* from = rows.data + (exists ? first + row : 0) * rows.stride + (left > 0 ? begin + column : 0);
      if (aligned) {
        ptx::cp_async_16(ptx::shared_address(to + row * LD + column), from, left * sizeof(T));
      } else {
        UNROLL
        for (int e = 0; e < VECTOR; e++) to[row * LD + column + e] = e < left ? from[e] : narrowed<T>(0.0f);
      }
    }
  }

  static INLINE bool is_special_at(const T* staged, int at) {
    const uint4 words = *(const uint4*)(staged + at / PER_ROW * LD + at % PER_ROW * VECTOR);
    return is_special<T>(words.x) || is_special<T>(words.y) || is_special<T>(words.z) || is_special<T>(words.w);
  }
  // Whether some element of this thread's share is infinite or nan.
  static INLINE bool holds_special(const T* staged, int thread) {
    bool special = false;
    UNROLL
    for (int i = 0; i < (ALL + THREADS - 1) / THREADS; i++) {
      const int at = i * THREADS + thread;
      if (ALL % THREADS == 0 || at < ALL) special = special || is_special_at(staged, at);
    }
    return special;
  }
  // Sets the bits of rows that have one.
  static INLINE void mark_special(uint* rows, const T* staged, int thread) {
    ROLLED
    for (int at = thread; at < ALL; at += THREADS) {
      const int row = at / PER_ROW;
      if (is_special_at(staged, at)) atomicOr(rows + row / 32, 1u << row % 32);
    }
  }
  // Zeros in the rows whose bits are set.
  static INLINE void clear(const uint* rows, T* staged, int thread) {
    ROLLED
    for (int at = thread; at < ALL; at += THREADS) {
      const int row = at / PER_ROW;
      if ((rows[row / 32] >> row % 32) & 1) *(uint4*)(staged + row * LD + at % PER_ROW * VECTOR) = uint4();
    }
  }
};
