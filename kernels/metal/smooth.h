// smooth.h: what brings the products of int8 or smoothed keys back to scores, SageAttention (arXiv 2410.02367): a scale
// per row and per key, the term of a row that the mean of its keys took away, and, of smoothed queries (SageAttention2,
// arXiv 2411.10958), the scores of the mean that a row lacks. The hole says which there are.
#pragma once
#include "walk.h"

// Of the rows of a lane.
template <typename P>
struct RowFactors {
  float scale[P::ROW_FRAGMENTS];
  float term[P::ROW_FRAGMENTS];
  int64_t mean_scores[P::ROW_FRAGMENTS];  // where those of the row's mean begin
  int lane;
  int64_t first_key;  // number of the head's first key, of all heads' keys

  // first_row: number of the head's first row, of all heads' rows.
  template <typename Captured>
  void start(int64_t first_row, int64_t first_key_, int kv_len, const thread LaneRows<P>& rows,
             const thread Captured& mods, uint lane_) thread {
    first_key = first_key_;
    lane = int(lane_);
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      scale[r] = mods.row_scale(first_row + rows.q_idx[r]);
      term[r] = mods.row_term(first_row + rows.q_idx[r]);
      mean_scores[r] = int64_t(mods.mean_of_row(first_row + rows.q_idx[r])) * kv_len;
    }
  }
};

// Products of whole numbers -> of what they were rounded from. Each lane reads the scale of one key for all.
template <typename P, typename Captured>
inline void scale_products(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], int first, int kv_len,
                           const thread RowFactors<P>& factors, const thread LaneRows<P>& rows,
                           const thread Captured& mods) {
  static_assert(P::BK <= LANES, "a tile has no more keys than a simdgroup has lanes");
  int key = metal::min(first + factors.lane, kv_len - 1);
  float unit_in_lane = factors.lane < P::BK ? mods.key_scale(factors.first_key + key) : 0.0f;
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      int i = j * FRAGMENT + rows.place.column + e, kv_idx = metal::min(first + i, kv_len - 1);
      float unit = metal::simd_shuffle(unit_in_lane, ushort(i));
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
        float score = elements(scores[r][j])[e] * (unit * factors.scale[r]);
        if (SMOOTHED_Q) score += mods.mean_score(factors.mean_scores[r] + kv_idx);
        elements(scores[r][j])[e] = score;
      }
    }
  }
}
