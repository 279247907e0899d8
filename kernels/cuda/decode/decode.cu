// decode.cu: attention of a few query rows on NVIDIA GPUs from sm_80 on. The keys of each head are split over blocks,
// whose partial results merge.cu puts together (Flash-Decoding, pytorch.org/blog/flash-decoding); all query heads that
// share a head of keys are columns of one tile, so that keys and values are read once.
//
//   each block takes up to ROWS rows of one head of keys, and a split of the live tiles
//   each of its warps takes tiles of its own                                              LiveTiles
//     S^T = K Q^T, from device memory to registers, while V is on its way                 KeyFormat
//     S^T = mask(score_mod(scale S^T)); P = exp(S - reference), while the next K is       modify, update
//     O^T = O^T exp(old reference - reference) + V^T P^T; then the next V is              ValueFormat
//   the warps' results become one                                                         write_partial
//
// Nothing passes through shared memory but the queries, and the results at the end: warps wait for nobody.
#include "plan.h"
#include "../mod/mod.h"
#include "formats.h"
#include "live.h"
#include "../attention/softmax.h"

typedef KeyFormat<K> Keys;
typedef ValueFormat<V, T> Values;
typedef LiveTiles<BLOCKS> Tiles;

constexpr int KEY_CHUNK = 4 * Keys::COLUMNS;      // columns of k that the lanes of a row have at once
constexpr int VALUE_CHUNK = 8 * Values::COLUMNS;  // and of v
constexpr int KEY_CHUNKS = (HEAD_DIM + KEY_CHUNK - 1) / KEY_CHUNK;
constexpr int VALUE_CHUNKS = ((VALUES < VALUE_DIM ? VALUES : VALUE_DIM) + VALUE_CHUNK - 1) / VALUE_CHUNK;
constexpr int OF_CHUNK = Values::COLUMNS / 2;  // tiles of sums
static_assert(SLICES == 1 || VALUES % VALUE_CHUNK == 0, "slices are of whole chunks");

// What is on its way at a time: chunks of a tile of keys, and of values; 32 registers each.
constexpr int KEY_PIECE = KEY_CHUNKS < 4 ? KEY_CHUNKS : 4;
constexpr int VALUE_PIECE = VALUE_CHUNKS < 2 ? VALUE_CHUNKS : 2;
constexpr int KEY_PIECES = (KEY_CHUNKS + KEY_PIECE - 1) / KEY_PIECE;
constexpr int VALUE_PIECES = (VALUE_CHUNKS + VALUE_PIECE - 1) / VALUE_PIECE;

// By how much, in the exponent of e, a score may go beyond its row's reference before all is brought to a new one.
constexpr float GROWTH = 4.0f;

// What all splits hand to merge.cu. out: float32 [batch, kv_heads, splits, rows, VALUE_DIM], relative to exp(reference),
// not written of a split that is not in use; statistics: [.., rows], a sum of 0 says that nothing is there.
struct Statistics {
  float reference, sum, largest, term;  // term: what all scores of the row lack
};
struct Partial {
  float* out;
  float4* statistics;

  INLINE void write(int64_t row, const Statistics& s) const {
    statistics[row] = make_float4(s.reference, s.sum, s.largest, s.term);
  }
};

// q: [batch, query_heads, q_len, HEAD_DIM], row after row; k: [kv_batches, kv_heads, kv_len, HEAD_DIM],
// v: [.., VALUE_DIM]. Of int8: the scales of keys, of values, [kv_batches, kv_heads, kv_len, 1]; k_means:
// [kv_batches, kv_heads, HEAD_DIM], row after row.
struct Tensors {
  const T* q;
  Tensor<K> k;
  Tensor<V> v;
  Tensor<float> k_scales, v_scales;
  const float* k_means;
  const int* tile_lists;
  Partial partial;
};

