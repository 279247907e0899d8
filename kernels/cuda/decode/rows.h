// rows.h: one call, and where a block stands in it: which query rows are its own, and where k and v lie.
//
// Row r of a head of keys is row r % q_len of its query head r / q_len: rows of q and of the result lie in that order.
#pragma once
#include "plan.h"

// As kernels/cuda/decode/launch.py packs it; float by its bits, since MLX passes ints.
struct DecodeParams {
  int kv_heads, group, kv_batches, q_len, kv_len;
  float scale;
  int splits;  // blocks that share the keys of one head
  int mask_batches, mask_heads, q_blocks, kv_blocks, q_block, kv_block;

  INLINE int rows() const { return group * q_len; }
};

struct Block {
  int b, kv_head, split, slice;
  int first_row, end_row;  // of the head of keys

  INLINE explicit Block(const DecodeParams& p) {
    const int row_tiles = (p.rows() + ROWS - 1) / ROWS;
    int at = blockIdx.x;
    b = blockIdx.z, kv_head = blockIdx.y;
    slice = at % SLICES, at /= SLICES;
    split = at / row_tiles;
    first_row = at % row_tiles * ROWS;
    end_row = smaller(first_row + ROWS, p.rows());
  }
  INLINE int kv_batch(const DecodeParams& p) const { return smaller(b, p.kv_batches - 1); }
  INLINE int64_t kv_line(const DecodeParams& p) const { return int64_t(kv_batch(p)) * p.kv_heads + kv_head; }
  // Of batch and head of keys.
  INLINE int64_t line(const DecodeParams& p) const { return int64_t(b) * p.kv_heads + kv_head; }
  // Where the partial result of a row lies.
  INLINE int64_t partial(const DecodeParams& p, int row) const { return (line(p) * p.splits + split) * p.rows() + row; }
};

// A tensor as it lies, [batch, head, row, column]. MLX hands over no strides, but pointers: its own, and those of the
// neighbours of its first element along each axis, which are its own where an axis has one element.
template <typename E>
struct Tensor {
  const E *data, *next_batch, *next_head, *next_row, *next_column;

  INLINE const E* head(int batch, int head) const {
    return data + batch * int64_t(next_batch - data) + head * int64_t(next_head - data);
  }
  INLINE int64_t row_stride() const { return next_row - data; }
};

// The rows of one head. aligned: 16 bytes of a row may be read at once.
template <typename E>
struct Head {
  const E* data;
  int64_t row_stride, column_stride;
  int last;  // row
  bool aligned;

  template <int DIM>
  static INLINE Head of(const Tensor<E>& x, int batch, int head, int count) {
    Head rows;
    rows.data = x.head(batch, head);
    rows.row_stride = x.row_stride();
    rows.column_stride = DIM > 1 ? x.next_column - x.data : 1;
    rows.last = count - 1;
    rows.aligned = rows.column_stride == 1 && ((uint64_t(rows.data) | uint64_t(rows.row_stride * sizeof(E))) & 15) == 0;
    return rows;
  }
  // Rows behind the last are the last one.
  INLINE const E* row(int i) const { return data + smaller(i, last) * row_stride; }
};

struct alignas(16) Words {
  uint at[4];
};
template <typename E>
INLINE uint bits_of(E x);
template <>
INLINE uint bits_of<float16_t>(float16_t x) { return x.bits; }
template <>
INLINE uint bits_of<bfloat16_t>(bfloat16_t x) { return x.bits; }
template <>
INLINE uint bits_of<float>(float x) { return __float_as_uint(x); }
template <>
INLINE uint bits_of<int8_t>(int8_t x) { return uint8_t(x); }

// 16 bytes of a row of DIM columns, from a column on; zeros beyond the last. ALWAYS: in no lane do they lie beyond it.
template <int DIM, bool ALWAYS, typename E>
INLINE Words words_at_once(const E* row, int column) {
  Words words = Words();
  if (ALWAYS || column < DIM) {
    const uint4 x = ptx::ld_global_nc_16(row + column);
    words.at[0] = x.x, words.at[1] = x.y, words.at[2] = x.z, words.at[3] = x.w;
  }
  return words;
}
template <int DIM, typename E>
CALLED Words words_by_element(const E* row, int column, int64_t column_stride) {
  constexpr int OF_WORD = 4 / sizeof(E);
  Words words = Words();
  UNROLL
  for (int e = 0; e < 4 * OF_WORD; e++) {
    if (column + e < DIM) words.at[e / OF_WORD] |= bits_of(row[(column + e) * column_stride]) << e % OF_WORD * 8 * sizeof(E);
  }
  return words;
}
