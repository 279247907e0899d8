// rows.h: rows of keys and values read in place, for a few query rows: nothing is packed, each is read once.
#pragma once
#include "../tile/panels.h"

// VL numbers of a contiguous row as float32.
template <int32_t DTYPE>
INLINE vfloat load_row(const char* row, int64_t column) {
  if constexpr (DTYPE == FLOAT32) return load_vector<vfloat>((const float*)row + column);
  vshort bits = load_vector<vshort>((const uint16_t*)row + column);
  return DTYPE == FLOAT16 ? widen_float16(bits) : widen_bfloat16(bits);
}

template <int32_t DTYPE>
constexpr int64_t bytes_of = DTYPE == FLOAT32 ? 4 : 2;
constexpr int64_t BYTES_AHEAD = 4096;  // bytes that memory is asked for before they are read

// Consecutive rows of a tensor. Those of a column stride other than 1 are read number by number.
struct Lines {
  const char* first;
  int64_t bytes;  // from one row to the next
  Matrix matrix;

  explicit Lines(const Matrix& m) : first((const char*)m.data), bytes(m.row_stride * dtype_bytes(m.dtype)), matrix(m) {}
  INLINE const char* row(int64_t i) const { return first + i * bytes; }
};

// The part of the products of dot_rows_and_keys from column `first` on, of any strides.
NOINLINE static void add_last_columns(vfloat* sums, const float* rows, int64_t stride, int row_count, const Lines& keys,
                                      int64_t key, int64_t count, int64_t first) {
  int at_once = VL / row_count;
  for (int64_t d = first; d < keys.matrix.columns; d += VL)
    for (int i = 0; i < at_once; i++) {
      vfloat k = widen(keys.matrix, smaller(key + i, count - 1), d);
      for (int r = 0; r < row_count; r++) sums[r * at_once + i] += load_vector<vfloat>(rows + r * stride + d) * k;
    }
}

// -- scores ------------------------------------------------------------------------------------------------------

// scores[ROW_COUNT][KV_TILE], from column `key` on, = rows[ROW_COUNT][stride] @ keys^T for VL / ROW_COUNT of `count`
// keys.
template <int32_t DTYPE, int ROW_COUNT>
INLINE void dot_rows_and_keys(float* scores, const float* rows, int64_t stride, const Lines& keys, int64_t key,
                              int64_t count) {
  constexpr int KEYS_AT_ONCE = VL / ROW_COUNT;
  const char* row[KEYS_AT_ONCE];
  for (int i = 0; i < KEYS_AT_ONCE; i++) row[i] = keys.row(smaller(key + i, count - 1));
  vfloat sums[VL] = {};
  int64_t columns = keys.matrix.columns, whole = keys.matrix.column_stride == 1 ? columns / VL * VL : 0;
  for (int64_t d = 0; d < whole; d += VL) {
    vfloat k[KEYS_AT_ONCE];
#pragma GCC unroll 16
    for (int i = 0; i < KEYS_AT_ONCE; i++) {
      __builtin_prefetch(row[i] + d * bytes_of<DTYPE> + BYTES_AHEAD);
      k[i] = load_row<DTYPE>(row[i], d);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROW_COUNT; r++) {
      vfloat q = load_vector<vfloat>(rows + r * stride + d);
#pragma GCC unroll 16
      for (int i = 0; i < KEYS_AT_ONCE; i++) sums[r * KEYS_AT_ONCE + i] += q * k[i];
    }
  }
  if (whole < columns) add_last_columns(sums, rows, stride, ROW_COUNT, keys, key, count, whole);
  float lanes[VL];
  store_vector(lanes, sums_of_lanes(sums));
  for (int r = 0; r < ROW_COUNT; r++)
    __builtin_memcpy(scores + r * KV_TILE + key, lanes + r * KEYS_AT_ONCE, KEYS_AT_ONCE * sizeof(float));
}

// scores[row_count][KV_TILE] = rows @ keys^T, for the keys [begin, end) of a tile that has `count`. row_count: a
// multiple of 4, or less. What is scored beyond `end` is of the last key.
template <int32_t DTYPE>
static void score_rows(float* scores, const float* rows, int64_t row_count, int64_t stride, const Lines& keys,
                       int64_t begin, int64_t end, int64_t count) {
  for (int64_t r = 0; row_count < 4 && r < row_count; r++)
    for (int64_t key = begin; key < end; key += VL)
      dot_rows_and_keys<DTYPE, 1>(scores + r * KV_TILE, rows + r * stride, stride, keys, key, count);
  if (row_count < 4) return;
  for (int64_t key = begin; key < end; key += VL / 4)
    for (int64_t r = 0; r < row_count; r += 4)
      dot_rows_and_keys<DTYPE, 4>(scores + r * KV_TILE, rows + r * stride, stride, keys, key, count);
}

