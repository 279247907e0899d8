// block_sparse_matmul.cpp: products at the blocks that the lists name.
//   sampled (Q K^T): out [B, H, L, S] = a [B, H, L, D] @ b [1 or B, Hb, D, S] there, -inf elsewhere
//   summed (P V):    out [B, H, L, D] = a [B, H, L, S] @ b [1 or B, Hb, S, D], with a's blocks elsewhere as zeros;
//                    a 0 in a leaves its row of b out, whatever that holds
#include "product.h"

struct BlockSparseMatmul {
  Tensor a, b, out;
  BlockLists blocks;
  int64_t sampled;
  Caller caller;
};

constexpr int64_t TILE_ROWS = 8 * ROWS, TILE_COLUMNS = 4 * PANEL, TILE_STEPS = 256;

// Some rows of one row of blocks.
struct Rows {
  int64_t b, h, first, count;
};

// out's columns [column, column + width) of these rows, of the sums.
static void write_rows(const BlockSparseMatmul& s, const Rows& rows, ProductTile& product, int64_t column,
                       int64_t width) {
  for (int64_t r = 0; r < rows.count; r++) {
    char* target = s.out.at((rows.b * s.out.shape[1] + rows.h) * s.out.shape[2] + rows.first + r);
    product.write(r, width, target + column * dtype_bytes(s.out.dtype), s.out.dtype);
  }
}

// sums += a's columns [step, end) @ b's columns [column, column + width), over those steps.
template <bool SPARSE>
static void add_steps(const BlockSparseMatmul& s, const Rows& rows, ProductTile& product, int64_t step, int64_t end,
                      int64_t column, int64_t width) {
  for (; step < end; step += TILE_STEPS) {
    int64_t depth = smaller(TILE_STEPS, end - step);
    product.add<SPARSE>(s.a.matrix(rows.b, rows.h, rows.first, step, rows.count, depth),
                        s.b.matrix(batch_of(s.b, rows.b), head_of(s.b, s.a, rows.h), step, column, depth, width));
  }
}

static void sample(const BlockSparseMatmul& s, const Rows& rows, const uint8_t* states, ProductTile& product) {
  int64_t kv_len = s.out.shape[3], width = s.blocks.kv_block;
  for (int64_t first = 0; first < kv_len; first += width) {
    bool listed = states[first / width] != 0;
    int64_t end = smaller(first + width, kv_len);
    for (int64_t column = first; column < end; column += TILE_COLUMNS) {
      int64_t columns = smaller(TILE_COLUMNS, end - column);
      product.fill(listed ? 0 : -INFINITE);
      if (listed) add_steps<false>(s, rows, product, 0, s.a.shape[3], column, columns);
      write_rows(s, rows, product, column, columns);
    }
  }
}

static void sum_up(const BlockSparseMatmul& s, const Rows& rows, const uint8_t* states, ProductTile& product) {
  int64_t kv_len = s.a.shape[3], width = s.blocks.kv_block, dim = s.out.shape[3];
  for (int64_t column = 0; column < dim; column += TILE_COLUMNS) {
    int64_t columns = smaller(TILE_COLUMNS, dim - column);
    product.fill(0);
    for (int64_t first = 0; first < kv_len; first += width)
      if (states[first / width])
        add_steps<true>(s, rows, product, first, smaller(first + width, kv_len), column, columns);
    write_rows(s, rows, product, column, columns);
  }
}

TAKES(BlockSparseMatmul)
extern "C" __attribute__((visibility("default"))) int flextrace_stage(const BlockSparseMatmul* call) {
  const BlockSparseMatmul& s = *call;
  int64_t q_len = s.out.shape[2], kv_len = s.sampled ? s.out.shape[3] : s.a.shape[3], q_block = s.blocks.q_block;
  int64_t height = smaller(TILE_ROWS, smaller(q_block, q_len));  // of a job: a part of a block of queries
  if (s.out.heads() * q_len == 0) return OK;
  int64_t per_block = (smaller(q_block, q_len) + height - 1) / height, q_blocks = (q_len + q_block - 1) / q_block;
  int64_t floats = round_up(ProductTile::floats(round_up(height, ROWS), TILE_COLUMNS, TILE_STEPS), 16);
  int64_t blocks = s.blocks.kv_blocks(kv_len), work = height * kv_len * (s.sampled ? s.a.shape[3] : s.out.shape[3]);
  return for_each(s.out.heads() * q_blocks * per_block, work, s.caller, floats * 4 + blocks,
                  [&](int64_t job, char* memory) {
    int64_t head = job / (q_blocks * per_block), block = job / per_block % q_blocks;
    int64_t first = block * q_block + job % per_block * height;
    int64_t end = smaller(smaller(first + height, (block + 1) * q_block), q_len);
    if (first >= end) return;
    Rows rows = {head / s.out.shape[1], head % s.out.shape[1], first, end - first};
    uint8_t* states = (uint8_t*)memory + floats * 4;
    s.blocks.read_row(rows.b, rows.h, block, states, blocks);
    ProductTile product(round_up(height, ROWS), TILE_COLUMNS, TILE_STEPS, memory);
    (s.sampled ? sample : sum_up)(s, rows, states, product);
  });
}
