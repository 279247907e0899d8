// site_sums.h: what a lane adds up of the gradients of captured arrays, where a site reads one element for a whole row.
#pragma once
#include "../attention/lane_rows.h"
#include "../mod/score_gradient.h"

template <typename P>
struct SiteSums {
  float sums[P::ROW_FRAGMENTS][SITES > 0 ? SITES : 1];

  INLINE void start() thread {
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int i = 0; i < SITES; i++) sums[r][i] = 0.0f;
    }
  }

  // d_score: the gradient of a modified score, 0 where it is not attended to.
  template <typename Captured>
  void add(int r, int column, float d_score, const thread ScoreGradient& found, float score,
           const thread LaneRows<P>& rows, int q_idx, int kv_idx, const thread Captured& mods) thread {
    UNROLL
    for (int i = 0; i < SITES; i++) sums[r][i] += d_score == 0.0f ? 0.0f : d_score * found.sites[i];
  }

  // to: [batch, query_heads, rows of this launch, SITES]; head: the number of a batch and query head.
  void write(device float* to, int64_t head, const thread LaneRows<P>& rows, AttentionParams p) const thread {
    const int first_out = p.first_tile * P::BQ, out_rows = metal::min(p.q_len - first_out, rows.q_tiles * P::BQ);
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      const int64_t at = (head * out_rows + (rows.row(r) - first_out)) * SITES;
      UNROLL
      for (int i = 0; i < SITES; i++) {
        const float sum = sum_of_row(sums[r][i]);
        if (rows.row(r) < p.q_len && rows.place.column == 0) to[at + i] = sum;
      }
    }
  }
};
