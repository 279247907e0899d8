// key.metal: gradients of keys and values, a tile of them at a time (FlashAttention-2, arXiv 2307.08691).
//
//   each threadgroup takes BQ keys of one head, each of its simdgroups ROWS of them              OwnRows
//   for each batch and query head that reads them, in order
//     for each tile of BK query rows that the masks leave                                        Walk
//       S = K Q^T, dP = V d_out^T, in registers                                                  multiply_own
//       P = exp(mask(score_mod(scale S)) - lse); dS = P (dP - delta) score_mod'                  differentiate
//       dV = dV + P d_out; dK = dK + dS Q                                                        add_rows
//   d_k = scale dK; d_v = dV                                                                     write_rows
//
// All of the forward kernel's headers serve with keys for rows and query rows for keys: so are p and the tile lists.
// Q and d_out pass through two halves of threadgroup memory, as stream.h says; each once where neither is cut. Where
// simdgroups share rows, each multiplies its part of the columns, and S and dP are summed over the parts.
#include "differentiate.h"
#include "gradient_rows.h"
#include "../attention/stream.h"
#include "site_sums.h"
#include "transposed.h"

// The whole kernel. q, k, v, d_out, statistics: as in query.metal. d_k, d_v: as k and v, of the keys that this launch
// takes. site_sums: sums over the query rows, [batch, query_heads, keys of this launch, SITES].
// at.group: (tile of keys and slice of columns, kv head, batch of keys).
template <typename P, typename G, int BLOCKS, typename T, typename Captured>
INLINE void backward_key(Tensor<T> q, Tensor<T> k, Tensor<T> v, Tensor<T> d_out, const device float* statistics,
                         device T* d_k, device T* d_v, device float* site_sums, const device int* tile_lists,
                         AttentionParams p, const thread Captured& mods, threadgroup T* staged,
                         threadgroup T* own, threadgroup float* staged_terms, threadgroup uint* votes, Thread at) {
  typedef Stream<T, T, T, P, StagedTile> Tiles;
  typedef typename G::template HeadRows<T, P> Keys;
  typedef typename G::template ValueRows<T, P> Values;
  typedef TransposedMask<Captured> Mask;
  constexpr bool MAY_LEAVE_OUT = HAS_SCORE_MOD || Walk<P, BLOCKS, Mask>::UNSURE;

  const int slice = G::take_slice(at), heads = p.query_heads / p.kv_heads;
  const int64_t all_rows = int64_t(at.groups.z) * p.sharing * p.query_heads * p.kv_len;
  const Mask mask = transposed(mods);
  at.group.x = at.groups.x - 1 - at.group.x;  // the first keys come first: under a causal mask they have the most rows
  LaneRows<P> rows;
  rows.start(p, at);
  rows.kv_head = int(at.group.y);
  rows.kv_batch = int(at.group.z);
  Keys keys;
  keys.start(k.head(rows.kv_batch, rows.kv_head), rows.q_idx, rows.of_group, own, rows.place, at);
  Values values;
  values.start(v.head(rows.kv_batch, rows.kv_head), rows.q_idx, rows.of_group, own + G::HEAD_STAGED, rows.place, at);
  TermsOfColumns<P, G::MAX> terms;
  terms.staged = staged_terms;
  Fragment<float> key_sums[P::ROW_FRAGMENTS][G::HEAD_SUMS], value_sums[P::ROW_FRAGMENTS][G::VALUE_SUMS];  // dK, dV
  clear(key_sums);
  clear(value_sums);

  Walk<P, BLOCKS, Mask> walk;
  walk.turn = 0;
  Tiles tiles;
  tiles.start(q.head(0, 0), d_out.head(0, 0), staged, votes, at.index());
  for (int reader = 0; reader < p.sharing * heads; reader++) {
    rows.b = rows.kv_batch * p.sharing + reader / heads;
    rows.h = rows.kv_head * heads + reader % heads;
    const int64_t first_row = (int64_t(rows.b) * p.query_heads + rows.h) * p.kv_len;
    tiles.k = q.head(rows.b, rows.h);
    tiles.v = d_out.head(rows.b, rows.h);
    const int turn = walk.turn;  // the votes of the head before may still be read
    walk.start(p, tile_lists, rows, votes);
    walk.turn = turn;
    SiteSums<P> sites;
    sites.start();
    KeyTile tile = walk.next(rows, mask, at);
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
        else {
          tiles.read_values(next, walk.keys(tile), 0, rows, mods);
          terms.load(statistics, all_rows, first_row, walk.keys(tile), at.index());
        }
        if (tile.live) multiply_own<P, P::BD>(scores, keys, rows.q_idx, tiles.keys(), d, rows.place);
        if (d + 1 == P::HEAD_TILES) terms.store(at.index());
        tiles.turn_to(next);
      }

      const KeyTile following = walk.next(rows, mask, at);
      bool gaps = false;
      UNROLL
      for (int d = 0; d < P::VALUE_TILES; d++) {
        typename Tiles::Ahead next;
        next.kind = Tiles::NOTHING;
        if (d + 1 < P::VALUE_TILES) tiles.read_values(next, walk.keys(tile), d + 1, rows, mods);
        else if (!G::WHOLE) tiles.read_values(next, walk.keys(tile), slice * G::VALUE_TILES, rows, mods);
        if (tile.live) multiply_own<P, P::BV>(slopes, values, rows.q_idx, tiles.values(), d, rows.place);
        if (P::PARTS > 1 && d + 1 == P::VALUE_TILES)
          sum_parts<P>(scores, slopes, votes + 2 * P::SIMDGROUPS, tile.live, at);
        if (tile.live && d + 1 == P::VALUE_TILES) {
          gaps = differentiate<P, true, G::MAX>(scores, slopes, tile, walk, mask, rows, terms, sites, mods);
          if (!MAY_LEAVE_OUT) gaps = false;
        }
        if (!G::WHOLE) tiles.turn_to(next);
      }

      UNROLL
      for (int d = 0; d < G::VALUE_TILES; d++) {
        typename Tiles::Ahead next;
        next.kind = Tiles::NOTHING;
        if (d + 1 < G::VALUE_TILES)
          tiles.read_values(next, walk.keys(tile), slice * G::VALUE_TILES + d + 1, rows, mods);
        else if (!G::WHOLE) tiles.read_keys(next, walk.keys(tile), slice * G::HEAD_TILES);
        if (tile.live) add_rows<P, P::BV>(value_sums, scores, tiles.values(), d, gaps, rows.part, rows.place);
        if (G::WHOLE) G::turn_back(tiles);
        else tiles.turn_to(next);
      }

      UNROLL
      for (int d = 0; d < G::HEAD_TILES; d++) {
        typename Tiles::Ahead next;
        next.kind = Tiles::NOTHING;
        if (d + 1 < G::HEAD_TILES) tiles.read_keys(next, walk.keys(tile), slice * G::HEAD_TILES + d + 1);
        else if (following.exists) tiles.read_keys(next, walk.keys(following), 0);
        if (tile.live) add_rows<P, P::BD>(key_sums, slopes, tiles.keys(), d, gaps, rows.part, rows.place);
        tiles.turn_to(next);
      }
      tile = following;
    }
    if (SITES > 0 && slice == 0 && rows.part == 0)
      sites.write(site_sums, int64_t(rows.b) * p.query_heads + rows.h, rows, p);
  }
  const int64_t head = int64_t(rows.kv_batch) * p.kv_heads + rows.kv_head;
  write_rows<P, P::BD>(d_k, key_sums, p.scale, slice * G::HEAD_TILES * P::BD, P::HEAD_DIM, rows, head, p);
  write_rows<P, P::BV>(d_v, value_sums, 1.0f, slice * G::VALUE_TILES * P::BV, P::VALUE_DIM, rows, head, p);
}

// -- body: what MLX puts between the braces --
typedef Plan<HEAD_DIM, VALUE_DIM, 1, SIMDGROUPS, BK, BD, BV, VALUE_TILES, false, PARTS> P;
typedef GradientPlan<P, HEAD_KEPT, VALUE_KEPT, SLICES, HEAD_STAGED, WITH_MAX> G;
threadgroup T staged[STAGED];
threadgroup T own[OWN_STAGED];
threadgroup float staged_terms[4 * BK];
threadgroup uint votes[2 * SIMDGROUPS + PARTIAL];
const auto mods = captured_by_mods(params CAPTURED_ARRAYS);
backward_key<P, G, BLOCKS>(
    tensor(q, q_strides), tensor(k, k_strides), tensor(v, v_strides), tensor(d_out, d_out_strides), statistics, d_k,
    d_v, site_sums, tile_lists, attention_params(sizes), mods, staged, own, staged_terms,
    votes,
    thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
              thread_index_in_simdgroup));