struct Shared {
  union {
    Words queries[COLUMN_TILES * KEY_CHUNKS * LANES];  // 16 bytes of a row for each lane, as KeyFormat multiplies them
    float4 sums[WARPS][WARPS][LANES];                  // [warp][tile of sums][lane]
  };
  float row_scale[ROWS], row_term[ROWS];
  float reference[WARPS][ROWS], sum[WARPS][ROWS], largest[WARPS][ROWS];
};

// ---- queries ----

constexpr float LEVELS = 127.0f;                     // of int8_types.py
constexpr float LEAST_LARGEST = 1.50463277e-36f;  // 2^-119, of int8_types.py: a row of smaller ones counts as zeros
INLINE bool is_finite(float x) { return !is_special<float>(__float_as_uint(x)); }
INLINE float sum_of_lanes(float x) {
  UNROLL
  for (int i = 1; i < LANES; i *= 2) x += __shfl_xor_sync(EVERY_LANE, x, i);
  return x;
}
INLINE float max_of_lanes(float x) {
  UNROLL
  for (int i = 1; i < LANES; i *= 2) x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, i));
  return x;
}

// Rows as KeyFormat multiplies them, rounded where it multiplies whole numbers; those that do not exist are zeros.
INLINE void stage_queries(Shared& shared, const Tensors& tensors, const DecodeParams& p, const Block& block, int warp,
                          int lane) {
  typedef Keys::Query Query;
  constexpr int HELD = KEY_CHUNKS * KEY_CHUNK / LANES + (KEY_CHUNKS * KEY_CHUNK % LANES != 0);  // numbers of a lane
  Query* queries = (Query*)shared.queries;
  ROLLED
  for (int n = warp; n < ROWS; n += WARPS) {
    const bool exists = block.first_row + n < block.end_row;
    const T* row = tensors.q + (block.line(p) * p.rows() + block.first_row + (exists ? n : 0)) * HEAD_DIM;
    float held[HELD];
    UNROLL
    for (int i = 0; i < HELD; i++) {
      const int d = i * LANES + lane;
      held[i] = d < HEAD_DIM ? float(row[d]) : 0.0f;
    }
    float inverse = 1.0f;
    if constexpr (Keys::QUANTISED || MEANS) {
      const float* means = tensors.k_means + block.kv_line(p) * HEAD_DIM;
      float largest = 0.0f, term = 0.0f;
      bool finite = true;
      UNROLL
      for (int i = 0; i < HELD; i++) {
        const int d = i * LANES + lane;
        if (is_finite(held[i])) largest = fmaxf(largest, fabsf(held[i]));
        else finite = false;
        if constexpr (MEANS) term += d < HEAD_DIM ? held[i] * means[d] : 0.0f;
      }
      largest = max_of_lanes(largest);
      finite = __all_sync(EVERY_LANE, finite);
      const float unit = largest < LEAST_LARGEST ? 0.0f : __fdiv_rn(largest, LEVELS);
      inverse = unit > 0.0f ? __fdiv_rn(1.0f, unit) : 0.0f;
      if constexpr (MEANS) term = p.scale * sum_of_lanes(term);
      if (lane == 0) {
        shared.row_scale[n] = finite ? unit : NAN;
        shared.row_term[n] = is_finite(term) ? term : 0.0f;
      }
    }
    UNROLL
    for (int i = 0; i < HELD; i++) {
      const int d = i * LANES + lane;
      float x = exists ? held[i] : 0.0f;
      if constexpr (Keys::QUANTISED) x = is_finite(x) ? rintf(x * inverse) : 0.0f;
      const int piece = d / Keys::COLUMNS;  // lane of a quad + 4 * chunk
      const int at = (n / 8 * KEY_CHUNKS + piece / 4) * LANES + n % 8 * 4 + piece % 4;
      if (KEY_CHUNKS * KEY_CHUNK % LANES == 0 || d < KEY_CHUNKS * KEY_CHUNK)
        queries[at * Keys::COLUMNS + d % Keys::COLUMNS] = Keys::query(x);
    }
  }
}

// The query rows of a lane, two of each column tile; of the last row, where one does not exist.
struct LaneRows {
  int h[COLUMN_TILES][2], q_idx[COLUMN_TILES][2];
  float scale[COLUMN_TILES][2], term[COLUMN_TILES][2];

