// lane_rows.h: where a thread stands -> its query rows, what they read of k and v, and what it writes.
#pragma once
#include "../tile/fragments.h"
#include "../tile/matrix.h"
#include "params.h"
#include "plan.h"

template <typename P>
struct LaneRows {
  int b, h;
  int kv_batch, kv_head;
  int q_tile, q_tiles;  // the threadgroup's tile of query rows, and how many this launch takes
  int slice;            // its slice of value columns
  int part;             // the simdgroup's part of the columns of a tile
  int first_row;        // the first row of the simdgroup
  int q_idx[P::ROW_FRAGMENTS];  // the last row's, where a row does not exist
  Range of_group, of_simdgroup;
  bool exist;  // the simdgroup has at least one row
  LanePlace place;

  // The last rows come first: under a causal mask they have the most keys.
  INLINE void start(AttentionParams p, Thread at) thread {
    b = int(at.group.z);
    h = int(at.group.y);
    kv_batch = metal::min(b, p.kv_batches - 1);
    kv_head = h / (p.query_heads / p.kv_heads);
    q_tiles = int(at.groups.x) / P::VALUE_SLICES;
    q_tile = p.first_tile + q_tiles - 1 - int(at.group.x) / P::VALUE_SLICES;
    slice = int(at.group.x) % P::VALUE_SLICES;
    part = int(at.simdgroup) % P::PARTS;
    first_row = q_tile * P::BQ + int(at.simdgroup) / P::PARTS * P::ROWS;
    place = place_of(at.lane);
    exist = first_row < p.q_len;
    of_group = range_of(q_tile * P::BQ, P::BQ, p.q_len);
    of_simdgroup = range_of(first_row, P::ROWS, p.q_len);
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) q_idx[r] = metal::min(row(r), p.q_len - 1);
  }

  int row(int r) const thread { return first_row + r * FRAGMENT + place.row; }
  int first_value() const thread { return slice * P::VALUE_TILES * P::BV; }  // the first column of v, of all parts
};
