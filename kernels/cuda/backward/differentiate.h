// differentiate.h: a tile's products Q K^T and d_out V^T -> P, and the gradients of the products Q K^T, in registers.
// The kernel has its plan before it.
#pragma once
#include "../tile/products.h"
#include "../attention/softmax.h"
#include "../attention/walk.h"
#include "../mod/score_gradient.h"

// What a query row has of the forward pass and of the gradients of that, as terms.cu makes it: its lse, infinite for a
// row without keys; delta = sum(d_out * out) - d_lse; its largest score, and the gradient of each score that equals it.
// The latter are there with WITH_MAX only. Gradients are multiplied by the factor of their call. As they lie in device
// memory, [TERMS, batch, query_heads, q_len].
struct RowTerms {
  float lse, delta, max, d_max;
};

// The terms of the rows of a lane, where own rows are query rows.
struct TermsOfRows {
  RowTerms rows[2 * ROW_TILES];

  // all_rows: of all batches and heads; terms: those of this head.
  INLINE void start(const float* terms, int64_t all_rows, int first_row, int count, int lane) {
    UNROLL
    for (int i = 0; i < 2 * ROW_TILES; i++) {
      const float* at = terms + smaller(first_row + 8 * i + lane / 4, count - 1);
      rows[i].lse = at[0];
      rows[i].delta = at[all_rows];
      rows[i].max = WITH_MAX ? at[2 * all_rows] : 0.0f;
      rows[i].d_max = WITH_MAX ? at[3 * all_rows] : 0.0f;
    }
  }
  INLINE RowTerms of(int own, int other) const { return rows[own]; }
};

// The terms of a tile's rows, where those that pass by are query rows: in shared memory, [TERMS, BK].
struct TermsOfOthers {
  const float* staged;
  int lane;

  INLINE RowTerms of(int own, int other) const {
    const float* at = staged + other / 2 * 8 + 2 * (lane & 3) + other % 2;
    RowTerms terms;
    terms.lse = at[0];
    terms.delta = at[BK];
    terms.max = WITH_MAX ? at[(TERMS - 2) * BK] : 0.0f;
    terms.d_max = WITH_MAX ? at[(TERMS - 1) * BK] : 0.0f;
    return terms;
  }
};

// Where an element of a lane stands: `own` counts the rows of the lane, `other` the rows of the tile that meet them.
INLINE float& element_of(Sums (&sums)[ROW_TILES][OTHERS], int own, int other) {
  return sums[own / 2][other / 2].at[2 * (own % 2) + other % 2];
}

// Whether some row of the tile, or of this warp, may hold what is infinite or nan: all its products are so then.
INLINE bool may_be_special(const Sums (&products)[ROW_TILES][OTHERS]) {
  float sum = 0.0f;
  UNROLL
  for (int r = 0; r < ROW_TILES; r++) {
    UNROLL
    for (int j = 0; j < OTHERS; j++) {
      UNROLL
      for (int i = 0; i < 4; i++) sum += products[r][j].at[i];
    }
  }
  return is_special<float>(__float_as_uint(sum));
}

// A tile of rows that pass by, and what is asked of the mask: its first row, a TileState, whether some pair of it may be
// left out, and the blocks of this batch and head (Walk::states).
struct Passing {
  int first, state;
  bool masked, ragged;  // ragged: some of its rows may not exist
  const uint8_t* states;
};

// The pair of positions that an element of a lane is for, each the last one where it does not exist.
struct Position {
  int own, other, passing;  // passing: as `other`, also behind the last one
  int q_idx, kv_idx;
};
// KEY_ROWS: own rows are keys, and query rows pass by.
template <bool KEY_ROWS, bool RAGGED = true>
INLINE Position position_of(int own, int other, const Passing& tile, int first_row, const AttentionParams& p, int lane) {
  Position at;
  at.own = smaller(first_row + 8 * own + lane / 4, p.q_len - 1);
  at.passing = tile.first + other / 2 * 8 + 2 * (lane & 3) + other % 2;
  at.other = RAGGED ? smaller(at.passing, p.kv_len - 1) : at.passing;
  at.q_idx = KEY_ROWS ? at.other : at.own;
  at.kv_idx = KEY_ROWS ? at.own : at.other;
  return at;
}

// A score that is modified, and what changes it. product: of Q K^T.
INLINE ScoreGradient score_at(float product, const Position& at, const AttentionParams& p, const GradientMods& mods,
                              const Place& place) {
  if constexpr (HAS_SCORE_MOD) return mods.score_gradient(place.b, place.h, at.q_idx)(product * p.scale, at.kv_idx);
  ScoreGradient found;
  found.score = product * p.scale;
  found.slope = 1.0f;
  return found;
}