  INLINE void start(const Shared& shared, const DecodeParams& p, const Block& block, int lane) {
    UNROLL
    for (int c = 0; c < COLUMN_TILES; c++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const int n = 8 * c + 2 * (lane & 3) + e, row = smaller(block.first_row + n, block.end_row - 1);
        h[c][e] = block.kv_head * p.group + row / p.q_len;
        q_idx[c][e] = row % p.q_len;
        scale[c][e] = Keys::QUANTISED ? shared.row_scale[n] : 1.0f;
        term[c][e] = MEANS ? shared.row_term[n] : 0.0f;
      }
    }
  }
};

// ---- keys, values ----

struct KeyPiece {
  Words at[2][KEY_PIECE];

  INLINE void load(const Head<K>& from, int first_key, int piece, int lane) {
    UNROLL
    for (int half = 0; half < 2; half++) {
      const K* row = from.row(first_key + lane / 4 + 8 * half);
      if (HEAD_DIM % Keys::COLUMNS == 0 && from.aligned) {
        UNROLL
        for (int i = 0; i < KEY_PIECE; i++) {
          const int chunk = piece * KEY_PIECE + i, column = chunk * KEY_CHUNK + (lane & 3) * Keys::COLUMNS;
          if (chunk >= KEY_CHUNKS) continue;
          at[half][i] = (chunk + 1) * KEY_CHUNK <= HEAD_DIM ? words_at_once<HEAD_DIM, true>(row, column)
                                                            : words_at_once<HEAD_DIM, false>(row, column);
        }
      } else {
        UNROLL
        for (int i = 0; i < KEY_PIECE; i++) {
          const int chunk = piece * KEY_PIECE + i, column = chunk * KEY_CHUNK + (lane & 3) * Keys::COLUMNS;
          if (chunk < KEY_CHUNKS) at[half][i] = words_by_element<HEAD_DIM>(row, column, from.column_stride);
        }
      }
    }
  }
  // S^T += K Q^T
  INLINE void multiply(Keys::Products (&products)[COLUMN_TILES], const Words* queries, int piece, int lane) const {
    UNROLL
    for (int i = 0; i < KEY_PIECE; i++) {
      const int chunk = piece * KEY_PIECE + i;
      if (chunk >= KEY_CHUNKS) continue;
      UNROLL
      for (int c = 0; c < COLUMN_TILES; c++)
        Keys::multiply(products[c], at[0][i], at[1][i], queries[(c * KEY_CHUNKS + chunk) * LANES + lane]);
    }
  }
};

INLINE int value_column(int slice, int chunk, int lane) {
  return slice * VALUES + chunk * VALUE_CHUNK + lane / 4 * Values::COLUMNS;
}
INLINE int value_key(int i, int lane) { return 2 * (lane & 3) + i % 2 + i / 2 * 8; }

typedef Sums Outputs[COLUMN_TILES][VALUE_CHUNKS][OF_CHUNK];

struct ValuePiece {
  Words at[VALUE_PIECE][4];

