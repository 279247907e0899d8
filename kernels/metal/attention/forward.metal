// forward.metal: attention forward, a tile at a time, never the full score matrix (FlashAttention,
// arXiv 2205.14135; online softmax, arXiv 1805.02867).
//
//   each threadgroup takes BQ query rows of one head, each of its simdgroups ROWS of them       start
//   for each tile of BK keys that the masks leave                                                Walk
//     S = (scale Q) K^T, in registers                                                            multiply_keys
//     S = mask(score_mod(S))                                                                     modify
//     P = exp(S - max), still in registers; O = O * exp(old max - max)                           update_rows
//     O = O + P V                                                                                multiply_values
//   out = O / sum of P; lse = max + log(sum)                                                     write_rows
//
// K and V pass through two halves of threadgroup memory, as stream.h says.
#include "../mod/mod.h"
#include "params.h"
#include "plan.h"
#include "../tile/fragments.h"
#include "products.h"
#include "softmax.h"
#include "walk.h"
#include "smooth.h"
#include "stream.h"

// out: [batch, query_heads, rows, VALUE_DIM]; lse, max_scores: [batch, query_heads, rows], float32, natural. `rows` are
// those of the tiles that this launch takes, from p.first_tile on: all q_len, or fewer where a call has several.
template <typename T>
struct Outputs {
  device T* out;
  device float* lse;
  device float* max_scores;
};
template <typename T>
INLINE Outputs<T> outputs(device T* out, device float* lse, device float* max_scores) {
  Outputs<T> to;
  to.out = out;
  to.lse = lse;
  to.max_scores = max_scores;
  return to;
}

// O = 0, before the first key.
template <typename P>
INLINE void start(thread RowState (&state)[P::ROW_FRAGMENTS],
                  thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::VALUE_FRAGMENTS]) {
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) state[r].start();
  clear(sums);
}

// S = mask(score_mod(scale S)) on the elements that this lane holds.
template <typename P, int BLOCKS, typename Captured>
INLINE void modify(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], KeyTile tile,
                   const thread Walk<P, BLOCKS, Captured>& walk, const thread LaneRows<P>& rows,
                   const thread RowFactors<P>& factors, float key_scale, const thread Captured& mods) {
  if (QUANTISED) scale_products<P>(scores, key_scale, tile.first, walk.p.kv_len, factors, rows, mods);
  const uint kept = tile.masked && !tile.asked ? walk.kept(tile.first, tile.state, rows, mods) : tile.kept;
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    UNROLL
    for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        float score = elements(scores[r][j])[e] * walk.p.scale;
        if (ADD_BACK) score += factors.term[r];
        if (HAS_SCORE_MOD) {
          int kv_idx = tile.first + j * FRAGMENT + rows.place.column + e;
          score = mods.score_mod(score, rows.b, rows.h, rows.q_idx[r], metal::min(kv_idx, walk.p.kv_len - 1));
        }
        if (tile.masked && !walk.is_kept(kept, r, e, j)) score = minus_infinity();
        elements(scores[r][j])[e] = score;
      }
    }
  }
}

// out = O / sum of P, and what all values lack. A row with nothing to attend to has sum 0 and gives 0, and -inf as its
// statistics.
template <typename P, typename T, typename Captured>
INLINE void write_rows(Outputs<T> to, thread RowState (&state)[P::ROW_FRAGMENTS],
                       thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::VALUE_FRAGMENTS],
                       const thread LaneRows<P>& rows, AttentionParams p, const thread Captured& mods) {
  const int64_t head = int64_t(rows.b) * p.query_heads + rows.h;
  const int64_t kv = int64_t(rows.kv_batch) * p.kv_heads + rows.kv_head;
  const int first_out = p.first_tile * P::BQ, out_rows = metal::min(p.q_len - first_out, rows.q_tiles * P::BQ);
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    float sum = sum_of_row(state[r].sum);
    float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    int row = rows.row(r);
    int64_t at = head * out_rows + (row - first_out);
    if (row < p.q_len) {
      UNROLL
      for (int d = 0; d < P::VALUE_FRAGMENTS; d++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
          int column = rows.first_value() + d / P::VALUE_COLUMNS * P::BV + rows.part * P::VALUE_COLUMNS * FRAGMENT +
                       d % P::VALUE_COLUMNS * FRAGMENT + rows.place.column + e;
          float mean = VALUE_MEANS && column < P::VALUE_DIM ? mods.value_mean(kv * P::VALUE_DIM + column) : 0.0f;
          float value = elements(sums[r][d])[e] * inverse;
          if (VALUE_MEANS && sum != 0.0f) value += mean;
          if (column < P::VALUE_DIM) to.out[at * P::VALUE_DIM + column] = T(value);
        }
      }
    }
    if (row < p.q_len && rows.place.column == 0 && rows.slice == 0 && rows.part == 0) {
      to.lse[at] = sum == 0.0f ? minus_infinity() : state[r].max + metal::precise::log(sum);
      to.max_scores[at] = sum == 0.0f ? minus_infinity() : state[r].max;
    }
  }
}

// The whole kernel; the body below calls it with the buffers that MLX declares.
//
// q: [batch, query_heads, q_len, HEAD_DIM]; k: [kv_batches, kv_heads, kv_len, HEAD_DIM];
// v: [kv_batches, kv_heads, kv_len, VALUE_DIM]; any strides. K: T, or int8_t: q is whole numbers too. V: T, or int8_t.
// Tile: StagedTile, or AsyncTile of async_copy.h. votes: 2 SIMDGROUPS words, SCALES BK more for scales, and
// those of SumOfParts.
// at.group: (tile of query rows and slice of value columns, query head, batch).
template <typename P, int BLOCKS, template <typename, int, int, int> class Tile, typename T, typename K, typename V,
          typename Captured>
