// weights.h: products of keys and queries -> scores -> weights, on what a lane holds of them: one key and two rows of
// each fragment. What keys in int8 need is as in attention/smooth.h.
#pragma once
#include "live.h"
#include "../attention/softmax.h"

// The statistics of the two rows that a lane holds of a row fragment.
struct TwoRows {
  metal::float2 max;  // LOWEST before the first key
  metal::float2 sum;  // of the weights that this lane has held, relative to max

  void start() thread {
    max[0] = max[1] = LOWEST;
    sum[0] = sum[1] = 0.0f;
  }
};

// What brings the products of a lane's rows back to scores.
template <typename P>
struct PackedFactors {
  float scale[P::ROW_FRAGMENTS][2];
  float term[P::ROW_FRAGMENTS][2];

  template <typename Captured>
  void start(DecodeSizes p, const thread PackedRows<P>& rows, const thread Captured& mods) thread {
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const int64_t number = rows.number(rows.row(r, e), p);
        scale[r][e] = mods.row_scale(number);
        term[r][e] = mods.row_term(number);
      }
    }
  }
};

// The scale of key `lane` of a tile; 0 beyond the last one.
template <typename P, typename Captured>
INLINE float key_scale_in_lane(const thread PackedRows<P>& rows, Range keys, const thread Captured& mods, uint lane) {
  const int key = keys.first + int(lane);
  return QUANTISED && key < keys.end ? mods.key_scale(rows.kv_batch, rows.kv_head, key) : 0.0f;
}
template <typename P, typename Captured>
INLINE float value_scale_in_lane(const thread PackedRows<P>& rows, Range keys, const thread Captured& mods, uint lane) {
  const int key = keys.first + int(lane);
  return INT8_VALUES && key < keys.end ? mods.value_scale(rows.kv_batch, rows.kv_head, key) : 0.0f;
}

// S^T = mask(score_mod(scale S^T)). scale_in_lane: of key `lane`. kept: as LiveTiles::kept gives it.
template <typename P, typename Captured>
INLINE void modify(thread Fragment<float> (&scores)[P::KEY_FRAGMENTS][P::ROW_FRAGMENTS], LiveTile tile, uint kept,
                   float scale_in_lane, DecodeSizes p, const thread PackedRows<P>& rows,
                   const thread PackedFactors<P>& factors, const thread Captured& mods) {
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    const int kv_idx = metal::min(tile.first + j * FRAGMENT + rows.place.row, p.kv_len - 1);
    const float unit = QUANTISED ? metal::simd_shuffle(scale_in_lane, ushort(j * FRAGMENT + rows.place.row)) : 1.0f;
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        float score = elements(scores[j][r])[e];
        if (QUANTISED) score = score * unit * factors.scale[r][e];  // the scales' product may overflow
        score *= p.scale;
        if (ADD_BACK) score += factors.term[r][e];
        if (HAS_SCORE_MOD) score = mods.score_mod(score, rows.b, rows.h[r][e], rows.q_idx[r][e], kv_idx);
        const bool keep = (kept >> (2 * (j * P::ROW_FRAGMENTS + r) + e)) & 1;
        elements(scores[j][r])[e] = keep ? score : minus_infinity();
      }
    }
  }
}

// Scores -> weights, in place, and O^T, in `sums`, shrinks by what the maximum of each row has grown. Returns whether
// this lane has left a key out.
template <typename P>
INLINE bool update(thread TwoRows (&state)[P::ROW_FRAGMENTS],
                   thread Fragment<float> (&sums)[P::VALUE_FRAGMENTS][P::ROW_FRAGMENTS],
                   thread Fragment<float> (&scores)[P::KEY_FRAGMENTS][P::ROW_FRAGMENTS]) {
  bool gaps = false;
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    metal::float2 largest = state[r].max;
    UNROLL
    for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const float score = elements(scores[j][r])[e];
        if (!is_minus_infinity(score)) largest[e] = metal::max(largest[e], score);
      }
    }
    largest = max_over_keys(largest);
    metal::float2 shrink;
    UNROLL
    for (int e = 0; e < 2; e++) {
      shrink[e] = metal::fast::exp2((state[r].max[e] - largest[e]) * LOG2_E);
      float sum = state[r].sum[e] * shrink[e];
      UNROLL
      for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
        const float score = elements(scores[j][r])[e];
        const bool left_out = is_minus_infinity(score);
        const float weight = left_out ? 0.0f : metal::fast::exp2((score - largest[e]) * LOG2_E);
        gaps = gaps || left_out;
        elements(scores[j][r])[e] = weight;
        sum += weight;
      }
      state[r].sum[e] = sum;
    }
    state[r].max = largest;
    UNROLL
    for (int d = 0; d < P::VALUE_FRAGMENTS; d++) {
      elements(sums[d][r])[0] *= shrink[0];
      elements(sums[d][r])[1] *= shrink[1];
    }
  }
  return gaps;
}

// Weights of values -> weights of the whole numbers that they were rounded to. What a row does not attend to may have
// scale nan, which is no number to compute with: a weight of 0 stays, told by its bits.
template <typename P>
INLINE void scale_weights(thread Fragment<float> (&weights)[P::KEY_FRAGMENTS][P::ROW_FRAGMENTS], float scale_in_lane,
                          const thread PackedRows<P>& rows) {
  UNROLL
  for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
    const float unit = metal::simd_shuffle(scale_in_lane, ushort(j * FRAGMENT + rows.place.row));
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const float weight = elements(weights[j][r])[e];
        elements(weights[j][r])[e] = as_type<uint>(weight) == 0 ? 0.0f : weight * unit;
      }
    }
  }
}