  INLINE void load(const Head<V>& from, int first_key, int slice, int piece, int lane) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      const V* row = from.row(first_key + value_key(i, lane));
      if (VALUE_DIM % Values::COLUMNS == 0 && from.aligned) {
        UNROLL
        for (int j = 0; j < VALUE_PIECE; j++) {
          const int chunk = piece * VALUE_PIECE + j, column = value_column(slice, chunk, lane);
          if (chunk >= VALUE_CHUNKS) continue;
          const bool whole = SLICES == 1 && (chunk + 1) * VALUE_CHUNK <= VALUE_DIM;
          at[j][i] = whole ? words_at_once<VALUE_DIM, true>(row, column) : words_at_once<VALUE_DIM, false>(row, column);
        }
      } else {
        UNROLL
        for (int j = 0; j < VALUE_PIECE; j++) {
          const int chunk = piece * VALUE_PIECE + j, column = value_column(slice, chunk, lane);
          if (chunk < VALUE_CHUNKS) at[j][i] = words_by_element<VALUE_DIM>(row, column, from.column_stride);
        }
      }
    }
  }
  // Whether some number is infinite or nan: the same in all lanes.
  INLINE bool hold_special(int piece) const {
    bool special = false;
    UNROLL
    for (int i = 0; i < 16 * VALUE_PIECE; i++) {
      if (piece * VALUE_PIECE + i / 16 < VALUE_CHUNKS)
        special |= Values::holds_special(at[i / 16][i / 4 % 4].at[i % 4]);
    }
    return __any_sync(EVERY_LANE, special);
  }
  // O^T += V^T P^T
  INLINE void multiply(Outputs& out, const Weights<T> (&weights)[COLUMN_TILES], int piece) const {
    UNROLL
    for (int j = 0; j < VALUE_PIECE; j++) {
      const int chunk = piece * VALUE_PIECE + j;
      if (chunk >= VALUE_CHUNKS) continue;
      UNROLL
      for (int i = 0; i < OF_CHUNK; i++) {
        const ValuesLeft<T> left = Values::left(at[j], i);
        UNROLL
        for (int c = 0; c < COLUMN_TILES; c++) left.multiply(out[c][chunk][i], weights[c]);
      }
    }
  }
};

// O^T += V^T P^T of one piece, key by key: where a weight of 0 leaves a key out that has infinite or nan values, its
// product is not to be nan. This is rare: a loop keeps it small.
INLINE void add_one_by_one(Outputs& out, const Sums (&weights)[COLUMN_TILES], const Head<V>& from, int first_key,
                           int slice, int piece, int lane) {
  ROLLED
  for (int key = 0; key < BK; key++) {
    float weight[COLUMN_TILES][2];
    UNROLL
    for (int c = 0; c < COLUMN_TILES; c++) {
      UNROLL
      for (int e = 0; e < 2; e++)
        weight[c][e] = __shfl_sync(EVERY_LANE, key < 8 ? weights[c].at[e] : weights[c].at[2 + e], key % 8 * 4 + (lane & 3));
    }
    const V* row = from.row(first_key + key);
    UNROLL
    for (int i = 0; i < VALUE_PIECE * Values::COLUMNS; i++) {
      const int chunk = piece * VALUE_PIECE + i / Values::COLUMNS, column = value_column(slice, chunk, lane) + i % Values::COLUMNS;
      if (chunk >= VALUE_CHUNKS) continue;
      const float value = column < VALUE_DIM ? float(row[column * from.column_stride]) : 0.0f;
      UNROLL
      for (int c = 0; c < COLUMN_TILES; c++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
          float& sum = out[c][chunk][i % Values::COLUMNS / 2].at[2 * (i % 2) + e];
          if (weight[c][e] != 0.0f) sum += weight[c][e] * value;
        }
      }
    }
  }
}

// ---- scores and weights ----

// The scales of the two keys of a lane in a tile; those behind the last are its scale.
INLINE void load_scales(float (&scales)[2], const Head<float>& from, int first_key, int lane) {
  UNROLL
  for (int half = 0; half < 2; half++) scales[half] = *from.row(first_key + lane / 4 + 8 * half);
}

INLINE float score_of(const Sums& products, int at) { return products.at[at]; }
INLINE float score_of(const WholeSums& products, int at) { return float(products.at[at]); }

