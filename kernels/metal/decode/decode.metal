// decode.metal: attention of a few query rows. The keys of each head are split over threadgroups, whose partial results
// merge.metal puts together (Flash-Decoding, pytorch.org/blog/flash-decoding); all query heads that share a head of
// keys are rows of one tile, so that keys and values are read once.
//
//   each threadgroup takes up to ROWS rows of one head of keys, and a split of the live tiles    LiveTiles
//   its simdgroups take tiles of their own, or all the same tiles and columns of their own       SHARE
//     S^T = K Q^T, from device memory to registers                                               KeyPieces
//     S^T = mask(score_mod(scale S^T)); P = exp(S - max)                                         modify, update
//     O^T = O^T exp(old max - max) + V^T P^T                                                     ValuePieces
//   the simdgroups' results become one                                                           write_units
//
// Only simdgroups that share columns wait for each other, once a tile: each has but a part of the sums of a product.
#include "../mod/mod.h"
#include "sizes.h"
#include "plan.h"
#include "rows.h"
#include "pieces.h"
#include "live.h"
#include "weights.h"

// partial: [batch, kv_heads, splits, rows, VALUE_DIM], exp(-max) times the result, without what has no key at all;
// statistics: [.., rows, 2], max and sum of each; a sum of 0 says that nothing is there.
struct Partial {
  device float* out;
  device float* statistics;
};
INLINE Partial partial_at(device float* out, device float* statistics) {
  Partial to;
  to.out = out;
  to.statistics = statistics;
  return to;
}

// S^T, of which each simdgroup has what its columns give, becomes all of it in each; and the scales, which the first
// one has read. place: 0 and 1 in turn, so that one barrier is enough.
template <typename P>
INLINE void meet(thread Fragment<float> (&scores)[P::KEY_FRAGMENTS][P::ROW_FRAGMENTS], thread float& key_scale,
                 thread float& value_scale, threadgroup float* shared, int place, Thread at) {
  constexpr int ELEMENTS = 2 * P::KEY_FRAGMENTS * P::ROW_FRAGMENTS;
  threadgroup float* here = shared + place * P::MEETING + at.lane;
  UNROLL
  for (int i = 0; i < ELEMENTS; i++) {
    const int j = i / 2 / P::ROW_FRAGMENTS, r = i / 2 % P::ROW_FRAGMENTS;
    here[(at.simdgroup * ELEMENTS + i) * LANES] = elements(scores[j][r])[i % 2];
  }
  if (at.simdgroup == 0 && at.lane < P::BK) {
    if (QUANTISED) here[P::SCORES] = key_scale;
    if (INT8_VALUES) here[P::SCORES + P::BK] = value_scale;
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (QUANTISED && at.lane < P::BK) key_scale = here[P::SCORES];
  if (INT8_VALUES && at.lane < P::BK) value_scale = here[P::SCORES + P::BK];
  UNROLL
  for (int i = 0; i < ELEMENTS; i++) {
    float sum = here[i * LANES];
    UNROLL
    for (int s = 1; s < P::SHARE; s++) sum += here[(s * ELEMENTS + i) * LANES];
    elements(scores[i / 2 / P::ROW_FRAGMENTS][i / 2 % P::ROW_FRAGMENTS])[i % 2] = sum;
  }
}

// One row's statistics.
INLINE void write_statistics(Partial to, int64_t row, float max, float sum) {
  to.statistics[2 * row] = max;
  to.statistics[2 * row + 1] = sum;
}

// A split that is not in use has no key.
template <typename P>
INLINE void write_nothing(Partial to, DecodeSizes p, const thread PackedRows<P>& rows, Thread at) {
  const int row = rows.of_group.first + int(at.index());
  if (row < rows.of_group.end) write_statistics(to, rows.partial(row, p), LOWEST, 0.0f);
}

// Results of simdgroups that have columns of their own.
template <typename P>
INLINE void write_columns(Partial to, thread TwoRows (&state)[P::ROW_FRAGMENTS],
                          thread Fragment<float> (&sums)[P::VALUE_FRAGMENTS][P::ROW_FRAGMENTS], int first_column,
                          DecodeSizes p, const thread PackedRows<P>& rows, Thread at) {
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    const metal::float2 sum = sum_over_keys(state[r].sum);
    UNROLL
    for (int e = 0; e < 2; e++) {
      if (rows.row(r, e) >= rows.of_group.end) continue;
      const int64_t row = rows.partial(rows.row(r, e), p);
      if (at.simdgroup == 0 && rows.place.row == 0) write_statistics(to, row, state[r].max[e], sum[e]);
      UNROLL
      for (int d = 0; d < P::VALUE_FRAGMENTS; d++) {
        const int chunk = d / P::VALUE_PIECE, t = d % P::VALUE_PIECE;
        const int column = first_column + chunk * P::VALUE_CHUNK + rows.place.row * P::VALUE_PIECE + t;
        if (column < P::VALUE_DIM) to.out[row * P::VALUE_DIM + column] = elements(sums[d][r])[e];
      }
    }
  }
}

