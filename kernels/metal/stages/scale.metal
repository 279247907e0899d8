// scale.metal: x * factor, in float32.
#include "tensor.h"

// params: [heads, rows, columns, factor, unused ...]; x: [batch, heads, rows, columns], any strides; out: contiguous.
template <typename T>
inline void scale(const device T* x, const constant int64_t* x_strides, device T* out, const device int* params,
                  metal::uint3 group, metal::uint3 in_group, metal::uint3 group_size) {
  const int heads = params[0], rows = params[1], columns = params[2];
  const float factor = as_type<float>(params[3]);
  const Place place = place_in(group, in_group, group_size, heads);
  if (place.row >= rows) return;
  const Matrix<T> from = matrix_of(x, x_strides, place.b, place.h);
  device T* to = out + row_start(place, heads, rows, columns);
  UNROLL
  for (int i = 0; i < ITEMS; i++) {
    int column = place.column + i * place.step;
    if (column < columns) to[column] = T(float(*from.at(place.row, column)) * factor);
  }
}

// -- body: what MLX puts between the braces --
scale(x, x_strides, out, params, threadgroup_position_in_grid, thread_position_in_threadgroup,
      threads_per_threadgroup);
