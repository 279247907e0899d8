// tensor.h: heads of tensors in device memory, and how threads share elementwise work over one.
#pragma once
#include "../plan.h"

// One head of a tensor of four axes, any strides.
template <typename T>
struct Matrix {
  const device T* data;
  int64_t row_stride;  // in elements
  int64_t column_stride;

  const device T* at(int row, int column) const thread { return data + row * row_stride + column * column_stride; }
};
template <typename T>
inline Matrix<T> matrix_of(const device T* data, const constant int64_t* strides, int batch, int head) {
  Matrix<T> m;
  m.data = data + batch * strides[0] + head * strides[1];
  m.row_stride = strides[2];
  m.column_stride = strides[3];
  return m;
}

// From first to end - 1, of rows, columns or the axis that a product sums over.
struct Range {
  int first, end;
};
// Block number `block` of those that `length` is cut into; the last one may be shorter.
inline Range block_of(int block, int size, int length) {
  Range range;
  range.first = block * size;
  range.end = range.first + metal::min(size, length - range.first);
  return range;
}
// What a block has of its piece number `piece` of that size, perhaps nothing.
inline Range cut(Range block, int piece, int size) {
  Range range;
  range.first = metal::min(block.first + piece * size, block.end);
  range.end = metal::min(range.first + size, block.end);
  return range;
}

// Elementwise work on [batch, heads, rows, columns]: a thread has ITEMS elements of one row. Neighbouring threads have
// neighbouring columns; a threadgroup is as wide as short rows need, and as high as its number of threads leaves.
constexpr constant int ITEMS = 4;

struct Place {
  int b, h, row;
  int column;  // of the first item
  int step;    // columns from one item to the next
};
inline Place place_in(metal::uint3 group, metal::uint3 in_group, metal::uint3 group_size, int heads) {
  Place place;
  place.b = int(group.z) / heads;
  place.h = int(group.z) % heads;
  place.row = int(group.y * group_size.y + in_group.y);
  place.step = int(group_size.x);
  place.column = int(group.x) * ITEMS * place.step + int(in_group.x);
  return place;
}
// The first element of a row in a contiguous tensor.
inline int64_t row_start(Place place, int heads, int rows, int columns) {
  return ((int64_t(place.b) * heads + place.h) * rows + place.row) * columns;
}