// S^T = mask(score_mod(scale S^T)) on the elements that this lane holds.
INLINE void modify(Sums (&scores)[COLUMN_TILES], const Keys::Products (&products)[COLUMN_TILES],
                   const float (&key_scales)[2], const LiveTile& tile, const Tiles& tiles, const LaneRows& rows,
                   const Block& block, int lane) {
  const DecodeParams& p = tiles.p;
  UNROLL
  for (int c = 0; c < COLUMN_TILES; c++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      const auto score_mod = tiles.mods.score_mod(block.b, rows.h[c][e], rows.q_idx[c][e]);
      const auto mask_mod = tiles.mods.mask_mod(block.b, rows.h[c][e], rows.q_idx[c][e]);
      UNROLL
      for (int half = 0; half < 2; half++) {
        const int kv_idx = tile.first + lane / 4 + 8 * half;
        float score = score_of(products[c], 2 * half + e);
        if constexpr (Keys::QUANTISED) score = score * key_scales[half] * rows.scale[c][e];  // their product may overflow
        score *= p.scale;
        if constexpr (ADD_BACK) score += rows.term[c][e];
        if constexpr (HAS_SCORE_MOD) score = score_mod(score, smaller(kv_idx, p.kv_len - 1));
        if (tile.masked && !tiles.keeps(tile, mask_mod, rows.h[c][e], rows.q_idx[c][e], kv_idx)) score = -INFINITY;
        scores[c].at[2 * half + e] = score;
      }
    }
  }
}

// The statistics of the query rows of a lane: what weights are relative to, their sum in this lane, the largest score.
struct LaneStatistics {
  float reference[COLUMN_TILES][2], sum[COLUMN_TILES][2], largest[COLUMN_TILES][2];

  INLINE void start() {
    UNROLL
    for (int c = 0; c < COLUMN_TILES; c++) {
      UNROLL
      for (int e = 0; e < 2; e++) reference[c][e] = largest[c][e] = LOWEST, sum[c][e] = 0.0f;
    }
  }
};

// Of the eight lanes that hold the keys of a row.
INLINE float max_over_keys(float x) {
  x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, 4));
  x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, 8));
  return fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, 16));
}
INLINE float sum_over_keys(float x) {
  x += __shfl_xor_sync(EVERY_LANE, x, 4);
  x += __shfl_xor_sync(EVERY_LANE, x, 8);
  return x + __shfl_xor_sync(EVERY_LANE, x, 16);
}

// Scores -> weights, in place. Where a score has grown far beyond its row's reference, references become the largest
// scores, and O^T and the sums shrink.
INLINE void update(LaneStatistics& state, Outputs& out, Sums (&scores)[COLUMN_TILES]) {
  bool grown = false;
  UNROLL
  for (int c = 0; c < COLUMN_TILES; c++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      const float larger = fmaxf(scores[c].at[e], scores[c].at[2 + e]);
      state.largest[c][e] = fmaxf(state.largest[c][e], larger);
      grown = grown || larger > state.reference[c][e] + GROWTH;
    }
  }
  if (__any_sync(EVERY_LANE, grown)) {
    UNROLL
    for (int c = 0; c < COLUMN_TILES; c++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const float now = max_over_keys(fmaxf(state.reference[c][e], fmaxf(scores[c].at[e], scores[c].at[2 + e])));
        const float shrink = ptx::ex2_approx_ftz((state.reference[c][e] - now) * LOG2_E);
        state.reference[c][e] = now;
        state.sum[c][e] *= shrink;
        UNROLL
        for (int i = 0; i < VALUE_CHUNKS * OF_CHUNK; i++) {
          out[c][i / OF_CHUNK][i % OF_CHUNK].at[e] *= shrink;
          out[c][i / OF_CHUNK][i % OF_CHUNK].at[2 + e] *= shrink;
        }
      }
    }
  }
  UNROLL
  for (int c = 0; c < COLUMN_TILES; c++) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      float& score = scores[c].at[i];
      score = ptx::ex2_approx_ftz((score - state.reference[c][i % 2]) * LOG2_E);
      state.sum[c][i % 2] += score;
    }
  }
}

// Weights of values -> weights of the whole numbers that they were rounded to. What a row does not attend to may have
// scale nan: a weight of 0 stays.
INLINE void scale_weights(Sums (&weights)[COLUMN_TILES], const float (&value_scales)[2]) {
  UNROLL
  for (int c = 0; c < COLUMN_TILES; c++) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      float& weight = weights[c].at[i];
      weight = weight == 0.0f ? 0.0f : weight * value_scales[i / 2];
    }
  }
}

// ---- results ----

