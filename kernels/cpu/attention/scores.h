// scores.h: scale Q K^T of a group of rows and a tile of keys. What smoothing has subtracted comes back as terms: of
// the keys one per row, t = scale q . mean(K); of the queries one per block of rows and key, scale mean(Q) . k.
#pragma once
#include "walk.h"

// -- rows --------------------------------------------------------------------------------------------------------

// All queries of one head.
inline Rows queries_of(const Params& p, const QueryTile& q) {
  const int32_t* groups = p.row_groups ? p.row_groups + (p.row_groups_batch == 1 ? 0 : q.b) * p.q_len : nullptr;
  return {matrix_of(p.q, p.q_strides, q.b, q.h, 0, p.q_len, p.head_dim, p.dtype), {}, groups};
}

// Where a row's int8 words go.
inline word* words_of_group(const Params& p, Scratch& s, int64_t group) {
  return (word*)(s.queries + group * ROWS * p.head_dim);
}

// The rows of a tile as int8, each with its scale: those of one block and one group share it and what is their mean.
inline void quantise_queries(const Params& p, Scratch& s, const QueryTile& q, const Rows& queries) {
  int64_t end = q.first + q.rows, width = round_up(p.head_dim, VL);
  __builtin_memset(s.start, 0, GROUPS * ROWS * sizeof(int32_t));
  for (int64_t i = 0; i < q.groups() * ROWS * words_of(p.head_dim); i++) words_of_group(p, s, 0)[i] = 0;
  s.runs = 0;
  for (int64_t row = q.first; row < end; s.runs++) {
    Run run = run_around(queries, row, larger(p.q_mean_rows, p.q_scale_rows));
    Rows centred = {queries.matrix, {}, nullptr};
    if (smooths_queries(p)) {
      mean_of_run(s.q_means + s.runs * width, queries, run);
      centred.means = matrix_of_means(s.q_means + s.runs * width, 1, p.head_dim);
    }
    float unit = unit_of(largest_of_run(centred, run));
    for (; row < smaller(run.end, end); row++) {
      int64_t i = row - q.first;
      if (p.q_scale_rows == 1) unit = unit_of(largest_of_run(centred, {row, row + 1}));
      s.start[i] = pack_int8_query(words_of_group(p, s, i / ROWS), i % ROWS, unit, centred, row);
      s.row_scale[i] = unit * p.scale;
      s.run_of_row[i] = s.runs;
    }
  }
}

// What the scores of a tile's rows need besides the packed queries.
inline void read_terms(const Params& p, Scratch& s, const QueryTile& q) {
  Rows queries = queries_of(p, q);
  Matrix means = means_of(p, q.b, q.h / (p.query_heads / p.kv_heads));
  for (int i = 0; i < GROUPS * ROWS; i++) s.row_scale[i] = 1;
  if constexpr (KEYS == QUANTISED) quantise_queries(p, s, q, queries);
  for (int g = 0; g < GROUPS; g++) s.special[g] = false;
  for (int i = 0; i < q.rows; i++) {
    int64_t row = q.first + i, group = queries.group(row);
    bool has_mean = means.data && group >= 0;
    s.shift[i] = has_mean ? p.scale * dot_rows(queries.matrix, row, means, group) : 0;
    if (row_is_finite(queries, row) && __builtin_isfinite(s.shift[i])) continue;
    s.special[i / ROWS] = true;
    s.row_scale[i] = __builtin_nanf("");
    s.shift[i] = 0;
  }
}

// -- scores ------------------------------------------------------------------------------------------------------

// What all groups of rows need of one tile of keys: mean(Q) . k for each mean.
inline void multiply_q_means(const Params& p, Scratch& s, const KeyTile& keys) {
  int64_t width = round_up(p.head_dim, VL);
  for (int64_t key = 0; key < KV_TILE; key += PANEL)
    for (int64_t run = 0; run < s.runs; run++)
      multiply_mean(s.mean_scores + run * KV_TILE + key, s.q_means + run * width, keys.keys + key * p.head_dim,
                    p.head_dim);
}

inline void add_terms(const Params& p, Scratch& s, int group, int rows, int64_t begin, int64_t end) {
  for (int r = 0; r < rows; r++) {
    int i = group * ROWS + r;
    float* row = s.scores + r * KV_TILE;
    vfloat shift = splat(p.add_back ? s.shift[i] : 0);
    const float* of_mean = s.mean_scores + (smooths_queries(p) ? s.run_of_row[i] * KV_TILE : 0);
    for (int64_t key = begin; key < end; key += VL) {
      vfloat x = load_vector<vfloat>(row + key) + shift;
      if (smooths_queries(p)) x += load_vector<vfloat>(of_mean + key) * p.scale;
      store_vector(row + key, x);
    }
  }
}

// The scores of rows and keys that hold an infinity or a nan: as attention without smoothing gives them.
inline void score_special(const Params& p, Scratch& s, const QueryTile& q, int group, int rows, int64_t first,
                          int64_t begin, int64_t end, const KeyTile& tile) {
  Rows queries = queries_of(p, q);
  int64_t kv_head = q.h / (p.query_heads / p.kv_heads);
  Rows keys = keys_of(p, q.b, kv_head);
  Int8Rows rounded = KEYS == QUANTISED && p.k_scales ? int8_keys_of(p, q.b, kv_head) : Int8Rows{};
  for (int r = 0; r < rows; r++)
    for (int64_t key = begin; key < end; key++) {
      int i = group * ROWS + r;
      float scale = s.row_scale[i] * (KEYS == QUANTISED ? tile.scale[key] : 1);
      if (scale == scale) continue;
      float x = p.scale * dot_row(queries.matrix, q.first + i, [&](int64_t d) {
                  return rounded.bytes ? rounded.read(first + key, d) : widen(keys.matrix, first + key, d);
                });
      s.scores[r * KV_TILE + key] = p.add_back ? x : x - s.shift[i];
    }
}

// s.scores[ROWS][KV_TILE] for the keys [begin, end) of a tile, whose first is `first`.
INLINE void score_keys(const Params& p, Scratch& s, const QueryTile& q, int group, int rows, int64_t first,
                       int64_t begin, int64_t end, const KeyTile& keys) {
  if constexpr (KEYS == QUANTISED)
    (rows == 1 ? multiply_int8_keys<1> : multiply_int8_keys<ROWS>)(
        s.scores, words_of_group(p, s, group), s.start + group * ROWS, s.row_scale + group * ROWS, keys.words,
        keys.scale, begin, end, p.head_dim);
  else if (in_pairs(p)) {
    const float rest = SplitScale(p.scale).rest;
    (rows == 1 ? multiply_keys<1, Pairs> : multiply_keys<ROWS, Pairs>)(
        s.scores, s.queries + group * ROWS * p.head_dim, keys.keys, begin, end, pairs_in(p.head_dim), &rest);
  } else
    (rows == 1 ? multiply_keys<1> : multiply_keys<ROWS>)(s.scores, s.queries + group * ROWS * p.head_dim, keys.keys,
                                                         begin, end, p.head_dim, nullptr);
  if constexpr (KEYS != PLAIN) {
    if (p.add_back || smooths_queries(p)) add_terms(p, s, group, rows, begin, end);
    if (s.special[group] || (KEYS == QUANTISED && *keys.special != 0))
      score_special(p, s, q, group, rows, first, begin, end, keys);
  }
}
