// pairs.metal: a part of the gradient of a captured array, where a site reads other elements for the pairs of a row.
//
// query.metal as far as dS, whose pairs go to the sums of pair_sums.h. Each threadgroup takes tiles of query rows, of
// batches and of heads, one after the other, and adds to sums of its own.
#include "../attention/stream.h"
#include "../backward/differentiate.h"
#include "../backward/gradient_rows.h"
#include "pair_sums.h"

// sums: DIAGONAL [batch, query_heads, groups, q_len + kv_len - 1], DENSE [elements], TABLE [groups, elements].
// groups: at.groups.x. extent: the tiles of query rows that this launch takes, and the batches of q.
// at.group: (one of those that share the tiles, query head, batch); where there is one of the latter it takes all.
template <typename P, typename G, int PATTERN, int BLOCKS, typename T, typename Captured>
INLINE void sum_pairs(Tensor<T> q, Tensor<T> k, Tensor<T> v, Tensor<T> d_out, const device float* statistics,
                      device float* sums, const device int* tile_lists, const constant int* extent, AttentionParams p,
                      const thread Captured& mods, threadgroup T* staged, threadgroup T* own,
                      threadgroup float* pair_values, threadgroup int* pair_elements, threadgroup uint* votes,
                      Thread at) {
  typedef Stream<T, T, T, P, StagedTile> Tiles;
  typedef typename G::template HeadRows<T, P> Queries;
  typedef typename G::template ValueRows<T, P> DOuts;
  const int q_tiles = extent[0], batch = extent[1];
  const int heads = p.query_heads / int(at.groups.y), batches = batch / int(at.groups.z);
  PairSums<P, PATTERN> pairs;
  pairs.values = pair_values;
  pairs.elements = pair_elements;
  pairs.simdgroup = int(at.simdgroup);

  for (int item = int(at.group.x); item < q_tiles * heads * batches; item += int(at.groups.x)) {
    if (item != int(at.group.x)) metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    Thread place = at;
    place.group.x = uint(item % q_tiles);
    place.group.y += uint(item / q_tiles % heads);
    place.group.z += uint(item / q_tiles / heads);
    place.groups.x = uint(q_tiles);
    LaneRows<P> rows;
    rows.start(p, place);
    const int64_t head = int64_t(rows.b) * p.query_heads + rows.h;
    pairs.sums = sums;
    if (PATTERN == DIAGONAL) pairs.sums += (head * at.groups.x + at.group.x) * int64_t(p.q_len + p.kv_len - 1);
    if (PATTERN == TABLE) pairs.sums += at.group.x * element_count(mods);
    Queries queries;
    queries.start(q.head(rows.b, rows.h), rows.q_idx, rows.of_group, own, rows.place, place);
    DOuts d_outs;
    d_outs.start(d_out.head(rows.b, rows.h), rows.q_idx, rows.of_group, own + G::HEAD_STAGED, rows.place, place);
    TermsOfRows<P, G::MAX> terms;
    terms.start(statistics, int64_t(batch) * p.query_heads * p.q_len, head * p.q_len, rows.q_idx);

    Walk<P, BLOCKS, Captured> walk;
    walk.start(p, tile_lists, rows, votes);
    Tiles tiles;
    tiles.start(k.head(rows.kv_batch, rows.kv_head), v.head(rows.kv_batch, rows.kv_head), staged, votes, at.index());
    KeyTile tile = walk.next(rows, mods, at);
    if (tile.exists) {
      typename Tiles::Ahead first;
      tiles.read_keys(first, walk.keys(tile), 0);
      tiles.turn_to(first);
    }

    while (tile.exists) {
      Fragment<float> scores[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS], slopes[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS];
      clear(scores);
      clear(slopes);
      UNROLL
      for (int d = 0; d < P::HEAD_TILES; d++) {
        typename Tiles::Ahead next;
        if (d + 1 < P::HEAD_TILES) tiles.read_keys(next, walk.keys(tile), d + 1);
        else tiles.read_values(next, walk.keys(tile), 0, rows, mods);
        if (tile.live) multiply_own<P, P::BD>(scores, queries, rows.q_idx, tiles.keys(), d, rows.place);
        tiles.turn_to(next);
      }

      const KeyTile following = walk.next(rows, mods, at);
      UNROLL
      for (int d = 0; d < P::VALUE_TILES; d++) {
        typename Tiles::Ahead next;
        next.kind = Tiles::NOTHING;
        if (d + 1 < P::VALUE_TILES) tiles.read_values(next, walk.keys(tile), d + 1, rows, mods);
        else if (following.exists) tiles.read_keys(next, walk.keys(following), 0);
        if (tile.live) multiply_own<P, P::BV>(slopes, d_outs, rows.q_idx, tiles.values(), d, rows.place);
        if (d + 1 == P::VALUE_TILES) {
          if (tile.live) differentiate<P, false, G::MAX>(scores, slopes, tile, walk, mods, rows, terms, pairs, mods);
          else pairs.add_nothing(rows);
        }
        tiles.turn_to(next);
      }
      if (PATTERN != DENSE) {
        if (!following.exists) metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
        pairs.collect(rows.q_tile * P::BQ, tile.first, p, at.index());
      }
      tile = following;
    }
  }
}

// -- body: what MLX puts between the braces --
typedef Plan<HEAD_DIM, VALUE_DIM, 1, SIMDGROUPS, BK, BD, BV, VALUE_TILES, false> P;
typedef GradientPlan<P, HEAD_KEPT, VALUE_KEPT, 1, HEAD_STAGED, WITH_MAX> G;
threadgroup T staged[STAGED];
threadgroup T own[OWN_STAGED];
threadgroup float pair_values[PAIR_VALUES];
threadgroup int pair_elements[PAIR_ELEMENTS];
threadgroup uint votes[2 * SIMDGROUPS];
const auto mods = captured_by_mods(params CAPTURED_ARRAYS);
sum_pairs<P, G, PATTERN, BLOCKS>(
    tensor(q, q_strides), tensor(k, k_strides), tensor(v, v_strides), tensor(d_out, d_out_strides), statistics, sums,
    tile_lists, extent, attention_params(sizes), mods, staged, own, pair_values, pair_elements, votes,
    thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
              thread_index_in_simdgroup));
