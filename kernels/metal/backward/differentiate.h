// differentiate.h: a tile's products Q K^T and d_out V^T -> P, and the gradients of the products Q K^T, in registers.
#pragma once
#include "../attention/softmax.h"
#include "../attention/walk.h"
#include "../mod/score_gradient.h"

INLINE float not_a_number() { return as_type<float>(0x7fc00000u); }

// What a query row has of the forward pass and of the gradients of that: its lse; delta = sum(d_out * out) - d_lse;
// its largest score, and the gradient of each score that equals it. The latter are there with MAX only. As they lie in
// device memory, [TERMS, batch, query_heads, q_len].
struct RowTerms {
  float lse, delta, max, d_max;
};
template <bool MAX>
struct TermsOf {
  static constexpr constant int TERMS = MAX ? 4 : 2;
};

// The terms of the rows of a lane, where rows are query rows.
template <typename P, bool MAX>
struct TermsOfRows {
  RowTerms rows[P::ROW_FRAGMENTS];

  // all_rows: of all batches and heads; first: of this head.
  INLINE void start(const device float* statistics, int64_t all_rows, int64_t first, const thread int* q_idx) thread {
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      const device float* at = statistics + (first + q_idx[r]);
      rows[r].lse = at[0];
      rows[r].delta = at[all_rows];
      rows[r].max = MAX ? at[2 * all_rows] : 0.0f;
      rows[r].d_max = MAX ? at[3 * all_rows] : 0.0f;
    }
  }
  RowTerms of(int r, int column) const thread { return rows[r]; }
};

// The terms of a tile's columns, where columns are query rows: in threadgroup memory, [TERMS, BK].
template <typename P, bool MAX>
struct TermsOfColumns {
  threadgroup float* staged;
  float ahead;

  static constexpr constant int TERMS = TermsOf<MAX>::TERMS;
  static_assert(TERMS * P::BK <= P::THREADS, "each thread reads one");

  INLINE void load(const device float* statistics, int64_t all_rows, int64_t first, Range rows, uint index) thread {
    const int term = int(index) / P::BK, row = rows.first + int(index) % P::BK;
    ahead = term < TERMS && row < rows.end ? statistics[term * all_rows + first + row] : 0.0f;
  }
  INLINE void store(uint index) const thread {
    if (int(index) < TERMS * P::BK) staged[index] = ahead;
  }
  RowTerms of(int r, int column) const thread {
    RowTerms terms;
    terms.lse = staged[column];
    terms.delta = staged[P::BK + column];
    terms.max = MAX ? staged[(TERMS - 2) * P::BK + column] : 0.0f;
    terms.d_max = MAX ? staged[(TERMS - 1) * P::BK + column] : 0.0f;
    return terms;
  }
};

// scores: Q K^T becomes P. slopes: d_out V^T becomes the gradient of scale Q K^T. Returns whether
// some row of this simdgroup and some column do not attend to each other; they have zeros then.
// KEY_ROWS: rows are keys and columns are query rows. sites: takes the gradients of modified scores, for captures.
template <typename P, bool KEY_ROWS, bool MAX, int BLOCKS, typename Asked, typename Terms, typename Sites,
          typename Captured>
INLINE bool differentiate(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS],
                          thread Fragment<float> (&slopes)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], KeyTile tile,
                          const thread Walk<P, BLOCKS, Asked>& walk, const thread Asked& mask,
                          const thread LaneRows<P>& rows, const thread Terms& terms, thread Sites& sites,
                          const thread Captured& mods) {
  const uint kept = tile.masked && !tile.asked ? walk.kept(tile.first, tile.state, rows, mask) : tile.kept;
  bool gaps = false;
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    UNROLL
    for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const int column = j * FRAGMENT + rows.place.column + e;
        const int across = metal::min(tile.first + column, walk.p.kv_len - 1);
        const int q_idx = KEY_ROWS ? across : rows.q_idx[r], kv_idx = KEY_ROWS ? rows.q_idx[r] : across;
        const RowTerms row = terms.of(r, column);
        const float score = elements(scores[r][j])[e] * walk.p.scale;
        const ScoreGradient found = score_gradient(mods, score, rows.b, rows.h, q_idx, kv_idx);
        bool attends = !is_minus_infinity(found.score) && !is_minus_infinity(row.lse);
        if (tile.masked) attends = attends && walk.is_kept(kept, r, e, j);
        const float weight = attends ? metal::fast::exp2((found.score - row.lse) * LOG2_E) : 0.0f;
        float slope = weight * (elements(slopes[r][j])[e] - row.delta);
        if (MAX && found.score == row.max) slope += row.d_max;
        if (weight == 0.0f) slope = 0.0f;
        gaps = gaps || !attends;
        sites.add(r, column, slope, found, score, rows, q_idx, kv_idx, mods);
        // A cotangent that is infinite or nan makes delta so, and the weights of its row, also where they meet zeros.
        elements(scores[r][j])[e] = attends && is_special(row.delta) ? not_a_number() : weight;
        elements(slopes[r][j])[e] = weight == 0.0f ? 0.0f : slope * found.slope;
      }
    }
  }
  return (HAS_SCORE_MOD || tile.masked) && metal::simd_any(gaps);
}
