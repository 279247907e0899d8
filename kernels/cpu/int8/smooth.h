// smooth.h: rows of keys or queries minus a mean, which leaves less to round: SageAttention (arXiv 2410.02367) for the
// keys, SageAttention2 (arXiv 2411.10958) for the queries too. What is taken away comes back as one number per row of
// scores or per key.
#pragma once
#include "../tile/panels.h"

// Rows of a matrix, less the mean of the group of each. No groups: all rows are of group 0.
struct Rows {
  Matrix matrix;
  Matrix means;           // [groups, columns] float32; no data: nothing is taken away
  const int32_t* groups;  // [rows of the matrix], or null

  int32_t group(int64_t row) const { return groups ? groups[row] : 0; }

  // Columns [column, column + VL) of one row; zeros outside the matrix.
  NOINLINE vfloat read(int64_t row, int64_t column) const {
    vfloat x = widen(matrix, row, column);
    if (means.data && row < matrix.rows) x -= widen(means, group(row), column);
    return x;
  }
};

inline Matrix matrix_of_means(const float* means, int64_t groups, int64_t columns) {
  return {means, groups, columns, columns, 1, FLOAT32};
}

INLINE vint is_finite(vfloat x) {
  vfloat magnitude = bits_to_float(float_to_bits(x) & INT32_MAX);
  return magnitude < INFINITE;
}

// Rows [begin, end) are of one block of `block` rows and of one group: what is rounded alike. A block ends where the
// group changes, so that no group learns of another through the numbers that a block shares.
struct Run {
  int64_t begin, end;
};
inline Run run_around(const Rows& rows, int64_t row, int64_t block) {
  int64_t first = row / block * block, last = smaller(first + block, rows.matrix.rows);
  Run run = {row, row + 1};
  while (run.begin > first && rows.group(run.begin - 1) == rows.group(row)) run.begin--;
  while (run.end < last && rows.group(run.end) == rows.group(row)) run.end++;
  return run;
}

inline bool row_is_finite(const Rows& rows, int64_t row) {
  vint finite = ~vint{};
  for (int64_t d = 0; d < rows.matrix.columns; d += VL) finite &= is_finite(rows.read(row, d));
  return !any_lane(~finite);
}

// mean[columns, up to whole registers] over the finite rows of a run.
inline void mean_of_run(float* mean, const Rows& rows, Run run) {
  int64_t count = 0;
  for (int64_t d = 0; d < rows.matrix.columns; d += VL) store_vector(mean + d, vfloat{});
  for (int64_t row = run.begin; row < run.end; row++) {
    if (!row_is_finite(rows, row)) continue;
    count++;
    for (int64_t d = 0; d < rows.matrix.columns; d += VL)
      store_vector(mean + d, load_vector<vfloat>(mean + d) + rows.read(row, d));
  }
  for (int64_t d = 0; count && d < rows.matrix.columns; d += VL)
    store_vector(mean + d, load_vector<vfloat>(mean + d) / (float)count);
}

// One row times what read(column) gives of another.
template <class Read>
inline float dot_row(const Matrix& x, int64_t row, const Read& read) {
  vfloat sum = {};
  for (int64_t d = 0; d < x.columns; d += VL) sum += widen(x, row, d) * read(d);
  return sum_lanes(sum);
}
inline float dot_rows(const Matrix& x, int64_t row, const Matrix& y, int64_t other) {
  return dot_row(x, row, [&](int64_t d) { return widen(y, other, d); });
}

// Rows [first, first + count), transposed to [panel][steps][PANEL] of words; read(row, step) gives the VL words of a
// row from that step on.
template <class Word, class Read>
inline void pack_panels(Word* packed, int64_t first, int64_t count, int64_t steps, const Read& read) {
  typedef decltype(read(0, 0)) vword;
  for (int64_t key = 0; key < count; key += VL)
    for (int64_t step = 0; step < steps; step += VL) {
      vfloat block[VL];
      for (int i = 0; i < VL; i++) block[i] = (vfloat)read(first + key + i, step);
      transpose(block);
      Word* to = packed + key / PANEL * PANEL * steps + step * PANEL + key % PANEL;
      for (int64_t i = 0; i < smaller(steps - step, VL); i++) store_vector(to + i * PANEL, (vword)block[i]);
    }
}

// Keys [first, first + count) as float32, in the order of pack_keys.
inline void pack_smoothed_keys(float* packed, const Rows& keys, int64_t first, int64_t count) {
  auto read = [&](int64_t row, int64_t step) { return keys.read(row, step); };
  pack_panels(packed, first, count, keys.matrix.columns, read);
}

// c[PANEL] = mean . k for each key of a packed float32 panel.
inline void multiply_mean(float* c, const float* mean, const float* panel, int64_t head_dim) {
  vfloat sum[4][2] = {};  // in four parts, as an addition takes longer than a step
  int64_t d = 0;
  for (; d + 4 <= head_dim; d += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 2
      for (int j = 0; j < 2; j++)
        sum[i][j] += splat(mean[d + i]) * load_vector<vfloat>(panel + (d + i) * PANEL + j * VL);
  for (; d < head_dim; d++)
    for (int j = 0; j < 2; j++) sum[0][j] += splat(mean[d]) * load_vector<vfloat>(panel + d * PANEL + j * VL);
  for (int j = 0; j < 2; j++) store_vector(c + j * VL, sum[0][j] + sum[1][j] + (sum[2][j] + sum[3][j]));
}
