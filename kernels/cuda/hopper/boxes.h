// boxes.h: rows of q, k and v on their way to shared memory, in slabs of 64 columns.
#pragma once
#include "../tile/staging.h"
#include "memory.h"

// The rows of one head: how TMA finds them, and where they are.
struct Source {
  const void* map;
  const T* rows;
  int head, batch, count;
  bool by_tma;
};

// map: of q, k and v its place among the maps, behind which stands whether TMA can take it (maps.cu).
INLINE Source source(const uint8_t* maps, int map, const T* data, int heads, int head, int batch, int count, int columns) {
  constexpr int MAP_BYTES = 128, MAPS = 3;
  const int64_t first_row = (int64_t(batch) * heads + head) * count;
  const bool by_tma = ((const int*)(maps + MAPS * MAP_BYTES))[map];
  return {maps + map * MAP_BYTES, data + first_row * columns, head, batch, count, by_tma};
}

// What TMA would do, by the lanes of a warp, element by element: an array that begins inside 16 bytes is rare.
template <int ROWS, int COLUMNS>
INLINE void copy_slab(T (*slab)[SLAB], const T* rows, int count, int first, int column, int lane) {
  ROLLED
  for (int i = lane; i < ROWS * SLAB; i += LANES) {
    const int row = i / SLAB, at = i % SLAB;
    const bool exists = first + row < count && column + at < COLUMNS;
    const int chunk = at / 8 ^ (row & 7);  // 16 bytes, as the swizzle puts them
    slab[row][8 * chunk + at % 8] = exists ? rows[int64_t(first + row) * COLUMNS + column + at] : narrowed<T>(0.0f);
  }
}

// ROWS rows from `first` on, of COLUMNS columns: by one warp. The barrier is told when they are there.
template <int ROWS, int COLUMNS, int SLABS>
INLINE void load_rows(T (&to)[SLABS][ROWS][SLAB], const Source& from, int first, uint64_t* barrier, int lane) {
  if (from.by_tma) {
    if (lane == 0) {
      arrive_and_expect(barrier, sizeof(to));
      for (int s = 0; s < SLABS; s++) load_box(to[s], from.map, barrier, s * SLAB, first, from.head, from.batch);
    }
  } else {
    ROLLED
    for (int s = 0; s < SLABS; s++) copy_slab<ROWS, COLUMNS>(to[s], from.rows, from.count, first, s * SLAB, lane);
    show_writes();
    __syncwarp();
    give_back(barrier, lane);
  }
}
