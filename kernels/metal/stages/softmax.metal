// softmax.metal: rows of scores -> weights, with the statistics of each row, whatever its length (online softmax,
// arXiv 1805.02867): one pass over tiles of the row for its maximum and sum, one for the weights.
//
// ROW_GROUPS of the SIMDGROUPS simdgroups of a threadgroup share a row: one for a short row, all for a long one.
#include "../attention/softmax.h"
#include "elementwise.h"

constexpr constant int SIMDGROUPS = 4;

// exp(score - largest); 0 where the score is not attended to.
INLINE float weight_of(float score, float largest) {
  return is_minus_infinity(score) ? 0.0f : metal::fast::exp2((score - largest) * LOG2_E);
}

// The statistics of two parts of a row together. A part without weights has sum 0, and its maximum means nothing.
INLINE void combine(thread RowState& row, float largest, float sum) {
  if (sum == 0.0f) return;
  if (row.sum == 0.0f) {
    row.max = largest;
    row.sum = sum;
    return;
  }
  float both = metal::max(row.max, largest);
  row.sum = row.sum * weight_of(row.max, both) + sum * weight_of(largest, both);
  row.max = both;
}

// params: ShapeParams; x: [batch, heads, rows, columns], any strides. weights: x's shape;
// max_scores, sums: [batch, heads, rows]. NORMALISE: weights are divided by their sum.
// shared: a maximum and a sum for every simdgroup. at.group: (rows of one threadgroup, head, batch).
template <typename O, int ROW_GROUPS, bool NORMALISE>
INLINE void softmax(Tensor<float> x, device O* weights, device float* max_scores, device float* sums,
                    const device int* params, threadgroup float* shared, Thread at) {
  constexpr int STEP = ROW_GROUPS * LANES;
  const ShapeParams p = read_params<ShapeParams>(params);
  Place place;
  place.b = int(at.group.z);
  place.h = int(at.group.y);
  place.row = int(at.group.x) * (SIMDGROUPS / ROW_GROUPS) + int(at.simdgroup) / ROW_GROUPS;
  place.step = STEP;
  place.column = int(at.simdgroup) % ROW_GROUPS * LANES + int(at.lane);
  if (place.row >= p.rows) return;  // the whole simdgroup; with ROW_GROUPS == SIMDGROUPS every row exists
  const Matrix<float> from = x.head(place.b, place.h);

  // This lane's part of the row, a tile at a time.
  RowState row;
  row.start();
  for (int first = place.column; first < p.columns; first += ITEMS * STEP) {
    float tile[ITEMS], largest = row.max;
    UNROLL
    for (int i = 0; i < ITEMS; i++) {
      int column = first + i * STEP;
      tile[i] = column < p.columns ? *from.at(place.row, column) : minus_infinity();
      if (!is_minus_infinity(tile[i])) largest = metal::max(largest, tile[i]);
    }
    float sum = row.sum == 0.0f ? 0.0f : row.sum * weight_of(row.max, largest);
    UNROLL
    for (int i = 0; i < ITEMS; i++) sum += weight_of(tile[i], largest);
    row.max = largest;
    row.sum = sum;
  }

  // All lanes' parts, then all simdgroups'.
  float largest = metal::simd_max(row.sum == 0.0f ? LOWEST : row.max);
  row.sum = metal::simd_sum(row.sum == 0.0f ? 0.0f : row.sum * weight_of(row.max, largest));
  row.max = largest;
  if (ROW_GROUPS > 1) {
    if (at.lane == 0) {
      shared[2 * at.simdgroup] = row.max;
      shared[2 * at.simdgroup + 1] = row.sum;
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    row.sum = 0.0f;
    UNROLL
    for (int s = 0; s < ROW_GROUPS; s++) combine(row, shared[2 * s], shared[2 * s + 1]);
  }

  const float inverse = !NORMALISE ? 1.0f : row.sum == 0.0f ? 0.0f : 1.0f / row.sum;
  const int64_t out_row = row_start(place, p.heads, p.rows, 1);
  device O* to = weights + out_row * p.columns;
  for (int first = place.column; first < p.columns; first += ITEMS * STEP) {
    UNROLL
    for (int i = 0; i < ITEMS; i++) {
      int column = first + i * STEP;
      if (column < p.columns) to[column] = O(weight_of(*from.at(place.row, column), row.max) * inverse);
    }
  }
  if (place.column == 0) {
    max_scores[out_row] = row.sum == 0.0f ? minus_infinity() : row.max;
    sums[out_row] = row.sum;
  }
}

// -- body: what MLX puts between the braces --
threadgroup float shared[2 * SIMDGROUPS];
softmax<O, ROW_GROUPS, NORMALISE>(tensor(x, x_strides), weights, max_scores, sums, params, shared,
                                  thread_at(threadgroup_position_in_grid, threadgroups_per_grid,
                                            simdgroup_index_in_threadgroup, thread_index_in_simdgroup));