// Results of simdgroups that have tiles of their own become one, simdgroup by simdgroup in their order.
template <typename P>
INLINE void write_units(Partial to, thread TwoRows (&state)[P::ROW_FRAGMENTS],
                        thread Fragment<float> (&sums)[P::VALUE_FRAGMENTS][P::ROW_FRAGMENTS],
                        threadgroup float* shared, DecodeSizes p, const thread PackedRows<P>& rows, Thread at) {
  // Statistics of row n of simdgroup s lie at 2 (s ROWS + n).
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    const metal::float2 sum = sum_over_keys(state[r].sum);
    UNROLL
    for (int e = 0; e < 2; e++) {
      const int at_row = 2 * (int(at.simdgroup) * P::ROWS + r * FRAGMENT + rows.place.column + e);
      if (rows.place.row == 0) shared[at_row] = state[r].max[e];
      if (rows.place.row == 0) shared[at_row + 1] = sum[e];
    }
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      const threadgroup float* of_row = shared + 2 * (r * FRAGMENT + rows.place.column + e);
      float largest = of_row[0], sum = 0.0f;
      UNROLL
      for (int s = 1; s < P::SIMDGROUPS; s++) largest = metal::max(largest, of_row[2 * s * P::ROWS]);
      UNROLL
      for (int s = 0; s < P::SIMDGROUPS; s++)
        sum += of_row[2 * s * P::ROWS + 1] * metal::fast::exp2((of_row[2 * s * P::ROWS] - largest) * LOG2_E);
      const float shrink = metal::fast::exp2((state[r].max[e] - largest) * LOG2_E);
      UNROLL
      for (int d = 0; d < P::VALUE_FRAGMENTS; d++) elements(sums[d][r])[e] *= shrink;
      if (at.simdgroup == 0 && rows.place.row == 0 && rows.row(r, e) < rows.of_group.end)
        write_statistics(to, rows.partial(rows.row(r, e), p), largest, sum);
    }
  }

  threadgroup float* chunks = shared + P::STATISTICS;
  UNROLL
  for (int c = 0; c < P::VALUE_CHUNKS; c++) {
    if (c > 0) metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        threadgroup float* row = chunks + (int(at.simdgroup) * P::ROWS + r * FRAGMENT + rows.place.column + e) * P::LD +
                                 rows.place.row * P::VALUE_PIECE;
        UNROLL
        for (int t = 0; t < P::VALUE_PIECE; t++) row[t] = elements(sums[c * P::VALUE_PIECE + t][r])[e];
      }
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    for (int i = int(at.index()); i < P::ROWS * P::VALUE_CHUNK; i += P::SIMDGROUPS * LANES) {
      const int n = i / P::VALUE_CHUNK, column = c * P::VALUE_CHUNK + i % P::VALUE_CHUNK;
      if (rows.of_group.first + n >= rows.of_group.end || column >= P::VALUE_DIM) continue;
      float sum = 0.0f;
      UNROLL
      for (int s = 0; s < P::SIMDGROUPS; s++) sum += chunks[(s * P::ROWS + n) * P::LD + i % P::VALUE_CHUNK];
      to.out[rows.partial(rows.of_group.first + n, p) * P::VALUE_DIM + column] = sum;
    }
  }
}

