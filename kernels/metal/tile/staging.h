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

  INLINE void start(threadgroup T* both) thread {
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
INLINE threadgroup T* tile_at(threadgroup Staged* half_of_memory) {
  static_assert(sizeof(T) <= sizeof(Staged), "memory is laid out for the wider elements");
  return reinterpret_cast<threadgroup T*>(half_of_memory);
}

// ROWS x COLUMNS elements, spread over the threads' registers in pieces of a row, 16 bytes where the width allows it.
// `load` only issues reads, and `store` waits for them: arithmetic between the two hides their latency.
template <typename T, int ROWS, int COLUMNS, int THREADS>
struct StagedTile {
  static constexpr constant int WIDEST = 16 / int(sizeof(T));
  static constexpr constant int PIECE = COLUMNS % WIDEST == 0 ? WIDEST : FRAGMENT;  // elements
  static constexpr constant int PIECES = COLUMNS / PIECE;                           // of a row
  static constexpr constant int COUNT = (ROWS * PIECES + THREADS - 1) / THREADS;    // of a thread
  static constexpr constant bool EVEN = ROWS * PIECES % THREADS == 0;
  static constexpr constant int LD = Leading<T, COLUMNS>::value;
  static_assert(COLUMNS % PIECE == 0, "rows are made of whole pieces");

  struct alignas(sizeof(T)) Piece {  // in device memory rows begin anywhere
    T values[PIECE];
  };
  Piece pieces[COUNT];

  // Where a thread's piece i begins in the tile: i THREADS pieces after its first one, maybe in the row after that.
  struct Place {
    int row, column;
    bool wrapped;
  };
  static Place place_of_piece(uint index, int i) {
    const int piece = int(index % PIECES) + i * THREADS % PIECES;
    Place place;
    place.wrapped = i * THREADS % PIECES != 0 && piece >= PIECES;
    place.row = int(index / PIECES) + i * THREADS / PIECES + int(place.wrapped);
    place.column = (place.wrapped ? piece - PIECES : piece) * PIECE;
    return place;
  }
  static bool is_in_tile(Place place, int i) { return EVEN || i + 1 < COUNT || place.row < ROWS; }

  // Where the thread's first piece begins.
  static const device T* start_of(const thread Matrix<T>& from, Range rows, Range columns, uint index) {
    const Place place = place_of_piece(index, 0);
    return from.at(rows.first + place.row, columns.first + place.column);
  }
  // Piece i, at once where the columns lie side by side; zero beyond the end of either range.
  INLINE static Piece read(const thread Matrix<T>& from, const device T* start, Range rows, Range columns, uint index,
                    int i) {
    const Place place = place_of_piece(index, i);
    const int more_rows = i * THREADS / PIECES, more_columns = i * THREADS % PIECES * PIECE;
    start += more_rows * from.row_stride + more_columns * from.column_stride;
    if (place.wrapped) start += from.row_stride - COLUMNS * from.column_stride;
    const bool there = rows.first + place.row < rows.end && is_in_tile(place, i);
    const bool whole = columns.end - columns.first >= COLUMNS;
    if (from.column_stride == 1 && whole && there) return *reinterpret_cast<const device Piece*>(start);
    const int left = !there ? 0 : whole ? PIECE : columns.end - columns.first - place.column;
    Piece piece;
    UNROLL
    for (int e = 0; e < PIECE; e++) {
      piece.values[e] = e < left ? *start : T(0);
      start += from.column_stride;
    }
    return piece;
  }
  INLINE static void put(threadgroup T* to, Piece piece, uint index, int i) {
    const Place place = place_of_piece(index, i);
    if (is_in_tile(place, i)) *reinterpret_cast<threadgroup Piece*>(to + place.row * LD + place.column) = piece;
  }

  // Neither range is longer than the tile.
  INLINE void load(const thread Matrix<T>& from, Range rows, Range columns, uint index) thread {
    const device T* start = start_of(from, rows, columns, index);
    UNROLL
    for (int i = 0; i < COUNT; i++) pieces[i] = read(from, start, rows, columns, index, i);
  }
  INLINE void store(threadgroup T* to, uint index) const thread {
    UNROLL
    for (int i = 0; i < COUNT; i++) put(to, pieces[i], index, i);
  }

  // Both at once, some pieces at a time, for tiles that registers cannot hold.
  INLINE static void copy(const thread Matrix<T>& from, Range rows, Range columns, threadgroup T* to, uint index) {
    const device T* start = start_of(from, rows, columns, index);
    _Pragma("clang loop unroll_count(2)")
    for (int i = 0; i < COUNT; i++) put(to, read(from, start, rows, columns, index, i), index, i);
  }

  // AsyncTile is called so: its copy goes to `to` at once.
  INLINE void load(const thread Matrix<T>& from, Range rows, Range columns, threadgroup T*, uint index) thread {
    load(from, rows, columns, index);
  }
};
