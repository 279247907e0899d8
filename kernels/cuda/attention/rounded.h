// rounded.h: products of queries and keys in int8 -> scores, before their scale. What operands.py makes:
//
// score = (q . k row_scale key_scale + mean_score) scale + term; a row or key that holds an infinity or a nan has scale
// nan. SMOOTHED_Q: there are scores of what q lacks, its mean over some neighbouring rows; ADD_BACK: there is a term.
#pragma once
#include "params.h"
#include "plan.h"
#include "../tile/products.h"

// row_scales, row_terms: [batch, query_heads, q_len]; key_scales: [kv_batches, kv_heads, kv_len]. mean_rows: as
// row_scales, the number of the row's mean among all; mean_scores: [.. means, kv_len].
struct Rounded {
  const float *row_scales, *key_scales, *row_terms;
  const int* mean_rows;
  const float* mean_scores;
};

// The scales of a tile of keys, in shared memory; 0 behind the last key.
template <int KEYS>
struct KeyScales {
  const float* scales;
  int count;
  float* held;

  INLINE KeyScales(const Rounded& from, int64_t first, int kv_len) : scales(from.key_scales + first), count(kv_len), held(nullptr) {
    if constexpr (QUANTISED) {
      __shared__ float of_tile[KEYS];
      held = of_tile;
    }
  }
  INLINE void load(int first, int thread) {
    for (int key = thread; key < KEYS; key += THREADS) held[key] = first + key < count ? scales[first + key] : 0.0f;
  }
};

// Of the two rows of a lane in 16 rows.
struct RoundedRows {
  float scale[2], term[2];
  const float* mean_scores[2];

  INLINE void load(const Rounded& from, const AttentionParams& p, int64_t head, int first_row, int lane) {
    UNROLL
    for (int half = 0; half < 2; half++) {
      const int64_t at = head * p.q_len + smaller(first_row + 8 * half + lane / 4, p.q_len - 1);
      scale[half] = from.row_scales[at];
      if constexpr (ADD_BACK) term[half] = from.row_terms[at];
      if constexpr (SMOOTHED_Q) mean_scores[half] = from.mean_scores + int64_t(from.mean_rows[at]) * p.kv_len;
    }
  }
  template <typename Products, int TILES>
  INLINE void scores(Sums (&scores)[TILES], const Products (&products)[TILES], const float* key_scales, int first_key,
                     int kv_len, int lane) const {
    UNROLL
    for (int j = 0; j < TILES; j++) {
      UNROLL
      for (int i = 0; i < 4; i++) {
        const int key = 8 * j + 2 * (lane & 3) + i % 2;
        float score = float(products[j].at[i]) * key_scales[key] * scale[i / 2];  // the scales' product may overflow
        if constexpr (SMOOTHED_Q) score += mean_scores[i / 2][smaller(first_key + key, kv_len - 1)];
        scores[j].at[i] = score;
      }
    }
  }
  template <int TILES>
  INLINE void add_back(Sums (&scores)[TILES]) const {
    UNROLL
    for (int j = 0; j < TILES; j++) {
      UNROLL
      for (int i = 0; i < 4; i++) scores[j].at[i] += term[i / 2];
    }
  }
};
