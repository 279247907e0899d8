// boxes.h: rows of q, k and v on their way to shared memory, in slabs of 64 columns.
#pragma once
#include "memory.h"

// The rows of one head: how TMA finds them, and where they are.
struct Source {
  const void* map;
  const T* rows;
  int head, batch, count;
  bool by_tma;
};

// map: of q, k and v its place among the maps.
INLINE Source source(const uint8_t* maps, int map, const T* data, int heads, int head, int batch, int count, int columns) {
  const int64_t first_row = (int64_t(batch) * heads + head) * count;
  return {maps + map * MAP_BYTES, data + first_row * columns, head, batch, count, is_aligned(maps, map)};
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
    for (int s = 0; s < SLABS; s++) {
      copy_slab<T, ROWS>(to[s], from.rows, from.count, COLUMNS, first, s * SLAB, lane);
    }
    show_writes();
    __syncwarp();
    give_back(barrier, lane);
  }
}
