// product.h: one tile of a matrix product: sums [BM, BN] in float32, to which blocks of steps are added one by one.
#pragma once
#include "stage.h"

struct ProductTile {
  int64_t rows, columns, steps;  // at most; rows and columns rounded up to whole groups and panels
  float* a;                      // [group of ROWS][steps][ROWS]
  float* b;                      // [panel][steps][PANEL]
  float* sums;                   // [group][panel][ROWS][PANEL]
  float* row;                    // one row of the result
  float* ones;                   // [ROWS]

  static int64_t floats(int64_t rows, int64_t columns, int64_t steps) {
    return steps * (rows + columns) + rows * columns + columns + ROWS;
  }
  ProductTile(int64_t rows, int64_t columns, int64_t steps, void* memory)
      : rows(rows), columns(columns), steps(steps), a((float*)memory) {
    sums = a + steps * rows;
    b = sums + rows * columns;
    row = b + steps * columns;
    ones = row + columns;
    for (int i = 0; i < ROWS; i++) ones[i] = 1;
  }

  void fill(float value) {
    for (int64_t i = 0; i < rows * columns; i++) sums[i] = value;
  }

  // sums += x @ y; x: [at most rows, n], y: [n, at most columns], n at most steps.
  // SPARSE: a 0 in x leaves its row of y out, whatever that holds.
  template <bool SPARSE = false>
  void add(const Matrix& x, const Matrix& y) {
    int64_t n = x.columns, panels = columns / PANEL;
    for (int64_t first = 0; first < x.rows; first += ROWS) {
      const char* from = (const char*)x.data + first * x.row_stride * dtype_bytes(x.dtype);
      Matrix group = {from, smaller(ROWS, x.rows - first), n, x.row_stride, x.column_stride, x.dtype};
      pack_queries(a + first * n, group, 1);
    }
    pack(y);
    auto product = multiply<ROWS, 2, 1, ROWS, PANEL, true, false>;
    if constexpr (SPARSE)
      if (!is_finite(y.rows, y.columns)) product = multiply<ROWS, 2, 1, ROWS, PANEL, true, true>;
    for (int64_t c = 0; c < y.columns; c += PANEL)
      for (int64_t r = 0; r < x.rows; r += ROWS)
        product(sums + (r / ROWS * panels + c / PANEL) * ROWS * PANEL, a + r * n, b + c * n, n, ones);
  }

  // b = the panels of y, along whichever axis lies in memory.
  void pack(const Matrix& y) {
    if (y.row_stride == 1) return pack_keys(b, {y.data, y.columns, y.rows, y.column_stride, y.row_stride, y.dtype});
    for (int64_t c = 0; c < y.columns; c += VL)
      for (int64_t step = 0; step < y.rows; step++)
        store_vector(b + c / PANEL * PANEL * y.rows + step * PANEL + c % PANEL, widen(y, step, c));
  }

  // Whether all of b is, of that many steps and columns.
  bool is_finite(int64_t n, int64_t width) const {
    vfloat zeros = {};  // nan once an element is infinite or nan
    for (int64_t c = 0; c < width; c += VL)
      for (int64_t step = 0; step < n; step++)
        zeros += load_vector<vfloat>(b + c / PANEL * PANEL * n + step * PANEL + c % PANEL) * 0.0f;
    return sum_lanes(zeros) == 0;
  }

  // Row r of the sums, the first n columns of it, rounded to the dtype of `target`.
  void write(int64_t r, int64_t n, void* target, int32_t dtype) {
    const float* from = sums + r / ROWS * columns * ROWS + r % ROWS * PANEL;
    for (int64_t c = 0; c < n; c += VL)
      store_vector(row + c, load_vector<vfloat>(from + c / PANEL * PANEL * ROWS + c % PANEL));
    narrow_row(target, row, n, dtype);
  }
};