// The warps' results become one, warp by warp in their order.
INLINE void write_partial(const Partial& to, Shared& shared, const LaneStatistics& state, Outputs& out,
                          const LaneRows& rows, const DecodeParams& p, const Block& block, int warp, int lane) {
  float own[COLUMN_TILES][2];
  UNROLL
  for (int c = 0; c < COLUMN_TILES; c++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      const int n = 8 * c + 2 * (lane & 3) + e;
      const float sum = sum_over_keys(state.sum[c][e]), largest = max_over_keys(state.largest[c][e]);
      if (lane < 4) shared.reference[warp][n] = state.reference[c][e], shared.sum[warp][n] = sum, shared.largest[warp][n] = largest;
    }
  }
  __syncthreads();  // and all queries have been read
  UNROLL
  for (int c = 0; c < COLUMN_TILES; c++) {
    UNROLL
    for (int e = 0; e < 2; e++) {
      const int n = 8 * c + 2 * (lane & 3) + e, row = block.first_row + n;
      Statistics all = {LOWEST, 0.0f, LOWEST, MEANS && !ADD_BACK ? rows.term[c][e] : 0.0f};
      UNROLL
      for (int w = 0; w < WARPS; w++) {
        all.reference = fmaxf(all.reference, shared.reference[w][n]);
        all.largest = fmaxf(all.largest, shared.largest[w][n]);
      }
      UNROLL
      for (int w = 0; w < WARPS; w++)
        all.sum += shared.sum[w][n] * ptx::ex2_approx_ftz((shared.reference[w][n] - all.reference) * LOG2_E);
      own[c][e] = ptx::ex2_approx_ftz((state.reference[c][e] - all.reference) * LOG2_E);
      if (warp == 0 && lane < 4 && block.slice == 0 && row < block.end_row) to.write(block.partial(p, row), all);
    }
  }
  constexpr int TILES = COLUMN_TILES * VALUE_CHUNKS * OF_CHUNK;
  UNROLL
  for (int base = 0; base < TILES; base += WARPS) {  // a warp sums one tile of all warps
    if (base > 0) __syncthreads();
    UNROLL
    for (int i = 0; i < WARPS; i++) {
      const int n = base + i, c = n / (VALUE_CHUNKS * OF_CHUNK);
      if (n >= TILES) continue;
      const Sums& sums = out[c][n / OF_CHUNK % VALUE_CHUNKS][n % OF_CHUNK];
      shared.sums[warp][i][lane] = make_float4(sums.at[0] * own[c][0], sums.at[1] * own[c][1], sums.at[2] * own[c][0],
                                               sums.at[3] * own[c][1]);
    }
    __syncthreads();
    const int n = base + warp, c = n / (VALUE_CHUNKS * OF_CHUNK);
    if (n >= TILES) continue;
    float4 all = shared.sums[0][warp][lane];
    UNROLL
    for (int w = 1; w < WARPS; w++) {
      const float4 more = shared.sums[w][warp][lane];
      all.x += more.x, all.y += more.y, all.z += more.z, all.w += more.w;
    }
    const float of_rows[2][2] = {{all.x, all.z}, {all.y, all.w}};
    const int column = value_column(block.slice, n / OF_CHUNK % VALUE_CHUNKS, lane) + 2 * (n % OF_CHUNK);
    UNROLL
    for (int e = 0; e < 2; e++) {
      const int row = block.first_row + 8 * c + 2 * (lane & 3) + e;
      if (row >= block.end_row) continue;
      float* at = to.out + block.partial(p, row) * VALUE_DIM + column;
      if (column < VALUE_DIM) at[0] = of_rows[e][0];
      if (column + 1 < VALUE_DIM) at[1] = of_rows[e][1];
    }
  }
}

