// forward.cu: attention forward on NVIDIA GPUs from sm_80 on, a tile at a time, never the full score matrix
// (FlashAttention-2, arXiv 2307.08691; online softmax, arXiv 1805.02867).
//
//   each block takes BQ query rows of one head, each of its warps 16 ROW_TILES of them
//   for each tile of BK keys that the masks leave                                        Walk
//     S = Q K^T, in registers, while V is on its way                                     multiply_keys
//     S = mask(score_mod(scale S))                                                       modify
//     P = exp(S - max); O = O * exp(old max - max)                                       update_rows
//     O = O + P V, while the next K is on its way                                        multiply_values
//   out = O / sum of P; lse = max + log(sum)                                             write_rows
#include "plan.h"
#include "../mod/mod.h"
#include "params.h"
#include "../tile/products.h"
#include "../tile/staging.h"
#include "rounded.h"
#include "rows.h"
#include "scoring.h"
#include "softmax.h"
#include "walk.h"

typedef Walk<BQ, BK, BLOCKS> Tiles;
typedef Staged<K, BQ, HEAD_DIM, HEADS, LD_HEADS, THREADS> StagedQueries;
typedef Staged<K, BK, HEAD_DIM, HEADS, LD_HEADS, THREADS> StagedKeys;
typedef Staged<T, BK, VALUE_DIM, VALUES, LD_VALUES, THREADS> StagedValues;

// q: [batch, query_heads, q_len, HEAD_DIM]; k: [kv_batches, kv_heads, kv_len, HEAD_DIM]; v: [.., VALUE_DIM].
struct Tensors {
  View<K> q, k;
  View<T> v;
  const int* tile_lists;
  Results<T> results;
  Rounded rounded;  // of q and k in int8
};

// The accumulators of a warp.
struct Accumulators {
  RowState state[ROW_TILES];
  Sums out[ROW_TILES][VALUE_TILES];

  INLINE void start() {
    UNROLL
    for (int r = 0; r < ROW_TILES; r++) {
      state[r].start();
      UNROLL
      for (int d = 0; d < VALUE_TILES; d++) out[r][d] = Sums();
    }
  }
};

// S = Q K^T
template <typename Products>
INLINE void multiply_keys(Products (&products)[ROW_TILES][KEY_TILES], const K* queries, const K* keys, int lane) {
  typedef typename Step<K>::Left Left;
  typedef typename Step<K>::Right Right;
  const auto multiply = [](Products& c0, Products& c1, const Left& a, const Right& b) { Step<K>::multiply_pair(c0, c1, a, b); };
  multiply_transposed<HEADS, LD_HEADS>(products, queries, keys, lane, multiply);
}

// O += P V
INLINE void multiply_values(Sums (&out)[ROW_TILES][VALUE_TILES], const Sums (&weights)[ROW_TILES][KEY_TILES],
                            const T* values, int lane) {
  UNROLL
  for (int j = 0; j < KEY_TILES; j += 2) {
    typename Step<T>::Left left[ROW_TILES];
    UNROLL
    for (int r = 0; r < ROW_TILES; r++) Step<T>::left_of(left[r], &weights[r][j]);
    UNROLL
    for (int d = 0; d < VALUE_TILES; d += 2) {
      typename Step<T>::Right right;
      Step<T>::template load_values<LD_VALUES>(right, values + 8 * j * LD_VALUES + 8 * d, lane);
      UNROLL
      for (int r = 0; r < ROW_TILES; r++) Step<T>::multiply_pair(out[r][d], out[r][d + 1], left[r], right);
    }
  }
}

// O += P V of the keys that have infinite or nan values, a bit each: where a weight of 0 leaves such a key out, its
// product is not to be nan. So they are added one by one. This is rare: a loop keeps it small.
INLINE void add_special_values(Sums (&out)[ROW_TILES][VALUE_TILES], const Sums (&weights)[ROW_TILES][KEY_TILES],
                               const T* values, const uint* special_keys, int lane) {
  ROLLED
  for (int key = 0; key < BK; key++) {
    if (!((special_keys[key / 32] >> (key % 32)) & 1)) continue;
    float weight[ROW_TILES][2];
    UNROLL
    for (int r = 0; r < ROW_TILES; r++) {
      UNROLL
      for (int half = 0; half < 2; half++) {
        float mine = 0.0f;  // the weight that this lane has of the key, if it has one
        UNROLL
        for (int j = 0; j < KEY_TILES; j++) {
          UNROLL
          for (int e = 0; e < 2; e++) {
            if (key == 8 * j + 2 * (lane & 3) + e) mine = weights[r][j].at[2 * half + e];
          }
        }
        weight[r][half] = __shfl_sync(EVERY_LANE, mine, (lane & ~3) + key % 8 / 2);
      }
    }
    UNROLL
    for (int d = 0; d < VALUE_TILES; d++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const float value = values[key * LD_VALUES + 8 * d + 2 * (lane & 3) + e];
        UNROLL
        for (int r = 0; r < ROW_TILES; r++) {
          UNROLL
          for (int half = 0; half < 2; half++) {
            if (weight[r][half] != 0.0f) out[r][d].at[2 * half + e] += weight[r][half] * value;
          }
        }
      }
    }
  }
}

