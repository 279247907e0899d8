// slabs.h: how matrices lie in shared memory: in slabs of 64 columns, rows of 128 bytes, which TMA swizzles as wgmma
// reads them; and the turns in which a ring of such stages is filled and read.
#pragma once
#include "../tile/types.h"

constexpr int SLAB = 64;  // columns
constexpr int WARPGROUP = 128;
constexpr int MAP_BYTES = 128, MOST_MAPS = 4;  // of tensor maps (maps.cu)

// Whether TMA can take the array of a map: it cannot, where its elements begin inside 16 bytes.
INLINE bool is_aligned(const uint8_t* maps, int map) { return ((const int*)(maps + MOST_MAPS * MAP_BYTES))[map] != 0; }

// What TMA would bring of one slab, by the lanes of a warp, element by element: slow, and rare. rows: of one head, with
// `columns` columns each, `count` of them; what does not exist is 0.
template <typename T, int ROWS>
INLINE void copy_slab(T (*slab)[SLAB], const T* rows, int count, int columns, int first, int column, int lane) {
  ROLLED
  for (int i = lane; i < ROWS * SLAB; i += LANES) {
    const int row = i / SLAB, at = i % SLAB;
    const bool exists = first + row < count && column + at < columns;
    const int chunk = at / 8 ^ (row & 7);  // 16 bytes, as the swizzle puts them
    slab[row][8 * chunk + at % 8] = exists ? rows[int64_t(first + row) * columns + column + at] : narrowed<T>(0.0f);
  }
}

// A stage of a ring of STAGES, and the phase of its barriers.
template <int STAGES>
struct TurnOf {
  int stage, phase;
  INLINE TurnOf next() const {
    const bool last = stage == STAGES - 1;
    return {last ? 0 : stage + 1, last ? phase ^ 1 : phase};
  }
};
