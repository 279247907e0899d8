// attention_forward.metal: attention forward, a tile at a time, never the full score matrix (FlashAttention,
// arXiv 2205.14135; online softmax, arXiv 1805.02867).
//
//   each threadgroup takes BQ query rows of one head, each of its simdgroups ROWS of them
//   for each tile of BK keys that the masks leave                      Walk
//     S = (scale Q) K^T, in registers                                  multiply_keys
//     S = mask(score_mod(S)); P = exp(S - max), still in registers     modify, update_row
//     O = O * exp(old max - max) + P V                                 multiply_values
//   out = O / sum of P; lse = max + log(sum)                           write
//
// K and V pass through two halves of threadgroup memory. While the arithmetic works on one half, the next tile's
// reads from device memory are under way into registers; they are stored to the other half after it, and one barrier
// ends the step. (With async_copy.h they go to the other half at once, and are waited for after the arithmetic.)
#include "mod.h"
#include "params.h"
#include "plan.h"
#include "fragments.h"
#include "staging.h"
#include "products.h"
#include "softmax.h"
#include "walk.h"
#include "smooth.h"

// S = mask(score_mod(scale S)) on the elements that this lane holds.
template <typename P, int BLOCKS, typename Captured>
inline void modify(thread Fragment<float> (&scores)[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], KeyTile tile,
                   const thread Walk<P, BLOCKS, Captured>& walk, const thread LaneRows<P>& rows,
                   const thread RowFactors<P>& factors, float key_scale, const thread Captured& mods) {
  if (QUANTISED) scale_products<P>(scores, key_scale, tile.first, walk.p.kv_len, factors, rows, mods);
  uint kept = tile.masked && !tile.asked ? walk.kept(tile.first, tile.state, rows, mods) : tile.kept;
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

// The whole kernel; the body below calls it with the buffers that MLX declares.
//
// q: [batch, query_heads, q_len, HEAD_DIM]; k: [kv_batches, kv_heads, kv_len, HEAD_DIM];
// v: [kv_batches, kv_heads, kv_len, VALUE_DIM]; any strides, in elements. K: T, or int8_t: q is whole numbers too.
// V: T, or int8_t.
// out: [batch, query_heads, rows, VALUE_DIM]; lse, max_scores: [batch, query_heads, rows], float32, natural. `rows` are
// those of the tiles that this launch takes, from p.first_tile on: all q_len, or fewer where a call has several.
// group: (tile of query rows and slice of value columns, query head, batch).
// Tile: StagedTile, or AsyncTile of async_copy.h. votes: 2 SIMDGROUPS words, and SCALES BK more for scales.
template <typename T, typename P, int BLOCKS, template <typename, int, int, int, int> class Tile, typename Captured,
          typename K, typename V>
inline void attention_forward(
    const device T* q, const constant int64_t* q_strides, const device K* k, const constant int64_t* k_strides,
    const device V* v, const constant int64_t* v_strides, device T* out, device float* lse, device float* max_scores,
    const device int* tile_lists, AttentionParams p, const thread Captured& mods, threadgroup T* staged,
    threadgroup uint* votes, metal::uint3 group, metal::uint3 groups, uint simdgroup, uint lane) {
  // Of P V. float for int8 values: the weights, times the scales of these, may be too small for half.
  typedef typename ProductOf<V>::type F;
  typedef Tile<K, P::BK, P::BD, P::HEAD_DIM, P::THREADS> KeysAhead;
  typedef Tile<V, P::BK, P::BV, P::VALUE_DIM, P::THREADS> ValuesAhead;
  constexpr int KEY_BYTES = Leading<K, P::BD>::value * int(sizeof(K)),
                VALUE_BYTES = Leading<V, P::BV>::value * int(sizeof(V));  // of a row of a tile
  constexpr int HALF = P::BK * (KEY_BYTES > VALUE_BYTES ? KEY_BYTES : VALUE_BYTES) / int(sizeof(T));
  constexpr int VALUE_FRAGMENTS = P::VALUE_TILES * P::BV / FRAGMENT;
  const uint thread_index = simdgroup * LANES + lane;
  // Keys that a row does not attend to are in a tile's product. Values in int8 are finite; past the last key are zeros.
  constexpr bool MAY_LEAVE_OUT = !INT8_VALUES && (HAS_SCORE_MOD || Walk<P, BLOCKS, Captured>::UNSURE);

  // The last rows first: under a causal mask they have the most keys.
  const int tiles = int(groups.x) / P::VALUE_SLICES, slice = int(group.x) % P::VALUE_SLICES;
  const int q_tile = p.first_tile + tiles - 1 - int(group.x) / P::VALUE_SLICES;
  const int first_row = q_tile * P::BQ + int(simdgroup) * P::ROWS;
  const int first_value = slice * P::VALUE_TILES * P::BV;
  LaneRows<P> rows;
  rows.b = int(group.z);
  rows.h = int(group.y);
  rows.place = place_of(lane);
  rows.exist = first_row < p.q_len;
  rows.of_group = row_range(q_tile * P::BQ, P::BQ, p.q_len);
  rows.of_simdgroup = row_range(first_row, P::ROWS, p.q_len);
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++)
    rows.q_idx[r] = metal::min(first_row + r * FRAGMENT + rows.place.row, p.q_len - 1);

  const int kv_batch = metal::min(rows.b, p.kv_batches - 1), kv_head = rows.h / (p.query_heads / p.kv_heads);
  const Rows<K> keys = rows_of(k, k_strides, kv_batch, kv_head, p.kv_len);
  const Rows<V> values = rows_of(v, v_strides, kv_batch, kv_head, p.kv_len);
  Queries<T, P> queries;
  queries.start(rows_of(q, q_strides, rows.b, rows.h, p.q_len), rows.q_idx, rows.place);
  const int64_t head = int64_t(rows.b) * p.query_heads + rows.h;
  RowFactors<P> factors;
  factors.start(head * p.q_len, p.kv_len, rows, mods);
  threadgroup uint* scales = votes + 2 * P::SIMDGROUPS;

  RowState state[P::ROW_FRAGMENTS];
  Fragment<float> sums[P::ROW_FRAGMENTS][VALUE_FRAGMENTS];  // O
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    state[r].max = LOWEST;
    state[r].sum = 0.0f;
    UNROLL
    for (int d = 0; d < VALUE_FRAGMENTS; d++) clear(sums[r][d]);
  }

  Walk<P, BLOCKS, Captured> walk;
  walk.start(p, tile_lists, q_tile, (p.q_len + P::BQ - 1) / P::BQ, rows, votes);
  KeyTile tile = walk.next(rows, mods, simdgroup, lane);
  threadgroup T* now = staged;  // the half to compute on, and the half to fill
  threadgroup T* ahead = staged + HALF;
  if (tile.exists) {
    KeysAhead first;
    first.load(keys, tile.first, 0, tile_at<K>(now), thread_index);
    first.store(tile_at<K>(now), thread_index);
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  }

  while (tile.exists) {
    // S = Q K^T, some columns of K at a time
    Fragment<float> scores[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS];
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int j = 0; j < P::KEY_FRAGMENTS; j++) clear(scores[r][j]);
    }
    UNROLL
    for (int d = 0; d < P::HEAD_TILES; d++) {
      if (d + 1 < P::HEAD_TILES) {
        KeysAhead next;
        next.load(keys, tile.first, (d + 1) * P::BD, tile_at<K>(ahead), thread_index);
        if (tile.live) multiply_keys<T, P>(scores, queries, rows.q_idx, tile_at<K>(now), d, rows.place);
        next.store(tile_at<K>(ahead), thread_index);
      } else {
        ValuesAhead next;
        ScalesAhead<P> next_scales;
        next.load(values, tile.first, first_value, tile_at<V>(ahead), thread_index);
        if (SCALES > 0) next_scales.load(kv_batch, kv_head, tile.first, p.kv_len, mods, thread_index);
        if (tile.live) multiply_keys<T, P>(scores, queries, rows.q_idx, tile_at<K>(now), d, rows.place);
        next.store(tile_at<V>(ahead), thread_index);
        if (SCALES > 0) next_scales.store(scales, thread_index);
      }
      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
      threadgroup T* filled = ahead;
      ahead = now;
      now = filled;
    }

    // P = softmax so far of the modified scores; O shrinks by what the maximum has grown
    KeyTile following = walk.next(rows, mods, simdgroup, lane);
    Fragment<F> weights[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS];
    uint gaps = 0;  // bit j: some row of this simdgroup does not attend to some key of key fragment j
    UNROLL
    for (int d = 0; d < P::VALUE_TILES; d++) {
      KeysAhead next_keys;
      ValuesAhead next_values;
      const bool last = d + 1 == P::VALUE_TILES;
      if (!last) next_values.load(values, tile.first, first_value + (d + 1) * P::BV, tile_at<V>(ahead), thread_index);
      else if (following.exists) next_keys.load(keys, following.first, 0, tile_at<K>(ahead), thread_index);

      if (tile.live && d == 0) {
        const float key_scale = QUANTISED ? scale_in_lane<P>(scales, lane) : 1.0f;
        modify<P>(scores, tile, walk, rows, factors, key_scale, mods);
        UNROLL
        for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
          float shrink = HAS_SCORE_MOD || tile.masked ? update_row<true>(state[r], scores[r], gaps)
                                                      : update_row<false>(state[r], scores[r], gaps);
          UNROLL
          for (int i = 0; i < VALUE_FRAGMENTS; i++) elements(sums[r][i]) *= shrink;
          UNROLL
          for (int j = 0; j < P::KEY_FRAGMENTS; j++) convert(weights[r][j], scores[r][j]);
        }
        if (MAY_LEAVE_OUT && (HAS_SCORE_MOD || tile.masked)) gaps = metal::simd_or(gaps);
        if (INT8_VALUES)
          scale_weights<P>(weights, scale_in_lane<P>(scales + (SCALES - 1) * P::BK, lane), rows.place);
      }
      // O += P V, some columns of V at a time
      if (MAY_LEAVE_OUT && gaps != 0 && holds_special<V, P>(tile_at<V>(now), gaps, lane))
        multiply_special_values<V, P>(sums, weights, tile_at<V>(now), d, rows.place);
      else if (tile.live) multiply_values<V, P>(sums, weights, tile_at<V>(now), d, rows.place);

      if (!last) next_values.store(tile_at<V>(ahead), thread_index);
      else if (following.exists) next_keys.store(tile_at<K>(ahead), thread_index);
      if (!last || following.exists) metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
      threadgroup T* filled = ahead;
      ahead = now;
      now = filled;
    }
    tile = following;
  }

  // out = O / sum of P, and what all values lack. A row with nothing to attend to has sum 0 and gives 0, and -inf as
  // its statistics.
  const int64_t kv = int64_t(kv_batch) * p.kv_heads + kv_head;
  const int first_out = p.first_tile * P::BQ, out_rows = metal::min(p.q_len - first_out, tiles * P::BQ);
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    float sum = sum_of_row(state[r].sum);
    float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    int row = first_row + r * FRAGMENT + rows.place.row;
    int64_t at = head * out_rows + (row - first_out);
    if (row < p.q_len) {
      UNROLL
      for (int d = 0; d < VALUE_FRAGMENTS; d++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
          int column = first_value + d * FRAGMENT + rows.place.column + e;
          float mean = VALUE_MEANS && column < P::VALUE_DIM ? mods.value_mean(kv * P::VALUE_DIM + column) : 0.0f;
          float value = elements(sums[r][d])[e] * inverse;
          if (VALUE_MEANS && sum != 0.0f) value += mean;
          if (column < P::VALUE_DIM) out[at * P::VALUE_DIM + column] = T(value);
        }
      }
    }
    if (row < p.q_len && rows.place.column == 0 && slice == 0) {
      lse[at] = sum == 0.0f ? minus_infinity() : state[r].max + metal::precise::log(sum);
      max_scores[at] = sum == 0.0f ? minus_infinity() : state[r].max;
    }
  }
}

// -- body: what MLX puts between the braces --
typedef Plan<HEAD_DIM, VALUE_DIM, ROW_FRAGMENTS, SIMDGROUPS, BK, BD, BV, VALUE_TILES, Q_IN_REGISTERS> P;
threadgroup T staged[STAGED];
threadgroup uint votes[2 * SIMDGROUPS + SCALES * BK];
const auto mods = captured_by_mods(params + PARAM_WORDS CAPTURED_ARRAYS);
attention_forward<T, P, BLOCKS, StagedTile>(
    q, q_strides, k, k_strides, v, v_strides, out, lse, max_scores, tile_lists, read_params(params), mods,
    staged, votes, threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
    thread_index_in_simdgroup);
