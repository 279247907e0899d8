// stream.h: tiles of K and of V, one after the other, from device memory through two halves of threadgroup memory.
//
// While the arithmetic works on one half, the next tile's reads from device memory are under way into registers; they
// are stored to the other half after it, and one barrier ends the step. (With async_copy.h they go to the other half at
// once, and are waited for after the arithmetic.)
#pragma once
#include "lane_rows.h"
#include "smooth.h"
#include "../tile/staging.h"

// T: what the threadgroup memory is declared for. Tile: StagedTile, or AsyncTile of async_copy.h.
template <typename T, typename K, typename V, typename P, template <typename, int, int, int> class Tile>
struct Stream {
  static constexpr constant int KEY_BYTES = Leading<K, P::BD>::value * int(sizeof(K));    // bytes of a row of a tile
  static constexpr constant int VALUE_BYTES = Leading<V, P::BV>::value * int(sizeof(V));
  static constexpr constant int HALF =
      P::BK * (KEY_BYTES > VALUE_BYTES ? KEY_BYTES : VALUE_BYTES) / int(sizeof(T));

  // A tile on its way: of keys, of values, or none.
  enum Kind { NOTHING, KEYS, VALUES, VALUES_AND_SCALES };
  struct Ahead {
    int kind;
    Tile<K, P::BK, P::BD, P::THREADS> keys;
    Tile<V, P::BK, P::BV, P::THREADS> values;
    ScalesAhead<P> scales;
  };

  Matrix<K> k;
  Matrix<V> v;
  Halves<T, HALF> halves;
  threadgroup uint* scales;  // those of the keys of a tile, then those of its values
  uint index;                // this thread's

  INLINE void start(Matrix<K> keys, Matrix<V> values, threadgroup T* staged, threadgroup uint* scale_words,
             uint thread_index) thread {
    k = keys;
    v = values;
    halves.start(staged);
    scales = scale_words;
    index = thread_index;
  }

  // The tile to compute on.
  threadgroup K* keys() const thread { return tile_at<K>(halves.now()); }
  threadgroup V* values() const thread { return tile_at<V>(halves.now()); }
  // In lane i the scales of its key i; any number without.
  float key_scale(uint lane) const thread { return QUANTISED ? scale_in_lane<P>(scales, lane) : 1.0f; }
  float value_scale(uint lane) const thread {
    return INT8_VALUES ? scale_in_lane<P>(scales + (SCALES - 1) * P::BK, lane) : 1.0f;
  }

  // Begins to read tile d of the columns of these keys.
  INLINE void read_keys(thread Ahead& next, Range keys, int d) const thread {
    next.kind = KEYS;
    next.keys.load(k, keys, range_of(d * P::BD, P::BD, P::HEAD_DIM), tile_at<K>(halves.ahead()), index);
  }

  // Begins to read tile d of the columns of their values; with the first tile come the scales.
  template <typename Captured>
  INLINE void read_values(thread Ahead& next, Range keys, int d, const thread LaneRows<P>& rows,
                   const thread Captured& mods) const thread {
    next.kind = SCALES > 0 && d == 0 ? VALUES_AND_SCALES : VALUES;
    next.values.load(v, keys, range_of(rows.first_value() + d * P::BV, P::BV, P::VALUE_DIM),
                     tile_at<V>(halves.ahead()), index);
    if (next.kind == VALUES_AND_SCALES) next.scales.load(rows.kv_batch, rows.kv_head, keys, mods, index);
  }

  // What was read becomes the tile to compute on.
  INLINE void turn_to(thread Ahead& next) thread {
    if (next.kind == NOTHING) return;
    if (next.kind == KEYS) next.keys.store(tile_at<K>(halves.ahead()), index);
    else next.values.store(tile_at<V>(halves.ahead()), index);
    if (next.kind == VALUES_AND_SCALES) next.scales.store(scales, index);
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    halves.swap();
  }
};
