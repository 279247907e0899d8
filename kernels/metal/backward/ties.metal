// ties.metal: how many of a row's scores are its largest, which the gradient of max_scores is shared among.
//
// query.metal as far as the scores. Largest scores are found anew, as the gradient kernels compute them.
#include "differentiate.h"
#include "gradient_rows.h"
#include "../attention/stream.h"

// largest, ties: [batch, query_heads, rows of this launch], -inf and 0 for a row that attends to nothing.
template <typename P, typename G, int BLOCKS, typename T, typename Captured>
INLINE void count_ties(Tensor<T> q, Tensor<T> k, device float* largest, device float* ties,
                       const device int* tile_lists, AttentionParams p, const thread Captured& mods,
                       threadgroup T* staged, threadgroup T* own, threadgroup uint* votes, Thread at) {
  typedef Stream<T, T, T, P, StagedTile> Tiles;
  typedef typename G::template HeadRows<T, P> Queries;
  LaneRows<P> rows;
  rows.start(p, at);
  Queries queries;
  queries.start(q.head(rows.b, rows.h), rows.q_idx, rows.of_group, own, rows.place, at);
  float most[P::ROW_FRAGMENTS], count[P::ROW_FRAGMENTS];
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    most[r] = minus_infinity();
    count[r] = 0.0f;
  }

  Walk<P, BLOCKS, Captured> walk;
  walk.start(p, tile_lists, rows, votes);
  Tiles tiles;
  tiles.start(k.head(rows.kv_batch, rows.kv_head), k.head(rows.kv_batch, rows.kv_head), staged, votes, at.index());
  KeyTile tile = walk.next(rows, mods, at);
  if (tile.exists) {
    typename Tiles::Ahead first;
    tiles.read_keys(first, walk.keys(tile), 0);
    tiles.turn_to(first);
  }
  while (tile.exists) {
    const KeyTile following = walk.next(rows, mods, at);
    Fragment<float> scores[P::ROW_FRAGMENTS][P::KEY_FRAGMENTS];
    clear(scores);
    UNROLL
    for (int d = 0; d < P::HEAD_TILES; d++) {
      typename Tiles::Ahead next;
      next.kind = Tiles::NOTHING;
      if (d + 1 < P::HEAD_TILES) tiles.read_keys(next, walk.keys(tile), d + 1);
      else if (following.exists) tiles.read_keys(next, walk.keys(following), 0);
      if (tile.live) multiply_own<P, P::BD>(scores, queries, rows.q_idx, tiles.keys(), d, rows.place);
      tiles.turn_to(next);
    }
    const uint kept = tile.masked && !tile.asked ? walk.kept(tile.first, tile.state, rows, mods) : tile.kept;
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int i = 0; i < 2 * P::KEY_FRAGMENTS; i++) {
        const int j = i / 2, e = i % 2;
        const int kv_idx = metal::min(tile.first + j * FRAGMENT + rows.place.column + e, p.kv_len - 1);
        const float score =
            score_gradient(mods, elements(scores[r][j])[e] * p.scale, rows.b, rows.h, rows.q_idx[r], kv_idx).score;
        const bool attends = tile.live && (!tile.masked || walk.is_kept(kept, r, e, j));
        if (!attends || is_minus_infinity(score)) continue;
        if (score > most[r] || is_minus_infinity(most[r])) {
          most[r] = score;
          count[r] = 0.0f;
        }
        if (score == most[r]) count[r] += 1.0f;
      }
    }
    tile = following;
  }

  const int first_out = p.first_tile * P::BQ, out_rows = metal::min(p.q_len - first_out, rows.q_tiles * P::BQ);
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    const float of_row = max_of_row(most[r]), found = sum_of_row(most[r] == of_row ? count[r] : 0.0f);
    const int64_t to = (int64_t(rows.b) * p.query_heads + rows.h) * out_rows + (rows.row(r) - first_out);
    if (rows.row(r) < p.q_len && rows.place.column == 0) {
      largest[to] = of_row;
      ties[to] = found;
    }
  }
}

// -- body: what MLX puts between the braces --
typedef Plan<HEAD_DIM, VALUE_DIM, 1, SIMDGROUPS, BK, BD, BV, VALUE_TILES, false> P;
typedef GradientPlan<P, HEAD_KEPT, VALUE_KEPT, 1, HEAD_STAGED, false> G;
threadgroup T staged[STAGED];
threadgroup T own[OWN_STAGED];
threadgroup uint votes[2 * SIMDGROUPS];
const auto mods = captured_by_mods(params CAPTURED_ARRAYS);
count_ties<P, G, BLOCKS>(
    tensor(q, q_strides), tensor(k, k_strides), largest, ties, tile_lists, attention_params(sizes), mods,
    staged, own, votes,
    thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
              thread_index_in_simdgroup));
