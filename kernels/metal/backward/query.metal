// query.metal: gradients of queries, a tile at a time, scores computed again (FlashAttention-2, arXiv 2307.08691).
//
//   each threadgroup takes BQ query rows of one head, each of its simdgroups ROWS of them       OwnRows
//   for each tile of BK keys that the masks leave                                               Walk
//     S = Q K^T, dP = d_out V^T, in registers                                                   multiply_own
//     P = exp(mask(score_mod(scale S)) - lse); dS = P (dP - delta) score_mod'                   differentiate
//     dQ = dQ + dS K                                                                            add_rows
//   d_q = scale dQ                                                                              write_rows
//
// K and V pass through two halves of threadgroup memory, as stream.h says; K once where neither is cut. Where
// simdgroups share rows, each multiplies its part of the columns, and S and dP are summed over the parts.
#include "differentiate.h"
#include "gradient_rows.h"
#include "../attention/stream.h"
#include "site_sums.h"

// The whole kernel. q: [batch, query_heads, q_len, HEAD_DIM]; k, v: [kv_batches, kv_heads, kv_len, HEAD_DIM or
// VALUE_DIM]; d_out: as q, VALUE_DIM; any strides. statistics: RowTerms. d_q: as q, of the rows that this launch takes.
// site_sums: sums over the keys, [batch, query_heads, rows of this launch, SITES].
// at.group: (tile of query rows and slice of dQ's columns, query head, batch).
template <typename P, typename G, int BLOCKS, typename T, typename Captured>
INLINE void backward_query(Tensor<T> q, Tensor<T> k, Tensor<T> v, Tensor<T> d_out, const device float* statistics,
                           device T* d_q, device float* site_sums, const device int* tile_lists, AttentionParams p,
                           const thread Captured& mods, threadgroup T* staged, threadgroup T* own,
                           threadgroup uint* votes, Thread at) {
  typedef Stream<T, T, T, P, StagedTile> Tiles;
  typedef typename G::template HeadRows<T, P> Queries;
  typedef typename G::template ValueRows<T, P> DOuts;
  constexpr bool MAY_LEAVE_OUT = HAS_SCORE_MOD || Walk<P, BLOCKS, Captured>::UNSURE;

  const int slice = G::take_slice(at);
  LaneRows<P> rows;
  rows.start(p, at);
  Queries queries;
  queries.start(q.head(rows.b, rows.h), rows.q_idx, rows.of_group, own, rows.place, at);
  DOuts d_outs;
  d_outs.start(d_out.head(rows.b, rows.h), rows.q_idx, rows.of_group, own + G::HEAD_STAGED, rows.place, at);
  TermsOfRows<P, G::MAX> terms;
  terms.start(statistics, int64_t(at.groups.z) * p.query_heads * p.q_len,
              (int64_t(rows.b) * p.query_heads + rows.h) * p.q_len, rows.q_idx);
  SiteSums<P> sites;
  sites.start();
  Fragment<float> sums[P::ROW_FRAGMENTS][G::HEAD_SUMS];  // dQ
  clear(sums);

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
    bool gaps = false;
    UNROLL
    for (int d = 0; d < P::VALUE_TILES; d++) {
      typename Tiles::Ahead next;
      next.kind = Tiles::NOTHING;
      if (d + 1 < P::VALUE_TILES) tiles.read_values(next, walk.keys(tile), d + 1, rows, mods);
      else if (!G::WHOLE) tiles.read_keys(next, walk.keys(tile), slice * G::HEAD_TILES);
      if (tile.live) multiply_own<P, P::BV>(slopes, d_outs, rows.q_idx, tiles.values(), d, rows.place);
      if (P::PARTS > 1 && d + 1 == P::VALUE_TILES)
        sum_parts<P>(scores, slopes, votes + 2 * P::SIMDGROUPS, tile.live, at);
      if (tile.live && d + 1 == P::VALUE_TILES)
        gaps = differentiate<P, false, G::MAX>(scores, slopes, tile, walk, mods, rows, terms, sites, mods);
      if (G::WHOLE) G::turn_back(tiles);
      else tiles.turn_to(next);
    }

    UNROLL
    for (int d = 0; d < G::HEAD_TILES; d++) {
      typename Tiles::Ahead next;
      next.kind = Tiles::NOTHING;
      if (d + 1 < G::HEAD_TILES) tiles.read_keys(next, walk.keys(tile), slice * G::HEAD_TILES + d + 1);
      else if (following.exists) tiles.read_keys(next, walk.keys(following), 0);
      if (tile.live)
        add_rows<P, P::BD>(sums, slopes, tiles.keys(), d, MAY_LEAVE_OUT && gaps, rows.part, rows.place);
      tiles.turn_to(next);
    }
    tile = following;
  }
  write_rows<P, P::BD>(d_q, sums, p.scale, slice * G::HEAD_TILES * P::BD, P::HEAD_DIM, rows,
                int64_t(rows.b) * p.query_heads + rows.h, p);
  if (SITES > 0 && slice == 0 && rows.part == 0)
    sites.write(site_sums, int64_t(rows.b) * p.query_heads + rows.h, rows, p);
}

// -- body: what MLX puts between the braces --
typedef Plan<HEAD_DIM, VALUE_DIM, 1, SIMDGROUPS, BK, BD, BV, VALUE_TILES, false, PARTS> P;
typedef GradientPlan<P, HEAD_KEPT, VALUE_KEPT, SLICES, HEAD_STAGED, WITH_MAX> G;
threadgroup T staged[STAGED];
threadgroup T own[OWN_STAGED];
threadgroup uint votes[2 * SIMDGROUPS + PARTIAL];
const auto mods = captured_by_mods(params CAPTURED_ARRAYS);
backward_query<P, G, BLOCKS>(
    tensor(q, q_strides), tensor(k, k_strides), tensor(v, v_strides), tensor(d_out, d_out_strides), statistics, d_q,
    site_sums, tile_lists, attention_params(sizes), mods, staged, own, votes,
    thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
              thread_index_in_simdgroup));