INLINE void attention_decode(const Tensors& tensors, const DecodeParams& p, const Mods& mods) {
  __shared__ Shared shared;
  const int thread = threadIdx.x, warp = thread / LANES, lane = thread % LANES;
  const Block block(p);
  Tiles tiles(p, mods, block, tensors.tile_lists, warp, lane);
  if (tiles.idle) {
    const int row = block.first_row + thread;
    if (block.slice == 0 && row < block.end_row) tensors.partial.write(block.partial(p, row), {LOWEST, 0.0f, LOWEST, 0.0f});
    return;
  }
  const int batch = block.kv_batch(p);
  const Head<K> k = Head<K>::of<HEAD_DIM>(tensors.k, batch, block.kv_head, p.kv_len);
  const Head<V> v = Head<V>::of<VALUE_DIM>(tensors.v, batch, block.kv_head, p.kv_len);
  const Head<float> k_scales = Head<float>::of<1>(tensors.k_scales, batch, block.kv_head, p.kv_len);
  const Head<float> v_scales = Head<float>::of<1>(tensors.v_scales, batch, block.kv_head, p.kv_len);

  LiveTile tile = tiles.next();
  KeyPiece keys;
  ValuePiece values;
  float key_scales[2], value_scales[2];
  if (tile.exists) {
    keys.load(k, tile.first, 0, lane);
    if constexpr (Keys::QUANTISED) load_scales(key_scales, k_scales, tile.first, lane);
    values.load(v, tile.first, block.slice, 0, lane);
    if constexpr (Values::WHOLE) load_scales(value_scales, v_scales, tile.first, lane);
  }
  stage_queries(shared, tensors, p, block, warp, lane);
  __syncthreads();
  LaneRows rows;
  rows.start(shared, p, block, lane);
  LaneStatistics state;
  state.start();
  Outputs out;  // O^T
  UNROLL
  for (int i = 0; i < COLUMN_TILES * VALUE_CHUNKS * OF_CHUNK; i++)
    out[i / (VALUE_CHUNKS * OF_CHUNK)][i / OF_CHUNK % VALUE_CHUNKS][i % OF_CHUNK] = Sums();

  ROLLED
  while (tile.exists) {
    const LiveTile following = tiles.next();
    Keys::Products products[COLUMN_TILES];
    UNROLL
    for (int c = 0; c < COLUMN_TILES; c++) products[c] = Keys::Products();
    UNROLL
    for (int piece = 0; piece < KEY_PIECES; piece++) {
      keys.multiply(products, shared.queries, piece, lane);
      if (piece + 1 < KEY_PIECES) keys.load(k, tile.first, piece + 1, lane);
      else if (following.exists) keys.load(k, following.first, 0, lane);
    }
    Sums scores[COLUMN_TILES];
    modify(scores, products, key_scales, tile, tiles, rows, block, lane);
    if constexpr (Keys::QUANTISED) {
      if (following.exists) load_scales(key_scales, k_scales, following.first, lane);
    }
    update(state, out, scores);
    bool gaps = false;  // some key is left out for some row
    if (!Values::WHOLE && (HAS_SCORE_MOD || tile.masked)) {
      UNROLL
      for (int i = 0; i < 4 * COLUMN_TILES; i++) gaps = gaps || scores[i / 4].at[i % 4] == 0.0f;
      gaps = __any_sync(EVERY_LANE, gaps);
    }
    if constexpr (Values::WHOLE) scale_weights(scores, value_scales);
    Weights<T> weights[COLUMN_TILES];
    UNROLL
    for (int c = 0; c < COLUMN_TILES; c++) weights[c].set(scores[c]);
    UNROLL
    for (int piece = 0; piece < VALUE_PIECES; piece++) {
      if (piece > 0) values.load(v, tile.first, block.slice, piece, lane);
      if (gaps && values.hold_special(piece)) add_one_by_one(out, scores, v, tile.first, block.slice, piece, lane);
      else values.multiply(out, weights, piece);
    }
    if (following.exists) {
      values.load(v, following.first, block.slice, 0, lane);
      if constexpr (Values::WHOLE) load_scales(value_scales, v_scales, following.first, lane);
    }
    tile = following;
  }
  write_partial(tensors.partial, shared, state, out, rows, p, block, warp, lane);
}