INLINE void attention_forward(const Tensors& tensors, const AttentionParams& p, const Mods& mods) {
  extern __shared__ __align__(16) unsigned char memory[];
  K* queries = (K*)memory;
  K* keys = queries + BQ * LD_HEADS;
  T* values = (T*)(keys + BK * LD_HEADS);
  constexpr int SPECIAL_WORDS = (BK + 31) / 32;
  __shared__ uint special_keys[SPECIAL_WORDS];  // a bit for each key
  constexpr bool MAY_LEAVE_OUT = HAS_SCORE_MOD || HAS_MASK_MOD || BLOCKS == CUT_TILES;

  const int thread = threadIdx.x, warp = thread / LANES, lane = thread % LANES;
  const int slice = blockIdx.x % SLICES, q_tile = (gridDim.x - 1 - blockIdx.x) / SLICES;  // long rows of a causal mask first
  const int first_row = q_tile * BQ + warp * ROW_TILES * 16;
  Place place;
  place.b = blockIdx.z, place.h = blockIdx.y, place.lane = lane;
  place.of_block = {q_tile * BQ, smaller(p.q_len, (q_tile + 1) * BQ) - 1};
  place.of_warp = {first_row, smaller(p.q_len, first_row + ROW_TILES * 16) - 1};

  const int64_t head = int64_t(place.b) * p.query_heads + place.h;
  const int64_t kv_head = int64_t(p.kv_batches == 1 ? 0 : place.b) * p.kv_heads + place.h / (p.query_heads / p.kv_heads);
  const int kv_batch = kv_head / p.kv_heads, of_batch = kv_head % p.kv_heads;
  const Rows<K> q = rows_of(tensors.q.head(place.b, place.h), tensors.q.row_stride, p.q_len);
  const Rows<K> k = rows_of(tensors.k.head(kv_batch, of_batch), tensors.k.row_stride, p.kv_len);
  const Rows<T> v = rows_of(tensors.v.head(kv_batch, of_batch), tensors.v.row_stride, p.kv_len);

  Tiles walk(p, mods, place, tensors.tile_lists, q_tile);
  Accumulators sums;
  sums.start();
  StagedQueries::load(queries, q, q_tile * BQ, 0, thread);
  KeyTile tile = walk.next();
  if (tile.exists) StagedKeys::load(keys, k, tile.first, 0, thread);
  ptx::cp_async_commit_group();
  RoundedRows rounded[ROW_TILES];
  KeyScales<BK> key_scales(tensors.rounded, kv_head * p.kv_len, p.kv_len);
  if constexpr (QUANTISED) {
    if (tile.exists) key_scales.load(tile.first, thread);
    UNROLL
    for (int r = 0; r < ROW_TILES; r++) rounded[r].load(tensors.rounded, p, head, first_row + 16 * r, lane);
  }
  // Without a score_mod, scores stay without their scale, where it is positive: it goes to the exponents.
  const bool scaled = HAS_SCORE_MOD || !(p.scale > 0.0f);
  const float exponent_scale = scaled ? LOG2_E : LOG2_E * p.scale;
  const K* own_queries = queries + warp * ROW_TILES * 16 * LD_HEADS;

  while (tile.exists) {
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    StagedValues::load(values, v, tile.first, slice * VALUES, thread);
    ptx::cp_async_commit_group();
    Sums scores[ROW_TILES][KEY_TILES];
    if constexpr (QUANTISED) {
      Step<K>::Products products[ROW_TILES][KEY_TILES];
      if (tile.live) multiply_keys(products, own_queries, keys, lane);
      UNROLL
      for (int r = 0; r < ROW_TILES; r++) {
        if (tile.live) rounded[r].scores(scores[r], products[r], key_scales.held, tile.first, p.kv_len, lane);
      }
    } else {
      if (tile.live) multiply_keys(scores, own_queries, keys, lane);
    }
    const KeyTile following = walk.next();
    __syncthreads();
    if (following.exists) StagedKeys::load(keys, k, following.first, 0, thread);
    if constexpr (QUANTISED) {
      if (following.exists) key_scales.load(following.first, thread);
    }
    ptx::cp_async_commit_group();

    if (tile.live) {
      UNROLL
      for (int r = 0; r < ROW_TILES; r++) {
        if (scaled) scale_scores(scores[r], p.scale);
        if constexpr (ADD_BACK) rounded[r].add_back(scores[r]);
        const int row = first_row + 16 * r;
        modify<BLOCKS>(scores[r], tile.first, tile.state, tile.ragged, walk.states, p, mods, place.b, place.h, row, lane);
        float shrink[2];
        update_rows(sums.state[r], scores[r], shrink, exponent_scale);
        UNROLL
        for (int d = 0; d < VALUE_TILES; d++) {
          UNROLL
          for (int i = 0; i < 4; i++) sums.out[r][d].at[i] *= shrink[i / 2];
        }
      }
    }
    ptx::cp_async_wait_group<1>();
    if constexpr (MAY_LEAVE_OUT) {
      const bool special = __syncthreads_or((HAS_SCORE_MOD || tile.masked_for_some) && StagedValues::holds_special(values, thread));
      if (special) {
        if (thread < SPECIAL_WORDS) special_keys[thread] = 0;
        __syncthreads();
        StagedValues::mark_special(special_keys, values, thread);
        __syncthreads();
        if (tile.live) add_special_values(sums.out, scores, values, special_keys, lane);
        __syncthreads();
        StagedValues::clear(special_keys, values, thread);
        __syncthreads();
      }
    } else {
      __syncthreads();
    }
    if (tile.live) multiply_values(sums.out, scores, values, lane);
    tile = following;
  }
  UNROLL
  for (int r = 0; r < ROW_TILES; r++) {
    write_rows<VALUE_DIM>(tensors.results, sums.out[r], sums.state[r], p, head, first_row + 16 * r, slice * VALUES,
                          scaled ? 1.0f : p.scale, lane);
  }
}
