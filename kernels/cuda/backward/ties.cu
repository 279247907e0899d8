// ties.cu: how many of a row's scores are its largest, which the gradient of max_scores is shared among.
//
// query.cu as far as the scores; of k the first column passes by as values too. Largest scores are found anew, as the
// gradient kernels compute them.
#include "plan.h"
#include "differentiate.h"
#include "products.h"
#include "../tile/staging.h"
#include "resident.h"

// largest, ties: [batch, query_heads, q_len], -inf and 0 for a row that attends to nothing.
struct Tensors {
  const T *q, *k;
  const int* tile_lists;
  float *largest, *ties;
};

// What differentiate() hands on: the scores of what is attended to.
struct Largest {
  float most[2 * ROW_TILES], count[2 * ROW_TILES];

  INLINE void start() {
    UNROLL
    for (int i = 0; i < 2 * ROW_TILES; i++) most[i] = -INFINITY, count[i] = 0.0f;
  }
  INLINE void add(int own, int other, bool attends, const ScoreGradient& found) {
    if (!attends || found.score == -INFINITY) return;
    if (found.score > most[own] || most[own] == -INFINITY) most[own] = found.score, count[own] = 0.0f;
    if (found.score == most[own]) count[own] += 1.0f;
  }
};

INLINE void count_ties(const Tensors& tensors, const AttentionParams& p, const GradientMods& mods) {
  extern __shared__ __align__(16) unsigned char memory[];
  typedef Walk<BQ, BK, BLOCKS> Tiles;
  const int q_tile = gridDim.x - 1 - blockIdx.x;
  Place place;
  place.b = blockIdx.z, place.h = blockIdx.y;
  const int first_row = take_rows(place, q_tile, p.q_len), lane = place.lane, thread = threadIdx.x;
  const int64_t head = int64_t(place.b) * p.query_heads + place.h;
  const int64_t kv_head = int64_t(p.kv_batches == 1 ? 0 : place.b) * p.kv_heads + place.h / (p.query_heads / p.kv_heads);
  const Rows<T> q = rows_of(tensors.q + head * p.q_len * HEAD_DIM, HEAD_DIM, p.q_len);

  Resident own((T*)memory);
  own.load(q, q, q_tile * BQ, thread);
  Ring<0> ring(own.end());
  ring.heads = ring.values = rows_of(tensors.k + kv_head * p.kv_len * HEAD_DIM, HEAD_DIM, p.kv_len);
  Largest largest;
  largest.start();
  Tiles walk(p, mods, place, tensors.tile_lists, q_tile);
  KeyTile tile = walk.next();
  if (tile.exists) ring.load(tile.first, thread);
  while (tile.exists) {
    ring.arrive();
    const KeyTile following = walk.next();
    if (STAGES > 1 && following.exists) ring.load(following.first, thread);
    if (tile.live) {
      Sums scores[ROW_TILES][OTHERS];
      const Passing passing = passing_of(tile, p, walk.states);
      multiply_own<HEADS, LD_HEADS, false>(scores, own.heads_of_warp(), ring.heads_here(), lane);
      UNROLL
      for (int i = 0; i < 2 * ROW_TILES; i++) {
        UNROLL
        for (int other = 0; other < 2 * OTHERS; other++) {
          const Position at = position_of<false>(i, other, passing, first_row, p, lane);
          const ScoreGradient found = score_at(element_of(scores, i, other), at, p, mods, place);
          largest.add(i, other, !tile.masked || is_kept(at, passing, p, mods, place), found);
        }
      }
    }
    if (STAGES == 1) {
      __syncthreads();
      if (following.exists) ring.load(following.first, thread);
    }
    tile = following;
  }
  UNROLL
  for (int i = 0; i < 2 * ROW_TILES; i++) {
    const int row = first_row + 8 * i + lane / 4;
    const float most = max_of_row(largest.most[i]), ties = sum_of_row(largest.most[i] == most ? largest.count[i] : 0.0f);
    if (row >= p.q_len || (lane & 3) != 0) continue;
    tensors.largest[head * p.q_len + row] = most;
    tensors.ties[head * p.q_len + row] = ties;
  }
}
