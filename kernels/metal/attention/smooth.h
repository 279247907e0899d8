// smooth.h: what brings the products of int8 or smoothed keys back to scores, SageAttention (arXiv 2410.02367): a scale
// per row and per key, the term of a row that the mean of its keys took away, and, of smoothed queries (SageAttention2,
// arXiv 2411.10958), the scores of the mean that a row lacks; and, of int8 values, their scales as factors of the
// weights. The hole says which there are.
//
// The scales of a tile's keys, then those of its values, go through threadgroup memory together with its first columns
// of V: one read from device memory serves all simdgroups. One place is enough: it is read between two barriers, of
// which the second comes before the next tile's are stored.
#pragma once
#include "lane_rows.h"
#include "../mod/mod.h"

constexpr constant int SCALES = (QUANTISED ? 1 : 0) + (INT8_VALUES ? 1 : 0);  // that each key has

// The scales of a tile on their way, as the elements of a StagedTile are: one in each thread.
template <typename P>
struct ScalesAhead {
  static_assert(SCALES * P::BK <= P::THREADS, "a thread reads one scale");
  float scale;

  // 0 beyond the last key.
  template <typename Captured>
  INLINE void load(int batch, int head, Range keys, const thread Captured& mods, uint index) thread {
    const int key = keys.first + int(index) % P::BK;
    scale = 0.0f;
    if (int(index) >= SCALES * P::BK || key >= keys.end) return;
    scale = QUANTISED && int(index) < P::BK ? mods.key_scale(batch, head, key) : mods.value_scale(batch, head, key);
  }

  INLINE void store(threadgroup uint* scales, uint index) const thread {
    if (int(index) < SCALES * P::BK) scales[index] = as_type<uint>(scale);
  }
};

// One scale of a tile in each lane: that of key i in lane i.
template <typename P>
INLINE float scale_in_lane(const threadgroup uint* scales, uint lane) {
  static_assert(P::BK <= LANES, "a tile has no more keys than a simdgroup has lanes");
  return as_type<float>(scales[lane % P::BK]);
}

// The numbers that bring the scores of a lane's rows back.
template <typename P>
struct RowFactors {
  float scale[P::ROW_FRAGMENTS];
  float term[P::ROW_FRAGMENTS];
  int64_t mean_scores[P::ROW_FRAGMENTS];  // where those of the row's mean begin

  // first_row: number of the head's first row, of all heads' rows.
  template <typename Captured>
  INLINE void start(int64_t first_row, int kv_len, const thread LaneRows<P>& rows, const thread Captured& mods) thread {
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      scale[r] = mods.row_scale(first_row + rows.q_idx[r]);
      term[r] = mods.row_term(first_row + rows.q_idx[r]);
      mean_scores[r] = int64_t(mods.mean_of_row(first_row + rows.q_idx[r])) * kv_len;
    }
  }
};

// Products of whole numbers -> products of what they were rounded from. key_scale: as scale_in_lane has it.
template <typename P, typename Captured>
INLINE void scale_products(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], float key_scale,
                           int first, int kv_len, const thread RowFactors<P>& factors, const thread LaneRows<P>& rows,
                           const thread Captured& mods) {
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      int i = j * FRAGMENT + rows.place.column + e, kv_idx = metal::min(first + i, kv_len - 1);
      float unit = metal::simd_shuffle(key_scale, ushort(i));
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
        float score = elements(scores[r][j])[e] * unit * factors.scale[r];
        if (SMOOTHED_Q) score += mods.mean_score(factors.mean_scores[r] + kv_idx);
        elements(scores[r][j])[e] = score;
      }
    }
  }
}

// Weights of values -> weights of the whole numbers that they were rounded to. What a row does not attend to may have
// scale nan, which is no number to compute with: a weight of 0 stays, told by its bits.
template <typename P, typename F>
INLINE void scale_weights(thread Fragment<F> (&weights)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], float value_scale,
                          LanePlace place) {
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      float unit = metal::simd_shuffle(value_scale, ushort(j * FRAGMENT + place.column + e));
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
        float weight = float(elements(weights[r][j])[e]);
        elements(weights[r][j])[e] = F(as_type<uint>(weight) == 0 ? 0.0f : weight * unit);
      }
    }
  }
}
