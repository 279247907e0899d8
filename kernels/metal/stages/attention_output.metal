// attention_output.metal: what the softmax left undone: out = product / sum, lse = max + log(sum).
#include "../attention/softmax.h"
#include "elementwise.h"

// params: ShapeParams; product: [batch, heads, rows, columns]; max_scores, sums: [batch, heads,
// rows, 1]; any strides. out, lse: contiguous. A row with sum 0 had nothing to attend to: it gives 0, and lse -inf.
template <typename O>
INLINE void attention_output(Tensor<float> product, Tensor<float> max_scores, Tensor<float> sums, device O* out,
                             device float* lse, const device int* params, metal::uint3 group, metal::uint3 in_group,
                             metal::uint3 group_size) {
  const ShapeParams p = read_params<ShapeParams>(params);
  const Place place = place_in(group, in_group, group_size, p.heads);
  if (place.row >= p.rows) return;
  const Matrix<float> sum_of = sums.head(place.b, place.h);
  const float sum = *sum_of.at(place.row, 0);
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  const Matrix<float> from = product.head(place.b, place.h);
  device O* to = out + row_start(place, p.heads, p.rows, p.columns);
  UNROLL
  for (int i = 0; i < ITEMS; i++) {
    int column = place.column + i * place.step;
    if (column < p.columns) to[column] = sum == 0.0f ? O(0.0f) : O(*from.at(place.row, column) * inverse);
  }
  if (place.column == 0) {
    const Matrix<float> max_of = max_scores.head(place.b, place.h);
    lse[row_start(place, p.heads, p.rows, 1)] =
        sum == 0.0f ? minus_infinity() : *max_of.at(place.row, 0) + metal::precise::log(sum);
  }
}

// -- body: what MLX puts between the braces --
attention_output(tensor(product, product_strides), tensor(max_scores, max_scores_strides), tensor(sums, sums_strides),
                 out, lse, params, threadgroup_position_in_grid, thread_position_in_threadgroup,
                 threads_per_threadgroup);
