// key.cu: gradients of keys and values, a tile of them at a time (FlashAttention-2, arXiv 2307.08691).
//
//   each block takes BQ keys of one head, each of its warps 16 ROW_TILES of them                Resident
//   for each batch and query head that reads them, in order
//     for each tile of BK query rows that the masks leave                                       Walk
//       S = K Q^T, dP = V d_out^T, in registers                                                 multiply_own
//       P = exp(mask(score_mod(scale S)) - lse); dS = P (dP - delta) score_mod'                 differentiate
//       dV = dV + P d_out; dK = dK + dS Q, while the next Q and d_out are on their way          add_rows
//   d_k = scale dK; d_v = dV                                                                    write_rows
//
// The forward kernel's walk serves with keys for rows and query rows for keys: so are p and the tile lists.
#include "plan.h"
#include "differentiate.h"
#include "products.h"
#include "../tile/staging.h"
#include "resident.h"
#include "rows.h"
#include "site_sums.h"
#include "transposed.h"

// q, k, v, d_out, terms, factor: as in query.cu. d_k, d_v: as k and v. site_sums: sums over the query rows,
// [batch, query_heads, kv_len, SITES]. sharing: batches of q that read a batch of k.
struct Tensors {
  const T *q, *k, *v, *d_out;
  const float *terms, *factor;
  const int* tile_lists;
  T *d_k, *d_v;
  float* site_sums;
  int sharing;
};

INLINE void backward_key(const Tensors& tensors, const AttentionParams& p, const GradientMods& mods) {
  extern __shared__ __align__(16) unsigned char memory[];
  typedef Walk<BQ, BK, BLOCKS, TransposedMask> Tiles;
  const int slice = blockIdx.x % SLICES, tile_of_keys = blockIdx.x / SLICES;  // the first keys of a causal mask have most
  Place place;
  const int first_row = take_rows(place, tile_of_keys, p.q_len), lane = place.lane, thread = threadIdx.x;
  const int heads = p.query_heads / p.kv_heads;
  const int64_t kv_head = int64_t(blockIdx.z) * p.kv_heads + blockIdx.y;
  const float factor = tensors.factor[0], inverse = __fdiv_rn(1.0f, factor);
  const TransposedMask mask(mods);

  Resident own((T*)memory);
  own.load(rows_of(tensors.k + kv_head * p.q_len * HEAD_DIM, HEAD_DIM, p.q_len),
           rows_of(tensors.v + kv_head * p.q_len * VALUE_DIM, VALUE_DIM, p.q_len), tile_of_keys * BQ, thread);
  Ring<TERMS> ring(own.end());
  ring.all_rows = int64_t(gridDim.z) * tensors.sharing * p.query_heads * p.kv_len;
  Sums key_sums[ROW_TILES][HEAD_SUMS], value_sums[ROW_TILES][VALUE_SUMS];  // dK, dV
  clear(key_sums);
  clear(value_sums);

  ROLLED
  for (int reader = 0; reader < tensors.sharing * heads; reader++) {
    place.b = blockIdx.z * tensors.sharing + reader / heads;
    place.h = blockIdx.y * heads + reader % heads;
    const int64_t head = int64_t(place.b) * p.query_heads + place.h;
    ring.heads = rows_of(tensors.q + head * p.kv_len * HEAD_DIM, HEAD_DIM, p.kv_len);
    ring.values = rows_of(tensors.d_out + head * p.kv_len * VALUE_DIM, VALUE_DIM, p.kv_len);
    ring.terms = tensors.terms + head * p.kv_len;
    SiteSums sites;
    sites.start();
    Tiles walk(p, mask, place, tensors.tile_lists, tile_of_keys);
    KeyTile tile = walk.next();
    if (tile.exists) ring.load(tile.first, thread);
    while (tile.exists) {
      ring.arrive();
      const KeyTile following = walk.next();
      if (STAGES > 1 && following.exists) ring.load(following.first, thread);
      if (tile.live) {
        Sums scores[ROW_TILES][OTHERS], slopes[ROW_TILES][OTHERS];
        const Passing passing = passing_of(tile, p, walk.states);
        multiply_own<HEADS, LD_HEADS, true>(scores, own.heads_of_warp(), ring.heads_here(), lane);
        multiply_own<VALUES, LD_VALUES, true>(slopes, own.values_of_warp(), ring.values_here(), lane);
        const TermsOfOthers terms = {ring.terms_here(), lane};
        const bool gaps = have_gaps<true>(scores, slopes, tile.masked);
        differentiate<true>(scores, slopes, passing, p, mods, place, first_row, terms, factor, sites);
        if (gaps) spread_specials(scores, terms);
        add_rows<VALUES, LD_VALUES>(value_sums, scores, ring.values_here(), slice * VALUE_SUMS * 8, gaps, lane);
        add_rows<HEADS, LD_HEADS>(key_sums, slopes, ring.heads_here(), slice * HEAD_SUMS * 8, gaps, lane);
      }
      if (STAGES == 1) {
        __syncthreads();
        if (following.exists) ring.load(following.first, thread);
      }
      tile = following;
    }
    if (SITES > 0 && slice == 0) sites.write(tensors.site_sums + head * p.q_len * SITES, inverse, first_row, p.q_len, lane);
  }
  write_rows(tensors.d_k + kv_head * p.q_len * HEAD_DIM, key_sums, p.scale * inverse, slice * HEAD_SUMS * 8, HEAD_DIM,
             first_row, p.q_len, lane);
  write_rows(tensors.d_v + kv_head * p.q_len * VALUE_DIM, value_sums, 1.0f, slice * VALUE_SUMS * 8, VALUE_DIM, first_row,
             p.q_len, lane);
}
