// panels.h: the verbs over tiles: pack keys, values and queries as float32 in the order in which the matmul reads
// them, multiply a group of rows by a tile, write rows back.
#pragma once
#include "params.h"
#include "vector.h"

// Sizes. A matmul tile keeps ROWS x 2 registers of sums, so the rows follow from the number of registers.
constexpr int ROWS = REGISTERS == 32 ? 12 : 6;  // query rows that are computed together: a row group
constexpr int PANEL = 2 * VL;                   // columns of a matmul tile
constexpr int KV_TILE = 128;                    // keys of one step of the online softmax
static_assert(KV_TILE % PANEL == 0, "a tile of scores is made of whole panels");

inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
inline int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }

// A matrix in the caller's memory: any dtype, any strides.
struct Matrix {
  const void* data;
  int64_t rows, columns;
  int64_t row_stride, column_stride;  // in elements
  int32_t dtype;
};

inline int64_t dtype_bytes(int32_t dtype) { return dtype == FLOAT32 ? 4 : 2; }

// [rows, columns] from row `first` of head h of batch b on, out of a tensor with these four strides.
inline Matrix matrix_of(const void* tensor, const int64_t* strides, int64_t b, int64_t h, int64_t first, int64_t rows,
                        int64_t columns, int32_t dtype) {
  int64_t start = b * strides[0] + h * strides[1] + first * strides[2];
  return {(const char*)tensor + start * dtype_bytes(dtype), rows, columns, strides[2], strides[3], dtype};
}

// Columns [column, column + VL) of one row as float32; zeros outside the matrix.
INLINE vfloat widen(const Matrix& m, int64_t row, int64_t column) {
  if (row >= m.rows) return vfloat{};
  int64_t start = row * m.row_stride + column * m.column_stride, count = smaller(m.columns - column, VL);
  bool whole = count == VL && m.column_stride == 1;
  if (m.dtype == FLOAT32) {
    const float* from = (const float*)m.data + start;
    float lanes[VL] = {};
#pragma GCC unroll 1
    for (int64_t i = 0; !whole && i < count; i++) lanes[i] = from[i * m.column_stride];
    return load_vector<vfloat>(whole ? from : lanes);
  }
  const uint16_t* from = (const uint16_t*)m.data + start;
  uint16_t lanes[VL] = {};
#pragma GCC unroll 1
  for (int64_t i = 0; !whole && i < count; i++) lanes[i] = from[i * m.column_stride];
  vshort bits = load_vector<vshort>(whole ? from : lanes);
  return m.dtype == FLOAT16 ? widen_float16(bits) : widen_bfloat16(bits);
}

// The VL x VL block at (row, column). The rows below it, which the caller reads next, are asked for meanwhile: reading
// VL rows at a time is more than the machine foresees.
__attribute__((noinline)) static void widen_block(vfloat* block, const Matrix& m, int64_t row, int64_t column) {
  for (int i = 0; i < VL; i++) {
    int64_t below = (row + i + VL) * m.row_stride + column * m.column_stride;
    __builtin_prefetch((const char*)m.data + below * dtype_bytes(m.dtype));
    block[i] = widen(m, row + i, column);
  }
}

// The reverse: n numbers, contiguous in memory. row is readable up to the next multiple of VL.
inline void narrow_row(void* target, const float* row, int64_t n, int32_t dtype) {
  for (int64_t i = 0; i < n; i += VL) {
    int64_t count = smaller(n - i, VL);
    vfloat x = load_vector<vfloat>(row + i);
    if (dtype == FLOAT32) {
      __builtin_memcpy((float*)target + i, &x, count * 4);
    } else {
      vshort bits = dtype == FLOAT16 ? narrow_float16(x) : narrow_bfloat16(x);
      __builtin_memcpy((uint16_t*)target + i, &bits, count * 2);
    }
  }
}

// Keys, transposed: [panel][head_dim][PANEL].
inline void pack_keys(float* packed, const Matrix& k) {
  for (int64_t key = 0; key < k.rows; key += VL)
    for (int64_t d = 0; d < k.columns; d += VL) {
      vfloat block[VL];
      widen_block(block, k, key, d);
      transpose(block);
      float* to = packed + key / PANEL * PANEL * k.columns + d * PANEL + key % PANEL;
      for (int64_t i = 0; i < smaller(k.columns - d, VL); i++) store_vector(to + i * PANEL, block[i]);
    }
}

// Packed values: [panel of value_dim][KV_TILE][PANEL]; the last panel is VL wide when that is enough.
INLINE int64_t panel_width(int64_t value_dim, int64_t d) {
  return smaller(round_up(value_dim, VL) - d / PANEL * PANEL, PANEL);
}
INLINE int64_t place_of_value(int64_t value_dim, int64_t key, int64_t d) {
  return d / PANEL * PANEL * KV_TILE + key * panel_width(value_dim, d) + d % PANEL;
}

