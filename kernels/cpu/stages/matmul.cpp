// matmul.cpp: out = a @ b for every batch and head, a tile of the result at a time, in blocks of steps. A transposed
// operand is one with other strides.
#include "product.h"

struct Matmul {
  Tensor a, b, out;  // [B, H, M, K], [1 or B, Hb, K, N], [B, H, M, N]
  int64_t tile_rows, tile_columns, tile_steps;
  Caller caller;
};

TAKES(Matmul)
extern "C" __attribute__((visibility("default"))) int flextrace_stage(const Matmul* call) {
  const Matmul& s = *call;
  int64_t m = s.out.shape[2], n = s.out.shape[3], k = s.a.shape[3];
  int64_t rows = round_up(smaller(s.tile_rows, m), ROWS), columns = round_up(smaller(s.tile_columns, n), PANEL);
  int64_t steps = smaller(s.tile_steps, k);
  if (s.out.heads() * m * n == 0) return OK;
  int64_t across = (n + columns - 1) / columns, down = (m + rows - 1) / rows;
  int64_t bytes = ProductTile::floats(rows, columns, steps) * sizeof(float);
  return for_each(s.out.heads() * down * across, rows * columns * k, s.caller, bytes,
                  [&](int64_t tile, void* memory) {
    int64_t head = tile / (down * across), b = head / s.out.shape[1], h = head % s.out.shape[1];
    int64_t row = tile / across % down * rows, column = tile % across * columns;
    int64_t height = smaller(rows, m - row), width = smaller(columns, n - column);
    ProductTile product(rows, columns, steps, memory);
    product.fill(0);
    for (int64_t step = 0; step < k; step += steps) {
      int64_t depth = smaller(steps, k - step);
      product.add(s.a.matrix(b, h, row, step, height, depth),
                  s.b.matrix(batch_of(s.b, b), head_of(s.b, s.a, h), step, column, depth, width));
    }
    for (int64_t r = 0; r < height; r++) {
      char* target = s.out.at(head * m + row + r) + column * dtype_bytes(s.out.dtype);
      product.write(r, width, target, s.out.dtype);
    }
  });
}
