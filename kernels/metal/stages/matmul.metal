// matmul.metal: a b, in tiles. Each threadgroup computes BM x BN elements of one head's product (product.h).
#include "product.h"

// params: ProductParams. a: [batch, heads, m, k], or [.., k, m]; b: [batch or 1, heads of b, k, n], or [.., n, k]; any
// strides, in elements. out: [batch, heads, m, n].
// at.group: (tile of columns, tile of rows, batch and head).
template <typename A, typename B, typename O, typename P>
INLINE void matmul(Tensor<A> a, Tensor<B> b, device O* out, const device int* params, threadgroup A* a_staged,
                   threadgroup B* b_staged, Thread at) {
  const ProductParams p = read_params<ProductParams>(params);
  const int batch = int(at.group.z) / p.a_heads, head = int(at.group.z) % p.a_heads;
  const Range rows = block_of(int(at.group.y), P::BM, p.m), columns = block_of(int(at.group.x), P::BN, p.n);
  DenseSteps steps;
  steps.at = 0;
  steps.k = p.k;
  steps.step = P::BK;

  Fragment<float> sums[P::ROW_FRAGMENTS][P::COLUMN_FRAGMENTS];
  const Matrix<A> left = a.head(batch, head);
  const Matrix<B> right = b.head(metal::min(batch, p.b_batches - 1), head / (p.a_heads / p.b_heads));
  multiply_tile<A, B, P>(sums, left, right, rows, columns, steps, a_staged, b_staged, at);
  write_tile<O, P>(out + int64_t(at.group.z) * p.m * p.n, p.n, sums, rows, columns, at);
}

// -- body: what MLX puts between the braces --
typedef ProductPlan<A, B, BM, BN, BK, ROW_GROUPS, COLUMN_GROUPS, TRANSPOSE_A, TRANSPOSE_B, WHOLE> P;
threadgroup A a_staged[P::A_STAGED];
threadgroup B b_staged[P::B_STAGED];
matmul<A, B, O, P>(tensor(a, a_strides), tensor(b, b_strides), out, params, a_staged, b_staged,
                   thread_at(threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup,
                             thread_index_in_simdgroup));