// The whole kernel; the body below calls it with the buffers that MLX declares.
//
// q: [batch, query_heads, q_len, HEAD_DIM]; k: [kv_batches, kv_heads, kv_len, HEAD_DIM];
// v: [kv_batches, kv_heads, kv_len, VALUE_DIM]; any strides. K: T, or int8_t: q is whole numbers too. V: T, or int8_t.
// at.group: (split and tile of rows, kv head, batch).
template <typename P, int BLOCKS, typename T, typename K, typename V, typename Captured>
INLINE void attention_decode(Tensor<T> q, Tensor<K> k, Tensor<V> v, Partial to, const device int* tile_lists,
                             DecodeSizes p, const thread Captured& mods, threadgroup float* shared, Thread at) {
  typedef LiveTiles<P, BLOCKS, Captured> Tiles;
  typedef typename ValuePieces<V, P>::F F;
  constexpr bool MAY_LEAVE_OUT = !INT8_VALUES && (HAS_SCORE_MOD || Tiles::UNSURE);
  const int share = P::SHARE > 1 ? int(at.simdgroup) : 0;
  const bool reads_scales = share == 0;
  const int head_column = share * P::HEAD_CHUNKS * P::HEAD_CHUNK;
  const int value_column = share * P::VALUE_CHUNKS * P::VALUE_CHUNK;

  PackedRows<P> rows;
  rows.start(p, at);
  QueryColumns<T, P> queries;
  PackedFactors<P> factors;
  bool started = false;  // whether these are read: who has no tile reads nothing
  TwoRows state[P::ROW_FRAGMENTS];
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) state[r].start();
  Fragment<float> sums[P::VALUE_FRAGMENTS][P::ROW_FRAGMENTS];  // O^T
  clear(sums);
  const Matrix<K> head_of_k = k.head(rows.kv_batch, rows.kv_head);
  const Matrix<V> head_of_v = v.head(rows.kv_batch, rows.kv_head);

  Tiles tiles;
  tiles.start(p, tile_lists, rows, at);
  LiveTile tile;
  int place = 0;
  while (tiles.next(tile, rows, mods, at.lane)) {
    const uint kept = tiles.kept(tile, rows, mods);
    if (Tiles::UNSURE && !metal::simd_any(kept != 0)) continue;
    if (!started) {
      queries.start(q, rows, head_column);
      factors.start(p, rows, mods);
      started = true;
    }
    const Range keys = range_of(tile.first, P::BK, p.kv_len);
    Fragment<float> scores[P::KEY_FRAGMENTS][P::ROW_FRAGMENTS];
    clear(scores);
    KeyPieces<K, P> key_pieces;
    key_pieces.read(head_of_k, keys, head_column, rows.place);
    key_pieces.multiply(scores, queries);
    const Range scaled = range_of(tile.first, reads_scales ? P::BK : 0, p.kv_len);
    float key_scale = key_scale_in_lane(rows, scaled, mods, at.lane);
    float value_scale = value_scale_in_lane(rows, scaled, mods, at.lane);
    if (P::SHARE > 1) {
      meet<P>(scores, key_scale, value_scale, shared, place, at);
      place ^= 1;
    }
    ValuePieces<V, P> value_pieces;
    value_pieces.read(head_of_v, keys, value_column, rows.place);
    modify<P>(scores, tile, kept, key_scale, p, rows, factors, mods);
    const bool gaps = update<P>(state, sums, scores);
    if (INT8_VALUES) scale_weights<P>(scores, value_scale, rows);
    Fragment<F> weights[P::KEY_FRAGMENTS][P::ROW_FRAGMENTS];
    UNROLL
    for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++) convert(weights[j][r], scores[j][r]);
    }
    if (MAY_LEAVE_OUT && metal::simd_any(gaps) && value_pieces.hold_special())
      value_pieces.template multiply<true>(sums, weights);
    else value_pieces.template multiply<false>(sums, weights);
  }
  if (tiles.idle) write_nothing<P>(to, p, rows, at);
  else if (P::SHARE > 1) write_columns<P>(to, state, sums, value_column, p, rows, at);
  else write_units<P>(to, state, sums, shared, p, rows, at);
}

// -- body: what MLX puts between the braces --
typedef DecodePlan<HEAD_DIM, VALUE_DIM, ROW_FRAGMENTS, KEY_FRAGMENTS, SIMDGROUPS, SHARE, KEY_PIECE, VALUE_PIECE> P;
threadgroup float shared[SHARED];
const auto mods = captured_by_mods(params CAPTURED_ARRAYS);
attention_decode<P, BLOCKS>(
    tensor(q, q_strides), tensor(k, k_strides), tensor(v, v_strides), partial_at(partial, statistics), tile_lists,
    decode_sizes(sizes), mods, shared,
    thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
              thread_index_in_simdgroup));