// -- values ------------------------------------------------------------------------------------------------------

// out[ROW_COUNT][stride] = out * factor + weights[ROW_COUNT][KV_TILE] @ values, for WIDTH registers of columns from
// `column` on and the keys [begin, end). Returns whether all of it is finite; if not, out is as it was.
template <int32_t DTYPE, int ROW_COUNT, int WIDTH>
INLINE bool add_values(float* out, int64_t stride, const float* weights, const Lines& values, int64_t column,
                       int64_t begin, int64_t end, const float* factor) {
  vfloat sums[ROW_COUNT][WIDTH];
#pragma GCC unroll 8
  for (int r = 0; r < ROW_COUNT; r++)
#pragma GCC unroll 8
    for (int j = 0; j < WIDTH; j++) sums[r][j] = load_vector<vfloat>(out + r * stride + column + j * VL) * factor[r];
  const char* row = values.row(begin);
  for (int64_t key = begin; key < end; key++, row += values.bytes) {
    vfloat v[WIDTH];
#pragma GCC unroll 8
    for (int j = 0; j < WIDTH; j++) {
      __builtin_prefetch(row + (column + j * VL) * bytes_of<DTYPE> + BYTES_AHEAD);
      v[j] = load_row<DTYPE>(row, column + j * VL);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROW_COUNT; r++) {
      vfloat weight = splat(weights[r * KV_TILE + key]);
#pragma GCC unroll 8
      for (int j = 0; j < WIDTH; j++) sums[r][j] += weight * v[j];
    }
  }
  vfloat zeros = {};
#pragma GCC unroll 8
  for (int r = 0; r < ROW_COUNT; r++)
#pragma GCC unroll 8
    for (int j = 0; j < WIDTH; j++) zeros += sums[r][j] * 0.0f;
  if (sum_lanes(zeros) != 0) return false;
#pragma GCC unroll 8
  for (int r = 0; r < ROW_COUNT; r++)
#pragma GCC unroll 8
    for (int j = 0; j < WIDTH; j++) store_vector(out + r * stride + column + j * VL, sums[r][j]);
  return true;
}

// The same for any strides, any number of rows and columns, and values that may be infinite or nan: a weight of 0
// leaves its key out.
NOINLINE static void add_any_values(float* out, int64_t row_count, int64_t stride, const float* weights,
                                    const Lines& values, int64_t column, int64_t width, int64_t begin, int64_t end,
                                    const float* factor) {
  for (int64_t d = column; d < column + width; d += VL)
    for (int64_t r = 0; r < row_count; r++) {
      vfloat sum = load_vector<vfloat>(out + r * stride + d) * factor[r];
      for (int64_t key = begin; key < end; key++) {
        vfloat weight = splat(weights[r * KV_TILE + key]);
        sum += weight * select(weight == 0.0f, weight, widen(values.matrix, key, d));
      }
      store_vector(out + r * stride + d, sum);
    }
}

template <int32_t DTYPE, int ROW_COUNT>
INLINE void weigh_some_rows(float* out, int64_t stride, const float* weights, const Lines& values, int64_t begin,
                            int64_t end, const float* factor) {
  constexpr int WIDTH = REGISTERS == 32 ? 4 : 2;
  int64_t columns = values.matrix.columns, column = 0;
  int64_t whole = values.matrix.column_stride == 1 ? columns / VL * VL : 0;
  for (int64_t width = WIDTH * VL; column < whole; column += width) {
    if (whole - column < width) width = VL;
    bool finite =
        width > VL ? add_values<DTYPE, ROW_COUNT, WIDTH>(out, stride, weights, values, column, begin, end, factor)
                   : add_values<DTYPE, ROW_COUNT, 1>(out, stride, weights, values, column, begin, end, factor);
    if (!finite) add_any_values(out, ROW_COUNT, stride, weights, values, column, width, begin, end, factor);
  }
  add_any_values(out, ROW_COUNT, stride, weights, values, whole, round_up(columns, VL) - whole, begin, end, factor);
}

// out[row_count][stride] = out * factor + weights @ values, for the keys [begin, end) of a tile; row_count as of
// score_rows; columns of out beyond those of values are scratch.
template <int32_t DTYPE>
static void weigh_rows(float* out, int64_t row_count, int64_t stride, const float* weights, const Lines& values,
                       int64_t begin, int64_t end, const float* factor) {
  for (int64_t r = 0; row_count < 4 && r < row_count; r++)
    weigh_some_rows<DTYPE, 1>(out + r * stride, stride, weights + r * KV_TILE, values, begin, end, factor + r);
  for (int64_t r = 0; row_count >= 4 && r < row_count; r += 4)
    weigh_some_rows<DTYPE, 4>(out + r * stride, stride, weights + r * KV_TILE, values, begin, end, factor + r);
}
