// gradient_rows.h: what a gradient kernel adds to plan.h, and how it writes its rows.
#pragma once
#include "../attention/lane_rows.h"
#include "products.h"

// HEAD_KEPT, VALUE_KEPT: where a threadgroup's own rows of q or k, and of d_out or v, are kept, as own_rows.h has it.
// SLICES: threadgroups that share the columns of the gradients of one tile of rows, each computing all scores again.
// HEAD_STAGED: elements of threadgroup memory for own rows of q or k. MAX: max_scores has a gradient.
template <typename P, int HEAD_KEPT, int VALUE_KEPT, int SLICES, int HEAD_STAGED_, bool MAX_>
struct GradientPlan {
  static constexpr constant int HEAD_STAGED = HEAD_STAGED_;
  static constexpr constant bool MAX = MAX_;
  // Tiles of columns of one slice, and the fragments that a simdgroup has of them.
  static constexpr constant int HEAD_TILES = (P::HEAD_TILES + SLICES - 1) / SLICES;
  static constexpr constant int VALUE_TILES = (P::VALUE_TILES + SLICES - 1) / SLICES;
  static constexpr constant int HEAD_SUMS = HEAD_TILES * P::KEY_COLUMNS;
  static constexpr constant int VALUE_SUMS = VALUE_TILES * P::VALUE_COLUMNS;
  // Both tiles of a step lie in threadgroup memory at once, a half each, and serve twice.
  static constexpr constant bool WHOLE = P::HEAD_TILES == 1 && P::VALUE_TILES == 1;

  template <typename T, typename Q>
  using HeadRows = OwnRows<T, Q, HEAD_KEPT, P::HEAD_DIM, P::HEAD_TILES * P::BD, P::BD>;
  template <typename T, typename Q>
  using ValueRows = OwnRows<T, Q, VALUE_KEPT, P::VALUE_DIM, P::VALUE_TILES * P::BV, P::BV>;

  // Its slice; `at` is then as if there were one.
  static int take_slice(thread Thread& at) {
    const int slice = int(at.group.x) % SLICES;
    at.group.x /= SLICES;
    at.groups.x /= SLICES;
    return slice;
  }

  // Back to the other half, which holds a tile still. All have then done with this one.
  template <typename Tiles>
  static void turn_back(thread Tiles& tiles) {
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    tiles.halves.swap();
  }
};

// S and dP of all parts -> their sums. All threads of a threadgroup come here; `live`: the simdgroup has both.
template <typename P>
INLINE void sum_parts(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
                      thread Fragment<float> (&slopes)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], threadgroup uint* shared,
                      bool live, Thread at) {
  SumOfParts<P> of_scores, of_slopes;
  of_scores.shared = shared;
  of_slopes.shared = shared + P::SIMDGROUPS * SumOfParts<P>::OF_SIMDGROUP;
  if (live) of_scores.give(scores, at);
  if (live) of_slopes.give(slopes, at);
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (live) of_scores.take(scores, at);
  if (live) of_slopes.take(slopes, at);
}

// The rows of one head, times `factor`: of its columns those of this part of tiles of B, from first_column on. Of
// p.q_len rows, those of this launch.
template <typename P, int B, int N, typename T>
INLINE void write_rows(device T* to, thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][N], float factor,
                       int first_column, int columns, const thread LaneRows<P>& rows, int64_t head, AttentionParams p) {
  constexpr int OF_TILE = B / FRAGMENT / P::PARTS;
  const int first_out = p.first_tile * P::BQ, out_rows = metal::min(p.q_len - first_out, rows.q_tiles * P::BQ);
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    const int row = rows.row(r);
    if (row < p.q_len) {
      const int64_t at = (head * out_rows + (row - first_out)) * columns;
      UNROLL
      for (int d = 0; d < N; d++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
          const int number = (d / OF_TILE * P::PARTS + rows.part) * OF_TILE + d % OF_TILE;  // of fragments
          const int column = first_column + number * FRAGMENT + rows.place.column + e;
          if (column < columns) to[at + column] = T(factor * elements(sums[r][d])[e]);
        }
      }
    }
  }
}
