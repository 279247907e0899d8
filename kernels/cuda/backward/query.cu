// query.cu: gradients of queries, a tile at a time, scores computed again (FlashAttention-2, arXiv 2307.08691).
//
//   each block takes BQ query rows of one head, each of its warps 16 ROW_TILES of them         resident
//   for each tile of BK keys that the masks leave                                               Walk
//     S = Q K^T, dP = d_out V^T, in registers                                                   multiply_own
//     P = exp(mask(score_mod(scale S)) - lse); dS = P (dP - delta) score_mod'                   differentiate
//     dQ = dQ + dS K, while the next K and V are on their way                                   add_rows
//   d_q = scale dQ                                                                              write_rows
#include "plan.h"
#include "differentiate.h"
#include "products.h"
#include "../tile/staging.h"
#include "resident.h"
#include "rows.h"
#include "site_sums.h"

// q, d_out: [batch, query_heads, q_len, HEAD_DIM or VALUE_DIM]; k, v: [kv_batches, kv_heads, kv_len, ..]; row after row.
// terms: RowTerms; factor: of gradients. d_q: as q. site_sums: sums over the keys, [batch, query_heads, q_len, SITES].
struct Tensors {
  const T *q, *k, *v, *d_out;
  const float *terms, *factor;
  const int* tile_lists;
  T* d_q;
  float* site_sums;
};

INLINE void backward_query(const Tensors& tensors, const AttentionParams& p, const GradientMods& mods) {
  extern __shared__ __align__(16) unsigned char memory[];
  typedef Walk<BQ, BK, BLOCKS> Tiles;
  const int slice = blockIdx.x % SLICES, q_tile = (gridDim.x - 1 - blockIdx.x) / SLICES;  // long rows of a causal mask first
  Place place;
  place.b = blockIdx.z, place.h = blockIdx.y;
  const int first_row = take_rows(place, q_tile, p.q_len), lane = place.lane, thread = threadIdx.x;
  const int64_t head = int64_t(place.b) * p.query_heads + place.h;
  const int64_t kv_head = int64_t(p.kv_batches == 1 ? 0 : place.b) * p.kv_heads + place.h / (p.query_heads / p.kv_heads);
  const float factor = tensors.factor[0], inverse = __fdiv_rn(1.0f, factor);

  Resident own((T*)memory);
  own.load(rows_of(tensors.q + head * p.q_len * HEAD_DIM, HEAD_DIM, p.q_len),
           rows_of(tensors.d_out + head * p.q_len * VALUE_DIM, VALUE_DIM, p.q_len), q_tile * BQ, thread);
  Ring<0> ring(own.end());
  ring.heads = rows_of(tensors.k + kv_head * p.kv_len * HEAD_DIM, HEAD_DIM, p.kv_len);
  ring.values = rows_of(tensors.v + kv_head * p.kv_len * VALUE_DIM, VALUE_DIM, p.kv_len);
  TermsOfRows terms;
  terms.start(tensors.terms + head * p.q_len, int64_t(gridDim.z) * p.query_heads * p.q_len, first_row, p.q_len, lane);
  SiteSums sites;
  sites.start();
  Sums sums[ROW_TILES][HEAD_SUMS];  // dQ
  clear(sums);

  Tiles walk(p, mods, place, tensors.tile_lists, q_tile);
  KeyTile tile = walk.next();
  if (tile.exists) ring.load(tile.first, thread);
  while (tile.exists) {
    ring.arrive();
    const KeyTile following = walk.next();
    if (STAGES > 1 && following.exists) ring.load(following.first, thread);
    if (tile.live) {
      Sums scores[ROW_TILES][OTHERS], slopes[ROW_TILES][OTHERS];
      const Passing passing = passing_of(tile, p, walk.states);
      multiply_own<HEADS, LD_HEADS, false>(scores, own.heads_of_warp(), ring.heads_here(), lane);
      multiply_own<VALUES, LD_VALUES, false>(slopes, own.values_of_warp(), ring.values_here(), lane);
      const bool gaps = have_gaps<false>(scores, slopes, tile.masked);
      differentiate<false>(scores, slopes, passing, p, mods, place, first_row, terms, factor, sites);
      add_rows<HEADS, LD_HEADS>(sums, slopes, ring.heads_here(), slice * HEAD_SUMS * 8, gaps, lane);
    }
    if (STAGES == 1) {
      __syncthreads();
      if (following.exists) ring.load(following.first, thread);
    }
    tile = following;
  }
  write_rows(tensors.d_q + head * p.q_len * HEAD_DIM, sums, p.scale * inverse, slice * HEAD_SUMS * 8, HEAD_DIM, first_row,
             p.q_len, lane);
  if (SITES > 0 && slice == 0) sites.write(tensors.site_sums + head * p.q_len * SITES, inverse, first_row, p.q_len, lane);
}