INLINE void attention_forward(Tensor<T> q, Tensor<K> k, Tensor<V> v, Outputs<T> to, const device int* tile_lists,
                              AttentionParams p, const thread Captured& mods, threadgroup T* staged,
                              threadgroup uint* votes, Thread at) {
  typedef Stream<T, K, V, P, Tile> Tiles;
  // Weights of int8 values, times the scales of these, may be too small for half: they are float.
  typedef typename ProductOf<V>::type F;
  // Keys that a row does not attend to are in a tile's product. Values in int8 are finite; past the last key are zeros.
  constexpr bool MAY_LEAVE_OUT = !INT8_VALUES && (HAS_SCORE_MOD || Walk<P, BLOCKS, Captured>::UNSURE);

  LaneRows<P> rows;
  rows.start(p, at);
  Queries<T, P> queries;
  queries.start(q.head(rows.b, rows.h), rows.q_idx, rows.part, rows.place);
  SumOfParts<P> parts;
  parts.shared = votes + 2 * P::SIMDGROUPS + SCALES * P::BK;
  RowFactors<P> factors;
  factors.start((int64_t(rows.b) * p.query_heads + rows.h) * p.q_len, p.kv_len, rows, mods);
  RowState state[P::ROW_FRAGMENTS];
  Fragment<float> sums[P::ROW_FRAGMENTS][P::VALUE_FRAGMENTS];  // O
  start<P>(state, sums);

  Walk<P, BLOCKS, Captured> walk;
  walk.start(p, tile_lists, rows, votes);
  Tiles tiles;
  tiles.start(k.head(rows.kv_batch, rows.kv_head), v.head(rows.kv_batch, rows.kv_head), staged,
              votes + 2 * P::SIMDGROUPS, at.index());
  // The first time round there is no tile yet, and all that happens is that the first one's keys are read.
  KeyTile tile = no_tile();
  while (true) {
    // S = Q K^T, some columns of K at a time
    Fragment<float> scores[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS];
    clear(scores);
    if (tile.exists) {
      UNROLL
      for (int d = 0; d < P::HEAD_TILES; d++) {
        typename Tiles::Ahead next;
        if (d + 1 < P::HEAD_TILES) tiles.read_keys(next, walk.keys(tile), d + 1);
        else tiles.read_values(next, walk.keys(tile), 0, rows, mods);
        if (tile.live) multiply_keys<T, P>(scores, queries, rows.q_idx, tiles.keys(), d, rows.place);
        if (P::PARTS > 1 && tile.live && d + 1 == P::HEAD_TILES) parts.give(scores, at);
        tiles.turn_to(next);
      }
      if (P::PARTS > 1 && tile.live) parts.take(scores, at);
    }

    // O += P V, some columns of V at a time; before the first of them, P = softmax so far of the modified scores
    const KeyTile following = walk.next(rows, mods, at);
    Fragment<F> weights[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS];
    uint gaps = 0;  // bit j: some row of this simdgroup does not attend to some key of key fragment j
    UNROLL
    for (int d = 0; d < P::VALUE_TILES; d++) {
      const threadgroup V* values = tiles.values() + rows.part * P::VALUE_COLUMNS * FRAGMENT;
      if (tile.live && d == 0) {
        modify<P>(scores, tile, walk, rows, factors, tiles.key_scale(at.lane), mods);
        gaps = HAS_SCORE_MOD || tile.masked ? update_rows<true>(state, sums, weights, scores)
                                            : update_rows<false>(state, sums, weights, scores);
        if (MAY_LEAVE_OUT && (HAS_SCORE_MOD || tile.masked)) gaps = metal::simd_or(gaps);
        if (INT8_VALUES) scale_weights<P>(weights, tiles.value_scale(at.lane), rows.place);
      }
      const bool special = MAY_LEAVE_OUT && gaps != 0 && holds_special<V, P>(tiles.values(), gaps, at.lane);
      if (special) multiply_special_values<V, P>(sums, weights, values, d, rows.place);

      // These reads wait for the multiplications only: softmax needs the registers that they take.
      typename Tiles::Ahead next;
      next.kind = Tiles::NOTHING;
      if (d + 1 == P::VALUE_TILES) {
        if (following.exists) tiles.read_keys(next, walk.keys(following), 0);
      } else if (tile.exists) {
        tiles.read_values(next, walk.keys(tile), d + 1, rows, mods);
      }
      if (tile.live && !special) multiply_values<V, P>(sums, weights, values, d, rows.place);
      tiles.turn_to(next);
    }
    if (!following.exists) break;
    tile = following;
  }
  write_rows<P>(to, state, sums, rows, p, mods);
}

// -- body: what MLX puts between the braces --
typedef Plan<HEAD_DIM, VALUE_DIM, ROW_FRAGMENTS, SIMDGROUPS, BK, BD, BV, VALUE_TILES, Q_IN_REGISTERS, PARTS> P;
threadgroup T staged[STAGED];
threadgroup uint votes[2 * SIMDGROUPS + SCALES * BK + PARTIAL];
const auto mods = captured_by_mods(params CAPTURED_ARRAYS);
attention_forward<P, BLOCKS, StagedTile>(
    tensor(q, q_strides), tensor(k, k_strides), tensor(v, v_strides), outputs(out, lse, max_scores), tile_lists,
    attention_params(sizes), mods, staged, votes,
    thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
              thread_index_in_simdgroup));
