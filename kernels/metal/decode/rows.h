// rows.h: where a thread stands -> its query rows, which are those of all heads that share one head of keys.
//
// Row r of a head of keys is row r % q_len of its query head r / q_len: rows of q and of the output lie in that order.
#pragma once
#include "../tile/fragments.h"
#include "../tile/matrix.h"
#include "plan.h"
#include "sizes.h"

// Scores are held transposed, a fragment's rows being keys, its columns query rows: a lane has one key and two rows.
template <typename P>
struct PackedRows {
  int b;
  int kv_batch, kv_head;
  int split;
  Range of_group;  // the rows of the threadgroup
  LanePlace place;
  int h[P::ROW_FRAGMENTS][2], q_idx[P::ROW_FRAGMENTS][2];  // of the last row, where one does not exist

  void start(DecodeSizes p, Thread at) thread {
    b = int(at.group.z);
    kv_batch = metal::min(b, p.kv_batches - 1);
    kv_head = int(at.group.y);
    const int row_tiles = int(at.groups.x) / p.splits;
    split = int(at.group.x) / row_tiles;
    of_group = range_of(int(at.group.x) % row_tiles * P::ROWS, P::ROWS, p.rows());
    place = place_of(at.lane);
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const int at_most = metal::min(row(r, e), p.rows() - 1);
        h[r][e] = kv_head * p.group + at_most / p.q_len;
        q_idx[r][e] = at_most % p.q_len;
      }
    }
  }

  // Element e of row fragment r.
  int row(int r, int e) const thread { return of_group.first + r * FRAGMENT + place.column + e; }
  // The number of a row, or of the last one, among those of all batches and heads.
  int64_t number(int row, DecodeSizes p) const thread {
    return (int64_t(b) * p.kv_heads + kv_head) * p.rows() + metal::min(row, p.rows() - 1);
  }
  // Where a row's partial result lies.
  int64_t partial(int row, DecodeSizes p) const thread {
    return ((int64_t(b) * p.kv_heads + kv_head) * p.splits + split) * p.rows() + row;
  }

  // The query heads of the threadgroup's rows, and their rows.
  Range heads(DecodeSizes p) const thread {
    Range range;
    range.first = kv_head * p.group + of_group.first / p.q_len;
    range.end = kv_head * p.group + (of_group.end - 1) / p.q_len + 1;
    return range;
  }
  Range queries(DecodeSizes p) const thread {
    const int head = of_group.first / p.q_len;
    if (head != (of_group.end - 1) / p.q_len) return range_of(0, p.q_len, p.q_len);
    Range range;
    range.first = of_group.first - head * p.q_len;
    range.end = of_group.end - head * p.q_len;
    return range;
  }
};

// Over the keys of a tile that the lanes hold: lanes that differ in bits 1, 2 and 4 have other keys of the same rows.
INLINE metal::float2 max_over_keys(metal::float2 x) {
  x = metal::max(x, metal::simd_shuffle_xor(x, ushort(2)));
  x = metal::max(x, metal::simd_shuffle_xor(x, ushort(4)));
  return metal::max(x, metal::simd_shuffle_xor(x, ushort(16)));
}
INLINE metal::float2 sum_over_keys(metal::float2 x) {
  x += metal::simd_shuffle_xor(x, ushort(2));
  x += metal::simd_shuffle_xor(x, ushort(4));
  return x + metal::simd_shuffle_xor(x, ushort(16));
}
