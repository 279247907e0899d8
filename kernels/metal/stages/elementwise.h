// elementwise.h: how threads share elementwise work over a tensor.
#pragma once
#include "../tile/matrix.h"
#include "../tile/words.h"

// [batch, heads, rows, columns]
struct ShapeParams {
  int heads;
  int rows;
  int columns;
};
constexpr constant int SHAPE_WORDS = 3;
static_assert(sizeof(ShapeParams) == 4 * SHAPE_WORDS, "every field is a word");

// In work on [batch, heads, rows, columns] a thread has ITEMS elements of one row. Neighbouring threads have
// neighbouring columns; a threadgroup is as wide as short rows need, and as high as its number of threads leaves.
constexpr constant int ITEMS = 4;

struct Place {
  int b, h, row;
  int column;  // the first item's
  int step;    // columns from one item to the next
};
INLINE Place place_in(metal::uint3 group, metal::uint3 in_group, metal::uint3 group_size, int heads) {
  Place place;
  place.b = int(group.z) / heads;
  place.h = int(group.z) % heads;
  place.row = int(group.y * group_size.y + in_group.y);
  place.step = int(group_size.x);
  place.column = int(group.x) * ITEMS * place.step + int(in_group.x);
  return place;
}
// The first element of a row in a contiguous tensor.
INLINE int64_t row_start(Place place, int heads, int rows, int columns) {
  return ((int64_t(place.b) * heads + place.h) * rows + place.row) * columns;
}
