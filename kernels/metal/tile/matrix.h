// matrix.h: tensors in device memory -> matrices of one head, and ranges of their rows and columns.
#pragma once
#include "simdgroup.h"

// One head of a tensor of four axes, any strides.
template <typename T>
struct Matrix {
  const device T* data;
  int64_t row_stride;  // in elements
  int64_t column_stride;

  const device T* at(int row, int column) const thread { return data + row * row_stride + column * column_stride; }
};

// A tensor as MLX passes it: [batch, heads, rows, columns].
template <typename T>
struct Tensor {
  const device T* data;
  const constant int64_t* strides;  // in elements

  Matrix<T> head(int b, int h) const thread {
    Matrix<T> m;
    m.data = data + b * strides[0] + h * strides[1];
    m.row_stride = strides[2];
    m.column_stride = strides[3];
    return m;
  }
};
template <typename T>
INLINE Tensor<T> tensor(const device T* data, const constant int64_t* strides) {
  Tensor<T> t;
  t.data = data;
  t.strides = strides;
  return t;
}

// From first to end - 1, of rows, columns or the axis that a product sums over.
struct Range {
  int first, end;
};
// Block number `block` of those that `length` is cut into; the last one may be shorter.
INLINE Range block_of(int block, int size, int length) {
  Range range;
  range.first = block * size;
  range.end = range.first + metal::min(size, length - range.first);
  return range;
}
// What a block has of its piece number `piece` of that size, perhaps nothing.
INLINE Range cut(Range block, int piece, int size) {
  Range range;
  range.first = metal::min(block.first + piece * size, block.end);
  range.end = metal::min(range.first + size, block.end);
  return range;
}
// `count` of them from `first` on, as far as there are so many: none beyond `length`.
INLINE Range range_of(int first, int count, int length) {
  Range range;
  range.first = first;
  range.end = metal::min(first + count, length);
  return range;
}
