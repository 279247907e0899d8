// matmul.metal: a b, in tiles. Each threadgroup computes BM x BN elements of one head's product (product.h).
#include "product.h"

// params: [heads of a, batches of b, heads of b, m, n, k, unused, unused]
// a: [batch, heads, m, k], or [.., k, m]; b: [batch or 1, heads of b, k, n], or [.., n, k]; any strides, in elements.
// Head h of a meets head h / (heads / heads of b) of b. out: [batch, heads, m, n].
// group: (tile of columns, tile of rows, batch and head).
template <typename A, typename B, typename O, typename P>
inline void matmul(const device A* a, const constant int64_t* a_strides, const device B* b,
                   const constant int64_t* b_strides, device O* out, const device int* params, threadgroup A* a_staged,
                   threadgroup B* b_staged, metal::uint3 group, uint simdgroup, uint lane) {
  const int heads = params[0], b_batches = params[1], b_heads = params[2], m = params[3], n = params[4];
  const int batch = int(group.z) / heads, head = int(group.z) % heads;
  const Range rows = block_of(int(group.y), P::BM, m), columns = block_of(int(group.x), P::BN, n);
  DenseSteps steps;
  steps.at = 0;
  steps.k = params[5];
  steps.step = P::BK;

  Fragment<float> sums[P::ROW_FRAGMENTS][P::COLUMN_FRAGMENTS];
  multiply_tile<A, B, P>(sums, matrix_of(a, a_strides, batch, head),
                         matrix_of(b, b_strides, metal::min(batch, b_batches - 1), head / (heads / b_heads)), rows,
                         columns, steps, a_staged, b_staged, simdgroup, lane);
  write_tile<O, P>(out + int64_t(group.z) * m * n, n, sums, rows, columns, simdgroup, lane);
}

// -- body: what MLX puts between the braces --
typedef ProductPlan<A, B, BM, BN, BK, ROW_GROUPS, COLUMN_GROUPS, TRANSPOSE_A, TRANSPOSE_B, WHOLE> P;
threadgroup A a_staged[P::A_STAGED];
threadgroup B b_staged[P::B_STAGED];
matmul<A, B, O, P>(a, a_strides, b, b_strides, out, params, a_staged, b_staged, threadgroup_position_in_grid,
                   simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
