// pairs.cu: a part of the gradient of a captured array, where a site reads other elements for the pairs of a row.
//
// query.cu as far as dS, whose pairs go to the sums of pair_sums.h. Each block takes tiles of query rows, of batches and
// of heads, one after the other, and adds to sums of its own.
#include "../backward/plan.h"
#include "../backward/differentiate.h"
#include "../backward/products.h"
#include "../backward/resident.h"
#include "../tile/staging.h"
#include "pair_sums.h"

// q, k, v, d_out, terms, factor: as in query.cu. sums: DIAGONAL [batch, query_heads, blocks, q_len + kv_len - 1], DENSE
// [elements], TABLE [blocks, elements]; 0 at first. Blocks: those along x that share the tiles; where there is one along
// y it takes all heads, where there is one along z all batches.
struct Tensors {
  const T *q, *k, *v, *d_out;
  const float *terms, *factor;
  const int* tile_lists;
  float* sums;
  int batches;
};

INLINE void sum_pairs(const Tensors& tensors, const AttentionParams& p, const GradientMods& mods) {
  extern __shared__ __align__(16) unsigned char memory[];
  typedef Walk<BQ, BK, BLOCKS> Tiles;
  const int thread = threadIdx.x, q_tiles = (p.q_len + BQ - 1) / BQ;
  const int heads = p.query_heads / gridDim.y, batches = tensors.batches / gridDim.z;
  const float factor = tensors.factor[0];
  Resident own((T*)memory);
  Ring<0> ring(own.end());
  PairSums pairs;
  pairs.values = (float*)(own.end() + STAGES * Ring<0>::TILE);
  pairs.elements = (int*)(pairs.values + BQ * PairSums::LD);
  pairs.inverse = __fdiv_rn(1.0f, factor);
  pairs.first_own = thread / LANES * ROW_TILES * 16;

  ROLLED
  for (int item = blockIdx.x; item < q_tiles * heads * batches; item += gridDim.x) {
    __syncthreads();  // all have done with the rows of the item before
    const int q_tile = item % q_tiles;
    Place place;
    place.h = blockIdx.y + item / q_tiles % heads;
    place.b = blockIdx.z + item / q_tiles / heads;
    const int first_row = take_rows(place, q_tile, p.q_len), lane = place.lane;
    const int64_t head = int64_t(place.b) * p.query_heads + place.h;
    const int64_t kv_head = int64_t(p.kv_batches == 1 ? 0 : place.b) * p.kv_heads + place.h / (p.query_heads / p.kv_heads);
    pairs.first_row = q_tile * BQ;
    pairs.sums = tensors.sums;
    if constexpr (PATTERN == DIAGONAL) pairs.sums += (head * gridDim.x + blockIdx.x) * (p.q_len + p.kv_len - 1);
    if constexpr (PATTERN == TABLE) pairs.sums += blockIdx.x * mods.element_count();
    Tiles walk(p, mods, place, tensors.tile_lists, q_tile);
    KeyTile tile = walk.next();
    if (!tile.exists) continue;
    own.load(rows_of(tensors.q + head * p.q_len * HEAD_DIM, HEAD_DIM, p.q_len),
             rows_of(tensors.d_out + head * p.q_len * VALUE_DIM, VALUE_DIM, p.q_len), q_tile * BQ, thread);
    ring.heads = rows_of(tensors.k + kv_head * p.kv_len * HEAD_DIM, HEAD_DIM, p.kv_len);
    ring.values = rows_of(tensors.v + kv_head * p.kv_len * VALUE_DIM, VALUE_DIM, p.kv_len);
    TermsOfRows terms;
    terms.start(tensors.terms + head * p.q_len, int64_t(tensors.batches) * p.query_heads * p.q_len, first_row, p.q_len,
                lane);
    ring.load(tile.first, thread);
    while (tile.exists) {
      ring.arrive();
      const KeyTile following = walk.next();
      if (STAGES > 1 && following.exists) ring.load(following.first, thread);
      if (tile.live) {
        Sums scores[ROW_TILES][OTHERS], slopes[ROW_TILES][OTHERS];
        const Passing passing = passing_of(tile, p, walk.states);
        multiply_own<HEADS, LD_HEADS, false>(scores, own.heads_of_warp(), ring.heads_here(), lane);
        multiply_own<VALUES, LD_VALUES, false>(slopes, own.values_of_warp(), ring.values_here(), lane);
        differentiate<false>(scores, slopes, passing, p, mods, place, first_row, terms, factor, pairs);
      } else {
        pairs.add_nothing(lane);
      }
      if (PATTERN != DENSE || STAGES == 1) __syncthreads();
      pairs.collect(tile.first, p, thread);
      if (STAGES == 1 && following.exists) ring.load(following.first, thread);
      tile = following;
    }
  }
}
