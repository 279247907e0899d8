// scale.metal: x * factor, in float32.
#include "elementwise.h"

struct ScaleParams {
  int heads;
  int rows;
  int columns;
  float factor;
};
static_assert(sizeof(ScaleParams) == 4 * 4, "every field is a word");

// params: ScaleParams; x: [batch, heads, rows, columns], any strides; out: contiguous.
template <typename T>
INLINE void scale(Tensor<T> x, device T* out, const device int* params, metal::uint3 group, metal::uint3 in_group,
                  metal::uint3 group_size) {
  const ScaleParams p = read_params<ScaleParams>(params);
  const Place place = place_in(group, in_group, group_size, p.heads);
  if (place.row >= p.rows) return;
  const Matrix<T> from = x.head(place.b, place.h);
  device T* to = out + row_start(place, p.heads, p.rows, p.columns);
  UNROLL
  for (int i = 0; i < ITEMS; i++) {
    int column = place.column + i * place.step;
    if (column < p.columns) to[column] = T(float(*from.at(place.row, column)) * p.factor);
  }
}

// -- body: what MLX puts between the braces --
scale(tensor(x, x_strides), out, params, threadgroup_position_in_grid, thread_position_in_threadgroup,
      threads_per_threadgroup);
