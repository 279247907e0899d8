// probe.metal: one simdgroup copies a tile of 8 x 8 out of an array of 6 rows, and writes what arrived.
#include "async_copy.h"

INLINE void copy_a_tile(const device float* from, threadgroup float* staged, device float* out, uint lane) {
  Matrix<float> matrix;
  matrix.data = from;
  matrix.row_stride = FRAGMENT;
  matrix.column_stride = 1;
  AsyncTile<float, FRAGMENT, FRAGMENT, LANES> tile;
  tile.load(matrix, range_of(0, FRAGMENT, 6), range_of(0, FRAGMENT, FRAGMENT), staged, lane);
  tile.store(staged, lane);
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  for (int i = int(lane); i < FRAGMENT * FRAGMENT; i += LANES)
    out[i] = staged[i / FRAGMENT * Leading<float, FRAGMENT>::value + i % FRAGMENT];
}

// -- body: what MLX puts between the braces --
threadgroup float staged[FRAGMENT * Leading<float, FRAGMENT>::value];
copy_a_tile(from, staged, out, thread_index_in_simdgroup);