// Whether the two attend to each other, in a tile that is masked. RAGGED: which may be for its last rows alone.
template <bool RAGGED = true>
INLINE bool is_kept(const Position& at, const Passing& tile, const AttentionParams& p, const GradientMods& mods,
                    const Place& place) {
  bool kept = !RAGGED || at.passing < p.kv_len;
  int asked = RAGGED || BLOCKS != NO_BLOCKS ? tile.state : ASK;
  if constexpr (BLOCKS == CUT_TILES) {
    if (asked == LOOK_UP) {
      const int block = tile.states[int64_t(at.own / p.q_block) * p.kv_blocks + at.other / p.kv_block];
      kept = kept && block != 0;
      asked = block == 1 ? ASK : NO_MASK;
    }
  }
  if constexpr (HAS_MASK_MOD) {
    if (asked == ASK) kept = kept && mods.mask_mod(place.b, place.h, at.q_idx)(at.kv_idx);
  }
  return kept;
}

// scores: Q K^T becomes P. slopes: d_out V^T becomes the gradient of scale Q K^T.
// sites: takes the gradients of modified scores, for captures.
template <bool KEY_ROWS, bool MASKED, bool RAGGED, typename Terms, typename Sites>
INLINE void differentiate(Sums (&scores)[ROW_TILES][OTHERS], Sums (&slopes)[ROW_TILES][OTHERS], const Passing& tile,
                          const AttentionParams& p, const GradientMods& mods, const Place& place, int first_row,
                          const Terms& terms, float factor, Sites& sites) {
  constexpr int OWN_ROWS = 2 * ROW_TILES, OTHER_ROWS = 2 * OTHERS;
  UNROLL
  for (int query = 0; query < (KEY_ROWS ? OTHER_ROWS : OWN_ROWS); query++) {
    UNROLL
    for (int key = 0; key < (KEY_ROWS ? OWN_ROWS : OTHER_ROWS); key++) {
      const int own = KEY_ROWS ? key : query, other = KEY_ROWS ? query : key;
      const Position at = position_of<KEY_ROWS, RAGGED>(own, other, tile, first_row, p, place.lane);
      const RowTerms of_query = terms.of(own, other);
      float &score = element_of(scores, own, other), &slope = element_of(slopes, own, other);
      const ScoreGradient found = score_at(score, at, p, mods, place);
      const float above = HAS_SCORE_MOD ? found.score - of_query.lse : fmaf(score, p.scale, -of_query.lse);
      float weight = ptx::ex2_approx_ftz(above * LOG2_E);
      if (MASKED && !is_kept<RAGGED>(at, tile, p, mods, place)) weight = 0.0f;
      float change = weight * fmaf(slope, factor, -of_query.delta);
      if (WITH_MAX && found.score == of_query.max) change += of_query.d_max;
      if ((MASKED || HAS_SCORE_MOD || WITH_MAX) && weight == 0.0f) change = 0.0f;
      sites.add(own, other, change, found, score * p.scale, at, place, mods);
      score = weight;
      slope = HAS_SCORE_MOD ? (weight == 0.0f ? 0.0f : change * found.slope) : change;
    }
  }
}

constexpr bool MAY_LEAVE_OUT = HAS_SCORE_MOD || HAS_MASK_MOD || BLOCKS == CUT_TILES;

// The same, masked or not.
template <bool KEY_ROWS, typename Terms, typename Sites>
INLINE void differentiate(Sums (&scores)[ROW_TILES][OTHERS], Sums (&slopes)[ROW_TILES][OTHERS], const Passing& tile,
                          const AttentionParams& p, const GradientMods& mods, const Place& place, int first_row,
                          const Terms& terms, float factor, Sites& sites) {
  constexpr bool K = KEY_ROWS;
  if (tile.ragged) differentiate<K, true, true>(scores, slopes, tile, p, mods, place, first_row, terms, factor, sites);
  else if (tile.masked)
    differentiate<K, MAY_LEAVE_OUT, false>(scores, slopes, tile, p, mods, place, first_row, terms, factor, sites);
  else differentiate<K, false, false>(scores, slopes, tile, p, mods, place, first_row, terms, factor, sites);
}

// Whether the products that follow must leave out what is not attended to. All lanes of a warp ask.
template <bool KEY_ROWS>
INLINE bool have_gaps(const Sums (&scores)[ROW_TILES][OTHERS], const Sums (&slopes)[ROW_TILES][OTHERS], bool masked) {
  if (!MAY_LEAVE_OUT || !(HAS_SCORE_MOD || masked)) return false;
  return __any_sync(EVERY_LANE, may_be_special(scores) || (KEY_ROWS && may_be_special(slopes)));
}

// A cotangent that is infinite or nan makes delta so, and with this the weights of its row, also where they meet zeros.
template <typename Terms>
INLINE void spread_specials(Sums (&scores)[ROW_TILES][OTHERS], const Terms& terms) {
  UNROLL
  for (int own = 0; own < 2 * ROW_TILES; own++) {
    UNROLL
    for (int other = 0; other < 2 * OTHERS; other++) {
      float& weight = element_of(scores, own, other);
      if (weight != 0.0f && is_special<float>(__float_as_uint(terms.of(own, other).delta))) weight = NAN;
    }
  }
}
