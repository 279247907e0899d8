// pair_sums.h: the gradients of one captured array, where a site reads other elements for the pairs of a row.
//
// Every sum has one thread that adds to it, in the order of tiles and of pairs in them: it needs no atomics and gives
// the same bits always.
#pragma once
#include "../attention/lane_rows.h"
#include "../mod/score_gradient.h"

// Which element a pair of a query row and a key reads: one for each difference of the two; one of its own; any.
enum Pattern { DIAGONAL = 0, DENSE = 1, TABLE = 2 };

// sums: in device memory, 0 at first. DIAGONAL: one for each q_idx - kv_idx, from 1 - kv_len on. DENSE, TABLE: one for
// each element. values, elements: of the pairs of a tile, in threadgroup memory, not for DENSE, and elements for TABLE.
template <typename P, int PATTERN>
struct PairSums {
  device float* sums;
  threadgroup float* values;
  threadgroup int* elements;
  int simdgroup;  // of this lane

  static constexpr constant int LD = P::BK + 1;
  static constexpr constant int DIAGONALS = P::BQ + P::BK - 1;  // of a tile
  static_assert(DIAGONALS <= P::THREADS, "a thread has one of them");

  int pair(int r, int column, const thread LaneRows<P>& rows) const thread {
    return (simdgroup * P::ROWS + r * FRAGMENT + rows.place.row) * LD + column;
  }

  // d_score: the gradient of a modified score, 0 where it is not attended to.
  template <typename Captured>
  void add(int r, int column, float d_score, const thread ScoreGradient& found, float score,
           const thread LaneRows<P>& rows, int q_idx, int kv_idx, const thread Captured& mods) thread {
    const bool counts = d_score != 0.0f && rows.row(r) == q_idx;  // not the last row again, where there is none
    const float value = counts ? d_score * found.sites[0] : 0.0f;
    if (PATTERN == DENSE) {
      if (counts) sums[element(mods, score, rows.b, rows.h, q_idx, kv_idx)] += value;
      return;
    }
    const int at = pair(r, column, rows);
    values[at] = value;
    if (PATTERN == TABLE) elements[at] = int(element(mods, score, rows.b, rows.h, q_idx, kv_idx));
  }

  // A tile that no row of this simdgroup attends to.
  void add_nothing(const thread LaneRows<P>& rows) const thread {
    if (PATTERN == DENSE) return;
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int i = 0; i < 2 * P::KEY_FRAGMENTS; i++)
        values[pair(r, i / 2 * FRAGMENT + rows.place.column + i % 2, rows)] = 0.0f;
    }
  }

  // Adds the pairs of a tile, which all have been staged, to their sums; each thread to those of its own number.
  void collect(int q_first, int kv_first, AttentionParams p, uint index) const thread {
    if (PATTERN == DIAGONAL) {
      const int first = q_first - kv_first - (P::BK - 1) + p.kv_len - 1;  // of the tile's diagonals; maybe negative
      int mine = (int(index) - first) % P::THREADS;
      if (mine < 0) mine += P::THREADS;
      const int diagonal = first + mine;
      if (mine >= DIAGONALS || diagonal < 0 || diagonal >= p.q_len + p.kv_len - 1) return;
      float sum = 0.0f;
      ROLLED
      for (int column = 0; column < P::BK; column++) {
        const int row = column + mine - (P::BK - 1);
        if (row >= 0 && row < P::BQ) sum += values[row * LD + column];
      }
      sums[int64_t(diagonal)] += sum;
    }
    if (PATTERN == TABLE) {
      ROLLED
      for (int i = 0; i < P::BQ * P::BK; i++) {
        const int at = i / P::BK * LD + i % P::BK;
        const float value = values[at];
        if (value != 0.0f && elements[at] % P::THREADS == int(index)) sums[int64_t(elements[at])] += value;
      }
    }
  }
};
