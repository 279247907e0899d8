// async_copy.h: tiles of K and V from device to threadgroup memory by simdgroup_async_copy, which passes no registers.
//
// Apple does not document it, and compiles it at run time up to macOS 15 only; probe.py finds out. In a kernel that has
// this file, AsyncTile takes the place of staging.h's StagedTile wherever the strides allow it.
#pragma once
#include "../tile/staging.h"

// The compiler knows the event by this name, and the functions by their symbols.
struct _simdgroup_event_t;

// Every lane of a simdgroup calls with the same arguments. The tile at `to` is to_size = (columns, rows) elements, of
// which those beyond from_size become 0 (clamp 0). to_row and from_row: elements from one row to the next.
thread _simdgroup_event_t* start_simdgroup_copy(
    ulong element_size, ulong alignment, threadgroup void* to, ulong to_row, ulong to_element, metal::ulong2 to_size,
    const device void* from, ulong from_row, ulong from_element, metal::ulong2 from_size, metal::long2 origin,
    int clamp) __asm("air.simdgroup_async_copy_2d.p3i8.p1i8");
void wait_for_simdgroup_copies(int count, thread _simdgroup_event_t* thread* events) __asm("air.wait_simdgroup_events");

INLINE metal::ulong2 tile_size(int columns, int rows) {
  metal::ulong2 size;
  size[0] = ulong(columns);
  size[1] = ulong(rows);
  return size;
}

// Whether rows with these strides, [batch, head, row, column], can be copied: columns side by side, rows forwards.
INLINE bool can_be_copied(const constant int64_t* strides) { return strides[3] == 1 && strides[2] > 0; }

// The same tile as StagedTile's, but the first simdgroup copies it for all, and the rest goes on.
//
// Two rules, without which an M1 is said to hang until it is restarted (metal-flash-attention, GEMMHeaders.swift), and
// which the simulator watches, at whatever point a kernel ends:
// - each tile that was copied is read by some thread, before the next copy to its place and before the kernel ends; so
//   no copy is started of a tile that may not be needed;
// - a barrier of the threadgroup follows each `store`, before the kernel ends.
template <typename T, int ROWS, int COLUMNS, int THREADS>
struct AsyncTile {
  thread _simdgroup_event_t* event;

  // Starts the copy to `to`. No thread may read there until a barrier after `store`.
  void load(const thread Matrix<T>& from, Range rows, Range columns, threadgroup T* to, uint index) thread {
    if (index >= LANES) return;
    // A tile beyond the last column is never written out: any column will do for it.
    const int column = metal::min(columns.first, columns.end - 1);
    const metal::ulong2 size = tile_size(columns.end - column, rows.end - rows.first);
    event = start_simdgroup_copy(sizeof(T), alignof(T), to, Leading<T, COLUMNS>::value, 1, tile_size(COLUMNS, ROWS),
                                 from.data + (rows.first * from.row_stride + column), from.row_stride, 1, size,
                                 metal::long2(0), 0);
  }

  // Waits for the copy.
  void store(threadgroup T*, uint index) thread {
    if (index < LANES) wait_for_simdgroup_copies(1, &event);
  }
};