// Returns whether all of them are finite.
inline bool pack_values(float* packed, const Matrix& v) {
  vfloat zeros[2] = {};  // sums of values times 0: nan once one of them is infinite or nan
  for (int64_t key = 0; key < v.rows; key += VL)
    for (int64_t d = 0; d < v.columns; d += VL) {
      vfloat block[VL];
      widen_block(block, v, key, d);
      float* to = packed + place_of_value(v.columns, key, d);
      int64_t width = panel_width(v.columns, d);
      for (int64_t i = 0; i < smaller(v.rows - key, VL); i++) {
        store_vector(to + i * width, block[i]);
        zeros[i % 2] += block[i] * 0.0f;
      }
    }
  return sum_lanes(zeros[0] + zeros[1]) == 0;
}

// Queries times the scale, transposed: [head_dim][ROWS]. Rows that do not exist are zero.
inline void pack_queries(float* packed, const Matrix& q, float scale) {
  for (int64_t r = 0; r < ROWS; r++)
    for (int64_t d = 0; d < q.columns; d += VL) {
      vfloat x = widen(q, r, d) * scale;
      for (int64_t i = 0; i < smaller(q.columns - d, VL); i++) packed[(d + i) * ROWS + r] = x[i];
    }
}

// What `multiply` makes of words: of floats here, of pairs of bfloat16 in pairs.h.
struct Floats {
  static constexpr int PER_WORD = 1;  // numbers

  // SPARSE: a 0 in x leaves y out, whatever that holds.
  template <bool SPARSE>
  static INLINE vfloat add(vfloat sum, vfloat x, vfloat y) {
    return sum + x * (SPARSE ? select(x == 0.0f, x, y) : y);
  }
  static INLINE vfloat written(vfloat sum, const float*) { return sum; }
};

// c[N][PANEL] = c * factor[row] + a @ b for the first N rows of a group, all sums in registers. Word (row, step) of a
// lies at row * A_ROW + step * A_STEP; b is [steps][COLUMNS * VL]. Without ACCUMULATE c is only written.
// SPARSE: a 0 in a leaves its row of b out, whatever that holds.
template <int N, int COLUMNS, int A_ROW, int A_STEP, int C_ROW, bool ACCUMULATE, bool SPARSE = false,
          class Words = Floats>
inline void multiply(float* c, const float* a, const float* b, int64_t steps, const float* factor) {
  vfloat sum[N][COLUMNS];
#pragma GCC unroll 12
  for (int r = 0; r < N; r++)
#pragma GCC unroll 2
    for (int j = 0; j < COLUMNS; j++)
      sum[r][j] = ACCUMULATE ? load_vector<vfloat>(c + r * C_ROW + j * VL) * factor[r] : vfloat{};

  for (int64_t step = 0; step < steps; step++) {
    vfloat columns[COLUMNS];
#pragma GCC unroll 2
    for (int j = 0; j < COLUMNS; j++) columns[j] = load_vector<vfloat>(b + j * VL);
#pragma GCC unroll 12
    for (int r = 0; r < N; r++) {
      vfloat x = splat(a[r * A_ROW]);
#pragma GCC unroll 2
      for (int j = 0; j < COLUMNS; j++) sum[r][j] = Words::template add<SPARSE>(sum[r][j], x, columns[j]);
    }
    a += A_STEP;
    b += COLUMNS * VL;
  }

#pragma GCC unroll 12
  for (int r = 0; r < N; r++)
#pragma GCC unroll 2
    for (int j = 0; j < COLUMNS; j++)
      store_vector(c + r * C_ROW + j * VL, ACCUMULATE ? sum[r][j] : Words::written(sum[r][j], factor));
}

// scores[N][KV_TILE] = q @ k^T for the panels of a packed tile that hold its keys [begin, end); steps: words of a row;
// scale: of scores, only where words are pairs.
template <int N, class Words = Floats>
inline void multiply_keys(float* scores, const float* q, const float* k, int64_t begin, int64_t end, int64_t steps,
                          const float* scale = nullptr) {
  for (int64_t first = begin / PANEL * PANEL; first < end; first += PANEL)
    multiply<N, 2, 1, ROWS, KV_TILE, false, false, Words>(scores + first, q, k + first * steps, steps, scale);
}

// out[panel][ROWS][PANEL] = out * factor[row] + weights[ROWS][KV_TILE] @ v, over the keys [begin, end) of a tile.
// SPARSE: a weight of 0 leaves its key out, which values that are infinite or nan need. begin is a multiple of VL.
template <int N, bool SPARSE, class Words = Floats>
inline void multiply_values(float* out, const float* weights, const float* v, int64_t begin, int64_t end,
                            int64_t value_dim, const float* factor) {
  constexpr int64_t PER_WORD = Words::PER_WORD;
  int64_t step = begin / PER_WORD, steps = (end - begin + PER_WORD - 1) / PER_WORD;
  const float* first_weight = weights + step;
  for (int64_t first = 0; first < value_dim; first += PANEL) {
    float* panel = out + first * ROWS;
    const float* values = v + first * (KV_TILE / PER_WORD);
    if (value_dim - first > VL)
      multiply<N, 2, KV_TILE, 1, PANEL, true, SPARSE, Words>(panel, first_weight, values + step * PANEL, steps, factor);
    else
      multiply<N, 1, KV_TILE, 1, PANEL, true, SPARSE, Words>(panel, first_weight, values + step * VL, steps, factor);
  }
}
